//! What the catalog knows of volumes: the SQL.

use std::path::PathBuf;

use rusqlite::Connection;

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
