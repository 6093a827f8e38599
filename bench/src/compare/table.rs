//! A report for people: one block a case, losses plainly marked.

use std::fmt::Write;

use super::result::{Case, Ratio, Report, Run, Section, Side, Verdict};
use super::statistics::Spread;

/// The whole report.
pub fn of(report: &Report) -> String {
    let mut text = String::new();
    for section in &report.sections {
        write_section(&mut text, section);
    }
    line(&mut text, format_args!("machine: {}", report.machine.words()));
    let versions: Vec<String> =
        report.machine.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    line(&mut text, format_args!("versions: {}", versions.join("; ")));
    text
}

/// Writing to a string cannot fail.
fn line(text: &mut String, args: std::fmt::Arguments<'_>) {
    let _ = writeln!(text, "{args}");
}

fn write_section(text: &mut String, section: &Section) {
    line(text, format_args!("{}\n", section.title));
    for case in &section.cases {
        write_case(text, case);
    }
    for note in &section.notes {
        line(text, format_args!("note: {note}"));
    }
    let losses: Vec<&str> = section.cases.iter().filter(|case| lost(case)).map(|case| case.name.as_str()).collect();
    match losses.len() {
        0 => {}
        1 => line(text, format_args!("1 LOSS: {}", losses[0])),
        n => line(text, format_args!("{n} LOSSES: {}", losses.join(", "))),
    }
    line(text, format_args!("repeat with: {}", section.command));
}

fn lost(case: &Case) -> bool {
    case.ratios().any(|ratio| ratio.verdict == Verdict::Loss)
}

fn write_case(text: &mut String, case: &Case) {
    let Case { name, ours, theirs, .. } = case;
    line(text, format_args!("{name}: {} against {}, {} rounds each", ours.name, theirs.name, ours.runs.len()));
    line(text, format_args!("  {:<16} {:<34} {:<34} ratio", "", short(ours), short(theirs)));
    let moved = ours.runs.iter().chain(&theirs.runs).all(|run| run.bytes > 0);
    let mut row = |name: &str, ratio: Option<&Ratio>, figure: &dyn Fn(&Run) -> f64| {
        let of = |side: &Side| spread(&side.figures(figure));
        let Some((ours, theirs)) = of(ours).zip(of(theirs)) else { return };
        line(text, format_args!("  {name:<16} {ours:<34} {theirs:<34} {}", ratio.map(words).unwrap_or_default()));
    };
    if moved {
        row("MiB/s", Some(&case.speed), &|run| run.bytes_per_second() / f64::from(1 << 20));
        row("operations/s", None, &Run::operations_per_second);
        row("CPU s/GB", case.cpu.as_ref(), &Run::cpu_seconds_per_gb);
    } else {
        row("operations/s", Some(&case.speed), &Run::operations_per_second);
        row("CPU s", case.cpu.as_ref(), &|run| run.cpu_seconds);
    }
    row("switches/op", None, &Run::switches_per_operation);
    row("peak RSS MiB", None, &|run| run.peak_rss_bytes as f64 / f64::from(1 << 20));
    for (name, quantile) in [("p50 µs", 0.5), ("p99 µs", 0.99), ("p99.9 µs", 0.999)] {
        let ratio = case.p99.as_ref().filter(|_| quantile == 0.99);
        row(name, ratio, &|run| run.latency_ns(quantile).map_or(f64::NAN, |ns| ns as f64 / 1000.0));
    }
    row("disk busy %", None, &|run| run.disk_busy.map_or(f64::NAN, |share| share * 100.0));
    row("client CPUs", None, &|run| run.client_cpus().unwrap_or(f64::NAN));
    line(text, format_args!("  same work: {}\n", case.same_work));
}

fn short(side: &Side) -> String {
    side.name.clone()
}

/// "0.91 [0.88 .. 0.94] LOSS".
pub fn words(ratio: &Ratio) -> String {
    let Ratio { median, low, high, confidence, verdict } = ratio;
    format!("{median:.3} [{low:.3} .. {high:.3}] at {:.1} %: {}", confidence * 100.0, verdict.words())
}

/// Median and ends; nothing where a round lacks the figure.
fn spread(figures: &[f64]) -> Option<String> {
    if figures.iter().any(|figure| !figure.is_finite()) {
        return None;
    }
    let Spread { median, min, max } = Spread::of(figures)?;
    Some(format!("{} [{} .. {}]", number(median), number(min), number(max)))
}

/// Three or four digits that mean something, and thousands apart.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        x if x >= 100.0 => 0,
        x if x >= 10.0 => 1,
        x if x >= 1.0 => 2,
        _ => 3,
    };
    let plain = format!("{value:.digits$}");
    let (whole, rest) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let mut apart = String::new();
    for (index, c) in whole.chars().enumerate() {
        let left = whole.len() - index;
        if index > 0 && left.is_multiple_of(3) && !apart.ends_with('-') {
            apart.push(',');
        }
        apart.push(c);
    }
    apart + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_what_means_something() {
        let of = [1_234_567.8, 999.5, 12.34, 1.234, 0.01234, 0.0, -1234.0].map(number);
        assert_eq!(of, ["1,234,568", "1,000", "12.3", "1.23", "0.012", "0.000", "-1,234"]);
    }
}
