//! The workers: whether they are installed, start, and speak this node's protocol.
//!
//! A worker greets as soon as it is started and ends when its socket closes, so a greeting is all that is asked for.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reelring_protocol::{FrameError, FrameReader, Hello};

use super::Check;
use crate::config::{Config, WorkerPath};

const GREETING: Duration = Duration::from_secs(10);
const ENDING: Duration = Duration::from_secs(2);

/// A worker, what is lost without it, and the check's name.
const WORKERS: [(&str, &str, &str); 2] = [
    ("reelring-transcode", "transcode jobs fail", "transcoder"),
    ("reelring-plugin", "plugins do not load", "plugin worker"),
];

pub async fn examine(config: &Config) -> Vec<Check> {
    WORKERS.map(|(worker, loss, name)| one(worker, loss, name, config.workers.as_deref())).into()
}

fn one(worker: &'static str, loss: &str, name: &'static str, configured: Option<&Path>) -> Check {
    let found = WorkerPath::find(worker, configured);
    let path = match found.require() {
        Ok(path) => path,
        Err(message) => return Check::warn(name, format!("not installed: {loss}, all else works"), message),
    };
    match greeting(path) {
        Ok(hello) => match hello.check(worker) {
            Ok(()) => Check::ok(name, format!("{} {}, {}", hello.worker, hello.version, hello.about)),
            Err(error) => Check::fail(name, error.to_string(), "install node and workers of one release"),
        },
        Err(reason) => Check::fail(
            name,
            format!("{} does not start: {reason}", path.display()),
            format!("run `ldd {}` to see whether a library is missing", path.display()),
        ),
    }
}

/// Starts the worker on a socket and reads its first message.
fn greeting(path: &Path) -> Result<Hello, String> {
    let text = |error: io::Error| error.to_string();
    let (ours, theirs) = UnixStream::pair().map_err(text)?;
    ours.set_read_timeout(Some(GREETING)).map_err(text)?;
    let child = Command::new(path)
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env("RUST_BACKTRACE", "0")
        .spawn()
        .map_err(text)?;
    let mut child = Owned(child);
    let greeted = FrameReader::new(&ours).read::<Hello>();
    drop(ours);
    match greeted {
        Ok(Some(frame)) => Ok(frame.message),
        Ok(None) => Err(format!("it ended without a greeting, {}", child.ending())),
        Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(format!("it did not greet within {} s", GREETING.as_secs()))
        }
        Err(error) => Err(error.to_string()),
    }
}

/// A child that does not outlive the check.
struct Owned(Child);

impl Owned {
    fn ending(&mut self) -> String {
        let begun = Instant::now();
        while begun.elapsed() < ENDING {
            match self.0.try_wait() {
                Ok(Some(status)) => return status.to_string(),
                Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                Err(error) => return error.to_string(),
            }
        }
        "and goes on running".into()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn a_program_that_is_no_worker_is_told_from_one_that_is_missing() {
        let reason = greeting(Path::new("/bin/true")).unwrap_err();
        assert!(reason.contains("without a greeting"), "{reason}");
        assert!(greeting(Path::new("/nonexistent")).is_err());
        let check = one("no-such-worker", "nothing works", "x", None);
        assert_eq!(check.status, Status::Warn, "the node runs without workers");
        assert!(check.next.is_some_and(|next| next.contains("no-such-worker")));
    }
}
