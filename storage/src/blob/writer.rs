//! Writing a blob: batches, hashes, checkpoints, sealing.
//!
//! A writer owns the partial file, one batch being filled, and the receipts of up to two batches on
//! their way to the disk. Buffers in flight belong to the engine, which returns them to the pool at
//! their completion: a writer that waits for a slow socket holds at most the batch it fills.
//!
//! Cancel: a dropped `write`, `checkpoint` or `seal` future loses none of the bytes already taken,
//! but may leave a batch's fate unknown, so the writer counts as failed and can only be dropped or
//! aborted. Dropping a writer removes a plain partial in the background and keeps a journaled one.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::format::{Footer, Section, TRAILER_BYTES, block_count};
use super::journal::{self, Journal, Record};
use super::{BlobMeta, check_length};
use crate::bridge::{How, NamedFile, Pending};
use crate::buffer::Buffer;
use crate::error::{Error, Result};
use crate::id::BlobId;
use crate::limits::{
    BATCH_BYTES_FIRST, BATCH_BYTES_MAX, BATCHES_IN_FLIGHT_MAX, BLOCK_BYTES, JOURNAL_BYTES_MAX, JOURNAL_NOTE_BYTES_MAX,
};
use crate::volume::Volume;

/// Takes the bytes of one blob, in order.
pub struct BlobWriter {
    volume: Arc<Volume>,
    id: BlobId,
    meta: BlobMeta,
    file: Arc<NamedFile>,
    files: Files,
    hashes: Hashes,
    /// Bytes handed to the engine; where the batch being filled will go.
    submitted: u64,
    /// Bytes reserved beyond the file's end.
    allocated: u64,
    batch: Option<Batch>,
    in_flight: VecDeque<Pending<()>>,
    journal: Option<JournalFile>,
    /// An operation failed or was cancelled half way.
    failed: bool,
}

struct Batch {
    buffer: Buffer,
    /// Where to stop filling, so that the batch ends with a block.
    limit: usize,
}

struct JournalFile {
    file: Arc<NamedFile>,
    bytes: u64,
    blocks_recorded: usize,
}

/// A blob in its place, durable, not yet known to the catalog. Unless it is committed, dropping it
/// unlinks the file.
pub struct SealedBlob {
    pub id: BlobId,
    pub length: u64,
    pub blake3: [u8; 32],
    pub content_type: Option<String>,
    files: Files,
}

/// The files of a blob that nobody was promised: removed on drop while armed.
struct Files {
    volume: Arc<Volume>,
    id: BlobId,
    paths: Vec<PathBuf>,
    armed: bool,
}

impl Files {
    async fn remove(mut self) {
        self.armed = false;
        self.volume.remove_files(&self.paths).await;
        self.volume.set_unacknowledged(self.id, false);
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if self.armed {
            let (volume, paths, id) = (Arc::clone(&self.volume), std::mem::take(&mut self.paths), self.id);
            drop(self.volume.spawn(async move {
                volume.remove_files(&paths).await;
                volume.set_unacknowledged(id, false);
            }));
        }
    }
}

impl BlobWriter {
    pub(crate) async fn create(volume: &Arc<Volume>, id: BlobId, meta: BlobMeta) -> Result<BlobWriter> {
        meta.check()?;
        volume.check_writable()?;
        let path = volume.partial_path(id);
        // Armed before the file exists, so that a cancelled open leaves nothing behind. An open
        // that fails removes nothing but its own name: ids are never used twice.
        let files = Files { volume: Arc::clone(volume), id, paths: vec![path.clone()], armed: true };
        let file = volume.bridge.open(&path, How::CreateNew).await?;
        let mut writer = BlobWriter {
            volume: Arc::clone(volume),
            id,
            meta,
            file,
            files,
            hashes: Hashes::new(),
            submitted: 0,
            allocated: 0,
            batch: None,
            in_flight: VecDeque::with_capacity(BATCHES_IN_FLIGHT_MAX),
            journal: None,
            failed: false,
        };
        writer.allocate().await?;
        Ok(writer)
    }

