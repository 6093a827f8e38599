//! Disks that fill up and disks that fail to write, for real: small ext4 images behind loop devices.
//!
//! A disk that dies is an image on a file system that is shut down: from then on the loop device answers EIO, also for
//! what the file system on it had accepted long ago, and `fsync` is where the store hears of it. A disk with less room
//! than it says, as a thin volume has, is an image on a tmpfs too small for it: there write-back meets ENOSPC.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::time::Duration;

use bytes::Bytes;
use common::file_system::{Kind, Mounted, Tmpfs, own_mounts};
use common::load::content;
use common::{collect, engines, files_below, pattern, put};
use futures_util::TryStreamExt;
use reelring_storage::{BlobMeta, EngineChoice, Error, Key, Precondition, Result, Store};

const WRITERS: u64 = 16;

/// Versions that `content` makes large.
fn large_versions() -> impl Iterator<Item = u64> {
    (1..).filter(|version| common::load::mixed(*version) % 16 > 13)
}

async fn put_unannounced(store: &Store, key: &str, data: &[u8]) -> Result<()> {
    let mut writer = store.create(BlobMeta::default()).await?;
    for piece in data.chunks(300_000) {
        writer.ready().await?;
        writer.write(Bytes::copy_from_slice(piece)).await?;
    }
    store.put_object(&Key::parse(key).unwrap(), writer.seal().await?, Precondition::None).await.map(drop)
}

/// Many writers at once until each has met an error. Returns what was acknowledged, and the errors.
async fn write_until_it_fails(store: &Store) -> (BTreeMap<String, u64>, Vec<Error>) {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let (store, next) = (store.clone(), Arc::clone(&next));
        tasks.spawn(async move {
            let mut acknowledged = Vec::new();
            loop {
                let number = next.fetch_add(1, Relaxed);
                assert!(number < 2_000, "nothing fails");
                let version = large_versions().nth(number as usize).unwrap();
                let key = number.to_string();
                match put_unannounced(&store, &key, &content(&key, version)).await {
                    Ok(()) => acknowledged.push((key, version)),
                    Err(error) => return (acknowledged, error),
                }
            }
        });
    }
    let (acknowledged, errors): (Vec<_>, Vec<_>) = tasks.join_all().await.into_iter().unzip();
    (acknowledged.into_iter().flatten().collect(), errors)
}

async fn all_is_there(store: &Store, acknowledged: &BTreeMap<String, u64>) {
    for (key, version) in acknowledged {
        let object = store.object(&Key::parse(key).unwrap()).await.unwrap();
        let object = object.unwrap_or_else(|| panic!("object {key} was acknowledged and is gone"));
        let reader = store.open_blob(object.blob).await.unwrap();
        assert!(collect(reader.stream(0..u64::MAX)).await == content(key, *version), "object {key} is not whole");
    }
}

/// While the disk is dead: what memory has is served, the rest is an error, and nothing is served that is not so.
async fn what_is_served_is_right(store: &Store, acknowledged: &BTreeMap<String, u64>) {
    for (key, version) in acknowledged {
        let object = store.object(&Key::parse(key).unwrap()).await.unwrap().unwrap();
        let Ok(reader) = store.open_blob(object.blob).await else { continue };
        match reader.stream(0..u64::MAX).try_collect::<Vec<Bytes>>().await {
            Ok(data) => assert!(data.concat() == content(key, *version), "object {key} is not whole"),
            Err(error) => assert!(matches!(error, Error::Io { .. }), "object {key}: {error}"),
        }
    }
}

fn lies_about(dir: &Path) -> usize {
    files_below(&dir.join("partial")).len()
}

/// What ends well: all that was acknowledged is there, and the store takes more.
async fn is_as_promised(dir: &Path, engine: EngineChoice, acknowledged: &BTreeMap<String, u64>) {
    let store = common::open(dir, engine).await;
    all_is_there(&store, acknowledged).await;
    assert!(!store.stats().degraded);
    put_unannounced(&store, "later", &pattern(30 << 20)).await.unwrap();
    let stored = store.list_objects("", None, 10_000).await.unwrap().len();
    store.close().await.unwrap();
    assert_eq!((lies_about(dir), files_below(&dir.join("blobs")).len()), (0, stored));
}

