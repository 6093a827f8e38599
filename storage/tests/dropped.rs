//! Callers that give up in mid-operation, thousands of them, and more operations at once than the ring holds.
//!
//! A dropped future leaves its operation to the engine (`bridge.rs`). Afterwards no permit, buffer, map or descriptor
//! may be missing, nothing may lie about, and the store serves as before.

mod common;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::load::mixed;
use common::{collect, engines, evict_from_page_cache, files_below, pattern, put};
use reelring_storage::{
    BlobId, BlobMeta, Bridge, EngineChoice, How, Key, Pool, Precondition, Result, Store, StoreStats,
};

/// Descriptors are those of the process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// For each engine, so that both make ten thousand.
const DROPS: usize = 5_000;
const CALLERS: usize = 64;
const FILM_BYTES: usize = 3_000_000;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

async fn eventually(store: &Store, what: &str, holds: impl Fn(&StoreStats) -> bool) {
    let started = Instant::now();
    while !holds(&store.stats()) {
        assert!(started.elapsed() < Duration::from_secs(30), "{what}: {:?}", store.stats());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One of the things a caller does with a store.
async fn call(store: &Store, films: &[BlobId], number: u64) -> Result<()> {
    let chance = mixed(number);
    let film = films[chance as usize % films.len()];
    match chance >> 8 & 7 {
        // A read of whole streams, of a few bytes, of the footer alone.
        0 | 1 => {
            let reader = store.open_blob(film).await?;
            let data = collect(reader.stream(chance >> 16 & 0xf_ffff..u64::MAX)).await;
            assert!(data.len() < FILM_BYTES + 1);
        }
        2 => drop(store.open_blob(film).await?.read(chance >> 16 & 0xf_ffff, 300_000).await?),
        3 => drop(store.open_blob(film).await?),
        // Writes: one or several batches, announced or not, with and without a journal.
        4 | 5 => {
            let data = pattern((chance >> 16 & 0x7_ffff) as usize);
            let length_hint = (chance & 1 == 0).then_some(data.len() as u64);
            let mut writer = store.create(BlobMeta { length_hint, ..Default::default() }).await?;
            writer.ready().await?;
            writer.write(Bytes::from(data)).await?;
            let key = Key::parse(&format!("k{}", number % 100)).unwrap();
            store.put_object(&key, writer.seal().await?, Precondition::None).await?;
        }
        6 => {
            let mut writer = store.create_journaled(BlobId::new(), BlobMeta::default(), vec![]).await?;
            for _ in 0..3 {
                writer.write(Bytes::from(pattern(300_000))).await?;
                writer.checkpoint(vec![]).await?;
            }
            writer.abort().await;
        }
        _ => {
            let key = Key::parse(&format!("k{}", number % 100)).unwrap();
            store.delete_object(&key, Precondition::None).await?;
        }
    }
    Ok(())
}

#[test]
fn ten_thousand_dropped_calls_leak_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // tokio keeps a pair of sockets for signals once it has run.
    drop(tokio::runtime::Runtime::new().unwrap());
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let before = descriptors();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(drop_calls(dir.path(), engine));
        drop(runtime);
        assert_eq!(descriptors(), before, "{engine}: descriptors are left after the close");
    }
}

