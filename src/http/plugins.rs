//! `/v1/plugins`: the loaded extractors, their generation and their last error.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::node::Node;

pub(super) async fn list(State(node): State<Arc<Node>>) -> Json<Value> {
    Json(json!({ "plugins": node.plugins().list() }))
}
