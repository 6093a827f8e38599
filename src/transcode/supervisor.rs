//! One worker process: started, listened to, and ended for certain.
//!
//! The worker gets a socket as standard input, the source as standard output (read by offset), a pipe as standard error,
//! an environment of four variables and a process group of its own; every other descriptor of the node is closed on exec. [`Worker`]
//! owns process and socket: dropping it kills the process and leaves no zombie, whatever the caller was waiting for.
//! Nothing a worker does reaches the node but its messages: a crash, a hang or garbage become a [`Failure`].

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use reelring_protocol::limits::{LOG_LINE_BYTES_MAX, LOG_LINES_MAX};
use reelring_protocol::transcode::{FromWorker, ToWorker, WORKER};
use reelring_protocol::{Frame, FrameError, decode, encode, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::task::JoinHandle;

use crate::error::Failure;
use crate::limits;

/// Where the loader finds GPU drivers, and which devices they may use.
const KEPT_VARIABLES: [&str; 4] =
    ["LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES"];

pub(super) struct Worker {
    child: Child,
    socket: UnixStream,
    received: BytesMut,
    log: Arc<Mutex<VecDeque<String>>>,
    log_reader: JoinHandle<()>,
    /// Longer without a message, and it is hung.
    silence_max: Duration,
}

impl Worker {
    pub fn spawn(path: &Path, source: File) -> Result<Worker, Failure> {
        let failed = |error: std::io::Error| {
            Failure::transient(format!("the worker {} could not be started: {error}", path.display()))
        };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let socket = UnixStream::from_std(ours).map_err(failed)?;
        let mut child = Command::new(path)
            .env_clear()
            .envs(KEPT_VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(source))
            .stderr(Stdio::piped())
            .current_dir("/")
            // A terminal's ^C is for the node, which then ends its workers in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let log = Arc::default();
        let stderr = child.stderr.take();
        let log_reader = tokio::spawn(keep_log(stderr, Arc::clone(&log)));
        let silence_max = limits::WORKER_SILENCE;
        Ok(Worker { child, socket, received: BytesMut::new(), log, log_reader, silence_max })
    }

    pub async fn send(&mut self, message: &ToWorker) -> Result<(), Failure> {
        let frame = encode(message, &[]).map_err(|error| Failure::permanent(error.to_string()))?;
        match self.socket.write_all(&frame).await {
            Ok(()) => Ok(()),
            // It died before it read this; what it left in the socket or its status says why.
            Err(_) => Err(self.died().await),
        }
    }

    /// The next message. Silence beyond the limit, death and garbage are failures, after which the worker is gone.
    pub async fn next(&mut self) -> Result<Frame<FromWorker>, Failure> {
        loop {
            match decode(&mut self.received) {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(error) => return Err(self.nonsense(&error).await),
            }
            let read = self.socket.read_buf(&mut self.received);
            match tokio::time::timeout(self.silence_max, read).await {
                Err(_) => return Err(self.hung().await),
                Ok(Ok(0) | Err(_)) => {
                    return Err(match frame::check_end(&self.received) {
                        Err(error @ (FrameError::BadMagic { .. } | FrameError::TooLong { .. })) => {
                            self.nonsense(&error).await
                        }
                        _ => self.died().await,
                    });
                }
                Ok(Ok(_)) => {}
            }
        }
    }

    /// Kills the process if it still runs, and waits for its end.
    pub async fn end(&mut self) {
        let _ = self.child.start_kill();
        let _ = self.child.wait().await;
    }

    /// After the last message: the worker exits by itself, and is killed if it does not.
    pub async fn finish(&mut self) {
        if tokio::time::timeout(limits::WORKER_EXIT, self.child.wait()).await.is_err() {
            tracing::warn!("a transcode worker did not exit after its last message and was killed");
        }
        self.end().await;
    }

    #[cfg(test)]
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    async fn hung(&mut self) -> Failure {
        self.end().await;
        let silence = self.silence_max;
        Failure::transient(format!("{WORKER} said nothing for {silence:?} and was killed{}", self.log_tail().await))
    }

    async fn nonsense(&mut self, error: &FrameError) -> Failure {
        self.end().await;
        Failure::transient(format!(
            "{WORKER} does not follow the protocol and was killed: {error}{}",
            self.log_tail().await
        ))
    }

    async fn died(&mut self) -> Failure {
        let status = match tokio::time::timeout(limits::WORKER_EXIT, self.child.wait()).await {
            Ok(Ok(status)) => Some(status),
            _ => None,
        };
        self.end().await;
        let how = status.map_or("closed its socket without exiting".to_owned(), how_it_ended);
        Failure::transient(format!("{WORKER} {how}{}", self.log_tail().await))
    }

    /// The worker is dead, so the log has an end.
    async fn log_tail(&mut self) -> String {
        let _ = tokio::time::timeout(limits::WORKER_EXIT, &mut self.log_reader).await;
        let lines = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.is_empty() {
            return String::new();
        }
        let lines: Vec<&str> = lines.iter().rev().take(4).rev().map(String::as_str).collect();
        format!("; its last words: {}", lines.join(" | "))
    }
}

fn how_it_ended(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by {}", signal_name(signal)),
        (None, Some(code)) => format!("exited with status {code} before it was done"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

/// The signals that end a media process: its own faults, its limits, and people.
fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGILL => "SIGILL",
        libc::SIGINT => "SIGINT",
        libc::SIGKILL => "SIGKILL (someone, or the kernel for lack of memory)",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGSYS => "SIGSYS",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU (its limit of processor time)",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}

/// Keeps the last lines of standard error until it is closed. Long lines are cut, none is waited for.
async fn keep_log(stderr: Option<ChildStderr>, log: Arc<Mutex<VecDeque<String>>>) {
    let Some(mut stderr) = stderr else { return };
    let mut line = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(have @ 1..) = stderr.read(&mut piece).await {
        for &byte in &piece[..have] {
            if byte != b'\n' {
                if line.len() < LOG_LINE_BYTES_MAX {
                    line.push(byte);
                }
                continue;
            }
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            line.clear();
            tracing::debug!(worker = WORKER, "{text}");
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            if log.len() == LOG_LINES_MAX {
                log.pop_front();
            }
            log.push_back(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::FailureKind;

    /// A shell stands in for the worker.
    fn script(dir: &Path, text: &str) -> (std::path::PathBuf, File) {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.join("worker");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        (path, File::open("/dev/null").unwrap())
    }

    async fn failure_of(text: &str) -> Failure {
        let dir = tempfile::tempdir().unwrap();
        let (path, source) = script(dir.path(), text);
        let mut worker = Worker::spawn(&path, source).unwrap();
        let failure = worker.next().await.map(|_| ()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Transient);
        failure
    }

    #[tokio::test]
    async fn a_worker_killed_by_a_signal_is_a_transient_failure_with_its_last_words() {
        let failure = failure_of("echo 'about to crash' >&2; kill -SEGV $$").await;
        assert!(failure.message.contains("killed by SIGSEGV"), "{failure}");
        assert!(failure.message.contains("about to crash"), "{failure}");
        let failure = failure_of("kill -KILL $$").await;
        assert!(failure.message.contains("SIGKILL"), "{failure}");
    }

    #[tokio::test]
    async fn exits_and_garbage_are_named() {
        let failure = failure_of("exit 7").await;
        assert!(failure.message.contains("status 7"), "{failure}");
        let failure = failure_of("printf 'HTTP/1.1 200 OK' >&0; sleep 60").await;
        assert!(failure.message.contains("does not follow the protocol"), "{failure}");
    }

    #[tokio::test]
    async fn a_silent_worker_is_killed_and_reaped() {
        let dir = tempfile::tempdir().unwrap();
        let (path, source) = script(dir.path(), "echo 'waiting for the driver' >&2; exec sleep 60");
        let mut worker = Worker::spawn(&path, source).unwrap();
        let id = worker.id().unwrap();
        worker.silence_max = Duration::from_millis(300);
        let failure = worker.next().await.map(|_| ()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Transient);
        assert!(failure.message.contains("said nothing for 300ms"), "{failure}");
        assert!(failure.message.contains("waiting for the driver"), "{failure}");
        assert!(!Path::new(&format!("/proc/{id}")).exists(), "no process and no zombie");
    }
}
