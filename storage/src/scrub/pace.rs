//! How fast the scrub may go: at most so many bytes in a second, and slower while others need the disk.
//!
//! Without a limit nothing here waits (and no timer is needed): one read at a time is then the only bound.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::Instant;

use super::Watch;
use crate::limits::{SCRUB_BURST, SCRUB_STEP_ASIDE, SCRUB_STEPS_ASIDE_MAX, SCRUB_YIELDS_ABOVE};
use crate::volume::Volume;

pub(super) struct Pace {
    /// When the next read may set out.
    due: Option<Instant>,
}

impl Pace {
    pub(super) fn new() -> Pace {
        Pace { due: None }
    }

    /// Waits until `bytes` may be read; false when the scrub is to end.
    pub(super) async fn step(&mut self, volume: &Volume, watch: &Watch, bytes: usize) -> bool {
        if watch.stopping() {
            return false;
        }
        let rate = watch.rate.load(Relaxed);
        if rate == 0 {
            self.due = None;
            tokio::task::yield_now().await;
            return !watch.stopping();
        }
        let now = Instant::now();
        let due = self.due.unwrap_or(now);
        if due > now && !sleep(watch, due - now).await {
            return false;
        }
        // What was not used in a long wait is not saved up.
        let from = due.max(now.checked_sub(SCRUB_BURST).unwrap_or(now));
        self.due = Some(from + Duration::from_secs_f64(bytes as f64 / rate as f64));
        for _ in 0..SCRUB_STEPS_ASIDE_MAX {
            if volume.bridge.inflight() < SCRUB_YIELDS_ABOVE {
                break;
            }
            if !sleep(watch, SCRUB_STEP_ASIDE).await {
                return false;
            }
        }
        !watch.stopping()
    }
}

/// False when the scrub is to end.
async fn sleep(watch: &Watch, time: Duration) -> bool {
    let stopping = watch.stopping.notified();
    tokio::pin!(stopping);
    stopping.as_mut().enable();
    if watch.stopping() {
        return false;
    }
    tokio::select! {
        () = tokio::time::sleep(time) => !watch.stopping(),
        () = stopping => false,
    }
}
