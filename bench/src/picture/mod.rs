//! What was found, for the eye: SVG pictures and a page of HTML that needs nothing beside itself.
//!
//! Pure: results in, text out. Equal results give equal text, so that a page under version control changes only where
//! a figure did. `svg` is the pen, `scale` and `units` say where and how a number stands; `cdf`, `lines` and `forest`
//! are the three pictures; `figures` and `words` make table cells and verdicts, which docs/benchmarks.md shares.

mod cdf;
pub mod figures;
mod forest;
mod html;
mod lines;
mod scale;
mod svg;
pub mod units;
pub mod words;

use serde::{Deserialize, Serialize};

pub use forest::What;
pub use lines::{Axis, Measure, Series, Spot, Sweep};

use crate::compare::result::{Report, Section};

/// All that a page shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    #[serde(flatten)]
    pub report: Report,
    #[serde(default)]
    pub sweeps: Vec<Sweep>,
    #[serde(default)]
    pub tables: Vec<Table>,
    #[serde(default)]
    pub missing: Vec<Missing>,
}

/// Figures that stand beside nobody else's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Table {
    pub id: String,
    pub title: String,
    pub command: String,
    pub notes: Vec<String>,
    pub heads: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// A part that could not be measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Missing {
    pub title: String,
    pub reason: String,
}

pub struct Picture {
    /// File name without its ending.
    pub name: String,
    pub title: String,
    pub svg: String,
}

/// The page of one comparison, for `compare … --html FILE`.
pub fn html(report: &Report) -> String {
    html::page(&Findings { report: report.clone(), sweeps: Vec::new(), tables: Vec::new(), missing: Vec::new() })
}

/// With at most `points` points in each latency distribution.
pub fn thinned(findings: &Findings, points: usize) -> Findings {
    html::thinned(findings, points)
}

/// The page of everything `report` measured.
pub fn html_of(findings: &Findings) -> String {
    html::page(findings)
}

/// Speed and CPU of every case that has a rival; the self-check is none.
pub fn overview(findings: &Findings) -> Vec<Picture> {
    let rivals: Vec<&Section> = findings.report.sections.iter().filter(|section| !is_self_check(section)).collect();
    let mut pictures = Vec::new();
    for (name, what, title) in
        [("speed", What::Speed, "Speed beside the others"), ("cpu", What::Cpu, "CPU time beside the others")]
    {
        if let Some(svg) = forest::picture(what, title, &rivals, resolution(findings, what)) {
            pictures.push(Picture { name: name.into(), title: title.into(), svg });
        }
    }
    pictures
}

pub fn sweeps(findings: &Findings) -> Vec<Picture> {
    let one = |sweep: &Sweep| {
        Some(Picture {
            name: format!("sweep-{}", file_name(&sweep.id)),
            title: sweep.title.clone(),
            svg: lines::picture(sweep)?,
        })
    };
    findings.sweeps.iter().filter_map(one).collect()
}

/// The latencies of a section's cases, of those that recorded them.
pub fn latencies(section: &Section) -> Vec<Picture> {
    let one = |case: &crate::compare::result::Case| {
        let name = format!("latency-{}-{}", file_name(&section.id), file_name(&case.name));
        Some(Picture { name, title: format!("Latency: {}", case.name), svg: cdf::picture(&case.name, case)? })
    };
    section.cases.iter().filter_map(one).collect()
}

/// An engine beside itself tells how much this machine can resolve; it is neither won nor lost.
pub fn is_self_check(section: &Section) -> bool {
    section.id == "self" || section.id.starts_with("self-")
}

/// The factor by which an engine seemed to differ from itself at most: what is smaller cannot be told apart here and now.
pub fn resolution(findings: &Findings, what: What) -> Option<f64> {
    let checks = findings.report.sections.iter().filter(|section| is_self_check(section));
    let ratios = checks.flat_map(|section| &section.cases).filter_map(|case| what.of(case));
    let factors = ratios.flat_map(|ratio| [ratio.high, 1.0 / ratio.low]).filter(|factor| factor.is_finite());
    factors.reduce(f64::max).filter(|factor| *factor > 1.0)
}

/// Letters, digits and dashes of a name, for a file or an anchor.
pub fn file_name(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars().take(80) {
        match c {
            'a'..='z' | '0'..='9' => out.push(c),
            'A'..='Z' => out.push(c.to_ascii_lowercase()),
            _ if out.ends_with('-') || out.is_empty() => {}
            _ => out.push('-'),
        }
    }
    out.trim_end_matches('-').to_owned()
}

/// The middle value, or the mean of the two in the middle; NaN of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => f64::midpoint(values[len / 2 - 1], values[len / 2]),
    }
}

#[cfg(test)]
mod tests;
