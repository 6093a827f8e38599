//! The HTTP contract from a client's side: paths, typed answers, and problems as one sentence.
//!
//! Foreign answers are bounded: a JSON answer by [`JSON_BYTES`], a problem by [`PROBLEM_BYTES`]; object bodies stream.

use std::fmt::Write as _;

use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt;
use percent_encoding::utf8_percent_encode;
use reelring_storage::Key;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::events::Events;
use super::exit::{CliError, Result};
use super::transport::{ByteStream, CALL_TIMEOUT, Reply, Request, RequestBody, Transport};
use crate::address;
use crate::jobs::{Job, JobId, JobState};

/// A page of a thousand objects with the longest keys fits.
const JSON_BYTES: usize = 8 << 20;
const PROBLEM_BYTES: usize = 64 << 10;

pub struct Client {
    transport: Transport,
}

/// One line of a listing.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Object {
    pub key: String,
    pub length: u64,
    pub content_type: Option<String>,
    pub etag: Option<String>,
    pub modified_at: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quarantined: bool,
}

#[derive(Debug, Deserialize)]
struct ObjectPage {
    objects: Vec<Object>,
    #[serde(default)]
    next: Option<String>,
}

#[derive(Debug, Deserialize)]
struct JobPage {
    jobs: Vec<Job>,
    #[serde(default)]
    next: Option<JobId>,
}

/// What a PUT left behind.
#[derive(Debug)]
pub struct Stored {
    pub created: bool,
    pub blake3: Option<String>,
    pub object: Object,
}

/// An object on its way.
pub struct Download {
    pub length: Option<u64>,
    pub blake3: Option<String>,
    pub body: ByteStream,
}

/// The fields of problem+json that people are shown.
#[derive(Debug, Default, Deserialize)]
struct Problem {
    title: Option<String>,
    detail: Option<String>,
}

impl Client {
    pub fn new(transport: Transport) -> Self {
        Self { transport }
    }

    /// The node's address for people; `None` when the node is this process.
    pub fn address(&self) -> Option<&str> {
        self.transport.address()
    }

    /// A path of an answer (`/v1/assets/…`) as something to open in a player.
    pub fn full_address(&self, path: &str) -> String {
        format!("{}{path}", self.address().unwrap_or_default())
    }

    /// Objects whose key starts with `prefix`, page by page, in the order of their keys.
    pub async fn objects(&self, prefix: &str, after: Option<&str>) -> Result<(Vec<Object>, Option<String>)> {
        let mut path = format!("/v1/objects?limit=1000&prefix={}", segment(prefix));
        if let Some(after) = after {
            let _ = write!(path, "&after={}", segment(after));
        }
        let page: ObjectPage = self.call(Method::GET, path, None).await?;
        Ok((page.objects, page.next))
    }

    pub async fn get_object(&self, key: &Key) -> Result<Download> {
        let reply = self.accept(self.request(Method::GET, address::of_object(key))).await?;
        let length = header(&reply, &CONTENT_LENGTH).and_then(|text| text.parse().ok());
        Ok(Download { length, blake3: etag(&reply), body: reply.body })
    }

    /// Stores a body. A `length` that is not known in advance makes it chunked.
    pub async fn put_object(
        &self,
        key: &Key,
        length: Option<u64>,
        content_type: Option<&str>,
        replace: bool,
        body: ByteStream,
    ) -> Result<Stored> {
        let mut request = self.request(Method::PUT, address::of_object(key));
        if let Some(length) = length {
            request.headers.insert(CONTENT_LENGTH, length.into());
        }
        put_headers(&mut request, content_type, replace)?;
        request.body = RequestBody::Stream(body);
        let reply = self.accept(request).await?;
        let (created, blake3) = (reply.status == StatusCode::CREATED, etag(&reply));
        let object = self.parse(reply, &address::of_object(key)).await?;
        Ok(Stored { created, blake3, object })
    }

    /// Returns whether the object was there.
    pub async fn delete_object(&self, key: &Key) -> Result<bool> {
        let mut request = self.request(Method::DELETE, address::of_object(key));
        request.timeout = Some(CALL_TIMEOUT);
        let reply = self.transport.send(request).await?;
        match reply.status {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            _ => Err(refusal(reply).await),
        }
    }

