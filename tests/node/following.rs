//! An object that is read while it is written: readers follow the writer, and end as it ends.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use reqwest::{Method, Response};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use crate::support::nginx::Nginx;
use crate::support::node::Node;
use crate::support::{Noise, eventually, raw, scratch, sha256};

const PATIENCE: Duration = Duration::from_secs(30);

/// An upload that goes on as the test tells it.
struct Upload {
    pieces: mpsc::Sender<Result<Bytes, std::io::Error>>,
    answer: JoinHandle<reqwest::Result<Response>>,
}

impl Upload {
    async fn begin(node: &Node, key: &str, announced: Option<usize>, headers: &[(&'static str, String)]) -> Upload {
        let (pieces, body) = mpsc::channel(1);
        let mut request = node.put(key, reqwest::Body::wrap_stream(ReceiverStream::new(body)));
        if let Some(length) = announced {
            request = request.header("content-length", length);
        }
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        Upload { pieces, answer: tokio::spawn(request.send()) }
    }

    async fn send(&self, bytes: &[u8]) {
        for piece in bytes.chunks(64 << 10) {
            self.pieces.send(Ok(Bytes::copy_from_slice(piece))).await.expect("the node takes the upload");
        }
    }

    async fn finish(self) -> u16 {
        drop(self.pieces);
        self.answer.await.unwrap().expect("an answer").status().as_u16()
    }

    /// The client goes away.
    async fn cut(self) {
        let _ = self.pieces.send(Err(std::io::Error::other("cut"))).await;
        assert!(self.answer.await.unwrap().is_err());
    }
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().expect("a readable header"))
}

/// A GET that finds the writer: the upload may just have begun.
pub async fn follow(node: &Node, key: &str, range: Option<&str>) -> Response {
    eventually("somebody writes it", PATIENCE, async || {
        let mut request = node.object(key);
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let response = request.send().await.unwrap();
        (response.status() != 404).then_some(response)
    })
    .await
}

pub async fn take(stream: &mut (impl Stream<Item = reqwest::Result<Bytes>> + Unpin), len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let next = tokio::time::timeout(PATIENCE, stream.next()).await.expect("bytes that were sent arrive");
        bytes.extend_from_slice(&next.expect("more").unwrap());
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_follows_an_upload_and_ends_with_it() {
    let folder = scratch("following");
    let node = Node::start(&folder.path().join("data")).await;
    let body = Noise::bytes(1, 3_000_001);
    for announced in [true, false] {
        let key = format!("film-{announced}.mp4");
        let upload = Upload::begin(&node, &key, announced.then_some(body.len()), &[]).await;
        let following = follow(&node, &key, None).await;
        assert_eq!(following.status(), 200);
        assert_eq!(header(&following, "content-length"), if announced { "3000001" } else { "" });
        assert_eq!(header(&following, "content-type"), "video/mp4");
        assert_eq!(header(&following, "cache-control"), "no-store");
        let tag = header(&following, "etag").to_string();
        assert!(tag.starts_with("\"writing-"), "{tag}");
        let head = node.request(Method::HEAD, &format!("/v1/objects/{key}")).send().await.unwrap();
        assert_eq!((head.status().as_u16(), header(&head, "etag")), (200, &*tag));

        let mut following = following.bytes_stream();
        upload.send(&body[..700_000]).await;
        let mut got = take(&mut following, 700_000).await;
        upload.send(&body[700_000..]).await;
        got.extend(take(&mut following, 2_000_000).await);
        assert!(
            tokio::time::timeout(PATIENCE, node.json("/v1/objects")).await.unwrap()["objects"].as_array().is_some()
        );
        assert_eq!(upload.finish().await, 201);
        while let Some(chunk) = following.next().await {
            got.extend_from_slice(&chunk.unwrap());
        }
        assert!(got == body, "{key}");
        let stored = node.object(&key).header("if-none-match", &tag).send().await.unwrap();
        assert_eq!(stored.status(), 200, "the object has another tag");
        assert!(header(&stored, "etag").len() == 66 && stored.bytes().await.unwrap() == body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_fails_never_looks_complete() {
    let folder = scratch("following-fails");
    let node = Node::start_with(&folder.path().join("data"), &[("REELRING_QUOTA", "20MiB")]).await;
    let body = Noise::bytes(2, 1_500_000);

    for announced in [Some(body.len()), None] {
        // The client goes away after all but the last byte, and after all of them.
        for sent in [body.len() - 1, body.len()] {
            let upload = Upload::begin(&node, "cut", announced, &[]).await;
            let following = tokio::spawn(follow(&node, "cut", None).await.bytes());
            upload.send(&body[..sent]).await;
            if announced.is_none() || sent < body.len() {
                upload.cut().await;
                assert!(following.await.unwrap().is_err(), "{announced:?} {sent}");
            } else {
                assert!(upload.finish().await < 300);
                assert!(following.await.unwrap().unwrap() == body);
                node.request(Method::DELETE, "/v1/objects/cut").send().await.unwrap();
            }
        }
        // All bytes arrive, and are not those that were meant.
        let digest = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:".to_string();
        let upload = Upload::begin(&node, "wrong", announced, &[("repr-digest", digest)]).await;
        let following = tokio::spawn(follow(&node, "wrong", None).await.bytes());
        upload.send(&body).await;
        assert_eq!(upload.finish().await, 400);
        assert!(following.await.unwrap().is_err(), "{announced:?}");
    }
    // The quota ends it in the middle.
    let upload = Upload::begin(&node, "full", None, &[]).await;
    let following = tokio::spawn(follow(&node, "full", None).await.bytes());
    let large = Noise::bytes(3, 1 << 20);
    while upload.pieces.send(Ok(large.clone().into())).await.is_ok() {}
    let answer = upload.answer.await.unwrap();
    assert!(answer.map_or(true, |answer| answer.status() == 507));
    assert!(following.await.unwrap().is_err());
    eventually("nothing stays behind", PATIENCE, async || node.partials().is_empty().then_some(())).await;
    assert_eq!(node.object("full").send().await.unwrap().status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_what_is_written() {
    let folder = scratch("following-ranges");
    let node = Node::start(&folder.path().join("data")).await;
    let body = Noise::bytes(4, 2_000_000);
    let upload = Upload::begin(&node, "film", Some(body.len()), &[]).await;
    let unknown = Upload::begin(&node, "live", None, &[]).await;
    follow(&node, "film", None).await;
    follow(&node, "live", None).await;
    let later = tokio::spawn(follow(&node, "film", Some("bytes=1500000-1500009")).await.bytes());
    let end = follow(&node, "film", Some("bytes=-5")).await;
    assert_eq!(header(&end, "content-range"), "bytes 1999995-1999999/2000000");
    let end = tokio::spawn(end.bytes());
    upload.send(&body[..1_000_000]).await;
    unknown.send(&body[..1_000_000]).await;
    for (key, length) in [("film", "2000000"), ("live", "*")] {
        for (range, from, to) in [("bytes=0-1", 0, 2), ("bytes=262100-262300", 262_100, 262_301)] {
            let part = follow(&node, key, Some(range)).await;
            assert_eq!(part.status(), 206);
            assert_eq!(header(&part, "content-range"), format!("bytes {from}-{}/{length}", to - 1));
            assert!(part.bytes().await.unwrap() == body[from..to], "complete while the upload goes on");
        }
    }
    assert_eq!(follow(&node, "live", Some("bytes=5-")).await.status(), 200, "its last byte is not known");
    let outside = follow(&node, "film", Some("bytes=2000000-")).await;
    assert_eq!((outside.status().as_u16(), header(&outside, "content-range")), (416, "bytes */2000000"));
    let other = node.object("film").header("if-match", "\"abc\"").send().await.unwrap();
    assert_eq!(other.status(), 412);
    let request = b"GET /v1/objects/live HTTP/1.0\r\n\r\n";
    let (status, answer) = raw::exchange(node.addr(), request);
    assert!(
        status == 503 && answer.to_lowercase().contains("retry-after"),
        "HTTP/1.0 could not tell its end: {answer}"
    );

    assert!(!later.is_finished() && !end.is_finished());
    upload.send(&body[1_000_000..]).await;
    assert_eq!(upload.finish().await, 201);
    assert!(later.await.unwrap().unwrap() == body[1_500_000..1_500_010]);
    assert!(end.await.unwrap().unwrap() == body[1_999_995..]);
    unknown.cut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_is_served_until_the_new_one_is_stored() {
    let folder = scratch("following-replace");
    let node = Node::start(&folder.path().join("data")).await;
    let (old, new) = (Noise::bytes(5, 400_000), Noise::bytes(6, 900_000));
    assert_eq!(node.put("film", old.clone()).send().await.unwrap().status(), 201);
    let upload = Upload::begin(&node, "film", Some(new.len()), &[]).await;
    // All but one byte: with the last of those announced it is over, whether or not the sender has said so.
    let last = new.len() - 1;
    upload.send(&new[..last]).await;
    // Known to nobody but the test: the upload has begun, since its pieces were taken.
    assert!(node.object("film").send().await.unwrap().bytes().await.unwrap() == old);
    upload.send(&new[last..]).await;
    assert_eq!(upload.finish().await, 200);
    assert!(node.object("film").send().await.unwrap().bytes().await.unwrap() == new);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_follow_a_fetch() {
    let folder = scratch("following-fetch");
    let nginx = Nginx::start(2 << 20);
    let node = Node::start(&folder.path().join("data")).await;
    let film = Noise::bytes(7, 8 << 20);
    std::fs::write(nginx.root().join("film.mp4"), &film).unwrap();
    let job = node.submit(json!({"kind": "fetch", "url": nginx.url("slow/film.mp4"), "key": "film.mp4"})).await;
    let mut readers = tokio::task::JoinSet::new();
    // The first one waits until there is something to follow.
    let first = follow(&node, "film.mp4", None).await;
    for _ in 0..200 {
        let request = node.object("film.mp4");
        readers.spawn(async move {
            let answer = request.send().await.unwrap();
            let followed = header(&answer, "etag").starts_with("\"writing-");
            (followed, answer.bytes().await.map(|bytes| sha256(&bytes)))
        });
    }
    node.done(&job, PATIENCE).await;
    let expected = sha256(&film);
    assert_eq!(sha256(&first.bytes().await.unwrap()), expected);
    let mut followed = 0;
    while let Some(reader) = tokio::time::timeout(PATIENCE, readers.join_next()).await.expect("they end") {
        let (one_more, hash) = reader.unwrap();
        assert_eq!(hash.unwrap(), expected);
        followed += usize::from(one_more);
    }
    println!("{followed} of 200 came before the fetch was over");
    assert!(followed > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_does_not_wait_for_followers() {
    let folder = scratch("following-drain");
    let data = folder.path().join("data");
    let node = Node::start(&data).await;
    let upload = Upload::begin(&node, "film", None, &[]).await;
    let following = tokio::spawn(follow(&node, "film", None).await.bytes());
    upload.send(&Noise::bytes(8, 500_000)).await;
    let addr: SocketAddr = node.addr();
    node.terminate();
    let followed = tokio::time::timeout(Duration::from_secs(10), following).await.expect("it ends with the node");
    assert!(followed.unwrap().is_err());
    // The upload may still end, and is stored.
    assert_eq!(upload.finish().await, 201);
    assert!(node.ended(Duration::from_secs(30)).await.success());
    assert!(tokio::net::TcpStream::connect(addr).await.is_err());
    let node = Node::start(&data).await;
    assert_eq!(node.object("film").send().await.unwrap().bytes().await.unwrap(), Noise::bytes(8, 500_000));
}
