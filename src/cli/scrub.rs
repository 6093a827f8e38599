//! `reelring scrub`: reads everything that is stored and compares it with its checksums.

use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Place;
use super::client::Client;
use super::display::{Display, Position};
use super::exit::{CliError, Result};
use super::ls::local_time;
use super::output::{self, DIM, GREEN, Output, RED};
use super::session::{self, Session};
use super::target::Absent;
use crate::size::Size;

/// Between two looks at a scrub that runs.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Findings printed one by one; `--json` and `GET /v1/scrub` page through all.
const SHOWN: usize = 100;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  reelring scrub                        read and compare all; goes on where a stopped one was
  reelring scrub --rate 100M            at most 100 MiB in a second
  reelring scrub --quarantined          look again at what is damaged; release what is whole
  reelring scrub --status               how far it is, what is quarantined; changes nothing
  reelring scrub --stop
  reelring scrub --json | jq '.quarantined[] | .key'

It reads past the page cache, so it tests the disk. What does not match is quarantined: refused
from then on, its file kept. Store such an object again, put its file back from a back-up, or
delete it. Ctrl-C ends the watching; a running node goes on with the scrub.
Status 1 if anything is damaged or cannot be read.")]
pub struct Scrub {
    /// Bytes in a second at most: 32M, 1G, 0 for no limit [default: the node's scrub_rate; no limit without a node]
    #[arg(long, value_name = "SIZE")]
    rate: Option<Size>,
    /// From the first blob, also when an earlier scrub was stopped half way
    #[arg(long)]
    restart: bool,
    /// Only what is quarantined
    #[arg(long)]
    quarantined: bool,
    /// Only show how far it is and what is quarantined
    #[arg(long, conflicts_with_all = ["rate", "restart", "quarantined", "stop"])]
    status: bool,
    /// Stop the scrub that runs; the next one goes on from there
    #[arg(long, conflicts_with_all = ["rate", "restart", "quarantined"])]
    stop: bool,
    /// Start it and do not wait for its end
    #[arg(long, conflicts_with_all = ["status", "stop"])]
    detach: bool,
    /// The last status as one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Serialize)]
struct Start {
    rate_bytes_per_s: Option<u64>,
    restart: bool,
    quarantined_only: bool,
}

#[derive(Deserialize)]
struct Status {
    state: String,
    progress: Option<Progress>,
    last: Option<Finished>,
    quarantined_total: u64,
    quarantined: Vec<Refused>,
    unreadable: Vec<String>,
    strays: Vec<String>,
}

#[derive(Deserialize)]
struct Progress {
    quarantined_only: bool,
    #[serde(flatten)]
    counts: Counts,
    bytes_total: u64,
    rate_bytes_per_s: u64,
    eta_s: Option<u64>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Finished {
    finished_at: String,
    #[serde(flatten)]
    counts: Counts,
}

#[derive(Deserialize, Clone, Copy)]
struct Counts {
    blobs_done: u64,
    bytes_done: u64,
    damaged: u64,
    released: u64,
    unreadable: u64,
    strays: u64,
}

#[derive(Deserialize)]
struct Refused {
    blob: String,
    key: Option<String>,
    found_at: String,
    detail: String,
}

impl Scrub {
    pub fn run(self) -> Result<()> {
        session::with(self.place.target(Absent::Refuse)?, async |session| {
            if self.status {
                return self.tell(session.client.scrub_status().await?);
            }
            if self.stop {
                return self.tell(session.client.stop_scrub().await?);
            }
            // Without a node nobody else needs the disk.
            let rate_bytes_per_s = self.rate.map(|rate| rate.0).or(session.is_local().then_some(0));
            let start = Start { rate_bytes_per_s, restart: self.restart, quarantined_only: self.quarantined };
            let begun = session.client.start_scrub(&start).await?;
            if self.detach {
                if session.is_local() {
                    return Err(CliError::usage(
                        "--detach needs a running node: without one the scrub ends with this command",
                    ));
                }
                return self.tell(begun);
            }
            self.watch(session, begun).await
        })
    }

