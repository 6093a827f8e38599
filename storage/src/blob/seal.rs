//! What makes the bytes of a blob durable: a checkpoint on the way, the seal at the end.
//!
//! Both wait for every batch, sync, and only then say so, in the journal's record or by the name in `blobs/`. A cancel
//! is the writer's: see `writer.rs`.

use std::sync::Arc;

use super::format::{Footer, Section};
use super::journal::Record;
use super::resume::check_note;
use super::sealed::SealedBlob;
use super::writer::{Batch, BlobWriter};
use crate::error::Result;
use crate::limits::SYNC_ROUND_FILE_BYTES_MAX;
use crate::sabotage::{self, Sabotage};

struct Tail {
    length: u64,
    blake3: [u8; 32],
    encoded_bytes: u64,
}

impl BlobWriter {
    /// Makes everything written so far durable, then records it in the journal with `note`.
    /// Returns the durable length, from which [`resume`](crate::Store::resume) would go on.
    pub async fn checkpoint(&mut self, note: Vec<u8>) -> Result<u64> {
        self.record(note).await.map_err(|error| self.volume.judge_write(error))
    }

    async fn record(&mut self, note: Vec<u8>) -> Result<u64> {
        self.check()?;
        self.volume.health.check_writable()?;
        check_note(&note)?;
        assert!(self.journal.is_some(), "checkpoint of a blob without a journal");
        self.failed = true;
        self.submit_batch().await?;
        self.drain().await?;
        self.sync().await?;
        self.unsynced = 0;
        let hashes = self.hashes.as_ref().expect("drained");
        let journal = self.journal.as_mut().expect("checked above");
        let record = Record {
            durable: self.submitted,
            new_block_crcs: &hashes.block_crcs[journal.recorded.blocks..],
            tail_crc: hashes.tail_crc,
            note: &note,
        }
        .encode();
        self.volume.write_all(&journal.file, &record, journal.bytes).await?;
        self.volume.sync(&journal.file).await?;
        journal.bytes += record.len() as u64;
        journal.recorded = hashes.mark();
        self.failed = false;
        Ok(self.submitted)
    }

    /// Footer, sync, rename into place, directory sync. The blob is then durable but belongs to
    /// nobody: [`commit`](crate::Store::commit) acknowledges it.
    pub async fn seal(self) -> Result<SealedBlob> {
        let volume = Arc::clone(&self.volume);
        self.finish().await.map_err(|error| volume.judge_write(error))
    }

    async fn finish(mut self) -> Result<SealedBlob> {
        self.check()?;
        self.volume.health.check_writable()?;
        let footer = self.write_tail().await?;
        self.drain().await?;
        let end = footer.length + footer.encoded_bytes;
        self.files.room.complete(end);
        if self.allocated.max(self.abandoned_to) > end {
            // The announced length was too large, or bytes were given up: nothing may follow the footer.
            self.volume.bridge.truncate(&self.file, end).await?;
        }
        let volume = Arc::clone(&self.volume);
        if sabotage::is(Sabotage::AcknowledgeBeforeSync) {
            drop(volume.spawn({
                let (volume, file) = (Arc::clone(&volume), Arc::clone(&self.file));
                async move { volume.sync(&file).await }
            }));
            volume.ensure_directory(self.id).await?;
        } else {
            let (synced, made) = tokio::join!(self.sync(), volume.ensure_directory(self.id));
            synced?;
            made?;
        }
        let path = volume.blob_path(self.id);
        volume.set_unacknowledged(self.id, true);
        // Should this fail or be cancelled now, a plain blob goes under both its names, and a
        // journaled one stays: resuming finds it wherever it is.
        self.files.paths.push(path.clone());
        volume.rename_claimed(&volume.partial_path(self.id), &path, Arc::clone(&self.files.claim)).await?;
        volume.sync_directory(path.parent().expect("a blob is in a directory")).await?;
        self.files.armed = true;
        Ok(SealedBlob {
            id: self.id,
            length: footer.length,
            blake3: footer.blake3,
            content_type: self.meta.content_type,
            sha256: None,
            files: self.files,
        })
    }

    /// Submits what is left together with the footer, in one write if they fit.
    async fn write_tail(&mut self) -> Result<Tail> {
        self.catch_up().await?;
        let batch = self.batch.take();
        if let Some(batch) = &batch {
            self.hashes_mut().update(batch.buffer.as_slice());
        }
        let length = self.hashes().length;
        let landed = batch.as_ref().and_then(|_| self.under_way(self.submitted));
        let (blake3, block_crcs) = self.hashes_mut().finish();
        let mut sections = Vec::new();
        sections.extend(self.meta.key.clone().map(Section::Key));
        sections.extend(self.meta.content_type.clone().map(Section::ContentType));
        let footer = Footer { length, blake3, block_crcs, sections }.encode();
        self.files.room.cover(length + footer.len() as u64)?;
        let offset = self.submitted;
        let mut rest = &footer[..];
        if let Some(Batch { mut buffer, .. }) = batch {
            let taken = buffer.fill(rest);
            rest = &rest[taken..];
            let pending = self.volume.bridge.write_telling(&self.file, buffer, offset, landed).await?;
            self.in_flight.push_back(pending);
        }
        let at = length + (footer.len() - rest.len()) as u64;
        self.volume.write_all(&self.file, rest, at).await?;
        Ok(Tail { length, blake3, encoded_bytes: footer.len() as u64 })
    }

    /// A small file is synced together with others, a large one by itself.
    async fn sync(&self) -> Result<()> {
        match self.unsynced <= SYNC_ROUND_FILE_BYTES_MAX {
            true => self.volume.sync(&self.file).await,
            false => self.volume.sync_alone(&self.file).await,
        }
    }
}
