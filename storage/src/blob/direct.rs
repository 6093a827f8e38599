//! The way of large blobs past the page cache.
//!
//! A blob that is announced with, or grows to, [`DIRECT_BYTES_MIN`](crate::limits::DIRECT_BYTES_MIN) has its whole blocks written with O_DIRECT, from the
//! aligned buffers they were gathered in; what ends within a block (the last batch with the footer, what a checkpoint
//! sends off early) goes through the page cache, over the file's other descriptor. The two never meet in one block, so
//! neither sees the other's bytes half written, and no padding or cutting is needed. Both are durable with the file's
//! sync: a direct write leaves the size, the blocks' state and the disk's cache to it.
//!
//! Smaller blobs stay in the page cache: what has just been stored is often read next. A file system that refuses direct
//! writes gets all its blobs through the page cache, and the log says so once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};

use crate::bridge::{How, NamedFile};
use crate::error::Error;
use crate::limits::{BLOCK_BYTES, DIRECT_BYTES_MIN};
use crate::volume::Volume;
use crate::volume::claim::Claim;

/// What one volume knows of direct writes.
pub(crate) struct Direct {
    from: AtomicU64,
    refused: AtomicBool,
}

/// How one blob's blocks are written.
pub(super) enum Way {
    /// Through the page cache, until it is large.
    Cached,
    Direct(Arc<NamedFile>),
    /// Through the page cache whatever its size.
    Refused,
}

impl Default for Direct {
    fn default() -> Direct {
        Direct { from: AtomicU64::new(DIRECT_BYTES_MIN), refused: AtomicBool::new(false) }
    }
}

impl Direct {
    /// Blobs of that size on are written past the page cache.
    pub(crate) fn begin_at(&self, bytes: u64) {
        self.from.store(bytes, Relaxed);
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
        if direct.refused.load(Relaxed) {
            return;
        }
        match volume.bridge.open_claimed(&partial.path, How::ModifyDirect, Arc::clone(claim)).await {
            Ok(file) => *self = Way::Direct(file),
            Err(error) if is_refusal(&error) => {
                if !direct.refused.swap(true, Relaxed) {
                    let dir = volume.dir.display();
                    tracing::info!(%error, %dir, "large blobs are written through the page cache here");
                }
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
fn is_refusal(error: &Error) -> bool {
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
        for name in ["blobs", "partial"] {
            std::fs::create_dir(dir.join(name)).unwrap();
        }
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
