//! One command's connection to a node, and the runtime it needs.
//!
//! Against a running node one thread is enough. Without one the command starts a node of its own in this process,
//! without a socket, and drains it before it ends, so the data directory is left clean and unlocked.

use std::ops::AsyncFnOnce;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::exit::{CliError, Result};
use super::interrupt;
use super::target::{self, Target};
use super::transport::Transport;
use crate::config::Config;
use crate::http;
use crate::node::{Node, StartError};
use crate::telemetry;

/// How long a command waits for another short one that holds the data directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(50);

pub struct Session {
    pub client: Client,
    /// Cancelled by the first Ctrl-C.
    pub interrupt: CancellationToken,
}

impl Session {
    /// Whether the node is this process, so that its jobs end with it.
    pub fn is_local(&self) -> bool {
        self.client.address().is_none()
    }
}

/// Opens the target, does the work, and drains what was opened, whatever became of the work.
pub fn with<T>(target: Target, work: impl AsyncFnOnce(&Session) -> Result<T>) -> Result<T> {
    run(target, Jobs::Wait, work)
}

/// As [`with`], for a command that waits for a job: a node of this process runs what is queued.
pub fn with_jobs<T>(target: Target, work: impl AsyncFnOnce(&Session) -> Result<T>) -> Result<T> {
    run(target, Jobs::Run, work)
}

/// What a node of this process does about the jobs it finds. A running node runs them anyway.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Jobs {
    Run,
    Wait,
}

fn run<T>(target: Target, jobs: Jobs, work: impl AsyncFnOnce(&Session) -> Result<T>) -> Result<T> {
    match target {
        Target::Node(node) => {
            let transport = Transport::to(&node)?;
            let runtime = start(&mut Builder::new_current_thread())?;
            runtime.block_on(remote(transport, work))
        }
        Target::Local(config) => {
            // A node of this process keeps quiet unless REELRING_LOG asks: what matters becomes the command's error.
            telemetry::init("off");
            let runtime = start(&mut Builder::new_multi_thread())?;
            match runtime.block_on(open(&config, jobs))? {
                Opened::Own(node) => runtime.block_on(local(node, work)),
                Opened::Running(transport) => runtime.block_on(remote(transport, work)),
            }
        }
    }
}

fn start(builder: &mut Builder) -> Result<Runtime> {
    builder.enable_all().build().map_err(|error| CliError::failed(format!("cannot start the runtime: {error}")))
}

async fn remote<T>(transport: Transport, work: impl AsyncFnOnce(&Session) -> Result<T>) -> Result<T> {
    let session = Session { client: Client::new(transport), interrupt: watch()? };
    work(&session).await
}

async fn local<T>(node: Arc<Node>, work: impl AsyncFnOnce(&Session) -> Result<T>) -> Result<T> {
    let transport = Transport::in_process(http::router(node.clone()));
    let session = Session { client: Client::new(transport), interrupt: watch()? };
    let outcome = work(&session).await;
    drop(session);
    let drained = node.drain().await;
    let value = outcome?;
    drained.map_err(|error| CliError::failed(format!("the data directory could not be closed: {error}")))?;
    Ok(value)
}

fn watch() -> Result<CancellationToken> {
    interrupt::watch().map_err(|error| CliError::failed(format!("cannot watch for Ctrl-C: {error}")))
}

enum Opened {
    Own(Arc<Node>),
    /// A node began to listen on the data directory in the meantime.
    Running(Transport),
}

async fn open(config: &Config, jobs: Jobs) -> Result<Opened> {
    let begun = Instant::now();
    loop {
        let started = match jobs {
            Jobs::Run => Node::start(config.clone()).await,
            Jobs::Wait => Node::open(config.clone()).await,
        };
        let error = match started {
            Ok(node) => return Ok(Opened::Own(node)),
            Err(error) => error,
        };
        if !is_locked(&error) {
            return Err(CliError::failed(error.to_string()));
        }
        if let Some(node) = target::running_node(&config.data) {
            return Ok(Opened::Running(Transport::to(&node)?));
        }
        if begun.elapsed() >= LOCK_PATIENCE {
            return Err(CliError::failed(format!(
                "{error}. It has told no address to ask instead: it starts, stops, or is another reelring command; \
                 wait for it, or name a running node with --node URL"
            )));
        }
        tokio::time::sleep(LOCK_RETRY).await;
    }
}

fn is_locked(error: &StartError) -> bool {
    matches!(error, StartError::Storage(reelring_storage::Error::Locked { .. }))
}
