//! `/v1/scrub`: start the scrub, watch it, stop it; what is quarantined.
//!
//! The store owns the scrub: a client that goes away changes nothing.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use jiff::Timestamp;
use reelring_storage::{BlobId, Quarantined, ScrubCounts, ScrubOptions, ScrubProgress, ScrubResult};
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use crate::node::Node;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Start {
    /// 0 for no limit; when it is left out, the configured rate, or that of the scrub that is joined.
    rate_bytes_per_s: Option<u64>,
    /// From the first blob, also when an earlier scrub was stopped half way.
    #[serde(default)]
    restart: bool,
    #[serde(default)]
    quarantined_only: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReadQuery {
    after: Option<BlobId>,
    limit: Option<usize>,
}

#[derive(Serialize)]
pub(super) struct Status {
    state: Activity,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<Progress>,
    /// The last whole scrub.
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<Finished>,
    quarantined_total: u64,
    quarantined: Vec<Refused>,
    /// Give it as `after` for the next page of `quarantined`; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<BlobId>,
    /// The first of those that the newest scrub could not read, and the first files it found no object for.
    unreadable: Vec<String>,
    strays: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Activity {
    Idle,
    Running,
    /// Half way: the next start goes on from there.
    Stopped,
}

#[derive(Serialize)]
struct Progress {
    quarantined_only: bool,
    started_at: Timestamp,
    #[serde(flatten)]
    counts: Counts,
    blobs_total: u64,
    bytes_total: u64,
    rate_bytes_per_s: u64,
    rate_limit_bytes_per_s: u64,
    eta_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct Finished {
    started_at: Timestamp,
    finished_at: Timestamp,
    #[serde(flatten)]
    counts: Counts,
}

#[derive(Serialize)]
struct Counts {
    blobs_done: u64,
    bytes_done: u64,
    damaged: u64,
    released: u64,
    unreadable: u64,
    strays: u64,
}

#[derive(Serialize)]
struct Refused {
    blob: BlobId,
    key: Option<String>,
    found_at: Timestamp,
    detail: String,
}

/// Starts a scrub, or joins the one that runs: 202 or 200.
pub(super) async fn start(
    State(node): State<Arc<Node>>,
    body: Result<Option<Json<Start>>, JsonRejection>,
) -> Result<(StatusCode, Json<Status>), Problem> {
    let Start { rate_bytes_per_s, restart, quarantined_only } = body?.map(|Json(start)| start).unwrap_or_default();
    // Who joins without naming a rate slows nobody down.
    let running = node.store().scrub_status().await?.current.filter(|scrub| scrub.running);
    let unnamed = running.map_or(node.config().scrub_rate, |scrub| scrub.rate_limit_bytes_per_s);
    let rate_bytes_per_s = rate_bytes_per_s.unwrap_or(unnamed);
    let started = node.store().start_scrub(ScrubOptions { rate_bytes_per_s, restart, quarantined_only }).await?;
    let status = if started { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(status_of(&node, None, None).await?)))
}

pub(super) async fn read(
    State(node): State<Arc<Node>>,
    query: Result<Query<ReadQuery>, QueryRejection>,
) -> Result<Json<Status>, Problem> {
    let Query(ReadQuery { after, limit }) = query?;
    Ok(Json(status_of(&node, after, limit).await?))
}

/// Stops the scrub that runs, if one does; its place is kept.
pub(super) async fn stop(State(node): State<Arc<Node>>) -> Result<Json<Status>, Problem> {
    node.store().stop_scrub().await;
    Ok(Json(status_of(&node, None, None).await?))
}

async fn status_of(node: &Node, after: Option<BlobId>, limit: Option<usize>) -> Result<Status, Problem> {
    let limit = super::page_limit(limit)?;
    let status = node.store().scrub_status().await?;
    let mut quarantined = node.store().quarantined(after, limit + 1);
    let more = quarantined.len() > limit;
    quarantined.truncate(limit);
    let state = match &status.current {
        Some(scrub) if scrub.running => Activity::Running,
        Some(scrub) if scrub.quarantined_only => Activity::Idle,
        Some(_) => Activity::Stopped,
        None => Activity::Idle,
    };
    Ok(Status {
        state,
        progress: status.current.map(Progress::of),
        last: status.last.map(Finished::of),
        quarantined_total: node.store().stats().quarantined_blobs,
        next: quarantined.last().filter(|_| more).map(|found| found.blob),
        quarantined: quarantined.into_iter().map(Refused::of).collect(),
        unreadable: status.unreadable,
        strays: status.strays,
    })
}

impl Progress {
    fn of(scrub: ScrubProgress) -> Progress {
        Progress {
            quarantined_only: scrub.quarantined_only,
            started_at: time(scrub.started_ms),
            counts: Counts::of(scrub.counts),
            blobs_total: scrub.blobs_total,
            bytes_total: scrub.bytes_total,
            rate_bytes_per_s: scrub.rate_bytes_per_s,
            rate_limit_bytes_per_s: scrub.rate_limit_bytes_per_s,
            eta_s: scrub.eta_s.filter(|_| scrub.running),
            error: scrub.error,
        }
    }
}

impl Finished {
    fn of(result: ScrubResult) -> Finished {
        let ScrubResult { started_ms, finished_ms, counts } = result;
        Finished { started_at: time(started_ms), finished_at: time(finished_ms), counts: Counts::of(counts) }
    }
}

impl Counts {
    fn of(counts: ScrubCounts) -> Counts {
        let ScrubCounts { blobs, bytes, damaged, released, unreadable, strays } = counts;
        Counts { blobs_done: blobs, bytes_done: bytes, damaged, released, unreadable, strays }
    }
}

impl Refused {
    fn of(found: Quarantined) -> Refused {
        let Quarantined { blob, key, found_ms, detail } = found;
        Refused { blob, key, found_at: time(found_ms), detail }
    }
}

fn time(ms: u64) -> Timestamp {
    i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or_default()
}
