//! The store: opening and closing a data directory, and the operations that tie files to the catalog.
//!
//! Files come before rows and go after them: a blob is durable in its place before the transaction
//! that names it, and is unlinked after the transaction that forgets it. Whatever the moment of a
//! crash, a row has its file; a file without a row is removed at the next start.
//!
//! Cancel: commits and removals run in a task of their own to the end, so a caller that goes away
//! cannot leave a row without its file. What a dropped writer or sealed blob means is told in
//! `blob/writer.rs`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Transaction;

use crate::blob::{BlobMeta, BlobWriter, SealedBlob};
use crate::bridge::Bridge;
use crate::catalog::Catalog;
use crate::catalog::objects::{self, BlobRow, Forgotten, ObjectRecord, Precondition, PutOutcome};
use crate::catalog::run::{self, Takeover};
use crate::catalog::volumes;
use crate::engine::{EngineChoice, EngineInfo};
use crate::error::{Error, Result};
use crate::health::Health;
use crate::id::BlobId;
use crate::key::Key;
use crate::limits::{CATALOG_FILE, LIST_MAX};
use crate::lock::{DirLock, Locked};
use crate::open_blobs::OpenBlobs;
use crate::room::{Room, RoomLimits};
use crate::sweep;
use crate::volume::Volume;
use crate::volumes::Volumes;

/// How to open a store: `StoreOptions { engine, ..StoreOptions::new(dir) }`.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    pub dir: PathBuf,
    pub engine: EngineChoice,
    /// The node's own tables: SQL scripts, applied in order after storage's. Append only.
    pub node_migrations: &'static [&'static str],
    pub room: RoomLimits,
}

impl StoreOptions {
    pub fn new(dir: impl Into<PathBuf>) -> StoreOptions {
        StoreOptions { dir: dir.into(), engine: EngineChoice::Auto, node_migrations: &[], room: RoomLimits::default() }
    }
}

/// An open data directory. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) volumes: Volumes,
    pub(crate) catalog: Catalog,
    pub(crate) open_blobs: Mutex<OpenBlobs>,
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
    pub(crate) limits: RoomLimits,
}

