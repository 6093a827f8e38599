//! Assets in the catalog: what a transcode has made so far, and the only way to it.
//!
//! A row and the blob it names appear in one transaction and disappear in one, so whatever is listed can be served. While
//! an asset is `encoding` only its transcode writes to it.

use std::fmt;
use std::str::FromStr;

use reelring_protocol::transcode as wire;
use reelring_storage::rusqlite::{self, Connection, OptionalExtension, Row, Transaction, params};
use reelring_storage::{BlobId, Catalog, Error, Key, Result, SealedBlob, Store};
use serde::{Deserialize, Serialize};

/// The tables of this room.
pub const MIGRATION: &str = "
CREATE TABLE assets (
    id                 TEXT PRIMARY KEY,
    source             TEXT NOT NULL,
    state              TEXT NOT NULL,
    created_ms         INTEGER NOT NULL,
    renditions_planned INTEGER NOT NULL,
    segment_seconds    REAL NOT NULL,
    frame_rate         REAL,
    duration_seconds   REAL,
    encoder            TEXT,
    fallback_reason    TEXT,
    notes              TEXT NOT NULL DEFAULT '[]'
) STRICT, WITHOUT ROWID;
CREATE TABLE renditions (
    asset       TEXT NOT NULL,
    name        TEXT NOT NULL,
    kind        TEXT NOT NULL,
    codecs      TEXT NOT NULL,
    width       INTEGER,
    height      INTEGER,
    channels    INTEGER,
    sample_rate INTEGER,
    bitrate     INTEGER NOT NULL,
    timescale   INTEGER NOT NULL,
    init        TEXT NOT NULL,
    PRIMARY KEY (asset, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE segments (
    asset     TEXT NOT NULL,
    rendition TEXT NOT NULL,
    number    INTEGER NOT NULL,
    blob      TEXT NOT NULL,
    frames    INTEGER NOT NULL,
    start     INTEGER NOT NULL,
    duration  INTEGER NOT NULL,
    bytes     INTEGER NOT NULL,
    PRIMARY KEY (asset, rendition, number)
) STRICT, WITHOUT ROWID;
";

/// 32 lower-case hexadecimal digits, in order of creation (UUID version 7).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AssetId(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the id of an asset: it is 32 lower-case hexadecimal digits")]
pub struct AssetIdError(String);

impl AssetId {
    #[allow(clippy::new_without_default, reason = "every call makes another one")]
    pub fn new() -> AssetId {
        AssetId(uuid::Uuid::now_v7().simple().to_string())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AssetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for AssetId {
    type Err = AssetIdError;

    fn from_str(text: &str) -> std::result::Result<AssetId, AssetIdError> {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 32 && text.bytes().all(digit) {
            Ok(AssetId(text.to_owned()))
        } else {
            Err(AssetIdError(text.chars().take(64).collect()))
        }
    }
}

impl TryFrom<String> for AssetId {
    type Error = AssetIdError;

    fn try_from(text: String) -> std::result::Result<AssetId, AssetIdError> {
        text.parse()
    }
}

impl From<AssetId> for String {
    fn from(id: AssetId) -> String {
        id.0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AssetState {
    Encoding,
    Ready,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Video,
    Audio,
}

/// One asset with all that is committed of its renditions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Asset {
    pub id: AssetId,
    /// The key of the object it was made from.
    pub source: Key,
    pub state: AssetState,
    pub created_at: jiff::Timestamp,
    /// Renditions it will have, the audio's included.
    pub renditions_planned: u32,
    pub segment_seconds: f64,
    pub frame_rate: Option<f64>,
    /// Known when it is ready.
    pub duration_seconds: Option<f64>,
    pub encoder: Option<String>,
    pub fallback_reason: Option<String>,
    /// What was converted, left out or repaired.
    pub notes: Vec<String>,
    pub renditions: Vec<Rendition>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rendition {
    pub name: String,
    pub kind: Kind,
    /// RFC 6381.
    pub codecs: String,
    pub width: Option<u32>,
    pub height: Option<u32>,
    pub channels: Option<u32>,
    pub sample_rate: Option<u32>,
    /// What the encoder was told to stay below, bits per second.
    pub bitrate: u32,
    pub timescale: u32,
    #[serde(skip)]
    pub init: BlobId,
    /// Committed so far.
    pub segments: u64,
    pub frames: u64,
    pub bytes: u64,
    /// Measured over the committed segments.
    pub bits_per_second_average: u64,
    pub bits_per_second_peak: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Segment {
    pub index: u32,
    #[serde(skip)]
    pub blob: BlobId,
    pub frames: u32,
    pub start: u64,
    pub duration: u64,
    pub bytes: u64,
}

/// What is known when the plan is made.
pub struct NewAsset {
    pub id: AssetId,
    pub source: Key,
    pub renditions_planned: u32,
    pub segment_seconds: f64,
    pub frame_rate: f64,
}

/// What is known when the last segment is committed.
pub struct Finish {
    pub duration_seconds: f64,
    pub notes: Vec<String>,
}

/// Assets in order of creation, those after `after`.
pub async fn list(catalog: &Catalog, after: Option<AssetId>, limit: usize) -> Result<Vec<Asset>> {
    catalog
        .read(move |connection| {
            let after = after.map_or(String::new(), String::from);
            let mut statement = connection.prepare_cached("SELECT * FROM assets WHERE id > ?1 ORDER BY id LIMIT ?2")?;
            let rows = statement.query_map(params![after, limit as i64], asset_row)?;
            let mut assets = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            for asset in &mut assets {
                asset.renditions = renditions(connection, &asset.id)?;
            }
            Ok(assets)
        })
        .await
}

pub async fn get(catalog: &Catalog, id: &AssetId) -> Result<Option<Asset>> {
    let id = id.clone();
    catalog.read(move |connection| one(connection, &id)).await
}

/// An asset, one of its renditions and that rendition's segments, all of the same moment.
pub async fn rendition(
    catalog: &Catalog,
    id: &AssetId,
    name: &str,
) -> Result<Option<(Asset, Rendition, Vec<Segment>)>> {
    let (id, name) = (id.clone(), name.to_owned());
    catalog
        .read(move |connection| {
            let Some(asset) = one(connection, &id)? else { return Ok(None) };
            let Some(rendition) = asset.renditions.iter().find(|rendition| rendition.name == name).cloned() else {
                return Ok(None);
            };
            let mut statement = connection.prepare_cached(
                "SELECT number, blob, frames, start, duration, bytes FROM segments
                 WHERE asset = ?1 AND rendition = ?2 ORDER BY number",
            )?;
            let rows = statement.query_map(params![id.as_str(), name], segment_row)?;
            let segments = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            Ok(Some((asset, rendition, segments)))
        })
        .await
}

/// The blob behind `init.mp4` or `{n}.m4s`.
pub async fn part(catalog: &Catalog, id: &AssetId, rendition: &str, file: &str) -> Result<Option<BlobId>> {
    let (id, rendition) = (id.clone(), rendition.to_owned());
    let number = match file.strip_suffix(".m4s").map(str::parse::<u32>) {
        _ if file == "init.mp4" => None,
        // One name a segment: `007.m4s` and `+7.m4s` are not it.
        Some(Ok(number)) if file == format!("{number}.m4s") => Some(number),
        _ => return Ok(None),
    };
    catalog
        .read(move |connection| {
            let found = match number {
                None => connection
                    .prepare_cached("SELECT init FROM renditions WHERE asset = ?1 AND name = ?2")?
                    .query_row(params![id.as_str(), rendition], |row| blob_id(row, 0)),
                Some(number) => connection
                    .prepare_cached("SELECT blob FROM segments WHERE asset = ?1 AND rendition = ?2 AND number = ?3")?
                    .query_row(params![id.as_str(), rendition, number], |row| blob_id(row, 0)),
            };
            Ok(found.optional()?)
        })
        .await
}

/// Removes an asset with all its blobs; false when there was none.
pub async fn delete(store: &Store, id: &AssetId) -> Result<bool> {
    let id = id.clone();
    store
        .remove(move |tx| {
            let mut blobs = Vec::new();
            for query in ["SELECT init FROM renditions WHERE asset = ?1", "SELECT blob FROM segments WHERE asset = ?1"]
            {
                let mut statement = tx.prepare_cached(query)?;
                let rows = statement.query_map([id.as_str()], |row| blob_id(row, 0))?;
                for row in rows {
                    blobs.push(row?);
                }
            }
            tx.execute("DELETE FROM segments WHERE asset = ?1", [id.as_str()])?;
            tx.execute("DELETE FROM renditions WHERE asset = ?1", [id.as_str()])?;
            let existed = tx.execute("DELETE FROM assets WHERE id = ?1", [id.as_str()])? > 0;
            Ok((existed, blobs))
        })
        .await
}

pub(super) async fn begin(store: &Store, new: NewAsset) -> Result<()> {
    let now = jiff::Timestamp::now().as_millisecond();
    store
        .catalog()
        .write(move |tx| {
            tx.execute(
                "INSERT INTO assets (id, source, state, created_ms, renditions_planned, segment_seconds, frame_rate)
                 VALUES (?1, ?2, 'encoding', ?3, ?4, ?5, ?6)",
                params![
                    new.id.as_str(),
                    new.source.as_str(),
                    now,
                    new.renditions_planned,
                    new.segment_seconds,
                    new.frame_rate
                ],
            )?;
            Ok(())
        })
        .await
}

pub(super) async fn set_encoder(store: &Store, id: &AssetId, started: wire::Started) -> Result<()> {
    let id = id.clone();
    store
        .catalog()
        .write(move |tx| {
            tx.execute(
                "UPDATE assets SET encoder = ?2, fallback_reason = ?3 WHERE id = ?1",
                params![id.as_str(), started.encoder, started.fallback_reason],
            )?;
            Ok(())
        })
        .await
}

pub(super) async fn add_rendition(
    store: &Store,
    id: &AssetId,
    init: wire::Init,
    bitrate: u32,
    sealed: SealedBlob,
) -> Result<()> {
    let (id, blob) = (id.clone(), sealed.id);
    let insert = move |tx: &Transaction<'_>| {
        tx.execute(
            "INSERT INTO renditions (asset, name, kind, codecs, width, height, channels, sample_rate, bitrate,
                                     timescale, init)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            params![
                id.as_str(),
                init.rendition,
                if init.video.is_some() { "video" } else { "audio" },
                init.codecs,
                init.video.as_ref().map(|video| video.width),
                init.video.as_ref().map(|video| video.height),
                init.audio.as_ref().map(|audio| audio.channels),
                init.audio.as_ref().map(|audio| audio.sample_rate),
                bitrate,
                init.timescale,
                blob.to_string(),
            ],
        )?;
        Ok(())
    };
    store.commit(vec![sealed], insert).await
}

pub(super) async fn add_segment(store: &Store, id: &AssetId, segment: wire::Segment, sealed: SealedBlob) -> Result<()> {
    let (id, blob) = (id.clone(), sealed.id);
    let insert = move |tx: &Transaction<'_>| {
        tx.execute(
            "INSERT INTO segments (asset, rendition, number, blob, frames, start, duration, bytes)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                id.as_str(),
                segment.rendition,
                segment.index,
                blob.to_string(),
                segment.frames,
                segment.start as i64,
                segment.duration as i64,
                segment.bytes as i64,
            ],
        )?;
        Ok(())
    };
    store.commit(vec![sealed], insert).await
}

pub(super) async fn finish(store: &Store, id: &AssetId, finish: Finish) -> Result<()> {
    let id = id.clone();
    let notes = serde_json::to_string(&finish.notes).unwrap_or_else(|_| "[]".into());
    store
        .catalog()
        .write(move |tx| {
            let changed = tx.execute(
                "UPDATE assets SET state = 'ready', duration_seconds = ?2, notes = ?3 WHERE id = ?1",
                params![id.as_str(), finish.duration_seconds, notes],
            )?;
            // Deleted while it was being made: the last commit must not announce it.
            if changed == 1 { Ok(()) } else { Err(Error::Rejected(format!("asset {id} was deleted meanwhile"))) }
        })
        .await
}

fn one(connection: &Connection, id: &AssetId) -> Result<Option<Asset>> {
    let found = connection
        .prepare_cached("SELECT * FROM assets WHERE id = ?1")?
        .query_row([id.as_str()], asset_row)
        .optional()?;
    let Some(mut asset) = found else { return Ok(None) };
    asset.renditions = renditions(connection, id)?;
    Ok(Some(asset))
}

fn renditions(connection: &Connection, id: &AssetId) -> Result<Vec<Rendition>> {
    let mut statement = connection.prepare_cached(
        "SELECT r.*, count(s.number) AS segments, coalesce(sum(s.frames), 0) AS frames,
                coalesce(sum(s.bytes), 0) AS bytes, coalesce(sum(s.duration), 0) AS duration,
                coalesce(max(s.bytes * 8.0 * r.timescale / max(s.duration, 1)), 0.0) AS peak
         FROM renditions r LEFT JOIN segments s ON s.asset = r.asset AND s.rendition = r.name
         WHERE r.asset = ?1 GROUP BY r.asset, r.name ORDER BY r.kind DESC, r.height, r.name",
    )?;
    let rows = statement.query_map([id.as_str()], |row| {
        let kind: String = row.get("kind")?;
        let timescale: u32 = row.get("timescale")?;
        let bytes: i64 = row.get("bytes")?;
        let duration: i64 = row.get("duration")?;
        let peak: f64 = row.get("peak")?;
        let average = bytes as f64 * 8.0 * f64::from(timescale) / duration.max(1) as f64;
        Ok(Rendition {
            name: row.get("name")?,
            kind: if kind == "video" { Kind::Video } else { Kind::Audio },
            codecs: row.get("codecs")?,
            width: row.get("width")?,
            height: row.get("height")?,
            channels: row.get("channels")?,
            sample_rate: row.get("sample_rate")?,
            bitrate: row.get("bitrate")?,
            timescale,
            init: parsed(row, "init")?,
            segments: row.get::<_, i64>("segments")? as u64,
            frames: row.get::<_, i64>("frames")? as u64,
            bytes: bytes as u64,
            bits_per_second_average: average.ceil() as u64,
            bits_per_second_peak: peak.ceil() as u64,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
}

fn asset_row(row: &Row<'_>) -> rusqlite::Result<Asset> {
    let state: String = row.get("state")?;
    let notes: String = row.get("notes")?;
    Ok(Asset {
        id: parsed(row, "id")?,
        source: Key::parse(&row.get::<_, String>("source")?).map_err(|error| unreadable(Box::new(error)))?,
        state: if state == "ready" { AssetState::Ready } else { AssetState::Encoding },
        created_at: jiff::Timestamp::from_millisecond(row.get("created_ms")?)
            .map_err(|error| unreadable(Box::new(error)))?,
        renditions_planned: row.get("renditions_planned")?,
        segment_seconds: row.get("segment_seconds")?,
        frame_rate: row.get("frame_rate")?,
        duration_seconds: row.get("duration_seconds")?,
        encoder: row.get("encoder")?,
        fallback_reason: row.get("fallback_reason")?,
        notes: serde_json::from_str(&notes).map_err(|error| unreadable(Box::new(error)))?,
        renditions: Vec::new(),
    })
}

fn segment_row(row: &Row<'_>) -> rusqlite::Result<Segment> {
    Ok(Segment {
        index: row.get(0)?,
        blob: blob_id(row, 1)?,
        frames: row.get(2)?,
        start: row.get::<_, i64>(3)? as u64,
        duration: row.get::<_, i64>(4)? as u64,
        bytes: row.get::<_, i64>(5)? as u64,
    })
}

fn blob_id(row: &Row<'_>, column: usize) -> rusqlite::Result<BlobId> {
    row.get::<_, String>(column)?.parse().map_err(|error| unreadable(Box::new(error)))
}

fn parsed<T: FromStr>(row: &Row<'_>, column: &str) -> rusqlite::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    row.get::<_, String>(column)?.parse().map_err(|error| unreadable(Box::new(error)))
}

fn unreadable(error: Box<dyn std::error::Error + Send + Sync>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asset_ids_are_checked() {
        let id = AssetId::new();
        assert_eq!(id.as_str().parse(), Ok(id.clone()));
        for wrong in ["", "../../etc", &id.as_str().to_uppercase()[..31], &format!("{id}0")] {
            assert!(wrong.parse::<AssetId>().is_err(), "{wrong}");
        }
        assert!(serde_json::from_str::<AssetId>("\"x\"").is_err());
    }
}
