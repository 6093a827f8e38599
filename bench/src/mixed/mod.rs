//! `mixed`: whether clients that read what is hot suffer while others stream what is cold. `compare nginx` runs the same
//! passes on both servers.
//!
//! A node in a child process, one hot object and a cold set. Passes take turns, A B B A: in A a few clients read ranges of
//! the hot object at a fixed rate, in B they do the same while others stream the cold set past an emptied page cache.
//!
//! **Open loop.** Every hot request has a time at which it is due, whatever became of those before, and its latency counts
//! from then: a stall of one answer shows in all requests that waited behind it, as it would for as many viewers.
//!
//! Owns the node and a scratch folder under `--dir`; both end with the call, after Ctrl-C too.

mod outcome;
mod passes;
mod site;

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use tokio::runtime::Runtime;

use self::outcome::{Figure, Hot, Outcome, Verdict};
pub use self::passes::{Bench, Load, Pass, RANGE_BYTES};
pub use self::site::{Objects, Site, hot_bytes, items};
use crate::compare::node::{Node, Program};
use crate::compare::result::{Better, Ratio, Run};
use crate::compare::rounds::{self, Turns};
use crate::compare::{self, statistics, stop};
use crate::store::parse_bytes;

/// Bytes of the hot object.
pub const HOT_BYTES: u64 = 1 << 20;
/// So much slower may the hot p99 be beside cold streams.
const BOUND: f64 = 2.0;
/// A disk that was busy for less of the time was not saturated.
pub const SATURATED: f64 = 0.9;

#[derive(Args)]
#[command(after_help = "Needs the `reelring` beside this program, or --reelring PATH, and room for the cold set.

Examples:
  reelring-bench mixed --dir /mnt/data
  reelring-bench mixed --dir /mnt/data --warm
  reelring-bench mixed --dir /mnt/data --cold-size 8g --cold-clients 16 --rounds 10 --json > mixed.json")]
pub struct MixedArgs {
    /// Blocks of four passes, A B B A; under 4 there is no verdict
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Seconds of each pass
    #[arg(long, default_value = "3", value_parser = compare::seconds)]
    runtime: Duration,
    /// Hot requests per second, of all clients together
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Clients of the hot object
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    clients: u32,
    /// Bytes of the cold set: more than is streamed in one pass
    #[arg(long, default_value = "2g", value_parser = parse_bytes)]
    cold_size: u64,
    /// Bytes of each of its objects, from 2m on
    #[arg(long, default_value = "32m", value_parser = parse_bytes)]
    cold_object: u64,
    /// Clients that stream the cold set
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    cold_clients: u32,
    /// Leave the cold set in the page cache: what streams cost without the disk
    #[arg(long)]
    warm: bool,
    /// The node to measure [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    reelring: Option<PathBuf>,
    /// Where the node's data goes; choose the volume to measure
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Who asks for what.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Of a pass.
    pub runtime: Duration,
    /// Hot requests per second, of all hot clients together.
    pub rate: u32,
    pub clients: u32,
    /// Bytes of each cold object.
    pub cold_object: u64,
    pub cold_clients: u32,
    /// The cold set stays in the page cache.
    pub warm: bool,
}

impl Shape {
    pub fn requests(&self) -> u64 {
        ((self.runtime.as_secs_f64() * f64::from(self.rate)) as u64).max(1)
    }
}

/// Call it on the main thread: the node dies with the thread that started it.
pub fn main(args: &MixedArgs, runtime: &Runtime) -> anyhow::Result<ExitCode> {
    let _inside = runtime.enter();
    stop::listen()?;
    let outcome = match run(args, runtime) {
        Err(_) if stop::asked() => None,
        outcome => Some(outcome?),
    };
    match &outcome {
        Some(outcome) if args.json => println!("{}", serde_json::to_string_pretty(outcome)?),
        Some(outcome) => print!("{outcome}"),
        None => {}
    }
    if stop::asked() {
        eprintln!("stopped");
        return Ok(ExitCode::from(stop::EXIT));
    }
    Ok(ExitCode::SUCCESS)
}