impl Store {
    pub async fn open(options: StoreOptions) -> Result<Store> {
        let StoreOptions { dir, engine, node_migrations, room } = options;
        let opened = tokio::task::spawn_blocking(move || -> Result<_> {
            make_directories(&dir)?;
            let locked = DirLock::take(&dir)?;
            // The engine's paths must not depend on the current directory.
            let dir = std::path::absolute(&dir).map_err(|e| Error::io("resolve", &dir, e))?;
            let health = Health::new(dir.clone());
            let catalog = Catalog::open(&dir.join(CATALOG_FILE), node_migrations, health.clone())?;
            Ok(Parts { dir, locked, catalog, bridge: Bridge::start(engine)?, health, limits: room })
        });
        match opened.await {
            Ok(parts) => Store::assemble(parts?).await,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// The rest of opening: takes over from the last run, and clears up after it.
    pub(crate) async fn assemble(parts: Parts) -> Result<Store> {
        let Parts { dir, locked, catalog, bridge, health, limits } = parts;
        let Locked { lock, clean, runs } = locked;
        let known = catalog.read(volumes::all).await?;
        let used = known.iter().find(|row| row.number == 0).map_or(0, |row| row.bytes);
        let room = Room::new(0, dir.clone(), limits, used);
        let volume = Arc::new(Volume::new(0, dir, bridge, health, room));
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
            volumes: Volumes::new(volume),
            catalog,
            open_blobs: Mutex::default(),
            lock: Mutex::new(Some(lock)),
            closed: AtomicBool::new(false),
        };
        Ok(Store { inner: Arc::new(inner) })
    }

    pub fn engine(&self) -> EngineInfo {
        self.inner.volumes.first().bridge.info().clone()
    }

    pub fn catalog(&self) -> &Catalog {
        &self.inner.catalog
    }

    #[cfg(test)]
    pub(crate) fn volume(&self) -> &Arc<Volume> {
        self.inner.volumes.first()
    }

    /// Starts a blob whose partial file does not survive the process.
    pub async fn create(&self, meta: BlobMeta) -> Result<BlobWriter> {
        self.check_open()?;
        meta.check()?;
        let volume = self.inner.volumes.first();
        let room = volume.reserve(&meta)?;
        BlobWriter::create(volume, BlobId::new(), meta, room).await
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
        let rows: Vec<BlobRow> = sealed
            .iter()
            .map(|blob| BlobRow {
                id: blob.id,
                length: blob.length,
                blake3: blob.blake3,
                content_type: blob.content_type.clone(),
                volume: blob.volume().number,
            })
            .collect();
        let committed = self.inner.catalog.write(move |tx| {
            rows.iter().try_for_each(|row| objects::insert_blob(tx, row))?;
            f(tx)
        });
        match committed.await {
            Ok(value) => {
                for blob in &sealed {
                    blob.volume().room.stored(blob.length);
                }
                let (committed, _claims): (Vec<_>, Vec<_>) = sealed.into_iter().map(SealedBlob::committed).unzip();
                for volume in self.inner.volumes.iter() {
                    let of_it = committed.iter().filter(|(of, _)| Arc::ptr_eq(of, volume));
                    remove_journals(volume, &of_it.flat_map(|(_, journals)| journals.clone()).collect::<Vec<_>>())
                        .await;
                }
                Ok(value)
            }
            // A commit whose sync failed may be found in the log by the next start, and so may one whose thread is gone:
            // a blob that was removed would then be missed.
            Err(error) if self.inner.volumes.first().health.is_degraded() || matches!(error, Error::Closed) => {
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
                let mut forgotten = Vec::with_capacity(ids.len());
                for id in ids {
                    forgotten.extend(objects::delete_blob(tx, id)?);
                }
                Ok((value, forgotten))
            });
            let (value, forgotten) = removed.await?;
            store.unlink_blobs(&forgotten).await;
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

    /// Lets what was begun end, then closes everything and releases the directory. Later calls on
    /// any clone fail with [`Error::Closed`].
    pub async fn close(self) -> Result<()> {
        if self.inner.closed.swap(true, AcqRel) {
            return Ok(());
        }
        let Inner { volumes, catalog, .. } = &*self.inner;
        // The first one first: commits and removals, which reach into all of them, are its work.
        for volume in volumes.iter() {
            volume.settle().await;
            volume.sync_removals().await;
        }
        catalog.close().await;
        drop(self.open_blobs(std::mem::take));
        for volume in volumes.iter() {
            volume.bridge.close().await;
        }
        let lock = self.inner.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        let volume = volumes.first();
        if let Some(lock) = lock
            && volume.is_tidy()
        {
            lock.mark_clean().map_err(|e| Error::io("mark", &volume.dir.join("LOCK"), e))?;
        }
        Ok(())
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.inner.closed.load(Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    pub(crate) async fn has_blob(&self, id: BlobId) -> Result<bool> {
        self.inner.catalog.read(move |connection| objects::has_blob(connection, id)).await
    }

    /// Runs to the end even when the caller goes away.
    async fn to_the_end<T: Send + 'static>(&self, task: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        match self.inner.volumes.first().spawn(task).await {
            Ok(result) => result,
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            Err(_) => Err(Error::Closed),
        }
    }

    /// What is on a volume that is not there stays behind; it is swept when it comes back.
    async fn unlink_blobs(&self, forgotten: &[Forgotten]) {
        for volume in self.inner.volumes.iter() {
            let of_it = || forgotten.iter().filter(|blob| blob.volume == volume.number);
            let paths: Vec<PathBuf> = of_it().map(|blob| volume.blob_path(blob.id)).collect();
            volume.remove_files(&paths).await;
            of_it().for_each(|blob| volume.room.removed(blob.length));
        }
        for blob in forgotten {
            drop(self.open_blobs(|open| open.take(blob.id)));
        }
    }
}

/// Removes the journals of committed blobs, for good: once the object is deleted, a journal that came back would be
/// a partial of nobody's.
async fn remove_journals(volume: &Arc<Volume>, journals: &[PathBuf]) {
    if journals.is_empty() {
        return;
    }
    volume.remove_files(journals).await;
    if let Err(error) = volume.sync_directory(&volume.dir.join("partial")).await {
        tracing::warn!(%error, "a journal may be back after a power cut");
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
