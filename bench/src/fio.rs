//! Runs fio on the same file with the same block size, depth and flags, and reads its JSON.

use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::measure::Target;

/// fio's version, if it is installed.
pub fn version() -> Option<String> {
    let output = Command::new("fio").arg("--version").output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// One figure of one fio job.
pub struct Figures {
    pub bytes_per_second: f64,
    pub iops: f64,
    pub latency_us_median: f64,
    pub latency_us_p99: f64,
}

#[derive(Clone, Copy)]
pub enum Workload {
    SequentialWrite,
    RandomRead,
}

#[derive(Deserialize)]
struct Output {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    read: Side,
    write: Side,
}

#[derive(Deserialize)]
struct Side {
    bw_bytes: f64,
    iops: f64,
    clat_ns: Clat,
}

#[derive(Deserialize)]
struct Clat {
    #[serde(default)]
    percentile: std::collections::BTreeMap<String, f64>,
}

/// Blocks while fio runs.
pub fn run(target: &Target, workload: Workload) -> anyhow::Result<Figures> {
    let mut command = Command::new("fio");
    command.args(["--name=reelring-bench", "--ioengine=io_uring", "--output-format=json", "--thread"]);
    command.arg(format!("--filename={}", target.path.display())).arg(format!("--size={}", target.size));
    command.arg(format!("--direct={}", u8::from(target.direct)));
    match workload {
        // Overwrites the file as the bridge did, batch by batch, with one sync at the end.
        Workload::SequentialWrite => {
            command.args([
                "--rw=write",
                "--bs=1m",
                "--iodepth=4",
                "--end_fsync=1",
                "--fallocate=none",
                "--overwrite=1",
            ]);
        }
        Workload::RandomRead => {
            command.args(["--rw=randread", "--time_based", "--norandommap", "--invalidate=0"]);
            command.arg(format!("--bs={}", target.bs)).arg(format!("--iodepth={}", target.iodepth));
            command.arg(format!("--runtime={}ms", target.round.as_millis()));
        }
    }
    let output = command.stderr(Stdio::piped()).output().context("fio did not start")?;
    if !output.status.success() {
        bail!("fio ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8(output.stdout).context("fio's output is not text")?;
    // fio may put warnings before the JSON.
    let json = &text[text.find('{').context("fio printed no JSON")?..];
    let Output { mut jobs } = serde_json::from_str(json).context("fio's JSON")?;
    let Some(job) = jobs.pop() else { bail!("fio reported no job") };
    let side = match workload {
        Workload::SequentialWrite => job.write,
        Workload::RandomRead => job.read,
    };
    let percentile = |p: &str| side.clat_ns.percentile.get(p).copied().unwrap_or(0.0) / 1000.0;
    Ok(Figures {
        bytes_per_second: side.bw_bytes,
        iops: side.iops,
        latency_us_median: percentile("50.000000"),
        latency_us_p99: percentile("99.000000"),
    })
}
