//! Who asks, and whether he may: what stands in front of every resource that is reached over a connection.
//!
//! A connection tells where it comes from ([`Peer`]); [`admit`] finds out what the request is allowed ([`Grant`]) and
//! what it needs ([`Need`]), and lets it pass or refuses it with 401 or 403. A resource finds the grant among the request's
//! extensions. A command that has the node in its own process is not asked: it owns the data directory.

use std::borrow::Cow;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;

use super::origin;
use super::problem::Problem;
use crate::access::{Refusal, Scope, Scopes, Token};
use crate::config::Anonymous;
use crate::node::Node;

/// The parameter of a signed address.
pub(super) const SIGNATURE: &str = "signature";

/// Where a connection comes from. A request that does not tell counts as a stranger's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// The local socket, which only the owner of the data directory can open.
    Owner,
    Stranger,
}

/// By which right a request is answered.
#[derive(Clone)]
pub(super) enum Grant {
    Owner,
    /// The node asks for no token.
    Open,
    /// The configuration lets everybody read what he knows the name of.
    Anonymous,
    Token(Arc<Token>),
    /// The value of the parameter, for the addresses that the answer leads to.
    Signature(Arc<str>),
}

impl Grant {
    /// What addresses in the answer need, so that they lead on.
    pub fn query(&self) -> Option<String> {
        match self {
            Grant::Signature(text) => Some(format!("{SIGNATURE}={text}")),
            _ => None,
        }
    }

    /// Tells caches and browsers what an answer by this right is not for.
    pub fn mark(&self, answer: &mut HeaderMap) {
        // For this client alone, not for a cache that others ask.
        if matches!(self, Grant::Token(_) | Grant::Signature(_)) {
            keep_private(answer);
        }
        if matches!(self, Grant::Signature(_)) {
            // A signed address must not travel to other sites as the page somebody came from.
            answer.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        }
    }
}

/// What a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Nothing,
    /// Any token: the resource decides.
    Token,
    /// An object or asset that the address names: what can be signed for and read anonymously.
    Named(Scope),
    Of(Scope),
}

impl Need {
    /// By the router's own pattern, so that no spelling of an address leads around it. What is not listed takes admin.
    fn of(method: &Method, route: Option<&str>, path: &str) -> Need {
        let reads = *method == Method::GET || *method == Method::HEAD;
        let scope = if reads { Scope::Read } else { Scope::Write };
        match route {
            // Asks what is possible, never with credentials.
            _ if *method == Method::OPTIONS => Need::Nothing,
            None => Need::Token,
            Some("/healthz" | "/readyz" | "/player/hls.js") if reads => Need::Nothing,
            Some("/v1/objects/{*key}") if !path.ends_with('/') || !reads => Need::Named(scope),
            Some("/v1/assets/{id}" | "/v1/assets/{id}/hls/{*path}" | "/play/{asset}") => Need::Named(scope),
            Some("/v1/objects" | "/v1/objects/" | "/v1/objects/{*key}" | "/v1/assets" | "/metrics") if reads => {
                Need::Of(Scope::Read)
            }
            Some("/v1/signatures") => Need::Token,
            Some("/v1/jobs" | "/v1/jobs/{id}" | "/v1/jobs/{id}/{action}" | "/v1/events") => Need::Of(Scope::Write),
            Some(route) if route == "/v1/uploads" || route.starts_with("/v1/uploads/") => Need::Of(Scope::Write),
            Some(_) => Need::Of(Scope::Admin),
        }
    }

    fn is_met_by(self, scopes: Scopes) -> Result<(), Scope> {
        match self {
            Need::Nothing | Need::Token => Ok(()),
            Need::Named(scope) | Need::Of(scope) if scopes.allow(scope) => Ok(()),
            Need::Named(scope) | Need::Of(scope) => Err(scope),
        }
    }
}

