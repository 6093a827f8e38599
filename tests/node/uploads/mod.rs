//! Resumable uploads: the protocols request by request, and the clients people have, cut and killed in the middle.

mod clients;
mod draft;
mod followed;
mod joins;
mod over_http2;
mod tus;

use reqwest::{Method, RequestBuilder, Response};

use crate::support::node::Node;

/// A tus request.
fn tus(node: &Node, method: &str, path: &str) -> RequestBuilder {
    let method = Method::from_bytes(method.as_bytes()).expect("a method");
    node.request(method, path).header("Tus-Resumable", "1.0.0")
}

fn metadata(pairs: &[(&str, &str)]) -> String {
    use base64::Engine as _;
    let encoded = |value: &str| base64::engine::general_purpose::STANDARD.encode(value);
    pairs.iter().map(|(name, value)| format!("{name} {}", encoded(value))).collect::<Vec<_>>().join(",")
}

/// Begins an upload and returns its path.
async fn create(node: &Node, key: &str, length: Option<usize>) -> String {
    let request = tus(node, "POST", "/v1/uploads").header("Upload-Metadata", metadata(&[("key", key)]));
    let request = match length {
        Some(length) => request.header("Upload-Length", length),
        None => request.header("Upload-Defer-Length", 1),
    };
    let created = request.send().await.expect("POST");
    assert_eq!(created.status(), 201);
    header(&created, "location").to_owned()
}

fn patch(node: &Node, path: &str, offset: usize, body: Vec<u8>) -> RequestBuilder {
    let request = tus(node, "PATCH", path).header("Upload-Offset", offset);
    request.header("Content-Type", "application/offset+octet-stream").body(body)
}

/// The offset that a HEAD tells.
async fn offset(node: &Node, path: &str) -> usize {
    let head = tus(node, "HEAD", path).send().await.expect("HEAD");
    assert_eq!(head.status(), 200, "{head:?}");
    header(&head, "upload-offset").parse().expect("a number")
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    let value = response.headers().get(name).unwrap_or_else(|| panic!("no {name} in {response:?}"));
    value.to_str().expect("text")
}

/// The object's bytes.
async fn stored(node: &Node, key: &str) -> Vec<u8> {
    let got = node.object(key).send().await.expect("GET");
    assert_eq!(got.status(), 200, "{key}");
    got.bytes().await.expect("a body").to_vec()
}
