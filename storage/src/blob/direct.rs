//! The way past the page cache: of large blobs as they are written, and of what is read for the first time.
//!
//! A blob that is announced with, or grows to, [`DIRECT_BYTES_MIN`](crate::limits::DIRECT_BYTES_MIN) has its whole blocks written with O_DIRECT, from the
//! aligned buffers they were gathered in; what ends within a block (the last batch with the footer, what a checkpoint
//! sends off early) goes through the page cache, over the file's other descriptor. The two never meet in one block, so
//! neither sees the other's bytes half written, and no padding or cutting is needed. Both are durable with the file's
//! sync: a direct write leaves the size, the blocks' state and the disk's cache to it.
//!
//! Smaller blobs stay in the page cache: what has just been stored is often read next. A file system that refuses direct
//! writes gets all its blobs through the page cache, and the log says so once.
//!
//! Reading past it takes a second descriptor, an [`OpenBlob`](super::read_path::OpenBlob)'s own, opened when it is first
//! wanted; there are few of them, and who gets none reads through the page cache, as on a file system that refuses.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::bridge::{How, NamedFile};
use crate::error::Error;
use crate::limits::{BLOCK_BYTES, DIRECT_BYTES_MIN};
use crate::volume::Volume;
use crate::volume::claim::Claim;

/// What one volume knows of the way past the page cache.
pub(crate) struct Direct {
    from: AtomicU64,
    writes: Refusal,
    reads: Refusal,
    /// Descriptors for reading that may still be opened.
    readers: Arc<Semaphore>,
    readers_max: usize,
}

/// Whether the file system was found not to do it.
#[derive(Default)]
struct Refusal(AtomicBool);

/// A blob's descriptor for reading past the page cache.
pub(super) struct DirectFile {
    pub(super) file: Arc<NamedFile>,
    _permit: OwnedSemaphorePermit,
}

/// How one blob's blocks are written.
pub(super) enum Way {
    /// Through the page cache, until it is large.
    Cached,
    Direct(Arc<NamedFile>),
    /// Through the page cache whatever its size.
    Refused,
}

impl Direct {
    pub(crate) fn new(readers: usize) -> Direct {
        Direct {
            from: AtomicU64::new(DIRECT_BYTES_MIN),
            writes: Refusal::default(),
            reads: Refusal::default(),
            readers: Arc::new(Semaphore::new(readers)),
            readers_max: readers,
        }
    }

    /// Descriptors that are open for reading.
    pub(crate) fn open_files(&self) -> usize {
        self.readers_max - self.readers.available_permits()
    }

    /// Blobs of that size on are written past the page cache.
    pub(crate) fn begin_at(&self, bytes: u64) {
        self.from.store(bytes, Relaxed);
    }

    pub(super) fn refuses_reads(&self) -> bool {
        self.reads.is_known()
    }

    /// Remembers what a file system said to a read past the page cache; false when it was an error of another kind.
    pub(super) fn read_refused(&self, volume: &Volume, error: &Error) -> bool {
        is_refusal(error) && {
            self.reads.note(volume, error, "everything is read through the page cache here");
            true
        }
    }

    /// Opens a blob for reading past the page cache. Whatever prevents it, the page cache remains.
    pub(super) async fn open(&self, volume: &Volume, path: &Path) -> Option<DirectFile> {
        if self.refuses_reads() {
            return None;
        }
        let permit = Arc::clone(&self.readers).try_acquire_owned().ok()?;
        match volume.bridge.open(path, How::ReadDirect).await {
            Ok(file) => Some(DirectFile { file, _permit: permit }),
            Err(error) => {
                if !self.read_refused(volume, &error) {
                    tracing::debug!(%error, "a blob is read through the page cache");
                }
                None
            }
        }
    }
}

#[cfg(test)]
impl Direct {
    /// As if `file` had been opened for reading past the page cache.
    pub(super) fn of(&self, file: Arc<NamedFile>) -> DirectFile {
        DirectFile { file, _permit: Arc::clone(&self.readers).try_acquire_owned().unwrap() }
    }
}

impl Refusal {
    fn is_known(&self) -> bool {
        self.0.load(Relaxed)
    }

    fn note(&self, volume: &Volume, error: &Error, consequence: &str) {
        if !self.0.swap(true, Relaxed) {
            tracing::info!(%error, dir = %volume.dir.display(), "{consequence}");
        }
    }
}

impl Way {
    /// Chooses again, now that the blob is known to have `bytes` at least. Whatever prevents it, the page cache remains.
    pub(super) async fn choose(&mut self, volume: &Volume, partial: &NamedFile, claim: &Arc<Claim>, bytes: u64) {
        let direct = &volume.direct;
        if !matches!(self, Way::Cached) || bytes < direct.from.load(Relaxed) {
            return;
        }
        *self = Way::Refused;
        if direct.writes.is_known() {
            return;
        }
        match volume.bridge.open_claimed(&partial.path, How::ModifyDirect, Arc::clone(claim)).await {
            Ok(file) => *self = Way::Direct(file),
            Err(error) if is_refusal(&error) => {
                direct.writes.note(volume, &error, "large blobs are written through the page cache here");
            }
            // For want of descriptors, say: this blob alone.
            Err(error) => tracing::debug!(%error, "a large blob is written through the page cache"),
        }
    }

    /// The descriptor past the page cache, where these bytes may take it.
    pub(super) fn direct(&self, offset: u64, bytes: u64) -> Option<&Arc<NamedFile>> {
        let whole_blocks = (offset | bytes).is_multiple_of(BLOCK_BYTES as u64);
        match self {
            Way::Direct(file) if whole_blocks => Some(file),
            _ => None,
        }
    }
}

