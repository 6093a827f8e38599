//! More clients than there is room for, slow ones, idle ones, greedy ones: the node says so, stays small, and serves others.
//!
//! `REELRING_IDLE_CONNECTIONS=100000` is the long form of the idle ones.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use reqwest::Method;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::node::{Node, Setting, files};
use crate::support::{Noise, eventually, process, scratch};
use crate::tls::Secure;

const PATIENCE: Duration = Duration::from_secs(40);
const MIB: usize = 1 << 20;
const RSS_LIMIT: u64 = 200 << 20;

/// A connection from 127.0.0.`client`, which counts as a client of its own.
async fn connect(addr: SocketAddr, client: u8) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, client], 0)))?;
    socket.connect(addr).await
}

/// One request, and its status and answer; the connection stays.
async fn ask(stream: &mut TcpStream, path: &str) -> io::Result<(u16, String)> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    Ok((status.expect("a status line"), answer))
}

/// A client that comes again when it is told to, or cut off.
async fn served(node: &Node, client: u8) {
    eventually("another client is served", PATIENCE, async || {
        let asked = async { ask(&mut connect(node.addr(), client).await?, "/healthz").await };
        matches!(tokio::time::timeout(Duration::from_secs(5), asked).await, Ok(Ok((200, _)))).then_some(())
    })
    .await;
}

/// Requests that stay in progress: their answers are not taken. Seats of connections that have just ended may be free a
/// little later.
async fn busy(node: &Node, client: u8, count: usize) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.push(
            eventually("a seat", PATIENCE, async || {
                let mut stream = connect(node.addr(), client).await.unwrap();
                matches!(ask(&mut stream, "/v1/objects/film").await, Ok((200, _))).then_some(stream)
            })
            .await,
        );
    }
    streams
}

