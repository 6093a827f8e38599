//! The workers: whether they are installed, start, and speak this node's protocol.
//!
//! A worker greets as soon as it is started and ends when its socket closes, so a greeting is all that is asked for. The
//! transcoder is asked for its encoders too.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use reelring_protocol::{FrameError, FrameReader, Hello};

use super::Check;
use crate::config::{Config, WorkerPath};

const GREETING: Duration = Duration::from_secs(10);
/// Loading a GPU driver for the first time takes seconds.
const SURVEY: Duration = Duration::from_secs(20);
const SURVEY_BYTES: u64 = 16 << 10;
const ENDING: Duration = Duration::from_secs(2);

/// A worker, what is lost without it, and the check's name.
const WORKERS: [(&str, &str, &str); 2] = [
    ("reelring-transcode", "transcode jobs fail", "transcoder"),
    ("reelring-plugin", "plugins do not load", "plugin worker"),
];

pub fn examine(config: &Config) -> Vec<Check> {
    let folder = config.workers.as_deref();
    let mut checks: Vec<_> = WORKERS.map(|(worker, loss, name)| one(worker, loss, name, folder)).into();
    if let WorkerPath::Found(path) = WorkerPath::find(WORKERS[0].0, folder) {
        let gpu = Path::new("/dev/nvidiactl").exists();
        checks.push(match survey(&path) {
            Ok(text) => encoders(&text, gpu),
            Err(reason) => Check::fail("encoders", format!("unknown: {reason}"), "see the check of the transcoder"),
        });
    }
    checks
}

/// Judges the transcoder's lines, each an encoder's name and, after a tab, why it does not open.
fn encoders(text: &str, gpu: bool) -> Check {
    const NAME: &str = "encoders";
    let lines: Vec<_> = text.lines().filter_map(|line| line.split_once('\t')).collect();
    let shown: Vec<_> = lines
        .iter()
        .map(|(name, reason)| match reason.is_empty() {
            true => format!("{name} works"),
            false => format!("{name} does not: {reason}"),
        })
        .collect();
    let finding = shown.join("; ");
    let broken = |&&(_, reason): &&(&str, &str)| !reason.is_empty();
    match lines.iter().filter(broken).count() {
        all if all == lines.len() => {
            let next = "install an FFmpeg with libx264: transcode jobs fail without an encoder";
            Check::fail(NAME, if finding.is_empty() { "none was named".into() } else { finding }, next)
        }
        0 => Check::ok(NAME, finding),
        _ if gpu && finding.contains("no CUDA device") => {
            Check::warn(NAME, finding, "the GPU is not used: look at its driver with `nvidia-smi`")
        }
        // Some cards have no encoder, the H100 for one.
        _ if gpu => Check::warn(NAME, finding, "the GPU only decodes; for encoding a card with NVENC is needed"),
        _ => Check::ok(NAME, finding),
    }
}

fn survey(path: &Path) -> Result<String, String> {
    let text = |error: io::Error| error.to_string();
    let child = Command::new(path)
        .arg("--encoders")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(text)?;
    let mut child = Owned(child);
    // Its few lines fit the pipe, so it never waits for a reader.
    let ended = child.ended(SURVEY).ok_or_else(|| format!("it did not answer within {} s", SURVEY.as_secs()))?;
    let mut answer = String::new();
    let stdout = child.0.stdout.take().ok_or("it has no output")?;
    stdout.take(SURVEY_BYTES).read_to_string(&mut answer).map_err(text)?;
    if ended.success() { Ok(answer) } else { Err(format!("it ended with {ended}")) }
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
        Ok(None) => {
            let ended = child.ended(ENDING).map_or("and goes on running".into(), |status| status.to_string());
            Err(format!("it ended without a greeting, {ended}"))
        }
        Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(format!("it did not greet within {} s", GREETING.as_secs()))
        }
        Err(error) => Err(error.to_string()),
    }
}

/// A child that does not outlive the check.
struct Owned(Child);

impl Owned {
    /// How it ended, if it did so in time.
    fn ended(&mut self, limit: Duration) -> Option<ExitStatus> {
        let begun = Instant::now();
        loop {
            match self.0.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if begun.elapsed() < limit => std::thread::sleep(Duration::from_millis(5)),
                Ok(None) | Err(_) => return None,
            }
        }
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

    #[test]
    fn one_encoder_is_enough_and_an_idle_gpu_is_worth_a_word() {
        let both = "h264_nvenc\t\nlibx264\t\n";
        let software = "h264_nvenc\tno CUDA device\nlibx264\t\n";
        assert_eq!(encoders(both, true).status, Status::Ok);
        assert_eq!(encoders(software, false).status, Status::Ok);
        assert_eq!(encoders(software, true).status, Status::Warn);
        let next = |text| encoders(text, true).next.unwrap();
        assert!(next("h264_nvenc\tno CUDA device (x)\nlibx264\t").contains("not used"));
        assert!(next("h264_nvenc\topening it failed: Function not implemented\nlibx264\t").contains("only decodes"));
        for none in ["", "libx264\tabsent\n"] {
            assert_eq!(encoders(none, false).status, Status::Fail, "{none:?}");
        }
    }
}
