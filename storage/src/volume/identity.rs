//! A volume's identity: the small file `VOLUME` in its directory.
//!
//! It tells the volume's own id, its number, and the data directory it belongs to. An empty mount point has none, and a
//! disk that was swapped for another has a different one, so neither is taken for the volume. It is written once, before
//! the catalog hears of the volume, and never changed.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use crate::error::{Error, Result};
use crate::id::BlobId;

pub(crate) const FILE: &str = "VOLUME";
const DRAFT: &str = "VOLUME.tmp";
const TITLE: &str = "reelring volume";
const BYTES_MAX: u64 = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: BlobId,
    pub(crate) number: u32,
    /// The id of the data directory, which is volume 0.
    pub(crate) data: BlobId,
}

impl Identity {
    /// `None` when the directory has none, or does not exist.
    pub(crate) fn read(dir: &Path) -> Result<Option<Identity>> {
        let path = dir.join(FILE);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("open", &path, e)),
        };
        let mut text = String::new();
        file.take(BYTES_MAX).read_to_string(&mut text).map_err(|e| Error::io("read", &path, e))?;
        let identity = Identity::parse(&text);
        identity.map(Some).ok_or_else(|| Error::corrupt(&path, "it is no volume's identity"))
    }

    /// Writes it durably: it is whole under its name, or not there.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let (draft, path) = (dir.join(DRAFT), dir.join(FILE));
        let text = format!("{TITLE}\nid {}\nnumber {}\ndata {}\n", self.id, self.number, self.data);
        let written = || {
            let mut file = File::create(&draft)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            File::open(dir)?.sync_all()
        };
        written().map_err(|e| Error::io("write", &path, e))
    }

    fn parse(text: &str) -> Option<Identity> {
        let mut lines = text.lines();
        let mut value = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned);
        (value("reelring")? == "volume").then_some(())?;
        Some(Identity {
            id: value("id")?.parse().ok()?,
            number: value("number")?.parse().ok()?,
            data: value("data")?.parse().ok()?,
        })
    }
}

/// Whether a directory may become a volume: it has nothing in it but what a new file system or an interrupted first
/// start leaves.
pub(crate) fn is_free(dir: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let fine = match name.to_str() {
            Some("lost+found" | DRAFT) => true,
            Some("blobs" | "partial") => fs::read_dir(entry.path())?.next().is_none(),
            _ => false,
        };
        if !fine {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_what_was_written_and_nothing_else_passes_for_one() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Identity::read(dir.path()).unwrap(), None);
        assert_eq!(Identity::read(&dir.path().join("nowhere")).unwrap(), None);
        let identity = Identity { id: BlobId::new(), number: 3, data: BlobId::new() };
        identity.write(dir.path()).unwrap();
        assert_eq!(Identity::read(dir.path()).unwrap(), Some(identity));
        let whole = fs::read_to_string(dir.path().join(FILE)).unwrap();
        for cut in 0..whole.len() - 1 {
            fs::write(dir.path().join(FILE), &whole[..cut]).unwrap();
            assert!(Identity::read(dir.path()).is_err(), "{:?} passed for an identity", &whole[..cut]);
        }
    }

    #[test]
    fn a_directory_in_use_is_not_free() {
        let dir = tempfile::tempdir().unwrap();
        assert!(is_free(dir.path()).unwrap() && is_free(&dir.path().join("new")).unwrap());
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        fs::create_dir(dir.path().join("blobs")).unwrap();
        assert!(is_free(dir.path()).unwrap());
        fs::write(dir.path().join("blobs/x"), "").unwrap();
        assert!(!is_free(dir.path()).unwrap());
    }
}
