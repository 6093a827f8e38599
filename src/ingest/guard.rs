//! The one door to other people's servers: every hop of every outgoing request, a plugin's too, passes here.
//!
//! What it checks: scheme, userinfo, literal addresses in every spelling, every address a name resolves to, the number of
//! redirects, the size of addresses and headers, and time. What it never does: use a proxy of the environment, decompress
//! (a small answer must not become a large one), follow a redirect unseen.
//!
//! [`Client`] is cheap to clone; clones share connections. TLS is set up at the first request, so a node that never
//! fetches never reads the certificate store. A [`Response`] owns its connection: dropping it, or a cancel, closes it.

mod address;
mod headers;
mod resolver;
mod tls;

use std::error::Error as StdError;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{self, HeaderMap};
use reqwest::{Method, StatusCode, redirect};
use tokio::sync::OnceCell;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;
use url::{Host, Url};

use crate::error::Failure;
use crate::limits;
pub use address::{Class, classify};
use resolver::{FilteredResolver, LookupError, describe};

/// Where requests may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// Loopback and private networks too. Link-local, multicast and reserved addresses stay closed.
    pub allow_private: bool,
}

/// Why a request got no answer. The message is what the user reads.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guard says no; asking again changes nothing.
    #[error("refused {url}: {reason}")]
    Refused { url: String, reason: String },
    /// The name is not in the DNS (or not at the moment).
    #[error("cannot fetch {url}: {reason}")]
    UnknownHost { url: String, reason: String },
    /// The connection failed before an answer came.
    #[error("cannot reach {url}: {reason}")]
    Unreachable { url: String, reason: String },
    /// The connection broke or stalled.
    #[error("{url}: {reason}")]
    Broken { url: String, reason: String },
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    fn refused(url: &Url, reason: impl Into<String>) -> Self {
        Error::Refused { url: shown(url), reason: reason.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused { .. } => Failure::permanent(error.to_string()),
            Error::UnknownHost { .. } | Error::Unreachable { .. } | Error::Broken { .. } => {
                Failure::transient(error.to_string())
            }
            Error::Cancelled => Failure::cancelled(),
        }
    }
}

/// An answer whose body has not been read yet.
#[derive(Debug)]
pub struct Response {
    /// The address that answered, after redirects.
    pub final_url: Url,
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Body,
}

/// The bytes of an answer, as they come. Dropping it closes the connection.
#[derive(Debug)]
pub struct Body {
    inner: reqwest::Response,
    stall: Duration,
    /// Put off with each piece: a new timer for each wakes the thread that waits for events.
    silence: Pin<Box<Sleep>>,
    url: String,
    cancel: CancellationToken,
    traffic: Arc<Counters>,
}

impl Body {
    /// The next piece, `None` at the end. A body that ends before its declared length is an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let broken = |reason| Error::Broken { url: self.url.clone(), reason };
        self.silence.as_mut().reset(Instant::now() + self.stall);
        let chunk = tokio::select! {
            biased;
            () = self.cancel.cancelled() => return Err(Error::Cancelled),
            chunk = self.inner.chunk() => Some(chunk),
            () = &mut self.silence => None,
        };
        match chunk {
            Some(Ok(chunk)) => {
                let bytes = chunk.as_ref().map_or(0, Bytes::len) as u64;
                self.traffic.bytes.fetch_add(bytes, Relaxed);
                Ok(chunk)
            }
            Some(Err(error)) => Err(broken(format!("the body broke off: {}", innermost(&error)))),
            None => Err(broken(format!("no byte for {} s", self.stall.as_secs_f32()))),
        }
    }

    /// The length the origin declared, if it did.
    pub fn declared(&self) -> Option<u64> {
        self.inner.content_length()
    }

    /// The whole body, if it has at most `limit` bytes.
    pub async fn collect(mut self, limit: usize) -> Result<Bytes, Failure> {
        let mut whole = Vec::new();
        while let Some(chunk) = self.next().await? {
            if whole.len() + chunk.len() > limit {
                return Err(Failure::permanent(format!(
                    "{}: the body is longer than the limit of {limit} bytes",
                    self.url
                )));
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.into())
    }
}

/// The guarded HTTP client.
#[derive(Debug, Clone)]
pub struct Client {
    policy: Policy,
    stall: Duration,
    http: Arc<OnceCell<Http>>,
    traffic: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    bytes: AtomicU64,
    retries: AtomicU64,
}

/// What a client and its clones have done since the start, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of bodies received.
    pub bytes_total: u64,
    /// Requests repeated after a failure.
    pub retries_total: u64,
}

