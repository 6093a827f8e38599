//! What is sent over and over comes into the page cache anew, in its largest pages.
//!
//! How the page cache holds a file follows from how it came in: what was read piece by piece, here and there, lies in single
//! pages, and `sendfile` takes up each of them by itself. A stretch of 2 MiB in one page (a "folio") is sent at a third less
//! (docs/design/zero-copy.md has the figures). The kernel makes such pages where a fault happens on a map that asks for
//! huge ones, and only where nothing of the stretch is cached.
//!
//! So when a stretch was sent many times its size, it is taken away from `sendfile`: who wants it gets copies. When the
//! sockets have let go of its pages it is read past the page cache for a moment, the pages are dropped, one fault brings
//! the stretch back, and it is verified as everything is that comes from the disk. Where somebody holds pages for longer, a
//! client that is slow to take them say, the stretch stays as it is, and is tried again when it was sent four times as often.
//!
//! Once for each stretch of an open blob, one at a time on each volume. The task owns a reference to the blob and nothing
//! else; nobody waits for it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::*};

use memmap2::{Advice, Mmap, UncheckedAdvice};

use super::marks::Marks;
use super::read_path::OpenBlob;
use super::resident::cachestat;
use crate::bridge::NamedFile;
use crate::engine::{EXT4, XFS};
use crate::error::{Error, Result};
use crate::limits::{
    SMALL_BLOB_BYTES, STREAM_CHUNK_BYTES, STRETCH_BYTES, STRETCH_DRAIN, STRETCH_DRAINS_MAX, STRETCH_HOT_BYTES,
    STRETCH_PAUSE,
};
use crate::linux;
use crate::volume::{PAGE_BYTES, Volume};

/// The stretches of a blob, and how often each was sent.
pub(super) struct Stretches {
    /// None where the blob's file system has no large pages.
    heat: Box<[Heat]>,
    /// Had its turn, or is having it.
    renewed: Marks,
    /// Not to be sent from the page cache now, but copied from there.
    leaving: Marks,
    /// Nor to be read through it.
    swapped: Marks,
}

#[derive(Default)]
struct Heat {
    /// Sent from the page cache since its last turn, in units.
    sent: AtomicU32,
    /// Turns in which its pages were not to be had.
    failures: AtomicU8,
}

/// What is sent is counted in these, so that it fits.
const UNIT: u64 = PAGE_BYTES as u64;
/// Each failure makes the next turn cost four times as much: who is held up by it should hardly notice.
const FAILURES_MAX: u8 = 6;

impl Heat {
    fn is_hot(&self) -> bool {
        u64::from(self.sent.load(Relaxed)) * UNIT >= STRETCH_HOT_BYTES << (2 * self.failures.load(Relaxed))
    }
}

impl Stretches {
    pub fn of(volume: &Volume, length: u64) -> Stretches {
        let worth_it = volume.has_large_pages && length > SMALL_BLOB_BYTES;
        let count = if worth_it { length.div_ceil(STRETCH_BYTES) as usize } else { 0 };
        let heat = (0..count).map(|_| Heat::default()).collect();
        Stretches { heat, renewed: Marks::new(count), leaving: Marks::new(count), swapped: Marks::new(count) }
    }

    /// Whether the byte at `at` is being taken out of the page cache.
    pub fn is_leaving(&self, at: u64) -> bool {
        !self.heat.is_empty() && self.leaving.has(at / STRETCH_BYTES)
    }

    /// Whether it is not to be brought into the page cache now.
    pub fn is_swapped(&self, at: u64) -> bool {
        !self.heat.is_empty() && self.swapped.has(at / STRETCH_BYTES)
    }

    /// As much of a range, from its start, as is not being taken out.
    pub fn staying(&self, range: Range<u64>) -> Option<Range<u64>> {
        let boundary = range.end.saturating_sub(1) / STRETCH_BYTES * STRETCH_BYTES;
        match (self.is_leaving(range.start), self.is_leaving(boundary)) {
            (true, _) => None,
            (false, true) => Some(range.start..boundary),
            (false, false) => Some(range),
        }
    }

