//! Objects and blobs in the catalog: the SQL, and what a precondition means. No I/O on files.

use rusqlite::{Connection, OptionalExtension, Row, Transaction};

use crate::error::{Error, Result};
use crate::id::BlobId;
use crate::key::Key;

/// One stored object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectRecord {
    pub key: Key,
    pub blob: BlobId,
    pub length: u64,
    pub blake3: [u8; 32],
    pub content_type: Option<String>,
    /// Known only where somebody computed it while the bytes went by.
    pub sha256: Option<[u8; 32]>,
    pub modified_ms: i64,
}

/// What must hold of the object before it is replaced or deleted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Precondition {
    #[default]
    None,
    /// It has one of these hashes.
    IfMatch(Vec<[u8; 32]>),
    /// It exists.
    IfMatchAny,
    /// It does not exist.
    IfNoneMatchAny,
    /// It has none of these hashes, or does not exist.
    IfNoneMatch(Vec<[u8; 32]>),
    /// It was not modified after this second since 1970, or does not exist.
    IfUnmodifiedSince(i64),
    /// All of these hold.
    All(Vec<Precondition>),
}

#[derive(Debug, Clone)]
pub struct PutOutcome {
    pub record: ObjectRecord,
    /// False when an object of that key was replaced.
    pub created: bool,
}

/// A blob's row, as it is inserted.
pub(crate) struct BlobRow {
    pub(crate) id: BlobId,
    pub(crate) length: u64,
    pub(crate) blake3: [u8; 32],
    pub(crate) content_type: Option<String>,
    pub(crate) sha256: Option<[u8; 32]>,
    pub(crate) volume: u32,
}

/// A blob whose row is gone: its file is to go too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forgotten {
    pub(crate) id: BlobId,
    pub(crate) volume: u32,
    pub(crate) length: u64,
}

impl Precondition {
    /// Whether the condition holds for what is stored now.
    pub fn check(&self, key: &Key, current: Option<&ObjectRecord>) -> Result<()> {
        if self.holds(current) {
            return Ok(());
        }
        Err(Error::PreconditionFailed { key: key.to_string(), current: current.map(|c| c.blake3) })
    }

    fn holds(&self, current: Option<&ObjectRecord>) -> bool {
        match self {
            Precondition::None => true,
            Precondition::IfMatch(hashes) => current.is_some_and(|c| hashes.contains(&c.blake3)),
            Precondition::IfMatchAny => current.is_some(),
            Precondition::IfNoneMatchAny => current.is_none(),
            Precondition::IfNoneMatch(hashes) => current.is_none_or(|c| !hashes.contains(&c.blake3)),
            Precondition::IfUnmodifiedSince(second) => current.is_none_or(|c| second_of(c.modified_ms) <= *second),
            Precondition::All(all) => all.iter().all(|one| one.holds(current)),
        }
    }
}

const SELECT: &str = "SELECT o.key, o.blob, b.length, b.blake3, b.content_type, b.sha256, o.modified_ms
                      FROM objects o JOIN blobs b ON b.id = o.blob";

fn now_ms() -> i64 {
    crate::clock::now_ms() as i64
}

fn second_of(ms: i64) -> i64 {
    ms.div_euclid(1000)
}

/// When the object that takes the place of `current` counts as modified: never in the same second, because a second is
/// all that a date in HTTP tells of a version.
fn modified_ms(current: Option<&ObjectRecord>) -> i64 {
    current.map_or(0, |current| (second_of(current.modified_ms) + 1) * 1000).max(now_ms())
}

pub(crate) fn insert_blob(tx: &Transaction<'_>, row: &BlobRow) -> Result<()> {
    let sql = "INSERT INTO blobs (id, length, blake3, content_type, sha256, created_ms, volume) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let values = (row.id, row.length as i64, row.blake3, &row.content_type, row.sha256, now_ms(), row.volume);
    tx.prepare_cached(sql)?.execute(values)?;
    Ok(())
}

/// Forgets a blob; `None` when it was not known.
pub(crate) fn delete_blob(tx: &Transaction<'_>, id: BlobId) -> Result<Option<Forgotten>> {
    let mut delete = tx.prepare_cached("DELETE FROM blobs WHERE id = ?1 RETURNING volume, length")?;
    let forgotten =
        delete.query_row([id], |row| Ok(Forgotten { id, volume: row.get(0)?, length: row.get::<_, i64>(1)? as u64 }));
    Ok(forgotten.optional()?)
}

pub(crate) fn get(connection: &Connection, key: &Key) -> Result<Option<ObjectRecord>> {
    let mut select = connection.prepare_cached(&format!("{SELECT} WHERE o.key = ?1"))?;
    Ok(select.query_row([key.as_str()], record).optional()?)
}

