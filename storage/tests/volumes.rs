//! Several volumes: blobs spread, a volume that is away is refused by name and costs nothing else, and comes back whole.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{files_below, pattern, put};
use reelring_storage::{Error, Key, Precondition, Result, RoomLimits, Store, StoreOptions, VolumeState};
use tempfile::TempDir;

const OBJECTS: usize = 12;
const BYTES: usize = 100_000;

/// A data directory and two volumes beside it. All lie on one file system, so that a quota makes the difference.
struct Site {
    dir: TempDir,
}

impl Site {
    fn new() -> Site {
        Site { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn open(&self, volumes: &[&str]) -> Result<Store> {
        let volumes = volumes.iter().map(|name| self.path(name)).collect();
        let room = RoomLimits { min_free: Some(0), quota: Some(2 << 20) };
        Store::open(StoreOptions { volumes, room, ..StoreOptions::new(self.path("data")) }).await
    }

    /// Takes a disk away and leaves its mount point.
    fn unmount(&self, name: &str) {
        fs::rename(self.path(name), self.path("elsewhere")).unwrap();
        fs::create_dir(self.path(name)).unwrap();
    }

    fn mount(&self, name: &str) {
        fs::remove_dir(self.path(name)).unwrap();
        fs::rename(self.path("elsewhere"), self.path(name)).unwrap();
    }

    fn blobs(&self, name: &str) -> usize {
        files_below(&self.path(name).join("blobs")).len()
    }
}

fn key(n: usize) -> Key {
    Key::parse(&format!("object/{n}")).unwrap()
}

async fn fill(store: &Store) {
    for n in 0..OBJECTS {
        put(store, &key(n), &pattern(BYTES + n)).await;
    }
}

async fn read(store: &Store, n: usize) -> Result<Vec<u8>> {
    let record = store.object(&key(n)).await?.expect("the object is listed");
    let reader = store.open_blob(record.blob).await?;
    Ok(reader.read(0, BYTES + n).await?.to_vec())
}

/// Which objects can be read; the others are refused as missing.
async fn readable(store: &Store) -> Vec<usize> {
    let mut readable = Vec::new();
    for n in 0..OBJECTS {
        match read(store, n).await {
            Ok(bytes) => {
                assert!(bytes == pattern(BYTES + n));
                readable.push(n);
            }
            Err(Error::VolumeMissing { volume, .. }) => assert!(volume > 0),
            Err(error) => panic!("object {n}: {error}"),
        }
    }
    readable
}

fn state(store: &Store, number: u32) -> VolumeState {
    store.stats().volumes.iter().find(|volume| volume.number == number).expect("it is listed").state
}

/// Removal from a volume that is there is over when the store is closed; what was away is swept in the background.
async fn settle(path: &Path, files: usize) {
    for _ in 0..200 {
        if files_below(path).len() == files {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{} files below {}, not {files}", files_below(path).len(), path.display());
}

#[tokio::test]
async fn blobs_spread_over_volumes_and_are_found_again() {
    let site = Site::new();
    let store = site.open(&["one", "two"]).await.unwrap();
    fill(&store).await;
    let used: Vec<u64> = store.stats().volumes.iter().map(|volume| volume.used_bytes).collect();
    assert_eq!(used.iter().sum::<u64>(), (0..OBJECTS).map(|n| (BYTES + n) as u64).sum::<u64>());
    assert!(used.iter().all(|used| *used > 0), "one volume got nothing: {used:?}");
    store.close().await.unwrap();
    assert!(["data", "one", "two"].iter().all(|name| site.blobs(name) > 0));

    // Two disks that changed their mount points are still who they are.
    fs::rename(site.path("one"), site.path("spare")).unwrap();
    fs::rename(site.path("two"), site.path("one")).unwrap();
    fs::rename(site.path("spare"), site.path("two")).unwrap();
    let store = site.open(&["one", "two"]).await.unwrap();
    assert_eq!(readable(&store).await.len(), OBJECTS);
    let again: Vec<u64> = store.stats().volumes.iter().map(|volume| volume.used_bytes).collect();
    assert_eq!(again, used, "the sums are the catalog's");
    for n in 0..OBJECTS {
        assert!(store.delete_object(&key(n), Precondition::None).await.unwrap());
    }
    assert!(store.stats().volumes.iter().all(|volume| volume.used_bytes == 0));
    store.close().await.unwrap();
    assert_eq!(["data", "one", "two"].map(|name| site.blobs(name)), [0, 0, 0]);
}

#[tokio::test]
async fn a_volume_that_is_away_is_refused_by_name_and_swept_when_it_returns() {
    let site = Site::new();
    let store = site.open(&["one"]).await.unwrap();
    fill(&store).await;
    store.close().await.unwrap();
    let on_one = site.blobs("one");
    assert!(on_one > 1);

    site.unmount("one");
    let store = site.open(&["one"]).await.unwrap();
    assert_eq!(state(&store, 1), VolumeState::Missing);
    let here = readable(&store).await;
    assert_eq!(here.len(), OBJECTS - on_one);
    let away = (0..OBJECTS).find(|n| !here.contains(n)).unwrap();
    let text = read(&store, away).await.unwrap_err().to_string();
    for part in ["volume 1", "one", "not mounted", "restart"] {
        assert!(text.contains(part), "{part} is not in {text:?}");
    }
    // The rest works: new objects go elsewhere, and what cannot be read can be deleted.
    put(&store, &Key::parse("new").unwrap(), b"new").await;
    assert!(store.delete_object(&key(away), Precondition::None).await.unwrap());
    store.close().await.unwrap();
    assert_eq!(files_below(&site.path("one")).len(), 0, "nothing was written to the mount point");

    site.mount("one");
    let store = site.open(&["one"]).await.unwrap();
    assert_eq!(state(&store, 1), VolumeState::Ready);
    settle(&site.path("one/blobs"), on_one - 1).await;
    store.close().await.unwrap();
    let store = site.open(&["one"]).await.unwrap();
    for n in (0..OBJECTS).filter(|n| *n != away) {
        assert!(read(&store, n).await.unwrap() == pattern(BYTES + n));
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_volume_taken_away_at_run_time_fails_alone() {
    let site = Site::new();
    let store = site.open(&["one"]).await.unwrap();
    fill(&store).await;
    let on_one = site.blobs("one");
    store.close().await.unwrap();
    let store = site.open(&["one"]).await.unwrap();
    site.unmount("one");
    assert_eq!(readable(&store).await.len(), OBJECTS - on_one);
    assert_eq!(state(&store, 1), VolumeState::Degraded);
    for n in 0..4 {
        put(&store, &Key::parse(&format!("new/{n}")).unwrap(), &pattern(BYTES)).await;
    }
    store.close().await.unwrap();
    site.mount("one");
    let store = site.open(&["one"]).await.unwrap();
    assert_eq!(readable(&store).await.len(), OBJECTS);
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_volume_no_longer_configured_is_read_and_gets_nothing_new() {
    let site = Site::new();
    let store = site.open(&["one"]).await.unwrap();
    fill(&store).await;
    store.close().await.unwrap();
    let on_one = site.blobs("one");
    let store = site.open(&[]).await.unwrap();
    assert_eq!(state(&store, 1), VolumeState::Retired);
    assert_eq!(readable(&store).await.len(), OBJECTS);
    for n in 0..4 {
        put(&store, &Key::parse(&format!("new/{n}")).unwrap(), &pattern(BYTES)).await;
    }
    store.close().await.unwrap();
    assert_eq!(site.blobs("one"), on_one);
}

#[tokio::test]
async fn what_is_no_volume_of_this_store_is_refused() {
    let site = Site::new();
    let refused = async |volumes: &[&str], reason: &str| {
        let text = site.open(volumes).await.err().expect("a volume was accepted").to_string();
        assert!(text.contains(reason), "{text:?} does not tell {reason:?}");
    };
    fs::create_dir(site.path("full")).unwrap();
    fs::write(site.path("full/holiday.jpg"), "x").unwrap();
    refused(&["full"], "not empty").await;
    refused(&["nowhere/at/all"], "make directory").await;
    refused(&["one", "one"], "named twice").await;
    refused(&["data"], "data directory").await;
    refused(&["1", "2", "3", "4", "5", "6", "7", "8"], "limit is 8").await;

    // Another node's volume, in use and not; and another node's data directory.
    let other = Site::new();
    let theirs = other.open(&["one"]).await.unwrap();
    fs::create_dir(site.path("stolen")).unwrap();
    fs::copy(other.path("one/VOLUME"), site.path("stolen/VOLUME")).unwrap();
    refused(&["stolen"], "another data directory").await;
    theirs.close().await.unwrap();

    // A known volume whose disk was swapped for that one is away, and nothing is written to it.
    let store = site.open(&["mine"]).await.unwrap();
    fill(&store).await;
    store.close().await.unwrap();
    site.unmount("mine");
    fs::copy(other.path("one/VOLUME"), site.path("mine/VOLUME")).unwrap();
    let store = site.open(&["mine"]).await.unwrap();
    let volume = store.stats().volumes.into_iter().find(|volume| volume.dir == site.path("mine")).unwrap();
    assert_eq!(volume.state, VolumeState::Missing);
    assert!(volume.reason.unwrap().contains("another data directory"));
    assert!(readable(&store).await.len() < OBJECTS);
    store.close().await.unwrap();
    assert_eq!(files_below(&site.path("mine")).len(), 1);
}
