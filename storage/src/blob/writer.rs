//! Writing a blob: its bytes gathered in batches, hashed, and on their way.
//!
//! A writer owns the partial file, one batch being filled, one being hashed, and the receipts of a few batches on
//! their way to the disk. A full batch is hashed by another thread while the next one is filled; what a fast sender costs
//! is then divided between two. Buffers in flight belong to the engine, which returns them to the pool at
//! their completion: a writer that waits for a slow socket holds at most the batch it fills.
//!
//! Cancel: after a dropped `write` or `checkpoint` nobody knows how many bytes were taken, so the
//! writer counts as failed and can only be dropped or aborted (a journaled blob resumes at its last
//! checkpoint). A dropped `ready` loses nothing. `seal.rs` makes durable what was written, `rewind.rs` goes back to the last checkpoint. Dropping a writer removes a plain partial in the background and keeps a journaled one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf, Bytes};
use tokio::task::JoinHandle;

use super::direct::Way;
use super::format::footer_bytes;
use super::hashes::{Hashes, Mark};
use super::progress::Publisher;
use super::sealed::Files;
use super::{BlobMeta, check_length};
use crate::bridge::{How, Landed, NamedFile, Pending};
use crate::budget::Payer;
use crate::buffer::Buffer;
use crate::error::{Error, Result};
use crate::id::BlobId;
use crate::limits::{
    BATCH_AGE, BATCH_BYTES_FIRST, BATCH_BYTES_MAX, BATCH_BYTES_SLOW, BATCHES_IN_FLIGHT_MAX, BLOCK_BYTES,
    FOLLOWED_BATCH_AGE,
};
use crate::store::writing::Writing;
use crate::volume::Volume;
use crate::volume::room::Reservation;

/// Takes the bytes of one blob, in order.
pub struct BlobWriter {
    pub(super) volume: Arc<Volume>,
    pub(super) id: BlobId,
    pub(super) meta: BlobMeta,
    pub(super) file: Arc<NamedFile>,
    way: Way,
    pub(super) files: Files,
    /// Of what was submitted; away while a full batch is being hashed.
    pub(super) hashes: Option<Hashes>,
    hashing: Option<JoinHandle<(Hashes, Result<Pending<()>>)>>,
    /// Bytes handed to the engine; where the batch being filled will go.
    pub(super) submitted: u64,
    /// Where the file may end because of bytes that were written and given up.
    pub(super) abandoned_to: u64,
    /// Of these, how many are in the page cache and no sync has covered them yet.
    pub(super) unsynced: u64,
    /// Bytes reserved beyond the file's end.
    pub(super) allocated: u64,
    pub(super) batch: Option<Batch>,
    pub(super) in_flight: VecDeque<Pending<()>>,
    /// When the last batch was handed to the engine.
    handed_over: Instant,
    /// The largest batch that the sender is fast enough for.
    batch_cap: usize,
    pub(super) journal: Option<JournalFile>,
    payer: Payer,
    /// An operation failed or was cancelled half way.
    pub(super) failed: bool,
}

pub(super) struct Batch {
    pub(super) buffer: Buffer,
    /// Where to stop filling, so that the batch ends with a block.
    limit: usize,
}

pub(super) struct JournalFile {
    pub(super) file: Arc<NamedFile>,
    /// Where the next record goes.
    pub(super) bytes: u64,
    /// What the last record vouches for.
    pub(super) recorded: Mark,
}

impl BlobWriter {
    pub(crate) async fn create(
        volume: &Arc<Volume>,
        id: BlobId,
        meta: BlobMeta,
        room: Reservation,
    ) -> Result<BlobWriter> {
        let (writer, _) = BlobWriter::create_files(volume, id, meta, false, room).await?;
        Ok(writer)
    }

