//! A lane: one clone of a job at work.
//!
//! It owns the clone's plan, its blocks and its statistics, and has at most `iodepth` operations with the engine. Nothing is
//! shared but a stop flag and the counters that the progress line reads. When it is told to stop it issues nothing more, awaits
//! what is in flight, and returns what it has counted.

use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, Stream};

use super::failure::Failure;
use super::handicap::Handicap;
use super::iolog::IoLog;
use super::pause::Pause;
use super::replay::Replay;
use super::stats::{Stats, count_batch};
use super::usage::Usage;
use super::{layout, verify};
use crate::engine::{Block, Done, Engine};
use crate::job::Job;
use crate::plan::{Op, Plan};

/// What the lane and the runner's main thread share.
#[derive(Default)]
pub struct Live {
    /// Operations and bytes, reads and writes. Only the lane writes them.
    pub operations: [AtomicU64; 2],
    pub bytes: [AtomicU64; 2],
    /// After the ramp.
    pub measuring: AtomicBool,
    pub done: AtomicBool,
}

pub struct Lane {
    pub job: Arc<Job>,
    /// Over all jobs, from 1, as fio counts.
    pub number: u32,
    pub paths: Vec<PathBuf>,
    pub sizes: Vec<u64>,
    /// In flight at most.
    pub depth: usize,
    /// The engine answers while it is asked: there is no time between submission and completion.
    pub synchronous: bool,
    /// Its thread is nobody else's, so the kernel's account of the thread is the lane's.
    pub own_thread: bool,
    /// Whether the page cache forgets a file before each pass over it.
    pub forgets: bool,
    /// Planted, to be found.
    pub handicap: Option<Handicap>,
    pub live: Arc<Live>,
    pub stop: Arc<AtomicBool>,
}

/// What became of a lane.
pub struct Outcome {
    pub stats: Stats,
    /// From the end of the ramp to the end.
    pub elapsed: Duration,
    pub own: Option<Usage>,
    /// The process before and after.
    pub process: (Usage, Usage),
    pub failure: Option<Failure>,
}

/// Longest sleep before the stop flag is looked at again.
const GLANCE: Duration = Duration::from_millis(50);

struct Work {
    lane: Lane,
    stats: Stats,
    blocks: Vec<Block>,
    started: Instant,
    ramp_until: Option<Instant>,
    deadline: Option<Instant>,
    /// Bytes issued since `started`, for the rates.
    issued: [u64; 2],
    writes: u64,
    /// The writes are over and being read back.
    replaying: bool,
    fresh: u64,
    iolog: Option<IoLog>,
    failure: Option<Failure>,
    own: Option<Usage>,
    process: Usage,
}

impl Lane {
    /// Carries the job out on `engine`.
    pub async fn run<E: Engine>(self, engine: E) -> Outcome {
        let block = self.job.read_blocks.max.max(self.job.write_blocks.max) as usize;
        let fresh = self.job.randseed ^ (u64::from(self.number) << 32);
        let blocks = (0..self.depth).map(|slot| {
            let mut block = Block::new(block);
            if self.job.rw.writes {
                verify::noise(block.bytes_mut(), fresh + slot as u64);
            }
            block
        });
        let blocks = blocks.collect();
        let pause = match Pause::new() {
            Ok(pause) => pause,
            Err(error) => return self.never_ran(Failure::from_io("could not make a timer", &error)),
        };
        let iolog = match self.job.write_iolog.as_ref().map(|path| IoLog::open(path, &self.paths)).transpose() {
            Ok(iolog) => iolog,
            Err(error) => return self.never_ran(self.iolog_failure(&error)),
        };
        let now = Instant::now();
        let ramp_until = (!self.job.ramp_time.is_zero()).then(|| now + self.job.ramp_time);
        let mut work = Work {
            stats: Stats::of(&self.job),
            blocks,
            started: now,
            deadline: self.job.runtime.map(|runtime| now + self.job.ramp_time + runtime),
            ramp_until,
            issued: [0; 2],
            writes: 0,
            replaying: false,
            fresh,
            iolog,
            failure: None,
            own: self.own_thread.then(Usage::of_thread),
            process: Usage::of_process(),
            lane: self,
        };
        work.lane.live.measuring.store(work.ramp_until.is_none(), Relaxed);
        work.measure(&engine, &pause).await;
        work.finish()
    }

