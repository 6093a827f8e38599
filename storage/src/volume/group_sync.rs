//! Syncs of small files, made together.
//!
//! A file's sync is an fdatasync of it while few are asked for. Where more callers wait than that, one *round* takes them
//! all: a single `syncfs` of the volume, where the kernel reports its failures and little else is dirty
//! (`engine/whole.rs`), otherwise their fdatasyncs side by side, which the file system's journal merges. A round takes
//! whoever waits as it begins; who comes later waits for the next, for it covers only what was written before. Large
//! files stay out of it ([`Volume::sync_alone`]): nobody waits for another's gigabytes.
//!
//! **Failure.** The answer of `syncfs` is about every file of the file system, and each error is told once. So:
//! the first answer may be about an error from before this process, when nothing was promised: then each file is asked by
//! an fdatasync of its own, which knows the errors of that file, and `syncfs` is not used again. Once it has succeeded, a
//! failure is final for the round and for the volume, as for a file. A want of room is the one failure that leaves a
//! volume in service, and for that reason ends the use of `syncfs` too: the error of a file that is synced only later has
//! been told, and would not be told again.
//!
//! Cancel: a caller who goes away gives up its answer. Every sync is made in a task of the volume and is judged there.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::join_all;
use tokio::sync::oneshot;

use crate::bridge::{NamedFile, VolumeSync};
use crate::error::{Error, Result};
use crate::limits::{SYNC_ROUND_FILES_MIN, SYNCS_ALONE_MAX, SYNCS_IN_FLIGHT_MAX};
use crate::sabotage::{self, Sabotage};
use crate::volume::Volume;

/// The callers of one volume's syncs.
pub(crate) struct GroupSync {
    /// Open from the start: the kernel reports what failed since then. `None` where it could not be opened.
    directory: Option<Arc<NamedFile>>,
    queue: Mutex<Queue>,
}

struct Queue {
    waiting: VecDeque<Waiting>,
    /// fdatasyncs under way that are of no round.
    alone: usize,
    round: bool,
    whole: Whole,
    alone_max: usize,
    round_min: usize,
}

/// One file, and those who wait for its sync.
struct Waiting {
    file: Arc<NamedFile>,
    answers: Vec<oneshot::Sender<Result<()>>>,
}

/// What is known of syncing the whole volume.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whole {
    Untried,
    /// It has succeeded: a failure is one of this process's time.
    Trusted,
    Never,
}

impl GroupSync {
    pub(crate) fn new(dir: &Path) -> GroupSync {
        let file = std::fs::File::open(dir).ok();
        let directory = file.map(|file| Arc::new(NamedFile { file, path: dir.into(), claim: None }));
        let queue = Queue {
            waiting: VecDeque::new(),
            alone: 0,
            round: false,
            whole: if directory.is_some() { Whole::Untried } else { Whole::Never },
            alone_max: SYNCS_ALONE_MAX,
            round_min: SYNC_ROUND_FILES_MIN,
        };
        GroupSync { directory, queue: Mutex::new(queue) }
    }

