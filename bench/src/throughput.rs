//! Sequential writes and random reads with many operations in flight, through the bridge and by fio.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use reelring_storage::{Bridge, How, NamedFile, Pool};
use serde::Serialize;

use crate::fio::{self, Workload};
use crate::measure::{Offsets, Spread, Target, alternate, cpu_time};

/// Bytes of one sequential write, and how many are on their way: as a blob's writer does it.
const WRITE_BYTES: usize = 1 << 20;
const WRITES_IN_FLIGHT: usize = 4;

#[derive(Serialize)]
pub struct Written {
    pub bridge_bytes_per_second: Spread,
    pub bridge_cpu_us_per_mib: f64,
    pub fio_bytes_per_second: Option<Spread>,
}

#[derive(Serialize)]
pub struct Reads {
    pub bridge: Side,
    pub bridge_cpu_us_per_op: f64,
    pub fio: Option<Side>,
}

#[derive(Serialize)]
pub struct Side {
    pub iops: Spread,
    pub latency_us_median: f64,
    pub latency_us_p99: f64,
}

struct Round {
    iops: f64,
    median_us: f64,
    p99_us: f64,
}

/// Writes the whole file and syncs it, in each round.
pub async fn write(bridge: &Bridge, target: &Target, fio: bool) -> anyhow::Result<Written> {
    let path = &target.path;
    drop(std::fs::File::create(path).with_context(|| format!("could not create {}", path.display()))?);
    // Once unmeasured: both rivals overwrite blocks that exist.
    write_once(bridge, target).await?;
    let cpu = cpu_time();
    let rounds = target.rounds;
    let (bridged, by_fio) = if fio {
        let run = || async { Ok(fio::run(target, Workload::SequentialWrite)?.bytes_per_second) };
        alternate(rounds, || write_once(bridge, target), run).await?
    } else {
        let mut bridged = Vec::new();
        for _ in 0..rounds {
            bridged.push(write_once(bridge, target).await?);
        }
        (bridged, Vec::new())
    };
    let mib = target.size as f64 / f64::from(1 << 20) * f64::from(rounds);
    Ok(Written {
        bridge_bytes_per_second: Spread::of(bridged),
        bridge_cpu_us_per_mib: (cpu_time() - cpu).as_secs_f64() * 1e6 / mib,
        fio_bytes_per_second: (!by_fio.is_empty()).then(|| Spread::of(by_fio)),
    })
}

async fn write_once(bridge: &Bridge, target: &Target) -> anyhow::Result<f64> {
    let pool = Pool::new((WRITES_IN_FLIGHT + 1) * WRITE_BYTES);
    let how = if target.direct { How::WriteDirect } else { How::Modify };
    let file = bridge.open(&target.path, how).await?;
    let started = Instant::now();
    let mut in_flight = VecDeque::new();
    let mut pattern = vec![0u8; WRITE_BYTES];
    let mut offset = 0;
    while offset < target.size {
        // Not all zeros, and not the same twice: what compresses or deduplicates must not help.
        for (at, word) in pattern.chunks_exact_mut(4096).enumerate() {
            word[..8].copy_from_slice(&(offset + at as u64).to_le_bytes());
        }
        let len = WRITE_BYTES.min((target.size - offset) as usize);
        let mut buffer = pool.take(len).await;
        buffer.fill(&pattern[..len]);
        while in_flight.len() >= WRITES_IN_FLIGHT {
            in_flight.pop_front().expect("not empty").await?;
        }
        in_flight.push_back(bridge.write(&file, buffer, offset).await?);
        offset += len as u64;
    }
    for pending in in_flight {
        pending.await?;
    }
    bridge.sync(&file).await?;
    Ok(target.size as f64 / started.elapsed().as_secs_f64())
}

pub async fn random_reads(bridge: &Bridge, target: &Target, fio: bool) -> anyhow::Result<Reads> {
    let how = if target.direct { How::ReadDirect } else { How::Read };
    let file = bridge.open(&target.path, how).await?;
    let mut cpu_us = 0.0;
    let mut ops = 0.0;
    let bridged = || {
        let (bridge, file) = (bridge.clone(), Arc::clone(&file));
        async move {
            let cpu = cpu_time();
            let round = read_round(&bridge, &file, target).await?;
            Ok((round, (cpu_time() - cpu).as_secs_f64() * 1e6))
        }
    };
    let (of_bridge, of_fio) = if fio {
        let run = || async {
            let figures = fio::run(target, Workload::RandomRead)?;
            let round =
                Round { iops: figures.iops, median_us: figures.latency_us_median, p99_us: figures.latency_us_p99 };
            Ok((round, 0.0))
        };
        alternate(target.rounds, bridged, run).await?
    } else {
        let mut rounds = Vec::new();
        for _ in 0..target.rounds {
            rounds.push(bridged().await?);
        }
        (rounds, Vec::new())
    };
    for (round, cpu) in &of_bridge {
        cpu_us += cpu;
        ops += round.iops * target.round.as_secs_f64();
    }
    ensure!(ops > 0.0, "nothing was read");
    let side = |rounds: Vec<(Round, f64)>| {
        let of = |f: fn(&Round) -> f64| Spread::of(rounds.iter().map(|(r, _)| f(r)).collect());
        Side {
            iops: of(|r| r.iops),
            latency_us_median: of(|r| r.median_us).median,
            latency_us_p99: of(|r| r.p99_us).median,
        }
    };
    Ok(Reads {
        bridge: side(of_bridge),
        bridge_cpu_us_per_op: cpu_us / ops,
        fio: (!of_fio.is_empty()).then(|| side(of_fio)),
    })
}

/// `iodepth` tasks, each with one read in flight.
async fn read_round(bridge: &Bridge, file: &Arc<NamedFile>, target: &Target) -> anyhow::Result<Round> {
    let pool = Pool::new(target.iodepth * target.bs.next_power_of_two().max(4096) * 4);
    let (started, bs) = (Instant::now(), target.bs);
    let deadline = started + target.round;
    let mut tasks = tokio::task::JoinSet::new();
    for seed in 0..target.iodepth as u64 {
        let (bridge, file, pool) = (bridge.clone(), Arc::clone(file), pool.clone());
        let offsets = Offsets::new(target, bs, seed + 1);
        tasks.spawn(async move {
            let mut latencies = Histogram::<u64>::new(3)?;
            for offset in offsets {
                let before = Instant::now();
                let buffer = bridge.read(&file, pool.take(bs).await, offset, bs).await?;
                ensure!(buffer.len() == bs, "a read at {offset} came back short");
                latencies.record(before.elapsed().as_nanos() as u64)?;
                if before >= deadline {
                    break;
                }
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = Histogram::<u64>::new(3)?;
    while let Some(of_task) = tasks.join_next().await {
        latencies.add(of_task??)?;
    }
    Ok(Round {
        iops: latencies.len() as f64 / started.elapsed().as_secs_f64(),
        median_us: latencies.value_at_quantile(0.5) as f64 / 1000.0,
        p99_us: latencies.value_at_quantile(0.99) as f64 / 1000.0,
    })
}
