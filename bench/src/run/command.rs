//! `reelring-bench run`: its flags, its exit code, and where its result goes.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use super::{Eta, Options, run};
use crate::job::{self, EngineKind};
use crate::output::{self, Format};

/// Runs jobs in fio's language, given as files or as fio's own flags.
///
/// Exit code: 0, 1 when a job failed, 2 for a job that cannot be run as written, 130 after Ctrl-C; in every case but 2 what was
/// measured is printed.
#[derive(clap::Args)]
pub struct RunArgs {
    /// Job files
    #[arg(value_name = "JOBFILE")]
    files: Vec<PathBuf>,
    /// Carries the operations out, whatever ioengine= says
    #[arg(long, value_enum)]
    engine: Option<EngineKind>,
    #[arg(long, value_enum, default_value = "normal")]
    output_format: Format,
    /// Writes the result to a file instead of the standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The node for --engine http; else one is started for the run
    #[arg(long, value_name = "URL")]
    node: Option<String>,
    /// The live progress line
    #[arg(long, value_enum, default_value = "auto")]
    eta: Eta,
    /// Removes the files this run created
    #[arg(long)]
    unlink: bool,
    /// Issues nothing for this share of the time: what `compare self` plants to see whether it is found
    #[arg(long, value_name = "PERCENT", hide = true, value_parser = crate::compare::own::percent)]
    handicap: Option<f64>,
    #[command(flatten)]
    flags: job::Flags,
}

impl RunArgs {
    pub fn execute(self) -> ExitCode {
        let say = |what: &dyn std::fmt::Display| eprintln!("reelring-bench: {what}");
        let engine = self.engine;
        let jobs = match job::load(&self.files, &self.flags, engine) {
            Ok(jobs) => jobs,
            Err(error) => {
                say(&error);
                return ExitCode::from(2);
            }
        };
        let node = match self.node.as_deref().map(authority).transpose() {
            Ok(node) => node,
            Err(error) => {
                say(&error);
                return ExitCode::from(2);
            }
        };
        let report =
            match run(jobs, Options { engine, node, eta: self.eta, unlink: self.unlink, handicap: self.handicap }) {
                Ok(report) => report,
                Err(error) => {
                    say(&error);
                    return ExitCode::from(2);
                }
            };
        for failure in report.jobs.iter().filter_map(|job| job.failure.as_ref()) {
            say(&failure.message);
        }
        let text = match self.output_format {
            Format::Normal => output::human(&report),
            Format::Json => output::json(&report, false),
            Format::JsonPlus => output::json(&report, true),
        };
        let written = match &self.output {
            Some(path) => {
                std::fs::write(path, text).map_err(|error| format!("could not write {}: {error}", path.display()))
            }
            None => std::io::stdout()
                .write_all(text.as_bytes())
                .map_err(|error| format!("could not write the result: {error}")),
        };
        if let Err(error) = written {
            say(&error);
            return ExitCode::FAILURE;
        }
        match (report.interrupted, report.jobs.iter().any(|job| job.failure.is_some())) {
            (true, _) => ExitCode::from(130),
            (false, true) => ExitCode::FAILURE,
            (false, false) => ExitCode::SUCCESS,
        }
    }
}

/// `host:port` of `http://host:port/`.
fn authority(url: &str) -> Result<String, String> {
    let Some(rest) = url.strip_prefix("http://") else {
        return Err(format!("--node {url}: give http://HOST:PORT"));
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.is_empty() || rest.contains('/') {
        return Err(format!("--node {url}: give http://HOST:PORT, without a path"));
    }
    Ok(if rest.contains(':') { rest.to_owned() } else { format!("{rest}:80") })
}
