//! Whether a volume still keeps its promises. The data directory's is shared by its files and the catalog.
//!
//! The failure of a sync is final: the kernel may have thrown away what it could not write and
//! report success next time. So is a write that the device refuses, or a file system that turned read-only. From then
//! on nothing is promised: this volume takes no writes, reads go on, until the process is started again. Other volumes
//! are not concerned.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use crate::clock;
use crate::error::{Error, Result};
use crate::volume::presence::Presence;

#[derive(Clone)]
pub(crate) struct Health {
    shared: Arc<Shared>,
}

struct Shared {
    number: u32,
    dir: PathBuf,
    fault: OnceLock<Fault>,
    presence: Presence,
}

/// Why a volume takes no writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) reason: String,
    pub(crate) since_ms: u64,
}

impl Health {
    pub(crate) fn new(number: u32, dir: PathBuf) -> Health {
        let presence = Presence::of(&dir);
        Health { shared: Arc::new(Shared { number, dir, fault: OnceLock::new(), presence }) }
    }

    pub(crate) fn fault(&self) -> Option<&Fault> {
        self.shared.fault.get()
    }

    pub(crate) fn is_degraded(&self) -> bool {
        self.fault().is_some()
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        match self.fault() {
            None => Ok(()),
            Some(fault) => Err(Error::Degraded {
                volume: self.shared.number,
                dir: self.shared.dir.clone(),
                reason: fault.reason.clone(),
            }),
        }
    }

    /// Looks at the outcome of a file's sync. A closed engine has not tried; a file system that finds no
    /// room only now has failed this file, which is given up, and no other.
    pub(crate) fn judge_sync(&self, result: Result<()>) -> Result<()> {
        let result = result.and_then(|()| self.confirm());
        if let Err(error) = &result
            && !matches!(error, Error::Closed | Error::NoSpace { .. })
        {
            self.degrade(error);
        }
        // A success beside a failure proves nothing.
        result.and_then(|()| self.check_writable())
    }

    /// Looks at the outcome of a directory's sync, which concerns every file in it: there is nothing smaller to give up.
    pub(crate) fn judge_directory_sync(&self, result: Result<()>) -> Result<()> {
        let result = result.and_then(|()| self.confirm());
        if let Err(error) = &result
            && !matches!(error, Error::Closed)
        {
            self.degrade(error);
        }
        result.and_then(|()| self.check_writable())
    }

    /// Whether a success just now was one: `presence.rs` tells why it may not have been.
    pub(crate) fn confirm(&self) -> Result<()> {
        let gone = |source| Error::io("confirm a sync of", &self.shared.dir, source);
        self.shared.presence.confirm().map_err(gone)
    }

    /// As [`confirm`](Health::confirm), and more sure, for a thread that may wait.
    pub(crate) fn confirm_journal(&self) -> Result<()> {
        let gone = |source| Error::io("confirm a sync of", &self.shared.dir, source);
        self.shared.presence.confirm_journal().map_err(gone)
    }

    /// A commit on a volume that has failed by now may be there after a restart, or not: the error must not say that
    /// nothing was changed, as [`Error::Degraded`] does.
    pub(crate) fn confirm_commit(&self) -> Result<()> {
        let doubt =
            || std::io::Error::other("a sync of the volume failed meanwhile; a restart tells whether it is there");
        if self.is_degraded() { Err(Error::io("confirm a commit in", &self.shared.dir, doubt())) } else { Ok(()) }
    }

    /// Looks at why something could not be written: a file, a name. What the device refuses once is not offered to it
    /// again; anything else (no descriptors, a name in the way) is the caller's matter alone.
    pub(crate) fn judge_write(&self, error: &Error) {
        if let Error::Io { source, .. } = error
            && matches!(
                source.raw_os_error(),
                Some(libc::EIO | libc::ENODEV | libc::ENXIO | libc::ESTALE | libc::EROFS | libc::ESHUTDOWN)
            )
        {
            self.degrade(error);
        }
    }

    pub(crate) fn degrade(&self, reason: &dyn std::fmt::Display) {
        let Shared { number: volume, dir, fault, .. } = &*self.shared;
        let mut first = false;
        fault.get_or_init(|| {
            first = true;
            Fault { reason: reason.to_string(), since_ms: clock::now_ms() }
        });
        if first {
            let dir = dir.display();
            tracing::error!(volume, %dir, %reason, "the volume is degraded: it takes no writes until the node is restarted");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::*;

    #[test]
    fn a_device_that_fails_degrades_its_volume_and_a_mere_refusal_does_not() {
        let error = |code| Error::io("write", Path::new("/disk2/x"), io::Error::from_raw_os_error(code));
        for code in [libc::EMFILE, libc::EACCES, libc::EEXIST, libc::ENOSPC, libc::ENOENT] {
            let health = Health::new(1, "/disk2".into());
            health.judge_write(&error(code));
            assert!(!health.is_degraded(), "{code}");
        }
        for code in [libc::EIO, libc::ENODEV, libc::ESTALE, libc::EROFS] {
            let health = Health::new(1, "/disk2".into());
            health.judge_write(&error(code));
            health.judge_write(&error(libc::EIO));
            let text = health.check_writable().unwrap_err().to_string();
            let first = io::Error::from_raw_os_error(code).to_string();
            for part in ["volume 1", "/disk2", &first, "restart"] {
                assert!(text.contains(part), "{part} is not in {text:?}");
            }
        }
    }
}
