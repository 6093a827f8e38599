//! A stored blob as the answer to a GET or HEAD: conditions, ranges, a streamed body.

use std::fmt::Display;
use std::ops::Range;
use std::time::SystemTime;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use reelring_storage::{BlobReader, Error as StorageError, Payer};

use super::conditional::{self, Decision};
use super::multipart::Multipart;
use super::problem::Problem;
use super::range::{self, Asked};
use super::zero_copy::Outgoing;
use crate::limits;

/// Headers that an answer has besides those that describe its content, the layers' among them.
const FURTHER_HEADERS: usize = 8;
/// Of most answers, all of them: a map that grows costs as much as what is put into it.
pub(super) const HEADERS: usize = FURTHER_HEADERS + 4;

/// What identifies the version that is sent.
pub(super) struct Version<'a> {
    /// What messages call it.
    pub name: &'a dyn Display,
    /// Strong, with its quotes.
    pub etag: String,
    pub modified: SystemTime,
}

/// Answers with `blob`, as much of it as the request's headers ask for, the way `outgoing` of the connection. `described`
/// are the headers of its content.
pub(super) fn send(
    request: &Parts,
    outgoing: Option<&Outgoing>,
    version: &Version,
    described: HeaderMap,
    blob: BlobReader,
) -> Result<Response, Problem> {
    let blob = &blob.on_account_of(outgoing.map_or(Payer::Node, Outgoing::payer));
    let Version { name, etag, modified } = version;
    let Parts { method, headers: request, .. } = request;
    let length = blob.len();
    let mut answer = described;
    answer.reserve(FURTHER_HEADERS);
    insert(&mut answer, header::ETAG, etag);
    // A version that followed another one within its second counts as modified in the next, which has yet to come.
    if *modified <= SystemTime::now() {
        insert(&mut answer, header::LAST_MODIFIED, &httpdate::fmt_http_date(*modified));
    }
    answer.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));

    match conditional::evaluate(request, etag, *modified) {
        Decision::NotModified => {
            let kept = [header::ETAG, header::LAST_MODIFIED, header::ACCEPT_RANGES, header::CACHE_CONTROL];
            let kept = kept.into_iter().filter_map(|name| Some((name.clone(), answer.remove(name)?))).collect();
            return Ok(response(StatusCode::NOT_MODIFIED, kept, Body::empty()));
        }
        Decision::Failed => {
            return Err(Problem::precondition_failed(format!("{name} is {etag} now; read it again and decide anew")));
        }
        Decision::Send => {}
    }
    let asked = match method == Method::GET && conditional::range_counts(request, etag, *modified) {
        true => range::of(request, length),
        false => Asked::Whole,
    };
    let refused = |detail: String| {
        let mut response = Problem::range(detail).into_response();
        insert(response.headers_mut(), header::CONTENT_RANGE, &format!("bytes */{length}"));
        Ok(response)
    };
    let mut parts = match asked {
        Asked::Whole => Vec::new(),
        Asked::Parts(parts) => parts,
        Asked::Outside => {
            return refused(format!("{name} has {length} bytes, nothing of the range asked for lies in it"));
        }
        Asked::TooMany => {
            let most = limits::HTTP_RANGES;
            return refused(format!(
                "one request may ask for {most} ranges of {name}; ask for the others in further ones"
            ));
        }
    };
    if parts.len() > 1 {
        let multipart = Multipart::new(parts, length, answer.get(header::CONTENT_TYPE));
        insert(&mut answer, header::CONTENT_TYPE, &multipart.content_type());
        answer.insert(header::CONTENT_LENGTH, multipart.content_length().into());
        let (blob, outgoing) = (blob.clone(), outgoing.cloned());
        let body = multipart.body(move |part| body_of(&blob, part, outgoing.as_ref()));
        return Ok(response(StatusCode::PARTIAL_CONTENT, answer, body));
    }
    let (status, part) = match parts.pop() {
        None => (StatusCode::OK, 0..length),
        Some(part) => {
            let content_range = format!("bytes {}-{}/{length}", part.start, part.end - 1);
            insert(&mut answer, header::CONTENT_RANGE, &content_range);
            (StatusCode::PARTIAL_CONTENT, part)
        }
    };
    answer.insert(header::CONTENT_LENGTH, (part.end - part.start).into());
    let body = if method == Method::HEAD { Body::empty() } else { body_of(blob, part, outgoing) };
    Ok(response(status, answer, body))
}

/// The headers as they are, not copied one by one into others.
fn response(status: StatusCode, headers: HeaderMap, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// The bytes of `part` as a body, the one place where stored bytes become an answer.
fn body_of(blob: &BlobReader, part: Range<u64>, outgoing: Option<&Outgoing>) -> Body {
    let by_file = outgoing.and_then(|outgoing| outgoing.body(blob, &part));
    by_file.unwrap_or_else(|| Body::from_stream(stream(blob, part, outgoing.cloned())))
}

/// The bytes, up to a failure: the client sees the connection end early, the log tells why.
fn stream(
    blob: &BlobReader,
    part: Range<u64>,
    outgoing: Option<Outgoing>,
) -> impl Stream<Item = Result<Bytes, StorageError>> + Send + 'static {
    let id = blob.id();
    blob.chunks(part)
        .inspect_ok(move |chunk| outgoing.iter().for_each(|outgoing| outgoing.passed(chunk)))
        .inspect_err(move |error| tracing::error!(blob = %id, %error, "an answer had to be cut short"))
        // A client that takes bytes as fast as they come would keep its thread to itself: after each chunk others have a turn.
        .and_then(async |chunk| {
            tokio::task::yield_now().await;
            Ok(chunk.bytes)
        })
}

/// Sets a header, unless the value is none HTTP can carry.
pub(super) fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