/// Points `key` at a blob that is already in the catalog. Returns the outcome, and the blob that
/// the key named before.
pub(crate) fn put(
    tx: &Transaction<'_>,
    key: &Key,
    blob: BlobId,
    precondition: &Precondition,
) -> Result<(PutOutcome, Option<Forgotten>)> {
    let current = get(tx, key)?;
    precondition.check(key, current.as_ref())?;
    let sql = "INSERT INTO objects (key, blob, modified_ms) VALUES (?1, ?2, ?3)
               ON CONFLICT (key) DO UPDATE SET blob = excluded.blob, modified_ms = excluded.modified_ms";
    tx.prepare_cached(sql)?.execute((key.as_str(), blob, modified_ms(current.as_ref())))?;
    let created = current.is_none();
    let replaced = match current {
        Some(current) => delete_blob(tx, current.blob)?,
        None => None,
    };
    let record = get(tx, key)?.ok_or(Error::NoBlob(blob))?;
    Ok((PutOutcome { record, created }, replaced))
}

/// Removes the object; returns its blob, which is then nobody's. Where there is no object there is no condition either.
pub(crate) fn delete(tx: &Transaction<'_>, key: &Key, precondition: &Precondition) -> Result<Option<BlobId>> {
    let Some(current) = get(tx, key)? else {
        return Ok(None);
    };
    precondition.check(key, Some(&current))?;
    tx.prepare_cached("DELETE FROM objects WHERE key = ?1")?.execute([key.as_str()])?;
    Ok(Some(current.blob))
}

/// Up to `limit` objects whose keys start with `prefix` and come after `after`, by key bytes. A
/// range scan that begins at the first candidate and stops at the first key past the prefix.
pub(crate) fn list(
    connection: &Connection,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
) -> Result<Vec<ObjectRecord>> {
    let (sql, from) = match after {
        Some(after) if after >= prefix => (" WHERE o.key > ?1 ORDER BY o.key LIMIT ?2", after),
        _ => (" WHERE o.key >= ?1 ORDER BY o.key LIMIT ?2", prefix),
    };
    let mut select = connection.prepare_cached(&format!("{SELECT}{sql}"))?;
    let rows = select.query_map((from, limit as i64), record)?;
    let mut records = Vec::new();
    for row in rows {
        let row = row?;
        if !row.key.as_str().starts_with(prefix) {
            break;
        }
        records.push(row);
    }
    Ok(records)
}

/// What lies directly in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// The common beginning of further keys, up to the slash that ends it.
    Folder(String),
    Object(ObjectRecord),
}

/// Up to `limit` entries of the folder `prefix`, by key bytes, and where the next ones begin if there may be some. `from`
/// is the folder's own prefix, or what an earlier call returned. What lies in folders below is passed over, not read.
pub(crate) fn list_folder(
    connection: &Connection,
    prefix: &str,
    from: &str,
    limit: usize,
) -> Result<(Vec<Entry>, Option<String>)> {
    let mut select = connection.prepare_cached(&format!("{SELECT} WHERE o.key >= ?1 ORDER BY o.key"))?;
    let (mut entries, mut from) = (Vec::new(), from.max(prefix).to_owned());
    'below: loop {
        let mut rows = select.query([&from])?;
        while let Some(row) = rows.next()? {
            let object = record(row)?;
            let Some(name) = object.key.as_str().strip_prefix(prefix) else { return Ok((entries, None)) };
            if entries.len() >= limit {
                return Ok((entries, Some(object.key.into())));
            }
            if let Some(slash) = name.find('/') {
                let bare = &object.key.as_str()[..prefix.len() + slash];
                entries.push(Entry::Folder(format!("{bare}/")));
                // The byte after the slash: nothing in the folder comes so late.
                from = format!("{bare}0");
                continue 'below;
            }
            // The folder itself may be an object's key: it is not in the folder.
            if !name.is_empty() {
                entries.push(Entry::Object(object));
            }
        }
        return Ok((entries, None));
    }
}

fn record(row: &Row<'_>) -> rusqlite::Result<ObjectRecord> {
    let invalid = |e| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e));
    Ok(ObjectRecord {
        key: Key::parse(row.get_ref(0)?.as_str()?).map_err(invalid)?,
        blob: row.get(1)?,
        length: row.get::<_, i64>(2)? as u64,
        blake3: row.get(3)?,
        content_type: row.get(4)?,
        sha256: row.get(5)?,
        modified_ms: row.get(6)?,
    })
}
