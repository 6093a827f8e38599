//! Files as a job needs them, before its clock starts: what fio does in its set-up.
//!
//! A file that is there and long enough is used as it is. Otherwise a job that reads (or overwrites) gets a new one full of
//! noise, and a job that only writes gets a new one of its length, with room reserved as `fallocate=` says. Files are left
//! behind as fio leaves them.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::fs::{Advice, FallocateFlags};

use super::failure::Failure;
use super::verify::noise;
use crate::engine::Block;
use crate::job::{Fallocate, Job};
use crate::limits::LAYOUT_BYTES;

/// What the set-up found or made.
pub struct LaidOut {
    /// Bytes of the file.
    pub size: u64,
    pub created: bool,
}

pub fn lay_out(job: &Job, path: &Path, size: u64, stop: &AtomicBool) -> Result<LaidOut, Failure> {
    let failed = |verb: &str, error: &io::Error| {
        Failure::from_io(&format!("job {}: could not {verb} {}", job.name, path.display()), error)
    };
    let found = match std::fs::metadata(path) {
        Ok(found) => Some(found),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed("look at", &error)),
    };
    if let Some(found) = &found {
        if found.is_dir() {
            return Err(failed("use", &io::Error::from_raw_os_error(libc::EISDIR)));
        }
        let length = if found.file_type().is_block_device() {
            File::open(path).and_then(|mut file| file.seek(SeekFrom::End(0))).map_err(|error| failed("open", &error))?
        } else {
            found.len()
        };
        let usable = length.saturating_sub(job.offset);
        if size == 0 && usable > 0 {
            return Ok(LaidOut { size: length, created: false });
        }
        if size > 0 && usable >= size {
            return Ok(LaidOut { size: length, created: false });
        }
        if !found.is_file() {
            let problem = format!("it has {length} bytes, the job needs {}", job.offset + size);
            return Err(failed("use", &io::Error::new(io::ErrorKind::InvalidInput, problem)));
        }
    }
    if size == 0 {
        let message =
            format!("job {}: {} is absent or empty, and no size= says how long to make it", job.name, path.display());
        return Err(Failure { errno: libc::EINVAL, message });
    }
    let length = job.offset + size;
    let made = if job.rw.reads || job.overwrite { fill(path, length, job, stop) } else { reserve(path, length, job) };
    if let Err(error) = made {
        let failure = failed(&format!("lay out {length} bytes in"), &error).with_room(path);
        // Half a file would pass for a whole one next time.
        let _ = std::fs::remove_file(path);
        return Err(failure);
    }
    Ok(LaidOut { size: length, created: found.is_none() })
}

fn create(path: &Path) -> io::Result<File> {
    // A new file, as fio makes one: what was too short may be somebody's map or have another's holes.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)
}

fn reserve(path: &Path, length: u64, job: &Job) -> io::Result<()> {
    let file = create(path)?;
    let flags = match job.fallocate {
        Fallocate::Native => Some(FallocateFlags::empty()),
        Fallocate::Keep => Some(FallocateFlags::KEEP_SIZE),
        Fallocate::None | Fallocate::Truncate => None,
    };
    if let Some(flags) = flags {
        match rustix::fs::fallocate(&file, flags, 0, length) {
            // Only a convenience, where the file system has it.
            Err(error) if error != rustix::io::Errno::OPNOTSUPP => return Err(error.into()),
            _ => {}
        }
    }
    if job.fallocate == Fallocate::Truncate || job.engine == Some(crate::job::EngineKind::Mmap) {
        file.set_len(length)?;
    }
    Ok(())
}

fn fill(path: &Path, length: u64, job: &Job, stop: &AtomicBool) -> io::Result<()> {
    let mut file = create(path)?;
    file.set_len(length)?;
    let mut block = Block::new(LAYOUT_BYTES);
    let mut at = 0;
    while at < length {
        if stop.load(Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::EINTR));
        }
        let piece = &mut block.bytes_mut()[..LAYOUT_BYTES.min((length - at) as usize)];
        noise(piece, job.randseed ^ at);
        file.write_all(piece)?;
        at += piece.len() as u64;
    }
    file.sync_all()
}

/// Makes the page cache forget a file that a buffered job is about to use.
pub fn forget(path: &PathBuf) -> io::Result<()> {
    let file = File::open(path)?;
    if file.metadata()?.is_file() {
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}
