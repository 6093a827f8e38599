//! Making files cold, and knowing that they are.
//!
//! The kernel is asked to drop a file's clean pages; a page that somebody has mapped stays. So how much of the file is
//! still resident is counted afterwards, and a round that would not be cold is an error.

use std::fs::File;
use std::path::Path;
use std::ptr;
use std::time::Instant;

use anyhow::{Context, ensure};
use rustix::fs::{Advice, fadvise};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::super::stop;
use crate::limits;

const PAGE_BYTES: u64 = 4096;
/// Of a file that counts as cold. The kernel frees sent socket buffers in batches, up to 64 on each processor: as much as
/// that of what has just been sent stays referenced until there is other traffic.
pub const RESIDENT_BYTES_MAX: f64 = (16 << 20) as f64;
/// The same as a share, for large files.
const RESIDENT_MAX: f64 = 0.02;

/// Drops the files from the page cache; an error when they would not go.
pub fn evict<P: AsRef<Path>>(files: &[P]) -> anyhow::Result<()> {
    for path in files {
        let path = path.as_ref();
        let file = File::open(path).with_context(|| path.display().to_string())?;
        // Only clean pages can go.
        file.sync_data().with_context(|| path.display().to_string())?;
        let length = file.metadata()?.len() as f64;
        let start = Instant::now();
        loop {
            fadvise(&file, 0, None, Advice::DontNeed).with_context(|| format!("evicting {}", path.display()))?;
            let resident = resident(&file).with_context(|| format!("looking for pages of {}", path.display()))?;
            if resident <= RESIDENT_MAX || resident * length <= RESIDENT_BYTES_MAX {
                break;
            }
            // Pages on their way to a client that has just left stay until its socket is gone.
            ensure!(
                start.elapsed() < limits::EVICT,
                "{}: {:.1} % of the file stayed in the page cache: it lies on tmpfs, or another process uses it; choose another --dir",
                path.display(),
                resident * 100.0
            );
            stop::check()?;
            std::thread::sleep(limits::POLL);
        }
    }
    Ok(())
}

/// The share of a file that is in the page cache.
pub fn resident(file: &File) -> anyhow::Result<f64> {
    let length = file.metadata()?.len();
    if length == 0 {
        return Ok(0.0);
    }
    let mut pages = vec![0u8; length.div_ceil(PAGE_BYTES) as usize];
    let bytes = usize::try_from(length)?;
    // SAFETY: a new mapping at an address of the kernel's choice, never dereferenced, unmapped below. mincore writes one
    // byte for each page of it, and `pages` has as many.
    let outcome = unsafe {
        let map = mmap(ptr::null_mut(), bytes, ProtFlags::READ, MapFlags::SHARED, file, 0)?;
        let outcome = match libc::mincore(map, bytes, pages.as_mut_ptr().cast()) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        };
        munmap(map, bytes)?;
        outcome
    };
    outcome?;
    Ok(pages.iter().filter(|page| **page & 1 == 1).count() as f64 / pages.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_evicted_file_is_cold_and_a_read_one_is_not() {
        // Beside this program, which lies on a disk where /tmp may not: what tmpfs holds cannot leave memory.
        let beside = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(beside.parent().unwrap()).unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![1; 1 << 20]).unwrap();
        assert!(resident(&File::open(&path).unwrap()).unwrap() > 0.9);
        evict(&[&path]).unwrap();
        assert!(resident(&File::open(&path).unwrap()).unwrap() < 0.1);
        std::fs::read(&path).unwrap();
        assert!(resident(&File::open(&path).unwrap()).unwrap() > 0.9);
    }
}
