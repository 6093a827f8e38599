//! The real `reelring serve`, on a data directory of its own and a port the kernel picked.
//!
//! [`Node`] owns the process, which a drop ends; the data directory stays, so that a node can be started on it again.

pub mod http;

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, anyhow, ensure};
use serde_json::Value;

use super::peer::Peer;
use super::stop;
use super::usage::{self, Usage};
use crate::limits;

/// A running node.
pub struct Node {
    peer: Peer,
    addr: SocketAddr,
}

/// The executable to measure, and whether it was built to be fast.
#[derive(Debug, Clone)]
pub struct Program {
    pub path: PathBuf,
    pub version: String,
    pub debug: bool,
}

impl Program {
    /// The given one, or the one beside this program.
    pub fn find(given: Option<&Path>) -> anyhow::Result<Program> {
        let beside = || Some(std::env::current_exe().ok()?.parent()?.join("reelring"));
        let path = given.map(Path::to_path_buf).or_else(beside).filter(|path| path.is_file());
        let path = path.with_context(|| {
            let given = given.map(|path| format!("{} is no file: ", path.display())).unwrap_or_default();
            format!("{given}the node to measure is missing: cargo build --release, or pass --reelring PATH")
        })?;
        // The node runs in a folder of its own, from which a relative path would lead elsewhere.
        let path = std::path::absolute(&path).with_context(|| path.display().to_string())?;
        let output = Command::new(&path).arg("--version").output().with_context(|| path.display().to_string())?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        ensure!(output.status.success(), "{} --version: {}", path.display(), output.status);
        // Cargo's folder names the profile; a node installed elsewhere is taken for a release.
        let debug = path.parent().and_then(Path::file_name).is_some_and(|folder| folder == "debug");
        Ok(Program { path, version, debug })
    }

    /// What a report must say about this build.
    pub fn note(&self) -> Option<String> {
        self.debug.then(|| {
            format!(
                "{} IS A DEBUG BUILD, measured against released peers: its figures mean nothing. Build with --release.",
                self.path.display()
            )
        })
    }
}

