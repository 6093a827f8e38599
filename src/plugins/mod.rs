//! Plugins: under construction.

use std::path::PathBuf;
use std::time::Duration;

use axum::http::HeaderMap;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::config::WorkerPath;
use crate::error::Failure;
use crate::ingest::guard;

#[derive(Clone)]
pub struct Plugins;

pub struct Extraction {
    pub plugin: String,
    pub url: Url,
    pub headers: HeaderMap,
}

impl Plugins {
    pub async fn start(_folder: PathBuf, _worker: WorkerPath, _client: guard::Client, _timeout: Duration) -> Plugins {
        Plugins
    }

    pub fn claims(&self, _url: &Url) -> Option<String> {
        None
    }

    pub async fn extract(&self, _url: &Url, _cancel: &CancellationToken) -> Result<Extraction, Failure> {
        Err(Failure::permanent("plugins are not built yet"))
    }

    pub fn list(&self) -> Vec<String> {
        Vec::new()
    }

    pub async fn shutdown(&self) {}
}
