//! The kernel, the limits of this process, and the volume under the data directory.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access, statfs};
use rustix::process::{Resource, getrlimit};

use super::super::output;
use super::Check;
use crate::limits;

/// Less than this is a warning: a film does not fit.
const FREE_BYTES_LOW: u64 = 10 << 30;
/// Less than this fails: not even the catalog has room to work.
const FREE_BYTES_NONE: u64 = 64 << 20;
/// What files, workers and the catalog need beside connections.
const DESCRIPTORS_RESERVED: u64 = 512;

pub fn kernel() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let (finding, next) = match fs::read_to_string("/proc/sys/kernel/io_uring_disabled").as_deref().map(str::trim) {
        Ok("1") => ("io_uring for privileged processes only", "`sysctl kernel.io_uring_disabled=0` allows it"),
        Ok("2") => ("io_uring is switched off", "`sysctl kernel.io_uring_disabled=0` allows it"),
        _ => return Check::ok("kernel", format!("Linux {release}")),
    };
    Check::warn("kernel", format!("Linux {release}, {finding}"), format!("{next}; until then the threads engine works"))
}

pub fn descriptors() -> Check {
    let limit = getrlimit(Resource::Nofile);
    let (soft, hard) = (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX));
    let wanted = limits::HTTP_CONNECTIONS as u64 * 2 + DESCRIPTORS_RESERVED;
    // `serve` raises the soft limit itself.
    if hard >= wanted {
        let raised = if soft < hard { format!(", `serve` raises it to {hard}") } else { String::new() };
        return Check::ok("descriptors", format!("{soft} open files{raised}"));
    }
    Check::warn(
        "descriptors",
        format!("at most {hard} open files, {wanted} are needed for {} connections", limits::HTTP_CONNECTIONS),
        "raise it: LimitNOFILE= in the service, or `ulimit -Hn`",
    )
}

/// The data directory, or the closest folder above it that exists.
pub fn existing(data: &Path) -> PathBuf {
    let data = std::path::absolute(data).unwrap_or_else(|_| data.into());
    data.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).into()
}

pub fn volume(data: &Path) -> Vec<Check> {
    vec![directory(data), file_system(&existing(data)), free_space(&existing(data))]
}

/// The configured volumes beside the data directory, as far as can be told without taking them.
pub fn further_volumes(volumes: &[PathBuf]) -> Vec<Check> {
    const NAME: &str = "volume";
    let look = |dir: &PathBuf| {
        let shown = dir.display();
        if !dir.is_dir() {
            return Check::warn(
                NAME,
                format!("{shown} does not exist, or its disk is not mounted"),
                "mount the disk; the folder itself is made by `serve` if the one above it exists",
            );
        }
        if let Err(error) = access(dir, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
            let next = "change its owner, run as another user, or mount it for writing";
            return Check::fail(NAME, format!("{shown} cannot be written by this user: {error}"), next);
        }
        let file_system = file_system(dir);
        if file_system.status != super::Status::Ok {
            return Check { name: NAME, finding: format!("{shown} is on {}", file_system.finding), ..file_system };
        }
        Check::ok(NAME, format!("{shown} can be written, {}", free_space(dir).finding))
    };
    volumes.iter().map(look).collect()
}

fn directory(data: &Path) -> Check {
    const NAME: &str = "data directory";
    let folder = existing(data);
    let shown = data.display();
    if data.exists() && !data.is_dir() {
        return Check::fail(NAME, format!("{shown} is a file"), "choose another place with --data");
    }
    if let Err(error) = access(&folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
        return Check::fail(
            NAME,
            format!("{} cannot be written by this user: {error}", folder.display()),
            "change its owner, run as another user, or choose another place with --data",
        );
    }
    match data.exists() {
        true => Check::ok(NAME, format!("{shown} can be written")),
        false => Check::ok(NAME, format!("{shown} does not exist yet, `serve` makes it")),
    }
}

fn file_system(folder: &Path) -> Check {
    const NAME: &str = "file system";
    let stat = match statfs(folder) {
        Ok(stat) => stat,
        Err(error) => return Check::warn(NAME, format!("unknown: {error}"), "look with `df -T`"),
    };
    // The field's width and sign differ between platforms; the number is 32 bits.
    let magic = stat.f_type as u32;
    let (kind, concern) = known_file_system(magic);
    let kind = if kind.is_empty() { format!("type {magic:#x}") } else { kind.to_string() };
    match concern {
        None => Check::ok(NAME, kind),
        Some(concern) => {
            Check::warn(NAME, format!("{kind}: {concern}"), "choose a local disk with --data for real use")
        }
    }
}

/// Name of a file system by its number in `statfs(2)`, and why it is a poor home for data.
fn known_file_system(magic: u32) -> (&'static str, Option<&'static str>) {
    const MEMORY: Option<&str> = Some("its files are gone after a restart");
    const REMOTE: Option<&str> = Some("locks and syncs over a network are not what they promise");
    match magic {
        0xef53 => ("ext4", None),
        0x5846_5342 => ("xfs", None),
        0x9123_683e => ("btrfs", None),
        0x2fc1_2fc1 => ("zfs", None),
        0xf2f5_2010 => ("f2fs", None),
        0xca45_1a4e => ("bcachefs", None),
        0x0102_1994 => ("tmpfs", MEMORY),
        0x8584_58f6 => ("ramfs", MEMORY),
        0x794c_7630 => ("overlay", Some("a container's own layer is removed with the container; mount a volume")),
        0x6969 => ("nfs", REMOTE),
        0xff53_4d42 | 0xfe53_4d42 => ("smb", REMOTE),
        0x0102_1997 => ("9p", REMOTE),
        0x6573_5546 => ("fuse", Some("durability depends on the program behind it")),
        0x4d44 => ("fat", Some("it has no permissions and no files over 4 GiB")),
        _ => ("", None),
    }
}

fn free_space(folder: &Path) -> Check {
    const NAME: &str = "free space";
    let stat = match rustix::fs::statvfs(folder) {
        Ok(stat) => stat,
        Err(error) => return Check::warn(NAME, format!("unknown: {error}"), "look with `df`"),
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let all = stat.f_blocks.saturating_mul(stat.f_frsize);
    let finding = format!("{} of {} free", output::bytes(free), output::bytes(all));
    let next = "delete something with `reelring rm`, or choose a larger volume with --data";
    match free {
        0..FREE_BYTES_NONE => Check::fail(NAME, finding, next),
        FREE_BYTES_NONE..FREE_BYTES_LOW => Check::warn(NAME, finding, next),
        _ => Check::ok(NAME, finding),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn file_systems_that_forget_are_told_from_disks() {
        assert_eq!(known_file_system(0xef53), ("ext4", None));
        assert!(known_file_system(0x0102_1994).1.is_some());
        assert_eq!(known_file_system(1), ("", None));
    }

    #[test]
    fn a_folder_that_does_not_exist_yet_is_fine_and_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a/b");
        assert_eq!(existing(&data), dir.path());
        assert_eq!(directory(&data).status, Status::Ok);
        assert!(!data.exists(), "looking must not create it");
        let file = dir.path().join("f");
        fs::write(&file, "").unwrap();
        assert_eq!(directory(&file).status, Status::Fail);
    }
}
