//! A blob that is being written, as its followers see it: how far it has come, the checksums of that much, its end.
//!
//! The writer tells [`Publisher`] what it hands to the engine; the engine tells it what has landed in the file, on its own
//! thread, so that followers hear of it whether or not the writer's caller is waiting. Only the part without gaps before
//! the first write still under way is published. The publisher goes with the files, from the writer to the sealed blob:
//! [`Publisher::stored`] is called when the catalog has it, and dropping the publisher before that tells every follower
//! that nothing will come of it, whatever the way it ended (an error, a cancel, a panic).
//!
//! A writer that goes back and writes other bytes begins a new version. Whoever follows the old one is told that it is
//! gone: some of what they were given may not be in the new one.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::BlobMeta;
use super::follower::{Chunk, FollowedFile};
use super::hashes::Hashes;
use crate::bridge::{Landed, NamedFile};
use crate::id::BlobId;
use crate::limits::BLOCK_BYTES;
use crate::store::writing::Writing;
use crate::volume::Volume;

/// Shared by the writer, the engine's operations and the followers.
pub(crate) struct Progress {
    pub(super) id: BlobId,
    pub(super) key: String,
    pub(super) meta: BlobMeta,
    pub(super) volume: Arc<Volume>,
    state: Mutex<State>,
    changed: Notify,
    followers: AtomicUsize,
    /// The piece that was read last at the end of what there is, while some follower still sends it: many wait there
    /// for the same bytes.
    pub(super) newest: tokio::sync::Mutex<Weak<Chunk>>,
}

struct State {
    /// What landed without a gap, and the checksum of its last, unfinished block.
    landed: u64,
    tail_crc: u32,
    /// Of all blocks that were handed over, those not yet landed too.
    block_crcs: Vec<u32>,
    under_way: VecDeque<UnderWay>,
    version: u32,
    fate: Fate,
    /// The writer's file, until the writer is gone.
    file: Option<Arc<NamedFile>>,
    followed: Weak<FollowedFile>,
}

struct UnderWay {
    end: u64,
    tail_crc: u32,
    landed: bool,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Open,
    /// The catalog has it.
    Stored,
    Gone,
}

/// What a follower may know at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) landed: u64,
    pub(super) version: u32,
    pub(super) fate: Fate,
}

/// The writer's end. Dropping it before [`Publisher::stored`] tells the followers that the blob is gone.
pub(crate) struct Publisher {
    progress: Arc<Progress>,
    writing: Arc<Writing>,
}

impl Publisher {
    pub(super) fn new(
        writing: Arc<Writing>,
        key: String,
        id: BlobId,
        meta: BlobMeta,
        volume: Arc<Volume>,
        file: &Arc<NamedFile>,
        hashes: &Hashes,
    ) -> Publisher {
        let state = State {
            landed: hashes.length,
            tail_crc: hashes.tail_crc,
            block_crcs: hashes.block_crcs.clone(),
            under_way: VecDeque::new(),
            version: 0,
            fate: Fate::Open,
            file: Some(Arc::clone(file)),
            followed: Weak::new(),
        };
        let progress = Arc::new(Progress {
            id,
            key,
            meta,
            volume,
            state: Mutex::new(state),
            changed: Notify::new(),
            followers: AtomicUsize::new(0),
            newest: tokio::sync::Mutex::default(),
        });
        writing.begin(&progress);
        Publisher { progress, writing }
    }

    pub(super) fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// What came after `start` is given up; all of it has landed.
    pub(super) fn went_back(&self, start: u64) {
        let mut state = self.progress.state();
        if start < state.handed_over() {
            state.go_back(start);
            drop(state);
            self.progress.changed.notify_waiters();
        }
    }

    pub(super) fn is_followed(&self) -> bool {
        self.progress.followers.load(Relaxed) > 0
    }

    /// The catalog has it, with this length.
    pub(super) fn stored(self, length: u64) {
        let mut state = self.progress.state();
        if state.landed > length {
            // The last thing its writer did was to go back.
            state.go_back(length);
        }
        drop(state);
        self.progress.end(Fate::Stored);
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.progress.end(Fate::Gone);
        self.writing.end(&self.progress);
    }
}

