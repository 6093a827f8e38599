//! Damage at rest: all of it is found, none of it is sent, and what is found is remembered until it is mended or gone.

mod common;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{collect, engines, files_below, flip_byte, open, pattern, put};
use futures_util::StreamExt;
use reelring_storage::{
    BlobId, EngineChoice, Error, Key, ObjectRecord, Precondition, ScrubOptions, ScrubStatus, Store, Wanted,
};

/// Bytes of the footer of an object with a short key and one block: enough to aim at it.
const FOOTER_BYTES: u64 = 60;

fn key(n: usize) -> Key {
    Key::parse(&format!("film/{n}")).unwrap()
}

/// Mostly small, some of several blocks.
fn length(n: usize) -> usize {
    match n % 50 {
        0 => 600_000 + n,
        1 => 0,
        _ => 1 + n * 37 % 9_000,
    }
}

/// Objects `0..count`, some of them on their way at once.
async fn fill(store: &Store, count: usize) -> Vec<ObjectRecord> {
    let puts = futures_util::stream::iter(0..count)
        .map(|n| async move { put(store, &key(n), &pattern(length(n))).await.record })
        .buffered(32);
    puts.collect().await
}

fn path_of(dir: &Path, blob: BlobId) -> PathBuf {
    let name = blob.to_string();
    files_below(&dir.join("blobs")).into_iter().find(|path| path.ends_with(&name)).expect("the blob's file")
}

/// One byte of each file, somewhere in the object or, for one in seven and the empty ones, in the footer.
fn flip_one_byte_of_each(dir: &Path, records: &[ObjectRecord]) {
    let files = files_below(&dir.join("blobs"));
    assert_eq!(files.len(), records.len());
    for (n, record) in records.iter().enumerate() {
        let name = record.blob.to_string();
        let path = files.iter().find(|path| path.ends_with(&name)).unwrap();
        let random = (n as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31);
        let at = match record.length {
            length if length == 0 || n % 7 == 0 => length + random % FOOTER_BYTES,
            length => random % length,
        };
        flip_byte(path, at);
    }
}

/// Pages of the files below `dir` that are in the page cache.
fn resident_pages(dir: &Path) -> usize {
    let mut resident = 0;
    for path in files_below(dir) {
        let file = File::open(&path).unwrap();
        let len = file.metadata().unwrap().len() as usize;
        if len == 0 {
            continue;
        }
        // SAFETY: nothing changes the file while the test looks at it, and the bytes are not read.
        let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        let mut pages = vec![0u8; len.div_ceil(4096)];
        // SAFETY: the map has `len` bytes, and `pages` one for each of its pages.
        let result = unsafe { libc::mincore(map.as_ptr().cast_mut().cast(), len, pages.as_mut_ptr()) };
        assert_eq!(result, 0, "mincore of {}", path.display());
        resident += pages.iter().filter(|page| **page & 1 == 1).count();
    }
    resident
}

/// Reads an object to its end or to the first error.
async fn read(store: &Store, blob: BlobId) -> (Vec<u8>, Option<Error>) {
    let reader = match store.open_blob(blob).await {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut stream = std::pin::pin!(reader.stream(0..u64::MAX));
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        match chunk {
            Ok(chunk) => bytes.extend_from_slice(&chunk),
            Err(error) => return (bytes, Some(error)),
        }
    }
    (bytes, None)
}

async fn scrub(store: &Store, options: ScrubOptions) -> ScrubStatus {
    assert!(store.start_scrub(options).await.unwrap(), "another scrub runs");
    scrubbed(store).await
}

