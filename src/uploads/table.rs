//! Uploads in the catalog. A row is the record as JSON beside the columns that are searched.

use jiff::Timestamp;
use reelring_storage::rusqlite::{self, Connection, OptionalExtension, Transaction, params};
use reelring_storage::{BlobId, Catalog, Error};

use super::record::{Kind, Record, State, UploadId};
use crate::limits;

/// The uploads' part of the catalog's schema.
pub const MIGRATION: &str = "
CREATE TABLE uploads (
    id         TEXT PRIMARY KEY,
    state      TEXT NOT NULL,
    expires_ms INTEGER NOT NULL,
    -- Ids of the parts of a joined upload, in their order.
    parts      TEXT,
    record     TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX uploads_by_state ON uploads (state, expires_ms);
CREATE INDEX uploads_by_parts ON uploads (parts) WHERE parts IS NOT NULL;
";

#[derive(Clone)]
pub(super) struct Table {
    catalog: Catalog,
}

pub(super) enum Added {
    New,
    /// So many are open already.
    Full(usize),
}

impl Table {
    pub fn new(catalog: Catalog) -> Table {
        Table { catalog }
    }

    pub async fn add(&self, record: Record) -> Result<Added, Error> {
        self.catalog
            .write(move |tx| {
                let open = count_open(tx)?;
                if open >= limits::UPLOADS_OPEN as u64 {
                    return Ok(Added::Full(open as usize));
                }
                insert(tx, &record)?;
                Ok(Added::New)
            })
            .await
    }

    pub async fn get(&self, id: UploadId) -> Result<Option<Record>, Error> {
        self.catalog.read(move |db| one(db, id)).await
    }

    /// The partial files of open uploads.
    pub async fn partials(&self) -> Result<Vec<BlobId>, Error> {
        let open = |db: &Connection| many(db, "SELECT record FROM uploads WHERE state = 'open'", params![]);
        Ok(self.catalog.read(open).await?.into_iter().map(|record| record.blob).collect())
    }

    pub async fn count_open(&self) -> Result<u64, Error> {
        self.catalog.read(count_open).await
    }

    /// The upload that was joined of exactly these parts, if there is one.
    pub async fn joined_of(&self, parts: &[UploadId]) -> Result<Option<Record>, Error> {
        let parts = listed(parts);
        let found = self
            .catalog
            .read(move |db| many(db, "SELECT record FROM uploads WHERE parts = ?1 LIMIT 1", params![parts]));
        Ok(found.await?.pop())
    }

    /// Notes the length of an upload that was begun without.
    pub async fn set_length(&self, id: UploadId, length: u64) -> Result<(), Error> {
        self.catalog.write(move |tx| change(tx, id, |record| record.length = Some(length))).await
    }

    pub async fn set_content_type(&self, id: UploadId, content_type: Option<String>) -> Result<(), Error> {
        self.catalog.write(move |tx| change(tx, id, |record| record.content_type = content_type)).await
    }

    pub async fn put_off(&self, id: UploadId, expires_at: Timestamp) -> Result<(), Error> {
        self.catalog.write(move |tx| change(tx, id, |record| record.expires_at = expires_at)).await
    }

    /// The bytes of an open upload are to go; the row stays until `until`. False when it is open no more.
    pub async fn give_up(&self, id: UploadId, until: Timestamp) -> Result<bool, Error> {
        self.catalog
            .write(move |tx| {
                let is_open = one(tx, id)?.is_some_and(|record| record.state == State::Open);
                if is_open {
                    change(tx, id, |record| {
                        record.state = State::Gone;
                        record.expires_at = until;
                    })?;
                }
                Ok(is_open)
            })
            .await
    }

    /// Open uploads whose time is up.
    pub async fn expired(&self, now: Timestamp) -> Result<Vec<Record>, Error> {
        let sql = "SELECT record FROM uploads WHERE state = 'open' AND expires_ms <= ?1 ORDER BY expires_ms LIMIT ?2";
        let values = (now.as_millisecond(), limits::UPLOADS_SWEPT_AT_ONCE as i64);
        self.catalog.read(move |db| many(db, sql, values)).await
    }

    /// Uploads that are over and need not be remembered any longer: their time is up, or there are too many.
    pub async fn outlived(&self, now: Timestamp) -> Result<Vec<Record>, Error> {
        let at_once = limits::UPLOADS_SWEPT_AT_ONCE as i64;
        self.catalog
            .read(move |db| {
                let sql = "SELECT record FROM uploads
                           WHERE state IN ('done', 'used', 'gone') AND expires_ms <= ?1 ORDER BY expires_ms LIMIT ?2";
                let outlived = many(db, sql, (now.as_millisecond(), at_once))?;
                let over: i64 =
                    db.query_row("SELECT count(*) FROM uploads WHERE state IN ('done', 'used', 'gone')", [], |row| {
                        row.get(0)
                    })?;
                let excess = over - limits::UPLOADS_KEPT as i64;
                if !outlived.is_empty() || excess <= 0 {
                    return Ok(outlived);
                }
                let sql = "SELECT record FROM uploads
                           WHERE state IN ('done', 'used', 'gone') ORDER BY expires_ms LIMIT ?1";
                many(db, sql, [excess.min(at_once)])
            })
            .await
    }
}

fn count_open(db: &Connection) -> Result<u64, Error> {
    let count: i64 = db.query_row("SELECT count(*) FROM uploads WHERE state = 'open'", [], |row| row.get(0))?;
    Ok(count as u64)
}

pub(super) fn insert(tx: &Transaction<'_>, record: &Record) -> Result<(), Error> {
    let sql = "INSERT INTO uploads (id, state, expires_ms, parts, record) VALUES (?1, ?2, ?3, ?4, ?5)";
    let parts = (record.kind == Kind::Joined).then(|| listed(&record.parts));
    let values =
        (record.id.to_string(), record.state.as_str(), record.expires_at.as_millisecond(), parts, json(record)?);
    tx.prepare_cached(sql)?.execute(values)?;
    Ok(())
}

/// Reads a record and changes it. Nothing happens where there is none.
pub(super) fn change(tx: &Transaction<'_>, id: UploadId, f: impl FnOnce(&mut Record)) -> Result<(), Error> {
    let Some(mut record) = one(tx, id)? else { return Ok(()) };
    f(&mut record);
    let sql = "UPDATE uploads SET state = ?2, expires_ms = ?3, record = ?4 WHERE id = ?1";
    let values = (id.to_string(), record.state.as_str(), record.expires_at.as_millisecond(), json(&record)?);
    tx.prepare_cached(sql)?.execute(values)?;
    Ok(())
}

pub(super) fn delete(tx: &Transaction<'_>, id: UploadId) -> Result<(), Error> {
    tx.prepare_cached("DELETE FROM uploads WHERE id = ?1")?.execute([id.to_string()])?;
    Ok(())
}

pub(super) fn one(db: &Connection, id: UploadId) -> Result<Option<Record>, Error> {
    let mut select = db.prepare_cached("SELECT record FROM uploads WHERE id = ?1")?;
    let found = select.query_row([id.to_string()], |row| row.get::<_, String>(0)).optional()?;
    found.map(|text| parse(&text)).transpose()
}

fn many(db: &Connection, sql: &str, values: impl rusqlite::Params) -> Result<Vec<Record>, Error> {
    let mut select = db.prepare_cached(sql)?;
    let rows = select.query_map(values, |row| row.get::<_, String>(0))?;
    rows.map(|row| parse(&row?)).collect()
}

fn listed(parts: &[UploadId]) -> String {
    parts.iter().map(UploadId::to_string).collect::<Vec<_>>().join(" ")
}

fn json(record: &Record) -> Result<String, Error> {
    serde_json::to_string(record).map_err(|error| Error::Rejected(format!("upload {}: {error}", record.id)))
}

fn parse(text: &str) -> Result<Record, Error> {
    serde_json::from_str(text).map_err(|error| {
        Error::Rejected(format!(
            "an upload in the catalog is not readable ({error}); was it written by a newer version?"
        ))
    })
}
