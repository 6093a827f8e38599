//! How a range of a blob is read: mapped when it is in the page cache, through the engine when not.
//!
//! | state                                         | path                                              |
//! |-----------------------------------------------|---------------------------------------------------|
//! | in memory (`resident`), room in the map budget | `Bytes` over the map, nothing copied             |
//! | small, its blocks verified                    | `preadv2(RWF_NOWAIT)`: one call instead of a map  |
//! | asked for the first time, nothing of it there | the engine, past the page cache                   |
//! | anything else                                 | the engine, through the page cache                |
//!
//! The engine reads whole blocks, and their checksums are verified. What is wanted for the first time is most often not
//! wanted again soon: it leaves from the buffer it was read into and displaces nothing. `ghosts.rs` remembers it, and at
//! the second time it comes through the page cache. A small part of a block goes there at once, for others will want the
//! rest, and so do small blobs.
//!
//! A block is verified the first time this process reads it, on whatever path, and again whenever it comes from the disk.
//! The kernel's read-ahead brings pages that nobody asked for. So who reads through the page cache first takes away the
//! marks of what may come along and is not in memory, and the first page that is found missing casts doubt on the whole
//! blob: what is found in memory later is verified too. A caller's thread takes no page fault that waits for a disk,
//! except when the kernel evicts a page in the moment between the question and its use.

use std::io::IoSliceMut;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};
use rustix::io::ReadWriteFlags;
use tokio::sync::OnceCell;

use crate::blob::direct::DirectFile;
use crate::blob::format::{Footer, block_range};
use crate::blob::large_pages::Stretches;
use crate::blob::marks::{Epoch, Marks};
use crate::blob::region::{Fetched, Wanted};
use crate::blob::resident::{is_cached, present};
use crate::blob::window::Window;
use crate::bridge::{NamedFile, Pending};
use crate::budget::Payer;
use crate::buffer::Buffer;
use crate::error::{Error, Result};
use crate::id::BlobId;
use crate::limits::{BLOCK_BYTES, READ_AHEAD_BYTES_MAX, SCARCE_CHUNK_BYTES, SMALL_BLOB_BYTES, SMALL_READ_BYTES};
use crate::volume::{PAGE_BYTES, Volume};

/// A blob file open for reading.
pub(crate) struct OpenBlob {
    pub(crate) volume: Arc<Volume>,
    id: BlobId,
    /// Taken only by `Drop`.
    file: Option<Arc<NamedFile>>,
    pub(crate) footer: Footer,
    /// Blocks whose pages matched their checksums.
    trusted: Marks,
    pub(super) stretches: Stretches,
    /// A block did not match: nothing more is read of it.
    refused: AtomicBool,
    /// Made for the first region, `None` inside where that failed.
    whole: OnceLock<Option<Arc<Mmap>>>,
    /// Past the page cache; opened for the first read that wants it, `None` inside where that failed.
    direct: OnceCell<Option<DirectFile>>,
}

/// A read through the engine under way.
pub(crate) struct ColdRead {
    pending: Pending<Buffer>,
    /// What is read: whole blocks.
    blocks: Range<u64>,
    /// What was asked for.
    range: Range<u64>,
    way: Way,
    epoch: Epoch,
    payer: Payer,
}

/// How the engine reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Cached,
    Direct,
}

/// Whole blocks that a read through the engine brought, before they were verified.
pub(crate) struct Arrived {
    buffer: Buffer,
    blocks: Range<u64>,
    /// What was asked for.
    range: Range<u64>,
    way: Way,
    epoch: Epoch,
}

impl Arrived {
    pub(crate) fn range(&self) -> Range<u64> {
        self.range.clone()
    }
}

impl ColdRead {
    pub(crate) fn is_direct(&self) -> bool {
        self.way == Way::Direct
    }
}

