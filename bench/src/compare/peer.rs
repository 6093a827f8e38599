//! Programs that are set beside Reelring: found, asked for their version, started as servers and stopped.
//!
//! A [`Peer`] owns its process and its folder. Dropped, it is ended, reaped and its folder removed, so an error or a
//! Ctrl-C on the way leaves neither a process nor a file.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;

use super::stop;
use super::usage::{self, Running, Sample, Usage};
use crate::limits;

/// A program that may be installed.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    pub name: &'static str,
    /// What `apt install` calls it.
    pub package: &'static str,
    /// What makes it print its version.
    pub version: &'static str,
}

pub const FIO: Program = Program { name: "fio", package: "fio", version: "--version" };

impl Program {
    pub fn command(&self) -> Command {
        Command::new(self.name)
    }

    /// The first line that has a number in it of what it prints, on either stream. Fails with what to install when it
    /// is not there.
    pub fn version(&self) -> anyhow::Result<String> {
        let output = match self.command().arg(self.version).stdin(Stdio::null()).output() {
            Ok(output) => output,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bail!("{} is not installed: apt install {}", self.name, self.package)
            }
            Err(error) => return Err(error).with_context(|| format!("could not start {}", self.name)),
        };
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        let line = text.lines().find(|line| line.contains(|c: char| c.is_ascii_digit()));
        let line = line.with_context(|| format!("`{} {}` printed no version", self.name, self.version))?;
        Ok(line.trim().chars().take(limits::VERSION_CHARS).collect())
    }
}

/// A server that was started for a comparison.
#[derive(Debug)]
pub struct Peer {
    name: String,
    // Before the folder: fields are dropped in order, and the server ends before its files go.
    running: Running,
    dir: TempDir,
    port: u16,
}

impl Peer {
    /// Starts a server and waits until it takes connections. `command` gets the server's own folder (under `parent`) and
    /// a free port of 127.0.0.1; what the server prints goes to `output` in that folder.
    ///
    /// Another program can take the port between our look and the server's start: it is tried three times.
    pub fn start(
        name: &str,
        parent: &Path,
        mut command: impl FnMut(&Path, u16) -> anyhow::Result<Command>,
    ) -> anyhow::Result<Peer> {
        let mut attempt = 1;
        loop {
            match Peer::attempt(name, parent, &mut command) {
                Err(_) if attempt < 3 && !stop::asked() => attempt += 1,
                outcome => return outcome,
            }
        }
    }

    fn attempt(
        name: &str,
        parent: &Path,
        command: &mut impl FnMut(&Path, u16) -> anyhow::Result<Command>,
    ) -> anyhow::Result<Peer> {
        let dir = tempfile::Builder::new().prefix("reelring-bench-").tempdir_in(parent);
        let dir = dir.with_context(|| format!("could not make a folder for {name} in {}", parent.display()))?;
        let port = free_port()?;
        let mut command = command(dir.path(), port)?;
        let output = File::create(dir.path().join("output"))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let running = Running::start(&mut command)?;
        let mut peer = Peer { name: name.to_owned(), running, dir, port };
        peer.wait_until_ready(&usage::words(&command))?;
        Ok(peer)
    }

    fn wait_until_ready(&mut self, line: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + limits::PEER_START;
        loop {
            stop::check()?;
            if let Some(status) = self.running.ended()? {
                bail!("{}: `{line}` ended at once with {status}{}", self.name, usage::quoted(&self.output()));
            }
            if TcpStream::connect_timeout(&self.address(), Duration::from_millis(200)).is_ok() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let limit = limits::PEER_START.as_secs();
                bail!(
                    "{}: `{line}` takes no connection on port {} after {limit} s{}",
                    self.name,
                    self.port,
                    usage::quoted(&self.output())
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What it printed so far.
    pub fn output(&self) -> String {
        std::fs::read(self.dir.path().join("output"))
            .map_or_else(|_| String::new(), |b| String::from_utf8_lossy(&b).into_owned())
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> u32 {
        self.running.id()
    }

    pub fn sample(&self) -> anyhow::Result<Sample> {
        usage::sample(self.pid()).with_context(|| format!("{} is gone{}", self.name, usage::quoted(&self.output())))
    }

    /// Does `work` and gives what the server used meanwhile, with its result.
    pub fn measure<T>(&self, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Usage)> {
        usage::forget_peak(self.pid());
        let before = self.sample()?;
        let done = work()?;
        Ok((done, before.until(&self.sample()?)))
    }
}

/// A TCP port of 127.0.0.1 that nobody listens on.
pub fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_missing_says_what_to_install() {
        let program = Program { name: "reelring-no-such-program", package: "nothing", version: "-v" };
        let error = program.version().unwrap_err().to_string();
        assert_eq!(error, "reelring-no-such-program is not installed: apt install nothing");
    }

    #[test]
    fn a_server_that_ends_at_once_is_an_error_with_its_words() {
        let parent = tempfile::tempdir().unwrap();
        let broken = |_: &Path, port: u16| {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("echo port {port} is cursed; exit 7")]);
            Ok(command)
        };
        let error = Peer::start("demo", parent.path(), broken).unwrap_err().to_string();
        assert!(error.contains("is cursed") && error.contains("exit status: 7"), "{error}");
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0, "a folder was left");
    }

    #[test]
    fn a_dropped_server_is_gone_with_its_folder() {
        let parent = tempfile::tempdir().unwrap();
        // The listener is ours: any process will do as the server.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let dir = tempfile::tempdir_in(parent.path()).unwrap();
        let running = Running::start(Command::new("sleep").arg("60").stdin(Stdio::null())).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut peer = Peer { name: "demo".to_owned(), running, dir, port };
        peer.wait_until_ready("sleep 60").unwrap();
        let pid = peer.pid();
        let (seven, used) = peer.measure(|| Ok(7)).unwrap();
        assert!(seven == 7 && used.peak_rss_bytes > 0);
        drop(peer);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
