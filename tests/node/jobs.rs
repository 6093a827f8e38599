//! Jobs over HTTP: asked for once, followed by events, paused, resumed, cancelled, and measured.

use std::time::Duration;

use crate::support::nginx::Nginx;
use crate::support::node::Node;
use crate::support::{Noise, eventually, scratch};
use futures_util::StreamExt as _;
use reqwest::{Method, Response};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// One server-sent event.
#[derive(Debug)]
struct Event {
    id: Option<u64>,
    name: String,
    data: Value,
}

/// Reads events until the stream ends or `enough` says so.
async fn events(response: Response, mut enough: impl FnMut(&Event) -> bool) -> Vec<Event> {
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let (mut text, mut found) = (String::new(), Vec::new());
    let mut body = response.bytes_stream();
    while let Some(chunk) = tokio::time::timeout(PATIENCE, body.next()).await.expect("events go on") {
        text += std::str::from_utf8(&chunk.expect("a chunk")).expect("UTF-8");
        while let Some((block, rest)) = text.split_once("\n\n") {
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            if let (Some(name), Some(data)) = (field("event:"), field("data:")) {
                let id = field("id:").map(|id| id.parse().expect("a number"));
                let data = serde_json::from_str(data).expect("JSON");
                let event = Event { id, name: name.into(), data };
                let last = enough(&event);
                found.push(event);
                if last {
                    return found;
                }
            }
            text = rest.to_string();
        }
    }
    found
}

fn origin() -> Nginx {
    let nginx = Nginx::start(4 * MIB);
    std::fs::write(nginx.root().join("film.mp4"), Noise::bytes(71, 24 * MIB as usize)).unwrap();
    nginx
}

