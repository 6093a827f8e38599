//! The scrub: reads every sealed blob from the disk and compares it with its checksums, before somebody needs it.
//!
//! One runs at a time, in a task of its own. It goes through the catalog's blobs in the order of their ids, up to those
//! that were made when it began; first it looks again at what is quarantined, and at the end for files that no row names.
//!
//! - It reads past the page cache where the file system can (`look.rs`): it tests the disk, not the memory, and takes no
//!   hot page away.
//! - It has one read of half a MiB in flight, from a pool of its own, at a limited rate; with a limit it also steps aside
//!   while the engine has much to do (`pace.rs`).
//! - What does not match is reported to the volume's quarantine, a row without a file too. What is quarantined and whole
//!   again is released. A blob that cannot be read (EIO) is counted and told, not quarantined.
//! - Every few seconds the catalog notes how far it is (`record.rs`). After a restart it goes on from there.
//!
//! Stop and cancel: nobody's future owns the scrub. [`Store::stop_scrub`] ends it between two reads and notes the place,
//! closing the store does the same; a process that dies loses what came after the last note.

mod look;
mod pace;
mod record;
mod schedule;
mod strays;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::buffer::Pool;
use crate::clock;
use crate::error::{Error, Result};
use crate::id::BlobId;
use crate::limits::{SCRUB_BUDGET_BYTES, SCRUB_NOTE_EVERY_MS, SCRUB_PAGE_ROWS, SCRUB_UNREADABLE_TOLD};
use crate::store::Store;
use crate::volume::quarantine::Quarantined;
use look::{Seen, look};
use pace::Pace;
use record::Row;

/// What a scrub is to do.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScrubOptions {
    /// Bytes of blobs read in a second at most; 0 for no limit.
    pub rate_bytes_per_s: u64,
    /// From the first blob, also when an earlier scrub was stopped half way.
    pub restart: bool,
    /// Look again at what is quarantined, and at nothing else.
    pub quarantined_only: bool,
}

/// What a scrub did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScrubCounts {
    pub blobs: u64,
    /// Read and compared.
    pub bytes: u64,
    /// Blobs that are not what was stored: those quarantined by this scrub, and those that were and still are.
    pub damaged: u64,
    /// Blobs that were quarantined and are whole again.
    pub released: u64,
    /// Blobs that the disk would not give.
    pub unreadable: u64,
    /// Files below `blobs/` that no row names.
    pub strays: u64,
}

/// A scrub that is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubResult {
    pub started_ms: u64,
    pub finished_ms: u64,
    pub counts: ScrubCounts,
}

/// A scrub under way, or one that was stopped half way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrubProgress {
    pub running: bool,
    pub quarantined_only: bool,
    /// When it first began; a restart of the process in between does not count.
    pub started_ms: u64,
    pub counts: ScrubCounts,
    /// What there is to do, as it was counted at the start; 0 while it is counted.
    pub blobs_total: u64,
    pub bytes_total: u64,
    /// Over this process' part of it.
    pub rate_bytes_per_s: u64,
    pub rate_limit_bytes_per_s: u64,
    pub eta_s: Option<u64>,
    /// Why it ended before its end.
    pub error: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// The one that runs, or that was stopped; one that only looked again at what is quarantined, also when it is over.
    pub current: Option<ScrubProgress>,
    /// The last one that came to its end, by this process or one before it.
    pub last: Option<ScrubResult>,
    /// The first blobs that the newest scrub of this process could not read, and why.
    pub unreadable: Vec<String>,
    /// The first files that it found no row for.
    pub strays: Vec<String>,
}

/// The store's scrub, if one runs.
#[derive(Default)]
pub(crate) struct Scrub {
    running: Mutex<Option<Running>>,
}

struct Running {
    watch: Arc<Watch>,
    task: JoinHandle<()>,
}

/// What the task shares with those who watch it.
pub(crate) struct Watch {
    progress: Mutex<ScrubProgress>,
    unreadable: Mutex<Vec<String>>,
    strays: Mutex<Vec<String>>,
    rate: AtomicU64,
    stop: AtomicBool,
    /// Somebody asked for it, so that the next start does not go on by itself.
    stopped_by_hand: AtomicBool,
    stopping: Notify,
}

