//! Jobs: long work that outlives a request, a crash and a restart.
//!
//! [`Jobs`] is the handle everybody holds; one scheduler task owns the runs. A job's record is durable before anybody
//! is told of its state. Cancelling a run is a request to it: the run ends by itself, then the record says so.

mod events;
mod model;
mod queue;
mod run;
mod scheduler;

pub use events::{Event, Events, Replay};
pub use model::{FetchSpec, Job, JobId, JobIdError, JobResult, JobSpec, JobState, SpecError, Stage, TranscodeSpec};
pub use queue::MIGRATION;
pub use run::Workshop;

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use reelring_storage::{BlobId, Error as StorageError};

use model::Record;
use queue::{Added, Queue};
use scheduler::{Ended, Scheduler};

use crate::limits;

/// The handle to the node's jobs. Cheap to clone.
#[derive(Clone)]
pub struct Jobs {
    queue: Queue,
    events: Events,
    scheduler: Arc<Scheduler>,
}

/// Why a request about jobs was refused.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("there is no job {0}; `reelring jobs` lists those there are")]
    Unknown(JobId),
    #[error("job {id} is {state}, so it cannot be {verb}; {hint}")]
    State { id: JobId, state: JobState, verb: &'static str, hint: &'static str },
    #[error("the idempotency key was already used for another request, job {0}; use a new key for a new request")]
    Idempotency(JobId),
    #[error("{waiting} jobs are waiting and the limit is {}; try again when some are done", limits::JOBS_QUEUED)]
    Full { waiting: usize },
    #[error("the node is shutting down; try again when it is back")]
    Draining,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Jobs {
    /// Takes over the jobs an earlier run of the node left. None runs before [`Jobs::run`]. Partial files that neither a
    /// job nor anybody else (`of_others`) continues are removed.
    pub async fn open(workshop: Workshop, of_others: Vec<BlobId>) -> Result<Jobs, StorageError> {
        let queue = Queue::new(workshop.store.catalog().clone());
        let interrupted = queue.requeue_interrupted().await?;
        if interrupted > 0 {
            tracing::info!(interrupted, "jobs that a stop interrupted are queued again");
        }
        discard_unclaimed(&queue, &workshop.store, of_others).await?;
        let events = Events::default();
        let scheduler = Scheduler::new(queue.clone(), events.clone(), workshop);
        Ok(Jobs { queue, events, scheduler })
    }

    /// Starts the scheduler. Called once.
    pub fn run(&self) {
        self.scheduler.start();
    }

    /// Stores a request. With an idempotency key, the same request again gives the same job.
    pub async fn submit(&self, spec: JobSpec, idempotency_key: Option<String>) -> Result<Job, JobError> {
        spec.validate()?;
        if self.scheduler.is_draining() {
            return Err(JobError::Draining);
        }
        let record = Record::new(spec);
        match self.queue.add(record.clone(), idempotency_key).await? {
            Added::New => {
                let job = record.view();
                self.events.publish(&job);
                self.scheduler.wake();
                Ok(job)
            }
            Added::Known(known) => Ok(self.current(*known)),
            Added::Conflict(id) => Err(JobError::Idempotency(id)),
            Added::Full(waiting) => Err(JobError::Full { waiting }),
        }
    }

    pub async fn get(&self, id: &JobId) -> Result<Option<Job>, JobError> {
        Ok(self.queue.get(id).await?.map(|record| self.current(record)))
    }

    /// Newest first; `after` is the last id of the page before.
    pub async fn list(
        &self,
        state: Option<JobState>,
        after: Option<JobId>,
        limit: usize,
    ) -> Result<Vec<Job>, JobError> {
        let records = self.queue.list(state, after, limit).await?;
        Ok(records.into_iter().map(|record| self.current(record)).collect())
    }

    /// Stops a job for good and removes what it had of an unfinished object.
    pub async fn cancel(&self, id: &JobId) -> Result<Job, JobError> {
        let ended = self.end(id, Ended::Cancelled).await?;
        if ended.state != JobState::Cancelled {
            return Err(state_error(&ended, "cancelled", "it is over already"));
        }
        Ok(ended)
    }

    /// Stops a job so that `resume` continues it.
    pub async fn pause(&self, id: &JobId) -> Result<Job, JobError> {
        let ended = self.end(id, Ended::Paused).await?;
        if ended.state != JobState::Paused {
            return Err(state_error(&ended, "paused", "only a queued or running job can be"));
        }
        Ok(ended)
    }

    pub async fn resume(&self, id: &JobId) -> Result<Job, JobError> {
        self.requeue(id, "resumed", "only a paused job can be", |state| state == JobState::Paused).await
    }

    /// Starts a failed or cancelled job again; a fetch goes on from what is on disk.
    pub async fn retry(&self, id: &JobId) -> Result<Job, JobError> {
        let may = |state| matches!(state, JobState::Failed | JobState::Cancelled);
        self.requeue(id, "retried", "only a failed or cancelled job can be", may).await
    }

    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Jobs by state, for metrics.
    pub async fn count_by_state(&self) -> Result<Vec<(String, i64)>, JobError> {
        Ok(self.queue.count_by_state().await?)
    }

    /// Stops the runs, their state kept, and starts no more.
    pub async fn drain(&self) {
        self.scheduler.drain().await;
    }

    /// Puts the live progress of a run into a job read from the catalog.
    fn current(&self, mut record: Record) -> Job {
        if record.state == JobState::Running
            && let Some(report) = self.scheduler.report(&record.id)
        {
            record.progress = report.progress;
            record.notes = report.notes;
        }
        record.view()
    }

    /// Ends a queued job in the catalog, a running one by asking its run and waiting until it is over.
    async fn end(&self, id: &JobId, ended: Ended) -> Result<Job, JobError> {
        let mut record = self.end_waiting(id, ended).await?;
        // A run may end as queued again, for another try, before it hears of the wish: then the queue is the place to ask.
        for _ in 0..END_ROUNDS {
            if record.state != JobState::Running {
                break;
            }
            self.scheduler.stop(id, ended).await;
            record = self.end_waiting(id, ended).await?;
        }
        if record.state == JobState::Cancelled {
            self.scheduler.discard(&record).await;
        }
        let job = self.current(record);
        self.events.publish(&job);
        Ok(job)
    }

    /// Ends a job that does not run; returns the record either way.
    async fn end_waiting(&self, id: &JobId, ended: Ended) -> Result<Record, JobError> {
        // No job is between the queue and its run meanwhile: one that says it runs can be asked to stop.
        let _starting = self.scheduler.hold_starts().await;
        let changed = self.queue.change(id, move |record| {
            let may = match ended {
                // A failed fetch may have left a partial for a retry; cancelling says that there will be none.
                Ended::Cancelled => {
                    matches!(record.state, JobState::Queued | JobState::Paused)
                        || record.state == JobState::Failed && record.keep_partial
                }
                _ => record.state == JobState::Queued,
            };
            if may {
                ended.apply(record);
            }
            may
        });
        changed.await?.ok_or_else(|| JobError::Unknown(id.clone()))
    }

    async fn requeue(
        &self,
        id: &JobId,
        verb: &'static str,
        hint: &'static str,
        may: impl Fn(JobState) -> bool + Send + 'static,
    ) -> Result<Job, JobError> {
        if self.scheduler.is_draining() {
            return Err(JobError::Draining);
        }
        let (tell, told) = std::sync::mpsc::channel();
        let changed = self
            .queue
            .change(id, move |record| {
                let may = may(record.state);
                if may {
                    record.state = JobState::Queued;
                    record.error = None;
                    record.failures = 0;
                    record.not_before = None;
                    record.finished_at = None;
                }
                let _ = tell.send(may);
                may
            })
            .await?;
        let Some(record) = changed else { return Err(JobError::Unknown(id.clone())) };
        if !told.recv().unwrap_or(false) {
            return Err(state_error(&record.view(), verb, hint));
        }
        let job = record.view();
        self.events.publish(&job);
        self.scheduler.wake();
        Ok(job)
    }
}

