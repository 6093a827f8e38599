//! How slowly an upload may come.
//!
//! A client that sends a byte now and then is never silent for long, and would hold its connection and the room it was
//! promised for ever. So each stretch of time must bring a little; whoever is as slow as that can do without the upload.

use std::time::Instant;

use crate::limits;

pub(super) struct Pace {
    since: Instant,
    arrived: u64,
}

/// What came in the last stretch is not enough.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "only {arrived} bytes arrived within {} s, the least is {}",
    limits::HTTP_UPLOAD_STRETCH.as_secs(),
    limits::HTTP_UPLOAD_BYTES_MIN
)]
pub(super) struct TooSlow {
    arrived: u64,
}

impl Pace {
    pub fn new() -> Self {
        Self { since: Instant::now(), arrived: 0 }
    }

    pub fn arrived(&mut self, bytes: usize) -> Result<(), TooSlow> {
        self.at(Instant::now(), bytes)
    }

    fn at(&mut self, now: Instant, bytes: usize) -> Result<(), TooSlow> {
        self.arrived += bytes as u64;
        if now.duration_since(self.since) < limits::HTTP_UPLOAD_STRETCH {
            return Ok(());
        }
        if self.arrived < limits::HTTP_UPLOAD_BYTES_MIN {
            return Err(TooSlow { arrived: self.arrived });
        }
        *self = Self { since: now, arrived: 0 };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drip_is_too_slow_and_a_trickle_is_not() {
        let steps = 60;
        let step = limits::HTTP_UPLOAD_STRETCH / steps;
        for (bytes, expected) in [(1, false), (limits::HTTP_UPLOAD_BYTES_MIN as usize / steps as usize + 1, true)] {
            let mut pace = Pace::new();
            let begun = pace.since;
            let taken = (1..=10 * steps).try_for_each(|n| pace.at(begun + step * n, bytes));
            assert_eq!(taken.is_ok(), expected, "{bytes} bytes every {step:?}");
        }
    }
}
