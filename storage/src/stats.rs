//! Counters that the bridge and the read path keep, and the snapshot made of them.
//!
//! All are relaxed atomics: they are read for people, never to decide anything.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::budget::Payer;
use crate::store::Store;
use crate::store::volumes::Absent;
use crate::volume::{PAGE_BYTES, Volume};

/// What is counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpKind {
    Read,
    Write,
    Sync,
    SyncVolume,
    Allocate,
    Open,
    Rename,
    Unlink,
    MakeDirectory,
    Truncate,
    List,
    Close,
}

const KINDS: [(OpKind, &str); 12] = [
    (OpKind::Read, "read"),
    (OpKind::Write, "write"),
    (OpKind::Sync, "sync"),
    (OpKind::SyncVolume, "sync_volume"),
    (OpKind::Allocate, "allocate"),
    (OpKind::Open, "open"),
    (OpKind::Rename, "rename"),
    (OpKind::Unlink, "unlink"),
    (OpKind::MakeDirectory, "mkdir"),
    (OpKind::Truncate, "truncate"),
    (OpKind::List, "list"),
    (OpKind::Close, "close"),
];

/// Upper bounds of the buckets of an operation's duration, in seconds; the last bucket is open.
pub const OP_SECONDS_BUCKETS: [f64; 8] = [0.000_05, 0.000_1, 0.000_25, 0.001, 0.005, 0.025, 0.1, 1.0];

#[derive(Default)]
pub(crate) struct Counters {
    ops: [OpCounter; KINDS.len()],
    pub(crate) batches: AtomicU64,
    pub(crate) batched_ops: AtomicU64,
    pub(crate) batch_max: AtomicU64,
    pub(crate) doorbell_rings: AtomicU64,
    pub(crate) waiting: AtomicU64,
}

#[derive(Default)]
struct OpCounter {
    total: AtomicU64,
    errors: AtomicU64,
    nanoseconds: AtomicU64,
    buckets: [AtomicU64; OP_SECONDS_BUCKETS.len() + 1],
}

/// Counts of one kind of operation.
#[derive(Debug, Clone)]
pub struct OpStats {
    pub op: &'static str,
    pub total: u64,
    pub errors: u64,
    /// Time between submission and completion, summed.
    pub seconds: f64,
    /// How many took at most each of [`OP_SECONDS_BUCKETS`] (not cumulative), then how many longer.
    pub buckets: Vec<u64>,
}

/// A snapshot for metrics and `doctor`.
#[derive(Debug, Clone)]
pub struct StoreStats {
    pub engine: &'static str,
    /// Operations handed to the engine and not complete.
    pub inflight: u64,
    /// Callers waiting for room in a lane.
    pub queue_depth: u64,
    pub ops: Vec<OpStats>,
    /// Batches drained by the reactor, operations in them, and the largest.
    pub batches_total: u64,
    pub batched_ops_total: u64,
    pub batch_max: u64,
    /// Times a caller had to wake the reactor.
    pub doorbell_rings_total: u64,
    /// Over all volumes.
    pub free_bytes: u64,
    pub volume_bytes: u64,
    /// A volume failed and takes no writes.
    pub degraded: bool,
    /// Something can be stored, as far as health goes.
    pub takes_writes: bool,
    /// Blobs found damaged and refused since, and blocks (and footers) that did not match in this process.
    pub quarantined_blobs: u64,
    pub corrupt_blocks_total: u64,
    /// Reads answered from the page cache, and through the engine.
    pub reads_mmap_total: u64,
    pub reads_reactor_total: u64,
    /// Stretches of blobs that were sent so often that they were read again, into one page.
    pub renewed_stretches_total: u64,
    /// Bytes of buffers in use, and bytes mapped.
    pub buffer_bytes: u64,
    pub mapped_bytes: u64,
    /// Times a buffer had to be waited for because there was nothing left, and because its payer had his share.
    pub waits_for_room_total: u64,
    pub waits_for_share_total: u64,
    /// Blobs kept open for the next reader, and second descriptors of theirs, for reads past the page cache.
    pub open_blobs: u64,
    pub open_direct: u64,
    pub volumes: Vec<VolumeStats>,
}

