//! Extractors written in JavaScript: which of them claims an address, and what they find behind it.
//!
//! [`Plugins`] keeps the plugins directory loaded: every `*.js` in it is one plugin, in one worker process that can be
//! killed (`process`), in generations that replace each other whole (`supervisor`), reloaded as files change
//! (`registry`, `watch`). A plugin has no network but `ctx.fetch`, which is the node's guarded client (`pages`).
//! What a plugin says is checked here, never believed (`manifest`, `extraction`).
//!
//! A cancelled extract returns at once; its worker finishes or meets its deadline by itself. [`Plugins::shutdown`] ends
//! every worker and waits until they are gone.

mod extraction;
mod manifest;
mod pages;
mod process;
mod registry;
mod supervisor;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

use crate::config::WorkerPath;
use crate::error::Failure;
use crate::ingest::guard;
use crate::limits;
pub use extraction::Extraction;
use pages::Pages;
use registry::Registry;

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// One `extract`.
    pub extract: Duration,
    /// From the start of a worker to its manifest.
    pub load: Duration,
    /// A worker without calls is ended after this long.
    pub idle: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options { extract: limits::PLUGIN_EXTRACT, load: limits::PLUGIN_LOAD, idle: limits::PLUGIN_IDLE }
    }
}

/// One file of the plugins directory, as `plugins ls` and `GET /v1/plugins` show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginStatus {
    pub id: String,
    pub file: String,
    pub version: Option<String>,
    /// Counts every load of any plugin since the node's start; `null` while nothing of this file is loaded.
    pub generation: Option<u64>,
    pub matches: Vec<String>,
    pub state: PluginState,
    /// Why the file is not, or not in its newest version, at work.
    pub last_error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PluginState {
    Loading,
    /// At work; with a `last_error`, the version before the file's last change is.
    Ready,
    /// Never loaded.
    Broken,
    /// Not a plugin, for the reason in `last_error`.
    Ignored,
    /// The worker executable is missing.
    Unavailable,
}

/// What every worker needs of its surroundings.
#[derive(Debug, Clone)]
struct Home {
    worker: WorkerPath,
    pages: Pages,
    options: Options,
    /// Workers that run a single call each.
    alone: Arc<Semaphore>,
    /// Ends every worker.
    shutdown: CancellationToken,
    /// Everything that must be gone before a shutdown is over.
    tracker: TaskTracker,
}

/// The loaded plugins. Clones are the same.
#[derive(Debug, Clone)]
pub struct Plugins {
    registry: Arc<Registry>,
    home: Home,
}

impl Plugins {
    /// Loads every plugin of the directory (made if it is missing), then watches it. `extract` is the time for one.
    pub async fn start(dir: PathBuf, worker: WorkerPath, client: guard::Client, extract: Duration) -> Plugins {
        Plugins::start_with(dir, worker, client, Options { extract, ..Options::default() }).await
    }

    pub async fn start_with(dir: PathBuf, worker: WorkerPath, client: guard::Client, options: Options) -> Plugins {
        let (shutdown, tracker) = (CancellationToken::new(), TaskTracker::new());
        let alone = Arc::new(Semaphore::new(limits::PLUGIN_CALLS_ALONE));
        let home = Home { worker, pages: Pages::new(client), options, alone, shutdown, tracker };
        let registry = Arc::new(Registry::new(dir, home.clone()));
        // Watched before the first look, so that no change falls between the two.
        let watch = watch::Watch::new(registry.dir());
        registry.scan().await.finished().await;
        home.tracker.spawn(watch.run(registry.clone(), home.shutdown.clone()));
        Plugins { registry, home }
    }

    /// The id of the plugin that wants this address; of several the one whose file comes first by name.
    pub fn claims(&self, url: &Url) -> Option<String> {
        self.registry.claiming(url).map(|generation| generation.manifest.id.clone())
    }

    /// Asks the plugin that claims this address what is behind it.
    pub async fn extract(&self, url: &Url, cancel: &CancellationToken) -> Result<Extraction, Failure> {
        let Some(generation) = self.registry.claiming(url) else {
            self.home.worker.require().map_err(Failure::permanent)?;
            return Err(Failure::permanent(format!("no plugin matches {}", guard::shown(url))));
        };
        tokio::select! {
            found = generation.extract(url, cancel) => found,
            () = cancel.cancelled() => Err(Failure::cancelled()),
        }
    }

    /// Every file of the directory, by name.
    pub fn list(&self) -> Vec<PluginStatus> {
        self.registry.list()
    }

    /// Ends every worker; extracts in flight fail as cancelled.
    pub async fn shutdown(&self) {
        self.home.shutdown.cancel();
        self.registry.clear();
        self.home.tracker.close();
        self.home.tracker.wait().await;
    }
}
