//! `reelring jobs`, and what is done to one job: `cancel`, `pause`, `resume`, `retry`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use clap::Args;

use super::Place;
use super::display::{self, Display};
use super::exit::{CliError, Result};
use super::follow;
use super::ls::local_time;
use super::output::{self, GREEN, Output, RED, YELLOW};
use super::session::{self, Session};
use super::target::Absent;
use crate::jobs::{Job, JobId, JobSpec, JobState, Stage};
use crate::limits;

/// Before `--watch` asks a node again that ended the stream.
const RECONNECT: Duration = Duration::from_millis(500);
/// A job that only advances is worth a line this often.
const WATCH_LINE: Duration = Duration::from_secs(5);
/// Jobs `--watch` begins with: the newest.
const WATCHED: usize = 100;
/// Jobs it remembers, so that nothing is shown twice; finished ones are forgotten first.
const SEEN: usize = 10_000;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  reelring jobs                             the newest jobs
  reelring jobs --state failed --limit 1000
  reelring jobs ID                          everything about one
  reelring jobs ID --watch                  its progress to the end, status 1 if it fails
  reelring jobs --watch                     a line for every change, until Ctrl-C
  reelring jobs --json                      one JSON object per line (--watch: per change)")]
pub struct Jobs {
    /// Only this job
    id: Option<JobId>,
    /// Follow the progress
    #[arg(short, long)]
    watch: bool,
    /// Only jobs in this state: queued, running, paused, done, failed or cancelled
    #[arg(long, conflicts_with = "id")]
    state: Option<JobState>,
    /// How many jobs at most
    #[arg(long, value_name = "N", default_value_t = 100, conflicts_with = "id",
          value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    limit: u64,
    /// JSON, one object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

impl Jobs {
    pub fn run(self) -> Result<()> {
        session::with(self.place.target(Absent::Refuse)?, async |session| match &self.id {
            Some(id) if self.watch => self.follow_one(session, id).await,
            Some(id) => self.show(&session.client.job(id).await?),
            None if self.watch => self.follow_all(session).await,
            None => self.list(session).await,
        })
    }