    /// Creates the partial, and the journal's file if it is to have one.
    pub(super) async fn create_files(
        volume: &Arc<Volume>,
        id: BlobId,
        meta: BlobMeta,
        journaled: bool,
        room: Reservation,
    ) -> Result<(BlobWriter, Option<Arc<NamedFile>>)> {
        volume.health.check_writable()?;
        let (path, opener) = (volume.partial_path(id), Arc::clone(volume));
        let in_hand = volume.claim(id).await?;
        // In a task of its own: a caller that goes away in mid-open leaves files that are removed,
        // and only a file that this call made is ever removed.
        let opened = volume.spawn(async move {
            let claim = in_hand.claim();
            let file = opener.bridge.open_claimed(&path, How::CreateNew, Arc::clone(&claim)).await?;
            let (volume, in_hand) = (Arc::clone(&opener), Some(in_hand));
            let paths = vec![path];
            let mut files = Files { volume, id, paths, armed: true, in_hand, claim, room, publisher: None };
            if !journaled {
                return Ok((file, files, None));
            }
            let path = opener.journal_path(id);
            let journal = opener.bridge.open_claimed(&path, How::CreateNew, Arc::clone(&files.claim)).await?;
            files.paths.insert(0, path);
            Ok((file, files, Some(journal)))
        });
        let opened = opened.await.unwrap_or(Err(Error::Closed));
        let (file, files, journal) = opened.map_err(|error| volume.judge_write(error))?;
        let mut writer = BlobWriter::new(meta, file, files, Hashes::new(), None);
        writer.allocate().await.map_err(|error| volume.judge_write(error))?;
        Ok((writer, journal))
    }

    /// A writer that goes on after the bytes that `hashes` covers.
    pub(super) fn new(
        meta: BlobMeta,
        file: Arc<NamedFile>,
        files: Files,
        hashes: Hashes,
        journal: Option<JournalFile>,
    ) -> BlobWriter {
        BlobWriter {
            volume: Arc::clone(&files.volume),
            id: files.id,
            meta,
            file,
            way: Way::Cached,
            files,
            submitted: hashes.length,
            abandoned_to: 0,
            hashes: Some(hashes),
            hashing: None,
            unsynced: 0,
            allocated: 0,
            batch: None,
            in_flight: VecDeque::with_capacity(BATCHES_IN_FLIGHT_MAX),
            handed_over: Instant::now(),
            batch_cap: BATCH_BYTES_MAX,
            journal,
            payer: Payer::Node,
            failed: false,
        }
    }

    /// Lets others follow it, if it has a key.
    pub(crate) fn announced_in(mut self, writing: &Arc<Writing>) -> BlobWriter {
        if let Some(key) = self.meta.key.clone() {
            let (writing, volume, meta) = (Arc::clone(writing), Arc::clone(&self.volume), self.meta.clone());
            let publisher = Publisher::new(writing, key, self.id, meta, volume, &self.file, self.hashes());
            self.files.publisher = Some(publisher);
        }
        self
    }

    pub fn id(&self) -> BlobId {
        self.id
    }

    #[cfg(test)]
    pub(crate) fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    #[cfg(test)]
    pub(super) fn is_direct(&self) -> bool {
        matches!(self.way, Way::Direct(_))
    }

    /// Bytes taken so far.
    pub fn len(&self) -> u64 {
        let filled = self.batch.as_ref().map_or(0, |batch| batch.buffer.len() as u64);
        self.submitted + filled
    }

