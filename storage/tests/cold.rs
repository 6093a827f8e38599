//! What is read for the first time goes past the page cache; what is asked for again comes through it.

mod common;

use std::fs::File;
use std::path::{Path, PathBuf};

use common::{collect, engines, evict_from_page_cache, files_below, flip_byte, open, pattern, put};
use reelring_storage::limits::{DIRECT_FILES_MAX, OPEN_BLOBS_MAX, READ_MAX};
use reelring_storage::{BlobId, BlobReader, EngineChoice, Error, Key, Store, Wanted};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// A store with one blob and nothing of it in memory.
struct Film {
    dir: TempDir,
    store: Store,
    id: BlobId,
    bytes: Vec<u8>,
}

impl Film {
    async fn of(engine: EngineChoice, length: usize) -> Film {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), engine).await;
        let bytes = pattern(length);
        let id = put(&store, &Key::parse("film").unwrap(), &bytes).await.record.blob;
        evict_from_page_cache(&dir.path().join("blobs"));
        Film { dir, store, id, bytes }
    }

    fn path(&self) -> PathBuf {
        files_below(&self.dir.path().join("blobs")).remove(0)
    }

    async fn reader(&self) -> BlobReader {
        self.store.open_blob(self.id).await.unwrap()
    }

    async fn is_streamed_whole(&self) {
        assert!(collect(self.reader().await.stream(0..u64::MAX)).await == self.bytes);
    }

    /// Bytes of the object that are in the page cache, without the last block: the footer is read with its neighbours.
    fn resident(&self) -> usize {
        let file = File::open(self.path()).unwrap();
        // SAFETY: nothing changes the file while the test looks at it, and the bytes are not read.
        let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        let mut pages = vec![0u8; map.len().div_ceil(4096)];
        // SAFETY: the map is that long, and `pages` has one byte for each of its pages.
        assert_eq!(unsafe { libc::mincore(map.as_ptr().cast_mut().cast(), map.len(), pages.as_mut_ptr()) }, 0);
        let looked_at = self.bytes.len().saturating_sub(512 << 10) / 4096;
        pages[..looked_at].iter().filter(|page| **page & 1 == 1).count() * 4096
    }
}

