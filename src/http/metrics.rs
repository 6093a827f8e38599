//! `/metrics` in Prometheus' text format.
//!
//! HTTP is counted here as it happens; storage and jobs are asked when somebody scrapes.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::State;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use reelring_storage::{StoreStats, VolumeState, VolumeStats};

use super::problem::Problem;
use crate::node::Node;

/// What the HTTP interface counts about itself.
pub struct HttpMetrics {
    registry: Registry,
    requests: Family<Answer, Counter>,
    seconds: Family<Route, Histogram, fn() -> Histogram>,
    sent: SentBytes,
    connections: ConnectionCounts,
    /// The router's patterns met so far, kept for good: there are as many as lines in [`super::router`].
    routes: RwLock<HashSet<&'static str>>,
}

/// Stored bytes handed to clients, by their way: from the file, from the page cache through memory, from the disk.
#[derive(Clone)]
pub(super) struct SentBytes {
    pub sendfile: Counter,
    pub mmap: Counter,
    pub reactor: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answer {
    method: &'static str,
    route: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: &'static str,
}

/// What is counted of one method of one route, whose labels are looked up once for all requests.
pub(super) struct Tally {
    method: Method,
    route: &'static str,
    seconds: OnceLock<Histogram>,
    /// Of answers with the whole, and with a part.
    whole: OnceLock<Counter>,
    part: OnceLock<Counter>,
}

impl Tally {
    pub(super) const fn new(method: Method, route: &'static str) -> Self {
        Self { method, route, seconds: OnceLock::new(), whole: OnceLock::new(), part: OnceLock::new() }
    }

    pub(super) fn answered(&self, metrics: &HttpMetrics, status: StatusCode, took: Duration) {
        let counter = match status {
            StatusCode::OK => &self.whole,
            StatusCode::PARTIAL_CONTENT => &self.part,
            _ => return metrics.answered(&self.method, self.route, status, took),
        };
        let answer = || Answer { method: label(&self.method), route: self.route, status: status.as_u16() };
        counter.get_or_init(|| metrics.requests.get_or_create_owned(&answer())).inc();
        let seconds = || metrics.seconds.get_or_create_owned(&Route { route: self.route });
        self.seconds.get_or_init(seconds).observe(took.as_secs_f64());
    }
}

/// What is counted of connections.
#[derive(Clone, Default)]
pub(super) struct ConnectionCounts {
    pub(super) open: Gauge,
    pub(super) closed_idle: Counter,
    refused: Family<[(&'static str, &'static str); 1], Counter>,
}

impl ConnectionCounts {
    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&[("reason", reason)]).inc();
    }
}

impl Default for HttpMetrics {
    fn default() -> Self {
        let requests = Family::default();
        let seconds = Family::new_with_constructor(request_seconds as fn() -> Histogram);
        let mut registry = Registry::with_prefix("reelring_http");
        registry.register("requests", "Requests answered", requests.clone());
        registry.register("request_seconds", "Time until the head of the answer", seconds.clone());
        let by_path = Family::<[(&'static str, &'static str); 1], Counter>::default();
        let path = |path| by_path.get_or_create(&[("path", path)]).clone();
        let sent = SentBytes { sendfile: path("sendfile"), mmap: path("mmap"), reactor: path("reactor") };
        registry.register("sent_bytes", "Stored bytes handed to clients, by the way they took", by_path.clone());
        let connections = ConnectionCounts::default();
        registry.register("connections", "Open connections", connections.open.clone());
        let closed = connections.closed_idle.clone();
        registry.register("connections_closed_idle", "Idle connections closed to make room for others", closed);
        let refused = connections.refused.clone();
        registry.register("connections_refused", "Connections that were answered 503 or closed at once", refused);
        Self { registry, requests, seconds, sent, connections, routes: RwLock::default() }
    }
}

fn request_seconds() -> Histogram {
    Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0])
}

