//! The real `reelring serve` as a child process on a data directory of its own and a port the kernel picked.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder};
use rustix::process::Signal;
use serde_json::Value;

use super::process::{self, Owned};

/// A running node; dropping it kills it.
pub struct Node {
    process: Owned,
    addr: SocketAddr,
    data: PathBuf,
    client: reqwest::Client,
}

/// A setting as the node's environment takes it.
pub type Setting<'a> = (&'a str, &'a str);

/// The tests' origins listen on loopback, which a node refuses by default.
pub const PRIVATE_ORIGINS: Setting = ("REELRING_ALLOW_PRIVATE_ORIGINS", "true");

/// The command that serves `data`, with its log in `data`'s sibling `NAME.log`.
pub fn serve(data: &Path, settings: &[Setting]) -> Command {
    let log = std::fs::File::options().create(true).append(true).open(log_path(data)).expect("the node's log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_reelring"));
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(data)
        // Nothing of the caller's settings may decide a test.
        .env_clear()
        .envs(settings.iter().copied())
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("RUST_BACKTRACE", "1")
        .current_dir(data.parent().expect("the data directory lies in a folder"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("the log"))
        .stderr(log);
    command
}

/// What a command that is not `serve` answers, with nothing of the caller's settings.
pub fn reelring(data: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reelring"));
    command.args(arguments).arg("--data").arg(data).env_remove("REELRING_NODE").env_remove("REELRING_DATA");
    // A folder that outlives every disk that a test takes away.
    command.current_dir("/").output().expect("reelring runs")
}

fn log_path(data: &Path) -> PathBuf {
    data.with_extension("log")
}

impl Node {
    /// Starts a node on `data`, which may not exist yet, and waits until it serves.
    pub async fn start(data: &Path) -> Node {
        Node::start_with(data, &[PRIVATE_ORIGINS]).await
    }

    pub async fn start_with(data: &Path, settings: &[Setting<'_>]) -> Node {
        forget_address(data);
        Node::adopt(Owned::spawn(&mut serve(data, settings)), data).await
    }

    /// Waits for a node that a test spawned in its own way; `forget_address` came before the spawn.
    pub async fn adopt(mut process: Owned, data: &Path) -> Node {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
        let start = Instant::now();
        let addr = loop {
            let written = std::fs::read_to_string(data.join("http.addr")).unwrap_or_default();
            // A node that speaks https says so before its address.
            if let Ok(addr) = written.trim().trim_start_matches("https://").parse::<SocketAddr>() {
                break addr;
            }
            let waited = start.elapsed();
            assert!(process.running(), "the node ended: {}", log_tail(data));
            assert!(waited < Duration::from_secs(30), "no address after {waited:?}: {}", log_tail(data));
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        Node { process, addr, data: data.into(), client }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn running(&mut self) -> bool {
        self.process.running()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(log_path(&self.data)).unwrap_or_default()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    pub fn object_url(&self, key: &str) -> String {
        self.url(&format!("/v1/objects/{key}"))
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path))
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    pub fn put(&self, key: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.request(Method::PUT, &format!("/v1/objects/{key}")).body(body)
    }

    pub fn object(&self, key: &str) -> RequestBuilder {
        self.get(&format!("/v1/objects/{key}"))
    }

    /// A GET that must answer 200 with JSON.
    pub async fn json(&self, path: &str) -> Value {
        let response = self.get(path).send().await.unwrap_or_else(|error| panic!("GET {path}: {error}"));
        let status = response.status();
        let text = response.text().await.unwrap_or_default();
        assert_eq!(status, 200, "GET {path}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("GET {path}: {error} in {text:?}"))
    }

    /// Submits a job that the node must accept, and gives its id.
    /// The value of the first series whose name and labels begin so.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").send().await.unwrap().text().await.unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    pub async fn submit(&self, spec: Value) -> String {
        let request = self.request(Method::POST, "/v1/jobs").json(&spec);
        let response = request.send().await.expect("POST /v1/jobs");
        let status = response.status();
        let text = response.text().await.unwrap_or_default();
        assert_eq!(status, 202, "{spec}: {text}");
        let job: Value = serde_json::from_str(&text).expect("a job");
        job["id"].as_str().expect("the job's id").to_string()
    }

    pub async fn job(&self, id: &str) -> Value {
        self.json(&format!("/v1/jobs/{id}")).await
    }

    /// Follows a job to its end, whatever that is.
    pub async fn finished(&self, id: &str, limit: Duration) -> Value {
        super::eventually(&format!("the end of job {id}"), limit, async || {
            let job = self.job(id).await;
            matches!(job["state"].as_str(), Some("done" | "failed" | "cancelled")).then_some(job)
        })
        .await
    }

    /// Follows a job that must succeed.
    pub async fn done(&self, id: &str, limit: Duration) -> Value {
        let job = self.finished(id, limit).await;
        assert_eq!(job["state"], "done", "{job:#}\n{}", log_tail(&self.data));
        job
    }

    /// Ends the node as a power switch would, as far as a process can.
    pub fn kill(mut self) {
        process::signal(self.pid(), Signal::KILL);
        let _ = self.process.0.wait();
    }

    pub fn terminate(&self) {
        process::signal(self.pid(), Signal::TERM);
    }

    /// Waits for a node that was told to end.
    pub async fn ended(mut self, limit: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.0.try_wait().expect("a child of this process") {
                return status;
            }
            assert!(start.elapsed() < limit, "still running after {limit:?}: {}", log_tail(&self.data));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What lies in `partial/`: nothing, when no job is under way.
    pub fn partials(&self) -> Vec<String> {
        names(&self.data.join("partial"))
    }
}

/// Removes the address of a node that was killed, which would be taken for the next one's.
pub fn forget_address(data: &Path) {
    let _ = std::fs::remove_file(data.join("http.addr"));
}

pub fn log_tail(data: &Path) -> String {
    let log = std::fs::read_to_string(log_path(data)).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// All regular files below a folder.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for name in names(folder) {
        let path = folder.join(name);
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}
