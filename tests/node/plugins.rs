//! Extractors in a running node: five lines turn a page into a film, a new version takes over within two seconds, and
//! an endless loop costs one job.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::nginx::Nginx;
use crate::support::node::{Node, PRIVATE_ORIGINS};
use crate::support::{Noise, eventually, process, scratch};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// Turns `http://HOST/watch/NAME.html` into the address the page names.
const FIVE_LINES: &str = r#"export const manifest = { matches: ["http://127.0.0.1/watch/*"] };
export async function extract(url, ctx) {
  const page = await (await ctx.fetch(url)).text();
  return { title: "A film", url: new URL(page.match(/src="([^"]+)"/)[1], url).href };
}
"#;

fn write(data: &Path, name: &str, source: &str) {
    std::fs::create_dir_all(data.join("plugins")).unwrap();
    std::fs::write(data.join("plugins").join(name), source).unwrap();
}

async fn plugin(node: &Node, id: &str) -> Option<Value> {
    let listed = node.json("/v1/plugins").await;
    listed["plugins"].as_array()?.iter().find(|plugin| plugin["id"] == id).cloned()
}

async fn loaded(node: &Node, id: &str, generation: u64) -> Value {
    eventually(&format!("generation {generation} of {id}"), PATIENCE, async || {
        let found = plugin(node, id).await?;
        (found["generation"].as_u64()? >= generation).then_some(found)
    })
    .await
}

/// A page, and the two films it may mean.
fn site() -> Nginx {
    let nginx = Nginx::start(1 << 20);
    let root = nginx.root();
    std::fs::create_dir(root.join("watch")).unwrap();
    std::fs::write(root.join("watch/film.html"), "<video src=\"/one.mp4\"></video>").unwrap();
    std::fs::write(root.join("one.mp4"), Noise::bytes(31, 100_000)).unwrap();
    std::fs::write(root.join("two.mp4"), Noise::bytes(32, 100_000)).unwrap();
    nginx
}

/// `matches` without the origin's random port would never match.
fn for_site(source: &str, nginx: &Nginx) -> String {
    source.replace("http://127.0.0.1/", &nginx.url(""))
}

async fn fetched(node: &Node, nginx: &Nginx, key: &str) -> Value {
    let spec = json!({"kind": "fetch", "url": nginx.url("watch/film.html"), "key": key});
    node.finished(&node.submit(spec).await, PATIENCE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn five_lines_fetch_a_film_and_an_edit_counts_within_two_seconds() {
    let folder = scratch("plugins");
    let data = folder.path().join("data");
    let nginx = site();
    write(&data, "site.js", &for_site(FIVE_LINES, &nginx));
    let node = Node::start(&data).await;
    let before = loaded(&node, "site", 1).await;

    let job = fetched(&node, &nginx, "one").await;
    assert_eq!(job["state"], "done", "{job:#}\n{}", node.log());
    assert!(node.object("one").send().await.unwrap().bytes().await.unwrap() == Noise::bytes(31, 100_000));

    let edited = for_site(FIVE_LINES, &nginx).replace("page.match(/src=\"([^\"]+)\"/)[1]", "\"/two.mp4\"");
    write(&data, "site.js", &edited);
    let start = Instant::now();
    loaded(&node, "site", before["generation"].as_u64().unwrap() + 1).await;
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    let job = fetched(&node, &nginx, "two").await;
    assert_eq!(job["state"], "done", "{job:#}");
    assert!(node.object("two").send().await.unwrap().bytes().await.unwrap() == Noise::bytes(32, 100_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_edit_keeps_the_old_version_and_shows_its_error() {
    let folder = scratch("broken");
    let data = folder.path().join("data");
    let nginx = site();
    write(&data, "site.js", &for_site(FIVE_LINES, &nginx));
    let node = Node::start(&data).await;
    loaded(&node, "site", 1).await;

    write(&data, "site.js", "export const manifest = { matches: [\"http://*/*\"] };\nexport function extract( {\n");
    let broken = eventually("the error", PATIENCE, async || {
        plugin(&node, "site").await.filter(|plugin| plugin["last_error"].is_string())
    })
    .await;
    assert!(broken["last_error"].as_str().unwrap().contains("site.js"), "it names the file: {broken:#}");
    let job = fetched(&node, &nginx, "one").await;
    assert_eq!(job["state"], "done", "the old version still answers: {job:#}");

    write(&data, "site.js", &for_site(FIVE_LINES, &nginx));
    eventually("no error any more", PATIENCE, async || {
        plugin(&node, "site").await.filter(|plugin| plugin["last_error"].is_null())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_loop_costs_one_job() {
    let folder = scratch("endless");
    let data = folder.path().join("data");
    let nginx = site();
    let endless = "export const manifest = { matches: [\"http://127.0.0.1/watch/*\"] };\nexport function extract() { for (;;) {} }\n";
    write(&data, "site.js", &for_site(endless, &nginx));
    let node = Node::start_with(&data, &[PRIVATE_ORIGINS, ("REELRING_PLUGIN_TIMEOUT_S", "2")]).await;
    loaded(&node, "site", 1).await;

    let looping = node.submit(json!({"kind": "fetch", "url": nginx.url("watch/film.html"), "key": "never"})).await;
    // Meanwhile the node does everything else.
    let direct = node.submit(json!({"kind": "fetch", "url": nginx.url("one.mp4"), "key": "direct"})).await;
    node.done(&direct, PATIENCE).await;
    let job = node.finished(&looping, PATIENCE).await;
    assert_eq!(job["state"], "failed", "{job:#}");
    let error = job["error"].as_str().unwrap_or_default();
    assert!(error.contains("site") && error.contains('2'), "the plugin and its limit are named: {error}");

    write(&data, "site.js", &for_site(FIVE_LINES, &nginx));
    loaded(&node, "site", 2).await;
    let job = fetched(&node, &nginx, "after").await;
    assert_eq!(job["state"], "done", "{job:#}");
    assert!(process::children(node.pid(), "reelring-plugin").len() <= 1, "the killed worker is gone");
}