    /// For a lane whose engine did not even start.
    pub fn never_ran(&self, failure: Failure) -> Outcome {
        self.live.done.store(true, Relaxed);
        let usage = Usage::of_process();
        Outcome {
            stats: Stats::default(),
            elapsed: Duration::ZERO,
            own: None,
            process: (usage, usage),
            failure: Some(failure),
        }
    }

    fn plan(&self) -> Plan {
        Plan::new(&self.job, self.number, &self.sizes)
    }
}

impl Work {
    async fn measure<E: Engine>(&mut self, engine: &E, pause: &Pause) {
        let job = Arc::clone(&self.lane.job);
        let mut plan = self.lane.plan();
        let verifies = job.verify.is_some() && job.rw.writes;
        // What was written is read back by a second plan that goes the same way: no list of blocks is kept.
        let mut again = verifies.then(|| self.lane.plan());
        loop {
            self.writes = 0;
            let since = Instant::now();
            let lane = &self.lane;
            let (forgets, paths) = (lane.forgets, lane.paths.clone());
            let issue = || {
                let op = plan.next()?;
                // Waits for the kernel in mid-run, as it does in fio: the next pass is to come from the disk.
                if forgets && plan.began_anew(op.file()) {
                    let _ = layout::forget(&paths[usize::from(op.file())]);
                }
                Some(op)
            };
            self.pump(engine, pause, issue).await;
            if plan.ends_with_sync() && self.failure.is_none() {
                let mut files = 0..self.lane.paths.len() as u16;
                let deadline = self.deadline.take();
                // As in fio, it takes its time but is not counted among the syncs.
                let syncs = std::mem::take(&mut self.stats.sync);
                self.pump(engine, pause, || Some(Op::Sync { file: files.next()?, data_only: false })).await;
                self.stats.sync = syncs;
                self.deadline = deadline;
            }
            // A ramp that ended meanwhile began the count anew.
            let elapsed = since.max(self.started).elapsed();
            if job.rw.reads {
                self.stats.read.runtime += elapsed;
            }
            if job.rw.writes {
                self.stats.write.runtime += elapsed;
            }
            let Some(again) = again.as_mut().filter(|_| !self.ended()) else { return };
            // Not limited in time: what was written is verified.
            let deadline = self.deadline.take();
            self.replaying = true;
            let mut replay = Replay::new(again, self.writes, &self.lane.sizes, &self.lane.job);
            let since = Instant::now();
            self.pump(engine, pause, || replay.next()).await;
            self.stats.read.runtime += since.elapsed();
            self.replaying = false;
            self.deadline = deadline;
            while again.next().is_some() {}
            let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if self.ended() || late || !plan.restart() || !again.restart() {
                return;
            }
        }
    }

    fn ended(&self) -> bool {
        self.failure.is_some() || self.lane.stop.load(Relaxed)
    }

