//! `/v1/objects`: store, read, remove and list objects.
//!
//! A PUT is acknowledged when the blob, its directory and its catalog row are durable. If the client goes away before,
//! the writer is dropped and its partial file removed.

use std::pin::pin;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use reelring_storage::{
    BlobMeta, BlobReader, BlobWriter, Error as StorageError, Key, ObjectRecord, Payer, Precondition, PutOutcome,
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

use super::access::Grant;
use super::blob::{self, Version, insert};
use super::caching;
use super::conditional;
use super::digest::{self, Expected};
use super::disposition;
use super::following;
use super::index;
use super::pace::Pace;
use super::problem::Problem;
use super::uploads;
use super::zero_copy::Outgoing;
use crate::address;
use crate::limits;
use crate::media_type;
use crate::node::Node;

/// The router's pattern of an object's address.
pub(super) const ROUTE: &str = "/v1/objects/{*key}";

pub(super) async fn write(State(node): State<Arc<Node>>, request: Request) -> Result<Response, Problem> {
    let (request, body) = request.into_parts();
    let (uri, headers) = (&request.uri, &request.headers);
    let key = key_of(uri)?;
    if uploads::begins_upload(headers) {
        return Ok(uploads::create_at(&node, &request, body, key).await);
    }
    let condition = conditional::precondition(headers)?;
    let mut expected = Expected::from_headers(headers)?;
    if headers.contains_key(header::CONTENT_RANGE) {
        let detail = "Content-Range is not possible on PUT: send the whole object";
        return Err(Problem::bad_request("content-range", detail));
    }
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
        let detail = format!("Content-Encoding {encoding:?} is not kept: send the object itself, decoded");
        return Err(Problem::unsupported("content-encoding", detail));
    }
    let length = content_length(headers);
    if let Some(length) = length
        && length > limits::OBJECT_BYTES
    {
        return Err(too_large(&key, length));
    }
    let declared = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type = media_type::of(declared, key.as_str(), &[]);
    // Only where the sender and the key tell nothing are the first bytes looked at.
    let mut head = media_type::says_nothing(content_type.as_deref()).then(Vec::new);
    if !matches!(condition, Precondition::None) {
        // Decided for good in the transaction that writes; asked here so that a lost race costs nobody an upload.
        condition.check(&key, node.store().object(&key).await?.as_ref())?;
    }
    let meta = BlobMeta { key: Some(key.to_string()), content_type, length_hint: length };
    let mut writer = node.store().create(meta).await?;
    writer.set_payer(Outgoing::payer_of(&request));
    if let Err(problem) = receive(&mut writer, body, &key, &mut expected, &mut head).await {
        writer.abort().await;
        return Err(problem);
    }
    let sha256 = match expected.verify() {
        Ok(sha256) => sha256,
        Err(problem) => {
            writer.abort().await;
            return Err(problem);
        }
    };
    if let Some(head) = head {
        writer.set_content_type(media_type::of(declared, key.as_str(), &head));
    }
    let mut sealed = writer.seal().await?;
    sealed.sha256 = sha256;
    let PutOutcome { record, created } = node.store().put_object(&key, sealed, condition).await?;
    let mut response = stored(&node, &record, created);
    if created {
        insert(response.headers_mut(), header::LOCATION, uri.path());
    }
    Ok(response)
}

/// The answer to whoever stored an object.
pub(super) fn stored(node: &Node, record: &ObjectRecord, created: bool) -> Response {
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = (status, Json(Listed::of(node, record))).into_response();
    insert(response.headers_mut(), header::ETAG, &conditional::etag(record));
    response
}

