//! tus-js-client and tuspy through a gate that is cut at random, in front of a node that is killed: every object has the
//! bytes of its file, and no HEAD ever tells less than one before it.
//!
//! `REELRING_UPLOAD_CUTS` is the number of cuts, one in five of them a kill of the node.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::gate::Gate;
use crate::support::node::{Node, log_tail};
use crate::support::process::Owned;
use crate::support::{Noise, eventually, scratch};

const CUTS: usize = 50;
const KILL_EVERY: usize = 5;
/// How fast a connection brings bytes to the node, and what a client sends: it takes seconds, and a cut comes every few
/// tenths of one.
const BYTES_PER_SECOND: usize = 3 << 20;
const FILE_BYTES: usize = 5 << 20;
const PATIENCE: Duration = Duration::from_secs(120);

/// Highest offset told by address.
type Offsets = Arc<Mutex<HashMap<String, u64>>>;

fn tools() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_reelring")).ancestors().nth(2).expect("target").join("tools")
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/uploads").join(name)
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// So many parts, by one of the protocols it speaks.
    TusJs(usize, &'static str),
    Tuspy,
}

const KINDS: [Kind; 5] = [
    Kind::TusJs(4, "tus-v1"),
    Kind::Tuspy,
    Kind::TusJs(1, "tus-v1"),
    Kind::TusJs(1, "ietf-draft-05"),
    Kind::TusJs(3, "tus-v1"),
];

/// Runs one upload to its end; adds the addresses it asks to `offsets`. What it was told itself never gets less either.
fn upload(kind: Kind, endpoint: &str, file: &Path, key: &str, offsets: &Offsets) {
    let mut command = match kind {
        Kind::TusJs(parallel, protocol) => {
            let mut command = Command::new("node");
            command.arg(script("client.mjs")).arg(tools().join("tus")).arg(endpoint).arg(file);
            command.args([key, &parallel.to_string(), protocol]);
            command
        }
        Kind::Tuspy => {
            let mut command = Command::new(tools().join("tuspy/bin/python"));
            command.arg(script("client.py")).arg(endpoint).arg(file).arg(key);
            command
        }
    };
    // Nothing of the caller's settings, a proxy's address for instance, may decide a test.
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let mut process = Owned::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()));
    let mut told: HashMap<String, u64> = HashMap::new();
    let mut done = false;
    for line in BufReader::new(process.0.stdout.take().expect("its output")).lines() {
        let line = line.expect("a line");
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["url", url] => {
                if let Some((_, id)) = url.split_once("/v1/uploads/") {
                    offsets.lock().unwrap().entry(format!("/v1/uploads/{id}")).or_default();
                }
            }
            ["head", url, offset] => {
                let offset: u64 = offset.parse().expect("a number");
                let before = told.insert(url.to_owned(), offset).unwrap_or(0);
                assert!(offset >= before, "{kind:?}: {url} had {before} bytes, now {offset}");
            }
            ["done"] => done = true,
            _ => panic!("{kind:?} says {line:?}"),
        }
    }
    let status = process.0.wait().expect("a child");
    assert!(done && status.success(), "{kind:?} gave up {key}: {status}");
}

