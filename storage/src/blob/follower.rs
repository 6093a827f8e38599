//! Reading a blob while it is written.
//!
//! A follower reads what has landed in the file, whole blocks at a time, verified against the checksums that the writer
//! computed. It waits at the end for more. What it gives ends in one of two ways: everything that was asked for was given,
//! or an error. An answer that reaches to the blob's end is not ended before the blob is stored, and of one whose length
//! was announced the last byte is held back until then: bytes of a blob that is never stored are never taken for a whole.
//!
//! A part that lies before the end is complete when its bytes are there. It belongs to that writer and that version of its
//! bytes, for which [`Follower::tag`] is the name.
//!
//! Followers share one open file, which stays readable when the blob is stored, replaced, deleted or given up. Dropping a
//! follower or its stream gives up its reads; their buffers return to the pool when the kernel is done with them.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;

use super::progress::{Fate, Progress, Seen};
use crate::bridge::NamedFile;
use crate::budget::Payer;
use crate::buffer::Buffer;
use crate::error::{Error, Result};
use crate::id::BlobId;
use crate::limits::{BLOCK_BYTES, STREAM_CHUNK_BYTES};
use crate::volume::Volume;

/// Follows one version of a blob that is being written.
pub struct Follower {
    progress: Arc<Progress>,
    file: Arc<FollowedFile>,
    version: u32,
    payer: Payer,
}

/// The file of a blob that is being written, open for its followers.
pub(super) struct FollowedFile {
    volume: Arc<Volume>,
    /// Taken only by `Drop`.
    file: Option<Arc<NamedFile>>,
}

/// Verified whole blocks.
pub(super) struct Chunk {
    blocks: Range<u64>,
    version: u32,
    buffer: Buffer,
}

/// A part of a chunk, for `Bytes::from_owner`.
struct Part {
    chunk: Arc<Chunk>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.chunk.buffer.as_slice()[self.range.clone()]
    }
}

impl FollowedFile {
    pub(super) fn of(file: &NamedFile, volume: &Arc<Volume>) -> std::io::Result<FollowedFile> {
        let copy = file.file.try_clone()?;
        // Read-ahead would bring pages that are still to be written, past the page cache perhaps.
        let _ = rustix::fs::fadvise(&copy, 0, None, rustix::fs::Advice::Random);
        let file = NamedFile { file: copy, path: file.path.clone(), claim: None };
        Ok(FollowedFile { volume: Arc::clone(volume), file: Some(Arc::new(file)) })
    }

    fn file(&self) -> &Arc<NamedFile> {
        self.file.as_ref().expect("taken only by drop")
    }
}

impl Drop for FollowedFile {
    /// It may be the last one of a file that was removed: freeing its blocks is the engine's work.
    fn drop(&mut self) {
        if let Some(file) = self.file.take().and_then(Arc::into_inner) {
            self.volume.bridge.close_file(file);
        }
    }
}

impl Follower {
    /// `None` when there is nothing to follow any more.
    pub(crate) fn of(progress: &Arc<Progress>) -> Result<Option<Follower>> {
        let Some(file) = progress.followed_file() else { return Ok(None) };
        let file = file.map_err(|error| Error::io("open", &progress.volume.partial_path(progress.id), error))?;
        let Seen { version, fate, .. } = progress.seen();
        if fate != Fate::Open {
            return Ok(None);
        }
        progress.join();
        Ok(Some(Follower { progress: Arc::clone(progress), file, version, payer: Payer::Node }))
    }

    /// The same, with its buffers on somebody's account.
    pub fn on_account_of(mut self, payer: Payer) -> Follower {
        self.payer = payer;
        self
    }

    pub fn id(&self) -> BlobId {
        self.progress.id
    }

    /// The length, if the writer was told one. The blob is stored with this length or not at all.
    pub fn announced(&self) -> Option<u64> {
        self.progress.meta.length_hint
    }

    pub fn content_type(&self) -> Option<&str> {
        self.progress.meta.content_type.as_deref()
    }

    /// How many bytes can be read now.
    pub fn landed(&self) -> u64 {
        self.progress.seen().landed
    }

    /// Names these bytes: no other writer has this name, nor this one after it went back.
    pub fn tag(&self) -> String {
        format!("{}-{}", self.progress.id, self.version)
    }

    /// The bytes from `start` to `end`, or to the blob's end, as they land.
    pub fn stream(self, start: u64, end: Option<u64>) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
        // A part that ends where the blob does is one that reaches to its end.
        let end = end.filter(|end| self.announced() != Some(*end));
        let cursor = Cursor { follower: self, at: start, end };
        futures_util::stream::try_unfold(cursor, |mut cursor| async move {
            Ok(cursor.next().await?.map(|bytes| (bytes, cursor)))
        })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.progress.leave();
    }
}

