//! What the heads of HTTP/2 may say that those of HTTP/1.1 say otherwise: long ones in pieces, cookies in many fields, a
//! node that is named by `Host` alone, a body that waits to be sent for.

use std::time::Duration;

use crate::http2::{Line, serves};
use crate::support::frames::*;
use crate::tls::Secure;
use tokio::time::timeout;

/// A request in HEADERS and as many CONTINUATIONs as it takes.
async fn ask(line: &mut Line, stream: u32, flags: u8, block: &[u8]) -> bool {
    let mut pieces = block.chunks(16_384).peekable();
    let (mut kind, mut flags) = (HEADERS, flags);
    while let Some(piece) = pieces.next() {
        let end = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        if !line.send(&frame(kind, flags | end, stream, piece)).await {
            return false;
        }
        (kind, flags) = (CONTINUATION, 0);
    }
    true
}

fn head(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", method), (":scheme", "https"), (":path", path)];
    pseudo.iter().chain(more).flat_map(|(name, value)| literal(name, value)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_head_is_taken_in_pieces_up_to_its_bound() {
    let secure = Secure::start("h2-heads").await;
    let with = |bytes: usize| head("GET", "/healthz", &[(":authority", "localhost"), ("x", &"y".repeat(bytes))]);
    for (bytes, expected) in [(1_000, 200), (60_000, 200), (65_600, 431), (100_000, 431)] {
        let mut line = Line::ready(&secure).await;
        assert!(ask(&mut line, 1, END_STREAM, &with(bytes)).await);
        assert_eq!(line.status(1).await, expected, "{bytes}");
        // The others on the connection do not suffer.
        assert!(ask(&mut line, 3, END_STREAM, &with(10)).await);
        assert_eq!(line.status(3).await, 200, "{bytes}");
    }
    serves(&secure).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cookies_may_come_in_many_fields() {
    let secure = Secure::start("h2-cookies").await;
    let cookies = [("cookie", "a=b"); 90];
    let mut line = Line::ready(&secure).await;
    let block = head("GET", "/healthz", &[&[(":authority", "localhost")], &cookies[..]].concat());
    assert!(ask(&mut line, 1, END_STREAM, &block).await);
    assert_eq!(line.status(1).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_may_be_named_by_host_alone() {
    let secure = Secure::start("h2-host").await;
    for (host, expected) in [("localhost", 200), ("evil.example", 421)] {
        let mut line = Line::ready(&secure).await;
        assert!(ask(&mut line, 1, END_STREAM, &head("GET", "/v1/objects", &[("host", host)])).await);
        assert_eq!(line.status(1).await, expected, "{host}");
    }
}

/// HTTP/2 has no interim answer here: a client that waits for one waits as long as it likes to and then sends. The final
/// one, where it is a refusal, does not wait for the body.
#[tokio::test(flavor = "multi_thread")]
async fn who_expects_to_be_told_to_continue_is_told_the_end() {
    let secure = Secure::start("h2-expect").await;
    let put = |condition| {
        let named = [(":authority", "localhost"), ("content-length", "5"), ("expect", "100-continue")];
        head("PUT", "/v1/objects/a", &[&named[..], condition].concat())
    };
    let mut line = Line::ready(&secure).await;
    assert!(ask(&mut line, 1, 0, &put(&[])).await);
    assert!(timeout(Duration::from_millis(300), line.status(1)).await.is_err(), "an answer to half a request");
    assert!(line.send(&frame(DATA, END_STREAM, 1, b"hello")).await);
    assert_eq!(line.status(1).await, 201);
    assert!(ask(&mut line, 3, 0, &put(&[("if-none-match", "*")])).await);
    assert_eq!(line.status(3).await, 412);
}