    /// Makes the token of this name or id worthless.
    pub async fn revoke_token(&self, which: &str) -> Result<()> {
        let mut request = self.request(Method::DELETE, format!("/v1/tokens/{}", segment(which)));
        request.timeout = Some(CALL_TIMEOUT);
        self.accept(request).await.map(drop)
    }

    pub async fn submit(&self, spec: &impl Serialize) -> Result<Job> {
        let body = serde_json::to_vec(spec).map_err(|error| CliError::failed(format!("cannot write JSON: {error}")))?;
        self.call(Method::POST, "/v1/jobs".into(), Some(body.into())).await
    }

    pub async fn job(&self, id: &JobId) -> Result<Job> {
        self.call(Method::GET, format!("/v1/jobs/{id}"), None).await
    }

    /// Jobs, newest first, page by page.
    pub async fn jobs(&self, state: Option<JobState>, after: Option<&JobId>, limit: usize) -> Result<JobsPage> {
        let mut path = format!("/v1/jobs?limit={limit}");
        if let Some(state) = state {
            let _ = write!(path, "&state={state}");
        }
        if let Some(after) = after {
            let _ = write!(path, "&after={after}");
        }
        let page: JobPage = self.call(Method::GET, path, None).await?;
        Ok(JobsPage { jobs: page.jobs, next: page.next })
    }

    pub async fn cancel(&self, id: &JobId) -> Result<Job> {
        self.call(Method::DELETE, format!("/v1/jobs/{id}"), None).await
    }

    /// `verb` is `pause`, `resume` or `retry`.
    pub async fn change(&self, id: &JobId, verb: &str) -> Result<Job> {
        self.call(Method::POST, format!("/v1/jobs/{id}/{verb}"), Some(Bytes::new())).await
    }

    /// Changes of all jobs from now on.
    pub async fn events(&self) -> Result<Events> {
        Ok(Events::new(self.accept(self.request(Method::GET, "/v1/events".into())).await?.body))
    }

    /// Any answer as JSON, for what is only shown.
    pub async fn json(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path.into(), None).await
    }

    /// As [`json`](Client::json), with a body.
    pub async fn post_json(&self, path: &str, body: &impl Serialize) -> Result<Value> {
        let body = serde_json::to_vec(body).map_err(|error| CliError::failed(format!("cannot write JSON: {error}")))?;
        self.call(Method::POST, path.into(), Some(body.into())).await
    }

    pub async fn delete_json(&self, path: &str) -> Result<Value> {
        self.call(Method::DELETE, path.into(), None).await
    }

    pub(super) fn request(&self, method: Method, path: String) -> Request {
        Request { method, path, headers: HeaderMap::new(), body: RequestBody::Bytes(Bytes::new()), timeout: None }
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: String, body: Option<Bytes>) -> Result<T> {
        let mut request = self.request(method, path);
        request.timeout = Some(CALL_TIMEOUT);
        if let Some(body) = body {
            if !body.is_empty() {
                request.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            }
            request.body = RequestBody::Bytes(body);
        }
        let path = request.path.clone();
        let reply = self.accept(request).await?;
        self.parse(reply, &path).await
    }

    pub(super) async fn send(&self, request: Request) -> Result<Reply> {
        self.transport.send(request).await
    }

    pub(super) async fn parse<T: DeserializeOwned>(&self, reply: Reply, path: &str) -> Result<T> {
        let (body, whole) = bounded(reply.body, JSON_BYTES).await?;
        let parsed = if whole {
            serde_json::from_slice(&body).map_err(|error| error.to_string())
        } else {
            Err(format!("it is longer than {JSON_BYTES} bytes"))
        };
        parsed.map_err(|error| {
            let node = self.address().unwrap_or("the node in this process");
            CliError::failed(format!(
                "the answer to {path} is not one of a Reelring node: {error}; is {node} the right address?"
            ))
        })
    }

    /// Sends, and turns an error status into the sentence that came with it.
    async fn accept(&self, request: Request) -> Result<Reply> {
        let reply = self.transport.send(request).await?;
        if reply.status.is_success() { Ok(reply) } else { Err(refusal(reply).await) }
    }
}

