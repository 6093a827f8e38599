//! One read at a time: through the bridge, and by `pread` on the same thread.
//!
//! The bridge costs two thread switches. With no pause between reads the processors stay awake;
//! with one, every read also wakes a sleeping reactor on a sleeping processor, as on an idle node.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use anyhow::ensure;
use hdrhistogram::Histogram;
use reelring_storage::{Bridge, How, Pool};
use serde::Serialize;

use crate::measure::{Offsets, Spread, Target, alternate};

const BS: usize = 4096;

#[derive(Clone, Copy)]
pub struct Case {
    name: &'static str,
    direct: bool,
    pause: Duration,
}

#[derive(Serialize)]
pub struct Compared {
    pub case: &'static str,
    pub bridge_us: Spread,
    pub pread_us: Spread,
    pub bridge_p99_us: f64,
    pub pread_p99_us: f64,
    /// Median through the bridge less median by pread.
    pub added_us: f64,
}

pub fn cases(direct: bool) -> Vec<Case> {
    let pause = Duration::from_millis(1);
    let mut cases = vec![
        Case { name: "page cache", direct: false, pause: Duration::ZERO },
        Case { name: "page cache, 1 ms apart", direct: false, pause },
    ];
    if direct {
        cases.push(Case { name: "O_DIRECT", direct: true, pause: Duration::ZERO });
        cases.push(Case { name: "O_DIRECT, 1 ms apart", direct: true, pause });
    }
    cases
}

struct Round {
    median_us: f64,
    p99_us: f64,
}

pub async fn compare(bridge: &Bridge, target: &Target, case: Case) -> anyhow::Result<Compared> {
    if !case.direct {
        // Everything in the page cache, whatever was evicted before.
        drop(std::fs::read(&target.path)?);
    }
    let (bridged, plain) =
        alternate(target.rounds, || through_bridge(bridge, target, case), || by_pread(target, case)).await?;
    let spread = |rounds: &[Round], f: fn(&Round) -> f64| Spread::of(rounds.iter().map(f).collect());
    let (bridge_us, pread_us) = (spread(&bridged, |r| r.median_us), spread(&plain, |r| r.median_us));
    Ok(Compared {
        case: case.name,
        bridge_us,
        pread_us,
        bridge_p99_us: spread(&bridged, |r| r.p99_us).median,
        pread_p99_us: spread(&plain, |r| r.p99_us).median,
        added_us: bridge_us.median - pread_us.median,
    })
}

async fn through_bridge(bridge: &Bridge, target: &Target, case: Case) -> anyhow::Result<Round> {
    let how = if case.direct { How::ReadDirect } else { How::Read };
    let file = bridge.open(&target.path, how).await?;
    let (bridge, round, offsets) = (bridge.clone(), target.round, Offsets::new(target, BS, 1));
    // On a worker of the runtime, where a request handler would be, not on the main thread.
    let task = tokio::spawn(async move {
        let pool = Pool::new(BS);
        let mut latencies = Histogram::<u64>::new(3)?;
        let deadline = Instant::now() + round;
        for offset in offsets {
            let before = Instant::now();
            let buffer = bridge.read(&file, pool.take(BS).await, offset, BS).await?;
            latencies.record(before.elapsed().as_nanos() as u64)?;
            ensure!(buffer.len() == BS, "a read at {offset} came back short");
            if !case.pause.is_zero() {
                tokio::time::sleep(case.pause).await;
            }
            if before >= deadline {
                break;
            }
        }
        anyhow::Ok(latencies)
    });
    Ok(Round::of(&task.await??))
}

async fn by_pread(target: &Target, case: Case) -> anyhow::Result<Round> {
    let flags = if case.direct { O_DIRECT } else { 0 };
    let file = File::options().read(true).custom_flags(flags).open(&target.path)?;
    let (round, offsets) = (target.round, Offsets::new(target, BS, 1));
    let task = tokio::task::spawn_blocking(move || {
        // Aligned for O_DIRECT.
        let mut memory = vec![0u8; 2 * BS];
        let start = memory.as_ptr().align_offset(BS);
        let buffer = &mut memory[start..start + BS];
        let mut latencies = Histogram::<u64>::new(3)?;
        let deadline = Instant::now() + round;
        for offset in offsets {
            let before = Instant::now();
            let read = file.read_at(buffer, offset)?;
            latencies.record(before.elapsed().as_nanos() as u64)?;
            ensure!(read == BS, "a pread of descriptor {} came back short", file.as_raw_fd());
            if !case.pause.is_zero() {
                std::thread::sleep(case.pause);
            }
            if before >= deadline {
                break;
            }
        }
        anyhow::Ok(latencies)
    });
    Ok(Round::of(&task.await??))
}

/// The same on every architecture this runs on but sparc and alpha.
const O_DIRECT: i32 = 0o40000;

impl Round {
    fn of(latencies: &Histogram<u64>) -> Round {
        let us = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
        Round { median_us: us(0.5), p99_us: us(0.99) }
    }
}
