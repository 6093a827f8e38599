//! What a comparison found: the report that `--json` prints and that the pictures are drawn from.
//!
//! Pure data. A [`Run`] is one measured round of one side; everything else is derived from the runs, which stay in
//! the report so that a reader can check the derivation.

use serde::{Deserialize, Serialize};

pub use super::machine::Machine;
use super::statistics;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub machine: Machine,
    pub sections: Vec<Section>,
}

/// One invocation of `compare`: what was set beside what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Section {
    pub id: String,
    pub title: String,
    /// The command line that repeats it.
    pub command: String,
    /// What a reader must know to judge the figures.
    pub notes: Vec<String>,
    pub cases: Vec<Case>,
}

/// One workload, done by both sides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Short and without blanks: `randread-4k-qd64`.
    pub name: String,
    pub ours: Side,
    pub theirs: Side,
    /// How it was checked that both did the same work: bytes, hashes, frames.
    pub same_work: String,
    /// Bytes per second, or operations per second where a side moves no bytes. Higher is better.
    pub speed: Ratio,
    /// CPU seconds per GB, or per operation where a side moves no bytes. Lower is better.
    pub cpu: Option<Ratio>,
    /// The p99 of requests that came at the same rate on both sides, whatever became of those before; of a closed loop it
    /// would say nothing that the speed does not. Lower is better.
    #[serde(default)]
    pub p99: Option<Ratio>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// "reelring bridge", "fio io_uring".
    pub name: String,
    pub version: String,
    /// In the order they were measured; run `n` of one side was measured next to run `n` of the other.
    pub runs: Vec<Run>,
}

/// One measured round.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Run {
    pub seconds: f64,
    pub bytes: u64,
    pub operations: u64,
    pub cpu_seconds: f64,
    pub context_switches: u64,
    pub peak_rss_bytes: u64,
    /// Quantile (0.99) and the latency there, from submission to answer.
    #[serde(default)]
    pub clat_ns: Option<Vec<(f64, u64)>>,
    /// Latency and the share of operations that took no longer.
    #[serde(default)]
    pub cdf: Option<Vec<(u64, f64)>>,
    /// What the client used, which is no side's: a client that had a processor to itself and needed all of it was the
    /// limit of both.
    #[serde(default)]
    pub client_cpu_seconds: Option<f64>,
    /// Share of the time in which the disk had something to do.
    #[serde(default)]
    pub disk_busy: Option<f64>,
}

/// Ours over theirs, with the interval in which the true ratio lies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    pub median: f64,
    pub low: f64,
    pub high: f64,
    /// The probability with which an interval made in this way holds the true ratio.
    pub confidence: f64,
    pub verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Win,
    Loss,
    /// The interval holds "equal".
    NoDifference,
    /// No interval of the wanted confidence exists for so few rounds.
    TooFewRounds,
}

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Higher,
    Lower,
}

impl Verdict {
    pub fn words(self) -> &'static str {
        match self {
            Verdict::Win => "win",
            Verdict::Loss => "LOSS",
            Verdict::NoDifference => "no difference",
            Verdict::TooFewRounds => "too few rounds",
        }
    }
}

impl Run {
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds
    }

    pub fn operations_per_second(&self) -> f64 {
        self.operations as f64 / self.seconds
    }

    pub fn cpu_seconds_per_gb(&self) -> f64 {
        self.cpu_seconds / (self.bytes as f64 / 1e9)
    }

    /// Processors that the client kept busy.
    pub fn client_cpus(&self) -> Option<f64> {
        Some(self.client_cpu_seconds? / self.seconds)
    }

    pub fn switches_per_operation(&self) -> f64 {
        self.context_switches as f64 / self.operations as f64
    }

    /// The latency at a quantile that was recorded.
    pub fn latency_ns(&self, quantile: f64) -> Option<u64> {
        let at = |&&(q, _): &&(f64, u64)| (q - quantile).abs() < 1e-9;
        self.clat_ns.as_ref()?.iter().find(at).map(|&(_, ns)| ns)
    }
}

impl Side {
    /// "reelring" of "reelring bridge".
    pub fn program(&self) -> &str {
        self.name.split(' ').next().unwrap_or(&self.name)
    }

    /// One figure of every run.
    pub fn figures(&self, figure: impl Fn(&Run) -> f64) -> Vec<f64> {
        self.runs.iter().map(figure).collect()
    }
}

impl Case {
    /// Derives the ratios from the runs. `None` while no pair of rounds is complete: there is nothing to say.
    pub fn of(name: impl Into<String>, ours: Side, theirs: Side, same_work: impl Into<String>) -> Option<Case> {
        let moved = ours.runs.iter().chain(&theirs.runs).all(|run| run.bytes > 0);
        let speed = if moved { Run::bytes_per_second } else { Run::operations_per_second };
        let cost = |run: &Run| if moved { run.cpu_seconds_per_gb() } else { run.cpu_seconds / run.operations as f64 };
        let speed = statistics::ratio(&ours.figures(speed), &theirs.figures(speed), Better::Higher)?;
        let cpu = statistics::ratio(&ours.figures(cost), &theirs.figures(cost), Better::Lower);
        Some(Case { name: name.into(), ours, theirs, same_work: same_work.into(), speed, cpu, p99: None })
    }
    /// The same, of requests at a fixed rate: their p99 is compared too.
    pub fn at_a_fixed_rate(mut self) -> Case {
        let p99s = |side: &Side| side.figures(|run| run.latency_ns(0.99).map_or(f64::NAN, |ns| ns as f64));
        self.p99 = statistics::ratio(&p99s(&self.ours), &p99s(&self.theirs), Better::Lower);
        self
    }

    /// All ratios there are.
    pub fn ratios(&self) -> impl Iterator<Item = &Ratio> {
        std::iter::once(&self.speed).chain(&self.cpu).chain(&self.p99)
    }
}
