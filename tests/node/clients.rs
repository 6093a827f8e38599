//! The clients people have, reading from a real node: curl, wget, aria2c, rclone, FFmpeg, mpv, and a browser's `<video>`.
//!
//! Each does what it is known for (resuming, many connections, mirroring, seeking), and what it got is compared with what
//! was stored. `make test` installs them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::support::browser::{Browser, executable};
use crate::support::nginx::Nginx;
use crate::support::node::{Node, reelring};
use crate::support::process::find;
use crate::support::{Noise, eventually, media, scratch, skipped};

const PATIENCE: Duration = Duration::from_secs(120);

/// A client that is not a browser: it gives up after two minutes and knows nothing of this machine's settings.
fn client(name: &str, folder: &Path) -> Command {
    let program = find(name).unwrap_or_else(|| panic!("{name} is not installed; run: make test"));
    let mut command = Command::new(find("timeout").expect("coreutils"));
    command.args(["-k", "5", "120"]).arg(program).current_dir(folder).env_clear();
    command.env("HOME", folder).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

fn run(command: &mut Command) -> Output {
    let output = command.output().expect("the client starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    output
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Answers of objects with this status so far.
async fn answered(node: &Node, method: &str, status: u16) -> u64 {
    let metrics = node.get("/metrics").send().await.unwrap().text().await.unwrap();
    let line = format!("{{method=\"{method}\",route=\"/v1/objects/{{*key}}\",status=\"{status}\"}} ");
    metrics.lines().filter_map(|found| found.split_once(&line)?.1.parse::<u64>().ok()).sum()
}

async fn put(node: &Node, key: &str, body: Vec<u8>) {
    assert_eq!(node.put(key, body).send().await.unwrap().status(), 201, "{key}");
}

fn film() -> PathBuf {
    media::clip(1280, 720, 30, 60)
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_reads_resumes_and_writes() {
    let folder = scratch("curl");
    let node = Node::start(&folder.path().join("data")).await;
    let body = Noise::bytes(71, 3_000_000);
    put(&node, "film", body.clone()).await;
    let url = node.object_url("film");
    let curl = |arguments: &[&str]| run(client("curl", folder.path()).args(["-sS", "--fail"]).args(arguments));
    let written = |arguments: &[&str], format: &str| {
        let output = curl(&[&["-o", "/dev/null", "-w", format], arguments].concat());
        String::from_utf8_lossy(&output.stdout).into_owned()
    };

    assert!(curl(&[&url]).stdout == body);
    assert!(curl(&["--http1.0", &url]).stdout == body);
    assert!(curl(&["-r", "1000000-", &url]).stdout == body[1_000_000..]);
    assert!(curl(&["-r", "-5", &url]).stdout == body[2_999_995..]);
    let several = curl(&["-r", "0-9,2000000-2000009", &url]).stdout;
    for part in [&body[..10], &body[2_000_000..2_000_010]] {
        assert!(several.windows(10).any(|window| window == part), "a part of the multipart answer");
    }

    // A download that broke off goes on; one that is complete asks for nothing.
    std::fs::write(folder.path().join("cut"), &body[..1_234_567]).unwrap();
    assert_eq!(written(&["-C", "-", &url], "%{http_code}"), "200", "nothing to go on from");
    assert_eq!(curl(&["-C", "-", "-o", "cut", "-w", "%{http_code} %{size_download}", &url]).stdout, b"206 1765433");
    assert!(std::fs::read(folder.path().join("cut")).unwrap() == body);

    // What has not changed is not sent again, by tag and by date.
    assert_eq!(written(&["--etag-save", "tag", &url], "%{http_code}"), "200");
    assert_eq!(written(&["--etag-compare", "tag", &url], "%{http_code} %{size_download}"), "304 0");
    curl(&["-R", "-o", "dated", &url]);
    assert_eq!(written(&["-z", "dated", &url], "%{http_code} %{size_download}"), "304 0");
    assert_eq!(written(&["-I", &url], "%header{content-length}"), "3000000");

    // The name that `-OJ` gives the file is the one that was asked for.
    curl(&["-OJ", &format!("{url}?download=My%20film.bin")]);
    assert!(std::fs::read(folder.path().join("My film.bin")).unwrap() == body);

    // `-T` announces and waits for "100 Continue"; `-T -` sends in chunks.
    assert_eq!(written(&["-T", "dated", &node.object_url("copy")], "%{http_code}"), "201");
    let piped = format!("cat dated | curl -sS --fail -T - {}", node.object_url("piped"));
    run(client("sh", folder.path()).args(["-c", &piped]));
    for key in ["copy", "piped"] {
        assert!(node.object(key).send().await.unwrap().bytes().await.unwrap() == body, "{key}");
    }
}

/// What people have is an address with a name and a password in it. Most programs send them when they are asked to.
#[tokio::test(flavor = "multi_thread")]
async fn programs_log_in_with_the_token_as_password() {
    let folder = scratch("passwords");
    let data = folder.path().join("data");
    let made = reelring(&data, &["token", "create", "player", "--scope", "read,write"]);
    let token = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let node = Node::start(&data).await;
    let clip = std::fs::read(media::clip(320, 180, 30, 4)).unwrap();
    assert_eq!(node.put("films/clip.mp4", clip.clone()).bearer_auth(&token).send().await.unwrap().status(), 201);

    let with_password = |url: String| url.replace("http://", &format!("http://anybody:{token}@"));
    let (url, root) = (with_password(node.object_url("films/clip.mp4")), with_password(node.object_url("")));
    let client = |name| client(name, folder.path());
    assert!(run(client("curl").args(["-sS", "--fail", &url])).stdout == clip);
    let asked = format!("--password={token}");
    let wget = ["--no-config", "-q", "-O", "-", "--user=anybody", &asked, &node.object_url("films/clip.mp4")];
    assert!(run(client("wget").args(wget)).stdout == clip);
    assert!(run(client("rclone").args(["--http-url", &root, "cat", ":http:films/clip.mp4"])).stdout == clip);
    let probed =
        run(client("ffprobe").args(["-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0", &url]));
    assert!(text(&probed).starts_with("4."), "{}", text(&probed));
    run(client("ffmpeg").args(["-v", "error", "-i", &url, "-f", "null", "-"]));
    let mpv = ["--no-config", "--vo=null", "--ao=null", "--untimed", "--frames=5"];
    run(client("mpv").args(mpv).arg(&url));

    // They are asked for it beside the token; what a page fetches by itself is not, or the browser would ask its user.
    for (headers, expected) in [
        (&[][..], 2),
        (&[("sec-fetch-mode", "navigate")], 2),
        (&[("sec-fetch-mode", "cors")], 1),
        (&[("sec-fetch-mode", "no-cors")], 1),
        (&[("origin", "https://app.example")], 1),
    ] {
        let request =
            headers.iter().fold(node.object("films/clip.mp4"), |all, (name, value)| all.header(*name, *value));
        let refused = request.send().await.unwrap();
        assert_eq!(refused.status(), 401);
        let challenges: Vec<_> = refused.headers().get_all("www-authenticate").iter().collect();
        assert_eq!(challenges.len(), expected, "{headers:?}: {challenges:?}");
        assert_eq!(challenges[0], "Bearer realm=\"reelring\"");
        assert!(challenges[1..].iter().all(|other| *other == "Basic realm=\"reelring\", charset=\"UTF-8\""));
    }
    let wrong = node.object("films/clip.mp4").basic_auth("anybody", Some("wrong")).send().await.unwrap();
    assert_eq!((wrong.status().as_u16(), wrong.headers().get_all("www-authenticate").iter().count()), (401, 2));
    let secret = token.rsplit('_').next().unwrap();
    assert!(!node.log().contains(secret), "the log tells the token");
}

#[tokio::test(flavor = "multi_thread")]
async fn wget_resumes_and_mirrors_a_folder() {
    let folder = scratch("wget");
    let node = Node::start(&folder.path().join("data")).await;
    let bodies: Vec<(String, Vec<u8>)> = ["films/a.mp4", "films/b & c.mp4", "films/old/ä.mp4"]
        .map(|key| (key.into(), Noise::bytes(key.len() as u64, 500_000)))
        .into();
    for (key, body) in &bodies {
        put(&node, key, body.clone()).await;
    }
    let wget = |arguments: &[&str]| run(client("wget", folder.path()).arg("--no-config").args(arguments));

    std::fs::write(folder.path().join("a.mp4"), &bodies[0].1[..123_456]).unwrap();
    let resumed = text(&wget(&["-c", &node.object_url("films/a.mp4")]));
    assert!(resumed.contains("206 Partial Content"), "{resumed}");
    assert!(std::fs::read(folder.path().join("a.mp4")).unwrap() == bodies[0].1);
    let complete = text(&wget(&["-c", &node.object_url("films/a.mp4")]));
    assert!(complete.contains("416"), "the file is there already: {complete}");

    let mirror = ["-q", "-m", "-np", "-nH", "--cut-dirs=2", "--restrict-file-names=nocontrol", "-P", "mirror"];
    let root = node.url("/v1/objects/films/");
    wget(&[&mirror[..], &[&root]].concat());
    for (key, body) in &bodies {
        let copy = folder.path().join("mirror").join(key);
        assert!(std::fs::read(&copy).unwrap_or_else(|error| panic!("{}: {error}", copy.display())) == *body, "{key}");
    }
    // The second time nothing has changed since.
    let before = answered(&node, "GET", 304).await;
    wget(&[&mirror[..], &[&root]].concat());
    assert_eq!(answered(&node, "GET", 304).await - before, bodies.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn aria2c_takes_sixteen_parts_at_once() {
    let folder = scratch("aria2c");
    let node = Node::start(&folder.path().join("data")).await;
    let body = Noise::bytes(72, 40_000_003);
    put(&node, "film", body.clone()).await;
    let checksum = format!("--checksum=sha-256={}", crate::support::sha256(&body));
    let mut aria2c = client("aria2c", folder.path());
    aria2c.args(["--no-conf", "-q", "-x16", "-s16", "--min-split-size=1M", "-o", "film", &checksum]);
    run(aria2c.arg(node.object_url("film")));
    assert!(std::fs::read(folder.path().join("film")).unwrap() == body);
    // The first connection asks for the whole, and is cut where the others begin.
    let parts = answered(&node, "GET", 206).await;
    assert!(parts >= 15, "{parts} ranges");
}

#[tokio::test(flavor = "multi_thread")]
async fn rclone_lists_copies_and_reads_parts() {
    let folder = scratch("rclone");
    let node = Node::start(&folder.path().join("data")).await;
    let bodies = [("films/a b.mp4", 3_000_000), ("films/old/ö%.mp4", 100), ("top", 7)]
        .map(|(key, length)| (key, Noise::bytes(length, length as usize)));
    for (key, body) in &bodies {
        let (status, answer) = crate::support::raw::request(
            node.addr(),
            "PUT",
            &format!("/v1/objects/{}", key.replace('%', "%25").replace(' ', "%20")),
            body,
        );
        assert_eq!(status, 201, "{answer}");
    }
    let base = node.url("/v1/objects/");
    let rclone = |arguments: &[&str]| {
        let mut command = client("rclone", folder.path());
        command.args([
            "--config",
            "",
            "--http-url",
            &base,
            "--multi-thread-cutoff",
            "1M",
            "--multi-thread-streams",
            "4",
        ]);
        run(command.args(arguments))
    };
    let listed = text(&rclone(&["lsf", "-R", "--format", "sp", ":http:"]));
    for (key, body) in &bodies {
        assert!(listed.lines().any(|line| line == format!("{};{key}", body.len())), "{key}: {listed}");
    }
    rclone(&["copy", ":http:", "copy"]);
    for (key, body) in &bodies {
        assert!(std::fs::read(folder.path().join("copy").join(key)).unwrap() == *body, "{key}");
    }
    assert!(answered(&node, "GET", 206).await >= 2, "the large one in several streams");
    let part = rclone(&["cat", "--offset", "1000", "--count", "5000", ":http:films/a b.mp4"]);
    assert!(part.stdout == bodies[0].1[1000..6000]);
    // Sizes and times are as they were: there is nothing to copy again.
    let again = text(&rclone(&["copy", "-v", "--stats-one-line", ":http:", "copy"]));
    assert!(!again.contains("Copied"), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ffmpeg_and_mpv_seek() {
    let folder = scratch("players");
    let node = Node::start(&folder.path().join("data")).await;
    // Its index lies at the end, so that even the beginning takes a seek.
    let film = film();
    put(&node, "film.mp4", std::fs::read(&film).unwrap()).await;
    let url = node.object_url("film.mp4");

    let frames = |source: &str| {
        let mut ffmpeg = client("ffmpeg", folder.path());
        ffmpeg.args([
            "-v",
            "error",
            "-ss",
            "45",
            "-i",
            source,
            "-frames:v",
            "30",
            "-map",
            "0:v",
            "-f",
            "framemd5",
            "-",
        ]);
        text(&run(&mut ffmpeg)).lines().filter(|line| !line.starts_with('#')).map(str::to_string).collect::<Vec<_>>()
    };
    let found = frames(&url);
    assert_eq!(found.len(), 30);
    assert_eq!(found, frames(film.to_str().unwrap()), "the pictures of the file itself");
    let ranges = answered(&node, "GET", 206).await;
    assert!(ranges >= 2, "{ranges} ranges");

    let mut mpv = client("mpv", folder.path());
    mpv.args(["--no-config", "--vo=null", "--ao=null", "--untimed", "--start=75%", "--frames=20"]);
    mpv.args(["--term-playing-msg=LENGTH ${=duration}", "--term-status-msg=AT ${=time-pos} "]);
    let said = text(&run(mpv.arg(&url)));
    assert!(said.contains("LENGTH 60."), "{said}");
    let at = said.rsplit("AT ").next().and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    assert!(at.is_some_and(|at| (45.0..47.0).contains(&at)), "{at:?}: {said}");
    assert!(answered(&node, "GET", 206).await > ranges, "mpv seeks by ranges");
}

/// What the page's only film says of itself.
fn look(browser: &mut Browser) -> serde_json::Value {
    browser.ask(
        "(() => { const v = document.querySelector('video'); if (!v) return null; const b = v.buffered; let held = 0; \
         for (let i = 0; i < b.length; i++) held += b.end(i) - b.start(i); \
         return { time: v.currentTime, width: v.videoWidth, length: v.duration, held, seeking: v.seeking, \
         end: v.seekable.length ? v.seekable.end(0) : 0, frames: v.getVideoPlaybackQuality().totalVideoFrames, \
         error: v.error && v.error.message }; })()",
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_seeks_in_an_object_and_pages_of_listed_sites_may_read_it() {
    let Some(chromium) = executable() else {
        assert!(std::env::var_os("CI").is_none(), "CI has Chromium: make test installs it");
        return skipped(
            "a_browser_seeks_in_an_object_and_pages_of_listed_sites_may_read_it",
            "no Chromium; run: make test",
        );
    };
    let folder = scratch("video");
    let site = Nginx::start(1 << 20);
    std::fs::write(site.root().join("page.html"), "<!doctype html><title>a page</title>").unwrap();
    let origin = site.url("");
    let settings = [("REELRING_CORS_ORIGINS", origin.as_str())];
    let node = Node::start_with(&folder.path().join("data"), &settings).await;
    put(&node, "film.mp4", std::fs::read(film()).unwrap()).await;
    let mut browser = Browser::start(&chromium);

    // The browser makes a page with a player around an address that is a film.
    browser.open(&node.object_url("film.mp4"));
    let seen = eventually("the film moves", PATIENCE, async || {
        let seen = look(&mut browser);
        (seen["time"].as_f64()? > 0.5 && seen["frames"].as_u64()? > 5).then_some(seen)
    })
    .await;
    assert_eq!(
        (&seen["width"], seen["length"].as_f64().map(f64::round)),
        (&serde_json::json!(1280), Some(60.0)),
        "{seen}"
    );
    assert!(seen["end"].as_f64().unwrap() > 59.0, "all of it can be sought: {seen}");
    for target in [55.0, 12.0, 40.0] {
        let ranges = answered(&node, "GET", 206).await;
        let held = look(&mut browser)["held"].as_f64().unwrap();
        browser.ask(&format!("document.querySelector('video').currentTime = {target}, 0"));
        let seen = eventually("it goes on from there", PATIENCE, async || {
            let seen = look(&mut browser);
            let time = seen["time"].as_f64()?;
            (seen["seeking"] == false && (target + 0.2..target + 20.0).contains(&time)).then_some(seen)
        })
        .await;
        assert!(seen["error"].is_null(), "{seen}");
        let asked = answered(&node, "GET", 206).await;
        assert!(asked > ranges || held > 50.0, "a seek to {target} is a range: {ranges}, {asked}, {held} s held");
    }

    // From a page of a site that is listed: a part by fetch, and pictures that its canvas may read.
    browser.open(&site.url("page.html"));
    eventually("the page", PATIENCE, async || (browser.ask("document.title") == "a page").then_some(())).await;
    let part = "async url => { try { const r = await fetch(url, {headers: {Range: 'bytes=4-11'}}); return [r.status, \
                r.headers.get('content-range'), await r.text()].join('|'); } catch (e) { return e.name; } }";
    let url = node.object_url("film.mp4");
    let length = std::fs::metadata(film()).unwrap().len();
    let fetched = browser.ask(&format!("({part})('{url}')"));
    assert_eq!(fetched, format!("206|bytes 4-11/{length}|ftypisom"), "{fetched}");
    let pixel = "url => new Promise(done => { const v = document.createElement('video'); v.crossOrigin = 'anonymous'; \
                 v.muted = true; v.onerror = () => done('error'); v.onseeked = () => { const c = \
                 document.createElement('canvas'); c.width = c.height = 8; const x = c.getContext('2d'); \
                 x.drawImage(v, 0, 0, 8, 8); try { done(x.getImageData(0, 0, 8, 8).data.length); } catch (e) { \
                 done(e.name); } }; v.onloadedmetadata = () => { v.currentTime = 30; }; v.src = url; })";
    assert_eq!(browser.ask(&format!("({pixel})('{url}')")), 256);

    // The same page is a stranger to a node that does not list it.
    let stranger = Node::start(&folder.path().join("stranger")).await;
    put(&stranger, "film.mp4", std::fs::read(media::clip(320, 180, 30, 4)).unwrap()).await;
    let url = stranger.object_url("film.mp4");
    assert_eq!(browser.ask(&format!("({part})('{url}')")), "TypeError");
    assert_eq!(browser.ask(&format!("({pixel})('{url}')")), "error");
}
