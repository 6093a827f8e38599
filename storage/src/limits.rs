//! Every bound of the storage crate, in one place, with the reason for its size.

use std::time::Duration;

/// Bytes covered by one block checksum, and the unit in which cold reads are made.
pub const BLOCK_BYTES: usize = 256 * 1024;

/// The most bytes of one write operation. Large batches matter: on ext4 a buffered write through
/// io_uring goes to a kernel worker thread, and the hand-over costs the same for 4 KiB as for 1 MiB.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// A writer starts with a smaller batch, so that many slow uploads do not hold many large buffers.
pub const BATCH_BYTES_FIRST: usize = BLOCK_BYTES;

/// Batches of one writer on their way to the disk while it fills the next and another is hashed.
pub const BATCHES_IN_FLIGHT_MAX: usize = 4;

/// A batch is handed on at this age, full or not, and the next one is smaller: a sender that drips holds this little, and
/// not a large buffer that others wait for.
pub const BATCH_AGE: Duration = Duration::from_secs(5);
pub const BATCH_BYTES_SLOW: usize = 4 * 1024;

/// A writer that is followed hands a batch on at this age, full or not: who watches a slow upload waits no longer than that.
pub const FOLLOWED_BATCH_AGE: Duration = Duration::from_millis(250);

/// A blob of this size is written past the page cache (durability.md has the figures): smaller ones are often read next.
pub const DIRECT_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// The most bytes of one [`BlobReader::read`](crate::BlobReader::read).
pub const READ_MAX: usize = 1024 * 1024;

/// Up to this, a hot read is copied instead of mapped: a map costs more than the copy.
pub const SMALL_READ_BYTES: usize = 64 * 1024;

/// A stream's chunk, when the blob is read from the page cache or the disk alike.
pub const STREAM_CHUNK_BYTES: usize = 512 * 1024;

/// The same while a client's memory is scarce: many of its streams may be left alone, and each holds little.
pub const SCARCE_CHUNK_BYTES: usize = 32 * 1024;

/// How far behind what it is asked for the kernel may read: twice the device's `read_ahead_kb` (128 by default, 8192 on some
/// clouds' disks). What lies there and is not in memory has to be verified anew.
pub const READ_AHEAD_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// What the page cache can hold in one page, and how often it is sent before it is worth to be read again for that: with its
/// checksums that takes the time in which the stretch is sent about twenty times.
pub const STRETCH_BYTES: u64 = 2 * 1024 * 1024;
pub const STRETCH_HOT_BYTES: u64 = 64 * STRETCH_BYTES;
/// How long sockets have to let go of its pages, and how many times they are given that.
pub const STRETCH_DRAIN: Duration = Duration::from_millis(20);
pub const STRETCH_DRAINS_MAX: u32 = 10;
/// How long copies of it have to be completed.
pub const STRETCH_PAUSE: Duration = Duration::from_millis(2);
/// Stretches of a volume that are read again at a time.
pub const RENEWALS_MAX: usize = 1;

/// The largest blob. Its table of block checksums then has 16 MiB.
pub const BLOB_BYTES_MAX: u64 = 1 << 40;

pub const KEY_BYTES_MAX: usize = 1024;
pub const CONTENT_TYPE_BYTES_MAX: usize = 1024;
/// Room for the segment table of a rendition.
pub const SEGMENT_TABLE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The caller's note in one journal record (validators of a download, for instance).
pub const JOURNAL_NOTE_BYTES_MAX: usize = 64 * 1024;
/// A journal past this is not one of ours.
pub const JOURNAL_BYTES_MAX: u64 = 1 << 30;

