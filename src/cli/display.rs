//! Progress on standard error: a bar with rate and remaining time on a terminal, otherwise a plain line every few
//! seconds, or nothing when machine output was asked for.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output;
use crate::jobs::{Job, JobState, Stage};

/// Between two redraws of the bar.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// Between two plain lines about the same thing.
const LINE_EVERY: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(120);
/// Over how long the rate of a transfer is averaged.
const RATE_WINDOW: Duration = Duration::from_secs(3);

/// How far something is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Position {
    /// What happens: `fetching film.mp4`.
    pub what: String,
    pub done: u64,
    pub total: Option<u64>,
    /// Whether the counts are frames; otherwise bytes.
    pub frames: bool,
    /// Bytes or frames per second.
    pub rate: Option<u64>,
    pub left: Option<Duration>,
}

/// Clones draw the same line.
#[derive(Clone)]
pub struct Display(Arc<Mutex<Kind>>);

enum Kind {
    Bar { bar: ProgressBar, what: String, known: bool, at: Instant },
    Lines { what: String, at: Instant },
    Silent,
}

impl Display {
    pub fn new(silent: bool) -> Self {
        let kind = if silent {
            Kind::Silent
        } else if io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(style(false));
            Kind::Bar { bar, what: String::new(), known: false, at: Instant::now() }
        } else {
            Kind::Lines { what: String::new(), at: Instant::now() }
        };
        Self(Arc::new(Mutex::new(kind)))
    }

    pub fn show(&self, position: &Position) {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Kind::Silent => {}
            Kind::Bar { bar, what, known, at } => {
                if *what == position.what && at.elapsed() < DRAW_EVERY {
                    return;
                }
                if what.is_empty() {
                    bar.enable_steady_tick(TICK);
                }
                what.clone_from(&position.what);
                *at = Instant::now();
                bar.set_prefix(output::clean(&position.what).into_owned());
                bar.set_message(position.counts());
                if *known != position.total.is_some() {
                    *known = position.total.is_some();
                    bar.set_style(style(*known));
                }
                if let Some(total) = position.total {
                    bar.set_length(total.max(1));
                }
                bar.set_position(position.done);
            }
            Kind::Lines { what, at } => {
                let first = what.is_empty() && at.elapsed() < LINE_EVERY;
                let same = *what == position.what;
                if first || (same && at.elapsed() < LINE_EVERY) {
                    return;
                }
                what.clone_from(&position.what);
                *at = Instant::now();
                let _ = writeln!(io::stderr(), "{}: {}", output::clean(&position.what), position.describe());
            }
        }
    }

    /// A sentence beside the progress.
    pub fn say(&self, text: &str) {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Kind::Silent => {}
            Kind::Bar { bar, .. } => bar.suspend(|| drop(writeln!(io::stderr(), "{}", output::clean(text)))),
            Kind::Lines { .. } => drop(writeln!(io::stderr(), "{}", output::clean(text))),
        }
    }

    /// Removes the bar, so that what follows starts on a clean line.
    pub fn clear(&self) {
        if let Kind::Bar { bar, .. } = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            bar.finish_and_clear();
        }
    }
}

/// With a known end in colour, without colour, and with no known end.
const TEMPLATES: [&str; 3] = [
    "{prefix} {bar:14.cyan/dim} {percent:>3} % {wide_msg}",
    "{prefix} [{bar:14}] {percent:>3} % {wide_msg}",
    "{prefix} {spinner} {wide_msg}",
];

fn style(known: bool) -> ProgressStyle {
    let template = match (known, output::color_allowed()) {
        (true, true) => TEMPLATES[0],
        (true, false) => TEMPLATES[1],
        (false, _) => TEMPLATES[2],
    };
    // The templates are constants: a mistake in one is seen by the test below.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸─")
}

