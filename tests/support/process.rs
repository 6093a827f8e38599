//! What the kernel tells about a process, and signals to processes that a test started.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// The unit of CPU times under `/proc`: part of the kernel's interface, whatever its own tick.
const USER_HZ: u64 = 100;

/// A field of `/proc/PID/status` in bytes, such as `VmRSS` or `VmHWM`.
pub fn status_bytes(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a live process");
    let line = status.lines().find(|line| line.starts_with(field)).unwrap_or_else(|| panic!("{field} of {pid}"));
    let kib: u64 = line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number of KiB");
    kib * 1024
}

pub fn rss(pid: u32) -> u64 {
    status_bytes(pid, "VmRSS:")
}

pub fn peak_rss(pid: u32) -> u64 {
    status_bytes(pid, "VmHWM:")
}

/// How many files, sockets and the like it has open.
pub fn descriptors(pid: u32) -> usize {
    open_files(pid).len()
}

/// What they are, as the kernel names them.
pub fn open_files(pid: u32) -> Vec<PathBuf> {
    let found = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a live process").flatten();
    // One may be closed while it is looked at.
    found.map(|entry| std::fs::read_link(entry.path()).unwrap_or_default()).collect()
}

/// CPU time of the process, its ended threads included, its children not.
pub fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a live process");
    let after_name = stat.rsplit(')').next().expect("a stat line");
    let fields: Vec<u64> = after_name.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    Duration::from_millis((fields[10] + fields[11]) * 1000 / USER_HZ)
}

/// The direct children of a process whose executable's name starts with `name`.
pub fn children(pid: u32, name: &str) -> Vec<u32> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let of_task = |task: PathBuf| std::fs::read_to_string(task.join("children")).unwrap_or_default();
    let listed: String = tasks.flatten().map(|task| of_task(task.path())).collect();
    let named = |child: &u32| {
        let exe = std::fs::read_link(format!("/proc/{child}/exe")).unwrap_or_default();
        exe.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name))
    };
    listed.split_whitespace().filter_map(|word| word.parse().ok()).filter(named).collect()
}

pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).expect("a process id");
    kill_process(pid, signal).expect("the process is there");
}

/// A child that does not outlive its owner.
pub struct Owned(pub Child);

impl Owned {
    pub fn spawn(command: &mut Command) -> Owned {
        let shown = format!("{command:?}");
        Owned(command.spawn().unwrap_or_else(|error| panic!("{shown}: {error}")))
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    pub fn running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if self.running() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// An executable of this name in `PATH` or where Debian puts servers.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")]);
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}
