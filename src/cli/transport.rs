//! One HTTP exchange: over the network, or straight into the router of a node in this process.
//!
//! Bodies stream both ways, so memory stays bounded whatever their length. Dropping the future or the body of a reply
//! ends the exchange; the node sees a client that went away.

use std::error::Error as StdError;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Method, StatusCode};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use url::{Host, Url};

use super::exit::{CliError, Result};
use super::remote::Remote;

pub type ByteStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A call whose answer is not streamed is over within this time.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest silence of the node in the middle of a reply.
const READ_TIMEOUT: Duration = Duration::from_secs(300);

pub struct Request {
    pub method: Method,
    /// Path and query, percent-encoded, from the first `/` after the node's address.
    pub path: String,
    pub headers: HeaderMap,
    pub body: RequestBody,
    /// For the whole exchange, the body of the answer included; `None` for one that may take as long as it takes.
    pub timeout: Option<Duration>,
}

pub enum RequestBody {
    Bytes(Bytes),
    Stream(ByteStream),
}

pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: ByteStream,
}

pub enum Transport {
    Network { client: reqwest::Client, base: String, shown: String },
    InProcess(TowerToHyperService<Router>),
}

impl Transport {
    /// To a running node. TLS is set up for an https address only: it costs more than the rest of `ls`.
    pub fn to(remote: &Remote) -> Result<Self> {
        let Remote { url: node, socket, pass } = remote;
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("reelring/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT);
        // The client wants a TLS provider in any case; the certificates are what takes time.
        let _ = rustls::crypto::ring::default_provider().install_default();
        if node.scheme() == "http" || socket.is_some() {
            builder = builder.tls_certs_only([]);
        } else if let Some(authorities) = &pass.authorities {
            let added = reqwest::Certificate::from_pem_bundle(authorities)
                .map_err(|error| CliError::usage(format!("--ca-file is not PEM certificates: {}", root(&error))))?;
            builder = builder.tls_certs_merge(added);
        }
        if is_loopback(node) || socket.is_some() {
            builder = builder.no_proxy();
        }
        if let Some(socket) = socket {
            builder = builder.unix_socket(socket.path());
        } else if let Some(authorization) = &pass.authorization {
            // For every request, and only to this node: a redirect elsewhere does not take it along.
            builder = builder.default_headers([(AUTHORIZATION, authorization.clone())].into_iter().collect());
        }
        let client =
            builder.build().map_err(|error| CliError::failed(format!("cannot set up HTTP: {}", root(&error))))?;
        let mut shown = node.clone();
        let _ = shown.set_password(None);
        let trim = |url: &Url| url.as_str().trim_end_matches('/').to_string();
        let base = if socket.is_some() { "http://localhost".into() } else { trim(node) };
        Ok(Transport::Network { client, base, shown: trim(&shown) })
    }

    pub fn in_process(router: Router) -> Self {
        Transport::InProcess(TowerToHyperService::new(router))
    }

    /// The node's address for people, without a password; `None` when it is this process.
    pub fn address(&self) -> Option<&str> {
        match self {
            Transport::Network { shown, .. } => Some(shown),
            Transport::InProcess(_) => None,
        }
    }

    pub async fn send(&self, request: Request) -> Result<Reply> {
        match self {
            Transport::Network { client, base, shown } => {
                send_network(client, base, request).await.map_err(|error| CliError::failed(unreachable(shown, &error)))
            }
            Transport::InProcess(service) => send_in_process(service, request).await,
        }
    }
}

async fn send_network(client: &reqwest::Client, base: &str, request: Request) -> reqwest::Result<Reply> {
    let mut builder = client.request(request.method, format!("{base}{}", request.path)).headers(request.headers);
    builder = match request.body {
        RequestBody::Bytes(bytes) => builder.body(bytes),
        RequestBody::Stream(stream) => builder.body(reqwest::Body::wrap_stream(stream)),
    };
    if let Some(timeout) = request.timeout {
        builder = builder.timeout(timeout);
    }
    let response = builder.send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    let body = response.bytes_stream().map_err(|error| io::Error::other(root(&error))).boxed();
    Ok(Reply { status, headers, body })
}

async fn send_in_process(service: &TowerToHyperService<Router>, request: Request) -> Result<Reply> {
    let body = match request.body {
        RequestBody::Bytes(bytes) => Body::from(bytes),
        RequestBody::Stream(stream) => Body::from_stream(stream),
    };
    let mut built = axum::http::Request::new(body);
    *built.method_mut() = request.method;
    *built.uri_mut() =
        request.path.parse().map_err(|error| CliError::failed(format!("cannot ask for {}: {error}", request.path)))?;
    *built.headers_mut() = request.headers;
    let response = match service.call(built).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let (parts, body) = response.into_parts();
    let body = body.into_data_stream().map_err(|error| io::Error::other(root(&error))).boxed();
    Ok(Reply { status: parts.status, headers: parts.headers, body })
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => IpAddr::V4(ip).is_loopback(),
        Some(Host::Ipv6(ip)) => IpAddr::V6(ip).is_loopback(),
        None => false,
    }
}

fn unreachable(node: &str, error: &reqwest::Error) -> String {
    if error.is_connect() {
        let cause = root(error);
        return format!(
            "cannot reach the node at {node}: {cause}; start one with `reelring serve`, or give another address with --node"
        );
    }
    if error.is_timeout() {
        return format!("the node at {node} did not answer in time; see `reelring doctor --node {node}`");
    }
    format!("the exchange with the node at {node} broke off: {}", root(error))
}

/// The innermost cause: the outer layers only repeat the address.
fn root(error: &(dyn StdError + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        let of = |text: &str| is_loopback(&Url::parse(text).unwrap());
        assert!(of("http://127.0.0.1:8080") && of("http://[::1]:1/") && of("http://localhost"));
        assert!(!of("http://10.0.0.1") && !of("https://localhost.example.org"));
    }

    #[test]
    fn a_password_is_never_shown() {
        let transport = Transport::to(&Remote::at(Url::parse("http://me:secret@127.0.0.1:1/base/").unwrap())).unwrap();
        assert_eq!(transport.address(), Some("http://me@127.0.0.1:1/base"));
    }
}
