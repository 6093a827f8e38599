//! Where io_uring is refused, the store goes on with threads and says why.
//!
//! A seccomp filter cannot be taken back, so the refused store lives in a child: this test binary,
//! run again.

mod common;

use std::collections::BTreeMap;
use std::process::Command;

use common::{collect, pattern, put};
use reelring_storage::{EngineChoice, Error, Key, Store, StoreOptions};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

const CHILD: &str = "REELRING_REFUSED_CHILD";

#[test]
fn without_io_uring_the_store_uses_threads_and_gives_the_reason() {
    if std::env::var_os(CHILD).is_some() {
        refuse_io_uring();
        return tokio::runtime::Runtime::new().unwrap().block_on(store_under_the_filter());
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "without_io_uring_the_store_uses_threads_and_gives_the_reason"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout.contains("engine=threads"), "{stdout}");
    assert!(stdout.contains("reason=io_uring_setup: Operation not permitted"), "{stdout}");
}

#[tokio::test]
async fn where_the_kernel_allows_io_uring_the_store_uses_it() {
    let dir = tempfile::tempdir().unwrap();
    let expected = common::engines()[0].to_string();
    for (choice, name) in [(EngineChoice::Auto, &*expected), (EngineChoice::Threads, "threads")] {
        let store = common::open(dir.path(), choice).await;
        assert_eq!(store.engine().name, name, "{choice}: {}", store.engine().reason);
        store.close().await.unwrap();
    }
}

/// For this thread and every thread it starts, as a container's profile would.
fn refuse_io_uring() {
    let filter = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_io_uring_setup, vec![])]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

async fn store_under_the_filter() {
    let dir = tempfile::tempdir().unwrap();
    let options = |engine| StoreOptions { engine, ..StoreOptions::new(dir.path()) };
    let refused = Store::open(options(EngineChoice::Uring)).await;
    assert!(matches!(refused, Err(Error::EngineRefused { .. })), "uring was asked for and is not there");
    let store = Store::open(options(EngineChoice::Auto)).await.unwrap();
    println!("engine={} reason={}", store.engine().name, store.engine().reason);
    let data = pattern(2_000_000);
    let record = put(&store, &Key::parse("k").unwrap(), &data).await.record;
    let reader = store.open_blob(record.blob).await.unwrap();
    assert!(collect(reader.stream(0..2_000_000)).await == data);
    store.close().await.unwrap();
}