/// The room of one volume, in bytes.
#[derive(Debug, Clone)]
pub struct VolumeStats {
    pub number: u32,
    pub dir: PathBuf,
    /// The file system's size and what is free on it; `None` when it does not answer.
    pub bytes: Option<u64>,
    pub free_bytes: Option<u64>,
    /// Promised to uploads under way and not allocated yet.
    pub reserved_bytes: u64,
    /// Lengths of the committed blobs.
    pub used_bytes: u64,
    /// What must stay free.
    pub min_free_bytes: u64,
    pub quota_bytes: Option<u64>,
    /// What may still be stored.
    pub available_bytes: u64,
    /// Little of that is left.
    pub low: bool,
    pub state: VolumeState,
    /// Why it is not ready, and since when.
    pub reason: Option<String>,
    pub since_ms: Option<u64>,
}

/// What may be done with a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// Read and written.
    Ready,
    /// No room: read, and written again once something was deleted.
    Full,
    /// No longer configured: read, and gets nothing new.
    Retired,
    /// Failed: read as long as it answers, and written no more until the next start.
    Degraded,
    /// Cannot be reached.
    Missing,
}

impl VolumeStats {
    fn of(volume: &Volume) -> VolumeStats {
        let room = volume.room.status();
        let fault = volume.health.fault();
        let state = match fault {
            Some(_) => VolumeState::Degraded,
            None if !volume.takes_new => VolumeState::Retired,
            None if room.available == 0 => VolumeState::Full,
            None => VolumeState::Ready,
        };
        VolumeStats {
            number: volume.number,
            dir: volume.dir.clone(),
            bytes: room.disk.map(|disk| disk.size),
            free_bytes: room.disk.map(|disk| disk.free),
            reserved_bytes: room.reserved,
            used_bytes: room.used,
            min_free_bytes: room.min_free,
            quota_bytes: room.quota,
            available_bytes: room.available,
            low: room.low,
            state,
            reason: fault.map(|fault| fault.reason.clone()),
            since_ms: fault.map(|fault| fault.since_ms),
        }
    }

    fn of_absent(absent: &Absent) -> VolumeStats {
        VolumeStats {
            number: absent.number,
            dir: absent.dir.clone(),
            bytes: None,
            free_bytes: None,
            reserved_bytes: 0,
            used_bytes: absent.used,
            min_free_bytes: 0,
            quota_bytes: None,
            available_bytes: 0,
            low: false,
            state: VolumeState::Missing,
            reason: Some(absent.reason.clone()),
            since_ms: Some(absent.since_ms),
        }
    }
}

impl Store {
    /// True while this payer's reads from the disk wait for memory, or soon will: what is read leaves too slowly.
    pub fn is_short_of_read_memory(&self, payer: Payer) -> bool {
        self.inner.volumes.iter().any(|volume| volume.read_pool.is_short(payer))
    }