async fn act(node: &Node, id: &str, verb: &str) -> Response {
    node.request(Method::POST, &format!("/v1/jobs/{id}/{verb}")).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_sent_twice_is_one_job() {
    let folder = scratch("idempotent");
    let nginx = origin();
    let node = Node::start(&folder.path().join("data")).await;
    let send = |spec: Value| {
        let request = node.request(Method::POST, "/v1/jobs").header("idempotency-key", "order-1").json(&spec);
        async move {
            let response = request.send().await.unwrap();
            (response.status().as_u16(), response.json::<Value>().await.unwrap())
        }
    };
    let spec = json!({"kind": "fetch", "url": nginx.url("film.mp4"), "key": "film"});
    let (status, first) = send(spec.clone()).await;
    assert_eq!(status, 202, "{first}");
    let (_, second) = send(spec).await;
    assert_eq!(first["id"], second["id"]);
    let (status, other) = send(json!({"kind": "fetch", "url": nginx.url("film.mp4"), "key": "other"})).await;
    assert_eq!(status, 422, "{other}");
    node.done(first["id"].as_str().unwrap(), PATIENCE).await;
    assert_eq!(node.json("/v1/jobs").await["jobs"].as_array().map(Vec::len), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_follow_a_job_to_its_end_and_replay_what_was_missed() {
    let folder = scratch("events");
    let nginx = origin();
    let node = Node::start(&folder.path().join("data")).await;
    let id = node.submit(json!({"kind": "fetch", "url": nginx.url("slow/film.mp4"), "key": "film"})).await;
    let followed = events(node.get(&format!("/v1/events?job={id}")).send().await.unwrap(), |_| false).await;
    assert!(followed.iter().all(|event| event.name == "job" && event.data["id"] == id), "{followed:#?}");
    assert_eq!(followed.last().unwrap().data["state"], "done", "the stream ends with its job");
    let done: Vec<u64> = followed.iter().filter_map(|event| event.data["progress"]["bytes_done"].as_u64()).collect();
    assert!(done.is_sorted(), "{done:?}");
    assert!(done.iter().any(|bytes| (1..24 * MIB).contains(bytes)), "something was seen on the way: {done:?}");

    let ids: Vec<u64> = followed.iter().filter_map(|event| event.id).collect();
    assert!(ids.len() >= 3 && ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    let middle = ids[ids.len() / 2];
    let last = *ids.last().unwrap();
    let request = node.get("/v1/events").header("last-event-id", middle.to_string());
    let replayed = events(request.send().await.unwrap(), |event| event.id == Some(last)).await;
    assert_eq!(replayed.first().and_then(|event| event.id), Some(middle + 1), "{replayed:#?}");
    assert_eq!(replayed.last().unwrap().data["state"], "done");

    let unknown = node.get("/v1/events?job=0123456789abcdef0123456789abcdef").send().await.unwrap();
    assert_eq!(unknown.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_paused_resumed_and_cancelled() {
    let folder = scratch("verbs");
    let nginx = origin();
    let node = Node::start(&folder.path().join("data")).await;
    let spec = |key: &str| json!({"kind": "fetch", "url": nginx.url("slow/film.mp4"), "key": key});
    let begun = async |id: &str| {
        eventually("some bytes", PATIENCE, async || {
            node.job(id).await["progress"]["bytes_done"].as_u64().filter(|bytes| *bytes > MIB)
        })
        .await
    };

    let id = node.submit(spec("film")).await;
    begun(&id).await;
    assert_eq!(act(&node, &id, "pause").await.status(), 200);
    eventually("the pause", PATIENCE, async || (node.job(&id).await["state"] == "paused").then_some(())).await;
    assert_eq!(act(&node, &id, "retry").await.status(), 409, "only what has failed can be retried");
    assert!(!node.partials().is_empty(), "what has arrived is kept");
    assert_eq!(act(&node, &id, "resume").await.status(), 200);
    node.done(&id, PATIENCE).await;
    let stored = node.object("film").send().await.unwrap().bytes().await.unwrap();
    assert!(stored == Noise::bytes(71, 24 * MIB as usize));

    let id = node.submit(spec("never")).await;
    begun(&id).await;
    let cancelled = node.request(Method::DELETE, &format!("/v1/jobs/{id}")).send().await.unwrap();
    assert_eq!(cancelled.status(), 200);
    assert_eq!(node.finished(&id, PATIENCE).await["state"], "cancelled");
    eventually("no partial file", PATIENCE, async || node.partials().is_empty().then_some(())).await;
    assert_eq!(node.object("never").send().await.unwrap().status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_page_by_state_and_survive_a_restart() {
    let folder = scratch("job-list");
    let data = folder.path().join("data");
    let nginx = origin();
    let node = Node::start(&data).await;
    let mut ids = Vec::new();
    for number in 0..5 {
        let url = if number % 2 == 0 { nginx.url("film.mp4") } else { nginx.url("missing") };
        let id = node.submit(json!({"kind": "fetch", "url": url, "key": format!("film-{number}")})).await;
        node.finished(&id, PATIENCE).await;
        ids.push(id);
    }
    ids.reverse();
    node.kill();
    let node = Node::start(&data).await;
    let page = async |query: &str| {
        let listed = node.json(&format!("/v1/jobs?{query}")).await;
        let jobs = listed["jobs"].as_array().unwrap().clone();
        jobs.iter().map(|job| job["id"].as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(page("limit=2").await, ids[..2], "the newest first");
    assert_eq!(page(&format!("limit=10&after={}", ids[1])).await, ids[2..]);
    assert_eq!(page("state=failed").await, [ids[1].clone(), ids[3].clone()]);
    let refused = node.get("/v1/jobs?state=lost").send().await.unwrap();
    assert_eq!(refused.status(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_what_a_scraper_expects() {
    let folder = scratch("metrics");
    let node = Node::start(&folder.path().join("data")).await;
    assert_eq!(node.put("a", vec![1; 100_000]).send().await.unwrap().status(), 201);
    assert_eq!(node.object("a").send().await.unwrap().bytes().await.unwrap().len(), 100_000);
    let text = node.get("/metrics").send().await.unwrap().text().await.unwrap();
    let value = |start: &str| {
        let line = text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start} in {text}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(value("reelring_reactor_ops_total{op=\"write\"}") >= 1.0);
    assert!(value("reelring_volume_free_bytes{volume=\"0\"}") > 0.0);
    assert_eq!(value("reelring_volume_degraded{volume=\"0\"}"), 0.0);
    assert_eq!(value("reelring_reactor_inflight "), 0.0, "nothing is under way");
    assert!(
        text.contains("reelring_http_requests_total{method=\"PUT\",route=\"/v1/objects/{*key}\",status=\"201\"} 1")
    );
    assert!(text.ends_with("# EOF\n"), "{text}");
    // One type line for each name, and no sample without one.
    let mut types: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
    let all = types.len();
    types.sort();
    types.dedup();
    assert_eq!(types.len(), all, "{types:#?}");
}