impl HttpMetrics {
    pub(super) fn connections(&self) -> &ConnectionCounts {
        &self.connections
    }

    pub(super) fn sent(&self) -> &SentBytes {
        &self.sent
    }

    /// `route` is the router's pattern, so the number of label values is bounded whatever clients ask for.
    pub(super) fn answered(&self, method: &Method, route: &str, status: StatusCode, took: Duration) {
        let method = label(method);
        let route = self.lasting(route);
        self.requests.get_or_create(&Answer { method, route, status: status.as_u16() }).inc();
        self.seconds.get_or_create(&Route { route }).observe(took.as_secs_f64());
    }

    /// The same pattern as a label that needs no copy for each request.
    fn lasting(&self, route: &str) -> &'static str {
        if let Some(known) = self.routes.read().unwrap_or_else(PoisonError::into_inner).get(route) {
            return known;
        }
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        match routes.get(route) {
            Some(known) => known,
            None => {
                let new: &'static str = route.to_owned().leak();
                routes.insert(new);
                new
            }
        }
    }
}

fn label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

pub(super) async fn scrape(State(node): State<Arc<Node>>) -> Result<Response, Problem> {
    let mut text = String::new();
    storage(&mut text, &node.store().stats());
    let traffic = node.client().traffic();
    counter(&mut text, "reelring_ingest_bytes", "Bytes received from origins", traffic.bytes_total);
    counter(
        &mut text,
        "reelring_ingest_retries",
        "Requests to origins repeated after a failure",
        traffic.retries_total,
    );
    gauge_head(&mut text, "reelring_jobs", "Jobs by state");
    for (state, count) in node.jobs().count_by_state().await? {
        let _ = writeln!(text, "reelring_jobs{{state=\"{state}\"}} {count}");
    }
    let uploads = node.uploads().figures().await?;
    gauge(&mut text, "reelring_uploads_open", "Resumable uploads begun and not finished", uploads.open);
    counter_head(&mut text, "reelring_uploads", "Resumable uploads and their requests, by what became of them");
    for (event, count) in [
        ("completed", uploads.completed),
        ("expired", uploads.expired),
        ("cut", uploads.cut),
        ("pre-empted", uploads.preempted),
        ("mismatched", uploads.mismatched),
    ] {
        let _ = writeln!(text, "reelring_uploads_total{{event=\"{event}\"}} {count}");
    }
    // Ends with the `# EOF` line, so it comes last.
    encode(&mut text, &node.http_metrics().registry)
        .map_err(|error| Problem::unavailable("metrics", format!("the metrics cannot be written: {error}"), 5))?;
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, content_type)], text).into_response())
}

