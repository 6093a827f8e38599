//! One data directory: its paths, its bridge, its budgets, its health, its background work.
//!
//! Writers, sealed blobs and open blobs share it. Work that must outlive a cancelled caller
//! (removing a dropped partial, finishing a commit) runs in tasks counted here, and closing the
//! store waits for them.

use std::collections::HashSet;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;

use crate::bridge::{Bridge, NamedFile};
use crate::buffer::Pool;
use crate::directory::Directories;
use crate::error::{Error, Result};
use crate::health::Health;
use crate::id::BlobId;
use crate::limits;

pub(crate) struct Volume {
    pub(crate) dir: PathBuf,
    pub(crate) bridge: Bridge,
    pub(crate) health: Health,
    pub(crate) directories: Directories,
    pub(crate) write_pool: Pool,
    pub(crate) read_pool: Pool,
    /// Pages that may be mapped.
    pub(crate) map_budget: Arc<Semaphore>,
    pub(crate) reads_hot: AtomicU64,
    pub(crate) reads_cold: AtomicU64,
    /// Some file could not be removed, or was dropped after the close.
    debris: AtomicBool,
    /// Sealed and not yet in the catalog: not orphans.
    unacknowledged: Mutex<HashSet<BlobId>>,
    runtime: Handle,
    background: Background,
}

#[derive(Default)]
struct Background {
    tasks: AtomicUsize,
    idle: Notify,
}

/// What one permit of the map budget stands for.
pub(crate) const PAGE_BYTES: usize = 4096;

impl Volume {
    /// Must be called within a tokio runtime.
    pub(crate) fn new(dir: PathBuf, bridge: Bridge, health: Health) -> Volume {
        Volume {
            directories: Directories::new(bridge.clone(), dir.join("blobs")),
            write_pool: Pool::new(limits::WRITE_BUDGET_BYTES),
            read_pool: Pool::new(limits::READ_BUDGET_BYTES),
            map_budget: Arc::new(Semaphore::new(limits::MAP_BUDGET_BYTES / PAGE_BYTES)),
            reads_hot: AtomicU64::new(0),
            reads_cold: AtomicU64::new(0),
            debris: AtomicBool::new(false),
            health,
            unacknowledged: Mutex::default(),
            runtime: Handle::current(),
            background: Background::default(),
            bridge,
            dir,
        }
    }

    pub(crate) fn blob_path(&self, id: BlobId) -> PathBuf {
        self.dir.join("blobs").join(id.relative_path())
    }

    pub(crate) fn partial_path(&self, id: BlobId) -> PathBuf {
        self.dir.join("partial").join(id.to_string())
    }

    pub(crate) fn journal_path(&self, id: BlobId) -> PathBuf {
        self.dir.join("partial").join(format!("{id}.journal"))
    }

    /// Refuses what would eat into the reserve. Blobs being written beside this one are not counted: the reserve is for
    /// that too.
    pub(crate) fn check_room(&self, path: &Path, bytes: u64) -> Result<()> {
        // A file system that tells nothing says it when it is full.
        let Ok(disk) = rustix::fs::statvfs(&self.dir) else { return Ok(()) };
        let reserve = (disk.f_blocks * disk.f_frsize / limits::RESERVE_DIVISOR)
            .clamp(limits::RESERVE_BYTES_MIN, limits::RESERVE_BYTES_MAX);
        if disk.f_bavail * disk.f_frsize < bytes.saturating_add(reserve) {
            return Err(Error::NoSpace { op: "write", path: path.into() });
        }
        Ok(())
    }

    /// Syncs a file's data. What a failure means is told in `health.rs`.
    pub(crate) async fn sync(&self, file: &Arc<NamedFile>) -> Result<()> {
        self.health.judge_sync(self.bridge.sync(file).await)
    }

    pub(crate) async fn sync_directory(&self, path: &Path) -> Result<()> {
        self.health.judge_sync(self.directories.sync(path).await)
    }

