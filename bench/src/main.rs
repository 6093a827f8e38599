//! Measures Reelring's storage in fio's language, and sets Reelring beside the programs people know.
//!
//! `run` carries out fio's jobs on one of Reelring's engines and reports as fio does. `compare` sets it beside fio,
//! nginx, aria2c, ffmpeg or itself, in alternating rounds. `store` measures whole objects, `catalog` a store of very many,
//! `mixed` hot reads beside cold ones, `residency` the question whether a range is in the page cache.
//! `report` does the standard set and writes docs/benchmarks.md.

mod catalog;
mod compare;
mod engine;
mod job;
mod limits;
mod mixed;
mod output;
mod picture;
mod plan;
mod residency;
mod run;
mod standard;
mod store;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::run::command::RunArgs;

#[derive(Parser)]
#[command(
    name = "reelring-bench",
    version,
    about = "Measures Reelring in fio's language, and beside fio, nginx, aria2c and ffmpeg"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs jobs in fio's language on one of Reelring's engines
    Run(RunArgs),
    /// Sets Reelring beside another program, in alternating rounds
    #[command(subcommand)]
    Compare(compare::Compare),
    /// A large object in and out of a store, then many small ones at once
    Store(store::StoreArgs),
    /// Starts a store of a million objects, reads, lists, and says what memory that takes
    Catalog(catalog::CatalogArgs),
    /// Whether clients that read what is hot suffer while others stream what is cold
    Mixed(mixed::MixedArgs),
    /// What it costs to ask whether a range is in the page cache, by four system calls
    Residency(residency::ResidencyArgs),
    /// Measures the standard set and writes docs/benchmarks.md with its pictures
    Report(standard::ReportArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(run) => return run.execute(),
        Command::Compare(what) => compare::main(&what, runtime),
        Command::Store(args) => runtime().and_then(|runtime| store::main(&args, &runtime)),
        Command::Catalog(args) => runtime().and_then(|runtime| catalog::main(&args, &runtime)),
        Command::Mixed(args) => runtime().and_then(|runtime| mixed::main(&args, &runtime)),
        Command::Residency(args) => residency::main(&args),
        Command::Report(args) => runtime().and_then(|runtime| standard::main(&args, &runtime)),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("reelring-bench: {error:#}");
        ExitCode::FAILURE
    })
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}
