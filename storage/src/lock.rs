//! One node per data directory: an flock on `LOCK`, which holds the owner's pid while it runs.
//!
//! The kernel releases the lock with the process, however it ends. The pid is for the message
//! alone, and one that is still there after the lock was free tells that the last owner did not
//! close the store: its debris is worth looking for.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};

pub(crate) struct DirLock {
    file: File,
}

pub(crate) struct Locked {
    pub(crate) lock: DirLock,
    /// The previous owner removed its pid, as a closing store does.
    pub(crate) clean: bool,
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
                (&file).take(32).read_to_string(&mut owner).map_err(fail("read"))?;
                return Err(Error::Locked { dir: dir.into(), pid: owner.trim().parse().ok() });
            }
            Err(e) => return Err(fail("lock")(e.into())),
        }
        (&file).take(32).read_to_string(&mut owner).map_err(fail("read"))?;
        let mut lock = DirLock { file };
        lock.write(&format!("{}\n", std::process::id())).map_err(fail("write"))?;
        Ok(Locked { lock, clean: owner.is_empty() })
    }

    /// Marks a clean stop. The lock itself goes with the descriptor.
    pub(crate) fn mark_clean(&mut self) -> std::io::Result<()> {
        self.write("")
    }

    fn write(&mut self, text: &str) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(text.as_bytes())
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
        drop(first);
        let second = DirLock::take(dir.path()).unwrap();
        assert!(second.clean);
        drop(second);
        assert!(!DirLock::take(dir.path()).unwrap().clean, "the second owner went without a word");
    }
}