/// Moves the body into the blob. Memory is taken before the socket is read, so a slow disk slows the sender down.
async fn receive(
    writer: &mut BlobWriter,
    body: Body,
    key: &Key,
    expected: &mut Expected,
    head: &mut Option<Vec<u8>>,
) -> Result<(), Problem> {
    let (mut body, mut pace) = (body, Pace::new());
    // One timer for the whole body, put off with each piece: a new one for each wakes the thread that waits for events.
    let mut pause = pin!(sleep(limits::HTTP_BODY_PAUSE));
    loop {
        writer.ready().await?;
        pause.as_mut().reset(Instant::now() + limits::HTTP_BODY_PAUSE);
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            () = &mut pause => {
                // Its memory is for others as long as it sends nothing; and who follows it sees all there is.
                writer.hand_over().await?;
                timeout(limits::HTTP_BODY_STALL, body.frame()).await.map_err(|_| {
                    Problem::timeout(format!(
                        "no byte of {key} arrived for {} s after {} bytes; nothing was stored, send it again",
                        limits::HTTP_BODY_STALL.as_secs(),
                        writer.len()
                    ))
                })?
            }
        };
        let Some(frame) = frame else { return Ok(()) };
        let frame = frame.map_err(|error| {
            let detail =
                format!("the body of {key} ended early after {} bytes: {error}; nothing was stored", writer.len());
            Problem::bad_request("incomplete-body", detail)
        })?;
        let Ok(data) = frame.into_data() else { continue };
        pace.arrived(data.len())
            .map_err(|slow| Problem::timeout(format!("the upload of {key} is too slow: {slow}; nothing was stored")))?;
        if writer.len() + data.len() as u64 > limits::OBJECT_BYTES {
            return Err(too_large(key, writer.len() + data.len() as u64));
        }
        expected.update(&data);
        if let Some(head) = head {
            head.extend_from_slice(&data[..data.len().min(media_type::HEAD_BYTES - head.len())]);
        }
        writer.write(data).await?;
    }
}