    /// Issues what `next` names until it names nothing more, the time is up, an operation failed or the lane must stop; then
    /// awaits what is in flight.
    async fn pump<E: Engine>(&mut self, engine: &E, pause: &Pause, mut next: impl FnMut() -> Option<Op>) {
        let think = self.lane.job.thinktime;
        let mut in_flight = pin!(FuturesUnordered::new());
        let (mut held, mut thinking_until) = (None, None);
        let mut now = Instant::now();
        let mut over = false;
        loop {
            let mut batch = 0;
            let mut wait_until = None;
            while !over && in_flight.len() < self.lane.depth {
                if self.ended() || self.deadline.is_some_and(|deadline| now >= deadline) {
                    over = true;
                    break;
                }
                if let Some(until) = self.lane.handicap.and_then(|handicap| handicap.shut_until(now)) {
                    wait_until = Some(until);
                    break;
                }
                if let Some(until) = thinking_until {
                    if now < until {
                        wait_until = Some(until);
                        break;
                    }
                    thinking_until = None;
                }
                let Some(op) = held.take().or_else(&mut next) else {
                    over = true;
                    break;
                };
                if let Some(at) = self.not_before(op)
                    && at > now
                {
                    (held, wait_until) = (Some(op), Some(at));
                    break;
                }
                let block = self.prepare(op);
                in_flight.push(Flight { op, since: now, issued: None, call: engine.start(op, block) });
                batch += 1;
                self.stats.issued_at_depth(in_flight.len());
                if !think.is_zero() {
                    // One operation, its completion, a pause.
                    thinking_until = Some(now);
                    break;
                }
            }
            if batch > 0 {
                count_batch(&mut self.stats.submitted, batch);
            }
            if in_flight.is_empty() {
                match wait_until {
                    _ if over => return,
                    Some(until) => pause.until(until.min(now + GLANCE)).await,
                    None => {}
                }
                now = Instant::now();
                continue;
            }
            let mut waited = pin!(wait_until.map(|until| pause.until(until.min(now + GLANCE))));
            let completed = poll_fn(|cx| {
                let mut completed = 0;
                loop {
                    match in_flight.as_mut().poll_next(cx) {
                        Poll::Ready(Some(landed)) => {
                            completed += 1;
                            now = landed.at;
                            self.land(landed);
                        }
                        Poll::Pending if completed == 0 => {
                            return match waited.as_mut().as_pin_mut() {
                                Some(waited) => waited.poll(cx).map(|()| 0),
                                None => Poll::Pending,
                            };
                        }
                        _ => return Poll::Ready(completed),
                    }
                }
            })
            .await;
            if completed > 0 {
                count_batch(&mut self.stats.completed, completed);
            } else {
                now = Instant::now();
            }
            if !think.is_zero() && completed > 0 {
                thinking_until = Some(now + think);
            }
            if let Some(until) = self.ramp_until
                && now >= until
            {
                self.end_of_ramp(now);
            }
        }
    }

    /// When the rate allows an operation.
    fn not_before(&self, op: Op) -> Option<Instant> {
        let (rate, write) = match op {
            Op::Read { .. } => (self.lane.job.rate.read?, 0),
            Op::Write { .. } => (self.lane.job.rate.write?, 1),
            Op::Sync { .. } => return None,
        };
        let ns = u128::from(self.issued[write]) * 1_000_000_000 / u128::from(rate.max(1));
        Some(self.started + Duration::from_nanos(ns as u64))
    }

    /// A block with the bytes that a write needs.
    fn prepare(&mut self, op: Op) -> Block {
        if let Some(iolog) = &mut self.iolog
            && let Err(error) = iolog.issued(op)
        {
            self.failure.get_or_insert(self.lane.iolog_failure(&error));
        }
        let mut block = self.blocks.pop().expect("as many blocks as operations in flight");
        match op {
            Op::Write { offset, len, .. } => {
                self.issued[1] += u64::from(len);
                self.writes += 1;
                if self.lane.job.verify.is_some() {
                    verify::fill(&mut block.bytes_mut()[..len as usize], offset, self.lane.job.randseed);
                } else if self.lane.job.refill_buffers {
                    self.fresh = self.fresh.wrapping_add(0x9e37_79b9_7f4a_7c15);
                    verify::noise(&mut block.bytes_mut()[..len as usize], self.fresh);
                }
            }
            Op::Read { len, .. } => self.issued[0] += u64::from(len),
            Op::Sync { .. } => {}
        }
        block
    }

