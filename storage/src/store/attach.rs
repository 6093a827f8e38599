//! Finding the volumes beside the data directory when a store is opened.
//!
//! A volume is known by its identity file, not by its path: mount points may be exchanged. One rule decides what a
//! surprise means. A volume that the catalog knows never keeps the store from opening: whatever is wrong with it, it is
//! absent, its blobs are refused and the rest works. A directory that is to become a volume must be right, or the store
//! does not open: nothing is lost yet, and somebody has just edited the configuration.
//!
//! A known volume with blobs that is no longer configured is looked for where it was last. If it is there it is read, and
//! gets nothing new.
//!
//! Everything here blocks. Nothing but a new volume's directories and identity is written.

use std::fs;
use std::path::{Path, PathBuf};

use crate::bridge::Bridge;
use crate::catalog::volumes::VolumeRow;
use crate::engine::EngineChoice;
use crate::error::{Error, Result};
use crate::id::BlobId;
use crate::limits::VOLUMES_MAX;
use crate::store::open::make_directories;
use crate::volume::identity::{self, Identity};
use crate::volume::lock::{DirLock, Locked};

/// A volume beside the data directory.
pub(crate) struct Extra {
    pub(crate) number: u32,
    pub(crate) id: BlobId,
    pub(crate) dir: PathBuf,
    /// It is configured, and so may get new blobs.
    pub(crate) takes_new: bool,
    /// Or why it is absent.
    pub(crate) state: std::result::Result<Here, String>,
}

/// What an open volume is made of.
pub(crate) struct Here {
    pub(crate) locked: Locked,
    pub(crate) bridge: Bridge,
}

/// The id of the data directory. Its identity file wins over the catalog, which may be new or another's; without the
/// file (an older version's directory) the catalog's word is written there.
pub(crate) fn data_id(dir: &Path, known: &[VolumeRow]) -> Result<BlobId> {
    if let Some(identity) = Identity::read(dir)? {
        if identity.number == 0 {
            return Ok(identity.id);
        }
        return Err(refused(dir, format!("it is volume {} of another data directory; give that one", identity.number)));
    }
    let id = known.iter().find(|row| row.number == 0).map_or_else(BlobId::new, |row| row.id);
    Identity { id, number: 0, data: id }.write(dir)?;
    Ok(id)
}

/// Looks at every configured directory and at every volume the catalog knows.
pub(crate) fn attach(
    data_dir: &Path,
    data: BlobId,
    configured: &[PathBuf],
    known: &[VolumeRow],
    engine: EngineChoice,
) -> Result<Vec<Extra>> {
    let mut found = Vec::with_capacity(configured.len());
    for dir in configured {
        let dir = std::path::absolute(dir).map_err(|e| Error::io("resolve", dir, e))?;
        if dir == data_dir || found.iter().any(|(other, _)| *other == dir) {
            return Err(refused(&dir, "it is named twice, or is the data directory, which is a volume already".into()));
        }
        let identity = Identity::read(&dir);
        found.push((dir, identity));
    }
    let mut extras: Vec<Extra> = Vec::new();
    let row_of = |id: BlobId| known.iter().find(|row| row.id == id && row.number != 0);
    let mut without_identity = Vec::new();
    for (dir, identity) in found {
        match identity {
            Ok(Some(found)) if row_of(found.id).is_some() => {
                let row = row_of(found.id).expect("just looked");
                extras.push(Extra::known(row, dir, true, engine));
            }
            Ok(Some(found)) if found.data == data && found.number != 0 => {
                if let Some(row) = known.iter().find(|row| row.number == found.number) {
                    let other = row.path.display();
                    return Err(refused(&dir, format!("its number {} is another volume's ({other})", found.number)));
                }
                // The catalog lost its memory, or the process died before it told the catalog.
                extras.push(Extra::open(found.number, found.id, dir, engine)?);
            }
            other => without_identity.push((dir, other)),
        }
    }
    for (dir, identity) in without_identity {
        let was_here = known.iter().find(|row| row.path == dir && !extras.iter().any(|extra| extra.id == row.id));
        let reason = match &identity {
            Ok(None) => "its identity file is not there: the disk is not mounted, or is empty".to_owned(),
            Ok(Some(found)) if found.data == data => "it is the data directory".to_owned(),
            Ok(Some(found)) => format!("what lies there is volume {} of another data directory", found.number),
            Err(error) => error.to_string(),
        };
        match (was_here, identity) {
            (Some(row), _) => extras.push(Extra::absent(row, dir, true, reason)),
            (None, Ok(None)) => {
                let number = next_number(known, &extras);
                extras.push(Extra::begin(number, data, dir, engine)?);
            }
            (None, _) => return Err(refused(&dir, reason)),
        }
    }
    for row in known.iter().filter(|row| row.number != 0 && row.blobs > 0) {
        if extras.iter().any(|extra| extra.id == row.id) {
            continue;
        }
        let dir = row.path.clone();
        extras.push(match Identity::read(&dir) {
            Ok(Some(found)) if found.id == row.id => Extra::known(row, dir, false, engine),
            _ => Extra::absent(row, dir, false, "it is not configured, and not where it was last".into()),
        });
    }
    if extras.len() >= VOLUMES_MAX {
        let count = extras.len() + 1;
        return Err(refused(data_dir, format!("{count} volumes are configured or in use, the limit is {VOLUMES_MAX}")));
    }
    extras.sort_by_key(|extra| extra.number);
    Ok(extras)
}