#[derive(Debug)]
struct Http {
    client: reqwest::Client,
    has_roots: bool,
}

impl Client {
    pub fn new(policy: Policy) -> Client {
        Client { policy, stall: limits::FETCH_STALL, http: Arc::default(), traffic: Arc::default() }
    }

    pub fn traffic(&self) -> Traffic {
        let Counters { bytes, retries } = &*self.traffic;
        Traffic { bytes_total: bytes.load(Relaxed), retries_total: retries.load(Relaxed) }
    }

    pub(super) fn count_retry(&self) {
        self.traffic.retries.fetch_add(1, Relaxed);
    }

    /// The same client with another longest pause between two pieces of a body.
    pub fn with_stall(self, stall: Duration) -> Client {
        Client { stall, ..self }
    }

    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Asks for `url`, following redirects. The status may be anything but a redirect.
    pub async fn get(&self, url: &Url, headers: &HeaderMap, cancel: &CancellationToken) -> Result<Response, Failure> {
        Ok(self.send(Method::GET, url, headers, None, cancel).await?)
    }

    /// The same for any method, with a body.
    pub async fn request(
        &self,
        method: Method,
        url: &Url,
        headers: &HeaderMap,
        body: Option<Bytes>,
        cancel: &CancellationToken,
    ) -> Result<Response, Failure> {
        Ok(self.send(method, url, headers, body, cancel).await?)
    }

    /// [`Client::request`] with the reason kept apart, for callers that retry.
    pub(super) async fn send(
        &self,
        mut method: Method,
        url: &Url,
        headers: &HeaderMap,
        mut body: Option<Bytes>,
        cancel: &CancellationToken,
    ) -> Result<Response, Error> {
        let mut url = url.clone();
        let mut headers = headers::outgoing(headers);
        for _ in 0..=limits::FETCH_REDIRECTS {
            url.set_fragment(None);
            let answer = self.hop(&method, &url, &headers, &body, cancel).await?;
            let Some(next) = redirect_target(&url, &answer)? else {
                let (status, headers) = (answer.status(), answer.headers().clone());
                let body = Body {
                    inner: answer,
                    stall: self.stall,
                    silence: Box::pin(sleep(self.stall)),
                    url: shown(&url),
                    cancel: cancel.clone(),
                    traffic: self.traffic.clone(),
                };
                return Ok(Response { final_url: url, status, headers, body });
            };
            if becomes_get(answer.status(), &method) {
                method = Method::GET;
                body = None;
                headers.remove(header::CONTENT_TYPE);
            }
            headers::follow(&mut headers, &url, &next);
            url = next;
        }
        Err(Error::refused(&url, format!("redirected more than {} times", limits::FETCH_REDIRECTS)))
    }

    /// One request to one address.
    async fn hop(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        body: &Option<Bytes>,
        cancel: &CancellationToken,
    ) -> Result<reqwest::Response, Error> {
        check(url, self.policy)?;
        let http = self.http.get_or_try_init(|| connectable(self.policy)).await.map_err(|reason| {
            Error::Unreachable { url: shown(url), reason: format!("the HTTP client cannot be set up: {reason}") }
        })?;
        if url.scheme() == "https" && !http.has_roots {
            return Err(Error::refused(
                url,
                "this machine has no CA certificates to check it by; install ca-certificates or set SSL_CERT_FILE",
            ));
        }
        let mut request = http.client.request(method.clone(), url.clone()).headers(headers.clone());
        if let Some(body) = body {
            request = request.body(body.clone());
        }
        let answer = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(Error::Cancelled),
            answer = tokio::time::timeout(limits::FETCH_RESPONSE, request.send()) => answer,
        };
        let answer = match answer {
            Ok(answer) => answer.map_err(|error| unreached(url, &error))?,
            Err(_) => {
                let reason = format!("no answer within {} s", limits::FETCH_RESPONSE.as_secs());
                return Err(Error::Unreachable { url: shown(url), reason });
            }
        };
        let size = headers::size(answer.headers());
        if size > limits::FETCH_HEADER_BYTES {
            let limit = limits::FETCH_HEADER_BYTES;
            return Err(Error::refused(url, format!("it answered {size} bytes of headers, the limit is {limit}")));
        }
        Ok(answer)
    }
}

