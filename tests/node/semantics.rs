//! What RFC 9110 and its neighbours ask of an answer: several ranges, conditions of writes.

use crate::support::node::Node;
use crate::support::{Noise, scratch};
use reqwest::{Method, Response};

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
