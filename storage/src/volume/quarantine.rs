//! Blobs whose bytes on the disk are not the bytes that were written.
//!
//! Whoever finds one (the read path, the scrub) reports it here: from that moment it is not opened any more, and the
//! catalog notes it in the background, so that the next start knows it too. The file stays where it is: it is evidence,
//! most of it can be salvaged, and a file that was served is never touched. What goes is the object, when somebody
//! deletes or replaces it; its row takes the note along (`ON DELETE CASCADE`), and [`Quarantine::forget`] the memory of it.
//! A scrub that finds the blob whole again (a cable was mended, the file restored) releases it.
//!
//! An I/O error is not reported here: a disk that does not answer has not lied.
//!
//! Reads pay nothing: while the list is empty opening a blob asks one atomic, and an open blob one of its own.
//!
//! Cancel: a report is taken at once, its note written in a task that closing the store waits for.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use rusqlite::{Connection, OptionalExtension, Transaction};

use crate::catalog::Catalog;
use crate::clock;
use crate::error::{Error, Result};
use crate::id::BlobId;
use crate::limits::{QUARANTINE_DETAIL_BYTES_MAX, QUARANTINED_MAX};
use crate::volume::Volume;

/// One blob that is not served any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    pub blob: BlobId,
    /// The object that it belongs to; none when it is part of something else, a rendition for instance.
    pub key: Option<String>,
    pub found_ms: u64,
    /// What was found, and what was expected.
    pub detail: String,
}

/// The quarantined blobs of one volume.
#[derive(Default)]
pub(crate) struct Quarantine {
    blobs: Mutex<BTreeMap<BlobId, Quarantined>>,
    /// How many there are.
    count: AtomicUsize,
    /// Blocks and footers that did not match, by this process.
    corrupt_blocks: AtomicU64,
    keeper: OnceLock<Keeper>,
}

/// Where reports are kept.
struct Keeper {
    volume: Weak<Volume>,
    catalog: Catalog,
}

impl Quarantine {
    /// Takes up what earlier runs found, and keeps what is found from now on.
    pub(crate) fn keep(&self, volume: Weak<Volume>, catalog: Catalog, known: Vec<Quarantined>) {
        let mut blobs = self.blobs();
        blobs.extend(known.into_iter().map(|found| (found.blob, found)));
        self.count.store(blobs.len(), Release);
        drop(self.keeper.set(Keeper { volume, catalog }));
    }

    /// From now on the blob is refused. What was found first is what is told.
    pub(crate) fn report(&self, id: BlobId, detail: &str) {
        self.corrupt_blocks.fetch_add(1, Relaxed);
        let detail: String = detail.chars().take(QUARANTINE_DETAIL_BYTES_MAX / 4).collect();
        let found = Quarantined { blob: id, key: None, found_ms: clock::now_ms(), detail };
        {
            let mut blobs = self.blobs();
            if blobs.len() >= QUARANTINED_MAX {
                // Its blocks go on being refused as they are read: only the list has an end.
                return;
            }
            match blobs.entry(id) {
                Entry::Occupied(_) => return,
                Entry::Vacant(free) => drop(free.insert(found.clone())),
            }
            self.count.store(blobs.len(), Release);
        }
        tracing::error!(blob = %id, detail = %found.detail, "a blob is damaged; it is quarantined, its file is kept");
        let Some(keeper) = self.keeper.get() else { return };
        let Some(volume) = keeper.volume.upgrade() else { return };
        let (catalog, own) = (keeper.catalog.clone(), std::sync::Arc::clone(&volume));
        drop(volume.spawn(async move { own.quarantine.note(&catalog, found).await }));
    }

    /// Writes a report down. A blob without a row was removed in the meantime, and its report with it.
    async fn note(&self, catalog: &Catalog, found: Quarantined) {
        let id = found.blob;
        let noted = catalog.write(move |tx| {
            let noted = insert(tx, &found)?;
            let key = if noted { key_of(tx, id)? } else { None };
            Ok((noted, key))
        });
        match noted.await {
            Ok((true, key)) => {
                if let Some(found) = self.blobs().get_mut(&id) {
                    found.key = key;
                }
            }
            Ok((false, _)) => self.forget([id]),
            Err(Error::Closed) => {}
            Err(error) => {
                tracing::warn!(blob = %id, %error, "the catalog could not note a damaged blob: it is refused until \
                                                   this process ends, and again when it is read after that");
            }
        }
    }

