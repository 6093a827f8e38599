//! Room on one volume: what is free, who was promised how much of it, and where it ends.
//!
//! A writer holds a [`Reservation`] for what it is going to write: the announced length at once, or a step at a time. Only
//! what is promised and *not yet allocated* is counted here, for what is allocated is already gone from what the file
//! system says is free. So uploads that run at once are never promised more than there is, and the one that would not
//! fit is refused before it begins, not by ENOSPC half way.
//!
//! Two limits: some bytes of the file system stay free (`min_free`, and never less than the reserve from which the
//! catalog and its deletions live), and the node's own blobs stay below a quota, if there is one. The quota counts the
//! lengths of committed blobs, which the catalog keeps summed up, and all that writers hold.
//!
//! Cancel: a reservation gives back on drop whatever it holds, so it lasts exactly as long as the writer or the sealed
//! blob it belongs to.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, NoRoom, Result, RoomLimit};
use crate::limits::{
    BATCH_BYTES_MAX, BATCHES_IN_FLIGHT_MAX, LOW_ROOM_BYTES_MAX, LOW_ROOM_DIVISOR, MIN_FREE_DEFAULT_BYTES,
    MIN_FREE_DEFAULT_DIVISOR, RESERVATION_STEP_BYTES, RESERVATION_STEP_DIVISOR, RESERVE_BYTES_MAX, RESERVE_BYTES_MIN,
    RESERVE_DIVISOR,
};

/// How much of a volume may be used. The same for each volume of a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RoomLimits {
    /// Bytes of the file system that stay free; without it 1 GiB, or 5 % of a file system smaller than 20 GiB.
    pub min_free: Option<u64>,
    /// Bytes that the node's own blobs may have; without it as many as fit.
    pub quota: Option<u64>,
}

/// The ledger of one volume.
pub(crate) struct Room {
    number: u32,
    dir: PathBuf,
    limits: RoomLimits,
    ledger: Mutex<Ledger>,
}

#[derive(Default)]
struct Ledger {
    /// Promised to writers and not allocated yet.
    promised: u64,
    /// All that writers and sealed blobs hold, allocated or not.
    held: u64,
    /// Lengths of committed blobs.
    used: u64,
    /// It was said that little is left.
    low: bool,
    #[cfg(test)]
    pretended: Option<Disk>,
}

/// What the file system says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) size: u64,
    pub(crate) free: u64,
}

/// The numbers of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RoomStatus {
    /// `None` when the file system does not answer.
    pub(crate) disk: Option<Disk>,
    pub(crate) reserved: u64,
    pub(crate) used: u64,
    pub(crate) min_free: u64,
    pub(crate) quota: Option<u64>,
    /// What could still be promised.
    pub(crate) available: u64,
    pub(crate) low: bool,
}

/// Room held for one blob: for its first `to` bytes, of which the first `allocated` have theirs.
pub(crate) struct Reservation {
    room: Arc<Room>,
    to: u64,
    allocated: u64,
}

impl Disk {
    fn of(dir: &Path) -> Option<Disk> {
        let disk = rustix::fs::statvfs(dir).ok()?;
        Some(Disk { size: disk.f_blocks * disk.f_frsize, free: disk.f_bavail * disk.f_frsize })
    }

    /// Bytes that must stay free.
    fn floor(&self, limits: &RoomLimits) -> u64 {
        let reserve = (self.size / RESERVE_DIVISOR).clamp(RESERVE_BYTES_MIN, RESERVE_BYTES_MAX);
        let default = MIN_FREE_DEFAULT_BYTES.min(self.size / MIN_FREE_DEFAULT_DIVISOR);
        reserve.max(limits.min_free.unwrap_or(default))
    }

    /// Less than this left to promise is worth a word: a part of what there is to be had.
    fn low_mark(&self, limits: &RoomLimits) -> u64 {
        (limits.quota.unwrap_or(u64::MAX).min(self.size) / LOW_ROOM_DIVISOR).min(LOW_ROOM_BYTES_MAX)
    }
}

