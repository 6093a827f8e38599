//! The two kinds of pass, and the clients in them.
//!
//! Cold clients are threads that end with their pass; the hot ones are tasks, awaited before it ends.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use hdrhistogram::Histogram;
use rustix::fs::{Advice, fadvise};
use tokio::runtime::Runtime;

use super::MixedArgs;
use crate::compare::nginx::cold;
use crate::compare::node::{self, Node, http};
use crate::compare::stop;
use crate::engine::{Block, Engine, Http};
use crate::limits;
use crate::plan::Op;
use crate::run::{Pause, Usage};

const HOT_BYTES: u64 = 1 << 20;
const RANGE_BYTES: u32 = 64 << 10;
/// Of the cold set that may be in memory when a pass begins.
const RESIDENT_MAX: f64 = 0.02;

/// One pass: latencies of its hot requests, and processors that were used.
pub struct Pass {
    pub latencies: Histogram<u64>,
    pub node_cpus: f64,
    pub client_cpus: f64,
}

/// What a loaded pass saw besides.
pub struct Load {
    pub mib_per_second: f64,
    /// Share of the time in which it was busy, and MiB/s that it read.
    pub disk: Option<(f64, f64)>,
    pub resident_at_start: f64,
    pub hot_resident: f64,
}

/// What stays the same from pass to pass.
pub struct Bench<'a> {
    args: &'a MixedArgs,
    runtime: &'a Runtime,
    node: &'a Node,
    http: Http,
    /// The bytes of the hot object.
    hot: Arc<Vec<u8>>,
    hot_file: File,
    /// Key and blob file of each cold object.
    cold: Vec<(String, File)>,
    next: AtomicUsize,
    device: Option<(u32, u32)>,
}

