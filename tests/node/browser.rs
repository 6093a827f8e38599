//! A real browser on the player page: an asset plays with hls.js while it is still being encoded, and afterwards by the
//! browser's own HLS where it has one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::browser::{Browser, executable};
use crate::support::node::{Node, PRIVATE_ORIGINS, reelring};
use crate::support::{eventually, media, scratch, skipped};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(180);

/// What `make test` fetched; the node serves it to browsers without HLS of their own.
fn hls_js() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("cargo's target");
    target.join("tools/hls/node_modules/hls.js/dist/hls.min.js")
}

/// What the page knows of its film; nothing while the page itself is still on its way.
fn look(browser: &mut Browser) -> Value {
    browser.ask(
        "(() => { const v = document.querySelector('video'); if (document.readyState !== 'complete' || !v) return null; return { time: v.currentTime, width: v.videoWidth, \
         height: v.videoHeight, length: isFinite(v.duration) ? v.duration : null, frames: \
         v.getVideoPlaybackQuality().totalVideoFrames, error: v.error && v.error.message, \
         message: document.getElementById('message').textContent, \
         state: document.getElementById('state').textContent, \
         player: document.getElementById('player').textContent, \
         rows: document.getElementById('renditions').rows.length }; })()",
    )
}

/// For people who want to see what the test saw.
fn keep_picture(browser: &mut Browser, name: &str) {
    let picture = STANDARD.decode(browser.picture()).expect("a PNG");
    std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name), picture).expect("the picture");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_plays_while_it_encodes_and_after() {
    let hls_js = hls_js();
    let Some(chromium) = executable().filter(|_| hls_js.is_file()) else {
        assert!(std::env::var_os("CI").is_none(), "CI has Chromium and hls.js: make test installs them");
        return skipped("a_browser_plays_while_it_encodes_and_after", "no Chromium or no hls.js; run: make test");
    };
    let folder = scratch("player");
    let settings = [PRIVATE_ORIGINS, ("REELRING_PLAYER_JS", hls_js.to_str().unwrap())];
    let node = Node::start_with(&folder.path().join("data"), &settings).await;
    let film = std::fs::read(media::clip(1280, 720, 30, 60)).unwrap();
    assert_eq!(node.put("film", film).send().await.unwrap().status(), 201);
    let mut browser = Browser::start(&chromium);

    let id = node.submit(json!({"kind": "transcode", "source": "film", "ladder": ["720p", "360p"]})).await;
    let asset = eventually("the asset", PATIENCE, async || {
        let assets = node.json("/v1/assets").await;
        Some(assets["assets"].as_array()?.first()?["id"].as_str()?.to_string())
    })
    .await;
    browser.open(&node.url(&format!("/play/{asset}?player=hls.js")));
    let seen = eventually("the film moves", PATIENCE, async || {
        let seen = look(&mut browser);
        (seen["time"].as_f64()? > 2.0 && seen["frames"].as_u64()? > 30).then_some(seen)
    })
    .await;
    let job = node.job(&id).await;
    eprintln!("while encoding: page {seen}, job {}", job["progress"]);
    assert_eq!(job["state"], "running", "it played only after the encode: {job:#}");
    assert!(seen["player"].as_str().unwrap().starts_with("hls.js"), "{seen}");
    assert_eq!((&seen["message"], &seen["error"], &seen["rows"]), (&json!(""), &Value::Null, &json!(2)), "{seen}");
    keep_picture(&mut browser, "player-encoding.png");

    // The page follows to the end: the whole length is known, and a jump to the end plays.
    node.done(&id, PATIENCE).await;
    eventually("the whole length", PATIENCE, async || {
        let seen = look(&mut browser);
        ((seen["length"].as_f64()? - 60.0).abs() < 0.1 && seen["state"] == "ready").then_some(())
    })
    .await;
    browser.ask("document.querySelector('video').currentTime = 50, 0");
    let seen = eventually("playing near the end", PATIENCE, async || {
        let seen = look(&mut browser);
        (seen["time"].as_f64()? > 51.5).then_some(seen)
    })
    .await;
    assert_eq!((&seen["message"], &seen["error"]), (&json!(""), &Value::Null), "{seen}");
    keep_picture(&mut browser, "player-done.png");

    // Now the node asks for a token. A signed address of the page leads to playlists and segments as well.
    let command = |arguments: &[&str]| {
        let output = reelring(node.data(), arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_string()
    };
    command(&["token", "create", "ops", "--scope", "admin"]);
    assert_eq!(node.get(&format!("/play/{asset}")).send().await.unwrap().status(), 401);
    let signed = command(&["sign", "--asset", &asset]);
    browser.open(&format!("{signed}&player=hls.js"));
    let seen = eventually("the film moves by a signed address", PATIENCE, async || {
        let seen = look(&mut browser);
        (seen["time"].as_f64()? > 1.0).then_some(seen)
    })
    .await;
    assert_eq!((&seen["message"], &seen["error"], &seen["rows"]), (&json!(""), &Value::Null, &json!(2)), "{seen}");

    // The browser's own HLS, where it has one.
    if browser.ask("document.createElement('video').canPlayType('application/vnd.apple.mpegurl')") == "" {
        return skipped("the browser's own HLS", "this browser has none");
    }
    browser.open(&format!("{signed}&player=native"));
    let seen = eventually("the film moves natively", PATIENCE, async || {
        let seen = look(&mut browser);
        (seen["time"].as_f64()? > 1.0).then_some(seen)
    })
    .await;
    eprintln!("natively: {seen}");
    assert!(browser.running());
}
