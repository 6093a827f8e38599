//! A fetched film becomes an asset that plays: frame counts, timelines, playing while it encodes, and a worker that dies.

use std::time::Duration;

use crate::support::nginx::Nginx;
use crate::support::node::Node;
use crate::support::{eventually, media, process, scratch};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

const MINUTES: Duration = Duration::from_secs(180);
/// One AAC frame at 48 kHz.
const AAC_FRAME_S: f64 = 1024.0 / 48_000.0;

/// A playlist's addresses, made absolute by their own.
async fn entries(node: &Node, path: &str) -> Vec<String> {
    let text = text(node, path).await.unwrap_or_else(|| panic!("{path} is there"));
    let folder = path.rsplit_once('/').expect("a path").0;
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| format!("{folder}/{line}"))
        .collect()
}

async fn text(node: &Node, path: &str) -> Option<String> {
    let response = node.get(path).send().await.unwrap();
    if response.status().is_success() { Some(response.text().await.unwrap()) } else { None }
}

async fn bytes(node: &Node, path: &str) -> Vec<u8> {
    let response = node.get(path).send().await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    response.bytes().await.unwrap().to_vec()
}

/// The address of the audio playlist named by the main one.
async fn audio_playlist(node: &Node, main: &str) -> String {
    let text = text(node, main).await.expect("the main playlist");
    let line = text.lines().find(|line| line.starts_with("#EXT-X-MEDIA:TYPE=AUDIO")).expect("an audio rendition");
    let uri = line.split("URI=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("its address");
    format!("{}/{uri}", main.rsplit_once('/').unwrap().0)
}

async fn store_clip(node: &Node, key: &str, clip: &std::path::Path) {
    let stored = node.put(key, std::fs::read(clip).unwrap()).header("content-type", "video/mp4").send().await.unwrap();
    assert_eq!(stored.status(), 201);
}

fn hls(job: &Value) -> String {
    job["result"]["hls"].as_str().unwrap_or_else(|| panic!("an address in {job:#}")).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetched_film_plays_in_every_rendition() {
    let folder = scratch("film");
    let nginx = Nginx::start(1 << 20);
    let clip = media::clip(1280, 720, 30, 10);
    std::fs::copy(&clip, nginx.root().join("film.mp4")).unwrap();
    let node = Node::start(&folder.path().join("data")).await;

    let spec = json!({"kind": "fetch", "url": nginx.url("film.mp4"), "key": "film", "transcode": ["720p", "360p"]});
    let job = node.done(&node.submit(spec).await, MINUTES).await;
    assert_eq!(job["result"]["object"], "film", "{job:#}");
    assert!(job["encoder"].as_str().is_some_and(|name| !name.is_empty()), "{job:#}");
    assert_eq!(job["progress"]["frames_done"], job["progress"]["frames_total"], "{job:#}");

    let main = hls(&job);
    let renditions = entries(&node, &main).await;
    assert_eq!(renditions.len(), 2, "{renditions:?}");
    let frames = media::decoded_frames(clip.to_str().unwrap());
    assert_eq!(frames, 300);
    let audio = audio_playlist(&node, &main).await;
    let audio_s = media::duration(&media::packets(&node.url(&audio), "a"));
    for playlist in renditions.iter().chain([&audio]) {
        let text = text(&node, playlist).await.unwrap();
        assert!(text.contains("#EXT-X-PLAYLIST-TYPE:VOD") && text.trim_end().ends_with("#EXT-X-ENDLIST"), "{text}");
        let segments = entries(&node, playlist).await;
        assert_eq!(media::first_tfdt(&bytes(&node, &segments[0]).await), 0, "{playlist}");
    }
    for playlist in &renditions {
        assert_eq!(media::decoded_frames(&node.url(playlist)), frames, "{playlist}");
        let packets = media::packets(&node.url(playlist), "v");
        let mut pts: Vec<f64> = packets.iter().map(|packet| packet.pts).collect();
        pts.sort_by(f64::total_cmp);
        let steps = pts.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(
            steps.clone().all(|step| (step - 1.0 / 30.0).abs() < 0.001),
            "{playlist}: {:?}",
            steps.collect::<Vec<_>>()
        );
        let video_s = media::duration(&packets);
        assert!((video_s - audio_s).abs() < AAC_FRAME_S, "{playlist}: video {video_s} s, audio {audio_s} s");
    }

    let id = job["result"]["asset"].as_str().unwrap();
    let asset = node.json(&format!("/v1/assets/{id}")).await;
    assert_eq!((&asset["state"], &asset["source"]), (&json!("ready"), &json!("film")), "{asset:#}");
    let page = text(&node, &format!("/play/{id}")).await.expect("the player page");
    assert!(page.contains("<video"), "{page}");
    assert_eq!(node.get("/play/0123456789abcdef0123456789abcdef").send().await.unwrap().status(), 404);
    assert!(node.partials().is_empty(), "{:?}", node.partials());
}

/// What a player would do: it follows the playlist while segments are added, and never sees one change.
#[tokio::test(flavor = "multi_thread")]
async fn an_asset_plays_while_it_is_encoded() {
    let folder = scratch("growing");
    let node = Node::start(&folder.path().join("data")).await;
    store_clip(&node, "film", &media::clip(1280, 720, 30, 30)).await;
    let id = node.submit(json!({"kind": "transcode", "source": "film", "ladder": ["720p", "360p"]})).await;

    let asset = eventually("the asset", MINUTES, async || {
        let assets = node.json("/v1/assets").await;
        Some(assets["assets"].as_array()?.first()?["id"].as_str()?.to_string())
    })
    .await;
    let main = format!("/v1/assets/{asset}/hls/main.m3u8");
    let rendition = eventually("the main playlist", MINUTES, async || {
        text(&node, &main).await?;
        entries(&node, &main).await.into_iter().next()
    })
    .await;
    let (mut growing, mut seen) = (0, Vec::new());
    let mut first = Vec::new();
    eventually("the end of the playlist", MINUTES, async || {
        let playlist = text(&node, &rendition).await?;
        let segments = entries(&node, &rendition).await;
        assert!(segments.starts_with(&seen), "a published segment stays: {seen:?} then {segments:?}");
        if !playlist.contains("#EXT-X-ENDLIST") && !segments.is_empty() {
            assert!(playlist.contains("#EXT-X-PLAYLIST-TYPE:EVENT"), "{playlist}");
            // The newest segment is there as soon as the playlist names it.
            let newest = bytes(&node, segments.last().unwrap()).await;
            assert!(newest.windows(4).any(|window| window == b"mdat"));
            if first.is_empty() {
                first = bytes(&node, &segments[0]).await;
            }
            growing += usize::from(segments.len() > seen.len());
        }
        seen = segments;
        playlist.contains("#EXT-X-ENDLIST").then_some(())
    })
    .await;
    assert!(growing >= 2, "the playlist was seen growing only {growing} times");
    assert!(bytes(&node, &seen[0]).await == first, "the first segment is what it was");
    node.done(&id, MINUTES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_costs_a_retry_and_nothing_else() {
    let folder = scratch("worker");
    let mut node = Node::start(&folder.path().join("data")).await;
    let clip = media::clip(1280, 720, 30, 30);
    store_clip(&node, "film", &clip).await;
    let id = node.submit(json!({"kind": "transcode", "source": "film", "ladder": ["720p"]})).await;

    let worker = eventually("the worker at work", MINUTES, async || {
        node.job(&id).await["progress"]["frames_done"].as_u64().filter(|frames| *frames > 0)?;
        process::children(node.pid(), "reelring-transcode").first().copied()
    })
    .await;
    process::signal(worker, Signal::KILL);
    assert_eq!(node.get("/readyz").send().await.unwrap().status(), 200, "the node does not notice");
    assert!(node.object("film").send().await.unwrap().bytes().await.unwrap().len() > 1000);

    let job = node.finished(&id, MINUTES).await;
    assert!(node.running());
    assert_eq!(job["state"], "done", "one death is not the input's fault: {job:#}\n{}", node.log());
    assert!(job["attempts"].as_u64() >= Some(2), "{job:#}");
    let main = hls(&job);
    let renditions = entries(&node, &main).await;
    assert_eq!(media::decoded_frames(&node.url(&renditions[0])), media::decoded_frames(clip.to_str().unwrap()));
    let assets = node.json("/v1/assets").await;
    assert_eq!(assets["assets"].as_array().unwrap().len(), 1, "{assets:#}");
    assert!(node.partials().is_empty(), "{:?}", node.partials());
}

/// A worker that dies whenever it is looked at fails its job with the reason, and the next job is unharmed.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_always_dies_fails_its_job() {
    let folder = scratch("poison");
    let mut node = Node::start(&folder.path().join("data")).await;
    store_clip(&node, "film", &media::clip(1280, 720, 30, 60)).await;
    let id = node.submit(json!({"kind": "transcode", "source": "film", "ladder": ["720p"]})).await;
    let job = eventually("the end of the job", MINUTES, async || {
        for worker in process::children(node.pid(), "reelring-transcode") {
            let _ = rustix::process::kill_process(rustix::process::Pid::from_raw(worker as i32)?, Signal::SEGV);
        }
        let job = node.job(&id).await;
        (job["state"] == "failed").then_some(job)
    })
    .await;
    assert!(
        job["error"].as_str().is_some_and(|error| error.contains("signal") || error.contains("SIGSEGV")),
        "{job:#}"
    );
    assert!(node.running());

    store_clip(&node, "short", &media::clip(320, 180, 30, 4)).await;
    let next = node.submit(json!({"kind": "transcode", "source": "short", "ladder": ["360p"]})).await;
    let next = node.finished(&next, MINUTES).await;
    assert_eq!(next["state"], "done", "{next:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_transcode_leaves_nothing() {
    let folder = scratch("cancel");
    let node = Node::start(&folder.path().join("data")).await;
    store_clip(&node, "film", &media::clip(1280, 720, 30, 60)).await;
    let id = node.submit(json!({"kind": "transcode", "source": "film", "ladder": ["720p"]})).await;
    eventually("frames", MINUTES, async || {
        node.job(&id).await["progress"]["frames_done"].as_u64().filter(|frames| *frames > 60)
    })
    .await;
    let cancelled = node.request(Method::DELETE, &format!("/v1/jobs/{id}")).send().await.unwrap();
    assert!(cancelled.status().is_success(), "{}", cancelled.status());
    let job = node.finished(&id, Duration::from_secs(20)).await;
    assert_eq!(job["state"], "cancelled");
    eventually("the worker is gone and so are its files", Duration::from_secs(20), async || {
        let workers = process::children(node.pid(), "reelring-transcode");
        (workers.is_empty() && node.partials().is_empty()).then_some(())
    })
    .await;
}
