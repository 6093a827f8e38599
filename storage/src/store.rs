//! The store: opening and closing a data directory, and the operations that tie files to the catalog.
//!
//! Files come before rows and go after them: a blob is durable in its place before the transaction
//! that names it, and is unlinked after the transaction that forgets it. Whatever the moment of a
//! crash, a row has its file; a file without a row is removed at the next start.
//!
//! Cancel: commits and removals run in a task of their own to the end, so a caller that goes away
//! cannot leave a row without its file. What a dropped writer or sealed blob means is told in
//! `blob/writer.rs`.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Transaction;

use crate::blob::{BlobMeta, BlobReader, BlobWriter, SealedBlob};
use crate::bridge::{Bridge, How};
use crate::catalog::Catalog;
use crate::catalog::objects::{self, BlobRow, ObjectRecord, Precondition, PutOutcome};
use crate::catalog::run::{self, Takeover};
use crate::engine::{EngineChoice, EngineInfo};
use crate::error::{Error, Result};
use crate::health::Health;
use crate::id::BlobId;
use crate::key::Key;
use crate::limits::{self, CATALOG_FILE, LIST_MAX, OPEN_BLOBS_MAX};
use crate::lock::{DirLock, Locked};
use crate::stats::StoreStats;
use crate::sweep;
use crate::volume::{PAGE_BYTES, Volume};

/// How to open a store.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    pub dir: PathBuf,
    pub engine: EngineChoice,
    /// The node's own tables: SQL scripts, applied in order after storage's. Append only.
    pub node_migrations: &'static [&'static str],
}

/// An open data directory. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    volume: Arc<Volume>,
    catalog: Catalog,
    open_blobs: Mutex<OpenBlobs>,
    lock: Mutex<Option<DirLock>>,
    closed: AtomicBool,
}

/// What an open store is made of.
pub(crate) struct Parts {
    pub(crate) dir: PathBuf,
    pub(crate) locked: Locked,
    pub(crate) catalog: Catalog,
    pub(crate) bridge: Bridge,
    pub(crate) health: Health,
}

/// Recently used readers, the latest last.
#[derive(Default)]
struct OpenBlobs {
    readers: VecDeque<BlobReader>,
}

