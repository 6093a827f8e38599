//! Jobs in the catalog. Every change of state is durable before anybody is told of it.
//!
//! A row is the record as JSON beside the columns that are searched. The scheduler is the only writer of a job that
//! runs; everything else goes through [`Queue::change`], which reads and writes in one transaction.

use jiff::Timestamp;
use reelring_storage::rusqlite::{self, Connection, OptionalExtension, Transaction, params};
use reelring_storage::{Catalog, Error};

use super::model::{JobId, JobState, Record, Stage};
use crate::limits;

/// The queue's part of the catalog's schema.
pub const MIGRATION: &str = "
CREATE TABLE jobs (
    id              TEXT PRIMARY KEY,
    state           TEXT NOT NULL,
    stage           TEXT NOT NULL,
    not_before_ms   INTEGER NOT NULL DEFAULT 0,
    idempotency_key TEXT UNIQUE,
    record          TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX jobs_by_state ON jobs (state, stage, id);
";

#[derive(Clone)]
pub(super) struct Queue {
    catalog: Catalog,
}

/// What became of a submission.
pub(super) enum Added {
    New,
    /// The idempotency key was used before, for this job.
    Known(Box<Record>),
    /// It was used before for another request.
    Conflict(JobId),
    Full(usize),
}

impl Queue {
    pub fn new(catalog: Catalog) -> Self {
        Self { catalog }
    }

    pub async fn add(&self, record: Record, idempotency_key: Option<String>) -> Result<Added, Error> {
        self.catalog
            .write(move |tx| {
                if let Some(key) = &idempotency_key
                    && let Some(known) = one(tx, "SELECT record FROM jobs WHERE idempotency_key = ?1", key)?
                {
                    let same = known.spec == record.spec;
                    return Ok(if same { Added::Known(Box::new(known)) } else { Added::Conflict(known.id) });
                }
                let waiting: i64 =
                    tx.query_row("SELECT count(*) FROM jobs WHERE state = 'queued'", [], |row| row.get(0))?;
                if waiting >= limits::JOBS_QUEUED as i64 {
                    return Ok(Added::Full(waiting as usize));
                }
                tx.prepare_cached(
                    "INSERT INTO jobs (id, state, stage, not_before_ms, record, idempotency_key)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute(params![
                    record.id.as_str(),
                    record.state.as_str(),
                    stage_name(record.stage),
                    not_before_ms(&record),
                    json(&record)?,
                    idempotency_key
                ])?;
                Ok(Added::New)
            })
            .await
    }

    pub async fn get(&self, id: &JobId) -> Result<Option<Record>, Error> {
        let id = id.clone();
        self.catalog.read(move |db| one(db, "SELECT record FROM jobs WHERE id = ?1", id.as_str())).await
    }

    /// Newest first; `after` is the last id of the page before.
    pub async fn list(
        &self,
        state: Option<JobState>,
        after: Option<JobId>,
        limit: usize,
    ) -> Result<Vec<Record>, Error> {
        let limit = limit.min(limits::LIST_PAGE_MAX) as i64;
        self.catalog
            .read(move |db| {
                let after = after.as_ref().map_or("g", JobId::as_str);
                match state {
                    Some(state) => many(
                        db,
                        "SELECT record FROM jobs WHERE state = ?1 AND id < ?2 ORDER BY id DESC LIMIT ?3",
                        params![state.as_str(), after, limit],
                    ),
                    None => many(
                        db,
                        "SELECT record FROM jobs WHERE id < ?1 ORDER BY id DESC LIMIT ?2",
                        params![after, limit],
                    ),
                }
            })
            .await
    }

    /// Writes a record whose job the caller owns.
    pub async fn save(&self, record: Record) -> Result<(), Error> {
        self.catalog.write(move |tx| update(tx, &record)).await
    }

    /// Reads a job and lets `decide` change it; nothing is written when it returns `false`.
    pub async fn change(
        &self,
        id: &JobId,
        decide: impl FnOnce(&mut Record) -> bool + Send + 'static,
    ) -> Result<Option<Record>, Error> {
        let id = id.clone();
        self.catalog
            .write(move |tx| {
                let Some(mut record) = one(tx, "SELECT record FROM jobs WHERE id = ?1", id.as_str())? else {
                    return Ok(None);
                };
                if decide(&mut record) {
                    update(tx, &record)?;
                }
                Ok(Some(record))
            })
            .await
    }

    /// Takes the oldest due job of a stage and marks it running.
    pub async fn take(&self, stage: Stage, now: Timestamp) -> Result<Option<Record>, Error> {
        self.catalog
            .write(move |tx| {
                let sql = "SELECT record FROM jobs
                           WHERE state = 'queued' AND stage = ?1 AND not_before_ms <= ?2 ORDER BY id LIMIT 1";
                let found = tx
                    .prepare_cached(sql)?
                    .query_row(params![stage_name(stage), now.as_millisecond()], decode)
                    .optional()?;
                let Some(mut record) = found else { return Ok(None) };
                record.start(now);
                update(tx, &record)?;
                Ok(Some(record))
            })
            .await
    }

    /// When the next delayed job of any stage is due.
    pub async fn next_due(&self) -> Result<Option<Timestamp>, Error> {
        let ms: Option<i64> = self
            .catalog
            .read(|db| {
                Ok(db.query_row(
                    "SELECT min(not_before_ms) FROM jobs WHERE state = 'queued' AND not_before_ms > 0",
                    [],
                    |row| row.get(0),
                )?)
            })
            .await?;
        Ok(ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()))
    }

    /// After a stop that was no drain, jobs still say they run. They are queued again; their partials are kept.
    pub async fn requeue_interrupted(&self) -> Result<usize, Error> {
        self.catalog
            .write(|tx| {
                let interrupted = many(tx, "SELECT record FROM jobs WHERE state = 'running'", [])?;
                for record in &interrupted {
                    update(tx, &Record { state: JobState::Queued, ..record.clone() })?;
                }
                Ok(interrupted.len())
            })
            .await
    }

    /// All jobs whose partial blob may still be continued.
    pub async fn claiming_partials(&self) -> Result<Vec<Record>, Error> {
        let claiming = self
            .catalog
            .read(|db| {
                many(
                    db,
                    "SELECT record FROM jobs WHERE stage = 'fetch' AND state IN ('queued','running','paused','failed')",
                    [],
                )
            })
            .await?;
        Ok(claiming.into_iter().filter(Record::claims_partial).collect())
    }

    /// Forgets the oldest finished jobs beyond what is kept; returns them, for their partials.
    pub async fn prune(&self) -> Result<Vec<Record>, Error> {
        self.catalog
            .write(|tx| {
                let finished = "state IN ('done','failed','cancelled')";
                let count: i64 =
                    tx.query_row(&format!("SELECT count(*) FROM jobs WHERE {finished}"), [], |row| row.get(0))?;
                let excess = count - limits::JOBS_KEPT as i64;
                if excess <= 0 {
                    return Ok(Vec::new());
                }
                let sql = format!("SELECT record FROM jobs WHERE {finished} ORDER BY id LIMIT ?1");
                let old = many(tx, &sql, [excess])?;
                for record in &old {
                    tx.prepare_cached("DELETE FROM jobs WHERE id = ?1")?.execute([record.id.as_str()])?;
                }
                Ok(old)
            })
            .await
    }

    pub async fn count_by_state(&self) -> Result<Vec<(String, i64)>, Error> {
        self.catalog
            .read(|db| {
                let mut statement = db.prepare_cached("SELECT state, count(*) FROM jobs GROUP BY state")?;
                let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await
    }
}

fn update(tx: &Transaction, record: &Record) -> Result<(), Error> {
    tx.prepare_cached("UPDATE jobs SET state = ?2, stage = ?3, not_before_ms = ?4, record = ?5 WHERE id = ?1")?
        .execute(params![
            record.id.as_str(),
            record.state.as_str(),
            stage_name(record.stage),
            not_before_ms(record),
            json(record)?
        ])?;
    Ok(())
}

fn not_before_ms(record: &Record) -> i64 {
    record.not_before.map_or(0, Timestamp::as_millisecond)
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Fetch => "fetch",
        Stage::Transcode => "transcode",
    }
}

fn json(record: &Record) -> Result<String, rusqlite::Error> {
    serde_json::to_string(record).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

fn decode(row: &rusqlite::Row) -> rusqlite::Result<Record> {
    let text = row.get_ref(0)?.as_str()?;
    serde_json::from_str(text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error.into()))
}

fn one(db: &Connection, sql: &str, value: &str) -> Result<Option<Record>, Error> {
    Ok(db.prepare_cached(sql)?.query_row([value], decode).optional()?)
}

fn many(db: &Connection, sql: &str, values: impl rusqlite::Params) -> Result<Vec<Record>, Error> {
    let mut statement = db.prepare_cached(sql)?;
    let rows = statement.query_map(values, decode)?;
    Ok(rows.collect::<Result<_, _>>()?)
}
