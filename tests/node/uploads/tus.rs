//! tus 1.0, request by request.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::Md5;
use reqwest::Method;
use sha2::{Digest as _, Sha256};

use super::{create, header, metadata, offset, patch, stored, tus};
use crate::support::node::Node;
use crate::support::{Noise, eventually, raw, scratch};

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_in_pieces_becomes_an_object_when_it_is_whole() {
    let folder = scratch("uploads");
    let node = Node::start(&folder.path().join("data")).await;
    let body = Noise::bytes(1, 700_001);
    let offered = node.request(Method::OPTIONS, "/v1/uploads").send().await.unwrap();
    assert_eq!((offered.status().as_u16(), header(&offered, "tus-version")), (204, "1.0.0"));
    assert!(header(&offered, "tus-extension").split(',').any(|extension| extension == "concatenation"));

    let said = metadata(&[("key", "films/Łódź.mp4"), ("content_type", "video/mp4"), ("note", "any")]);
    let request = tus(&node, "POST", "/v1/uploads").header("Upload-Length", body.len());
    let created = request.header("Upload-Metadata", &said).send().await.unwrap();
    assert_eq!((created.status().as_u16(), header(&created, "tus-resumable")), (201, "1.0.0"));
    assert!(header(&created, "upload-expires").ends_with("GMT"));
    let path = header(&created, "location").to_owned();

    let head = tus(&node, "HEAD", &path).send().await.unwrap();
    assert_eq!(header(&head, "upload-metadata"), said);
    assert_eq!(header(&head, "upload-length"), "700001");
    assert_eq!(header(&head, "cache-control"), "no-store");
    for (from, to) in [(0, 1), (1, 300_000), (300_000, 300_000), (300_000, 700_000)] {
        let sent = patch(&node, &path, from, body[from..to].to_vec()).send().await.unwrap();
        assert_eq!(sent.status(), 204);
        assert_eq!(header(&sent, "upload-offset"), to.to_string());
        assert_eq!(offset(&node, &path).await, to);
    }
    let last = patch(&node, &path, 700_000, body[700_000..].to_vec()).send().await.unwrap();
    assert_eq!((last.status().as_u16(), header(&last, "upload-offset")), (204, "700001"));
    let place = header(&last, "content-location").to_owned();
    let got = node.get(&place).send().await.unwrap();
    assert_eq!(header(&got, "content-type"), "video/mp4");
    assert_eq!(header(&got, "etag"), header(&last, "etag"));
    assert!(got.bytes().await.unwrap() == body);
    assert!(node.partials().is_empty(), "{:?}", node.partials());

    // A client whose answer was lost may ask, and repeat its last, empty request; but add nothing.
    assert_eq!(offset(&node, &path).await, body.len());
    assert_eq!(patch(&node, &path, body.len(), vec![]).send().await.unwrap().status(), 204);
    assert_eq!(patch(&node, &path, body.len(), vec![1]).send().await.unwrap().status(), 403);
    // The record goes, the object stays.
    assert_eq!(tus(&node, "DELETE", &path).send().await.unwrap().status(), 204);
    assert_eq!(tus(&node, "HEAD", &path).send().await.unwrap().status(), 404);
    assert!(node.get(&place).send().await.unwrap().bytes().await.unwrap() == body);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_and_changes_nothing() {
    let folder = scratch("uploads");
    let node = Node::start(&folder.path().join("data")).await;
    let path = create(&node, "a", Some(10)).await;
    assert_eq!(patch(&node, &path, 0, vec![1; 4]).send().await.unwrap().status(), 204);

    let other_type = tus(&node, "PATCH", &path).header("Upload-Offset", 4).header("Content-Type", "video/mp4");
    let untyped = tus(&node, "PATCH", &path).header("Upload-Offset", 4);
    let unversioned = node.request(Method::PATCH, &path).header("Content-Type", "application/offset+octet-stream");
    let old = node.request(Method::HEAD, &path).header("Tus-Resumable", "0.2.2");
    let placeless = tus(&node, "PATCH", &path).header("Content-Type", "application/offset+octet-stream");
    let unknown = tus(&node, "HEAD", "/v1/uploads/00000000000000000000000000000000");
    for (request, status) in [
        (patch(&node, &path, 3, vec![1]), 409),
        (patch(&node, &path, 5, vec![1]), 409),
        (patch(&node, &path, 4, vec![1; 7]), 413),
        (patch(&node, &path, 4, vec![1]).header("Upload-Length", 11), 400),
        (patch(&node, &path, 4, vec![1]).header("Upload-Checksum", "crc9 AAAA"), 400),
        (other_type, 415),
        (untyped, 415),
        (unversioned, 412),
        (old, 412),
        (placeless, 400),
        (unknown, 404),
        (tus(&node, "HEAD", "/v1/uploads/x"), 404),
        (tus(&node, "POST", "/v1/uploads"), 400),
        (tus(&node, "POST", "/v1/uploads").header("Upload-Length", "-1"), 400),
        (tus(&node, "POST", "/v1/uploads").header("Upload-Length", 1u64 << 50), 413),
        (tus(&node, "POST", "/v1/uploads").header("Upload-Length", 1).header("Upload-Defer-Length", 1), 400),
        (tus(&node, "POST", "/v1/uploads").header("Upload-Length", 1).header("Upload-Metadata", "a !"), 400),
        (
            tus(&node, "POST", "/v1/uploads")
                .header("Upload-Length", 1)
                .header("Upload-Metadata", metadata(&[("key", "../x")])),
            400,
        ),
        (tus(&node, "POST", "/v1/uploads").header("Upload-Length", 1).body("x"), 415),
        (tus(&node, "POST", &path), 405),
    ] {
        let shown = format!("{request:?}");
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), status, "{shown}");
        if status == 412 {
            assert_eq!(header(&response, "tus-version"), "1.0.0", "{shown}");
        }
        if status != 405 {
            assert_eq!(header(&response, "tus-resumable"), "1.0.0", "{shown}");
        }
    }
    // A body without a length goes on until there is too much.
    let endless = format!(
        "PATCH {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 4\r\n\
         Content-Type: application/offset+octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n5\r\ncdefg\r\n0\r\n\r\n"
    );
    let addr = node.addr();
    let (status, answer) = tokio::task::spawn_blocking(move || raw::exchange(addr, endless.as_bytes())).await.unwrap();
    assert_eq!(status, 413, "{answer}");
    assert_eq!(offset(&node, &path).await, 6);
    // What ends just where it should and then goes on is not told to be there: it would be taken for complete.
    let past = format!(
        "PATCH {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 6\r\n\
         Content-Type: application/offset+octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n1\r\ne\r\n0\r\n\r\n"
    );
    let (status, answer) = tokio::task::spawn_blocking(move || raw::exchange(addr, past.as_bytes())).await.unwrap();
    assert_eq!(status, 413, "{answer}");
    assert_eq!(offset(&node, &path).await, 6);
    assert_eq!(
        node.object("a").header("If-Match", "*").header("Range", "bytes=0-0").send().await.unwrap().status(),
        206
    );
    assert_eq!(tus(&node, "DELETE", &path).send().await.unwrap().status(), 204);
    for method in ["HEAD", "PATCH", "DELETE"] {
        let request = tus(&node, method, &path).header("Content-Type", "application/offset+octet-stream");
        assert_eq!(request.header("Upload-Offset", 6).send().await.unwrap().status(), 410, "{method}");
    }
    assert!(node.partials().is_empty(), "{:?}", node.partials());
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_with_another_checksum_are_dropped() {
    let folder = scratch("uploads");
    let node = Node::start(&folder.path().join("data")).await;
    let body = Noise::bytes(2, 3_000_000);
    let path = create(&node, "sums", Some(body.len())).await;
    let of = |bytes: &[u8], algorithm: &str| match algorithm {
        "md5" => format!("md5 {}", STANDARD.encode(Md5::digest(bytes))),
        _ => format!("sha256 {}", STANDARD.encode(Sha256::digest(bytes))),
    };
    let send = |from: usize, to: usize, sum: String| {
        patch(&node, &path, from, body[from..to].to_vec()).header("Upload-Checksum", sum).send()
    };
    assert_eq!(send(0, 100_000, of(&body[..100_000], "md5")).await.unwrap().status(), 204);
    let wrong = send(100_000, 2_900_000, of(b"x", "sha256")).await.unwrap();
    assert_eq!((wrong.status().as_u16(), header(&wrong, "tus-resumable")), (460, "1.0.0"));
    assert_eq!(offset(&node, &path).await, 100_000);
    assert_eq!(send(100_000, 2_000_000, of(&body[100_000..2_000_000], "sha256")).await.unwrap().status(), 204);

    // In a trailer, where a client has it that computes it as it sends: a wrong one, then the right one.
    for (sum, expected) in [(of(b"x", "md5"), 460), (of(&body[2_000_000..], "md5"), 204)] {
        let mut request = format!(
            "PATCH {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 2000000\r\n\
             Content-Type: application/offset+octet-stream\r\nTrailer: Upload-Checksum\r\nTransfer-Encoding: chunked\r\n\r\n\
             {:x}\r\n",
            body.len() - 2_000_000
        )
        .into_bytes();
        request.extend_from_slice(&body[2_000_000..]);
        request.extend_from_slice(format!("\r\n0\r\nUpload-Checksum: {sum}\r\n\r\n").as_bytes());
        let addr = node.addr();
        let (status, answer) = tokio::task::spawn_blocking(move || raw::exchange(addr, &request)).await.unwrap();
        assert_eq!(status, expected, "{answer}");
        assert_eq!(answer.starts_with("HTTP/1.1 460 Checksum Mismatch\r\n"), status == 460, "{answer}");
    }
    assert!(stored(&node, "sums").await == body);
}