impl Watch {
    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Acquire)
    }

    fn stop(&self) {
        self.stop.store(true, Release);
        self.stopping.notify_waiters();
    }

    fn progress(&self) -> MutexGuard<'_, ScrubProgress> {
        locked(&self.progress)
    }

    fn count(&self, f: impl FnOnce(&mut ScrubCounts)) {
        f(&mut self.progress().counts);
    }
}

impl Scrub {
    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        locked(&self.running)
    }

    /// Ends the scrub, if one runs, and waits for it.
    pub(crate) async fn end(&self) {
        let running = self.running().take();
        if let Some(Running { watch, task }) = running {
            watch.stop();
            drop(task.await);
        }
    }
}

impl Store {
    /// Starts a scrub, or joins the one that runs, at the rate given now. True when this call started it. One that was
    /// stopped half way goes on where it was.
    pub async fn start_scrub(&self, options: ScrubOptions) -> Result<bool> {
        self.check_open()?;
        let before = self.catalog().read(record::load).await?;
        let mut running = self.inner.scrub.running();
        if let Some(Running { watch, task }) = &*running
            && !task.is_finished()
        {
            watch.rate.store(options.rate_bytes_per_s, Relaxed);
            return Ok(false);
        }
        let current = before.current.filter(|_| !options.restart && !options.quarantined_only);
        let row = current.unwrap_or_else(|| Row::new(clock::now_ms()));
        let progress = ScrubProgress {
            running: true,
            quarantined_only: options.quarantined_only,
            started_ms: row.started_ms,
            counts: row.counts,
            rate_limit_bytes_per_s: options.rate_bytes_per_s,
            ..ScrubProgress::stopped(&row)
        };
        let watch = Arc::new(Watch {
            progress: Mutex::new(progress),
            unreadable: Mutex::default(),
            strays: Mutex::default(),
            rate: AtomicU64::new(options.rate_bytes_per_s),
            stop: AtomicBool::new(false),
            stopped_by_hand: AtomicBool::new(false),
            stopping: Notify::new(),
        });
        let (store, own) = (self.clone(), Arc::clone(&watch));
        let task = tokio::spawn(async move {
            let outcome = Run { store: &store, watch: &own, row, noted_ms: clock::now_ms(), options }.run().await;
            let mut progress = own.progress();
            progress.running = false;
            if let Err(error) = outcome {
                tracing::warn!(%error, "the scrub ended early");
                progress.error = Some(error.to_string());
            }
        });
        *running = Some(Running { watch, task });
        Ok(true)
    }

    /// Ends the scrub that runs; its place is kept. False when none runs.
    pub async fn stop_scrub(&self) -> bool {
        let watch = match &*self.inner.scrub.running() {
            Some(Running { watch, task }) if !task.is_finished() => Arc::clone(watch),
            _ => return false,
        };
        watch.stopped_by_hand.store(true, Release);
        self.inner.scrub.end().await;
        true
    }

    /// Waits for the scrub that runs.
    #[cfg(test)]
    pub(crate) async fn scrub_to_the_end(&self) {
        let running = self.inner.scrub.running().take();
        if let Some(Running { task, .. }) = running {
            task.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
        }
    }

    pub async fn scrub_status(&self) -> Result<ScrubStatus> {
        let noted = self.catalog().read(record::load).await?;
        let running = self.inner.scrub.running();
        let mut status = ScrubStatus { last: noted.last, ..ScrubStatus::default() };
        if let Some(Running { watch, task }) = &*running {
            let mut progress = watch.progress().clone();
            progress.running &= !task.is_finished();
            progress.rate_limit_bytes_per_s = watch.rate.load(Relaxed);
            // The end of a whole one is told by the last result.
            let tells = progress.running || progress.quarantined_only || progress.error.is_some();
            status.current = tells.then_some(progress);
            status.unreadable.clone_from(&locked(&watch.unreadable));
            status.strays.clone_from(&locked(&watch.strays));
        }
        status.current = status.current.or_else(|| noted.current.map(|row| ScrubProgress::stopped(&row)));
        Ok(status)
    }

