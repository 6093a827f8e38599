//! `store`: the store as the node uses it, one large object in and out, many small ones at once.
//!
//! Hashing, checksums and the durable protocol are part of what is measured; HTTP is not. Owns a scratch folder under
//! `--dir`, removed when it ends.

use std::fmt;
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::Args;
use futures_util::StreamExt;
use hdrhistogram::Histogram;
use reelring_storage::{BlobId, BlobMeta, EngineChoice, Key, Precondition, Store, StoreOptions};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::picture::{Table, figures, units};

#[derive(Args)]
pub struct StoreArgs {
    /// The bridge's engine: auto, uring or threads
    #[arg(long, default_value = "auto")]
    engine: EngineChoice,
    /// Where the store goes; choose the volume to measure
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Size of the large object
    #[arg(long, default_value = "4g", value_parser = parse_bytes)]
    size: u64,
    /// How many small objects
    #[arg(long, default_value_t = 1000)]
    puts: u64,
    /// Bytes of a small object, at most 1m
    #[arg(long, default_value = "64k", value_parser = parse_bytes)]
    put_size: u64,
    /// Writers of small objects at once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1024))]
    connections: u64,
    /// Blobs of this size go past the page cache, where the file system allows it [default: the store's own]
    #[arg(long, value_parser = parse_bytes)]
    direct_from: Option<u64>,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Serialize, Deserialize)]
pub struct Outcome {
    engine: String,
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

#[derive(Serialize, Deserialize)]
struct Phase {
    seconds: f64,
    mib_per_second: f64,
    cpu_ms_per_gib: f64,
}

#[derive(Serialize, Deserialize)]
struct SmallPuts {
    count: u64,
    bytes: usize,
    connections: u64,
    per_second: f64,
    latency_ms_median: f64,
    latency_ms_p99: f64,
    syncs: u64,
}

pub fn main(args: &StoreArgs, runtime: &tokio::runtime::Runtime) -> anyhow::Result<ExitCode> {
    let outcome = runtime.block_on(run(args))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&outcome)?);
    } else {
        print!("{outcome}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn run(args: &StoreArgs) -> anyhow::Result<Outcome> {
    ensure!(args.put_size <= 1 << 20, "--put-size {} is over 1m", args.put_size);
    let scratch = tempfile::Builder::new().prefix("reelring-bench-").tempdir_in(&args.dir);
    let scratch = scratch.with_context(|| format!("could not make a scratch folder in {}", args.dir.display()))?;
    let mut options = StoreOptions { engine: args.engine, ..StoreOptions::new(scratch.path().join("store")) };
    options.direct_from = args.direct_from.unwrap_or(options.direct_from);
    let store = Store::open(options).await?;
    let rss_idle_mib = memory_mib("VmRSS")?;

    let (large_put, blob) = timed(args.size, put_large(&store, args.size)).await?;
    let (large_get_hot, ()) = timed(args.size, get(&store, blob, args.size)).await?;
    evict(&store, blob).await?;
    let (large_get_cold, ()) = timed(args.size, get(&store, blob, args.size)).await?;
    let stats = store.stats();
    let small = small_puts(&store, args).await?;
    let outcome = Outcome {
        engine: store.engine().name.to_owned(),
        size: args.size,
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

async fn small_puts(store: &Store, args: &StoreArgs) -> anyhow::Result<SmallPuts> {
    // Of files, of directories, and of the whole volume.
    let syncs = || store.stats().ops.iter().filter(|op| op.op.starts_with("sync")).map(|op| op.total).sum::<u64>();
    let (before, started) = (syncs(), Instant::now());
    let mut tasks = tokio::task::JoinSet::new();
    for connection in 0..args.connections {
        let (store, data) = (store.clone(), Bytes::from(vec![connection as u8; args.put_size as usize]));
        let keys: Vec<u64> = (connection..args.puts).step_by(args.connections as usize).collect();
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
        count: args.puts,
        bytes: args.put_size as usize,
        connections: args.connections,
        per_second: args.puts as f64 / took.as_secs_f64(),
        latency_ms_median: latencies.value_at_quantile(0.5) as f64 / 1000.0,
        latency_ms_p99: latencies.value_at_quantile(0.99) as f64 / 1000.0,
        syncs: syncs() - before,
    })
}

pub fn memory_mib(field: &str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("/proc/self/status has no {field}"))? / 1024.0)
}

/// CPU time of the whole process.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Several runs as a table of the report.
pub fn table(outcomes: &[Outcome], command: String) -> Table {
    let over = |figure: &dyn Fn(&Outcome) -> f64| figures::spread(outcomes.iter().map(figure), units::number);
    let row = |what: &str, figure: String, unit: &str, cpu: String| vec![what.to_owned(), figure, unit.to_owned(), cpu];
    let phase = |what: &str, phase: fn(&Outcome) -> &Phase| {
        row(what, over(&|one| phase(one).mib_per_second), "MiB/s", over(&|one| phase(one).cpu_ms_per_gib))
    };
    let none = || "–".to_owned();
    let syncs = figures::spread(outcomes.iter().map(|one| one.small.syncs as f64), units::plain);
    let (large, small) = (outcomes.first().map_or(0, |one| one.size), outcomes.first().map(|one| &one.small));
    let small_name = small.map_or_else(String::new, |small| {
        format!(
            "{} puts of {} by {} writers",
            units::plain(small.count as f64),
            units::bytes(small.bytes as f64),
            small.connections
        )
    });
    let large = units::bytes(large as f64);
    Table {
        id: "store".into(),
        title: "Whole objects through the store".into(),
        command,
        notes: vec![
            "Hashing, checksums, the durable protocol and the catalog included; HTTP not. A process for each run."
                .into(),
            "The cold get comes after its pages were dropped from the page cache.".into(),
        ],
        heads: ["what", "median [min .. max]", "unit", "CPU ms/GiB"].map(str::to_owned).to_vec(),
        rows: vec![
            phase(&format!("put of {large}, durable"), |one| &one.large_put),
            phase(&format!("get of {large}, page cache"), |one| &one.large_get_hot),
            phase(&format!("get of {large}, from the disk"), |one| &one.large_get_cold),
            row(&small_name, over(&|one| one.small.per_second), "puts/s", none()),
            row("… median latency", over(&|one| one.small.latency_ms_median), "ms", none()),
            row("… p99 latency", over(&|one| one.small.latency_ms_p99), "ms", none()),
            row("… syncs of files and folders", syncs, "", none()),
            row("resident set, store open and idle", over(&|one| one.rss_idle_mib), "MiB", none()),
            row("resident set, peak of all of this", over(&|one| one.rss_peak_mib), "MiB", none()),
        ],
    }
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

/// `4096`, `4k`, `512m`, `2g`: powers of 1024, as fio reads them.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let (digits, shift) = match lower.strip_suffix(['k', 'm', 'g']) {
        Some(digits) => (
            digits,
            match lower.as_bytes()[lower.len() - 1] {
                b'k' => 10,
                b'm' => 20,
                _ => 30,
            },
        ),
        None => (&lower[..], 0),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is no size: write 4096, 4k, 512m or 2g"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} does not fit 64 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("4k"), Ok(4096));
        assert_eq!(parse_bytes("512M"), Ok(512 << 20));
        assert_eq!(parse_bytes("2g"), Ok(2 << 30));
        for bad in ["", "k", "4kb", "-1", "99999999999g"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