/// Asks for every upload that is known, past the gate, as long as `node` has an address.
async fn watch(node: Arc<Mutex<Option<std::net::SocketAddr>>>, offsets: Offsets, over: Arc<AtomicBool>) -> usize {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut asked = 0;
    while !over.load(SeqCst) {
        let known: Vec<(String, u64)> = offsets.lock().unwrap().iter().map(|(path, at)| (path.clone(), *at)).collect();
        for (path, before) in known {
            let Some(addr) = *node.lock().unwrap() else { break };
            let head = client.head(format!("http://{addr}{path}")).header("Tus-Resumable", "1.0.0").send().await;
            let Ok(head) = head else { continue };
            if head.status() == 503 {
                continue;
            }
            assert_eq!(head.status(), 200, "{path} with {before} bytes");
            let offset: u64 = head.headers()["upload-offset"].to_str().unwrap().parse().unwrap();
            assert!(offset >= before, "{path} had {before} bytes, now {offset}");
            offsets.lock().unwrap().insert(path, offset);
            asked += 1;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    asked
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_are_cut_and_killed_end_with_the_right_bytes() {
    let cuts: usize = std::env::var("REELRING_UPLOAD_CUTS").map_or(CUTS, |cuts| cuts.parse().unwrap());
    let folder = scratch("clients");
    let data = folder.path().join("data");
    let gate = Gate::open(BYTES_PER_SECOND).await;
    let mut node = Node::start(&data).await;
    gate.lead_to(Some(node.addr()));
    let at = Arc::new(Mutex::new(Some(node.addr())));
    let (offsets, over) = (Offsets::default(), Arc::new(AtomicBool::new(false)));
    let watching = tokio::spawn(watch(at.clone(), offsets.clone(), over.clone()));

    // Each client uploads one file after another until the last cut has been made.
    let enough = Arc::new(AtomicBool::new(false));
    let finished = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = KINDS
        .into_iter()
        .enumerate()
        .map(|(number, kind)| {
            let (endpoint, folder) = (gate.url("/v1/uploads"), folder.path().to_owned());
            let (offsets, enough, finished) = (offsets.clone(), enough.clone(), finished.clone());
            tokio::task::spawn_blocking(move || {
                let mut keys = Vec::new();
                while !enough.load(SeqCst) {
                    let key = format!("films/{number}-{}", keys.len());
                    let body = Noise::bytes((number * 1000 + keys.len()) as u64, FILE_BYTES + number * 100_003);
                    let file = folder.join(format!("{number}"));
                    std::fs::write(&file, &body).unwrap();
                    upload(kind, &endpoint, &file, &key, &offsets);
                    finished.fetch_add(1, SeqCst);
                    keys.push((key, body));
                }
                keys
            })
        })
        .collect();

    let mut chance = Noise::new(7);
    let (mut made, mut kills) = (0, 0);
    while made < cuts {
        let mut random = [0; 2];
        chance.fill(&mut random);
        tokio::time::sleep(Duration::from_millis(60 + u64::from(random[0]))).await;
        if clients.iter().any(|client| client.is_finished()) {
            break;
        }
        if made % KILL_EVERY == KILL_EVERY - 1 {
            gate.lead_to(None);
            *at.lock().unwrap() = None;
            node.kill();
            gate.cut(true);
            node = Node::start(&data).await;
            *at.lock().unwrap() = Some(node.addr());
            gate.lead_to(Some(node.addr()));
            kills += 1;
        } else if gate.cut(random[1] % 2 == 0) == 0 {
            continue;
        }
        made += 1;
    }
    enough.store(true, SeqCst);
    let mut objects = 0;
    for client in clients {
        let uploaded = tokio::time::timeout(PATIENCE, client).await;
        let uploaded = uploaded.unwrap_or_else(|_| panic!("a client does not end: {}", log_tail(&data)));
        for (key, body) in uploaded.expect("its uploads succeed") {
            let got = node.object(&key).send().await.unwrap();
            assert_eq!(got.status(), 200, "{key}");
            assert!(got.bytes().await.unwrap() == body, "{key} has other bytes");
            objects += 1;
        }
    }
    over.store(true, SeqCst);
    let asked = watching.await.expect("no offset went down");
    assert_eq!(made, cuts, "a client ended early");
    // What clients began and never heard of stays until it expires; nothing else does.
    eventually("uploads end", Duration::from_secs(10), async || {
        (node.partials().iter().filter(|name| name.ends_with(".journal")).count() <= cuts).then_some(())
    })
    .await;
    println!("{made} cuts, {kills} kills, {objects} objects equal, {asked} offsets asked for, none went down");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_goes_on_after_cuts_and_a_kill() {
    let folder = scratch("put");
    let data = folder.path().join("data");
    let body = Noise::bytes(11, 40 << 20);
    let file = folder.path().join("film.mp4");
    std::fs::write(&file, &body).unwrap();
    let gate = Gate::open(20 << 20).await;
    let mut node = Node::start(&data).await;
    gate.lead_to(Some(node.addr()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_reelring"));
    command.arg("put").arg(&file).args(["--quiet", "--node", &gate.url("")]).env_clear().current_dir("/");
    let mut put = Owned::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()));
    eventually("the upload begins", Duration::from_secs(20), async || (!node.partials().is_empty()).then_some(()))
        .await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(put.running() && gate.cut(true) > 0, "it ended too early to be cut");
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(put.running(), "it ended too early for a kill");
    gate.lead_to(None);
    node.kill();
    gate.cut(true);
    node = Node::start(&data).await;
    gate.lead_to(Some(node.addr()));
    eventually("the command ends", Duration::from_secs(60), async || (!put.running()).then_some(())).await;
    assert!(put.0.wait().unwrap().success());
    let got = node.object("film.mp4").send().await.unwrap();
    assert_eq!(got.headers()["content-type"], "video/mp4");
    assert!(got.bytes().await.unwrap() == body);
    assert!(node.partials().is_empty(), "{:?}", node.partials());
}
