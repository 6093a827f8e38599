//! `reelring fetch URL`: a fetch job, watched until it is done.
//!
//! Ctrl-C pauses the job and its journal stays; the same command finds the job again by its request and lets it go on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use reelring_storage::Key;

use super::Place;
use super::display::Display;
use super::exit::{CliError, Result};
use super::follow;
use super::get::{self, Destination};
use super::output::{self, Output};
use super::session::{self, Session};
use super::target::{Absent, Target};
use super::transcode::{self, ladder};
use crate::config::Settings;
use crate::jobs::{FetchSpec, Job, JobSpec, JobState};
use crate::limits;
use crate::transcode::Ladder;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  reelring fetch https://example.org/film.mp4                  stored as film.mp4
  reelring fetch https://example.org/film.mp4 -o .             and copied to ./film.mp4
  reelring fetch https://example.org/film.mp4 --transcode 360p,720p
  reelring fetch https://example.org/a --key a --no-wait       only start the job, print its id
  reelring fetch http://192.168.1.7/a.mp4 --allow-private-origins

Ctrl-C pauses: the same command goes on where it stopped. The key of the object is printed,
after --transcode the address of the HLS playlist too. --json prints the finished job.")]
pub struct Fetch {
    /// Address of the media, or of a page that a plugin knows
    url: String,
    /// Key of the object [default: the name the server gives]
    #[arg(short, long)]
    key: Option<Key>,
    /// Copy the object to a file or folder too, - for standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Transcode the object afterwards, for instance to 360p,720p; `default` for the default ladder
    #[arg(long, value_name = "LADDER", value_parser = ladder)]
    transcode: Option<Ladder>,
    /// Fail unless the bytes have this SHA-256
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Send a header with the request, as `Name: value`; may be given several times
    #[arg(short = 'H', long = "header", value_name = "HEADER", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Fetch from this machine and private networks too (a running node decides that itself)
    #[arg(long)]
    allow_private_origins: bool,
    /// Start the job and return at once; its id is printed
    #[arg(long, conflicts_with = "output")]
    no_wait: bool,
    /// Print the job as JSON
    #[arg(long)]
    json: bool,
    /// No progress, no summary
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    place: Place,
}

impl Fetch {
    pub fn run(self) -> Result<()> {
        let spec = JobSpec::Fetch(FetchSpec {
            url: self.url.clone(),
            key: self.key.clone(),
            sha256: self.sha256.clone(),
            headers: self.headers.iter().cloned().collect::<BTreeMap<_, _>>(),
            transcode: self.transcode.clone(),
        });
        spec.validate().map_err(|error| CliError::usage(error.to_string()))?;
        let allow = self.allow_private_origins.then_some(true);
        let settings = Settings { allow_private_origins: allow, ..Settings::default() };
        let target = self.place.target_with(Absent::Create, settings)?;
        match &target {
            Target::Node(node) if self.allow_private_origins => {
                return Err(CliError::usage(format!(
                    "the node at {} decides itself what it may fetch from; start it with \
                     `reelring serve --allow-private-origins`",
                    node.url.host_str().unwrap_or_default()
                )));
            }
            Target::Local(_) if self.no_wait => {
                return Err(CliError::usage(
                    "--no-wait needs a running node that does the work; start one with `reelring serve`, or leave the \
                     option out",
                ));
            }
            Target::Node(_) | Target::Local(_) => {}
        }
        let display = Display::new(self.quiet || self.json);
        let outcome = session::with_jobs(target, async |session| self.work(session, &spec, &display).await);
        display.clear();
        outcome
    }

    async fn work(&self, session: &Session, spec: &JobSpec, display: &Display) -> Result<()> {
        let begun = Instant::now();
        let job = admit(session, spec, display).await?;
        let mut out = Output::new();
        if self.no_wait {
            if self.json {
                out.json(&job)?
            } else {
                out.line(&job.id.to_string())?
            }
            return out.finish();
        }
        let job = follow::to_the_end(session, job, display, "the same command").await?;
        let key = job.result.as_ref().and_then(|result| result.object.clone());
        if let (Some(output), Some(key)) = (&self.output, &key) {
            // Asked for by name: an existing file is replaced, as with `get -o`.
            let destination = Destination::choose(key, Some(output), false)?;
            get::save(session, key, &destination, display).await?;
        }
        display.clear();
        let bytes = output::bytes(job.progress.bytes_done);
        display.say(&format!("fetched {bytes} in {}", output::duration(begun.elapsed())));
        let to_stdout = self.output.as_deref().is_some_and(|path| path.as_os_str() == "-");
        if self.json {
            out.json(&job)?;
        } else if let Some(key) = &key
            && !to_stdout
        {
            out.line(key.as_str())?;
            transcode::print_playlist(session, &job, display, &mut out)?;
        }
        out.finish()
    }
}

/// The job of this request: one that was paused, interrupted or gave up goes on, otherwise a new one.
async fn admit(session: &Session, spec: &JobSpec, display: &Display) -> Result<Job> {
    let Some(known) = find(session, spec).await? else { return session.client.submit(spec).await };
    let id = &known.id;
    let have = output::bytes(known.progress.bytes_done);
    match known.state {
        JobState::Queued | JobState::Running => {
            display.say(&format!("joining job {id}, which fetches this already"));
            Ok(known)
        }
        JobState::Paused => {
            display.say(&format!("job {id} goes on, it was paused at {have}"));
            session.client.change(id, "resume").await
        }
        JobState::Failed => {
            display.say(&format!("job {id} tries again, it had {have}"));
            session.client.change(id, "retry").await
        }
        JobState::Done | JobState::Cancelled => session.client.submit(spec).await,
    }
}

/// The newest job with the same request. Headers are not shown by a node, they may be secrets, so a request with
/// headers cannot be recognised.
async fn find(session: &Session, spec: &JobSpec) -> Result<Option<Job>> {
    if matches!(spec, JobSpec::Fetch(fetch) if !fetch.headers.is_empty()) {
        return Ok(None);
    }
    let page = session.client.jobs(None, None, limits::LIST_PAGE_MAX).await?;
    Ok(page.jobs.into_iter().find(|job| job.request == *spec))
}

fn header(text: &str) -> std::result::Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("a header is written as `Name: value`")?;
    Ok((name.trim().into(), value.trim().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_split_at_the_first_colon() {
        assert_eq!(header("Referer: http://a/"), Ok(("Referer".into(), "http://a/".into())));
        assert!(header("nonsense").is_err());
    }
}
