//! The two kinds of pass, and the clients in them.
//!
//! Cold clients are threads that end with their pass; the hot ones are tasks, awaited before it ends.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use hdrhistogram::Histogram;
use rustix::fs::{Advice, fadvise};
use tokio::runtime::Handle;

use super::site::{Object, Objects, Site};
use super::{HOT_BYTES, Shape};
use crate::compare::nginx::cold;
use crate::compare::node::http;
use crate::compare::stop;
use crate::compare::usage;
use crate::engine::{Block, Engine, Http};
use crate::limits;
use crate::plan::Op;
use crate::run::{Pause, Usage};

/// Bytes of a hot request.
pub const RANGE_BYTES: u32 = 64 << 10;
/// Of the cold set that may be in memory when a pass begins.
const RESIDENT_MAX: f64 = 0.02;

/// One pass: latencies of its hot requests, and what was used.
pub struct Pass {
    pub latencies: Histogram<u64>,
    pub seconds: f64,
    pub server: usage::Usage,
    /// Of this process, which is all clients.
    pub client_cpu_seconds: f64,
}

/// What a loaded pass saw besides.
pub struct Load {
    /// Streamed, and the time in which that was counted.
    pub bytes: u64,
    pub seconds: f64,
    /// Share of the time in which it was busy, and MiB/s that it read.
    pub disk: Option<(f64, f64)>,
    pub resident_at_start: f64,
    pub hot_resident: f64,
    /// How often its streams began each object, in the mean: above 1 some were asked for again.
    pub times: f64,
}

impl Load {
    pub fn mib_per_second(&self) -> f64 {
        self.bytes as f64 / f64::from(1 << 20) / self.seconds
    }
}

/// What stays the same from pass to pass.
pub struct Bench<'a> {
    shape: Shape,
    runtime: Handle,
    site: Site<'a>,
    http: Http,
    /// The bytes of the hot object.
    hot: Arc<Vec<u8>>,
    device: Option<(u32, u32)>,
}

impl<'a> Bench<'a> {
    pub fn new(shape: Shape, runtime: Handle, site: Site<'a>, hot: Arc<Vec<u8>>) -> anyhow::Result<Bench<'a>> {
        let device = site.objects.hot.file.metadata()?.dev();
        let device = (rustix::fs::major(device), rustix::fs::minor(device));
        let device = disk(device).map(|_| device);
        let http = Http::of_targets(&site.peer.address().to_string(), vec![site.objects.hot.target.clone()]);
        Ok(Bench { shape, runtime, site, http, hot, device })
    }

    /// The hot clients alone.
    pub fn quiet(&self) -> anyhow::Result<Pass> {
        let (since, ours) = (Instant::now(), Usage::of_process());
        let (latencies, server) = self.site.peer.measure(|| self.runtime.block_on(self.hot_clients()))?;
        let (seconds, ours) = (since.elapsed().as_secs_f64(), Usage::of_process() - ours);
        let client_cpu_seconds = (ours.user + ours.system).as_secs_f64();
        Ok(Pass { latencies, seconds, server, client_cpu_seconds })
    }

    /// The hot clients beside the cold ones.
    pub fn loaded(&self) -> anyhow::Result<(Pass, Load)> {
        if !self.shape.warm {
            self.drop_cold()?;
        }
        let streams = Streams::default();
        let (pass, (before, after)) = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..self.shape.cold_clients)
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
        let times = started / self.site.objects.cold.len() as f64;
        let load = Load {
            bytes: after.1 - before.1,
            seconds,
            disk,
            resident_at_start: streams.resident_millionths.load(Relaxed) as f64 / 1e6 / started,
            times,
            hot_resident: cold::resident(&self.site.objects.hot.file)?,
        };
        Ok((pass, load))
    }

    /// Empties the page cache of the cold set, and makes sure.
    fn drop_cold(&self) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            let mut resident = 0.0;
            let all = &self.site.objects.cold;
            for Object { file, .. } in all {
                fadvise(file, 0, None, Advice::DontNeed)?;
                resident += cold::resident(file)? / all.len() as f64;
            }
            // Pages that a server sent by sendfile stay until the kernel frees the buffers of the sockets they went to.
            let bytes = resident * (all.len() as u64 * self.shape.cold_object) as f64;
            let held = since.elapsed() > limits::EVICT / 5 && bytes <= cold::RESIDENT_BYTES_MAX;
            if resident <= RESIDENT_MAX || held {
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
            let Objects { cold: all, begun, .. } = self.site.objects;
            let Object { target, file } = &all[begun.fetch_add(1, Relaxed) % all.len()];
            self.forget(file)?;
            streams.resident_millionths.fetch_add((cold::resident(file)? * 1e6) as u64, Relaxed);
            streams.started.fetch_add(1, Relaxed);
            let mut read = 0;
            let answer = http::request(self.site.peer.address(), "GET", target, &[], None)?.expect(200)?;
            answer.discard(|arrived| {
                read += arrived as u64;
                streams.bytes.fetch_add(arrived as u64, Relaxed);
                Ok(!streams.over.load(Relaxed))
            })?;
            let whole = read == self.shape.cold_object || streams.over.load(Relaxed);
            ensure!(whole, "{target} ended after {read} of {} bytes", self.shape.cold_object);
            self.forget(file)?;
        }
        Ok(())
    }

    fn forget(&self, file: &File) -> anyhow::Result<()> {
        if !self.shape.warm {
            fadvise(file, 0, None, Advice::DontNeed)?;
        }
        Ok(())
    }

    /// Request `n` is due `n / rate` seconds after the start; client `n % clients` sends it.
    async fn hot_clients(&self) -> anyhow::Result<Histogram<u64>> {
        let (requests, clients) = (self.shape.requests(), u64::from(self.shape.clients));
        let start = Instant::now() + Duration::from_millis(20);
        let mut tasks = tokio::task::JoinSet::new();
        for client in 0..clients {
            let (http, hot, rate) = (self.http.clone(), Arc::clone(&self.hot), f64::from(self.shape.rate));
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
