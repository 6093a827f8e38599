//! HTTP/1.1 as bytes on a connection: requests sent ahead, half-closed sockets, messages that two readers could read in two
//! ways, bounds of the head. What is no HTTP at all comes in `fuzz`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use crate::support::node::Node;
use crate::support::process::{rss, signal};
use crate::support::{Noise, raw, scratch};
use rustix::process::Signal;

/// A connection, and the answers that come on it one by one.
struct Client {
    stream: BufReader<TcpStream>,
}

/// One answer; its head in small letters.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Client {
    fn connect(node: SocketAddr) -> Client {
        let stream = TcpStream::connect(node).expect("the node listens");
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Client { stream: BufReader::new(stream) }
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.get_mut().write_all(bytes.as_ref()).expect("the node takes it");
    }

    /// The next answer; `None` when the connection is at its end.
    fn answer(&mut self, with_body: bool) -> Option<Answer> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.stream.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let head = head.to_lowercase();
        let status = head.split(' ').nth(1)?.parse().expect("a status");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; if with_body { length.unwrap_or(0) } else { 0 }];
        self.stream.read_exact(&mut body).ok()?;
        Some(Answer { status, head, body })
    }

    fn expect(&mut self, with_body: bool) -> Answer {
        self.answer(with_body).expect("an answer")
    }
}