impl Room {
    /// `used` is the sum of the lengths of the volume's committed blobs.
    pub(crate) fn new(number: u32, dir: PathBuf, limits: RoomLimits, used: u64) -> Arc<Room> {
        Arc::new(Room { number, dir, limits, ledger: Mutex::new(Ledger { used, ..Ledger::default() }) })
    }

    /// Holds room for `needed` bytes, and up to a step more.
    pub(crate) fn reserve(self: &Arc<Room>, needed: u64) -> Result<Reservation> {
        let mut reservation = Reservation { room: Arc::clone(self), to: 0, allocated: 0 };
        reservation.to = self.promise(needed)?;
        Ok(reservation)
    }

    /// For a file that has `len` bytes already.
    pub(crate) fn adopt(self: &Arc<Room>, len: u64) -> Reservation {
        self.ledger().held += len;
        Reservation { room: Arc::clone(self), to: len, allocated: len }
    }

    /// Refuses what there will be no room for, before it comes to a writer that was promised no length. Nothing is promised.
    /// What that writer has in hand is not known here: it is taken for the most it can be, so that nothing that fits is refused.
    pub(crate) fn expect(&self, more: u64) -> Result<()> {
        let in_hand = RESERVATION_STEP_BYTES + (BATCHES_IN_FLIGHT_MAX * BATCH_BYTES_MAX) as u64;
        let ledger = self.ledger();
        let disk = self.disk(&ledger);
        match more > self.left(&ledger, disk).saturating_add(in_hand) {
            true => Err(self.refusal(&ledger, disk, more)),
            false => Ok(()),
        }
    }

    /// A blob of that length was committed.
    pub(crate) fn stored(&self, length: u64) {
        let mut ledger = self.ledger();
        ledger.used = ledger.used.saturating_add(length);
    }

    /// A blob of that length was deleted.
    pub(crate) fn removed(&self, length: u64) {
        let mut ledger = self.ledger();
        ledger.used = ledger.used.saturating_sub(length);
    }

    pub(crate) fn status(&self) -> RoomStatus {
        let mut ledger = self.ledger();
        let disk = self.disk(&ledger);
        let left = self.left(&ledger, disk);
        self.watch(&mut ledger, disk, left);
        RoomStatus {
            disk,
            reserved: ledger.promised,
            used: ledger.used,
            min_free: disk.map_or(0, |disk| disk.floor(&self.limits)),
            quota: self.limits.quota,
            available: left,
            low: ledger.low,
        }
    }

    /// Promises `needed` bytes, or more where there is plenty. Returns how many.
    fn promise(&self, needed: u64) -> Result<u64> {
        // Held while the file system is asked: an allocation noted in between would be seen on neither side.
        let mut ledger = self.ledger();
        let disk = self.disk(&ledger);
        let left = self.left(&ledger, disk);
        if left < needed || left == 0 {
            return Err(self.refusal(&ledger, disk, needed));
        }
        let step = (left / RESERVATION_STEP_DIVISOR).min(RESERVATION_STEP_BYTES);
        let granted = needed.max(step);
        ledger.promised += granted;
        ledger.held += granted;
        self.watch(&mut ledger, disk, left - granted);
        Ok(granted)
    }

    /// Bytes that may still be promised. A file system that tells nothing says it when it is full.
    fn left(&self, ledger: &Ledger, disk: Option<Disk>) -> u64 {
        let on_disk = disk.map_or(u64::MAX >> 1, |disk| {
            disk.free.saturating_sub(ledger.promised).saturating_sub(disk.floor(&self.limits))
        });
        let in_quota = self.limits.quota.map_or(u64::MAX, |quota| quota.saturating_sub(ledger.used + ledger.held));
        on_disk.min(in_quota)
    }

