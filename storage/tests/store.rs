//! The store from outside: what is acknowledged is there, what is not leaves nothing.

mod common;

use std::future::Future;
use std::path::Path;
use std::task::{Context, Waker};

use bytes::Bytes;
use common::{collect, engines, files_below, open, pattern, put, store_bytes};
use futures_util::StreamExt;
use reelring_storage::{BlobId, BlobMeta, EngineChoice, Entry, Error, Key, Precondition, Store, StoreOptions, limits};

#[tokio::test]
async fn what_was_put_comes_back_whatever_its_size() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), engine).await;
        let block = limits::BLOCK_BYTES;
        for size in [0, 1, 4095, block - 1, block, block + 1, 3 * block, 5_000_000] {
            let data = pattern(size);
            let key = Key::parse(&format!("size/{size}")).unwrap();
            let outcome = put(&store, &key, &data).await;
            assert!(outcome.created);
            assert_eq!(outcome.record.length, size as u64);
            assert_eq!(outcome.record.blake3, *blake3::hash(&data).as_bytes());
            let reader = store.open_blob(outcome.record.blob).await.unwrap();
            assert_eq!(reader.len(), size as u64);
            assert_eq!(reader.footer().key(), Some(key.as_str()));
            assert!(collect(reader.stream(0..u64::MAX)).await == data, "{size} bytes on {engine}");
            for (offset, len) in [(0, 10), (size as u64 / 2, 70_000), (size as u64, 5), (u64::MAX, 5)] {
                let end = size.min((offset as usize).saturating_add(len));
                let expected = &data[end.min(offset as usize)..end];
                assert!(reader.read(offset, len).await.unwrap() == expected, "{offset}+{len} of {size}");
            }
        }
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_reopened_store_reads_from_the_disk_and_verifies() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let data = pattern(3_000_001);
        let key = Key::parse("film").unwrap();
        let store = open(dir.path(), engine).await;
        let record = put(&store, &key, &data).await.record;
        store.close().await.unwrap();

        common::evict_from_page_cache(dir.path());
        let store = open(dir.path(), engine).await;
        assert_eq!(store.object(&key).await.unwrap(), Some(record.clone()));
        let reader = store.open_blob(record.blob).await.unwrap();
        assert!(collect(reader.stream(1_000..2_999_999)).await == data[1_000..2_999_999]);
        let stats = store.stats();
        assert!(stats.reads_reactor_total > 0, "nothing was read through the engine");
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_flipped_byte_is_never_served() {
    for engine in engines() {
        // Hot (the flip went through the page cache), then cold.
        for evict in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let store = open(dir.path(), engine).await;
            let data = pattern(700_000);
            let record = put(&store, &Key::parse("k").unwrap(), &data).await.record;
            store.close().await.unwrap();
            let path = files_below(&dir.path().join("blobs")).pop().unwrap();
            common::flip_byte(&path, 300_000);
            if evict {
                common::evict_from_page_cache(dir.path());
            }
            let store = open(dir.path(), engine).await;
            let reader = store.open_blob(record.blob).await.unwrap();
            assert!(reader.read(0, 1000).await.unwrap() == data[..1000], "the block before is whole");
            let error = reader.read(299_000, 10).await.unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "{error}");
            let mut served = Vec::new();
            let mut stream = std::pin::pin!(reader.stream(0..700_000));
            let mut failed = false;
            while let Some(chunk) = stream.next().await {
                match chunk {
                    Ok(chunk) => served.extend_from_slice(&chunk),
                    Err(e) => failed = matches!(e, Error::Quarantined { .. }),
                }
            }
            assert!(failed && data.starts_with(&served));
            store.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_damaged_footer_is_a_clear_error() {
    for damage in ["truncated", "flipped", "empty"] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), EngineChoice::Auto).await;
        let record = put(&store, &Key::parse("k").unwrap(), &pattern(1000)).await.record;
        store.close().await.unwrap();
        let path = files_below(&dir.path().join("blobs")).pop().unwrap();
        let whole = std::fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        match damage {
            "truncated" => bytes.truncate(whole.len() - 1),
            "flipped" => bytes[1010] ^= 4,
            _ => bytes.clear(),
        }
        std::fs::write(&path, bytes).unwrap();
        let store = open(dir.path(), EngineChoice::Auto).await;
        let error = store.open_blob(record.blob).await.err().expect("a damaged footer was accepted");
        assert!(matches!(error, Error::Corrupt { .. }), "{damage}: {error}");
        let error = store.open_blob(record.blob).await.err().expect("a damaged blob was opened");
        assert!(matches!(error, Error::Quarantined { .. }), "{damage}: {error}");
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn replacing_and_deleting_remove_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let key = Key::parse("k").unwrap();
    let first = put(&store, &key, b"first").await.record;
    let reader = store.open_blob(first.blob).await.unwrap();
    let second = put(&store, &key, b"second").await;
    assert!(!second.created);
    assert_eq!(reader.read(0, 10).await.unwrap(), "first", "an open reader keeps its bytes");
    assert!(matches!(store.open_blob(first.blob).await, Err(Error::NoBlob(id)) if id == first.blob));
    assert_eq!(files_below(&dir.path().join("blobs")).len(), 1);
    assert!(store.delete_object(&key, Precondition::None).await.unwrap());
    assert!(!store.delete_object(&key, Precondition::None).await.unwrap());
    assert_eq!(files_below(&dir.path().join("blobs")).len(), 0);
    assert_eq!(store.object(&key).await.unwrap(), None);
}

