//! Bad input, each with its own clear error, and nothing left behind.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::nginx::Nginx;
use crate::support::node::{Node, files, serve};
use crate::support::{Noise, eventually, media, scratch, skipped};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// The error of a job that must fail, in the node's words.
async fn failure(node: &Node, spec: Value) -> String {
    let job = node.finished(&node.submit(spec.clone()).await, PATIENCE).await;
    assert_eq!(job["state"], "failed", "{spec}: {job:#}");
    job["error"].as_str().unwrap_or_else(|| panic!("a reason in {job:#}")).to_string()
}

/// The status and the problem's detail of a job that must not be taken.
async fn refusal(node: &Node, body: &str) -> (u16, String) {
    let request = node.request(reqwest::Method::POST, "/v1/jobs").header("content-type", "application/json");
    let response = request.body(body.to_string()).send().await.unwrap();
    let status = response.status().as_u16();
    let problem: Value = serde_json::from_str(&response.text().await.unwrap()).expect("problem+json");
    (status, problem["detail"].as_str().expect("a detail").to_string())
}

async fn assert_no_debris(node: &Node, blobs: usize) {
    eventually("no debris", Duration::from_secs(20), async || {
        (node.partials().is_empty() && files(&node.data().join("blobs")).len() == blobs).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_jobs_are_refused_at_once() {
    let folder = scratch("refused");
    let node = Node::start(&folder.path().join("data")).await;
    for (body, words) in [
        (r#"{"kind":"fetsch","url":"http://example.org/a"}"#, &["fetsch", "fetch", "transcode"][..]),
        (r#"{"url":"http://example.org/a"}"#, &["kind"]),
        (r#"{"kind":"fetch"}"#, &["url"]),
        (r#"{"kind":"fetch","url":"file:///etc/passwd"}"#, &["file", "http"]),
        (r#"{"kind":"fetch","url":"gopher://example.org/"}"#, &["gopher"]),
        (r#"{"kind":"fetch","url":"http://example.org/a","key":"../../etc/passwd"}"#, &["..", "key"]),
        (r#"{"kind":"fetch","url":"http://example.org/a","sha256":"12"}"#, &["sha256", "64"]),
        (r#"{"kind":"fetch","url":"http://example.org/a","headers":{"a\r\nb":"c"}}"#, &["header"]),
        (r#"{"kind":"fetch","url":"http://example.org/a","headers":{"a":"b\r\nc: d"}}"#, &["header"]),
        (r#"{"kind":"transcode","source":"a","ladder":["1000000p"]}"#, &["1000000p"]),
        (r#"{"kind":"transcode","source":"a","ladder":[]}"#, &["ladder"]),
        ("{", &[]),
        ("", &[]),
    ] {
        let (status, detail) = refusal(&node, body).await;
        assert_eq!(status, 400, "{body}: {detail}");
        for word in words {
            assert!(detail.contains(word), "{word:?} in the answer to {body}: {detail}");
        }
    }
    let (status, detail) = refusal(&node, &format!(r#"{{"kind":"fetch","url":"{}"}}"#, "x".repeat(1 << 20))).await;
    assert_eq!(status, 413, "{detail}");
    assert_eq!(node.json("/v1/jobs").await["jobs"].as_array().map(Vec::len), Some(0));
    let missing = failure(&node, json!({"kind": "transcode", "source": "nowhere"})).await;
    assert!(missing.contains("nowhere"), "{missing}");
    assert_no_debris(&node, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn private_addresses_are_refused_by_default() {
    let folder = scratch("private");
    let nginx = Nginx::start(1 << 20);
    std::fs::write(nginx.root().join("secret"), "s").unwrap();
    let node = Node::start_with(&folder.path().join("data"), &[]).await;
    let port = nginx.url("").rsplit(':').next().unwrap().trim_end_matches('/').to_string();
    for host in ["127.0.0.1", "localhost", "127.1", "0x7f000001", "[::ffff:127.0.0.1]", "[::1]"] {
        let url = format!("http://{host}:{port}/secret");
        let error = failure(&node, json!({"kind": "fetch", "url": url})).await;
        assert!(error.contains("allow-private-origins"), "{url}: the way out is named: {error}");
    }
    for url in ["http://10.0.0.1/", "http://192.168.1.1/", "http://[fd00::1]/", "http://100.64.0.1/"] {
        let error = failure(&node, json!({"kind": "fetch", "url": url})).await;
        assert!(error.contains("allow-private-origins"), "{url}: {error}");
    }
    // No setting allows these: the cloud's own addresses, and none at all.
    for host in ["169.254.169.254", "0.0.0.0"] {
        let url = format!("http://{host}:{port}/latest/meta-data/");
        let error = failure(&node, json!({"kind": "fetch", "url": url})).await;
        assert!(error.contains(host) && error.contains("never"), "{url}: {error}");
    }
    assert_eq!(nginx.hits(), [], "nobody was asked");
    assert_no_debris(&node, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_without_the_file_fails_the_fetch() {
    let folder = scratch("missing");
    let nginx = Nginx::start(1 << 20);
    let node = Node::start(&folder.path().join("data")).await;
    let error = failure(&node, json!({"kind": "fetch", "url": nginx.url("nothing.mp4")})).await;
    assert!(error.contains("404") && error.contains("nothing.mp4"), "{error}");
    std::fs::write(nginx.root().join("film.mp4"), Noise::bytes(41, 50_000)).unwrap();
    let wrong = "0".repeat(64);
    let error = failure(&node, json!({"kind": "fetch", "url": nginx.url("film.mp4"), "sha256": wrong})).await;
    assert!(
        error.to_lowercase().contains(&wrong) && error.to_lowercase().contains("sha"),
        "both hashes are named: {error}"
    );
    assert_no_debris(&node, 0).await;
}

/// A login page served with status 200 under the name of a film.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_instead_of_a_film_fails_the_fetch() {
    let folder = scratch("page");
    let nginx = Nginx::start(1 << 20);
    std::fs::write(nginx.root().join("film.mp4"), LOGIN_PAGE.repeat(40)).unwrap();
    let node = Node::start(&folder.path().join("data")).await;
    let spec = json!({"kind": "fetch", "url": nginx.url("film.mp4"), "key": "film", "transcode": ["360p"]});
    let error = failure(&node, spec).await;
    assert!(error.contains("HTML") && error.contains("film.mp4"), "{error}");
    assert_eq!(node.object("film").send().await.unwrap().status(), 404, "it is not stored as a film");
    assert_no_debris(&node, 0).await;
}

const LOGIN_PAGE: &[u8] = b"<!doctype html><html><title>Log in</title><body>Please log in.</body></html>";

/// What people feed to a transcoder by mistake: each fails with its reason, the source stays as it was, no asset stays.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_film_fails_with_its_reason() {
    let folder = scratch("no-film");
    let mut node = Node::start(&folder.path().join("data")).await;
    let audio = std::fs::read(media::audio_only()).unwrap();
    let inputs: [(&str, Vec<u8>, &[&str]); 6] = [
        ("page.mp4", LOGIN_PAGE.repeat(40), &[]),
        ("cut.mp4", media::truncated(), &[]),
        ("audio.mp4", audio, &["video"]),
        ("empty.mp4", Vec::new(), &["0 bytes"]),
        ("noise.mp4", Noise::bytes(42, 300_000), &[]),
        (
            "list.mp4",
            b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n".to_vec(),
            &[],
        ),
    ];
    for (key, body, words) in &inputs {
        assert_eq!(node.put(key, body.clone()).send().await.unwrap().status(), 201);
        let error = failure(&node, json!({"kind": "transcode", "source": key, "ladder": ["360p"]})).await;
        eprintln!("{key}: {error}");
        assert!(error.contains(key), "the object is named: {error}");
        for word in *words {
            assert!(error.contains(word), "{word:?} for {key}: {error}");
        }
        let kept = node.object(key).send().await.unwrap().bytes().await.unwrap();
        assert!(kept == *body, "{key} is untouched");
    }
    assert!(node.running());
    let assets = node.json("/v1/assets").await;
    let playable = assets["assets"].as_array().unwrap().iter().filter(|asset| asset["state"] == "done").count();
    assert_eq!(playable, 0, "{assets:#}");
    assert_no_debris(&node, inputs.len()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_on_the_same_data_is_refused() {
    let folder = scratch("second");
    let data = folder.path().join("data");
    let node = Node::start(&data).await;
    assert_eq!(node.put("a", "x").send().await.unwrap().status(), 201);
    let output = second(&data, "127.0.0.1:0");
    assert_eq!(output.0, Some(1), "{}", output.1);
    assert!(output.1.contains(data.to_str().unwrap()), "the directory is named: {}", output.1);
    assert!(output.1.contains(&node.pid().to_string()), "and who has it: {}", output.1);
    assert_eq!(node.object("a").send().await.unwrap().status(), 200, "the first one does not notice");

    // A lock that a killed node left behind is no obstacle.
    node.kill();
    let node = Node::start(&data).await;
    assert_eq!(node.object("a").send().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_an_error_that_names_it() {
    let folder = scratch("port");
    let node = Node::start(&folder.path().join("data")).await;
    let address = node.addr().to_string();
    let output = second(&folder.path().join("other"), &address);
    assert_eq!(output.0, Some(1), "{}", output.1);
    assert!(output.1.contains(&address), "{}", output.1);
    assert_eq!(node.get("/healthz").send().await.unwrap().status(), 200);
}

/// Runs `serve` to its end; its exit status, and what it said.
fn second(data: &Path, listen: &str) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reelring"));
    let output = command.args(["serve", "--listen", listen, "--data"]).arg(data).output().expect("a node that ends");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A tmpfs of its own, unmounted on drop.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, size: &str) -> SmallDisk {
        std::fs::create_dir_all(at).unwrap();
        let options = format!("size={size}");
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).status();
        assert!(status.is_ok_and(|status| status.success()), "root may mount a tmpfs");
        SmallDisk(at.into())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_and_serves_reads() {
    if !rustix::process::geteuid().is_root() {
        return skipped("a_full_disk_refuses_writes_and_serves_reads", "only root may mount the small disk");
    }
    let folder = scratch("full");
    let disk = SmallDisk::mount(&folder.path().join("disk"), "48m");
    let node = Node::start(&disk.0.join("data")).await;
    let nginx = Nginx::start(64 << 20);
    let kept = Noise::bytes(51, 8 << 20);
    assert_eq!(node.put("kept", kept.clone()).send().await.unwrap().status(), 201);

    // With its length announced, and without.
    let announced = node.put("announced", Noise::bytes(52, 64 << 20)).send().await.unwrap();
    assert_eq!(announced.status(), 507);
    let problem = announced.text().await.unwrap();
    assert!(problem.contains("problem:no-space"), "{problem}");
    let chunks: Vec<Result<Vec<u8>, std::io::Error>> = (0..64).map(|seed| Ok(Noise::bytes(seed, 1 << 20))).collect();
    let stream = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
    // The node may close the connection before it has read everything: then the client sees either.
    if let Ok(response) = node.put("chunked", stream).send().await {
        assert_eq!(response.status(), 507);
    }
    assert_no_debris(&node, 1).await;
    assert!(node.object("kept").send().await.unwrap().bytes().await.unwrap() == kept, "reads go on");

    // A fetch keeps what it has and waits for room.
    let film = Noise::bytes(53, 42 << 20);
    std::fs::write(nginx.root().join("film.mp4"), &film).unwrap();
    let id = node.submit(json!({"kind": "fetch", "url": nginx.url("film.mp4"), "key": "film"})).await;
    let job = eventually("the fetch stands still", PATIENCE, async || {
        let job = node.job(&id).await;
        matches!(job["state"].as_str(), Some("paused" | "failed")).then_some(job)
    })
    .await;
    assert_eq!(job["state"], "paused", "{job:#}");
    let error = job["error"].as_str().unwrap_or_default();
    assert!(error.contains("space") || error.contains("room"), "{job:#}");

    // Room returns: what was refused works, and the fetch goes on when told.
    assert_eq!(node.request(reqwest::Method::DELETE, "/v1/objects/kept").send().await.unwrap().status(), 204);
    let resumed = node.request(reqwest::Method::POST, &format!("/v1/jobs/{id}/resume")).send().await.unwrap();
    assert!(resumed.status().is_success(), "{}", resumed.status());
    node.done(&id, PATIENCE).await;
    let stored = node.object("film").send().await.unwrap().bytes().await.unwrap();
    assert!(stored == film);
    assert_eq!(node.put("small", "x").send().await.unwrap().status(), 201);
    drop(node);
    drop(disk);
}

/// Garbage where a catalog should be is an error that names the file, and the file stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_catalog_is_named_and_kept() {
    let folder = scratch("garbage");
    let data = folder.path().join("data");
    std::fs::create_dir_all(&data).unwrap();
    let garbage = Noise::bytes(61, 20_000);
    std::fs::File::create(data.join("catalog.sqlite")).unwrap().write_all(&garbage).unwrap();
    let status = serve(&data, &[]).status().unwrap();
    assert_eq!(status.code(), Some(1));
    let log = std::fs::read_to_string(folder.path().join("data.log")).unwrap();
    assert!(log.contains("catalog.sqlite"), "{log}");
    assert!(std::fs::read(data.join("catalog.sqlite")).unwrap() == garbage, "nothing was repaired away");
}
