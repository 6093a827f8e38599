//! `residency`: what it costs to ask whether a range of a file is in the page cache, and what each way of asking answers.
//!
//! One nameless file under `--dir`, which is gone with the process however that ends; one thread. The calls alone are timed,
//! in batches that take turns, so that what slows the machine slows all of them. Every state is made and then checked with
//! mincore before it is measured.

mod asked;

use std::fmt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use self::asked::{Asked, median, timed};

const SIZES: [u64; 4] = [4 << 10, 64 << 10, 512 << 10, 2 << 20];
const LARGEST: u64 = SIZES[SIZES.len() - 1];

#[derive(Args)]
#[command(after_help = "Examples:
  reelring-bench residency --dir /mnt/data
  reelring-bench residency --dir /mnt/data --repetitions 2000 --json > residency.json")]
pub struct ResidencyArgs {
    /// Where the file goes; not on tmpfs, whose pages cannot be dropped
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Measurements of each question, each of several calls
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(5..=100_000))]
    repetitions: u32,
    /// How often cold pages are asked for, to see who calls them present while they are still being read
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    tries: u32,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Way {
    Mincore,
    MapMincoreUnmap,
    Preadv2,
    Cachestat,
}

const WAYS: [Way; 4] = [Way::Mincore, Way::MapMincoreUnmap, Way::Preadv2, Way::Cachestat];

#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// As it stays when it was written in pieces of 1 MiB: in large folios where the file system has them.
    Written,
    /// As the kernel reads a file in order.
    ReadInOrder,
    /// Read page by page without read-ahead.
    SinglePages,
    /// The same, but for the page in the middle.
    OneMissing,
}

const STATES: [State; 4] = [State::Written, State::ReadInOrder, State::SinglePages, State::OneMissing];

#[derive(Serialize)]
struct Outcome {
    kernel: String,
    /// Whether the kernel has it.
    cachestat: bool,
    repetitions: u32,
    /// Reading both clocks: contained once in every measurement.
    clocks_ns: f64,
    rows: Vec<Row>,
    fetching: Vec<Fetching>,
    reading: Option<Reading>,
}

#[derive(Serialize)]
struct Row {
    bytes: u64,
    state: State,
    way: Way,
    /// What it answers: so many pages there (preadv2: before the first one that is not), of so many.
    pages: u64,
    of: u64,
    /// Measurements that ended with another answer.
    other_answers: u32,
    calls_each: u32,
    cpu_ns: f64,
    wall_ns: f64,
}

/// Whether the question itself brings in the page that is missing.
#[derive(Serialize)]
struct Fetching {
    way: Way,
    tries: u32,
    came: u32,
}

/// Cold pages that were asked for (`POSIX_FADV_WILLNEED`), and both questions at once, cachestat first.
#[derive(Serialize)]
struct Reading {
    bytes: u64,
    tries: u32,
    /// cachestat counted more than mincore did *afterwards*.
    cachestat_more: u32,
    /// Of these, it counted all of them.
    cachestat_all: u32,
    mincore_more: u32,
    most_pages: u64,
}

pub fn main(args: &ResidencyArgs) -> anyhow::Result<ExitCode> {
    let outcome = run(args)?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&outcome)?),
        false => print!("{outcome}"),
    }
    Ok(ExitCode::SUCCESS)
}

fn run(args: &ResidencyArgs) -> anyhow::Result<Outcome> {
    let doing = || format!("a file of {} bytes in {}", LARGEST, args.dir.display());
    let file = tempfile::tempfile_in(&args.dir).with_context(doing)?;
    file.write_all_at(&vec![0x5a; LARGEST as usize], 0).with_context(doing)?;
    file.sync_all().with_context(doing)?;
    let mut asked = Asked::of(file)?;
    let cachestat = asked.has_cachestat;
    let ways = || WAYS.into_iter().filter(|way| cachestat || *way != Way::Cachestat);
    let mut rows = Vec::new();
    for bytes in SIZES {
        for state in STATES {
            asked.make(bytes, state)?;
            rows.extend(asked.measure(&ways().collect::<Vec<_>>(), bytes, state, args.repetitions)?);
        }
    }
    let mut fetching = Vec::new();
    for way in ways() {
        fetching.push(asked.fetching(way, args.tries.min(100))?);
    }
    let reading = if cachestat { Some(asked.reading(args.tries)?) } else { None };
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let mut empty =
        (0..args.repetitions).map(|_| timed(|| Ok(())).map(|(_, wall)| wall)).collect::<Result<Vec<_>, _>>()?;
    let clocks_ns = median(&mut empty);
    Ok(Outcome { kernel, cachestat, repetitions: args.repetitions, clocks_ns, rows, fetching, reading })
}

impl Way {
    fn words(self) -> &'static str {
        match self {
            Way::Mincore => "mincore on a map at hand",
            Way::MapMincoreUnmap => "mmap, mincore, munmap",
            Way::Preadv2 => "preadv2(RWF_NOWAIT)",
            Way::Cachestat => "cachestat",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Linux {}; ns of one call, medians of {} measurements", self.kernel, self.repetitions)?;
        writeln!(
            f,
            "a measurement is 16 to 64 calls (*: one) and contains the {:.0} ns that reading the clocks takes",
            self.clocks_ns
        )?;
        for of_range in self.rows.chunk_by(|a, b| a.bytes == b.bytes && a.state == b.state) {
            let state = match of_range[0].state {
                State::Written => "resident, written in pieces of 1 MiB",
                State::ReadInOrder => "resident, read in order",
                State::SinglePages => "resident, read page by page",
                State::OneMissing => "the page in the middle missing",
            };
            writeln!(f, "{} KiB, {state}", of_range[0].bytes >> 10)?;
            for row in of_range {
                let star = if row.calls_each == 1 { "*" } else { " " };
                let (name, cpu, wall) = (row.way.words(), row.cpu_ns, row.wall_ns);
                write!(f, "  {name:<25} {cpu:>8.0} CPU {wall:>8.0} wall{star} {:>4} of {}", row.pages, row.of)?;
                match row.other_answers {
                    0 => writeln!(f)?,
                    other => writeln!(f, "  (another answer {other} times)")?,
                }
            }
        }
        if !self.cachestat {
            writeln!(f, "this kernel has no cachestat: Linux 6.5 is the first with it")?;
        }
        writeln!(f, "asking brings the missing page in (64 KiB, seen within 5 ms):")?;
        for Fetching { way, tries, came } in &self.fetching {
            writeln!(f, "  {:<25} {came} of {tries}", way.words())?;
        }
        let Some(reading) = &self.reading else { return Ok(()) };
        let Reading { bytes, tries, cachestat_more, cachestat_all, mincore_more, most_pages } = reading;
        writeln!(f, "cold pages that are being read ({} KiB, POSIX_FADV_WILLNEED just before):", bytes >> 10)?;
        writeln!(
            f,
            "  cachestat counts more than mincore does right after it: {cachestat_more} of {tries}, by {most_pages}"
        )?;
        writeln!(f, "  pages at most; all of them as present: {cachestat_all}; mincore counts more: {mincore_more}")?;
        writeln!(
            f,
            "  cachestat counts what is in the cache, up to date or not; a reader would have waited for the disk"
        )
    }
}
