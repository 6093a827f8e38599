//! Cross-origin sharing (the Fetch standard): which web pages may read answers.
//!
//! A browser that reaches the node would read it for any page it shows. A page gets what is not given away by that: answers
//! to requests that bring a token or a signed address, which no page has unless somebody gave it; and whatever the node
//! gives who reaches it, for pages of the sites in `cors_origins`. Credentials that a browser adds by itself are never
//! allowed.
//!
//! Two layers. [`preflight`] answers what a browser asks before it sends a request that no form could send. [`share`] lies
//! around all others and marks every answer, errors as well: a player should be able to tell why it plays nothing.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
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
enum Readers {
    All,
    One(HeaderValue),
    None,
}

impl Readers {
    /// `credentials`: the node asks for some, and the request brings its own.
    fn of(request: &HeaderMap, listed: &[WebOrigin], credentials: bool) -> Readers {
        if credentials || listed.iter().any(WebOrigin::is_any) {
            return Readers::All;
        }
        match request.get(header::ORIGIN) {
            Some(origin) if listed.iter().any(|listed| listed.covers(origin.as_bytes())) => {
                Readers::One(origin.clone())
            }
            _ => Readers::None,
        }
    }
}

/// Marks each answer for the browser.
pub(super) async fn share(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response {
    let (listed, asks) = (&node.config().cors_origins, node.asks_for_tokens());
    // The question before a request brings nothing: what counts is what the request will bring.
    let credentials = asks && (access::brings_credentials(&request) || is_preflight(&request));
    let readers = Readers::of(request.headers(), listed, credentials);
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let allowed = match readers {
        Readers::All => EVERYTHING,
        // Without the origin, or with another, the same answer looks different.
        _ if listed.is_empty() && !asks => return response,
        Readers::One(origin) => {
            headers.append(header::VARY, ORIGIN);
            origin
        }
        Readers::None => {
            headers.append(header::VARY, ORIGIN);
            return response;
        }
    };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EVERYTHING);
    response
}

/// Answers a browser's question whether a page may send a request. Whether it may be answered, its own token will say.
pub(super) async fn preflight(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response {
    if !is_preflight(&request) {
        return next.run(request).await;
    }
    let headers = request.headers();
    if Readers::of(headers, &node.config().cors_origins, node.asks_for_tokens()) == Readers::None {
        let origin = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok()).unwrap_or("?");
        let origin: String = origin.chars().take(200).collect();
        let detail = format!("pages of {origin} may not use this node; add the origin to the setting `cors_origins`");
        return Problem::forbidden("cross-origin", detail).into_response();
    }
    let answer = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS),
        (header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS),
    ];
    (StatusCode::NO_CONTENT, answer).into_response()
}

fn is_preflight(request: &Request) -> bool {
    let headers = request.headers();
    *request.method() == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_pages_and_no_others() {
        let asked = |origin: Option<&'static str>, listed: &[&str], credentials: bool| {
            let listed: Vec<WebOrigin> = listed.iter().map(|listed| listed.parse().unwrap()).collect();
            let origin = origin.map(|origin| (header::ORIGIN, HeaderValue::from_static(origin)));
            Readers::of(&origin.into_iter().collect(), &listed, credentials)
        };
        let of = |origin, listed: &[&str]| asked(origin, listed, false);
        let page = Some("https://app.example");
        assert_eq!(of(page, &[]), Readers::None);
        assert_eq!(
            of(page, &["https://b.example", "https://app.example"]),
            Readers::One("https://app.example".parse().unwrap())
        );
        assert_eq!(of(page, &["https://app.example:8443"]), Readers::None);
        assert_eq!(of(page, &["*"]), Readers::All);
        assert_eq!(of(Some("null"), &["https://app.example"]), Readers::None);
        // The same for everybody, so that a cache need not tell them apart.
        assert_eq!(of(None, &["*"]), Readers::All);
        assert_eq!(asked(page, &[], true), Readers::All);
        assert_eq!(asked(None, &["https://b.example"], true), Readers::All);
    }
}
