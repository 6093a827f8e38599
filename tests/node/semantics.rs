//! What RFC 9110 and its neighbours ask of an answer: several ranges, conditions of writes, digests, types, names, caching,
//! pages of other sites, folders.

use crate::support::node::{Node, reelring};
use crate::support::{Noise, scratch, sha256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, Response};
use sha2::{Digest as _, Sha256};

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    let value = response.headers().get(name).unwrap_or_else(|| panic!("{name} in {:?}", response.headers()));
    value.to_str().expect("a readable header")
}

async fn put(node: &Node, key: &str, body: impl Into<reqwest::Body>) -> String {
    let response = node.put(key, body).send().await.expect("PUT");
    assert!(response.status().is_success(), "PUT {key}: {}", response.status());
    header(&response, "etag").to_string()
}

/// The parts of a `multipart/byteranges` body: the `Content-Range` and the bytes of each, read as a client reads them.
fn parts<'a>(content_type: &str, mut body: &'a [u8]) -> Vec<(String, &'a [u8])> {
    let boundary = content_type.strip_prefix("multipart/byteranges; boundary=").expect("a boundary");
    let end = format!("\r\n--{boundary}");
    body = body.strip_prefix(&end.as_bytes()[2..]).expect("the first boundary");
    let mut parts = Vec::new();
    while body != b"--\r\n" {
        let at = body.windows(4).position(|window| window == b"\r\n\r\n").expect("the end of the part's head");
        let head = std::str::from_utf8(&body[..at]).expect("a head in ASCII");
        assert!(head.contains("\r\nContent-Type: video/mp4"), "{head}");
        let range = head.split("\r\nContent-Range: ").nth(1).expect("a Content-Range").to_string();
        body = &body[at + 4..];
        let at = body.windows(end.len()).position(|window| window == end.as_bytes()).expect("the next boundary");
        parts.push((range, &body[..at]));
        body = &body[at + end.len()..];
    }
    parts
}

