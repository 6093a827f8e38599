//! When to ask again: full jitter under a growing cap, an origin's `Retry-After`, and a budget that progress renews.

use std::time::{Duration, SystemTime};

use super::validators::number;
use crate::limits;

/// The failures since the last progress.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    pub fn progressed(&mut self) {
        self.failures = 0;
    }

    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Counts one more failure. The pause before the next attempt, or `None` when `budget` attempts are used up.
    pub fn failed(&mut self, budget: u32, retry_after: Option<Duration>) -> Option<Duration> {
        if self.failures >= budget {
            return None;
        }
        let ceiling = ceiling(self.failures);
        self.failures += 1;
        let pause = ceiling.mul_f64(rand::random_range(0.0..=1.0));
        Some(pause.max(retry_after.unwrap_or_default()))
    }
}

fn ceiling(failures: u32) -> Duration {
    limits::FETCH_PAUSE.saturating_mul(1 << failures.min(20)).min(limits::FETCH_PAUSE_MAX)
}

/// Both forms of `Retry-After`, capped. A date that has passed means now; anything else says nothing.
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let wait = match number(value) {
        Some(seconds) => Duration::from_secs(seconds),
        // More digits than a number holds is still "very late".
        None if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => Duration::MAX,
        None => httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(limits::FETCH_RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_ends_and_progress_renews_it() {
        let mut backoff = Backoff::default();
        for failure in 0..3 {
            let pause = backoff.failed(3, None).unwrap();
            assert!(pause <= ceiling(failure), "{pause:?}");
        }
        assert_eq!(backoff.failed(3, None), None);
        backoff.progressed();
        assert!(backoff.failed(3, None).is_some());
    }

    #[test]
    fn the_ceiling_doubles_up_to_its_cap() {
        assert_eq!(ceiling(0), limits::FETCH_PAUSE);
        assert_eq!(ceiling(1), limits::FETCH_PAUSE * 2);
        assert_eq!(ceiling(u32::MAX), limits::FETCH_PAUSE_MAX);
    }

    #[test]
    fn the_origin_may_ask_for_more() {
        let mut backoff = Backoff::default();
        assert!(backoff.failed(1, Some(Duration::from_secs(100))).unwrap() >= Duration::from_secs(100));
    }

    #[test]
    fn retry_after_in_both_forms() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let parsed = |value| retry_after(value, now);
        assert_eq!(parsed("7"), Some(Duration::from_secs(7)));
        assert_eq!(parsed(" 0 "), Some(Duration::ZERO));
        assert_eq!(parsed("Sun, 06 Nov 1994 08:49:47 GMT"), Some(Duration::from_secs(10)));
        assert_eq!(parsed("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        for absurd in ["31536000", "99999999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"] {
            assert_eq!(parsed(absurd), Some(limits::FETCH_RETRY_AFTER_MAX), "{absurd}");
        }
        for nonsense in ["-5", "soon", "", "1.5"] {
            assert_eq!(parsed(nonsense), None, "{nonsense}");
        }
    }
}
