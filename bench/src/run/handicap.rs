//! A planted slowdown of a known size, to see whether a comparison finds it.
//!
//! In every period the lanes issue nothing for a share of it, all at the same time, so that none takes over what another
//! leaves. Filling the engine again costs what draining it gave: the throughput falls by the share, as long as an
//! operation takes less time than the gap.

use std::time::{Duration, Instant};

/// Short beside a round, long beside an operation.
const PERIOD: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy)]
pub struct Handicap {
    since: Instant,
    gap: Duration,
}

impl Handicap {
    pub fn new(percent: f64, since: Instant) -> Handicap {
        Handicap { since, gap: PERIOD.mul_f64(percent / 100.0) }
    }

    /// When operations may be issued again, while they may not. The gap is in the middle of the period, so that a round that
    /// ends anywhere has had its share.
    pub fn shut_until(&self, now: Instant) -> Option<Instant> {
        let age = now.saturating_duration_since(self.since);
        let phase = Duration::from_nanos((age.as_nanos() % PERIOD.as_nanos()) as u64);
        let opens = (PERIOD + self.gap) / 2;
        let shut = (opens - self.gap..opens).contains(&phase);
        shut.then(|| now + (opens - phase))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_is_the_share_and_ends_when_it_says() {
        let since = Instant::now();
        for percent in [1.0, 10.0, 50.0, 90.0] {
            let handicap = Handicap::new(percent, since);
            let step = Duration::from_micros(10);
            let times = (0..15_000).map(|n| since + step * n);
            let shut = times.clone().filter(|now| handicap.shut_until(*now).is_some()).count();
            assert!((shut as f64 / 150.0 - percent).abs() < 0.1, "{percent} %: {shut} of 15000");
            for now in times {
                if let Some(until) = handicap.shut_until(now) {
                    assert!(until > now && until - now <= PERIOD && handicap.shut_until(until).is_none());
                }
            }
        }
    }
}