async fn start(label: &str) -> (tempfile::TempDir, Node) {
    let folder = scratch(label);
    let node = Node::start(&folder.path().join("data")).await;
    (folder, node)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_sent_ahead_are_answered_in_their_order() {
    let (_folder, node) = start("pipelining").await;
    let body = Noise::bytes(81, 2_000_000);
    assert_eq!(node.put("film", body.clone()).send().await.unwrap().status(), 201);
    let mut client = Client::connect(node.addr());
    let mut requests = String::new();
    for n in 0..20 {
        requests +=
            &format!("GET /v1/objects/film HTTP/1.1\r\nHost: localhost\r\nRange: bytes={n}-{}\r\n\r\n", n + 100_000);
        requests += "HEAD /v1/objects/film HTTP/1.1\r\nHost: localhost\r\n\r\n";
        requests += "GET /v1/objects/none HTTP/1.1\r\nHost: localhost\r\n\r\n";
        requests += "PUT /v1/objects/small HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n";
        requests += "GET /v1/objects/film HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-0,-1\r\n\r\n";
    }
    client.send(requests + "GET /v1/objects/film HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    for n in 0..20 {
        let part = client.expect(true);
        assert!(part.status == 206 && part.body == body[n..n + 100_001], "{n}: {}", part.head);
        assert_eq!(client.expect(false).status, 200);
        assert_eq!(client.expect(true).status, 404);
        assert_eq!(client.expect(true).status, if n == 0 { 201 } else { 200 });
        assert_eq!(client.expect(true).status, 206);
    }
    assert!(client.expect(true).body == body);
    assert!(client.answer(true).is_none(), "closed, as asked");
}

/// `printf 'GET …' | nc -N` does this: the request is complete, and so is the client's side.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_closed_his_side_still_gets_his_answer() {
    let (_folder, node) = start("half-closed").await;
    let body = Noise::bytes(82, 20_000_000);
    let mut client = Client::connect(node.addr());
    client.send(format!("PUT /v1/objects/film HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len()));
    client.send(&body);
    client.stream.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.expect(true).status, 201);
    assert!(client.answer(true).is_none(), "nothing more can come");

    let mut client = Client::connect(node.addr());
    client.send("GET /v1/objects/film HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client.stream.get_ref().shutdown(Shutdown::Write).unwrap();
    // Longer than any buffer on the way, and taken slowly.
    std::thread::sleep(Duration::from_millis(200));
    assert!(client.expect(true).body == body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_announced_is_only_sent_for_when_it_is_wanted() {
    let (_folder, node) = start("continue").await;
    let mut client = Client::connect(node.addr());
    let put = |condition: &str| {
        format!(
            "PUT /v1/objects/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n{condition}\r\n"
        )
    };
    client.send(put(""));
    assert_eq!(client.expect(false).status, 100);
    client.send("hello");
    assert_eq!(client.expect(true).status, 201);
    // Refused before a byte of it was sent.
    client.send(put("If-None-Match: *\r\n"));
    assert_eq!(client.expect(true).status, 412);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_with_two_meanings_are_refused() {
    let (_folder, node) = start("smuggling").await;
    for (bad, expected) in [
        ("PUT /v1/objects/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
        ("PUT /v1/objects/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5, 5\r\n\r\nhello", 400),
        ("PUT /v1/objects/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: +5\r\n\r\nhello", 400),
        ("PUT /v1/objects/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\nhello", 400),
        ("PUT /v1/objects/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
        ("PUT /v1/objects/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        ("PUT /v1/objects/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", 400),
        // The chunks would be taken off, and what is left stored as it is.
        (
            "PUT /v1/objects/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
            501,
        ),
        (
            "PUT /v1/objects/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
            400,
        ),
        ("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX\0: a\r\n\r\n", 400),
        ("GET /healthz HTTP/9.9\r\nHost: localhost\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: y\r\nConnection: close\r\n\r\n", 400),
        ("GET /health z HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        ("\u{16}\u{3}\u{1}\u{2}", 400),
    ] {
        // What stands behind it must never be taken for a request.
        let (status, answer) =
            raw::exchange(node.addr(), format!("{bad}GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        assert_eq!(status, expected, "{bad:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{bad:?}: {answer}");
    }
    // A length beside chunks does not count, and the connection is not used again.
    let both = "PUT /v1/objects/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n";
    let (status, answer) =
        raw::exchange(node.addr(), format!("{both}GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
    assert!((status == 201 || status == 400) && answer.matches("HTTP/1.1 ").count() == 1, "{answer}");
    assert!(!answer.contains("smuggled"), "{answer}");
    // The whole address in the request line is a way to say the same.
    let absolute =
        format!("GET http://{}/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", node.addr());
    assert_eq!(raw::exchange(node.addr(), absolute.as_bytes()).0, 200);
    let foreign = "GET http://evil.example/v1/objects/a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(raw::exchange(node.addr(), foreign.as_bytes()).0, 421, "Host counts for less than the address");
    for method in ["TRACE", "CONNECT", "PROPFIND", "get"] {
        let (status, answer) = raw::request(node.addr(), method, "/v1/objects/a", b"");
        assert_eq!(status, 405, "{method}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_has_bounds() {
    let (_folder, node) = start("heads").await;
    let long = "y".repeat(70_000);
    for (name, head, expected) in [
        ("many headers", format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{}", "X: y\r\n".repeat(120)), 431),
        ("one large header", format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\n"), 431),
        ("a long address", format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n"), 414),
        ("a long query", format!("GET /v1/objects?prefix={long} HTTP/1.1\r\nHost: localhost\r\n"), 414),
    ] {
        let (status, answer) = raw::exchange(node.addr(), format!("{head}Connection: close\r\n\r\n").as_bytes());
        assert_eq!(status, expected, "{name}: {answer}");
    }
    // One that never ends is answered at the bound; what still comes is thrown away, not kept.
    let before = rss(node.pid());
    let mut client = Client::connect(node.addr());
    client.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ");
    (0..512).for_each(|_| client.send([b'y'; 64 << 10]));
    assert_eq!(client.expect(true).status, 431);
    let grown = rss(node.pid()).saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes for 32 MiB of a header");
}

/// A `sendfile` in which the node was stopped ends with a part, though the client takes all there is. Who took that for a full
/// socket would wait for room that nobody announces.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_stopped_and_continued_goes_on_sending() {
    let folder = scratch("continued");
    let node = Node::start(&folder.path().join("data")).await;
    let length = 64 << 20;
    assert_eq!(node.put("large", vec![7; length]).send().await.unwrap().status(), 201);
    let (address, pid) = (node.addr(), node.pid());
    let taken = tokio::task::spawn_blocking(move || {
        let mut client = Client::connect(address);
        for _ in 0..16 {
            client.send(format!("GET /v1/objects/large HTTP/1.1\r\nHost: {address}\r\n\r\n"));
            assert_eq!(client.answer(true).unwrap().body.len(), length);
        }
    });
    while !taken.is_finished() {
        signal(pid, Signal::STOP);
        tokio::time::sleep(Duration::from_millis(5)).await;
        signal(pid, Signal::CONT);
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    taken.await.unwrap();
}
