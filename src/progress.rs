//! How far a job is: written by the work, read by the job layer at its own pace.
//!
//! A [`Reporter`] is one side of a watch channel. An update is a field assignment and a flag, so the work reports as
//! often as it likes; the reader decides how much of it becomes an event. Dropping the reporter ends the stream.

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Counters of one job. Bytes are bytes of the source, frames are decoded video frames, the rate is bytes per second,
/// `eta_s` is in seconds. Unknown is `None`, never zero.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub bytes_done: u64,
    pub bytes_total: Option<u64>,
    pub frames_done: u64,
    pub frames_total: Option<u64>,
    pub rate_bytes_per_s: Option<u64>,
    pub eta_s: Option<u64>,
}

/// What a job learns once about how it runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Notes {
    /// The encoder in use, for instance `libx264`.
    pub encoder: Option<String>,
    /// Why it is not the fastest one.
    pub fallback_reason: Option<String>,
}

/// The latest report of a job.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    pub progress: Progress,
    pub notes: Notes,
}

/// The writing side. Clones write to the same report.
#[derive(Debug, Clone)]
pub struct Reporter(watch::Sender<Report>);

impl Reporter {
    pub fn new() -> (Self, watch::Receiver<Report>) {
        let (sender, receiver) = watch::channel(Report::default());
        (Self(sender), receiver)
    }

    pub fn update(&self, change: impl FnOnce(&mut Progress)) {
        self.0.send_modify(|report| change(&mut report.progress));
    }

    pub fn note(&self, change: impl FnOnce(&mut Notes)) {
        self.0.send_modify(|report| change(&mut report.notes));
    }
}