/// Whether files there can be read past the page cache at all.
fn has_direct_reads(dir: &Path) -> bool {
    let found = rustix::fs::statfs(dir).unwrap().f_type as u64;
    let known = [0xef53, 0x5846_5342].contains(&found);
    if !known {
        println!("skipped: {} is on a file system that may read through its page cache all the same", dir.display());
    }
    known
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_time_leaves_no_trace_in_memory_and_the_second_does() {
    for engine in engines() {
        let film = Film::of(engine, 6 * MIB + 5).await;
        if !has_direct_reads(film.dir.path()) {
            return;
        }
        film.is_streamed_whole().await;
        assert_eq!(film.resident(), 0);
        film.is_streamed_whole().await;
        assert!(film.resident() > 5 * MIB, "{} bytes are in memory", film.resident());
        film.is_streamed_whole().await;
        let stats = film.store.stats();
        assert!(stats.reads_mmap_total > 0 && stats.buffer_bytes == 0, "{stats:?}");
        film.store.close().await.unwrap();
    }
}

/// More of them than are kept open, so that nothing but the table of ghosts remembers the first time.
#[tokio::test(flavor = "multi_thread")]
async fn popular_segments_get_into_memory_though_their_files_were_closed() {
    let dir = tempfile::tempdir().unwrap();
    if !has_direct_reads(dir.path()) {
        return;
    }
    let store = open(dir.path(), EngineChoice::Auto).await;
    let bytes = pattern(MIB);
    let mut segments = Vec::new();
    for n in 0..2 * OPEN_BLOBS_MAX {
        segments.push(put(&store, &Key::parse(&format!("segment/{n}")).unwrap(), &bytes).await.record.blob);
    }
    evict_from_page_cache(&dir.path().join("blobs"));
    let read_all = async || {
        for segment in &segments {
            let reader = store.open_blob(*segment).await.unwrap();
            assert!(collect(reader.stream(0..u64::MAX)).await == bytes);
        }
    };
    read_all().await;
    read_all().await;
    let mapped = store.stats().reads_mmap_total;
    read_all().await;
    let hot = store.stats().reads_mmap_total - mapped;
    assert!(hot as usize >= segments.len(), "{hot} reads of {} segments found them in memory", segments.len());
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_length_comes_back_equal_from_either_way() {
    for engine in engines() {
        for boundary in [512 << 10, MIB, MIB + (256 << 10)] {
            for length in [boundary - 4097, boundary - 1, boundary, boundary + 1, boundary + 4096] {
                let film = Film::of(engine, length).await;
                for _ in 0..2 {
                    film.is_streamed_whole().await;
                }
                evict_from_page_cache(&film.dir.path().join("blobs"));
                let (reader, from) = (film.reader().await, length / 3);
                let read = reader.read(from as u64, READ_MAX).await.unwrap();
                assert!(read == film.bytes[from..length.min(from + READ_MAX)], "{length} bytes from {from}");
                drop(reader);
                film.store.close().await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_past_the_page_cache_too() {
    for engine in engines() {
        let film = Film::of(engine, 4 * MIB).await;
        flip_byte(&film.path(), 3 << 20);
        evict_from_page_cache(&film.dir.path().join("blobs"));
        let region = film.reader().await.region(0..u64::MAX).unwrap();
        let fetched = region.fetch(2 << 20, Wanted::Now).await.unwrap();
        assert!(fetched.bytes == film.bytes[2 << 20..][..fetched.bytes.len()]);
        assert_eq!(fetched.in_page_cache, !has_direct_reads(film.dir.path()));
        let error = region.fetch(3 << 20, Wanted::Now).await.err();
        assert!(matches!(error, Some(Error::Corrupt { .. })), "{error:?}");
        assert!(matches!(film.store.open_blob(film.id).await.err(), Some(Error::Quarantined { .. })));
    }
}

/// What passed the page cache was verified in a buffer. Pages that get there later, by whatever hand, are not.
#[tokio::test(flavor = "multi_thread")]
async fn what_went_past_the_page_cache_vouches_for_no_page() {
    let film = Film::of(EngineChoice::Auto, 4 * MIB).await;
    if !has_direct_reads(film.dir.path()) {
        return;
    }
    let region = film.reader().await.region(0..u64::MAX).unwrap();
    assert!(!region.fetch(MIB as u64, Wanted::Now).await.unwrap().in_page_cache);
    flip_byte(&film.path(), MIB as u64 + 5);
    std::fs::read(film.path()).unwrap();
    assert_eq!(region.sendable(MIB as u64, MIB).unwrap(), 0, "in memory, and never verified there");
    let error = region.fetch(MIB as u64, Wanted::Now).await.err();
    assert!(matches!(error, Some(Error::Corrupt { .. })), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_wait_for_its_client_waits_in_the_page_cache() {
    let film = Film::of(EngineChoice::Auto, 4 * MIB).await;
    let region = film.reader().await.region(0..u64::MAX).unwrap();
    let fetched = region.fetch(0, Wanted::Later).await.unwrap();
    assert!(fetched.in_page_cache);
    assert_eq!(region.sendable(0, fetched.bytes.len()).unwrap(), fetched.bytes.len());
    // A small part of a block is soon followed by the rest.
    let part = film.reader().await.region(2 << 20..(2 << 20) + 5_000).unwrap();
    assert!(part.fetch(2 << 20, Wanted::Now).await.unwrap().in_page_cache);
}

/// Readers of very many blobs at once: second descriptors have a bound, and go with the first.
#[tokio::test(flavor = "multi_thread")]
async fn second_descriptors_are_bounded_and_closed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let bytes = pattern(600_000);
    let mut blobs = Vec::new();
    for n in 0..DIRECT_FILES_MAX + 40 {
        blobs.push(put(&store, &Key::parse(&format!("blob/{n}")).unwrap(), &bytes).await.record.blob);
    }
    evict_from_page_cache(&dir.path().join("blobs"));
    let below = dir.path().join("blobs");
    let descriptors = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap();
        let targets = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
        targets.filter(|target| target.starts_with(&below) && target.is_file()).count()
    };
    let mut readers = Vec::new();
    for blob in &blobs {
        let reader = store.open_blob(*blob).await.unwrap();
        assert!(collect(reader.stream(0..u64::MAX)).await == bytes);
        readers.push(reader);
    }
    let most = blobs.len() + DIRECT_FILES_MAX;
    assert!((blobs.len()..=most).contains(&descriptors()), "{} of at most {most} descriptors", descriptors());
    drop(readers);
    store.close().await.unwrap();
    assert_eq!(descriptors(), 0);
}
