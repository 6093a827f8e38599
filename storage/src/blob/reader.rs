//! Reading a sealed blob.
//!
//! A reader shares one open file, its footer and the record of verified blocks with every other
//! reader of the blob. Dropping a read or a stream gives up its answer; a buffer that the engine
//! fills meanwhile returns to the pool when the kernel is done with it.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};

use super::format::{Footer, InTail, TAIL_BYTES};
use super::region::{FileRegion, Wanted};
use super::window::Window;
use crate::blob::read_path::{ColdRead, OpenBlob};
use crate::bridge::{How, NamedFile};
use crate::budget::Payer;
use crate::buffer::Pool;
use crate::error::{Error, Result};
use crate::id::BlobId;
use crate::limits::{BLOCK_BYTES, MAP_WINDOW_BYTES, READ_MAX, SCARCE_CHUNK_BYTES, STREAM_CHUNK_BYTES};
use crate::volume::{PAGE_BYTES, Volume};

/// Reads one blob. Cheap to clone.
#[derive(Clone)]
pub struct BlobReader {
    id: BlobId,
    blob: Arc<OpenBlob>,
    payer: Payer,
}

impl BlobReader {
    pub(crate) async fn open(volume: &Arc<Volume>, id: BlobId) -> Result<BlobReader> {
        let file = match volume.bridge.open(&volume.blob_path(id), How::Read).await {
            Err(e) if e.is_not_found() => return Err(Error::NoBlob(id)),
            other => other?,
        };
        let footer = read_footer(volume, &volume.read_pool, &file).await;
        if let Err(Error::Corrupt { detail, .. }) = &footer {
            volume.quarantine.report(id, detail);
        }
        let blob = Arc::new(OpenBlob::new(Arc::clone(volume), id, file, footer?));
        Ok(BlobReader { id, blob, payer: Payer::Node })
    }

    /// The same, with its buffers on somebody's account.
    pub fn on_account_of(self, payer: Payer) -> BlobReader {
        BlobReader { payer, ..self }
    }

    pub fn id(&self) -> BlobId {
        self.id
    }

    /// Bytes of the object, without the footer.
    pub fn len(&self) -> u64 {
        self.blob.footer.length
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn footer(&self) -> &Footer {
        &self.blob.footer
    }

    /// The file itself, to be handed to a worker. It is longer than the object: the footer follows.
    pub fn file(&self) -> &File {
        &self.blob.file().file
    }

    /// The `len` bytes at `offset`, fewer only where the blob ends.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Bytes> {
        if len > READ_MAX {
            let what = format!("a read of blob {}", self.id);
            return Err(Error::TooLarge { what, limit: READ_MAX as u64, actual: len as u64 });
        }
        let range = offset.min(self.len())..offset.saturating_add(len as u64).min(self.len());
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        match self.blob.hot(&range, &mut None, 0, self.payer)? {
            Some(bytes) => Ok(bytes),
            None => Ok(self.blob.cold(&range, Wanted::Now, self.payer).await?.bytes),
        }
    }

    /// The part `range` (cut to the blob's end), to be sent from the file itself; `None` where it cannot be mapped.
    pub fn region(&self, range: Range<u64>) -> Option<FileRegion> {
        FileRegion::new(&self.blob, range.start.min(self.len())..range.end.min(self.len()), self.payer)
    }

    /// The bytes of `range` (cut to the blob's end) in order, with one chunk of read-ahead.
    pub fn stream(&self, range: Range<u64>) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
        self.chunks(range).map_ok(|chunk| chunk.bytes)
    }

    /// As `stream`, with where each chunk came from.
    pub fn chunks(&self, range: Range<u64>) -> impl Stream<Item = Result<Chunk>> + Send + 'static {
        let end = range.end.min(self.len());
        let (blob, payer) = (Arc::clone(&self.blob), self.payer);
        let cursor = Cursor { blob, payer, at: range.start, end, window: None, ahead: None };
        futures_util::stream::try_unfold(cursor, |mut cursor| async move {
            Ok(cursor.next().await?.map(|chunk| (chunk, cursor)))
        })
    }

    #[cfg(test)]
    pub(super) fn blob(&self) -> &Arc<OpenBlob> {
        &self.blob
    }

    /// True when a block did not match: it is not read any more.
    pub(crate) fn is_refused(&self) -> bool {
        self.blob.is_refused()
    }

    /// True when the file has lost its name.
    pub(crate) fn is_unlinked(&self) -> bool {
        rustix::fs::fstat(&self.blob.file().file).is_ok_and(|stat| stat.st_nlink == 0)
    }
}

