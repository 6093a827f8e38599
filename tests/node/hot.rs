//! What is asked for over and over.

use std::time::Duration;

use tokio::task::JoinSet;

use crate::support::node::Node;
use crate::support::{Noise, eventually, scratch};

const MIB: usize = 1 << 20;
/// ext4 and XFS, by `statfs(2)`.
const WITH_LARGE_PAGES: [i64; 2] = [0xef53, 0x5846_5342];

async fn read(request: reqwest::RequestBuilder, film: &[u8], at: usize) {
    let range = format!("bytes={at}-{}", at + MIB - 1);
    let answer = request.header("Range", range).send().await.unwrap();
    assert_eq!(answer.status(), 206);
    assert!(answer.bytes().await.unwrap() == film[at..at + MIB], "the MiB at {at}");
}

/// Where its file system has large pages, a hot object comes into them; who reads it meanwhile gets what was stored.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_hot_is_read_again_and_stays_what_it_was() {
    let folder = scratch("hot");
    let node = Node::start(&folder.path().join("data")).await;
    let film = Noise::bytes(1, 4 * MIB + 4321);
    assert_eq!(node.put("film", film.clone()).send().await.unwrap().status(), 201);
    let mut readers = JoinSet::new();
    for reader in 0..8 {
        let (request, film) = (node.object("film"), film.clone());
        readers.spawn(async move {
            for turn in 0..64 {
                read(request.try_clone().unwrap(), &film, (reader * 7 + turn) % 4 * MIB + 1000).await;
            }
        });
    }
    readers.join_all().await;
    let linux = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut linux = linux.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let linux = (linux.next().unwrap_or(0), linux.next().unwrap_or(0));
    if !WITH_LARGE_PAGES.contains(&rustix::fs::statfs(node.data()).unwrap().f_type) || linux < (6, 16) {
        return println!("skipped: no large pages here");
    }
    eventually("both of its stretches are renewed", Duration::from_secs(40), async || {
        for at in [0, 3 * MIB] {
            read(node.object("film"), &film, at).await;
        }
        (node.metric("reelring_storage_renewed_stretches_total").await >= 2.0).then_some(())
    })
    .await;
    assert!(node.object("film").send().await.unwrap().bytes().await.unwrap() == film);
}
