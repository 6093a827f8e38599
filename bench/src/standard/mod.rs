//! `report`: the standard set, whose page is docs/benchmarks.md.
//!
//! Each step is a child process, most of them this program with another subcommand, so that the command a page shows is
//! the one that was run. What is complete is written after every step: Ctrl-C, a missing peer or a spent budget costs
//! only what they hit, and the page says what it lacks and why.
//!
//! Owns the scratch folder under `--dir` and the step under way; both end with it. Ctrl-C asks the step to end, takes
//! what it has complete, writes the page once more and exits with 130.

mod page;
mod set;
mod sweep;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use tempfile::TempDir;

use self::set::{Part, Step, Work};
use crate::compare::result::{Machine, Report, Section};
use crate::compare::{stop, usage};
use crate::limits;
use crate::picture::{Findings, Missing};
use crate::store;

#[derive(Args)]
pub struct ReportArgs {
    /// Small files and the fewest rounds: whether everything works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// Where benchmarks.md and the folder benchmarks/ go
    #[arg(long, default_value = "docs", value_name = "FOLDER")]
    out: PathBuf,
    /// Only these parts
    #[arg(long, value_delimiter = ',', value_name = "PART,…")]
    only: Vec<PartName>,
    /// Time for everything: 90s, 20m; what no longer fits is left out, and the page says so
    #[arg(long, default_value = "20m", value_parser = span)]
    budget: Duration,
    /// Where the measured files go; choose the volume to measure
    #[arg(long, default_value = ".", value_name = "FOLDER")]
    dir: PathBuf,
    /// The job files
    #[arg(long, default_value = "bench/jobs", value_name = "FOLDER")]
    jobs: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PartName {
    /// An engine against itself: how small a difference this machine can tell
    #[value(name = "self")]
    Own,
    /// Job files beside fio
    Fio,
    /// Whole objects through the store
    Store,
    /// All engines and fio along block size and depth
    Sweep,
    /// Serving beside nginx
    Nginx,
    /// Storing beside fio and nginx's dav
    Upload,
    /// Fetching beside aria2
    Aria2,
    /// Encoding beside ffmpeg
    Ffmpeg,
}

/// Call it on the main thread: what it starts dies with the thread that started it.
pub fn main(args: &ReportArgs, runtime: &tokio::runtime::Runtime) -> anyhow::Result<ExitCode> {
    let _inside = runtime.enter();
    stop::listen()?;
    let scratch = tempfile::Builder::new().prefix("reelring-bench-").tempdir_in(&args.dir);
    let scratch = scratch.with_context(|| format!("could not make a scratch folder in {}", args.dir.display()))?;
    let parts = set::parts(args.quick, &args.jobs);
    let mut session = Session {
        args,
        program: std::env::current_exe().context("the path of this program")?,
        scratch,
        started: Instant::now(),
        findings: Findings {
            report: Report { machine: Machine::read(&args.dir), sections: Vec::new() },
            sweeps: Vec::new(),
            tables: Vec::new(),
            missing: Vec::new(),
        },
    };
    session.run(&parts)?;
    let page = args.out.join(page::FILE);
    if stop::asked() {
        eprintln!("stopped; what was complete is in {}", page.display());
        return Ok(ExitCode::from(stop::EXIT));
    }
    eprintln!("{} written after {} s", page.display(), session.started.elapsed().as_secs());
    Ok(if session.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

struct Session<'a> {
    args: &'a ReportArgs,
    program: PathBuf,
    scratch: TempDir,
    started: Instant,
    findings: Findings,
}

impl Session<'_> {
    fn run(&mut self, parts: &[Part]) -> anyhow::Result<()> {
        let chosen = |part: &Part| self.args.only.is_empty() || self.args.only.contains(&part.name);
        let mut ahead: Vec<(&Part, &Step)> = Vec::new();
        for part in parts {
            if chosen(part) {
                ahead.extend(part.steps.iter().map(|step| (part, step)));
            } else {
                self.findings.missing.push(Missing { title: part.title.into(), reason: "left out by --only".into() });
            }
        }
        let all = ahead.len();
        let mut known = self.findings.missing.len();
        for at in 0..all {
            let (part, step) = ahead[at];
            if !stop::asked() {
                self.announce(at + 1, all, step, &ahead[at..]);
                if let Err(reason) = self.step(part, step) {
                    self.miss(step, reason);
                }
            }
            // The page of this moment also names what is still to come: an interruption may make it the last one.
            known = self.findings.missing.len().max(known);
            let reason = if stop::asked() {
                "the run was stopped before"
            } else {
                "not yet measured when this page was written"
            };
            let rest =
                ahead[at + 1..].iter().map(|(_, step)| Missing { title: step.title.clone(), reason: reason.into() });
            self.findings.missing.extend(rest);
            self.findings.report.machine.finish();
            page::write(&self.args.out, &self.findings)?;
            if stop::asked() {
                return Ok(());
            }
            self.findings.missing.truncate(known);
        }
        Ok(())
    }

    fn announce(&self, number: usize, all: usize, step: &Step, ahead: &[(&Part, &Step)]) {
        let planned: f64 = ahead.iter().map(|(_, step)| step.seconds).sum();
        let left = planned.min(self.left().as_secs_f64()) / 60.0;
        eprintln!("[{number}/{all}] {} · about {:.0} s · {left:.0} min left at most", step.title, step.seconds.ceil());
    }

    fn left(&self) -> Duration {
        self.args.budget.saturating_sub(self.started.elapsed())
    }

    fn miss(&mut self, step: &Step, reason: anyhow::Error) {
        // A chain on one line: a page's list has no room for a traceback.
        let reason = format!("{reason:#}").split_whitespace().collect::<Vec<_>>().join(" ");
        let reason = self.without_paths(reason);
        let reason: String = reason.chars().take(limits::REASON_CHARS).collect();
        eprintln!("  {reason}");
        self.findings.missing.push(Missing { title: step.title.clone(), reason });
    }

    /// Without names of this run alone: the next page would differ by them.
    fn without_paths(&self, text: String) -> String {
        let folder = self.program.parent().map(|folder| format!("{}/", folder.display())).unwrap_or_default();
        let text = if folder.len() > 1 { text.replace(&folder, "") } else { text };
        text.replace(&self.scratch.path().display().to_string(), "…")
    }

    /// One step within its limit. An error says what is missing; what was complete has been taken all the same.
    fn step(&mut self, part: &Part, step: &Step) -> anyhow::Result<()> {
        // A step that would end long after the budget is not begun; one that is under way may run over its plan.
        let (left, planned) = (self.left(), Duration::from_secs_f64(step.seconds));
        if left < planned.mul_f64(0.7) {
            let (planned, left) = (planned.as_secs(), left.as_secs());
            bail!(
                "it takes about {planned} s and the budget of {:?} had {left} s left; give a larger --budget",
                self.args.budget
            );
        }
        let limit = planned.mul_f64(limits::STEP_OVERRUN).min(left).max(limits::STEP_LEAST);
        match &step.work {
            Work::Compare(words) => self.compare(part, words, limit),
            Work::Store(words) => {
                let outcomes = self.store(words, limit)?;
                let command = format!("reelring-bench {}", words.join(" "));
                self.findings.tables.push(store::table(&outcomes, command));
                Ok(())
            }
            Work::Sweep(plan) => {
                let (sweep, outcome) = sweep::run(plan, &self.program, self.scratch.path(), Instant::now() + limit);
                self.findings.sweeps.extend(sweep);
                outcome
            }
        }
    }

    fn compare(&mut self, part: &Part, words: &[String], limit: Duration) -> anyhow::Result<()> {
        let json = self.scratch.path().join("section.json");
        let _ = fs::remove_file(&json);
        let mut command = Command::new(&self.program);
        command.args(words).arg("--dir").arg(self.scratch.path()).arg("--json").arg(&json);
        let outcome = self.child(command, limit, &self.scratch.path().join("section.txt"));
        if let Ok(text) = fs::read(&json) {
            let report: Report =
                serde_json::from_slice(&text).with_context(|| format!("what `{}` wrote", words.join(" ")))?;
            self.findings.report.machine.versions.extend(report.machine.versions);
            for section in report.sections {
                self.take(part, words, section);
            }
        }
        outcome
    }

    /// Steps of one part become one section: the cases of all, and every note once.
    fn take(&mut self, part: &Part, words: &[String], mut section: Section) {
        section.notes = section.notes.into_iter().map(|note| self.without_paths(note)).collect();
        let command = format!("reelring-bench {}", words.join(" "));
        if section.cases.is_empty() {
            return;
        }
        let sections = &mut self.findings.report.sections;
        match sections.iter_mut().find(|known| known.id == part.id()) {
            Some(known) => {
                known.command = format!("{}\n{command}", known.command);
                section.notes.retain(|note| !known.notes.contains(note));
                known.notes.append(&mut section.notes);
                known.cases.append(&mut section.cases);
            }
            None => sections.push(Section { id: part.id().into(), title: part.title.into(), command, ..section }),
        }
    }

    /// A process each, so that every one shows its own peak of memory.
    fn store(&self, words: &[String], limit: Duration) -> anyhow::Result<Vec<store::Outcome>> {
        let rounds = if self.args.quick { 1 } else { limits::STORE_ROUNDS };
        let ends = Instant::now() + limit;
        let mut outcomes = Vec::new();
        for _ in 0..rounds {
            let json = self.scratch.path().join("store.json");
            let mut command = Command::new(&self.program);
            command.args(words).arg("--dir").arg(self.scratch.path()).arg("--json");
            let outcome = self.child(command, ends.saturating_duration_since(Instant::now()), &json);
            match outcome {
                Ok(()) => outcomes.push(serde_json::from_slice(&fs::read(&json)?).context("what `store` wrote")?),
                Err(error) if outcomes.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(outcomes)
    }

    /// Runs a program to its end, its output into `stdout`. Past the limit, or stopped, it is asked to end first and may
    /// still write what it has.
    fn child(&self, mut command: Command, limit: Duration, stdout: &Path) -> anyhow::Result<()> {
        let errors = self.scratch.path().join("stderr.txt");
        let create = |path: &Path| File::create(path).with_context(|| format!("could not create {}", path.display()));
        command.stdin(Stdio::null()).stdout(create(stdout)?).stderr(create(&errors)?);
        let mut running = usage::Running::start(&mut command)?;
        let ends = Instant::now() + limit;
        let status = loop {
            if let Some(status) = running.ended()? {
                break status;
            }
            if stop::asked() || Instant::now() >= ends {
                running.end(limits::STEP_GRACE);
                if stop::asked() {
                    bail!("the run was stopped during it");
                }
                bail!(
                    "it was ended after {} s, its share of the budget; what it had complete is shown",
                    limit.as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        if !status.success() {
            let text = fs::read(&errors).unwrap_or_default();
            bail!("{}", said(&String::from_utf8_lossy(&text), &status.to_string()));
        }
        Ok(())
    }

    fn is_empty(&self) -> bool {
        let Findings { report, sweeps, tables, .. } = &self.findings;
        report.sections.is_empty() && sweeps.is_empty() && tables.is_empty()
    }
}

/// The error a program ended with, from what it wrote: what follows its name or `error:`, or else its last line.
fn said(stderr: &str, status: &str) -> String {
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    fn error(line: &str) -> Option<&str> {
        ["reelring-bench: ", "error: "].iter().find_map(|begin| line.strip_prefix(begin))
    }
    // The command line's parser goes on with advice, which is no reason.
    let advice = |line: &str| line.starts_with("Usage:") || line.starts_with("For more");
    let from = lines.iter().rposition(|line| error(line).is_some()).unwrap_or(lines.len().saturating_sub(1));
    let text: Vec<&str> = lines[from..].iter().copied().take_while(|line| !advice(line)).collect();
    let text = text.join(" ");
    let text = error(&text).unwrap_or(&text);
    if text.is_empty() { format!("it ended with {status} and said nothing") } else { text.to_owned() }
}

/// `90s`, `20m`, `1h`, or a bare number of seconds.
fn span(text: &str) -> Result<Duration, String> {
    let (digits, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(digits) => (digits, &text[digits.len()..]),
        None => (text, "s"),
    };
    let factor = match unit {
        "h" => 3600.0,
        "m" => 60.0,
        _ => 1.0,
    };
    let seconds: f64 = digits.parse().map_err(|_| format!("{text:?} is no span of time: write 90s, 20m or 1h"))?;
    let seconds = seconds * factor;
    if (1.0..=86_400.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(format!("{text} is not between 1s and 24h"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time() {
        assert_eq!(span("20m"), Ok(Duration::from_secs(1200)));
        assert_eq!((span("90s"), span("90")), (Ok(Duration::from_secs(90)), Ok(Duration::from_secs(90))));
        for bad in ["", "m", "0", "-1s", "25h", "ten"] {
            assert!(span(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_reason_is_what_the_program_said_last() {
        let text = "round 1\nreelring-bench: nginx is not installed\n  no file in /tmp/x7/nginx\n";
        assert_eq!(said(text, "exit status: 1"), "nginx is not installed no file in /tmp/x7/nginx");
        let advice = "error: unexpected argument '--x' found\n\nUsage: a [b]\n\nFor more information, try '--help'.\n";
        assert_eq!(said(advice, "exit status: 2"), "unexpected argument '--x' found");
        assert_eq!(said("one\ntwo\n", "signal: 9"), "two");
        assert_eq!(said("", "signal: 9"), "it ended with signal: 9 and said nothing");
    }
}