/// HTTP/1.1 alone: one stream per connection moves bulk bytes faster than HTTP/2's shared windows, and there is less of it
/// to attack.
async fn connectable(policy: Policy) -> Result<Http, String> {
    let tls = tokio::task::spawn_blocking(tls::load).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls.config)
        .dns_resolver(FilteredResolver { policy })
        .no_proxy()
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .http1_only()
        .http1_max_headers(limits::FETCH_HEADERS)
        .connect_timeout(limits::FETCH_CONNECT)
        .pool_max_idle_per_host(limits::FETCH_IDLE_PER_HOST)
        .pool_idle_timeout(limits::FETCH_STALL)
        .build()
        .map_err(|error| innermost(&error))?;
    Ok(Http { client, has_roots: tls.has_roots })
}

/// Everything about an address that can be judged without asking anybody.
pub fn check(url: &Url, policy: Policy) -> Result<(), Error> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(Error::refused(url, format!("the scheme is {}, only http and https are fetched", url.scheme())));
    }
    if url.as_str().len() > limits::FETCH_URL_BYTES {
        let (size, limit) = (url.as_str().len(), limits::FETCH_URL_BYTES);
        return Err(Error::refused(url, format!("the address has {size} bytes, the limit is {limit}")));
    }
    if !url.username().is_empty() || url.password().is_some() {
        let reason = "the address carries a user name or password; give an Authorization header instead";
        return Err(Error::refused(url, reason));
    }
    // `url` has already turned 127.1, 0x7f000001 and their kin into the address they mean.
    let literal = match url.host() {
        Some(Host::Ipv4(address)) => IpAddr::V4(address),
        Some(Host::Ipv6(address)) => IpAddr::V6(address),
        Some(Host::Domain(name)) if !name.is_empty() => return Ok(()),
        _ => return Err(Error::refused(url, "the address names no host")),
    };
    let class = classify(literal);
    if class.allowed(policy.allow_private) {
        return Ok(());
    }
    Err(Error::refused(url, format!("{literal} is {}", describe(class))))
}

fn redirect_target(url: &Url, answer: &reqwest::Response) -> Result<Option<Url>, Error> {
    if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let Some(location) = answer.headers().get(header::LOCATION) else {
        return Err(Error::refused(url, format!("it answered {} without a Location", answer.status())));
    };
    let location = String::from_utf8_lossy(location.as_bytes());
    match url.join(&location) {
        Ok(next) => Ok(Some(next)),
        Err(error) => {
            let location = cut(location.trim(), SHOWN_CHARS);
            Err(Error::refused(url, format!("it redirects to {location:?}, which is no address: {error}")))
        }
    }
}

/// As browsers do it: 303 always becomes a GET, 301 and 302 turn a POST into one, 307 and 308 repeat the request.
fn becomes_get(status: StatusCode, method: &Method) -> bool {
    match status.as_u16() {
        303 => *method != Method::HEAD,
        301 | 302 => *method == Method::POST,
        _ => false,
    }
}

fn unreached(url: &Url, error: &reqwest::Error) -> Error {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(lookup) = cause.downcast_ref::<LookupError>() {
            let reason = lookup.to_string();
            return match lookup {
                LookupError::Refused { .. } => Error::refused(url, reason),
                LookupError::Unknown { .. } => Error::UnknownHost { url: shown(url), reason },
                LookupError::Busy { .. } | LookupError::Slow { .. } => Error::Unreachable { url: shown(url), reason },
            };
        }
        if let Some(garbled) = cause.downcast_ref::<hyper::Error>().filter(|cause| cause.is_parse()) {
            return Error::refused(url, format!("what it answers is not HTTP: {garbled}"));
        }
        if let Some(rustls::Error::InvalidCertificate(problem)) = tls_error(cause) {
            return Error::refused(url, format!("its TLS certificate is not valid: {problem}"));
        }
        source = cause.source();
    }
    if error.is_timeout() && error.is_connect() {
        let reason = format!("no connection within {} s", limits::FETCH_CONNECT.as_secs());
        return Error::Unreachable { url: shown(url), reason };
    }
    let reason = innermost(error);
    if error.is_connect() {
        return Error::Unreachable { url: shown(url), reason };
    }
    Error::Broken { url: shown(url), reason: format!("the request failed: {reason}") }
}

/// rustls hides inside an `io::Error`, inside another at times, and `source()` skips what such an error wraps.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut error = error;
    while let Some(inner) = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref()) {
        error = inner;
    }
    error.downcast_ref()
}

/// The cause at the bottom, which is the one that says something.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// What a message shows of an address: no credentials, not too long.
const SHOWN_CHARS: usize = 300;

pub fn shown(url: &Url) -> String {
    let mut url = url.clone();
    let _ = url.set_username("");
    let _ = url.set_password(None);
    cut(url.as_str(), SHOWN_CHARS)
}

fn cut(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
