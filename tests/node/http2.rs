//! HTTP/2 as RFC 9113 has it, broken frame by broken frame, and what has brought servers down since; what others test is in
//! `http2_suite`.
//!
//! Frames are made by hand. To every violation the node must answer with an error of the RFC, or close; and it must go
//! on to serve others, in memory that does not grow.

use std::time::Duration;

use crate::support::frames::*;
use crate::support::process::{peak_rss, rss};
use crate::tls::Secure;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

const PATIENCE: Duration = Duration::from_secs(20);

/// Error codes.
const PROTOCOL: u32 = 1;
const FLOW_CONTROL: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE: u32 = 6;
const REFUSED: u32 = 7;
const COMPRESSION: u32 = 9;
const CALM: u32 = 11;

/// What the node said: a frame, or nothing more.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Frame { kind: u8, flags: u8, stream: u32, payload: Vec<u8> },
    Closed,
}

pub struct Line {
    pub stream: TlsStream<TcpStream>,
}

/// A connection on which HTTP/2 is to be spoken, and nothing was said yet.
pub async fn connect(secure: &Secure) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(secure.node.addr()).await.unwrap();
    let stream = secure.encrypt(stream, &[b"h2"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    stream
}

impl Line {
    pub async fn open(secure: &Secure) -> Line {
        Line { stream: connect(secure).await }
    }

    /// Past the preface and both sides' settings.
    pub async fn ready(secure: &Secure) -> Line {
        let mut line = Line::open(secure).await;
        line.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
        line.send(&frame(SETTINGS, ACK, 0, &[])).await;
        line
    }

    /// The node may close before it has taken everything.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        let sent = timeout(PATIENCE, async { self.stream.write_all(bytes).await.and(self.stream.flush().await) }).await;
        sent.is_ok_and(|sent| sent.is_ok())
    }

    pub async fn next(&mut self) -> Said {
        let read = async {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            assert!(length <= 16_384, "a frame larger than was allowed");
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
            Some(Said::Frame { kind: head[3], flags: head[4], stream, payload })
        };
        timeout(PATIENCE, read).await.expect("the node says something in time").unwrap_or(Said::Closed)
    }

    /// The first word of refusal: the code of a GOAWAY or RST_STREAM, or that the connection is gone.
    pub async fn refusal(&mut self) -> Option<u32> {
        loop {
            match self.next().await {
                Said::Closed => return None,
                Said::Frame { kind: GOAWAY, payload, .. } => {
                    return Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
                }
                Said::Frame { kind: RST_STREAM, payload, .. } => {
                    return Some(u32::from_be_bytes(payload[..4].try_into().unwrap()));
                }
                Said::Frame { .. } => {}
            }
        }
    }

    /// The status on a stream; 0 where there will be none.
    pub async fn status(&mut self, wanted: u32) -> u16 {
        loop {
            match self.next().await {
                Said::Frame { kind: HEADERS, stream, payload, .. } if stream == wanted => return status_in(&payload),
                Said::Frame { kind: RST_STREAM, stream, .. } if stream == wanted => return 0,
                Said::Frame { kind: GOAWAY, .. } | Said::Closed => return 0,
                Said::Frame { .. } => {}
            }
        }
    }
}

