//! The address to listen on, the lock of the data directory, and the health of a running node.

use std::io;
use std::net::TcpListener;

use super::super::client::Client;
use super::super::serve::check_listen;
use super::super::target::{lock_holder, node_url, running_node};
use super::super::transport::Transport;
use super::Check;
use crate::config::Config;

pub async fn examine(named: Option<&str>, config: Option<&Config>) -> Vec<Check> {
    let mut checks = Vec::new();
    let running = config.and_then(|config| running_node(&config.data));
    if let Some(config) = config {
        checks.push(listen(config, running.is_some()).await);
    }
    let node = match named.filter(|text| !text.is_empty()) {
        Some(text) => match node_url(text) {
            Ok(url) => Some(url),
            Err(error) => {
                checks.push(Check::fail("node", error.to_string(), "give its address as http://HOST:PORT"));
                return checks;
            }
        },
        None => running,
    };
    checks.push(match (node, config) {
        (Some(url), _) => health(Transport::network(&url).map(Client::new)).await,
        (None, Some(config)) => match lock_holder(&config.data) {
            Some(pid) => Check::warn(
                "node",
                format!("process {pid} holds {} but tells no address", config.data.display()),
                "it starts, stops, or is another reelring command: look again in a moment",
            ),
            None => Check::ok("node", format!("none runs on {}; `reelring serve` starts one", config.data.display())),
        },
        (None, None) => Check::ok("node", "none is known without a configuration"),
    });
    checks
}

async fn listen(config: &Config, ours: bool) -> Check {
    const NAME: &str = "listen";
    if let Err(message) = check_listen(config) {
        return Check::fail(NAME, format!("{} is refused", config.listen), message);
    }
    if config.insecure_no_auth && !config.listen.ip().to_canonical().is_loopback() {
        return Check::warn(
            NAME,
            format!("{} is open to everybody who reaches it", config.listen),
            "put a proxy with authentication in front",
        );
    }
    match TcpListener::bind(config.listen) {
        Ok(_) => Check::ok(NAME, format!("{} is free", config.listen)),
        Err(_) if ours => Check::ok(NAME, format!("{} is taken, a node runs on this data directory", config.listen)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Check::warn(
            NAME,
            format!("{} is in use by another program", config.listen),
            "stop it, or choose another port with `reelring serve --listen`",
        ),
        Err(error) => Check::fail(
            NAME,
            format!("{} cannot be listened on: {error}", config.listen),
            "choose another address with `reelring serve --listen`",
        ),
    }
}

async fn health(client: super::super::exit::Result<Client>) -> Check {
    const NAME: &str = "node";
    let next = "look at its log, or start it again with `reelring serve`";
    let client = match client {
        Ok(client) => client,
        Err(error) => return Check::fail(NAME, error.to_string(), next),
    };
    let address = client.address().unwrap_or_default().to_string();
    match client.json("/readyz").await {
        Ok(ready) => {
            let engine = ready["engine"].as_str().unwrap_or("unknown");
            Check::ok(NAME, format!("{address} is ready, engine {engine}"))
        }
        Err(error) => Check::fail(NAME, format!("{address} is not ready: {error}"), next),
    }
}
