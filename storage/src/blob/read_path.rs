//! How a range of a blob is read: mapped when it is in the page cache, through the engine when not.
//!
//! | state                                         | path                                              |
//! |-----------------------------------------------|---------------------------------------------------|
//! | resident (mincore), room in the map budget    | `Bytes` over the map, nothing copied              |
//! | small, its blocks verified                    | `preadv2(RWF_NOWAIT)`: one call instead of a map  |
//! | anything else                                 | the engine, whole blocks, checksums verified      |
//!
//! A block is verified the first time this process reads it, on whatever path, and again whenever
//! it comes from the disk. The kernel's read-ahead brings pages that nobody asked for, so the first
//! page that is missing casts doubt on the whole blob: what is found in memory later is verified too. So a caller's thread takes no page fault that waits for a disk, except
//! when the kernel evicts a page in the moment between mincore and its use.
//!
//! A map and its share of the budget live as long as the last `Bytes` made from it.

use std::io::IoSliceMut;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};
use rustix::io::ReadWriteFlags;
use tokio::sync::OwnedSemaphorePermit;

use crate::blob::format::{Footer, block_range};
use crate::bridge::{NamedFile, Pending};
use crate::buffer::Buffer;
use crate::error::{Error, Result};
use crate::id::BlobId;
use crate::limits::{BLOCK_BYTES, SMALL_READ_BYTES};
use crate::volume::{PAGE_BYTES, Volume};

/// A blob file open for reading.
pub(crate) struct OpenBlob {
    pub(crate) volume: Arc<Volume>,
    id: BlobId,
    /// Taken only by `Drop`.
    file: Option<Arc<NamedFile>>,
    pub(crate) footer: Footer,
    /// One bit for each block, set once it matched its checksum.
    verified: Box<[AtomicU64]>,
    /// A block did not match: nothing more is read of it.
    refused: AtomicBool,
    /// Made for the first region, `None` inside where that failed.
    whole: OnceLock<Option<Arc<Mmap>>>,
}

/// A mapped part of a blob.
pub(crate) struct Window {
    map: Mmap,
    /// The range of the object it shows; starts with a block.
    range: Range<u64>,
    _permits: OwnedSemaphorePermit,
}

/// Bytes of a window, for `Bytes::from_owner`.
struct Mapped {
    window: Arc<Window>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.window.map[self.range.clone()]
    }
}

/// A read through the engine under way.
pub(crate) struct ColdRead {
    pending: Pending<Buffer>,
    /// What is read: whole blocks.
    blocks: Range<u64>,
    /// What was asked for.
    range: Range<u64>,
}

impl OpenBlob {
    pub(crate) fn new(volume: Arc<Volume>, id: BlobId, file: Arc<NamedFile>, footer: Footer) -> OpenBlob {
        let words = footer.block_crcs.len().div_ceil(64);
        let verified = (0..words).map(|_| AtomicU64::new(0)).collect();
        OpenBlob {
            volume,
            id,
            file: Some(file),
            footer,
            verified,
            refused: AtomicBool::new(false),
            whole: OnceLock::new(),
        }
    }

    pub(crate) fn file(&self) -> &Arc<NamedFile> {
        self.file.as_ref().expect("taken only by drop")
    }

    pub(crate) fn is_refused(&self) -> bool {
        self.refused.load(Relaxed)
    }

    fn check(&self) -> Result<()> {
        if !self.is_refused() {
            return Ok(());
        }
        // Released in the meantime it can be opened again; what is open does not know how far it is whole.
        self.volume.quarantine.check(&self.volume, self.id)?;
        Err(Error::corrupt(&self.file().path, "a block did not match its checksum; open it again"))
    }

    fn corrupt(&self, detail: String) -> Error {
        self.refused.store(true, Relaxed);
        self.volume.quarantine.report(self.id, &detail);
        Error::corrupt(&self.file().path, detail)
    }

