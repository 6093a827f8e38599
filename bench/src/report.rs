//! The results, for people and as JSON.

use std::fmt;

use reelring_storage::EngineInfo;
use serde::Serialize;

use crate::latency::Compared;
use crate::measure::{Spread, Target};
use crate::throughput::{Reads, Side, Written};

#[derive(Serialize)]
pub struct Report {
    engine: &'static str,
    engine_reason: String,
    kernel: String,
    cpus: usize,
    fio: Option<String>,
    size: u64,
    bs: usize,
    iodepth: usize,
    round_seconds: f64,
    rounds: u32,
    direct: bool,
    write: Option<Written>,
    random_read: Option<Reads>,
    latency: Vec<Compared>,
    idle_cpu_percent: Option<f64>,
}

impl Report {
    pub fn new(target: &Target, engine: &EngineInfo, fio: Option<String>) -> Report {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Report {
            engine: engine.name,
            engine_reason: engine.reason.clone(),
            kernel: kernel.trim().into(),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            fio,
            size: target.size,
            bs: target.bs,
            iodepth: target.iodepth,
            round_seconds: target.round.as_secs_f64(),
            rounds: target.rounds,
            direct: target.direct,
            write: None,
            random_read: None,
            latency: Vec::new(),
            idle_cpu_percent: None,
        }
    }

    pub fn add_write(&mut self, written: Written) {
        self.write = Some(written);
    }

    pub fn add_reads(&mut self, reads: Reads) {
        self.random_read = Some(reads);
    }

    pub fn add_latency(&mut self, compared: Compared) {
        self.latency.push(compared);
    }

    pub fn set_idle(&mut self, percent: f64) {
        self.idle_cpu_percent = Some(percent);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "engine {} ({}), Linux {}, {} CPUs", self.engine, self.engine_reason, self.kernel, self.cpus)?;
        let cache = if self.direct { "O_DIRECT" } else { "buffered" };
        writeln!(
            f,
            "file of {} MiB, {cache}; {} rounds of {} s, A B B A; median [min .. max]\n",
            self.size >> 20,
            self.rounds,
            self.round_seconds
        )?;
        if let Some(written) = &self.write {
            let mib = |s: &Spread| scaled(s, 1.0 / f64::from(1 << 20), 0);
            writeln!(f, "sequential write, 1 MiB, 4 in flight, fdatasync at the end (MiB/s)")?;
            writeln!(
                f,
                "  bridge        {}   {:.0} µs CPU/MiB",
                mib(&written.bridge_bytes_per_second),
                written.bridge_cpu_us_per_mib
            )?;
            match &written.fio_bytes_per_second {
                Some(fio) => {
                    writeln!(f, "  fio io_uring  {}", mib(fio))?;
                    ratio(f, &written.bridge_bytes_per_second, fio)?;
                }
                None => no_fio(f)?,
            }
        }
        if let Some(reads) = &self.random_read {
            writeln!(
                f,
                "\nrandom read, {} bytes, {} in flight (IOPS; latency p50 / p99 in µs)",
                self.bs, self.iodepth
            )?;
            let line = |f: &mut fmt::Formatter<'_>, name, side: &Side| {
                let (p50, p99) = (side.latency_us_median, side.latency_us_p99);
                write!(f, "  {name:<12}  {}   {p50:.1} / {p99:.1}", scaled(&side.iops, 1.0, 0))
            };
            line(f, "bridge", &reads.bridge)?;
            writeln!(f, "   {:.1} µs CPU/op", reads.bridge_cpu_us_per_op)?;
            match &reads.fio {
                Some(fio) => {
                    line(f, "fio io_uring", fio)?;
                    writeln!(f)?;
                    ratio(f, &reads.bridge.iops, &fio.iops)?;
                }
                None => no_fio(f)?,
            }
        }
        writeln!(f, "\none 4 KiB read at a time (µs)")?;
        for compared in &self.latency {
            writeln!(f, "  {}", compared.case)?;
            writeln!(f, "    bridge      {}   p99 {:.1}", scaled(&compared.bridge_us, 1.0, 1), compared.bridge_p99_us)?;
            writeln!(f, "    pread       {}   p99 {:.1}", scaled(&compared.pread_us, 1.0, 1), compared.pread_p99_us)?;
            writeln!(f, "    the bridge adds {:.1} µs", compared.added_us)?;
        }
        if let Some(percent) = self.idle_cpu_percent {
            writeln!(f, "\nidle: {percent:.2} % of a core")?;
        }
        Ok(())
    }
}

fn scaled(spread: &Spread, by: f64, decimals: usize) -> String {
    let Spread { median, min, max } = spread;
    format!("{:.decimals$} [{:.decimals$} .. {:.decimals$}]", median * by, min * by, max * by)
}

/// Says which was faster, or that the spread does not tell.
fn ratio(f: &mut fmt::Formatter<'_>, bridge: &Spread, fio: &Spread) -> fmt::Result {
    let overlap = bridge.min <= fio.max && fio.min <= bridge.max;
    let verdict = if overlap { " (inside the spread)" } else { "" };
    writeln!(f, "  bridge / fio  {:.2}{verdict}", bridge.median / fio.median)
}

fn no_fio(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "  fio           not run")
}
