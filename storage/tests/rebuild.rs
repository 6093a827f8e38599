//! The catalog from the footers alone: what comes back, what is left out, and that nothing is ever lost by trying.

mod common;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use common::{collect, files_below, open, pattern, put};
use futures_util::StreamExt;
use reelring_storage::{
    BlobId, BlobMeta, EngineChoice, Error, Key, ObjectRecord, Precondition, Rebuild, RebuildReport, Result, Store,
    StoreOptions,
};

const OBJECTS: usize = 300;

fn key(n: usize) -> Key {
    Key::parse(&format!("Filme/ü {n}/a.mp4")).unwrap()
}

fn length(n: usize) -> usize {
    match n % 30 {
        0 => 0,
        1 => 800_000 + n,
        _ => n * 53 % 20_000,
    }
}

async fn fill(store: &Store) -> Vec<ObjectRecord> {
    let puts = futures_util::stream::iter(0..OBJECTS)
        .map(|n| async move { put(store, &key(n), &pattern(length(n))).await.record })
        .buffered(32);
    puts.collect().await
}

fn rebuild(dir: &Path, dry_run: bool) -> Result<RebuildReport> {
    let rebuild = Rebuild {
        dir: dir.into(),
        volumes: Vec::new(),
        node_migrations: &[],
        is_object: &|key| !key.starts_with("assets/"),
        stamp: "then".into(),
        dry_run,
    };
    rebuild.run(|_| {})
}

/// What rebuilt and original must have in common; the time is that of the id.
fn rebuilt(record: &ObjectRecord) -> ObjectRecord {
    ObjectRecord { modified_ms: record.blob.created_ms() as i64, ..record.clone() }
}

