//! Resumable uploads over HTTP/2, where a request is a stream among others: taken over, reset, cut into very small pieces or
//! into nothing, outlasting a GOAWAY; and many at once on one upload.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use reqwest::{Body, Client, Method, RequestBuilder};

use super::{header, metadata};
use crate::http2::{Line, Said};
use crate::support::frames::*;
use crate::support::{Noise, eventually};
use crate::tls::Secure;

const SOON: Duration = Duration::from_secs(20);

/// A node, and a client whose requests are streams of one connection.
struct Uploader {
    secure: Secure,
    client: Client,
}

impl Uploader {
    async fn start(label: &str) -> Uploader {
        let secure = Secure::start(label).await;
        let client = secure.client().build().unwrap();
        Uploader { secure, client }
    }

    fn tus(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.secure.url(path)).header("Tus-Resumable", "1.0.0")
    }

    async fn create(&self, key: &str, length: usize) -> String {
        let create = self.tus(Method::POST, "/v1/uploads").header("Upload-Length", length);
        let created = create.header("Upload-Metadata", metadata(&[("key", key)])).send().await.unwrap();
        assert_eq!((created.status().as_u16(), created.version()), (201, reqwest::Version::HTTP_2));
        header(&created, "location").to_owned()
    }

    fn patch(&self, path: &str, offset: usize, body: impl Into<Body>) -> RequestBuilder {
        let patch = self.tus(Method::PATCH, path).header("Content-Type", "application/offset+octet-stream");
        patch.header("Upload-Offset", offset).body(body)
    }

    async fn offset(&self, path: &str) -> usize {
        let head = self.tus(Method::HEAD, path).send().await.unwrap();
        assert_eq!(head.status(), 200, "{head:?}");
        header(&head, "upload-offset").parse().unwrap()
    }

    async fn reaches(&self, path: &str, offset: usize) {
        eventually("the offset", SOON, async || (self.offset(path).await == offset).then_some(())).await;
    }

    async fn stored(&self, key: &str) -> Bytes {
        let got = self.client.get(self.secure.url(&format!("/v1/objects/{key}"))).send().await.unwrap();
        assert_eq!(got.status(), 200);
        got.bytes().await.unwrap()
    }
}

/// A PATCH without its body, by hand.
fn patch_by_hand(stream: u32, path: &str, offset: usize) -> Vec<u8> {
    request(stream, END_HEADERS, &patch_head(path, offset))
}

fn patch_head(path: &str, offset: usize) -> Vec<u8> {
    let fields = [
        (":method", "PATCH"),
        (":scheme", "https"),
        (":path", path),
        (":authority", "localhost"),
        ("tus-resumable", "1.0.0"),
        ("content-type", "application/offset+octet-stream"),
        ("upload-offset", &offset.to_string()),
    ];
    fields.iter().flat_map(|(name, value)| literal(name, value)).collect()
}

