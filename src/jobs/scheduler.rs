//! Decides which job runs when, and owns the runs.
//!
//! One task waits for a wake-up (a submission, the end of a run, a retry that is due), fills the free slots of each
//! stage's lane, and sleeps again: an idle node does nothing here. Each run is a task of its own; its end is written to
//! the catalog before its slot is given on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::events::Events;
use super::model::{JobId, JobState, Record, Stage};
use super::queue::Queue;
use super::run::{Outcome, Workshop};
use crate::error::{Failure, FailureKind};
use crate::limits;
use crate::progress::{Report, Reporter};

/// Why a run was asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Cancelled,
    Paused,
    Drained,
}

pub(super) struct Scheduler {
    queue: Queue,
    events: Events,
    workshop: Workshop,
    wake: Notify,
    draining: AtomicBool,
    /// Held from a job's leaving the queue until its run is known.
    starting: tokio::sync::Mutex<()>,
    running: Mutex<HashMap<JobId, Running>>,
    tasks: TaskTracker,
}

struct Running {
    stage: Stage,
    stop: CancellationToken,
    /// The first wish wins: a cancel is not undone by the drain that follows it.
    wish: Option<Ended>,
    report: watch::Receiver<Report>,
    over: CancellationToken,
}

impl Scheduler {
    pub fn new(queue: Queue, events: Events, workshop: Workshop) -> Arc<Self> {
        Arc::new(Self {
            queue,
            events,
            workshop,
            wake: Notify::new(),
            draining: AtomicBool::new(false),
            starting: tokio::sync::Mutex::new(()),
            running: Mutex::default(),
            tasks: TaskTracker::new(),
        })
    }

    pub fn start(self: &Arc<Self>) {
        self.wake();
        self.tasks.spawn(self.clone().schedule());
    }