fn storage(text: &mut String, stats: &StoreStats) {
    gauge(text, "reelring_reactor_inflight", "Operations handed to the engine and not complete", stats.inflight);
    gauge(text, "reelring_reactor_queue_depth", "Callers waiting for room in a lane", stats.queue_depth);
    counter_head(text, "reelring_reactor_ops", "Operations completed");
    for op in &stats.ops {
        let _ = writeln!(text, "reelring_reactor_ops_total{{op=\"{}\"}} {}", op.op, op.total);
    }
    let _ = writeln!(text, "# HELP reelring_reactor_op_seconds From submission to completion.");
    let _ = writeln!(text, "# TYPE reelring_reactor_op_seconds histogram");
    for op in &stats.ops {
        let mut sum = 0;
        for (count, bound) in op.buckets.iter().zip(reelring_storage::OP_SECONDS_BUCKETS) {
            sum += count;
            let _ = writeln!(text, "reelring_reactor_op_seconds_bucket{{op=\"{}\",le=\"{bound}\"}} {sum}", op.op);
        }
        let _ = writeln!(text, "reelring_reactor_op_seconds_bucket{{op=\"{}\",le=\"+Inf\"}} {}", op.op, op.total);
        let _ = writeln!(text, "reelring_reactor_op_seconds_sum{{op=\"{}\"}} {}", op.op, op.seconds);
        let _ = writeln!(text, "reelring_reactor_op_seconds_count{{op=\"{}\"}} {}", op.op, op.total);
    }
    counter(text, "reelring_reactor_batches", "Batches drained by the reactor", stats.batches_total);
    counter(text, "reelring_reactor_batched_ops", "Operations in those batches", stats.batched_ops_total);
    gauge(text, "reelring_reactor_batch_size", "The largest batch so far", stats.batch_max);
    counter(text, "reelring_reactor_doorbell_rings", "Times the reactor had to be woken", stats.doorbell_rings_total);
    let quarantined = stats.quarantined_blobs;
    gauge(text, "reelring_volume_quarantined_blobs", "Blobs refused because they are damaged", quarantined);
    let corrupt = stats.corrupt_blocks_total;
    counter(text, "reelring_corrupt_blocks", "Blocks and footers that did not match their checksum", corrupt);
    counter_head(text, "reelring_storage_reads", "Reads of blobs by path");
    let _ = writeln!(text, "reelring_storage_reads_total{{path=\"mmap\"}} {}", stats.reads_mmap_total);
    let _ = writeln!(text, "reelring_storage_reads_total{{path=\"reactor\"}} {}", stats.reads_reactor_total);
    let renewed = stats.renewed_stretches_total;
    counter(text, "reelring_storage_renewed_stretches", "Hot stretches that were read again into large pages", renewed);
    gauge(text, "reelring_storage_buffer_bytes", "Bytes of buffers in use", stats.buffer_bytes);
    counter_head(
        text,
        "reelring_storage_buffer_waits",
        "Times a buffer had to be waited for, by what there was too little of",
    );
    let _ = writeln!(text, "reelring_storage_buffer_waits_total{{for=\"room\"}} {}", stats.waits_for_room_total);
    let _ = writeln!(text, "reelring_storage_buffer_waits_total{{for=\"share\"}} {}", stats.waits_for_share_total);
    volumes(text, &stats.volumes);
}

fn volumes(text: &mut String, volumes: &[VolumeStats]) {
    type Value = fn(&VolumeStats) -> Option<u64>;
    let families: [(&str, &str, Value); 8] = [
        ("reelring_volume_bytes", "Size of the volume's file system", |v| v.bytes),
        ("reelring_volume_free_bytes", "What is free on it", |v| v.free_bytes),
        ("reelring_volume_available_bytes", "What may still be stored", |v| Some(v.available_bytes)),
        ("reelring_volume_reserved_bytes", "Promised to uploads and not allocated yet", |v| Some(v.reserved_bytes)),
        ("reelring_volume_used_bytes", "Lengths of the stored blobs", |v| Some(v.used_bytes)),
        ("reelring_volume_low", "1 when little room is left", |v| Some(v.low.into())),
        ("reelring_volume_degraded", "1 when it failed and takes no writes", |v| {
            Some((v.state == VolumeState::Degraded).into())
        }),
        ("reelring_volume_missing", "1 when it cannot be reached", |v| Some((v.state == VolumeState::Missing).into())),
    ];
    for (name, help, value) in families {
        gauge_head(text, name, help);
        for volume in volumes {
            if let Some(value) = value(volume) {
                let _ = writeln!(text, "{name}{{volume=\"{}\"}} {value}", volume.number);
            }
        }
    }
}

fn gauge(text: &mut String, name: &str, help: &str, value: u64) {
    gauge_head(text, name, help);
    let _ = writeln!(text, "{name} {value}");
}

fn gauge_head(text: &mut String, name: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} gauge");
}

fn counter(text: &mut String, name: &str, help: &str, value: u64) {
    counter_head(text, name, help);
    let _ = writeln!(text, "{name}_total {value}");
}

fn counter_head(text: &mut String, name: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} counter");
}
