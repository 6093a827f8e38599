//! What the catalog knows of scrubs, and the rows a scrub goes through. SQL, no I/O on files.

use rusqlite::{Connection, OptionalExtension, Transaction};

use super::{ScrubCounts, ScrubResult};
use crate::error::Result;
use crate::id::BlobId;
use crate::limits::SCRUB_COUNT_ROWS;

/// A scrub that has not come to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// Somebody stopped it: it goes on when somebody says so, or when the next one is due.
    pub(super) stopped: bool,
    pub(super) started_ms: u64,
    /// The last blob that was looked at.
    pub(super) cursor: Option<BlobId>,
    pub(super) counts: ScrubCounts,
}

/// What the table holds.
pub(super) struct Noted {
    pub(super) current: Option<Row>,
    pub(super) last: Option<ScrubResult>,
}

/// A blob as the catalog describes it.
pub(super) struct BlobRow {
    pub(super) id: BlobId,
    pub(super) length: u64,
    pub(super) blake3: [u8; 32],
    pub(super) volume: u32,
}

/// A stretch of blobs, counted.
pub(super) struct Piece {
    pub(super) blobs: u64,
    pub(super) bytes: u64,
    pub(super) last: BlobId,
}

impl Row {
    pub(super) fn new(started_ms: u64) -> Row {
        Row { stopped: false, started_ms, cursor: None, counts: ScrubCounts::default() }
    }
}

pub(super) fn load(connection: &Connection) -> Result<Noted> {
    let sql = "SELECT stopped, started_ms, finished_ms, cursor, blobs, bytes, damaged, released, unreadable, strays
               FROM scrub WHERE which = ?1";
    let mut select = connection.prepare_cached(sql)?;
    let mut one = |which: &str| {
        select
            .query_row([which], |row| {
                let number = |column| row.get::<_, i64>(column).map(|n| n as u64);
                let counts = ScrubCounts {
                    blobs: number(4)?,
                    bytes: number(5)?,
                    damaged: number(6)?,
                    released: number(7)?,
                    unreadable: number(8)?,
                    strays: number(9)?,
                };
                let finished_ms = row.get::<_, Option<i64>>(2)?.unwrap_or(0) as u64;
                let scrub = Row { stopped: row.get(0)?, started_ms: number(1)?, cursor: row.get(3)?, counts };
                Ok((scrub, finished_ms))
            })
            .optional()
    };
    let current = one("current")?.map(|(row, _)| row);
    let last = one("last")?.map(|(row, finished_ms)| ScrubResult {
        started_ms: row.started_ms,
        finished_ms,
        counts: row.counts,
    });
    Ok(Noted { current, last })
}

pub(super) fn note(tx: &Transaction<'_>, row: &Row) -> Result<()> {
    put(tx, "current", row, None)
}

pub(super) fn finish(tx: &Transaction<'_>, row: &Row, finished_ms: u64) -> Result<()> {
    tx.execute("DELETE FROM scrub WHERE which = 'current'", [])?;
    put(tx, "last", row, Some(finished_ms))
}

fn put(tx: &Transaction<'_>, which: &str, row: &Row, finished_ms: Option<u64>) -> Result<()> {
    let sql = "INSERT OR REPLACE INTO scrub (which, stopped, started_ms, finished_ms, cursor, blobs, bytes, damaged,
                                             released, unreadable, strays)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
    let ScrubCounts { blobs, bytes, damaged, released, unreadable, strays } = row.counts;
    let counts = [blobs, bytes, damaged, released, unreadable, strays].map(|n| n as i64);
    tx.prepare_cached(sql)?.execute(rusqlite::params![
        which,
        row.stopped,
        row.started_ms as i64,
        finished_ms.map(|ms| ms as i64),
        row.cursor,
        counts[0],
        counts[1],
        counts[2],
        counts[3],
        counts[4],
        counts[5],
    ])?;
    Ok(())
}

/// The next blobs in the order of their ids, none that was begun after `until_ms`.
pub(super) fn blobs(
    connection: &Connection,
    after: Option<BlobId>,
    until_ms: u64,
    limit: usize,
) -> Result<Vec<BlobRow>> {
    let sql = "SELECT id, length, blake3, volume FROM blobs WHERE id > ?1 AND id < ?2 ORDER BY id LIMIT ?3";
    let mut select = connection.prepare_cached(sql)?;
    let (from, to) = bounds(after, until_ms);
    let rows = select.query_map((from, to, limit as i64), blob_row)?;
    Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
}

pub(super) fn blob(connection: &Connection, id: BlobId) -> Result<Option<BlobRow>> {
    let mut select = connection.prepare_cached("SELECT id, length, blake3, volume FROM blobs WHERE id = ?1")?;
    Ok(select.query_row([id], blob_row).optional()?)
}

/// How many blobs there are and how long, some thousand at a time; `None` after the last.
pub(super) fn count(connection: &Connection, after: Option<BlobId>, until_ms: u64) -> Result<Option<Piece>> {
    let sql = "SELECT count(*), coalesce(sum(length), 0), max(id) FROM
                 (SELECT id, length FROM blobs WHERE id > ?1 AND id < ?2 ORDER BY id LIMIT ?3)";
    let (from, to) = bounds(after, until_ms);
    let mut select = connection.prepare_cached(sql)?;
    Ok(select.query_row((from, to, SCRUB_COUNT_ROWS as i64), |row| {
        let last: Option<BlobId> = row.get(2)?;
        let (blobs, bytes) = (row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64);
        Ok(last.map(|last| Piece { blobs, bytes, last }))
    })?)
}

/// Ids are ordered by the time they were made, which their first twelve digits are.
fn bounds(after: Option<BlobId>, until_ms: u64) -> (String, String) {
    (after.map_or(String::new(), |id| id.to_string()), format!("{:012x}", until_ms + 1))
}

fn blob_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<BlobRow> {
    Ok(BlobRow { id: row.get(0)?, length: row.get::<_, i64>(1)? as u64, blake3: row.get(2)?, volume: row.get(3)? })
}