/// Times a job that keeps being started anew is asked to stop.
const END_ROUNDS: usize = 5;

fn state_error(job: &Job, verb: &'static str, hint: &'static str) -> JobError {
    JobError::State { id: job.id.clone(), state: job.state, verb, hint }
}

/// Removes journaled partials that nobody will continue: debris of what ended while the node could not tidy up.
async fn discard_unclaimed(
    queue: &Queue,
    store: &reelring_storage::Store,
    of_others: Vec<BlobId>,
) -> Result<(), StorageError> {
    let partials = store.journaled_partials().await?;
    if partials.is_empty() {
        return Ok(());
    }
    let of_jobs = queue.claiming_partials().await?;
    let claimed: HashSet<BlobId> = of_jobs.iter().map(|record| record.blob).chain(of_others).collect();
    for id in partials.into_iter().filter(|id| !claimed.contains(id)) {
        tracing::info!(blob = %id, "discarding a partial file that nobody continues");
        store.discard_partial(id).await?;
    }
    Ok(())
}

impl Ended {
    /// Writes the outcome of a job that was stopped on request into its record.
    fn apply(self, record: &mut Record) {
        match self {
            Ended::Cancelled => {
                record.state = JobState::Cancelled;
                record.forget_asset();
                record.finished_at = Some(Timestamp::now());
                record.keep_partial = false;
            }
            Ended::Paused => record.state = JobState::Paused,
            Ended::Drained => record.state = JobState::Queued,
        }
    }
}
