//! Looking at one blob: its footer, every block's crc32c, the BLAKE3 of the whole, and what the catalog says of it.
//!
//! The file is opened past the page cache (O_DIRECT). Where the file system has no such thing, its pages are dropped
//! before it is read and after: that costs hot pages, but a scrub of the memory would prove nothing.
//!
//! Block checksums alone would do for flipped bits. BLAKE3 is computed as well because it is the object's identity (the
//! ETag): it also notices blocks that are whole and of another object. Its cost is told in docs/design/durability.md.

use std::sync::Arc;

use rustix::fs::Advice;

use super::Watch;
use super::pace::Pace;
use super::record::BlobRow;
use crate::blob::{is_refusal, read_footer};
use crate::bridge::{How, NamedFile};
use crate::buffer::Pool;
use crate::error::{Error, Result};
use crate::id::BlobId;
use crate::limits::{BLOCK_BYTES, SCRUB_READ_BYTES};
use crate::volume::{PAGE_BYTES, Volume};

/// What a look at a blob brought.
pub(super) enum Seen {
    Whole {
        bytes: u64,
    },
    /// It is not what was stored; the text tells where.
    Damaged(String),
    /// It is quarantined already.
    StillDamaged,
    /// The disk did not give it.
    Unreadable(Error),
    /// The scrub is to end.
    Stopped,
}

/// A blob file open for a scrub.
struct Opened {
    file: Arc<NamedFile>,
    direct: bool,
}

/// Reads a blob from the disk. Nothing is changed or reported.
pub(super) async fn look(volume: &Volume, pool: &Pool, pace: &mut Pace, watch: &Watch, blob: &BlobRow) -> Seen {
    let mut seen = read(volume, pool, pace, watch, blob, true).await;
    if let Err(error) = &seen
        && is_refusal(error)
    {
        seen = read(volume, pool, pace, watch, blob, false).await;
    }
    match seen {
        Ok(Some(bytes)) => Seen::Whole { bytes },
        Ok(None) => Seen::Stopped,
        Err(Error::Corrupt { detail, .. }) => Seen::Damaged(detail),
        // A disk that was taken away has not lost its files.
        Err(error) if error.is_not_found() && volume.check_in_place() => Seen::Damaged("its file is missing".into()),
        Err(error) => Seen::Unreadable(error),
    }
}

/// Drops what the page cache has of a blob that the disk has whole: the wrong bytes may have been there alone.
pub(super) async fn forget_pages(volume: &Volume, id: BlobId) {
    if let Ok(file) = volume.bridge.open(&volume.blob_path(id), How::Read).await {
        let _ = rustix::fs::fadvise(&file.file, 0, None, Advice::DontNeed);
        if let Some(file) = Arc::into_inner(file) {
            volume.bridge.close_file(file);
        }
    }
}

/// The bytes that were read and are right; `None` when the scrub is to end.
async fn read(
    volume: &Volume,
    pool: &Pool,
    pace: &mut Pace,
    watch: &Watch,
    blob: &BlobRow,
    direct: bool,
) -> Result<Option<u64>> {
    let how = if direct { How::ReadDirect } else { How::Read };
    let opened = Opened { file: volume.bridge.open(&volume.blob_path(blob.id), how).await?, direct };
    opened.forget();
    let read = opened.compare(volume, pool, pace, watch, blob).await;
    opened.forget();
    if let Some(file) = Arc::into_inner(opened.file) {
        volume.bridge.close_file(file);
    }
    read
}

impl Opened {
    /// Drops the file's pages, unless it is read past them. For a clean file this does not wait.
    fn forget(&self) {
        if !self.direct {
            let _ = rustix::fs::fadvise(&self.file.file, 0, None, Advice::DontNeed);
        }
    }

    async fn compare(
        &self,
        volume: &Volume,
        pool: &Pool,
        pace: &mut Pace,
        watch: &Watch,
        blob: &BlobRow,
    ) -> Result<Option<u64>> {
        let corrupt = |detail: String| Error::corrupt(&self.file.path, detail);
        let footer = read_footer(volume, pool, &self.file).await?;
        if (footer.length, footer.blake3) != (blob.length, blob.blake3) {
            return Err(corrupt(format!(
                "the footer tells of {} bytes with blake3 {}, the catalog of {} with {}",
                footer.length,
                hex(&footer.blake3),
                blob.length,
                hex(&blob.blake3)
            )));
        }
        let mut whole = blake3::Hasher::new();
        let mut at = 0;
        while at < footer.length {
            let len = (footer.length - at).min(SCRUB_READ_BYTES as u64) as usize;
            if !pace.step(volume, watch, len).await {
                return Ok(None);
            }
            // Whole pages: at the end a part of the footer comes along.
            let want = len.next_multiple_of(PAGE_BYTES);
            let buffer = volume.bridge.read(&self.file, pool.take(want).await, at, want).await?;
            let Some(bytes) = buffer.as_slice().get(..len) else {
                return Err(corrupt(format!(
                    "the file ends at {}, before its footer's length",
                    at + buffer.len() as u64
                )));
            };
            for (index, block) in (at / BLOCK_BYTES as u64..).zip(bytes.chunks(BLOCK_BYTES)) {
                footer.check_block(index, block).map_err(corrupt)?;
            }
            whole.update(bytes);
            at += len as u64;
        }
        let found = *whole.finalize().as_bytes();
        if found != footer.blake3 {
            let (found, expected) = (hex(&found), hex(&footer.blake3));
            return Err(corrupt(format!(
                "every block matches, the whole has blake3 {found}, the footer says {expected}"
            )));
        }
        Ok(Some(footer.length))
    }
}

fn hex(hash: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*hash).to_hex().to_string()
}

const _: () = assert!(SCRUB_READ_BYTES.is_multiple_of(BLOCK_BYTES) && BLOCK_BYTES.is_multiple_of(PAGE_BYTES));

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn only_a_refused_alignment_leads_to_buffered_reads() {
        let error = |code| Error::io("open", std::path::Path::new("x"), io::Error::from_raw_os_error(code));
        assert!(is_refusal(&error(libc::EINVAL)));
        assert!(!is_refusal(&error(libc::EIO)));
        assert!(!is_refusal(&error(libc::ENOENT)));
    }
}