impl Node {
    /// Starts a node on `data`, made if it is absent, and waits until it takes work. What it prints goes to a folder of
    /// its own under `parent`.
    pub fn start(program: &Program, parent: &Path, data: &Path) -> anyhow::Result<Node> {
        let peer = Peer::start("reelring", parent, |folder, port| {
            let mut command = Command::new(&program.path);
            command
                .args(["serve", "--allow-private-origins", "--listen", &format!("127.0.0.1:{port}"), "--data"])
                .arg(data)
                // The caller's settings decide nothing; without a GPU the worker encodes as ffmpeg's command line does.
                .env_clear()
                .env("CUDA_VISIBLE_DEVICES", "")
                .env("REELRING_LOG", "warn")
                .current_dir(folder);
            Ok(command)
        })?;
        let node = Node { addr: peer.address(), peer };
        let start = Instant::now();
        loop {
            stop::check()?;
            let answer = node.request("GET", "/readyz").and_then(|answer| answer.expect(200));
            match answer {
                Ok(_) => return Ok(node),
                Err(error) if start.elapsed() > limits::PEER_START => {
                    let said = node.peer.output();
                    return Err(error.context(format!("the node is not ready after {:?}: {said}", limits::PEER_START)));
                }
                Err(_) => std::thread::sleep(limits::POLL),
            }
        }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Does `work` and gives what the node used meanwhile, with its result.
    pub fn measure<T>(&self, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Usage)> {
        self.peer.measure(work)
    }

    /// The same, for work in which the node starts programs that end before the work does: they are looked at while they
    /// run.
    pub fn measure_watched<T>(&self, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Usage)> {
        usage::forget_peak(self.peer.pid());
        let before = self.peer.sample()?;
        let over = AtomicBool::new(false);
        let (done, mut latest) = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut latest = before.clone();
                while !over.load(Ordering::Acquire) {
                    std::thread::sleep(limits::POLL);
                    if let Ok(sample) = self.peer.sample() {
                        latest.advance(sample);
                    }
                }
                latest
            });
            let done = work();
            over.store(true, Ordering::Release);
            (done, watcher.join())
        });
        let done = done?;
        let latest = latest.as_mut().map_err(|_| anyhow!("the thread that watches the node panicked"))?;
        latest.advance(self.peer.sample()?);
        Ok((done, before.until(latest)))
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// Stores a file durably.
    pub fn put(&self, key: &str, file: &Path) -> anyhow::Result<()> {
        let source = File::open(file).map_err(anyhow::Error::from);
        source
            .and_then(|source| self.upload(key, &source))
            .with_context(|| format!("storing {} as {key}", file.display()))
    }

    /// Stores a file durably, as a fast client does it.
    pub fn upload(&self, key: &str, file: &File) -> anyhow::Result<()> {
        http::upload(self.addr, &object(key), file)?.expect(201)?;
        Ok(())
    }

    /// Length and SHA-256 of an object, as the node sends it.
    pub fn digest(&self, key: &str) -> anyhow::Result<(u64, String)> {
        self.get(&object(key))?.digest()
    }

    pub fn json(&self, path: &str) -> anyhow::Result<Value> {
        let text = self.get(path)?.text()?;
        serde_json::from_str(&text).with_context(|| format!("GET {path}: {text}"))
    }

    fn get(&self, path: &str) -> anyhow::Result<http::Response> {
        self.request("GET", path)?.expect(200).with_context(|| format!("GET {path}"))
    }

    /// Carries out a job and returns it when it is done. The node's own events tell when; nothing is polled.
    pub fn job(&self, request: &Value) -> anyhow::Result<Value> {
        let text = request.to_string();
        let body = Some((text.len() as u64, &mut text.as_bytes() as &mut dyn Read));
        let json = [("Content-Type", "application/json")];
        let answer = http::request(self.addr, "POST", "/v1/jobs", &json, body)?;
        let job: Value = serde_json::from_str(&answer.expect(202).with_context(|| text.clone())?.text()?)?;
        let id = job["id"].as_str().context("the node's job has no id")?;
        let events = self.get(&format!("/v1/events?job={id}"))?;
        let start = Instant::now();
        events.follow(|_| {
            stop::check()?;
            ensure!(start.elapsed() < limits::JOB, "{text} is not done after {:?}", limits::JOB);
            Ok(true)
        })?;
        let job = self.json(&format!("/v1/jobs/{id}"))?;
        ensure!(job["state"] == "done", "{text} is {}: {}", job["state"], job["error"]);
        Ok(job)
    }

    /// Removes an object, or whatever else a path names.
    pub fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.request("DELETE", path)?.expect(204).with_context(|| format!("DELETE {path}"))?;
        Ok(())
    }

    fn request(&self, method: &str, path: &str) -> anyhow::Result<http::Response> {
        http::request(self.addr, method, path, &[], None)
    }
}

/// The path of an object.
pub fn object(key: &str) -> String {
    format!("/v1/objects/{key}")
}

/// All blobs in a data directory that are at least `bytes` long.
pub fn blobs(data: &Path, bytes: u64) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    // blobs/ab/cd/ID
    for first in entries(&data.join("blobs"))? {
        for second in entries(&first)? {
            found.extend(entries(&second)?);
        }
    }
    found.retain(|path| path.metadata().is_ok_and(|meta| meta.is_file() && meta.len() >= bytes));
    Ok(found)
}

fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

/// A file of bytes that neither repeat nor compress, the same for the same seed.
pub fn noise_file(path: &Path, length: u64, seed: u64) -> anyhow::Result<()> {
    use std::io::Write;
    let doing = || format!("writing {}", path.display());
    let mut file = File::create(path).with_context(doing)?;
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut buffer = vec![0; limits::HTTP_BUFFER];
    let mut left = length;
    while left > 0 {
        stop::check()?;
        for word in buffer.chunks_exact_mut(8) {
            // xorshift64*
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            word.copy_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
        }
        let piece = left.min(buffer.len() as u64);
        file.write_all(&buffer[..piece as usize]).with_context(doing)?;
        left -= piece;
    }
    // Clean pages can be dropped from the page cache, dirty ones not.
    file.sync_all().with_context(doing)
}

/// SHA-256 of a file.
pub fn digest_file(path: &Path) -> anyhow::Result<(u64, String)> {
    let mut file = BufReader::new(File::open(path).with_context(|| path.display().to_string())?);
    http::digest(&mut file).with_context(|| path.display().to_string())
}
