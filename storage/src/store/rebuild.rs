//! Builds the catalog from the blobs' footers, for when it is lost or damaged.
//!
//! Nothing of what is there is changed: the new catalog is built beside the old one, synced, and only then takes its
//! place; the old one is renamed, with its log. A blob is never touched, whatever its footer says.
//!
//! What a footer knows comes back: key, content type, length, BLAKE3. The modified time is the time of the blob's id, the
//! beginning of its upload. What only the catalog knew does not: jobs, renditions, SHA-256, and which objects were deleted a moment
//! before the catalog was lost (a file that was not unlinked yet comes back as its object, and so does an upload that was
//! sealed and not acknowledged: whole, as after any crash).
//!
//! Of two blobs with one key the newer id wins. The other is listed and stays as a file that no row names, and so does
//! everything else that is not taken up: the new catalog says that nothing made before it is an orphan
//! (`keep_before_ms`), so no sweep takes it.
//!
//! **A crash at any moment.** Until the last step the draft goes by a name that nobody opens. Before the old catalog is
//! moved `LOCK` names the new one's run alone: whichever catalog the next start finds, the old one or none, it is not the
//! directory's, and every blob is kept.
//!
//! All of this blocks, and holds the locks of all volumes: no node runs meanwhile.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, Transaction};

use crate::blob::format::{Footer, InTail, TAIL_BYTES};
use crate::catalog::objects::{self, BlobRow};
use crate::catalog::{schema, volumes};
use crate::error::{Error, Result};
use crate::id::BlobId;
use crate::key::Key;
use crate::limits::{CATALOG_FILE, REBUILD_TOLD};
use crate::volume::identity::Identity;
use crate::volume::lock::{DirLock, Locked};

const DRAFT: &str = "catalog.sqlite.rebuilding";

/// What to rebuild, and how.
pub struct Rebuild<'a> {
    pub dir: PathBuf,
    /// The volumes beside the data directory; each must be there.
    pub volumes: Vec<PathBuf>,
    pub node_migrations: &'a [&'a str],
    /// Told of the key of each blob: whether it is an object's. What is not (parts of renditions) is left alone.
    pub is_object: &'a dyn Fn(&str) -> bool,
    /// Goes into the old catalog's new name.
    pub stamp: String,
    /// Only look.
    pub dry_run: bool,
}

/// How far it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct RebuildProgress {
    pub files: u64,
    pub bytes: u64,
}

/// A file that was not taken up, and why. The file is kept.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LeftOut {
    pub path: PathBuf,
    pub reason: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct RebuildReport {
    pub dry_run: bool,
    /// Files looked at.
    pub files: u64,
    pub objects: u64,
    /// Bytes of the objects.
    pub bytes: u64,
    /// Blobs whose key a newer one has.
    pub superseded: u64,
    /// Files whose footer is damaged or cannot be read.
    pub broken: u64,
    /// Blobs that are part of something else than an object.
    pub parts: u64,
    /// Blobs without a key, and files that are no blobs.
    pub nameless: u64,
    /// The first superseded, broken and nameless ones.
    pub left_out: Vec<LeftOut>,
    /// What the old catalog is called now.
    pub old_catalog: Option<PathBuf>,
}

