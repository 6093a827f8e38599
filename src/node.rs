//! The composition root: builds every room of the node, and takes them down in the opposite order.
//!
//! [`Node`] owns the store, the plugins, the transcoder and the jobs. It knows nothing of its HTTP interface's requests;
//! `http::serve` runs on top of it, and the command line uses it without any.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reelring_storage::{Error as StorageError, RoomLimits, Store, StoreOptions};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::access::{Access, AccessError};
use crate::config::{Config, WorkerPath};
use crate::http::HttpMetrics;
use crate::ingest::guard;
use crate::jobs::{self, Jobs, Workshop};
use crate::limits;
use crate::plugins::Plugins;
use crate::transcode::{self, Transcoder};
use crate::uploads::{self, Uploads};

/// The catalog's tables beyond storage's own. Scripts are only ever appended.
pub(crate) const MIGRATIONS: &[&str] = &[jobs::MIGRATION, transcode::MIGRATION, uploads::MIGRATION];

pub struct Node {
    config: Config,
    access: Access,
    store: Store,
    client: guard::Client,
    plugins: Plugins,
    jobs: Jobs,
    uploads: Uploads,
    http_metrics: HttpMetrics,
    event_streams: Arc<Semaphore>,
    closing: CancellationToken,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("the plugins folder {path} cannot be made: {source}")]
    PluginsFolder { path: PathBuf, source: std::io::Error },
}

impl Node {
    /// Builds the node and lets its jobs run.
    pub async fn start(config: Config) -> Result<Arc<Node>, StartError> {
        let node = Node::open(config).await?;
        node.jobs.run();
        node.uploads.run();
        node.scrub_regularly();
        Ok(node)
    }

    /// Builds the node for a command that only looks at or changes what is stored: no job runs.
    pub async fn open(config: Config) -> Result<Arc<Node>, StartError> {
        let store = Store::open(StoreOptions {
            engine: config.engine,
            node_migrations: MIGRATIONS,
            room: RoomLimits { min_free: config.min_free, quota: config.quota },
            volumes: config.volumes.clone(),
            ..StoreOptions::new(&config.data)
        })
        .await?;
        let access = Access::open(&config.data)?;
        let client = guard::Client::new(guard::Policy { allow_private: config.allow_private_origins });
        let folder = config.data.join("plugins");
        std::fs::create_dir_all(&folder)
            .map_err(|source| StartError::PluginsFolder { path: folder.clone(), source })?;
        let worker = |name| WorkerPath::find(name, config.workers.as_deref());
        let plugins = Plugins::start(folder, worker("reelring-plugin"), client.clone(), config.plugin_timeout()).await;
        let transcoder = Transcoder::new(store.clone(), worker("reelring-transcode"));
        let workshop = Workshop { store: store.clone(), client: client.clone(), plugins: plugins.clone(), transcoder };
        let closing = CancellationToken::new();
        let uploads = Uploads::open(store.clone(), config.upload_expiry(), closing.clone());
        let jobs = Jobs::open(workshop, uploads.partials().await?).await?;
        Ok(Arc::new(Node {
            config,
            access,
            store,
            client,
            plugins,
            jobs,
            uploads,
            http_metrics: HttpMetrics::default(),
            event_streams: Arc::new(Semaphore::new(limits::EVENT_STREAMS)),
            closing,
        }))
    }

    /// Plans the scrubs until the node closes.
    fn scrub_regularly(&self) {
        let Config { scrub_interval_days, scrub_rate, .. } = self.config;
        if scrub_interval_days == 0 {
            return;
        }
        let interval = Duration::from_secs(scrub_interval_days * 86_400);
        let (store, closing) = (self.store.clone(), self.closing.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = store.scrub_regularly(interval, scrub_rate) => {}
                () = closing.cancelled() => {}
            }
        });
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Whether strangers must bring a token. Beyond loopback always, even when the last one was revoked.
    pub fn asks_for_tokens(&self) -> bool {
        self.access.has_tokens() || !(self.config.listens_on_loopback() || self.config.insecure_no_auth)
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What every outgoing request goes through.
    pub fn client(&self) -> &guard::Client {
        &self.client
    }

    pub fn plugins(&self) -> &Plugins {
        &self.plugins
    }

    pub fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    pub fn uploads(&self) -> &Uploads {
        &self.uploads
    }

    pub fn http_metrics(&self) -> &HttpMetrics {
        &self.http_metrics
    }

    pub(crate) fn event_streams(&self) -> &Arc<Semaphore> {
        &self.event_streams
    }

    /// Fires when the node begins to shut down: endless answers end.
    pub fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    /// Ends appends, stops the jobs, their state kept for the next start, then the workers, then the store. Requests must be over.
    pub async fn drain(&self) -> Result<(), StorageError> {
        self.closing.cancel();
        self.uploads.drain().await;
        self.jobs.drain().await;
        self.plugins.shutdown().await;
        self.store.clone().close().await
    }
}
