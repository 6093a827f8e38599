//! One node per data directory, and per volume: an flock on `LOCK`, which holds the owner's pid while it runs.
//!
//! The kernel releases the lock with the process, however it ends. The file's first line is the owner's pid, or `closed`
//! after a clean stop; a pid that is still there after the lock was free tells that the last owner did not close the
//! store, and that its debris is worth looking for. The lines after it are ids of runs: the catalog belongs to this
//! directory if the run it noted last is among them.
//!
//! Two files cannot change at once, hence two: before the catalog notes the new run, `LOCK` names the run that the
//! catalog still has and the new one; after it, the new one alone. Each step is synced before the next. So a process that
//! dies in between leaves a pair that still fits, and a catalog from a back-up never does.
//!
//! A volume beside the data directory has a `LOCK` too, by simpler rules: it names the run that uses it, and after a clean
//! stop of that run `closed`. It needs no sweep if that is the run which the catalog noted last: then nothing was deleted
//! while it was away.
//!
//! The file always has the same few bytes, written at once over the old ones: they lie in one sector, which no power cut
//! tears. It is never truncated.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

use crate::bridge::NamedFile;
use crate::error::{Error, Result};
use crate::id::BlobId;

/// Room for a pid and two ids; less than a sector.
const LOCK_BYTES: usize = 128;
const CLOSED: &str = "closed";

pub(crate) struct DirLock {
    pub(crate) file: Arc<NamedFile>,
}

pub(crate) struct Locked {
    pub(crate) lock: DirLock,
    /// The previous owner closed the store, or there was none.
    pub(crate) clean: bool,
    /// The runs that the directory's catalog may have noted last.
    pub(crate) runs: Vec<BlobId>,
}

impl DirLock {
    pub(crate) fn take(dir: &Path) -> Result<Locked> {
        DirLock::take_by(dir, OpenOptions::new().read(true).write(true).create(true).truncate(false))
    }

    /// On a file system that is read-only now: nothing can be noted.
    pub(crate) fn take_read_only(dir: &Path) -> Result<Locked> {
        DirLock::take_by(dir, OpenOptions::new().read(true))
    }

    fn take_by(dir: &Path, how: &OpenOptions) -> Result<Locked> {
        let path = dir.join("LOCK");
        let fail = |op| {
            let path = path.clone();
            move |e| Error::io(op, &path, e)
        };
        let file = how.open(&path).map_err(fail("open"))?;
        let mut owner = String::new();
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                (&file).take(LOCK_BYTES as u64).read_to_string(&mut owner).map_err(fail("read"))?;
                let pid = owner.lines().next().and_then(|line| line.parse().ok());
                return Err(Error::Locked { dir: dir.into(), pid });
            }
            Err(e) => return Err(fail("lock")(e.into())),
        }
        (&file).take(LOCK_BYTES as u64).read_to_string(&mut owner).map_err(fail("read"))?;
        let mut lines = owner.lines();
        let clean = lines.next().is_none_or(|line| line == CLOSED);
        let runs = lines.filter_map(|line| line.parse().ok()).collect();
        let file = Arc::new(NamedFile { file, path, claim: None });
        Ok(Locked { lock: DirLock { file }, clean, runs })
    }

    /// What the file says while this owner runs and the catalog may have noted any of `runs`.
    pub(crate) fn running(runs: &[BlobId]) -> Vec<u8> {
        content(&std::process::id().to_string(), runs)
    }

    /// Marks the clean stop of `run`. Should the mark not reach the disk, the next start merely looks for debris. The lock itself
    /// goes with the descriptor.
    pub(crate) fn mark_clean(&self, run: BlobId) -> std::io::Result<()> {
        self.file.file.write_all_at(&content(CLOSED, &[run]), 0)
    }
}

fn content(owner: &str, runs: &[BlobId]) -> Vec<u8> {
    let mut text = format!("{owner}\n");
    for run in runs {
        text.push_str(&format!("{run}\n"));
    }
    debug_assert!(text.len() <= LOCK_BYTES);
    let mut bytes = text.into_bytes();
    bytes.resize(LOCK_BYTES, b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_owner_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirLock::take(dir.path()).unwrap();
        assert!(first.clean, "a new directory counts as cleanly closed");
        let runs = [BlobId::new(), BlobId::new()];
        first.lock.file.file.write_all_at(&DirLock::running(&runs), 0).unwrap();
        match DirLock::take(dir.path()) {
            Err(Error::Locked { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
            Ok(_) => panic!("two owners of one directory"),
            Err(e) => panic!("wrong error: {e}"),
        }
        drop(first);
        let second = DirLock::take(dir.path()).unwrap();
        assert!(!second.clean, "the first owner went without a word");
        assert_eq!(second.runs, runs);
        let run = BlobId::new();
        second.lock.mark_clean(run).unwrap();
        drop(second);
        let third = DirLock::take(dir.path()).unwrap();
        assert!(third.clean);
        assert_eq!(third.runs, [run], "nothing of the longer text before is left");
    }

    #[test]
    fn a_lock_of_the_first_version_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let run = BlobId::new();
        std::fs::write(dir.path().join("LOCK"), format!("closed\n{run}\n")).unwrap();
        let locked = DirLock::take(dir.path()).unwrap();
        assert_eq!((locked.clean, locked.runs), (true, vec![run]));
    }
}
