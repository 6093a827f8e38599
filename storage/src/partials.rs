//! Journaled partials: what is being written and survives the process.
//!
//! Cancel: taking a partial up or discarding it waits for what a dropped writer left under way, and may itself be dropped
//! at any point; what was begun is then found by the next call.

use crate::blob::{BlobMeta, BlobWriter};
use crate::bridge::How;
use crate::error::Result;
use crate::id::BlobId;
use crate::store::Store;
use crate::sweep;

impl Store {
    /// Starts a blob whose partial file and journal survive, to be taken up by [`Store::resume`].
    pub async fn create_journaled(&self, id: BlobId, meta: BlobMeta, note: Vec<u8>) -> Result<BlobWriter> {
        self.check_open()?;
        meta.check()?;
        let volume = self.inner.volumes.first();
        let room = volume.reserve(&meta)?;
        BlobWriter::create_journaled(volume, id, meta, note, room).await
    }

    /// Takes up a journaled partial at its last durable point, with that checkpoint's note; `None`
    /// when there is none.
    pub async fn resume(&self, id: BlobId) -> Result<Option<(BlobWriter, Vec<u8>)>> {
        self.check_open()?;
        // Waits for what a dropped writer left under way, a commit for instance.
        let in_hand = self.inner.volumes.first().claim(id).await?;
        if self.has_blob(id).await? {
            return Ok(None);
        }
        BlobWriter::resume(self.inner.volumes.first(), id, in_hand).await
    }

    /// Removes a partial and its journal, if they exist.
    pub async fn discard_partial(&self, id: BlobId) -> Result<()> {
        self.check_open()?;
        let volume = self.inner.volumes.first();
        // Held to the end, so that a cancelled commit is over. A writer in somebody's hand is not waited for: its files
        // are taken from under it.
        let _claim = volume.claim(id).await;
        let journaled = match volume.bridge.open(&volume.journal_path(id), How::Read).await {
            Ok(_) => true,
            Err(e) if e.is_not_found() => false,
            Err(e) => return Err(e),
        };
        if journaled && !self.has_blob(id).await? {
            // Perhaps sealed without a commit: its blob goes too, and first, for the journal is what keeps it from being
            // an orphan.
            volume.unlink(&volume.blob_path(id)).await?;
        }
        volume.unlink(&volume.journal_path(id)).await?;
        volume.unlink(&volume.partial_path(id)).await
    }

    /// The journaled partials there are.
    pub async fn journaled_partials(&self) -> Result<Vec<BlobId>> {
        self.check_open()?;
        sweep::journaled(self.inner.volumes.first()).await
    }
}
