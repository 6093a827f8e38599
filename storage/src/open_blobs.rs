//! Blobs kept open for the next reader: descriptor, footer, and which blocks were verified.
//!
//! The cache owns one clone of each reader; a file is closed with the last clone, on the engine. An unlinked blob leaves
//! the cache with its unlinking, whichever of opening and unlinking came first.

use std::collections::VecDeque;
use std::sync::PoisonError;

use crate::blob::BlobReader;
use crate::error::Result;
use crate::id::BlobId;
use crate::limits::OPEN_BLOBS_MAX;
use crate::store::Store;

/// Recently used readers, the latest last.
#[derive(Default)]
pub(crate) struct OpenBlobs {
    readers: VecDeque<BlobReader>,
}

impl Store {
    pub async fn open_blob(&self, id: BlobId) -> Result<BlobReader> {
        self.check_open()?;
        if let Some(reader) = self.open_blobs(|open| open.get(id)) {
            return Ok(reader);
        }
        let reader = BlobReader::open(self.inner.volumes.first(), id).await?;
        let evicted = self.open_blobs(|open| open.put(reader.clone()));
        drop(evicted);
        // Removed while it was being opened: `unlink_blobs` may have looked before it was there.
        if reader.is_unlinked() {
            drop(self.open_blobs(|open| open.take(id)));
        }
        Ok(reader)
    }

    /// The lock is held for a few instructions; what `f` returns is dropped outside it.
    pub(crate) fn open_blobs<T>(&self, f: impl FnOnce(&mut OpenBlobs) -> T) -> T {
        f(&mut self.inner.open_blobs.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl OpenBlobs {
    fn get(&mut self, id: BlobId) -> Option<BlobReader> {
        let reader = self.take(id)?;
        self.readers.push_back(reader.clone());
        Some(reader)
    }

    pub(crate) fn take(&mut self, id: BlobId) -> Option<BlobReader> {
        let at = self.readers.iter().position(|reader| reader.id() == id)?;
        self.readers.remove(at)
    }

    pub(crate) fn len(&self) -> usize {
        self.readers.len()
    }

    /// Returns what had to go.
    fn put(&mut self, reader: BlobReader) -> Option<BlobReader> {
        let same = self.take(reader.id());
        self.readers.push_back(reader);
        if self.readers.len() > OPEN_BLOBS_MAX { self.readers.pop_front() } else { same }
    }
}