    fn land(&mut self, landed: Landed) {
        let Landed { op, since, issued, at, done } = landed;
        let ns = |from: Instant, to: Instant| to.saturating_duration_since(from).as_nanos() as u64;
        match (&done.result, op) {
            (Ok(_), Op::Sync { .. }) => self.stats.synced(ns(since, at)),
            (Ok(bytes), Op::Read { .. } | Op::Write { .. }) => {
                let write = matches!(op, Op::Write { .. });
                let (submission, completion) = match issued.filter(|_| !self.lane.synchronous) {
                    Some(issued) => (Some(ns(since, issued)), ns(issued, at)),
                    None => (None, ns(since, at)),
                };
                self.stats.transferred(write, *bytes, done.short, submission, completion);
                let side = self.stats.side(write);
                self.lane.live.operations[usize::from(write)].store(side.operations, Relaxed);
                self.lane.live.bytes[usize::from(write)].store(side.bytes, Relaxed);
                if let Op::Read { file, offset, len } = op {
                    self.verify(&done.block.bytes()[..len as usize], file, offset);
                }
            }
            (Err(error), _) if self.failure.is_none() => self.failure = Some(self.lane.failure(op, error)),
            (Err(_), _) => {}
        }
        self.blocks.push(done.block);
    }

    fn verify(&mut self, block: &[u8], file: u16, offset: u64) {
        let job = &self.lane.job;
        // As in fio, the reads of a mixed job are not verified as they come: they may precede the write.
        if job.verify.is_some()
            && self.failure.is_none()
            && (self.replaying || !job.rw.writes)
            && let Err(message) = verify::check(block, offset, &self.lane.paths[usize::from(file)])
        {
            let message = format!("job {}: {message}", job.name);
            self.failure = Some(Failure { errno: libc::EILSEQ, message });
        }
    }

    /// Forgets what was counted so far.
    fn end_of_ramp(&mut self, now: Instant) {
        self.ramp_until = None;
        self.stats = Stats::of(&self.lane.job);
        (self.started, self.issued) = (now, [0; 2]);
        self.own = self.lane.own_thread.then(Usage::of_thread);
        self.process = Usage::of_process();
        for counter in self.lane.live.operations.iter().chain(&self.lane.live.bytes) {
            counter.store(0, Relaxed);
        }
        self.lane.live.measuring.store(true, Relaxed);
    }

    fn finish(mut self) -> Outcome {
        if let Some(Err(error)) = self.iolog.take().map(IoLog::close) {
            self.failure.get_or_insert(self.lane.iolog_failure(&error));
        }
        self.lane.live.done.store(true, Relaxed);
        Outcome {
            elapsed: self.started.elapsed(),
            own: self.own.map(|before| Usage::of_thread() - before),
            process: (self.process, Usage::of_process()),
            stats: self.stats,
            failure: self.failure,
        }
    }
}

impl Lane {
    fn iolog_failure(&self, error: &io::Error) -> Failure {
        let path = self.job.write_iolog.as_deref().unwrap_or(Path::new(""));
        Failure::from_io(&format!("job {}: could not write the iolog {}", self.job.name, path.display()), error)
    }

    fn failure(&self, op: Op, error: &io::Error) -> Failure {
        let (verb, file, place) = match op {
            Op::Read { file, offset, len } => ("read", file, format!(" at offset {offset}, {len} bytes")),
            Op::Write { file, offset, len } => ("write", file, format!(" at offset {offset}, {len} bytes")),
            Op::Sync { file, .. } => ("sync", file, String::new()),
        };
        let path = &self.paths[usize::from(file)];
        let what = format!("job {}: could not {verb} {}{place}", self.job.name, path.display());
        Failure::from_io(&what, error).with_room(path)
    }
}

pin_project_lite::pin_project! {
    /// An operation with the engine, and its clock.
    struct Flight<F> {
        op: Op,
        since: Instant,
        issued: Option<Instant>,
        #[pin]
        call: F,
    }
}

struct Landed {
    op: Op,
    since: Instant,
    issued: Option<Instant>,
    at: Instant,
    done: Done,
}

impl<F: Future<Output = Done>> Future for Flight<F> {
    type Output = Landed;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Landed> {
        let this = self.project();
        let polled = this.call.poll(cx);
        let at = match (&polled, *this.issued) {
            (Poll::Pending, Some(_)) => return Poll::Pending,
            _ => Instant::now(),
        };
        match polled {
            Poll::Ready(done) => {
                Poll::Ready(Landed { op: *this.op, since: *this.since, issued: *this.issued, at, done })
            }
            Poll::Pending => {
                *this.issued = Some(at);
                Poll::Pending
            }
        }
    }
}
