//! `reelring transcode KEY`: a transcode job.

use clap::Args;
use reelring_storage::Key;

use super::Place;
use super::display::Display;
use super::exit::Result;
use super::follow;
use super::output::Output;
use super::session::{self, Session};
use super::target::Absent;
use crate::jobs::{Job, JobSpec, TranscodeSpec};
use crate::transcode::Ladder;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  reelring transcode film.mp4                             start the job, print its id
  reelring transcode film.mp4 --ladder 360p,720p --wait   wait, print the playlist's address
  reelring jobs --watch                                   see how it goes

It plays while it is still encoded. No rendition is larger than the source. Without a
running node the command always waits, because it does the work itself.")]
pub struct Transcode {
    /// Key of the object
    key: Key,
    /// Renditions, for instance 360p,720p
    #[arg(long, default_value = "default", value_parser = ladder)]
    ladder: Ladder,
    /// Wait until it is done
    #[arg(short, long)]
    wait: bool,
    /// Print the job as JSON
    #[arg(long)]
    json: bool,
    /// No progress, no summary
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    place: Place,
}

impl Transcode {
    pub fn run(self) -> Result<()> {
        let display = Display::new(self.quiet || self.json);
        let outcome =
            session::with_jobs(self.place.target(Absent::Refuse)?, async |session| self.work(session, &display).await);
        display.clear();
        outcome
    }

    async fn work(&self, session: &Session, display: &Display) -> Result<()> {
        let spec = JobSpec::Transcode(TranscodeSpec { source: self.key.clone(), ladder: self.ladder.clone() });
        let mut job = session.client.submit(&spec).await?;
        let mut out = Output::new();
        let wait = self.wait || session.is_local();
        if wait {
            let again = format!("`reelring resume {}`", job.id);
            job = follow::to_the_end(session, job, display, &again).await?;
            display.clear();
        }
        match (self.json, wait) {
            (true, _) => out.json(&job)?,
            (false, true) => print_playlist(session, &job, display, &mut out)?,
            (false, false) => out.line(&job.id.to_string())?,
        }
        out.finish()
    }
}

/// The playlist's address of a finished job, if it made one.
pub fn print_playlist(session: &Session, job: &Job, display: &Display, out: &mut Output) -> Result<()> {
    let Some(result) = &job.result else { return Ok(()) };
    let Some(path) = &result.hls else { return Ok(()) };
    match &result.asset {
        _ if session.is_local() => display.say("`reelring serve` plays it at this path:"),
        Some(asset) => display.say(&format!("watch it at {}", session.client.full_address(&format!("/play/{asset}")))),
        None => {}
    }
    out.line(&session.client.full_address(path))
}

/// `360p,720p`, or `default`.
pub fn ladder(text: &str) -> std::result::Result<Ladder, String> {
    if text == "default" {
        return Ok(Ladder::default());
    }
    let names: Vec<&str> = text.split(',').map(str::trim).collect();
    Ladder::parse(&names).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ladder_is_a_list_of_names() {
        assert!(ladder("360p, 720p").is_ok());
        assert_eq!(ladder("default"), Ok(Ladder::default()));
        assert!(ladder("999q").unwrap_err().contains("999q"));
        assert!(ladder("").is_err());
    }
}