impl State {
    fn handed_over(&self) -> u64 {
        self.under_way.back().map_or(self.landed, |last| last.end)
    }

    /// Other bytes are about to be written from `start` on.
    fn go_back(&mut self, start: u64) {
        debug_assert!(start <= self.landed, "a writer goes back to what has landed");
        self.version += 1;
        self.under_way.clear();
        // The checksum of a block that the new bytes begin in the middle of is not known any more: its part before them
        // is shown again together with them.
        let blocks = start / BLOCK_BYTES as u64;
        self.block_crcs.truncate(blocks as usize);
        self.landed = blocks * BLOCK_BYTES as u64;
        self.tail_crc = 0;
    }
}

impl Progress {
    /// The bytes from `start` up to where `hashes` has come are handed to the engine; what is returned is to be called
    /// when they have landed.
    pub(super) fn under_way(self: &Arc<Self>, start: u64, hashes: &Hashes) -> Landed {
        let end = hashes.length;
        let mut state = self.state();
        if start < state.handed_over() {
            state.go_back(start);
        }
        let known = state.block_crcs.len();
        state.block_crcs.extend_from_slice(&hashes.block_crcs[known..]);
        state.under_way.push_back(UnderWay { end, tail_crc: hashes.tail_crc, landed: false });
        let (version, progress) = (state.version, Arc::downgrade(self));
        Box::new(move || {
            if let Some(progress) = progress.upgrade() {
                progress.landed(version, end);
            }
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn landed(&self, version: u32, end: u64) {
        let mut state = self.state();
        if state.version != version {
            return;
        }
        if let Some(write) = state.under_way.iter_mut().find(|write| write.end == end) {
            write.landed = true;
        }
        let before = state.landed;
        while let Some(UnderWay { end, tail_crc, landed: true }) = state.under_way.front() {
            (state.landed, state.tail_crc) = (*end, *tail_crc);
            state.under_way.pop_front();
        }
        let news = state.landed != before;
        drop(state);
        if news {
            self.changed.notify_waiters();
        }
    }

    /// The first end counts.
    fn end(&self, fate: Fate) {
        let mut state = self.state();
        if state.fate == Fate::Open {
            state.fate = fate;
        }
        let file = state.file.take();
        drop(state);
        drop(file);
        self.changed.notify_waiters();
    }

    pub(super) fn seen(&self) -> Seen {
        let state = self.state();
        Seen { landed: state.landed, version: state.version, fate: state.fate }
    }

    /// Completes with the next change after its call.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// The whole blocks that cover `range`, and their checksums, the last one cut where the landed bytes end now; `None`
    /// when the version is gone or not that much has landed.
    pub(super) fn blocks(&self, range: &Range<u64>, version: u32) -> Option<(Range<u64>, Vec<u32>)> {
        let block = BLOCK_BYTES as u64;
        let state = self.state();
        if state.version != version || state.landed < range.end {
            return None;
        }
        let blocks = range.start / block * block..range.end.next_multiple_of(block).min(state.landed);
        let whole = (blocks.start / block) as usize..(blocks.end / block) as usize;
        let mut crcs = state.block_crcs[whole].to_vec();
        if !blocks.end.is_multiple_of(block) {
            crcs.push(state.tail_crc);
        }
        Some((blocks, crcs))
    }

    /// The file for followers, shared by them all, and without the writer's claim: nobody who wants to take the blob up
    /// again waits for a slow reader. `None` when the writer is gone.
    pub(super) fn followed_file(&self) -> Option<std::io::Result<Arc<FollowedFile>>> {
        let mut state = self.state();
        let file = state.file.as_ref()?;
        if let Some(followed) = state.followed.upgrade() {
            return Some(Ok(followed));
        }
        Some(FollowedFile::of(file, &self.volume).map(|followed| {
            let followed = Arc::new(followed);
            state.followed = Arc::downgrade(&followed);
            followed
        }))
    }

    pub(super) fn join(&self) {
        self.followers.fetch_add(1, Relaxed);
    }

    pub(super) fn leave(&self) {
        self.followers.fetch_sub(1, Relaxed);
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }
}