fn catalog_files(dir: &Path) -> Vec<PathBuf> {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    names.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("catalog.sqlite")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_catalog_comes_back_with_every_object() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let records = fill(&store).await;
    assert!(matches!(rebuild(dir.path(), true), Err(Error::Locked { .. })), "a node runs here");
    store.close().await.unwrap();
    for path in catalog_files(dir.path()) {
        std::fs::remove_file(path).unwrap();
    }

    let looked = rebuild(dir.path(), true).unwrap();
    assert_eq!((looked.objects, looked.files, looked.broken), (OBJECTS as u64, OBJECTS as u64, 0));
    assert_eq!(catalog_files(dir.path()).len(), 0, "looking changes nothing");
    let report = rebuild(dir.path(), false).unwrap();
    assert_eq!(report, RebuildReport { dry_run: false, ..looked });
    assert_eq!(report.bytes, records.iter().map(|record| record.length).sum::<u64>());

    let store = open(dir.path(), EngineChoice::Auto).await;
    let mut expected: Vec<ObjectRecord> = records.iter().map(rebuilt).collect();
    expected.sort_by(|a, b| a.key.as_str().cmp(b.key.as_str()));
    assert_eq!(store.list_objects("", None, 1000).await.unwrap(), expected);
    for (n, record) in records.iter().enumerate() {
        let reader = store.open_blob(record.blob).await.unwrap();
        let bytes = collect(reader.stream(0..u64::MAX)).await;
        assert_eq!(*blake3::hash(&bytes).as_bytes(), record.blake3, "object {n}");
        assert_eq!(record.content_type.as_deref(), Some("video/mp4"));
    }
    let stats = store.stats();
    assert_eq!(stats.volumes[0].used_bytes, report.bytes, "the volume's sum is right");
    // It is a catalog like any other.
    assert!(store.delete_object(&key(5), Precondition::None).await.unwrap());
    put(&store, &key(7), b"new").await;
    store.close().await.unwrap();
    assert_eq!(files_below(&dir.path().join("blobs")).len(), OBJECTS - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_taken_up_is_told_and_kept_by_the_sweeps_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let old = put(&store, &key(1), b"old").await.record.blob;
    let blobs = dir.path().join("blobs");
    let old_path = files_below(&blobs).pop().unwrap();
    let aside = dir.path().join("aside");
    std::fs::copy(&old_path, &aside).unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    let new = put(&store, &key(1), b"new").await.record.blob;
    let broken = put(&store, &key(2), &pattern(5_000)).await.record.blob;
    // A part of a rendition, and a blob without a key.
    for key in [Some("assets/0123/720p/1.m4s".to_owned()), None] {
        let mut writer = store.create(BlobMeta { key, ..BlobMeta::default() }).await.unwrap();
        writer.write(Bytes::from_static(b"part")).await.unwrap();
        store.commit(vec![writer.seal().await.unwrap()], |_| Ok(())).await.unwrap();
    }
    store.close().await.unwrap();
    std::fs::copy(&aside, &old_path).unwrap();
    let find = |id: BlobId| files_below(&blobs).into_iter().find(|path| path.ends_with(id.to_string())).unwrap();
    let footer_at = std::fs::metadata(find(broken)).unwrap().len() - 5;
    common::flip_byte(&find(broken), footer_at);
    std::fs::write(old_path.with_file_name("notes.txt"), "mine").unwrap();
    std::fs::write(dir.path().join("catalog.sqlite"), "no database at all").unwrap();
    // The last process died, so that the next start sweeps.
    let lock = std::fs::read_to_string(dir.path().join("LOCK")).unwrap();
    std::fs::write(dir.path().join("LOCK"), lock.replace("closed", "999999999")).unwrap();
    let files = files_below(&blobs);

    let report = rebuild(dir.path(), false).unwrap();
    let counts = (report.files, report.objects, report.superseded, report.broken, report.parts, report.nameless);
    assert_eq!(counts, (6, 1, 1, 1, 1, 2), "{report:#?}");
    let reason = |id: BlobId| report.left_out.iter().find(|left| left.path == find(id)).map(|left| left.reason.clone());
    assert!(reason(old).unwrap().contains(&format!("has a newer blob, {new}")), "{report:#?}");
    assert!(reason(broken).unwrap().contains("footer"), "{report:#?}");
    let kept = report.old_catalog.expect("there was one");
    assert_eq!(std::fs::read_to_string(kept).unwrap(), "no database at all");

    for _ in 0..2 {
        let store = open(dir.path(), EngineChoice::Auto).await;
        let object = store.object(&key(1)).await.unwrap().unwrap();
        assert_eq!(object.blob, new);
        assert_eq!(store.object(&key(2)).await.unwrap(), None);
        store.close().await.unwrap();
        let lock = std::fs::read_to_string(dir.path().join("LOCK")).unwrap();
        std::fs::write(dir.path().join("LOCK"), lock.replace("closed", "999999999")).unwrap();
    }
    assert_eq!(files_below(&blobs), files, "a sweep took something");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_was_cut_short_is_not_taken_for_a_catalog() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let record = put(&store, &key(1), b"one").await.record;
    store.close().await.unwrap();
    // It died while it built: the draft lies there, half full.
    std::fs::write(dir.path().join("catalog.sqlite.rebuilding"), "half of it").unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    assert_eq!(store.object(&key(1)).await.unwrap().unwrap(), record, "the old catalog counts");
    store.close().await.unwrap();

    // It died after the old one was moved away and before the new one was in: nothing is swept, and the next works.
    let died = |name: &str| {
        let run = BlobId::new();
        std::fs::write(dir.path().join("LOCK"), format!("{:\n<128}", format!("{name}\n{run}\n"))).unwrap();
        std::fs::rename(dir.path().join("catalog.sqlite"), dir.path().join("catalog.sqlite.old-before")).unwrap();
    };
    died("999999999");
    let store = open(dir.path(), EngineChoice::Auto).await;
    assert_eq!(store.object(&key(1)).await.unwrap(), None);
    store.close().await.unwrap();
    assert_eq!(files_below(&dir.path().join("blobs")).len(), 1, "the only copy is kept");
    let report = rebuild(dir.path(), false).unwrap();
    assert_eq!((report.objects, report.broken), (1, 0));
    let store = open(dir.path(), EngineChoice::Auto).await;
    assert_eq!(store.object(&key(1)).await.unwrap().unwrap(), rebuilt(&record));
    store.close().await.unwrap();
    let nothing = tempfile::tempdir().unwrap();
    assert!(rebuild(nothing.path(), false).is_err(), "there is nothing to rebuild from");
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_on_every_volume_come_back() {
    let (dir, extra) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let volume = extra.path().join("volume");
    let options = || StoreOptions { volumes: vec![volume.clone()], ..StoreOptions::new(dir.path()) };
    let store = Store::open(options()).await.unwrap();
    // At once: what is promised to one makes the other volume the emptier one.
    let puts = futures_util::stream::iter(0..40)
        .map(|n| {
            let store = &store;
            async move { put(store, &key(n), &pattern(1_200_000 + n)).await }
        })
        .buffered(8);
    puts.collect::<Vec<_>>().await;
    store.close().await.unwrap();
    let there = files_below(&volume.join("blobs")).len();
    assert!(there > 0, "the second volume got nothing");
    std::fs::remove_file(dir.path().join("catalog.sqlite")).unwrap();
    let rebuild = |volumes: Vec<PathBuf>| {
        let is_object = &|_: &str| true;
        let dir = dir.path().to_owned();
        Rebuild { dir, volumes, node_migrations: &[], is_object, stamp: "then".into(), dry_run: false }.run(|_| {})
    };
    assert!(rebuild(vec![extra.path().join("not mounted")]).is_err(), "half of it is no catalog");
    assert_eq!(rebuild(vec![volume.clone()]).unwrap().objects, 40);
    let store = Store::open(options()).await.unwrap();
    for n in 0..40 {
        let object = store.object(&key(n)).await.unwrap().unwrap();
        let reader = store.open_blob(object.blob).await.unwrap();
        assert!(collect(reader.stream(0..u64::MAX)).await == pattern(1_200_000 + n));
    }
    let missing = store.stats().volumes.iter().any(|volume| volume.used_bytes == 0);
    assert!(!missing, "{:?}", store.stats().volumes);
    store.close().await.unwrap();
}
