//! SIGTERM drains: what was begun is finished, nothing new begins, and the next start finds a clean house.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::nginx::Nginx;
use crate::support::node::Node;
use crate::support::{Noise, eventually, scratch, sha256};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_node_ends_at_once() {
    let folder = scratch("idle");
    let data = folder.path().join("data");
    let node = Node::start(&data).await;
    // A connection that is open and idle keeps nobody waiting.
    let _idle = TcpStream::connect(node.addr()).unwrap();
    assert_eq!(node.get("/healthz").send().await.unwrap().status(), 200);
    let start = Instant::now();
    node.terminate();
    let status = node.ended(Duration::from_secs(10)).await;
    assert!(status.success(), "{status}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(!data.join("http.addr").exists(), "the address is withdrawn");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_under_way_is_finished_and_acknowledged() {
    let folder = scratch("drain");
    let data = folder.path().join("data");
    let node = Node::start(&data).await;
    let addr = node.addr();
    let body = Noise::bytes(7, 3_000_000);

    let mut upload = TcpStream::connect(addr).unwrap();
    write!(upload, "PUT /v1/objects/last HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len())
        .unwrap();
    upload.write_all(&body[..1_000_000]).unwrap();
    eventually("the upload has begun", Duration::from_secs(10), async || (!node.partials().is_empty()).then_some(()))
        .await;
    // As `timeout` does: the process first, then its whole group. It is one stop.
    node.terminate();
    tokio::time::sleep(Duration::from_millis(20)).await;
    node.terminate();
    eventually("no new connections", Duration::from_secs(10), async || TcpStream::connect(addr).is_err().then_some(()))
        .await;
    upload.write_all(&body[1_000_000..]).unwrap();
    upload.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answer = String::new();
    upload.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    assert!(node.ended(Duration::from_secs(30)).await.success());

    let node = Node::start(&data).await;
    assert!(node.object("last").send().await.unwrap().bytes().await.unwrap() == body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let folder = scratch("drain-twice");
    let node = Node::start(&folder.path().join("data")).await;
    let mut upload = TcpStream::connect(node.addr()).unwrap();
    upload.write_all(b"PUT /v1/objects/last HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n12345").unwrap();
    eventually("the upload has begun", Duration::from_secs(10), async || (!node.partials().is_empty()).then_some(()))
        .await;
    node.terminate();
    tokio::time::sleep(Duration::from_millis(500)).await;
    node.terminate();
    assert_eq!(node.ended(Duration::from_secs(5)).await.code(), Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_under_way_goes_on_after_the_next_start() {
    let folder = scratch("drain-fetch");
    let data = folder.path().join("data");
    let nginx = Nginx::start(8 << 20);
    let body = Noise::bytes(8, 40 << 20);
    std::fs::write(nginx.root().join("film.mp4"), &body).unwrap();

    let node = Node::start(&data).await;
    let id = node.submit(json!({"kind": "fetch", "url": nginx.url("slow/film.mp4"), "key": "film"})).await;
    eventually("some bytes", Duration::from_secs(20), async || {
        (node.job(&id).await["progress"]["bytes_done"].as_u64()? > 2 << 20).then_some(())
    })
    .await;
    node.terminate();
    assert!(node.ended(Duration::from_secs(40)).await.success());

    let node = Node::start(&data).await;
    node.done(&id, Duration::from_secs(60)).await;
    let stored = node.object("film").send().await.unwrap().bytes().await.unwrap();
    assert_eq!(sha256(&stored), sha256(&body));
}