#[tokio::test(flavor = "multi_thread")]
async fn first_bytes_lengths_that_come_late_and_empty_uploads() {
    let folder = scratch("uploads");
    let node = Node::start(&folder.path().join("data")).await;
    // With its first bytes, all of them.
    let first = |key: &str, length: usize, body: &'static str| {
        let request = tus(&node, "POST", "/v1/uploads").header("Upload-Metadata", metadata(&[("key", key)]));
        let request = request.header("Upload-Length", length);
        if body.is_empty() {
            request
        } else {
            request.header("Content-Type", "application/offset+octet-stream").body(body)
        }
    };
    let whole = first("whole", 5, "hello").send().await.unwrap();
    assert_eq!((whole.status().as_u16(), header(&whole, "upload-offset")), (201, "5"));
    assert_eq!(stored(&node, "whole").await, b"hello");
    let half = first("half", 10, "hello").send().await.unwrap();
    assert_eq!((half.status().as_u16(), header(&half, "upload-offset")), (201, "5"));
    assert_eq!(node.object("half").header("Range", "bytes=0-0").send().await.unwrap().status(), 206, "it is followed");
    assert_eq!(patch(&node, header(&half, "location"), 5, b"world".to_vec()).send().await.unwrap().status(), 204);
    assert_eq!(stored(&node, "half").await, b"helloworld");
    // Of nothing.
    assert_eq!(first("empty", 0, "").send().await.unwrap().status(), 201);
    assert_eq!(stored(&node, "empty").await, b"");

    // The length with the last bytes, and after them.
    for (key, said_with) in [("late", 3), ("later", 6)] {
        let path = create(&node, key, None).await;
        let head = tus(&node, "HEAD", &path).send().await.unwrap();
        assert_eq!(header(&head, "upload-defer-length"), "1");
        for (from, bytes) in [(0, "abc"), (3, "def"), (6, "")] {
            let request = patch(&node, &path, from, bytes.into());
            let request = if from == said_with { request.header("Upload-Length", 6) } else { request };
            if from > said_with {
                continue;
            }
            assert_eq!(request.send().await.unwrap().status(), 204);
        }
        assert_eq!(stored(&node, key).await, b"abcdef");
    }
    // Without a key nothing is replaced; and the method may be in a header.
    let named = tus(&node, "POST", "/v1/uploads").header("Upload-Metadata", metadata(&[("filename", "../a.mp4")]));
    let path = named.header("Upload-Length", 1).send().await.unwrap();
    let request = tus(&node, "POST", header(&path, "location")).header("X-HTTP-Method-Override", "PATCH");
    let request =
        request.header("Upload-Offset", 0).header("Content-Type", "application/offset+octet-stream").body("x");
    let sent = request.send().await.unwrap();
    let place = header(&sent, "content-location");
    assert!(place.starts_with("/v1/objects/uploads/") && place.ends_with("/a.mp4"), "{place}");
    let got = node.get(place).send().await.unwrap();
    assert_eq!(header(&got, "content-type"), "video/mp4");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_holds_when_the_object_appears() {
    let folder = scratch("uploads");
    let node = Node::start(&folder.path().join("data")).await;
    let begin = || {
        let request = tus(&node, "POST", "/v1/uploads").header("Upload-Metadata", metadata(&[("key", "only")]));
        request.header("Upload-Length", 3).header("If-None-Match", "*").send()
    };
    let path = header(&begin().await.unwrap(), "location").to_owned();
    assert_eq!(node.put("only", "first").send().await.unwrap().status(), 201);
    assert_eq!(begin().await.unwrap().status(), 412);
    assert_eq!(patch(&node, &path, 0, b"abc".to_vec()).send().await.unwrap().status(), 412);
    assert_eq!(tus(&node, "HEAD", &path).send().await.unwrap().status(), 410);
    assert_eq!(stored(&node, "only").await, b"first");
    eventually("nothing stays", Duration::from_secs(10), async || node.partials().is_empty().then_some(())).await;
}

