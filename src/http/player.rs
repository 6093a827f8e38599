//! `/play/{asset}`: one small page with a player, so that a result can be looked at.
//!
//! The page plays HLS with the browser's own player, else with the copy of hls.js the configuration names.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};

use super::problem::Problem;
use crate::limits;
use crate::node::Node;

const PAGE: &str = include_str!("player.html");

pub(super) async fn page(State(node): State<Arc<Node>>, Path(asset): Path<String>) -> Result<Response, Problem> {
    super::assets::find(&node, &asset).await?;
    let policy = "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; \
                  media-src 'self' blob:; worker-src 'self' blob:; img-src 'self' data:";
    Ok(([(header::CONTENT_SECURITY_POLICY, policy)], Html(PAGE)).into_response())
}

pub(super) async fn hls_js(State(node): State<Arc<Node>>) -> Result<Response, Problem> {
    let Some(path) = node.config().player_js.clone() else {
        return Err(Problem::not_found(
            "no hls.js is configured; start the node with --player-js FILE, or use a browser that plays HLS itself",
        ));
    };
    let shown = path.display().to_string();
    let script = tokio::task::spawn_blocking(move || {
        let length = std::fs::metadata(&path)?.len();
        if length > limits::PLAYER_SCRIPT_BYTES {
            return Err(std::io::Error::other(format!(
                "it has {length} bytes, the limit is {}",
                limits::PLAYER_SCRIPT_BYTES
            )));
        }
        std::fs::read(&path)
    });
    match script.await.map_err(std::io::Error::other).flatten() {
        Ok(script) => {
            let headers = [(header::CONTENT_TYPE, "text/javascript"), (header::CACHE_CONTROL, "max-age=3600")];
            Ok((StatusCode::OK, headers, Body::from(script)).into_response())
        }
        Err(error) => Err(Problem::not_found(format!("the configured player_js {shown} cannot be read: {error}"))),
    }
}
