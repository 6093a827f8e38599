//! The catalog's schema and its migrations.
//!
//! `user_version` counts the migrations applied: storage's own in the low 16 bits, the node's in
//! the bits above, so that either list can grow without the other noticing.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use crate::error::{Error, Result};

/// Append only: a script that was ever released is never edited.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE blobs (
        id           TEXT PRIMARY KEY,
        length       INTEGER NOT NULL,
        blake3       BLOB NOT NULL CHECK (length(blake3) = 32),
        content_type TEXT,
        created_ms   INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE objects (
        key          TEXT PRIMARY KEY,
        blob         TEXT NOT NULL UNIQUE REFERENCES blobs (id),
        modified_ms  INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE run (
        only           INTEGER PRIMARY KEY CHECK (only = 1),
        id             TEXT NOT NULL,
        keep_before_ms INTEGER NOT NULL
    ) STRICT;
",
    "
    ALTER TABLE blobs ADD COLUMN volume INTEGER NOT NULL DEFAULT 0;

    -- Number 0 is the data directory, whose path is nobody's business. Sums of its blobs, kept by the triggers: adding
    -- up a million rows would take its time at every start.
    CREATE TABLE volumes (
        number INTEGER PRIMARY KEY,
        id     TEXT NOT NULL UNIQUE,
        path   TEXT NOT NULL,
        blobs  INTEGER NOT NULL DEFAULT 0,
        bytes  INTEGER NOT NULL DEFAULT 0
    ) STRICT;

    INSERT INTO volumes (number, id, path, blobs, bytes)
        SELECT 0, lower(hex(randomblob(16))), '', count(*), coalesce(sum(length), 0) FROM blobs;

    CREATE TRIGGER blob_inserted AFTER INSERT ON blobs BEGIN
        UPDATE volumes SET blobs = blobs + 1, bytes = bytes + new.length WHERE number = new.volume;
    END;

    CREATE TRIGGER blob_deleted AFTER DELETE ON blobs BEGIN
        UPDATE volumes SET blobs = blobs - 1, bytes = bytes - old.length WHERE number = old.volume;
    END;
",
    "
    CREATE TABLE quarantine (
        blob     TEXT PRIMARY KEY REFERENCES blobs (id) ON DELETE CASCADE,
        found_ms INTEGER NOT NULL,
        detail   TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE scrub (
        which       TEXT PRIMARY KEY CHECK (which IN ('current', 'last')),
        stopped     INTEGER NOT NULL,
        started_ms  INTEGER NOT NULL,
        finished_ms INTEGER,
        cursor      TEXT,
        blobs       INTEGER NOT NULL,
        bytes       INTEGER NOT NULL,
        damaged     INTEGER NOT NULL,
        released    INTEGER NOT NULL,
        unreadable  INTEGER NOT NULL,
        strays      INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
",
    "
    ALTER TABLE blobs ADD COLUMN sha256 BLOB CHECK (sha256 IS NULL OR length(sha256) = 32);
",
];

const OWN_BITS: i64 = 0xffff;

/// Applies what is missing, each migration in a transaction of its own.
pub(crate) fn migrate(connection: &mut Connection, path: &Path, node: &[&str]) -> Result<()> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let (mut own_done, mut node_done) = (found & OWN_BITS, found >> 16);
    if own_done as usize > MIGRATIONS.len() || node_done as usize > node.len() {
        return Err(Error::CatalogTooNew {
            path: path.into(),
            found: format!("{own_done}.{node_done}"),
            known: format!("{}.{}", MIGRATIONS.len(), node.len()),
        });
    }
    let missing_own = MIGRATIONS.iter().skip(own_done as usize).map(|script| (script, true));
    let missing_node = node.iter().skip(node_done as usize).map(|script| (script, false));
    for (script, own) in missing_own.chain(missing_node) {
        *if own { &mut own_done } else { &mut node_done } += 1;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(script)?;
        transaction.pragma_update(None, "user_version", node_done << 16 | own_done)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(connection: &Connection) -> i64 {
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
    }

    #[test]
    fn each_migration_is_applied_once_and_the_lists_grow_apart() {
        let mut connection = Connection::open_in_memory().unwrap();
        let path = Path::new("catalog.sqlite");
        let own = MIGRATIONS.len() as i64;
        migrate(&mut connection, path, &["CREATE TABLE jobs (id INTEGER)"]).unwrap();
        assert_eq!(version(&connection), 1 << 16 | own);
        // A script run twice would fail: the tables exist.
        let more = &["CREATE TABLE jobs (id INTEGER)", "CREATE TABLE assets (id INTEGER)"];
        migrate(&mut connection, path, more).unwrap();
        assert_eq!(version(&connection), 2 << 16 | own);
        let error = migrate(&mut connection, path, &[]).unwrap_err();
        assert!(matches!(error, Error::CatalogTooNew { .. }), "{error}");
    }

    #[test]
    fn a_failing_migration_leaves_no_trace() {
        let mut connection = Connection::open_in_memory().unwrap();
        let script = "CREATE TABLE half (id INTEGER); CREATE TABLE blobs (id INTEGER);";
        migrate(&mut connection, Path::new("x"), &[script]).unwrap_err();
        assert_eq!(version(&connection), MIGRATIONS.len() as i64);
        connection.execute_batch("CREATE TABLE half (id INTEGER)").unwrap();
    }
}
