//! The address to listen on, the lock of the data directory, and the health of a running node and its volumes.

use std::io;
use std::net::TcpListener;

use serde_json::Value;

use super::super::Place;
use super::super::client::Client;
use super::super::ls::local_time;
use super::super::output;
use super::super::serve::check_listen;
use super::super::target::{lock_holder, running_node};
use super::super::transport::Transport;
use super::Check;
use crate::access::Access;
use crate::config::Config;

/// More volumes than a node has.
const VOLUMES_SHOWN: usize = 64;
const DAMAGED_NAMED: usize = 10;

pub async fn examine(place: &Place, config: Option<&Config>) -> Vec<Check> {
    let mut checks = Vec::new();
    let running = config.and_then(|config| running_node(&config.data));
    if let Some(config) = config {
        checks.push(listen(config, running.is_some()).await);
    }
    let node = match place.node.as_deref().filter(|text| !text.is_empty()) {
        Some(text) => match place.remote(text) {
            Ok(node) => Some(node),
            Err(error) => {
                checks.push(Check::fail("node", error.to_string(), "give its address as http://HOST:PORT"));
                return checks;
            }
        },
        None => running,
    };
    checks.extend(match (node, config) {
        (Some(node), _) => health(Transport::to(&node).map(Client::new)).await,
        (None, Some(config)) => match lock_holder(&config.data) {
            Some(pid) => vec![Check::warn(
                "node",
                format!("process {pid} holds {} but tells no address", config.data.display()),
                "it starts, stops, or is another reelring command: look again in a moment",
            )],
            None => {
                vec![Check::ok("node", format!("none runs on {}; `reelring serve` starts one", config.data.display()))]
            }
        },
        (None, None) => vec![Check::ok("node", "none is known without a configuration")],
    });
    checks
}

async fn listen(config: &Config, ours: bool) -> Check {
    const NAME: &str = "listen";
    if let Err(message) = check_listen(config) {
        return Check::fail(NAME, format!("{} is refused", config.listen), message);
    }
    let has_tokens = Access::open(&config.data).is_ok_and(|access| access.has_tokens());
    if config.insecure_no_auth && !config.listens_on_loopback() && !has_tokens {
        return Check::warn(
            NAME,
            format!("{} is open to everybody who reaches it", config.listen),
            "make a token with `reelring token create`, or put a proxy with authentication in front",
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

/// What the node says of itself and of its volumes.
async fn health(client: super::super::exit::Result<Client>) -> Vec<Check> {
    const NAME: &str = "node";
    let next = "look at its log, or start it again with `reelring serve`";
    let client = match client {
        Ok(client) => client,
        Err(error) => return vec![Check::fail(NAME, error.to_string(), next)],
    };
    let address = client.address().unwrap_or_default().to_string();
    let mut checks = vec![match client.json("/readyz").await {
        Ok(ready) => {
            let engine = ready["engine"].as_str().unwrap_or("unknown");
            Check::ok(NAME, format!("{address} is ready, engine {engine}"))
        }
        Err(error) => Check::fail(NAME, format!("{address} is not ready: {error}"), next),
    }];
    // An older node does not tell.
    if let Ok(told) = client.json("/v1/volumes").await {
        checks.extend(told["volumes"].as_array().into_iter().flatten().take(VOLUMES_SHOWN).map(volume));
    }
    if let Ok(told) = client.json(&format!("/v1/scrub?limit={DAMAGED_NAMED}")).await {
        checks.push(integrity(&told));
    }
    checks
}

/// What is quarantined, and when everything was last looked at.
fn integrity(told: &Value) -> Check {
    const NAME: &str = "integrity";
    let damaged = told["quarantined_total"].as_u64().unwrap_or(0);
    let looked = match told["last"]["finished_at"].as_str() {
        Some(at) => format!("the last scrub ended {}", local_time(at)),
        None => "no scrub has come to its end yet".to_owned(),
    };
    if damaged == 0 {
        return Check::ok(NAME, format!("nothing is known to be damaged; {looked}"));
    }
    let name = |found: &Value| found["key"].as_str().or(found["blob"].as_str()).unwrap_or_default().to_owned();
    let mut named: Vec<String> = told["quarantined"].as_array().into_iter().flatten().map(name).collect();
    if damaged > named.len() as u64 {
        named.push("…".into());
    }
    Check::fail(
        NAME,
        format!("{damaged} blobs are damaged and refused: {}; {looked}", named.join(", ")),
        "see `reelring scrub --status`; store them again, restore their files from a back-up, or delete them",
    )
}

fn volume(told: &Value) -> Check {
    const NAME: &str = "volume";
    let text = |name: &str| told[name].as_str().unwrap_or_default();
    let bytes = |name: &str| output::bytes(told[name].as_u64().unwrap_or(0));
    let called = format!("{} ({})", told["volume"], text("path"));
    let next = text("next");
    match text("state") {
        "ready" if told["low"] == true => Check::warn(
            NAME,
            format!("{called} can take {} more", bytes("available_bytes")),
            "delete something, raise `quota` or lower `min_free`, or add a volume",
        ),
        "ready" => Check::ok(
            NAME,
            format!("{called} holds {}, can take {} more", bytes("used_bytes"), bytes("available_bytes")),
        ),
        state @ ("full" | "retired") => Check::warn(NAME, format!("{called} is {state}"), next),
        state => Check::fail(NAME, format!("{called} is {state} since {}: {}", text("since"), text("reason")), next),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Status;
    use super::*;

    #[test]
    fn a_volume_that_failed_is_told_with_its_reason_and_the_next_step() {
        let told = json!({"volume": 1, "path": "/disk2", "state": "degraded", "since": "2026-01-01T00:00:00Z",
                          "reason": "could not sync x", "next": "look at dmesg"});
        let check = volume(&told);
        assert_eq!(check.status, Status::Fail);
        for part in ["1 (/disk2)", "degraded", "2026-01-01", "could not sync x"] {
            assert!(check.finding.contains(part), "{part} is not in {:?}", check.finding);
        }
        assert_eq!(check.next.as_deref(), Some("look at dmesg"));
        let ready = json!({"volume": 0, "path": "/d", "state": "ready", "low": false, "available_bytes": 1 << 30});
        assert_eq!(volume(&ready).status, Status::Ok);
        assert_eq!(volume(&json!({"volume": 0, "path": "/d", "state": "ready", "low": true})).status, Status::Warn);
    }
}
