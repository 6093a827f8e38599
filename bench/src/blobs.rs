//! The store as the node uses it: one large object in and out, many small ones at once.
//!
//! Hashing, checksums and the durable protocol are part of what is measured; HTTP is not.

use std::fmt;
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures_util::StreamExt;
use hdrhistogram::Histogram;
use reelring_storage::{BlobId, BlobMeta, EngineChoice, Key, Precondition, Store, StoreOptions};
use serde::Serialize;

use crate::measure::cpu_time;

pub struct Plan {
    pub engine: EngineChoice,
    pub size: u64,
    pub puts: u64,
    pub put_size: usize,
    pub connections: u64,
}

#[derive(Serialize)]
pub struct Outcome {
    engine: &'static str,
    size: u64,
    large_put: Phase,
    large_get_hot: Phase,
    large_get_cold: Phase,
    reads_hot: u64,
    reads_cold: u64,
    small: SmallPuts,
    rss_idle_mib: f64,
    rss_peak_mib: f64,
}

#[derive(Serialize)]
struct Phase {
    seconds: f64,
    mib_per_second: f64,
    cpu_ms_per_gib: f64,
}

#[derive(Serialize)]
struct SmallPuts {
    count: u64,
    bytes: usize,
    connections: u64,
    per_second: f64,
    latency_ms_median: f64,
    latency_ms_p99: f64,
    syncs: u64,
}

pub async fn run(dir: &Path, plan: &Plan) -> anyhow::Result<Outcome> {
    let options = StoreOptions { dir: dir.join("store"), engine: plan.engine, node_migrations: &[] };
    let store = Store::open(options).await?;
    let rss_idle_mib = memory_mib("VmRSS")?;

    let (large_put, blob) = timed(plan.size, put_large(&store, plan.size)).await?;
    let (large_get_hot, ()) = timed(plan.size, get(&store, blob, plan.size)).await?;
    evict(&store, blob).await?;
    let (large_get_cold, ()) = timed(plan.size, get(&store, blob, plan.size)).await?;
    let stats = store.stats();
    let small = small_puts(&store, plan).await?;
    let outcome = Outcome {
        engine: store.engine().name,
        size: plan.size,
        large_put,
        large_get_hot,
        large_get_cold,
        reads_hot: stats.reads_mmap_total,
        reads_cold: stats.reads_reactor_total,
        small,
        rss_idle_mib,
        rss_peak_mib: memory_mib("VmHWM")?,
    };
    store.close().await?;
    Ok(outcome)
}