    /// The range from the page cache, or `None` when it is not (wholly) there. `window` is used if
    /// it fits and replaced if not; a new one reaches `ahead` bytes further where the blob does.
    pub(crate) fn hot(
        &self,
        range: &Range<u64>,
        window: &mut Option<Arc<Window>>,
        ahead: u64,
    ) -> Result<Option<Bytes>> {
        self.check()?;
        let blocks = self.whole_blocks(range);
        if range.end - range.start <= SMALL_READ_BYTES as u64 && self.is_verified(&blocks) {
            match self.copy_resident(range) {
                Some(bytes) => return Ok(Some(bytes)),
                None => self.doubt(),
            }
        }
        let needed = if self.is_verified(&blocks) { range.clone() } else { blocks.clone() };
        let fits = |w: &Arc<Window>| w.range.start <= needed.start && needed.end <= w.range.end;
        let shared = match window.take().filter(fits) {
            Some(shared) => shared,
            None => match self.map(blocks.start..blocks.end.max((blocks.start + ahead).min(self.footer.length)))? {
                Some(new) => new,
                None => return Ok(None),
            },
        };
        let resident = shared.is_resident(&needed).map_err(|e| Error::io("mincore", &self.file().path, e))?;
        let bytes = if resident {
            self.verify(&blocks, |block| &shared.map[shared.within(block)], false)?;
            let range = shared.within(range);
            Some(Bytes::from_owner(Mapped { window: Arc::clone(&shared), range }))
        } else {
            self.doubt();
            None
        };
        *window = Some(shared);
        if bytes.is_some() {
            self.volume.reads_hot.fetch_add(1, Relaxed);
        }
        Ok(bytes)
    }

    /// The object's bytes mapped as a whole, for a [`FileRegion`](super::FileRegion), which does not touch them.
    pub(crate) fn whole_map(&self) -> Option<Arc<Mmap>> {
        let map = || {
            // SAFETY: as in `map`.
            let map = unsafe { MmapOptions::new().len(self.footer.length as usize).map(&self.file().file) };
            let path = &self.file().path;
            map.map(Arc::new)
                .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "it is sent without zero copy"))
                .ok()
        };
        self.whole.get_or_init(map).clone()
    }

    /// How many bytes from the start of `range` are verified and, by `map`, in memory.
    pub(crate) fn sendable(&self, map: &Mmap, range: Range<u64>) -> Result<usize> {
        self.check()?;
        let blocks = block_indices(&self.whole_blocks(&range));
        let trusted = blocks.take_while(|block| self.is_marked(*block)).last();
        let Some(trusted) = trusted else { return Ok(0) };
        let end = range.end.min(block_range(trusted, self.footer.length).end);
        let within = range.start as usize..end as usize;
        let resident = resident_prefix(map, &within).map_err(|e| Error::io("mincore", &self.file().path, e))?;
        if resident < within.len() {
            self.doubt();
        } else {
            self.volume.reads_hot.fetch_add(1, Relaxed);
        }
        // What was found before the doubt is as good as it was a moment ago.
        Ok(resident)
    }

    /// Reads through the engine.
    pub(crate) async fn cold(&self, range: &Range<u64>) -> Result<Bytes> {
        self.check()?;
        let blocks = self.whole_blocks(range);
        let len = (blocks.end - blocks.start) as usize;
        let buffer = self.volume.read_pool.take(len).await;
        let buffer = self.volume.bridge.read(self.file(), buffer, blocks.start, len).await?;
        self.accept(buffer, &blocks, range)
    }

    /// Starts a read through the engine if a buffer and a slot are free now.
    pub(crate) fn try_cold(&self, range: &Range<u64>) -> Option<ColdRead> {
        let blocks = self.whole_blocks(range);
        let len = (blocks.end - blocks.start) as usize;
        let buffer = self.volume.read_pool.try_take(len)?;
        let pending = self.volume.bridge.try_read(self.file(), buffer, blocks.start, len)?;
        Some(ColdRead { pending, blocks, range: range.clone() })
    }

    pub(crate) async fn finish_cold(&self, read: ColdRead) -> Result<Bytes> {
        let buffer = read.pending.await?;
        self.accept(buffer, &read.blocks, &read.range)
    }

    /// Checks whole blocks that came from the engine, and cuts out what was asked for.
    fn accept(&self, buffer: Buffer, blocks: &Range<u64>, range: &Range<u64>) -> Result<Bytes> {
        if (buffer.len() as u64) < blocks.end - blocks.start {
            let detail = format!("the file ends at {}, before its footer's length", blocks.start + buffer.len() as u64);
            return Err(self.corrupt(detail));
        }
        let data = buffer.as_slice();
        let within = |r: &Range<u64>| (r.start - blocks.start) as usize..(r.end - blocks.start) as usize;
        self.verify(blocks, |block| &data[within(block)], true)?;
        self.volume.reads_cold.fetch_add(1, Relaxed);
        Ok(buffer.into_bytes(within(range)))
    }

    /// Compares the blocks' checksums, all of them when `again`, else those never checked before.
    fn verify<'a>(&self, blocks: &Range<u64>, bytes: impl Fn(&Range<u64>) -> &'a [u8], again: bool) -> Result<()> {
        for block in block_indices(blocks) {
            let (word, bit) = (&self.verified[(block / 64) as usize], 1 << (block % 64));
            if !again && word.load(Relaxed) & bit != 0 {
                continue;
            }
            let range = block_range(block, self.footer.length);
            self.footer.check_block(block, bytes(&range)).map_err(|detail| self.corrupt(detail))?;
            word.fetch_or(bit, Relaxed);
        }
        Ok(())
    }

    fn is_verified(&self, blocks: &Range<u64>) -> bool {
        block_indices(blocks).all(|block| self.is_marked(block))
    }

    fn is_marked(&self, block: u64) -> bool {
        self.verified[(block / 64) as usize].load(Relaxed) & (1 << (block % 64)) != 0
    }

    /// Some page is not there (any more). Reading it will bring others along, unseen, by the kernel's read-ahead: whatever
    /// of this blob is found in memory from now on may be fresh from the disk, and is verified again.
    fn doubt(&self) {
        for word in &self.verified {
            // Looked at first, so that doubting twice costs no cache line.
            if word.load(Relaxed) != 0 {
                word.store(0, Relaxed);
            }
        }
    }

    fn whole_blocks(&self, range: &Range<u64>) -> Range<u64> {
        let block = BLOCK_BYTES as u64;
        range.start / block * block..range.end.next_multiple_of(block).min(self.footer.length)
    }

    /// Copies a small range without waiting; `None` when not all of it is in the page cache.
    fn copy_resident(&self, range: &Range<u64>) -> Option<Bytes> {
        let len = (range.end - range.start) as usize;
        let mut copy = vec![0; len];
        let read = rustix::io::preadv2(
            &self.file().file,
            &mut [IoSliceMut::new(&mut copy)],
            range.start,
            ReadWriteFlags::NOWAIT,
        );
        if read != Ok(len) {
            return None;
        }
        self.volume.reads_hot.fetch_add(1, Relaxed);
        Some(Bytes::from(copy))
    }

    /// Maps a range, or returns `None` when the budget is spent.
    fn map(&self, range: Range<u64>) -> Result<Option<Arc<Window>>> {
        let len = (range.end - range.start) as usize;
        let permits = len.div_ceil(PAGE_BYTES) as u32;
        let Ok(permits) = Arc::clone(&self.volume.map_budget).try_acquire_many_owned(permits) else {
            return Ok(None);
        };
        // SAFETY: blob files are never overwritten or truncated, only unlinked, so the mapped bytes
        // do not change under the shared reference (LOCK keeps other nodes away).
        let map = unsafe { MmapOptions::new().offset(range.start).len(len).map(&self.file().file) };
        let map = map.map_err(|e| Error::io("map", &self.file().path, e))?;
        Ok(Some(Arc::new(Window { map, range, _permits: permits })))
    }
}