#[tokio::test]
async fn a_deleted_object_streams_to_its_end_and_then_frees_its_room() {
    for engine in engines() {
        for evict in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let store = open(dir.path(), engine).await;
            let (key, data) = (Key::parse("k").unwrap(), pattern(6_000_000));
            let record = put(&store, &key, &data).await.record;
            let mut stream = Box::pin(store.open_blob(record.blob).await.unwrap().stream(0..u64::MAX));
            let mut streamed = stream.next().await.unwrap().unwrap().to_vec();
            if evict {
                common::evict_from_page_cache(&dir.path().join("blobs"));
            }
            store.delete_object(&key, Precondition::None).await.unwrap();
            streamed.extend(collect(&mut stream).await);
            assert!(streamed == data, "{engine}, evicted: {evict}");
            drop(stream);
            store.close().await.unwrap();
            let held = std::fs::read_dir("/proc/self/fd").unwrap();
            let held = held.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
            assert_eq!(held.filter(|path| path.starts_with(dir.path())).count(), 0, "something holds its files open");
        }
    }
}

#[tokio::test]
async fn many_stalled_readers_and_a_fast_writer_stay_within_the_budgets() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let data = pattern(2_000_000);
    let record = put(&store, &Key::parse("k").unwrap(), &data).await.record;
    common::evict_from_page_cache(&dir.path().join("blobs"));
    let reader = store.open_blob(record.blob).await.unwrap();
    let mut stalled = Vec::new();
    for _ in 0..500 {
        // One chunk taken and kept, or waiting for a buffer: both are what a stalled client does.
        let mut stream = Box::pin(reader.stream(0..u64::MAX));
        let mut chunk = Box::pin(async move { (stream.next().await, stream) });
        let first = chunk.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        stalled.push((first, chunk));
    }
    put(&store, &Key::parse("other").unwrap(), &pattern(30_000_000)).await;
    let stats = store.stats();
    let budgets = limits::READ_BUDGET_BYTES + limits::WRITE_BUDGET_BYTES;
    assert!(stats.buffer_bytes as usize <= budgets, "{} bytes of buffers", stats.buffer_bytes);
    assert!(stats.mapped_bytes as usize <= limits::MAP_BUDGET_BYTES, "{} bytes mapped", stats.mapped_bytes);
    drop(stalled);
    drop(reader);
    assert!(collect(store.open_blob(record.blob).await.unwrap().stream(0..u64::MAX)).await == data);
    store.close().await.unwrap();
}

