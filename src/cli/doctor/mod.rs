//! `reelring doctor`: what works on this machine, and the next step for what does not.
//!
//! Each check looks at one thing and leaves nothing behind. The trial of the data directory writes a small object the
//! way the node does, in a folder of its own that is removed again, so it works beside a running node too.

mod machine;
mod node;
mod rebuild;
mod trial;
mod workers;

use clap::Args;
use serde::Serialize;
use tokio::runtime::Builder;

use super::Place;
use super::exit::{CliError, Result};
use super::output::{self, DIM, GREEN, Output, RED, YELLOW};
use crate::config::{Config, Settings};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  reelring doctor                         one line a check: ok, warn or fail, and what to do
  reelring doctor --data /srv/media
  reelring doctor --node http://10.0.0.5:8080
  reelring doctor --json | jq '.checks[] | select(.status != \"ok\")'
  reelring doctor --rebuild --dry-run     what a new catalog would hold if the old one is lost
  reelring doctor --rebuild               build it; the old one is kept beside it

Status 1 if a check fails; warnings alone are status 0.
--rebuild reads the footers of all blobs while no node runs. Objects come back with key, type
and bytes, dated by their upload's beginning. Jobs and renditions do not. Status 1 if it fails
or a footer is damaged; such files are listed and kept.")]
pub struct Doctor {
    /// One JSON document: status, version, checks (name, status, finding, next)
    #[arg(long)]
    json: bool,
    /// Build the catalog anew from the blobs' footers
    #[arg(long)]
    rebuild: bool,
    /// With --rebuild: only look, change nothing
    #[arg(long, requires = "rebuild")]
    dry_run: bool,
    #[command(flatten)]
    place: Place,
}

/// How serious a finding is; later is worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    Warn,
    Fail,
}

#[derive(Debug, Serialize)]
pub struct Check {
    name: &'static str,
    status: Status,
    finding: String,
    /// What to do about it.
    next: Option<String>,
}

#[derive(Serialize)]
struct Report {
    status: Status,
    version: &'static str,
    checks: Vec<Check>,
}

impl Check {
    fn ok(name: &'static str, finding: impl Into<String>) -> Check {
        Check { name, status: Status::Ok, finding: finding.into(), next: None }
    }

    fn warn(name: &'static str, finding: impl Into<String>, next: impl Into<String>) -> Check {
        Check { name, status: Status::Warn, finding: finding.into(), next: Some(next.into()) }
    }

    fn fail(name: &'static str, finding: impl Into<String>, next: impl Into<String>) -> Check {
        Check { name, status: Status::Fail, finding: finding.into(), next: Some(next.into()) }
    }
}

impl Doctor {
    pub fn run(self) -> Result<()> {
        if self.rebuild {
            return rebuild::run(&self.place, self.dry_run, self.json);
        }
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| CliError::failed(format!("cannot start the runtime: {error}")))?;
        let report = runtime.block_on(self.examine());
        // A trial that hangs on a broken disk must not keep the process.
        runtime.shutdown_background();
        let mut out = Output::new();
        if self.json {
            out.json(&report)?
        } else {
            print(&mut out, &report)?
        }
        out.finish()?;
        if report.status == Status::Fail { Err(CliError::Told) } else { Ok(()) }
    }

    async fn examine(&self) -> Report {
        let flags = || Settings { data: self.place.data.clone(), ..Settings::default() };
        let (config, configuration) = match Config::resolve(self.place.config.as_deref(), flags()) {
            Ok((config, origins)) => {
                let file = origins.values().find_map(|origin| origin.strip_prefix("file "));
                let finding = file.map_or("no file, defaults and environment".into(), String::from);
                (Some(config), Check::ok("configuration", finding))
            }
            Err(error) => {
                (None, Check::fail("configuration", error.to_string(), "correct it, then run `reelring config check`"))
            }
        };
        let mut checks = vec![configuration, machine::kernel(), machine::descriptors()];
        if let Some(config) = &config {
            checks.extend(machine::volume(&config.data));
            checks.extend(machine::further_volumes(&config.volumes));
            checks.extend(trial::run(config).await);
            checks.extend(workers::examine(config));
        }
        checks.extend(node::examine(&self.place, config.as_ref()).await);
        let status = checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok);
        Report { status, version: env!("CARGO_PKG_VERSION"), checks }
    }
}

fn print(out: &mut Output, report: &Report) -> Result<()> {
    out.line(&format!("reelring {}", report.version))?;
    for check in &report.checks {
        let (word, color) = match check.status {
            Status::Ok => ("ok  ", GREEN),
            Status::Warn => ("warn", YELLOW),
            Status::Fail => ("fail", RED),
        };
        let word = out.paint(word, color);
        out.line(&format!("{word}  {:<15} {}", check.name, output::clean(&check.finding).replace('\n', " ")))?;
        if let Some(next) = &check.next {
            let arrow = out.paint("→", DIM);
            out.line(&format!("                      {arrow} {}", output::clean(next)))?;
        }
    }
    let count = |status| report.checks.iter().filter(|check| check.status == status).count();
    let summary = match (count(Status::Fail), count(Status::Warn)) {
        (0, 0) => "everything works".to_string(),
        (0, warnings) => format!("it works, with {warnings} to look at"),
        (failures, warnings) => format!("{failures} failed, {warnings} to look at"),
    };
    out.line(&summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_decides() {
        assert!(Status::Fail > Status::Warn && Status::Warn > Status::Ok);
        let json = serde_json::to_value(Check::warn("a", "b", "c")).unwrap();
        assert_eq!(json, serde_json::json!({"name": "a", "status": "warn", "finding": "b", "next": "c"}));
    }
}