impl Position {
    /// `1 %, 12.00 MiB of 1.00 GiB, 40.00 MiB/s, 23 s left`.
    pub fn describe(&self) -> String {
        match self.total.filter(|&total| total > 0) {
            Some(total) => {
                let percent = u128::from(self.done.min(total)) * 100 / u128::from(total);
                format!("{percent} %, {}", self.counts())
            }
            None => self.counts(),
        }
    }

    /// The same without the share, which a bar shows; it fits beside one in 80 columns.
    fn counts(&self) -> String {
        let count = |n: u64| if self.frames { n.to_string() } else { output::bytes(n) };
        let mut text = match self.total {
            Some(total) => format!("{} of {}", count(self.done), count(total)),
            None => count(self.done),
        };
        if self.frames {
            text.push_str(" frames");
        }
        match self.rate {
            Some(rate) if self.frames => text.push_str(&format!(", {rate} frames/s")),
            Some(rate) => text.push_str(&format!(", {}", output::rate(rate))),
            None => {}
        }
        if let Some(left) = self.left {
            text.push_str(&format!(", {} left", output::duration(left)));
        }
        text
    }
}

/// What a job is at, in the node's own figures.
pub fn of_job(job: &Job) -> Position {
    let progress = &job.progress;
    let frames = job.stage == Stage::Transcode && (progress.frames_done > 0 || progress.frames_total.is_some());
    let running = job.state == JobState::Running;
    let verb = match (job.state, job.stage) {
        (JobState::Queued, _) => "waiting",
        (JobState::Paused, _) => "paused",
        (_, Stage::Fetch) => "fetching",
        (_, Stage::Transcode) => "transcoding",
    };
    Position {
        what: verb.into(),
        done: if frames { progress.frames_done } else { progress.bytes_done },
        total: if frames { progress.frames_total } else { progress.bytes_total },
        frames,
        rate: progress.rate_bytes_per_s.filter(|_| running && !frames),
        left: progress.eta_s.filter(|_| running).map(Duration::from_secs),
    }
}

/// Counts the bytes of a transfer of our own and shows them.
pub struct Transfer {
    display: Display,
    position: Position,
    /// Start of the window over which the rate is taken, and the count then.
    since: (Instant, u64),
}

impl Transfer {
    pub fn new(display: Display, what: String, total: Option<u64>) -> Self {
        Self { display, position: Position { what, total, ..Position::default() }, since: (Instant::now(), 0) }
    }

    pub fn add(&mut self, bytes: u64) {
        self.position.done += bytes;
        let (start, before) = self.since;
        let elapsed = start.elapsed();
        if elapsed >= RATE_WINDOW {
            self.since = (Instant::now(), self.position.done);
        }
        if elapsed >= RATE_WINDOW / 4 {
            let rate = ((self.position.done - before) as f64 / elapsed.as_secs_f64()) as u64;
            self.position.rate = Some(rate);
            let missing = self.position.total.map(|total| total.saturating_sub(self.position.done));
            self.position.left = missing.and_then(|missing| missing.checked_div(rate)).map(Duration::from_secs);
        }
        self.display.show(&self.position);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_one_readable_line() {
        let mut position =
            Position { done: 12 << 20, total: Some(1 << 30), rate: Some(40 << 20), ..Position::default() };
        position.left = Some(Duration::from_secs(23));
        assert_eq!(position.describe(), "1 %, 12.00 MiB of 1.00 GiB, 40.00 MiB/s, 23 s left");
        let frames = Position { done: 50, total: Some(200), frames: true, ..Position::default() };
        assert_eq!(frames.describe(), "25 %, 50 of 200 frames");
        assert_eq!(Position { total: Some(0), ..Position::default() }.describe(), "0 B of 0 B");
        assert_eq!(Position { done: 5, ..Position::default() }.describe(), "5 B");
    }

    #[test]
    fn the_templates_are_valid() {
        for template in TEMPLATES {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn a_transfer_counts() {
        let mut transfer = Transfer::new(Display::new(true), "x".into(), Some(10));
        transfer.add(4);
        transfer.add(6);
        assert_eq!(transfer.position.done, 10);
    }
}