/// A request on a connection that stays open, with a part of its body.
fn half_a_patch(node: &Node, path: &str, offset: usize, length: usize, part: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(node.addr()).expect("the node listens");
    let head = format!(
        "PATCH {path} HTTP/1.1\r\nHost: localhost\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: {offset}\r\nContent-Length: {length}\r\n\
         Content-Type: application/offset+octet-stream\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(part).unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_request_takes_over_from_a_stale_one() {
    let folder = scratch("uploads");
    let node = Node::start(&folder.path().join("data")).await;
    let body = Noise::bytes(3, 2_000_000);
    let path = create(&node, "stale", Some(body.len())).await;
    let mut stale = half_a_patch(&node, &path, 0, body.len(), &body[..900_000]);
    // What waits for more becomes durable all the same, and is told while the request goes on.
    let kept = eventually("a checkpoint", Duration::from_secs(20), async || {
        Some(offset(&node, &path).await).filter(|kept| *kept == 900_000)
    })
    .await;
    stale.write_all(&body[900_000..1_000_000]).unwrap();
    // A request at another place disturbs nobody, nor does a question.
    let asked = node.request(Method::HEAD, &path).send().await.unwrap();
    assert_eq!((asked.status().as_u16(), header(&asked, "upload-offset")), (204, kept.to_string().as_str()));
    assert_eq!(patch(&node, &path, 5, vec![1]).send().await.unwrap().status(), 409);
    let mut newer = half_a_patch(&node, &path, kept, body.len() - kept, &body[kept..1_500_000]);
    stale.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut told = [0; 12];
    stale.read_exact(&mut told).unwrap();
    assert_eq!(&told, b"HTTP/1.1 409");
    newer.write_all(&body[1_500_000..]).unwrap();
    newer.read_exact(&mut told).unwrap();
    assert_eq!(&told, b"HTTP/1.1 204");
    assert!(stored(&node, "stale").await == body);
}

/// Clients that fight over one upload, each sure that it is its own: whoever is told 204 had the right place.
#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_make_one_object() {
    const CLIENTS: usize = 6;
    let folder = scratch("uploads");
    let node = std::sync::Arc::new(Node::start(&folder.path().join("data")).await);
    let body = std::sync::Arc::new(Noise::bytes(5, 1_500_007));
    let path = create(&node, "fought-over", Some(body.len())).await;
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let (node, body, path) = (node.clone(), body.clone(), path.clone());
        clients.spawn(async move {
            let mut least = 0;
            loop {
                let at = offset(&node, &path).await;
                assert!(at >= least, "{least} bytes were there, now {at}");
                if at == body.len() {
                    return;
                }
                let end = (at + 40_000 + client * 9_999).min(body.len());
                let sent = patch(&node, &path, at, body[at..end].to_vec()).send().await;
                // Who is taken over may lose the connection before it has read why.
                let Ok(sent) = sent else { continue };
                match sent.status().as_u16() {
                    204 => least = end,
                    409 | 403 | 413 => {}
                    other => panic!("{other}: {}", sent.text().await.unwrap()),
                }
            }
        });
    }
    clients.join_all().await;
    assert!(stored(&node, "fought-over").await == *body);
    assert!(node.partials().is_empty(), "{:?}", node.partials());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_upload_is_gone_although_somebody_sends() {
    let folder = scratch("uploads");
    let node = Node::start(&folder.path().join("data")).await;
    let path = create(&node, "gone", Some(2_000_000)).await;
    let _sending = half_a_patch(&node, &path, 0, 2_000_000, &[7; 500_000]);
    assert_eq!(tus(&node, "DELETE", &path).send().await.unwrap().status(), 204);
    assert_eq!(tus(&node, "HEAD", &path).send().await.unwrap().status(), 410);
    eventually("nothing stays", Duration::from_secs(10), async || node.partials().is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_outlives_a_kill_and_a_drain_keeps_all() {
    let folder = scratch("uploads");
    let data = folder.path().join("data");
    let body = Noise::bytes(4, 3_000_000);
    let node = Node::start(&data).await;
    let path = create(&node, "long", Some(body.len())).await;
    assert_eq!(patch(&node, &path, 0, body[..400_000].to_vec()).send().await.unwrap().status(), 204);
    let _cut = half_a_patch(&node, &path, 400_000, 2_600_000, &body[400_000..900_000]);
    node.kill();

    let node = Node::start(&data).await;
    let kept = offset(&node, &path).await;
    assert!((400_000..=900_000).contains(&kept), "{kept}");
    let cut = half_a_patch(&node, &path, kept, body.len() - kept, &body[kept..2_000_000]);
    // All that was sent is in the node's hands when a checkpoint says so; then it is told to end.
    eventually("a checkpoint", Duration::from_secs(20), async || {
        (offset(&node, &path).await == 2_000_000).then_some(())
    })
    .await;
    node.terminate();
    assert!(node.ended(Duration::from_secs(15)).await.success());
    drop(cut);

    let node = Node::start(&data).await;
    assert_eq!(offset(&node, &path).await, 2_000_000);
    assert_eq!(patch(&node, &path, 2_000_000, body[2_000_000..].to_vec()).send().await.unwrap().status(), 204);
    assert!(stored(&node, "long").await == body);
    assert!(node.partials().is_empty(), "{:?}", node.partials());
}

/// Its length was not known when it began, so that no room was promised; but the request says how much comes now.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_fit_is_refused_before_it_is_sent() {
    let folder = scratch("uploads");
    let node = Node::start_with(&folder.path().join("data"), &[("REELRING_QUOTA", "2MiB")]).await;
    let path = create(&node, "large", None).await;
    assert_eq!(patch(&node, &path, 0, vec![1; 1000]).send().await.unwrap().status(), 204);
    for announced in ["Content-Length: 1000000000\r\n", "Upload-Length: 1000001000\r\nTransfer-Encoding: chunked\r\n"] {
        let head = format!(
            "PATCH {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 1000\r\n\
             Content-Type: application/offset+octet-stream\r\n{announced}\r\n"
        );
        let addr = node.addr();
        let (status, answer) = tokio::task::spawn_blocking(move || raw::exchange(addr, head.as_bytes())).await.unwrap();
        assert_eq!(status, 507, "{answer}");
        assert!(answer.contains("1000000000 bytes more"), "{answer}");
    }
    // It goes on with what does, and its length is still open.
    let sent = patch(&node, &path, 1000, vec![2; 500]).header("Upload-Length", 1500).send().await.unwrap();
    assert_eq!(sent.status(), 204);
    assert!(stored(&node, "large").await == [vec![1; 1000], vec![2; 500]].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_touches_expires() {
    let folder = scratch("uploads");
    let node = Node::start_with(&folder.path().join("data"), &[("REELRING_UPLOAD_EXPIRY_S", "1")]).await;
    let path = create(&node, "late", Some(2_000_000)).await;
    assert_eq!(patch(&node, &path, 0, vec![1; 1_000_000]).send().await.unwrap().status(), 204);
    eventually("it is gone", Duration::from_secs(20), async || {
        let head = tus(&node, "HEAD", &path).send().await.unwrap();
        // Remembered for a while, then forgotten.
        matches!(head.status().as_u16(), 404 | 410).then_some(())
    })
    .await;
    eventually("nothing stays", Duration::from_secs(20), async || node.partials().is_empty().then_some(())).await;
    assert_ne!(patch(&node, &path, 1_000_000, vec![1; 10]).send().await.unwrap().status(), 204);
}
