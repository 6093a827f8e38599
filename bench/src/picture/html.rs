//! One page of HTML with everything inside: it opens from a disk, an e-mail or a ticket, and asks no network.

use std::fmt::Write;

use super::svg::escape;
use super::{Findings, Picture, figures, is_self_check, latencies, overview, sweeps, units, words};
use crate::compare::result::{Case, Machine, Ratio, Section, Verdict};
use crate::limits::{HTML_DATA_BYTES_MAX, HTML_PICTURE_BYTES_MAX};

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1d1f;--quiet:#5d646b;--line:#d9dcde;--paper:#fff;--soft:#f5f6f6;--win:#0068a8;--loss:#b4431c}\
@media (prefers-color-scheme:dark){:root{--ink:#e9eaeb;--quiet:#a3abb2;--line:#33383c;--paper:#15181a;--soft:#1e2225;--win:#62b8f0;--loss:#ff9257}}\
*{box-sizing:border-box}body{margin:0 auto;padding:2.5rem 1.25rem 4rem;max-width:60rem;background:var(--paper);color:var(--ink);\
font:16px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif}h1{font-size:1.9rem;line-height:1.2;margin:0 0 .3rem}\
h2{font-size:1.3rem;margin:3rem 0 .6rem;padding-top:1rem;border-top:1px solid var(--line)}h3{font-size:1rem;margin:1.6rem 0 .3rem}\
.quiet{color:var(--quiet)}.notes{font-size:.85rem;padding-left:1.1rem;margin:.6rem 0 1rem}dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.2rem;margin:1rem 0}dt{color:var(--quiet)}dd{margin:0}\
pre{background:var(--soft);border-radius:6px;padding:.6rem .8rem;overflow-x:auto;font:13px/1.45 ui-monospace,monospace;margin:.5rem 0}\
.wide{overflow-x:auto;margin:.6rem 0 1.2rem}table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;width:100%}\
th{font-weight:500;color:var(--quiet);text-align:left;white-space:nowrap}th,td{padding:.28rem .7rem .28rem 0;vertical-align:top}\
td{white-space:nowrap}.case td{border-top:1px solid var(--line);padding-top:.6rem;white-space:normal}.case strong{margin-right:.8rem}\
.win{color:var(--win)}.loss{color:var(--loss)}.verdict{font-weight:600}.losses{border-left:4px solid var(--loss);padding:.1rem 0 .1rem 1rem}\
.losses ul{padding-left:1.1rem;margin:.4rem 0}figure{margin:1.2rem 0}svg{width:100%;height:auto;border:1px solid var(--line);border-radius:8px}\
a{color:var(--win)}button{font:inherit;padding:.3rem .8rem}@media print{h2{break-after:avoid}figure,tr{break-inside:avoid}}";

pub fn page(findings: &Findings) -> String {
    let mut out = String::new();
    let sections = &findings.report.sections;
    let title = match &sections[..] {
        [only] if findings.sweeps.is_empty() && findings.tables.is_empty() => &only.title[..],
        _ => "Reelring beside fio, nginx, aria2 and ffmpeg",
    };
    let title = escape(title);
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>{title}</title>\n<style>{STYLE}</style>\n\
         </head>\n<body>\n<h1>{title}</h1>\n"
    );
    machine(&mut out, &findings.report.machine);
    losses(&mut out, sections);
    missing(&mut out, findings);

    let mut room = HTML_PICTURE_BYTES_MAX;
    for picture in overview(findings) {
        figure(&mut out, &picture, &mut room);
    }
    for one in sections {
        section(&mut out, one, &mut room);
    }
    if !findings.sweeps.is_empty() {
        out.push_str("<h2>Along block size and depth</h2>\n");
        for (sweep, picture) in findings.sweeps.iter().zip(sweeps(findings)) {
            command(&mut out, &sweep.command);
            figure(&mut out, &picture, &mut room);
        }
    }
    for table in &findings.tables {
        own(&mut out, table);
    }
    data(&mut out, findings);
    out.push_str("</body>\n</html>\n");
    out
}

