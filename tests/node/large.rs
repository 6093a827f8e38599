//! Bodies much larger than the memory a node may use go through it, both ways.

use std::time::Duration;

use crate::support::node::Node;
use crate::support::{Noise, hex, process, scratch};
use futures_util::StreamExt as _;
use futures_util::stream;
use sha2::{Digest, Sha256};

const MIB: usize = 1 << 20;
const RSS_LIMIT: u64 = 200 << 20;

/// Uploads noise of this length, downloads it again, and compares hashes, all in constant memory.
async fn round_trip(node: &Node, mebibytes: usize) {
    let chunks = stream::iter(0..mebibytes).map({
        let mut noise = Noise::new(99);
        move |_| {
            let mut chunk = vec![0; MIB];
            noise.fill(&mut chunk);
            Ok::<_, std::io::Error>(chunk)
        }
    });
    let sent = node.put("large", reqwest::Body::wrap_stream(chunks)).send().await.unwrap();
    assert_eq!(sent.status(), 201);

    let mut expected = Sha256::new();
    let mut noise = Noise::new(99);
    let mut chunk = vec![0; MIB];
    for _ in 0..mebibytes {
        noise.fill(&mut chunk);
        expected.update(&chunk);
    }
    let mut received = Sha256::new();
    let mut length = 0;
    let mut body = node.object("large").send().await.unwrap().bytes_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.unwrap();
        length += chunk.len();
        received.update(&chunk);
    }
    assert_eq!(length, mebibytes * MIB);
    assert_eq!(hex(&received.finalize()), hex(&expected.finalize()));
}

fn assert_bounded(node: &Node) {
    let peak = process::peak_rss(node.pid());
    eprintln!("peak RSS {} MiB, CPU {:?}", peak >> 20, process::cpu_time(node.pid()));
    assert!(peak < RSS_LIMIT, "peak RSS {} MiB, the limit is {} MiB", peak >> 20, RSS_LIMIT >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_for_256_mib() {
    let folder = scratch("large");
    let node = Node::start(&folder.path().join("data")).await;
    round_trip(&node, 256).await;
    assert_bounded(&node);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs 5 GiB of disk and minutes: make test-large"]
async fn memory_is_bounded_for_4_gib() {
    let folder = scratch("large");
    let node = Node::start(&folder.path().join("data")).await;
    round_trip(&node, 4096).await;
    assert_bounded(&node);
}

/// Readers that never read and an uploader that never stops: what waits is bounded, not what is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_with_stalled_readers() {
    let folder = scratch("stalled");
    let node = Node::start(&folder.path().join("data")).await;
    round_trip(&node, 64).await;
    let mut stalled = Vec::new();
    for _ in 0..200 {
        stalled.push(node.object("large").send().await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    for number in 0..4 {
        let sent = node.put(&format!("more/{number}"), Noise::bytes(number, 16 * MIB)).send().await.unwrap();
        assert_eq!(sent.status(), 201);
    }
    assert_bounded(&node);
    drop(stalled);
    assert_eq!(node.get("/healthz").send().await.unwrap().status(), 200);
}
