//! The store: the operations that tie files to the catalog, and the end of them all. `open.rs` has its beginning.
//!
//! Files come before rows and go after them: a blob is durable in its place before the transaction
//! that names it, and is unlinked after the transaction that forgets it. Whatever the moment of a
//! crash, a row has its file; a file without a row is removed at the next start.
//!
//! Cancel: commits and removals run in a task of their own to the end, so a caller that goes away
//! cannot leave a row without its file. What a dropped writer or sealed blob means is told in
//! `blob/writer.rs`.

pub(crate) mod attach;
pub(crate) mod open;
pub(crate) mod open_blobs;
pub(crate) mod partials;
pub(crate) mod rebuild;
pub(crate) mod recent;
pub(crate) mod sweep;
pub(crate) mod volumes;
pub(crate) mod writing;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::sync::{Arc, Mutex};

use rusqlite::Transaction;

use self::open_blobs::OpenBlobs;
use self::recent::Recent;
use self::volumes::Volumes;
use self::writing::Writing;
use crate::blob::{BlobMeta, BlobWriter, SealedBlob};
use crate::catalog::objects::{self, BlobRow, Entry, Forgotten, ObjectRecord, Precondition, PutOutcome};
use crate::catalog::{self, Catalog};
use crate::engine::{EngineChoice, EngineInfo};
use crate::error::{Error, Result};
use crate::id::BlobId;
use crate::key::Key;
use crate::limits::LIST_MAX;
use crate::scrub::Scrub;
use crate::volume::Volume;
use crate::volume::room::RoomLimits;

/// How to open a store: `StoreOptions { engine, ..StoreOptions::new(dir) }`.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    pub dir: PathBuf,
    pub engine: EngineChoice,
    /// The node's own tables: SQL scripts, applied in order after storage's. Append only.
    pub node_migrations: &'static [&'static str],
    pub room: RoomLimits,
    /// Directories on other disks that hold blobs too.
    pub volumes: Vec<PathBuf>,
    /// From this size on blobs are written past the page cache, where the file system allows it.
    pub direct_from: u64,
}

impl StoreOptions {
    pub fn new(dir: impl Into<PathBuf>) -> StoreOptions {
        StoreOptions {
            dir: dir.into(),
            engine: EngineChoice::Auto,
            node_migrations: &[],
            room: RoomLimits::default(),
            volumes: Vec::new(),
            direct_from: crate::limits::DIRECT_BYTES_MIN,
        }
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
    pub(crate) writing: Arc<Writing>,
    pub(crate) recent: Recent,
    pub(crate) scrub: Scrub,
    pub(crate) run: BlobId,
    pub(crate) closed: AtomicBool,
}

impl Store {
    pub fn engine(&self) -> EngineInfo {
        self.inner.volumes.first().bridge.info().clone()
    }

    pub fn catalog(&self) -> &Catalog {
        &self.inner.catalog
    }

    pub(crate) fn volumes(&self) -> &Volumes {
        &self.inner.volumes
    }

    /// Starts a blob whose partial file does not survive the process.
    pub async fn create(&self, meta: BlobMeta) -> Result<BlobWriter> {
        self.check_open()?;
        meta.check()?;
        loop {
            let (volume, room) = self.inner.volumes.place(&meta)?;
            match BlobWriter::create(volume, BlobId::new(), meta.clone(), room).await {
                // Its first sign of failure, and nothing is lost yet: the next one takes the blob.
                Err(Error::Degraded { .. }) => {}
                other => return other.map(|writer| self.announce(writer)),
            }
        }
    }

    /// Refuses `more` bytes that are about to come to a writer without a promised length, where they fit on no volume. A caller
    /// that asks spares its client the sending; [`BlobWriter::write`] refuses them too, when it comes to the limit.
    pub fn expect(&self, more: u64) -> Result<()> {
        self.inner.volumes.expect(more)
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
        if let Err(error) = sealed.iter().try_for_each(|blob| blob.volume().health.check_writable()) {
            // A journaled one is taken up again after the restart, any other is swept.
            sealed.into_iter().for_each(SealedBlob::leave);
            return Err(error);
        }
        let rows: Vec<BlobRow> = sealed
            .iter()
            .map(|blob| BlobRow {
                id: blob.id,
                length: blob.length,
                blake3: blob.blake3,
                content_type: blob.content_type.clone(),
                sha256: blob.sha256,
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
        self.remove_and(f, |_| ()).await
    }

    /// As `remove`, with `then` between the transaction, whatever came of it, and the files.
    async fn remove_and<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Transaction<'_>) -> Result<(T, Vec<BlobId>)> + Send + 'static,
        then: impl FnOnce(&Store) + Send + 'static,
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
            let removed = removed.await;
            then(&store);
            let (value, forgotten) = removed?;
            store.unlink_blobs(&forgotten).await;
            Ok(value)
        })
        .await
    }