    pub fn wake(&self) {
        self.wake.notify_one();
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// What a running job last reported.
    pub fn report(&self, id: &JobId) -> Option<Report> {
        self.running().get(id).map(|running| running.report.borrow().clone())
    }

    /// While the guard lives, no job goes from the queue into a run.
    pub async fn hold_starts(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.starting.lock().await
    }

    /// Asks a run to stop and waits until its end is recorded. Does nothing for a job that does not run.
    pub async fn stop(&self, id: &JobId, ended: Ended) {
        let over = {
            let mut running = self.running();
            let Some(run) = running.get_mut(id) else { return };
            run.wish.get_or_insert(ended);
            run.stop.cancel();
            run.over.clone()
        };
        over.cancelled().await;
    }

    /// Stops all runs, their jobs queued again, and waits for them.
    pub async fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.wake();
        for run in self.running().values_mut() {
            run.wish.get_or_insert(Ended::Drained);
            run.stop.cancel();
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Removes what a job that will not go on left of its unfinished object and asset.
    pub async fn discard(&self, record: &Record) {
        let discarded = match record.stage {
            Stage::Fetch => self.workshop.store.discard_partial(record.blob).await.map_err(Failure::from),
            Stage::Transcode => self.workshop.transcoder.discard(&record.asset).await,
        };
        if let Err(error) = discarded {
            tracing::warn!(job = %record.id, %error, "could not remove what the job left; the next start will");
        }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<JobId, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn schedule(self: Arc<Self>) {
        while !self.is_draining() {
            let filled = async {
                self.fill(Stage::Fetch, limits::FETCHES_RUNNING).await?;
                self.fill(Stage::Transcode, limits::TRANSCODES_RUNNING).await?;
                self.queue.next_due().await
            };
            let due = match filled.await {
                Ok(due) => due,
                Err(error) => {
                    tracing::error!(%error, "the job queue cannot be read; trying again in 5 s");
                    Some(Timestamp::now() + SignedDuration::from_secs(5))
                }
            };
            match due {
                None => self.wake.notified().await,
                Some(due) => {
                    let pause =
                        Timestamp::now().duration_until(due).max(SignedDuration::from_millis(10)).unsigned_abs();
                    let _ = tokio::time::timeout(pause, self.wake.notified()).await;
                }
            }
        }
    }

    async fn fill(self: &Arc<Self>, stage: Stage, slots: usize) -> Result<(), reelring_storage::Error> {
        while !self.is_draining() && self.running().values().filter(|run| run.stage == stage).count() < slots {
            let _starting = self.starting.lock().await;
            let Some(record) = self.queue.take(stage, Timestamp::now()).await? else { return Ok(()) };
            self.begin(record);
        }
        Ok(())
    }

    fn begin(self: &Arc<Self>, record: Record) {
        let (reporter, report) = Reporter::new();
        reporter.update(|progress| *progress = record.progress.clone());
        reporter.note(|notes| *notes = record.notes.clone());
        let run = Running {
            stage: record.stage,
            stop: CancellationToken::new(),
            wish: None,
            report: report.clone(),
            over: CancellationToken::new(),
        };
        let (stop, over) = (run.stop.clone(), run.over.clone());
        self.running().insert(record.id.clone(), run);
        // A drain between `take` and here did not see this run.
        if self.is_draining() {
            self.running().entry(record.id.clone()).and_modify(|run| run.wish = Some(Ended::Drained));
            stop.cancel();
        }
        self.events.publish(&record.view());
        let scheduler = self.clone();
        self.tasks.spawn(async move {
            let id = record.id.clone();
            scheduler.run(record, reporter, report, stop).await;
            scheduler.running().remove(&id);
            over.cancel();
            scheduler.wake();
        });
    }

    async fn run(
        &self,
        mut record: Record,
        reporter: Reporter,
        report: watch::Receiver<Report>,
        stop: CancellationToken,
    ) {
        let watching = CancellationToken::new();
        let announce = self.announce(record.clone(), report, watching.clone());
        let work = async {
            let outcome = match record.stage {
                Stage::Fetch => self.workshop.fetch(&record, &reporter, &stop).await,
                Stage::Transcode => self.workshop.transcode(&record, &reporter, &stop).await,
            };
            watching.cancel();
            outcome
        };
        let (outcome, report) = tokio::join!(work, announce);
        record.progress = report.progress;
        record.notes = report.notes;
        let wish = self.running().get(&record.id).and_then(|run| run.wish);
        settle(&mut record, outcome, wish);
        if record.state == JobState::Cancelled || (record.state == JobState::Failed && !record.keep_partial) {
            self.discard(&record).await;
        }
        self.record_end(&record).await;
    }

    /// The end of a run must reach the catalog, or the job would run again although it is done.
    async fn record_end(&self, record: &Record) {
        let mut pause = Duration::from_millis(100);
        while let Err(error) = self.queue.save(record.clone()).await {
            tracing::error!(job = %record.id, %error, "the end of a job could not be recorded");
            if self.is_draining() || pause > Duration::from_secs(30) {
                return;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        self.events.publish(&record.view());
        if record.state.is_final() {
            match self.queue.prune().await {
                Ok(old) => {
                    for record in old.iter().filter(|record| record.keep_partial) {
                        self.discard(record).await;
                    }
                }
                Err(error) => tracing::warn!(%error, "old jobs could not be forgotten"),
            }
        }
    }

    /// Turns reports into events and, less often, into catalog rows, until the run is over; returns the last one.
    async fn announce(
        &self,
        mut record: Record,
        mut report: watch::Receiver<Report>,
        over: CancellationToken,
    ) -> Report {
        let mut saved = Instant::now();
        loop {
            tokio::select! {
                () = over.cancelled() => break,
                changed = report.changed() => if changed.is_err() { break },
            }
            let latest = report.borrow_and_update().clone();
            record.progress = latest.progress;
            record.notes = latest.notes;
            self.events.publish(&record.view());
            if saved.elapsed() >= limits::PROGRESS_SAVE_EVERY {
                saved = Instant::now();
                let _ = self.queue.save(record.clone()).await;
            }
            tokio::select! {
                () = over.cancelled() => break,
                () = tokio::time::sleep(limits::PROGRESS_EVENT_EVERY) => {}
            }
        }
        report.borrow().clone()
    }
}

/// The state machine's step at the end of a run.
fn settle(record: &mut Record, outcome: Result<Outcome, Failure>, wish: Option<Ended>) {
    let now = Timestamp::now();
    record.error = None;
    match outcome {
        Ok(Outcome::Stored(key)) => {
            record.object = Some(key.clone());
            record.result = Some(super::JobResult { object: Some(key), ..Default::default() });
            record.stage = Stage::Transcode;
            record.failures = 0;
            // The object is stored and stays; only the transcode is still to be stopped.
            match wish {
                Some(wish) => wish.apply(record),
                None => record.state = JobState::Queued,
            }
        }
        Ok(Outcome::Done(result)) => {
            record.state = JobState::Done;
            record.result = Some(result);
            record.finished_at = Some(now);
        }
        Err(failure) => match (wish, failure.kind) {
            (Some(wish), _) => wish.apply(record),
            (None, FailureKind::NoSpace) => {
                record.state = JobState::Paused;
                record.error = Some(format!("{}; then `reelring resume {}`", failure.message, record.id));
            }
            (None, FailureKind::Transient) if record.failures + 1 < limits::JOB_ATTEMPTS => {
                record.failures += 1;
                record.state = JobState::Queued;
                record.error = Some(failure.message);
                let pause = limits::JOB_RETRY_PAUSE * 2u32.pow(record.failures - 1);
                record.not_before = Some(now + SignedDuration::try_from(pause).unwrap_or(SignedDuration::from_secs(2)));
            }
            (None, kind) => {
                record.state = JobState::Failed;
                record.forget_asset();
                record.keep_partial = kind == FailureKind::Transient && record.stage == Stage::Fetch;
                record.error = Some(failure.message);
                record.finished_at = Some(now);
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::JobSpec;
    use super::*;

    fn running() -> Record {
        let spec: JobSpec = serde_json::from_str(r#"{"kind":"fetch","url":"http://a/"}"#).unwrap();
        Record { state: JobState::Running, ..Record::new(spec) }
    }

    #[test]
    fn transient_failures_end_after_the_limit_and_keep_the_partial() {
        let mut record = running();
        for run in 1..limits::JOB_ATTEMPTS {
            settle(&mut record, Err(Failure::transient("reset")), None);
            assert_eq!((record.state, record.failures), (JobState::Queued, run));
            assert!(record.not_before.is_some());
        }
        settle(&mut record, Err(Failure::transient("reset")), None);
        assert_eq!((record.state, record.keep_partial), (JobState::Failed, true));
        assert!(record.claims_partial());
    }

    #[test]
    fn a_permanent_failure_is_final_and_leaves_nothing() {
        let mut record = running();
        settle(&mut record, Err(Failure::permanent("404")), None);
        assert_eq!(record.state, JobState::Failed);
        assert_eq!(record.error.as_deref(), Some("404"));
        assert!(!record.claims_partial());
    }

    #[test]
    fn a_full_disk_pauses_and_tells_the_way_on() {
        let mut record = running();
        settle(&mut record, Err(Failure::no_space("disk full; free space")), None);
        assert_eq!(record.state, JobState::Paused);
        assert!(record.error.as_deref().is_some_and(|error| error.contains("reelring resume")));
        assert!(record.claims_partial());
    }

    #[test]
    fn a_wish_decides_how_a_stopped_run_ends_but_not_one_that_finished() {
        for (wish, state) in [
            (Ended::Cancelled, JobState::Cancelled),
            (Ended::Paused, JobState::Paused),
            (Ended::Drained, JobState::Queued),
        ] {
            let mut record = running();
            settle(&mut record, Err(Failure::cancelled()), Some(wish));
            assert_eq!(record.state, state);
            let mut record = running();
            settle(&mut record, Ok(Outcome::Done(Default::default())), Some(wish));
            assert_eq!(record.state, JobState::Done);
        }
    }
}
