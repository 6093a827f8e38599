//! docs/benchmarks.md with its pictures and data, written as a whole or not at all.
//!
//! What people write stands in benchmarks-notes.md beside it, which is linked and never touched: the page can be
//! rewritten at any time without a loss.

use std::fmt::Write;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context;

use crate::compare::result::{Case, Machine, Section};
use crate::limits::PAGE_CDF_POINTS;
use crate::picture::{self, Findings, Picture, Table, What, figures, units, words};

pub const FILE: &str = "benchmarks.md";
const NOTES: &str = "benchmarks-notes.md";
const FOLDER: &str = "benchmarks";
const DATA: &str = "results.json";
const HTML: &str = "report.html";

/// Names of pictures begin with one of these: what else lies in the folder is not ours to remove.
const PICTURES: [&str; 4] = ["speed", "cpu", "sweep-", "latency-"];

/// The page last: until it is there, the old one stands with its pictures.
pub fn write(out: &Path, findings: &Findings) -> anyhow::Result<()> {
    let folder = out.join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("could not create {}", folder.display()))?;
    let mut pictures = picture::overview(findings);
    pictures.extend(picture::sweeps(findings));
    pictures.extend(findings.report.sections.iter().flat_map(picture::latencies));
    for picture in &pictures {
        replace(&folder.join(format!("{}.svg", picture.name)), &picture.svg)?;
    }
    let data = serde_json::to_string(&picture::thinned(findings, PAGE_CDF_POINTS))?;
    replace(&folder.join(DATA), &(data + "\n"))?;
    replace(&folder.join(HTML), &picture::html_of(findings))?;
    replace(&out.join(FILE), &markdown(findings, out.join(NOTES).exists()))?;
    sweep_up(&folder, &pictures)
}

/// Through a file beside it: a reader sees the old text or the new, never half of either.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
        file.write_all(text.as_bytes())?;
        // A temporary file is its owner's alone; a page is for everyone.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(mode)?;
        file.persist(path).map_err(|error| error.error)?;
        std::io::Result::Ok(())
    };
    write().with_context(|| format!("could not write {}", path.display()))
}

/// Pictures of an earlier run that this one did not draw.
fn sweep_up(folder: &Path, drawn: &[Picture]) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".svg")) else { continue };
        let ours = PICTURES.iter().any(|begin| stem.starts_with(begin));
        if ours && drawn.iter().all(|picture| picture.name != stem) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn markdown(findings: &Findings, notes: bool) -> String {
    let mut out = String::new();
    let sections = &findings.report.sections;
    out.push_str(
        "# Benchmarks\n\n\
         <!-- Written by `reelring-bench report` (`make bench`), which replaces all of it. What people write: benchmarks-notes.md -->\n\n\
         Reelring beside the programs people know, measured by one command, losses first. `make bench` repeats it and rewrites this page.\n",
    );
    if notes {
        let _ = writeln!(out, "Why it is so, and what was measured by hand: [{NOTES}]({NOTES}).");
    }
    let _ = writeln!(
        out,
        "All rounds as JSON: [{FOLDER}/{DATA}]({FOLDER}/{DATA}); `{FOLDER}/{HTML}` is this page with everything in one file.\n"
    );
    machine(&mut out, &findings.report.machine);
    resolution(&mut out, findings);
    losses(&mut out, sections);
    if !findings.missing.is_empty() {
        out.push_str("## Not measured\n\n");
        for part in &findings.missing {
            let _ = writeln!(out, "- {}: {}", plain(&part.title), plain(&part.reason));
        }
        out.push('\n');
    }
    let overview = picture::overview(findings);
    if !overview.is_empty() {
        out.push_str("## At a glance\n\n");
        overview.iter().for_each(|picture| show(&mut out, picture));
    }
    for one in sections {
        section(&mut out, one);
    }
    if !findings.sweeps.is_empty() {
        out.push_str("## Along block size and depth\n\n");
        out.push_str("One point of each picture:\n\n");
        for sweep in &findings.sweeps {
            code(&mut out, &sweep.command);
        }
        picture::sweeps(findings).iter().for_each(|picture| show(&mut out, picture));
    }
    for own in &findings.tables {
        table(&mut out, own);
    }
    out
}

fn machine(out: &mut String, machine: &Machine) {
    let Machine { cpus, cpu_model, kernel, filesystem, device, load_before, load_after, date, .. } = machine;
    let date = words::minute(date);
    let programs: Vec<String> = machine
        .versions
        .iter()
        .map(|(program, version)| format!("{program} {}", plain(words::version(version))))
        .collect();
    let memory = units::bytes(machine.memory_bytes as f64);
    let _ = write!(
        out,
        "| | |\n|---|---|\n| measured | {date} |\n| machine | {cpus} × {}, {memory} |\n\
         | system | Linux {}, {filesystem} on {} |\n| load before, after | {load_before:.2}, {load_after:.2} |\n| programs | {} |\n\n",
        plain(cpu_model),
        plain(kernel),
        plain(device),
        programs.join(", ")
    );
}