pub struct JobsPage {
    pub jobs: Vec<Job>,
    pub next: Option<JobId>,
}

/// What a new object is to be, and whether it may take another one's place.
pub fn put_headers(request: &mut Request, content_type: Option<&str>, replace: bool) -> Result<()> {
    if let Some(text) = content_type {
        let value = HeaderValue::from_str(text)
            .map_err(|_| CliError::usage(format!("--content-type {text:?} is not a valid HTTP header value")))?;
        request.headers.insert(CONTENT_TYPE, value);
    }
    if !replace {
        request.headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
    }
    Ok(())
}

fn segment(text: &str) -> String {
    utf8_percent_encode(text, address::SEGMENT).to_string()
}

pub(super) fn header(reply: &Reply, name: &HeaderName) -> Option<String> {
    reply.headers.get(name).and_then(|value| value.to_str().ok()).map(String::from)
}

/// The BLAKE3 in a strong ETag, in lower-case hexadecimal; anything else is not ours to interpret.
pub(super) fn etag(reply: &Reply) -> Option<String> {
    let text = header(reply, &ETAG)?;
    let hash = text.strip_prefix('"')?.strip_suffix('"')?;
    let hex = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    hex.then(|| hash.to_ascii_lowercase())
}

pub(super) async fn refusal(reply: Reply) -> CliError {
    let status = reply.status;
    let body = bounded(reply.body, PROBLEM_BYTES).await.map(|(body, _)| body).unwrap_or_default();
    CliError::Failed(describe(status, &body))
}

/// The sentence of a problem, or what can be said without one.
fn describe(status: StatusCode, body: &[u8]) -> String {
    let problem: Problem = serde_json::from_slice(body).unwrap_or_default();
    match (problem.detail, problem.title) {
        (Some(detail), _) if !detail.is_empty() => detail,
        (_, Some(title)) if !title.is_empty() => format!("{title} (status {})", status.as_u16()),
        _ => format!("the node answered {status} without a reason; its log may tell more"),
    }
}

/// Reads at most `limit` bytes; the flag tells whether that was all.
async fn bounded(mut body: ByteStream, limit: usize) -> Result<(Vec<u8>, bool)> {
    let mut read = Vec::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| CliError::failed(format!("the node's answer broke off: {error}")))?;
        if read.len() + chunk.len() > limit {
            return Ok((read, false));
        }
        read.extend_from_slice(&chunk);
    }
    Ok((read, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_travel_unharmed_in_paths() {
        let path = |key: &str| address::of_object(&Key::parse(key).unwrap());
        assert_eq!(path("films/a b?c#d%e.mp4"), "/v1/objects/films/a%20b%3Fc%23d%25e.mp4");
        assert_eq!(path("ü/+&"), "/v1/objects/%C3%BC/%2B%26");
        assert_eq!(segment("a/b&limit=1"), "a%2Fb%26limit%3D1");
    }

    #[test]
    fn problems_become_one_sentence() {
        let of = |body: &str| describe(StatusCode::NOT_FOUND, body.as_bytes());
        assert_eq!(of(r#"{"title":"Not found","detail":"there is no object a"}"#), "there is no object a");
        assert_eq!(of(r#"{"title":"Not found"}"#), "Not found (status 404)");
        assert!(of("<html>").contains("404 Not Found"), "{}", of("<html>"));
    }

    #[test]
    fn only_a_strong_blake3_etag_counts() {
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ETAG, HeaderValue::from_static(text));
            etag(&Reply { status: StatusCode::OK, headers, body: futures_util::stream::empty().boxed() })
        };
        let hash = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF";
        assert_eq!(
            of(r#""00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF""#),
            Some(hash.to_lowercase())
        );
        assert_eq!(of(r#"W/"00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF""#), None);
        assert_eq!(of(r#""abc""#), None);
    }
}