    /// From now on its buffers are on somebody's account.
    pub fn set_payer(&mut self, payer: Payer) {
        self.payer = payer;
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type of the content, for who learns it from the first bytes. The footer has it, so it counts until the seal.
    pub fn set_content_type(&mut self, content_type: Option<String>) {
        self.meta.content_type = content_type;
    }

    /// Makes room for the next bytes: call it before polling the socket, so that a node short of
    /// memory stops reading instead of buffering.
    /// Dropping the future loses nothing.
    pub async fn ready(&mut self) -> Result<()> {
        self.check()?;
        self.make_room().await
    }

    async fn make_room(&mut self) -> Result<()> {
        if self.batch.is_some() {
            return Ok(());
        }
        while self.in_flight.len() >= BATCHES_IN_FLIGHT_MAX {
            self.await_oldest().await?;
        }
        let limit = self.next_batch_bytes().min(self.batch_cap);
        let room_for_footer = self.footer_bytes_estimate();
        let buffer = self.volume.write_pool.take_for(self.payer, (limit + room_for_footer).min(BATCH_BYTES_MAX)).await;
        let limit = limit.min(buffer.capacity());
        self.batch = Some(Batch { buffer, limit });
        Ok(())
    }

    /// Takes the next bytes of the blob.
    pub async fn write(&mut self, data: Bytes) -> Result<()> {
        self.check()?;
        check_length(self.len() + data.len() as u64)?;
        // Until all is taken: a caller that gave up half way must not go on behind a gap.
        self.failed = true;
        self.take(data).await?;
        let age = if self.is_followed() { FOLLOWED_BATCH_AGE } else { BATCH_AGE };
        if self.handed_over.elapsed() >= age {
            self.submit_some().await?;
        }
        self.failed = false;
        Ok(())
    }

    /// Hands on what has been gathered, and gives up its memory: for a caller that waits for a slow sender. A caller that
    /// drops this future has lost the blob, as with [`BlobWriter::write`].
    pub async fn hand_over(&mut self) -> Result<()> {
        self.check()?;
        self.failed = true;
        self.submit_some().await?;
        self.failed = false;
        Ok(())
    }

    /// True while somebody reads the blob as it is written.
    pub fn is_followed(&self) -> bool {
        self.files.publisher.as_ref().is_some_and(Publisher::is_followed)
    }

    async fn take(&mut self, mut data: Bytes) -> Result<()> {
        while !data.is_empty() {
            self.make_room().await?;
            let batch = self.batch.as_mut().expect("ready provides a batch");
            let room = batch.limit - batch.buffer.len();
            let taken = batch.buffer.fill(&data[..room.min(data.len())]);
            data.advance(taken);
            let full = taken == room;
            if full && taken > 0 {
                self.batch_cap = (self.batch_cap * 4).min(BATCH_BYTES_MAX);
            }
            // The last batch of an announced length waits for the footer, to share its write.
            if full && (taken == 0 || self.meta.length_hint != Some(self.len())) {
                self.submit_batch().await?;
            }
        }
        Ok(())
    }

    /// Removes the partial, and its journal if there is one.
    pub async fn abort(self) {
        self.files.remove().await;
    }

    /// Submits the batch unless it is empty, or waits for the footer.
    async fn submit_some(&mut self) -> Result<()> {
        self.catch_up().await?;
        match &self.batch {
            Some(batch) if batch.buffer.is_empty() => self.batch = None,
            Some(batch) if self.meta.length_hint != Some(self.len()) => {
                // The sender is slow: it gets what it fills in about that time.
                self.batch_cap = (batch.buffer.len() * 2).clamp(BATCH_BYTES_SLOW, BATCH_BYTES_MAX);
                self.submit_batch().await?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Sends the batch on its way: a full one by another thread, which hashes it and hands it to the engine.
    pub(super) async fn submit_batch(&mut self) -> Result<()> {
        self.catch_up().await?;
        let Some(Batch { buffer, .. }) = self.batch.take() else {
            return Ok(());
        };
        let (start, length) = (self.submitted, buffer.len() as u64);
        // All but the batches that may be in flight have their blocks.
        self.files.room.allocated(start.saturating_sub((BATCHES_IN_FLIGHT_MAX * BATCH_BYTES_MAX) as u64));
        self.files.room.cover(start + length).inspect_err(|_| self.failed = true)?;
        let known = self.meta.length_hint.unwrap_or(0).max(start + length);
        self.way.choose(&self.volume, &self.file, &self.files.claim, known).await;
        let direct = self.way.direct(start, length);
        self.unsynced += if direct.is_some() { 0 } else { length };
        let file = Arc::clone(direct.unwrap_or(&self.file));
        self.submitted += length;
        self.handed_over = Instant::now();
        if buffer.len() < BATCH_BYTES_MAX {
            self.hashes_mut().update(buffer.as_slice());
            let landed = self.under_way(start);
            let pending = self.volume.bridge.write_telling(&file, buffer, start, landed).await?;
            self.in_flight.push_back(pending);
            return Ok(());
        }
        let mut hashes = self.hashes.take().expect("caught up");
        let (volume, progress) = (Arc::clone(&self.volume), self.files.publisher.as_ref().map(Publisher::progress));
        self.hashing = Some(self.volume.spawn(async move {
            hashes.update(buffer.as_slice());
            let landed = progress.map(|progress| progress.under_way(start, &hashes));
            (hashes, volume.bridge.write_telling(&file, buffer, start, landed).await)
        }));
        Ok(())
    }

    /// Waits until the batch that is being hashed has been handed to the engine.
    pub(super) async fn catch_up(&mut self) -> Result<()> {
        let Some(hashing) = &mut self.hashing else { return Ok(()) };
        // Borrowed, not taken: a cancelled wait leaves it where it is.
        let done = hashing.await;
        self.hashing = None;
        let (hashes, pending) = done.map_err(|_| Error::Closed)?;
        self.hashes = Some(hashes);
        self.in_flight.push_back(pending?);
        Ok(())
    }

    /// What tells the followers that the bytes from `start` to where the hashes have come are in the file.
    pub(super) fn under_way(&self, start: u64) -> Option<Landed> {
        self.files.publisher.as_ref().map(|publisher| publisher.progress().under_way(start, self.hashes()))
    }

    async fn await_oldest(&mut self) -> Result<()> {
        let Some(oldest) = self.in_flight.front_mut() else {
            return Ok(());
        };
        // Borrowed, not taken: a cancelled wait leaves the receipt where it is.
        let result = oldest.await;
        self.in_flight.pop_front();
        self.failed |= result.is_err();
        result.map_err(|error| self.volume.judge_write(error))
    }

    /// Of all that was submitted.
    ///
    /// # Panics
    ///
    /// While a batch is being hashed.
    pub(super) fn hashes(&self) -> &Hashes {
        self.hashes.as_ref().expect("no batch is being hashed")
    }

    pub(super) fn hashes_mut(&mut self) -> &mut Hashes {
        self.hashes.as_mut().expect("no batch is being hashed")
    }

    /// Everything submitted has landed; what is being hashed too.
    pub(super) async fn drain(&mut self) -> Result<()> {
        self.catch_up().await?;
        while !self.in_flight.is_empty() {
            self.await_oldest().await?;
        }
        Ok(())
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.failed {
            let reason = std::io::Error::other("an earlier write of it failed or was cancelled");
            return Err(Error::io("write", &self.file.path, reason));
        }
        Ok(())
    }

    /// Reserves the announced length and the footer, so that a full volume shows before the upload
    /// does. A blob of one batch is allocated in one piece anyway.
    pub(super) async fn allocate(&mut self) -> Result<()> {
        let Some(hint) = self.meta.length_hint.filter(|hint| *hint > BATCH_BYTES_MAX as u64) else {
            return Ok(());
        };
        let bytes = hint + footer_bytes(&self.meta, hint);
        self.files.room.cover(bytes)?;
        self.volume.bridge.allocate(&self.file, bytes).await?;
        self.allocated = bytes;
        // Where fallocate is not supported the blocks are still to come.
        if let Ok(stat) = rustix::fs::fstat(&self.file.file) {
            self.files.room.allocated(bytes.min(stat.st_blocks as u64 * 512));
        }
        Ok(())
    }

    /// How much the next batch takes: small at first or when little is to come, and always so that
    /// it ends with a block.
    fn next_batch_bytes(&self) -> usize {
        let at = self.len();
        let full = if at == 0 { BATCH_BYTES_FIRST } else { BATCH_BYTES_MAX };
        let aligned = full - (at % BLOCK_BYTES as u64) as usize;
        match self.meta.length_hint.and_then(|hint| hint.checked_sub(at)) {
            Some(rest) if rest > 0 && rest < aligned as u64 => rest as usize,
            _ => aligned,
        }
    }

    /// Room to leave in a batch that may be the last.
    fn footer_bytes_estimate(&self) -> usize {
        match self.meta.length_hint {
            Some(hint) if hint <= BLOCK_BYTES as u64 => footer_bytes(&self.meta, hint) as usize,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::Bridge;
    use crate::engine::EngineChoice;

    #[tokio::test]
    async fn a_sender_that_drips_holds_little_memory() {
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume::on(dir.path(), Bridge::start(EngineChoice::Threads).unwrap());
        let room = volume.room.reserve(0).unwrap();
        let mut writer = BlobWriter::create(&volume, BlobId::new(), BlobMeta::default(), room).await.unwrap();
        writer.ready().await.unwrap();
        assert_eq!(volume.write_pool.in_use(), BATCH_BYTES_FIRST);
        writer.write(Bytes::from_static(b"drip")).await.unwrap();
        writer.hand_over().await.unwrap();
        writer.drain().await.unwrap();
        assert_eq!(volume.write_pool.in_use(), 0, "nothing while it waits");
        writer.ready().await.unwrap();
        assert_eq!(volume.write_pool.in_use(), BATCH_BYTES_SLOW);
        // As fast as any, it soon gets full batches again.
        for _ in 0..40 {
            writer.write(vec![0; 100_000].into()).await.unwrap();
        }
        assert!(writer.batch_cap == BATCH_BYTES_MAX);
        writer.abort().await;
    }
}
