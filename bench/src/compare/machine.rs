//! The facts of the machine a report must name: without them no figure can be judged or repeated.
//!
//! Everything is read from the kernel's own files; what cannot be read is "unknown", never guessed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::congestion;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub cpus: usize,
    pub cpu_model: String,
    pub memory_bytes: u64,
    pub kernel: String,
    /// Of the measured directory: "ext4".
    pub filesystem: String,
    /// Of the measured directory: "/dev/vda1".
    pub device: String,
    /// The TCP congestion control of what was measured: "bbr".
    #[serde(default = "unknown")]
    pub congestion_control: String,
    /// The load average over a minute before the first round, and after the last.
    pub load_before: f64,
    pub load_after: f64,
    /// RFC 3339.
    pub date: String,
    /// Program to version.
    pub versions: BTreeMap<String, String>,
}

impl Machine {
    /// The facts as they are now; `dir` is where the measured files lie.
    pub fn read(dir: &Path) -> Machine {
        let (filesystem, device) = mount_of(dir).unwrap_or_else(|| (unknown(), unknown()));
        let load = load();
        Machine {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            cpu_model: field_of("/proc/cpuinfo", "model name").unwrap_or_else(unknown),
            memory_bytes: field_of("/proc/meminfo", "MemTotal").and_then(|text| kib(&text)).unwrap_or(0),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| unknown(), |s| s.trim().to_owned()),
            filesystem,
            device,
            congestion_control: congestion::current().unwrap_or_else(unknown),
            load_before: load,
            load_after: load,
            date: jiff::Timestamp::now().to_string(),
            versions: BTreeMap::from([("reelring-bench".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]),
        }
    }

    /// To be called after the last round.
    pub fn finish(&mut self) {
        self.load_after = load();
    }

    /// One line for a person.
    pub fn words(&self) -> String {
        let Machine {
            cpus,
            cpu_model,
            kernel,
            filesystem,
            device,
            congestion_control: tcp,
            load_before,
            load_after,
            ..
        } = self;
        let memory = self.memory_bytes as f64 / f64::from(1 << 30);
        format!(
            "{cpus} × {cpu_model}, {memory:.1} GiB, Linux {kernel}, {filesystem} on {device}, TCP {tcp}, \
             load {load_before:.2} before and {load_after:.2} after"
        )
    }
}

fn unknown() -> String {
    "unknown".to_owned()
}

fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_ascii_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

/// The first `name : value` of a file of the kernel.
fn field_of(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == name)?.1;
    Some(value.trim().to_owned())
}

/// `8123456 kB` in bytes.
pub(super) fn kib(text: &str) -> Option<u64> {
    text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// File system and device of the mount that holds `dir`.
fn mount_of(dir: &Path) -> Option<(String, String)> {
    let dev = fs::metadata(dir).ok()?.dev();
    let wanted = format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev));
    let text = fs::read_to_string("/proc/self/mountinfo").ok()?;
    find_mount(&text, &wanted, &dir.canonicalize().ok()?)
}

/// By device number; by the longest mount point where the numbers differ, as btrfs and overlayfs make them.
fn find_mount(mountinfo: &str, device: &str, dir: &Path) -> Option<(String, String)> {
    let mut best: Option<((bool, usize), (String, String))> = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (left, right): (Vec<&str>, Vec<&str>) = (left.split(' ').collect(), right.split(' ').collect());
        let (Some(number), Some(point), Some(kind), Some(source)) =
            (left.get(2), left.get(4), right.first(), right.get(1))
        else {
            continue;
        };
        if !dir.starts_with(point) {
            continue;
        }
        let rank = (*number == device, point.len());
        if best.as_ref().is_none_or(|(other, _)| rank >= *other) {
            best = Some((rank, ((*kind).to_owned(), (*source).to_owned())));
        }
    }
    best.map(|(_, found)| found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_facts() {
        let machine = Machine::read(Path::new("."));
        assert!(machine.cpus >= 1 && machine.memory_bytes > 1 << 20, "{machine:?}");
        assert_ne!(machine.kernel, "unknown");
        assert_ne!(machine.filesystem, "unknown");
        assert!(machine.date.contains('T') && machine.date.ends_with('Z'), "{}", machine.date);
    }

    #[test]
    fn the_mount_is_found_by_number_and_then_by_the_longest_path() {
        let table = "22 1 254:1 / / rw - ext4 /dev/vda1 rw\n\
                     40 22 0:44 / /data rw shared:1 - btrfs /dev/vdb rw\n\
                     41 22 0:45 / /database rw - xfs /dev/vdc rw\n\
                     torn line\n";
        let found = |number: &str, dir: &str| find_mount(table, number, Path::new(dir)).unwrap();
        assert_eq!(found("254:1", "/home"), ("ext4".into(), "/dev/vda1".into()));
        assert_eq!(found("0:99", "/data/x"), ("btrfs".into(), "/dev/vdb".into()));
        assert_eq!(found("0:45", "/database"), ("xfs".into(), "/dev/vdc".into()));
    }
}
