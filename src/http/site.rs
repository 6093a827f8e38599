//! What a connection asks: every resource, observed and guarded.
//!
//! All of it is the router's, but for what is asked most and in the smallest pieces: the GET of an object. The router's
//! way (a table of patterns, boxed futures, extensions for each layer) costs more than the answer itself, so that one goes
//! straight to its handler, through the same functions that are the router's layers. [`Visit`] holds nothing that a request
//! would have to give back; dropping an answer's future drops the request.

use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::{Method, request::Parts};
use axum::response::{IntoResponse, Response};
use axum::{BoxError, Router};
use bytes::Bytes;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;

use super::access::{self, Peer};
use super::admission::Requests;
use super::metrics::Tally;
use super::objects;
use super::problem::Observed;
use super::zero_copy::Outgoing;
use crate::address;
use crate::node::Node;

/// Shared by all connections.
pub(super) struct Site {
    node: Arc<Node>,
    router: TowerToHyperService<Router>,
    reads: Tally,
}

impl Site {
    pub fn new(node: &Arc<Node>) -> Self {
        let router = TowerToHyperService::new(super::guarded_router(node.clone()));
        Self { node: node.clone(), router, reads: Tally::new(Method::GET, objects::ROUTE) }
    }
}

/// One connection to it.
pub(super) struct Visit {
    pub site: Arc<Site>,
    pub peer: Peer,
    pub outgoing: Outgoing,
    pub requests: Requests,
}

impl Visit {
    pub async fn answer<B>(&self, request: axum::http::Request<B>) -> Response
    where
        B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let (mut request, body) = request.into_parts();
        if reads_an_object(&request) {
            return self.read(&request, !body.is_end_stream()).await;
        }
        request.extensions.insert(self.peer);
        request.extensions.insert(self.outgoing.clone());
        let answered = self.site.router.call(Request::from_parts(request, Body::new(body)));
        // Boxed: what few need makes the future of all no larger.
        let Ok(answer) = Box::pin(answered).await;
        answer
    }

    /// As `problem::observe`, `access::guard` and `objects::read` one around the other.
    async fn read(&self, request: &Parts, with_body: bool) -> Response {
        let Site { node, reads, .. } = &*self.site;
        let (observed, answer) = Observed::begin(node, request, with_body);
        let answer = match answer {
            Some(answer) => answer,
            None => match access::admit(node, self.peer, Some(objects::ROUTE), request) {
                Err(problem) => problem.into_response(),
                Ok(grant) => {
                    let mut answer = objects::send(node, request, Some(&self.outgoing)).await.into_response();
                    grant.mark(answer.headers_mut());
                    answer
                }
            },
        };
        let count = |status, took| reads.answered(node.http_metrics(), status, took);
        observed.end(&request.method, request.uri.path(), answer, count)
    }
}

/// What the router would give to `objects::read`, but for HEAD and folders, which need more of it.
fn reads_an_object(request: &Parts) -> bool {
    let key = request.uri.path().strip_prefix(address::OBJECTS);
    request.method == Method::GET && key.is_some_and(|key| !key.is_empty() && !key.ends_with('/'))
}

#[cfg(test)]
mod tests {
    use axum::http::header;
    use http_body_util::BodyExt;

    use super::*;
    use crate::access::TokenName;
    use crate::config::{Config, Settings};
    use crate::http::admission::Admission;

    /// Status, headers and body, without what no two answers have in common.
    async fn told(answer: Response) -> (u16, Vec<String>, String) {
        let (head, body) = answer.into_parts();
        let id = head.headers["x-request-id"].to_str().unwrap();
        let body = String::from_utf8(body.collect().await.unwrap().to_bytes().into()).unwrap().replace(id, "ID");
        // The router counts a body that says how long it is; otherwise hyper does it.
        let own = [header::CONTENT_LENGTH.as_str(), "x-request-id"];
        let told = head.headers.iter().filter(|(name, _)| !own.contains(&name.as_str()));
        let mut headers: Vec<_> = told.map(|(name, value)| format!("{name}: {value:?}")).collect();
        headers.sort();
        (head.status.as_u16(), headers, body)
    }

    /// The way around the router must not be another way.
    #[tokio::test]
    async fn an_object_is_answered_as_by_the_router() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { data: Some(dir.path().join("data")), ..Settings::default() };
        let (config, _) = Config::resolve(None, settings).unwrap();
        let node = Node::open(config).await.unwrap();
        let seat = Admission::of(&node).admit_owner();
        let outgoing = Outgoing::by_memory(node.http_metrics().sent().clone());
        let site = Arc::new(Site::new(&node));
        let visit = |peer| Visit { site: site.clone(), peer, outgoing: outgoing.clone(), requests: seat.requests() };
        let ask = |method: &str, path: &str, headers: &[(&str, &str)], body: &'static str| {
            let mut request = axum::http::Request::builder().method(method).uri(path);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            request.body(Body::from(body)).unwrap()
        };
        let host = ("host", "127.0.0.1");
        let stored = visit(Peer::Owner).answer(ask("PUT", "/v1/objects/a/page.txt", &[host], "0123456789")).await;
        assert_eq!(stored.status(), 201);
        let etag = stored.headers()[header::ETAG].to_str().unwrap().to_owned();
        let long = "x".repeat(crate::limits::HTTP_HEADER_BYTES);

        let mut bearer = "Bearer none".to_owned();
        for tokens in [false, true] {
            if tokens {
                let made =
                    node.access().create(TokenName::parse("reader").unwrap(), "read".parse().unwrap(), None).unwrap();
                bearer = format!("Bearer {}", made.bearer);
            }
            for (path, headers, body) in [
                ("/v1/objects/a/page.txt", &[host][..], ""),
                ("/v1/objects/a%2Fpage.txt?download=x", &[host], ""),
                ("/v1/objects/a/page.txt", &[host, ("range", "bytes=2-5")], ""),
                ("/v1/objects/a/page.txt", &[host, ("range", "bytes=10-")], ""),
                ("/v1/objects/a/page.txt", &[host, ("if-none-match", &etag)], ""),
                ("/v1/objects/a/page.txt", &[host, ("if-match", "\"other\"")], ""),
                ("/v1/objects/a/page.txt", &[host, ("authorization", &bearer)], ""),
                ("/v1/objects/a/page.txt?signature=none", &[host], ""),
                ("/v1/objects/a/page.txt", &[host, ("origin", "https://a.example")], ""),
                ("/v1/objects/a/page.txt", &[host, ("x-long", &long)], ""),
                ("/v1/objects/a/page.txt", &[], ""),
                ("/v1/objects/a/page.txt", &[host, host], ""),
                ("/v1/objects/a/page.txt", &[("host", "evil.example")], ""),
                ("/v1/objects/none", &[host], "a body"),
                ("/v1/objects//", &[host], ""),
                ("/v1/objects/%FF", &[host], ""),
                ("/v1/objects/a//b", &[host], ""),
                ("/v1/objects", &[host], ""),
            ] {
                for peer in [Peer::Owner, Peer::Stranger] {
                    let direct = visit(peer).answer(ask("GET", path, headers, body)).await;
                    let mut request = ask("GET", path, headers, body);
                    request.extensions_mut().insert(peer);
                    let Ok(routed) = site.router.call(request).await;
                    assert_eq!(told(direct).await, told(routed).await, "{path} {headers:?} {peer:?}");
                }
            }
        }
        node.drain().await.unwrap();
    }
}
