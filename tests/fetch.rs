//! Fetching from origins that behave, and from those that do not.

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reelring::error::{Failure, FailureKind};
use reelring::ingest::guard::{Client, Policy};
use reelring::ingest::{FetchRequest, Fetched, fetch};
use reelring::progress::{Progress, Report, Reporter};
use reelring_storage::{BlobId, EngineChoice, Key, Precondition, Store, StoreOptions};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};
use support::origin::{Asked, File, LONG_AGO, Origin, Reply};
use support::{Noise, scratch};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

const MIB: usize = 1 << 20;
const OPEN: Policy = Policy { allow_private: true };

/// A store, a client and a place for the fetch to report to.
struct Bench {
    dir: TempDir,
    store: Store,
    client: Client,
    reporter: Reporter,
    reports: watch::Receiver<Report>,
    cancel: CancellationToken,
}

impl Bench {
    async fn new() -> Bench {
        let dir = scratch("fetch");
        let store = open(dir.path()).await;
        let (reporter, reports) = Reporter::new();
        Bench { dir, store, client: Client::new(OPEN), reporter, reports, cancel: CancellationToken::new() }
    }

    /// The same directory after the process has ended and come again.
    async fn reopened(self) -> Bench {
        self.store.close().await.expect("the store closes");
        let store = open(self.dir.path()).await;
        Bench { store, cancel: CancellationToken::new(), ..self }
    }

    async fn run(&self, req: FetchRequest) -> Result<Fetched, Failure> {
        fetch(&self.store, &self.client, req, &self.reporter, &self.cancel).await
    }

    async fn get(&self, url: &Url) -> Result<Fetched, Failure> {
        self.run(request(url)).await
    }

    async fn fails(&self, url: &Url) -> Failure {
        match self.get(url).await {
            Ok(fetched) => panic!("{url} was fetched: {fetched:?}"),
            Err(failure) => failure,
        }
    }

    /// Commits what was fetched and reads it back.
    async fn bytes(&self, fetched: Fetched) -> Bytes {
        let key = Key::parse("fetched").unwrap();
        let record = self.store.put_object(&key, fetched.sealed, Precondition::None).await.expect("it commits").record;
        let reader = self.store.open_blob(record.blob).await.expect("it opens");
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < reader.len() {
            bytes.extend_from_slice(&reader.read(bytes.len() as u64, MIB / 4).await.expect("it reads"));
        }
        bytes.into()
    }

    fn progress(&self) -> Progress {
        self.reports.borrow().progress.clone()
    }

    /// Waits until the fetch has reported `bytes`.
    async fn reported(&self, bytes: u64) {
        let mut reports = self.reports.clone();
        let enough = reports.wait_for(|report| report.progress.bytes_done >= bytes);
        tokio::time::timeout(Duration::from_secs(20), enough).await.expect("bytes come").expect("a reporter");
    }

    /// No partial file, no journal.
    fn leaves_nothing(&self) {
        let names = |folder: &Path| -> Vec<_> {
            let entries = std::fs::read_dir(folder).expect("the folder is there");
            entries.map(|entry| entry.unwrap().file_name()).collect()
        };
        assert_eq!(names(&self.dir.path().join("partial")), Vec::<std::ffi::OsString>::new());
    }
}

async fn open(dir: &Path) -> Store {
    let options = StoreOptions { dir: dir.into(), engine: EngineChoice::Auto, node_migrations: &[] };
    Store::open(options).await.expect("a store")
}

fn request(url: &Url) -> FetchRequest {
    FetchRequest { blob: BlobId::new(), url: url.clone(), headers: HeaderMap::new(), sha256: None, key: None }
}