/// The layer that asks, around the router's resources.
pub(super) async fn guard(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response {
    let (mut request, body) = request.into_parts();
    let peer = request.extensions.get().copied().unwrap_or(Peer::Stranger);
    let route = request.extensions.get().map(MatchedPath::as_str);
    let grant = match admit(&node, peer, route, &request) {
        Ok(grant) => grant,
        Err(problem) => return problem.into_response(),
    };
    request.extensions.insert(grant.clone());
    let mut response = next.run(Request::from_parts(request, body)).await;
    grant.mark(response.headers_mut());
    response
}

/// By which right a request to `route`, the router's pattern, is answered.
pub(super) fn admit(node: &Node, peer: Peer, route: Option<&str>, request: &Parts) -> Result<Grant, Problem> {
    decide(node, peer, route, request).map_err(|problem| match problem.status() {
        StatusCode::UNAUTHORIZED if may_ask_for_a_password(&request.headers) => {
            let challenge = HeaderValue::from_static("Basic realm=\"reelring\", charset=\"UTF-8\"");
            problem.with_header("www-authenticate", challenge)
        }
        _ => problem,
    })
}

/// Programs that have a password (ffmpeg, mpv, wget) send it when they are asked for one, and so does somebody who opens a
/// page. What a page asks for by itself must not make the browser ask its user: the script is to see the 401.
fn may_ask_for_a_password(headers: &HeaderMap) -> bool {
    let mode = headers.get("sec-fetch-mode").map(HeaderValue::as_bytes);
    mode.is_none_or(|mode| mode == b"navigate") && !headers.contains_key(header::ORIGIN)
}

fn decide(node: &Node, peer: Peer, route: Option<&str>, request: &Parts) -> Result<Grant, Problem> {
    if peer == Peer::Owner {
        return Ok(Grant::Owner);
    }
    let Parts { method, uri, version, headers, .. } = request;
    origin::check_one_meaning(*version, uri, headers)?;
    let need = Need::of(method, route, uri.path());
    let config = node.config();
    let surroundings = || {
        if config.listens_on_loopback() {
            origin::check_host(uri, headers, &config.hosts)?;
        }
        origin::check_origin(method, uri, headers, &config.cors_origins)
    };
    if !node.asks_for_tokens() {
        if need != Need::Nothing {
            surroundings()?;
        }
        return Ok(Grant::Open);
    }
    if need == Need::Nothing {
        // A token is not needed, and may let the answer tell more.
        let presented = bearer(headers).ok().flatten();
        let token = presented.and_then(|presented| node.access().authenticate(&presented.token).ok());
        return Ok(token.map_or(Grant::Anonymous, |token| Grant::Token(Arc::new(token))));
    }
    if let Some(presented) = bearer(headers)? {
        let token =
            node.access().authenticate(&presented.token).map_err(|refusal| unauthorized(refusal.to_string()))?;
        if presented.by_browser {
            origin::check_origin(method, uri, headers, &config.cors_origins)?;
        }
        need.is_met_by(token.scopes).map_err(|scope| insufficient(&token, scope))?;
        return Ok(Grant::Token(Arc::new(token)));
    }
    if let Some(signature) = signature(uri) {
        return by_signature(node, &signature, need, route, request)
            .map(|()| Grant::Signature(signature.as_str().into()));
    }
    if config.anonymous == Anonymous::Read && need == Need::Named(Scope::Read) {
        surroundings()?;
        return Ok(Grant::Anonymous);
    }
    Err(missing(method, uri))
}

fn by_signature(node: &Node, signature: &str, need: Need, route: Option<&str>, request: &Parts) -> Result<(), Problem> {
    let resource = resource(route, request.uri.path());
    // A prefix that is signed for may be listed as well as read.
    let listing = need == Need::Of(Scope::Read) && route.is_some_and(|route| route.starts_with("/v1/objects/"));
    if !matches!(need, Need::Named(_)) && !listing {
        let detail = "a signed address reaches objects and assets only; send a token (Authorization: Bearer …)";
        return Err(Problem::forbidden("signature", detail));
    }
    match node.access().verify(signature, request.method.as_str(), &resource) {
        Ok(_) => Ok(()),
        Err(Refusal::Method { signed, asked }) => {
            Err(Problem::forbidden("signature", format!("the address is signed for {signed}, not for {asked}")))
        }
        Err(refusal) => Err(Problem::forbidden("signature", refusal.to_string())),
    }
}

/// What a signature covers: the path, decoded, since its spelling differs between clients. An asset's page and its
/// record count as lying in the asset.
pub(super) fn resource(route: Option<&str>, path: &str) -> Cow<'static, [u8]> {
    let mut decoded: Vec<u8> = percent_decode_str(path).collect();
    match route {
        Some("/play/{asset}") => {
            let asset = decoded.split_off("/play/".len().min(decoded.len()));
            decoded = [b"/v1/assets/", asset.as_slice(), b"/"].concat();
        }
        Some("/v1/assets/{id}") => decoded.push(b'/'),
        _ => {}
    }
    decoded.into()
}