impl Rebuild<'_> {
    pub fn run(&self, mut progress: impl FnMut(RebuildProgress)) -> Result<RebuildReport> {
        let dir = std::path::absolute(&self.dir).map_err(|e| Error::io("resolve", &self.dir, e))?;
        if !dir.join("blobs").is_dir() {
            let reason = "it has no blobs/, so there is nothing to rebuild a catalog from".to_owned();
            return Err(Error::VolumeRefused { dir, reason });
        }
        let Locked { lock, .. } = DirLock::take(&dir)?;
        let identity = Identity::read(&dir)?;
        let mut places = vec![(0, identity.map(|identity| identity.id), dir.clone())];
        let mut _locks = Vec::new();
        for volume in &self.volumes {
            let volume = std::path::absolute(volume).map_err(|e| Error::io("resolve", volume, e))?;
            let found = Identity::read(&volume)?;
            let belongs = |found: &Identity| found.number != 0 && identity.is_none_or(|data| data.id == found.data);
            let Some(found) = found.filter(belongs) else {
                let reason = "its identity file is missing, or another data directory's: mount the right disk, or take the \
                              volume out of the configuration, which leaves its objects out";
                return Err(Error::VolumeRefused { dir: volume, reason: reason.into() });
            };
            _locks.push(DirLock::take(&volume)?);
            places.push((found.number, Some(found.id), volume));
        }
        let run = BlobId::new();
        let draft = dir.join(DRAFT);
        let mut connection = self.begin(&draft)?;
        let mut report = RebuildReport { dry_run: self.dry_run, ..RebuildReport::default() };
        let tx = connection.transaction()?;
        for (number, id, place) in &places {
            if let Some(id) = id {
                let path = if *number == 0 { Path::new("") } else { place };
                volumes::note(&tx, *number, *id, path)?;
            }
        }
        for (number, _, place) in &places {
            self.take_up(&tx, *number, &place.join("blobs"), &mut report, &mut progress)?;
        }
        let (objects, bytes): (i64, i64) = tx.query_row(
            "SELECT count(*), coalesce(sum(b.length), 0) FROM objects o JOIN blobs b ON b.id = o.blob",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        (report.objects, report.bytes) = (objects as u64, bytes as u64);
        // Nothing that exists now is an orphan.
        let keep_before_ms = run.created_ms() as i64 + 1;
        tx.execute("INSERT OR REPLACE INTO run (only, id, keep_before_ms) VALUES (1, ?1, ?2)", (run, keep_before_ms))?;
        tx.commit()?;
        connection.close().map_err(|(_, error)| error)?;
        if !self.dry_run {
            report.old_catalog = self.put_in_place(&dir, &draft, &lock, run)?;
        }
        Ok(report)
    }

    fn begin(&self, draft: &Path) -> Result<Connection> {
        let connection = if self.dry_run {
            Connection::open_in_memory()
        } else {
            for leftover in [draft.to_owned(), with_suffix(draft, "-journal")] {
                remove_if_there(&leftover)?;
            }
            Connection::open(draft)
        };
        let mut connection = connection?;
        // It is synced as a whole, once it is whole.
        connection.pragma_update(None, "synchronous", "OFF")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        schema::migrate(&mut connection, draft, self.node_migrations)?;
        Ok(connection)
    }

    /// Goes through the tree of a volume.
    fn take_up(
        &self,
        tx: &Transaction<'_>,
        volume: u32,
        root: &Path,
        report: &mut RebuildReport,
        progress: &mut impl FnMut(RebuildProgress),
    ) -> Result<()> {
        let mut bytes = 0;
        for parent in sorted(root)? {
            for leaf in sorted(&parent)? {
                for path in sorted(&leaf)? {
                    report.files += 1;
                    bytes += self.take_up_file(tx, volume, &path, report)?;
                    progress(RebuildProgress { files: report.files, bytes });
                }
            }
        }
        Ok(())
    }

    /// Bytes of the blob, if it is one.
    fn take_up_file(&self, tx: &Transaction<'_>, volume: u32, path: &Path, report: &mut RebuildReport) -> Result<u64> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Ok(id) = name.parse::<BlobId>() else {
            report.nameless += 1;
            report.leave_out(path, "its name is no blob's".into());
            return Ok(0);
        };
        let footer = match footer_of(path) {
            Ok(footer) => footer,
            Err(reason) => {
                report.broken += 1;
                report.leave_out(path, reason);
                return Ok(0);
            }
        };
        let key = match footer.key().map(Key::parse) {
            Some(Ok(key)) if (self.is_object)(key.as_str()) => key,
            Some(Ok(_)) => {
                report.parts += 1;
                return Ok(footer.length);
            }
            Some(Err(error)) => {
                report.nameless += 1;
                report.leave_out(path, error.to_string());
                return Ok(footer.length);
            }
            None => {
                report.nameless += 1;
                report.leave_out(path, "its footer names no key".into());
                return Ok(footer.length);
            }
        };
        let same = "SELECT o.blob FROM objects o WHERE o.key = ?1";
        let other: Option<BlobId> = tx.prepare_cached(same)?.query_row([key.as_str()], |row| row.get(0)).optional()?;
        let place = path.parent().and_then(Path::parent).and_then(Path::parent);
        if volumes::of_blob(tx, id)?.is_some() {
            report.superseded += 1;
            report.leave_out(path, "the same blob is on another volume too".into());
            return Ok(footer.length);
        }
        if let Some(other) = other {
            report.superseded += 1;
            let newer = |id: BlobId| format!("{key} has a newer blob, {id}");
            if other > id {
                report.leave_out(path, newer(other));
                return Ok(footer.length);
            }
            // Perhaps on another volume; the name tells which file it is.
            let path = place.map_or_else(|| path.to_owned(), |root| root.join(other.relative_path()));
            report.leave_out(&path, newer(id));
        }
        let content_type = footer.content_type().map(str::to_owned);
        let row = BlobRow { id, length: footer.length, blake3: footer.blake3, content_type, sha256: None, volume };
        objects::insert_blob(tx, &row)?;
        let created_ms = id.created_ms() as i64;
        tx.prepare_cached("UPDATE blobs SET created_ms = ?2 WHERE id = ?1")?.execute((id, created_ms))?;
        let sql = "INSERT INTO objects (key, blob, modified_ms) VALUES (?1, ?2, ?3)
                   ON CONFLICT (key) DO UPDATE SET blob = excluded.blob, modified_ms = excluded.modified_ms";
        tx.prepare_cached(sql)?.execute((key.as_str(), id, created_ms))?;
        if let Some(other) = other {
            objects::delete_blob(tx, other)?;
        }
        Ok(footer.length)
    }

    /// Moves the old catalog away and the new one in. Each step is durable before the next.
    fn put_in_place(&self, dir: &Path, draft: &Path, lock: &DirLock, run: BlobId) -> Result<Option<PathBuf>> {
        sync(draft)?;
        sync(dir)?;
        lock.mark_clean(run)
            .and_then(|()| lock.file.file.sync_all())
            .map_err(|e| Error::io("write", &lock.file.path, e))?;
        let catalog = dir.join(CATALOG_FILE);
        let old = dir.join(format!("{CATALOG_FILE}.old-{}", self.stamp));
        let mut existed = false;
        // The log first: SQLite would throw away one that it finds without its database. A database without its log is an
        // older one, but nobody's by now.
        for suffix in ["-wal", "-shm", ""] {
            let (from, to) = (with_suffix(&catalog, suffix), with_suffix(&old, suffix));
            if to.exists() {
                let taken = io::Error::from(io::ErrorKind::AlreadyExists);
                return Err(Error::io("keep the old catalog as", &to, taken));
            }
            match fs::rename(&from, &to) {
                Ok(()) => existed |= suffix.is_empty(),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("rename", &from, e)),
            }
        }
        sync(dir)?;
        fs::rename(draft, &catalog).map_err(|e| Error::io("rename", draft, e))?;
        sync(dir)?;
        Ok(existed.then_some(old))
    }
}