    /// Counts bytes that are sent from `at`. Returns their stretch when it is hot and has not had its turn.
    pub fn sent(&self, at: u64, bytes: u64) -> Option<u64> {
        let stretch = at / STRETCH_BYTES;
        let heat = self.heat.get(stretch as usize)?;
        if !heat.is_hot() {
            heat.sent.fetch_add(bytes.div_ceil(UNIT) as u32, Relaxed);
            return None;
        }
        (!self.renewed.has(stretch)).then_some(stretch)
    }

    /// Its pages were not to be had: it may have another turn.
    fn cool(&self, stretch: u64) {
        let heat = &self.heat[stretch as usize];
        let failures = heat.failures.load(Relaxed) + 1;
        heat.failures.store(failures.min(FAILURES_MAX), Relaxed);
        heat.sent.store(0, Relaxed);
        self.renewed.take(stretch);
    }
}

/// Whether a file system keeps files in pages as large as a stretch, and tells what it keeps (`cachestat`).
pub(crate) fn has_large_pages(directory: &std::path::Path) -> bool {
    let of = |statfs: rustix::fs::StatFs| match statfs.f_type as u64 {
        XFS => linux::is_at_least((6, 5)),
        EXT4 => linux::is_at_least((6, 16)),
        _ => false,
    };
    // A huge page has as many bytes only where a page has 4 KiB.
    rustix::param::page_size() == PAGE_BYTES && rustix::fs::statfs(directory).is_ok_and(of)
}

/// Renews a stretch in the background, if no other of its volume is being renewed.
pub(super) fn renew(blob: &Arc<OpenBlob>, stretch: u64) {
    let Ok(permit) = Arc::clone(&blob.volume.renewals).try_acquire_owned() else { return };
    if !blob.stretches.renewed.set(stretch) {
        return;
    }
    let (blob, volume) = (Arc::clone(blob), Arc::clone(&blob.volume));
    drop(volume.spawn(async move {
        let _permit = permit;
        let (path, range) = (&blob.file().path, range_of(&blob, stretch));
        match renew_alone(&blob, stretch, &range).await {
            Ok(true) => {
                blob.volume.renewed.fetch_add(1, Relaxed);
                tracing::debug!(path = %path.display(), ?range, "a hot stretch is in one page now");
            }
            Ok(false) => tracing::debug!(path = %path.display(), ?range, "a hot stretch stays in the pages it has"),
            Err(error) => tracing::debug!(%error, "a hot stretch could not be read again"),
        }
    }));
}

fn range_of(blob: &OpenBlob, stretch: u64) -> Range<u64> {
    let start = stretch * STRETCH_BYTES;
    start..(start + STRETCH_BYTES).min(blob.footer.length)
}

/// False when its pages were not to be had.
async fn renew_alone(blob: &Arc<OpenBlob>, stretch: u64, range: &Range<u64>) -> Result<bool> {
    let stretches = &blob.stretches;
    let Some(map) = blob.whole_map() else { return Ok(false) };
    stretches.leaving.set(stretch);
    let mut dropped = Ok(false);
    for _ in 0..STRETCH_DRAINS_MAX {
        // First for those who looked before, and are about to send.
        tokio::time::sleep(STRETCH_DRAIN).await;
        stretches.swapped.set(stretch);
        // And for those who are copying from it.
        tokio::time::sleep(STRETCH_PAUSE).await;
        blob.forget(range);
        let (file, map, range) = (Arc::clone(blob.file()), Arc::clone(&map), range.clone());
        let swapped = tokio::task::spawn_blocking(move || swap(&file, &map, &range));
        dropped = swapped.await.unwrap_or(Ok(false));
        stretches.swapped.take(stretch);
        if !matches!(dropped, Ok(false)) {
            break;
        }
    }
    // Who came meanwhile may have verified what is no longer there.
    blob.forget(range);
    if !matches!(dropped, Ok(true)) {
        stretches.cool(stretch);
    }
    stretches.leaving.take(stretch);
    // Verified now, and not for each of those who are waiting.
    for at in range.clone().step_by(STREAM_CHUNK_BYTES) {
        blob.read_in(&(at..(at + STREAM_CHUNK_BYTES as u64).min(range.end))).await?;
    }
    dropped.map_err(|error| Error::io("renew the pages of", &blob.file().path, error))
}