impl Extra {
    /// A volume that the catalog knows: what is wrong with it makes it absent.
    fn known(row: &VolumeRow, dir: PathBuf, takes_new: bool, engine: EngineChoice) -> Extra {
        if dir != row.path {
            tracing::info!(volume = row.number, was = %row.path.display(), dir = %dir.display(), "the volume has moved");
        }
        match Extra::open(row.number, row.id, dir.clone(), engine) {
            Ok(extra) => Extra { takes_new, ..extra },
            Err(error) => Extra::absent(row, dir, takes_new, error.to_string()),
        }
    }

    fn absent(row: &VolumeRow, dir: PathBuf, takes_new: bool, reason: String) -> Extra {
        Extra { number: row.number, id: row.id, dir, takes_new, state: Err(reason) }
    }

    fn open(number: u32, id: BlobId, dir: PathBuf, engine: EngineChoice) -> Result<Extra> {
        make_directories(&dir)?;
        let locked = match DirLock::take(&dir) {
            Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EROFS) => {
                DirLock::take_read_only(&dir)?
            }
            other => other?,
        };
        let here = Here { locked, bridge: Bridge::start(engine)? };
        Ok(Extra { number, id, dir, takes_new: true, state: Ok(here) })
    }

    /// A directory becomes a volume.
    fn begin(number: u32, data: BlobId, dir: PathBuf, engine: EngineChoice) -> Result<Extra> {
        if !identity::is_free(&dir).map_err(|e| Error::io("list", &dir, e))? {
            return Err(refused(&dir, "it is not empty, and no volume yet; give an empty directory".into()));
        }
        // One level only: a path that was misspelt, or below a mount point that is not there, is not made up.
        if !dir.exists() {
            fs::create_dir(&dir).map_err(|e| Error::io("make directory", &dir, e))?;
        }
        make_directories(&dir)?;
        let id = BlobId::new();
        Identity { id, number, data }.write(&dir)?;
        tracing::info!(volume = number, dir = %dir.display(), "a new volume");
        Extra::open(number, id, dir, engine)
    }
}

/// Numbers are not used again: a disk in a drawer may still have the old one.
fn next_number(known: &[VolumeRow], extras: &[Extra]) -> u32 {
    let taken = known.iter().map(|row| row.number).chain(extras.iter().map(|extra| extra.number));
    taken.max().unwrap_or(0) + 1
}

fn refused(dir: &Path, reason: String) -> Error {
    Error::VolumeRefused { dir: dir.into(), reason }
}
