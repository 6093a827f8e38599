//! Measures Reelring's storage as fio does, and beside fio.
//!
//! `run` writes a file sequentially through the bridge, reads it at random, and then sets one read
//! at a time through the bridge against the same read by `pread`. `store` measures whole objects. Every comparison alternates
//! A B B A and reports the median of the rounds with their spread; a difference inside the spread
//! is no difference.

#![allow(dead_code)] // while the rooms grow

mod blobs;
mod compare;
mod fio;
mod job;
mod latency;
mod limits;
mod measure;
mod picture;
mod plan;
mod report;
mod throughput;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand};
use reelring_storage::{Bridge, EngineChoice};

use crate::measure::Target;
use crate::report::Report;

#[derive(Parser)]
#[command(name = "reelring-bench", about = "Measures Reelring's storage, beside fio")]
struct Cli {
    /// Without one: `run` with its defaults.
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Sequential write, random read and single-read latency through the bridge.
    Run(Run),
    /// A large object in and out of a store, then many small ones at once.
    Store(StoreArgs),
    /// Set Reelring beside another program, in alternating rounds.
    #[command(subcommand)]
    Compare(compare::Compare),
}

#[derive(Args)]
struct StoreArgs {
    /// The bridge's engine: auto, uring or threads.
    #[arg(long, default_value = "auto")]
    engine: EngineChoice,
    /// Where the store goes; choose the volume to measure.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Size of the large object.
    #[arg(long, default_value = "4g", value_parser = parse_bytes)]
    size: u64,
    /// How many small objects.
    #[arg(long, default_value_t = 1000)]
    puts: u64,
    /// Bytes of a small object.
    #[arg(long, default_value = "64k", value_parser = parse_bytes)]
    put_size: u64,
    /// Writers of small objects at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1024))]
    connections: u64,
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Run {
    /// The bridge's engine: auto, uring or threads.
    #[arg(long, default_value = "auto")]
    engine: EngineChoice,
    /// Where the test file goes; choose the volume to measure.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Size of the test file.
    #[arg(long, default_value = "512m", value_parser = parse_bytes)]
    size: u64,
    /// Bytes of one random read, at most 1m.
    #[arg(long, default_value = "4k", value_parser = parse_bytes)]
    bs: u64,
    /// Random reads in flight.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=128))]
    iodepth: u16,
    /// Seconds of each round.
    #[arg(long, default_value_t = 2.0)]
    runtime: f64,
    /// Rounds of each side of a comparison.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=100))]
    rounds: u32,
    /// Past the page cache.
    #[arg(long)]
    direct: bool,
    /// Leave fio out even if it is installed.
    #[arg(long)]
    no_fio: bool,
    /// Only the latency of single reads.
    #[arg(long)]
    latency_only: bool,
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let command = Cli::parse()
        .command
        .unwrap_or_else(|| Cli::parse_from(["reelring-bench", "run"]).command.expect("the line names a subcommand"));
    match command {
        Command::Run(options) => {
            options.check()?;
            print(&runtime.block_on(run(&options))?, options.json)?;
        }
        Command::Store(options) => print(&runtime.block_on(store(&options))?, options.json)?,
        Command::Compare(what) => return compare::main(&what, &runtime),
    }
    Ok(std::process::ExitCode::SUCCESS)
}

fn print(outcome: &(impl serde::Serialize + std::fmt::Display), json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(outcome)?);
    } else {
        print!("{outcome}");
    }
    Ok(())
}

impl Run {
    fn check(&self) -> anyhow::Result<()> {
        let Run { runtime, bs, size, .. } = *self;
        ensure!(runtime > 0.0 && runtime <= 3600.0, "--runtime {runtime} is not between 0 and 3600 s");
        ensure!((512..=1 << 20).contains(&bs), "--bs {bs} is not between 512 and 1m");
        ensure!(size >= 16 << 20 && size >= 16 * bs, "--size {size} is under 16m");
        Ok(())
    }
}

async fn store(options: &StoreArgs) -> anyhow::Result<blobs::Outcome> {
    ensure!(options.put_size <= 1 << 20, "--put-size {} is over 1m", options.put_size);
    let scratch = scratch(&options.dir)?;
    let plan = blobs::Plan {
        engine: options.engine,
        size: options.size,
        puts: options.puts,
        put_size: options.put_size as usize,
        connections: options.connections,
    };
    blobs::run(scratch.path(), &plan).await
}

fn scratch(dir: &Path) -> anyhow::Result<tempfile::TempDir> {
    let scratch = tempfile::Builder::new().prefix("reelring-bench-").tempdir_in(dir);
    scratch.with_context(|| format!("could not make a scratch directory in {}", dir.display()))
}

async fn run(options: &Run) -> anyhow::Result<Report> {
    let scratch = scratch(&options.dir)?;
    let target = Target {
        path: scratch.path().join("data"),
        size: options.size / options.bs * options.bs,
        bs: options.bs as usize,
        iodepth: options.iodepth.into(),
        round: Duration::from_secs_f64(options.runtime),
        rounds: options.rounds,
        direct: options.direct,
    };
    let bridge = Bridge::start(options.engine)?;
    let fio = if options.no_fio { None } else { fio::version() };
    let mut report = Report::new(&target, bridge.info(), fio.clone());

    report.add_write(throughput::write(&bridge, &target, fio.is_some()).await?);
    if !options.latency_only {
        report.add_reads(throughput::random_reads(&bridge, &target, fio.is_some()).await?);
    }
    for case in latency::cases(options.direct) {
        report.add_latency(latency::compare(&bridge, &target, case).await?);
    }
    report.set_idle(measure::idle_cpu(Duration::from_secs_f64(options.runtime.max(2.0))).await?);
    bridge.close().await;
    Ok(report)
}

/// `4096`, `4k`, `512m`, `2g`: powers of 1024, as fio reads them.
fn parse_bytes(text: &str) -> Result<u64, String> {
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
