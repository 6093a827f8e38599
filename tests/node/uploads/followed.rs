//! Reading an object that is being uploaded in several requests.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use futures_util::StreamExt as _;

use super::{create, offset, patch, stored, tus};
use crate::following::{follow, take};
use crate::support::node::Node;
use crate::support::{Noise, eventually, scratch};

const PATIENCE: Duration = Duration::from_secs(30);

/// A PATCH whose client goes away when it has sent this much.
async fn cut(node: &Node, path: &str, at: usize, announced: usize, bytes: &[u8]) {
    let head = format!(
        "PATCH {path} HTTP/1.1\r\nHost: localhost\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: {at}\r\nContent-Length: \
         {announced}\r\nContent-Type: application/offset+octet-stream\r\n\r\n"
    );
    let mut stream = TcpStream::connect(node.addr()).unwrap();
    stream.write_all(&[head.as_bytes(), bytes].concat()).unwrap();
    // Taken, and not only sent.
    eventually("what was sent has come", PATIENCE, async || (offset(node, path).await > at).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_follows_from_one_request_to_the_next() {
    let folder = scratch("uploads-followed");
    let node = Node::start(&folder.path().join("data")).await;
    let body = Noise::bytes(1, 3_000_001);
    for announced in [true, false] {
        let key = format!("film-{announced}.mp4");
        let path = create(&node, &key, announced.then_some(body.len())).await;
        let following = follow(&node, &key, None).await;
        assert_eq!(following.status(), 200);
        let length = following.headers().get("content-length").map(|length| length.to_str().unwrap());
        assert_eq!(length, announced.then_some("3000001"));
        assert!(following.headers()["etag"].to_str().unwrap().starts_with("\"writing-"));
        let mut following = following.bytes_stream();

        assert_eq!(patch(&node, &path, 0, body[..700_000].to_vec()).send().await.unwrap().status(), 204);
        let mut got = take(&mut following, 700_000).await;
        // A request that breaks off is not the end of the upload.
        cut(&node, &path, 700_000, 2_000_000, &body[700_000..1_900_000]).await;
        let resumed = offset(&node, &path).await;
        got.extend(take(&mut following, resumed - got.len()).await);
        assert!(got == body[..resumed]);

        let last = patch(&node, &path, resumed, body[resumed..].to_vec());
        let last = if announced { last } else { last.header("Upload-Length", body.len()) };
        assert_eq!(last.send().await.unwrap().status(), 204);
        while let Some(chunk) = tokio::time::timeout(PATIENCE, following.next()).await.expect("it ends") {
            got.extend_from_slice(&chunk.expect("the object was stored"));
        }
        assert!(got == body, "{key}");
        assert!(stored(&node, &key).await == body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_an_upload_that_is_given_up_never_has_an_object() {
    let folder = scratch("uploads-given-up");
    let node = Node::start(&folder.path().join("data")).await;
    let body = Noise::bytes(2, 1_000_000);
    for (announced, checksum) in [(true, false), (false, false), (true, true), (false, true)] {
        let path = create(&node, "film", announced.then_some(body.len())).await;
        let mut following = follow(&node, "film", None).await.bytes_stream();
        // All that will ever come, but for the last byte.
        let sent = patch(&node, &path, 0, body[..999_999].to_vec()).send().await.unwrap();
        assert_eq!(sent.status(), 204);
        let got = take(&mut following, 999_999 - usize::from(announced)).await;
        assert!(got == body[..got.len()]);
        if checksum {
            // The last byte is not the one that was meant: whoever has read so far waits on.
            let wrong =
                patch(&node, &path, 999_999, vec![1]).header("Upload-Checksum", "sha1 AAAAAAAAAAAAAAAAAAAAAAAAAAA=");
            assert_eq!(wrong.send().await.unwrap().status().as_u16(), 460);
        }
        assert_eq!(tus(&node, "DELETE", &path).send().await.unwrap().status(), 204);
        let end = tokio::time::timeout(PATIENCE, async {
            while let Some(chunk) = following.next().await {
                chunk?;
            }
            reqwest::Result::Ok(())
        });
        assert!(end.await.expect("it ends").is_err(), "{announced}: it looks complete");
        assert_eq!(node.object("film").send().await.unwrap().status(), 404);
    }
    assert!(node.partials().is_empty(), "{:?}", node.partials());
}
