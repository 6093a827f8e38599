//! Objects over HTTP as the contract has them: stored and read back, ranges, conditions, digests, keys, listing.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use crate::support::node::{Node, files};
use crate::support::{Noise, eventually, raw, scratch};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use md5::Md5;
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    let value = response.headers().get(name).unwrap_or_else(|| panic!("{name} in {:?}", response.headers()));
    value.to_str().expect("a readable header")
}

/// The response is problem+json with this status and mentions every word.
async fn assert_problem(response: Response, status: u16, words: &[&str]) {
    assert_eq!(response.status(), status);
    assert_eq!(header(&response, "content-type"), "application/problem+json");
    let text = response.text().await.expect("a body");
    let problem: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(problem["status"], status);
    for field in ["type", "title", "detail", "request_id"] {
        assert!(problem[field].as_str().is_some_and(|value| !value.is_empty()), "{field} in {text}");
    }
    for word in words {
        assert!(text.contains(word), "{word:?} in {text}");
    }
}

async fn put(node: &Node, key: &str, body: impl Into<reqwest::Body>) -> Response {
    let response = node.put(key, body).send().await.expect("PUT");
    assert!(response.status().is_success(), "PUT {key}: {}", response.status());
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_is_stored_replaced_read_and_deleted() {
    let folder = scratch("objects");
    let node = Node::start(&folder.path().join("data")).await;
    let body = Noise::bytes(1, 700_001);
    let key = "films/2026/Łódź by night.mp4";

    let first = node.put(key, body.clone()).header("content-type", "video/mp4").send().await.unwrap();
    assert_eq!(first.status(), 201);
    let etag = header(&first, "etag").to_string();
    assert!(etag.starts_with('"') && etag.len() == 66, "a strong tag of 64 hex digits: {etag}");

    let got = node.object(key).send().await.unwrap();
    assert_eq!(got.status(), 200);
    assert_eq!(header(&got, "etag"), etag);
    assert_eq!(header(&got, "content-type"), "video/mp4");
    assert_eq!(header(&got, "content-length"), "700001");
    assert_eq!(header(&got, "accept-ranges"), "bytes");
    assert!(header(&got, "last-modified").ends_with("GMT"));
    assert!(got.bytes().await.unwrap() == body);

    let head = node.request(Method::HEAD, &format!("/v1/objects/{key}")).send().await.unwrap();
    assert_eq!(
        (head.status().as_u16(), header(&head, "content-length"), header(&head, "etag")),
        (200, "700001", &*etag)
    );
    assert!(head.bytes().await.unwrap().is_empty());

    let second = put(&node, key, "shorter").await;
    assert_eq!(second.status(), 200, "replaced");
    assert_ne!(header(&second, "etag"), etag);
    assert_eq!(node.object(key).send().await.unwrap().text().await.unwrap(), "shorter");

    let delete = || node.request(Method::DELETE, &format!("/v1/objects/{key}")).send();
    assert_eq!(delete().await.unwrap().status(), 204);
    assert_problem(node.object(key).send().await.unwrap(), 404, &["Łódź"]).await;
    assert_problem(delete().await.unwrap(), 404, &["Łódź"]).await;

    // Replaced and deleted bytes give their room back.
    eventually("the blobs' files are gone", Duration::from_secs(10), async || {
        files(&node.data().join("blobs")).is_empty().then_some(())
    })
    .await;
    assert!(node.partials().is_empty(), "{:?}", node.partials());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_object_is_an_object() {
    let folder = scratch("empty");
    let node = Node::start(&folder.path().join("data")).await;
    assert_eq!(put(&node, "empty", "").await.status(), 201);
    let got = node.object("empty").send().await.unwrap();
    assert_eq!((got.status().as_u16(), header(&got, "content-length")), (200, "0"));
    assert!(got.bytes().await.unwrap().is_empty());
    let ranged = node.object("empty").header("range", "bytes=0-").send().await.unwrap();
    assert_eq!((ranged.status().as_u16(), header(&ranged, "content-range")), (416, "bytes */0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_exact() {
    let folder = scratch("ranges");
    let node = Node::start(&folder.path().join("data")).await;
    // Longer than two checksum blocks, and no multiple of anything.
    let body = Noise::bytes(2, 600_011);
    let length = body.len();
    let etag = header(&put(&node, "clip", body.clone()).await, "etag").to_string();
    let get = |range: String| node.object("clip").header("range", range).send();

    for (range, from, to) in [
        ("0-0", 0, 1),
        ("5-9", 5, 10),
        ("262143-262144", 262_143, 262_145),
        ("300000-", 300_000, length),
        ("-7", length - 7, length),
        ("-9999999", 0, length),
        ("600010-", length - 1, length),
        ("0-99999999", 0, length),
    ] {
        let response = get(format!("bytes={range}")).await.unwrap();
        assert_eq!(response.status(), 206, "{range}");
        let shown = format!("bytes {from}-{}/{length}", to - 1);
        assert_eq!(header(&response, "content-range"), shown, "{range}");
        assert_eq!(header(&response, "content-length"), (to - from).to_string(), "{range}");
        assert_eq!(header(&response, "etag"), etag, "{range}");
        assert!(response.bytes().await.unwrap() == body[from..to], "{range}");
    }

    for range in ["600011-", "99999999-100000000", "-0"] {
        let response = get(format!("bytes={range}")).await.unwrap();
        assert_eq!(response.status(), 416, "{range}");
        assert_eq!(header(&response, "content-range"), format!("bytes */{length}"), "{range}");
    }

    // Not understood means not asked for.
    for range in ["bytes=9-5", "bytes=a-b", "bytes=", "chapters=1-2"] {
        let response = get(range.into()).await.unwrap();
        assert_eq!(response.status(), 200, "{range}");
        assert_eq!(response.bytes().await.unwrap().len(), length, "{range}");
    }

    let if_range = |tag: &str| node.object("clip").header("range", "bytes=1-2").header("if-range", tag).send();
    assert_eq!(if_range(&etag).await.unwrap().status(), 206);
    let stale = if_range("\"stale\"").await.unwrap();
    assert_eq!(stale.status(), 200, "another version gets the whole");
    assert!(stale.bytes().await.unwrap() == body);
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_guard_reads_writes_and_deletes() {
    let folder = scratch("conditions");
    let node = Node::start(&folder.path().join("data")).await;
    let etag = header(&put(&node, "note", "one").await, "etag").to_string();
    let send = |method: Method, name: &'static str, value: String, body: &'static str| {
        node.request(method, "/v1/objects/note").header(name, value).body(body).send()
    };

    let cached = send(Method::GET, "if-none-match", etag.clone(), "").await.unwrap();
    assert_eq!((cached.status().as_u16(), header(&cached, "etag")), (304, &*etag));
    assert!(cached.bytes().await.unwrap().is_empty());
    let modified = header(&node.object("note").send().await.unwrap(), "last-modified").to_string();
    assert_eq!(send(Method::GET, "if-modified-since", modified, "").await.unwrap().status(), 304);

    assert_problem(send(Method::PUT, "if-none-match", "*".into(), "two").await.unwrap(), 412, &["note"]).await;
    assert_problem(send(Method::PUT, "if-match", "\"00\"".into(), "two").await.unwrap(), 412, &["note"]).await;
    assert_problem(send(Method::DELETE, "if-match", "\"00\"".into(), "").await.unwrap(), 412, &["note"]).await;
    assert_eq!(node.object("note").send().await.unwrap().text().await.unwrap(), "one", "nothing changed");

    assert_eq!(send(Method::PUT, "if-match", etag.clone(), "two").await.unwrap().status(), 200);
    assert_problem(send(Method::PUT, "if-match", etag, "three").await.unwrap(), 412, &["note"]).await;
    let new = node.put("new", "x").header("if-none-match", "*").send().await.unwrap();
    assert_eq!(new.status(), 201);
    assert_eq!(files(&node.data().join("blobs")).len(), 2, "refused bodies leave no blob");
    assert!(node.partials().is_empty(), "{:?}", node.partials());
}

/// Of sixteen that all want to be first, one is.
#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_rivals_creates() {
    let folder = scratch("rivals");
    let node = Node::start(&folder.path().join("data")).await;
    let attempts = (0..16).map(|i| {
        let request = node.put("prize", vec![i; 100_000]).header("if-none-match", "*");
        async move { (i, request.send().await.unwrap().status()) }
    });
    let outcomes: Vec<(u8, StatusCode)> = futures_util::future::join_all(attempts).await;
    let winners: Vec<u8> = outcomes.iter().filter(|(_, s)| *s == 201).map(|(i, _)| *i).collect();
    assert_eq!(winners.len(), 1, "{outcomes:?}");
    assert!(outcomes.iter().all(|(_, status)| *status == 201 || *status == 412), "{outcomes:?}");
    let stored = node.object("prize").send().await.unwrap().bytes().await.unwrap();
    assert!(stored == vec![winners[0]; 100_000], "the winner's bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn digests_are_verified() {
    let folder = scratch("digests");
    let node = Node::start(&folder.path().join("data")).await;
    let body = Noise::bytes(3, 300_000);
    let sha256 = |bytes: &[u8]| format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(bytes)));
    let md5 = |bytes: &[u8]| STANDARD.encode(Md5::digest(bytes));
    let send = |key, name, value: String| node.put(key, body.clone()).header(name, value).send();

    assert_eq!(send("a", "repr-digest", sha256(&body)).await.unwrap().status(), 201);
    assert_eq!(send("b", "content-md5", md5(&body)).await.unwrap().status(), 201);
    for (key, name, value) in [
        ("c", "repr-digest", sha256(b"other")),
        ("d", "content-md5", md5(b"other")),
        ("e", "content-md5", "not base64!".to_string()),
    ] {
        assert_problem(send(key, name, value).await.unwrap(), 400, &[]).await;
        assert_eq!(node.object(key).send().await.unwrap().status(), 404, "{key} is not stored");
    }
    eventually("the refused bodies are gone", Duration::from_secs(10), async || {
        (files(&node.data().join("blobs")).len() == 2 && node.partials().is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_keys_are_refused_and_odd_ones_kept() {
    let folder = scratch("keys");
    let node = Node::start(&folder.path().join("data")).await;
    let long = "k".repeat(1025);
    for path in [
        "..",
        "%2e%2e",
        "a/../b",
        "a/%2E%2e/b",
        "./a",
        "a/.",
        "a/%2e",
        "a%00b",
        "a%0ab",
        "a%7f",
        "%ff%fe",
        "%zz",
        "a%",
        "%4",
        "",
        &long,
    ] {
        let (status, answer) = raw::request(node.addr(), "PUT", &format!("/v1/objects/{path}"), b"x");
        assert!((400..500).contains(&status), "{path:?}: {answer}");
        assert!(path.is_empty() || status == 400, "{path:?}: {answer}");
        assert!(path.is_empty() || answer.contains("application/problem+json"), "{path:?}: {answer}");
    }
    // The encoded slash is a slash; a name of dots and letters is a name.
    let longest = "k".repeat(1024);
    let odd = ["...", "..a", "a%20b", "snow%E2%98%83man", "a/b/c", "%25", "a%2Fslash", "%E2%80%AEgpj.exe", &longest];
    for path in odd {
        let (status, answer) = raw::request(node.addr(), "PUT", &format!("/v1/objects/{path}"), path.as_bytes());
        assert_eq!(status, 201, "{path:?}: {answer}");
        let (status, answer) = raw::request(node.addr(), "GET", &format!("/v1/objects/{path}"), b"");
        assert!(status == 200 && answer.ends_with(path), "{path:?}: {answer}");
    }
    assert_eq!(files(&node.data().join("blobs")).len(), odd.len());
    // Names never become paths: nothing but hex below blobs/, nothing new beside the data directory.
    for file in files(&node.data().join("blobs")) {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        assert!(name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn listing_pages_through_a_prefix_in_order() {
    let folder = scratch("listing");
    let node = Node::start(&folder.path().join("data")).await;
    let mut keys: Vec<String> = (0..25).map(|i| format!("shows/{i:02}.mp4")).collect();
    for key in keys.iter().rev().map(String::as_str).chain(["other", "shows", "shows0"]) {
        put(&node, key, key.to_string()).await;
    }
    let page = |after: String| {
        let query = format!("/v1/objects?prefix=shows%2F&limit=10&after={after}");
        let node = &node;
        async move {
            let listed = node.json(&query).await;
            let objects = listed["objects"].as_array().unwrap_or_else(|| panic!("{listed}")).clone();
            objects
                .into_iter()
                .map(|object| {
                    let key = object["key"].as_str().unwrap().to_string();
                    assert_eq!(object["length"].as_u64(), Some(key.len() as u64), "{object}");
                    key
                })
                .collect::<Vec<_>>()
        }
    };
    let mut seen: Vec<String> = Vec::new();
    loop {
        let found = page(seen.last().cloned().unwrap_or_default()).await;
        assert!(found.len() <= 10);
        if found.is_empty() {
            break;
        }
        seen.extend(found);
    }
    keys.sort();
    assert_eq!(seen, keys);
    let refused = node.get("/v1/objects?limit=many").send().await.unwrap();
    assert_problem(refused, 400, &["limit"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_stream_and_a_broken_upload_leaves_nothing() {
    let folder = scratch("streams");
    let node = Node::start(&folder.path().join("data")).await;

    // No declared length: chunked, in pieces that fit nothing.
    let body = Noise::bytes(4, 3_000_017);
    let chunks: Vec<Result<Vec<u8>, std::io::Error>> = body.chunks(99_991).map(|chunk| Ok(chunk.to_vec())).collect();
    let stream = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
    assert_eq!(put(&node, "chunked", stream).await.status(), 201);
    let mut received = Vec::new();
    let mut stream = node.object("chunked").send().await.unwrap().bytes_stream();
    while let Some(chunk) = stream.next().await {
        received.extend_from_slice(&chunk.unwrap());
    }
    assert!(received == body);

    // Half of what was announced, then the connection closes.
    let mut half = TcpStream::connect(node.addr()).unwrap();
    write!(half, "PUT /v1/objects/half HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000000\r\n\r\n").unwrap();
    half.write_all(&Noise::bytes(5, 2_000_000)).unwrap();
    drop(half);
    eventually("no trace of the half upload", Duration::from_secs(20), async || {
        (node.partials().is_empty() && files(&node.data().join("blobs")).len() == 1).then_some(())
    })
    .await;
    assert_eq!(node.object("half").send().await.unwrap().status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_get_a_file_name() {
    let folder = scratch("names");
    let node = Node::start(&folder.path().join("data")).await;
    put(&node, "clip", "x").await;
    let named = node.object("clip?download=My%20film%20%22%C3%A9%22.mp4").send().await.unwrap();
    let disposition = header(&named, "content-disposition");
    assert!(disposition.starts_with("attachment"), "{disposition}");
    assert!(disposition.contains("filename*=UTF-8''"), "the exact name by RFC 6266: {disposition}");
    assert!(!disposition.contains('\n'), "{disposition}");
    let injected = node.object("clip?download=a%0d%0aset-cookie:%20b").send().await.unwrap();
    assert!(!injected.headers().contains_key("set-cookie"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_says_so() {
    let folder = scratch("unknown");
    let node = Node::start(&folder.path().join("data")).await;
    assert_problem(node.get("/v1/nothing").send().await.unwrap(), 404, &[]).await;
    assert_problem(node.request(Method::POST, "/v1/objects/a").send().await.unwrap(), 405, &[]).await;
    assert_eq!(node.get("/healthz").send().await.unwrap().status(), 200);
    assert_eq!(node.get("/readyz").send().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announced_size_over_the_limit_is_refused_before_it_is_sent() {
    let folder = scratch("size");
    let node = Node::start(&folder.path().join("data")).await;
    let huge = format!(
        "PUT /v1/objects/huge HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        u64::MAX / 2
    );
    let (status, answer) = raw::exchange(node.addr(), huge.as_bytes());
    assert_eq!(status, 413, "{answer}");
    assert!(node.partials().is_empty(), "{:?}", node.partials());
}