/// A token as the request brings it.
pub(super) struct Presented {
    token: String,
    /// As a password, which a browser sends along for every page that asks.
    by_browser: bool,
}

/// `Bearer TOKEN`; or `Basic`, with the token as the password of any user, for programs that know nothing else.
pub(super) fn bearer(headers: &HeaderMap) -> Result<Option<Presented>, Problem> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let refuse = || {
        unauthorized(
            "the Authorization header cannot be read; send one: Bearer TOKEN, or Basic with the token as the password"
                .into(),
        )
    };
    let text = value.to_str().map_err(|_| refuse())?;
    let (scheme, rest) = text.split_once(' ').ok_or_else(refuse)?;
    let rest = rest.trim();
    if values.next().is_some() {
        return Err(refuse());
    }
    if scheme.eq_ignore_ascii_case("bearer") {
        return Ok(Some(Presented { token: rest.into(), by_browser: false }));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(refuse());
    }
    let decoded = STANDARD.decode(rest).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(refuse)?;
    let (_, password) = decoded.split_once(':').ok_or_else(refuse)?;
    Ok(Some(Presented { token: password.into(), by_browser: true }))
}

/// Whether the request itself brings what it is allowed by. No page of another site has that, unless somebody gave it.
pub(super) fn brings_credentials(request: &Parts) -> bool {
    request.headers.contains_key(header::AUTHORIZATION) || signature(&request.uri).is_some()
}

/// The parameter, if the address has it. The first counts: a second one is not what was signed.
fn signature(uri: &Uri) -> Option<String> {
    let pairs = url::form_urlencoded::parse(uri.query()?.as_bytes());
    pairs.into_iter().find(|(name, _)| name == SIGNATURE).map(|(_, value)| value.into_owned())
}

fn missing(method: &Method, uri: &Uri) -> Problem {
    unauthorized(format!(
        "{method} {} needs a token: send Authorization: Bearer TOKEN, or use a signed address; `reelring token create` on \
         the node's machine makes one",
        uri.path()
    ))
}

fn unauthorized(detail: String) -> Problem {
    Problem::unauthorized(detail)
}

fn insufficient(token: &Token, scope: Scope) -> Problem {
    let (name, has) = (&token.name, token.scopes);
    Problem::forbidden("scope", format!("the token {name} has the scope {has}, this needs {scope}; use another token"))
}

