//! Syncing a whole file system with one call: whether that may be done, and doing it. Blocks; engines call it from a
//! thread that may wait.
//!
//! `syncfs(2)` writes out everything that is dirty on the file system, whoever wrote it, and flushes the disk's cache
//! once. Two questions come before it.
//!
//! **Would its success be the truth?** Only where the file system is known to pass every failure on: ext4, from
//! Linux 6.13. Before 5.8 a failed write-back was not reported at all, before 5.17 no failure of the file system itself,
//! and ext4 called the sync of a file system that was shut down a success until 6.13. overlayfs does not pass on what
//! went wrong below it; others are not measured. A file system that became read-only syncs nothing and says that all is
//! well, so it is asked.
//!
//! XFS would tell the truth too. But `syncfs` also writes out the catalog's index file, which SQLite has mapped, and once
//! such a page is clean, XFS answers the next store to it with SIGBUS when its disk is gone: the node would end instead
//! of refusing. ext4 does not.
//!
//! **Would it wait for others?** What all programs together have left dirty is an upper bound of what it has to write.

use std::fs::File;
use std::io;

use rustix::fs::StatVfsMountFlags;

use super::EXT4;
use crate::bridge::VolumeSync;
use crate::limits::SYNC_VOLUME_DIRTY_BYTES_MAX;
use crate::linux;

/// The first Linux whose ext4 reports a shutdown to `syncfs`.
const LINUX: (u32, u32) = (6, 13);

/// Makes everything durable that was written to the file system of `directory` before the call, if that is allowed.
///
/// An error is that of any file there since `directory` was opened or since the last call, and is reported only once.
pub(super) fn sync_volume_blocking(directory: &File) -> io::Result<VolumeSync> {
    if !linux::is_at_least(LINUX) || rustix::fs::fstatfs(directory)?.f_type as u64 != EXT4 {
        return Ok(VolumeSync::Unknown);
    }
    if !few_are_dirty() {
        return Ok(VolumeSync::TooMuch);
    }
    rustix::fs::syncfs(directory)?;
    if rustix::fs::fstatvfs(directory)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(io::Error::from_raw_os_error(libc::EROFS));
    }
    Ok(VolumeSync::Done)
}

/// Whether the whole machine has little that waits to be written. Where that is not told, there may be much.
fn few_are_dirty() -> bool {
    let told = std::fs::read_to_string("/proc/meminfo").ok();
    told.and_then(|meminfo| unwritten(&meminfo)).is_some_and(|bytes| bytes <= SYNC_VOLUME_DIRTY_BYTES_MAX)
}

/// Bytes that are dirty or on their way to a disk.
fn unwritten(meminfo: &str) -> Option<u64> {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    Some((field("Dirty:")? + field("Writeback:")?) * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dirty_is_understood() {
        let meminfo = "MemTotal:  100 kB\nDirty:    217852 kB\nWriteback:      4 kB\nWritebackTmp:   9 kB\n";
        assert_eq!(unwritten(meminfo), Some(217_856 * 1024));
        assert_eq!(unwritten("MemTotal: 100 kB\n"), None);
        assert!(unwritten(&std::fs::read_to_string("/proc/meminfo").unwrap()).is_some());
    }
}