fn resolution(out: &mut String, findings: &Findings) {
    match picture::resolution(findings, What::Speed) {
        Some(factor) => {
            let _ = writeln!(
                out,
                "**How small a difference could be told**: an engine measured against itself seemed to differ by up to {:.1} %. \
                 What is said below holds for differences larger than that.\n",
                (factor - 1.0) * 100.0
            );
        }
        None => out.push_str("How small a difference this machine could tell was not measured.\n\n"),
    }
    out.push_str(
        "Rounds alternate A B B A; figures are medians with `[min .. max]`, ratios are ours over theirs with `[low .. high]` of \
         the interval that holds the true ratio with 99 %. An interval that holds 1.0 is no difference.\n\n",
    );
}

fn losses(out: &mut String, sections: &[Section]) {
    let rivals: Vec<Section> = sections.iter().filter(|section| !picture::is_self_check(section)).cloned().collect();
    if rivals.iter().all(|section| section.cases.is_empty()) {
        return;
    }
    out.push_str("## Where we lose\n\n");
    let losses = words::losses(&rivals);
    if losses.is_empty() {
        let _ = writeln!(out, "{}\n", words::no_losses(&rivals));
        return;
    }
    for loss in losses {
        let (ours, theirs) = (plain(&loss.case.ours.name), plain(&loss.case.theirs.name));
        let _ = writeln!(out, "- `{}`: {ours} against {theirs}: **{}**", code_span(&loss.case.name), loss.words);
    }
    out.push('\n');
}

fn section(out: &mut String, section: &Section) {
    let _ = writeln!(out, "## {}\n", plain(&section.title));
    code(out, &section.command);
    for note in &section.notes {
        let _ = writeln!(out, "- {}", plain(note));
    }
    if !section.notes.is_empty() {
        out.push('\n');
    }
    if section.cases.is_empty() {
        return;
    }
    out.push_str("| case | against | speed | | CPU | |\n|---|---|---|---|---|---|\n");
    for case in &section.cases {
        verdicts(out, case);
    }
    let heads = figures::HEADS;
    let _ = write!(out, "\n| case | | speed | {} |\n|---|---|{}\n", heads.join(" | "), "---|".repeat(heads.len() + 1));
    for case in &section.cases {
        for (at, row) in figures::rows(case).iter().enumerate() {
            let name = if at == 0 { format!("`{}`", code_span(&case.name)) } else { String::new() };
            let _ = writeln!(out, "| {name} | {} | {} | {} |", plain(row.name), row.speed, row.cells.join(" | "));
        }
    }
    same_work(out, section);
    for picture in picture::latencies(section) {
        show(out, &picture);
    }
}

/// One sentence where it is the same for all.
fn same_work(out: &mut String, section: &Section) {
    let checks: Vec<String> = section.cases.iter().map(|case| plain(case.same_work.trim_end_matches('.'))).collect();
    if checks.windows(2).all(|pair| pair[0] == pair[1]) {
        let _ = writeln!(out, "\nThe same work on both sides: {}.\n", checks[0]);
        return;
    }
    out.push_str("\nThe same work on both sides:\n\n");
    for (case, check) in section.cases.iter().zip(checks) {
        let _ = writeln!(out, "- `{}`: {check}", code_span(&case.name));
    }
    out.push('\n');
}

fn verdicts(out: &mut String, case: &Case) {
    let cell = |ratio, words: String| format!("{} | {}", words::interval(ratio), words);
    let cpu = case.cpu.as_ref().map_or_else(|| "– | –".into(), |ratio| cell(ratio, words::cpu(ratio)));
    let speed = cell(&case.speed, format!("{} {}", words::sign(case.speed.verdict), words::speed(&case.speed)));
    let _ = writeln!(out, "| `{}` | {} | {speed} | {cpu} |", code_span(&case.name), plain(&case.theirs.name));
    if let Some(p99) = &case.p99 {
        let told = format!("{} {}", words::sign(p99.verdict), words::p99(p99));
        let _ = writeln!(out, "| | its p99 | {} | – | – |", cell(p99, told));
    }
}

fn table(out: &mut String, table: &Table) {
    let _ = writeln!(out, "## {}\n", plain(&table.title));
    code(out, &table.command);
    let row =
        |cells: &[String]| format!("| {} |\n", cells.iter().map(|cell| plain(cell)).collect::<Vec<_>>().join(" | "));
    let _ = writeln!(out, "{}|{}", row(&table.heads), "---|".repeat(table.heads.len()));
    for cells in &table.rows {
        out.push_str(&row(cells));
    }
    out.push('\n');
    for note in &table.notes {
        let _ = writeln!(out, "- {}", plain(note));
    }
    if !table.notes.is_empty() {
        out.push('\n');
    }
}

fn show(out: &mut String, picture: &Picture) {
    let _ = writeln!(out, "![{}]({FOLDER}/{}.svg)\n", plain(&picture.title).replace(['[', ']'], ""), picture.name);
}

fn code(out: &mut String, command: &str) {
    for line in command.lines() {
        let _ = writeln!(out, "    {line}");
    }
    if !command.is_empty() {
        out.push('\n');
    }
}

/// Text that stays text: nothing in it begins a table cell, a tag, emphasis or a line.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '|' | '<' | '*' | '_' | '`' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn code_span(text: &str) -> String {
    text.chars().map(|c| if c == '`' || c == '|' || c.is_control() { '\'' } else { c }).collect()
}
