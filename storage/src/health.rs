//! Whether the volume still keeps its promises. Shared by files and the catalog.
//!
//! The failure of a sync is final: the kernel may have thrown away what it could not write and
//! report success next time. From then on nothing is promised: writes are refused, reads go on,
//! until the process is started again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::*};

use crate::error::{Error, Result};

#[derive(Clone)]
pub(crate) struct Health {
    degraded: Arc<AtomicBool>,
    dir: Arc<Path>,
}

impl Health {
    pub(crate) fn new(dir: PathBuf) -> Health {
        Health { degraded: Arc::default(), dir: dir.into() }
    }

    pub(crate) fn is_degraded(&self) -> bool {
        self.degraded.load(Acquire)
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.is_degraded() { Err(Error::Degraded { dir: self.dir.to_path_buf() }) } else { Ok(()) }
    }

    /// Looks at the outcome of a file's sync. A closed engine has not tried; a file system that finds no
    /// room only now has failed this file, which is given up, and no other.
    pub(crate) fn judge_sync(&self, result: Result<()>) -> Result<()> {
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
        if let Err(error) = &result
            && !matches!(error, Error::Closed)
        {
            self.degrade(error);
        }
        result.and_then(|()| self.check_writable())
    }

    pub(crate) fn degrade(&self, error: &dyn std::fmt::Display) {
        if !self.degraded.swap(true, AcqRel) {
            let dir = self.dir.display();
            tracing::error!(%error, %dir, "a sync failed: the volume is degraded, writes are refused from now on");
        }
    }
}