impl Store {
    pub async fn open(options: StoreOptions) -> Result<Store> {
        let StoreOptions { dir, engine, node_migrations } = options;
        let opened = tokio::task::spawn_blocking(move || -> Result<_> {
            make_directories(&dir)?;
            let locked = DirLock::take(&dir)?;
            // The engine's paths must not depend on the current directory.
            let dir = std::path::absolute(&dir).map_err(|e| Error::io("resolve", &dir, e))?;
            let health = Health::new(dir.clone());
            let catalog = Catalog::open(&dir.join(CATALOG_FILE), node_migrations, health.clone())?;
            Ok(Parts { dir, locked, catalog, bridge: Bridge::start(engine)?, health })
        });
        match opened.await {
            Ok(parts) => Store::assemble(parts?).await,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// The rest of opening: takes over from the last run, and clears up after it.
    pub(crate) async fn assemble(parts: Parts) -> Result<Store> {
        let Parts { dir, locked, catalog, bridge, health } = parts;
        let Locked { lock, clean, runs } = locked;
        let volume = Arc::new(Volume::new(dir, bridge, health));
        let takeover = take_over(&volume, &catalog, &lock, runs).await?;
        if !takeover.is_ours {
            tracing::error!(
                dir = %volume.dir.display(),
                "the catalog is not the one this directory was last used with: objects stored since it was saved, or all \
                 of them, are not listed. Their files in blobs/ are kept; stop the node and restore the right \
                 {CATALOG_FILE} to see them again"
            );
        }
        sweep::partials(&volume, &catalog).await?;
        if !clean && takeover.is_ours {
            drop(volume.spawn(sweep::blobs(Arc::clone(&volume), catalog.clone(), takeover.keep_before_ms)));
        }
        let inner = Inner {
            volume,
            catalog,
            open_blobs: Mutex::default(),
            lock: Mutex::new(Some(lock)),
            closed: AtomicBool::new(false),
        };
        Ok(Store { inner: Arc::new(inner) })
    }

    pub fn engine(&self) -> EngineInfo {
        self.inner.volume.bridge.info().clone()
    }

    pub fn catalog(&self) -> &Catalog {
        &self.inner.catalog
    }

    #[cfg(test)]
    pub(crate) fn volume(&self) -> &Arc<Volume> {
        &self.inner.volume
    }

    /// Starts a blob whose partial file does not survive the process.
    pub async fn create(&self, meta: BlobMeta) -> Result<BlobWriter> {
        self.check_open()?;
        BlobWriter::create(&self.inner.volume, BlobId::new(), meta).await
    }

    /// Starts a blob whose partial file and journal survive, to be taken up by [`Store::resume`].
    pub async fn create_journaled(&self, id: BlobId, meta: BlobMeta, note: Vec<u8>) -> Result<BlobWriter> {
        self.check_open()?;
        BlobWriter::create_journaled(&self.inner.volume, id, meta, note).await
    }

    /// Takes up a journaled partial at its last durable point, with that checkpoint's note; `None`
    /// when there is none.
    pub async fn resume(&self, id: BlobId) -> Result<Option<(BlobWriter, Vec<u8>)>> {
        self.check_open()?;
        // Waits for what a dropped writer left under way, a commit for instance.
        let in_hand = self.inner.volume.claim(id).await?;
        if self.has_blob(id).await? {
            return Ok(None);
        }
        BlobWriter::resume(&self.inner.volume, id, in_hand).await
    }

    /// Removes a partial and its journal, if they exist.
    pub async fn discard_partial(&self, id: BlobId) -> Result<()> {
        self.check_open()?;
        let volume = &self.inner.volume;
        // Held to the end, so that a cancelled commit is over. A writer in somebody's hand is not waited for: its files
        // are taken from under it.
        let _claim = volume.claim(id).await;
        let journaled = match volume.bridge.open(&volume.journal_path(id), How::Read).await {
            Ok(_) => true,
            Err(e) if e.is_not_found() => false,
            Err(e) => return Err(e),
        };
        if journaled && !self.has_blob(id).await? {
            // Perhaps sealed without a commit: its blob goes too, and first, for the journal is what keeps it from being
            // an orphan.
            volume.unlink(&volume.blob_path(id)).await?;
        }
        volume.unlink(&volume.journal_path(id)).await?;
        volume.unlink(&volume.partial_path(id)).await
    }

    /// The journaled partials there are.
    pub async fn journaled_partials(&self) -> Result<Vec<BlobId>> {
        self.check_open()?;
        sweep::journaled(&self.inner.volume).await
    }

    /// Adds the blobs to the catalog and runs `f`, in one transaction that is durable on return.
    /// On an error the blobs are removed.
    pub async fn commit<T: Send + 'static>(
        &self,
        sealed: Vec<SealedBlob>,
        f: impl FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.check_open()?;
        let store = self.clone();
        self.to_the_end(async move { store.commit_all(sealed, f).await }).await
    }

    async fn commit_all<T: Send + 'static>(
        &self,
        mut sealed: Vec<SealedBlob>,
        f: impl FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        sealed.iter_mut().for_each(SealedBlob::hand_over);
        debug_assert!(sealed.iter().all(|blob| blob.is_of(&self.inner.volume)));
        let rows: Vec<BlobRow> = sealed
            .iter()
            .map(|blob| BlobRow {
                id: blob.id,
                length: blob.length,
                blake3: blob.blake3,
                content_type: blob.content_type.clone(),
            })
            .collect();
        let committed = self.inner.catalog.write(move |tx| {
            rows.iter().try_for_each(|row| objects::insert_blob(tx, row))?;
            f(tx)
        });
        match committed.await {
            Ok(value) => {
                let (journals, _claims): (Vec<_>, Vec<_>) = sealed.into_iter().map(SealedBlob::committed).unzip();
                self.remove_journals(&journals.concat()).await;
                Ok(value)
            }
            // A commit whose sync failed may be found in the log by the next start, and so may one whose thread is gone:
            // a blob that was removed would then be missed.
            Err(error) if self.inner.volume.health.is_degraded() || matches!(error, Error::Closed) => {
                sealed.into_iter().for_each(SealedBlob::leave);
                Err(error)
            }
            Err(error) => {
                for blob in sealed {
                    blob.remove().await;
                }
                Err(error)
            }
        }
    }