#[tokio::test]
async fn preconditions_hold_or_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let key = Key::parse("k").unwrap();
    let refused = |if_: Precondition| {
        let (store, key) = (&store, &key);
        async move {
            let sealed = store_bytes(store, b"other").await;
            let error = store.put_object(key, sealed, if_).await.expect_err("the precondition was ignored");
            assert!(matches!(error, Error::PreconditionFailed { .. }), "{error}");
        }
    };
    refused(Precondition::IfMatchAny).await;
    refused(Precondition::IfMatch(vec![[0; 32]])).await;
    assert_eq!(files_below(&dir.path().join("blobs")).len(), 0);
    let hash = {
        let sealed = store_bytes(&store, b"one").await;
        store.put_object(&key, sealed, Precondition::IfNoneMatchAny).await.unwrap().record.blake3
    };
    refused(Precondition::IfNoneMatchAny).await;
    let sealed = store_bytes(&store, b"two").await;
    store.put_object(&key, sealed, Precondition::IfMatch(vec![[1; 32], hash])).await.unwrap();
    assert_eq!(files_below(&dir.path().join("blobs")).len(), 1);

    let current = store.object(&key).await.unwrap().unwrap();
    let second = current.modified_ms.div_euclid(1000);
    refused(Precondition::IfNoneMatch(vec![[0; 32], current.blake3])).await;
    refused(Precondition::IfUnmodifiedSince(second - 1)).await;
    refused(Precondition::All(vec![Precondition::IfMatchAny, Precondition::IfUnmodifiedSince(second - 1)])).await;
    let both = vec![Precondition::IfUnmodifiedSince(second), Precondition::IfNoneMatch(vec![hash])];
    let sealed = store_bytes(&store, b"three").await;
    let third = store.put_object(&key, sealed, Precondition::All(both)).await.unwrap().record;
    assert!(third.modified_ms.div_euclid(1000) > second, "two versions never share a second: {third:?}");
    store.delete_object(&key, Precondition::IfUnmodifiedSince(second)).await.expect_err("modified since");
    assert!(store.delete_object(&key, Precondition::IfMatch(vec![third.blake3])).await.unwrap());
    assert!(!store.delete_object(&key, Precondition::IfMatchAny).await.unwrap(), "what is not there has no condition");
}

#[tokio::test]
async fn listing_is_by_prefix_in_byte_order_and_pages() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let mut keys = ["a", "a/1", "a/10", "a/2", "a%", "a_", "b", "é", "a/\u{10ffff}"].map(str::to_owned).to_vec();
    for key in &keys {
        put(&store, &Key::parse(key).unwrap(), b"x").await;
    }
    keys.sort();
    let list = async |prefix: &str, after: Option<&str>, limit| -> Vec<String> {
        let records = store.list_objects(prefix, after, limit).await.unwrap();
        records.into_iter().map(|r| r.key.into()).collect()
    };
    assert_eq!(list("", None, 100).await, keys);
    assert_eq!(list("a/", None, 100).await, ["a/1", "a/10", "a/2", "a/\u{10ffff}"]);
    assert_eq!(list("a/", Some("a/1"), 2).await, ["a/10", "a/2"]);
    assert_eq!(list("a/", Some("a"), 1).await, ["a/1"]);
    assert_eq!(list("a/", Some("b"), 10).await, [""; 0]);
    assert_eq!(list("a_", None, 10).await, ["a_"], "a wildcard of LIKE is an ordinary character");
}

