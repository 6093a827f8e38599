//! Which run of a store this catalog was last used by.
//!
//! `LOCK` names the runs whose catalog belongs to the directory, the catalog the last run of itself. When that one is not
//! among them, the catalog is not the one these blobs belong to: it was lost, or restored from a backup. Blobs it does
//! not name are then not orphans but perhaps the only copies of acknowledged objects, and are kept for good.

use rusqlite::{Connection, OptionalExtension, Transaction};

use crate::error::Result;
use crate::id::BlobId;

/// The run that used the catalog last.
pub(crate) fn last(connection: &Connection) -> Result<Option<BlobId>> {
    Ok(noted(connection)?.map(|(id, _)| id))
}

/// Notes that `run` uses the catalog now. Returns the time, in milliseconds since the epoch, before which no unknown
/// blob may be taken for an orphan.
pub(crate) fn take_over(
    tx: &Transaction<'_>,
    of_directory: &[BlobId],
    run: BlobId,
    blobs_exist: bool,
) -> Result<Takeover> {
    let (is_ours, kept) = match noted(tx)? {
        Some((id, kept)) => (of_directory.contains(&id), kept),
        None => (!blobs_exist, 0),
    };
    let keep_before_ms = if is_ours { kept } else { run.created_ms() as i64 };
    tx.execute("INSERT OR REPLACE INTO run (only, id, keep_before_ms) VALUES (1, ?1, ?2)", (run, keep_before_ms))?;
    Ok(Takeover { is_ours, keep_before_ms: keep_before_ms as u64 })
}

fn noted(connection: &Connection) -> Result<Option<(BlobId, i64)>> {
    let noted = connection.query_row("SELECT id, keep_before_ms FROM run", [], |row| Ok((row.get(0)?, row.get(1)?)));
    Ok(noted.optional()?)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Takeover {
    /// The catalog and the directory were last used together.
    pub is_ours: bool,
    pub keep_before_ms: u64,
}
