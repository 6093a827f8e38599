//! Damage at rest, from outside: nothing wrong is ever sent as if it were whole, and the scrub finds what nobody read.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support;
use crate::support::node::{Node, files, reelring};

/// Bytes that differ from object to object.
fn body(n: usize) -> Vec<u8> {
    let len = if n.is_multiple_of(10) { 900_000 + n } else { 1_000 + 37 * n };
    (0..len).map(|at| (at * 31 + at / 251 + n * 7) as u8).collect()
}

fn key(n: usize) -> String {
    format!("damage/{n}")
}

/// Flips a byte of every blob's file, somewhere in the object, and drops the pages.
fn flip_all(data: &Path) -> usize {
    let mut blobs = files(&data.join("blobs"));
    blobs.sort();
    for (n, path) in blobs.iter().enumerate() {
        let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
        let at = (n as u64 * 7_919) % (file.metadata().unwrap().len() * 9 / 10);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
    blobs.len()
}

async fn scrubbed(node: &Node) -> Value {
    support::eventually("the end of the scrub", Duration::from_secs(30), async || {
        let status = node.json("/v1/scrub").await;
        (status["state"] != "running").then_some(status)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_objects_are_refused_over_http_and_can_be_replaced_and_deleted() {
    const OBJECTS: usize = 40;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let node = Node::start(&data).await;
    for n in 0..OBJECTS {
        assert_eq!(node.put(&key(n), body(n)).send().await.unwrap().status(), 201);
    }
    node.terminate();
    node.ended(Duration::from_secs(30)).await;
    assert_eq!(flip_all(&data), OBJECTS);

    let node = Node::start(&data).await;
    for n in 0..OBJECTS {
        match node.object(&key(n)).send().await {
            // The connection ended before the head was out.
            Err(_) => {}
            Ok(response) if response.status() == 500 => {}
            Ok(mut response) => {
                // Found after the head was sent: the connection ends before the promised length.
                assert_eq!(response.status(), 200);
                let mut sent = Vec::new();
                let broken = loop {
                    match response.chunk().await {
                        Ok(Some(chunk)) => sent.extend_from_slice(&chunk),
                        Ok(None) => break false,
                        Err(_) => break true,
                    }
                };
                assert!(broken, "object {n} ended as if it were whole");
                assert!(body(n).starts_with(&sent), "object {n}: wrong bytes were sent");
            }
        }
        // From now on the answer is a problem, for HEAD and for ranges that would be whole too.
        let response = node.object(&key(n)).header("range", "bytes=0-0").send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["cache-control"]),
            (500, &"no-store".parse().unwrap())
        );
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["type"], "urn:reelring:problem:quarantined");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(&key(n)) && detail.contains("Store it again"), "{detail}");
        let head = node.request(Method::HEAD, &format!("/v1/objects/{}", key(n))).send().await.unwrap();
        assert_eq!(head.status(), 500);
    }
    let metrics = node.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains(&format!("reelring_volume_quarantined_blobs {OBJECTS}\n")), "{metrics}");
    let corrupt = metrics.lines().find_map(|line| line.strip_prefix("reelring_corrupt_blocks_total ")).unwrap();
    assert!(corrupt.parse::<usize>().unwrap() >= OBJECTS);
    let page = node.json("/v1/scrub?limit=3").await;
    assert_eq!((page["quarantined_total"].as_u64(), page["quarantined"].as_array().unwrap().len()), (Some(40), 3));
    let next = node.json(&format!("/v1/scrub?limit=100&after={}", page["next"].as_str().unwrap())).await;
    assert_eq!((next["quarantined"].as_array().unwrap().len(), next.get("next")), (37, None));

    let listed = node.json("/v1/objects").await;
    assert!(listed["objects"].as_array().unwrap().iter().all(|object| object["quarantined"] == true), "{listed}");

    assert_eq!(node.put(&key(1), body(1)).send().await.unwrap().status(), 200);
    let listed = node.json("/v1/objects?prefix=damage/1&limit=1").await;
    assert_eq!(listed["objects"][0].get("quarantined"), None, "it is whole again");
    assert_eq!(node.object(&key(1)).send().await.unwrap().bytes().await.unwrap(), body(1));
    let deleted = node.request(Method::DELETE, &format!("/v1/objects/{}", key(2))).send().await.unwrap();
    assert_eq!(deleted.status(), 204);
    assert_eq!(node.object(&key(2)).send().await.unwrap().status(), 404);
    assert_eq!(node.json("/v1/scrub").await["quarantined_total"], 38);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_over_http_finds_what_nobody_read() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let node = Node::start(&data).await;
    for n in 0..12 {
        assert_eq!(node.put(&key(n), body(n)).send().await.unwrap().status(), 201);
    }
    tokio::time::sleep(Duration::from_millis(5)).await;
    let start = |options: Value| node.request(Method::POST, "/v1/scrub").json(&options).send();
    let empty = node.request(Method::POST, "/v1/scrub").send().await.unwrap();
    assert_eq!(empty.status(), 202, "the body may be left out");
    let status = scrubbed(&node).await;
    assert_eq!((&status["last"]["blobs_done"], &status["last"]["damaged"]), (&json!(12), &json!(0)), "{status}");
    assert_eq!(status["state"], "idle");

    // Slow enough to be joined, sped up and stopped.
    assert_eq!(start(json!({"rate_bytes_per_s": 1000})).await.unwrap().status(), 202);
    assert_eq!(start(json!({"rate_bytes_per_s": 1001})).await.unwrap().status(), 200);
    let joined = node.request(Method::POST, "/v1/scrub").send().await.unwrap();
    assert_eq!(joined.status(), 200);
    assert_eq!(node.json("/v1/scrub").await["progress"]["rate_limit_bytes_per_s"], 1001, "who names no rate keeps it");
    let stopped: Value = node.request(Method::DELETE, "/v1/scrub").send().await.unwrap().json().await.unwrap();
    assert_eq!(stopped["state"], "stopped");

    flip_all(&data);
    assert_eq!(start(json!({"rate_bytes_per_s": 0, "restart": true})).await.unwrap().status(), 202);
    let status = scrubbed(&node).await;
    assert_eq!((&status["last"]["damaged"], &status["quarantined_total"]), (&json!(12), &json!(12)), "{status}");
    assert_eq!(node.object(&key(3)).send().await.unwrap().status(), 500);
    assert_eq!(start(json!({"rate": 1})).await.unwrap().status(), 400, "unknown options are refused");

    // The command says the same, with the node and without.
    let scrub = |arguments: &[&str]| reelring(&data, &[&["scrub"], arguments].concat());
    let output = scrub(&["--status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("damaged  damage/3: bytes "), "{output:?}");
    let output = scrub(&["--quarantined", "--json"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &status["progress"]["damaged"]), (Some(1), &json!(12)), "{status}");
    let doctor = reelring(&data, &["doctor", "--json"]);
    let report: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let check = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "integrity").unwrap();
    assert_eq!(check["status"], "fail");
    assert!(check["finding"].as_str().unwrap().starts_with("12 blobs are damaged and refused: damage/"), "{check}");
    node.terminate();
    node.ended(Duration::from_secs(30)).await;
    // Flipped back, all is whole again.
    flip_all(&data);
    let output = scrub(&[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("12 blobs") && text.contains("12 released"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_catalog_is_rebuilt_by_the_doctor() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let node = Node::start(&data).await;
    for n in 0..25 {
        let put = node.put(&key(n), body(n)).header("content-type", "video/mp4");
        assert_eq!(put.send().await.unwrap().status(), 201);
    }
    let doctor = |arguments: &[&str]| reelring(&data, &[&["doctor", "--rebuild"], arguments].concat());
    let output = doctor(&[]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && text.contains("in use by process"), "a node runs here: {text}");
    node.terminate();
    node.ended(Duration::from_secs(30)).await;
    std::fs::write(data.join("catalog.sqlite"), "rubbish").unwrap();

    let output = doctor(&["--dry-run", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["objects"], &report["dry_run"]), (Some(0), &json!(25), &json!(true)));
    assert_eq!(std::fs::read_to_string(data.join("catalog.sqlite")).unwrap(), "rubbish");
    let output = doctor(&[]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("restored 25 objects"), "{output:?}");
    assert!(text.contains("not restored: jobs, and renditions"), "{text}");

    let node = Node::start(&data).await;
    for n in 0..25 {
        let response = node.object(&key(n)).send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "video/mp4");
        assert_eq!(response.bytes().await.unwrap(), body(n));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_whose_file_is_gone_says_so_and_can_be_stored_again() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let node = Node::start(&data).await;
    assert_eq!(node.put("lost", body(1)).send().await.unwrap().status(), 201);
    node.terminate();
    node.ended(Duration::from_secs(30)).await;
    files(&data.join("blobs")).iter().for_each(|file| std::fs::remove_file(file).unwrap());

    let node = Node::start(&data).await;
    let answer = node.object("lost").send().await.unwrap();
    assert_eq!(answer.status(), 500);
    let problem: Value = answer.json().await.unwrap();
    assert_eq!(problem["type"], "urn:reelring:problem:missing-blob");
    for part in ["lost", "store the object again", "reelring scrub"] {
        assert!(problem["detail"].as_str().unwrap().contains(part), "{part} is not in {problem}");
    }
    assert_eq!(node.put("lost", body(2)).send().await.unwrap().status(), 200);
    assert!(node.object("lost").send().await.unwrap().bytes().await.unwrap() == body(2));
}
