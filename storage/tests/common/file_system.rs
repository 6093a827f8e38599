//! Real file systems to be broken: images behind loop devices, mounted where nobody else sees them.
//!
//! The mounts live in a mount namespace of the test's own thread and of the processes it starts: they are gone with the
//! last of these, however the test ends, and the loop devices, which `mount` sets to detach themselves, with them.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// `_IOR('X', 125, u32)`, the same for ext4 and XFS.
const FS_IOC_SHUTDOWN: libc::Ioctl = 0x8004_587d_u32 as libc::Ioctl;
/// Nothing that is in memory reaches the log: what a power cut leaves.
const NO_LOG_FLUSH: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
        }
    }
}

/// A file system in a sparse image, mounted until it is dropped.
pub struct Mounted {
    kind: Kind,
    image: PathBuf,
    at: tempfile::TempDir,
}

/// Gives the calling thread, and all that it starts from now on, mounts of its own; or says why that cannot be.
pub fn own_mounts() -> Result<(), String> {
    // SAFETY: takes no pointers; the thread's file system context becomes its own.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        let error = std::io::Error::last_os_error();
        return Err(format!("a mount namespace needs root: {error}"));
    }
    run("mount", ["--make-rprivate", "/"])
}

impl Mounted {
    /// A new file system in the image, which is made or overwritten; or why there cannot be one here.
    pub fn new(kind: Kind, image: &Path, bytes: u64) -> Result<Mounted, String> {
        let file = File::create(image).and_then(|file| file.set_len(bytes));
        file.map_err(|error| format!("{}: {error}", image.display()))?;
        let force = if kind == Kind::Ext4 { "-F" } else { "-f" };
        run(&format!("mkfs.{}", kind.name()), [OsStr::new("-q"), force.as_ref(), image.as_ref()])?;
        let mounted = Mounted { kind, image: image.into(), at: tempfile::tempdir().unwrap() };
        mounted.mount()?;
        Ok(mounted)
    }

    pub fn path(&self) -> &Path {
        self.at.path()
    }

    /// From now on nothing reaches the image any more, and every operation fails.
    pub fn shut_down(&self) {
        let root = File::open(self.path()).unwrap();
        // SAFETY: the call reads four bytes at the pointer.
        let result = unsafe { libc::ioctl(root.as_raw_fd(), FS_IOC_SHUTDOWN, &NO_LOG_FLUSH) };
        assert_eq!(result, 0, "FS_IOC_SHUTDOWN: {}", std::io::Error::last_os_error());
    }

    /// Unmounts and mounts again, which recovers the log.
    pub fn remount(&self) {
        self.unmount();
        self.mount().unwrap();
    }

    /// Unmounts, asks the file system's own checker, and ends.
    pub fn check(self) {
        self.unmount();
        let (program, arguments) = match self.kind {
            Kind::Ext4 => ("e2fsck", ["-f", "-n"].as_slice()),
            Kind::Xfs => ("xfs_repair", ["-n"].as_slice()),
        };
        let output = Command::new(program).args(arguments).arg(&self.image).output().unwrap();
        assert!(output.status.success(), "{program}: {}", text(&output));
    }

    /// What ext4 asks for after it met errors; to be called while it is not mounted.
    pub fn repair(&self) {
        let output = Command::new("e2fsck").args(["-f", "-y"]).arg(&self.image).output().unwrap();
        // 1: there was something to repair.
        assert!(matches!(output.status.code(), Some(0 | 1)), "e2fsck: {}", text(&output));
    }

    pub fn mount(&self) -> Result<(), String> {
        let mut tries = 0;
        loop {
            tries += 1;
            // Somebody else may take the free loop device first.
            match run("mount", ["-o".as_ref(), "loop".as_ref(), self.image.as_os_str(), self.path().as_os_str()]) {
                Err(error) if error.contains("loop device") && tries < 20 => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                outcome => return outcome,
            }
        }
    }

    /// The ring of a process that was killed lives on in the kernel for a moment, and keeps its files.
    pub fn unmount(&self) {
        let started = Instant::now();
        while let Err(error) = run("umount", [self.path()]) {
            assert!(started.elapsed() < Duration::from_secs(20), "{error}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // After `check`, or a panic: whatever is still mounted goes, at the latest with its last user.
        while is_mounted(self.path()) && run("umount", [OsStr::new("-l"), self.path().as_ref()]).is_ok() {}
    }
}

/// Memory of a given size to put an image on.
pub struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    pub fn new(size: &str) -> Result<Tmpfs, String> {
        let at = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        run("mount", ["-t", "tmpfs", "-o", &options, "tmpfs"].map(OsStr::new).into_iter().chain([at.path().as_ref()]))?;
        Ok(Tmpfs(at))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn grow(&self, size: &str) {
        let options = format!("remount,size={size}");
        run("mount", [OsStr::new("-o"), options.as_ref(), self.path().as_ref()]).unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: after a panic the image on it may still be mounted.
        let _ = run("umount", [OsStr::new("-l"), self.path().as_ref()]);
    }
}

fn is_mounted(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/thread-self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == path))
}

/// Runs a program of the system; its own words are the error.
pub fn run<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(format!("{program}: {}", text(&output))) }
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).trim().to_owned()
}
