//! Every engine and fio over a row of block sizes or depths, in turns, for the throughput pictures.
//!
//! The order turns around after every place (A B C D, D C B A): a machine that slows down does so for all.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};

use crate::compare::fio_output::Outcome;
use crate::compare::usage;
use crate::picture::{Axis, Measure, Series, Spot, Sweep};

pub struct Plan {
    pub id: String,
    pub title: String,
    pub along: Axis,
    pub of: Measure,
    pub places: Vec<u64>,
    /// The depth along block sizes, the block size along depths.
    pub fixed: u64,
    pub direct: bool,
    pub size: u64,
    pub runtime: f64,
    pub rounds: u32,
}

/// Name in the picture, program, and the flags that choose the engine.
const SERIES: [(&str, Program, &str); ENGINES] = [
    ("reelring bridge", Program::Ours, "--engine=bridge"),
    ("fio io_uring", Program::Fio, "--ioengine=io_uring"),
    ("reelring raw", Program::Ours, "--engine=raw"),
    ("reelring threads", Program::Ours, "--engine=threads"),
];
pub const ENGINES: usize = 4;

#[derive(Clone, Copy, PartialEq)]
enum Program {
    Ours,
    Fio,
}

/// What was measured until an error or the deadline, and that error. An engine that fails once is left out from then on.
pub fn run(plan: &Plan, ours: &Path, folder: &Path, ends: Instant) -> (Option<Sweep>, anyhow::Result<()>) {
    let mut series: Vec<Series> =
        SERIES.iter().map(|(name, ..)| Series { name: (*name).into(), points: Vec::new() }).collect();
    let outcome = measure(plan, ours, folder, ends, &mut series);
    series.retain(|series| !series.points.is_empty());
    let command = format!("reelring-bench run --engine=bridge {}", flags(plan, plan.places[0]).join(" "));
    let Plan { id, title, along, of, .. } = plan;
    let sweep = Sweep { id: id.clone(), title: title.clone(), command, along: *along, of: *of, series };
    (Some(sweep).filter(|sweep| !sweep.series.is_empty()), outcome)
}

fn measure(plan: &Plan, ours: &Path, folder: &Path, ends: Instant, series: &mut [Series]) -> anyhow::Result<()> {
    let mut failed: Vec<Option<anyhow::Error>> = SERIES.iter().map(|_| None).collect();
    'rounds: for round in 0..plan.rounds as usize {
        for (step, &at) in plan.places.iter().enumerate() {
            let forward = (round * plan.places.len() + step).is_multiple_of(2);
            for turn in 0..SERIES.len() {
                let which = if forward { turn } else { SERIES.len() - 1 - turn };
                if failed[which].is_some() {
                    continue;
                }
                if Instant::now() >= ends {
                    failed[which] =
                        Some(anyhow::anyhow!("ended by the budget in round {} of {}", round + 1, plan.rounds));
                    break 'rounds;
                }
                match one(plan, at, which, ours, folder) {
                    Ok(value) => add(&mut series[which], at, value),
                    Err(error) if error.is::<crate::compare::stop::Stopped>() => return Err(error),
                    Err(error) => failed[which] = Some(error),
                }
            }
        }
    }
    let reasons =
        failed.into_iter().zip(SERIES).filter_map(|(error, (name, ..))| Some(format!("{name}: {:#}", error?)));
    let reasons: Vec<String> = reasons.collect();
    if !reasons.is_empty() {
        bail!("incomplete: {}", reasons.join("; "));
    }
    Ok(())
}

fn add(series: &mut Series, at: u64, value: f64) {
    match series.points.iter_mut().find(|spot| spot.at == at) {
        Some(spot) => spot.rounds.push(value),
        None => series.points.push(Spot { at, rounds: vec![value] }),
    }
}

fn one(plan: &Plan, at: u64, which: usize, ours: &Path, folder: &Path) -> anyhow::Result<f64> {
    let (_, program, engine) = SERIES[which];
    let mut command = match program {
        Program::Ours => {
            let mut command = Command::new(ours);
            command.arg("run");
            command
        }
        Program::Fio => Command::new("fio"),
    };
    command.arg(engine).arg("--output-format=json").args(flags(plan, at));
    command.arg(format!("--filename={}", folder.join("sweep.data").display()));
    let ended = usage::run(&mut command)?;
    let run = Outcome::read(&ended.stdout)?.into_run(&ended);
    let value = match plan.of {
        Measure::BytesPerSecond => run.bytes_per_second(),
        Measure::OperationsPerSecond => run.operations_per_second(),
    };
    if value > 0.0 && value.is_finite() { Ok(value) } else { Err(anyhow::anyhow!("it reported no operation")) }
        .context(engine)
}

fn flags(plan: &Plan, at: u64) -> Vec<String> {
    let (block, depth) = match plan.along {
        Axis::BlockBytes => (at, plan.fixed),
        Axis::Depth => (plan.fixed, at),
    };
    let Plan { size, runtime, direct, .. } = plan;
    let milliseconds = (runtime * 1000.0) as u64;
    vec![
        "--name=sweep".into(),
        "--rw=randread".into(),
        format!("--bs={block}"),
        format!("--iodepth={depth}"),
        format!("--size={size}"),
        format!("--direct={}", u8::from(*direct)),
        "--time_based".into(),
        format!("--runtime={milliseconds}ms"),
    ]
}