impl RebuildReport {
    fn leave_out(&mut self, path: &Path, reason: String) {
        if self.left_out.len() < REBUILD_TOLD {
            self.left_out.push(LeftOut { path: path.into(), reason });
        }
    }
}

/// The footer, or why there is none.
fn footer_of(path: &Path) -> std::result::Result<Footer, String> {
    let text = |error: io::Error| error.to_string();
    let file = File::open(path).map_err(text)?;
    let file_bytes = file.metadata().map_err(text)?.len();
    let read = |start: u64, end: u64| {
        let mut bytes = vec![0; (end - start) as usize];
        file.read_exact_at(&mut bytes, start).map(|()| bytes).map_err(text)
    };
    match Footer::in_tail(&read(file_bytes.saturating_sub(TAIL_BYTES), file_bytes)?, file_bytes)? {
        InTail::Whole(footer) => Ok(footer),
        InTail::BeginsAt { body, trailer } => Footer::decode(&read(body.start, body.end)?, &trailer, file_bytes),
    }
}

/// The entries of a directory by name; none when it is no directory (a file among them is nobody's).
fn sorted(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("list", path, e)),
    };
    let paths: io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(|e| Error::io("list", path, e))?;
    paths.sort();
    Ok(paths)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|e| Error::io("sync", path, e))
}