async fn with_film(folder: &tempfile::TempDir, settings: &[Setting<'_>], bytes: usize) -> (Node, Vec<u8>) {
    let node = Node::start_with(&folder.path().join("data"), settings).await;
    let film = Noise::bytes(1, bytes);
    assert_eq!(node.put("film", film.clone()).send().await.unwrap().status(), 201);
    (node, film)
}

/// The node tells this client to come again.
async fn refused(node: &Node, client: u8, limit: &str) {
    let mut stream = connect(node.addr(), client).await.unwrap();
    let (status, mut answer) = ask(&mut stream, "/healthz").await.unwrap();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(status, 503, "{answer}");
    let lower = answer.to_lowercase();
    assert!(lower.contains("retry-after: 5\r\n") && lower.contains("connection: close"), "{answer}");
    assert!(answer.contains("problem:too-many-connections") && answer.contains(limit), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_no_room_is_told_when_to_come_again() {
    let folder = scratch("connections");
    let limits = [("REELRING_MAX_CONNECTIONS", "12"), ("REELRING_MAX_CONNECTIONS_PER_CLIENT", "6")];
    let (node, _) = with_film(&folder, &limits, 16 * MIB).await;
    let greedy = busy(&node, 2, 6).await;
    refused(&node, 2, "(max_connections_per_client)").await;
    served(&node, 3).await;
    let others = busy(&node, 3, 5).await;
    // The last seat has the connection that the upload came by. It is idle, and is given up.
    served(&node, 4).await;
    let last = busy(&node, 4, 1).await;
    refused(&node, 5, "(max_connections)").await;
    refused(&node, 2, "(max_connections_per_client)").await;
    drop(greedy);
    served(&node, 2).await;
    served(&node, 5).await;
    assert!(node.metric("reelring_http_connections_refused_total{reason=\"client\"}").await >= 2.0);
    assert!(node.metric("reelring_http_connections_closed_idle_total").await >= 1.0);
    drop((others, last));
}

/// What a client that is refused reads: the whole of one 503, whatever it was about to send. Where `in_peace`, it can send
/// all of that before it reads, and the connection is ended in order.
async fn read_refusal(mut stream: impl AsyncRead + AsyncWrite + Unpin, number: usize, in_peace: bool) {
    // Over TLS the last of it may be waiting yet.
    let sent = send_anything(&mut stream, number).await.and(stream.flush().await);
    assert!(sent.is_ok() || !in_peace, "{number}: {sent:?}");
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
    let answer = String::from_utf8(answer).unwrap();
    assert!(read.is_ok() || !in_peace, "{number}: {read:?} after {answer:?}");
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After: 5\r\n"), "{number}: {answer:?}");
    assert!(answer.ends_with('}'), "{number}: {answer:?}");
}

async fn send_anything(stream: &mut (impl AsyncWrite + Unpin), number: usize) -> io::Result<()> {
    let ask = "GET /v1/objects/film HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let put = "PUT /v1/objects/new HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4194304\r\n\r\n";
    match number % 5 {
        // Requests sent ahead.
        1 => stream.write_all(ask.repeat(20).as_bytes()).await,
        // A client that looks for an answer when it has sent its body.
        2 => {
            stream.write_all(put.as_bytes()).await?;
            stream.write_all(&vec![7; 4 * MIB]).await
        }
        // The same on a slow line.
        3 => {
            stream.write_all(put.as_bytes()).await?;
            for _ in 0..32 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                stream.write_all(&vec![7; MIB / 8]).await?;
            }
            Ok(())
        }
        // A connection opened ahead of its request.
        4 => {
            tokio::time::sleep(Duration::from_millis(300)).await;
            stream.write_all(ask.as_bytes()).await
        }
        _ => stream.write_all(ask.as_bytes()).await,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_refused_reads_why() {
    let folder = scratch("refused");
    let (node, _) = with_film(&folder, &[("REELRING_MAX_CONNECTIONS_PER_CLIENT", "4")], 16 * MIB).await;
    let held = busy(&node, 2, 4).await;
    let addr = node.addr();
    for (count, in_peace) in [(100, true), (500, false)] {
        let mut refused = tokio::task::JoinSet::new();
        for number in 0..count {
            refused.spawn(async move { read_refusal(connect(addr, 2).await.unwrap(), number, in_peace).await });
        }
        refused.join_all().await;
    }
    // Connections that say nothing are in nobody's way, once they have been seen to say nothing.
    let mut silent = Vec::new();
    for _ in 0..500 {
        silent.push(connect(addr, 2).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    for number in 0..20 {
        read_refusal(connect(addr, 2).await.unwrap(), number % 3, true).await;
    }
    drop((held, silent));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_refused_reads_why_over_tls_too() {
    let secure = Secure::start_with("refused-tls", &[("REELRING_MAX_CONNECTIONS_PER_CLIENT", "4")]).await;
    upload(&secure, 1, "film", &Noise::bytes(1, 16 * MIB)).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut stream = secure.connect(2).await;
        stream.write_all(b"GET /v1/objects/film HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        stream.read_exact(&mut [0; 1000]).await.unwrap();
        held.push(stream);
    }
    let secure = Arc::new(secure);
    let mut refused = tokio::task::JoinSet::new();
    for number in 0..100 {
        let secure = secure.clone();
        refused.spawn(async move { read_refusal(secure.connect(2).await, number, true).await });
    }
    refused.join_all().await;
    drop(held);
}

/// Idle connections from many clients, many more than there are seats: memory and descriptors stay, and whoever has
/// something to ask is served.
#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_make_room() {
    let attempts: usize = std::env::var("REELRING_IDLE_CONNECTIONS").map_or(4_000, |count| count.parse().unwrap());
    // All of them are open at once on this side, as far as descriptors go.
    let (cap, held) = if attempts > 10_000 { (4096, 12_000) } else { (500, 2_000) };
    let folder = scratch("idle-connections");
    let cap_text = cap.to_string();
    let settings = [("REELRING_MAX_CONNECTIONS", &*cap_text), ("REELRING_MAX_CONNECTIONS_PER_CLIENT", "400")];
    let (node, film) = with_film(&folder, &settings, 2 * MIB).await;
    let descriptors = || process::descriptors(node.pid());
    let before = descriptors();
    let (mut open, mut answered, mut most) = (VecDeque::with_capacity(held), 0, 0);
    let begun = Instant::now();
    for attempt in 0..attempts {
        let client = 10 + (attempt % 200) as u8;
        let mut stream = connect(node.addr(), client).await.unwrap();
        if attempt % 2 == 0 {
            // Half of them have asked for something once, the others never do.
            if matches!(tokio::time::timeout(PATIENCE, ask(&mut stream, "/healthz")).await, Ok(Ok((200, _)))) {
                answered += 1;
            }
        }
        if open.len() == held {
            open.pop_front();
        }
        open.push_back(stream);
        if attempt % 500 == 0 {
            most = most.max(descriptors());
        }
    }
    let took = begun.elapsed();
    served(&node, 2).await;
    // Within the grace of those who came last there may be no room yet: whoever is told so comes again.
    let answer = eventually("who was there before is served", PATIENCE, async || {
        node.object("film").send().await.ok().filter(|answer| answer.status() == 200)
    })
    .await;
    assert!(answer.bytes().await.unwrap() == film);
    most = most.max(descriptors());
    let peak = process::peak_rss(node.pid());
    println!(
        "{attempts} idle connections in {took:?}, {answered} of their requests answered; at most {most} descriptors, \
         peak RSS {} MiB",
        peak >> 20
    );
    // Those that are being refused, and those that leave, are on top.
    assert!(most < before + cap + 400, "{most} descriptors, {before} before");
    assert!(peak < RSS_LIMIT, "peak RSS {} MiB", peak >> 20);
    drop(open);
    eventually("descriptors come back", PATIENCE, async || (descriptors() <= before + 10).then_some(())).await;
}

/// Heads of requests that never end, and bodies that drip.
#[tokio::test(flavor = "multi_thread")]
async fn slow_senders_keep_nobody_out() {
    let folder = scratch("slowloris");
    let settings = [("REELRING_MAX_CONNECTIONS", "150"), ("REELRING_MAX_CONNECTIONS_PER_CLIENT", "100")];
    let (node, film) = with_film(&folder, &settings, 2 * MIB).await;
    let mut slow = tokio::task::JoinSet::new();
    for number in 0..300u32 {
        let addr = node.addr();
        slow.spawn(async move {
            // Comes again whenever it is thrown out.
            loop {
                let mut stream = connect(addr, 10 + (number % 5) as u8).await?;
                stream.write_all(b"GET /v1/objects/film HTTP/1.1\r\nHost: x\r\n").await?;
                while stream.write_all(b"X-Slow: 1\r\n").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
            #[allow(unreachable_code)]
            io::Result::Ok(())
        });
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    for _ in 0..10 {
        served(&node, 2).await;
    }
    let read = eventually("a download", PATIENCE, async || {
        let response = node.object("film").send().await.ok().filter(|response| response.status() == 200)?;
        response.bytes().await.ok()
    })
    .await;
    assert!(read == film);
    slow.abort_all();
    while slow.join_next().await.is_some() {}
    eventually("their seats are free again", PATIENCE, async || {
        (node.metric("reelring_http_connections ").await < 10.0).then_some(())
    })
    .await;
}

/// Every reader of an object that is deleted or replaced gets the old bytes whole, or sees that it did not.
#[tokio::test(flavor = "multi_thread")]
async fn who_streams_an_object_that_goes_gets_all_of_it_or_an_error() {
    const CLIENTS: usize = 100;
    let folder = scratch("vanishing");
    let (node, old) = with_film(&folder, &[], 12 * MIB).await;
    let new = Noise::bytes(2, 9 * MIB);
    for (round, cold) in [("delete", false), ("replace", false), ("delete", true), ("replace", true)] {
        assert!(node.put("film", old.clone()).send().await.unwrap().status().is_success());
        if cold {
            forget_cached(&node);
        }
        let expected = blake3::hash(&old);
        let mut clients = tokio::task::JoinSet::new();
        let (ready, mut heads) = tokio::sync::mpsc::channel(CLIENTS);
        for client in 0..CLIENTS {
            let (request, ready) = (node.object("film"), ready.clone());
            clients.spawn(async move {
                let mut stream = request.send().await.unwrap().bytes_stream();
                let (mut hasher, mut length) = (blake3::Hasher::new(), 0);
                while let Some(chunk) = stream.next().await {
                    // Cut short is allowed, other bytes are not.
                    let Ok(chunk) = chunk else { return false };
                    if length == 0 {
                        ready.send(()).await.unwrap();
                    }
                    hasher.update(&chunk);
                    length += chunk.len();
                    if client % 3 == 0 && length < 2 * MIB {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
                assert_eq!((hasher.finalize(), length), (expected, 12 * MIB), "client {client}");
                true
            });
        }
        for _ in 0..CLIENTS {
            tokio::time::timeout(PATIENCE, heads.recv()).await.expect("all of them begin").unwrap();
        }
        let status = match round {
            "delete" => node.request(Method::DELETE, "/v1/objects/film").send().await.unwrap().status(),
            _ => node.put("film", new.clone()).send().await.unwrap().status(),
        };
        assert!(status.is_success(), "{status}");
        let whole = clients.join_all().await.into_iter().filter(|whole| *whole).count();
        println!("{round}, {}: {whole} of {CLIENTS} got all of the old bytes", if cold { "cold" } else { "hot" });
        assert_eq!(whole, CLIENTS, "the file stays as long as somebody reads it");
        if round == "replace" {
            assert!(node.object("film").send().await.unwrap().bytes().await.unwrap() == new);
        }
    }
    node.request(Method::DELETE, "/v1/objects/film").send().await.unwrap();
    eventually("the files are gone", PATIENCE, async || {
        let held = std::fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap().flatten();
        let deleted = |entry: std::fs::DirEntry| {
            std::fs::read_link(entry.path()).is_ok_and(|path| {
                let path = path.to_string_lossy();
                path.contains("/blobs/") && path.ends_with("(deleted)")
            })
        };
        (files(&node.data().join("blobs")).is_empty() && !held.into_iter().any(deleted)).then_some(())
    })
    .await;
}

/// A client that takes a little now and then is served for as long as it likes; one that takes nothing is disconnected.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "waits for a minute: make test-large"]
async fn a_slow_reader_is_not_a_stalled_one() {
    let folder = scratch("patience");
    let (node, film) = with_film(&folder, &[], 32 * MIB).await;
    let mut readers = busy(&node, 2, 2).await;
    let (mut stalled, mut slow) = (readers.pop().unwrap(), readers.pop().unwrap());
    let begun = Instant::now();
    let mut piece = vec![0; 128 << 10];
    while begun.elapsed() < Duration::from_secs(50) {
        slow.read_exact(&mut piece).await.expect("it is slow, and alive");
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    // What the kernel had taken before is still there; then the connection ends.
    let mut got = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stalled.read_to_end(&mut got)).await.expect("it was cut off");
    println!("stalled: {} bytes, then {ended:?}", got.len());
    assert!(got.len() < film.len());
    let mut rest = vec![0; 20 * MIB];
    slow.read_exact(&mut rest).await.expect("and gets the rest as fast as it likes");
}

/// Takes the stored objects out of the page cache.
fn forget_cached(node: &Node) {
    for path in files(&node.data().join("blobs")) {
        let file = std::fs::File::open(path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}

/// How long 127.0.0.2 waits for 4 MiB from the disk, and until as much is stored.
async fn cold_read_and_upload(secure: &Secure) -> (Duration, Duration) {
    let piece = Noise::bytes(7, 4 * MIB);
    forget_cached(&secure.node);
    let begun = Instant::now();
    let mut reader = secure.connect(2).await;
    reader.write_all(b"GET /v1/objects/piece HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    reader.read_to_end(&mut answer).await.unwrap();
    assert!(answer.ends_with(&piece), "{} bytes", answer.len());
    (begun.elapsed(), upload(secure, 2, "piece", &piece).await)
}

async fn upload(secure: &Secure, client: u8, key: &str, bytes: &[u8]) -> Duration {
    let begun = Instant::now();
    let mut writer = secure.connect(client).await;
    let length = bytes.len();
    let head = format!(
        "PUT /v1/objects/{key} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    writer.write_all(head.as_bytes()).await.unwrap();
    writer.write_all(bytes).await.unwrap();
    writer.flush().await.unwrap();
    let mut answer = String::new();
    writer.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
    begun.elapsed()
}

/// Memory is shared out between clients: one that has many connections open, and lets what was read for them lie or drips
/// into uploads, waits for its own share, and nobody else does.
#[tokio::test(flavor = "multi_thread")]
async fn one_client_does_not_hold_all_the_memory() {
    // Encrypted: what waits for such a client lies in buffers, not in the page cache.
    let secure = Secure::start("fair").await;
    let film = Noise::bytes(1, 64 * MIB);
    upload(&secure, 2, "film", &film).await;
    upload(&secure, 2, "piece", &Noise::bytes(7, 4 * MIB)).await;
    let alone = cold_read_and_upload(&secure).await;

    forget_cached(&secure.node);
    let mut held = Vec::new();
    for number in 0..200 {
        let mut stream = secure.connect(1).await;
        let from = number * 250_000;
        let request = format!("GET /v1/objects/film HTTP/1.1\r\nHost: localhost\r\nRange: bytes={from}-\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        held.push(stream);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let held_bytes = secure.metric("reelring_storage_buffer_bytes ") as usize;
    assert!(held_bytes > 6 * MIB, "what waits for 200 readers counts for {held_bytes} bytes");
    let reading = cold_read_and_upload(&secure).await;
    let waits = || secure.metric("reelring_storage_buffer_waits_total{for=\"share\"}");
    let waited = waits();
    drop(held);

    // Fast enough at first to be given full batches, and then a byte now and then.
    let mut uploads = tokio::task::JoinSet::new();
    for number in 0..150 {
        let (mut stream, head) = (secure.connect(1).await, film[..3 * MIB / 2].to_vec());
        uploads.spawn(async move {
            let put =
                format!("PUT /v1/objects/slow/{number} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8388608\r\n\r\n");
            stream.write_all(put.as_bytes()).await?;
            stream.write_all(&head).await?;
            stream.flush().await?;
            loop {
                stream.write_all(b"x").await?;
                stream.flush().await?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            #[allow(unreachable_code)]
            io::Result::Ok(())
        });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let sending = cold_read_and_upload(&secure).await;
    assert!(waits() > waited, "the uploads had enough, which shows nothing");
    println!("4 MiB cold and uploaded: {alone:?} alone, {reading:?} beside readers, {sending:?} beside uploads");
    let slowest = [reading.0, reading.1, sending.0, sending.1].into_iter().max().unwrap();
    assert!(slowest < Duration::from_secs(3), "another client waited {slowest:?}");
}

/// Readers that take nothing, a fast uploader, and one who wants to read: memory stays flat, and both get on.
#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_stalled_readers_hold_nobody_up() {
    let folder = scratch("stalled");
    let (node, film) = with_film(&folder, &[], 64 * MIB).await;
    forget_cached(&node);
    let mut stalled = Vec::new();
    for number in 0..500 {
        let mut stream = connect(node.addr(), 10 + (number % 4) as u8).await.unwrap();
        let from = (number * 100_000) % (32 * MIB);
        let request = format!("GET /v1/objects/film HTTP/1.1\r\nHost: localhost\r\nRange: bytes={from}-\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stalled.push(stream);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = process::rss(node.pid());
    let begun = Instant::now();
    for number in 0..6 {
        let sent = node.put(&format!("more/{number}"), Noise::bytes(number, 32 * MIB)).send().await.unwrap();
        assert_eq!(sent.status(), 201);
    }
    let uploaded = begun.elapsed();
    forget_cached(&node);
    let begun = Instant::now();
    let read = node.object("film").send().await.unwrap().bytes().await.unwrap();
    assert!(read == film);
    let (peak, read) = (process::peak_rss(node.pid()), begun.elapsed());
    println!(
        "500 stalled: 192 MiB uploaded in {uploaded:?}, 64 MiB read cold in {read:?}; RSS {} MiB before, {} MiB at most",
        before >> 20,
        peak >> 20
    );
    assert!(peak < RSS_LIMIT, "peak RSS {} MiB", peak >> 20);
    drop(stalled);
}
