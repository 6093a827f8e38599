//! Beginning an upload, in either dialect, with or without its first bytes; and joining parts.

use axum::body::{Body, HttpBody as _};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use reelring_storage::Key;

use super::dialect::{Dialect, TUS_TYPE, content_length, media_type};
use super::{answer, ask, body};
use crate::http::blob::insert;
use crate::http::conditional;
use crate::http::problem::Problem;
use crate::limits;
use crate::node::Node;
use crate::uploads::{Condition, Creation, Kind, Metadata, State, Status, UploadId};

/// What `Upload-Concat` asks for.
enum Concat {
    Whole,
    Partial,
    Final(Vec<UploadId>),
}

pub(super) async fn create(node: &Node, dialect: Dialect, parts: &Parts, body: Body) -> Result<Response, Problem> {
    match dialect {
        Dialect::Tus => create_tus(node, parts, body).await,
        Dialect::Draft { .. } => create_draft(node, dialect, parts, body, None).await,
    }
}

/// A write to an object's own address that may be resumed, by the draft.
pub(in crate::http) async fn create_at(node: &Node, parts: &Parts, body: Body, key: Key) -> Response {
    let dialect = Dialect::Draft { interop: None };
    answer::speak(dialect, create_draft(node, dialect, parts, body, Some(key)).await)
}

async fn create_tus(node: &Node, parts: &Parts, body: Body) -> Result<Response, Problem> {
    let dialect = Dialect::Tus;
    let concat = concat(&parts.headers)?;
    let length = match (dialect.number(parts, "upload-length")?, parts.headers.get("upload-defer-length")) {
        (length, None) => length,
        (None, Some(defer)) if defer == "1" => None,
        (None, Some(defer)) => {
            return Err(Problem::bad_request("upload-length", format!("Upload-Defer-Length: {defer:?} can only be 1")));
        }
        (Some(_), Some(_)) => {
            let detail = "Upload-Length and Upload-Defer-Length exclude each other; send one of them";
            return Err(Problem::bad_request("upload-length", detail));
        }
    };
    let metadata = metadata(&parts.headers)?;
    let kind = if let Concat::Partial = concat { Kind::Part } else { Kind::Whole };
    let asked = Creation {
        kind,
        key: metadata.key().map_err(|error| Problem::bad_request("upload-metadata", error.to_string()))?,
        metadata,
        content_type: None,
        length,
        condition: condition(&parts.headers)?,
        exclusive: false,
    };
    if let Concat::Final(ids) = concat {
        if length.is_some() || !body.is_end_stream() {
            let detail = "a final upload has the bytes of its parts: it takes neither Upload-Length nor a body";
            return Err(Problem::bad_request("upload-concat", detail));
        }
        let status = node.uploads().join(asked, ids).await.map_err(|error| answer::problem(dialect, error))?;
        return Ok(created(dialect, &status));
    }
    if length.is_none() && !parts.headers.contains_key("upload-defer-length") {
        let detail = "Upload-Length is missing: say how many bytes will come, or Upload-Defer-Length: 1";
        return Err(Problem::bad_request("upload-length", detail));
    }
    let with_bytes = has_bytes(parts, &body);
    if with_bytes && media_type(parts) != Some(TUS_TYPE) {
        let detail = format!("the first bytes of an upload come as {TUS_TYPE}; send that Content-Type, or no body");
        return Err(Problem::unsupported("media-type", detail));
    }
    let ask = ask(dialect, parts, &body, 0)?;
    let mut status = node.uploads().create(asked).await.map_err(|error| answer::problem(dialect, error))?;
    if with_bytes && status.record.state == State::Open {
        let id = status.record.id;
        let appended = body::append(node, dialect, id, crate::uploads::Append { length: None, ..ask }, body);
        // Whatever became of the bytes, there is an upload, and its client should know where.
        let appended = appended.await.map_err(|problem| at(problem, id))?;
        status = Status { record: appended.record, offset: appended.offset };
    }
    Ok(created(dialect, &status))
}

