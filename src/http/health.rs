//! `/healthz`: the process answers. `/readyz`: it takes work, or says why not.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use reelring_storage::VolumeState;
use serde_json::{Value, json};

use super::access::Grant;
use super::problem::Problem;
use super::volumes;
use crate::node::Node;

pub(super) async fn alive() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// Ready as long as something can be stored: a volume that failed beside others that work is listed, and no reason to
/// send clients away.
pub(super) async fn ready(
    State(node): State<Arc<Node>>,
    grant: Option<Extension<Grant>>,
) -> Result<Json<Value>, Problem> {
    if node.closing().is_cancelled() {
        return Err(Problem::unavailable("draining", "the node is shutting down; try another or wait", 5));
    }
    let stats = node.store().stats();
    if matches!(grant, Some(Extension(Grant::Anonymous))) {
        // A load balancer needs no more, and strangers get to know no paths.
        return match stats.takes_writes {
            true => Ok(Json(json!({ "status": "ready" }))),
            false => Err(Problem::unavailable("volume-degraded", "nothing can be stored; a token tells why", 60)),
        };
    }
    let listed = volumes::listed(&stats);
    if !stats.takes_writes {
        let failed = stats.volumes.iter().find(|volume| volume.state == VolumeState::Degraded);
        let (path, reason) = failed.map_or_else(Default::default, |volume| {
            (volume.dir.display().to_string(), volume.reason.clone().unwrap_or_default())
        });
        let detail = format!(
            "volume 0 ({path}) has the catalog, and is degraded: nothing can be stored, reads go on ({reason}); look at \
             the kernel's log and the disk, then restart the node"
        );
        return Err(Problem::unavailable("volume-degraded", detail, 60).with("volumes", listed));
    }
    let engine = node.store().engine();
    Ok(Json(json!({
        "status": "ready",
        "engine": engine.name,
        "free_bytes": stats.free_bytes,
        "volumes": listed,
    })))
}