pub async fn serves(secure: &Secure) {
    let mut line = Line::ready(secure).await;
    line.send(&request(1, END_STREAM | END_HEADERS, &get())).await;
    assert_eq!(line.status(1).await, 200, "it serves no more");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_broken_frame_is_answered_with_an_error() {
    let secure = Secure::start("h2-broken").await;
    serves(&secure).await;
    let all = END_STREAM | END_HEADERS;
    let open = || request(1, END_HEADERS, &get());
    let whole = || request(1, all, &get());
    let bad = |extra: Vec<u8>| request(1, all, &[get(), extra].concat());
    let cases: Vec<(&str, Vec<u8>, &[u32])> = vec![
        ("4.2 DATA larger than allowed", [open(), frame(DATA, 0, 1, &[0; 16_385])].concat(), &[FRAME_SIZE]),
        ("4.2 HEADERS larger than allowed", request(1, all, &[0; 16_385]), &[FRAME_SIZE]),
        ("4.3 a header block that is none", request(1, all, &[0x80]), &[COMPRESSION]),
        ("4.3 an index beyond the tables", request(1, all, &[0xff, 0xff, 0xff, 0x0f]), &[COMPRESSION]),
        ("4.3 a table size beyond the setting", request(1, all, &[0x3f, 0xff, 0xff, 0x7f]), &[COMPRESSION]),
        ("4.3 Huffman code with a wrong end", bad(vec![0x00, 0x81, 0x00, 0x00]), &[COMPRESSION]),
        ("5.1 DATA on an idle stream", frame(DATA, END_STREAM, 1, b"x"), &[PROTOCOL]),
        ("5.1 RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), &[PROTOCOL]),
        ("5.1 WINDOW_UPDATE on an idle stream", frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]), &[PROTOCOL]),
        ("5.1 CONTINUATION on an idle stream", frame(CONTINUATION, END_HEADERS, 1, &get()), &[PROTOCOL]),
        ("5.1 DATA after the end", [whole(), frame(DATA, END_STREAM, 1, b"x")].concat(), &[STREAM_CLOSED, PROTOCOL]),
        ("5.1 HEADERS after the end", [whole(), whole()].concat(), &[STREAM_CLOSED, PROTOCOL]),
        ("5.1.1 an even stream", request(2, all, &get()), &[PROTOCOL]),
        (
            "5.1.1 a smaller stream",
            [request(5, all, &get()), request(3, all, &get())].concat(),
            &[PROTOCOL, STREAM_CLOSED],
        ),
        ("6.1 DATA on stream 0", frame(DATA, 0, 0, b"x"), &[PROTOCOL]),
        ("6.1 padding longer than the frame", [open(), frame(DATA, PADDED, 1, &[5, 1])].concat(), &[PROTOCOL]),
        ("6.2 HEADERS on stream 0", request(0, all, &get()), &[PROTOCOL]),
        ("6.2 HEADERS with too much padding", request(1, all | PADDED, &[200, 0x82]), &[PROTOCOL]),
        (
            "6.2 another frame within a header block",
            [request(1, END_STREAM, &get()), frame(PING, 0, 0, &[0; 8])].concat(),
            &[PROTOCOL],
        ),
        (
            "6.2 another stream within a header block",
            [request(1, END_STREAM, &get()), request(3, all, &get())].concat(),
            &[PROTOCOL],
        ),
        ("6.3 PRIORITY on stream 0", frame(PRIORITY, 0, 0, &[0, 0, 0, 1, 9]), &[PROTOCOL]),
        ("6.3 PRIORITY of a wrong length", [open(), frame(PRIORITY, 0, 1, &[0; 4])].concat(), &[FRAME_SIZE]),
        ("6.4 RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, &[0, 0, 0, 8]), &[PROTOCOL]),
        ("6.4 RST_STREAM of a wrong length", [open(), frame(RST_STREAM, 0, 1, &[0; 3])].concat(), &[FRAME_SIZE]),
        ("6.5 an acknowledgement with a payload", frame(SETTINGS, ACK, 0, &[0; 6]), &[FRAME_SIZE]),
        ("6.5 SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), &[PROTOCOL]),
        ("6.5 SETTINGS of a wrong length", frame(SETTINGS, 0, 0, &[0; 5]), &[FRAME_SIZE]),
        ("6.5.2 ENABLE_PUSH is 2", setting(2, 2), &[PROTOCOL]),
        ("6.5.2 INITIAL_WINDOW_SIZE too large", setting(4, 1 << 31), &[FLOW_CONTROL]),
        ("6.5.2 MAX_FRAME_SIZE too small", setting(5, 16_383), &[PROTOCOL]),
        ("6.5.2 MAX_FRAME_SIZE too large", setting(5, 1 << 24), &[PROTOCOL]),
        (
            "6.6 PUSH_PROMISE from a client",
            [open(), frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])].concat(),
            &[PROTOCOL],
        ),
        ("6.7 PING on a stream", frame(PING, 0, 1, &[0; 8]), &[PROTOCOL]),
        ("6.7 PING of a wrong length", frame(PING, 0, 0, &[0; 7]), &[FRAME_SIZE]),
        ("6.8 GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8]), &[PROTOCOL]),
        ("6.9 WINDOW_UPDATE by 0", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), &[PROTOCOL]),
        ("6.9 WINDOW_UPDATE by 0 on a stream", [open(), frame(WINDOW_UPDATE, 0, 1, &[0; 4])].concat(), &[PROTOCOL]),
        ("6.9 WINDOW_UPDATE of a wrong length", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), &[FRAME_SIZE]),
        ("6.9.1 a window beyond its limit", frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), &[FLOW_CONTROL]),
        (
            "6.9.1 a stream's window beyond its limit",
            [open(), frame(WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff])].concat(),
            &[FLOW_CONTROL],
        ),
        (
            "6.10 CONTINUATION after the end of a block",
            [open(), frame(CONTINUATION, END_HEADERS, 1, &[])].concat(),
            &[PROTOCOL],
        ),
        (
            "6.10 CONTINUATION on stream 0",
            [request(1, END_STREAM, &get()), frame(CONTINUATION, END_HEADERS, 0, &[])].concat(),
            &[PROTOCOL],
        ),
        ("8.1 a second block without the end", [open(), open()].concat(), &[PROTOCOL]),
        ("8.2 a name in capitals", bad(literal("X-Test", "a")), &[PROTOCOL]),
        ("8.2.2 a header of the connection", bad(literal("connection", "close")), &[PROTOCOL]),
        ("8.2.2 TE other than trailers", bad(literal("te", "gzip")), &[PROTOCOL]),
        ("8.3 an unknown pseudo-header", bad(literal(":test", "a")), &[PROTOCOL]),
        ("8.3 a pseudo-header of answers", bad(literal(":status", "200")), &[PROTOCOL]),
        ("8.3 a pseudo-header after others", request(1, all, &[literal("x", "y"), get()].concat()), &[PROTOCOL]),
        ("8.3.1 no method", request(1, all, &get()[1..]), &[PROTOCOL]),
        ("8.3.1 the method twice", request(1, all, &[&[0x82][..], &get()].concat()), &[PROTOCOL]),
        (
            "8.1.1 less than Content-Length",
            [
                request(1, END_HEADERS, &[get(), literal("content-length", "5")].concat()),
                frame(DATA, END_STREAM, 1, b"x"),
            ]
            .concat(),
            &[PROTOCOL],
        ),
    ];
    let mut wrong = Vec::new();
    for (what, bytes, expected) in &cases {
        let mut line = Line::ready(&secure).await;
        line.send(bytes).await;
        // What stays quiet otherwise speaks when the client leaves.
        line.send(&frame(PING, 0, 0, &[1; 8])).await;
        let code =
            timeout(PATIENCE, line.refusal()).await.unwrap_or_else(|_| panic!("{what}: nothing in {PATIENCE:?}"));
        // A generic code may always stand for a more specific one (RFC 9113, 5.4); which do: docs/design/http.md.
        if code == Some(PROTOCOL) && expected[0] != PROTOCOL {
            eprintln!("{what}: PROTOCOL_ERROR instead of {}", expected[0]);
        }
        if !code.is_none_or(|code| code == PROTOCOL || expected.contains(&code)) {
            wrong.push(format!("{what}: {code:?}, expected {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    serves(&secure).await;
    assert!(!secure.node.log().contains("panicked"), "{}", secure.node.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unknown_is_passed_over_and_what_is_allowed_works() {
    let secure = Secure::start("h2-allowed").await;
    let mut line = Line::ready(&secure).await;
    line.send(&frame(0x77, 0xff, 0, b"unknown")).await;
    line.send(&setting(0x7777, 1)).await;
    line.send(&frame(PRIORITY, 0, 9, &[0, 0, 0, 0, 16])).await;
    line.send(&frame(PING, 0, 0, b"abcdefgh")).await;
    loop {
        match line.next().await {
            Said::Frame { kind: PING, flags, payload, .. } => {
                assert_eq!((flags & ACK, &payload[..]), (ACK, &b"abcdefgh"[..]));
                break;
            }
            Said::Closed => panic!("closed"),
            Said::Frame { .. } => {}
        }
    }
    // A header block in pieces, padded, and several streams at once.
    let (first, rest) = (get()[..3].to_vec(), get()[3..].to_vec());
    line.send(&[request(11, END_STREAM, &first), frame(CONTINUATION, END_HEADERS, 11, &rest)].concat()).await;
    assert_eq!(line.status(11).await, 200);
    let padded = [&[4][..], &get(), &[0; 4]].concat();
    line.send(&request(13, END_STREAM | END_HEADERS | PADDED, &padded)).await;
    assert_eq!(line.status(13).await, 200);
    // What the HTTP below lets through: 8.2.1 a value with blanks around it, 8.3.1 two names for the node.
    for (stream, extra) in [(15, literal("x", " a")), (17, literal("x", "a\t")), (19, literal("host", "evil.example"))]
    {
        line.send(&request(stream, END_STREAM | END_HEADERS, &[get(), extra].concat())).await;
        assert_eq!(line.status(stream).await, 400, "stream {stream}");
    }
    line.send(&request(21, END_STREAM | END_HEADERS, &[get(), literal("host", "localhost")].concat())).await;
    assert_eq!(line.status(21).await, 200);
    let mut bad_preface = Line::open(&secure).await;
    bad_preface.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(bad_preface.refusal().await.is_none_or(|code| code == PROTOCOL));
    serves(&secure).await;
}

/// A client may come to send its body only when the answer is there already: a reset by then is all that some tell of it
/// (curl 7.88). Who has nothing more to say is not waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_can_be_read_before_the_body_is_sent() {
    let secure = Secure::start("h2-refusal").await;
    let path = b"/v1/objects/a";
    let put = [&[0x02, 3][..], b"PUT", &[0x87, 0x04, path.len() as u8], path, &[0x01, 9], b"localhost"].concat();
    let put = [put, literal("if-match", "\"x\""), literal("content-length", "20000")].concat();
    let mut line = Line::ready(&secure).await;
    line.send(&request(1, END_HEADERS, &put)).await;
    // The answer to its end, and what comes before the echo of a ping.
    let mut answered = false;
    while !answered {
        match line.next().await {
            Said::Frame { kind: DATA, flags, stream: 1, .. } => answered = flags & END_STREAM != 0,
            said => assert!(!matches!(said, Said::Closed | Said::Frame { kind: RST_STREAM | GOAWAY, .. }), "{said:?}"),
        }
    }
    for part in [frame(DATA, 0, 1, &[7; 10_000]), frame(DATA, END_STREAM, 1, &[7; 10_000])] {
        line.send(&[part, frame(PING, 0, 0, &[0; 8])].concat()).await;
        loop {
            match line.next().await {
                Said::Frame { kind: PING, flags: ACK, .. } => break,
                said => {
                    assert!(!matches!(said, Said::Closed | Said::Frame { kind: RST_STREAM | GOAWAY, .. }), "{said:?}")
                }
            }
        }
    }
    // One that is silent is told to stop.
    line.send(&request(3, END_HEADERS, &put)).await;
    let begun = std::time::Instant::now();
    assert_eq!(line.refusal().await, Some(0));
    assert!(begun.elapsed() > Duration::from_millis(400) && begun.elapsed() < Duration::from_secs(5), "{begun:?}");
    serves(&secure).await;
}

/// Each of these has brought servers down: CVE-2023-44487, CVE-2024-27316 and their kind.
#[tokio::test(flavor = "multi_thread")]
async fn floods_end_their_connection_and_not_the_node() {
    let secure = Secure::start("h2-floods").await;
    serves(&secure).await;
    let before = rss(secure.node.pid());

    // Streams opened and reset at once.
    let mut line = Line::ready(&secure).await;
    let mut sent = 0u32;
    for stream in (0..20_000).map(|at| at * 2 + 1) {
        let both = [request(stream, END_STREAM | END_HEADERS, &get()), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])];
        if !line.send(&both.concat()).await {
            break;
        }
        sent += 1;
    }
    assert!(line.refusal().await.is_none_or(|code| code == CALM), "resets");
    eprintln!("{sent} resets were taken before the connection ended");

    // A header block that never ends.
    let mut line = Line::ready(&secure).await;
    line.send(&request(1, END_STREAM, &get())).await;
    let piece = frame(CONTINUATION, 0, 1, &literal("x", "y").repeat(800));
    let mut bytes = 0;
    while bytes < 64 << 20 && line.send(&piece).await {
        bytes += piece.len();
    }
    assert!(bytes < 16 << 20, "{bytes} bytes of one header block were taken");
    // A header list far over the limit, in one small compressed block: the dynamic table repeats it.
    let mut line = Line::ready(&secure).await;
    let mut bomb = [&[0x40, 1, b'x', 0x7f, 0x81, 0x1e][..], &[b'y'; 4000]].concat();
    bomb.extend([0xbe; 12_000]);
    line.send(&request(1, END_STREAM | END_HEADERS, &[get(), bomb].concat())).await;
    assert_ne!(line.status(1).await, 200, "48 MiB of headers");

    // Settings and pings whose answers nobody reads, and answers to pings that nobody sent.
    let floods =
        [frame(SETTINGS, 0, 0, &[]), frame(PING, 0, 0, &[0; 8]), frame(PING, ACK, 0, &[0; 8]), setting(4, 1000)];
    for flood in floods {
        let mut line = Line::ready(&secure).await;
        let many = flood.repeat(1000);
        for _ in 0..200 {
            let sent = timeout(Duration::from_millis(200), line.send(&many)).await;
            if !sent.unwrap_or(false) {
                break;
            }
        }
    }
    // Empty DATA frames.
    let mut line = Line::ready(&secure).await;
    line.send(&request(1, END_HEADERS, &get())).await;
    for _ in 0..100 {
        if !line.send(&frame(DATA, 0, 1, &[]).repeat(1000)).await {
            break;
        }
    }

    // More streams at once than the settings allow.
    let mut line = Line::ready(&secure).await;
    let mut put = [&[0x83, 0x87, 0x04, 9][..], b"/v1/jobs/", &[0x01, 9], b"localhost"].concat();
    put.extend(literal("content-length", "5"));
    for stream in (0..200u32).map(|at| at * 2 + 1) {
        line.send(&request(stream, END_HEADERS, &put)).await;
    }
    let code = line.refusal().await;
    assert!(code.is_none_or(|code| [REFUSED, PROTOCOL, CALM, 0].contains(&code)), "{code:?}");

    serves(&secure).await;
    let grown = peak_rss(secure.node.pid()).saturating_sub(before);
    assert!(grown < 64 << 20, "the node grew by {grown} bytes");
    let log = secure.node.log();
    assert!(!log.contains("panicked"), "{log}");
    assert!(log.lines().count() < 100, "{} lines of log", log.lines().count());
}

/// Bodies that no handler reads, because its answer is not taken, lie in memory as far as the windows let them come.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_nobody_reads_do_not_fill_the_memory() {
    const CONNECTIONS: usize = 150;
    let secure = Secure::start("h2-windows").await;
    let source = secure.folder.path().join("source");
    std::fs::write(&source, vec![7; 2 << 20]).unwrap();
    assert!(secure.curl(&["-T", source.to_str().unwrap(), &secure.url("/v1/objects/large")]).status.success());
    let before = rss(secure.node.pid());
    let path = b"/v1/objects/large";
    let get = [&[0x82, 0x87, 0x04, path.len() as u8][..], path, &[0x01, 9], b"localhost"].concat();
    let mut lines = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut line = Line::ready(&secure).await;
        let mut window = 65_535;
        // What the node says at once, its window among it, comes before the second echo.
        for _ in 0..2 {
            line.send(&frame(PING, 0, 0, &[0; 8])).await;
            loop {
                match line.next().await {
                    Said::Frame { kind: PING, .. } => break,
                    Said::Frame { kind: WINDOW_UPDATE, stream: 0, payload, .. } => {
                        window += u32::from_be_bytes(payload[..4].try_into().unwrap()) as usize;
                    }
                    Said::Closed => panic!("closed"),
                    Said::Frame { .. } => {}
                }
            }
        }
        // Four bodies of 1 MiB, or as much as may be sent.
        for stream in [1, 3, 5, 7] {
            line.send(&request(stream, END_HEADERS, &get)).await;
            let sent = window.min(1 << 20);
            window -= sent;
            let whole = frame(DATA, 0, stream, &[9; 16_384]).repeat(sent / 16_384);
            assert!(line.send(&whole).await);
        }
        lines.push(line);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let grown = rss(secure.node.pid()).saturating_sub(before);
    println!("{CONNECTIONS} connections with bodies that nobody reads: {} MiB", grown >> 20);
    assert!(grown < 160 << 20, "the node grew by {} MiB", grown >> 20);
    serves(&secure).await;
    drop(lines);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "waits out the 30 s a client may take nothing: make test-large"]
async fn a_large_answer_that_nobody_takes_ends_its_connection() {
    let secure = Secure::start("h2-stalled").await;
    let source = secure.folder.path().join("source");
    std::fs::write(&source, vec![7; 8 << 20]).unwrap();
    let stored = secure.curl(&["-T", source.to_str().unwrap(), &secure.url("/v1/objects/large")]);
    assert!(stored.status.success());
    let mut line = Line::ready(&secure).await;
    // The window lets 64 KiB through, and nobody opens it again.
    let path = b"/v1/objects/large";
    let get = [&[0x82, 0x87, 0x04, path.len() as u8][..], path, &[0x01, 9], b"localhost"].concat();
    line.send(&request(1, END_STREAM | END_HEADERS, &get)).await;
    assert_eq!(line.status(1).await, 200);
    let begun = std::time::Instant::now();
    let mut rest = Vec::new();
    let ended = timeout(Duration::from_secs(90), line.stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "still open after {:?}", begun.elapsed());
    assert!(begun.elapsed() > Duration::from_secs(25), "dropped after {:?} already", begun.elapsed());
    serves(&secure).await;
}

/// As many streams as the settings allow, none of which is taken from: what waits for them must not be what others need.
#[tokio::test(flavor = "multi_thread")]
async fn streams_that_nobody_takes_from_hold_nobody_up() {
    let secure = Secure::start("h2-unread").await;
    let source = secure.folder.path().join("source");
    std::fs::write(&source, vec![7; 64 << 20]).unwrap();
    assert!(secure.curl(&["-T", source.to_str().unwrap(), &secure.url("/v1/objects/large")]).status.success());
    let path = b"/v1/objects/large";
    let get = [&[0x82, 0x87, 0x04, path.len() as u8][..], path, &[0x01, 9], b"localhost"].concat();
    let mut lines = Vec::new();
    for _ in 0..6 {
        let mut line = Line::ready(&secure).await;
        line.send(&setting(4, 1)).await;
        for stream in (0..64u32).map(|at| at * 2 + 1) {
            line.send(&request(stream, END_STREAM | END_HEADERS, &get)).await;
        }
        assert_eq!(line.status(1).await, 200);
        lines.push(line);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let held = secure.metric("reelring_storage_buffer_bytes ");
    assert!(held > (8 << 20) as f64, "what waits in {} streams counts for {held} bytes", lines.len() * 64);
    for version in ["--http1.1", "--http2"] {
        let begun = std::time::Instant::now();
        let taken = secure.folder.path().join("taken");
        let limits = ["-m", "25", version, "-o", taken.to_str().unwrap()];
        let read = secure.curl(&[&limits[..], &[&secure.url("/v1/objects/large")]].concat());
        assert!(read.status.success(), "{version}: {}", String::from_utf8_lossy(&read.stderr));
        assert!(std::fs::read(&taken).unwrap() == std::fs::read(&source).unwrap());
        eprintln!("{version}: 64 MiB in {:?} beside {} streams", begun.elapsed(), lines.len() * 64);
    }
    assert!(peak_rss(secure.node.pid()) < 384 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_idle_connections_and_lets_answers_finish() {
    let secure = Secure::start("h2-drain").await;
    let mut line = Line::ready(&secure).await;
    line.send(&request(1, END_STREAM | END_HEADERS, &get())).await;
    assert_eq!(line.status(1).await, 200);
    secure.node.terminate();
    assert_eq!(line.refusal().await, Some(0), "GOAWAY without an error");
    assert!(secure.node.ended(PATIENCE).await.success());
}