/// Bytes of a stream.
pub struct Chunk {
    pub bytes: Bytes,
    /// Read through the engine; else they were in memory.
    pub from_disk: bool,
}

/// A stream's place.
struct Cursor {
    blob: Arc<OpenBlob>,
    payer: Payer,
    at: u64,
    end: u64,
    window: Option<Arc<Window>>,
    ahead: Option<Ahead>,
}

/// The next chunk, fetched before it is asked for.
enum Ahead {
    Hot(Bytes),
    Cold(ColdRead),
}

impl Cursor {
    async fn next(&mut self) -> Result<Option<Chunk>> {
        if self.at >= self.end {
            return Ok(None);
        }
        if self.ahead.is_none() && self.blob.volume.is_memory_scarce(self.payer) {
            return self.next_small().await.map(Some);
        }
        let range = self.chunk();
        let (bytes, from_disk) = match self.ahead.take() {
            Some(Ahead::Hot(bytes)) => (bytes, false),
            Some(Ahead::Cold(read)) => {
                // The one after next sets out before this one is awaited.
                self.at = range.end;
                self.look_ahead();
                (self.blob.finish_cold(read).await?.bytes, true)
            }
            None => {
                let hot = self.blob.hot(&range, &mut self.window, MAP_WINDOW_BYTES, self.payer)?;
                let from_disk = hot.is_none();
                let bytes = match hot {
                    Some(bytes) => bytes,
                    None => self.blob.cold(&range, Wanted::Now, self.payer).await?.bytes,
                };
                self.at = range.end;
                if from_disk {
                    self.look_ahead();
                }
                (bytes, from_disk)
            }
        };
        self.at = range.end;
        Ok(Some(Chunk { bytes, from_disk }))
    }

    /// A small piece: copied if it is in memory, and else cut out of its block.
    async fn next_small(&mut self) -> Result<Chunk> {
        self.window = None;
        let range = self.piece(SCARCE_CHUNK_BYTES);
        let hot = self.blob.hot(&range, &mut None, 0, self.payer)?;
        let from_disk = hot.is_none();
        let bytes = match hot {
            Some(bytes) => bytes,
            // Through the page cache: the pieces behind it are asked for next.
            None => self.blob.cold(&range, Wanted::Later, self.payer).await?.bytes,
        };
        self.at = range.end;
        Ok(Chunk { bytes, from_disk })
    }

    fn look_ahead(&mut self) {
        if self.at >= self.end {
            return;
        }
        let range = self.chunk();
        self.ahead = match self.blob.hot(&range, &mut self.window, MAP_WINDOW_BYTES, self.payer) {
            Ok(Some(bytes)) => Some(Ahead::Hot(bytes)),
            // An error comes back when the chunk is asked for.
            _ => self.blob.try_cold(&range, Wanted::Now, self.payer).map(Ahead::Cold),
        };
    }

    fn chunk(&self) -> Range<u64> {
        self.piece(STREAM_CHUNK_BYTES)
    }

    /// Pieces end at multiples of their size, so that no block is read twice.
    fn piece(&self, size: usize) -> Range<u64> {
        let size = size as u64;
        self.at..((self.at / size + 1) * size).min(self.end)
    }
}