/// The file system does not do it, and will not next time.
pub(crate) fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. }
        if source.kind() == std::io::ErrorKind::Unsupported
            || matches!(source.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::blob::{BlobMeta, BlobReader, BlobWriter};
    use crate::bridge::Bridge;
    use crate::engine::EngineChoice;
    use crate::id::BlobId;

    /// A volume that writes everything it can past the page cache; `None` where the file system does not take it.
    async fn volume(dir: &std::path::Path, engine: EngineChoice) -> Option<Arc<Volume>> {
        let volume = Volume::on(dir, Bridge::start(engine).unwrap());
        volume.direct.begin_at(0);
        std::fs::write(dir.join("probe"), b"").unwrap();
        match volume.bridge.open(&dir.join("probe"), How::ModifyDirect).await {
            Ok(_) => Some(volume),
            Err(error) => {
                println!("skipped: {error}");
                None
            }
        }
    }

    fn content(len: usize) -> Bytes {
        let mut bytes: Vec<u8> = (0..len as u32 / 4 + 1).flat_map(|word| (word ^ 0x5eed).to_le_bytes()).collect();
        bytes.truncate(len);
        bytes.into()
    }

    /// Writes a blob in pieces, with a checkpoint after every `record`-th piece, and looks at it by every way there is.
    async fn round_trip(volume: &Arc<Volume>, len: usize, piece: usize, hint: Option<u64>, record: Option<usize>) {
        let (id, data) = (BlobId::new(), content(len));
        let meta = BlobMeta { length_hint: hint, ..BlobMeta::default() };
        let room = volume.room.reserve(meta.announced_bytes()).unwrap();
        let mut writer = match record {
            Some(_) => BlobWriter::create_journaled(volume, id, meta, vec![], room).await.unwrap(),
            None => BlobWriter::create(volume, id, meta, room).await.unwrap(),
        };
        for (at, start) in (0..len).step_by(piece).enumerate() {
            writer.ready().await.unwrap();
            writer.write(data.slice(start..(start + piece).min(len))).await.unwrap();
            if record.is_some_and(|every| at % every == 0) {
                let durable = writer.checkpoint(vec![]).await.unwrap();
                assert_eq!(durable, (start + piece).min(len) as u64);
                // What is durable is there for everybody, whichever way it went.
                let mut there = vec![0; durable as usize];
                let partial = std::fs::File::open(volume.partial_path(id)).unwrap();
                partial.read_exact_at(&mut there, 0).unwrap();
                assert!(there == data[..durable as usize]);
            }
        }
        let sealed = writer.seal().await.unwrap();
        assert_eq!((sealed.length, sealed.blake3), (len as u64, *blake3::hash(&data).as_bytes()));
        let file = std::fs::read(volume.blob_path(id)).unwrap();
        assert!(file.get(..len) == Some(&data[..]), "{len} bytes in pieces of {piece}: other tools see other bytes");
        let reader = BlobReader::open(volume, id).await.unwrap();
        assert_eq!(reader.len(), len as u64);
        for start in (0..len).step_by(crate::limits::READ_MAX) {
            let read = reader.read(start as u64, crate::limits::READ_MAX).await.unwrap();
            assert!(read == data[start..start + read.len()]);
        }
        drop((sealed, reader));
        volume.settle().await;
    }

    #[tokio::test]
    async fn large_blobs_go_past_the_page_cache_and_small_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let Some(volume) = volume(dir.path(), EngineChoice::Auto).await else { return };
        volume.direct.begin_at(3 << 20);
        for (hint, len, expected) in [
            (Some(4 << 20), 1 << 20, true),
            (None, 2 << 20, false),
            (None, 5 << 20, true),
            (Some(1 << 20), 1 << 20, false),
        ] {
            let meta = BlobMeta { length_hint: hint, ..BlobMeta::default() };
            let room = volume.room.reserve(0).unwrap();
            let mut writer = BlobWriter::create(&volume, BlobId::new(), meta, room).await.unwrap();
            writer.write(content(len)).await.unwrap();
            assert_eq!(writer.is_direct(), expected, "announced {hint:?}, {len} bytes written");
            writer.abort().await;
        }
    }

    #[test]
    fn what_went_past_the_page_cache_comes_back_equal() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        for engine in [EngineChoice::Auto, EngineChoice::Threads] {
            let dir = tempfile::tempdir().unwrap();
            let Some(volume) = runtime.block_on(volume(dir.path(), engine)) else { return };
            // Around every boundary there is: pages, blocks, the first batch, full batches.
            for boundary in [0, 4096, BLOCK_BYTES, 1 << 20, (1 << 20) + BLOCK_BYTES, 3 << 20] {
                for len in [boundary.saturating_sub(1), boundary, boundary + 1] {
                    runtime.block_on(round_trip(&volume, len, 100_000, Some(len as u64), None));
                    runtime.block_on(round_trip(&volume, len, BLOCK_BYTES, None, None));
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn any_length_in_any_pieces_comes_back_equal(
            len in 0usize..3 << 20,
            piece in 1_000usize..1_500_000,
            hint in proptest::option::of(0u64..4 << 20),
            record in proptest::option::of(1usize..4),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let dir = tempfile::tempdir().unwrap();
            runtime.block_on(async {
                if let Some(volume) = volume(dir.path(), EngineChoice::Auto).await {
                    let piece = piece.max(len / 40);
                    round_trip(&volume, len, piece, hint, record).await;
                }
            });
        }
    }
}
