//! Journaled partials: what is being written and survives the process.
//!
//! A partial is on whichever volume it was begun on, so all of them are asked. One on a volume that is absent or degraded
//! is not found: its owner begins anew elsewhere, which costs less than to wait for somebody who mends a disk. When the
//! volume is back, the one that came further goes on and the other is removed.
//!
//! Cancel: taking a partial up or discarding it waits for what a dropped writer left under way, and may itself be dropped
//! at any point; what was begun is then found by the next call.

use std::sync::Arc;

use crate::blob::{BlobMeta, BlobWriter};
use crate::bridge::How;
use crate::error::{Error, Result};
use crate::id::BlobId;
use crate::store::Store;
use crate::store::sweep;
use crate::volume::Volume;
use crate::volume::claim::InHand;

impl Store {
    /// Starts a blob whose partial file and journal survive, to be taken up by [`Store::resume`].
    pub async fn create_journaled(&self, id: BlobId, meta: BlobMeta, note: Vec<u8>) -> Result<BlobWriter> {
        self.check_open()?;
        meta.check()?;
        loop {
            let (volume, room) = self.inner.volumes.place(&meta)?;
            let created = BlobWriter::create_journaled(volume, id, meta.clone(), note.clone(), room).await;
            match created.map_err(|error| volume.judge_write(error)) {
                // As in `create`. What it left is removed with the volume's other debris.
                Err(Error::Degraded { .. }) => {}
                other => return other.map(|writer| self.announce(writer)),
            }
        }
    }

    /// Takes up a journaled partial at its last durable point, with that checkpoint's note; `None`
    /// when there is none.
    pub async fn resume(&self, id: BlobId) -> Result<Option<(BlobWriter, Vec<u8>)>> {
        self.check_open()?;
        self.inner.volumes.first().health.check_writable()?;
        // Waits for what a dropped writer left under way, a commit for instance.
        let mut in_hand = Some(self.inner.volumes.first().claim(id).await?);
        if self.volume_of(id).await?.is_some() {
            return Ok(None);
        }
        for volume in self.by_progress(id).await {
            let Some((writer, note)) =
                BlobWriter::resume(volume, id, claim_on(volume, id, &mut in_hand).await?).await?
            else {
                continue;
            };
            for other in self.inner.volumes.iter().filter(|other| other.number != volume.number) {
                if let Err(error) = self.discard_on(other, id).await {
                    tracing::warn!(%error, "an older partial of {id} stays until its volume works again");
                }
            }
            return Ok(Some((self.announce(writer), note)));
        }
        Ok(None)
    }

    /// How far a journaled partial that nobody has in hand is durable: [`Store::resume`] will not go on before that,
    /// whatever happens. `None` when there is none.
    pub async fn partial_length(&self, id: BlobId) -> Result<Option<u64>> {
        self.check_open()?;
        self.inner.volumes.first().health.check_writable()?;
        let mut in_hand = Some(self.inner.volumes.first().claim(id).await?);
        if self.volume_of(id).await?.is_some() {
            return Ok(None);
        }
        for volume in self.by_progress(id).await {
            if let Some(length) =
                BlobWriter::settled_length(volume, id, claim_on(volume, id, &mut in_hand).await?).await?
            {
                return Ok(Some(length));
            }
        }
        Ok(None)
    }

    /// Whether a partial may lie on a volume that is not asked: one that is absent or has failed.
    pub fn may_lack_partials(&self) -> bool {
        let volumes = &self.inner.volumes;
        volumes.absent().next().is_some() || volumes.iter().any(|volume| volume.health.is_degraded())
    }

    /// The volumes that can be written, in the order in which they are asked for a partial. One that was begun on a volume which then failed,
    /// and again on another, may be on both: the one that came further counts.
    async fn by_progress(&self, id: BlobId) -> Vec<&Arc<Volume>> {
        let mut volumes = Vec::new();
        for volume in self.inner.volumes.iter().filter(|volume| !volume.health.is_degraded()) {
            let durable = match self.inner.volumes.is_one() {
                true => None,
                // Whoever resumes it meets the error again.
                false => BlobWriter::durable_length(volume, id).await.ok().flatten(),
            };
            volumes.push((durable, volume));
        }
        volumes.sort_by_key(|(durable, _)| std::cmp::Reverse(*durable));
        volumes.into_iter().map(|(_, volume)| volume).collect()
    }

    /// Removes a partial and its journal, if they exist.
    pub async fn discard_partial(&self, id: BlobId) -> Result<()> {
        self.check_open()?;
        let mut outcome = Ok(());
        for volume in self.inner.volumes.iter() {
            outcome = outcome.and(self.discard_on(volume, id).await);
        }
        outcome
    }

    async fn discard_on(&self, volume: &Volume, id: BlobId) -> Result<()> {
        // Held to the end, so that a cancelled commit is over. A writer in somebody's hand is not waited for: its files
        // are taken from under it.
        let _claim = volume.claim(id).await;
        let journaled = match volume.bridge.open(&volume.journal_path(id), How::Read).await {
            Ok(_) => true,
            Err(e) if e.is_not_found() => false,
            Err(e) => return Err(e),
        };
        if journaled && self.volume_of(id).await? != Some(volume.number) {
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
        let mut ids = Vec::new();
        for volume in self.inner.volumes.iter() {
            match sweep::journaled(volume).await {
                Ok(found) => ids.extend(found),
                // What cannot be listed there cannot be taken up either.
                Err(error) if volume.number != 0 => tracing::warn!(%error, "the partials of a volume are not listed"),
                Err(error) => return Err(error),
            }
        }
        ids.sort();
        ids.dedup();
        Ok(ids)
    }
}

/// The claim on a volume: the one that is held already, once, else one of its own.
async fn claim_on(volume: &Volume, id: BlobId, held: &mut Option<InHand>) -> Result<InHand> {
    match held.take() {
        Some(held) => Ok(held),
        None => volume.claim(id).await,
    }
}
