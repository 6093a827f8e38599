//! What the catalog knows of volumes: the SQL.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, Transaction};

use crate::error::Result;
use crate::id::BlobId;

/// A volume's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeRow {
    pub(crate) number: u32,
    pub(crate) id: BlobId,
    /// Where it was last; empty for the data directory.
    pub(crate) path: PathBuf,
    pub(crate) blobs: u64,
    /// The sum of their lengths.
    pub(crate) bytes: u64,
}

/// All volumes there ever were, by number.
pub(crate) fn all(connection: &Connection) -> Result<Vec<VolumeRow>> {
    let mut select = connection.prepare("SELECT number, id, path, blobs, bytes FROM volumes ORDER BY number")?;
    let rows = select.query_map([], |row| {
        Ok(VolumeRow {
            number: row.get(0)?,
            id: row.get(1)?,
            path: row.get::<_, String>(2)?.into(),
            blobs: row.get::<_, i64>(3)?.max(0) as u64,
            bytes: row.get::<_, i64>(4)?.max(0) as u64,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The volume that a blob is on, if the catalog has the blob.
pub(crate) fn of_blob(connection: &Connection, id: BlobId) -> Result<Option<u32>> {
    let mut select = connection.prepare_cached("SELECT volume FROM blobs WHERE id = ?1")?;
    Ok(select.query_row([id], |row| row.get(0)).optional()?)
}

/// Notes a volume, or where it is now. Its sums stay, and are right already when blobs came before their volume's row.
pub(crate) fn note(tx: &Transaction<'_>, number: u32, id: BlobId, path: &Path) -> Result<()> {
    // A full scan, once in a volume's life.
    let begin = "INSERT INTO volumes (number, id, path, blobs, bytes)
                 SELECT ?1, ?2, ?3, count(*), coalesce(sum(length), 0) FROM blobs WHERE volume = ?1";
    let known = tx.prepare_cached("SELECT 1 FROM volumes WHERE number = ?1")?.exists([number])?;
    let path = path.to_string_lossy();
    if known {
        tx.execute("UPDATE volumes SET id = ?2, path = ?3 WHERE number = ?1", (number, id, path))?;
    } else {
        tx.execute(begin, (number, id, path))?;
    }
    Ok(())
}