/// Finds and checks a file's footer. Whole pages are read, so that the file may be open past the page cache.
pub(crate) async fn read_footer(volume: &Volume, pool: &Pool, file: &Arc<NamedFile>) -> Result<Footer> {
    let corrupt = |detail: String| Error::corrupt(&file.path, detail);
    let file_bytes = file.file.metadata().map_err(|e| Error::io("stat", &file.path, e))?.len();
    let tail = read_exact(volume, pool, file, file_bytes.saturating_sub(TAIL_BYTES)..file_bytes).await?;
    match Footer::in_tail(&tail, file_bytes).map_err(corrupt)? {
        InTail::Whole(footer) => Ok(footer),
        InTail::BeginsAt { body, trailer } => {
            let body = read_exact(volume, pool, file, body).await?;
            Footer::decode(&body, &trailer, file_bytes).map_err(corrupt)
        }
    }
}

async fn read_exact(volume: &Volume, pool: &Pool, file: &Arc<NamedFile>, range: Range<u64>) -> Result<Vec<u8>> {
    let page = PAGE_BYTES as u64;
    let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
    let mut at = range.start;
    while at < range.end {
        let from = at / page * page;
        let want = (range.end.next_multiple_of(page) - from).min(BLOCK_BYTES as u64) as usize;
        let buffer = volume.bridge.read(file, pool.take(want).await, from, want).await?;
        let found = &buffer.as_slice()[..buffer.len().min((range.end - from) as usize)];
        let Some(found) = found.get((at - from) as usize..).filter(|found| !found.is_empty()) else {
            return Err(Error::corrupt(&file.path, "the file became shorter while it was opened"));
        };
        bytes.extend_from_slice(found);
        at += found.len() as u64;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::{BlobMeta, BlobWriter};
    use crate::bridge::Bridge;
    use crate::engine::EngineChoice;
    use crate::limits::READ_BUDGET_BYTES;

    /// Who has taken what chunks may take goes on, in small pieces that count for no more than they are; others have chunks.
    #[tokio::test]
    async fn while_memory_is_scarce_a_stream_has_small_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume::on(dir.path(), Bridge::start(EngineChoice::Auto).unwrap());
        let room = volume.room.reserve(0).unwrap();
        let mut writer = BlobWriter::create(&volume, BlobId::new(), BlobMeta::default(), room).await.unwrap();
        let data: Vec<u8> = (0..3u32 << 18).flat_map(u32::to_le_bytes).collect();
        writer.write(data.clone().into()).await.unwrap();
        let reader = BlobReader::open(&volume, writer.seal().await.unwrap().id).await.unwrap();

        let (slow, other) = (Payer::Guest(1), Payer::Guest(2));
        let mut held = Vec::new();
        while !volume.is_memory_scarce(slow) {
            held.push(volume.read_pool.take_for(slow, STREAM_CHUNK_BYTES).await);
        }
        let in_use = volume.read_pool.in_use();
        assert!((READ_BUDGET_BYTES * 3 / 8..=READ_BUDGET_BYTES / 2).contains(&in_use), "{in_use}");
        for (payer, cached) in [(slow, false), (slow, true), (other, false), (other, true)] {
            if !cached {
                rustix::fs::fadvise(reader.file(), 0, None, rustix::fs::Advice::DontNeed).unwrap();
            }
            let chunks = reader.clone().on_account_of(payer).chunks(1..reader.len());
            let chunks: Vec<Chunk> = chunks.try_collect().await.unwrap();
            let largest = chunks.iter().map(|chunk| chunk.bytes.len()).max();
            assert_eq!(largest, Some(if payer == slow { SCARCE_CHUNK_BYTES } else { STREAM_CHUNK_BYTES }));
            assert!(chunks.iter().flat_map(|chunk| chunk.bytes.iter()).eq(&data[1..]), "cached: {cached}");
            assert!(payer != slow || volume.map_budget.available_permits() == volume.map_pages);
            if payer == slow {
                assert_eq!(volume.read_pool.in_use(), in_use + chunks.len() * SCARCE_CHUNK_BYTES, "cached: {cached}");
            }
        }
        drop((held, reader));
        volume.settle().await;
    }
}
