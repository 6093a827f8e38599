//! A fetch survives the death of its node: it goes on from the journal and asks the origin for nothing twice beyond
//! the last piece that was not yet safe on the disk.

use std::time::Duration;

use crate::support::nginx::Nginx;
use crate::support::node::Node;
use crate::support::{Noise, eventually, scratch, sha256};
use serde_json::json;

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_fetch_goes_on_from_its_journal() {
    let folder = scratch("restart");
    let data = folder.path().join("data");
    let nginx = Nginx::start(RATE);
    let body = Noise::bytes(11, 48 * MIB as usize + 12_345);
    std::fs::write(nginx.root().join("film.mp4"), &body).unwrap();

    let node = Node::start(&data).await;
    let spec = json!({"kind": "fetch", "url": nginx.url("slow/film.mp4"), "key": "film", "sha256": sha256(&body)});
    let id = node.submit(spec).await;

    // Two kills, both in the middle of the body.
    let mut node = node;
    for reached in KILLED_AT {
        eventually("progress", Duration::from_secs(60), async || {
            (node.job(&id).await["progress"]["bytes_done"].as_u64()? >= reached).then_some(())
        })
        .await;
        node.kill();
        node = Node::start(&data).await;
    }
    let job = node.done(&id, Duration::from_secs(120)).await;
    assert_eq!(job["result"]["object"], "film", "{job:#}");
    let stored = node.object("film").send().await.unwrap().bytes().await.unwrap();
    assert_eq!(sha256(&stored), sha256(&body));
    assert!(node.partials().is_empty(), "{:?}", node.partials());

    // nginx logs a request when it notices its end: the killed ones a little late.
    let hits = eventually("the origin's log", Duration::from_secs(20), async || {
        let hits: Vec<_> = nginx.hits().into_iter().filter(|hit| hit.method == "GET").collect();
        let last = hits.iter().map(|hit| hit.start() + hit.body_bytes).max()?;
        (hits.len() >= 3 && last == body.len() as u64).then_some(hits)
    })
    .await;
    let mut body_hits: Vec<_> = hits.iter().filter(|hit| hit.body_bytes > 1).collect();
    body_hits.sort_by_key(|hit| hit.start());
    assert_eq!(body_hits.len(), 3, "one request for each life of the node: {hits:#?}");
    assert_eq!((body_hits[0].start(), body_hits[0].status), (0, 200));
    for (pair, reached) in body_hits.windows(2).zip(KILLED_AT) {
        let (before, after) = (pair[0], pair[1]);
        assert!(after.start() + UNSYNCED_BYTES >= reached, "it did not start again: {after:?}");
        assert_eq!(after.status, 206, "{after:?}");
        assert!(after.if_range.is_some(), "the continuation names the version it belongs to: {after:?}");
        // Not safe at the kill: what had arrived since the last record, and what nginx had put into the sockets' buffers.
        let sent = before.start() + before.body_bytes;
        let again = sent.saturating_sub(after.start());
        assert!(again <= UNSYNCED_BYTES + SOCKET_BYTES, "{again} bytes were fetched twice: {hits:#?}");
    }
}

/// Bytes done at which the node is killed.
const KILLED_AT: [u64; 2] = [16 * MIB, 32 * MIB];
/// What the origin sends in a second.
const RATE: u64 = 4 * MIB;
/// The journal is written every two seconds at this rate; a slow disk may take half as long again.
const UNSYNCED_BYTES: u64 = 3 * RATE;
/// Loopback buffers of both ends, at their default maximum (`tcp_rmem` 6 MiB, `tcp_wmem` 4 MiB).
const SOCKET_BYTES: u64 = 10 * MIB;
