//! One volume: its paths, its bridge, its budgets, its room, its health, its background work.
//!
//! Writers, sealed blobs and open blobs share it. Work that must outlive a cancelled caller
//! (removing a dropped partial, finishing a commit) runs in tasks counted here, and closing the
//! store waits for them.

pub(crate) mod claim;
pub(crate) mod directory;
pub(crate) mod group_sync;
pub(crate) mod health;
pub(crate) mod identity;
pub(crate) mod lock;
pub(crate) mod presence;
pub(crate) mod quarantine;
pub(crate) mod room;

use std::collections::{BTreeSet, HashSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;

use self::claim::{Claim, Claims, InHand};
use self::directory::Directories;
use self::group_sync::GroupSync;
use self::health::Health;
use self::lock::DirLock;
use self::quarantine::Quarantine;
use self::room::Room;
use crate::blob::{Direct, Ghosts, has_large_pages};
use crate::bridge::{Bridge, NamedFile};
use crate::budget::Payer;
use crate::buffer::Pool;
use crate::error::{Error, Result};
use crate::id::BlobId;
use crate::limits;
use crate::sabotage::{self, Sabotage};

pub(crate) struct Volume {
    pub(crate) number: u32,
    pub(crate) dir: PathBuf,
    /// It is configured: new blobs may come here.
    pub(crate) takes_new: bool,
    lock: Mutex<Option<DirLock>>,
    pub(crate) bridge: Bridge,
    pub(crate) health: Health,
    pub(crate) room: Arc<Room>,
    pub(crate) directories: Directories,
    pub(crate) group_sync: GroupSync,
    pub(crate) direct: Direct,
    pub(crate) ghosts: Ghosts,
    pub(crate) claims: Arc<Claims>,
    pub(crate) write_pool: Pool,
    pub(crate) read_pool: Pool,
    /// Pages that may be mapped, altogether and still.
    pub(crate) map_pages: usize,
    pub(crate) map_budget: Arc<Semaphore>,
    /// Its file system can keep a stretch of a file in one page.
    pub(crate) has_large_pages: bool,
    /// The right to renew a stretch, and how many were.
    pub(crate) renewals: Arc<Semaphore>,
    pub(crate) renewed: AtomicU64,
    pub(crate) reads_hot: AtomicU64,
    pub(crate) reads_cold: AtomicU64,
    /// Blobs found damaged.
    pub(crate) quarantine: Quarantine,
    /// Some file could not be removed, or was dropped after the close.
    debris: AtomicBool,
    /// Directories below `blobs/` that lost a name since they were synced.
    removals: Mutex<BTreeSet<PathBuf>>,
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

/// What a volume is made of.
pub(crate) struct VolumeParts {
    pub(crate) number: u32,
    pub(crate) dir: PathBuf,
    pub(crate) takes_new: bool,
    pub(crate) lock: Option<DirLock>,
    pub(crate) bridge: Bridge,
    pub(crate) health: Health,
    pub(crate) room: Arc<Room>,
    /// One for all volumes: a blob is written on one of them.
    pub(crate) claims: Arc<Claims>,
    /// How many volumes share the budgets.
    pub(crate) share: usize,
}

/// What one permit of the map budget stands for.
pub(crate) const PAGE_BYTES: usize = 4096;

impl Volume {
    /// True when this payer's streams are to hold no more whole chunks or maps. What they hold lasts until it is taken, however
    /// slowly: a quarter of the memory is for small pieces, with which many get on.
    pub(crate) fn is_memory_scarce(&self, payer: Payer) -> bool {
        self.read_pool.is_scarce(payer, limits::STREAM_CHUNK_BYTES)
            || self.map_budget.available_permits() < self.map_pages / 4
    }

    /// Must be called within a tokio runtime.
    pub(crate) fn new(parts: VolumeParts) -> Volume {
        let VolumeParts { number, dir, takes_new, lock, bridge, health, room, claims, share } = parts;
        let budget = |bytes: usize| (bytes / share).max(limits::VOLUME_BUDGET_BYTES_MIN);
        Volume {
            number,
            takes_new,
            lock: Mutex::new(lock),
            room,
            directories: Directories::new(bridge.clone(), health.clone(), dir.join("blobs")),
            group_sync: GroupSync::new(&dir),
            direct: Direct::new(limits::DIRECT_FILES_MAX / share),
            ghosts: Ghosts::new(limits::GHOSTS_MAX / share),
            claims,
            write_pool: Pool::new(budget(limits::WRITE_BUDGET_BYTES)),
            read_pool: Pool::new(budget(limits::READ_BUDGET_BYTES)),
            map_pages: budget(limits::MAP_BUDGET_BYTES) / PAGE_BYTES,
            map_budget: Arc::new(Semaphore::new(budget(limits::MAP_BUDGET_BYTES) / PAGE_BYTES)),
            has_large_pages: has_large_pages(&dir),
            renewals: Arc::new(Semaphore::new(limits::RENEWALS_MAX)),
            renewed: AtomicU64::new(0),
            reads_hot: AtomicU64::new(0),
            reads_cold: AtomicU64::new(0),
            quarantine: Quarantine::default(),
            debris: AtomicBool::new(false),
            health,
            removals: Mutex::default(),
            unacknowledged: Mutex::default(),
            runtime: Handle::current(),
            background: Background::default(),
            bridge,
            dir,
        }
    }

    /// One for a test, of no store, with the directories it needs.
    #[cfg(test)]
    pub(crate) fn on(dir: &Path, bridge: Bridge) -> Arc<Volume> {
        for name in ["blobs", "partial"] {
            std::fs::create_dir_all(dir.join(name)).unwrap();
        }
        Arc::new(Volume::new(VolumeParts {
            number: 0,
            dir: dir.into(),
            takes_new: true,
            lock: None,
            bridge,
            health: Health::new(0, dir.into()),
            room: Room::new(0, dir.into(), crate::volume::room::RoomLimits::default(), 0),
            claims: Arc::default(),
            share: 1,
        }))
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

    /// Looks at why something could not be written here, and tells a volume that failed from a file that did.
    pub(crate) fn judge_write(&self, error: Error) -> Error {
        self.health.judge_write(&error);
        if error.is_not_found() {
            self.check_in_place();
        }
        match self.health.check_writable() {
            Err(degraded) if matches!(error, Error::Io { .. }) => degraded,
            _ => error,
        }
    }

    /// Notices a disk that was taken away: its path leads elsewhere, or nowhere. False when it did.
    pub(crate) fn check_in_place(&self) -> bool {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(lock) = &*lock else { return true };
        let same = match (rustix::fs::fstat(&lock.file.file), rustix::fs::stat(&lock.file.path)) {
            (Ok(ours), Ok(there)) => (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino),
            _ => false,
        };
        if !same {
            self.health
                .degrade(&format!("{} is not the file it was: the disk was taken away", lock.file.path.display()));
        }
        same
    }

    /// Notes in `LOCK` that this process uses the volume in one of these runs.
    pub(crate) async fn note_running(self: &Arc<Volume>, runs: &[BlobId]) -> Result<()> {
        let file = self.lock.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|lock| Arc::clone(&lock.file));
        let Some(file) = file else { return Ok(()) };
        self.write_all(&file, &DirLock::running(runs), 0).await?;
        self.sync(&file).await
    }

    /// Gives up the lock; when nothing waits for the next start's sweep, `run` left the volume clean.
    pub(crate) fn unlock(&self, run: BlobId) -> Result<()> {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        match lock {
            Some(lock) if self.is_tidy() => {
                lock.mark_clean(run).map_err(|e| Error::io("mark", &self.dir.join("LOCK"), e))
            }
            _ => Ok(()),
        }
    }

    /// The right to touch the files of a blob that is not committed.
    pub(crate) async fn claim(&self, id: BlobId) -> Result<InHand> {
        let in_hand = || {
            let reason = std::io::Error::other("it is being written by somebody else");
            Error::io("take up", &self.partial_path(id), reason)
        };
        self.claims.take(id).await.ok_or_else(in_hand)
    }

    /// Renames a file that belongs to a claim, which is held until the rename is done, whatever becomes of the caller.
    pub(crate) async fn rename_claimed(self: &Arc<Volume>, from: &Path, to: &Path, claim: Arc<Claim>) -> Result<()> {
        let (volume, from, to) = (Arc::clone(self), from.to_owned(), to.to_owned());
        let renamed = self.spawn(async move {
            let _claim = claim;
            volume.bridge.rename(&from, &to).await
        });
        renamed.await.unwrap_or(Err(Error::Closed))
    }

    /// Syncs a file's data, together with others where many ask. What a failure means is told in `health.rs`; it is heard
    /// even when the caller is gone.
    pub(crate) async fn sync(self: &Arc<Volume>, file: &Arc<NamedFile>) -> Result<()> {
        group_sync::sync(self, file).await
    }

    /// As [`sync`](Volume::sync), by itself: for a file with much to write, that nobody should wait for.
    pub(crate) async fn sync_alone(self: &Arc<Volume>, file: &Arc<NamedFile>) -> Result<()> {
        let (volume, file) = (Arc::clone(self), Arc::clone(file));
        let synced = self.spawn(async move { group_sync::sync_one(&volume, &file).await });
        synced.await.unwrap_or(Err(Error::Closed))
    }

    pub(crate) async fn sync_directory(self: &Arc<Volume>, path: &Path) -> Result<()> {
        if sabotage::is(Sabotage::NoDirectorySync) {
            return Ok(());
        }
        let (volume, path) = (Arc::clone(self), path.to_owned());
        self.spawn(async move { volume.directories.sync(&path).await }).await.unwrap_or(Err(Error::Closed))
    }

    /// Makes sure that the leaf directory of `id` exists and survives a power cut.
    pub(crate) async fn ensure_directory(self: &Arc<Volume>, id: BlobId) -> Result<()> {
        let volume = Arc::clone(self);
        self.spawn(async move { volume.directories.ensure(id).await }).await.unwrap_or(Err(Error::Closed))
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
        !self.health.is_degraded()
            && !self.debris.load(Acquire)
            && self.unacknowledged.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
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

    /// Something stays behind that only the next start's sweep will remove.
    pub(crate) fn leave_debris(&self) {
        self.debris.store(true, Release);
    }

    /// Removes files. A failure leaves an orphan for the next start's sweep, and says so.
    ///
    /// A name that is gone may be back after a power cut; that too is the sweep's work, unless the store was closed in
    /// the meantime: then [`sync_removals`](Volume::sync_removals) has seen to it.
    pub(crate) async fn remove_files(&self, paths: &[PathBuf]) {
        for path in paths {
            match self.bridge.unlink(path).await {
                Ok(()) => self.note_removal(path),
                Err(error) => {
                    self.leave_debris();
                    tracing::warn!(%error, path = %path.display(), "a file stays behind until the next start");
                }
            }
        }
    }

    /// Removes one file, if it is there.
    pub(crate) async fn unlink(&self, path: &Path) -> Result<()> {
        self.bridge.unlink(path).await?;
        self.note_removal(path);
        Ok(())
    }

    fn note_removal(&self, path: &Path) {
        let Some(directory) = path.parent().filter(|directory| directory.starts_with(self.dir.join("blobs"))) else {
            // Partials are swept at every start.
            return;
        };
        let mut removals = self.removals.lock().unwrap_or_else(PoisonError::into_inner);
        if removals.len() < limits::UNSYNCED_REMOVALS_MAX {
            removals.insert(directory.to_owned());
        } else if !removals.contains(directory) {
            self.leave_debris();
        }
    }

    /// Makes removals last, so that a closed store needs no sweep even after a power cut.
    pub(crate) async fn sync_removals(self: &Arc<Volume>) {
        let directories = std::mem::take(&mut *self.removals.lock().unwrap_or_else(PoisonError::into_inner));
        if self.health.is_degraded() {
            return;
        }
        for directory in directories {
            if let Err(error) = self.sync_directory(&directory).await {
                self.leave_debris();
                tracing::warn!(%error, "what was removed may be back after a power cut; the next start looks for it");
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

    /// The kernel refuses to sync a pipe: a real failure, by the real path.
    #[tokio::test]
    async fn a_failed_sync_degrades_the_volume_for_good_and_reads_go_on() {
        for engine in [EngineChoice::Auto, EngineChoice::Threads] {
            let dir = tempfile::tempdir().unwrap();
            let volume = Volume::on(dir.path(), Bridge::start(engine).unwrap());
            let create = async || {
                let room = volume.room.reserve(0)?;
                BlobWriter::create(&volume, BlobId::new(), BlobMeta::default(), room).await
            };
            let mut writer = create().await.unwrap();
            writer.write("before".into()).await.unwrap();
            let sealed = writer.seal().await.unwrap();
            let mut begun = create().await.unwrap();

            let (_reader, pipe) = std::io::pipe().unwrap();
            let file = std::os::fd::OwnedFd::from(pipe).into();
            let pipe = Arc::new(NamedFile { file, path: "a pipe".into(), claim: None });
            let error = volume.sync(&pipe).await.unwrap_err();
            assert!(error.to_string().starts_with("could not sync a pipe"), "{error}");

            assert!(matches!(create().await.err(), Some(Error::Degraded { .. })));
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