impl OpenBlob {
    pub(crate) fn new(volume: Arc<Volume>, id: BlobId, file: Arc<NamedFile>, footer: Footer) -> OpenBlob {
        let trusted = Marks::new(footer.block_crcs.len());
        let stretches = Stretches::of(&volume, footer.length);
        OpenBlob {
            volume,
            id,
            file: Some(file),
            footer,
            trusted,
            stretches,
            refused: AtomicBool::new(false),
            whole: OnceLock::new(),
            direct: OnceCell::new(),
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
        payer: Payer,
    ) -> Result<Option<Bytes>> {
        self.check()?;
        let blocks = self.whole_blocks(range);
        let len = (range.end - range.start) as usize;
        let small = len <= SMALL_READ_BYTES;
        let mut copy = small.then(|| self.volume.read_pool.try_take_for(payer, len)).flatten();
        if self.is_trusted(range)
            && let Some(copy) = copy.take()
        {
            match self.copy_resident(range, copy)? {
                Some(bytes) => return Ok(Some(bytes)),
                None => self.doubt(),
            }
        }
        let needed = if self.is_trusted(range) { range.clone() } else { blocks.clone() };
        let shared = match window.take().filter(|window| window.covers(&needed)) {
            Some(shared) => shared,
            None => match self.map(blocks.start..blocks.end.max((blocks.start + ahead).min(self.footer.length)))? {
                Some(new) => Arc::new(new),
                None => return Ok(None),
            },
        };
        let epoch = self.trusted.epoch();
        let resident = shared.is_resident(&needed).map_err(|e| Error::io("mincore", &self.file().path, e))?;
        let bytes = if resident {
            for block in block_indices(&blocks).filter(|block| !self.trusted.has(*block)) {
                self.verify(block, shared.slice(&block_range(block, self.footer.length)))?;
                self.trusted.set_since(block, epoch);
            }
            Some(match copy {
                Some(mut copy) => {
                    copy.fill(shared.slice(range));
                    copy.into_bytes(0..len)
                }
                None => shared.bytes(range),
            })
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

    fn map(&self, range: Range<u64>) -> Result<Option<Window>> {
        let map = Window::map(&self.file().file, range, &self.volume.map_budget);
        map.map_err(|e| Error::io("map", &self.file().path, e))
    }

    /// The object's bytes mapped as a whole, for a [`FileRegion`](super::FileRegion), which does not touch them.
    pub(crate) fn whole_map(&self) -> Option<Arc<Mmap>> {
        let map = || {
            // SAFETY: as in `Window::map`.
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
        let Some(range) = self.stretches.staying(range) else { return Ok(0) };
        let trusted = block_indices(&range).take_while(|block| self.trusted.has(*block)).last();
        let Some(trusted) = trusted else { return Ok(0) };
        let range = range.start..range.end.min(block_range(trusted, self.footer.length).end);
        let within = range.start as usize..range.end as usize;
        if self.is_cached(&range)? {
            self.volume.reads_hot.fetch_add(1, Relaxed);
            // Pages that are being read count as cached, but who reads them has taken the marks away before.
            return Ok(if self.is_trusted(&range) { within.len() } else { 0 });
        }
        let found = present(map, &within).map_err(|e| Error::io("mincore", &self.file().path, e))?;
        let still = self.is_trusted(&(range.start..range.start + found as u64));
        self.doubt();
        Ok(if still { found } else { 0 })
    }

    /// Reads through the engine.
    pub(crate) async fn cold(&self, range: &Range<u64>, wanted: Wanted, payer: Payer) -> Result<Fetched> {
        self.accept(self.cold_unverified(range, wanted, payer).await?)
    }

    /// The same up to the checksums: they take a while, and the caller says when.
    pub(crate) async fn cold_unverified(&self, range: &Range<u64>, wanted: Wanted, payer: Payer) -> Result<Arrived> {
        self.check()?;
        let epoch = self.trusted.epoch();
        let blocks = self.whole_blocks(range);
        let len = read_len(&blocks);
        let mut buffer = self.volume.read_pool.take_for(payer, len).await;
        if self.may_go_past(&blocks, range, wanted)
            && let Some(direct) = self.direct().await
            && !self.lets_in(&blocks)
        {
            match self.volume.bridge.read(&direct.file, buffer, blocks.start, len).await {
                Ok(buffer) => return Ok(Arrived { buffer, blocks, range: range.clone(), way: Way::Direct, epoch }),
                Err(error) if self.volume.direct.read_refused(&self.volume, &error) => {}
                Err(error) => return Err(error),
            }
            buffer = self.volume.read_pool.take_for(payer, len).await;
        }
        self.doubt_what_comes(&blocks);
        let buffer = self.volume.bridge.read(self.file(), buffer, blocks.start, len).await?;
        Ok(Arrived { buffer, blocks, range: range.clone(), way: Way::Cached, epoch })
    }

    /// Reads whole blocks through the page cache and verifies them there.
    pub(super) async fn read_in(&self, range: &Range<u64>) -> Result<()> {
        self.cold(range, Wanted::Later, Payer::Node).await.map(drop)
    }

    /// What is read of this range from now on is to be verified anew.
    pub(super) fn forget(&self, range: &Range<u64>) {
        self.trusted.forget(block_indices(range));
    }

    /// Starts a read through the engine if that can be done now, and leaves enough for those who cannot go on without.
    pub(crate) fn try_cold(&self, range: &Range<u64>, wanted: Wanted, payer: Payer) -> Option<ColdRead> {
        let blocks = self.whole_blocks(range);
        let len = read_len(&blocks);
        let may_go_past = self.may_go_past(&blocks, range, wanted);
        if may_go_past && !self.direct.initialized() {
            return None;
        }
        let buffer = self.volume.read_pool.try_take_spare(payer, len)?;
        let direct = self.direct.get().and_then(Option::as_ref).filter(|_| may_go_past && !self.lets_in(&blocks));
        let (file, way) = direct.map_or((self.file(), Way::Cached), |direct| (&direct.file, Way::Direct));
        if way == Way::Cached {
            self.doubt_what_comes(&blocks);
        }
        let epoch = self.trusted.epoch();
        let pending = self.volume.bridge.try_read(file, buffer, blocks.start, len)?;
        Some(ColdRead { pending, blocks, range: range.clone(), way, epoch, payer })
    }

    pub(crate) async fn finish_cold(&self, read: ColdRead) -> Result<Fetched> {
        self.accept(self.finish_unverified(read).await?)
    }

    pub(crate) async fn finish_unverified(&self, read: ColdRead) -> Result<Arrived> {
        let ColdRead { pending, blocks, range, way, epoch, payer } = read;
        match pending.await {
            Ok(buffer) => Ok(Arrived { buffer, blocks, range, way, epoch }),
            Err(error) if way == Way::Direct && self.volume.direct.read_refused(&self.volume, &error) => {
                self.cold_unverified(&range, Wanted::Later, payer).await
            }
            Err(error) => Err(error),
        }
    }

    /// Whether blocks that are asked for now could be read past the page cache.
    fn may_go_past(&self, blocks: &Range<u64>, range: &Range<u64>, wanted: Wanted) -> bool {
        wanted == Wanted::Now
            && self.footer.length > SMALL_BLOB_BYTES
            && !self.volume.direct.refuses_reads()
            && (self.stretches.is_swapped(blocks.start)
                || range.end - range.start >= (blocks.end - blocks.start) / 2 && self.is_absent(blocks))
    }

    /// Whether blocks that could be read past the page cache are to come through it. Asked once for each reading.
    fn lets_in(&self, blocks: &Range<u64>) -> bool {
        !self.stretches.is_swapped(blocks.start)
            && self.volume.ghosts.lets_in(self.id, blocks.start / BLOCK_BYTES as u64)
    }

    /// The beginning of these blocks is not in memory. Where there is more behind it, no harm is done.
    fn is_absent(&self, blocks: &Range<u64>) -> bool {
        let first = blocks.start as usize..(blocks.start as usize + 1);
        self.whole_map().is_some_and(|map| present(&map, &first).is_ok_and(|resident| resident == 0))
    }

    async fn direct(&self) -> Option<&DirectFile> {
        let open = || self.volume.direct.open(&self.volume, &self.file().path);
        self.direct.get_or_init(open).await.as_ref()
    }

    /// Checks whole blocks that came from the engine, and cuts out what was asked for.
    pub(crate) fn accept(&self, Arrived { buffer, blocks, range, way, epoch }: Arrived) -> Result<Fetched> {
        if (buffer.len() as u64) < blocks.end - blocks.start {
            let detail = format!("the file ends at {}, before its footer's length", blocks.start + buffer.len() as u64);
            return Err(self.corrupt(detail));
        }
        let data = buffer.as_slice();
        let within = |r: &Range<u64>| (r.start - blocks.start) as usize..(r.end - blocks.start) as usize;
        for block in block_indices(&blocks) {
            self.verify(block, &data[within(&block_range(block, self.footer.length))])?;
            if way == Way::Cached {
                self.trusted.set_since(block, epoch);
            }
        }
        self.volume.reads_cold.fetch_add(1, Relaxed);
        let cut = within(&range);
        // What is small may wait long for somebody who takes it, and the rest of its block is not to wait with it.
        let bytes = if cut.len() <= SCARCE_CHUNK_BYTES { buffer.cut_out(cut) } else { buffer.into_bytes(cut) };
        Ok(Fetched { bytes, in_page_cache: way == Way::Cached })
    }

    /// Compares a block in memory with its checksum.
    fn verify(&self, block: u64, bytes: &[u8]) -> Result<()> {
        self.footer.check_block(block, bytes).map_err(|detail| self.corrupt(detail))
    }

    /// All of it matched, when it came into the page cache.
    fn is_trusted(&self, range: &Range<u64>) -> bool {
        self.trusted.has_all(block_indices(range))
    }

    /// Some page is not there (any more). Reading it will bring others along, unseen, by the kernel's read-ahead: whatever
    /// of this blob is found in memory from now on may be fresh from the disk, and is verified again.
    fn doubt(&self) {
        self.trusted.take_all();
    }

    /// Blocks are about to be read through the page cache, and with them what the kernel reads ahead: what is not in memory
    /// now is not to be trusted when it comes.
    fn doubt_what_comes(&self, blocks: &Range<u64>) {
        let end = (blocks.end + READ_AHEAD_BYTES_MAX).min(self.footer.length);
        for block in block_indices(&(blocks.start..end)).filter(|block| self.trusted.has(*block)) {
            if !self.is_cached(&block_range(block, self.footer.length)).unwrap_or(false) {
                self.trusted.take(block);
            }
        }
    }

    /// Whether no page is missing; some may still be on their way.
    fn is_cached(&self, range: &Range<u64>) -> Result<bool> {
        let failed = |e| Error::io("look at the page cache for", &self.file().path, e);
        is_cached(&self.file().file, range, || self.whole_map()).map_err(failed)
    }

    fn whole_blocks(&self, range: &Range<u64>) -> Range<u64> {
        let block = BLOCK_BYTES as u64;
        range.start / block * block..range.end.next_multiple_of(block).min(self.footer.length)
    }

    /// Copies a small range without waiting; `None` when not all of it is in the page cache.
    fn copy_resident(&self, range: &Range<u64>, mut copy: Buffer) -> Result<Option<Bytes>> {
        // Where something is missing, preadv2 would have the kernel begin to read it.
        if !self.is_cached(range)? {
            return Ok(None);
        }
        let len = (range.end - range.start) as usize;
        let read = rustix::io::preadv2(
            &self.file().file,
            &mut [IoSliceMut::new(&mut copy.spare()[..len])],
            range.start,
            ReadWriteFlags::NOWAIT,
        );
        if read != Ok(len) {
            return Ok(None);
        }
        self.volume.reads_hot.fetch_add(1, Relaxed);
        copy.set_len(len);
        Ok(Some(copy.into_bytes(0..len)))
    }
}

impl Drop for OpenBlob {
    /// The last close of an unlinked file frees its blocks: work for the engine, not for the thread
    /// that happened to send the last byte.
    fn drop(&mut self) {
        let direct = self.direct.take().flatten().map(|direct| direct.file);
        for file in [self.file.take(), direct].into_iter().flatten().filter_map(Arc::into_inner) {
            self.volume.bridge.close_file(file);
        }
    }
}

/// Whole pages, so that the file may be open past the page cache. Behind the last block there is a footer.
fn read_len(blocks: &Range<u64>) -> usize {
    ((blocks.end - blocks.start) as usize).next_multiple_of(PAGE_BYTES)
}

fn block_indices(blocks: &Range<u64>) -> Range<u64> {
    blocks.start / BLOCK_BYTES as u64..blocks.end.div_ceil(BLOCK_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::{BlobMeta, BlobWriter, read_footer};
    use crate::bridge::{Bridge, How};
    use crate::engine::EngineChoice;
    use crate::limits::STREAM_CHUNK_BYTES;

    /// From a namespace's descriptor the kernel reads nothing, and says so as a file system does that refuses direct reads.
    #[tokio::test]
    async fn a_refusal_at_the_first_read_leads_through_the_page_cache() {
        for engine in [EngineChoice::Auto, EngineChoice::Threads] {
            let dir = tempfile::tempdir().unwrap();
            let volume = Volume::on(dir.path(), Bridge::start(engine).unwrap());
            let room = volume.room.reserve(0).unwrap();
            let mut writer = BlobWriter::create(&volume, BlobId::new(), BlobMeta::default(), room).await.unwrap();
            let data: Vec<u8> = (0..2u32 << 18).flat_map(u32::to_le_bytes).collect();
            writer.write(data.clone().into()).await.unwrap();
            let sealed = writer.seal().await.unwrap();

            let file = volume.bridge.open(&volume.blob_path(sealed.id), How::Read).await.unwrap();
            let footer = read_footer(&volume, &volume.read_pool, &file).await.unwrap();
            let blob = OpenBlob::new(Arc::clone(&volume), sealed.id, file, footer);
            let refusing = volume.bridge.open("/proc/self/ns/mnt".as_ref(), How::Read).await.unwrap();
            assert!(blob.direct.set(Some(volume.direct.of(refusing))).is_ok());
            rustix::fs::fadvise(&blob.file().file, 0, None, rustix::fs::Advice::DontNeed).unwrap();

            let range = 0..STREAM_CHUNK_BYTES as u64;
            let Some(ahead) = blob.try_cold(&range, Wanted::Now, Payer::Node).filter(ColdRead::is_direct) else {
                return println!("skipped: this file system keeps its pages in memory");
            };
            let fetched = blob.finish_cold(ahead).await.unwrap();
            assert!(fetched.in_page_cache && fetched.bytes == data[..STREAM_CHUNK_BYTES]);
            assert!(volume.direct.refuses_reads(), "it is remembered");
            let behind = STREAM_CHUNK_BYTES as u64..2 * STREAM_CHUNK_BYTES as u64;
            let fetched = blob.cold(&behind, Wanted::Now, Payer::Node).await.unwrap();
            assert!(fetched.in_page_cache && fetched.bytes == data[STREAM_CHUNK_BYTES..][..STREAM_CHUNK_BYTES]);
            assert!(volume.direct.open(&volume, &blob.file().path).await.is_none(), "and no other is opened");
            drop((fetched, blob, sealed));
            volume.settle().await;
        }
    }
}
