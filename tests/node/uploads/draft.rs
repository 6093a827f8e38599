//! The IETF's draft (interop version 8), request by request. No client in the registries speaks that version yet;
//! `clients.rs` has those of tus-js-client.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, RequestBuilder};
use sha2::{Digest as _, Sha256};

use super::{header, stored};
use crate::support::node::Node;
use crate::support::{Noise, scratch};

fn append(node: &Node, path: &str, offset: usize, complete: bool, body: Vec<u8>) -> RequestBuilder {
    let request = node.request(Method::PATCH, path).header("Content-Type", "application/partial-upload");
    request.header("Upload-Offset", offset).header("Upload-Complete", if complete { "?1" } else { "?0" }).body(body)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_is_uploaded_to_its_own_address() {
    let folder = scratch("draft");
    let node = Node::start(&folder.path().join("data")).await;
    let body = Noise::bytes(1, 900_000);
    let request = node.put("film", body[..300_000].to_vec()).header("Upload-Complete", "?0");
    let begun = request.header("Content-Type", "video/mp4").send().await.unwrap();
    assert_eq!((begun.status().as_u16(), header(&begun, "upload-complete")), (201, "?0"));
    assert!(header(&begun, "upload-limit").contains("max-size="));
    let path = header(&begun, "location").to_owned();

    let head = node.request(Method::HEAD, &path).send().await.unwrap();
    assert_eq!((head.status().as_u16(), header(&head, "upload-offset")), (204, "300000"));
    assert_eq!((header(&head, "upload-complete"), header(&head, "cache-control")), ("?0", "no-store"));
    assert!(head.headers().get("tus-resumable").is_none());

    let wrong = append(&node, &path, 7, true, vec![1]).send().await.unwrap();
    assert_eq!((wrong.status().as_u16(), header(&wrong, "upload-offset")), (409, "300000"));
    assert_eq!(header(&wrong, "upload-complete"), "?0");
    let more = append(&node, &path, 300_000, false, body[300_000..600_000].to_vec()).send().await.unwrap();
    assert_eq!((more.status().as_u16(), header(&more, "upload-complete")), (204, "?0"));
    let other = append(&node, &path, 600_000, true, vec![1]).header("Upload-Length", 5).send().await.unwrap();
    assert_eq!(other.status(), 400);
    let last = append(&node, &path, 600_000, true, body[600_000..].to_vec()).send().await.unwrap();
    assert_eq!((last.status().as_u16(), header(&last, "upload-complete")), (201, "?1"));
    let etag = header(&last, "etag").to_owned();
    assert_eq!(last.json::<serde_json::Value>().await.unwrap()["key"], "film");
    let got = node.object("film").send().await.unwrap();
    assert_eq!((header(&got, "etag"), header(&got, "content-type")), (etag.as_str(), "video/mp4"));
    assert!(stored(&node, "film").await == body);
    let head = node.request(Method::HEAD, &path).send().await.unwrap();
    assert_eq!((header(&head, "upload-offset"), header(&head, "upload-complete")), ("900000", "?1"));
    assert_eq!(node.request(Method::DELETE, &path).send().await.unwrap().status(), 204);
    assert!(stored(&node, "film").await == body);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_ends_where_the_client_says_so() {
    let folder = scratch("draft");
    let node = Node::start(&folder.path().join("data")).await;
    let create = |complete: &str| node.request(Method::POST, "/v1/uploads").header("Upload-Complete", complete);
    // In one request, and after an empty one.
    let whole = create("?1").header("Upload-Metadata", super::metadata(&[("key", "one")])).body("one");
    let whole = whole.send().await.unwrap();
    assert_eq!((whole.status().as_u16(), header(&whole, "upload-complete")), (201, "?1"));
    assert_eq!(stored(&node, "one").await, b"one");
    let empty = create("?0").header("Upload-Metadata", super::metadata(&[("key", "two")])).send().await.unwrap();
    let path = header(&empty, "location").to_owned();
    assert_eq!(append(&node, &path, 0, false, b"tw".to_vec()).send().await.unwrap().status(), 204);
    assert_eq!(append(&node, &path, 2, false, b"o".to_vec()).send().await.unwrap().status(), 204);
    assert_eq!(
        node.object("two").header("If-Match", "*").header("Range", "bytes=9-").send().await.unwrap().status(),
        200
    );
    assert_eq!(append(&node, &path, 3, true, vec![]).send().await.unwrap().status(), 201);
    assert_eq!(stored(&node, "two").await, b"two");
    // A digest of one request; one of the whole is not verified, and so not taken.
    let begun = create("?0").header("Upload-Metadata", super::metadata(&[("key", "sum")])).send().await.unwrap();
    let path = header(&begun, "location").to_owned();
    let digest = |bytes: &[u8]| format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(bytes)));
    let send = |sum: String| append(&node, &path, 0, true, b"sum".to_vec()).header("Content-Digest", sum).send();
    assert_eq!(send(digest(b"some")).await.unwrap().status(), 400);
    let head = node.request(Method::HEAD, &path).send().await.unwrap();
    assert_eq!((header(&head, "upload-offset"), header(&head, "upload-complete")), ("0", "?0"));
    assert_eq!(send(digest(b"sum")).await.unwrap().status(), 201);
    assert_eq!(stored(&node, "sum").await, b"sum");
    for (request, status) in [
        (create("?0").header("Repr-Digest", digest(b"x")).body("x"), 400),
        (create("?2").body("x"), 400),
        (create("?1").header("Upload-Length", 5).body("x"), 400),
        (create("?0").header("Content-Encoding", "gzip").body("x"), 415),
        (append(&node, "/v1/uploads/00000000000000000000000000000000", 0, true, vec![]), 404),
    ] {
        assert_eq!(request.send().await.unwrap().status(), status);
    }
    // What the final request of an optimistic client says to an object's own address: a PUT as any other.
    let put = node.put("three", "three").header("Upload-Complete", "?1").send().await.unwrap();
    assert_eq!(put.status(), 201);
    assert_eq!(stored(&node, "three").await, b"three");
}
