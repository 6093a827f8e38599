//! The scrub that nobody has to ask for.

use std::time::Duration;

use super::{ScrubOptions, record};
use crate::clock;
use crate::error::{Error, Result};
use crate::limits::{SCRUB_GRACE, SCRUB_LOOK_EVERY};
use crate::store::Store;

impl Store {
    /// Scrubs every `interval`, counted from the end of the last scrub, whoever asked for it. One that a restart cut short
    /// goes on, and one that somebody stopped waits until it would be due again. Ends when the store is closed.
    ///
    /// Cancel: dropping the future stops the planning; a scrub that runs goes on.
    pub async fn scrub_regularly(&self, interval: Duration, rate_bytes_per_s: u64) {
        // A node that has just started has other work.
        tokio::time::sleep(SCRUB_GRACE).await;
        loop {
            match self.scrub_if_due(interval, rate_bytes_per_s).await {
                Ok(()) => {}
                Err(Error::Closed) => return,
                Err(error) => tracing::warn!(%error, "the scrub that is due could not begin"),
            }
            tokio::time::sleep(SCRUB_LOOK_EVERY).await;
        }
    }

    async fn scrub_if_due(&self, interval: Duration, rate_bytes_per_s: u64) -> Result<()> {
        self.check_open()?;
        let noted = self.catalog().read(record::load).await?;
        let current = noted.current.as_ref().map(|row| (row.stopped, row.started_ms));
        let last = noted.last.map(|last| last.finished_ms);
        if self.scrub_is_running() || !is_due(current, last, clock::now_ms(), interval) {
            return Ok(());
        }
        tracing::info!(rate_bytes_per_s, "a scrub is due");
        self.start_scrub(ScrubOptions { rate_bytes_per_s, ..ScrubOptions::default() }).await.map(drop)
    }

    fn scrub_is_running(&self) -> bool {
        self.inner.scrub.running().as_ref().is_some_and(|running| !running.task.is_finished())
    }
}

/// `current` is a scrub half way: whether somebody stopped it, and when it began.
fn is_due(current: Option<(bool, u64)>, last_finished_ms: Option<u64>, now_ms: u64, interval: Duration) -> bool {
    let interval = interval.as_millis() as u64;
    match (current, last_finished_ms) {
        (Some((false, _)), _) => true,
        (Some((true, started_ms)), _) => now_ms >= started_ms.saturating_add(interval),
        (None, Some(finished_ms)) => now_ms >= finished_ms.saturating_add(interval),
        (None, None) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrub_is_due_after_the_interval_and_after_a_restart_but_not_after_a_stop() {
        let interval = Duration::from_millis(1000);
        let due = |current, last, now| is_due(current, last, now, interval);
        assert!(due(None, None, 0), "never scrubbed");
        assert!(!due(None, Some(5000), 5999));
        assert!(due(None, Some(5000), 6000));
        assert!(due(Some((false, 5500)), Some(5000), 5600), "cut short");
        assert!(!due(Some((true, 5500)), Some(4000), 6400), "stopped by somebody");
        assert!(due(Some((true, 5500)), Some(4000), 6500));
    }
}
