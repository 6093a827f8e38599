//! `reelring serve`: the node as a service.
//!
//! Owns the listening socket until `http::serve` takes it. SIGTERM and SIGINT drain: no new connections, requests in
//! progress end, jobs keep their state for the next start. A second signal ends the process at once, which costs no
//! acknowledged data.

use std::io::{self, IsTerminal};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::exit::{CliError, Result};
use super::interrupt;
use super::target::{lock_holder, running_node};
use crate::access::Access;
use crate::config::{Anonymous, Config, Listen, Settings};
use crate::http::Tls;
use crate::node::Node;
use crate::size::Size;
use crate::{http, limits, telemetry};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  reelring serve                            on 127.0.0.1:8080, data in ./reelring-data
  reelring serve --data /srv/media --listen 127.0.0.1:9000
  reelring serve --config /etc/reelring.toml
  reelring serve --data /srv/media --volume /disk2/media --volume /disk3/media --min-free 50GiB
  reelring serve --listen 0.0.0.0:8443 --tls-cert cert.pem --tls-key key.pem
  REELRING_LOG=debug reelring serve         tell more

Stop it with Ctrl-C or SIGTERM: requests end, jobs go on at the next start. To listen on other
addresses than loopback make a token first: reelring token create ops --scope admin")]
pub struct Serve {
    /// Configuration file [default: ./reelring.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address and port; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<Listen>,
    /// Data directory, made if it does not exist [default: ./reelring-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Directory on another disk for objects too; may be given several times
    #[arg(long = "volume", value_name = "DIR")]
    volumes: Vec<PathBuf>,
    /// What stays free on each volume, 10GiB for instance [default: 1GiB, 5 % of a small disk]
    #[arg(long, value_name = "SIZE")]
    min_free: Option<Size>,
    /// What the objects on each volume may have altogether [default: no limit]
    #[arg(long, value_name = "SIZE")]
    quota: Option<Size>,
    /// Fetch from this machine and private networks too
    #[arg(long)]
    allow_private_origins: bool,
    /// How files are read and written: auto, uring or threads [default: auto]
    #[arg(long)]
    engine: Option<String>,
    /// Folder searched first for reelring-transcode and reelring-plugin
    #[arg(long, value_name = "DIR")]
    workers: Option<PathBuf>,
    /// A copy of hls.js for the player page, for browsers that play no HLS of their own
    #[arg(long, value_name = "FILE")]
    player_js: Option<PathBuf>,
    /// Certificate chain in PEM: the node speaks https, HTTP/2 included; read again on SIGHUP
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key in PEM
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// What clients without a token may do on a node that has tokens: none or read [default: none]
    #[arg(long, value_name = "WHAT")]
    anonymous: Option<Anonymous>,
    /// Listen beyond loopback although anybody who reaches the port may then read, write and delete
    #[arg(long)]
    insecure_no_auth: bool,
}

impl Serve {
    pub fn run(self) -> Result<()> {
        let flags = Settings {
            listen: self.listen,
            data: self.data,
            volumes: (!self.volumes.is_empty()).then_some(self.volumes),
            min_free: self.min_free,
            quota: self.quota,
            engine: self.engine,
            allow_private_origins: self.allow_private_origins.then_some(true),
            insecure_no_auth: self.insecure_no_auth.then_some(true),
            workers: self.workers,
            player_js: self.player_js,
            tls_cert: self.tls_cert,
            tls_key: self.tls_key,
            anonymous: self.anonymous,
            ..Settings::default()
        };
        let (config, _) =
            Config::resolve(self.config.as_deref(), flags).map_err(|error| CliError::usage(error.to_string()))?;
        check_listen(&config).map_err(CliError::usage)?;
        let tls = Tls::of(&config).map_err(|error| CliError::usage(error.to_string()))?.map(Arc::new);
        // What clients of HTTP/2 do wrong its library tells at `warn`, frame by frame: it must not fill the log.
        telemetry::init("info,h2=error");
        raise_descriptor_limit();
        // Before the data directory is touched: a port in use is the most common mistake.
        let listener = bind(&config)?;
        let runtime = Builder::new_multi_thread()
            // One turn of a task may be half a MiB sent: after a few, who else has become ready is looked up.
            .event_interval(limits::RUNTIME_TURNS)
            .global_queue_interval(limits::RUNTIME_TURNS)
            .enable_all()
            .build()
            .map_err(|error| CliError::failed(format!("cannot start the runtime: {error}")))?;
        runtime.block_on(serve(config, listener, tls))
    }
}

async fn serve(config: Config, listener: TcpListener, tls: Option<Arc<Tls>>) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)
        .map_err(|error| CliError::failed(format!("cannot listen: {error}")))?;
    let address = listener.local_addr().map_err(|error| CliError::failed(format!("cannot listen: {error}")))?;
    let stop = interrupt::watch().map_err(|error| CliError::failed(format!("cannot watch for signals: {error}")))?;
    let node = Node::start(config.clone()).await.map_err(|error| CliError::failed(error.to_string()))?;
    let engine = node.store().engine();
    let data = config.data.display();
    let scheme = if tls.is_some() { "https" } else { "http" };
    if tls.is_none() && node.asks_for_tokens() && !config.listens_on_loopback() {
        tracing::warn!(
            "tokens travel unencrypted; give tls_cert and tls_key, or put a proxy that speaks https in front"
        );
    }
    watch_for_reload(&node, tls.clone())
        .map_err(|error| CliError::failed(format!("cannot watch for signals: {error}")))?;
    tracing::info!("ready on {scheme}://{address}, data in {data}, engine {} ({})", engine.name, engine.reason);
    let outcome = answer(&node, listener, tls, stop).await;
    let drained = node.drain().await;
    outcome?;
    drained.map_err(|error| CliError::failed(format!("the data directory could not be closed: {error}")))?;
    tracing::info!("stopped");
    Ok(())
}