/// Room that blobs leave for the catalog, or nothing could be deleted from a full volume: this part of the volume, within
/// the bounds.
pub const RESERVE_DIVISOR: u64 = 64;
pub const RESERVE_BYTES_MIN: u64 = 1024 * 1024;
pub const RESERVE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Room that stays free unless configured: a file system close to full is slow and breaks its neighbours. On a small one
/// this part of it.
pub const MIN_FREE_DEFAULT_BYTES: u64 = 1 << 30;
pub const MIN_FREE_DEFAULT_DIVISOR: u64 = 20;
/// What a writer of unknown length is promised ahead, at most, and as a part of what is left: many of them must not use
/// up a small volume with promises.
pub const RESERVATION_STEP_BYTES: u64 = 8 * 1024 * 1024;
pub const RESERVATION_STEP_DIVISOR: u64 = 256;
/// Less than this part of the volume, or of the quota on it, left to promise, or than these bytes, is worth a warning.
pub const LOW_ROOM_DIVISOR: u64 = 20;
pub const LOW_ROOM_BYTES_MAX: u64 = 10 << 30;
/// Bytes of write buffers filled or on their way to the disk, over all writers.
pub const WRITE_BUDGET_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of read buffers being filled or still referenced by a response.
pub const READ_BUDGET_BYTES: usize = 64 * 1024 * 1024;
/// A guest may have this many times what is left free of either: alone three quarters, two of them three sevenths each, and
/// something is always left for who comes next.
pub const GUEST_SHARE: usize = 3;
/// Bytes mapped for hot reads. Past it, reads go through the engine. It counts towards the
/// resident set, whence the modest size.
pub const MAP_BUDGET_BYTES: usize = 64 * 1024 * 1024;
/// A stream maps this much at a time: large enough that mmap and munmap are rare, small enough
/// that thirty streams share the budget.
pub const MAP_WINDOW_BYTES: u64 = 2 * 1024 * 1024;

/// Free buffers kept by one pool for the next caller.
pub const POOL_RETAINED_BYTES: usize = 6 * 1024 * 1024;

/// Operations of one lane handed to the engine and not yet complete. Their sum stays below half
/// the completion queue, which can therefore never overflow.
pub const READS_IN_FLIGHT_MAX: usize = 128;
pub const WRITES_IN_FLIGHT_MAX: usize = 64;
pub const NAMES_IN_FLIGHT_MAX: usize = 32;
/// Each holds a thread for as long as the disk needs. Side by side they share the file system's journal commits: of 64
/// files, 4 at once cost 65 flushes of the disk, 16 at once 17 (durability.md).
pub const SYNCS_IN_FLIGHT_MAX: usize = 16;
/// fdatasyncs of small files that run each for itself; who comes then waits for a round of many.
pub const SYNCS_ALONE_MAX: usize = 4;
/// Files that make a round: from here on one sync of the volume is cheaper than one for each.
pub const SYNC_ROUND_FILES_MIN: usize = 4;
/// A file with more unsynced bytes than this is synced for itself, so that no small one waits for it.
pub const SYNC_ROUND_FILE_BYTES_MAX: u64 = BATCH_BYTES_MAX as u64;
/// With more than this dirty on the machine the volume is not synced as a whole: it may be others' data on this disk.
pub const SYNC_VOLUME_DIRTY_BYTES_MAX: u64 = 64 * 1024 * 1024;
pub const RING_ENTRIES: u32 = 256;
pub const RING_COMPLETIONS: u32 = 1024;
/// The ring of the reads: an entry for every slot of their lane.
pub const READ_RING_ENTRIES: u32 = READS_IN_FLIGHT_MAX as u32;

/// Volumes of one store, the data directory among them: each has a reactor and budgets of its own.
pub const VOLUMES_MAX: usize = 8;
/// With several volumes each has its part of the budgets above, so that one that hangs keeps the others' buffers from
/// nobody; but no less than this.
pub const VOLUME_BUDGET_BYTES_MIN: usize = 16 * 1024 * 1024;
/// Small blobs stay on their volume until it has less room than the best by more than this part.
pub const PLACEMENT_SLACK_DIVISOR: u64 = 8;

/// Threads of the `threads` engine, by lane. A lane's threads all blocked leave the others alone.
pub const READ_THREADS: usize = 8;
pub const WRITE_THREADS: usize = 4;
pub const NAMES_THREADS: usize = 2;
pub const THREAD_STACK_BYTES: usize = 256 * 1024;

