//! What a node costs when nobody wants anything of it, and how fast a command about it is over.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::node::Node;
use crate::support::{process, scratch};

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_node_costs_next_to_nothing() {
    let folder = scratch("idle-cost");
    let node = Node::start(&folder.path().join("data")).await;
    assert_eq!(node.put("a", "x").send().await.unwrap().status(), 201);
    // What the start itself does in the background is not idling.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (before, watched) = (process::cpu_time(node.pid()), Duration::from_secs(12));
    tokio::time::sleep(watched).await;
    let used = process::cpu_time(node.pid()) - before;
    let share = used.as_secs_f64() / watched.as_secs_f64();
    let rss = process::rss(node.pid());
    eprintln!("idle: {:.3} % of a core, RSS {:.1} MiB", share * 100.0, rss as f64 / f64::from(1 << 20));
    assert!(share < 0.005, "{used:?} of CPU time in {watched:?}");
    assert!(rss < 40 << 20, "RSS {} MiB", rss >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_is_over_at_once() {
    let folder = scratch("ls");
    let node = Node::start(&folder.path().join("data")).await;
    for number in 0..20 {
        assert_eq!(node.put(&format!("films/{number}"), "x").send().await.unwrap().status(), 201);
    }
    let list = || {
        let start = Instant::now();
        let mut command = Command::new(env!("CARGO_BIN_EXE_reelring"));
        let output = command.args(["ls", "films/", "--node", &node.url("")]).stdin(Stdio::null()).output().unwrap();
        let took = start.elapsed();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 20);
        took
    };
    // The best of many: the others say what else this machine was doing.
    let best = (0..20).map(|_| list()).min().unwrap();
    eprintln!("reelring ls: {best:?}");
    assert!(best < Duration::from_millis(50), "{best:?}");
}