#[tokio::test]
async fn dropped_and_aborted_writers_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let mut dropped = store.create(BlobMeta { length_hint: Some(8_000_000), ..Default::default() }).await.unwrap();
    dropped.write(Bytes::from(pattern(4_000_000))).await.unwrap();
    let aborted = store.create(BlobMeta::default()).await.unwrap();
    let sealed = store_bytes(&store, b"never committed").await;
    assert_eq!(files_below(&dir.path().join("partial")).len(), 2);
    assert_eq!(files_below(&dir.path().join("blobs")).len(), 1);
    drop((dropped, sealed));
    aborted.abort().await;
    store.close().await.unwrap();
    assert_eq!(files_below(&dir.path().join("partial")), [] as [std::path::PathBuf; 0]);
    assert_eq!(files_below(&dir.path().join("blobs")), [] as [std::path::PathBuf; 0]);
}

#[tokio::test]
async fn a_write_given_up_half_way_ends_the_writer() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    // More than the budget of all buffers: the write must wait for the disk, and is dropped there.
    let mut writer = store.create(BlobMeta::default()).await.unwrap();
    let given_up = {
        let write = writer.write(Bytes::from(pattern(2 * limits::WRITE_BUDGET_BYTES)));
        std::pin::pin!(write).poll(&mut Context::from_waker(Waker::noop())).is_pending()
    };
    assert!(given_up);
    let error = writer.write(Bytes::from_static(b"behind a gap")).await.unwrap_err().to_string();
    assert!(error.contains("failed or was cancelled"), "{error}");
    assert!(writer.seal().await.is_err(), "a blob with a gap was sealed");
    store.close().await.unwrap();
    assert_eq!(files_below(&dir.path().join("partial")), [] as [std::path::PathBuf; 0]);
}

#[tokio::test]
async fn a_failed_commit_removes_its_blobs_and_a_successful_one_keeps_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let sealed = vec![store_bytes(&store, b"a").await, store_bytes(&store, b"b").await];
    let failed = store.commit(sealed, |_| Err::<(), _>(Error::Rejected("no".into()))).await;
    assert!(matches!(failed, Err(Error::Rejected(_))));
    assert_eq!(files_below(&dir.path().join("blobs")).len(), 0);

    let sealed = vec![store_bytes(&store, b"a").await, store_bytes(&store, b"b").await];
    let ids: Vec<BlobId> = sealed.iter().map(|blob| blob.id).collect();
    let rows: i64 =
        store.commit(sealed, |tx| Ok(tx.query_row("SELECT count(*) FROM blobs", [], |row| row.get(0))?)).await.unwrap();
    assert_eq!(rows, 2, "the closure sees the blobs' rows");
    store.remove(move |_| Ok(((), vec![ids[0]]))).await.unwrap();
    assert_eq!(files_below(&dir.path().join("blobs")).len(), 1);
}