/// Times one operation is repeated after EINTR or EAGAIN before the error is reported.
pub const RETRIES_MAX: u32 = 64;

/// Blobs kept open (descriptor, footer, verified blocks) for the next reader.
pub const OPEN_BLOBS_MAX: usize = 64;
/// Of them and of those in use, how many may have a second descriptor, past the page cache, over all volumes.
pub const DIRECT_FILES_MAX: usize = 128;
/// Chunks that were asked for and are remembered, over all volumes: as many as would fill 32 GiB of memory, at 8 bytes each.
pub const GHOSTS_MAX: usize = 64 * 1024;
/// Up to this size a blob is always read through the page cache: another descriptor costs more than a copy, and small
/// files are read again.
pub const SMALL_BLOB_BYTES: u64 = STREAM_CHUNK_BYTES as u64;
/// Object records remembered for the next reader; some 300 bytes each, up to 2 KiB with the longest keys.
pub const RECENT_OBJECTS_MAX: usize = 4096;
/// Directories kept open to be synced again.
pub const OPEN_DIRECTORIES_MAX: usize = 32;

/// Directories that lost a name, to be synced when the store closes. Past it, the next start sweeps instead.
pub const UNSYNCED_REMOVALS_MAX: usize = 256;

/// Catalog requests waiting for their thread.
pub const CATALOG_QUEUE_MAX: usize = 256;
/// Requests that share one COMMIT.
pub const CATALOG_BATCH_MAX: usize = 64;
/// Page cache of each catalog connection.
pub const CATALOG_CACHE_KIB: i64 = 1024;
pub const CATALOG_FILE: &str = "catalog.sqlite";

/// Damaged blobs that are remembered one by one. Past it a disk is beyond lists; its blocks are refused as they are read.
pub const QUARANTINED_MAX: usize = 100_000;
/// What is kept of the reason.
pub const QUARANTINE_DETAIL_BYTES_MAX: usize = 1024;

/// One read of the scrub, and the memory it has for them.
pub const SCRUB_READ_BYTES: usize = 512 * 1024;
pub const SCRUB_BUDGET_BYTES: usize = 4 * SCRUB_READ_BYTES;
/// The scrub steps aside while the engine has this much in flight, for a while at most.
pub const SCRUB_YIELDS_ABOVE: usize = 16;
pub const SCRUB_STEP_ASIDE: Duration = Duration::from_millis(5);
pub const SCRUB_STEPS_ASIDE_MAX: usize = 40;
/// How much of a pause it may catch up on.
pub const SCRUB_BURST: Duration = Duration::from_millis(250);
/// Rows and names taken in one request.
pub const SCRUB_PAGE_ROWS: usize = 256;
pub const SCRUB_COUNT_ROWS: usize = 8192;
/// How often its place is noted.
pub const SCRUB_NOTE_EVERY_MS: u64 = 5_000;
/// What is told by name of blobs that could not be read, and of files that no row names.
pub const SCRUB_UNREADABLE_TOLD: usize = 100;
pub const SCRUB_STRAYS_TOLD: usize = 100;
/// What a rebuild of the catalog tells by name of the files it leaves out.
pub const REBUILD_TOLD: usize = 1_000;
/// A node scrubs this long after its start at the earliest, and looks this often whether a scrub is due.
pub const SCRUB_GRACE: Duration = Duration::from_secs(60);
pub const SCRUB_LOOK_EVERY: Duration = Duration::from_secs(600);

/// Rows of one listing.
pub const LIST_MAX: usize = 10_000;

const _: () = {
    assert!(
        READS_IN_FLIGHT_MAX + WRITES_IN_FLIGHT_MAX + NAMES_IN_FLIGHT_MAX + SYNCS_IN_FLIGHT_MAX
            <= RING_COMPLETIONS as usize / 2
    );
    assert!(BATCH_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
    assert!(STREAM_CHUNK_BYTES <= READ_MAX && STREAM_CHUNK_BYTES.is_multiple_of(BLOCK_BYTES));
    assert!(MAP_WINDOW_BYTES.is_multiple_of(STREAM_CHUNK_BYTES as u64));
};
