//! Acknowledged means durable: a node killed in the middle of a storm of uploads keeps every one it answered for, and
//! nothing else stays behind.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::node::{Node, files};
use crate::support::{Noise, eventually, scratch};
use reqwest::Client;
use tokio::sync::Mutex;

const OBJECTS: usize = 1000;
const OBJECT_BYTES: usize = 64 << 10;
const CONNECTIONS: usize = 64;

fn body(number: usize) -> Vec<u8> {
    Noise::bytes(number as u64, OBJECT_BYTES)
}

/// Uploads what is missing over 64 connections, until all is acknowledged or the node is gone.
async fn upload(node: &Node, acknowledged: &Arc<Mutex<BTreeSet<usize>>>) -> Vec<tokio::task::JoinHandle<()>> {
    let done = acknowledged.lock().await.clone();
    let missing: Arc<Vec<usize>> = Arc::new((0..OBJECTS).filter(|number| !done.contains(number)).collect());
    let next = Arc::new(AtomicUsize::new(0));
    let connection = |_| {
        let (missing, next, acknowledged) = (missing.clone(), next.clone(), acknowledged.clone());
        let base = node.object_url("many");
        tokio::spawn(async move {
            let client = Client::builder().no_proxy().pool_max_idle_per_host(1).build().unwrap();
            while let Some(number) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                let sent = client.put(format!("{base}/{number}")).body(body(*number)).send().await;
                let Ok(response) = sent else { return };
                assert!(response.status().is_success(), "{}", response.status());
                acknowledged.lock().await.insert(*number);
            }
        })
    };
    (0..CONNECTIONS).map(connection).collect()
}

/// Every acknowledged object is there, whole; every other is absent or whole.
async fn verify(node: &Node, acknowledged: &BTreeSet<usize>) {
    let mut stored = 0;
    for number in 0..OBJECTS {
        let response = node.object(&format!("many/{number}")).send().await.unwrap();
        if response.status() == 404 {
            assert!(!acknowledged.contains(&number), "object {number} was acknowledged and is lost");
            continue;
        }
        assert_eq!(response.status(), 200, "object {number}");
        assert!(response.bytes().await.unwrap() == body(number), "object {number} has other bytes");
        stored += 1;
    }
    eventually("no debris", Duration::from_secs(20), async || {
        (node.partials().is_empty() && files(&node.data().join("blobs")).len() == stored).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_upload_survives_a_kill() {
    let folder = scratch("durability");
    let data = folder.path().join("data");
    let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));

    // Killed twice in the middle, and once right after the last answer.
    for goal in [OBJECTS / 3, 2 * OBJECTS / 3, OBJECTS] {
        let node = Node::start(&data).await;
        verify(&node, &*acknowledged.lock().await).await;
        let connections = upload(&node, &acknowledged).await;
        eventually("uploads", Duration::from_secs(120), async || {
            (acknowledged.lock().await.len() >= goal).then_some(())
        })
        .await;
        node.kill();
        for connection in connections {
            connection.await.unwrap();
        }
    }
    let acknowledged = acknowledged.lock().await;
    assert_eq!(acknowledged.len(), OBJECTS);
    let node = Node::start(&data).await;
    verify(&node, &acknowledged).await;
}