impl Drop for OpenBlob {
    /// The last close of an unlinked file frees its blocks: work for the engine, not for the thread
    /// that happened to send the last byte.
    fn drop(&mut self) {
        if let Some(file) = self.file.take().and_then(Arc::into_inner) {
            self.volume.bridge.close_file(file);
        }
    }
}

fn block_indices(blocks: &Range<u64>) -> Range<u64> {
    blocks.start / BLOCK_BYTES as u64..blocks.end.div_ceil(BLOCK_BYTES as u64)
}

impl Window {
    /// Where in the map a range of the object is.
    fn within(&self, range: &Range<u64>) -> Range<usize> {
        (range.start - self.range.start) as usize..(range.end - self.range.start) as usize
    }

    fn is_resident(&self, range: &Range<u64>) -> std::io::Result<bool> {
        let within = self.within(range);
        Ok(resident_prefix(&self.map, &within)? == within.len())
    }
}

/// How many bytes from the start of `within` are in memory, without a page between them that is not.
fn resident_prefix(map: &Mmap, within: &Range<usize>) -> std::io::Result<usize> {
    const PAGES: usize = 256;
    let first = within.start / PAGE_BYTES * PAGE_BYTES;
    let mut at = first;
    while at < within.end {
        let len = (within.end - at).min(PAGES * PAGE_BYTES);
        let mut pages = [0u8; PAGES];
        assert!(at + len <= map.len());
        // SAFETY: `at..at + len` lies in the map (rounded up to its last page), and `pages` has one byte for each of
        // its pages.
        let result = unsafe { libc::mincore(map.as_ptr().add(at).cast_mut().cast(), len, pages.as_mut_ptr()) };
        if result != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let count = len.div_ceil(PAGE_BYTES);
        if let Some(missing) = pages[..count].iter().position(|page| page & 1 == 0) {
            return Ok((at + missing * PAGE_BYTES).saturating_sub(within.start));
        }
        at += len;
    }
    Ok(within.len())
}
