//! Directories: made once, synced together.
//!
//! Renames into one directory share an fsync: while one runs, later callers wait and are all
//! covered by the next. A failed fsync is final for its directory and degrades the volume; it is not tried again.
//!
//! Cancel: [`ensure`](Directories::ensure) and [`sync`](Directories::sync) must be run to their end, or the outcome of an
//! fsync would be lost and the next caller believe a second one. `Volume` runs them in tasks of their own.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use crate::bridge::{Bridge, How, NamedFile};
use crate::error::{Error, Result};
use crate::id::{BlobId, shard_path};
use crate::limits::OPEN_DIRECTORIES_MAX;
use crate::volume::health::Health;

/// The tree below `blobs/`, and the syncing of any directory.
pub(crate) struct Directories {
    bridge: Bridge,
    health: Health,
    blobs: PathBuf,
    /// Leaf directories known to exist, durably. At most 65,536.
    made: Mutex<HashSet<u16>>,
    open: Mutex<HashMap<PathBuf, Arc<Group>>>,
}

/// The callers of one directory's fsync.
struct Group {
    directory: Arc<NamedFile>,
    requested: AtomicU64,
    /// The last request covered by a finished fsync; `None` once one failed.
    covered: tokio::sync::Mutex<Option<u64>>,
}

impl Directories {
    pub(crate) fn new(bridge: Bridge, health: Health, blobs: PathBuf) -> Directories {
        Directories { bridge, health, blobs, made: Mutex::default(), open: Mutex::default() }
    }

    /// Makes sure that the leaf directory of `id` exists and survives a power cut.
    pub(crate) async fn ensure(&self, id: BlobId) -> Result<()> {
        let shard = id.shard();
        if self.made.lock().unwrap_or_else(PoisonError::into_inner).contains(&shard) {
            return Ok(());
        }
        let leaf = self.blobs.join(shard_path(shard));
        let parent = leaf.parent().expect("a leaf has a parent");
        self.bridge.make_directory(parent).await?;
        self.bridge.make_directory(&leaf).await?;
        // Once in the life of a process even if both existed: whoever made them may have died
        // before it synced their parents.
        self.sync(&self.blobs).await?;
        self.sync(parent).await?;
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(shard);
        Ok(())
    }

    /// Returns once everything done in `path` before the call is durable.
    pub(crate) async fn sync(&self, path: &Path) -> Result<()> {
        let group = self.group(path).await?;
        let mine = group.requested.fetch_add(1, SeqCst) + 1;
        let mut covered = group.covered.lock().await;
        match *covered {
            None => {
                return Err(Error::io("sync", path, std::io::Error::other("an earlier sync of it failed")));
            }
            Some(last) if last >= mine => return Ok(()),
            Some(_) => {}
        }
        let last = group.requested.load(SeqCst);
        // Only the sync itself is judged: a directory that could not be opened, for want of descriptors say, has failed
        // its caller and lost nothing.
        let result = self.health.judge_directory_sync(self.bridge.sync_directory(&group.directory).await);
        match &result {
            Ok(()) => *covered = Some(last),
            // Not for want of a disk: the caller was told, nothing is lost.
            Err(Error::Closed) => {}
            Err(_) => *covered = None,
        }
        result
    }

    async fn group(&self, path: &Path) -> Result<Arc<Group>> {
        if let Some(group) = self.open.lock().unwrap_or_else(PoisonError::into_inner).get(path) {
            return Ok(Arc::clone(group));
        }
        let directory = self.bridge.open(path, How::Directory).await?;
        let group = Group { directory, requested: AtomicU64::new(0), covered: tokio::sync::Mutex::new(Some(0)) };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= OPEN_DIRECTORIES_MAX {
            open.retain(|_, group| Arc::strong_count(group) > 1);
        }
        Ok(Arc::clone(open.entry(path.to_owned()).or_insert_with(|| Arc::new(group))))
    }
}