/// What only this client may see is not for shared caches; how long its own may keep it stays.
fn keep_private(headers: &mut HeaderMap) {
    let Some(value) = headers.get(header::CACHE_CONTROL).and_then(|value| value.to_str().ok()) else {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        return;
    };
    let kept = value.split(',').map(str::trim).filter(|part| !part.is_empty() && *part != "public");
    let directives: Vec<&str> = if value.contains("no-store") || value.contains("private") {
        kept.collect()
    } else {
        std::iter::once("private").chain(kept).collect()
    };
    if let Ok(value) = HeaderValue::from_str(&directives.join(", ")) {
        headers.insert(header::CACHE_CONTROL, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_listed_takes_admin() {
        let need = |method: Method, route: &'static str, path: &str| Need::of(&method, Some(route), path);
        let key = "/v1/objects/{*key}";
        assert_eq!(need(Method::GET, key, "/v1/objects/a"), Need::Named(Scope::Read));
        assert_eq!(need(Method::PUT, key, "/v1/objects/a"), Need::Named(Scope::Write));
        assert_eq!(need(Method::DELETE, key, "/v1/objects/a/"), Need::Named(Scope::Write));
        assert_eq!(need(Method::GET, key, "/v1/objects/a/"), Need::Of(Scope::Read), "an index is a list");
        assert_eq!(need(Method::GET, "/v1/objects", "/v1/objects"), Need::Of(Scope::Read));
        assert_eq!(need(Method::POST, "/v1/objects", "/v1/objects"), Need::Of(Scope::Admin));
        assert_eq!(need(Method::GET, "/v1/jobs", "/v1/jobs"), Need::Of(Scope::Write));
        assert_eq!(need(Method::PATCH, "/v1/uploads/{id}", "/v1/uploads/1"), Need::Of(Scope::Write));
        assert_eq!(need(Method::GET, "/v1/tokens", "/v1/tokens"), Need::Of(Scope::Admin));
        assert_eq!(need(Method::GET, "/v1/new", "/v1/new"), Need::Of(Scope::Admin));
        assert_eq!(need(Method::GET, "/healthz", "/healthz"), Need::Nothing);
        assert_eq!(need(Method::OPTIONS, key, "/v1/objects/a"), Need::Nothing);
        assert_eq!(Need::of(&Method::GET, None, "/x"), Need::Token);
    }

    #[test]
    fn the_spelling_of_a_path_does_not_matter_and_an_assets_page_lies_in_it() {
        let of = |route: &str, path: &str| String::from_utf8(resource(Some(route), path).into_owned()).unwrap();
        assert_eq!(of("/v1/objects/{*key}", "/v1/objects/a%20b%2Fc"), "/v1/objects/a b/c");
        assert_eq!(of("/play/{asset}", "/play/12"), "/v1/assets/12/");
        assert_eq!(of("/v1/assets/{id}", "/v1/assets/12"), "/v1/assets/12/");
        assert_eq!(of("/v1/assets/{id}/hls/{*path}", "/v1/assets/12/hls/a"), "/v1/assets/12/hls/a");
    }

    #[test]
    fn a_token_comes_as_bearer_or_as_a_password() {
        let of = |values: &[&str]| {
            let pairs = values.iter().map(|value| (header::AUTHORIZATION, value.parse().unwrap()));
            bearer(&pairs.collect()).map(|found| found.map(|presented| (presented.token, presented.by_browser)))
        };
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&["bearer  abc"]).unwrap(), Some(("abc".into(), false)));
        let basic = format!("Basic {}", STANDARD.encode("anybody:a:b"));
        assert_eq!(of(&[&basic]).unwrap(), Some(("a:b".into(), true)));
        for bad in [&["abc"][..], &["Digest x"], &["Basic !"], &["Basic YWJj"], &["Bearer a", "Bearer b"]] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn shared_caches_keep_nothing_of_it() {
        let of = |value: &str| {
            let mut headers = HeaderMap::from_iter([(header::CACHE_CONTROL, value.parse().unwrap())]);
            keep_private(&mut headers);
            headers[header::CACHE_CONTROL].to_str().unwrap().to_string()
        };
        assert_eq!(of("public, max-age=31536000, immutable"), "private, max-age=31536000, immutable");
        assert_eq!(of("no-cache"), "private, no-cache");
        assert_eq!(of("no-store"), "no-store");
        assert_eq!(of("private, max-age=1"), "private, max-age=1");
    }
}