    /// Other bounds, so that short histories have rounds too.
    #[cfg(test)]
    pub(crate) fn tune(&self, alone_max: usize, round_min: usize) {
        let mut queue = self.queue();
        (queue.alone_max, queue.round_min) = (alone_max, round_min);
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts what may start now.
    fn advance(&self, volume: &Arc<Volume>) {
        let mut queue = self.queue();
        if queue.round {
            return;
        }
        if queue.whole != Whole::Never && queue.waiting.len() >= queue.round_min {
            queue.round = true;
            drop(volume.spawn(round(Arc::clone(volume))));
            return;
        }
        let places = if queue.whole == Whole::Never { SYNCS_IN_FLIGHT_MAX } else { queue.alone_max };
        while queue.alone < places
            && let Some(waiting) = queue.waiting.pop_front()
        {
            queue.alone += 1;
            drop(volume.spawn(alone(Arc::clone(volume), waiting)));
        }
    }
}

/// Syncs a file's data, together with others where many ask.
pub(crate) async fn sync(volume: &Arc<Volume>, file: &Arc<NamedFile>) -> Result<()> {
    let (answer, heard) = oneshot::channel();
    {
        let mut queue = volume.group_sync.queue();
        match queue.waiting.iter_mut().find(|waiting| Arc::ptr_eq(&waiting.file, file)) {
            Some(waiting) => waiting.answers.push(answer),
            None => queue.waiting.push_back(Waiting { file: Arc::clone(file), answers: vec![answer] }),
        }
    }
    volume.group_sync.advance(volume);
    heard.await.unwrap_or(Err(Error::Closed))
}

async fn alone(volume: Arc<Volume>, waiting: Waiting) {
    let result = sync_one(&volume, &waiting.file).await;
    waiting.answer(result);
    volume.group_sync.queue().alone -= 1;
    volume.group_sync.advance(&volume);
}

/// Syncs all that wait by now. What was written by others meanwhile may be covered or not.
async fn round(volume: Arc<Volume>) {
    let group = &volume.group_sync;
    let taken = std::mem::take(&mut group.queue().waiting);
    let directory = group.directory.as_ref().expect("a round needs the directory");
    let mut result = volume.bridge.sync_volume(directory).await;
    if sabotage::is(Sabotage::SyncRetried) && result.is_err() {
        result = volume.bridge.sync_volume(directory).await;
    }
    let trusted = group.queue().whole == Whole::Trusted;
    match result {
        Ok(VolumeSync::Done) => {
            group.queue().whole = Whole::Trusted;
            answer_all(&volume, taken, Ok(()));
            if sabotage::is(Sabotage::RoundTakesLatecomers) {
                let late = std::mem::take(&mut group.queue().waiting);
                answer_all(&volume, late, Ok(()));
            }
        }
        Ok(VolumeSync::TooMuch) => one_by_one(&volume, taken).await,
        Ok(VolumeSync::Unknown) => {
            group.queue().whole = Whole::Never;
            one_by_one(&volume, taken).await;
        }
        Err(error) if trusted && !matches!(error, Error::NoSpace { .. }) => answer_all(&volume, taken, Err(error)),
        Err(error) => {
            if !matches!(error, Error::Closed) {
                let dir = directory.path.display();
                tracing::warn!(%error, %dir, "some file of the file system was not written; asking each file of our own from now on");
            }
            group.queue().whole = Whole::Never;
            one_by_one(&volume, taken).await;
        }
    }
    group.queue().round = false;
    group.advance(&volume);
}

/// The fdatasyncs of all of them at once, as many as the lane takes.
async fn one_by_one(volume: &Arc<Volume>, taken: VecDeque<Waiting>) {
    join_all(taken.into_iter().map(async |waiting| {
        let result = sync_one(volume, &waiting.file).await;
        waiting.answer(result);
    }))
    .await;
}

/// fdatasync of one file. What a failure means is told in `health.rs`.
pub(crate) async fn sync_one(volume: &Volume, file: &Arc<NamedFile>) -> Result<()> {
    let mut result = volume.bridge.sync(file).await;
    if sabotage::is(Sabotage::SyncRetried) && result.is_err() {
        result = volume.bridge.sync(file).await;
    }
    volume.health.judge_sync(result)
}

/// One outcome for all. Each file's error names that file.
fn answer_all(volume: &Volume, taken: VecDeque<Waiting>, result: Result<()>) {
    for waiting in taken {
        let own = volume.health.judge_sync(same(&result, &waiting.file));
        waiting.answer(own);
    }
}

impl Waiting {
    fn answer(self, result: Result<()>) {
        for answer in self.answers {
            // Nobody may be there any more.
            drop(answer.send(same(&result, &self.file)));
        }
    }
}

/// The outcome again, for another caller.
fn same(result: &Result<()>, file: &NamedFile) -> Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(Error::Closed) => Err(Error::Closed),
        Err(Error::Degraded { volume, dir, reason }) => {
            Err(Error::Degraded { volume: *volume, dir: dir.clone(), reason: reason.clone() })
        }
        Err(Error::NoSpace { .. }) => Err(Error::NoSpace { op: "sync", path: file.path.clone(), room: None }),
        Err(Error::Io { source, .. }) => {
            let copy = source.raw_os_error().map(io::Error::from_raw_os_error);
            Err(Error::io("sync", &file.path, copy.unwrap_or_else(|| io::Error::other(source.to_string()))))
        }
        Err(other) => Err(Error::io("sync", &file.path, io::Error::other(other.to_string()))),
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::{Context, Waker};

    use super::*;
    use crate::bridge::{Bridge, How, Lane};
    use crate::engine::sim;

    /// A volume on a disk that syncs as a whole.
    fn volume(dir: &Path) -> Arc<Volume> {
        let bridge = Bridge::over(&sim::Threaded { seed: 1 }, sim::info()).unwrap();
        Volume::on(dir, bridge)
    }

    fn syncs(volume: &Volume) -> (u64, u64) {
        let ops = volume.bridge.counters().ops();
        let total = |kind: &str| ops.iter().find(|op| op.op == kind).unwrap().total;
        (total("sync"), total("sync_volume"))
    }

    async fn files(volume: &Volume, count: usize) -> Vec<Arc<NamedFile>> {
        let mut files = Vec::new();
        for name in 0..count {
            files.push(volume.bridge.open(&volume.dir.join(name.to_string()), How::CreateNew).await.unwrap());
        }
        files
    }

    #[tokio::test]
    async fn sixty_four_at_once_cost_a_handful() {
        let dir = tempfile::tempdir().unwrap();
        let volume = volume(dir.path());
        let files = files(&volume, 64).await;
        // All ask before the disk does anything.
        let slots: Vec<_> = std::iter::from_fn(|| volume.bridge.try_slot(Lane::Sync)).collect();
        let asked = files.iter().map(|file| sync(&volume, file));
        let mut all = Box::pin(join_all(asked));
        assert!(all.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(slots);
        assert!(all.await.iter().all(Result::is_ok));
        assert_eq!(syncs(&volume), (4, 1), "some find a place at once, one call does for the rest");
        // One after the other they have nobody to wait for.
        for file in &files[..3] {
            sync(&volume, file).await.unwrap();
        }
        assert_eq!(syncs(&volume), (7, 1));
    }

    #[tokio::test]
    async fn two_callers_for_one_file_share_its_sync() {
        let dir = tempfile::tempdir().unwrap();
        let volume = volume(dir.path());
        volume.group_sync.tune(1, usize::MAX);
        let files = files(&volume, 2).await;
        let asked = [&files[0], &files[1], &files[1], &files[1]].map(|file| sync(&volume, file));
        assert!(join_all(asked).await.iter().all(Result::is_ok));
        assert_eq!(syncs(&volume), (2, 0));
    }
}
