//! Hears of changes in the plugins directory and has it scanned once they have settled.
//!
//! An editor makes several changes for one save (a temporary file, a rename, new permissions), so a scan waits for quiet.
//! The kernel's word only says when to look; what there is to see, the scan finds out itself. Where the kernel cannot
//! watch (no inotify instance left, a network file system that stays silent) the directory is looked at from time to time.

use std::path::Path;
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::registry::Registry;
use crate::limits;

/// A running watch. Dropping it ends it.
pub struct Watch {
    /// `None` where the kernel cannot watch.
    watcher: Option<RecommendedWatcher>,
    changes: mpsc::Receiver<()>,
}

impl Watch {
    pub fn new(dir: &Path) -> Watch {
        // One unheard change is as good as many: the scan sees them all.
        let (sender, changes) = mpsc::channel(1);
        let heard = move |event: notify::Result<Event>| {
            if event.as_ref().map_or(true, |event| is_change(&event.kind)) {
                let _ = sender.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(heard).and_then(|mut watcher| {
            watcher.watch(dir, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        let watcher = watcher
            .inspect_err(|error| tracing::warn!("{} cannot be watched, so it is polled: {error}", dir.display()))
            .ok();
        Watch { watcher, changes }
    }

    pub async fn run(mut self, registry: Arc<Registry>, shutdown: CancellationToken) {
        let pause = match self.watcher {
            Some(_) => limits::PLUGIN_RESCAN,
            None => limits::PLUGIN_RESCAN_UNWATCHED,
        };
        loop {
            let next = Instant::now() + pause;
            tokio::select! {
                Some(()) = self.changes.recv() => self.settle().await,
                () = sleep_until(next) => {}
                () = shutdown.cancelled() => return,
            }
            // The loads go on by themselves.
            drop(registry.scan().await);
        }
    }

    /// Waits until nothing has changed for a while, or has kept changing for too long.
    async fn settle(&mut self) {
        let latest = Instant::now() + limits::PLUGIN_SETTLE_MAX;
        let quiet = async { while let Ok(Some(())) = timeout(limits::PLUGIN_SETTLE, self.changes.recv()).await {} };
        let _ = timeout_at(latest, quiet).await;
    }
}

/// Reading is not a change; a scan that heard itself read would never end.
fn is_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        _ => true,
    }
}
