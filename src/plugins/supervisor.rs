//! A generation: one text of one plugin, and the worker that runs it.
//!
//! The worker is started to load the text, kept warm, ended when idle, and started again by the next call. Callers hold
//! the generation while they wait, so a generation that was replaced drains by itself: when the last caller lets go, its
//! worker ends.
//!
//! Calls share a worker until it comes to a bad end with several of them in flight. Then each is made once more in a
//! worker of its own, where the one to blame meets the same end alone and the others get their answer. A call that finds
//! the engine busy with another gets a worker of its own as well.

use std::sync::Arc;

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::Home;
use super::extraction::Extraction;
use super::manifest::Manifest;
use super::process::{NoAnswer, Process};
use crate::error::{Failure, FailureKind};

/// Tries to find a living worker for one call: one that had just ended, and its successor.
const STARTS_PER_CALL: usize = 3;

#[derive(Debug)]
pub struct Generation {
    pub number: u64,
    pub manifest: Manifest,
    pub source: Arc<str>,
    file: String,
    home: Home,
    process: Mutex<Option<Arc<Process>>>,
}

impl Generation {
    /// Loads a text in a new worker and checks its manifest. The failure's message is what `list` shows.
    pub async fn load(home: Home, file: &str, source: Arc<str>, number: u64) -> Result<Generation, Failure> {
        let (process, manifest) = start(&home, file, &source).await?;
        let stem = file.strip_suffix(".js").unwrap_or(file);
        let manifest = Manifest::parse(&manifest, stem).map_err(|error| Failure::permanent(error.to_string()))?;
        let process = Mutex::new(Some(Arc::new(process)));
        Ok(Generation { number, manifest, source, file: file.into(), home, process })
    }

    /// Asks the plugin what is behind an address.
    pub async fn extract(&self, url: &Url, cancel: &CancellationToken) -> Result<Extraction, Failure> {
        let id = &self.manifest.id;
        let answer = self.ask(url, cancel).await.map_err(|failure| match failure.kind {
            FailureKind::Cancelled => failure,
            _ => failure.context(format!("plugin {id}")),
        })?;
        Extraction::parse(&answer, id).map_err(|error| Failure::permanent(format!("plugin {id}: {error}")))
    }

    async fn ask(&self, url: &Url, cancel: &CancellationToken) -> Result<String, Failure> {
        for _ in 0..STARTS_PER_CALL {
            let process = self.process().await?;
            match process.extract(url, cancel).await {
                Ok(answer) => return Ok(answer),
                Err(NoAnswer::Failed(failure)) => return Err(failure),
                Err(NoAnswer::Shared(_)) => {
                    self.forget(&process).await;
                    return self.ask_alone(url, cancel).await;
                }
                Err(NoAnswer::Busy) => return self.ask_alone(url, cancel).await,
                Err(NoAnswer::Gone) => self.forget(&process).await,
            }
        }
        Err(Failure::transient(format!("its worker ended {STARTS_PER_CALL} times before it took the call; try again")))
    }

    async fn ask_alone(&self, url: &Url, cancel: &CancellationToken) -> Result<String, Failure> {
        let _slot = self.home.alone.acquire().await.map_err(|error| Failure::transient(error.to_string()))?;
        let (process, _) = start(&self.home, &self.file, &self.source).await?;
        process.extract(url, cancel).await.map_err(|why| match why {
            NoAnswer::Failed(failure) | NoAnswer::Shared(failure) => failure,
            NoAnswer::Busy | NoAnswer::Gone => {
                Failure::transient("its worker did not take the call, as on a machine under heavy load; try again")
            }
        })
    }

    async fn process(&self) -> Result<Arc<Process>, Failure> {
        let mut slot = self.process.lock().await;
        if let Some(process) = &*slot {
            return Ok(process.clone());
        }
        let (process, _) = start(&self.home, &self.file, &self.source).await?;
        Ok(slot.insert(Arc::new(process)).clone())
    }

    async fn forget(&self, ended: &Arc<Process>) {
        let mut slot = self.process.lock().await;
        if slot.as_ref().is_some_and(|process| Arc::ptr_eq(process, ended)) {
            *slot = None;
        }
    }
}

async fn start(home: &Home, file: &str, source: &str) -> Result<(Process, String), Failure> {
    if home.shutdown.is_cancelled() {
        return Err(Failure::cancelled());
    }
    let worker = home.worker.require().map_err(Failure::permanent)?;
    Process::start(home, worker, file, source).await
}
