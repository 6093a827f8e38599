//! Cross-origin sharing (the Fetch standard): which web pages may read answers.
//!
//! A browser that reaches the node would read it for any page it shows. A page gets what is not given away by that: answers
//! to requests that bring a token or a signed address, which no page has unless somebody gave it; and whatever the node
//! gives who reaches it, for pages of the sites in `cors_origins`. Credentials that a browser adds by itself are never
//! allowed.
//!
//! [`preflight`] answers what a browser asks before it sends a request that no form could send; [`Readers::mark`] marks
//! every answer, errors as well: a player should be able to tell why it plays nothing. `problem::Observed` calls both: a layer
//! of their own would cost each request more than they do.

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::access;
use super::problem::Problem;
use crate::node::Node;
use crate::web_origin::WebOrigin;

/// Seconds for which a browser need not ask again; Chromium takes no more.
const PREFLIGHT_SECONDS: HeaderValue = HeaderValue::from_static("7200");
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, PUT, POST, PATCH, DELETE");
/// The star covers all but this one.
const HEADERS: HeaderValue = HeaderValue::from_static("*, Authorization");
const EVERYTHING: HeaderValue = HeaderValue::from_static("*");
const ORIGIN: HeaderValue = HeaderValue::from_static("Origin");

/// Which pages may read the answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Readers {
    All,
    One(HeaderValue),
    None {
        /// With another origin, or with credentials, the same answer would look different.
        others: bool,
    },
}

impl Readers {
    pub(super) fn of(node: &Node, request: &Parts) -> Readers {
        let asks = node.asks_for_tokens();
        // The question before a request brings nothing: what counts is what the request will bring.
        let credentials = asks && (access::brings_credentials(request) || is_preflight(request));
        match Readers::by(&request.headers, &node.config().cors_origins, credentials) {
            Readers::None { others } => Readers::None { others: others || asks },
            readers => readers,
        }
    }

    /// `credentials`: the node asks for some, and the request brings its own.
    fn by(request: &HeaderMap, listed: &[WebOrigin], credentials: bool) -> Readers {
        if credentials || listed.iter().any(WebOrigin::is_any) {
            return Readers::All;
        }
        match request.get(header::ORIGIN) {
            Some(origin) if listed.iter().any(|listed| listed.covers(origin.as_bytes())) => {
                Readers::One(origin.clone())
            }
            _ => Readers::None { others: !listed.is_empty() },
        }
    }

    /// Tells the browser, and the caches on the way to it.
    pub(super) fn mark(self, headers: &mut HeaderMap) {
        let allowed = match self {
            Readers::None { others: false } => return,
            Readers::All => EVERYTHING,
            Readers::None { others: true } => {
                headers.append(header::VARY, ORIGIN);
                return;
            }
            Readers::One(origin) => {
                headers.append(header::VARY, ORIGIN);
                origin
            }
        };
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EVERYTHING);
    }
}

/// The answer to a browser's question whether a page may send a request, if this is one. Whether the request will be
/// allowed is then judged by itself.
pub(super) fn preflight(request: &Parts, readers: &Readers) -> Option<Response> {
    if !is_preflight(request) {
        return None;
    }
    if let Readers::None { .. } = readers {
        let origin = request.headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok()).unwrap_or("?");
        let origin: String = origin.chars().take(200).collect();
        let detail = format!("pages of {origin} may not use this node; add the origin to the setting `cors_origins`");
        return Some(Problem::forbidden("cross-origin", detail).into_response());
    }
    let answer = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS),
        (header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS),
    ];
    Some((StatusCode::NO_CONTENT, answer).into_response())
}

fn is_preflight(request: &Parts) -> bool {
    request.method == Method::OPTIONS
        && request.headers.contains_key(header::ORIGIN)
        && request.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_pages_and_no_others() {
        let asked = |origin: Option<&'static str>, listed: &[&str], credentials: bool| {
            let listed: Vec<WebOrigin> = listed.iter().map(|listed| listed.parse().unwrap()).collect();
            let origin = origin.map(|origin| (header::ORIGIN, HeaderValue::from_static(origin)));
            Readers::by(&origin.into_iter().collect(), &listed, credentials)
        };
        let of = |origin, listed: &[&str]| asked(origin, listed, false);
        let page = Some("https://app.example");
        assert_eq!(of(page, &[]), Readers::None { others: false });
        assert_eq!(
            of(page, &["https://b.example", "https://app.example"]),
            Readers::One("https://app.example".parse().unwrap())
        );
        assert_eq!(of(page, &["https://app.example:8443"]), Readers::None { others: true });
        assert_eq!(of(page, &["*"]), Readers::All);
        assert_eq!(of(Some("null"), &["https://app.example"]), Readers::None { others: true });
        // The same for everybody, so that a cache need not tell them apart.
        assert_eq!(of(None, &["*"]), Readers::All);
        assert_eq!(asked(page, &[], true), Readers::All);
        assert_eq!(asked(None, &["https://b.example"], true), Readers::All);
    }
}
