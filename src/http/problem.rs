//! Errors as `application/problem+json` (RFC 9457), and what gives every request its id and its measure, and every answer
//! what browsers and caches want to know ([`Observed`]).
//!
//! A handler returns a [`Problem`]; `Observed` writes the body, because only it knows the request's id.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::HttpBody as _;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::ext::ReasonPhrase;
use reelring_storage::Error as StorageError;
use serde::Serialize;
use serde_json::{Map, Value};

use super::caching;
use super::cors::{self, Readers};
use crate::jobs::JobError;
use crate::limits;
use crate::node::Node;

/// What went wrong, for the client. `detail` names the object, the limit, the actual value and the next step.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    status: StatusCode,
    /// The last part of the `type` address.
    kind: &'static str,
    detail: String,
    retry_after_s: Option<u32>,
    /// One more member of the answer. Boxed: with some of serde_json's features a value is large.
    extra: Option<Box<(&'static str, Value)>>,
    /// Headers of the answer. Boxed for the same reason.
    headers: Option<Box<HeaderMap>>,
}

impl Problem {
    pub fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        Self { status, kind, detail: detail.into(), retry_after_s: None, extra: None, headers: None }
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }

    pub fn bad_request(kind: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, kind, detail)
    }

    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", detail)
    }

    pub fn forbidden(kind: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, kind, detail)
    }

    pub fn method_not_allowed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail)
    }

    pub fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail)
    }

    pub fn precondition_failed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, "precondition-failed", detail)
    }

    pub fn conflict(kind: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, kind, detail)
    }

    pub fn range(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "range", detail)
    }

    pub fn missing_blob(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "missing-blob", detail)
    }

    fn headers_too_large(actual: usize) -> Self {
        let detail = format!(
            "the request's address and headers have {actual} bytes, the limit is {}; send fewer or shorter ones",
            limits::HTTP_HEADER_BYTES
        );
        Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers-too-large", detail)
    }

    /// Answered with the challenge that HTTP asks for.
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "token", detail)
    }

    pub fn misdirected(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::MISDIRECTED_REQUEST, "host", detail)
    }

    pub fn unsupported(kind: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, kind, detail)
    }

    pub fn timeout(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout", detail)
    }

    pub fn unavailable(kind: &'static str, detail: impl Into<String>, retry_after_s: u32) -> Self {
        let mut problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, kind, detail);
        problem.retry_after_s = Some(retry_after_s);
        problem
    }

    /// Adds a header to the answer.
    pub fn with_header(mut self, name: &'static str, value: HeaderValue) -> Self {
        self.headers.get_or_insert_default().insert(HeaderName::from_static(name), value);
        self
    }

    /// Adds a member to the answer.
    pub fn with(mut self, name: &'static str, value: Value) -> Self {
        self.extra = Some(Box::new((name, value)));
        self
    }
}

/// Carries a problem from the handler to [`Observed`].
#[derive(Clone)]
struct Raised(Problem);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(Raised(self));
        response
    }
}

impl From<StorageError> for Problem {
    fn from(error: StorageError) -> Self {
        let detail = error.to_string();
        match error {
            StorageError::NoSpace { .. } => Self::new(StatusCode::INSUFFICIENT_STORAGE, "no-space", detail),
            StorageError::PreconditionFailed { .. } => Self::precondition_failed(detail),
            StorageError::NoBlob(_) => Self::not_found(detail),
            StorageError::TooLarge { .. } => Self::too_large(detail),
            StorageError::Degraded { .. } => Self::unavailable("volume-degraded", detail, 60),
            // Not 404 or 410, which caches keep and clients believe; not 502 or 503, which promise that asking again helps.
            // The node has lost what it promised to keep: its fault, until somebody acts on the object.
            StorageError::Quarantined { .. } | StorageError::Corrupt { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "quarantined", detail)
            }
            StorageError::VolumeMissing { .. } => Self::unavailable("volume-missing", detail, 60),
            StorageError::Closed => Self::unavailable("draining", detail, 5),
            StorageError::Io { source, .. } if is_out_of_descriptors(&source) => {
                tracing::warn!(%detail, "no descriptor was left for a request; raise the limit of open files (LimitNOFILE=, ulimit -n)");
                Self::unavailable("descriptors", detail, 1)
            }
            _ => {
                tracing::error!(%detail, "storage failed");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "storage", detail)
            }
        }
    }
}

