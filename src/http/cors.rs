//! Cross-origin sharing (the Fetch standard): which web pages may read answers.
//!
//! A browser that reaches the node would read it for any page it shows. A page therefore gets only what is not given away
//! by that: answers to pages of the sites in `cors_origins`. Credentials that a browser adds by itself are never allowed, so the list grants no more than the node gives whoever reaches it.
//!
//! Two layers. [`preflight`] answers what a browser asks before it sends a request that no form could send. [`share`] lies
//! around all others and marks every answer, errors as well: a player should be able to tell why it plays nothing.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;
use crate::node::Node;
use crate::web_origin::WebOrigin;

/// Seconds for which a browser need not ask again; Chromium takes no more.
const PREFLIGHT_SECONDS: HeaderValue = HeaderValue::from_static("7200");
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, PUT, POST, PATCH, DELETE");
/// The star covers all but this one.
const HEADERS: HeaderValue = HeaderValue::from_static("*, Authorization");
const EVERYTHING: HeaderValue = HeaderValue::from_static("*");

/// Which pages may read the answer.
#[derive(Debug, PartialEq, Eq)]
enum Readers {
    All,
    One(HeaderValue),
    None,
}

impl Readers {
    fn of(request: &HeaderMap, listed: &[WebOrigin]) -> Readers {
        let Some(origin) = request.get(header::ORIGIN) else { return Readers::None };
        match listed.iter().find(|listed| listed.covers(origin.as_bytes())) {
            Some(any) if any.is_any() => Readers::All,
            Some(_) => Readers::One(origin.clone()),
            None => Readers::None,
        }
    }
}

/// Marks each answer for the browser.
pub(super) async fn share(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response {
    let listed = &node.config().cors_origins;
    let readers = Readers::of(request.headers(), listed);
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    // To a page that is not listed, or to no page, the same answer looks different.
    if !listed.is_empty() && !listed.iter().any(WebOrigin::is_any) {
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
    }
    let allowed = match readers {
        Readers::None => return response,
        Readers::All => EVERYTHING,
        Readers::One(origin) => origin,
    };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EVERYTHING);
    response
}

/// Answers a browser's question whether a page may send a request.
pub(super) async fn preflight(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let asks = *request.method() == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let Some(origin) = headers.get(header::ORIGIN).filter(|_| asks) else { return next.run(request).await };
    if Readers::of(headers, &node.config().cors_origins) == Readers::None {
        let origin: String = origin.to_str().unwrap_or("?").chars().take(200).collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_pages_and_no_others() {
        let of = |origin: Option<&'static str>, listed: &[&str]| {
            let listed: Vec<WebOrigin> = listed.iter().map(|listed| listed.parse().unwrap()).collect();
            let origin = origin.map(|origin| (header::ORIGIN, HeaderValue::from_static(origin)));
            Readers::of(&origin.into_iter().collect(), &listed)
        };
        let page = Some("https://app.example");
        assert_eq!(of(page, &[]), Readers::None);
        assert_eq!(
            of(page, &["https://b.example", "https://app.example"]),
            Readers::One("https://app.example".parse().unwrap())
        );
        assert_eq!(of(page, &["https://app.example:8443"]), Readers::None);
        assert_eq!(of(page, &["*"]), Readers::All);
        assert_eq!(of(Some("null"), &["https://app.example"]), Readers::None);
        assert_eq!(of(None, &["*"]), Readers::None);
    }
}
