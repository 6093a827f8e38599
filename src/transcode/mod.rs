//! Transcoding: an object in, an asset out that plays while it is still being made.
//!
//! The work happens in a worker process (`supervisor`); what comes out of it is stored segment by segment (`intake`), and
//! playlists are written from the rows ([`package`]). Rows and blobs of an asset belong to its one running transcode until it
//! is ready. A cancel, a failure or a dropped future leaves no process behind; the asset of a failed run is removed at
//! once, that of a killed node at the start of the next run or by [`Transcoder::discard`].

pub mod assets;
mod intake;
pub mod ladder;
pub mod package;
pub mod plan;
mod supervisor;

use reelring_storage::{ObjectRecord, Store};
use tokio_util::sync::CancellationToken;

pub use assets::{AssetId, MIGRATION};
pub use ladder::Ladder;

use crate::config::WorkerPath;
use crate::error::{Failure, FailureKind};
use crate::progress::Reporter;
use intake::{Ended, Intake};
use supervisor::Worker;

/// Whether the key in a blob's footer says that it is a piece of a rendition, as `intake` writes it, and not an object.
pub fn is_part(key: &str) -> bool {
    let mut parts = key.split('/');
    let asset = parts.next() == Some("assets") && parts.next().is_some_and(|id| id.parse::<AssetId>().is_ok());
    let file = |name: &str| name == "init.mp4" || name.strip_suffix(".m4s").is_some_and(|n| n.parse::<u32>().is_ok());
    asset && parts.next().is_some() && parts.next().is_some_and(file) && parts.next().is_none()
}

/// What to make, of what.
#[derive(Debug, Clone)]
pub struct TranscodeRequest {
    pub source: ObjectRecord,
    pub ladder: Ladder,
    /// Chosen when the job is admitted: every run of the job makes the same asset.
    pub asset: AssetId,
}

/// A finished transcode.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub asset: AssetId,
    /// FFmpeg's name of the encoder that ran.
    pub encoder: String,
    /// Why it was not the first choice; absent when it was.
    pub fallback_reason: Option<String>,
    /// In the source, and in every video rendition.
    pub frames: u64,
    pub duration_seconds: f64,
    pub notes: Vec<String>,
}

#[derive(Clone)]
pub struct Transcoder {
    store: Store,
    worker: WorkerPath,
}

impl Transcoder {
    pub fn new(store: Store, worker: WorkerPath) -> Self {
        Self { store, worker }
    }

    /// Makes the asset from the beginning; what an earlier run left of it is removed first.
    pub async fn run(
        &self,
        request: TranscodeRequest,
        reporter: &Reporter,
        cancel: &CancellationToken,
    ) -> Result<Outcome, Failure> {
        let mut fallback = None;
        loop {
            self.discard(&request.asset).await?;
            let ended = match self.attempt(&request, fallback.clone(), reporter, cancel).await {
                Ok(outcome) => return Ok(outcome),
                Err(ended) => ended,
            };
            if let Err(error) = self.discard(&request.asset).await {
                tracing::warn!(asset = %request.asset, %error, "the unfinished asset could not be removed; the next run will");
            }
            if !ended.hardware || fallback.is_some() {
                return Err(ended.failure);
            }
            tracing::warn!(asset = %request.asset, error = %ended.failure, "the GPU failed, starting over on the CPU");
            fallback = Some(ended.failure.message);
        }
    }

    /// Removes what there is of an asset, if there is any.
    pub async fn discard(&self, asset: &AssetId) -> Result<(), Failure> {
        assets::delete(&self.store, asset).await?;
        Ok(())
    }

    async fn attempt(
        &self,
        request: &TranscodeRequest,
        fallback: Option<String>,
        reporter: &Reporter,
        cancel: &CancellationToken,
    ) -> Result<Outcome, Ended> {
        if cancel.is_cancelled() {
            return Err(Failure::cancelled().into());
        }
        let path = self.worker.require().map_err(Failure::permanent)?;
        let source = self.store.open_blob(request.source.blob).await?;
        let file = source.file().try_clone().map_err(|error| {
            Failure::transient(format!("the descriptor of {} could not be copied: {error}", request.source.key))
        })?;
        let mut worker = Worker::spawn(path, file)?;
        let conversation = Intake::new(&self.store, request, reporter).converse(&mut worker, fallback);
        let result = tokio::select! {
            // Looked at first: a cancel wins over a segment that has just arrived.
            biased;
            () = cancel.cancelled() => Err(Failure::cancelled().into()),
            result = conversation => result,
        };
        match &result {
            Ok(_) => worker.finish().await,
            Err(_) => worker.end().await,
        }
        result.map_err(|ended| match ended.failure.kind {
            FailureKind::Permanent | FailureKind::Cancelled => ended,
            _ => Ended { failure: ended.failure.context(&request.source.key), ..ended },
        })
    }
}