async fn drop_calls(dir: &Path, engine: EngineChoice) {
    let store = common::open(dir, engine).await;
    let mut films = Vec::new();
    for film in 0..8 {
        let key = Key::parse(&format!("film{film}")).unwrap();
        films.push(put(&store, &key, &pattern(FILM_BYTES)).await.record.blob);
    }
    let films: Arc<[BlobId]> = films.into();
    let idle = descriptors();
    let (mut dropped, mut number) = (0, 0);
    let started = Instant::now();
    while dropped < DROPS {
        assert!(started.elapsed() < Duration::from_secs(100), "only {dropped} calls were dropped: something hangs");
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..CALLERS {
            number += 1;
            let (store, films) = (store.clone(), Arc::clone(&films));
            calls.spawn(async move {
                let patience = Duration::from_micros(mixed(number ^ 77) % 2_000);
                let call = tokio::time::timeout(patience, call(&store, &films, number));
                call.await.map(|done| done.unwrap()).is_err()
            });
        }
        dropped += calls.join_all().await.into_iter().filter(|dropped| *dropped).count();
        if number.is_multiple_of(CALLERS as u64 * 16) {
            // Or every read would find its pages.
            let evicted = dir.join("blobs");
            tokio::task::spawn_blocking(move || try_evict(&evicted)).await.unwrap();
        }
    }
    eventually(&store, "everything is given back", |stats| {
        (stats.inflight, stats.queue_depth, stats.buffer_bytes, stats.mapped_bytes) == (0, 0, 0, 0)
    })
    .await;

    for id in store.journaled_partials().await.unwrap() {
        store.discard_partial(id).await.unwrap();
    }
    // The store serves, and what it keeps open is what it says that it keeps.
    for film in films.iter() {
        let reader = store.open_blob(*film).await.unwrap();
        assert!(collect(reader.stream(0..u64::MAX)).await == pattern(FILM_BYTES));
    }
    // Files of dropped writers are closed behind their callers' backs.
    let kept = |stats: &StoreStats| {
        (stats.open_blobs + stats.open_direct) as usize + reelring_storage::limits::OPEN_DIRECTORIES_MAX
    };
    eventually(&store, "descriptors are closed", |stats| descriptors() <= idle + kept(stats)).await;
    let stored = store.list_objects("", None, 10_000).await.unwrap().len();
    store.close().await.unwrap();
    assert_eq!((files_below(&dir.join("partial")).len(), files_below(&dir.join("blobs")).len()), (0, stored));
    println!("{engine}: {dropped} of {number} calls were dropped in {:?}", started.elapsed());
}

/// Files come and go meanwhile.
fn try_evict(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            try_evict(&path);
        } else if let Ok(file) = std::fs::File::open(path) {
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        }
    }
}

/// The ring has 256 entries and 1,024 completions.
#[test]
fn more_operations_than_the_ring_holds_are_all_answered() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    const EACH: usize = 1_500;
    const BLOCK: usize = 64 * 1024;
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, pattern(64 * BLOCK)).unwrap();
        evict_from_page_cache(dir.path());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let answered = runtime.block_on(async {
            let bridge = Bridge::start(engine).unwrap();
            let read = bridge.open(&path, How::Read).await.unwrap();
            let written = bridge.open(&dir.path().join("written"), How::CreateNew).await.unwrap();
            // No budget stands in the way: the lanes alone hold back.
            let pool = Pool::new(3 * EACH * BLOCK);
            let mut calls = tokio::task::JoinSet::new();
            for number in 0..EACH {
                let (bridge, read, written, pool) = (bridge.clone(), read.clone(), written.clone(), pool.clone());
                let at = (number % 64 * BLOCK) as u64;
                calls.spawn({
                    let (bridge, pool) = (bridge.clone(), pool.clone());
                    async move { bridge.read(&read, pool.take(BLOCK).await, at, BLOCK).await.map(drop) }
                });
                calls.spawn({
                    let (bridge, written) = (bridge.clone(), written.clone());
                    async move {
                        let mut buffer = pool.take(BLOCK).await;
                        buffer.fill(&[number as u8; 4096]);
                        bridge.write(&written, buffer, at).await?.await
                    }
                });
                calls.spawn(async move { bridge.sync(&written).await });
            }
            let all = tokio::time::timeout(Duration::from_secs(90), calls.join_all());
            let answers = all.await.expect("an operation was never answered");
            assert_eq!((bridge.inflight(), pool.in_use()), (0, 0));
            drop((read, written));
            bridge.close().await;
            answers.into_iter().filter(Result::is_ok).count()
        });
        assert_eq!(answered, 3 * EACH, "{engine}");
    }
}