fn machine(out: &mut String, machine: &Machine) {
    let versions: Vec<String> =
        machine.versions.iter().map(|(program, version)| format!("{program} {}", words::version(version))).collect();
    let facts = [
        ("Measured", words::minute(&machine.date)),
        ("Machine", format!("{} × {}, {}", machine.cpus, machine.cpu_model, units::bytes(machine.memory_bytes as f64))),
        ("System", format!("Linux {}, {} on {}", machine.kernel, machine.filesystem, machine.device)),
        ("Load before, after", format!("{:.2}, {:.2}", machine.load_before, machine.load_after)),
        ("Programs", versions.join(", ")),
    ];
    out.push_str("<dl>\n");
    for (name, fact) in facts {
        let _ = writeln!(out, "<dt>{name}</dt><dd>{}</dd>", escape(&fact));
    }
    out.push_str("</dl>\n");
}

fn losses(out: &mut String, sections: &[Section]) {
    let rivals: Vec<Section> = sections.iter().filter(|section| !is_self_check(section)).cloned().collect();
    if rivals.iter().all(|section| section.cases.is_empty()) {
        return;
    }
    out.push_str("<h2>Where we lose</h2>\n");
    let losses = words::losses(&rivals);
    if losses.is_empty() {
        let _ = writeln!(out, "<p>{}</p>", words::no_losses(&rivals));
        return;
    }
    out.push_str("<div class=\"losses\"><ul>\n");
    for loss in losses {
        let (case, theirs) = (escape(&loss.case.name), escape(&loss.case.theirs.name));
        let (ours, words, id) = (escape(&loss.case.ours.name), escape(&loss.words), super::file_name(&loss.section.id));
        let _ = writeln!(
            out,
            "<li><a href=\"#{id}\">{case}</a>: {ours} against {theirs}: <span class=\"loss verdict\">{words}</span></li>"
        );
    }
    out.push_str("</ul></div>\n");
}

fn missing(out: &mut String, findings: &Findings) {
    if findings.missing.is_empty() {
        return;
    }
    out.push_str("<h2>Not measured</h2>\n<ul>\n");
    for part in &findings.missing {
        let _ = writeln!(out, "<li>{}: {}</li>", escape(&part.title), escape(&part.reason));
    }
    out.push_str("</ul>\n");
}

fn section(out: &mut String, section: &Section, room: &mut usize) {
    let _ = writeln!(out, "<h2 id=\"{}\">{}</h2>", super::file_name(&section.id), escape(&section.title));
    command(out, &section.command);
    notes(out, &section.notes);
    if section.cases.is_empty() {
        return;
    }
    let heads: String = figures::HEADS.iter().map(|head| format!("<th>{head}</th>")).collect();
    let _ =
        writeln!(out, "<div class=\"wide\"><table>\n<thead><tr><th></th><th>speed</th>{heads}</tr></thead>\n<tbody>");
    for case in &section.cases {
        case_rows(out, case);
    }
    out.push_str("</tbody></table></div>\n");
    for picture in latencies(section) {
        figure(out, &picture, room);
    }
}

fn case_rows(out: &mut String, case: &Case) {
    let verdict = |ratio: &Ratio, words: String| {
        let class = match ratio.verdict {
            Verdict::Win => "win verdict",
            Verdict::Loss => "loss verdict",
            Verdict::NoDifference | Verdict::TooFewRounds => "quiet",
        };
        format!(
            "<span class=\"{class}\">{} {}</span> ({})",
            words::sign(ratio.verdict),
            escape(&words),
            words::interval(ratio)
        )
    };
    let cpu =
        case.cpu.as_ref().map(|ratio| format!("<br>CPU: {}", verdict(ratio, words::cpu(ratio)))).unwrap_or_default();
    let p99 =
        case.p99.as_ref().map(|ratio| format!("<br>p99: {}", verdict(ratio, words::p99(ratio)))).unwrap_or_default();
    let _ = writeln!(
        out,
        "<tr class=\"case\"><td colspan=\"8\"><strong>{}</strong>{}{cpu}{p99}<br><span class=\"quiet\">Same work: {}</span></td></tr>",
        escape(&case.name),
        verdict(&case.speed, words::speed(&case.speed)),
        escape(&case.same_work)
    );
    for row in figures::rows(case) {
        let cells: String = row.cells.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
        let (name, version, speed) = (escape(row.name), escape(row.version), escape(&row.speed));
        let _ = writeln!(out, "<tr><td title=\"{version}\">{name}</td><td>{speed}</td>{cells}</tr>");
    }
}

