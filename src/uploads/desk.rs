//! What is known in memory of uploads: how far they are, their open writers, and whose turn it is.
//!
//! An entry exists for each open upload that somebody has asked about since the node started; a row has to exist before
//! an entry does, so there are no more of them than `UPLOADS_OPEN` and a few that are ending.
//!
//! **Whose turn.** A client that lost its connection comes back before the node has noticed. So a newer request takes
//! over: it tells the older one to stop and waits for the writer, which the older one puts back within one write. A turn
//! that is dropped changes nothing; the next one takes over all the same.
//!
//! **Idle writers** stay open for a while, because resuming reads everything again. They are bounded in number and time.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reelring_storage::{BlobWriter, Error as StorageError, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::record::{Record, UploadId};
use crate::limits;

#[derive(Default)]
pub(super) struct Desk {
    entries: Mutex<HashMap<UploadId, Arc<Entry>>>,
    /// Uploads whose writer is open and unused, the longest unused first.
    idle: Mutex<VecDeque<(UploadId, Instant)>>,
    /// Joins of the same parts come one after another, and no more at once than there are places.
    joins: [tokio::sync::Mutex<()>; limits::UPLOAD_JOINS],
}

pub(super) struct Entry {
    durable: Mutex<Option<u64>>,
    /// Held while the store is asked for it.
    asking: tokio::sync::Mutex<()>,
    /// The writer, when it is open and nobody appends. Held by whoever does.
    slot: tokio::sync::Mutex<Option<BlobWriter>>,
    turn: Mutex<Stop>,
    /// An append takes no more bytes and is about to say how far it came.
    ending: watch::Sender<bool>,
}

/// How the holder of a turn is told that it is over.
#[derive(Clone, Default)]
struct Stop {
    over: CancellationToken,
    /// What it has beyond the durable length is to be kept.
    keep: Arc<AtomicBool>,
}

/// The right to append, until somebody newer has it.
pub(super) struct Turn {
    entry: Arc<Entry>,
    stop: Stop,
}

pub(super) type Slot<'a> = tokio::sync::MutexGuard<'a, Option<BlobWriter>>;

impl Desk {
    pub fn entry(&self, id: UploadId) -> Arc<Entry> {
        Arc::clone(self.entries().entry(id).or_insert_with(|| Arc::new(Entry::new(None, None))))
    }

    /// Somebody begins an upload.
    pub fn begin(&self, id: UploadId, writer: BlobWriter) {
        self.entries().insert(id, Arc::new(Entry::new(Some(0), Some(writer))));
        self.idle(id);
    }

    /// The upload is over.
    pub fn remove(&self, id: UploadId) {
        self.entries().remove(&id);
        self.busy(id);
    }

    /// Somebody appends to it right now.
    pub fn is_busy(&self, id: UploadId) -> bool {
        self.entries().get(&id).is_some_and(|entry| entry.slot.try_lock().is_err())
    }

    /// Its writer is in use.
    pub fn busy(&self, id: UploadId) {
        self.idle_list().retain(|(known, _)| *known != id);
    }

    /// Its writer was put back. The one that is unused for longest is closed if there are too many.
    pub fn idle(&self, id: UploadId) {
        let too_many = {
            let mut idle = self.idle_list();
            idle.retain(|(known, _)| *known != id);
            idle.push_back((id, Instant::now()));
            if idle.len() > limits::UPLOAD_WRITERS_IDLE { idle.pop_front() } else { None }
        };
        if let Some((id, _)) = too_many {
            self.close(id);
        }
    }

    /// Closes writers that were not used for so long.
    pub fn close_idle(&self, longer_than: Duration) {
        loop {
            let next = {
                let mut idle = self.idle_list();
                match idle.front() {
                    Some((_, since)) if since.elapsed() >= longer_than => idle.pop_front(),
                    _ => None,
                }
            };
            let Some((id, _)) = next else { return };
            self.close(id);
        }
    }

    fn close(&self, id: UploadId) {
        let entry = self.entries().get(&id).cloned();
        if let Some(entry) = entry
            && let Ok(mut slot) = entry.slot.try_lock()
        {
            drop(slot.take());
        }
    }

