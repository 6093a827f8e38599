//! How callers wake a sleeping reactor: one flag, one ring for a whole batch.
//!
//! Either side writes its word, issues a full fence and reads the other's: whatever the interleaving, the caller sees the
//! sleeper or the sleeper sees the message. A caller that goes away has rung or has not; nothing is held.

use std::sync::atomic::{AtomicBool, Ordering::*, fence};

use tokio::sync::Notify;

/// Wakes the reactor, but only when it sleeps: a busy one looks at its lanes anyway.
#[derive(Default)]
pub(crate) struct Doorbell {
    sleeping: AtomicBool,
    bell: Notify,
}

impl Doorbell {
    /// To be called after a message was sent. True when the reactor had to be woken.
    pub(crate) fn ring(&self) -> bool {
        // Pairs with the fence in `sleep_unless`: either this load sees `sleeping`, or the reactor
        // sees the message.
        fence(SeqCst);
        let asleep = self.sleeping.load(Relaxed) && self.sleeping.swap(false, AcqRel);
        if asleep {
            self.bell.notify_one();
        }
        asleep
    }

    /// Waits for the next ring, unless `work` says that there is something to do.
    pub(crate) async fn sleep_unless(&self, work: impl FnOnce() -> bool) {
        self.sleeping.store(true, Relaxed);
        fence(SeqCst);
        if !work() {
            self.bell.notified().await;
        }
        self.sleeping.store(false, Relaxed);
    }
}