/// Drops what is cached of a stretch, and lets one fault bring it back; false, and nothing is brought, when pages are held
/// by somebody. Waits for the disk.
fn swap(file: &NamedFile, map: &Mmap, range: &Range<u64>) -> std::io::Result<bool> {
    let (start, len) = (range.start as usize, (range.end - range.start) as usize);
    // To the end of the file where the blob's bytes end: the footer shares their last page.
    let dropped = (range.end < map.len() as u64).then(|| std::num::NonZeroU64::new(len as u64)).flatten();
    rustix::fs::fadvise(&file.file, range.start, dropped, rustix::fs::Advice::DontNeed)?;
    if cachestat(&file.file, range)? > 0 {
        return Ok(false);
    }
    map.advise(Advice::HugePage)?;
    // Or the kernel brings the next stretch too.
    map.advise(Advice::Random)?;
    map.advise_range(Advice::PopulateRead, start, PAGE_BYTES.min(len))?;
    // SAFETY: nobody reads this map, and what is dropped of a shared map of a file would come back from the page cache.
    unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, len)? };
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::blob::{BlobMeta, BlobReader, BlobWriter, SealedBlob};
    use crate::bridge::Bridge;
    use crate::engine::EngineChoice;
    use crate::id::BlobId;
    use crate::limits::RENEWALS_MAX;

    const LENGTH: usize = 5 * STRETCH_BYTES as usize / 2 + 1000;

    struct Hot {
        volume: Arc<Volume>,
        reader: BlobReader,
        data: Vec<u8>,
        _sealed: SealedBlob,
        _dir: tempfile::TempDir,
    }

    /// A blob that lies in the page cache as clients left it who read here and there. `None` where there are no large pages.
    async fn scattered() -> Option<Hot> {
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume::on(dir.path(), Bridge::start(EngineChoice::Auto).unwrap());
        if !volume.has_large_pages {
            println!("skipped: the file system has no large pages");
            return None;
        }
        let room = volume.room.reserve(0).unwrap();
        let mut writer = BlobWriter::create(&volume, BlobId::new(), BlobMeta::default(), room).await.unwrap();
        let data: Vec<u8> = (0..LENGTH.div_ceil(4) as u32).flat_map(u32::to_le_bytes).take(LENGTH).collect();
        writer.write(data.clone().into()).await.unwrap();
        let sealed = writer.seal().await.unwrap();
        let reader = BlobReader::open(&volume, sealed.id).await.unwrap();
        rustix::fs::fadvise(reader.file(), 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let hot = Hot { volume, reader, data, _sealed: sealed, _dir: dir };
        for piece in (0..LENGTH.div_ceil(STREAM_CHUNK_BYTES)).rev() {
            let at = (piece * STREAM_CHUNK_BYTES) as u64;
            hot.blob().read_in(&(at..(at + STREAM_CHUNK_BYTES as u64).min(LENGTH as u64))).await.unwrap();
        }
        Some(hot)
    }

    impl Hot {
        fn blob(&self) -> &Arc<OpenBlob> {
            self.reader.blob()
        }

        fn send_bytes(&self, at: u64, bytes: u64) {
            let region = self.reader.region(0..LENGTH as u64).unwrap();
            let mut sent = 0;
            while sent < bytes {
                let count = region.sendable(at, STREAM_CHUNK_BYTES).unwrap();
                assert!(count > 0);
                sent += count as u64;
            }
        }

        /// Until the stretch at `at` has had its turn.
        async fn send(&self, at: u64) {
            self.send_bytes(at, STRETCH_HOT_BYTES + STREAM_CHUNK_BYTES as u64);
            assert_eq!(self.volume.renewals.available_permits(), 0, "it is being renewed");
            self.volume.settle().await;
            assert_eq!(self.volume.renewals.available_permits(), RENEWALS_MAX);
        }

        /// Bytes of the blob that a fault maps at once by a page of the largest kind.
        fn in_large_pages(&self) -> usize {
            // The kernel places a map of a file by the largest pages since Linux 6.7.
            // SAFETY: nobody writes to a sealed blob.
            let map = unsafe { memmap2::MmapOptions::new().len(LENGTH).map(self.reader.file()).unwrap() };
            map.advise(Advice::HugePage).unwrap();
            let touched: Vec<u8> = map.iter().step_by(STRETCH_BYTES as usize).copied().collect();
            assert!(touched.len() == 3);
            let address = format!("{:x}-", map.as_ptr() as usize);
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let ours = maps.lines().skip_while(|line| !line.starts_with(&address));
            let line = ours.map(str::trim).find(|line| line.starts_with("FilePmdMapped:")).expect("of our map");
            line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
        }

        fn check(&self) {
            let region = self.reader.region(0..LENGTH as u64).unwrap();
            assert_eq!(region.sendable(0, LENGTH).unwrap(), LENGTH, "all of it can be sent");
            let mut bytes = vec![0; LENGTH];
            self.reader.file().read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes == self.data);
        }
    }

    #[tokio::test]
    async fn what_is_sent_often_comes_into_one_page() {
        let Some(hot) = scattered().await else { return };
        assert_eq!(hot.in_large_pages(), 0);
        hot.send(0).await;
        assert_eq!(hot.volume.renewed.load(Relaxed), 1);
        assert_eq!(hot.in_large_pages(), STRETCH_BYTES as usize);
        hot.check();
        // It had its turn; the half stretch at the end has one too.
        assert_eq!(hot.blob().stretches.sent(0, 1), None);
        hot.send(2 * STRETCH_BYTES + 7).await;
        assert_eq!(hot.volume.renewed.load(Relaxed), 2);
        hot.check();
    }

    #[tokio::test]
    async fn pages_that_somebody_holds_stay() {
        let Some(hot) = scattered().await else { return };
        // SAFETY: as above.
        let held = unsafe { Mmap::map(hot.reader.file()).unwrap() };
        held.advise_range(Advice::PopulateRead, 0, LENGTH).unwrap();
        hot.send(0).await;
        assert_eq!(hot.volume.renewed.load(Relaxed), 0);
        hot.check();
        drop(held);
        hot.send_bytes(0, 3 * STRETCH_HOT_BYTES);
        assert_eq!(hot.volume.renewals.available_permits(), RENEWALS_MAX, "it is not hot enough for another");
        hot.send(0).await;
        assert_eq!(hot.volume.renewed.load(Relaxed), 1, "it has another turn");
        hot.check();
    }

    #[tokio::test]
    async fn what_rotted_meanwhile_is_found() {
        let Some(hot) = scattered().await else { return };
        let (at, file) = (
            STREAM_CHUNK_BYTES as u64 + 5,
            std::fs::File::options().write(true).open(&hot.blob().file().path).unwrap(),
        );
        file.write_at(&[!hot.data[at as usize]], at).unwrap();
        file.sync_all().unwrap();
        hot.send(0).await;
        let region = hot.reader.region(0..LENGTH as u64).unwrap();
        assert!(region.sendable(at, 1).is_err(), "and nothing more is sent of it");
    }

    /// Readers go on while stretch after stretch is renewed below them, and get nothing else than what was stored.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nobody_notices() {
        let Some(hot) = scattered().await else { return };
        let hot = Arc::new(hot);
        let over = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..4u64)
            .map(|seed| {
                let (hot, over) = (Arc::clone(&hot), Arc::clone(&over));
                tokio::spawn(async move {
                    let (mut at, mut reads) = (seed * 777_777 % LENGTH as u64, 0);
                    while !over.load(Relaxed) || reads < 100 {
                        at = (at * 31 + 99_991) % (LENGTH as u64 - 1);
                        let region = hot.reader.region(at..LENGTH as u64).unwrap();
                        let count = match region.sendable(at, STREAM_CHUNK_BYTES).unwrap() {
                            0 => {
                                let fetched = region.fetch(at, crate::Wanted::Now).await.unwrap();
                                assert!(fetched.bytes == hot.data[at as usize..][..fetched.bytes.len()]);
                                fetched.bytes.len()
                            }
                            count => {
                                let mut bytes = vec![0; count];
                                hot.reader.file().read_exact_at(&mut bytes, at).unwrap();
                                assert!(bytes == hot.data[at as usize..][..count]);
                                count
                            }
                        };
                        assert!(count > 0);
                        reads += 1;
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        let begun = std::time::Instant::now();
        while hot.volume.renewed.load(Relaxed) < 3 && begun.elapsed() < std::time::Duration::from_secs(30) {
            tokio::time::sleep(STRETCH_DRAIN).await;
        }
        over.store(true, Relaxed);
        for reader in readers {
            reader.await.unwrap();
        }
        hot.volume.settle().await;
        assert_eq!(hot.volume.renewed.load(Relaxed), 3);
        hot.check();
    }
}