    /// Stores a sealed blob under a key. The blob it replaces is removed.
    pub async fn put_object(&self, key: &Key, sealed: SealedBlob, if_: Precondition) -> Result<PutOutcome> {
        self.put_object_with(key, sealed, if_, |_, _| Ok(Vec::new())).await
    }

    /// The same, and runs `f` in the transaction that does it; the blobs that `f` names are forgotten and removed too.
    pub async fn put_object_with(
        &self,
        key: &Key,
        sealed: SealedBlob,
        if_: Precondition,
        f: impl FnOnce(&Transaction<'_>, &PutOutcome) -> Result<Vec<BlobId>> + Send + 'static,
    ) -> Result<PutOutcome> {
        self.check_open()?;
        let (store, key, id) = (self.clone(), key.clone(), sealed.id);
        self.to_the_end(async move {
            let of_tx = key.clone();
            let put = store.commit_all(vec![sealed], move |tx| {
                let (outcome, replaced) = objects::put(tx, &of_tx, id, &if_)?;
                let mut forgotten: Vec<Forgotten> = replaced.into_iter().collect();
                for id in f(tx, &outcome)? {
                    forgotten.extend(objects::delete_blob(tx, id)?);
                }
                Ok((outcome, forgotten))
            });
            let put = put.await;
            // A commit that failed may have happened all the same.
            store.inner.recent.forget(&key);
            let (outcome, forgotten) = put?;
            store.unlink_blobs(&forgotten).await;
            Ok(outcome)
        })
        .await
    }

    pub async fn object(&self, key: &Key) -> Result<Option<ObjectRecord>> {
        Ok(self.shared_object(key).await?.map(Arc::unwrap_or_clone))
    }

    /// As `object`, for those who ask so often that a copy of the record would cost them something.
    pub async fn shared_object(&self, key: &Key) -> Result<Option<Arc<ObjectRecord>>> {
        self.check_open()?;
        let missed = match self.inner.recent.get(key) {
            Ok(record) => return Ok(Some(record)),
            Err(missed) => missed,
        };
        let key = key.clone();
        let found = self.inner.catalog.read(move |connection| objects::get(connection, &key)).await?.map(Arc::new);
        if let Some(record) = &found {
            self.inner.recent.put(&missed, Arc::clone(record));
        }
        Ok(found)
    }

    /// Deletes an object; false when there was none.
    pub async fn delete_object(&self, key: &Key, if_: Precondition) -> Result<bool> {
        let (key, of_tx) = (key.clone(), key.clone());
        let remove = move |tx: &Transaction<'_>| {
            let blob = objects::delete(tx, &of_tx, &if_)?;
            Ok((blob.is_some(), blob.into_iter().collect()))
        };
        self.remove_and(remove, move |store| store.inner.recent.forget(&key)).await
    }

    /// Objects by key bytes, at most 10,000 at a time.
    pub async fn list_objects(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectRecord>> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        let limit = limit.min(LIST_MAX);
        self.inner.catalog.read(move |connection| objects::list(connection, &prefix, after.as_deref(), limit)).await
    }

    /// What lies directly in the folder `prefix`, at most 10,000 entries at a time, and where the next ones begin. The
    /// first call begins at `prefix`.
    pub async fn list_folder(&self, prefix: &str, from: &str, limit: usize) -> Result<(Vec<Entry>, Option<String>)> {
        let (prefix, from, limit) = (prefix.to_owned(), from.to_owned(), limit.min(LIST_MAX));
        self.inner.catalog.read(move |connection| objects::list_folder(connection, &prefix, &from, limit)).await
    }

    /// Lets what was begun end, then closes everything and releases the directory. Later calls on
    /// any clone fail with [`Error::Closed`].
    pub async fn close(self) -> Result<()> {
        if self.inner.closed.swap(true, AcqRel) {
            return Ok(());
        }
        let Inner { volumes, catalog, .. } = &*self.inner;
        self.inner.scrub.end().await;
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
        if volumes.first().health.is_degraded() {
            // A commit whose sync failed may be found in the log: what it forgot is still on every volume.
            volumes.iter().for_each(|volume| volume.leave_debris());
        }
        for volume in volumes.iter().skip(1) {
            if let Err(error) = volume.unlock(self.inner.run) {
                tracing::warn!(%error, "the next start looks through the volume");
            }
        }
        volumes.first().unlock(self.inner.run)?;
        Ok(())
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.inner.closed.load(Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    pub(crate) async fn has_blob(&self, id: BlobId) -> Result<bool> {
        Ok(self.volume_of(id).await?.is_some())
    }

    /// The number of the volume that a committed blob is on.
    pub(crate) async fn volume_of(&self, id: BlobId) -> Result<Option<u32>> {
        self.inner.catalog.read(move |connection| catalog::volumes::of_blob(connection, id)).await
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
            volume.quarantine.forget(of_it().map(|blob| blob.id));
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