    pub(crate) async fn create_journaled(
        volume: &Arc<Volume>,
        id: BlobId,
        meta: BlobMeta,
        note: Vec<u8>,
    ) -> Result<BlobWriter> {
        let mut writer = BlobWriter::create(volume, id, meta).await?;
        let path = volume.journal_path(id);
        writer.files.paths.push(path.clone());
        let file = volume.bridge.open(&path, How::CreateNew).await?;
        let header = journal::encode_header(&writer.meta);
        volume.write_all(&file, &header, 0).await?;
        writer.journal = Some(JournalFile { file, bytes: header.len() as u64, blocks_recorded: 0 });
        writer.checkpoint(note).await?;
        volume.sync_directory(&volume.dir.join("partial")).await?;
        writer.files.armed = false;
        Ok(writer)
    }

    /// Takes up a journaled partial where its last intact record left it: cuts off what no record
    /// vouches for, and reads the rest again, which verifies it and rebuilds the hashes.
    pub(crate) async fn resume(volume: &Arc<Volume>, id: BlobId) -> Result<Option<(BlobWriter, Vec<u8>)>> {
        volume.check_writable()?;
        let journal_path = volume.journal_path(id);
        let journal_file = match volume.bridge.open(&journal_path, How::Modify).await {
            Err(e) if e.is_not_found() => return Ok(None),
            other => other?,
        };
        let journal = match Journal::decode(&read_journal(volume, &journal_file).await?) {
            Ok(journal) => journal,
            Err(reason) => {
                tracing::warn!(%id, %reason, "dropping a partial whose journal never became whole");
                volume.remove_files(&[volume.partial_path(id), journal_path]).await;
                return Ok(None);
            }
        };
        let path = volume.partial_path(id);
        let file = match volume.bridge.open(&path, How::Modify).await {
            // Sealed, but the process ended before the commit: never served, so it may go back.
            Err(e) if e.is_not_found() => {
                let sealed = volume.blob_path(id);
                match volume.bridge.rename(&sealed, &path).await {
                    Err(e) if e.is_not_found() => {
                        return Err(Error::corrupt(&path, "the partial is gone, its journal is not: discard it"));
                    }
                    other => other?,
                }
                volume.bridge.open(&path, How::Modify).await?
            }
            other => other?,
        };
        let hashes = rebuild(volume, &file, &journal).await?;
        volume.bridge.truncate(&file, journal.durable).await?;
        volume.bridge.truncate(&journal_file, journal.bytes).await?;
        let files = Files { volume: Arc::clone(volume), id, paths: vec![path, journal_path], armed: false };
        let blocks_recorded = journal.block_crcs.len();
        let mut writer = BlobWriter {
            volume: Arc::clone(volume),
            id,
            meta: journal.meta,
            file,
            files,
            hashes,
            submitted: journal.durable,
            allocated: 0,
            batch: None,
            in_flight: VecDeque::with_capacity(BATCHES_IN_FLIGHT_MAX),
            journal: Some(JournalFile { file: journal_file, bytes: journal.bytes, blocks_recorded }),
            failed: false,
        };
        writer.allocate().await?;
        Ok(Some((writer, journal.note)))
    }

    pub fn id(&self) -> BlobId {
        self.id
    }