#[test]
fn a_disk_that_dies_costs_nothing_that_was_acknowledged() {
    let images = tempfile::tempdir().unwrap();
    for engine in engines() {
        // When the file system below is shut down, the disk that lies on it answers EIO to everything.
        let below = own_mounts().and_then(|()| Mounted::new(Kind::Ext4, &images.path().join("below"), 512 << 20));
        let disk =
            below.and_then(|below| Ok((Mounted::new(Kind::Ext4, &below.path().join("disk"), 300 << 20)?, below)));
        let (disk, below) = match disk {
            Ok(disk) => disk,
            Err(reason) => {
                return eprintln!("SKIPPED a_disk_that_dies_costs_nothing_that_was_acknowledged: {reason}");
            }
        };
        let dir = disk.path().join("data");
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let acknowledged = runtime.block_on(async {
            let store = common::open(&dir, engine).await;
            let kept = pattern(50_000);
            let record = put(&store, &Key::parse("kept").unwrap(), &kept).await.record;
            let writing = tokio::spawn({
                let store = store.clone();
                async move { write_until_it_fails(&store).await }
            });
            while store.list_objects("", None, 20).await.unwrap().len() < 20 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            below.shut_down();
            let (acknowledged, errors) = writing.await.unwrap();
            for error in &errors {
                assert!(matches!(error, Error::Io { .. } | Error::Degraded { .. } | Error::Catalog(_)), "{error}");
            }
            // From the moment that one sync failed nothing more is promised.
            assert!(store.stats().degraded, "{errors:?}");
            let refused = put_unannounced(&store, "later", b"x").await;
            assert!(matches!(refused, Err(Error::Degraded { .. })), "{refused:?}");
            let reader = store.open_blob(record.blob).await.unwrap();
            assert!(collect(reader.stream(0..u64::MAX)).await == kept, "what is in memory is served");
            drop(reader);
            what_is_served_is_right(&store, &acknowledged).await;
            store.close().await.unwrap();
            acknowledged
        });
        drop(runtime);

        // The disk is back, and the process started again.
        disk.unmount();
        below.remount();
        disk.mount().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(is_as_promised(&dir, engine, &acknowledged));
        drop(runtime);
        println!("{engine}: {} acknowledged objects outlived the disk", acknowledged.len());
        disk.check();
        below.check();
    }
}

#[test]
fn a_disk_with_less_room_than_it_says_costs_nothing_that_was_acknowledged() {
    for engine in engines() {
        let ground = own_mounts().and_then(|()| Tmpfs::new("40m"));
        let disk =
            ground.and_then(|ground| Ok((Mounted::new(Kind::Ext4, &ground.path().join("image"), 400 << 20)?, ground)));
        let (disk, ground) = match disk {
            Ok(disk) => disk,
            Err(reason) => {
                let test = "a_disk_with_less_room_than_it_says_costs_nothing_that_was_acknowledged";
                return eprintln!("SKIPPED {test}: {reason}");
            }
        };
        let dir = disk.path().join("data");
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (acknowledged, degraded) = runtime.block_on(async {
            let store = common::open(&dir, engine).await;
            let (acknowledged, errors) = write_until_it_fails(&store).await;
            assert!(!acknowledged.is_empty(), "something fits");
            // Where the device says that it is full, so does the store. Where it is the log or the catalog that does not
            // fit, the volume has failed.
            for error in &errors {
                let known = matches!(error, Error::NoSpace { .. } | Error::Io { .. } | Error::Degraded { .. });
                assert!(known || matches!(error, Error::Catalog(_)), "{error}");
            }
            all_is_there(&store, &acknowledged).await;
            let degraded = store.stats().degraded;
            // The mark of a clean close may not find its way any more.
            drop(store.close().await);
            (acknowledged, degraded)
        });
        drop(runtime);

        // As whoever runs it would: room, then the checker, for the file system has lost writes of its own.
        disk.unmount();
        ground.grow("600m");
        disk.repair();
        disk.mount().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(is_as_promised(&dir, engine, &acknowledged));
        drop(runtime);
        println!("{engine}: {} objects fitted, degraded: {degraded}", acknowledged.len());
        disk.check();
    }
}

#[test]
fn a_full_ext4_refuses_many_writers_and_goes_on_reading() {
    let images = tempfile::tempdir().unwrap();
    for engine in engines() {
        let disk = match own_mounts().and_then(|()| Mounted::new(Kind::Ext4, &images.path().join("image"), 64 << 20)) {
            Ok(disk) => disk,
            Err(reason) => {
                return eprintln!("SKIPPED a_full_ext4_refuses_many_writers_and_goes_on_reading: {reason}");
            }
        };
        let dir = disk.path().join("data");
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let store = common::open(&dir, engine).await;
            let kept = pattern(1_000_000);
            let record = put(&store, &Key::parse("kept").unwrap(), &kept).await.record;
            let full = Arc::new(AtomicBool::new(false));
            let reads = tokio::spawn({
                let (store, full, kept) = (store.clone(), Arc::clone(&full), kept.clone());
                async move {
                    let mut reads = 0;
                    while !full.load(Acquire) {
                        let reader = store.open_blob(record.blob).await.unwrap();
                        assert!(collect(reader.stream(0..u64::MAX)).await == kept, "reads go on");
                        reads += 1;
                    }
                    reads
                }
            });
            let (acknowledged, errors) = write_until_it_fails(&store).await;
            full.store(true, Release);
            assert!(reads.await.unwrap() > 0);
            for error in &errors {
                assert!(matches!(error, Error::NoSpace { .. }), "{error}");
            }
            assert!(!store.stats().degraded, "a full volume is not a broken one");
            all_is_there(&store, &acknowledged).await;

            // Nothing of the refused stays, and the catalog has room to forget.
            for key in acknowledged.keys() {
                assert!(store.delete_object(&Key::parse(key).unwrap(), Precondition::None).await.unwrap());
            }
            put_unannounced(&store, "as much again", &pattern(40_000_000)).await.unwrap();
            store.close().await.unwrap();
            assert_eq!((lies_about(&dir), files_below(&dir.join("blobs")).len()), (0, 2));
            println!("{engine}: {} objects fitted, {WRITERS} writers were refused", acknowledged.len());
        });
        drop(runtime);
        disk.check();
    }
}