impl<'a> Bench<'a> {
    pub fn fill(
        args: &'a MixedArgs,
        runtime: &'a Runtime,
        node: &'a Node,
        scratch: &Path,
        objects: u64,
    ) -> anyhow::Result<Bench<'a>> {
        let (source, data) = (scratch.join("source"), scratch.join("data"));
        let mut known = BTreeSet::new();
        // Which blob is whose: the one that was not there before.
        let mut store = |key: &str, bytes: u64, seed: u64| {
            node::noise_file(&source, bytes, seed)?;
            node.put(key, &source)?;
            let mut new = node::blobs(&data, bytes)?.into_iter().filter(|path| known.insert(path.clone()));
            let (Some(path), None) = (new.next(), new.next()) else {
                return Err(anyhow!("after {key} was stored there is not one new blob of {bytes} bytes below blobs/"));
            };
            File::open(&path).with_context(|| path.display().to_string())
        };
        let hot_file = store("hot", HOT_BYTES, 1)?;
        let hot = Arc::new(std::fs::read(&source)?);
        let mut cold = Vec::new();
        for number in 0..objects {
            stop::check()?;
            let key = format!("cold/{number}");
            let file = store(&key, args.cold_object, number + 2)?;
            cold.push((key, file));
        }
        std::fs::remove_file(&source)?;
        let device = data.metadata()?.dev();
        let device = (rustix::fs::major(device), rustix::fs::minor(device));
        let device = disk(device).map(|_| device);
        let http = Http::new(&node.addr().to_string(), &["hot".to_owned()]);
        Ok(Bench { args, runtime, node, http, hot, hot_file, cold, next: AtomicUsize::new(0), device })
    }

    /// The hot clients alone.
    pub fn quiet(&self) -> anyhow::Result<Pass> {
        let (since, ours) = (Instant::now(), Usage::of_process());
        let (latencies, node) = self.node.measure(|| self.runtime.block_on(self.hot_clients()))?;
        let (seconds, ours) = (since.elapsed().as_secs_f64(), Usage::of_process() - ours);
        let client_cpus = (ours.user + ours.system).as_secs_f64() / seconds;
        Ok(Pass { latencies, node_cpus: node.cpu_seconds / seconds, client_cpus })
    }

    /// The hot clients beside the cold ones.
    pub fn loaded(&self) -> anyhow::Result<(Pass, Load)> {
        if !self.args.warm {
            self.drop_cold()?;
        }
        let streams = Streams::default();
        let (pass, (before, after)) = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..self.args.cold_clients)
                .map(|_| scope.spawn(|| self.cold_client(&streams).inspect_err(|_| streams.over.store(true, Relaxed))))
                .collect();
            let pass = (|| {
                let since = Instant::now();
                while streams.bytes.load(Relaxed) == 0 && !streams.over.load(Relaxed) {
                    stop::check()?;
                    ensure!(since.elapsed() < limits::HTTP_SILENCE, "no cold byte after {:?}", since.elapsed());
                    std::thread::sleep(Duration::from_millis(1));
                }
                let now = || (Instant::now(), streams.bytes.load(Relaxed), self.device.and_then(disk));
                let before = now();
                Ok((self.quiet()?, (before, now())))
            })();
            streams.over.store(true, Relaxed);
            for client in clients {
                // Why a cold client failed explains what the pass made of it.
                client.join().map_err(|_| anyhow!("a cold client panicked"))?.context("a cold client")?;
            }
            pass
        })?;
        let seconds = (after.0 - before.0).as_secs_f64();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20) / seconds;
        let disk = before.2.zip(after.2).map(|(before, after)| {
            let busy = (after.busy_ms - before.busy_ms) as f64 / 1000.0 / seconds;
            (busy.min(1.0), mib((after.sectors_read - before.sectors_read) * 512))
        });
        let started = streams.started.load(Relaxed).max(1) as f64;
        let load = Load {
            mib_per_second: mib(after.1 - before.1),
            disk,
            resident_at_start: streams.resident_millionths.load(Relaxed) as f64 / 1e6 / started,
            hot_resident: cold::resident(&self.hot_file)?,
        };
        Ok((pass, load))
    }

    /// Empties the page cache of the cold set, and makes sure.
    fn drop_cold(&self) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            let mut resident = 0.0;
            for (_, file) in &self.cold {
                fadvise(file, 0, None, Advice::DontNeed)?;
                resident += cold::resident(file)? / self.cold.len() as f64;
            }
            if resident <= RESIDENT_MAX {
                return Ok(());
            }
            let stayed = resident * 100.0;
            ensure!(
                since.elapsed() < limits::EVICT,
                "{stayed:.1} % of the cold set stayed in the page cache: it lies on tmpfs; choose another --dir"
            );
            stop::check()?;
            std::thread::sleep(limits::POLL);
        }
    }

    /// Streams one cold object after the other, each dropped from the page cache before and after.
    fn cold_client(&self, streams: &Streams) -> anyhow::Result<()> {
        while !streams.over.load(Relaxed) {
            let (key, file) = &self.cold[self.next.fetch_add(1, Relaxed) % self.cold.len()];
            self.forget(file)?;
            streams.resident_millionths.fetch_add((cold::resident(file)? * 1e6) as u64, Relaxed);
            streams.started.fetch_add(1, Relaxed);
            let mut read = 0;
            let answer = http::request(self.node.addr(), "GET", &node::object(key), &[], None)?.expect(200)?;
            answer.follow(|piece| {
                read += piece.len() as u64;
                streams.bytes.fetch_add(piece.len() as u64, Relaxed);
                Ok(!streams.over.load(Relaxed))
            })?;
            let whole = read == self.args.cold_object || streams.over.load(Relaxed);
            ensure!(whole, "{key} ended after {read} of {} bytes", self.args.cold_object);
            self.forget(file)?;
        }
        Ok(())
    }

    fn forget(&self, file: &File) -> anyhow::Result<()> {
        if !self.args.warm {
            fadvise(file, 0, None, Advice::DontNeed)?;
        }
        Ok(())
    }

    /// Request `n` is due `n / rate` seconds after the start; client `n % clients` sends it.
    async fn hot_clients(&self) -> anyhow::Result<Histogram<u64>> {
        let (requests, clients) = (self.args.requests(), u64::from(self.args.clients));
        let start = Instant::now() + Duration::from_millis(20);
        let mut tasks = tokio::task::JoinSet::new();
        for client in 0..clients {
            let (http, hot, rate) = (self.http.clone(), Arc::clone(&self.hot), f64::from(self.args.rate));
            tasks.spawn(async move {
                let (pause, mut block) = (Pause::new()?, Block::new(RANGE_BYTES as usize));
                let mut latencies = Vec::new();
                for request in (client..requests).step_by(clients as usize) {
                    stop::check()?;
                    let due = start + Duration::from_secs_f64(request as f64 / rate);
                    // Every range of the object in turn, in an order that is no stride.
                    let offset = (request * 7 % (HOT_BYTES / u64::from(RANGE_BYTES))) * u64::from(RANGE_BYTES);
                    pause.until(due).await;
                    let read = http.start(Op::Read { file: 0, offset, len: RANGE_BYTES }, block);
                    let done = tokio::time::timeout(limits::HTTP_SILENCE, read).await;
                    let done = done.with_context(|| format!("a hot read took over {:?}", limits::HTTP_SILENCE))?;
                    latencies.push(due.elapsed());
                    done.result.context("a hot read")?;
                    block = done.block;
                    let expected = &hot[offset as usize..][..RANGE_BYTES as usize];
                    ensure!(block.bytes() == expected, "a hot read at {offset} brought other bytes");
                }
                anyhow::Ok(latencies)
            });
        }
        let mut all = Histogram::new_with_bounds(1, limits::LATENCY_NS, 3)?;
        while let Some(latencies) = tasks.join_next().await {
            for latency in latencies?? {
                all.saturating_record(latency.as_nanos() as u64);
            }
        }
        ensure!(all.len() == requests, "{} of {requests} hot requests were answered", all.len());
        Ok(all)
    }
}

/// What the cold clients of a pass share.
#[derive(Default)]
struct Streams {
    over: AtomicBool,
    bytes: AtomicU64,
    started: AtomicU64,
    resident_millionths: AtomicU64,
}

struct Disk {
    sectors_read: u64,
    /// `io_ticks`: while at least one request was under way.
    busy_ms: u64,
}

/// A device's line of /proc/diskstats, which not every file system has.
fn disk((major, minor): (u32, u32)) -> Option<Disk> {
    let stats = std::fs::read_to_string("/proc/diskstats").ok()?;
    stats.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words.get(at)?.parse::<u64>().ok();
        (number(0)? == u64::from(major) && number(1)? == u64::from(minor)).then_some(())?;
        Some(Disk { sectors_read: number(5)?, busy_ms: number(12)? })
    })
}
