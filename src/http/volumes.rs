//! `GET /v1/volumes`: the disks under the node, their room and health. `/readyz` and `doctor` tell the same.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use reelring_storage::{StoreStats, VolumeState, VolumeStats};
use serde::Serialize;
use serde_json::{Value, json};

use crate::node::Node;

/// One volume, for people and their scripts.
#[derive(Serialize)]
struct Listed<'a> {
    volume: u32,
    path: String,
    state: VolumeState,
    /// Why it is not ready, since when, and what to do.
    reason: Option<&'a str>,
    since: Option<Timestamp>,
    next: Option<String>,
    bytes: Option<u64>,
    free_bytes: Option<u64>,
    available_bytes: u64,
    reserved_bytes: u64,
    used_bytes: u64,
    min_free_bytes: u64,
    quota_bytes: Option<u64>,
    low: bool,
}

impl<'a> Listed<'a> {
    fn of(volume: &'a VolumeStats) -> Listed<'a> {
        Listed {
            volume: volume.number,
            path: volume.dir.display().to_string(),
            state: volume.state,
            reason: volume.reason.as_deref(),
            since: volume.since_ms.and_then(|ms| Timestamp::from_millisecond(ms as i64).ok()),
            next: next(volume),
            bytes: volume.bytes,
            free_bytes: volume.free_bytes,
            available_bytes: volume.available_bytes,
            reserved_bytes: volume.reserved_bytes,
            used_bytes: volume.used_bytes,
            min_free_bytes: volume.min_free_bytes,
            quota_bytes: volume.quota_bytes,
            low: volume.low,
        }
    }
}

/// What to do about a volume that is not ready.
fn next(volume: &VolumeStats) -> Option<String> {
    let path = volume.dir.display();
    match volume.state {
        VolumeState::Ready => None,
        VolumeState::Full => Some("delete something, raise `quota` or lower `min_free`, or add a volume".into()),
        VolumeState::Retired => Some(format!(
            "it is read and gets nothing new; delete what it holds before its disk goes, or configure {path} again"
        )),
        VolumeState::Degraded => Some(format!(
            "look at the kernel's log (`dmesg`) and at the disk under {path}, then restart the node; \"A degraded volume\" \
             in docs/operations.md has the steps"
        )),
        VolumeState::Missing => Some(format!("bring its disk back at {path}, then restart the node")),
    }
}

pub(super) fn listed(stats: &StoreStats) -> Value {
    json!(stats.volumes.iter().map(Listed::of).collect::<Vec<_>>())
}

pub(super) async fn list(State(node): State<Arc<Node>>) -> Json<Value> {
    Json(json!({ "volumes": listed(&node.store().stats()) }))
}
