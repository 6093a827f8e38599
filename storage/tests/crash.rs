//! SIGKILL at random moments, with an oracle outside the store.
//!
//! The child (this test binary, run again) puts objects and prints each acknowledgement to a pipe;
//! the parent kills it, reopens the directory, and holds the store to what it had acknowledged:
//! every acknowledged version is there or was replaced by a later one, every object there is whole,
//! every journaled partial resumes at or after its last acknowledged checkpoint, and nothing lies
//! about. What a power cut would do is beyond SIGKILL: dirty pages survive a process.

mod common;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{collect, files_below, pattern};
use reelring_storage::{BlobId, BlobMeta, EngineChoice, Key, Precondition, Store};

const CHILD: &str = "REELRING_CRASH_CHILD";
const ENGINE: &str = "REELRING_CRASH_ENGINE";
const KEYS: u64 = 40;
const WRITERS: u64 = 4;

#[test]
fn what_was_acknowledged_survives_sigkill() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Some(dir) = std::env::var_os(CHILD) {
        let engine = std::env::var(ENGINE).unwrap().parse().unwrap();
        return runtime.block_on(write_for_ever(Path::new(&dir), engine));
    }
    let dir = tempfile::tempdir().unwrap();
    let (engines, mut oracle) = (common::engines(), Oracle::default());
    let started = Instant::now();
    let mut round = 0_u64;
    while round < 30 && started.elapsed() < Duration::from_secs(15) {
        let engine = engines[round as usize % engines.len()];
        // From a few operations to a few hundred; 0x9e37… spreads the moments.
        let acknowledgements = 5 + (round * 0x9e37_79b9 % 150) as usize;
        oracle.hear(start_child(dir.path(), engine), acknowledgements);
        runtime.block_on(oracle.judge(dir.path(), engine));
        round += 1;
    }
    assert!(oracle.heard > 100, "only {} acknowledgements in {round} rounds prove little", oracle.heard);
    println!("{round} rounds, {} acknowledgements", oracle.heard);
}

/// What the store has promised.
#[derive(Default)]
struct Oracle {
    /// The last acknowledged version of each key.
    versions: HashMap<u64, u64>,
    /// The last acknowledged checkpoint of each journaled partial.
    checkpoints: HashMap<BlobId, u64>,
    heard: usize,
}

impl Oracle {
    /// Listens until enough was acknowledged, kills, and hears out what was said before.
    fn hear(&mut self, mut child: Child, acknowledgements: usize) {
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut heard = 0;
        for line in lines {
            let line = line.unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["put", key, version] => {
                    let version: u64 = version.parse().unwrap();
                    let last = self.versions.entry(key.parse().unwrap()).or_default();
                    *last = version.max(*last);
                }
                ["checkpoint", id, length] => {
                    self.checkpoints.insert(id.parse().unwrap(), length.parse().unwrap());
                }
                ["giving-up", id] => {
                    self.checkpoints.remove(&id.parse().unwrap());
                }
                // The test harness says a word or two on its own.
                _ => continue,
            }
            heard += 1;
            if heard == acknowledgements {
                child.kill().unwrap();
            }
        }
        let status = child.wait().unwrap();
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        assert_eq!(signal, Some(libc::SIGKILL), "the child ended by itself: {status}");
        self.heard += heard;
    }

    async fn judge(&mut self, dir: &Path, engine: EngineChoice) {
        let store = common::open(dir, engine).await;
        let objects = store.list_objects("", None, 10_000).await.unwrap();
        let mut found = HashMap::new();
        for object in &objects {
            let reader = store.open_blob(object.blob).await.unwrap();
            let data = collect(reader.stream(0..u64::MAX)).await;
            let key: u64 = object.key.as_str().parse().unwrap();
            let version = u64::from_le_bytes(data[..8].try_into().unwrap());
            assert!(data == content(key, version), "object {key} is not whole");
            found.insert(key, version);
        }
        for (key, version) in &self.versions {
            let there = found.get(key).copied();
            assert!(there >= Some(*version), "key {key}: acknowledged version {version}, found {there:?}");
        }
        for id in store.journaled_partials().await.unwrap() {
            let promised = self.checkpoints.remove(&id);
            let Some((writer, note)) = store.resume(id).await.unwrap() else {
                // Killed while it was created: its journal has no record, and it is gone now.
                assert_eq!(promised, None, "{id} had a checkpoint and does not resume");
                continue;
            };
            let promised = promised.unwrap_or(0);
            assert!(writer.len() >= promised, "{id}: {promised} bytes were promised, {} are there", writer.len());
            assert_eq!(note, writer.len().to_le_bytes());
            writer.abort().await;
        }
        assert!(self.checkpoints.is_empty(), "partials with a checkpoint are gone: {:?}", self.checkpoints);
        // Closing waits for the sweep.
        store.close().await.unwrap();
        assert_eq!(files_below(&dir.join("partial")).len(), 0, "partials lie about");
        assert_eq!(files_below(&dir.join("blobs")).len(), objects.len(), "blobs without an object lie about");
    }
}

fn start_child(dir: &Path, engine: EngineChoice) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "what_was_acknowledged_survives_sigkill"])
        .env(CHILD, dir)
        .env(ENGINE, engine.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The version first, then bytes that follow from key and version; from nothing to three batches.
fn content(key: u64, version: u64) -> Vec<u8> {
    let len = (key * 7_919 + version % 1_000 * 104_729) % if version.is_multiple_of(5) { 3_000_000 } else { 70_000 };
    let mut data = version.to_le_bytes().to_vec();
    data.extend(pattern(len as usize));
    data
}

fn acknowledge(line: String) {
    // One write of a whole line: the pipe does not tear what is shorter than PIPE_BUF.
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

async fn write_for_ever(dir: &Path, engine: EngineChoice) {
    let store = common::open(dir, engine).await;
    // Ends the line that the test harness began.
    acknowledge("\n".into());
    // Versions grow over all runs.
    let base = std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as u64;
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        tasks.spawn(async move {
            for round in 0.. {
                // Each key has one writer, so that its versions are acknowledged in order.
                let key = (round * WRITERS + writer) % KEYS;
                put_version(&store, key, base + round).await;
            }
        });
    }
    tasks.spawn(async move {
        loop {
            checkpoint_some(&store).await;
        }
    });
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
}

async fn put_version(store: &Store, key: u64, version: u64) {
    let data = content(key, version);
    let length_hint = version.is_multiple_of(2).then_some(data.len() as u64);
    let mut writer = store.create(BlobMeta { length_hint, ..Default::default() }).await.unwrap();
    for piece in data.chunks(200_000) {
        writer.ready().await.unwrap();
        writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    let sealed = writer.seal().await.unwrap();
    let name = Key::parse(&key.to_string()).unwrap();
    store.put_object(&name, sealed, Precondition::None).await.unwrap();
    acknowledge(format!("put {key} {version}\n"));
}

async fn checkpoint_some(store: &Store) {
    let id = BlobId::new();
    let mut writer = store.create_journaled(id, BlobMeta::default(), 0u64.to_le_bytes().to_vec()).await.unwrap();
    for _ in 0..5 {
        writer.write(Bytes::from(pattern(333_333))).await.unwrap();
        let length = writer.checkpoint((writer.len()).to_le_bytes().to_vec()).await.unwrap();
        acknowledge(format!("checkpoint {id} {length}\n"));
    }
    acknowledge(format!("giving-up {id}\n"));
    writer.abort().await;
}