/// Starts like an mp4, then noise.
fn media(seed: u64, length: usize) -> Bytes {
    let mut bytes = Noise::bytes(seed, length);
    let start = b"\0\0\0\x20ftypisom";
    let known = start.len().min(length);
    bytes[..known].copy_from_slice(&start[..known]);
    bytes.into()
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// The first bytes asked for, request by request.
fn starts(asked: &[Asked]) -> Vec<Option<u64>> {
    asked.iter().map(Asked::range_start).collect()
}

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
    bench.leaves_nothing();
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
async fn a_broken_connection_is_continued_where_it_broke() {
    for (file, if_range) in [
        (File::new(media(3, 2 * MIB)).etag("\"v1\"").last_modified(LONG_AGO), "\"v1\""),
        (File::new(media(3, 2 * MIB)).etag("W/\"v1\"").last_modified(LONG_AGO), LONG_AGO),
        (File::new(media(3, 2 * MIB)).last_modified(LONG_AGO), LONG_AGO),
    ] {
        let (bench, origin) = (Bench::new().await, Origin::start().await);
        let bytes = file.bytes.clone();
        let url = origin.answer("/a.mp4", move |asked, before| match before {
            0 => file.reply(asked).cut_at(MIB),
            1 => file.reply(asked).cut_at(MIB / 2),
            _ => file.reply(asked),
        });
        let fetched = bench.get(&url).await.unwrap();
        assert_eq!(bench.bytes(fetched).await, bytes);
        let asked = origin.asked("/a.mp4");
        assert_eq!(starts(&asked), [None, Some(MIB as u64), Some((MIB + MIB / 2) as u64)], "no byte twice");
        assert_eq!(asked[1].header("if-range"), Some(if_range));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_validator_it_starts_again() {
    for file in [File::new(media(4, MIB)), File::new(media(4, MIB)).etag("W/\"weak\"")] {
        let (bench, origin) = (Bench::new().await, Origin::start().await);
        let bytes = file.bytes.clone();
        let url = origin.answer("/a.mp4", move |asked, before| match before {
            0 => file.reply(asked).cut_at(MIB / 2),
            _ => file.reply(asked),
        });
        let fetched = bench.get(&url).await.unwrap();
        assert_eq!(bench.bytes(fetched).await, bytes);
        assert_eq!(starts(&origin.asked("/a.mp4")), [None, None]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_versions_are_never_spliced() {
    type Second = fn(&File, &Asked) -> Reply;
    let honest: Second = |file, asked| file.reply(asked);
    let ignores_if_range: Second = |file, asked| match asked.range_start() {
        Some(start) => file.part(start as usize),
        None => file.whole(),
    };
    let silent: Second = |file, asked| match asked.range_start() {
        Some(start) => file.part(start as usize).without("etag").without("last-modified"),
        None => file.whole(),
    };
    const LATER: &str = "Mon, 07 Nov 1994 08:49:37 GMT";
    let strong = |seed, etag| File::new(media(seed, MIB)).etag(etag);
    let dated = |seed, date| File::new(media(seed, MIB)).etag("W/\"same\"").last_modified(date);
    for (name, one, two, second) in [
        ("strong, honest", strong(5, "\"v1\""), strong(6, "\"v2\""), honest),
        ("strong, If-Range ignored", strong(5, "\"v1\""), strong(6, "\"v2\""), ignores_if_range),
        ("strong, validators left out", strong(5, "\"v1\""), strong(6, "\"v2\""), silent),
        ("weak with a date, honest", dated(5, LONG_AGO), dated(6, LATER), honest),
        ("weak with a date, If-Range ignored", dated(5, LONG_AGO), dated(6, LATER), ignores_if_range),
        ("nothing", File::new(media(5, MIB)), File::new(media(6, MIB)), ignores_if_range),
    ] {
        let (bench, origin) = (Bench::new().await, Origin::start().await);
        let expected = two.bytes.clone();
        let url = origin.answer("/a.mp4", move |asked, before| match before {
            0 => one.reply(asked).cut_at(MIB / 2),
            _ => second(&two, asked),
        });
        let fetched = bench.get(&url).await.unwrap_or_else(|failure| panic!("{name}: {failure}"));
        assert!(bench.bytes(fetched).await == expected, "{name}: not the second version whole");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cdn_that_answers_200_to_if_range_is_probed() {
    let (bench, origin) = (Bench::new().await, Origin::start().await);
    let file = File::new(media(7, MIB)).etag("\"v1\"");
    let bytes = file.bytes.clone();
    let url = origin.answer("/a.mp4", move |asked, before| match (before, asked.header("if-range")) {
        (0, _) => file.reply(asked).cut_at(MIB / 2),
        (_, Some(_)) => file.whole(),
        _ => file.reply(asked),
    });
    let fetched = bench.get(&url).await.unwrap();
    assert_eq!(bench.bytes(fetched).await, bytes);
    let half = Some(MIB as u64 / 2);
    let asked = origin.asked("/a.mp4");
    assert_eq!(starts(&asked), [None, half, half]);
    assert_eq!(asked[2].header("if-range"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_without_ranges_is_fetched_whole() {
    let (bench, origin) = (Bench::new().await, Origin::start().await);
    let file = File::new(media(8, MIB)).etag("\"v1\"");
    let bytes = file.bytes.clone();
    let url = origin.answer("/a.mp4", move |_, before| match before {
        0 => file.whole().cut_at(MIB / 2),
        _ => file.whole().header("accept-ranges", "none"),
    });
    let fetched = bench.get(&url).await.unwrap();
    assert_eq!(bench.bytes(fetched).await, bytes);
    assert_eq!(origin.asked("/a.mp4").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_range_is_not_believed() {
    type Lie = fn(Reply) -> Reply;
    let lies: [Lie; 6] = [
        |reply| reply.header("content-range", "bytes 0-524287/1048576"),
        |reply| reply.header("content-range", "bytes 524288-1048575/1048577"),
        |reply| reply.header("content-range", "bytes 524288-1048574/1048576"),
        |reply| reply.header("content-type", "multipart/byteranges; boundary=x"),
        |reply| reply.without("content-range"),
        // One byte more than declared, in a body without a length.
        |reply| reply.header("content-range", "bytes 524288-1048574/1048576").chunked(),
    ];
    for (index, lie) in lies.into_iter().enumerate() {
        let (bench, origin) = (Bench::new().await, Origin::start().await);
        let file = File::new(media(9, MIB)).etag("\"v1\"");
        let bytes = file.bytes.clone();
        let url = origin.answer("/a.mp4", move |asked, before| match before {
            0 => file.reply(asked).cut_at(MIB / 2),
            1 => lie(file.reply(asked)),
            _ => file.reply(asked),
        });
        let fetched = bench.get(&url).await.unwrap_or_else(|failure| panic!("lie {index}: {failure}"));
        assert!(bench.bytes(fetched).await == bytes, "lie {index}");
        assert_eq!(starts(&origin.asked("/a.mp4")), [None, Some(MIB as u64 / 2), None], "lie {index}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_lies_every_time_is_given_up_on() {
    let (bench, origin) = (Bench::new().await, Origin::start().await);
    let file = File::new(media(10, MIB)).etag("\"v1\"");
    let url = origin.answer("/a.mp4", move |asked, _| match asked.range_start() {
        None => file.reply(asked).cut_at(MIB / 2),
        Some(_) => file.part(0),
    });
    let failure = bench.fails(&url).await;
    assert_eq!(failure.kind, FailureKind::Permanent);
    assert!(failure.message.contains("answered bytes from 0 where 524288 was asked for"), "{failure}");
    bench.leaves_nothing();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_416_completes_only_the_same_version() {
    for (name, keeps_etag, head, requests) in
        [("etag in the 416", true, 200, 2), ("a HEAD confirms", false, 200, 3), ("no HEAD: again", false, 405, 4)]
    {
        let (bench, origin) = (Bench::new().await, Origin::start().await);
        let file = File::new(media(11, MIB)).etag("\"v1\"");
        let bytes = file.bytes.clone();
        let url = origin.answer("/a.mp4", move |asked, before| match (asked.method.as_str(), before) {
            // No length, and the end of the last chunk gets lost.
            (_, 0) => file.whole().chunked().cut_at(MIB),
            ("HEAD", _) if head == 200 => file.whole(),
            ("HEAD", _) => Reply::status(405),
            _ if keeps_etag || asked.range_start().is_none() => file.reply(asked),
            _ => file.reply(asked).without("etag"),
        });
        let fetched = bench.get(&url).await.unwrap_or_else(|failure| panic!("{name}: {failure}"));
        assert!(bench.bytes(fetched).await == bytes, "{name}");
        assert_eq!(origin.asked("/a.mp4").len(), requests, "{name}");
    }
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
    bench.leaves_nothing();
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
    bench.leaves_nothing();
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
    bench.leaves_nothing();
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
    bench.leaves_nothing();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_fetch_goes_on_after_a_restart() {
    let (bench, origin) = (Bench::new().await, Origin::start().await);
    let file = File::new(media(17, 3 * MIB)).etag("\"v1\"");
    let bytes = file.bytes.clone();
    let url = origin.answer("/a.mp4", move |asked, before| match before {
        0 => file.reply(asked).pause_at(2 * MIB + 99, Duration::from_secs(60)),
        _ => file.reply(asked),
    });
    let req = FetchRequest { sha256: Some(sha256(&bytes)), ..request(&url) };
    let fetching = bench.run(req.clone());
    let stop = async {
        bench.reported(2 * MIB as u64 + 99).await;
        bench.cancel.cancel();
        Instant::now()
    };
    let (outcome, cancelled_at) = tokio::join!(fetching, stop);
    assert_eq!(outcome.unwrap_err().kind, FailureKind::Cancelled);
    assert!(cancelled_at.elapsed() < Duration::from_secs(5));

    let bench = bench.reopened().await;
    assert_eq!(bench.store.journaled_partials().await.unwrap(), [req.blob]);
    let fetched = bench.run(req).await.unwrap();
    assert_eq!(bench.bytes(fetched).await, bytes);
    assert_eq!(starts(&origin.asked("/a.mp4")), [None, Some(2 * MIB as u64 + 99)]);
    bench.leaves_nothing();
}

/// What a SIGKILL leaves: the bytes of the last checkpoint. No byte before it is asked for again.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_fetch_goes_on_from_its_last_checkpoint() {
    let (bench, origin) = (Bench::new().await, Origin::start().await);
    let file = File::new(media(18, 40 * MIB)).etag("\"v1\"");
    let (bytes, there) = (file.bytes.clone(), 37 * MIB);
    let url = origin.answer("/a.mp4", move |asked, before| match before {
        0 => file.reply(asked).pause_at(there, Duration::from_secs(60)),
        _ => file.reply(asked),
    });
    let req = request(&url);
    let lost = tokio::select! {
        outcome = bench.run(req.clone()) => panic!("it ended: {outcome:?}"),
        () = bench.reported(there as u64) => bench.progress().bytes_done,
    };
    let bench = bench.reopened().await;
    let fetched = bench.run(req).await.unwrap();
    assert_eq!(bench.bytes(fetched).await, bytes);
    let resumed = origin.asked("/a.mp4")[1].range_start().expect("it resumes");
    assert!(resumed <= lost && lost - resumed <= 17 * MIB as u64, "{resumed} of {lost}");
    assert!(resumed >= 32 * MIB as u64, "two checkpoints had passed, it resumed at {resumed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_of_another_address_is_not_continued() {
    let (bench, origin) = (Bench::new().await, Origin::start().await);
    let cut = File::new(media(19, MIB)).etag("\"v1\"");
    let first = origin.answer("/a.mp4", move |asked, _| cut.reply(asked).pause_at(MIB / 2, Duration::from_secs(60)));
    let other = File::new(media(20, MIB)).etag("\"v1\"");
    let expected = other.bytes.clone();
    let second = origin.serve("/b.mp4", other);
    let req = request(&first);
    tokio::select! {
        outcome = bench.run(req.clone()) => panic!("it ended: {outcome:?}"),
        () = bench.reported(MIB as u64 / 2) => {}
    }
    let bench = bench.reopened().await;
    let fetched = bench.run(FetchRequest { url: second, ..req }).await.unwrap();
    assert_eq!(bench.bytes(fetched).await, expected);
    assert_eq!(starts(&origin.asked("/b.mp4")), [None]);
}

/// A plugin extracts the address again and gets another token: the same file if a strong ETag says so.
#[tokio::test(flavor = "multi_thread")]
async fn another_token_is_the_same_file_only_with_a_strong_etag() {
    for (file, resumes) in
        [(File::new(media(22, MIB)).etag("\"v1\""), true), (File::new(media(22, MIB)).last_modified(LONG_AGO), false)]
    {
        let (bench, origin) = (Bench::new().await, Origin::start().await);
        let bytes = file.bytes.clone();
        let url = origin.answer("/a.mp4", move |asked, before| match before {
            0 => file.reply(asked).pause_at(MIB / 2, Duration::from_secs(60)),
            _ => file.reply(asked),
        });
        let with_token = |token: &str| {
            let mut url = url.clone();
            url.set_query(Some(token));
            url
        };
        let req = request(&with_token("token=1"));
        let stop = async {
            bench.reported(MIB as u64 / 2).await;
            bench.cancel.cancel();
        };
        let (outcome, ()) = tokio::join!(bench.run(req.clone()), stop);
        assert_eq!(outcome.unwrap_err().kind, FailureKind::Cancelled);
        let bench = bench.reopened().await;
        let fetched = bench.run(FetchRequest { url: with_token("token=2"), ..req }).await.unwrap();
        assert_eq!(bench.bytes(fetched).await, bytes);
        let expected = resumes.then_some(MIB as u64 / 2);
        assert_eq!(starts(&origin.asked("/a.mp4")), [None, expected]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_origin_is_left_and_asked_again() {
    let (mut bench, origin) = (Bench::new().await, Origin::start().await);
    bench.client = Client::new(OPEN).with_stall(Duration::from_millis(300));
    let file = File::new(media(21, MIB)).etag("\"v1\"");
    let bytes = file.bytes.clone();
    let url = origin.answer("/a.mp4", move |asked, before| match before {
        0 => file.reply(asked).pause_at(MIB / 2, Duration::from_secs(60)),
        _ => file.reply(asked),
    });
    let fetched = bench.get(&url).await.unwrap();
    assert_eq!(bench.bytes(fetched).await, bytes);
    assert_eq!(starts(&origin.asked("/a.mp4")), [None, Some(MIB as u64 / 2)]);
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
    bench.leaves_nothing();
}
