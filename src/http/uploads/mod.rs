//! `/v1/uploads`: resumable uploads, by tus 1.0 and by the IETF's draft, on the same store.
//!
//! A request speaks one dialect (`dialect` tells which); the answer, errors too, speaks the same. What both do is in
//! `crate::uploads`: this room reads headers and moves bodies.
//!
//! The bytes of a request reach the upload's task through a channel with one place. When the client goes away this
//! handler is dropped, the channel closes, and the task keeps what has come: it never takes a lost connection for the end
//! of a body.

mod answer;
mod body;
mod creation;
mod dialect;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::problem::Problem;
use super::zero_copy::Outgoing;
use crate::node::Node;
use crate::uploads::{Append, Checksum, State as UploadState, UploadId};
use dialect::{Dialect, TUS_VERSION};

pub(super) use creation::create_at;

/// A write to an object's own address that begins a resumable upload. One that says that it has everything
/// (`Upload-Complete: ?1`) does not: the answer that names the upload would come when it is over, because hyper sends no
/// interim answers but 100, so it is what it is without the header.
pub(super) fn begins_upload(headers: &HeaderMap) -> bool {
    headers.get("upload-complete").is_some_and(|value| value.as_bytes().trim_ascii() == b"?0")
}

/// What the node offers, to whoever asks.
pub(super) async fn options() -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    answer::offer(response.headers_mut());
    response
}

/// Begins an upload, or joins parts.
pub(super) async fn create(State(node): State<Arc<Node>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let dialect = match Dialect::of(&parts) {
        Ok(dialect) => dialect,
        Err(problem) => return problem.into_response(),
    };
    answer::speak(dialect, creation::create(&node, dialect, &parts, body).await)
}

/// How far an upload is.
pub(super) async fn status(State(node): State<Arc<Node>>, Path(id): Path<String>, request: Request) -> Response {
    on_upload(&node, &id, request, Method::HEAD).await
}

pub(super) async fn append(State(node): State<Arc<Node>>, Path(id): Path<String>, request: Request) -> Response {
    on_upload(&node, &id, request, Method::PATCH).await
}

pub(super) async fn terminate(State(node): State<Arc<Node>>, Path(id): Path<String>, request: Request) -> Response {
    on_upload(&node, &id, request, Method::DELETE).await
}

/// A POST for clients that have no other method; the header says which they mean.
pub(super) async fn overridden(State(node): State<Arc<Node>>, Path(id): Path<String>, request: Request) -> Response {
    let meant = match request.headers().get("x-http-method-override").map(HeaderValue::as_bytes) {
        Some(b"PATCH") => Method::PATCH,
        Some(b"DELETE") => Method::DELETE,
        Some(b"HEAD") => Method::HEAD,
        _ => {
            let detail = "POST on an upload needs X-HTTP-Method-Override: PATCH, DELETE or HEAD; or use these methods";
            return Problem::method_not_allowed(detail).into_response();
        }
    };
    on_upload(&node, &id, request, meant).await
}

async fn on_upload(node: &Node, id: &str, request: Request, method: Method) -> Response {
    let (mut parts, body) = request.into_parts();
    parts.method = method;
    let dialect = match Dialect::of(&parts) {
        Ok(dialect) => dialect,
        Err(problem) => return problem.into_response(),
    };
    let result = match id.parse::<UploadId>() {
        Err(error) => Err(Problem::not_found(format!("there is no upload {id:?}: {error}"))),
        Ok(id) => match parts.method {
            Method::PATCH => patch(node, dialect, id, &parts, body).await,
            Method::DELETE => delete(node, dialect, id).await,
            _ => head(node, dialect, id).await,
        },
    };
    answer::speak(dialect, result)
}

async fn head(node: &Node, dialect: Dialect, id: UploadId) -> Result<Response, Problem> {
    let status = node.uploads().status(id).await.map_err(|error| answer::problem(dialect, error))?;
    let code = if dialect == Dialect::Tus { StatusCode::OK } else { StatusCode::NO_CONTENT };
    let mut response = code.into_response();
    let headers = response.headers_mut();
    answer::describe(headers, dialect, &status.record, status.offset);
    answer::describe_creation(headers, &status.record);
    Ok(response)
}

async fn delete(node: &Node, dialect: Dialect, id: UploadId) -> Result<Response, Problem> {
    node.uploads().terminate(id).await.map_err(|error| answer::problem(dialect, error))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn patch(node: &Node, dialect: Dialect, id: UploadId, parts: &Parts, body: Body) -> Result<Response, Problem> {
    dialect.check_patch_type(parts)?;
    let offset = dialect.number(parts, "upload-offset")?.ok_or_else(|| {
        Problem::bad_request(
            "upload-offset",
            "Upload-Offset is missing: say where the bytes belong; HEAD tells how far it is",
        )
    })?;
    let ask = ask(dialect, parts, &body, offset)?;
    let appended = body::append(node, dialect, id, ask, body).await?;
    let done = appended.record.state == UploadState::Done;
    let mut response = match (dialect, done) {
        (Dialect::Draft { .. }, true) => answer::stored(node, &appended).await?,
        _ => StatusCode::NO_CONTENT.into_response(),
    };
    answer::describe(response.headers_mut(), dialect, &appended.record, appended.offset);
    Ok(response)
}

/// What the headers say about the bytes of a request.
fn ask(dialect: Dialect, parts: &Parts, body: &Body, offset: u64) -> Result<Append, Problem> {
    let completes = dialect.completes(parts)?;
    let checksum = match dialect {
        Dialect::Tus => parts.headers.get("upload-checksum").map(checksum).transpose()?,
        Dialect::Draft { .. } => dialect::content_digest(parts)?,
    };
    let trailer = parts.headers.get_all(header::TRAILER);
    let checksum_follows = trailer.iter().any(|names| {
        let names = names.to_str().unwrap_or_default();
        names.split(',').any(|name| name.trim().eq_ignore_ascii_case("upload-checksum"))
    });
    Ok(Append {
        offset,
        bytes: dialect::content_length(parts, body),
        length: dialect.number(parts, "upload-length")?,
        completes,
        checksum,
        checksum_follows,
        payer: Outgoing::payer_of(parts),
    })
}

/// Reads all that a head may say of an upload: what comes of it keeps its bounds.
#[cfg(test)]
pub(super) fn read(parts: &Parts) {
    let Ok(dialect) = Dialect::of(parts) else { return };
    let most = 10_u64.pow(19);
    if let Ok(ask) = ask(dialect, parts, &Body::empty(), 0) {
        assert!(ask.length.is_none_or(|length| length < most), "{:?}", ask.length);
    }
    if let Ok(offset) = dialect.number(parts, "upload-offset") {
        assert!(offset.is_none_or(|offset| offset < most), "{offset:?}");
    }
    let _ = dialect.check_patch_type(parts);
    creation::read(&parts.headers);
}

fn checksum(value: &HeaderValue) -> Result<Checksum, Problem> {
    value.to_str().ok().and_then(Checksum::parse).ok_or_else(|| {
        let known = answer::algorithms();
        let detail = format!("Upload-Checksum {value:?} is no algorithm of {known} with its digest in base64");
        Problem::bad_request("upload-checksum", detail)
    })
}

/// The problem of a request whose protocol version nobody here speaks.
fn version_problem(detail: String) -> Problem {
    Problem::new(StatusCode::PRECONDITION_FAILED, "tus-version", detail)
        .with_header("tus-version", HeaderValue::from_static(TUS_VERSION))
        .with_header("tus-resumable", HeaderValue::from_static(TUS_VERSION))
}