async fn scrubbed(store: &Store) -> ScrubStatus {
    loop {
        let status = store.scrub_status().await.unwrap();
        if status.current.as_ref().is_none_or(|scrub| !scrub.running) {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn is_tmpfs(dir: &Path) -> bool {
    rustix::fs::statfs(dir).unwrap().f_type == libc::TMPFS_MAGIC
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_flipped_bytes_a_thousand_are_found_and_none_is_sent() {
    const BLOBS: usize = 1_000;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let records = fill(&store, BLOBS).await;
    store.close().await.unwrap();
    flip_one_byte_of_each(dir.path(), &records);
    common::evict_from_page_cache(&dir.path().join("blobs"));
    if is_tmpfs(dir.path()) {
        println!("the temporary folder is a tmpfs: its pages cannot be dropped, the reads are hot ones");
    } else {
        assert_eq!(resident_pages(&dir.path().join("blobs")), 0, "pages stayed in the page cache");
    }

    let store = open(dir.path(), EngineChoice::Auto).await;
    let mut found = 0;
    for (n, record) in records.iter().enumerate() {
        let whole = pattern(length(n));
        let (sent, error) = read(&store, record.blob).await;
        let error = error.unwrap_or_else(|| panic!("object {n} was sent to its end"));
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        assert!(whole.starts_with(&sent), "object {n}: a wrong byte was sent");
        // Nothing more of it from now on, from its first block neither.
        let (sent, error) = read(&store, record.blob).await;
        let message = error.expect("it is refused").to_string();
        assert!(sent.is_empty());
        assert!(message.contains(&record.blob.to_string()) && message.contains("reelring scrub"), "{message}");
        found += 1;
    }
    assert_eq!(found, BLOBS);
    assert_eq!(store.stats().quarantined_blobs, BLOBS as u64);
    assert!(store.stats().corrupt_blocks_total >= BLOBS as u64);
    store.close().await.unwrap();

    // The next process knows them too, with their keys.
    let store = open(dir.path(), EngineChoice::Auto).await;
    let known = store.quarantined(None, BLOBS + 1);
    assert_eq!(known.len(), BLOBS);
    assert!(known.iter().all(|found| found.key.as_deref().is_some_and(|key| key.starts_with("film/"))));
    let page = store.quarantined(Some(known[9].blob), 10);
    assert_eq!(page, known[10..20]);
    let error = store.open_blob(records[500].blob).await.err().expect("a quarantined blob was opened");
    assert!(error.to_string().contains("object film/500 (blob "), "{error}");
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_finds_exactly_what_is_damaged_and_releases_what_is_mended() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), engine).await;
        let records = fill(&store, 120).await;
        // All of it hot and verified: the scrub looks past that.
        for (n, record) in records.iter().enumerate() {
            assert!(read(&store, record.blob).await.0 == pattern(length(n)));
        }
        let damaged: Vec<usize> = (0..120).filter(|n| n % 6 == 0).collect();
        for n in &damaged {
            flip_byte(&path_of(dir.path(), records[*n].blob), records[*n].length / 2);
        }
        common::evict_from_page_cache(&dir.path().join("blobs"));
        let lost = path_of(dir.path(), records[7].blob);
        let kept_aside = dir.path().join("kept aside");
        std::fs::rename(&lost, &kept_aside).unwrap();
        let stray = lost.with_file_name(BlobId::new().to_string());
        std::fs::write(&stray, "nobody's").unwrap();
        tokio::time::sleep(Duration::from_millis(3)).await;

        let status = scrub(&store, ScrubOptions::default()).await;
        let counts = status.last.expect("it came to its end").counts;
        assert_eq!((counts.blobs, counts.damaged, counts.strays), (120, 21, 1), "{status:?}");
        assert_eq!(counts.unreadable, 0);
        assert!(status.strays[0].contains(stray.file_name().unwrap().to_str().unwrap()), "{:?}", status.strays);
        assert!(stray.exists(), "a scrub removes nothing");
        let mut expected: Vec<BlobId> = damaged.iter().chain(&[7]).map(|n| records[*n].blob).collect();
        expected.sort();
        let found = store.quarantined(None, 1000);
        assert_eq!(found.iter().map(|found| found.blob).collect::<Vec<_>>(), expected);
        let missing = found.iter().find(|found| found.blob == records[7].blob).unwrap();
        assert_eq!(missing.detail, "its file is missing");
        assert!(matches!(read(&store, records[0].blob).await.1, Some(Error::Quarantined { .. })));

        // One is mended, one comes back from the back-up, one is replaced, one deleted.
        flip_byte(&path_of(dir.path(), records[0].blob), records[0].length / 2);
        std::fs::rename(&kept_aside, &lost).unwrap();
        let replaced = put(&store, &key(6), b"new").await;
        assert!(!replaced.created);
        assert!(store.delete_object(&key(12), Precondition::None).await.unwrap());
        assert_eq!(store.quarantined(None, 1000).len(), 19, "what is replaced or deleted is off the list");
        let status = scrub(&store, ScrubOptions { quarantined_only: true, ..ScrubOptions::default() }).await;
        let counts = status.current.expect("it is told").counts;
        assert_eq!((counts.released, counts.damaged), (2, 17));
        for n in [0, 7] {
            assert!(read(&store, records[n].blob).await.0 == pattern(length(n)), "{n} is whole again");
        }
        store.close().await.unwrap();
        let store = open(dir.path(), engine).await;
        assert_eq!(store.quarantined(None, 1000).len(), 17, "the catalog knows the same");
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_scrub_goes_on_where_it_was_after_a_restart_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    fill(&store, 100).await;
    tokio::time::sleep(Duration::from_millis(3)).await;
    // So slow that it cannot come to its end.
    let slow = ScrubOptions { rate_bytes_per_s: 50_000, ..ScrubOptions::default() };
    assert!(store.start_scrub(slow).await.unwrap());
    assert!(!store.start_scrub(slow).await.unwrap(), "the second call joins");
    while store.scrub_status().await.unwrap().current.unwrap().counts.blobs < 3 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(store.stop_scrub().await);
    assert!(!store.stop_scrub().await, "none runs");
    let stopped = store.scrub_status().await.unwrap();
    let at = stopped.current.expect("half way").counts;
    assert!((3..100).contains(&at.blobs) && stopped.last.is_none(), "{at:?}");
    store.close().await.unwrap();

    let store = open(dir.path(), EngineChoice::Auto).await;
    assert_eq!(store.scrub_status().await.unwrap().current.unwrap().counts, at);
    let status = scrub(&store, ScrubOptions::default()).await;
    let last = status.last.unwrap();
    let bytes: usize = (0..100).map(length).sum();
    assert_eq!((last.counts.blobs, last.counts.bytes), (100, bytes as u64), "nothing twice, nothing left out");
    assert!(status.current.is_none());

    // A closed store ends its scrub.
    assert!(store.start_scrub(slow).await.unwrap());
    tokio::time::timeout(Duration::from_secs(20), store.clone().close()).await.expect("it closes").unwrap();
    assert!(matches!(store.start_scrub(slow).await, Err(Error::Closed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_evicts_no_hot_page() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let record = put(&store, &key(1), &pattern(3_000_000)).await.record;
    common::evict_from_page_cache(&dir.path().join("blobs"));
    tokio::time::sleep(Duration::from_millis(3)).await;
    let blobs = dir.path().join("blobs");
    let direct = std::os::unix::fs::OpenOptionsExt::custom_flags(File::options().read(true), libc::O_DIRECT)
        .open(path_of(dir.path(), record.blob));
    if is_tmpfs(dir.path()) || direct.is_err() {
        println!("skipped: the temporary folder's file system has no O_DIRECT, so scrubs drop pages there");
        return;
    }
    scrub(&store, ScrubOptions::default()).await;
    assert_eq!(resident_pages(&blobs), 0, "the scrub read through the page cache");
    let reader = store.open_blob(record.blob).await.unwrap();
    // What is asked for once goes past the page cache; what is asked for again is hot.
    for _ in 0..2 {
        assert!(collect(reader.stream(0..3_000_000)).await == pattern(3_000_000));
    }
    let hot = resident_pages(&blobs);
    assert!(hot > 700, "{hot} pages are hot");
    scrub(&store, ScrubOptions::default()).await;
    assert!(resident_pages(&blobs) >= hot, "the scrub took hot pages away");
    store.close().await.unwrap();
}

/// Pages that the kernel's read-ahead brings in are as little to be trusted as those that were asked for.
#[tokio::test(flavor = "multi_thread")]
async fn what_rots_after_it_was_read_is_found_when_it_comes_from_the_disk_again() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        if is_tmpfs(dir.path()) {
            return println!("skipped: on tmpfs nothing comes from a disk");
        }
        let store = open(dir.path(), engine).await;
        let data = pattern(6_000_000);
        let blob = put(&store, &key(0), &data).await.record.blob;
        // Read, and so verified, by this very process.
        let (bytes, error) = read(&store, blob).await;
        assert!(bytes == data && error.is_none());
        flip_byte(&path_of(dir.path(), blob), 4_500_000);
        common::evict_from_page_cache(dir.path());
        let (bytes, error) = read(&store, blob).await;
        assert!(data.starts_with(&bytes) && bytes.len() <= 4_500_000, "{} bytes were sent", bytes.len());
        assert!(matches!(error, Some(Error::Corrupt { .. })), "{error:?}");
        store.close().await.unwrap();
    }
}

/// The same where what was read before had never been looked at: the kernel brings more than was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn what_rotted_and_came_along_with_its_neighbour_is_not_sent() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        if is_tmpfs(dir.path()) {
            return println!("skipped: on tmpfs nothing comes from a disk");
        }
        let store = open(dir.path(), engine).await;
        let data = pattern(6_000_000);
        let blob = put(&store, &key(0), &data).await.record.blob;
        common::evict_from_page_cache(dir.path());
        let region = store.open_blob(blob).await.unwrap().region(0..6_000_000).unwrap();
        let chunk = 512 << 10;
        let verified = 4 * chunk;
        assert!(region.fetch(verified, Wanted::Later).await.unwrap().in_page_cache);
        assert_eq!(region.sendable(verified, 1000).unwrap(), 1000);

        flip_byte(&path_of(dir.path(), blob), verified + 500);
        common::evict_from_page_cache(dir.path());
        for n in 0..4 {
            assert!(region.fetch(n * chunk, Wanted::Later).await.unwrap().in_page_cache);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(region.sendable(verified, 1000).unwrap(), 0, "of these pages the node has seen nothing");
        drop(region);
        store.close().await.unwrap();
    }
}