struct Cursor {
    follower: Follower,
    at: u64,
    /// `None`: to the blob's end.
    end: Option<u64>,
}

/// What a cursor does next.
enum Step {
    Read(Range<u64>),
    Wait,
    End,
}

impl Cursor {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let progress = Arc::clone(&self.follower.progress);
        loop {
            let changed = progress.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.step(progress.seen())? {
                Step::End => return Ok(None),
                Step::Wait => changed.await,
                Step::Read(range) => {
                    let bytes = self.read(range).await?;
                    self.at += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
            }
        }
    }

    fn step(&self, seen: Seen) -> Result<Step> {
        let announced = self.follower.announced();
        let stored = seen.fate == Fate::Stored;
        if seen.fate == Fate::Gone || seen.version != self.follower.version {
            return Err(self.gone());
        }
        let as_promised =
            announced.is_none_or(|length| length == seen.landed) && self.end.is_none_or(|end| end <= seen.landed);
        if stored && !as_promised {
            // The head of the answer has said otherwise.
            return Err(self.gone());
        }
        let readable = match self.end {
            Some(end) => seen.landed.min(end),
            None if stored => seen.landed,
            // The last byte is worth as much as all of them.
            None => seen.landed.min(announced.map_or(u64::MAX, |length| length.saturating_sub(1))),
        };
        if self.at < readable {
            // Chunks end at multiples of their size, so that no block is read twice, and many want the same.
            let chunk = STREAM_CHUNK_BYTES as u64;
            return Ok(Step::Read(self.at..((self.at / chunk + 1) * chunk).min(readable)));
        }
        let complete = match self.end {
            Some(end) => self.at >= end,
            None => stored,
        };
        Ok(if complete { Step::End } else { Step::Wait })
    }

    fn gone(&self) -> Error {
        Error::NotStored { key: self.follower.progress.key().to_owned(), sent: self.at }
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let Follower { progress, version, .. } = &self.follower;
        let (blocks, crcs) = progress.blocks(&range, *version).ok_or_else(|| self.gone())?;
        let is_newest = blocks.end == progress.seen().landed;
        let shared = if is_newest { self.newest(&range, &blocks, &crcs).await? } else { None };
        let chunk = match shared {
            Some(chunk) => chunk,
            None => {
                let buffer = progress.volume.read_pool.take_for(self.follower.payer, read_len(&blocks)).await;
                Arc::new(self.read_blocks(buffer, blocks, &crcs).await?)
            }
        };
        let from = (range.start - chunk.blocks.start) as usize;
        let range = from..from + (range.end - range.start) as usize;
        Ok(Bytes::from_owner(Part { chunk, range }))
    }

    /// What has landed last is read once for all who follow; `None` where that would have to wait for memory, for those
    /// behind would wait for this one's.
    async fn newest(&self, range: &Range<u64>, blocks: &Range<u64>, crcs: &[u32]) -> Result<Option<Arc<Chunk>>> {
        let Follower { progress, version, payer, .. } = &self.follower;
        let mut newest = progress.newest.lock().await;
        let shared = newest.upgrade().filter(|chunk| {
            chunk.version == *version && chunk.blocks.start == blocks.start && chunk.blocks.end >= range.end
        });
        if shared.is_some() {
            return Ok(shared);
        }
        let Some(buffer) = progress.volume.read_pool.try_take_for(*payer, read_len(blocks)) else { return Ok(None) };
        let chunk = Arc::new(self.read_blocks(buffer, blocks.clone(), crcs).await?);
        *newest = Arc::downgrade(&chunk);
        Ok(Some(chunk))
    }

    async fn read_blocks(&self, buffer: Buffer, blocks: Range<u64>, crcs: &[u32]) -> Result<Chunk> {
        let Follower { progress, file, version, .. } = &self.follower;
        let len = read_len(&blocks);
        let buffer = progress.volume.bridge.read(file.file(), buffer, blocks.start, len).await?;
        let seen = progress.seen();
        if seen.version != *version || seen.fate == Fate::Gone {
            // Whoever took the file up again may have written other bytes meanwhile.
            return Err(self.gone());
        }
        let found = buffer.as_slice().chunks(BLOCK_BYTES).map(crc32c::crc32c);
        if buffer.len() < len || !found.eq(crcs.iter().copied()) {
            let Range { start, end } = blocks;
            let detail = format!("bytes {start}..{end} are not those that were written");
            if seen.fate == Fate::Stored {
                progress.volume.quarantine.report(progress.id, &detail);
            }
            return Err(Error::corrupt(&file.file().path, detail));
        }
        Ok(Chunk { blocks, version: *version, buffer })
    }
}

fn read_len(blocks: &Range<u64>) -> usize {
    (blocks.end - blocks.start) as usize
}