#[tokio::test(flavor = "multi_thread")]
async fn several_ranges_come_in_parts() {
    let folder = scratch("multipart");
    let node = Node::start(&folder.path().join("data")).await;
    // Several chunks of the store and no multiple of any.
    let body = Noise::bytes(31, 3_000_011);
    let etag = put(&node, "film.mp4", body.clone()).await;
    let get = |range: &str| node.object("film.mp4").header("range", format!("bytes={range}")).send();

    for (asked, expected) in [
        ("0-0,-1", &[(0, 1), (3_000_010, 3_000_011)][..]),
        ("2500000-,5-9 , 262143-262144", &[(2_500_000, 3_000_011), (5, 10), (262_143, 262_145)]),
        ("0-1999999,2000000-2999999", &[(0, 2_000_000), (2_000_000, 3_000_000)]),
        ("100-199,99999999-,0-9", &[(100, 200), (0, 10)]),
    ] {
        let response = get(asked).await.unwrap();
        assert_eq!(response.status(), 206, "{asked}");
        assert!(!response.headers().contains_key("content-range"), "{asked}: the parts have it");
        assert_eq!((header(&response, "etag"), header(&response, "accept-ranges")), (&*etag, "bytes"), "{asked}");
        let (length, content_type) =
            (header(&response, "content-length").to_string(), header(&response, "content-type").to_string());
        let answer = response.bytes().await.unwrap();
        assert_eq!(answer.len().to_string(), length, "{asked}");
        let found = parts(&content_type, &answer);
        assert_eq!(found.len(), expected.len(), "{asked}");
        for ((range, bytes), (from, to)) in found.iter().zip(expected) {
            assert_eq!(*range, format!("bytes {from}-{}/3000011", to - 1), "{asked}");
            assert!(*bytes == &body[*from..*to], "{asked}: {range}");
        }
    }

    // What overlaps is sent once, and one part that is left needs no multipart.
    for asked in ["0-99,50-149", "0-149,0-149,0-149,10-20", "0-149,9999999-"] {
        let response = get(asked).await.unwrap();
        assert_eq!((response.status().as_u16(), header(&response, "content-range")), (206, "bytes 0-149/3000011"));
        assert!(response.bytes().await.unwrap() == body[..150], "{asked}");
    }
    // Thousands of times the whole would be asked for here.
    let response = get(&vec!["0-"; 128].join(",")).await.unwrap();
    assert_eq!(header(&response, "content-length"), "3000011");
    for asked in [vec!["0-"; 129].join(","), "9999999-,-0".to_string()] {
        let response = get(&asked).await.unwrap();
        assert_eq!((response.status().as_u16(), header(&response, "content-range")), (416, "bytes */3000011"));
    }
    // Another version gets the whole; HEAD knows no ranges.
    let stale = node.object("film.mp4").header("range", "bytes=0-0,-1").header("if-range", "\"stale\"");
    let stale = stale.send().await.unwrap();
    assert_eq!((stale.status().as_u16(), header(&stale, "content-length")), (200, "3000011"));
    let head = node.request(Method::HEAD, "/v1/objects/film.mp4").header("range", "bytes=0-0,-1").send().await.unwrap();
    assert_eq!((head.status().as_u16(), header(&head, "content-length")), (200, "3000011"));
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_ask_all_their_conditions() {
    let folder = scratch("preconditions");
    let node = Node::start(&folder.path().join("data")).await;
    let etag = put(&node, "note", "one").await;
    let modified = header(&node.object("note").send().await.unwrap(), "last-modified").to_string();
    let send = |method: Method, conditions: &[(&'static str, &str)]| {
        let mut request = node.request(method, "/v1/objects/note").body("two");
        for (name, value) in conditions {
            request = request.header(*name, *value);
        }
        async move { request.send().await.unwrap().status().as_u16() }
    };
    let long_ago = "Sat, 05 Nov 1994 08:49:37 GMT";
    for method in [Method::PUT, Method::DELETE] {
        for (conditions, expected) in [
            (&[("if-unmodified-since", long_ago)][..], 412),
            (&[("if-none-match", &*etag)], 412),
            (&[("if-match", "*"), ("if-none-match", &etag)], 412),
            (&[("if-match", "\"x\""), ("if-unmodified-since", &modified)], 412),
            (&[("if-match", "W/\"x\"")], 412),
            (&[("if-match", "x")], 400),
            (&[("if-none-match", "*, \"x\"")], 400),
        ] {
            assert_eq!(send(method.clone(), conditions).await, expected, "{method} {conditions:?}");
        }
    }
    assert_eq!(node.object("note").send().await.unwrap().text().await.unwrap(), "one", "nothing changed");

    // If-Match says it better than the date beside it.
    assert_eq!(send(Method::PUT, &[("if-match", &etag), ("if-unmodified-since", long_ago)]).await, 200);
    // The new version has another second, however fast it came: the old date no longer stands for it.
    assert_eq!(send(Method::PUT, &[("if-unmodified-since", &modified)]).await, 412);
    let ranged = node.object("note").header("range", "bytes=0-0").header("if-range", &modified);
    assert_eq!(ranged.send().await.unwrap().status(), 200, "bytes of two versions never mix");

    assert_eq!(send(Method::DELETE, &[("if-none-match", "\"other\"")]).await, 204);
    assert_eq!(send(Method::DELETE, &[("if-match", "*")]).await, 404, "what is not there has no condition");
    assert_eq!(send(Method::PUT, &[("if-match", "*")]).await, 412);
    assert_eq!(send(Method::PUT, &[("if-unmodified-since", long_ago)]).await, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_that_was_verified_goes_out_with_every_answer() {
    let folder = scratch("repr-digest");
    let data = folder.path().join("data");
    let node = Node::start(&data).await;
    let body = Noise::bytes(32, 400_000);
    let digest = format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(&body)));
    for (key, name) in [("repr", "repr-digest"), ("content", "content-digest")] {
        let wrong = node.put(key, "other").header(name, &digest).send().await.unwrap();
        assert_eq!(wrong.status(), 400, "{name}");
        assert_eq!(node.put(key, body.clone()).header(name, &digest).send().await.unwrap().status(), 201, "{name}");
    }
    put(&node, "unknown", body.clone()).await;
    // What is known survives the node.
    node.terminate();
    assert!(node.ended(std::time::Duration::from_secs(30)).await.success());
    let node = Node::start(&data).await;

    let of = |key: &'static str, name: &'static str, value: &'static str| {
        let request = node.object(key).header(name, value);
        async move {
            let response = request.send().await.unwrap();
            response.headers().get("repr-digest").map(|value| value.to_str().unwrap().to_string())
        }
    };
    for key in ["repr", "content"] {
        // Of the whole object, whatever part of it is sent.
        for (name, value) in
            [("accept", "*/*"), ("range", "bytes=5-9"), ("range", "bytes=5-9,-1"), ("want-repr-digest", "sha-256=3")]
        {
            assert_eq!(of(key, name, value).await.as_deref(), Some(&*digest), "{key} {name}: {value}");
        }
        assert_eq!(of(key, "want-repr-digest", "sha-512=10").await, None);
    }
    assert_eq!(of("unknown", "want-repr-digest", "sha-256=10").await, None, "nothing is claimed that nobody computed");
    let stored = node.object("repr").send().await.unwrap().bytes().await.unwrap();
    assert_eq!(sha256(&stored), sha256(&body));
}

#[tokio::test(flavor = "multi_thread")]
async fn content_has_its_type_and_a_page_no_power() {
    let folder = scratch("types");
    let node = Node::start(&folder.path().join("data")).await;
    const MP4: &[u8] = b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41";
    for (key, declared, body, expected, sandboxed) in [
        ("declared", Some("video/webm"), MP4, "video/webm", false),
        ("show.ts", None, b"x", "video/mp2t", false),
        ("subtitles.vtt", None, b"WEBVTT", "text/vtt", true),
        ("by-its-bytes", None, MP4, "video/mp4", false),
        ("posted", Some("application/x-www-form-urlencoded"), MP4, "video/mp4", false),
        ("binary", Some("application/octet-stream"), MP4, "video/mp4", false),
        // Nothing becomes a page by its bytes.
        ("nameless", None, b"<!doctype html><script>alert(1)</script>", "application/octet-stream", true),
        ("page.html", None, b"<!doctype html><script>alert(1)</script>", "text/html", true),
        ("garbage", Some("nothing"), b"x", "application/octet-stream", true),
    ] {
        let mut request = node.put(key, body.to_vec());
        if let Some(declared) = declared {
            request = request.header("content-type", declared);
        }
        assert_eq!(request.send().await.unwrap().status(), 201, "{key}");
        let response = node.object(key).send().await.unwrap();
        assert_eq!(header(&response, "content-type"), expected, "{key}");
        assert_eq!(header(&response, "x-content-type-options"), "nosniff", "{key}");
        assert_eq!(response.headers().contains_key("content-security-policy"), sandboxed, "{key}");
        assert_eq!(header(&response, "cache-control"), "no-cache", "{key}");
    }
    let listed = node.json("/v1/objects?prefix=by-its-bytes").await;
    assert_eq!(listed["objects"][0]["content_type"], "video/mp4", "lists say what answers say");

    let saved = node.object("declared?download").send().await.unwrap();
    assert_eq!(header(&saved, "content-disposition"), "attachment; filename=\"declared\"");
    let named = node.object("declared?download=%C3%A9.mp4").send().await.unwrap();
    assert_eq!(header(&named, "content-disposition"), "attachment; filename=\"_.mp4\"; filename*=UTF-8''%C3%A9.mp4");

    // A cache left alone keeps even a 404.
    for (path, expected) in [("/v1/objects", "no-cache"), ("/healthz", "no-cache"), ("/v1/objects/none", "no-store")] {
        assert_eq!(header(&node.get(path).send().await.unwrap(), "cache-control"), expected, "{path}");
    }
}

/// The headers that tell a browser who may read, by the page's origin.
async fn shared_with(request: reqwest::RequestBuilder, origin: &str) -> (u16, Option<String>, Option<String>) {
    let response = request.header("origin", origin).send().await.unwrap();
    let text = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_string());
    (response.status().as_u16(), text("access-control-allow-origin"), text("vary"))
}

