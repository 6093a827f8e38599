//! What a client is told: headers of either dialect, and problems.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;

use super::dialect::{Dialect, TUS_VERSION};
use crate::address;
use crate::http::blob::insert;
use crate::http::objects;
use crate::http::problem::Problem;
use crate::limits;
use crate::node::Node;
use crate::uploads::{Algorithm, Appended, Kind, Record, State, UploadError, UploadId};

const EXTENSIONS: &str = "creation,creation-with-upload,creation-defer-length,expiration,checksum,checksum-trailer,\
                          termination,concatenation";

/// The answer in its dialect: tus wants its version on every one, errors too.
pub(super) fn speak(dialect: Dialect, result: Result<Response, Problem>) -> Response {
    let version = HeaderValue::from_static(TUS_VERSION);
    match (result, dialect) {
        (Ok(mut response), Dialect::Tus) => {
            response.headers_mut().insert("tus-resumable", version);
            response
        }
        (Err(problem), Dialect::Tus) => problem.with_header("tus-resumable", version).into_response(),
        (Ok(response), Dialect::Draft { .. }) => response,
        // The upload itself goes on, if there is one.
        (Err(problem), Dialect::Draft { .. }) => {
            problem.with_header("upload-complete", HeaderValue::from_static("?0")).into_response()
        }
    }
}

/// What can be done here.
pub(super) fn offer(headers: &mut HeaderMap) {
    insert(headers, name("tus-resumable"), TUS_VERSION);
    insert(headers, name("tus-version"), TUS_VERSION);
    insert(headers, name("tus-max-size"), &limits::OBJECT_BYTES.to_string());
    insert(headers, name("tus-extension"), EXTENSIONS);
    insert(headers, name("tus-checksum-algorithm"), &algorithms());
    insert(headers, name("upload-limit"), &format!("max-size={}", limits::OBJECT_BYTES));
}

pub(super) fn algorithms() -> String {
    Algorithm::ALL.map(Algorithm::name).join(",")
}

/// How far the upload is, and what there is when it is complete.
pub(super) fn describe(headers: &mut HeaderMap, dialect: Dialect, record: &Record, offset: u64) {
    insert(headers, name("upload-offset"), &offset.to_string());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let done = record.state != State::Open;
    if !done {
        let expires = httpdate::fmt_http_date(record.expires_at.into());
        insert(headers, name("upload-expires"), &expires);
    }
    if let Dialect::Draft { .. } = dialect {
        headers.insert("upload-complete", HeaderValue::from_static(if done { "?1" } else { "?0" }));
        let left = record.expires_at.duration_since(Timestamp::now()).as_secs().max(0);
        insert(headers, name("upload-limit"), &format!("max-size={}, max-age={left}", limits::OBJECT_BYTES));
    }
    if let (true, Some(key), Some(hash)) = (done, &record.key, record.etag) {
        insert(headers, header::CONTENT_LOCATION, &address::of_object(key));
        insert(headers, header::ETAG, &format!("\"{}\"", blake3::Hash::from_bytes(hash).to_hex()));
    }
}

/// What the client said when it began the upload.
pub(super) fn describe_creation(headers: &mut HeaderMap, record: &Record) {
    match record.length {
        Some(length) => insert(headers, name("upload-length"), &length.to_string()),
        None => insert(headers, name("upload-defer-length"), "1"),
    }
    if !record.metadata.is_empty() {
        insert(headers, name("upload-metadata"), &record.metadata);
    }
    match record.kind {
        Kind::Whole => {}
        Kind::Part => insert(headers, name("upload-concat"), "partial"),
        Kind::Joined => {
            let parts: Vec<String> = record.parts.iter().map(|id| location(*id)).collect();
            insert(headers, name("upload-concat"), &format!("final;{}", parts.join(" ")));
        }
    }
}

/// The answer that the object's own address would have given to the whole of it.
pub(super) async fn stored(node: &Node, appended: &Appended) -> Result<Response, Problem> {
    let Some(key) = &appended.record.key else { return Ok(StatusCode::NO_CONTENT.into_response()) };
    let record = node.store().object(key).await?.filter(|found| Some(found.blake3) == appended.record.etag);
    Ok(match record {
        Some(record) => objects::stored(node, &record, appended.created.unwrap_or(false)),
        // Replaced or deleted in the meantime.
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

/// Where an upload is found. Without a host: proxies have other names for it.
pub(super) fn location(id: UploadId) -> String {
    format!("/v1/uploads/{id}")
}

fn name(name: &'static str) -> HeaderName {
    HeaderName::from_static(name)
}

pub(super) fn problem(dialect: Dialect, error: UploadError) -> Problem {
    let detail = error.to_string();
    match error {
        UploadError::Unknown(_) => Problem::not_found(detail),
        UploadError::Gone(_) => Problem::new(StatusCode::GONE, "upload-gone", detail),
        UploadError::Offset { expected, .. } => {
            Problem::conflict("upload-offset", detail).with_header("upload-offset", HeaderValue::from(expected))
        }
        UploadError::Length { .. } => Problem::bad_request("upload-length", detail),
        UploadError::TooLong { .. } | UploadError::TooLarge { .. } => {
            let limit = HeaderValue::from_str(&format!("max-size={}", limits::OBJECT_BYTES));
            let problem = Problem::too_large(detail);
            limit.map_or(problem.clone(), |limit| problem.with_header("upload-limit", limit))
        }
        UploadError::Complete(_) => Problem::new(StatusCode::FORBIDDEN, "upload-complete", detail),
        UploadError::Preempted(..) => Problem::conflict("upload-pre-empted", detail),
        UploadError::Cut { .. } => Problem::bad_request("incomplete-body", detail),
        UploadError::Checksum { .. } => match (dialect, StatusCode::from_u16(460)) {
            (Dialect::Tus, Ok(status)) => Problem::new(status, "checksum-mismatch", detail),
            _ => Problem::bad_request("digest-mismatch", detail),
        },
        UploadError::Full { .. } => Problem::unavailable("uploads-full", detail, 60),
        UploadError::Join { .. } => Problem::bad_request("upload-parts", detail),
        UploadError::Draining { .. } => Problem::unavailable("draining", detail, 5),
        UploadError::Storage(error) => error.into(),
    }
}
