//! The volumes of a store, and which of them gets a new blob.
//!
//! The data directory is number 0; it alone has the catalog. When its health is gone nothing can be committed anywhere.
//! Any other volume fails alone: it is skipped for new blobs, read as long as it answers, and its blobs are refused by
//! name while it is absent.
//!
//! **Placement.** A blob goes to the volume with the most bytes still to promise, so that volumes of different sizes fill
//! up together; reservations count, so large uploads that begin at once spread. Small blobs stay where the last small one
//! went as long as that has nearly as much room as the best: blobs written together share a directory's fsync.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::blob::BlobMeta;
use crate::error::{Error, Result};
use crate::limits::{BATCH_BYTES_MAX, PLACEMENT_SLACK_DIVISOR};
use crate::volume::Volume;
use crate::volume::room::Reservation;

pub(crate) struct Volumes {
    /// In the order of their numbers.
    present: Vec<Arc<Volume>>,
    absent: Vec<Absent>,
    /// Number of the volume that got the last small blob.
    small: AtomicU32,
}

/// A volume that the catalog knows and nobody can reach.
pub(crate) struct Absent {
    pub(crate) number: u32,
    pub(crate) dir: PathBuf,
    pub(crate) reason: String,
    pub(crate) since_ms: u64,
    /// Lengths of the blobs on it.
    pub(crate) used: u64,
}

impl Volumes {
    /// The first is the data directory.
    pub(crate) fn new(present: Vec<Arc<Volume>>, absent: Vec<Absent>) -> Volumes {
        debug_assert!(present.iter().map(|volume| volume.number).is_sorted() && present[0].number == 0);
        Volumes { present, absent, small: AtomicU32::new(0) }
    }

    /// The data directory.
    pub(crate) fn first(&self) -> &Arc<Volume> {
        &self.present[0]
    }

    /// Those that are there, by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Volume>> {
        self.present.iter()
    }

    pub(crate) fn absent(&self) -> impl Iterator<Item = &Absent> {
        self.absent.iter()
    }

    /// Every blob is on the data directory.
    pub(crate) fn is_one(&self) -> bool {
        self.present.len() == 1 && self.absent.is_empty()
    }

    pub(crate) fn by_number(&self, number: u32) -> Result<&Arc<Volume>> {
        if let Some(volume) = self.present.iter().find(|volume| volume.number == number) {
            return Ok(volume);
        }
        let (dir, reason) = match self.absent.iter().find(|absent| absent.number == number) {
            Some(absent) => (absent.dir.clone(), absent.reason.clone()),
            None => (PathBuf::new(), "it is neither configured nor in the catalog".to_owned()),
        };
        Err(Error::VolumeMissing { volume: number, dir, reason })
    }

    /// Those that new blobs may go to, as far as health goes.
    fn writable(&self) -> impl Iterator<Item = &Arc<Volume>> {
        self.iter().filter(|volume| volume.takes_new && !volume.health.is_degraded())
    }

    /// Whether anything can be stored: the catalog takes commits and some volume takes blobs.
    pub(crate) fn take_writes(&self) -> bool {
        // The catalog is on the data directory, which takes blobs too.
        !self.first().health.is_degraded()
    }

    /// Whether any volume may have so much more room, for a writer that is on one of them.
    pub(crate) fn expect(&self, more: u64) -> Result<()> {
        let mut answers = self.writable().map(|volume| volume.room.expect(more));
        let first = answers.next().unwrap_or(Ok(()));
        if first.is_ok() || answers.any(|answer| answer.is_ok()) { Ok(()) } else { first }
    }

    /// Chooses a volume for a new blob and takes the room for it.
    pub(crate) fn place(&self, meta: &BlobMeta) -> Result<(&Arc<Volume>, Reservation)> {
        // Without the catalog nothing could be committed.
        self.first().health.check_writable()?;
        if self.is_one() {
            return Ok((self.first(), self.first().room.reserve(meta.announced_bytes())?));
        }
        let mut candidates: Vec<(u64, &Arc<Volume>)> =
            self.writable().map(|volume| (volume.room.status().available, volume)).collect();
        candidates.sort_by_key(|(available, volume)| (std::cmp::Reverse(*available), volume.number));
        let small = meta.length_hint.is_some_and(|hint| hint <= BATCH_BYTES_MAX as u64);
        if small && let Some((most, _)) = candidates.first() {
            let last = self.small.load(Relaxed);
            let enough = most - most / PLACEMENT_SLACK_DIVISOR;
            let stays = |(available, volume): &(u64, &Arc<Volume>)| volume.number == last && *available >= enough;
            if let Some(at) = candidates.iter().position(stays) {
                candidates[..=at].rotate_right(1);
            }
        }
        let mut refusal = None;
        for (_, volume) in candidates {
            match volume.room.reserve(meta.announced_bytes()) {
                Ok(room) => {
                    if small {
                        self.small.store(volume.number, Relaxed);
                    }
                    return Ok((volume, room));
                }
                // The one with the most room speaks for all.
                Err(error) => drop(refusal.get_or_insert(error)),
            }
        }
        // None: the data directory has failed since.
        Err(refusal.or_else(|| self.first().health.check_writable().err()).unwrap_or(Error::Closed))
    }
}
