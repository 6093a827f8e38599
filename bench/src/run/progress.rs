//! The live line, as fio writes it: who works, how far, how fast, how long yet. On stderr, and only on a terminal unless asked.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::lane::Live;
use crate::job::{Job, Pattern};
use crate::output::{decimal, kibi};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Eta {
    /// On a terminal.
    Auto,
    Always,
    Never,
}

pub struct Progress {
    shown: bool,
    terminal: bool,
    next: Instant,
    before: [u64; 4],
    since: Instant,
    width: usize,
}

/// One lane as the line sees it.
pub struct Watched {
    pub live: Arc<Live>,
    pub job: Arc<Job>,
    /// Bytes of its files.
    pub size: u64,
}

const EVERY: Duration = Duration::from_secs(1);

impl Progress {
    pub fn new(eta: Eta) -> Progress {
        let terminal = std::io::stderr().is_terminal();
        let shown = eta == Eta::Always || eta == Eta::Auto && terminal;
        let now = Instant::now();
        Progress { shown, terminal, next: now + EVERY, before: [0; 4], since: now, width: 0 }
    }

    /// Writes the line if its time has come.
    pub fn show(&mut self, phase_started: Instant, lanes: &[Watched]) {
        let now = Instant::now();
        if !self.shown || now < self.next {
            return;
        }
        self.next = now + EVERY;
        let count = |f: fn(&Live) -> u64| lanes.iter().map(|lane| f(&lane.live)).sum::<u64>();
        let totals = [
            count(|live| live.bytes[0].load(Relaxed)),
            count(|live| live.bytes[1].load(Relaxed)),
            count(|live| live.operations[0].load(Relaxed)),
            count(|live| live.operations[1].load(Relaxed)),
        ];
        let seconds = (now - self.since).as_secs_f64();
        let per_second = |i: usize| (totals[i].saturating_sub(self.before[i]) as f64 / seconds) as u64;
        let running: Vec<_> = lanes.iter().filter(|lane| !lane.live.done.load(Relaxed)).collect();
        let part = lanes.iter().map(|lane| lane.part_done(now - phase_started)).fold(1.0, f64::min);
        let mut rates = (String::new(), String::new());
        for (side, name) in ["r", "w"].into_iter().enumerate() {
            if lanes.iter().any(|lane| if side == 0 { lane.job.rw.reads } else { lane.job.rw.writes }) {
                let comma = if rates.0.is_empty() { "" } else { "," };
                rates.0 += &format!("{comma}{name}={}B/s", kibi(per_second(side)));
                rates.1 += &format!("{comma}{name}={}", decimal(per_second(side + 2)));
            }
        }
        let left = if part > 0.0 { (now - phase_started).mul_f64((1.0 - part) / part).as_secs() } else { 0 };
        let letters: String = lanes.iter().take(64).map(Watched::letter).collect();
        let line = format!(
            "Jobs: {} (f={}): [{letters}][{:.1}%][{}][{} IOPS][eta {:02}m:{:02}s]",
            running.len(),
            running.iter().map(|lane| lane.job.files.count()).sum::<usize>(),
            part * 100.0,
            rates.0,
            rates.1,
            left / 60,
            left % 60
        );
        (self.before, self.since) = (totals, now);
        let mut out = std::io::stderr().lock();
        // A progress line that cannot be written is no reason to stop.
        let _ = if self.terminal {
            let width = std::mem::replace(&mut self.width, line.len());
            write!(out, "\r{line:<width$}").and_then(|()| out.flush())
        } else {
            writeln!(out, "{line}")
        };
    }

    /// Leaves the line, so that other words begin on one of their own.
    pub fn end(&mut self) {
        if self.terminal && self.width > 0 {
            eprintln!();
        }
        self.width = 0;
        self.before = [0; 4];
    }
}

impl Watched {
    /// Between 0 and 1.
    fn part_done(&self, elapsed: Duration) -> f64 {
        if self.live.done.load(Relaxed) {
            return 1.0;
        }
        let bytes: u64 = self.live.bytes.iter().map(|bytes| bytes.load(Relaxed)).sum();
        let wanted = self.job.io_size.unwrap_or(self.size).max(1);
        let by_size = if self.job.time_based { 0.0 } else { bytes as f64 / wanted as f64 };
        let by_time = self
            .job
            .runtime
            .map_or(0.0, |runtime| elapsed.as_secs_f64() / (runtime + self.job.ramp_time).as_secs_f64().max(1e-9));
        by_size.max(by_time).min(1.0)
    }

    /// As fio marks a clone: R, W, M for sequential, r, w, m for random, _ when it is done, / in its ramp.
    fn letter(&self) -> char {
        if self.live.done.load(Relaxed) {
            return '_';
        }
        if !self.live.measuring.load(Relaxed) {
            return '/';
        }
        let letter = match (self.job.rw.reads, self.job.rw.writes) {
            (true, true) => 'M',
            (true, false) => 'R',
            _ => 'W',
        };
        if self.job.rw.pattern == Pattern::Random { letter.to_ascii_lowercase() } else { letter }
    }
}
