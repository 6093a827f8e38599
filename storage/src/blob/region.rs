//! A part of a blob that is sent by its file instead of its bytes: what `sendfile` needs, and nothing that waits.
//!
//! The region's memory is mapped so that it can pass as [`Bytes`] through code that knows only those, and be recognised
//! by its address at the end of the way. It is not meant to be read: that may wait for the disk, and nothing there was
//! verified. Before a piece is sent, [`sendable`](FileRegion::sendable) tells how much of it is in memory and matched its
//! checksums; what is not, [`fetch`](FileRegion::fetch) brings in through the engine.
//!
//! One map of the whole file serves all its readers. Pages nobody touches cost address space, but no memory.
//! Dropping a fetch gives up its answer; the buffer returns to the pool when the kernel is done with it.

use std::fs::File;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use memmap2::Mmap;

use crate::blob::large_pages;
use crate::blob::read_path::{Arrived, OpenBlob};
use crate::budget::Payer;
use crate::error::Result;
use crate::limits::STREAM_CHUNK_BYTES;

/// A part of a sealed blob.
#[derive(Clone)]
pub struct FileRegion {
    blob: Arc<OpenBlob>,
    map: Arc<Mmap>,
    range: Range<u64>,
    payer: Payer,
}

/// When what is read can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// As soon as it is there. What is asked for the first time is read past the page cache.
    Now,
    /// When a client comes round to it: it waits in the page cache, and in no buffer.
    Later,
}

/// A read through the engine; from its first poll on, or already.
pub struct Fetch {
    range: Range<u64>,
    in_page_cache: bool,
    arrival: Pin<Box<dyn Future<Output = Result<Arrival>> + Send>>,
}

/// What a read brought. Nobody sees it before it is verified.
pub struct Arrival {
    blob: Arc<OpenBlob>,
    arrived: Arrived,
}

/// Bytes that were read and verified.
pub struct Fetched {
    pub bytes: Bytes,
    /// They came through the page cache, and may be sent from there.
    pub in_page_cache: bool,
}

/// Memory of a region, for `Bytes::from_owner`.
struct Untouched {
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Untouched {
    fn as_ref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}

impl FileRegion {
    /// The region of `range`, which lies in the blob; `None` where there is no address space for it.
    pub(crate) fn new(blob: &Arc<OpenBlob>, range: Range<u64>, payer: Payer) -> Option<FileRegion> {
        Some(FileRegion { blob: Arc::clone(blob), map: blob.whole_map()?, range, payer })
    }

    /// Where in the file it lies.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    pub fn file(&self) -> &File {
        &self.blob.file().file
    }

    /// Stands for the region. Not to be read, see above.
    pub fn bytes(&self) -> Bytes {
        let range = self.range.start as usize..self.range.end as usize;
        Bytes::from_owner(Untouched { map: Arc::clone(&self.map), range })
    }

    /// How many bytes at `at`, `most` at most, can be sent now: in memory, and verified. An error if the blob is damaged.
    pub fn sendable(&self, at: u64, most: usize) -> Result<usize> {
        let count = self.blob.sendable(&self.map, at..(at + most as u64).min(self.range.end))?;
        if let Some(hot) = self.blob.stretches.sent(at, count as u64) {
            large_pages::renew(&self.blob, hot);
        }
        Ok(count)
    }

    /// Reads the bytes from `at` to the end of their chunk through the engine and verifies them. With them in hand or,
    /// better, where they are in the page cache now, the region goes on.
    pub fn fetch(&self, at: u64, wanted: Wanted) -> Fetch {
        let range = self.chunk(at);
        let begun = self.try_fetch(at, wanted);
        begun.unwrap_or_else(|| {
            let (blob, read, payer) = (Arc::clone(&self.blob), range.clone(), self.payer);
            let arrival = Box::pin(async move {
                let arrived = blob.cold_unverified(&read, wanted, payer).await?;
                Ok(Arrival { blob, arrived })
            });
            Fetch { range, in_page_cache: false, arrival }
        })
    }

    /// As `fetch`, if it can begin at once and memory is not short.
    pub fn try_fetch(&self, at: u64, wanted: Wanted) -> Option<Fetch> {
        let range = self.chunk(at);
        let (blob, read) = (Arc::clone(&self.blob), self.blob.try_cold(&range, wanted, self.payer)?);
        let in_page_cache = !read.is_direct();
        let arrival = Box::pin(async move {
            let arrived = blob.finish_unverified(read).await?;
            Ok(Arrival { blob, arrived })
        });
        Some(Fetch { range, in_page_cache, arrival })
    }

    fn chunk(&self, at: u64) -> Range<u64> {
        let chunk = STREAM_CHUNK_BYTES as u64;
        at..((at / chunk + 1) * chunk).min(self.range.end)
    }
}

impl Arrival {
    /// Where in the file it lies.
    pub fn range(&self) -> Range<u64> {
        self.arrived.range()
    }

    /// Compares it with its checksums, which keeps a processor busy for a while: the caller says when.
    pub fn verify(self) -> Result<Fetched> {
        self.blob.accept(self.arrived)
    }
}

impl Fetch {
    /// What it reads.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// It comes through the page cache for certain.
    pub fn in_page_cache(&self) -> bool {
        self.in_page_cache
    }

    /// Waits for the bytes and leaves it to the caller when they are verified.
    pub fn poll_arrival(&mut self, cx: &mut Context<'_>) -> Poll<Result<Arrival>> {
        self.arrival.as_mut().poll(cx)
    }
}

impl Future for Fetch {
    type Output = Result<Fetched>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Fetched>> {
        self.poll_arrival(cx).map(|arrival| arrival?.verify())
    }
}