    /// Writes `bytes` at `offset` through buffers of the pool, one after the other.
    pub(crate) async fn write_all(&self, file: &Arc<NamedFile>, bytes: &[u8], offset: u64) -> Result<()> {
        let mut at = offset;
        for piece in bytes.chunks(limits::BATCH_BYTES_MAX) {
            let mut buffer = self.write_pool.take(piece.len()).await;
            buffer.fill(piece);
            self.bridge.write(file, buffer, at).await?.await?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    pub(crate) fn set_unacknowledged(&self, id: BlobId, unacknowledged: bool) {
        let mut ids = self.unacknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        if unacknowledged {
            ids.insert(id);
        } else {
            ids.remove(&id);
        }
    }

    pub(crate) fn is_unacknowledged(&self, id: BlobId) -> bool {
        self.unacknowledged.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }

    /// Nothing in the directory waits for the next start's sweep.
    pub(crate) fn is_tidy(&self) -> bool {
        !self.debris.load(Acquire) && self.unacknowledged.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Runs `task` to its end whatever becomes of the caller. Without a runtime (the process is
    /// going down) it does not run; the next start cleans up.
    pub(crate) fn spawn<T: Send + 'static>(
        self: &Arc<Volume>,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.background.tasks.fetch_add(1, AcqRel);
        let counted = Counted(Arc::clone(self));
        self.runtime.spawn(async move {
            let _counted = counted;
            task.await
        })
    }

    /// Removes files. A failure leaves an orphan for the next start's sweep, and says so.
    pub(crate) async fn remove_files(&self, paths: &[PathBuf]) {
        for path in paths {
            match self.bridge.unlink(path).await {
                Ok(()) => {}
                Err(error) => {
                    self.debris.store(true, Release);
                    tracing::warn!(%error, path = %path.display(), "a file stays behind until the next start");
                }
            }
        }
    }

    /// Returns when no background task is left.
    pub(crate) async fn settle(&self) {
        loop {
            let idle = self.background.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.background.tasks.load(Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }
}

struct Counted(Arc<Volume>);

impl Drop for Counted {
    fn drop(&mut self) {
        if self.0.background.tasks.fetch_sub(1, AcqRel) == 1 {
            self.0.background.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::{BlobMeta, BlobReader, BlobWriter};
    use crate::engine::EngineChoice;
    use crate::error::Error;

    /// The kernel refuses to sync a pipe: a real failure, by the real path.
    #[tokio::test]
    async fn a_failed_sync_degrades_the_volume_for_good_and_reads_go_on() {
        for engine in [EngineChoice::Auto, EngineChoice::Threads] {
            let dir = tempfile::tempdir().unwrap();
            for name in ["blobs", "partial"] {
                std::fs::create_dir(dir.path().join(name)).unwrap();
            }
            let health = Health::new(dir.path().into());
            let volume = Arc::new(Volume::new(dir.path().into(), Bridge::start(engine).unwrap(), health));
            let mut writer = BlobWriter::create(&volume, BlobId::new(), BlobMeta::default()).await.unwrap();
            writer.write("before".into()).await.unwrap();
            let sealed = writer.seal().await.unwrap();
            let mut begun = BlobWriter::create(&volume, BlobId::new(), BlobMeta::default()).await.unwrap();

            let (_reader, pipe) = std::io::pipe().unwrap();
            let file = std::os::fd::OwnedFd::from(pipe).into();
            let pipe = Arc::new(NamedFile { file, path: "a pipe".into() });
            let error = volume.sync(&pipe).await.unwrap_err();
            assert!(error.to_string().starts_with("could not sync a pipe"), "{error}");

            let refused = BlobWriter::create(&volume, BlobId::new(), BlobMeta::default()).await;
            assert!(matches!(refused.err(), Some(Error::Degraded { .. })));
            begun.write("more".into()).await.unwrap();
            assert!(matches!(begun.seal().await.err(), Some(Error::Degraded { .. })));
            let reader = BlobReader::open(&volume, sealed.id).await.unwrap();
            assert_eq!(reader.read(0, 10).await.unwrap(), "before");
            drop((sealed, reader));
            volume.settle().await;
            assert_eq!(std::fs::read_dir(dir.path().join("partial")).unwrap().count(), 0);
        }
    }
}