#[tokio::test(flavor = "multi_thread")]
async fn only_pages_of_listed_sites_may_read() {
    let folder = scratch("cors");
    let (page, evil) = ("https://player.example", "https://evil.example");
    let settings = [("REELRING_CORS_ORIGINS", "http://localhost:3000,https://player.example")];
    let node = Node::start_with(&folder.path().join("listed"), &settings).await;
    put(&node, "film", "0123456789").await;
    let allowed = Some(page.to_string());
    let vary = Some("Origin".to_string());
    assert_eq!(shared_with(node.object("film"), page).await, (200, allowed.clone(), vary.clone()));
    assert_eq!(
        shared_with(node.object("film").header("range", "bytes=0-1"), page).await,
        (206, allowed.clone(), vary.clone())
    );
    assert_eq!(
        shared_with(node.object("none"), page).await,
        (404, allowed.clone(), vary.clone()),
        "errors can be read too"
    );
    for other in [evil, "null", "http://player.example", "https://player.example:444"] {
        assert_eq!(shared_with(node.object("film"), other).await, (200, None, vary.clone()), "{other}");
    }
    let plain = node.object("film").send().await.unwrap();
    assert_eq!(header(&plain, "vary"), "Origin", "a cache keeps no answer for the wrong reader");

    let preflight = |method: &'static str| {
        let request = node.request(Method::OPTIONS, "/v1/objects/film");
        request.header("access-control-request-method", method).header("access-control-request-headers", "range")
    };
    let answer = preflight("GET").header("origin", page).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), header(&answer, "access-control-allow-origin")), (204, page));
    assert!(header(&answer, "access-control-allow-methods").contains("PATCH"));
    assert_eq!(header(&answer, "access-control-allow-headers"), "*, Authorization");
    assert!(!answer.headers().contains_key("access-control-allow-credentials"));
    let refused = preflight("PUT").header("origin", evil).send().await.unwrap();
    assert_eq!((refused.status().as_u16(), refused.headers().get("access-control-allow-origin")), (403, None));
    assert!(refused.text().await.unwrap().contains("cors_origins"), "the way out is named");
    let no_browser = node.request(Method::OPTIONS, "/v1/objects/film").send().await.unwrap();
    assert_eq!(no_browser.status(), 405, "no preflight");

    // By default pages of other sites get nothing: whoever reaches a loopback node shows pages of all the world.
    let node = Node::start(&folder.path().join("default")).await;
    put(&node, "film", "x").await;
    assert_eq!(shared_with(node.object("film"), page).await, (200, None, None));
    assert_eq!(shared_with(node.get("/v1/assets"), page).await, (200, None, None));
}