#[tokio::test]
async fn a_journaled_partial_goes_on_after_a_restart() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let data = pattern(2_500_000);
        let id = BlobId::new();
        let meta = BlobMeta { key: Some("film".into()), length_hint: Some(2_500_000), ..Default::default() };
        let store = open(dir.path(), engine).await;
        let mut writer = store.create_journaled(id, meta, b"start".to_vec()).await.unwrap();
        writer.write(Bytes::copy_from_slice(&data[..1_000_003])).await.unwrap();
        assert_eq!(writer.checkpoint(b"one".to_vec()).await.unwrap(), 1_000_003);
        writer.write(Bytes::copy_from_slice(&data[1_000_003..1_700_000])).await.unwrap();
        assert_eq!(writer.checkpoint(b"two".to_vec()).await.unwrap(), 1_700_000);
        writer.write(Bytes::copy_from_slice(&data[1_700_000..2_000_000])).await.unwrap();
        drop(writer);
        store.close().await.unwrap();

        let store = open(dir.path(), engine).await;
        assert_eq!(store.journaled_partials().await.unwrap(), [id]);
        let (mut writer, note) = store.resume(id).await.unwrap().expect("the partial survived");
        assert_eq!((writer.len(), &note[..]), (1_700_000, &b"two"[..]));
        writer.write(Bytes::copy_from_slice(&data[1_700_000..])).await.unwrap();
        let sealed = writer.seal().await.unwrap();
        assert_eq!(sealed.blake3, *blake3::hash(&data).as_bytes());
        store.put_object(&Key::parse("film").unwrap(), sealed, Precondition::None).await.unwrap();
        assert_eq!(store.journaled_partials().await.unwrap(), []);
        let reader = store.open_blob(id).await.unwrap();
        assert!(collect(reader.stream(0..2_500_000)).await == data);
        assert!(store.resume(id).await.unwrap().is_none(), "a committed blob is not resumed");
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_sealed_journaled_blob_without_a_commit_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let id = BlobId::new();
    let data = pattern(300_000);
    let store = open(dir.path(), EngineChoice::Auto).await;
    let mut writer = store.create_journaled(id, BlobMeta::default(), vec![]).await.unwrap();
    writer.write(Bytes::from(data.clone())).await.unwrap();
    writer.checkpoint(b"all".to_vec()).await.unwrap();
    let sealed = writer.seal().await.unwrap();
    // As a crash would: no destructor runs, the lock goes with the process.
    std::mem::forget(sealed);
    store.close().await.unwrap();

    let store = open(dir.path(), EngineChoice::Auto).await;
    let (writer, note) = store.resume(id).await.unwrap().unwrap();
    assert_eq!((writer.len(), &note[..]), (300_000, &b"all"[..]));
    let sealed = writer.seal().await.unwrap();
    assert_eq!(sealed.blake3, *blake3::hash(&data).as_bytes());
    drop(sealed);
    store.discard_partial(id).await.unwrap();
    store.discard_partial(id).await.unwrap();
    store.close().await.unwrap();
    assert_eq!(files_below(&dir.path().join("partial")).len(), 0);
    assert_eq!(files_below(&dir.path().join("blobs")).len(), 0);
}

#[tokio::test]
async fn a_damaged_partial_is_not_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let id = BlobId::new();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let mut writer = store.create_journaled(id, BlobMeta::default(), vec![]).await.unwrap();
    writer.write(Bytes::from(pattern(600_000))).await.unwrap();
    writer.checkpoint(vec![]).await.unwrap();
    drop(writer);
    common::flip_byte(&dir.path().join("partial").join(id.to_string()), 599_999);
    let error = store.resume(id).await.err().expect("damage went unnoticed");
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    store.discard_partial(id).await.unwrap();
    assert!(store.resume(id).await.unwrap().is_none());
}

#[tokio::test]
async fn a_closed_store_refuses_and_its_directory_is_free_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let options = StoreOptions::new(dir.path());
    assert!(matches!(Store::open(options.clone()).await, Err(Error::Locked { pid: Some(_), .. })));
    let clone = store.clone();
    store.close().await.unwrap();
    assert!(matches!(clone.create(BlobMeta::default()).await, Err(Error::Closed)));
    assert!(matches!(clone.object(&Key::parse("k").unwrap()).await, Err(Error::Closed)));
    Store::open(options).await.unwrap().close().await.unwrap();
}

#[tokio::test]
async fn a_sealed_blob_that_outlives_its_store_is_swept_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let kept = put(&store, &Key::parse("kept").unwrap(), b"kept").await.record;
    let sealed = store_bytes(&store, b"never committed").await;
    store.close().await.unwrap();
    drop(sealed);
    assert_eq!(files_below(&dir.path().join("blobs")).len(), 2);

    // The sweep runs in the background; closing waits for it.
    open(dir.path(), EngineChoice::Auto).await.close().await.unwrap();
    assert_eq!(files_below(&dir.path().join("blobs")).len(), 1);
    let store = open(dir.path(), EngineChoice::Auto).await;
    assert_eq!(store.open_blob(kept.blob).await.unwrap().read(0, 10).await.unwrap(), "kept");
}

