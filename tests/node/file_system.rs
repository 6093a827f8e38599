//! The file system goes away under a node: what it answered 201 for is there when the file system is back.
//!
//! `storage/tests/shutdown.rs` has the long form of this, on the store alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;

use crate::mounted::{Kind, Mounted, own_mounts};
use crate::support::node::Node;
use crate::support::{Noise, eventually, scratch, skipped};

const CONNECTIONS: usize = 16;
const ROUNDS: u64 = 3;

fn body(number: u64) -> Vec<u8> {
    let bytes = [0, 700, 40_000, 300_000, 2_500_000][number as usize % 5];
    Noise::bytes(number + 1, bytes + number as usize % 500)
}

/// Uploads until the node refuses or is gone; nobody waits for ever.
async fn upload(base: String, next: Arc<AtomicU64>, acknowledged: Arc<Mutex<BTreeMap<u64, String>>>) {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let sent = client.put(format!("{base}/{number}")).body(body(number)).send().await;
        match sent {
            Ok(answer) if answer.status().is_success() => {
                let etag = answer.headers()["etag"].to_str().unwrap().to_owned();
                acknowledged.lock().await.insert(number, etag);
            }
            Ok(answer) => {
                let status = answer.status();
                return assert!(status.is_server_error(), "{status}: {}", answer.text().await.unwrap_or_default());
            }
            Err(error) => return assert!(!error.is_timeout(), "an upload hangs: {error}"),
        }
    }
}

async fn survive(kind: Kind, folder: &Path) -> Result<usize, String> {
    own_mounts()?;
    let mounted = Mounted::new(kind, &folder.join("image"), 400 << 20)?;
    std::fs::create_dir(mounted.path().join("data")).unwrap();
    // A link, so that the node's log lies where it can be written.
    let data = folder.join("data");
    std::os::unix::fs::symlink(mounted.path().join("data"), &data).unwrap();
    let acknowledged = Arc::new(Mutex::new(BTreeMap::new()));
    let next = Arc::new(AtomicU64::new(0));
    for round in 0..ROUNDS {
        let node = Node::start(&data).await;
        let before = acknowledged.lock().await.len();
        let spawn = |_| tokio::spawn(upload(node.object_url("many"), Arc::clone(&next), Arc::clone(&acknowledged)));
        let uploads: Vec<_> = (0..CONNECTIONS).map(spawn).collect();
        eventually("uploads", Duration::from_secs(60), async || {
            (acknowledged.lock().await.len() >= before + 20 + 7 * round as usize).then_some(())
        })
        .await;
        mounted.shut_down();
        for upload in uploads {
            upload.await.unwrap();
        }
        assert_eq!(node.get("/readyz").send().await.unwrap().status(), 503, "it says that it takes no writes");
        node.kill();
        mounted.remount();

        let node = Node::start(&data).await;
        for (number, etag) in acknowledged.lock().await.iter() {
            let answer = node.object(&format!("many/{number}")).send().await.unwrap();
            assert_eq!(answer.status(), 200, "object {number} was acknowledged");
            assert_eq!(answer.headers()["etag"].to_str().unwrap(), etag, "object {number}");
            assert!(answer.bytes().await.unwrap() == body(*number), "object {number} has other bytes");
        }
        assert!(node.partials().is_empty());
        node.kill();
    }
    mounted.check();
    let acknowledged = acknowledged.lock().await.len();
    Ok(acknowledged)
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_uploads_survive_the_shutdown_of_the_file_system() {
    for kind in [Kind::Ext4, Kind::Xfs] {
        let folder = scratch("shutdown");
        match survive(kind, folder.path()).await {
            Ok(acknowledged) => {
                println!("{kind:?}: {ROUNDS} shutdowns, {acknowledged} uploads acknowledged, none lost")
            }
            Err(reason) => {
                return skipped("acknowledged_uploads_survive_the_shutdown_of_the_file_system", &reason);
            }
        }
    }
}