/// What comes, and then nothing more.
fn unfinished(bytes: &[u8]) -> Body {
    let first = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::copy_from_slice(bytes))]);
    Body::wrap_stream(first.chain(futures_util::stream::pending()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_stream_takes_over_and_one_that_is_reset_leaves_what_came() {
    let up = Uploader::start("h2-takeover").await;
    let body = Noise::bytes(1, 900_000);
    let path = up.create("film", body.len()).await;
    let older = tokio::spawn(up.patch(&path, 0, unfinished(&body[..300_000])).send());
    // Told as soon as it is durable, although the request goes on.
    up.reaches(&path, 300_000).await;
    let newer = up.patch(&path, 300_000, body[300_000..600_000].to_vec()).send().await.unwrap();
    assert_eq!((newer.status().as_u16(), header(&newer, "upload-offset")), (204, "600000"));
    let older = older.await.unwrap().unwrap();
    assert_eq!(older.status(), 409);
    assert!(older.text().await.unwrap().contains("pre-empted"));

    let reset = tokio::spawn(up.patch(&path, 600_000, unfinished(&body[600_000..800_000])).send());
    tokio::time::sleep(Duration::from_millis(300)).await;
    reset.abort();
    up.reaches(&path, 800_000).await;
    let last = up.patch(&path, 800_000, body[800_000..].to_vec()).send().await.unwrap();
    assert_eq!((last.status().as_u16(), header(&last, "upload-offset")), (204, "900000"));
    assert!(up.stored("film").await == body);
    assert!(up.secure.node.partials().is_empty());
}

/// What HTTP/1.1 says by a length of 0 is said here by the end of the stream; and a trailer needs no chunks.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_may_be_nothing_and_its_checksum_a_trailer() {
    let up = Uploader::start("h2-trailer").await;
    let path = up.create("film", 5).await;
    for (sum, expected) in [("md5 AAAAAAAAAAAAAAAAAAAAAA==", 460), ("md5 XUFAKrxLKna5cZ2REBfFkg==", 204)] {
        let mut line = Line::ready(&up.secure).await;
        let head = [patch_head(&path, 0), literal("trailer", "upload-checksum")].concat();
        let frames = [
            request(1, END_HEADERS, &head),
            frame(DATA, 0, 1, b"hello"),
            request(1, END_STREAM | END_HEADERS, &literal("upload-checksum", sum)),
        ];
        line.send(&frames.concat()).await;
        assert_eq!(line.status(1).await, expected, "{sum}");
    }
    // A client whose answer was lost repeats its last request, which has nothing to add.
    let mut line = Line::ready(&up.secure).await;
    line.send(&request(1, END_STREAM | END_HEADERS, &patch_head(&path, 5))).await;
    assert_eq!(line.status(1).await, 204);
    assert_eq!(up.stored("film").await, "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_outlasts_its_clients_goaway() {
    let up = Uploader::start("h2-goaway").await;
    let path = up.create("film", 30_000).await;
    let mut line = Line::ready(&up.secure).await;
    line.send(&[patch_by_hand(1, &path, 0), frame(DATA, 0, 1, &[1; 15_000])].concat()).await;
    // No more streams of the node's, of which there are none anyway.
    line.send(&frame(GOAWAY, 0, 0, &[0; 8])).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    line.send(&frame(DATA, END_STREAM, 1, &[2; 15_000])).await;
    assert_eq!(line.status(1).await, 204);
    assert!(up.stored("film").await == [[1; 15_000], [2; 15_000]].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_keeps_what_came_and_says_so() {
    let up = Uploader::start("h2-drain-upload").await;
    let path = up.create("film", 30_000).await;
    let mut line = Line::ready(&up.secure).await;
    line.send(&[patch_by_hand(1, &path, 0), frame(DATA, 0, 1, &[1; 15_000])].concat()).await;
    up.reaches(&path, 15_000).await;
    up.secure.node.terminate();
    let mut told = String::new();
    loop {
        match line.next().await {
            Said::Frame { kind: DATA, stream: 1, payload, flags } => {
                told += &String::from_utf8_lossy(&payload);
                if flags & END_STREAM != 0 {
                    break;
                }
            }
            Said::Closed => break,
            Said::Frame { .. } => {}
        }
    }
    assert!(told.contains("problem:draining") && told.contains("15000 bytes are kept"), "{told:?}");
    assert!(up.secure.node.ended(SOON).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn small_pieces_are_put_together_and_empty_ones_have_an_end() {
    let up = Uploader::start("h2-crumbs").await;
    let body = Noise::bytes(2, 50_000);
    let path = up.create("film", body.len()).await;
    let mut line = Line::ready(&up.secure).await;
    line.send(&patch_by_hand(1, &path, 0)).await;
    // A live source that sends what it has: thousands of frames, a few of them of nothing.
    for (at, crumbs) in body[..40_000].chunks(1_000).enumerate() {
        let mut frames: Vec<u8> = crumbs.chunks(10).flat_map(|crumb| frame(DATA, 0, 1, crumb)).collect();
        if at % 4 == 0 {
            frames.extend(frame(DATA, 0, 1, &[]));
        }
        assert!(line.send(&frames).await);
    }
    line.send(&frame(DATA, END_STREAM, 1, &[])).await;
    assert_eq!(line.status(1).await, 204);
    assert_eq!(up.offset(&path).await, 40_000);

    // Nothing but nothing ends the connection, and not the upload.
    let mut line = Line::ready(&up.secure).await;
    line.send(&[patch_by_hand(1, &path, 40_000), frame(DATA, 0, 1, &body[40_000..45_000])].concat()).await;
    up.reaches(&path, 45_000).await;
    let nothing = frame(DATA, 0, 1, &[]).repeat(1_000);
    let mut sent = 0;
    while sent < 1_000 && line.send(&nothing).await {
        sent += 1;
    }
    assert!(sent < 1_000, "a million frames of nothing were taken");
    assert_eq!(up.patch(&path, 45_000, body[45_000..].to_vec()).send().await.unwrap().status(), 204);
    assert!(up.stored("film").await == body);
}

/// Whoever looks for an upload while another is completing it or giving it up finds neither it nor, for a moment, what
/// became of it. He is told what became of it all the same, and does not undo it.
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_at_the_very_end_is_told_how_it_ended() {
    const ROUNDS: usize = 60;
    let up = Uploader::start("h2-ending").await;
    for round in 0..ROUNDS {
        let deleted = round % 2 == 0;
        let path = up.create("film", 100).await;
        let mut clients = tokio::task::JoinSet::new();
        for client in 0..8 {
            let request = match client {
                3 if deleted => up.tus(Method::DELETE, &path),
                3 => up.patch(&path, 0, vec![1; 100]),
                _ => up.patch(&path, 0, vec![1; 50]),
            };
            clients.spawn(async move {
                tokio::time::sleep(Duration::from_micros(200 * client)).await;
                let answer = request.send().await.unwrap();
                (answer.status().as_u16(), answer.text().await.unwrap())
            });
        }
        for (status, text) in clients.join_all().await {
            assert!([204, 403, 404, 409, 410].contains(&status), "round {round}: {status} {text}");
        }
        if !deleted && up.offset(&path).await < 100 {
            let rest = up.offset(&path).await;
            assert_eq!(up.patch(&path, rest, vec![1; 100 - rest]).send().await.unwrap().status(), 204, "round {round}");
        }
        if !deleted {
            assert_eq!(up.offset(&path).await, 100, "round {round}");
            assert!(up.stored("film").await == [1; 100][..]);
        }
    }
    let log = up.secure.node.log();
    assert!(!log.contains(" ERROR ") && !log.contains(" WARN "), "{log}");
}