    /// A snapshot of what is counted, over all volumes, and of each one's room and health.
    pub fn stats(&self) -> StoreStats {
        let volumes = &self.inner.volumes;
        let sum = |of: fn(&Volume) -> u64| volumes.iter().map(|volume| of(volume)).sum::<u64>();
        let count = |of: fn(&Counters) -> &AtomicU64| -> u64 {
            volumes.iter().map(|volume| of(volume.bridge.counters()).load(Relaxed)).sum()
        };
        let mut ops = volumes.first().bridge.counters().ops();
        for volume in volumes.iter().skip(1) {
            ops.iter_mut().zip(volume.bridge.counters().ops()).for_each(|(all, more)| all.add(&more));
        }
        let present = volumes.iter().map(|volume| VolumeStats::of(volume));
        let mut of_volumes: Vec<VolumeStats> = present.chain(volumes.absent().map(VolumeStats::of_absent)).collect();
        of_volumes.sort_by_key(|volume| volume.number);
        StoreStats {
            engine: volumes.first().bridge.info().name,
            inflight: sum(|volume| volume.bridge.inflight() as u64),
            queue_depth: count(|counters| &counters.waiting),
            ops,
            batches_total: count(|counters| &counters.batches),
            batched_ops_total: count(|counters| &counters.batched_ops),
            batch_max: volumes.iter().map(|v| v.bridge.counters().batch_max.load(Relaxed)).max().unwrap_or(0),
            doorbell_rings_total: count(|counters| &counters.doorbell_rings),
            free_bytes: of_volumes.iter().filter_map(|volume| volume.free_bytes).sum(),
            volume_bytes: of_volumes.iter().filter_map(|volume| volume.bytes).sum(),
            degraded: volumes.iter().any(|volume| volume.health.is_degraded()),
            takes_writes: volumes.take_writes(),
            quarantined_blobs: sum(|volume| volume.quarantine.count()),
            corrupt_blocks_total: sum(|volume| volume.quarantine.corrupt_blocks()),
            reads_mmap_total: sum(|volume| volume.reads_hot.load(Relaxed)),
            reads_reactor_total: sum(|volume| volume.reads_cold.load(Relaxed)),
            renewed_stretches_total: sum(|volume| volume.renewed.load(Relaxed)),
            buffer_bytes: sum(|volume| (volume.write_pool.in_use() + volume.read_pool.in_use()) as u64),
            waits_for_room_total: sum(|volume| volume.write_pool.waits().0 + volume.read_pool.waits().0),
            waits_for_share_total: sum(|volume| volume.write_pool.waits().1 + volume.read_pool.waits().1),
            mapped_bytes: sum(|v| {
                ((v.map_pages - v.map_budget.available_permits().min(v.map_pages)) * PAGE_BYTES) as u64
            }),
            open_blobs: self.open_blobs(|open| open.len()) as u64,
            open_direct: sum(|volume| volume.direct.open_files() as u64),
            volumes: of_volumes,
        }
    }
}

impl OpStats {
    fn add(&mut self, more: &OpStats) {
        self.total += more.total;
        self.errors += more.errors;
        self.seconds += more.seconds;
        self.buckets.iter_mut().zip(&more.buckets).for_each(|(all, more)| *all += more);
    }
}

impl Counters {
    pub(crate) fn op(&self, kind: OpKind, took: Duration, failed: bool) {
        let counter = &self.ops[kind as usize];
        counter.total.fetch_add(1, Relaxed);
        counter.errors.fetch_add(failed.into(), Relaxed);
        counter.nanoseconds.fetch_add(took.as_nanos() as u64, Relaxed);
        let bucket = OP_SECONDS_BUCKETS.partition_point(|bound| took.as_secs_f64() > *bound);
        counter.buckets[bucket].fetch_add(1, Relaxed);
    }

    pub(crate) fn batch(&self, ops: u64) {
        self.batches.fetch_add(1, Relaxed);
        self.batched_ops.fetch_add(ops, Relaxed);
        self.batch_max.fetch_max(ops, Relaxed);
    }

    pub(crate) fn ops(&self) -> Vec<OpStats> {
        let snapshot = |(kind, op): &(OpKind, &'static str)| {
            let counter = &self.ops[*kind as usize];
            OpStats {
                op,
                total: counter.total.load(Relaxed),
                errors: counter.errors.load(Relaxed),
                seconds: Duration::from_nanos(counter.nanoseconds.load(Relaxed)).as_secs_f64(),
                buckets: counter.buckets.iter().map(|b| b.load(Relaxed)).collect(),
            }
        };
        KINDS.iter().map(snapshot).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_counts_under_its_own_name() {
        let counters = Counters::default();
        for (at, (kind, _)) in KINDS.iter().enumerate() {
            assert_eq!(*kind as usize, at);
        }
        counters.op(OpKind::Sync, Duration::from_millis(2), true);
        counters.op(OpKind::Sync, Duration::from_secs(9), false);
        let ops = counters.ops();
        let sync = ops.iter().find(|o| o.op == "sync").unwrap();
        assert_eq!((sync.total, sync.errors), (2, 1));
        assert_eq!(sync.buckets, [0, 0, 0, 0, 1, 0, 0, 0, 1]);
        assert!(ops.iter().filter(|o| o.op != "sync").all(|o| o.total == 0));
    }
}
