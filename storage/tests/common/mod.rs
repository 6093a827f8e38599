//! What the storage tests share.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod file_system;
pub mod load;
pub mod oracle;

use std::fs::{File, OpenOptions};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::pin;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use reelring_storage::{
    BlobMeta, EngineChoice, Key, Precondition, PutOutcome, Result, SealedBlob, Store, StoreOptions,
};

pub async fn open(dir: &Path, engine: EngineChoice) -> Store {
    // What these tests store is to go both ways, through the page cache and past it.
    Store::open(StoreOptions { engine, direct_from: 500_000, ..StoreOptions::new(dir) }).await.unwrap()
}

/// The engines that this kernel allows; asked of the kernel itself, so that a broken probe cannot
/// hide a broken engine.
pub fn engines() -> Vec<EngineChoice> {
    let mut parameters = [0u32; 30];
    // SAFETY: the kernel writes at most the 120 bytes of `io_uring_params`.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    if fd < 0 {
        return vec![EngineChoice::Threads];
    }
    // SAFETY: the descriptor was made by the call above, for us alone.
    drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    vec![EngineChoice::Uring, EngineChoice::Threads]
}

/// Bytes of which no two aligned stretches are alike.
pub fn pattern(len: usize) -> Vec<u8> {
    let mut data = Vec::with_capacity(len + 8);
    let mut state = len as u64 + 1;
    while data.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.truncate(len);
    data
}

pub async fn store_bytes(store: &Store, data: &[u8]) -> SealedBlob {
    let mut writer = store.create(BlobMeta::default()).await.unwrap();
    writer.write(Bytes::copy_from_slice(data)).await.unwrap();
    writer.seal().await.unwrap()
}

/// As an upload would: announced length, chunks of odd sizes.
pub async fn put(store: &Store, key: &Key, data: &[u8]) -> PutOutcome {
    let meta = BlobMeta {
        key: Some(key.to_string()),
        content_type: Some("video/mp4".into()),
        length_hint: Some(data.len() as u64),
    };
    let mut writer = store.create(meta).await.unwrap();
    for chunk in data.chunks(77_777) {
        writer.ready().await.unwrap();
        writer.write(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    assert_eq!(writer.len(), data.len() as u64);
    let sealed = writer.seal().await.unwrap();
    store.put_object(key, sealed, Precondition::None).await.unwrap()
}

pub async fn collect(stream: impl Stream<Item = Result<Bytes>>) -> Vec<u8> {
    let mut stream = pin!(stream);
    let mut data = Vec::new();
    while let Some(chunk) = stream.next().await {
        data.extend_from_slice(&chunk.unwrap());
    }
    data
}

pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}

pub fn flip_byte(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// Writes back and drops the cached pages of every file below `dir`.
pub fn evict_from_page_cache(dir: &Path) {
    for path in files_below(dir) {
        let file = File::open(path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}