    /// Refuses a blob that is on the list.
    pub(crate) fn check(&self, volume: &Volume, id: BlobId) -> Result<()> {
        if self.count.load(Acquire) == 0 {
            return Ok(());
        }
        match self.blobs().get(&id) {
            None => Ok(()),
            Some(found) => Err(Error::Quarantined {
                blob: id,
                key: found.key.clone(),
                path: volume.blob_path(id),
                detail: found.detail.clone(),
            }),
        }
    }

    pub(crate) fn contains(&self, id: BlobId) -> bool {
        self.count.load(Acquire) > 0 && self.blobs().contains_key(&id)
    }

    /// The blobs are gone.
    pub(crate) fn forget(&self, ids: impl IntoIterator<Item = BlobId>) {
        if self.count.load(Acquire) == 0 {
            return;
        }
        let mut blobs = self.blobs();
        ids.into_iter().for_each(|id| drop(blobs.remove(&id)));
        self.count.store(blobs.len(), Release);
    }

    /// The blob is whole again. It stays on the list when the catalog cannot forget it.
    pub(crate) async fn release(&self, catalog: &Catalog, id: BlobId) -> Result<()> {
        catalog.write(move |tx| delete(tx, id)).await?;
        self.forget([id]);
        Ok(())
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(Relaxed) as u64
    }

    pub(crate) fn corrupt_blocks(&self) -> u64 {
        self.corrupt_blocks.load(Relaxed)
    }

    /// Up to `limit` of them after `after`, the oldest blob first.
    pub(crate) fn list(&self, after: Option<BlobId>, limit: usize) -> Vec<Quarantined> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.blobs().range((from, Bound::Unbounded)).take(limit).map(|(_, found)| found.clone()).collect()
    }

    fn blobs(&self) -> MutexGuard<'_, BTreeMap<BlobId, Quarantined>> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What earlier runs found on a volume.
pub(crate) fn load(connection: &Connection, volume: u32) -> Result<Vec<Quarantined>> {
    let sql = "SELECT q.blob, o.key, q.found_ms, q.detail FROM quarantine q JOIN blobs b ON b.id = q.blob
               LEFT JOIN objects o ON o.blob = q.blob WHERE b.volume = ?1 ORDER BY q.blob LIMIT ?2";
    let mut select = connection.prepare_cached(sql)?;
    let rows = select.query_map([i64::from(volume), QUARANTINED_MAX as i64], |row| {
        let found_ms: i64 = row.get(2)?;
        Ok(Quarantined { blob: row.get(0)?, key: row.get(1)?, found_ms: found_ms as u64, detail: row.get(3)? })
    })?;
    Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
}

/// False when the catalog does not have the blob (any more).
fn insert(tx: &Transaction<'_>, found: &Quarantined) -> Result<bool> {
    let sql = "INSERT INTO quarantine (blob, found_ms, detail) SELECT id, ?2, ?3 FROM blobs WHERE id = ?1
               ON CONFLICT (blob) DO UPDATE SET found_ms = excluded.found_ms, detail = excluded.detail";
    Ok(tx.prepare_cached(sql)?.execute((found.blob, found.found_ms as i64, &found.detail))? == 1)
}

fn delete(tx: &Transaction<'_>, id: BlobId) -> Result<()> {
    Ok(tx.prepare_cached("DELETE FROM quarantine WHERE blob = ?1")?.execute([id]).map(drop)?)
}

fn key_of(connection: &Connection, id: BlobId) -> Result<Option<String>> {
    let mut select = connection.prepare_cached("SELECT key FROM objects WHERE blob = ?1")?;
    Ok(select.query_row([id], |row| row.get(0)).optional()?)
}
