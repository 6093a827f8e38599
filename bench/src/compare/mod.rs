//! Sets Reelring beside other programs, in alternating rounds, and says who wins.
//!
//! Every side is a child process, measured from outside by the same means. The rooms: `rounds` (the order), `usage`
//! (CPU, switches, memory), `statistics` (ratio, interval, verdict), `peer` (programs and servers), `result` (what comes
//! out), `table` (for people), `beside` (what comparisons of the node share), `congestion` (the same TCP for both sides), and
//! one module for each thing compared.
//!
//! A comparison owns its scratch folder under `--dir` and its peers; Ctrl-C ends the round, the peers and the folder,
//! prints the cases that are complete and exits with 130.

pub mod aria2;
mod beside;
pub mod congestion;
pub mod ffmpeg;
pub mod fio;
pub mod fio_output;
pub mod machine;
pub mod nginx;
pub mod node;
mod origin;
pub mod own;
pub mod peer;
pub mod result;
pub mod rounds;
pub mod script;
pub mod statistics;
pub mod stop;
pub mod table;
pub mod upload;
pub mod usage;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::limits;
use beside::Beside;
use result::{Machine, Report, Section};

#[derive(Debug, Subcommand)]
pub enum Compare {
    /// Our engines beside fio on the same job file.
    Fio(fio::FioArgs),
    /// One engine beside itself: how small a difference this machine can tell right now.
    #[command(name = "self")]
    Own(own::OwnArgs),
    /// Serving files: the node beside nginx, with the same client at both.
    Nginx(nginx::NginxArgs),
    /// Storing a file durably: a PUT to the node beside fio's writes and nginx's dav.
    Upload(Beside),
    /// Fetching a file: the node beside aria2c.
    Aria2(Beside),
    /// Encoding to HLS: the node and its worker beside ffmpeg.
    Ffmpeg(Beside),
}

/// What every comparison takes.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Measured rounds of each side; fewer than 8 give figures but no verdict.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::ROUNDS)))]
    rounds: Option<u32>,
    /// Seconds of each round. Without it a round lasts as its work does.
    #[arg(long, value_parser = seconds)]
    runtime: Option<Duration>,
    /// Where the measured files go; choose the volume to measure.
    #[arg(long, default_value = ".")]
    pub dir: PathBuf,
    /// Write the report as JSON to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report with its pictures to this file too.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// The fewest rounds that give a verdict, and short ones.
    #[arg(long)]
    pub quick: bool,
}

impl Common {
    pub fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { statistics::FEWEST_PAIRS as u32 } else { limits::DEFAULT_ROUNDS })
    }

    /// What was asked for; `None` leaves it to the workload.
    pub fn runtime(&self) -> Option<Duration> {
        self.runtime.or(self.quick.then_some(limits::QUICK_ROUND))
    }

    /// The same for a job file.
    fn length(&self) -> script::Length {
        match (self.runtime, self.quick) {
            (Some(runtime), _) => script::Length::Exactly(runtime),
            (None, true) => script::Length::AtMost(limits::QUICK_ROUND),
            (None, false) => script::Length::Own,
        }
    }

    /// A folder for the measured files, removed when it is dropped.
    pub fn scratch(&self) -> anyhow::Result<TempDir> {
        let scratch = tempfile::Builder::new().prefix("reelring-bench-").tempdir_in(&self.dir);
        scratch.with_context(|| format!("could not make a scratch folder in {}", self.dir.display()))
    }
}

impl Compare {
    fn common(&self) -> &Common {
        match self {
            Compare::Fio(args) => &args.common,
            Compare::Own(args) => &args.common,
            Compare::Nginx(args) => &args.beside.common,
            Compare::Upload(args) => &args.common,
            Compare::Aria2(args) => &args.common,
            Compare::Ffmpeg(args) => &args.common,
        }
    }

    /// Where it matters: no other comparison has two servers that send.
    fn congestion(&self) -> Option<congestion::Congestion> {
        match self {
            Compare::Nginx(args) => Some(args.congestion),
            _ => None,
        }
    }

    fn section(&self) -> anyhow::Result<Section> {
        match self {
            Compare::Fio(args) => fio::compare(args),
            Compare::Own(args) => own::compare(args),
            Compare::Nginx(args) => nginx::compare(args),
            Compare::Upload(args) => upload::compare(args),
            Compare::Aria2(args) => aria2::compare(args),
            Compare::Ffmpeg(args) => ffmpeg::compare(args),
        }
    }
}

/// Runs one comparison and prints it. Call it on the main thread: what it starts dies with the thread that started it.
pub fn main(what: &Compare, runtime: impl FnOnce() -> anyhow::Result<Runtime>) -> anyhow::Result<ExitCode> {
    // Before there are threads.
    let footing = what.congestion().and_then(congestion::settle);
    let runtime = runtime()?;
    let _inside = runtime.enter();
    stop::listen()?;
    let common = what.common();
    let mut machine = Machine::read(&common.dir);
    let mut section = match what.section() {
        // Before there was anything to report.
        Err(_) if stop::asked() => {
            eprintln!("stopped");
            return Ok(ExitCode::from(stop::EXIT));
        }
        section => section?,
    };
    machine.finish();
    section.notes.splice(..0, footing);
    for case in &section.cases {
        for side in [&case.ours, &case.theirs] {
            machine.versions.insert(side.program().to_owned(), side.version.clone());
        }
    }
    if cfg!(debug_assertions) {
        section.notes.push("a debug build of reelring-bench was measured: its figures mean nothing".to_owned());
    }
    if stop::asked() {
        section.notes.push("stopped by Ctrl-C: only what was complete is reported".to_owned());
    }
    let report = Report { machine, sections: vec![section] };
    print!("{}", table::of(&report));
    if let Some(path) = &common.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, text).with_context(|| format!("could not write {}", path.display()))?;
    }
    if let Some(path) = &common.html {
        let page = crate::picture::html(&report);
        std::fs::write(path, page).with_context(|| format!("could not write {}", path.display()))?;
    }
    if stop::asked() {
        eprintln!("stopped");
        return Ok(ExitCode::from(stop::EXIT));
    }
    Ok(ExitCode::SUCCESS)
}

/// The command line as it was given, for the report.
pub fn command_line() -> String {
    let words: Vec<String> = std::env::args().skip(1).collect();
    format!("reelring-bench {}", words.join(" "))
}

pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.trim_end_matches('s').parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    if !(0.01..=3600.0).contains(&seconds) {
        return Err(format!("{seconds} is not between 0.01 and 3600 s"));
    }
    Ok(Duration::from_secs_f64(seconds))
}
