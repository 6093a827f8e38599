//! A side's rounds as the cells of a table: medians with `[min .. max]`, in one unit for the case.

use super::{median, units};
use crate::compare::result::{Case, Run, Side};

/// Heads of the columns after the side's name.
pub const HEADS: [&str; 6] = ["operations/s", "latency p50", "p99", "CPU s/GB", "switches/op", "peak RSS"];

/// One row: the speed first, then a cell for each of [`HEADS`]; "–" where it was not measured.
pub struct Row<'a> {
    pub name: &'a str,
    pub version: &'a str,
    pub speed: String,
    pub cells: [String; 6],
}

pub fn rows(case: &Case) -> [Row<'_>; 2] {
    [&case.ours, &case.theirs].map(row)
}

fn row(side: &Side) -> Row<'_> {
    let moved = side.runs.iter().all(|run| run.bytes > 0);
    let counted = side.runs.iter().all(|run| run.operations > 0);
    let spread = |figure: &dyn Fn(&Run) -> f64, print: fn(f64) -> String| spread(side.runs.iter().map(figure), print);
    let dash = || "–".to_owned();
    let quantile = |wanted: f64| {
        let all = || side.runs.iter().filter_map(|run| run.latency_ns(wanted)).map(|ns| ns as f64);
        if all().next().is_some() { units::latency(median(all())) } else { dash() }
    };
    let speed = match moved {
        true => format!("{} MiB/s", spread(&|run| run.bytes_per_second() / units::MIB, units::number)),
        false => format!("{} op/s", spread(&Run::operations_per_second, units::count)),
    };
    let operations = if counted { spread(&Run::operations_per_second, units::count) } else { dash() };
    let cpu = match (moved, counted) {
        (true, _) => spread(&Run::cpu_seconds_per_gb, units::number),
        (false, true) => {
            format!("{} ms/op", spread(&|run| run.cpu_seconds * 1e3 / run.operations as f64, units::number))
        }
        (false, false) => dash(),
    };
    let switches = if counted { units::number(median(side.figures(Run::switches_per_operation))) } else { dash() };
    let peak = side.runs.iter().map(|run| run.peak_rss_bytes).max().unwrap_or(0);
    let rss = if peak > 0 { units::bytes(peak as f64) } else { dash() };
    let cells = [operations, quantile(0.5), quantile(0.99), cpu, switches, rss];
    Row { name: &side.name, version: &side.version, speed, cells }
}

/// `1,156 [1,020 .. 1,354]`
pub fn spread(values: impl Iterator<Item = f64>, print: fn(f64) -> String) -> String {
    let values: Vec<f64> = values.collect();
    let (low, high) =
        values.iter().fold((f64::INFINITY, 0f64), |(low, high), &value| (low.min(value), high.max(value)));
    match values.len() {
        0 => "–".into(),
        1 => print(values[0]),
        _ => format!("{} [{} .. {}]", print(median(values)), print(low), print(high)),
    }
}