    async fn watch(&self, session: &Session, begun: Value) -> Result<()> {
        let display = Display::new(self.json);
        let mut answer = begun;
        loop {
            let status = parse(&answer)?;
            if status.state != "running" {
                display.clear();
                return self.tell(answer);
            }
            if let Some(progress) = &status.progress {
                display.show(&position(progress));
            }
            tokio::select! {
                () = session.interrupt.cancelled() => {
                    display.clear();
                    return Err(CliError::Interrupted(match session.is_local() {
                        true => "the scrub is stopped; the next `reelring scrub` goes on from there".into(),
                        false => "the scrub goes on in the node; `reelring scrub --stop` stops it".into(),
                    }));
                }
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            answer = session.client.scrub_status().await?;
        }
    }

    /// Prints a status. Damage is a failure, told already.
    fn tell(&self, answer: Value) -> Result<()> {
        let status = parse(&answer)?;
        let mut out = Output::new();
        if self.json {
            out.json(&answer)?;
        } else {
            print(&mut out, &status)?;
        }
        out.finish()?;
        if let Some(error) = status.progress.as_ref().and_then(|progress| progress.error.as_ref()) {
            return Err(CliError::failed(format!("the scrub ended early: {error}")));
        }
        let unreadable = newest(&status).is_some_and(|counts| counts.unreadable > 0);
        if status.quarantined_total > 0 || unreadable { Err(CliError::Told) } else { Ok(()) }
    }
}

fn parse(answer: &Value) -> Result<Status> {
    Status::deserialize(answer)
        .map_err(|error| CliError::failed(format!("the answer to /v1/scrub is not one of a Reelring node: {error}")))
}

/// The counts that the newest scrub has come to.
fn newest(status: &Status) -> Option<Counts> {
    let current = status.progress.as_ref().map(|progress| progress.counts);
    current.or(status.last.as_ref().map(|last| last.counts))
}

fn position(progress: &Progress) -> Position {
    Position {
        what: "scrubbing".into(),
        done: progress.counts.bytes_done,
        total: Some(progress.bytes_total).filter(|total| *total > 0),
        rate: Some(progress.rate_bytes_per_s).filter(|rate| *rate > 0),
        left: progress.eta_s.map(Duration::from_secs),
        ..Position::default()
    }
}

fn print(out: &mut Output, status: &Status) -> Result<()> {
    for found in status.quarantined.iter().take(SHOWN) {
        let name = found.key.clone().unwrap_or_else(|| format!("blob {}", found.blob));
        let word = out.paint("damaged", RED);
        let since = out.paint(&format!("(found {})", local_time(&found.found_at)), DIM);
        out.line(&format!("{word}  {}: {} {since}", output::clean(&name), output::clean(&found.detail)))?;
    }
    let shown = status.quarantined.len().min(SHOWN) as u64;
    if status.quarantined_total > shown {
        out.line(&format!("… and {} more; GET /v1/scrub pages through them", status.quarantined_total - shown))?;
    }
    for error in &status.unreadable {
        let word = out.paint("unreadable", RED);
        out.line(&format!("{word}  {}", output::clean(error)))?;
    }
    for path in &status.strays {
        let word = out.paint("stray", DIM);
        out.line(&format!("{word}  {} belongs to no object", output::clean(path)))?;
    }
    let text = match (&status.progress, &status.last) {
        (Some(progress), _) if status.state == "running" => format!("running: {}", position(progress).describe()),
        (Some(progress), _) if progress.quarantined_only => format!(
            "looked again at {} quarantined blobs: {} released, {} still damaged",
            progress.counts.blobs_done, progress.counts.released, progress.counts.damaged
        ),
        (Some(progress), _) => {
            format!("stopped after {} blobs; `reelring scrub` goes on from there", progress.counts.blobs_done)
        }
        (None, Some(last)) => {
            let Counts { blobs_done, bytes_done, damaged, released, unreadable, strays } = last.counts;
            let finding = match damaged + unreadable {
                0 => out.paint("all of them whole", GREEN),
                _ => format!("{damaged} damaged, {unreadable} unreadable"),
            };
            let mut text = format!(
                "{}: {blobs_done} blobs, {} read, {finding}",
                local_time(&last.finished_at),
                output::bytes(bytes_done)
            );
            if released > 0 {
                text.push_str(&format!(", {released} released"));
            }
            if strays > 0 {
                text.push_str(&format!(", {strays} files without an object"));
            }
            text
        }
        (None, None) => "nothing was scrubbed yet".into(),
    };
    out.line(&text)
}

impl Client {
    async fn start_scrub(&self, start: &Start) -> Result<Value> {
        self.post_json("/v1/scrub", start).await
    }

    async fn scrub_status(&self) -> Result<Value> {
        self.json("/v1/scrub").await
    }

    async fn stop_scrub(&self) -> Result<Value> {
        self.delete_json("/v1/scrub").await
    }
}
