//! What can go wrong in storage. A message names the object, the limit, the actual value and, where
//! there is one, the next step.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::id::BlobId;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The volume (or the quota on it) is full. Nothing of the failed operation stays behind.
    #[error("{}", no_space(op, path, room.as_deref()))]
    NoSpace {
        op: &'static str,
        path: PathBuf,
        /// `None` when the file system itself refused.
        room: Option<Box<NoRoom>>,
    },

    #[error("data directory {} is in use by {}: stop that node or choose another --data", dir.display(), holder(*pid))]
    Locked { dir: PathBuf, pid: Option<u32> },

    #[error("the precondition on {key} failed: the object {}", current_state(current))]
    PreconditionFailed { key: String, current: Option<[u8; 32]> },

    #[error("blob {0} is not stored here")]
    NoBlob(BlobId),

    /// The bytes on disk are not the bytes that were written.
    #[error("{} is corrupt: {detail}", path.display())]
    Corrupt { path: PathBuf, detail: String },

    /// Found damaged earlier, and refused since.
    #[error("{} is quarantined, its bytes on the disk are not those that were stored: {detail}. Store it again, or put {} back \
             from a back-up and run `reelring scrub --quarantined`, or delete it", object(key, *blob), path.display())]
    Quarantined { blob: BlobId, key: Option<String>, path: PathBuf, detail: String },

    /// A sync failed earlier, or the device refused a write: nothing more is promised durable there.
    #[error(
        "volume {volume} ({}) is degraded and takes no writes, reads go on: {reason}; look at the kernel's log (dmesg) and \
         the disk, then restart the node, which looks the volume over", dir.display()
    )]
    Degraded { volume: u32, dir: PathBuf, reason: String },

    /// What is asked for lies on a volume that cannot be reached. Nothing is known to be lost.
    #[error("volume {volume} ({}) cannot be read: {reason}; bring its disk back, then restart the node", dir.display())]
    VolumeMissing { volume: u32, dir: PathBuf, reason: String },

    /// A directory cannot become a volume, or not of this store.
    #[error("{} cannot be used as a volume: {reason}", dir.display())]
    VolumeRefused { dir: PathBuf, reason: String },

    #[error("could not {op} {}: {source}", path.display())]
    Io { op: &'static str, path: PathBuf, source: io::Error },

    #[error("catalog: {0}")]
    Catalog(#[source] rusqlite::Error),

    /// What lies where the catalog should be is none, or cannot be opened.
    #[error("the catalog {} cannot be used: {source}; put it back from a back-up, or build it anew with `reelring doctor --rebuild`", path.display())]
    CatalogUnusable { path: PathBuf, source: rusqlite::Error },

    /// The catalog was written by a newer version.
    #[error("catalog {} has schema {found}, this version knows up to {known}: run the newer version again", path.display())]
    CatalogTooNew { path: PathBuf, found: String, known: String },

    #[error("the engine {engine} cannot run here: {reason}; use --engine auto or threads")]
    EngineRefused { engine: &'static str, reason: String },

    /// For those who followed a blob while it was written: what they have is not an object.
    #[error("{key} was not stored: its writer ended, {sent} bytes of it had been read; read it again once it is there")]
    NotStored { key: String, sent: u64 },

    #[error("the store is closed")]
    Closed,

    #[error("{what} has {actual} bytes, the limit is {limit}")]
    TooLarge { what: String, limit: u64, actual: u64 },

    /// A closure given to the catalog declined; its savepoint was rolled back.
    #[error("{0}")]
    Rejected(String),
}

impl Error {
    /// Names a failed system call, telling a full volume from any other reason.
    pub(crate) fn io(op: &'static str, path: &Path, source: io::Error) -> Error {
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Error::NoSpace { op, path: path.into(), room: None },
            _ => Error::Io { op, path: path.into(), source },
        }
    }

    pub(crate) fn corrupt(path: &Path, detail: impl Into<String>) -> Error {
        Error::Corrupt { path: path.into(), detail: detail.into() }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Error {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => {
                Error::NoSpace { op: "write", path: crate::limits::CATALOG_FILE.into(), room: None }
            }
            _ => Error::Catalog(error),
        }
    }
}

/// Why a volume promises no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoRoom {
    pub volume: u32,
    pub dir: PathBuf,
    pub wanted: u64,
    pub limit: RoomLimit,
}

/// What is in the way of more, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoomLimit {
    Free { free: u64, promised: u64, min_free: u64 },
    Quota { quota: u64, used: u64, held: u64 },
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "volume {} ({}) has no room for ", self.volume, self.dir.display())?;
        match self.wanted {
            0 => write!(f, "another blob: ")?,
            wanted => write!(f, "{wanted} bytes more: ")?,
        }
        match self.limit {
            RoomLimit::Free { free, promised, min_free } => write!(
                f,
                "{free} bytes are free, {promised} of them promised to uploads under way, and {min_free} must stay free \
                 (min_free, or what the catalog needs); delete something, use a larger disk, or add a volume"
            ),
            RoomLimit::Quota { quota, used, held } => write!(
                f,
                "its quota is {quota} bytes, stored blobs have {used} and uploads under way {held}; delete something or \
                 raise the quota"
            ),
        }
    }
}

fn no_space(op: &str, path: &Path, room: Option<&NoRoom>) -> String {
    match room {
        Some(room) => room.to_string(),
        // Deleting takes a row of it, so it is no way out.
        None if path == Path::new(crate::limits::CATALOG_FILE) => format!(
            "no space left on the volume to {op} {}, which the node keeps room for: something else fills the disk; make room there, \
             or use a larger one",
            path.display()
        ),
        None => {
            format!("no space left on the volume to {op} {}: delete something or use a larger volume", path.display())
        }
    }
}

fn object(key: &Option<String>, blob: BlobId) -> String {
    match key {
        Some(key) => format!("object {key} (blob {blob})"),
        None => format!("blob {blob}"),
    }
}

fn holder(pid: Option<u32>) -> String {
    match pid {
        Some(pid) => format!("process {pid}"),
        None => "another process".into(),
    }
}

fn current_state(current: &Option<[u8; 32]>) -> String {
    match current {
        Some(hash) => format!("exists with blake3 {}", blake3::Hash::from_bytes(*hash).to_hex()),
        None => "does not exist".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_volume_is_told_from_other_failures() {
        let path = Path::new("/data/x");
        let full = Error::io("write", path, io::Error::from_raw_os_error(libc::ENOSPC));
        assert!(matches!(full, Error::NoSpace { op: "write", .. }), "{full}");
        assert!(full.to_string().contains("delete something"), "{full}");
        let catalog = Error::NoSpace { op: "write", path: crate::limits::CATALOG_FILE.into(), room: None }.to_string();
        assert!(catalog.contains("something else") && !catalog.contains("delete"), "{catalog}");
        let broken = Error::io("write", path, io::Error::from_raw_os_error(libc::EIO));
        assert!(broken.to_string().starts_with("could not write /data/x: "), "{broken}");
    }
}
