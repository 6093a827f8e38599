//! What a run prints: fio's summary for people (`human.rs`), fio's JSON for programs (`json.rs`).
//!
//! Both only read the report. They show the same figures under the names and in the units fio gives them; what this program
//! has no meaning for is left out, and docs/bench.md lists it.

mod human;
mod json;

pub use human::human;
pub use json::json;

use crate::job::{EngineKind, Job, Pattern};
use crate::run::stats::{Depths, Side};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// fio's summary.
    Normal,
    /// fio's JSON.
    Json,
    /// With the latency histograms.
    #[value(name = "json+")]
    JsonPlus,
}

/// What both outputs call this program. Consumers of fio's JSON show it and look at nothing in it.
const VERSION: &str = concat!("reelring-bench-", env!("CARGO_PKG_VERSION"));

/// fio's default percentiles.
const PERCENTILES: [f64; 17] =
    [1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99];

impl Side {
    /// At least one where anything was done, as fio has it: everything is divided by it.
    fn milliseconds(&self) -> u64 {
        if self.operations == 0 { 0 } else { (self.runtime.as_millis() as u64).max(1) }
    }

    fn bytes_per_second(&self) -> u64 {
        (u128::from(self.bytes) * 1000 / u128::from(self.milliseconds().max(1))) as u64
    }

    fn iops(&self) -> f64 {
        self.operations as f64 * 1000.0 / self.milliseconds().max(1) as f64
    }
}

/// The name of `rw=`.
fn pattern(job: &Job) -> &'static str {
    match (job.rw.pattern, job.rw.reads, job.rw.writes) {
        (Pattern::Sequential, true, true) => "rw",
        (Pattern::Sequential, true, false) => "read",
        (Pattern::Sequential, ..) => "write",
        (Pattern::Random, true, true) => "randrw",
        (Pattern::Random, true, false) => "randread",
        (Pattern::Random, ..) => "randwrite",
    }
}

fn engine(kind: EngineKind) -> &'static str {
    match kind {
        EngineKind::Raw => "raw",
        EngineKind::Bridge => "bridge",
        EngineKind::Threads => "threads",
        EngineKind::Mmap => "mmap",
        EngineKind::Http => "http",
    }
}

/// In percent of `total`.
fn parts(depths: &Depths, total: u64) -> [f64; 7] {
    depths.map(|count| if total == 0 { 0.0 } else { count as f64 * 100.0 / total as f64 })
}

/// In powers of 1000 with up to four characters: `76.8k`.
pub fn decimal(number: u64) -> String {
    scaled(number, 1000, 4)
}

/// In powers of 1024, without the unit: `39.7Mi`.
pub fn kibi(number: u64) -> String {
    scaled(number, 1024, 4)
}

/// `number` with the fewest divisions by `step` that bring it into `width` characters, and as many decimals as then fit.
fn scaled(number: u64, step: u64, width: usize) -> String {
    let prefixes =
        if step == 1024 { ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] } else { ["", "k", "M", "G", "T", "P", "E"] };
    let (mut whole, mut rest, mut power) = (number, None, 0);
    while whole.to_string().len() > width && power + 1 < prefixes.len() {
        rest = Some(whole % step);
        whole /= step;
        power += 1;
    }
    let digits = whole.to_string().len();
    let (Some(rest), true) = (rest, width > digits + 1) else {
        let up = rest.is_some_and(|rest| rest >= step / 2);
        return format!("{}{}", whole + u64::from(up), prefixes[power]);
    };
    let value = whole as f64 + rest as f64 / step as f64;
    format!("{value:.*}{}", width - digits - 1, prefixes[power])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_scaled_as_fio_scales_them() {
        for (number, written) in [(0, "0"), (9538, "9538"), (10_200, "10.2k"), (76_812, "76.8k"), (1_048_576, "1049k")]
        {
            assert_eq!(decimal(number), written, "{number}");
        }
        for (number, written) in [(540_672, "528Ki"), (1 << 20, "1024Ki"), (41_600_000, "39.7Mi"), (5000, "5000")] {
            assert_eq!(kibi(number), written, "{number}");
        }
        assert_eq!(scaled(1_791_300, 1000, 6), "1791.3k");
    }
}
