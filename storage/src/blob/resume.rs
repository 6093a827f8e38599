//! Journaled partials: beginning one, and going on with one after a restart.

use std::sync::Arc;

use super::BlobMeta;
use super::format::{block_count, block_range};
use super::hashes::Hashes;
use super::journal::{self, Journal, Record};
use super::sealed::Files;
use super::writer::{BlobWriter, JournalFile};
use crate::bridge::{How, NamedFile};
use crate::error::{Error, Result};
use crate::id::BlobId;
use crate::limits::{BLOCK_BYTES, JOURNAL_BYTES_MAX, JOURNAL_NOTE_BYTES_MAX};
use crate::volume::Volume;
use crate::volume::claim::{Claim, InHand};
use crate::volume::room::Reservation;

impl BlobWriter {
    pub(crate) async fn create_journaled(
        volume: &Arc<Volume>,
        id: BlobId,
        meta: BlobMeta,
        note: Vec<u8>,
        room: Reservation,
    ) -> Result<BlobWriter> {
        check_note(&note)?;
        let (mut writer, file) = BlobWriter::create_files(volume, id, meta, true, room).await?;
        let file = file.expect("a journal was asked for");
        // Header and first record in one write: a journal without a record promises nothing.
        let mut journal = journal::encode_header(&writer.meta);
        journal.extend(Record { durable: 0, new_block_crcs: &[], tail_crc: 0, note: &note }.encode());
        volume.write_all(&file, &journal, 0).await?;
        volume.sync(&file).await?;
        volume.sync_directory(&volume.dir.join("partial")).await?;
        let recorded = writer.hashes().mark();
        writer.journal = Some(JournalFile { file, bytes: journal.len() as u64, recorded });
        writer.files.armed = false;
        Ok(writer)
    }

    /// How far a partial's journal vouches for it; `None` where there is no journal.
    pub(crate) async fn durable_length(volume: &Arc<Volume>, id: BlobId) -> Result<Option<u64>> {
        let file = match volume.bridge.open(&volume.journal_path(id), How::Read).await {
            Err(e) if e.is_not_found() => return Ok(None),
            other => other?,
        };
        let bytes = read_journal(volume, &file).await?;
        Ok(Journal::decode(&bytes).ok().map(|journal| journal.durable))
    }

    /// How far a partial is durable and stays so; `None` where there is none. Cheaper than `resume`: what the journal
    /// vouches for was synced before the journal said so, and is not read again here.
    pub(crate) async fn settled_length(volume: &Arc<Volume>, id: BlobId, in_hand: InHand) -> Result<Option<u64>> {
        volume.health.check_writable()?;
        let Some(found) = FoundJournal::open(volume, id, &in_hand.claim()).await? else { return Ok(None) };
        found.settle(volume).await?;
        Ok(Some(found.journal.durable))
    }

    /// Takes up a journaled partial where its last intact record left it: cuts off what no record
    /// vouches for, and reads the rest again, which verifies it and rebuilds the hashes.
    pub(crate) async fn resume(
        volume: &Arc<Volume>,
        id: BlobId,
        in_hand: InHand,
    ) -> Result<Option<(BlobWriter, Vec<u8>)>> {
        volume.health.check_writable()?;
        let claim = in_hand.claim();
        let journal_path = volume.journal_path(id);
        let Some(found) = FoundJournal::open(volume, id, &claim).await? else { return Ok(None) };
        let path = volume.partial_path(id);
        let file = match volume.bridge.open_claimed(&path, How::Modify, Arc::clone(&claim)).await {
            // Sealed, but the process ended before the commit: never served, so it may go back.
            Err(e) if e.is_not_found() => {
                let sealed = volume.blob_path(id);
                match volume.rename_claimed(&sealed, &path, Arc::clone(&claim)).await {
                    Err(e) if e.is_not_found() => {
                        return Err(Error::corrupt(&path, "the partial is gone, its journal is not: discard it"));
                    }
                    other => other?,
                }
                volume.bridge.open_claimed(&path, How::Modify, Arc::clone(&claim)).await?
            }
            other => other?,
        };
        let hashes = rebuild(volume, &file, &found.journal).await?;
        volume.bridge.truncate(&file, found.journal.durable).await?;
        found.settle(volume).await?;
        let FoundJournal { file: journal_file, journal, .. } = found;
        let files = Files {
            volume: Arc::clone(volume),
            id,
            paths: vec![journal_path, path],
            armed: false,
            in_hand: Some(in_hand),
            claim,
            room: volume.room.adopt(journal.durable),
            publisher: None,
        };
        let journal_file = JournalFile { file: journal_file, bytes: journal.bytes, recorded: hashes.mark() };
        let mut writer = BlobWriter::new(journal.meta, file, files, hashes, Some(journal_file));
        writer.allocate().await?;
        Ok(Some((writer, journal.note)))
    }
}

/// A journal from an earlier life, as far as it is whole.
struct FoundJournal {
    file: Arc<NamedFile>,
    journal: Journal,
    bytes: Vec<u8>,
}

impl FoundJournal {
    async fn open(volume: &Arc<Volume>, id: BlobId, claim: &Arc<Claim>) -> Result<Option<FoundJournal>> {
        let path = volume.journal_path(id);
        let file = match volume.bridge.open_claimed(&path, How::Modify, Arc::clone(claim)).await {
            Err(e) if e.is_not_found() => return Ok(None),
            other => other?,
        };
        let bytes = read_journal(volume, &file).await?;
        match Journal::decode(&bytes) {
            Ok(journal) => Ok(Some(FoundJournal { file, journal, bytes })),
            Err(reason) => {
                tracing::warn!(%id, %reason, "dropping a partial whose journal never became whole");
                volume.remove_files(&[path, volume.partial_path(id)]).await;
                Ok(None)
            }
        }
    }

    /// What was read may be in the page cache alone, of a process that died before its sync, or whose sync failed and
    /// left clean pages that are not on the disk. The caller will be told this length and may forget what it has
    /// below: so the same bytes are written again, which hurts nothing that is there, and the names synced.
    async fn settle(&self, volume: &Arc<Volume>) -> Result<()> {
        volume.bridge.truncate(&self.file, self.journal.bytes).await?;
        volume.write_all(&self.file, &self.bytes[..self.journal.bytes as usize], 0).await?;
        volume.sync(&self.file).await?;
        volume.sync_directory(&volume.dir.join("partial")).await
    }
}

pub(super) fn check_note(note: &[u8]) -> Result<()> {
    if note.len() > JOURNAL_NOTE_BYTES_MAX {
        let (limit, actual) = (JOURNAL_NOTE_BYTES_MAX as u64, note.len() as u64);
        return Err(Error::TooLarge { what: "the journal note".into(), limit, actual });
    }
    Ok(())
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
        let range = block_range(block, journal.durable);
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
