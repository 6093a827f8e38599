//! Several disks under one node, and disks that fail: what the node says, what goes on, and the way back that
//! docs/operations.md describes ("A degraded volume"), step by step.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::mounted::{Kind, Mounted, own_mounts};
use super::support::node::{Node, reelring};
use super::support::{Noise, scratch, skipped};

const OBJECT_BYTES: usize = 1_500_000;
const STOP: Duration = Duration::from_secs(30);

fn bytes(n: usize) -> Vec<u8> {
    Noise::bytes(n as u64, OBJECT_BYTES + n)
}

async fn put(node: &Node, n: usize) -> u16 {
    node.put(&format!("film/{n}"), bytes(n)).send().await.expect("an answer").status().as_u16()
}

async fn fill(node: &Node, objects: std::ops::Range<usize>) {
    for n in objects {
        assert_eq!(put(node, n).await, 201, "object {n}");
    }
}

async fn is_whole(node: &Node, n: usize) -> bool {
    let answer = node.object(&format!("film/{n}")).send().await.expect("an answer");
    answer.status() == 200 && answer.bytes().await.is_ok_and(|body| body == bytes(n))
}

async fn volume(node: &Node, number: u64) -> Value {
    let listed = node.json("/v1/volumes").await;
    let volumes = listed["volumes"].as_array().expect("a list");
    volumes.iter().find(|volume| volume["volume"] == number).unwrap_or_else(|| panic!("{listed:#}")).clone()
}

/// What `reelring doctor` says of the node's volumes, and whether it is satisfied.
fn doctor(node: &Node) -> (bool, Vec<Value>) {
    let output = reelring(node.data(), &["doctor", "--json", "--node", &node.url("")]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    let checks = report["checks"].as_array().expect("checks");
    (output.status.success(), checks.iter().filter(|check| check["name"] == "volume").cloned().collect())
}

/// Room for about thirteen objects on each volume, so that a small disk and a large one fill up alike.
fn settings(volume: &Path) -> Vec<(&'static str, String)> {
    vec![("REELRING_VOLUMES", volume.display().to_string()), ("REELRING_QUOTA", "20MiB".into())]
}

async fn start(data: &Path, settings: &[(&'static str, String)]) -> Node {
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Node::start_with(data, &settings).await
}

#[tokio::test]
async fn a_missing_volume_costs_its_own_objects_and_no_others() {
    let folder = scratch("volumes");
    let (data, disk) = (folder.path().join("data"), folder.path().join("disk2"));
    let settings = settings(&disk);
    let node = start(&data, &settings).await;
    fill(&node, 0..6).await;
    let used = volume(&node, 1).await["used_bytes"].as_u64().unwrap();
    assert!(used > 0 && volume(&node, 0).await["used_bytes"].as_u64().unwrap() > 0, "both volumes have objects");
    node.terminate();
    assert!(node.ended(STOP).await.success());

    // The disk is not mounted: an empty folder is all that is there.
    std::fs::rename(&disk, folder.path().join("shelf")).unwrap();
    std::fs::create_dir(&disk).unwrap();
    let node = start(&data, &settings).await;
    let ready = node.json("/readyz").await;
    assert_eq!((&ready["status"], &ready["volumes"][1]["state"]), (&"ready".into(), &"missing".into()), "{ready:#}");
    let (mut whole, mut refused) = (0, 0);
    for n in 0..6 {
        if is_whole(&node, n).await {
            whole += 1;
            continue;
        }
        let answer = node.object(&format!("film/{n}")).send().await.unwrap();
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.headers()["retry-after"], "60");
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(problem["type"], "urn:reelring:problem:volume-missing");
        for part in [&format!("film/{n}"), "volume 1", &disk.display().to_string(), "restart the node"] {
            assert!(problem["detail"].as_str().unwrap().contains(part), "{part} is not in {problem}");
        }
        refused += 1;
    }
    assert!(whole > 0 && refused > 0, "{whole} can be read, {refused} cannot");
    fill(&node, 10..12).await;
    let metrics = node.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("reelring_volume_missing{volume=\"1\"} 1\n"), "{metrics}");
    let (satisfied, checks) = doctor(&node);
    assert!(!satisfied && checks.iter().any(|check| check["status"] == "fail"), "{checks:#?}");
    node.terminate();
    assert!(node.ended(STOP).await.success());

    std::fs::remove_dir(&disk).expect("nothing was written to the mount point");
    std::fs::rename(folder.path().join("shelf"), &disk).unwrap();
    let node = start(&data, &settings).await;
    assert_eq!(volume(&node, 1).await["used_bytes"].as_u64(), Some(used));
    for n in (0..6).chain(10..12) {
        assert!(is_whole(&node, n).await, "object {n}");
    }
}

#[tokio::test]
async fn a_full_quota_is_a_507_with_its_numbers_until_something_is_deleted() {
    let folder = scratch("quota");
    let node = start(&folder.path().join("data"), &[("REELRING_QUOTA", "2MiB".into())]).await;
    fill(&node, 0..1).await;
    let answer = node.put("film/1", bytes(1)).send().await.unwrap();
    assert_eq!(answer.status(), 507);
    let problem: Value = answer.json().await.unwrap();
    assert_eq!(problem["type"], "urn:reelring:problem:no-space");
    for part in ["volume 0", "its quota is 2097152 bytes", "stored blobs have 1500000", "delete something"] {
        assert!(problem["detail"].as_str().unwrap().contains(part), "{part} is not in {problem}");
    }
    assert_eq!(node.json("/readyz").await["status"], "ready", "a full node is not a broken one");
    let deleted = node.request(reqwest::Method::DELETE, "/v1/objects/film/0").send().await.unwrap();
    assert_eq!(deleted.status(), 204);
    fill(&node, 1..2).await;
    assert_eq!(volume(&node, 0).await["used_bytes"], 1_500_001);
}

#[tokio::test]
async fn a_disk_that_fails_beside_others_degrades_alone_and_comes_back_whole() {
    const NAME: &str = "a_disk_that_fails_beside_others_degrades_alone_and_comes_back_whole";
    if let Err(reason) = own_mounts() {
        return skipped(NAME, &reason);
    }
    let folder = scratch("failing-disk");
    let disk = match Mounted::new(Kind::Ext4, &folder.path().join("image"), 64 << 20) {
        Ok(disk) => disk,
        Err(reason) => return skipped(NAME, &reason),
    };
    let data = folder.path().join("data");
    let settings = settings(&disk.path().join("media"));
    let node = start(&data, &settings).await;
    fill(&node, 0..6).await;

    disk.shut_down();
    // The first that meets the failure goes elsewhere, as all after it do.
    fill(&node, 6..10).await;
    let degraded = volume(&node, 1).await;
    assert_eq!(degraded["state"], "degraded", "{degraded:#}");
    assert!(degraded["reason"].as_str().unwrap().contains("Input/output error"), "{degraded:#}");
    assert!(degraded["since"].is_string() && degraded["next"].as_str().unwrap().contains("dmesg"), "{degraded:#}");
    assert_eq!(node.json("/readyz").await["status"], "ready", "the node takes work");
    let metrics = node.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("reelring_volume_degraded{volume=\"0\"} 0\nreelring_volume_degraded{volume=\"1\"} 1\n"));
    let (satisfied, checks) = doctor(&node);
    assert!(!satisfied && checks.iter().any(|check| check["status"] == "fail"), "{checks:#?}");

    // Stop, look, mount again (which takes in the journal), start.
    node.terminate();
    node.ended(STOP).await;
    disk.remount();
    let node = start(&data, &settings).await;
    assert_eq!(volume(&node, 1).await["state"], "ready");
    for n in 0..10 {
        assert!(is_whole(&node, n).await, "object {n} was acknowledged");
    }
    let before = volume(&node, 1).await["used_bytes"].as_u64();
    fill(&node, 20..26).await;
    assert!(volume(&node, 1).await["used_bytes"].as_u64() > before, "it is written again");
    node.terminate();
    assert!(node.ended(STOP).await.success());
    disk.check();
}