    fn refusal(&self, ledger: &Ledger, disk: Option<Disk>, wanted: u64) -> Error {
        let by_quota =
            self.limits.quota.filter(|quota| quota.saturating_sub(ledger.used + ledger.held) < wanted.max(1));
        let limit = match (by_quota, disk) {
            (Some(quota), _) => RoomLimit::Quota { quota, used: ledger.used, held: ledger.held },
            (None, disk) => RoomLimit::Free {
                free: disk.map_or(0, |disk| disk.free),
                promised: ledger.promised,
                min_free: disk.map_or(0, |disk| disk.floor(&self.limits)),
            },
        };
        let room = NoRoom { volume: self.number, dir: self.dir.clone(), wanted, limit };
        Error::NoSpace { op: "write", path: self.dir.clone(), room: Some(Box::new(room)) }
    }

    /// Says once that little is left, and once that there is more again.
    fn watch(&self, ledger: &mut Ledger, disk: Option<Disk>, left: u64) {
        let Some(mark) = disk.map(|disk| disk.low_mark(&self.limits)) else { return };
        let (volume, dir) = (self.number, self.dir.display());
        if !ledger.low && left < mark {
            ledger.low = true;
            tracing::warn!(volume, %dir, left, "little room is left: uploads will be refused with 507 when it is used up");
        } else if ledger.low && left > mark + mark / 4 {
            ledger.low = false;
            tracing::info!(volume, %dir, left, "there is room again");
        }
    }

    fn disk(&self, _ledger: &Ledger) -> Option<Disk> {
        #[cfg(test)]
        if let Some(disk) = _ledger.pretended {
            return Some(disk);
        }
        Disk::of(&self.dir)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes these numbers for the file system's.
    #[cfg(test)]
    pub(crate) fn pretend(&self, disk: Disk) {
        self.ledger().pretended = Some(disk);
    }
}

impl Reservation {
    /// Makes sure that the first `end` bytes have room.
    pub(crate) fn cover(&mut self, end: u64) -> Result<()> {
        if let Some(more) = end.checked_sub(self.to).filter(|more| *more > 0) {
            self.to += self.room.promise(more)?;
        }
        Ok(())
    }

    /// The file system has given the first `end` bytes their blocks: they are gone from what is free.
    pub(crate) fn allocated(&mut self, end: u64) {
        let end = end.min(self.to);
        if end > self.allocated {
            let promised_before = self.to.saturating_sub(self.allocated);
            self.allocated = end;
            let promised = self.to.saturating_sub(self.allocated);
            self.room.ledger().promised -= promised_before - promised;
        }
    }