/// What a request brings itself no page has by accident; what the node gives everybody stays closed to pages.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_signed_addresses_open_answers_to_every_page() {
    let folder = scratch("cors-tokens");
    let data = folder.path().join("data");
    let node = Node::start_with(&data, &[("REELRING_ANONYMOUS", "read")]).await;
    for key in ["films/a b", "films/c"] {
        put(&node, key, "0123456789").await;
    }
    let said = |arguments: &[&str]| {
        let output = reelring(&data, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_string()
    };
    let token = said(&["token", "create", "web", "--scope", "read"]);
    let signed = said(&["sign", "--prefix", "films/"]);
    let signature = signed.split_once('?').expect("a signed address").1;
    let page = "https://anywhere.example";
    let all = Some("*".to_string());
    let by_token = node.object("films/c").bearer_auth(&token);
    assert_eq!(shared_with(by_token, page).await, (200, all.clone(), None));
    assert_eq!(shared_with(node.object(&format!("films/c?{signature}")), page).await, (200, all.clone(), None));
    let (status, readers, _) = shared_with(node.object(&format!("films/c?{signature}x")), page).await;
    assert_eq!((status, readers), (403, all.clone()), "a player can tell why it plays nothing");
    let (status, readers, _) = shared_with(node.object("films/c"), page).await;
    assert_eq!((status, readers), (200, None), "read anonymously, and so not by every page");
    let question = node.request(Method::OPTIONS, "/v1/objects/films/c").header("access-control-request-method", "GET");
    let (status, readers, _) = shared_with(question, page).await;
    assert_eq!((status, readers), (204, all), "the question brings no token yet");

    // A folder under a signed prefix leads to what the signature covers.
    let index = node.get(&format!("/v1/objects/films/?{signature}")).send().await.unwrap().text().await.unwrap();
    let link = index.split("href=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a link");
    assert!(link.starts_with("a%20b?"), "{index}");
    let followed = node.get(&format!("/v1/objects/films/{link}")).send().await.unwrap();
    assert_eq!((followed.status().as_u16(), followed.text().await.unwrap().as_str()), (200, "0123456789"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_a_page_of_links() {
    let folder = scratch("folders");
    let node = Node::start(&folder.path().join("data")).await;
    let names: Vec<String> = (0..600).map(|n| format!("many/{n:03}")).collect();
    for key in ["a & <b>.mp4", "films/ä.mp4", "films/old/one", "films/old/two", "films/old"] {
        put(&node, key, key).await;
    }
    for key in &names {
        put(&node, key, "x").await;
    }
    let page = |path: &'static str| {
        let request = node.get(path);
        async move {
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 200, "{path}");
            assert_eq!(header(&response, "content-type"), "text/html; charset=utf-8", "{path}");
            assert!(header(&response, "content-security-policy").starts_with("default-src 'none'"), "{path}");
            response.text().await.unwrap()
        }
    };
    let links = |page: &str| -> Vec<String> {
        page.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_string()).collect()
    };
    let root = page("/v1/objects/").await;
    assert_eq!(links(&root), ["a%20%26%20%3Cb%3E.mp4", "films/", "many/"]);
    assert!(root.contains("a &amp; &lt;b&gt;.mp4") && !root.contains("<b>"), "{root}");
    assert_eq!(links(&page("/v1/objects/films/").await), ["../", "old", "old/", "%C3%A4.mp4"]);
    assert_eq!(links(&page("/v1/objects/many/").await).len(), 601, "more than is read at once");
    assert_eq!(node.get("/v1/objects/none/").send().await.unwrap().status(), 404);

    // Lists are JSON as ever, and for programs that say what they read.
    for (path, count) in [("/v1/objects/?prefix=films/", 4), ("/v1/objects?prefix=films/", 4)] {
        assert_eq!(node.json(path).await["objects"].as_array().unwrap().len(), count, "{path}");
    }
    let listed = node.get("/v1/objects/films/old/").header("accept", "application/json").send().await.unwrap();
    let listed: serde_json::Value = serde_json::from_str(&listed.text().await.unwrap()).unwrap();
    assert_eq!(listed["objects"].as_array().unwrap().len(), 2);

    // An object may have such a name.
    put(&node, "films/", "itself").await;
    assert_eq!(node.object("films/").send().await.unwrap().text().await.unwrap(), "itself");
}
