//! Measures Reelring's storage in fio's language, and beside other programs.
//!
//! `run` carries out fio's jobs on one of Reelring's engines and reports as fio does. `store` measures whole objects.

#![allow(dead_code)] // while the rooms grow

mod blobs;
mod compare;
mod engine;
mod fio;
mod job;
mod latency;
mod limits;
mod measure;
mod output;
mod picture;
mod plan;
mod report;
mod run;
mod throughput;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand};
use reelring_storage::EngineChoice;

use crate::run::command::RunArgs;

#[derive(Parser)]
#[command(name = "reelring-bench", about = "Measures Reelring's storage, beside fio")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs jobs in fio's language on one of Reelring's engines
    Run(RunArgs),
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

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(run) => return run.execute(),
        Command::Store(options) => runtime().and_then(|runtime| {
            print(&runtime.block_on(store(&options))?, options.json)?;
            Ok(ExitCode::SUCCESS)
        }),
        Command::Compare(what) => runtime().and_then(|runtime| compare::main(&what, &runtime)),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("reelring-bench: {error:#}");
        ExitCode::FAILURE
    })
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

fn print(outcome: &(impl serde::Serialize + std::fmt::Display), json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(outcome)?);
    } else {
        print!("{outcome}");
    }
    Ok(())
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