fn own(out: &mut String, table: &super::Table) {
    let _ = writeln!(out, "<h2 id=\"{}\">{}</h2>", super::file_name(&table.id), escape(&table.title));
    command(out, &table.command);
    notes(out, &table.notes);
    let row = |cells: &[String], tag: &str| -> String {
        cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect()
    };
    let _ = writeln!(out, "<div class=\"wide\"><table>\n<thead><tr>{}</tr></thead>\n<tbody>", row(&table.heads, "th"));
    for cells in &table.rows {
        let _ = writeln!(out, "<tr>{}</tr>", row(cells, "td"));
    }
    out.push_str("</tbody></table></div>\n");
}

fn notes(out: &mut String, notes: &[String]) {
    if notes.is_empty() {
        return;
    }
    out.push_str("<ul class=\"notes quiet\">\n");
    for note in notes {
        let _ = writeln!(out, "<li>{}</li>", escape(note));
    }
    out.push_str("</ul>\n");
}

fn command(out: &mut String, command: &str) {
    if !command.is_empty() {
        let _ = writeln!(out, "<pre>{}</pre>", escape(command));
    }
}

/// As long as there is room: a page nobody can open shows nothing.
fn figure(out: &mut String, picture: &Picture, room: &mut usize) {
    match room.checked_sub(picture.svg.len()) {
        Some(left) => {
            *room = left;
            let _ = writeln!(out, "<figure>\n{}</figure>", picture.svg);
        }
        None => {
            let _ = writeln!(
                out,
                "<p class=\"quiet\">No picture “{}”: the page would grow past its limit.</p>",
                escape(&picture.title)
            );
        }
    }
}

/// The results themselves, to be saved from the page; distributions thinned until they fit.
fn data(out: &mut String, findings: &Findings) {
    out.push_str("<h2>Raw data</h2>\n");
    for points in [usize::MAX, 200, 60, 20, 0] {
        let json = serde_json::to_string(&thinned(findings, points)).unwrap_or_default();
        if json.is_empty() || json.len() > HTML_DATA_BYTES_MAX {
            continue;
        }
        let cut = match points {
            usize::MAX => String::new(),
            0 => " Without latency distributions, for want of room; --json keeps them.".into(),
            points => format!(
                " Latency distributions are thinned to {points} points for each round; --json keeps them whole."
            ),
        };
        // Inside a string `<` may be written as an escape, and elsewhere JSON has none: no text can end the element.
        let _ = write!(
            out,
            "<p>Every round of every side, as JSON.{cut}</p>\n<p><button id=\"save\" type=\"button\">Save reelring-bench.json</button></p>\n\
             <script type=\"application/json\" id=\"data\">{}</script>\n\
             <script>document.getElementById('save').onclick=()=>{{const a=document.createElement('a');\
             a.href=URL.createObjectURL(new Blob([document.getElementById('data').textContent],{{type:'application/json'}}));\
             a.download='reelring-bench.json';a.click()}}</script>\n",
            json.replace('<', "\\u003c")
        );
        return;
    }
    out.push_str("<p>Too large for this page: use --json.</p>\n");
}

/// With at most `points` points in each distribution, the first and the last among them.
pub fn thinned(findings: &Findings, points: usize) -> Findings {
    let mut findings = findings.clone();
    for section in &mut findings.report.sections {
        for case in &mut section.cases {
            for run in case.ours.runs.iter_mut().chain(&mut case.theirs.runs) {
                match &mut run.cdf {
                    Some(_) if points == 0 => run.cdf = None,
                    Some(cdf) if cdf.len() > points => {
                        let last = cdf.len() - 1;
                        *cdf = (0..points).map(|at| cdf[at * last / (points - 1)]).collect();
                    }
                    _ => {}
                }
            }
        }
    }
    findings
}
