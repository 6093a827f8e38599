//! Which run of a store this catalog was last used by.
//!
//! `LOCK` names the last run of the directory, the catalog the last run of itself. When they differ, the catalog is not
//! the one these blobs belong to: it was lost, or restored from a backup. Blobs it does not name are then not orphans
//! but perhaps the only copies of acknowledged objects, and are kept for good.

use rusqlite::{OptionalExtension, Transaction};

use crate::error::Result;
use crate::id::BlobId;

/// Notes that `run` uses the catalog now. Returns the time, in milliseconds since the epoch, before which no unknown
/// blob may be taken for an orphan.
pub(crate) fn take_over(
    tx: &Transaction<'_>,
    last_of_directory: Option<BlobId>,
    run: BlobId,
    blobs_exist: bool,
) -> Result<Takeover> {
    let last: Option<(BlobId, i64)> =
        tx.query_row("SELECT id, keep_before_ms FROM run", [], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let (is_ours, kept) = match last {
        Some((id, kept)) => (last_of_directory == Some(id), kept),
        None => (!blobs_exist, 0),
    };
    let keep_before_ms = if is_ours { kept } else { run.created_ms() as i64 };
    tx.execute("INSERT OR REPLACE INTO run (only, id, keep_before_ms) VALUES (1, ?1, ?2)", (run, keep_before_ms))?;
    Ok(Takeover { is_ours, keep_before_ms: keep_before_ms as u64 })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Takeover {
    /// The catalog and the directory were last used together.
    pub is_ours: bool,
    pub keep_before_ms: u64,
}