    pub fn is_quarantined(&self, id: BlobId) -> bool {
        self.volumes().iter().any(|volume| volume.quarantine.contains(id))
    }

    /// Blobs that are refused because they are damaged: up to `limit` after `after`.
    pub fn quarantined(&self, after: Option<BlobId>, limit: usize) -> Vec<Quarantined> {
        let lists = self.volumes().iter().map(|volume| volume.quarantine.list(after, limit));
        let mut all: Vec<Quarantined> = lists.flatten().collect();
        all.sort_by_key(|found| found.blob);
        all.truncate(limit);
        all
    }
}

impl ScrubProgress {
    /// What the catalog knows of one that does not run.
    fn stopped(row: &Row) -> ScrubProgress {
        ScrubProgress {
            running: false,
            quarantined_only: false,
            started_ms: row.started_ms,
            counts: row.counts,
            blobs_total: 0,
            bytes_total: 0,
            rate_bytes_per_s: 0,
            rate_limit_bytes_per_s: 0,
            eta_s: None,
            error: None,
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The task's own.
struct Run<'a> {
    store: &'a Store,
    watch: &'a Watch,
    row: Row,
    noted_ms: u64,
    options: ScrubOptions,
}

impl Run<'_> {
    async fn run(mut self) -> Result<()> {
        let pool = Pool::new(SCRUB_BUDGET_BYTES);
        let mut pace = Pace::new();
        self.look_again(&pool, &mut pace).await?;
        if self.options.quarantined_only || self.watch.stopping() {
            return Ok(());
        }
        self.count_work().await?;
        let begun = std::time::Instant::now();
        let before = self.row.counts.bytes;
        // Noted before the first blob: whoever stops it here goes on with the same scrub.
        self.note(true).await;
        loop {
            let (after, until) = (self.row.cursor, self.row.started_ms);
            let page = self.store.catalog().read(move |c| record::blobs(c, after, until, SCRUB_PAGE_ROWS)).await?;
            if page.is_empty() {
                break;
            }
            for blob in page {
                let seen = match self.store.volumes().by_number(blob.volume) {
                    // Looked at a moment ago.
                    Ok(volume) if volume.quarantine.contains(blob.id) => Seen::StillDamaged,
                    Ok(volume) => look(volume, &pool, &mut pace, self.watch, &blob).await,
                    Err(absent) => Seen::Unreadable(absent),
                };
                if matches!(seen, Seen::Stopped) {
                    self.note(true).await;
                    return Ok(());
                }
                self.judge(blob.id, blob.volume, seen).await?;
                self.row.cursor = Some(blob.id);
                self.measure(begun, before);
                self.note(false).await;
            }
        }
        let strays = strays::find(self.store, self.watch, self.row.started_ms).await?;
        if self.watch.stopping() {
            self.note(true).await;
            return Ok(());
        }
        *locked(&self.watch.strays) = strays.first;
        self.watch.count(|counts| counts.strays = strays.count);
        self.row.counts = self.watch.progress().counts;
        let row = self.row.clone();
        let finished = clock::now_ms();
        let counts = row.counts;
        self.store.catalog().write(move |tx| record::finish(tx, &row, finished)).await?;
        tracing::info!(
            blobs = counts.blobs,
            bytes = counts.bytes,
            damaged = counts.damaged,
            released = counts.released,
            unreadable = counts.unreadable,
            strays = counts.strays,
            "the scrub has looked at every blob"
        );
        Ok(())
    }

    /// Looks at what is quarantined, and releases what is whole.
    async fn look_again(&mut self, pool: &Pool, pace: &mut Pace) -> Result<()> {
        let mut after = None;
        loop {
            let page = self.store.quarantined(after, SCRUB_PAGE_ROWS);
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.blob);
            for found in page {
                let id = found.blob;
                let Some(blob) = self.store.catalog().read(move |c| record::blob(c, id)).await? else {
                    // Removed since; its removal forgets it too.
                    continue;
                };
                let volume = self.store.volumes().by_number(blob.volume)?;
                match look(volume, pool, pace, self.watch, &blob).await {
                    Seen::Whole { .. } => {
                        look::forget_pages(volume, id).await;
                        volume.quarantine.release(self.store.catalog(), id).await?;
                        tracing::info!(blob = %id, "a quarantined blob is whole again and released");
                        self.watch.count(|counts| counts.released += 1);
                        if self.options.quarantined_only {
                            self.watch.count(|counts| counts.blobs += 1);
                        }
                    }
                    Seen::Stopped => return Ok(()),
                    Seen::Unreadable(error) if self.options.quarantined_only => self.unreadable(id, &error),
                    // Counted when its turn comes.
                    _ if !self.options.quarantined_only => {}
                    _ => self.watch.count(|counts| {
                        counts.blobs += 1;
                        counts.damaged += 1;
                    }),
                }
            }
        }
    }