    async fn list(&self, session: &Session) -> Result<()> {
        let mut out = Output::new();
        let mut rows = Vec::new();
        let mut after: Option<JobId> = None;
        let mut left = usize::try_from(self.limit).unwrap_or(usize::MAX);
        while left > 0 {
            let page = session.client.jobs(self.state, after.as_ref(), left.min(limits::LIST_PAGE_MAX)).await?;
            left = left.saturating_sub(page.jobs.len());
            for job in &page.jobs {
                if self.json { out.json(job)? } else { rows.push(row(job)) }
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        if !rows.is_empty() {
            let header = ["ID", "KIND", "STATE", "CREATED", "PROGRESS", "WHAT"];
            rows.insert(0, header.map(String::from).to_vec());
        }
        output::table(&rows).iter().try_for_each(|line| out.line(line))?;
        out.finish()
    }

    fn show(&self, job: &Job) -> Result<()> {
        let mut out = Output::new();
        if self.json {
            out.json(job)?;
            return out.finish();
        }
        let color = color_of(job.state);
        let state = out.paint(job.state.as_str(), color);
        let mut rows = vec![
            ("id", job.id.to_string()),
            ("kind", job.kind.clone()),
            ("state", state),
            ("what", what(job)),
            ("progress", display::of_job(job).describe()),
            ("attempts", job.attempts.to_string()),
        ];
        let time = |time: jiff::Timestamp| local_time(&time.to_string());
        rows.push(("created", time(job.created_at)));
        rows.extend(job.started_at.map(|at| ("started", time(at))));
        rows.extend(job.finished_at.map(|at| ("finished", time(at))));
        rows.extend(job.encoder.clone().map(|text| ("encoder", text)));
        rows.extend(job.fallback_reason.clone().map(|text| ("because", text)));
        rows.extend(job.error.clone().map(|text| ("error", text)));
        if let Some(result) = &job.result {
            rows.extend(result.object.as_ref().map(|key| ("object", key.to_string())));
            rows.extend(result.hls.clone().map(|path| ("hls", path)));
        }
        for (name, value) in rows {
            // Only the state is painted; everything else may be foreign text.
            let value = if name == "state" { value.into() } else { output::clean(&value) };
            out.line(&format!("{name:<9} {value}"))?;
        }
        out.finish()
    }

    async fn follow_one(&self, session: &Session, id: &JobId) -> Result<()> {
        let display = Display::new(self.json);
        let job = session.client.job(id).await?;
        if session.is_local() && !job.state.is_final() {
            return Err(nothing_to_watch());
        }
        let outcome = follow::watch(session, job, &display).await;
        display.clear();
        self.show(&outcome?)
    }

    /// The newest jobs, then a line for every change, over a restart of the node too.
    async fn follow_all(&self, session: &Session) -> Result<()> {
        if session.is_local() {
            return Err(nothing_to_watch());
        }
        let mut watcher = Watcher { json: self.json, state: self.state, out: Output::new(), seen: HashMap::new() };
        let mut away: Option<Instant> = None;
        loop {
            let outcome = tokio::select! {
                outcome = watcher.follow(session, &mut away) => outcome,
                () = session.interrupt.cancelled() => return Err(CliError::Interrupted("stopped watching".into())),
            };
            if let Err(error) = outcome {
                let since = *away.get_or_insert_with(Instant::now);
                if matches!(error, CliError::Output(_)) || since.elapsed() >= follow::ABSENCE {
                    return Err(error);
                }
            }
            tokio::select! {
                () = session.interrupt.cancelled() => return Err(CliError::Interrupted("stopped watching".into())),
                () = tokio::time::sleep(RECONNECT) => {}
            }
        }
    }
}

/// What `jobs --watch` has shown.
struct Watcher {
    json: bool,
    state: Option<JobState>,
    out: Output,
    seen: HashMap<JobId, (Job, Instant)>,
}

impl Watcher {
    /// Lists, then follows the events until the node ends the stream or some were missed.
    async fn follow(&mut self, session: &Session, away: &mut Option<Instant>) -> Result<()> {
        // Followed before it is listed: a change in between is seen twice, never missed.
        let mut events = session.client.events().await?;
        let page = session.client.jobs(self.state, None, WATCHED).await?;
        *away = None;
        for job in page.jobs.into_iter().rev() {
            self.show(job)?;
        }
        self.out.flush()?;
        while let Some(event) = events.next().await? {
            if event.name != "job" {
                break;
            }
            if let Ok(job) = serde_json::from_str(&event.data) {
                self.show(job)?;
                self.out.flush()?;
            }
        }
        Ok(())
    }

    fn show(&mut self, job: Job) -> Result<()> {
        let due = match self.seen.get(&job.id) {
            None => true,
            Some((old, _)) if self.json => *old != job,
            Some((old, at)) => {
                let moved = (old.state, old.stage) != (job.state, job.stage);
                moved || (old.progress != job.progress && at.elapsed() >= WATCH_LINE)
            }
        };
        if !due || self.state.is_some_and(|state| state != job.state) {
            return Ok(());
        }
        if self.json {
            self.out.json(&job)?
        } else {
            self.out.line(&row(&job).join("  "))?
        }
        if self.seen.len() >= SEEN && !self.seen.contains_key(&job.id) {
            self.seen.retain(|_, (old, _)| !old.state.is_final());
        }
        self.seen.insert(job.id.clone(), (job, Instant::now()));
        Ok(())
    }
}

fn nothing_to_watch() -> CliError {
    CliError::failed(
        "no node runs on this data directory, so nothing will happen to watch; start one with `reelring serve`",
    )
}

fn row(job: &Job) -> Vec<String> {
    let mut text = what(job);
    if let Some(error) = &job.error {
        text = format!("{text}: {error}");
    }
    vec![
        job.id.to_string(),
        job.kind.clone(),
        job.state.to_string(),
        local_time(&job.created_at.to_string()),
        progress(job),
        output::clean(&text).replace('\n', " "),
    ]
}

/// Short enough for a column.
fn progress(job: &Job) -> String {
    let progress = &job.progress;
    let (done, total) = match job.stage {
        _ if job.state == JobState::Done => return "100 %".into(),
        Stage::Transcode if progress.frames_total.is_some() => (progress.frames_done, progress.frames_total),
        Stage::Fetch | Stage::Transcode => (progress.bytes_done, progress.bytes_total),
    };
    match total {
        Some(total) if total > 0 => format!("{} %", u128::from(done.min(total)) * 100 / u128::from(total)),
        _ if done > 0 => output::bytes(done),
        _ => "-".into(),
    }
}

fn what(job: &Job) -> String {
    match &job.request {
        JobSpec::Fetch(fetch) => fetch.url.clone(),
        JobSpec::Transcode(transcode) => transcode.source.to_string(),
    }
}

fn color_of(state: JobState) -> &'static str {
    match state {
        JobState::Done => GREEN,
        JobState::Failed | JobState::Cancelled => RED,
        JobState::Queued | JobState::Running | JobState::Paused => YELLOW,
    }
}

/// Defines a subcommand that does one thing to one job.
macro_rules! on_one_job {
    ($name:ident, $help:literal, |$session:ident, $id:ident| $call:expr) => {
        #[derive(Debug, Args)]
        #[command(after_help = $help)]
        pub struct $name {
            /// The job, as `reelring jobs` lists it
            id: JobId,
            /// Print the job as JSON
            #[arg(long)]
            json: bool,
            #[command(flatten)]
            place: Place,
        }

        impl $name {
            pub fn run(self) -> Result<()> {
                let $id = &self.id;
                session::with(self.place.target(Absent::Refuse)?, async |$session| {
                    changed($session, &$call.await?, self.json)
                })
            }
        }
    };
}

on_one_job!(
    Cancel,
    "\
Examples:
  reelring cancel 019a2b3c4d5e7f60a1b2c3d4e5f60718

What the job had of an unfinished object is removed; `reelring retry` starts it again
from the beginning.",
    |session, id| session.client.cancel(id)
);
on_one_job!(
    Pause,
    "\
Examples:
  reelring pause 019a2b3c4d5e7f60a1b2c3d4e5f60718

What the job has is kept, over a restart of the node too; `reelring resume` goes on from there.",
    |session, id| session.client.change(id, "pause")
);
on_one_job!(
    Resume,
    "\
Examples:
  reelring resume 019a2b3c4d5e7f60a1b2c3d4e5f60718
  reelring jobs 019a2b3c4d5e7f60a1b2c3d4e5f60718 --watch",
    |session, id| session.client.change(id, "resume")
);
on_one_job!(
    Retry,
    "\
Examples:
  reelring retry 019a2b3c4d5e7f60a1b2c3d4e5f60718
  reelring jobs --state failed --json | jq -r .id | xargs -n 1 reelring retry",
    |session, id| session.client.change(id, "retry")
);

fn changed(session: &Session, job: &Job, json: bool) -> Result<()> {
    let mut out = Output::new();
    if session.is_local() && !job.state.is_final() && job.state != JobState::Paused {
        Display::new(json).say("no node runs here: the job goes on at the next `reelring serve`");
    }
    if json {
        out.json(job)?
    } else {
        out.line(&format!("{} {}", job.id, job.state))?
    }
    out.finish()
}