/// Makes the last stop look like a crash, so that the next start sweeps.
fn forget_the_close(dir: &Path) {
    let lock = std::fs::read_to_string(dir.join("LOCK")).unwrap();
    let unclean = lock.replace("closed", "1");
    assert_ne!(lock, unclean, "the store was not closed");
    std::fs::write(dir.join("LOCK"), unclean).unwrap();
}

#[tokio::test]
async fn blobs_are_kept_when_the_catalog_is_not_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let (catalog, backup) = (dir.path().join("catalog.sqlite"), dir.path().join("backup"));
    let blobs = || files_below(&dir.path().join("blobs")).len();
    let store = open(dir.path(), EngineChoice::Auto).await;
    put(&store, &Key::parse("first").unwrap(), b"1").await;
    store.close().await.unwrap();
    std::fs::copy(&catalog, &backup).unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    put(&store, &Key::parse("second").unwrap(), b"2").await;
    store.close().await.unwrap();
    assert_eq!(blobs(), 2);

    // An older catalog, then none at all: what it does not name may have been acknowledged.
    for restore in [true, false] {
        std::fs::remove_file(&catalog).unwrap();
        if restore {
            std::fs::copy(&backup, &catalog).unwrap();
        }
        for _ in 0..2 {
            forget_the_close(dir.path());
            open(dir.path(), EngineChoice::Auto).await.close().await.unwrap();
            assert_eq!(blobs(), 2, "restored: {restore}");
        }
    }

    // What a later run leaves is swept again.
    let store = open(dir.path(), EngineChoice::Auto).await;
    let sealed = store_bytes(&store, b"never committed").await;
    store.close().await.unwrap();
    drop(sealed);
    assert_eq!(blobs(), 3);
    open(dir.path(), EngineChoice::Auto).await.close().await.unwrap();
    assert_eq!(blobs(), 2);
}

#[tokio::test]
async fn limits_are_named_in_errors() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let meta = BlobMeta { length_hint: Some(limits::BLOB_BYTES_MAX + 1), ..Default::default() };
    assert!(matches!(store.create(meta).await, Err(Error::TooLarge { .. })));
    let record = put(&store, &Key::parse("k").unwrap(), b"x").await.record;
    let reader = store.open_blob(record.blob).await.unwrap();
    let error = reader.read(0, limits::READ_MAX + 1).await.unwrap_err().to_string();
    assert!(error.contains("1048577") && error.contains("1048576"), "{error}");
}

#[tokio::test]
async fn a_folder_shows_what_lies_directly_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let below: Vec<String> = (0..40).map(|n| format!("f/deep/{n:02}/x")).collect();
    for key in
        ["e", "f", "f/", "f/a", "f/a/1", "f/a/2", "f/a.mp4", "f/a0", "f//x", "f/é", "f/\u{10ffff}/y", "f0", "g/z"]
    {
        put(&store, &Key::parse(key).unwrap(), b"x").await;
    }
    for key in &below {
        put(&store, &Key::parse(key).unwrap(), b"x").await;
    }
    let listed = async |prefix: &str, limit: usize| {
        let (mut names, mut from) = (Vec::new(), Some(prefix.to_string()));
        while let Some(at) = from {
            let (entries, next) = store.list_folder(prefix, &at, limit).await.unwrap();
            assert!(entries.len() <= limit);
            from = next;
            names.extend(entries.into_iter().map(|entry| match entry {
                Entry::Folder(folder) => folder,
                Entry::Object(object) => object.key.into(),
            }));
        }
        names
    };
    let expected = ["f//", "f/a", "f/a.mp4", "f/a/", "f/a0", "f/deep/", "f/é", "f/\u{10ffff}/"];
    for limit in [1, 2, 3, 100] {
        assert_eq!(listed("f/", limit).await, expected, "{limit} at a time");
        assert_eq!(listed("", limit).await, ["e", "f", "f/", "f0", "g/"], "{limit} at a time");
        assert_eq!(listed("f/deep/", limit).await.len(), below.len());
        assert!(listed("h/", limit).await.is_empty());
    }
}
