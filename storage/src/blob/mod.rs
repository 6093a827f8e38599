//! Blobs: immutable files of an object's bytes and a footer.
//!
//! A blob is written once as `partial/<id>`, sealed (footer, sync, rename into `blobs/`), then only
//! read and at last unlinked. A file that was ever served is never overwritten, truncated or
//! punched: pages of it may still sit in a socket or be mapped.

pub(crate) mod read_path;

mod direct;
mod follower;
pub(crate) mod format;
mod ghosts;
mod hashes;
mod journal;
mod large_pages;
mod marks;
mod progress;
mod reader;
mod region;
mod resident;
mod resume;
mod rewind;
mod seal;
mod sealed;
mod window;
mod writer;

pub(crate) use direct::{Direct, is_refusal};
pub use follower::Follower;
pub(crate) use ghosts::Ghosts;
pub(crate) use large_pages::has_large_pages;
pub(crate) use progress::Progress;
pub(crate) use reader::read_footer;
pub use reader::{BlobReader, Chunk};
pub use region::{Arrival, Fetch, Fetched, FileRegion, Wanted};
pub use sealed::SealedBlob;
pub use writer::BlobWriter;

use crate::error::{Error, Result};
use crate::limits;

/// What is known of a blob before its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlobMeta {
    /// The object's key, for the footer: the catalog can be rebuilt from footers.
    pub key: Option<String>,
    pub content_type: Option<String>,
    /// The length if it was announced: room is reserved before the first byte is taken.
    pub length_hint: Option<u64>,
}

impl BlobMeta {
    pub(crate) fn check(&self) -> Result<()> {
        let text = |what: &str, text: &Option<String>, limit: usize| match text {
            Some(text) if text.len() > limit => {
                Err(Error::TooLarge { what: what.into(), limit: limit as u64, actual: text.len() as u64 })
            }
            _ => Ok(()),
        };
        text("the object key", &self.key, limits::KEY_BYTES_MAX)?;
        text("the content type", &self.content_type, limits::CONTENT_TYPE_BYTES_MAX)?;
        check_length(self.length_hint.unwrap_or(0))
    }

    /// Bytes that the file will have at least; 0 when that is not known.
    pub(crate) fn announced_bytes(&self) -> u64 {
        self.length_hint.map_or(0, |hint| hint + format::footer_bytes(self, hint))
    }
}

fn check_length(length: u64) -> Result<()> {
    if length > limits::BLOB_BYTES_MAX {
        return Err(Error::TooLarge { what: "the blob".into(), limit: limits::BLOB_BYTES_MAX, actual: length });
    }
    Ok(())
}