async fn create_draft(
    node: &Node,
    dialect: Dialect,
    parts: &Parts,
    body: Body,
    key: Option<Key>,
) -> Result<Response, Problem> {
    let ask = ask(dialect, parts, &body, 0)?;
    if let Some(encoding) = parts.headers.get(header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
        let detail = format!("Content-Encoding {encoding:?} is not kept: send the object itself, decoded");
        return Err(Problem::unsupported("content-encoding", detail));
    }
    if parts.headers.contains_key("repr-digest") {
        let detail = "Repr-Digest is not verified for an upload in pieces: send Content-Digest with each request, and compare \
                      the ETag (BLAKE3) at the end; or PUT the object in one request";
        return Err(Problem::bad_request("invalid-digest", detail));
    }
    let implied = ask.bytes.filter(|_| ask.completes);
    if let (Some(said), Some(implied)) = (ask.length, implied)
        && said != implied
    {
        let detail =
            format!("Upload-Length says {said} bytes, and the request that completes the upload has {implied}");
        return Err(Problem::bad_request("upload-length", detail));
    }
    let metadata = metadata(&parts.headers)?;
    let named = metadata.key().map_err(|error| Problem::bad_request("upload-metadata", error.to_string()))?;
    let content_type = media_type(parts)
        .filter(|found| *found != super::dialect::DRAFT_TYPE && *found != TUS_TYPE)
        .and_then(|_| parts.headers.get(header::CONTENT_TYPE)?.to_str().ok())
        .map(str::to_owned);
    let asked = Creation {
        kind: Kind::Whole,
        metadata,
        key: key.or(named),
        content_type,
        length: ask.length.or(implied),
        condition: condition(&parts.headers)?,
        // The draft promises that an offset told will be accepted.
        exclusive: true,
    };
    let with_bytes = has_bytes(parts, &body);
    let status = node.uploads().create(asked).await.map_err(|error| answer::problem(dialect, error))?;
    let id = status.record.id;
    if status.record.state == State::Open && (with_bytes || ask.completes) {
        let appended = body::append(node, dialect, id, ask, body).await.map_err(|problem| at(problem, id))?;
        let status = Status { record: appended.record.clone(), offset: appended.offset };
        if status.record.state == State::Open {
            return Ok(created(dialect, &status));
        }
        let mut response = answer::stored(node, &appended).await?;
        insert(response.headers_mut(), header::LOCATION, &answer::location(id));
        answer::describe(response.headers_mut(), dialect, &status.record, status.offset);
        return Ok(response);
    }
    Ok(created(dialect, &status))
}

fn created(dialect: Dialect, status: &Status) -> Response {
    let mut response = StatusCode::CREATED.into_response();
    let headers = response.headers_mut();
    insert(headers, header::LOCATION, &answer::location(status.record.id));
    answer::describe(headers, dialect, &status.record, status.offset);
    response
}

fn at(problem: Problem, id: UploadId) -> Problem {
    match HeaderValue::from_str(&answer::location(id)) {
        Ok(location) => problem.with_header("location", location),
        Err(_) => problem,
    }
}

fn has_bytes(parts: &Parts, body: &Body) -> bool {
    content_length(parts, body) != Some(0)
}

fn metadata(headers: &HeaderMap) -> Result<Metadata, Problem> {
    let text = headers.get("upload-metadata").map_or(Ok(""), |value| value.to_str());
    let text = text.map_err(|_| Problem::bad_request("upload-metadata", "Upload-Metadata is not ASCII"))?;
    Metadata::parse(text).map_err(|error| Problem::bad_request("upload-metadata", error.to_string()))
}

/// `If-Match` and `If-None-Match` of a creation are about the object's key, when the object appears.
fn condition(headers: &HeaderMap) -> Result<Condition, Problem> {
    Condition::try_from(conditional::precondition(headers)?).map_err(|_| {
        let detail =
            "an upload keeps If-Match with tags, or one of If-Match: * and If-None-Match: *; send one of these or none";
        Problem::bad_request("invalid-condition", detail)
    })
}

/// Reads what only the beginning of an upload says.
#[cfg(test)]
pub(super) fn read(headers: &HeaderMap) {
    if let Ok(metadata) = metadata(headers)
        && let Ok(Some(key)) = metadata.key()
    {
        assert!(!key.as_str().split('/').any(|part| part == ".." || part == "."), "{key}");
    }
    if let Ok(Concat::Final(ids)) = concat(headers) {
        assert!((1..=limits::UPLOAD_PARTS).contains(&ids.len()));
    }
    let _ = condition(headers);
}

fn concat(headers: &HeaderMap) -> Result<Concat, Problem> {
    let Some(value) = headers.get("upload-concat") else { return Ok(Concat::Whole) };
    let invalid = |what: String| Problem::bad_request("upload-concat", format!("Upload-Concat: {what}"));
    let text = value.to_str().map_err(|_| invalid("not ASCII".into()))?.trim();
    if text == "partial" {
        return Ok(Concat::Partial);
    }
    let Some(list) = text.strip_prefix("final;") else {
        return Err(invalid(format!("{:?} is neither partial nor final;…", text.chars().take(40).collect::<String>())));
    };
    let mut ids = Vec::new();
    for address in list.split_ascii_whitespace() {
        // An address of this node's, with a host or without.
        let last = address.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let id = last.parse().map_err(|_| {
            invalid(format!("{:?} is no address of an upload", address.chars().take(100).collect::<String>()))
        })?;
        if ids.len() == limits::UPLOAD_PARTS {
            return Err(invalid(format!("more than {} parts", limits::UPLOAD_PARTS)));
        }
        ids.push(id);
    }
    if ids.is_empty() {
        return Err(invalid("names no parts".into()));
    }
    Ok(Concat::Final(ids))
}