fn too_large(key: &Key, length: u64) -> Problem {
    Problem::too_large(format!("{key} has {length} bytes or more, the limit is {}", limits::OBJECT_BYTES))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// GET and HEAD.
pub(super) async fn read(State(node): State<Arc<Node>>, request: Request) -> Result<Response, Problem> {
    let (request, _) = request.into_parts();
    send(&node, &request, request.extensions.get()).await
}

/// The same, by the way `outgoing` of the connection.
pub(super) async fn send(node: &Arc<Node>, request: &Parts, outgoing: Option<&Outgoing>) -> Result<Response, Problem> {
    let key = key_of(&request.uri)?;
    let described = |content_type| describe(&key, content_type, request.uri.query());
    for _ in 0..REPLACEMENTS {
        // Before the object: one of the two finds a writer that ends in between.
        let writer = node.store().writer_of(&key);
        if let Some((object, reader)) = open(node, &key).await? {
            let (etag, modified) = (conditional::etag(&object), conditional::modified(&object));
            let version = Version { name: &key, etag, modified };
            let mut described = described(object.content_type.as_deref());
            let digest = digest::of_object(&request.headers, object.sha256);
            described.extend(digest.map(|digest| (HeaderName::from_static(digest::REPR_DIGEST), digest)));
            return blob::send(request, outgoing, &version, described, reader);
        }
        let Some(writer) = writer else { break };
        if let Some(follower) = writer.follow()? {
            let described = described(follower.content_type());
            let payer = outgoing.map_or(Payer::Node, Outgoing::payer);
            return following::send(node, request, &key, described, follower.on_account_of(payer));
        }
    }
    if key.as_str().ends_with('/') {
        // Boxed: what few need makes the future of all no larger.
        return Box::pin(folder(node, key.as_str(), request)).await;
    }
    Err(no_object(&key))
}

/// The folder that holds everything; with a query it is the list.
pub(super) async fn root(State(node): State<Arc<Node>>, request: Request) -> Result<Response, Problem> {
    let (request, _) = request.into_parts();
    if request.uri.query().is_some() {
        return list(State(node), Query::try_from_uri(&request.uri)).await.map(Json::into_response);
    }
    folder(&node, "", &request).await
}

/// What lies under `prefix`, for people or for programs.
async fn folder(node: &Arc<Node>, prefix: &str, request: &Parts) -> Result<Response, Problem> {
    if index::wants_json(&request.headers) {
        let query = ListQuery { prefix: prefix.into(), after: None, limit: None };
        return list(State(node.clone()), Ok(Query(query))).await.map(Json::into_response);
    }
    let signature = match request.extensions.get() {
        Some(Grant::Signature(signature)) => Some(&**signature),
        _ => None,
    };
    let page = index::page(node, prefix, signature).await?;
    page.ok_or_else(|| Problem::not_found(format!("there is no object {prefix}, and none in a folder of that name")))
}

/// How often an object may change between two look-ups of one request.
const REPLACEMENTS: usize = 8;

/// The object and its blob, if there is one. A replacement between the two look-ups removes the blob: then the new object
/// counts.
async fn open(node: &Node, key: &Key) -> Result<Option<(Arc<ObjectRecord>, BlobReader)>, Problem> {
    for _ in 0..REPLACEMENTS {
        let Some(object) = node.store().shared_object(key).await? else { return Ok(None) };
        match node.store().open_blob(object.blob).await {
            Ok(blob) => return Ok(Some((object, blob))),
            Err(StorageError::NoBlob(_)) => continue,
            // Found a moment ago: the store has not looked up whose it is yet.
            Err(StorageError::Quarantined { blob, key: None, path, detail }) => {
                let key = Some(key.to_string());
                return Err(StorageError::Quarantined { blob, key, path, detail }.into());
            }
            Err(error @ StorageError::VolumeMissing { .. }) => {
                return Err(Problem::unavailable("volume-missing", format!("{key} cannot be sent: {error}"), 60));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let detail = format!(
        "the file of {key} is missing, although the catalog has it; put it back from a back-up, or store the object again; \
         `reelring scrub` looks for others"
    );
    Err(Problem::missing_blob(detail))
}

fn no_object(key: &Key) -> Problem {
    Problem::not_found(format!(
        "there is no object {key}; GET /v1/objects?prefix= or `reelring ls` lists those there are"
    ))
}

/// What is said of the content: its type, its name as a file, and what keeps a stored page from acting as one of the
/// node's own.
fn describe(key: &Key, content_type: Option<&str>, query: Option<&str>) -> HeaderMap {
    let mut answer = HeaderMap::with_capacity(blob::HEADERS);
    answer.insert(header::CACHE_CONTROL, caching::OBJECT);
    let content_type = content_type.or_else(|| media_type::by_name(key.as_str())).unwrap_or("application/octet-stream");
    insert(&mut answer, header::CONTENT_TYPE, content_type);
    answer.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if !media_type::is_audio_or_video(content_type) {
        answer.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    }
    answer.extend(disposition::attachment(query, key).map(|value| (header::CONTENT_DISPOSITION, value)));
    answer
}

pub(super) async fn remove(State(node): State<Arc<Node>>, uri: Uri, headers: HeaderMap) -> Result<StatusCode, Problem> {
    let key = key_of(&uri)?;
    let condition = conditional::precondition(&headers)?;
    if node.store().delete_object(&key, condition).await? { Ok(StatusCode::NO_CONTENT) } else { Err(no_object(&key)) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    #[serde(default)]
    prefix: String,
    after: Option<String>,
    limit: Option<usize>,
}

#[derive(Serialize)]
pub(super) struct List {
    objects: Vec<Listed>,
    /// Give it as `after` for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Key>,
}

#[derive(Serialize)]
struct Listed {
    key: Key,
    length: u64,
    etag: String,
    content_type: Option<String>,
    modified_at: Timestamp,
    /// Its bytes are damaged, and refused.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    quarantined: bool,
}

impl Listed {
    fn of(node: &Node, record: &ObjectRecord) -> Self {
        Self {
            key: record.key.clone(),
            length: record.length,
            etag: conditional::etag(record),
            content_type: record.content_type.clone(),
            modified_at: Timestamp::from_millisecond(record.modified_ms).unwrap_or_default(),
            quarantined: node.store().is_quarantined(record.blob),
        }
    }
}

pub(super) async fn list(
    State(node): State<Arc<Node>>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<List>, Problem> {
    let Query(query) = query?;
    let limit = super::page_limit(query.limit)?;
    let mut records = node.store().list_objects(&query.prefix, query.after.as_deref(), limit + 1).await?;
    let more = records.len() > limit;
    records.truncate(limit);
    let next = if more { records.last().map(|record| record.key.clone()) } else { None };
    Ok(Json(List { objects: records.iter().map(|record| Listed::of(&node, record)).collect(), next }))
}

/// The key in the address. Taken from the raw path: a key is bytes, and no router should tidy it up.
pub(super) fn key_of(uri: &Uri) -> Result<Key, Problem> {
    let raw = uri.path().strip_prefix(address::OBJECTS).unwrap_or_default();
    let invalid = |detail| Problem::bad_request("invalid-key", detail);
    if let Some(escape) = address::broken_escape(raw) {
        let detail = format!("the key {raw:?} has {escape:?}, which escapes no byte; write a percent sign as %25");
        return Err(invalid(detail));
    }
    let decoded = percent_decode_str(raw)
        .decode_utf8()
        .map_err(|_| invalid(format!("the key {raw:?} is not UTF-8; percent-encode UTF-8 bytes")))?;
    Key::parse(&decoded).map_err(|error| invalid(error.to_string()))
}
