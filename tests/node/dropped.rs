//! Clients that reset their connections in the middle of uploads and downloads, thousands of them: nothing of theirs
//! stays. `REELRING_DROPS=10000` is the long form; `storage/tests/dropped.rs` does it to the store.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::node::Node;
use crate::support::{Noise, eventually, process, scratch};

const FILM_BYTES: usize = 8 << 20;
const UPLOAD_BYTES: usize = 3 << 20;
const CLIENTS: u64 = 32;
const RSS_LIMIT: u64 = 250 << 20;

/// Half an upload or half a download, then a reset.
async fn give_up(addr: std::net::SocketAddr, number: u64, data: &[u8]) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.set_zero_linger()?;
    let mut chance = [0; 8];
    Noise::new(number).fill(&mut chance);
    let part = usize::from_le_bytes(chance) % UPLOAD_BYTES;
    if number.is_multiple_of(2) {
        let head = format!(
            "PUT /v1/objects/up-{number} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {UPLOAD_BYTES}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&data[..part]).await?;
    } else {
        stream.write_all(b"GET /v1/objects/film HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
        let mut buffer = vec![0; 64 << 10];
        let mut read = 0;
        while read < part {
            match stream.read(&mut buffer).await? {
                0 => break,
                bytes => read += bytes,
            }
        }
    }
    Ok(())
}

async fn gauge(node: &Node, name: &str) -> f64 {
    let metrics = node.get("/metrics").send().await.unwrap().text().await.unwrap();
    let line = metrics.lines().find(|line| line.split([' ', '{']).next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {metrics}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_reset_leave_nothing_behind() {
    let drops: u64 = std::env::var("REELRING_DROPS").map_or(1_500, |drops| drops.parse().unwrap());
    let folder = scratch("dropped");
    let node = Node::start(&folder.path().join("data")).await;
    let film = Noise::bytes(1, FILM_BYTES);
    assert_eq!(node.put("film", film.clone()).send().await.unwrap().status(), 201);
    assert!(node.object("film").send().await.unwrap().bytes().await.unwrap() == film);
    let before = process::descriptors(node.pid());

    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let (addr, data) = (node.addr(), film[..UPLOAD_BYTES].to_vec());
        clients.spawn(async move {
            for number in (client..drops).step_by(CLIENTS as usize) {
                // The node may be the first to reset.
                let _ = give_up(addr, number, &data).await;
            }
        });
    }
    clients.join_all().await;

    eventually("descriptors come back", Duration::from_secs(30), async || {
        // A connection of our own client may be there that was not there before.
        (process::descriptors(node.pid()) <= before + 1).then_some(())
    })
    .await;
    eventually("uploads are cleared away", Duration::from_secs(30), async || node.partials().is_empty().then_some(()))
        .await;
    for name in ["reelring_reactor_inflight", "reelring_reactor_queue_depth"] {
        eventually(name, Duration::from_secs(30), async || (gauge(&node, name).await == 0.0).then_some(())).await;
    }
    let peak = process::peak_rss(node.pid());
    assert!(peak < RSS_LIMIT, "peak RSS {} MiB, the limit is {} MiB", peak >> 20, RSS_LIMIT >> 20);
    assert_eq!(node.put("after", film.clone()).send().await.unwrap().status(), 201);
    for key in ["film", "after"] {
        assert!(node.object(key).send().await.unwrap().bytes().await.unwrap() == film, "{key}");
    }
    println!("{drops} connections were reset; peak RSS {} MiB, {} descriptors as before", peak >> 20, before);
}
