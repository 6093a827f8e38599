//! What `mixed` found, as JSON and for people.

use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::passes::Pass;
use crate::compare::result::Ratio;
use crate::compare::statistics::Spread;
use crate::limits;
use crate::picture::units;

#[derive(Serialize)]
pub struct Outcome {
    pub command: String,
    pub node: String,
    pub pairs: usize,
    pub requests_each_pass: u64,
    pub quiet: Hot,
    pub loaded: Hot,
    /// Medians over the loaded passes, with ends.
    pub cold_mib_per_second: Figure,
    /// What the disk read, whoever asked for it: against the line above it tells whether the cold set was cold.
    pub disk_read_mib_per_second: Option<Figure>,
    pub disk_busy: Option<Figure>,
    /// Share of the objects that was in memory when a client began to stream them.
    pub resident_at_start: Figure,
    /// The least share of the hot object that was in memory after a loaded pass.
    pub hot_resident: f64,
    /// The hot p99 with cold streams over that without.
    pub p99_ratio: Option<Ratio>,
    pub bound: f64,
    pub verdict: Verdict,
    pub notes: Vec<String>,
}

/// Latencies of all hot requests of all passes of a kind.
#[derive(Serialize)]
pub struct Hot {
    pub requests: u64,
    pub p50_ns: u64,
    pub p99_ns: u64,
    pub p999_ns: u64,
    pub max_ns: u64,
    pub p99_of_passes_ns: Vec<u64>,
    /// Processors that were busy for the node and for the clients, means of the passes.
    pub node_cpus: f64,
    pub client_cpus: f64,
}

#[derive(Serialize)]
pub struct Figure {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

#[derive(Serialize, Clone, Copy, PartialEq, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Held,
    Broken,
    Undecided,
    TooFewRounds,
}

impl Hot {
    pub fn of(passes: &[Pass]) -> anyhow::Result<Hot> {
        let mut all = Histogram::<u64>::new_with_bounds(1, limits::LATENCY_NS, 3)?;
        for pass in passes {
            all.add(&pass.latencies)?;
        }
        let mean = |of: fn(&Pass) -> f64| passes.iter().map(of).sum::<f64>() / passes.len() as f64;
        Ok(Hot {
            requests: all.len(),
            p50_ns: all.value_at_quantile(0.5),
            p99_ns: all.value_at_quantile(0.99),
            p999_ns: all.value_at_quantile(0.999),
            max_ns: all.max(),
            p99_of_passes_ns: passes.iter().map(|pass| pass.latencies.value_at_quantile(0.99)).collect(),
            node_cpus: mean(|pass| pass.server.cpu_seconds / pass.seconds),
            client_cpus: mean(|pass| pass.client_cpu_seconds / pass.seconds),
        })
    }
}

impl Figure {
    pub fn of(figures: &[f64]) -> Option<Figure> {
        Spread::of(figures).map(|Spread { median, min, max }| Figure { median, min, max })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { pairs, requests_each_pass: requests, .. } = self;
        writeln!(f, "{}: hot ranges of 64 KiB, {pairs} pairs of passes of {requests} requests", self.node)?;
        for (name, hot) in [("alone", &self.quiet), ("beside cold streams", &self.loaded)] {
            let [p50, p99, p999, max] =
                [hot.p50_ns, hot.p99_ns, hot.p999_ns, hot.max_ns].map(|ns| units::latency(ns as f64));
            write!(f, "  {name:<20} p50 {p50:>8}  p99 {p99:>8}  p99.9 {p999:>8}  max {max:>8}  ")?;
            writeln!(f, "CPUs: node {:.2}, clients {:.2}", hot.node_cpus, hot.client_cpus)?;
        }
        let line = |f: &mut fmt::Formatter<'_>, what: &str, figure: &Figure, times: f64, unit: &str| {
            let [median, min, max] = [figure.median, figure.min, figure.max].map(|figure| figure * times);
            writeln!(f, "  {what:<20} {median:.0} {unit} [{min:.0} .. {max:.0}]")
        };
        line(f, "cold streams", &self.cold_mib_per_second, 1.0, "MiB/s")?;
        if let (Some(read), Some(busy)) = (&self.disk_read_mib_per_second, &self.disk_busy) {
            line(f, "the disk read", read, 1.0, "MiB/s")?;
            line(f, "the disk was busy", busy, 100.0, "%")?;
        }
        line(f, "of a streamed object", &self.resident_at_start, 100.0, "% were in memory")?;
        writeln!(f, "  {:<20} {:.0} % stayed in memory", "hot object", self.hot_resident * 100.0)?;
        if let Some(Ratio { median, low, high, confidence, .. }) = self.p99_ratio {
            let sure = confidence * 100.0;
            writeln!(f, "p99 beside cold streams over alone: {median:.2} [{low:.2} .. {high:.2}] at {sure:.1} %")?;
        }
        let verdict = match self.verdict {
            Verdict::Held => "held",
            Verdict::Broken => "BROKEN",
            Verdict::Undecided => "undecided: the interval holds the bound",
            Verdict::TooFewRounds => "too few rounds for a verdict",
        };
        writeln!(f, "bound {}x: {verdict}", self.bound)?;
        self.notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))
    }
}
