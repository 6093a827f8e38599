//! Engines: ways of carrying out the bridge's commands.
//!
//! An engine is given the receiving ends of the lanes and owns the threads that empty them, nothing
//! else. It ends when every lane has said `Stop`. `uring` is the default; `threads` is for where
//! io_uring is refused (containers, seccomp, old kernels); `sim`, in tests only, is a disk that loses what it may lose.
//!
//! Only `uring.rs` names tokio-uring; the ring of the reads beside it is io-uring alone.

mod direct;
#[cfg(test)]
pub(crate) mod sim;
mod threads;
mod uring;
mod whole;

#[cfg(test)]
mod conformance;

use std::cell::Cell;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::str::FromStr;
use std::thread::JoinHandle;

use crate::bridge::{How, Intake};
use crate::error::{Error, Result};
use crate::limits;

/// Which engine to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineChoice {
    /// io_uring where the kernel allows it, threads otherwise.
    #[default]
    Auto,
    Uring,
    Threads,
}

/// The engine at work, and why that one.
#[derive(Clone, Debug)]
pub struct EngineInfo {
    pub name: &'static str,
    pub reason: String,
}

pub(crate) trait Engine {
    /// Starts the threads that carry out what `intake` brings, until each lane has said `Stop`.
    fn start(&self, intake: Intake) -> io::Result<Vec<JoinHandle<()>>>;
}

pub(crate) fn choose(choice: EngineChoice) -> Result<(Box<dyn Engine>, EngineInfo)> {
    let uring =
        |reason: &str| (Box::new(uring::Uring) as Box<dyn Engine>, EngineInfo { name: "uring", reason: reason.into() });
    let threads =
        |reason: String| (Box::new(threads::Threads) as Box<dyn Engine>, EngineInfo { name: "threads", reason });
    match (choice, uring::probe) {
        (EngineChoice::Threads, _) => Ok(threads("chosen by configuration".into())),
        (EngineChoice::Uring, probe) => match probe() {
            Ok(()) => Ok(uring("chosen by configuration")),
            Err(reason) => Err(Error::EngineRefused { engine: "uring", reason }),
        },
        (EngineChoice::Auto, probe) => match probe() {
            Ok(()) => Ok(uring("io_uring works here")),
            Err(reason) => {
                tracing::warn!(%reason, "io_uring is not available, using threads");
                Ok(threads(reason))
            }
        },
    }
}

impl FromStr for EngineChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<EngineChoice, String> {
        match text {
            "auto" => Ok(EngineChoice::Auto),
            "uring" => Ok(EngineChoice::Uring),
            "threads" => Ok(EngineChoice::Threads),
            _ => Err(format!("{text:?} is no engine: auto, uring or threads")),
        }
    }
}

impl fmt::Display for EngineChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineChoice::Auto => "auto",
            EngineChoice::Uring => "uring",
            EngineChoice::Threads => "threads",
        })
    }
}

/// Flags for `open(2)`, the same for every engine.
fn open_flags(how: How) -> i32 {
    libc::O_CLOEXEC
        | match how {
            How::Read => libc::O_RDONLY,
            How::CreateNew => libc::O_RDWR | libc::O_CREAT | libc::O_EXCL,
            How::Modify => libc::O_RDWR,
            How::Directory => libc::O_RDONLY | libc::O_DIRECTORY,
            How::ReadDirect => libc::O_RDONLY | libc::O_DIRECT,
            How::WriteDirect => libc::O_RDWR | libc::O_CREAT | libc::O_DIRECT,
            How::ModifyDirect => libc::O_RDWR | libc::O_DIRECT,
        }
}

/// File systems whose ways are known, by `statfs(2)`.
pub(crate) const EXT4: u64 = 0xef53;
pub(crate) const XFS: u64 = 0x5846_5342;

/// Files are readable by other tools, writable by the node.
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;

/// Progress of a transfer that the kernel may cut short.
struct Transfer {
    done: usize,
    len: usize,
    retries: u32,
}

/// What to do after a system call of a transfer.
enum Step {
    /// Go on from `done`.
    Again,
    /// The kernel was busy: wait a little, then go on.
    Pause,
    Complete,
    Failed(io::Error),
}

impl Transfer {
    fn new(len: usize) -> Transfer {
        Transfer { done: 0, len, retries: 0 }
    }