    /// Bytes taken so far.
    pub fn len(&self) -> u64 {
        self.submitted + self.batch.as_ref().map_or(0, |batch| batch.buffer.len() as u64)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes room for the next bytes: call it before polling the socket, so that a node short of
    /// memory stops reading instead of buffering.
    pub async fn ready(&mut self) -> Result<()> {
        self.check()?;
        if self.batch.is_some() {
            return Ok(());
        }
        while self.in_flight.len() >= BATCHES_IN_FLIGHT_MAX {
            self.await_oldest().await?;
        }
        let limit = self.next_batch_bytes();
        let room_for_footer = self.footer_bytes_estimate();
        let buffer = self.volume.write_pool.take((limit + room_for_footer).min(BATCH_BYTES_MAX)).await;
        let limit = limit.min(buffer.capacity());
        self.batch = Some(Batch { buffer, limit });
        Ok(())
    }

    pub async fn write(&mut self, mut data: Bytes) -> Result<()> {
        check_length(self.len() + data.len() as u64)?;
        while !data.is_empty() {
            self.ready().await?;
            let batch = self.batch.as_mut().expect("ready provides a batch");
            let room = batch.limit - batch.buffer.len();
            let taken = batch.buffer.fill(&data[..room.min(data.len())]);
            data.advance(taken);
            let full = taken == room;
            // The last batch of an announced length waits for the footer, to share its write.
            if full && (taken == 0 || self.meta.length_hint != Some(self.len())) {
                self.submit_batch().await?;
            }
        }
        Ok(())
    }

    /// Makes everything written so far durable, then records it in the journal with `note`.
    /// Returns the durable length, from which [`resume`](crate::Store::resume) would go on.
    pub async fn checkpoint(&mut self, note: Vec<u8>) -> Result<u64> {
        self.check()?;
        self.volume.check_writable()?;
        if note.len() > JOURNAL_NOTE_BYTES_MAX {
            let (limit, actual) = (JOURNAL_NOTE_BYTES_MAX as u64, note.len() as u64);
            return Err(Error::TooLarge { what: "the journal note".into(), limit, actual });
        }
        assert!(self.journal.is_some(), "checkpoint of a blob without a journal");
        self.submit_batch().await?;
        self.drain().await?;
        self.failed = true;
        self.volume.sync(&self.file).await?;
        let journal = self.journal.as_mut().expect("checked above");
        let record = Record {
            durable: self.submitted,
            new_block_crcs: &self.hashes.block_crcs[journal.blocks_recorded..],
            tail_crc: self.hashes.tail_crc,
            note: &note,
        }
        .encode();
        self.volume.write_all(&journal.file, &record, journal.bytes).await?;
        self.volume.sync(&journal.file).await?;
        journal.bytes += record.len() as u64;
        journal.blocks_recorded = self.hashes.block_crcs.len();
        self.failed = false;
        Ok(self.submitted)
    }

    /// Footer, sync, rename into place, directory sync. The blob is then durable but belongs to
    /// nobody: [`commit`](crate::Store::commit) acknowledges it.
    pub async fn seal(mut self) -> Result<SealedBlob> {
        self.check()?;
        self.volume.check_writable()?;
        let footer = self.write_tail().await?;
        self.drain().await?;
        let end = footer.length + footer.encoded_bytes;
        if self.allocated > end {
            // The announced length was too large: give back what was reserved beyond the end.
            self.volume.bridge.truncate(&self.file, end).await?;
        }
        let volume = Arc::clone(&self.volume);
        let (synced, made) = tokio::join!(volume.sync(&self.file), volume.directories.ensure(self.id));
        synced?;
        made?;
        let path = volume.blob_path(self.id);
        volume.set_unacknowledged(self.id, true);
        // Should this fail or be cancelled now, a plain blob goes under both its names, and a
        // journaled one stays: resuming finds it wherever it is.
        self.files.paths.push(path.clone());
        volume.bridge.rename(&volume.partial_path(self.id), &path).await?;
        volume.sync_directory(path.parent().expect("a blob is in a directory")).await?;
        self.files.armed = true;
        Ok(SealedBlob {
            id: self.id,
            length: footer.length,
            blake3: footer.blake3,
            content_type: self.meta.content_type,
            files: self.files,
        })
    }

    /// Removes the partial, and its journal if there is one.
    pub async fn abort(self) {
        self.files.remove().await;
    }

    /// Submits what is left together with the footer, in one write if they fit.
    async fn write_tail(&mut self) -> Result<Tail> {
        self.failed = true;
        let batch = self.batch.take();
        if let Some(batch) = &batch {
            self.hashes.update(batch.buffer.as_slice());
        }
        let length = self.hashes.length;
        let (blake3, block_crcs) = self.hashes.finish();
        let mut sections = Vec::new();
        sections.extend(self.meta.key.clone().map(Section::Key));
        sections.extend(self.meta.content_type.clone().map(Section::ContentType));
        let footer = Footer { length, blake3, block_crcs, sections }.encode();
        let offset = self.submitted;
        let mut rest = &footer[..];
        if let Some(Batch { mut buffer, .. }) = batch {
            let taken = buffer.fill(rest);
            rest = &rest[taken..];
            self.in_flight.push_back(self.volume.bridge.write(&self.file, buffer, offset).await?);
        }
        let at = length + (footer.len() - rest.len()) as u64;
        self.volume.write_all(&self.file, rest, at).await?;
        self.failed = false;
        Ok(Tail { length, blake3, encoded_bytes: footer.len() as u64 })
    }

    /// Hashes the batch and hands it to the engine.
    async fn submit_batch(&mut self) -> Result<()> {
        let Some(batch) = self.batch.take() else {
            return Ok(());
        };
        self.failed = true;
        self.hashes.update(batch.buffer.as_slice());
        let length = batch.buffer.len() as u64;
        let pending = self.volume.bridge.write(&self.file, batch.buffer, self.submitted).await?;
        self.in_flight.push_back(pending);
        self.submitted += length;
        self.failed = false;
        Ok(())
    }

    async fn await_oldest(&mut self) -> Result<()> {
        let Some(oldest) = self.in_flight.front_mut() else {
            return Ok(());
        };
        // Borrowed, not taken: a cancelled wait leaves the receipt where it is.
        let result = oldest.await;
        self.in_flight.pop_front();
        self.failed |= result.is_err();
        result
    }

    async fn drain(&mut self) -> Result<()> {
        while !self.in_flight.is_empty() {
            self.await_oldest().await?;
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        if self.failed {
            let reason = std::io::Error::other("an earlier write of it failed or was cancelled");
            return Err(Error::io("write", &self.file.path, reason));
        }
        Ok(())
    }

    /// Reserves the announced length and the footer, so that a full volume shows before the upload
    /// does. A blob of one batch is allocated in one piece anyway.
    async fn allocate(&mut self) -> Result<()> {
        let Some(hint) = self.meta.length_hint.filter(|hint| *hint > BATCH_BYTES_MAX as u64) else {
            return Ok(());
        };
        let bytes = hint + footer_bytes(&self.meta, hint);
        self.volume.bridge.allocate(&self.file, bytes).await?;
        self.allocated = bytes;
        Ok(())
    }

    /// How much the next batch takes: small at first or when little is to come, and always so that
    /// it ends with a block.
    fn next_batch_bytes(&self) -> usize {
        let full = if self.submitted == 0 { BATCH_BYTES_FIRST } else { BATCH_BYTES_MAX };
        let aligned = full - (self.submitted % BLOCK_BYTES as u64) as usize;
        match self.meta.length_hint.and_then(|hint| hint.checked_sub(self.submitted)) {
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

struct Tail {
    length: u64,
    blake3: [u8; 32],
    encoded_bytes: u64,
}

/// Bytes of the footer of a blob with `length` bytes.
fn footer_bytes(meta: &BlobMeta, length: u64) -> u64 {
    let text = |text: &Option<String>| text.as_ref().map_or(0, |text| 6 + text.len() as u64);
    let fixed = 8 + 32 + 4 + 2 + TRAILER_BYTES as u64;
    fixed + block_count(length) * 4 + text(&meta.key) + text(&meta.content_type)
}

impl SealedBlob {
    pub(crate) fn is_of(&self, volume: &Arc<Volume>) -> bool {
        Arc::ptr_eq(&self.files.volume, volume)
    }

    /// The catalog has it: the file stays. What is returned is to be removed (the journal).
    pub(crate) fn committed(mut self) -> Vec<PathBuf> {
        self.files.armed = false;
        self.files.volume.set_unacknowledged(self.id, false);
        let blob = self.files.volume.blob_path(self.id);
        let partial = self.files.volume.partial_path(self.id);
        let mut paths = std::mem::take(&mut self.files.paths);
        paths.retain(|path| *path != blob && *path != partial);
        paths
    }

    /// Nobody wants it.
    pub(crate) async fn remove(self) {
        self.files.remove().await;
    }
}

/// The hashes of a blob, as far as its bytes are known.
struct Hashes {
    length: u64,
    blake3: Box<blake3::Hasher>,
    block_crcs: Vec<u32>,
    /// Of the bytes of the block that is not full yet.
    tail_crc: u32,
}

impl Hashes {
    fn new() -> Hashes {
        Hashes { length: 0, blake3: Box::new(blake3::Hasher::new()), block_crcs: Vec::new(), tail_crc: 0 }
    }

    /// Block by block, so that the second hash finds the bytes in the cache.
    fn update(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let room = BLOCK_BYTES - (self.length % BLOCK_BYTES as u64) as usize;
            let (piece, rest) = data.split_at(room.min(data.len()));
            self.tail_crc = crc32c::crc32c_append(self.tail_crc, piece);
            self.blake3.update(piece);
            self.length += piece.len() as u64;
            if piece.len() == room {
                self.block_crcs.push(std::mem::take(&mut self.tail_crc));
            }
            data = rest;
        }
    }

    fn finish(&mut self) -> ([u8; 32], Vec<u32>) {
        let mut block_crcs = std::mem::take(&mut self.block_crcs);
        if !self.length.is_multiple_of(BLOCK_BYTES as u64) {
            block_crcs.push(self.tail_crc);
        }
        (*self.blake3.finalize().as_bytes(), block_crcs)
    }
}

async fn read_journal(volume: &Volume, file: &Arc<NamedFile>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let buffer = volume.read_pool.take(BLOCK_BYTES).await;
        let buffer = volume.bridge.read(file, buffer, bytes.len() as u64, BLOCK_BYTES).await?;
        bytes.extend_from_slice(buffer.as_slice());
        if buffer.len() < BLOCK_BYTES {
            return Ok(bytes);
        }
        if bytes.len() as u64 > JOURNAL_BYTES_MAX {
            let detail = format!("the journal has more than {JOURNAL_BYTES_MAX} bytes");
            return Err(Error::corrupt(&file.path, detail));
        }
    }
}

/// Reads the durable part of a partial again and checks it against the journal, block by block.
async fn rebuild(volume: &Volume, file: &Arc<NamedFile>, journal: &Journal) -> Result<Hashes> {
    let mut hashes = Hashes::new();
    for block in 0..block_count(journal.durable) {
        let range = super::format::block_range(block, journal.durable);
        let len = (range.end - range.start) as usize;
        let buffer = volume.read_pool.take(BLOCK_BYTES).await;
        let buffer = volume.bridge.read(file, buffer, range.start, len).await?;
        let found = crc32c::crc32c(buffer.as_slice());
        if buffer.len() != len || found != journal.expected_crc(block) {
            let detail = format!(
                "bytes {}..{} of the partial are not what was synced (crc32c {found:08x}, the journal says {:08x}): discard it",
                range.start,
                range.end,
                journal.expected_crc(block)
            );
            return Err(Error::corrupt(&file.path, detail));
        }
        hashes.update(buffer.as_slice());
    }
    Ok(hashes)
}