    async fn judge(&mut self, id: BlobId, volume: u32, seen: Seen) -> Result<()> {
        match seen {
            Seen::Whole { bytes } => self.watch.count(|counts| {
                counts.blobs += 1;
                counts.bytes += bytes;
            }),
            Seen::StillDamaged => self.watch.count(|counts| {
                counts.blobs += 1;
                counts.damaged += 1;
            }),
            Seen::Damaged(detail) => {
                // Its row goes before its file: a blob that was removed meanwhile is no finding.
                if self.store.has_blob(id).await? {
                    self.store.volumes().by_number(volume)?.quarantine.report(id, &detail);
                    self.watch.count(|counts| {
                        counts.blobs += 1;
                        counts.damaged += 1;
                    });
                }
            }
            Seen::Unreadable(error) => self.unreadable(id, &error),
            Seen::Stopped => {}
        }
        Ok(())
    }

    fn unreadable(&self, id: BlobId, error: &Error) {
        tracing::error!(blob = %id, %error, "the scrub could not read a blob");
        self.watch.count(|counts| {
            counts.blobs += 1;
            counts.unreadable += 1;
        });
        let mut told = locked(&self.watch.unreadable);
        if told.len() < SCRUB_UNREADABLE_TOLD {
            told.push(error.to_string());
        }
    }

    async fn count_work(&self) -> Result<()> {
        let until = self.row.started_ms;
        let (mut after, mut blobs, mut bytes) = (None, 0, 0);
        // In pieces, so that no listing waits behind a million rows.
        loop {
            let from = after;
            let piece = self.store.catalog().read(move |c| record::count(c, from, until)).await?;
            let Some(piece) = piece else { break };
            (after, blobs, bytes) = (Some(piece.last), blobs + piece.blobs, bytes + piece.bytes);
            if self.watch.stopping() {
                return Ok(());
            }
        }
        let mut progress = self.watch.progress();
        (progress.blobs_total, progress.bytes_total) = (blobs, bytes);
        Ok(())
    }

    fn measure(&self, begun: std::time::Instant, before: u64) {
        let mut progress = self.watch.progress();
        let seconds = begun.elapsed().as_secs_f64().max(0.001);
        let rate = ((progress.counts.bytes - before) as f64 / seconds) as u64;
        progress.rate_bytes_per_s = rate;
        progress.eta_s = progress.bytes_total.saturating_sub(progress.counts.bytes).checked_div(rate);
    }

    /// Keeps the place, at most every few seconds unless it `must` be.
    async fn note(&mut self, must: bool) {
        let now = clock::now_ms();
        if !must && now < self.noted_ms + SCRUB_NOTE_EVERY_MS {
            return;
        }
        self.noted_ms = now;
        self.row.counts = self.watch.progress().counts;
        self.row.stopped = self.watch.stopped_by_hand.load(Acquire);
        let row = self.row.clone();
        if let Err(error) = self.store.catalog().write(move |tx| record::note(tx, &row)).await
            && !matches!(error, Error::Closed)
        {
            tracing::warn!(%error, "the scrub's place could not be noted; a restart would repeat more of it");
        }
    }
}
