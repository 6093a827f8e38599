//! `/v1/assets`: what transcodes made, and its HLS playlists and segments.
//!
//! Playlists are written anew for every request, from the table of committed segments; so they can be played while the
//! asset still encodes. Segments never change and may be cached for ever.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::access::Grant;
use super::blob::{self, Version};
use super::caching;
use super::problem::Problem;
use crate::node::Node;
use crate::transcode::assets::{self, Asset, AssetState};
use crate::transcode::{AssetId, package::hls as playlists};

const PLAYLIST: &str = "application/vnd.apple.mpegurl";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    after: Option<String>,
    limit: Option<usize>,
}

#[derive(Serialize)]
pub(super) struct List {
    assets: Vec<Asset>,
    /// Give it as `after` for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<AssetId>,
}

pub(super) async fn list(
    State(node): State<Arc<Node>>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<List>, Problem> {
    let Query(query) = query?;
    let limit = super::page_limit(query.limit)?;
    let after = query.after.as_deref().map(parse_id).transpose()?;
    let mut found = assets::list(node.store().catalog(), after, limit + 1).await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let next = if more { found.last().map(|asset| asset.id.clone()) } else { None };
    Ok(Json(List { assets: found, next }))
}

pub(super) async fn one(State(node): State<Arc<Node>>, Path(id): Path<String>) -> Result<Json<Asset>, Problem> {
    find(&node, &id).await.map(Json)
}

/// Removes the renditions. The object they were made from stays.
pub(super) async fn remove(State(node): State<Arc<Node>>, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    let asset = find(&node, &id).await?;
    if asset.state == AssetState::Encoding {
        let detail = format!("asset {id} is still being encoded; cancel its job, that removes it");
        return Err(Problem::conflict("asset-encoding", detail));
    }
    assets::delete(node.store(), &asset.id).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn find(node: &Node, id: &str) -> Result<Asset, Problem> {
    let id = parse_id(id)?;
    assets::get(node.store().catalog(), &id).await?.ok_or_else(|| no_asset(&id))
}

fn parse_id(text: &str) -> Result<AssetId, Problem> {
    text.parse().map_err(|error: assets::AssetIdError| Problem::bad_request("invalid-id", error.to_string()))
}

fn no_asset(id: &AssetId) -> Problem {
    Problem::not_found(format!("there is no asset {id}; GET /v1/assets lists those there are"))
}

/// `main.m3u8`, `{rendition}/index.m3u8`, `{rendition}/init.mp4` and `{rendition}/{n}.m4s`.
pub(super) async fn hls(
    State(node): State<Arc<Node>>,
    Path((id, path)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    let (request, _) = request.into_parts();
    match path.split_once('/') {
        None if path == "main.m3u8" => main_playlist(&node, &id, &request.extensions).await,
        Some((rendition, "index.m3u8")) => media_playlist(&node, &id, rendition, &request.extensions).await,
        Some((rendition, file)) => part(&node, &id, rendition, file, &request).await,
        None => Err(no_part(&id, &path)),
    }
}

async fn main_playlist(node: &Node, id: &str, request: &Extensions) -> Result<Response, Problem> {
    let asset = find(node, id).await?;
    let text = playlists::master(&asset).ok_or_else(|| not_yet(id))?;
    Ok(playlist(&asset, text, request))
}

async fn media_playlist(node: &Node, id: &str, rendition: &str, request: &Extensions) -> Result<Response, Problem> {
    let asset = parse_id(id)?;
    let found = assets::rendition(node.store().catalog(), &asset, rendition).await?;
    let (asset, rendition, segments) = found.ok_or_else(|| no_part(id, rendition))?;
    Ok(playlist(&asset, playlists::media(&asset, &rendition, &segments), request))
}

fn playlist(asset: &Asset, text: String, request: &Extensions) -> Response {
    let text = match request.get::<Grant>().and_then(Grant::query) {
        Some(query) => playlists::with_query(&text, &query),
        None => text,
    };
    let cache = match asset.state {
        AssetState::Encoding => caching::GROWING_PLAYLIST,
        AssetState::Ready => caching::FINISHED_PLAYLIST,
    };
    ([(header::CONTENT_TYPE, HeaderValue::from_static(PLAYLIST)), (header::CACHE_CONTROL, cache)], text).into_response()
}

async fn part(node: &Node, id: &str, rendition: &str, file: &str, request: &Parts) -> Result<Response, Problem> {
    let asset = parse_id(id)?;
    let found = assets::part(node.store().catalog(), &asset, rendition, file).await?;
    let blob = found.ok_or_else(|| no_part(id, &format!("{rendition}/{file}")))?;
    let reader = node.store().open_blob(blob).await?;
    let content_type = match rendition {
        "audio" => "audio/mp4",
        _ => "video/mp4",
    };
    let described = HeaderMap::from_iter([
        (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
        (header::CACHE_CONTROL, caching::FOR_EVER),
    ]);
    // The blob's id is its version: it never has other bytes, and carries the time of its making.
    let modified = UNIX_EPOCH + Duration::from_secs(blob.created_ms() / 1000);
    let version = Version { name: &file, etag: format!("\"{blob}\""), modified };
    blob::send(request, request.extensions.get(), &version, described, reader)
}

fn not_yet(id: &str) -> Problem {
    Problem::unavailable("not-yet", format!("asset {id} has nothing to play yet; ask again in a second"), 1)
}

fn no_part(id: &str, path: &str) -> Problem {
    let path: String = path.chars().take(100).collect();
    Problem::not_found(format!("asset {id} has no {path:?}; its main.m3u8 names what it has"))
}
