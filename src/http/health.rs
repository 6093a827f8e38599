//! `/healthz`: the process answers. `/readyz`: it takes work, or says why not.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::problem::Problem;
use crate::node::Node;

pub(super) async fn alive() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

pub(super) async fn ready(State(node): State<Arc<Node>>) -> Result<Json<Value>, Problem> {
    if node.closing().is_cancelled() {
        return Err(Problem::unavailable("draining", "the node is shutting down; try another or wait", 5));
    }
    let stats = node.store().stats();
    if stats.degraded {
        let detail = "the volume refused a write and takes no more; reads go on. `reelring doctor` tells what to do";
        return Err(Problem::unavailable("volume-degraded", detail, 60));
    }
    let engine = node.store().engine();
    Ok(Json(json!({ "status": "ready", "engine": engine.name, "free_bytes": stats.free_bytes })))
}