    /// Removes the journals of committed blobs, for good: once the object is deleted, a journal that came back would be
    /// a partial of nobody's.
    async fn remove_journals(&self, journals: &[PathBuf]) {
        if journals.is_empty() {
            return;
        }
        let volume = &self.inner.volume;
        volume.remove_files(journals).await;
        if let Err(error) = volume.sync_directory(&volume.dir.join("partial")).await {
            tracing::warn!(%error, "a journal may be back after a power cut");
        }
    }

    /// Runs `f` and forgets the blobs it names in the same transaction, then unlinks their files.
    pub async fn remove<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Transaction<'_>) -> Result<(T, Vec<BlobId>)> + Send + 'static,
    ) -> Result<T> {
        self.check_open()?;
        let store = self.clone();
        self.to_the_end(async move {
            let removed = store.inner.catalog.write(move |tx| {
                let (value, ids) = f(tx)?;
                ids.iter().try_for_each(|id| objects::delete_blob(tx, *id))?;
                Ok((value, ids))
            });
            let (value, ids) = removed.await?;
            store.unlink_blobs(&ids).await;
            Ok(value)
        })
        .await
    }

    /// Stores a sealed blob under a key. The blob it replaces is removed.
    pub async fn put_object(&self, key: &Key, sealed: SealedBlob, if_: Precondition) -> Result<PutOutcome> {
        self.check_open()?;
        let (store, key, id) = (self.clone(), key.clone(), sealed.id);
        self.to_the_end(async move {
            let put = store.commit_all(vec![sealed], move |tx| objects::put(tx, &key, id, &if_));
            let (outcome, replaced) = put.await?;
            store.unlink_blobs(replaced.as_slice()).await;
            Ok(outcome)
        })
        .await
    }

    pub async fn object(&self, key: &Key) -> Result<Option<ObjectRecord>> {
        let key = key.clone();
        self.inner.catalog.read(move |connection| objects::get(connection, &key)).await
    }

    /// Deletes an object; false when there was none.
    pub async fn delete_object(&self, key: &Key, if_: Precondition) -> Result<bool> {
        let key = key.clone();
        self.remove(move |tx| {
            let blob = objects::delete(tx, &key, &if_)?;
            Ok((blob.is_some(), blob.into_iter().collect()))
        })
        .await
    }

    /// Objects by key bytes, at most 10,000 at a time.
    pub async fn list_objects(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectRecord>> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        let limit = limit.min(LIST_MAX);
        self.inner.catalog.read(move |connection| objects::list(connection, &prefix, after.as_deref(), limit)).await
    }

    pub async fn open_blob(&self, id: BlobId) -> Result<BlobReader> {
        self.check_open()?;
        if let Some(reader) = self.open_blobs(|open| open.get(id)) {
            return Ok(reader);
        }
        let reader = BlobReader::open(&self.inner.volume, id).await?;
        let evicted = self.open_blobs(|open| open.put(reader.clone()));
        drop(evicted);
        // Removed while it was being opened: `unlink_blobs` may have looked before it was there.
        if reader.is_unlinked() {
            drop(self.open_blobs(|open| open.take(id)));
        }
        Ok(reader)
    }

    pub fn stats(&self) -> StoreStats {
        let Inner { volume, .. } = &*self.inner;
        let counters = volume.bridge.counters();
        let disk = rustix::fs::statvfs(&volume.dir).ok();
        let disk_bytes = |blocks: fn(&rustix::fs::StatVfs) -> u64| disk.as_ref().map_or(0, |d| blocks(d) * d.f_frsize);
        let mapped_pages = limits::MAP_BUDGET_BYTES / PAGE_BYTES - volume.map_budget.available_permits();
        StoreStats {
            engine: volume.bridge.info().name,
            inflight: volume.bridge.inflight() as u64,
            queue_depth: counters.waiting.load(Relaxed),
            ops: counters.ops(),
            batches_total: counters.batches.load(Relaxed),
            batched_ops_total: counters.batched_ops.load(Relaxed),
            batch_max: counters.batch_max.load(Relaxed),
            doorbell_rings_total: counters.doorbell_rings.load(Relaxed),
            free_bytes: disk_bytes(|d| d.f_bavail),
            volume_bytes: disk_bytes(|d| d.f_blocks),
            degraded: volume.health.is_degraded(),
            reads_mmap_total: volume.reads_hot.load(Relaxed),
            reads_reactor_total: volume.reads_cold.load(Relaxed),
            buffer_bytes: (volume.write_pool.in_use() + volume.read_pool.in_use()) as u64,
            mapped_bytes: (mapped_pages * PAGE_BYTES) as u64,
            open_blobs: self.open_blobs(|open| open.readers.len()) as u64,
        }
    }

    /// Lets what was begun end, then closes everything and releases the directory. Later calls on
    /// any clone fail with [`Error::Closed`].
    pub async fn close(self) -> Result<()> {
        if self.inner.closed.swap(true, AcqRel) {
            return Ok(());
        }
        let Inner { volume, catalog, .. } = &*self.inner;
        volume.settle().await;
        volume.sync_removals().await;
        catalog.close().await;
        drop(self.open_blobs(std::mem::take));
        volume.bridge.close().await;
        let lock = self.inner.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(lock) = lock
            && volume.is_tidy()
        {
            lock.mark_clean().map_err(|e| Error::io("mark", &volume.dir.join("LOCK"), e))?;
        }
        Ok(())
    }

    fn check_open(&self) -> Result<()> {
        if self.inner.closed.load(Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    async fn has_blob(&self, id: BlobId) -> Result<bool> {
        self.inner.catalog.read(move |connection| objects::has_blob(connection, id)).await
    }

    /// Runs to the end even when the caller goes away.
    async fn to_the_end<T: Send + 'static>(&self, task: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        match self.inner.volume.spawn(task).await {
            Ok(result) => result,
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            Err(_) => Err(Error::Closed),
        }
    }

    async fn unlink_blobs(&self, ids: &[BlobId]) {
        let volume = &self.inner.volume;
        let paths: Vec<PathBuf> = ids.iter().map(|id| volume.blob_path(*id)).collect();
        volume.remove_files(&paths).await;
        for id in ids {
            drop(self.open_blobs(|open| open.take(*id)));
        }
    }

    /// The lock is held for a few instructions; what `f` returns is dropped outside it.
    fn open_blobs<T>(&self, f: impl FnOnce(&mut OpenBlobs) -> T) -> T {
        f(&mut self.inner.open_blobs.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl OpenBlobs {
    fn get(&mut self, id: BlobId) -> Option<BlobReader> {
        let reader = self.take(id)?;
        self.readers.push_back(reader.clone());
        Some(reader)
    }

    fn take(&mut self, id: BlobId) -> Option<BlobReader> {
        let at = self.readers.iter().position(|reader| reader.id() == id)?;
        self.readers.remove(at)
    }

    /// Returns what had to go.
    fn put(&mut self, reader: BlobReader) -> Option<BlobReader> {
        let same = self.take(reader.id());
        self.readers.push_back(reader);
        if self.readers.len() > OPEN_BLOBS_MAX { self.readers.pop_front() } else { same }
    }
}

/// Makes directory and catalog agree on who uses them now. The order is explained in `lock.rs`.
async fn take_over(volume: &Arc<Volume>, catalog: &Catalog, lock: &DirLock, runs: Vec<BlobId>) -> Result<Takeover> {
    let note = async |runs: &[BlobId]| {
        volume.write_all(&lock.file, &DirLock::running(runs), 0).await?;
        volume.sync(&lock.file).await
    };
    let (run, blobs_exist) = (lock.run, sweep::any_blob(volume).await?);
    let last = catalog.read(run::last).await?;
    let both: Vec<BlobId> = last.filter(|last| runs.contains(last)).into_iter().chain([run]).collect();
    note(&both).await?;
    let takeover = catalog.write(move |tx| run::take_over(tx, &runs, run, blobs_exist)).await?;
    note(&[run]).await?;
    Ok(takeover)
}

pub(crate) fn make_directories(dir: &Path) -> Result<()> {
    let is_new = !dir.exists();
    for path in [dir.to_owned(), dir.join("blobs"), dir.join("partial")] {
        std::fs::create_dir_all(&path).map_err(|e| Error::io("make directory", &path, e))?;
    }
    let sync = |path: &Path| std::fs::File::open(path)?.sync_all();
    sync(dir).map_err(|e| Error::io("sync", dir, e))?;
    match dir.parent() {
        // A directory above that may not be read cannot be synced; whoever set it up so will have seen to it.
        Some(parent) if is_new && !parent.as_os_str().is_empty() => drop(sync(parent)),
        _ => {}
    }
    Ok(())
}
