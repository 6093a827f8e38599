//! Concatenation: parts become one object.

use super::{header, metadata, offset, patch, stored, tus};
use crate::support::node::{Node, files};
use crate::support::{Noise, scratch};

async fn part(node: &Node, body: &[u8], whole: bool) -> String {
    let request = tus(node, "POST", "/v1/uploads").header("Upload-Concat", "partial");
    let created = request.header("Upload-Length", body.len()).send().await.unwrap();
    assert_eq!(created.status(), 201);
    let path = header(&created, "location").to_owned();
    let sent = if whole { body } else { &body[..body.len() / 2] };
    assert_eq!(patch(node, &path, 0, sent.to_vec()).send().await.unwrap().status(), 204);
    path
}

fn join(node: &Node, key: &str, parts: &[&str]) -> reqwest::RequestBuilder {
    let request = tus(node, "POST", "/v1/uploads").header("Upload-Metadata", metadata(&[("key", key)]));
    request.header("Upload-Concat", format!("final;{}", parts.join(" ")))
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_become_one_object_once() {
    let folder = scratch("joins");
    let data = folder.path().join("data");
    let node = Node::start(&data).await;
    let body = Noise::bytes(1, 2_500_000);
    let first = part(&node, &body[..1_000_000], true).await;
    let second = part(&node, &body[1_000_000..], true).await;
    let unfinished = part(&node, &body[..10], false).await;
    let head = tus(&node, "HEAD", &first).send().await.unwrap();
    assert_eq!((header(&head, "upload-concat"), header(&head, "upload-length")), ("partial", "1000000"));

    for (request, status) in [
        (join(&node, "x", &[&first, &unfinished]), 400),
        (join(&node, "x", &[&first, "/v1/uploads/ff"]), 400),
        (join(&node, "x", &[&first, "/v1/uploads/00000000000000000000000000000000"]), 404),
        (join(&node, "x", &[]), 400),
        (join(&node, "x", &[&first]).header("Upload-Length", 1), 400),
        (tus(&node, "POST", "/v1/uploads").header("Upload-Concat", "whole"), 400),
    ] {
        assert_eq!(request.send().await.unwrap().status(), status);
    }
    assert_eq!(node.object("x").send().await.unwrap().status(), 404);

    // Parts outlive a kill; an address may have a host.
    node.kill();
    let node = Node::start(&data).await;
    let parts = [first.as_str(), &format!("http://some.where{second}")];
    let joined = join(&node, "joined.mp4", &parts).send().await.unwrap();
    assert_eq!(joined.status(), 201);
    let path = header(&joined, "location").to_owned();
    assert!(stored(&node, "joined.mp4").await == body);
    let head = tus(&node, "HEAD", &path).send().await.unwrap();
    assert_eq!(header(&head, "upload-concat"), format!("final;{first} {second}"));
    assert_eq!((header(&head, "upload-offset"), header(&head, "upload-length")), ("2500000", "2500000"));
    assert_eq!(patch(&node, &path, 2_500_000, vec![]).send().await.unwrap().status(), 403);

    // Asked again because the answer was lost: the same upload, and not another copy.
    let again = join(&node, "joined.mp4", &parts).send().await.unwrap();
    assert_eq!((again.status().as_u16(), header(&again, "location")), (201, path.as_str()));
    assert_eq!(join(&node, "other", &[&second]).send().await.unwrap().status(), 400);
    assert_eq!(offset(&node, &first).await, 1_000_000);
    // The parts' own bytes are gone.
    assert_eq!(files(&data.join("blobs")).len(), 1);
    assert_eq!(tus(&node, "DELETE", &unfinished).send().await.unwrap().status(), 204);
    assert!(node.partials().is_empty(), "{:?}", node.partials());
}