#[tokio::test]
async fn the_data_directorys_disk_fails_and_everything_acknowledged_comes_back() {
    const NAME: &str = "the_data_directorys_disk_fails_and_everything_acknowledged_comes_back";
    if let Err(reason) = own_mounts() {
        return skipped(NAME, &reason);
    }
    let folder = scratch("failing-data");
    let disk = match Mounted::new(Kind::Ext4, &folder.path().join("image"), 64 << 20) {
        Ok(disk) => disk,
        Err(reason) => return skipped(NAME, &reason),
    };
    // A path beside the log, which must not be on that disk.
    let data = folder.path().join("data");
    std::os::unix::fs::symlink(disk.path().join("data"), &data).unwrap();
    std::fs::create_dir(disk.path().join("data")).unwrap();
    let node = start(&data, &[]).await;
    fill(&node, 0..4).await;
    disk.shut_down();
    for n in 4..6 {
        let answer = node.put(&format!("film/{n}"), bytes(n)).send().await.unwrap();
        assert_eq!(answer.status(), 503, "not acknowledged");
        assert_eq!(answer.headers()["retry-after"], "60");
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(problem["type"], "urn:reelring:problem:volume-degraded");
        for part in ["volume 0", "Input/output error", "dmesg", "restart the node"] {
            assert!(problem["detail"].as_str().unwrap().contains(part), "{part} is not in {problem}");
        }
    }
    let answer = node.get("/readyz").send().await.unwrap();
    assert_eq!(answer.status(), 503);
    let problem: Value = answer.json().await.unwrap();
    assert_eq!(problem["volumes"][0]["state"], "degraded", "{problem:#}");
    assert_eq!(node.get("/healthz").send().await.unwrap().status(), 200);
    assert!(!doctor(&node).0);
    node.terminate();
    node.ended(STOP).await;

    disk.remount();
    let node = start(&data, &[]).await;
    assert_eq!(node.json("/readyz").await["status"], "ready");
    for n in 0..4 {
        assert!(is_whole(&node, n).await, "object {n} was acknowledged");
    }
    for n in 4..6 {
        assert_eq!(node.object(&format!("film/{n}")).send().await.unwrap().status(), 404, "refused is not stored");
    }
    fill(&node, 4..8).await;
    node.terminate();
    assert!(node.ended(STOP).await.success());
    disk.check();
}
