//! A node of our own for the `http` engine: the `reelring` beside this program, on a scratch folder and a free port.
//!
//! Dropping it asks the node to stop, waits for it, kills it if it does not go, and removes the folder.

use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::limits::{NODE_START, NODE_STOP};

pub struct Node {
    child: Child,
    authority: String,
    _scratch: TempDir,
}

impl Node {
    /// Starts a node with its data under `dir`, and waits until it answers.
    pub fn start(dir: &Path) -> io::Result<Node> {
        let beside = std::env::current_exe()?.with_file_name("reelring");
        if !beside.is_file() {
            let problem =
                format!("{} is not there: build it (cargo build), or name a node with --node URL", beside.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, problem));
        }
        let scratch = tempfile::Builder::new().prefix("reelring-bench-node-").tempdir_in(dir)?;
        let data = scratch.path().join("data");
        let log = scratch.path().join("log");
        let child = Command::new(&beside)
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(&data)
            .env("REELRING_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .spawn()?;
        let mut node = Node { child, authority: String::new(), _scratch: scratch };
        let since = Instant::now();
        loop {
            let written = std::fs::read_to_string(data.join("http.addr")).unwrap_or_default();
            if let Ok(address) = written.trim().parse::<std::net::SocketAddr>() {
                node.authority = address.to_string();
                return Ok(node);
            }
            let told = || std::fs::read_to_string(&log).unwrap_or_default();
            if let Some(status) = node.child.try_wait()? {
                return Err(io::Error::other(format!("the node ended at its start with {status}: {}", told().trim())));
            }
            if since.elapsed() > NODE_START {
                let problem = format!("the node did not listen within {} s: {}", NODE_START.as_secs(), told().trim());
                return Err(io::Error::other(problem));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its `host:port`.
    pub fn authority(&self) -> &str {
        &self.authority
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            // Not reaped yet, so the id is still the node's.
            let _ = kill_process(pid, Signal::TERM);
        }
        let since = Instant::now();
        while since.elapsed() < NODE_STOP {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
