//! Waiting for a job: progress until it ends, a pause on Ctrl-C, and patience with a node that restarts.

use std::time::{Duration, Instant};

use super::display::{self, Display};
use super::exit::{CliError, Result};
use super::output;
use super::session::Session;
use crate::jobs::{Job, JobId, JobState};

const POLL: Duration = Duration::from_millis(200);
/// A job survives a restart of its node, so a command that waits for it does too.
pub const ABSENCE: Duration = Duration::from_secs(20);

/// Waits until the job is done and returns it; every other end is an error that says what to do next.
pub async fn to_the_end(session: &Session, mut job: Job, display: &Display, again: &str) -> Result<Job> {
    let mut said_fallback = false;
    loop {
        display.show(&display::of_job(&job));
        if !said_fallback && let (Some(encoder), Some(reason)) = (&job.encoder, &job.fallback_reason) {
            said_fallback = true;
            display.say(&format!("encoding with {encoder}: {reason}"));
        }
        match job.state {
            JobState::Done => return Ok(job),
            JobState::Failed | JobState::Cancelled | JobState::Paused => return Err(CliError::Failed(ended(&job))),
            JobState::Queued | JobState::Running => {}
        }
        tokio::select! {
            () = session.interrupt.cancelled() => return Err(pause(session, &job.id, again).await),
            () = tokio::time::sleep(POLL) => {}
        }
        job = patiently(session, &job.id, display, again).await?;
    }
}

/// Shows the progress until the job ends in whatever way. Ctrl-C only stops the watching; a job that does not end well
/// is an error.
pub async fn watch(session: &Session, mut job: Job, display: &Display) -> Result<Job> {
    loop {
        display.show(&display::of_job(&job));
        match job.state {
            JobState::Done => return Ok(job),
            JobState::Failed | JobState::Cancelled => return Err(CliError::Failed(ended(&job))),
            JobState::Queued | JobState::Running | JobState::Paused => {}
        }
        tokio::select! {
            () = session.interrupt.cancelled() => {
                return Err(CliError::Interrupted(format!("stopped watching; job {} is {}", job.id, job.state)));
            }
            () = tokio::time::sleep(POLL) => {}
        }
        job = session.client.job(&job.id).await?;
    }
}

/// Asks for the job, over an absence of the node too.
async fn patiently(session: &Session, id: &JobId, display: &Display, again: &str) -> Result<Job> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        let error = match session.client.job(id).await {
            Ok(job) => return Ok(job),
            Err(error) => error,
        };
        if session.is_local() || begun.elapsed() >= ABSENCE {
            return Err(error);
        }
        if !told {
            told = true;
            display.say(&format!("{error}; waiting for it to come back"));
        }
        tokio::select! {
            () = session.interrupt.cancelled() => return Err(pause(session, id, again).await),
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

/// What became of a job that is not done, and the next step.
fn ended(job: &Job) -> String {
    let reason = job.error.as_deref().unwrap_or("no reason was recorded");
    let id = &job.id;
    match job.state {
        JobState::Failed => {
            let plural = if job.attempts == 1 { "" } else { "s" };
            format!("{reason} (job {id}, {} attempt{plural})", job.attempts)
        }
        JobState::Cancelled => format!("job {id} was cancelled; `reelring retry {id}` runs it again"),
        JobState::Paused => match &job.error {
            // The node's reason for a pause of its own names the way on.
            Some(reason) => format!("job {id} is paused: {reason}"),
            None => format!("job {id} was paused; `reelring resume {id}` lets it go on"),
        },
        JobState::Done | JobState::Queued | JobState::Running => format!("job {id} is {}", job.state),
    }
}

/// Pauses the job: what it has is kept, and the same command goes on from there.
async fn pause(session: &Session, id: &JobId, again: &str) -> CliError {
    let message = match session.client.change(id, "pause").await {
        Ok(job) => {
            let have = match job.progress.bytes_done {
                0 => String::new(),
                bytes => format!(" at {}", output::bytes(bytes)),
            };
            format!("job {id} is paused{have}; {again} goes on from there, `reelring cancel {id}` drops it")
        }
        Err(error) => format!("job {id} could not be paused: {error}"),
    };
    CliError::Interrupted(message)
}
