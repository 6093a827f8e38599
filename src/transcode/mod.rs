//! Transcoding: under construction.

use std::fmt;

use reelring_storage::{ObjectRecord, Store};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::config::WorkerPath;
use crate::error::Failure;
use crate::progress::Reporter;

pub const MIGRATION: &str = "";

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AssetId(String);

impl AssetId {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(uuid::Uuid::now_v7().simple().to_string())
    }
}

impl fmt::Display for AssetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ladder(Vec<String>);

pub struct TranscodeRequest {
    pub source: ObjectRecord,
    pub ladder: Ladder,
    pub asset: AssetId,
}

pub struct Outcome {
    pub asset: AssetId,
}

#[derive(Clone)]
pub struct Transcoder {
    worker: WorkerPath,
}

impl Transcoder {
    pub fn new(_store: Store, worker: WorkerPath) -> Self {
        Self { worker }
    }

    pub async fn run(
        &self,
        _request: TranscodeRequest,
        _reporter: &Reporter,
        _cancel: &CancellationToken,
    ) -> Result<Outcome, Failure> {
        self.worker.require().map_err(Failure::permanent)?;
        Err(Failure::permanent("transcoding is not built yet"))
    }

    pub async fn discard(&self, _asset: &AssetId) -> Result<(), Failure> {
        Ok(())
    }
}