async fn timed<T>(bytes: u64, task: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<(Phase, T)> {
    let (started, cpu) = (Instant::now(), cpu_time());
    let value = task.await?;
    let (took, cpu) = (started.elapsed().as_secs_f64(), (cpu_time() - cpu).as_secs_f64());
    let mib = bytes as f64 / f64::from(1 << 20);
    Ok((Phase { seconds: took, mib_per_second: mib / took, cpu_ms_per_gib: cpu * 1000.0 / (mib / 1024.0) }, value))
}

/// In pieces such as a socket delivers, each with its own bytes.
async fn put_large(store: &Store, size: u64) -> anyhow::Result<BlobId> {
    let mut writer = store.create(BlobMeta { length_hint: Some(size), ..Default::default() }).await?;
    let mut piece = vec![0u8; 256 * 1024];
    let mut at = 0;
    while at < size {
        writer.ready().await?;
        for (word, line) in piece.chunks_exact_mut(512).enumerate() {
            line[..8].copy_from_slice(&(at + word as u64).to_le_bytes());
        }
        let len = (piece.len() as u64).min(size - at) as usize;
        writer.write(Bytes::copy_from_slice(&piece[..len])).await?;
        at += len as u64;
    }
    let sealed = writer.seal().await?;
    Ok(store.put_object(&Key::parse("large")?, sealed, Precondition::None).await?.record.blob)
}

async fn get(store: &Store, blob: BlobId, size: u64) -> anyhow::Result<()> {
    let reader = store.open_blob(blob).await?;
    let mut stream = pin!(reader.stream(0..size));
    let mut read = 0;
    while let Some(chunk) = stream.next().await {
        // Every page is touched, as a copy into a socket would.
        let chunk = chunk?;
        let touched: u64 = chunk.chunks(4096).map(|page| u64::from(page[0])).sum();
        std::hint::black_box(touched);
        read += chunk.len() as u64;
    }
    ensure!(read == size, "{read} of {size} bytes came back");
    Ok(())
}

async fn evict(store: &Store, blob: BlobId) -> anyhow::Result<()> {
    let reader = store.open_blob(blob).await?;
    tokio::task::spawn_blocking(move || {
        reader.file().sync_all()?;
        rustix::fs::fadvise(reader.file(), 0, None, rustix::fs::Advice::DontNeed)?;
        anyhow::Ok(())
    })
    .await?
}

async fn small_puts(store: &Store, plan: &Plan) -> anyhow::Result<SmallPuts> {
    let syncs = || store.stats().ops.iter().find(|op| op.op == "sync").map_or(0, |op| op.total);
    let (before, started) = (syncs(), Instant::now());
    let mut tasks = tokio::task::JoinSet::new();
    for connection in 0..plan.connections {
        let (store, data) = (store.clone(), Bytes::from(vec![connection as u8; plan.put_size]));
        let keys: Vec<u64> = (connection..plan.puts).step_by(plan.connections as usize).collect();
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            for key in keys {
                let started = Instant::now();
                let key = Key::parse(&format!("small/{key}"))?;
                let meta = BlobMeta { length_hint: Some(data.len() as u64), ..Default::default() };
                let mut writer = store.create(meta).await?;
                writer.ready().await?;
                writer.write(data.clone()).await?;
                store.put_object(&key, writer.seal().await?, Precondition::None).await?;
                latencies.push(started.elapsed());
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = Histogram::<u64>::new(3)?;
    while let Some(task) = tasks.join_next().await {
        for latency in task?? {
            latencies.record(latency.as_micros() as u64)?;
        }
    }
    let took: Duration = started.elapsed();
    Ok(SmallPuts {
        count: plan.puts,
        bytes: plan.put_size,
        connections: plan.connections,
        per_second: plan.puts as f64 / took.as_secs_f64(),
        latency_ms_median: latencies.value_at_quantile(0.5) as f64 / 1000.0,
        latency_ms_p99: latencies.value_at_quantile(0.99) as f64 / 1000.0,
        syncs: syncs() - before,
    })
}

fn memory_mib(field: &str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("/proc/self/status has no {field}"))? / 1024.0)
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "engine {}; one object of {} MiB", self.engine, self.size >> 20)?;
        for (name, phase) in [
            ("put, durable", &self.large_put),
            ("get, page cache", &self.large_get_hot),
            ("get, from disk", &self.large_get_cold),
        ] {
            let Phase { seconds, mib_per_second, cpu_ms_per_gib } = phase;
            writeln!(f, "  {name:<16} {mib_per_second:>6.0} MiB/s  {seconds:.2} s  {cpu_ms_per_gib:.0} ms CPU/GiB")?;
        }
        writeln!(f, "  reads: {} mapped, {} through the engine", self.reads_hot, self.reads_cold)?;
        let small = &self.small;
        writeln!(f, "{} puts of {} bytes by {} writers", small.count, small.bytes, small.connections)?;
        writeln!(
            f,
            "  {:.0} /s, latency p50 {:.1} ms, p99 {:.1} ms, {} syncs of files and directories",
            small.per_second, small.latency_ms_median, small.latency_ms_p99, small.syncs
        )?;
        writeln!(f, "resident: {:.1} MiB idle, {:.1} MiB at the peak", self.rss_idle_mib, self.rss_peak_mib)
    }
}
