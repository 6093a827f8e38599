//! Files that nobody was promised, and the sealed blob, which is one of them until it is committed.
//!
//! Both remove their files in the background when they are dropped: after a cancel, an error or a
//! panic, nothing stays behind that is not meant to.

use std::path::PathBuf;
use std::sync::Arc;

use super::progress::Publisher;
use crate::id::BlobId;
use crate::volume::Volume;
use crate::volume::claim::{Claim, InHand};
use crate::volume::room::Reservation;

/// A blob in its place, durable, not yet known to the catalog. Unless it is committed, dropping it
/// unlinks the file.
pub struct SealedBlob {
    pub id: BlobId,
    pub length: u64,
    pub blake3: [u8; 32],
    pub content_type: Option<String>,
    /// Set by whoever computed it on the way; only the catalog keeps it.
    pub sha256: Option<[u8; 32]>,
    pub(super) files: Files,
}

/// The files of a blob that nobody was promised: removed on drop while armed.
pub(super) struct Files {
    pub(super) volume: Arc<Volume>,
    pub(super) id: BlobId,
    /// In the order of their removal. The journal first: a partial without one is removed at the
    /// next start, a journal without a partial would be a riddle. The partial before the blob: a
    /// rename under way then leaves neither.
    pub(super) paths: Vec<PathBuf>,
    pub(super) armed: bool,
    /// Held while a caller has the writer or the sealed blob.
    pub(super) in_hand: Option<InHand>,
    pub(super) claim: Arc<Claim>,
    pub(super) room: Reservation,
    /// Tells the followers; dropped with the files, that nothing will come of them.
    pub(super) publisher: Option<Publisher>,
}

impl Files {
    pub(super) async fn remove(mut self) {
        self.armed = false;
        self.publisher = None;
        self.in_hand = None;
        self.volume.remove_files(&self.paths).await;
        self.volume.set_unacknowledged(self.id, false);
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if self.armed {
            let (volume, paths, id) = (Arc::clone(&self.volume), std::mem::take(&mut self.paths), self.id);
            let claim = Arc::clone(&self.claim);
            drop(self.volume.spawn(async move {
                let _claim = claim;
                volume.remove_files(&paths).await;
                volume.set_unacknowledged(id, false);
            }));
        }
    }
}

impl SealedBlob {
    pub(crate) fn volume(&self) -> &Arc<Volume> {
        &self.files.volume
    }

    /// It is on its way into the catalog: whoever wants to take the blob up again waits for the outcome.
    pub(crate) fn hand_over(&mut self) {
        self.files.in_hand = None;
    }

    /// The catalog has it: the file stays. What is returned is to be removed from its volume (the journal).
    pub(crate) fn committed(mut self) -> ((Arc<Volume>, Vec<PathBuf>), Arc<Claim>) {
        self.files.armed = false;
        if let Some(publisher) = self.files.publisher.take() {
            publisher.stored(self.length);
        }
        self.files.volume.set_unacknowledged(self.id, false);
        let blob = self.files.volume.blob_path(self.id);
        let partial = self.files.volume.partial_path(self.id);
        let mut paths = std::mem::take(&mut self.files.paths);
        paths.retain(|path| *path != blob && *path != partial);
        ((Arc::clone(&self.files.volume), paths), Arc::clone(&self.files.claim))
    }

    /// The catalog may have it or not: the file stays. The next start looks again.
    pub(crate) fn leave(mut self) {
        self.files.armed = false;
        self.files.volume.leave_debris();
    }

    /// Nobody wants it.
    pub(crate) async fn remove(self) {
        self.files.remove().await;
    }
}
