//! Blobs kept open for the next reader: descriptor, footer, and which blocks were verified.
//!
//! The cache owns one clone of each reader; a file is closed with the last clone, on the engine. An unlinked blob leaves
//! the cache with its unlinking, whichever of opening and unlinking came first.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use crate::blob::BlobReader;
use crate::error::{Error, Result};
use crate::id::BlobId;
use crate::limits::OPEN_BLOBS_MAX;
use crate::store::Store;
use crate::volume::Volume;

/// Recently used readers, the latest last.
#[derive(Default)]
pub(crate) struct OpenBlobs {
    readers: VecDeque<BlobReader>,
}

impl Store {
    pub async fn open_blob(&self, id: BlobId) -> Result<BlobReader> {
        self.check_open()?;
        self.inner.volumes.iter().try_for_each(|volume| volume.quarantine.check(volume, id))?;
        if let Some(reader) = self.open_blobs(|open| open.get(id)).filter(|reader| !reader.is_refused()) {
            return Ok(reader);
        }
        let volume = self.volume_with(id).await?;
        // Boxed: whoever finds it open moves no room for this about.
        let reader = Box::pin(BlobReader::open(volume, id)).await.map_err(|error| not_opened(volume, error))?;
        let evicted = self.open_blobs(|open| open.put(reader.clone()));
        drop(evicted);
        // Removed while it was being opened: `unlink_blobs` may have looked before it was there.
        if reader.is_unlinked() {
            drop(self.open_blobs(|open| open.take(id)));
        }
        Ok(reader)
    }

    /// The volume that a committed blob is on. Only where there are several does the catalog have to be asked.
    async fn volume_with(&self, id: BlobId) -> Result<&Arc<Volume>> {
        let volumes = &self.inner.volumes;
        if volumes.is_one() {
            return Ok(volumes.first());
        }
        let number = self.volume_of(id).await?.ok_or(Error::NoBlob(id))?;
        volumes.by_number(number)
    }

    /// The lock is held for a few instructions; what `f` returns is dropped outside it.
    pub(crate) fn open_blobs<T>(&self, f: impl FnOnce(&mut OpenBlobs) -> T) -> T {
        f(&mut self.inner.open_blobs.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A volume that fails has not lost the blob: it cannot be asked.
fn not_opened(volume: &Volume, error: Error) -> Error {
    let reason = match (&error, volume.health.fault()) {
        (Error::NoBlob(_), _) if !volume.check_in_place() => "the disk was taken away".to_owned(),
        (Error::Io { .. }, Some(_)) => error.to_string(),
        _ => return error,
    };
    Error::VolumeMissing { volume: volume.number, dir: volume.dir.clone(), reason }
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
