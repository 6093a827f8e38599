//! One node per data directory: an flock on `LOCK`, which holds the owner's pid while it runs.
//!
//! The kernel releases the lock with the process, however it ends. The file has two lines: the
//! owner's pid, or `closed` after a clean stop, and the id of its run, by which the next start tells
//! whether the catalog is the one this directory was last used with. A pid that is still there after
//! the lock was free tells that the last owner did not close the store: its debris is worth looking
//! for.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};
use crate::id::BlobId;

/// More than two lines of a pid and an id.
const LOCK_BYTES: u64 = 64;
const CLOSED: &str = "closed";

pub(crate) struct DirLock {
    file: File,
    /// Of this owner.
    pub(crate) run: BlobId,
}

pub(crate) struct Locked {
    pub(crate) lock: DirLock,
    /// The previous owner closed the store, or there was none.
    pub(crate) clean: bool,
    /// The previous owner's run.
    pub(crate) previous: Option<BlobId>,
}

impl DirLock {
    pub(crate) fn take(dir: &Path) -> Result<Locked> {
        let path = dir.join("LOCK");
        let fail = |op| {
            let path = path.clone();
            move |e| Error::io(op, &path, e)
        };
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(fail("open"))?;
        let mut owner = String::new();
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                (&file).take(LOCK_BYTES).read_to_string(&mut owner).map_err(fail("read"))?;
                let pid = owner.lines().next().and_then(|line| line.parse().ok());
                return Err(Error::Locked { dir: dir.into(), pid });
            }
            Err(e) => return Err(fail("lock")(e.into())),
        }
        (&file).take(LOCK_BYTES).read_to_string(&mut owner).map_err(fail("read"))?;
        let mut lines = owner.lines();
        let clean = lines.next().is_none_or(|line| line == CLOSED);
        let previous = lines.next().and_then(|line| line.parse().ok());
        let mut lock = DirLock { file, run: BlobId::new() };
        lock.write(&std::process::id().to_string()).map_err(fail("write"))?;
        Ok(Locked { lock, clean, previous })
    }

    /// Marks a clean stop. The lock itself goes with the descriptor.
    pub(crate) fn mark_clean(&mut self) -> std::io::Result<()> {
        self.write(CLOSED)
    }

    fn write(&mut self, owner: &str) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(format!("{owner}\n{}\n", self.run).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_owner_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = DirLock::take(dir.path()).unwrap();
        assert!(first.clean, "a new directory counts as cleanly closed");
        match DirLock::take(dir.path()) {
            Err(Error::Locked { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
            Ok(_) => panic!("two owners of one directory"),
            Err(e) => panic!("wrong error: {e}"),
        }
        first.lock.mark_clean().unwrap();
        let run = first.lock.run;
        drop(first);
        let second = DirLock::take(dir.path()).unwrap();
        assert!(second.clean);
        assert_eq!(second.previous, Some(run));
        drop(second);
        assert!(!DirLock::take(dir.path()).unwrap().clean, "the second owner went without a word");
    }
}