fn run(args: &MixedArgs, runtime: &Runtime) -> anyhow::Result<Outcome> {
    ensure!(args.cold_object >= 2 << 20, "--cold-object {} is under 2m", args.cold_object);
    let objects = args.cold_size / args.cold_object;
    ensure!((1..=4096).contains(&objects), "a cold set of {objects} objects: 1 to 4096 are possible");
    let program = Program::find(args.reelring.as_deref())?;
    let scratch = tempfile::Builder::new().prefix("reelring-bench-").tempdir_in(&args.dir);
    let scratch = scratch.with_context(|| format!("could not make a scratch folder in {}", args.dir.display()))?;
    let node = Node::start(&program, scratch.path(), &scratch.path().join("data"))?;
    let (items, source) = (items(objects, args.cold_object), scratch.path().join("source"));
    let hot = Arc::new(hot_bytes(&items, scratch.path())?);
    let objects = Objects::of_node(&node, &scratch.path().join("data"), &items, |item| {
        item.write(&source)?;
        Ok(source.clone())
    })?;
    std::fs::remove_file(&source)?;
    let shape = args.shape();
    let site = Site { peer: node.peer(), objects: &objects };
    let bench = Bench::new(shape, runtime.handle().clone(), site, hot)?;

    let (quiet, loaded) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
    let turns = Turns { title: "mixed", ours: "quiet", theirs: "loaded", rounds: args.rounds * 2 };
    let without = || {
        quiet.borrow_mut().push(bench.quiet()?);
        Ok(Run::default())
    };
    let with = || {
        loaded.borrow_mut().push(bench.loaded()?);
        Ok(Run::default())
    };
    let pairs = rounds::alternate(turns, without, with)?;
    ensure!(!pairs.ours.is_empty(), "stopped before the first pair of passes");
    // The warm-ups come first, and after Ctrl-C a pass without its partner last.
    let quiet: Vec<_> = quiet.into_inner().into_iter().skip(1).take(pairs.ours.len()).collect();
    let (loaded, loads): (Vec<_>, Vec<_>) = loaded.into_inner().into_iter().skip(1).take(pairs.ours.len()).unzip();
    let (quiet, loaded) = (Hot::of(&quiet)?, Hot::of(&loaded)?);
    let p99s = |hot: &Hot| hot.p99_of_passes_ns.iter().map(|ns| *ns as f64).collect::<Vec<_>>();
    let p99_ratio = statistics::ratio(&p99s(&loaded), &p99s(&quiet), Better::Lower);
    let figure = |of: &dyn Fn(&Load) -> Option<f64>| Figure::of(&loads.iter().filter_map(of).collect::<Vec<_>>());
    let disk_busy = figure(&|load| Some(load.disk?.0));
    let mut notes: Vec<String> = program.note().into_iter().collect();
    if cfg!(debug_assertions) {
        notes.push("the clients are a debug build: their figures mean nothing".into());
    }
    if args.warm {
        notes.push("--warm: the streams came from memory, so this says nothing about the disk".into());
    }
    match &disk_busy {
        _ if args.warm => {}
        None => notes.push("the device of --dir is not in /proc/diskstats: nobody knows how busy it was".into()),
        Some(busy) if busy.median < SATURATED => {
            notes.push(format!("the disk was busy {:.0} % of the time: it was not saturated", busy.median * 100.0));
        }
        Some(_) => {}
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    notes.push(format!(
        "clients and node share {processors} processors: what streams use, hot requests lack; --warm tells how much"
    ));
    Ok(Outcome {
        command: compare::command_line(),
        node: program.version,
        pairs: pairs.ours.len(),
        requests_each_pass: shape.requests(),
        quiet,
        loaded,
        cold_mib_per_second: figure(&|load| Some(load.mib_per_second())).context("no loaded pass")?,
        disk_read_mib_per_second: figure(&|load| Some(load.disk?.1)),
        disk_busy,
        resident_at_start: figure(&|load| Some(load.resident_at_start)).context("no loaded pass")?,
        hot_resident: loads.iter().map(|load| load.hot_resident).fold(1.0, f64::min),
        verdict: verdict(p99_ratio),
        p99_ratio,
        bound: BOUND,
        notes,
    })
}

fn verdict(ratio: Option<Ratio>) -> Verdict {
    match ratio {
        Some(ratio) if ratio.confidence < statistics::CONFIDENCE => Verdict::TooFewRounds,
        Some(ratio) if ratio.high <= BOUND => Verdict::Held,
        Some(ratio) if ratio.low > BOUND => Verdict::Broken,
        _ => Verdict::Undecided,
    }
}

impl MixedArgs {
    fn shape(&self) -> Shape {
        let &MixedArgs { runtime, rate, clients, cold_object, cold_clients, warm, .. } = self;
        Shape { runtime, rate, clients, cold_object, cold_clients, warm }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_held_only_by_the_whole_interval() {
        let of =
            |ours: f64, pairs: usize| verdict(statistics::ratio(&vec![ours; pairs], &vec![1.0; pairs], Better::Lower));
        assert_eq!(of(1.9, 12), Verdict::Held);
        assert_eq!(of(2.1, 12), Verdict::Broken);
        assert_eq!(of(1.9, 4), Verdict::TooFewRounds);
        let noisy: Vec<f64> = (0..12).map(|n| if n % 2 == 0 { 1.0 } else { 4.0 }).collect();
        assert_eq!(verdict(statistics::ratio(&noisy, &[1.0; 12], Better::Lower)), Verdict::Undecided);
        assert_eq!(verdict(None), Verdict::Undecided);
    }
}