/// Serves until a signal comes, then until the requests in progress are over.
async fn answer(
    node: &Arc<Node>,
    listener: tokio::net::TcpListener,
    tls: Option<Arc<Tls>>,
    stop: CancellationToken,
) -> Result<()> {
    let failed = |error: io::Error| CliError::failed(format!("the listener failed: {error}"));
    let shutdown = CancellationToken::new();
    let mut serving = std::pin::pin!(http::serve(node.clone(), listener, tls, shutdown.clone()));
    tokio::select! {
        served = &mut serving => return served.map_err(failed),
        () = stop.cancelled() => {}
    }
    tracing::info!("stopping: requests have {} s to end, a second signal ends at once", limits::DRAIN.as_secs());
    // Endless answers end first, or they would use up the time.
    node.closing().cancel();
    shutdown.cancel();
    serving.await.map_err(failed)
}

/// SIGHUP: the certificate and the tokens are read again. What is wrong with them is told, and the old ones stay.
fn watch_for_reload(node: &Arc<Node>, tls: Option<Arc<Tls>>) -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let node = node.clone();
    let on_terminal = io::stdin().is_terminal();
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            if on_terminal && !io::stdin().is_terminal() {
                // Not a request to reload: the terminal is gone, and with it whoever watched.
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).ok();
                return;
            }
            let (node, tls) = (node.clone(), tls.clone());
            let read = tokio::task::spawn_blocking(move || reload(&node, tls.as_deref()));
            let _ = read.await;
        }
    });
    Ok(())
}

fn reload(node: &Node, tls: Option<&Tls>) {
    match node.access().reload() {
        Ok(tokens) => tracing::info!(tokens, "read the tokens again"),
        Err(error) => tracing::error!(%error, "the tokens stay as they were"),
    }
    let Some(tls) = tls else { return };
    match tls.reload() {
        Ok(()) => tracing::info!("new connections get the certificate that is in {} now", tls.certificate().display()),
        Err(error) => tracing::error!(%error, "the certificate stays as it was"),
    }
}

fn bind(config: &Config) -> Result<TcpListener> {
    let listen = config.listen;
    let bound = TcpListener::bind(listen).and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    bound.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => match running_node(&config.data) {
            Some(node) => CliError::failed(format!(
                "a node runs on {} already, at {} (process {}); use that one, or give another --data and --listen",
                config.data.display(),
                node.url.as_str().trim_end_matches('/'),
                lock_holder(&config.data).map_or("unknown".into(), |pid| pid.to_string())
            )),
            None => CliError::failed(format!(
                "{listen} is in use by another program; stop it, or choose another port with --listen {}:PORT (0 takes \
                 a free one)",
                listen.ip()
            )),
        },
        io::ErrorKind::PermissionDenied => CliError::failed(format!(
            "listening on {listen} is not permitted: ports below 1024 need a privilege; choose a higher one with --listen"
        )),
        io::ErrorKind::AddrNotAvailable => CliError::failed(format!(
            "{} is not an address of this machine; choose one that is with --listen",
            listen.ip()
        )),
        _ => CliError::failed(format!("cannot listen on {listen}: {error}")),
    })
}

/// Without a token anybody who reaches the port can do everything, so only this machine may reach it.
pub fn check_listen(config: &Config) -> std::result::Result<(), String> {
    if config.listens_on_loopback() || config.insecure_no_auth {
        return Ok(());
    }
    if Access::open(&config.data).map_err(|error| error.to_string())?.has_tokens() {
        return Ok(());
    }
    let (listen, data) = (config.listen, config.data.display());
    Err(format!(
        "listening on {listen} would let everybody who reaches it read, write and delete, since {data} has no access \
         token; make one with `reelring token create NAME --scope admin --data {data}`, listen on 127.0.0.1 behind a \
         proxy that authenticates, or accept it with --insecure-no-auth"
    ))
}

/// The soft limit is often 1024, which a few hundred connections use up; the hard limit is the administrator's word.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listen: &str, insecure: bool) -> Config {
        let data = Some("/nonexistent/reelring".into());
        let listen = listen.parse().ok();
        let flags = Settings { listen, data, insecure_no_auth: Some(insecure), ..Settings::default() };
        Config::resolve(None, flags).unwrap().0
    }

    #[test]
    fn only_loopback_without_the_explicit_word() {
        for listen in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(check_listen(&config(listen, false)), Ok(()), "{listen}");
        }
        for listen in ["0.0.0.0:1", "[::]:1", "192.168.1.1:1"] {
            let message = check_listen(&config(listen, false)).unwrap_err();
            assert!(message.contains(listen) && message.contains("--insecure-no-auth"), "{message}");
            assert_eq!(check_listen(&config(listen, true)), Ok(()));
        }
    }

    #[test]
    fn a_port_in_use_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let message = bind(&config(&address, false)).unwrap_err().to_string();
        assert!(message.contains(&address) && message.contains("--listen"), "{message}");
    }
}