    /// Waits for the place in which parts are joined that begin with this one.
    pub async fn join_place(&self, first: Option<&UploadId>) -> tokio::sync::MutexGuard<'_, ()> {
        let at = first.map_or(0, |id| id.first_byte() as usize % limits::UPLOAD_JOINS);
        self.joins[at].lock().await
    }

    /// Closes all writers, waiting for those in use.
    pub async fn close_all(&self) {
        let entries: Vec<Arc<Entry>> = self.entries().drain().map(|(_, entry)| entry).collect();
        for entry in entries {
            drop(entry.slot.lock().await.take());
        }
        self.idle_list().clear();
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<UploadId, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle_list(&self) -> MutexGuard<'_, VecDeque<(UploadId, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn new(durable: Option<u64>, writer: Option<BlobWriter>) -> Entry {
        Entry {
            durable: Mutex::new(durable),
            asking: tokio::sync::Mutex::default(),
            slot: tokio::sync::Mutex::new(writer),
            turn: Mutex::default(),
            ending: watch::Sender::new(false),
        }
    }

    /// The durable length; asks the store the first time. `None` when there is no partial.
    pub async fn durable(&self, store: &Store, record: &Record) -> Result<Option<u64>, StorageError> {
        if let Some(length) = *self.known() {
            return Ok(Some(length));
        }
        let _asking = self.asking.lock().await;
        if let Some(length) = *self.known() {
            return Ok(Some(length));
        }
        let found = store.partial_length(record.blob).await?;
        if let Some(length) = found {
            self.publish(length);
        }
        Ok(found)
    }

    /// So much is durable now. What was told before is never taken back.
    pub fn publish(&self, length: u64) {
        let mut known = self.known();
        *known = Some(known.map_or(length, |known| known.max(length)));
    }

    /// The partial may be gone: the store is to be asked again.
    pub fn doubt(&self) {
        *self.known() = None;
    }

    fn known(&self) -> MutexGuard<'_, Option<u64>> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over. Who had the turn drops what is not durable: the new one sends it again.
    pub fn begin(self: &Arc<Entry>) -> Turn {
        self.take_over(false)
    }

    /// Takes over. Who had the turn keeps what came.
    pub fn begin_keeping(self: &Arc<Entry>) -> Turn {
        self.take_over(true)
    }

    fn take_over(self: &Arc<Entry>, keep: bool) -> Turn {
        let stop = Stop::default();
        let before = std::mem::replace(&mut *self.turn.lock().unwrap_or_else(PoisonError::into_inner), stop.clone());
        before.keep.store(keep, Relaxed);
        before.over.cancel();
        Turn { entry: Arc::clone(self), stop }
    }

    /// The slot, if nobody has it.
    pub fn try_slot(&self) -> Option<Slot<'_>> {
        self.slot.try_lock().ok()
    }

    /// Waits while an append is ending, for a bounded time.
    pub async fn ending(&self) {
        let mut ending = self.ending.subscribe();
        let _ = tokio::time::timeout(limits::UPLOAD_ENDING, ending.wait_for(|ending| !ending)).await;
    }
}

impl Turn {
    /// Waits for who had the turn before.
    pub async fn slot(&self) -> Slot<'_> {
        self.entry.slot.lock().await
    }

    /// Somebody newer has taken over.
    pub fn is_over(&self) -> bool {
        self.stop.over.is_cancelled()
    }

    pub async fn over(&self) {
        self.stop.over.cancelled().await;
    }

    /// When the turn is over: what came is to be kept.
    pub fn keeps(&self) -> bool {
        self.stop.keep.load(Relaxed)
    }

    /// No more bytes are taken; until the guard is dropped, who asks for the length waits.
    pub fn end(&self) -> Ending {
        self.entry.ending.send_replace(true);
        Ending(Arc::clone(&self.entry))
    }
}

pub(super) struct Ending(Arc<Entry>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.ending.send_replace(false);
    }
}
