//! Fetching from origins that behave, and from those that do not.

#[path = "../support/mod.rs"]
mod support;

mod bench;
mod chaos;
mod full_volume;
mod resume;

use std::time::{Duration, Instant};

use bytes::Bytes;
use reelring::error::FailureKind;
use reelring::ingest::FetchRequest;
use reelring::ingest::guard::{Client, Policy};
use reqwest::header::{HeaderName, HeaderValue};
use url::Url;

use bench::{Bench, MIB, media, request, sha256};
use support::origin::{File, LONG_AGO, Origin, Reply};

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_fetched_and_described() {
    let (bench, origin) = (Bench::new().await, Origin::start().await);
    let bytes = media(1, 3 * MIB + 17);
    let file = File::new(bytes.clone()).etag("\"v1\"");
    let url = origin.answer("/watch", move |asked, _| {
        file.reply(asked).header("content-disposition", "attachment; filename*=UTF-8''..%2Fgr%C3%B6%C3%9Fe.mp4")
    });
    let fetched = bench.get(&url).await.unwrap();
    assert_eq!(fetched.file_name, "größe.mp4");
    assert_eq!(fetched.content_type.as_deref(), Some("video/mp4"));
    assert_eq!(fetched.final_url, url);
    assert_eq!(fetched.sealed.length, bytes.len() as u64);
    let progress = bench.progress();
    assert_eq!((progress.bytes_done, progress.bytes_total), (bytes.len() as u64, Some(bytes.len() as u64)));
    let asked = origin.asked("/watch");
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("accept-encoding"), Some("identity"));
    assert_eq!(bench.bytes(fetched).await, bytes);
    bench.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_without_a_length_is_fetched_too() {
    let (bench, origin) = (Bench::new().await, Origin::start().await);
    let bytes = media(2, 300_000);
    let file = File::new(bytes.clone());
    let url = origin.answer("/a.mp4", move |_, _| file.whole().chunked());
    let fetched = bench.get(&url).await.unwrap();
    assert_eq!(bench.bytes(fetched).await, bytes);
    assert_eq!(bench.progress().bytes_total, Some(300_000));

    let mut answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec();
    answer.extend_from_slice(&bytes);
    let closing = Origin::raw(answer).await;
    let fetched = bench.get(&closing.url("/a.mp4")).await.unwrap();
    assert_eq!(bench.bytes(fetched).await, bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_origins_are_asked_again_when_they_say() {
    let (bench, origin) = (Bench::new().await, Origin::start().await);
    let file = File::new(media(12, 1000));
    let bytes = file.bytes.clone();
    let url = origin.answer("/a.mp4", move |asked, before| match before {
        0 => Reply::status(429).header("retry-after", "1"),
        1 => Reply::status(503).header("retry-after", LONG_AGO),
        2 => Reply::status(500).header("retry-after", "-5"),
        _ => file.reply(asked),
    });
    let start = Instant::now();
    let fetched = bench.get(&url).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(bench.bytes(fetched).await, bytes);
    assert_eq!(origin.asked("/a.mp4").len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_media_is_refused_at_once() {
    let (bench, origin) = (Bench::new().await, Origin::start().await);
    let page = Bytes::from_static(b"<!DOCTYPE html><html><body>Please log in</body></html>");
    let file = |content_type, bytes: &Bytes| File { content_type, ..File::new(bytes.clone()) };
    let url = origin.serve("/film.mp4", file("text/html", &page));
    let failure = bench.fails(&url).await;
    assert_eq!(
        failure.message,
        format!(
            "{url} answered an HTML page (text/html), not media; if it is a page with a player, a plugin can extract it"
        )
    );
    for (path, reply, expected) in [
        ("/disguised", file("video/mp4", &page).whole(), "answered an HTML page (video/mp4), not media"),
        ("/empty", Reply::status(200), "answered an empty file (0 bytes)"),
        ("/empty-chunked", Reply::status(200).chunked(), "answered an empty file (0 bytes)"),
        ("/gzip", Reply::bytes(200, "x").header("content-encoding", "gzip"), "Content-Encoding gzip although asked"),
        ("/gone", Reply::status(410), "answered 410 Gone"),
        ("/forbidden", Reply::status(403), "answered 403 Forbidden; the address may have expired"),
        ("/nothing", Reply::status(204), "answered 204 No Content, which carries no file"),
    ] {
        let reply = std::sync::Mutex::new(Some(reply));
        let url = origin.answer(path, move |_, _| reply.lock().unwrap().take().expect("asked once"));
        let failure = bench.fails(&url).await;
        assert_eq!(failure.kind, FailureKind::Permanent, "{path}: {failure}");
        assert!(failure.message.contains(expected), "{path}: {failure}");
        assert_eq!(origin.asked(path).len(), 1, "{path}");
    }
    for (answer, expected) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\nx",
            "the file has 99999999999999 bytes, the limit is",
        ),
        ("HTTP/1.1 206 Partial Content\r\nContent-Length: 1\r\n\r\nx", "to a request for the whole file"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "what it answers is not HTTP"),
    ] {
        let raw = Origin::raw(answer.into()).await;
        let failure = bench.fails(&raw.url("/a.mp4")).await;
        assert_eq!(failure.kind, FailureKind::Permanent, "{answer}: {failure}");
        assert!(failure.message.contains(expected), "{answer}: {failure}");
    }
    bench.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_followed_and_bounded() {
    let (bench, origin) = (Bench::new().await, Origin::start().await);
    let bytes = media(13, 1000);
    let end = origin.serve("/cdn/b.webm", File::new(bytes.clone()));
    let start = origin.answer("/start", |_, _| Reply::redirect("/cdn/b.webm#part"));
    let fetched = bench.get(&start).await.unwrap();
    assert_eq!(fetched.final_url, end);
    assert_eq!(fetched.file_name, "b.webm");
    assert_eq!(bench.bytes(fetched).await, bytes);

    let looping = origin.answer("/loop", |_, _| Reply::redirect("/loop"));
    let failure = bench.fails(&looping).await;
    assert!(failure.message.ends_with("redirected more than 10 times"), "{failure}");
    assert_eq!(origin.asked("/loop").len(), 11);

    for (to, expected) in [
        ("file:///etc/passwd", "refused file:///etc/passwd: the scheme is file, only http and https are fetched"),
        ("gopher://x/", "the scheme is gopher"),
        ("http://169.254.169.254/latest", "169.254.169.254 is a link-local address; it is never fetched from"),
        ("http://user:secret@127.0.0.1/", "refused http://127.0.0.1/: the address carries a user name or password"),
        ("http://[::ffff:169.254.169.254]/", "link-local"),
        ("http://", "which is no address"),
    ] {
        let url = origin.answer("/away", move |_, _| Reply::redirect(to));
        let failure = bench.fails(&url).await;
        assert_eq!(failure.kind, FailureKind::Permanent, "{to}: {failure}");
        assert!(failure.message.contains(expected), "{to}: {failure}");
        assert!(!failure.message.contains("secret"));
    }
    bench.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn private_origins_are_refused_unless_allowed() {
    let (mut bench, origin) = (Bench::new().await, Origin::start().await);
    bench.client = Client::new(Policy { allow_private: false });
    let url = origin.serve("/a.mp4", File::new(media(14, 10)));
    let failure = bench.fails(&url).await;
    assert_eq!(
        failure.message,
        format!(
            "refused {url}: 127.0.0.1 is a loopback address; start the node with --allow-private-origins to fetch from it"
        )
    );
    let failure = bench.fails(&Url::parse("http://localhost:1/a.mp4").unwrap()).await;
    assert!(failure.message.contains("localhost resolves to"), "{failure}");
    assert!(origin.asked("/a.mp4").is_empty());
    bench.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_do_not_follow_to_another_origin() {
    let (bench, origin, other) = (Bench::new().await, Origin::start().await, Origin::start().await);
    let there = other.serve("/a.mp4", File::new(media(15, 1000)));
    let near = origin.answer("/near", |_, _| Reply::redirect("/far"));
    origin.answer("/far", move |_, _| Reply::redirect(there.as_str()));
    let mut req = request(&near);
    for (name, value) in [("cookie", "a=b"), ("authorization", "Bearer t"), ("referer", "http://page/"), ("host", "x")]
    {
        req.headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    bench.run(req).await.unwrap();
    let far = &origin.asked("/far")[0];
    assert_eq!((far.header("cookie"), far.header("authorization")), (Some("a=b"), Some("Bearer t")));
    let asked = &other.asked("/a.mp4")[0];
    assert_eq!((asked.header("cookie"), asked.header("authorization")), (None, None));
    assert_eq!(asked.header("referer"), Some("http://page/"));
    assert_ne!(asked.header("host"), Some("x"));
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_without_end_are_refused() {
    let bench = Bench::new().await;
    let mut answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n".to_vec();
    for index in 0..100 {
        answer.extend_from_slice(format!("x-{index}: {}\r\n", "a".repeat(1000)).as_bytes());
    }
    let many = Origin::raw([&answer[..], b"\r\nbytes"].concat()).await;
    let failure = bench.fails(&many.url("/a.mp4")).await;
    assert_eq!(failure.kind, FailureKind::Permanent);
    assert!(failure.message.contains("bytes of headers, the limit is 65536"), "{failure}");

    let endless = Origin::raw([b"HTTP/1.1 200 OK\r\nx: ".as_slice(), &vec![b'a'; 20 * MIB]].concat()).await;
    let failure = bench.fails(&endless.url("/a.mp4")).await;
    assert_eq!(failure.kind, FailureKind::Permanent);
    assert!(failure.message.contains("not HTTP"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_expected_hash_decides() {
    let (bench, origin) = (Bench::new().await, Origin::start().await);
    let bytes = media(16, MIB + 5);
    let url = origin.serve("/a.mp4", File::new(bytes.clone()));
    let right = FetchRequest { sha256: Some(sha256(&bytes)), ..request(&url) };
    let fetched = bench.run(right).await.unwrap();
    assert_eq!(bench.bytes(fetched).await, bytes);

    let wrong = FetchRequest { sha256: Some([7; 32]), ..request(&url) };
    let failure = bench.run(wrong).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Permanent);
    let (actual, expected) = (support::sha256(&bytes), "07".repeat(32));
    let message = format!("{url} has the SHA-256 {actual}, expected {expected}; nothing was stored");
    assert_eq!(failure.message, message);
    bench.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_not_there_is_named() {
    let bench = Bench::new().await;
    let url = {
        // A port that was free a moment ago.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Url::parse(&format!("http://{}/a.mp4", listener.local_addr().unwrap())).unwrap()
    };
    let failure = bench.fails(&url).await;
    assert_eq!(failure.kind, FailureKind::Transient);
    assert!(failure.message.starts_with(&format!("cannot reach {url}: Connection refused")), "{failure}");
    assert!(failure.message.ends_with("given up after 3 attempts"), "{failure}");
    bench.leaves_nothing().await;
}