    /// The blob is complete and ends there; all of it is allocated.
    pub(crate) fn complete(&mut self, end: u64) {
        self.allocated(end);
        let mut ledger = self.room.ledger();
        ledger.promised -= self.to.saturating_sub(self.allocated);
        ledger.held = ledger.held - self.to + end;
        (self.to, self.allocated) = (end, end);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut ledger = self.room.ledger();
        ledger.promised -= self.to.saturating_sub(self.allocated);
        ledger.held -= self.to;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn room(free: u64, limits: RoomLimits) -> Arc<Room> {
        let room = Room::new(3, "/disk3".into(), limits, 0);
        room.pretend(Disk { size: 1 << 40, free });
        room
    }

    fn refusal<T>(result: Result<T>) -> NoRoom {
        match result.err() {
            Some(Error::NoSpace { room: Some(room), .. }) => *room,
            other => panic!("no refusal: {other:?}"),
        }
    }

    #[test]
    fn uploads_at_once_are_never_promised_more_than_there_is() {
        let room = room(110 * MIB, RoomLimits { min_free: Some(64 * MIB), quota: None });
        let first = room.reserve(40 * MIB).unwrap();
        let refused = refusal(room.reserve(10 * MIB));
        assert_eq!(refused.limit, RoomLimit::Free { free: 110 * MIB, promised: 40 * MIB, min_free: 64 * MIB });
        let text = refused.to_string();
        for part in ["volume 3", "/disk3", "min_free", &(10 * MIB).to_string(), &(40 * MIB).to_string()] {
            assert!(text.contains(part), "{part} is not in {text:?}");
        }
        drop(first);
        drop(room.reserve(40 * MIB).unwrap());
        assert_eq!(room.status().reserved, 0);
    }

    #[test]
    fn what_is_allocated_is_not_counted_twice() {
        let room = room(200 * MIB, RoomLimits { min_free: Some(100 * MIB), quota: None });
        let mut first = room.reserve(80 * MIB).unwrap();
        // The file system gave the blocks: it has them no more, and neither are they promised.
        room.pretend(Disk { size: 1 << 40, free: 120 * MIB });
        first.allocated(80 * MIB);
        assert_eq!(room.status().available, 20 * MIB);
        let second = room.reserve(20 * MIB).unwrap();
        refusal(room.reserve(1));
        drop((first, second));
        assert_eq!(room.status().reserved, 0);
    }

    #[test]
    fn a_quota_counts_what_is_stored_and_what_is_being_written() {
        let room = room(1 << 39, RoomLimits { min_free: None, quota: Some(100 * MIB) });
        room.stored(50 * MIB);
        let mut writer = room.reserve(30 * MIB).unwrap();
        writer.allocated(30 * MIB);
        assert_eq!(
            refusal(room.reserve(21 * MIB)).limit,
            RoomLimit::Quota { quota: 100 * MIB, used: 50 * MIB, held: 30 * MIB }
        );
        writer.complete(10 * MIB);
        room.stored(10 * MIB);
        drop(writer);
        // A small part of the disk, of which much is left.
        assert!(!room.status().low, "40 of 100 MiB are left");
        room.stored(36 * MIB);
        assert!(room.status().low, "4 of 100 MiB are left");
        room.removed(36 * MIB);
        drop(room.reserve(40 * MIB).unwrap());
        room.removed(60 * MIB);
        drop(room.reserve(100 * MIB).unwrap());
    }

    #[test]
    fn what_is_expected_is_refused_only_where_it_cannot_fit() {
        let room = room(164 * MIB, RoomLimits { min_free: Some(64 * MIB), quota: None });
        // All that is left is a writer's own, who has nothing of it on the disk yet.
        let mut writer = room.reserve(0).unwrap();
        writer.cover(8 * MIB).unwrap();
        let others = room.reserve(room.status().available).unwrap();
        room.expect(8 * MIB).unwrap();
        assert_eq!(refusal(room.expect(100 * MIB)).wanted, 100 * MIB);
        drop(others);
        room.expect(100 * MIB).unwrap();
        room.expect(u64::MAX).unwrap_err();
    }

    #[test]
    fn a_small_volume_is_not_used_up_by_steps() {
        let room = Room::new(0, "/small".into(), RoomLimits::default(), 0);
        room.pretend(Disk { size: 16 * MIB, free: 16 * MIB });
        let steps: Vec<_> = (0..32).map(|_| room.reserve(0).unwrap()).collect();
        drop(room.reserve(8 * MIB).unwrap());
        drop(steps);
    }

    proptest! {
        /// Whatever writers do, the promises fit and all of them come back.
        #[test]
        fn the_ledger_balances(moves in prop::collection::vec((0usize..4, 0u64..(64 << 20)), 1..200)) {
            let (free, floor) = (256 * MIB, 64 * MIB);
            let room = room(free, RoomLimits { min_free: Some(floor), quota: None });
            let mut held: Vec<Reservation> = Vec::new();
            for (what, bytes) in moves {
                match (what, held.last_mut()) {
                    (0, _) => held.extend(room.reserve(bytes).ok()),
                    (1, Some(last)) => drop(last.cover(bytes)),
                    (2, Some(last)) => {
                        let end = bytes.min(last.to);
                        last.allocated(end);
                        if bytes % 2 == 0 {
                            last.complete(end.max(last.allocated));
                        }
                    }
                    _ => drop(held.pop()),
                }
                let allocated: u64 = held.iter().map(|r| r.allocated).sum();
                let promised: u64 = held.iter().map(|r| r.to.saturating_sub(r.allocated)).sum();
                prop_assert_eq!(room.status().reserved, promised);
                prop_assert!(promised <= free - floor, "{} promised, {} allocated", promised, allocated);
            }
            held.clear();
            prop_assert_eq!(room.status().reserved, 0);
            prop_assert_eq!(room.ledger().held, 0);
        }
    }
}