/// Connections that end give some back.
fn is_out_of_descriptors(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

impl From<JobError> for Problem {
    fn from(error: JobError) -> Self {
        let detail = error.to_string();
        match error {
            JobError::Spec(_) => Self::bad_request("invalid-job", detail),
            JobError::Unknown(_) => Self::not_found(detail),
            JobError::State { .. } => Self::new(StatusCode::CONFLICT, "job-state", detail),
            JobError::Idempotency(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key", detail),
            JobError::Full { .. } => Self::unavailable("queue-full", detail, 30),
            JobError::Draining => Self::unavailable("draining", detail, 5),
            JobError::Storage(error) => error.into(),
        }
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        let mut problem = Self::bad_request("invalid-json", rejection.body_text());
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let limit = limits::HTTP_JSON_BODY;
            problem = Self::too_large(format!("the request body is larger than the limit of {limit} bytes"));
        }
        problem
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad_request("invalid-query", rejection.body_text())
    }
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    request_id: &'a str,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

/// The layer that observes, around the router's resources.
pub(super) async fn observe(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response {
    let (request, body) = request.into_parts();
    let route = request.extensions.get::<MatchedPath>().cloned();
    let (method, uri) = (request.method.clone(), request.uri.clone());
    let (observed, answer) = Observed::begin(&node, &request, !body.is_end_stream());
    let answer = match answer {
        Some(answer) => answer,
        None => next.run(Request::from_parts(request, body)).await,
    };
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str);
    let count = |status, took| node.http_metrics().answered(&method, route, status, took);
    observed.end(&method, uri.path(), answer, count)
}

/// Made once: a name that is no standard's costs as much to look at as the value.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A request under way: its id, its measure, and who may read the answer.
pub(super) struct Observed {
    begun: Instant,
    id: HeaderValue,
    readers: Readers,
    with_body: bool,
}

impl Observed {
    /// Notes a request. Where nobody needs to be asked, the answer comes with it.
    pub fn begin(node: &Node, request: &Parts, with_body: bool) -> (Self, Option<Response>) {
        let readers = Readers::of(node, request);
        let header_bytes = request.uri.path_and_query().map_or(0, |path| path.as_str().len())
            + request.uri.authority().map_or(0, |authority| authority.as_str().len())
            + request.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>();
        let answer = match header_bytes > limits::HTTP_HEADER_BYTES {
            true => Some(Problem::headers_too_large(header_bytes).into_response()),
            false => cors::preflight(request, &readers),
        };
        (Self { begun: Instant::now(), id: request_id(), readers, with_body }, answer)
    }

    /// Writes a problem out, says what every answer says, and has the request counted with the time it took.
    pub fn end(
        self,
        method: &Method,
        path: &str,
        mut response: Response,
        count: impl FnOnce(StatusCode, Duration),
    ) -> Response {
        let Self { begun, id, readers, with_body } = self;
        let id_text = id.to_str().unwrap_or_default();
        if let Some(Raised(problem)) = response.extensions_mut().remove::<Raised>() {
            let allow = response.headers_mut().remove(header::ALLOW);
            let carried = response.headers_mut().remove(header::CONTENT_RANGE);
            response = render(&problem, id_text);
            response.headers_mut().extend(allow.map(|value| (header::ALLOW, value)));
            response.headers_mut().extend(carried.map(|value| (header::CONTENT_RANGE, value)));
            if with_body {
                // Part of the body may be unread, and then the connection closes: a client that is not told would send its
                // next request into the void.
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
        }
        caching::by_default(response.headers_mut());
        readers.mark(response.headers_mut());
        let took = begun.elapsed();
        count(response.status(), took);
        tracing::debug!(id = id_text, %method, path, status = response.status().as_u16(), ?took, "answered");
        response.headers_mut().insert(REQUEST_ID, id);
        response
    }
}

/// Unlike any other of this process, and of others as far as chance goes. Counted on from a random number: asking the
/// kernel for one each time costs more than all the rest that is done here.
fn request_id() -> HeaderValue {
    static PROCESS: LazyLock<(u64, AtomicU64)> = LazyLock::new(|| (rand::random(), AtomicU64::new(rand::random())));
    let number = u128::from(PROCESS.0) << 64 | u128::from(PROCESS.1.fetch_add(1, Ordering::Relaxed));
    let digits: [u8; 32] = std::array::from_fn(|at| b"0123456789abcdef"[(number >> (124 - 4 * at)) as usize & 0xf]);
    HeaderValue::from_bytes(&digits).expect("hexadecimal digits")
}

/// What the status is called, in the first line too.
fn title(status: StatusCode) -> &'static str {
    match status.as_u16() {
        // Of tus, and not registered.
        460 => "Checksum Mismatch",
        _ => status.canonical_reason().unwrap_or("Error"),
    }
}

fn render(problem: &Problem, request_id: &str) -> Response {
    let body = Body {
        r#type: format!("urn:reelring:problem:{}", problem.kind),
        title: title(problem.status),
        status: problem.status.as_u16(),
        detail: &problem.detail,
        request_id,
        extra: problem.extra.iter().map(|extra| (extra.0.to_string(), extra.1.clone())).collect(),
    };
    let mut response = (problem.status, Json(body)).into_response();
    if problem.status.canonical_reason().is_none() {
        response.extensions_mut().insert(ReasonPhrase::from_static(title(problem.status).as_bytes()));
    }
    let headers = response.headers_mut();
    if let Some(own) = &problem.headers {
        headers.extend(own.iter().map(|(name, value)| (name.clone(), value.clone())));
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if problem.status == StatusCode::UNAUTHORIZED {
        let further = headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"reelring\""));
        further.map(|challenge| headers.append(header::WWW_AUTHENTICATE, challenge));
    }
    if let Some(seconds) = problem.retry_after_s {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    response
}