    /// Judges one call's result. `end` is what zero bytes mean: the end of the file when reading,
    /// an error when writing.
    fn step(&mut self, result: io::Result<usize>, end: Step) -> Step {
        match result {
            Ok(0) if self.done < self.len => end,
            Ok(count) => {
                self.done += count;
                self.retries = 0;
                if self.done < self.len { Step::Again } else { Step::Complete }
            }
            Err(e) => transient(e, &mut self.retries),
        }
    }
}

/// EINTR and EAGAIN are repeated a bounded number of times; anything else is final.
fn transient(error: io::Error, retries: &mut u32) -> Step {
    let step = match error.raw_os_error() {
        Some(libc::EINTR) => Step::Again,
        Some(libc::EAGAIN) => Step::Pause,
        _ => return Step::Failed(error),
    };
    *retries += 1;
    if *retries > limits::RETRIES_MAX { Step::Failed(error) } else { step }
}

fn write_zero() -> Step {
    Step::Failed(io::Error::new(io::ErrorKind::WriteZero, "the kernel wrote nothing"))
}

thread_local! {
    static ON_ENGINE_THREAD: Cell<bool> = const { Cell::new(false) };
}

/// Marks a thread as an engine's for as long as it lives: a panic there ends the process.
struct EngineThread;

impl EngineThread {
    fn enter() -> EngineThread {
        ON_ENGINE_THREAD.set(true);
        EngineThread
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        end_if_panicking();
    }
}

/// Ends the process when an engine's thread unwinds: an engine that lost an operation half way must
/// not go on answering. Called as the first reply is about to be dropped, before its caller could
/// take the loss for an orderly end.
pub(crate) fn end_if_panicking() {
    if std::thread::panicking() && ON_ENGINE_THREAD.get() {
        eprintln!("reelring: the storage engine panicked (see above); ending the process, stored data is safe");
        std::process::abort();
    }
}

/// Some errors mean that the wish is already fulfilled.
fn unless(result: io::Result<()>, fine: io::ErrorKind) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == fine => Ok(()),
        other => other,
    }
}

/// Blocking open, for the `threads` engine.
fn open_blocking(path: &Path, how: How) -> io::Result<File> {
    let writes = matches!(how, How::CreateNew | How::Modify | How::WriteDirect | How::ModifyDirect);
    let file = OpenOptions::new()
        .read(true)
        .write(writes)
        .create(how == How::WriteDirect)
        .create_new(how == How::CreateNew)
        .custom_flags(open_flags(how) & (libc::O_DIRECTORY | libc::O_DIRECT))
        .mode(FILE_MODE)
        .open(path)?;
    if how == How::ModifyDirect {
        direct::check_direct(&file)?;
    }
    Ok(file)
}

/// Blocking mkdir, for the `threads` engine.
fn make_directory_blocking(path: &Path) -> io::Result<()> {
    std::fs::create_dir(path)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(DIRECTORY_MODE))
}

/// The names in a directory. Blocks.
fn list_blocking(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_transfers_go_on_until_complete() {
        let mut transfer = Transfer::new(10);
        assert!(matches!(transfer.step(Ok(4), Step::Complete), Step::Again));
        assert!(matches!(transfer.step(Ok(5), Step::Complete), Step::Again));
        assert_eq!(transfer.done, 9);
        assert!(matches!(transfer.step(Ok(1), Step::Complete), Step::Complete));
    }

    #[test]
    fn nothing_read_is_the_end_and_nothing_written_an_error() {
        assert!(matches!(Transfer::new(10).step(Ok(0), Step::Complete), Step::Complete));
        assert!(matches!(Transfer::new(10).step(Ok(0), write_zero()), Step::Failed(_)));
    }

    #[test]
    fn interruptions_are_repeated_but_not_for_ever() {
        let mut transfer = Transfer::new(10);
        let error = |code| Err(io::Error::from_raw_os_error(code));
        assert!(matches!(transfer.step(error(libc::EINTR), Step::Complete), Step::Again));
        for _ in 1..limits::RETRIES_MAX {
            assert!(matches!(transfer.step(error(libc::EAGAIN), Step::Complete), Step::Pause));
        }
        assert!(matches!(transfer.step(error(libc::EAGAIN), Step::Complete), Step::Failed(_)));
        assert!(matches!(Transfer::new(1).step(error(libc::EIO), Step::Complete), Step::Failed(_)));
    }
}
