//! Who may touch the files of a blob that is not committed yet.
//!
//! A writer that is dropped leaves operations under way: writes, a rename, a commit that runs to its end. Whoever takes
//! the blob up again would meet them: an old footer landing on new bytes, a rename taking the file away. So everything
//! that belongs to a writer holds its claim: the writer, its open files and with them each operation in flight on them,
//! the tasks that finish or undo its work. The next taker waits until the last of them is gone.
//!
//! A claim that somebody has *in hand*, as a writer or a sealed blob, may last for ever. It is not waited for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::id::BlobId;

#[derive(Default)]
pub(crate) struct Claims {
    /// Whether the claim is in somebody's hand.
    ids: Mutex<HashMap<BlobId, bool>>,
    changed: Notify,
}

/// Given up when the last reference goes.
pub(crate) struct Claim {
    claims: Arc<Claims>,
    id: BlobId,
}

/// A claim in somebody's hand.
pub(crate) struct InHand(Arc<Claim>);

impl Claims {
    /// The claim on `id`, once nobody has it; `None` when somebody has it in hand. Dropping the future takes nothing.
    pub(crate) async fn take(self: &Arc<Claims>, id: BlobId) -> Option<InHand> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut ids = self.ids();
                match ids.get(&id) {
                    None => {
                        ids.insert(id, true);
                        return Some(InHand(Arc::new(Claim { claims: Arc::clone(self), id })));
                    }
                    Some(true) => return None,
                    Some(false) => {}
                }
            }
            changed.await;
        }
    }

    fn ids(&self) -> MutexGuard<'_, HashMap<BlobId, bool>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InHand {
    pub(crate) fn claim(&self) -> Arc<Claim> {
        Arc::clone(&self.0)
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.0.claims.ids().insert(self.0.id, false);
        self.0.claims.changed.notify_waiters();
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.ids().remove(&self.id);
        self.claims.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn what_is_in_hand_is_refused_and_what_was_left_is_waited_for() {
        let claims = Arc::new(Claims::default());
        let id = BlobId::new();
        let poll = |future: &mut std::pin::Pin<Box<dyn Future<Output = Option<InHand>>>>| {
            future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        };
        let take = || -> std::pin::Pin<Box<dyn Future<Output = Option<InHand>>>> {
            let claims = Arc::clone(&claims);
            Box::pin(async move { claims.take(id).await })
        };
        let std::task::Poll::Ready(Some(first)) = poll(&mut take()) else { panic!("nobody has it") };
        assert!(matches!(poll(&mut take()), std::task::Poll::Ready(None)));
        let operation = first.claim();
        drop(first);
        let mut second = take();
        assert!(poll(&mut second).is_pending());
        drop(operation);
        assert!(matches!(poll(&mut second), std::task::Poll::Ready(Some(_))));
        assert!(claims.ids().is_empty(), "a claim outlived its holder");
    }
}
