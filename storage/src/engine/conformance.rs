//! What every engine must do, run over each of them.

use std::future::Future;
use std::os::fd::FromRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::bridge::{Bridge, How, Lane, NamedFile, Op, VolumeSync};
use crate::buffer::{Buffer, Pool};

use crate::engine::{EXT4, EngineChoice, XFS, sim as simulated};
use crate::error::Error;
use crate::limits::{READS_IN_FLIGHT_MAX, RING_COMPLETIONS};

/// One test for each engine.
macro_rules! conformance {
    ($($name:ident),* $(,)?) => {
        mod uring {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if super::kernel_allows_io_uring() {
                    super::bounded(super::$name(super::Kind::Uring)).await
                } else {
                    println!("skipped: io_uring_setup is refused here");
                }
            })*
        }
        mod threads {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::bounded(super::$name(super::Kind::Threads)).await })*
        }
        mod sim {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::bounded(super::$name(super::Kind::Sim)).await })*
        }
    };
}

conformance!(
    bytes_come_back_from_where_they_were_put,
    a_read_stops_at_the_end_of_the_file,
    a_direct_read_is_of_whole_pages_and_stops_at_the_end,
    a_write_cut_short_is_an_error_not_a_success,
    everything_is_synced_or_the_wish_declined,
    names_are_made_moved_and_removed,
    errors_name_the_operation_and_the_file,
    dropped_callers_leak_nothing,
    dropped_opens_leak_no_descriptor,
    more_in_flight_than_the_ring_holds,
    full_lanes_leave_the_others_alone,
    closing_drains_and_then_refuses,
    dropping_the_bridge_finishes_what_was_sent,
    no_wake_up_is_lost,
    a_panic_in_the_engine_ends_the_process,
);

/// Asked of the kernel itself, so that a broken probe cannot hide a broken engine.
fn kernel_allows_io_uring() -> bool {
    let mut parameters = [0u32; 30];
    // SAFETY: the kernel writes at most the 120 bytes of `io_uring_params`.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    if fd < 0 {
        return false;
    }
    // SAFETY: the descriptor was made by the call above, for us alone.
    drop(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd as i32) });
    true
}

/// An engine to be tested.
#[derive(Clone, Copy)]
enum Kind {
    Uring,
    Threads,
    Sim,
}

impl Kind {
    fn start(self) -> Bridge {
        let started = match self {
            Kind::Uring => Bridge::start(EngineChoice::Uring),
            Kind::Threads => Bridge::start(EngineChoice::Threads),
            Kind::Sim => Bridge::over(&simulated::Threaded { seed: 1 }, simulated::info()),
        };
        started.unwrap()
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Uring => "uring",
            Kind::Threads => "threads",
            Kind::Sim => "sim",
        }
    }
}

/// A hang is a failure, not an endless run.
async fn bounded(test: impl Future<Output = ()>) {
    tokio::time::timeout(Duration::from_secs(60), test).await.expect("the engine hangs");
}

struct Bench {
    dir: TempDir,
    bridge: Bridge,
    pool: Pool,
}

impl Bench {
    fn new(engine: Kind) -> Bench {
        let bridge = engine.start();
        Bench { dir: tempfile::tempdir().unwrap(), bridge, pool: Pool::new(64 << 20) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn create(&self, name: &str) -> Arc<NamedFile> {
        self.bridge.open(&self.path(name), How::CreateNew).await.unwrap()
    }

    async fn buffer(&self, data: &[u8]) -> Buffer {
        let mut buffer = self.pool.take(data.len()).await;
        assert_eq!(buffer.fill(data), data.len());
        buffer
    }

    async fn write(&self, file: &Arc<NamedFile>, data: &[u8], offset: u64) -> Result<(), Error> {
        let buffer = self.buffer(data).await;
        self.bridge.write(file, buffer, offset).await?.await
    }

    async fn read(&self, file: &Arc<NamedFile>, offset: u64, len: usize) -> Vec<u8> {
        let buffer = self.pool.take(len).await;
        self.bridge.read(file, buffer, offset, len).await.unwrap().as_slice().to_vec()
    }

    /// Descriptors of this process that are open below the directory.
    fn descriptors(&self) -> usize {
        let links = std::fs::read_dir("/proc/self/fd").unwrap();
        let targets = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
        targets.filter(|target| target.starts_with(self.dir.path())).count()
    }

    /// Waits until the engine holds nothing any more.
    async fn quiet(&self) {
        while self.bridge.inflight() > 0 || self.pool.in_use() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Four bytes for each position, no two stretches alike.
fn numbered(bytes: usize) -> Vec<u8> {
    (0..bytes as u32 / 4).flat_map(u32::to_le_bytes).collect()
}

async fn bytes_come_back_from_where_they_were_put(engine: Kind) {
    let bench = Bench::new(engine);
    let file = bench.create("f").await;
    let data = numbered(1 << 20);
    // Out of order, at odd offsets, with a hole that stays zero.
    for (start, end) in [(500_001, 1 << 20), (0, 3), (3, 4_097), (9_000, 500_001)] {
        bench.write(&file, &data[start..end], start as u64).await.unwrap();
    }
    bench.bridge.sync(&file).await.unwrap();
    let mut expected = data.clone();
    expected[4_097..9_000].fill(0);
    assert!(bench.read(&file, 0, 1 << 20).await == expected);
    assert!(bench.read(&file, 7_777, 10_000).await == expected[7_777..17_777]);
    assert!(std::fs::read(bench.path("f")).unwrap() == expected);
    bench.bridge.truncate(&file, 10).await.unwrap();
    assert_eq!(std::fs::metadata(bench.path("f")).unwrap().len(), 10);
    bench.bridge.allocate(&file, 1 << 20).await.unwrap();
    assert_eq!(std::fs::metadata(bench.path("f")).unwrap().len(), 10, "allocating keeps the length");
}

async fn a_read_stops_at_the_end_of_the_file(engine: Kind) {
    let bench = Bench::new(engine);
    let file = bench.create("f").await;
    bench.write(&file, &numbered(10_000), 0).await.unwrap();
    assert_eq!(bench.read(&file, 9_990, 4096).await, numbered(10_000)[9_990..]);
    assert!(bench.read(&file, 10_000, 4096).await.is_empty());
    assert!(bench.read(&file, 1 << 40, 1).await.is_empty());
}

/// Offset, length and memory are whole pages; only the file need not be. (The pool's memory always is.)
async fn a_direct_read_is_of_whole_pages_and_stops_at_the_end(engine: Kind) {
    let bench = Bench::new(engine);
    let file = bench.create("f").await;
    let data = numbered(10_000);
    bench.write(&file, &data, 0).await.unwrap();
    bench.bridge.sync(&file).await.unwrap();
    let direct = match bench.bridge.open(&bench.path("f"), How::ReadDirect).await {
        Ok(direct) => direct,
        Err(error) if !matches!(engine, Kind::Sim) && crate::blob::is_refusal(&error) => {
            return println!("skipped: {error}");
        }
        Err(error) => panic!("{error}"),
    };
    for (offset, len, expected) in [
        (0, 8192, &data[..8192]),
        (8192, 4096, &data[8192..]),
        (4096, 65_536, &data[4096..]),
        (12_288, 4096, &[]),
        (1 << 40, 4096, &[]),
    ] {
        assert!(bench.read(&direct, offset, len).await == expected, "{len} bytes at {offset}");
    }
    // What other file systems do with it is their own affair: some read it by way of the page cache.
    let strict = rustix::fs::fstatfs(&file.file).is_ok_and(|stat| matches!(stat.f_type as u64, EXT4 | XFS));
    for (offset, len) in [(100, 4096), (0, 100), (4096, 4095), (100, 100)] {
        let buffer = bench.pool.take(len).await;
        match bench.bridge.read(&direct, buffer, offset, len).await {
            Err(Error::Io { op: "read", source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {}
            Ok(read) if !strict && !matches!(engine, Kind::Sim) => {
                assert!(read.as_slice() == &data[offset as usize..][..len]);
            }
            other => panic!("{len} bytes at {offset}: {:?}", other.map(|read| read.len())),
        }
    }
    // It is no worse for it.
    assert!(bench.read(&direct, 4096, 4096).await == data[4096..8192]);
    assert!(bench.read(&file, 100, 100).await == data[100..200], "the other descriptor reads what it likes");
    drop((direct, file));
    bench.quiet().await;
    assert_eq!(bench.descriptors(), 0);
}

/// The kernel writes up to the limit of the file's size, then refuses the rest: the first call is a
/// short one, and only going on finds the error. In a process of its own, which the limit ends with.
async fn a_write_cut_short_is_an_error_not_a_success(engine: Kind) {
    let child = child(engine, "a_write_cut_short_is_an_error_not_a_success");
    if let Some(mut child) = child {
        let output = child.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    // SAFETY: ignoring a signal and lowering a limit touch no memory of ours.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        let limit = libc::rlimit { rlim_cur: 10_000, rlim_max: 10_000 };
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
    let bench = Bench::new(engine);
    let file = bench.create("f").await;
    let error = bench.write(&file, &numbered(16_384), 0).await.unwrap_err();
    assert!(
        matches!(&error, Error::Io { op: "write", source, .. } if source.raw_os_error() == Some(libc::EFBIG)),
        "{error}"
    );
    assert_eq!(std::fs::read(bench.path("f")).unwrap(), numbered(10_000), "the first call was not cut short");
}

/// Whether it is declined depends on the file system and on what other programs write; only then is there no answer.
async fn everything_is_synced_or_the_wish_declined(engine: Kind) {
    let bench = Bench::new(engine);
    let directory = bench.bridge.open(bench.dir.path(), How::Directory).await.unwrap();
    let file = bench.create("f").await;
    bench.write(&file, &numbered(4096), 0).await.unwrap();
    let synced = bench.bridge.sync_volume(&directory).await.unwrap();
    assert!(matches!(engine, Kind::Uring | Kind::Threads) || synced == VolumeSync::Done);
    // Now and then the engine is done before its caller has looked.
    let left = (0..100).any(|_| start_and_drop(bench.bridge.sync_volume(&directory)));
    assert!(left, "no caller went away before his answer");
    assert_eq!(bench.read(&file, 0, 4096).await, numbered(4096));
    drop((directory, file));
    bench.quiet().await;
    assert_eq!(bench.descriptors(), 0);
    // What has no file system to speak of is not vouched for.
    let (_reader, pipe) = std::io::pipe().unwrap();
    let file = std::os::fd::OwnedFd::from(pipe).into();
    let pipe = Arc::new(NamedFile { file, path: "a pipe".into(), claim: None });
    if !matches!(engine, Kind::Sim) {
        assert_eq!(bench.bridge.sync_volume(&pipe).await.unwrap(), VolumeSync::Unknown);
    }
}

async fn names_are_made_moved_and_removed(engine: Kind) {
    let bench = Bench::new(engine);
    let bridge = &bench.bridge;
    let directory = bench.path("d");
    bridge.make_directory(&directory).await.unwrap();
    bridge.make_directory(&directory).await.expect("a directory that is there is no error");
    let file = bench.create("f").await;
    bench.write(&file, b"once", 0).await.unwrap();
    bridge.rename(&bench.path("f"), &directory.join("g")).await.unwrap();
    let directory_file = bridge.open(&directory, How::Directory).await.unwrap();
    bridge.sync_directory(&directory_file).await.unwrap();
    assert_eq!(std::fs::read(directory.join("g")).unwrap(), b"once");
    assert!(!bench.path("f").exists());
    bridge.unlink(&directory.join("g")).await.unwrap();
    bridge.unlink(&directory.join("g")).await.expect("a name that is gone is no error");
    assert_eq!(bench.read(&file, 0, 10).await, b"once", "an open file outlives its name");
    bridge.close_file(Arc::into_inner(file).unwrap());
    drop(directory_file);
    bench.quiet().await;
    assert_eq!(bench.descriptors(), 0);
}

async fn errors_name_the_operation_and_the_file(engine: Kind) {
    let bench = Bench::new(engine);
    let missing = bench.path("missing");
    let named = |error: Error, op: &str, path: &Path| {
        let text = error.to_string();
        assert!(text.starts_with(&format!("could not {op} {}: ", path.display())), "{text}");
    };
    named(bench.bridge.open(&missing, How::Read).await.err().unwrap(), "open", &missing);
    named(bench.bridge.rename(&missing, &bench.path("x")).await.unwrap_err(), "rename", &missing);
    named(bench.bridge.unlink(bench.dir.path()).await.unwrap_err(), "unlink", bench.dir.path());
    let nested = bench.path("no/such");
    named(bench.bridge.make_directory(&nested).await.unwrap_err(), "make directory", &nested);
    let file = bench.create("f").await;
    let again = bench.bridge.open(&bench.path("f"), How::CreateNew).await.err().unwrap();
    named(again, "open", &bench.path("f"));
    drop(file);
    let read_only = bench.bridge.open(&bench.path("f"), How::Read).await.unwrap();
    named(bench.write(&read_only, b"x", 0).await.unwrap_err(), "write", &bench.path("f"));
    let directory = bench.bridge.open(bench.dir.path(), How::Directory).await.unwrap();
    let read = bench.bridge.read(&directory, bench.pool.take(10).await, 0, 10).await;
    named(read.err().unwrap(), "read", bench.dir.path());
    bench.quiet().await;
}

/// Polls once, so that the operation is on its way, then goes away.
fn start_and_drop<F: Future>(future: F) -> bool {
    let mut future = Box::pin(future);
    matches!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
}

async fn dropped_callers_leak_nothing(engine: Kind) {
    let bench = Bench::new(engine);
    let file = bench.create("f").await;
    bench.write(&file, &numbered(1 << 20), 0).await.unwrap();
    let mut given_up = 0;
    for round in 0..5_000_usize {
        let offset = (round * 4096 % (1 << 20)) as u64;
        let Some(buffer) = bench.pool.try_take(4096) else {
            tokio::task::yield_now().await;
            continue;
        };
        given_up += usize::from(match round % 3 {
            0 => start_and_drop(bench.bridge.read(&file, buffer, offset, 4096)),
            // The same bytes again: what was there stays true whenever the write happens.
            1 => {
                let mut buffer = buffer;
                buffer.fill(&numbered(1 << 20)[offset as usize..][..4096]);
                let (bridge, file) = (bench.bridge.clone(), Arc::clone(&file));
                start_and_drop(async move { bridge.write(&file, buffer, offset).await?.await })
            }
            _ => start_and_drop(bench.bridge.sync(&file)),
        });
    }
    assert!(given_up > 1_000, "only {given_up} callers left before their answer");
    bench.quiet().await;
    let file = Arc::into_inner(file).expect("the engine still holds the file");
    assert!(bench.read(&Arc::new(file), 0, 1 << 20).await == numbered(1 << 20));
    assert_eq!(bench.descriptors(), 0);
}

async fn dropped_opens_leak_no_descriptor(engine: Kind) {
    let bench = Bench::new(engine);
    drop(bench.create("f").await);
    for _ in 0..2_000 {
        start_and_drop(bench.bridge.open(&bench.path("f"), How::Read));
        tokio::task::yield_now().await;
    }
    bench.quiet().await;
    // The unwanted descriptors are closed after their slot was given back.
    let deadline = Instant::now() + Duration::from_secs(30);
    while bench.descriptors() > 0 {
        assert!(Instant::now() < deadline, "{} descriptors leaked", bench.descriptors());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn more_in_flight_than_the_ring_holds(engine: Kind) {
    let bench = Bench::new(engine);
    let file = bench.create("f").await;
    let data = Arc::new(numbered(1 << 20));
    bench.write(&file, &data, 0).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for round in 0..4 * RING_COMPLETIONS as usize {
        let (bridge, pool, file, data) =
            (bench.bridge.clone(), bench.pool.clone(), Arc::clone(&file), Arc::clone(&data));
        tasks.spawn(async move {
            let at = round * 5003 % ((1 << 20) - 4096);
            let buffer = bridge.read(&file, pool.take(4096).await, at as u64, 4096).await.unwrap();
            assert!(buffer.as_slice() == &data[at..at + 4096], "the read at {at} brought other bytes");
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    bench.quiet().await;
}

async fn full_lanes_leave_the_others_alone(engine: Kind) {
    let bench = Bench::new(engine);
    let file = bench.create("f").await;
    bench.write(&file, b"data", 0).await.unwrap();
    let syncs: Vec<_> = std::iter::from_fn(|| bench.bridge.try_slot(Lane::Sync)).collect();
    let names: Vec<_> = std::iter::from_fn(|| bench.bridge.try_slot(Lane::Names)).collect();
    let mut sync = Box::pin(bench.bridge.sync(&file));
    assert!(sync.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    bench.write(&file, b"more", 4).await.unwrap();
    assert_eq!(bench.read(&file, 0, 10).await, b"datamore");
    drop((syncs, names));
    sync.await.unwrap();
}

async fn closing_drains_and_then_refuses(engine: Kind) {
    let bench = Bench::new(engine);
    let file = bench.create("f").await;
    let data = numbered(1 << 20);
    let mut pending = Vec::new();
    for (at, piece) in data.chunks(64 * 1024).enumerate() {
        let buffer = bench.buffer(piece).await;
        pending.push(bench.bridge.write(&file, buffer, at as u64 * 64 * 1024).await.unwrap());
    }
    // One more than there are slots: it waits, and is refused rather than forgotten.
    let slots: Vec<_> = std::iter::from_fn(|| bench.bridge.try_slot(Lane::Read)).collect();
    assert_eq!(slots.len(), READS_IN_FLIGHT_MAX);
    let buffer = bench.pool.take(10).await;
    let mut waiting = Box::pin(bench.bridge.read(&file, buffer, 0, 10));
    assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let closing = tokio::spawn({
        let bridge = bench.bridge.clone();
        async move { bridge.close().await }
    });
    while bench.bridge.try_slot(Lane::Names).is_some() {
        tokio::task::yield_now().await;
    }
    drop(slots);
    assert!(matches!(waiting.await, Err(Error::Closed)));
    closing.await.unwrap();
    for pending in pending {
        pending.await.unwrap();
    }
    assert!(std::fs::read(bench.path("f")).unwrap() == data);
    assert!(matches!(bench.bridge.sync(&file).await, Err(Error::Closed)));
    bench.bridge.close().await;
    assert_eq!((bench.bridge.inflight(), bench.pool.in_use()), (0, 0));
}

async fn dropping_the_bridge_finishes_what_was_sent(engine: Kind) {
    let Bench { dir, bridge, pool } = Bench::new(engine);
    let file = bridge.open(&dir.path().join("f"), How::CreateNew).await.unwrap();
    let mut pending = Vec::new();
    for at in 0..32 {
        let mut buffer = pool.take(4096).await;
        buffer.fill(&[at as u8; 4096]);
        pending.push(bridge.write(&file, buffer, at * 4096).await.unwrap());
    }
    drop(bridge);
    for pending in pending {
        pending.await.unwrap();
    }
    let written = std::fs::read(dir.path().join("f")).unwrap();
    assert!(written.chunks(4096).enumerate().all(|(at, piece)| piece == [at as u8; 4096]));
}

/// One operation at a time with pauses around the moment the reactor falls asleep.
async fn no_wake_up_is_lost(engine: Kind) {
    let bench = Bench::new(engine);
    let file = bench.create("f").await;
    bench.write(&file, &numbered(4096), 0).await.unwrap();
    for round in 0..20_000_u32 {
        let buffer = bench.pool.take(4096).await;
        assert_eq!(bench.bridge.read(&file, buffer, 0, 4096).await.unwrap().len(), 4096);
        for _ in 0..round % 64 {
            std::hint::spin_loop();
        }
    }
}

async fn a_panic_in_the_engine_ends_the_process(engine: Kind) {
    if let Some(mut child) = child(engine, "a_panic_in_the_engine_ends_the_process") {
        let output = child.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
        assert_eq!(signal, Some(libc::SIGABRT), "{stderr}");
        assert!(stderr.contains("the storage engine panicked"), "{stderr}");
        return;
    }
    let bench = Bench::new(engine);
    let file = bench.create("f").await;
    let (buffer, slot) = (bench.pool.take(10).await, bench.bridge.try_slot(Lane::Read).unwrap());
    // Past the check at the bridge's door: more bytes than the buffer holds.
    let len = buffer.capacity() + 1;
    let broken = |reply| Op::Read { file, buffer, offset: 0, len, reply };
    let result = bench.bridge.send(Lane::Read, slot, crate::stats::OpKind::Read, broken).await;
    panic!("the engine went on: {:?}", result.map(|buffer| buffer.len()));
}

/// This very test in a process of its own, or `None` when this is that process.
fn child(engine: Kind, test: &str) -> Option<std::process::Command> {
    const MARK: &str = "REELRING_CONFORMANCE_CHILD";
    if std::env::var_os(MARK).is_some() {
        return None;
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", &format!("engine::conformance::{}::{test}", engine.name())]).env(MARK, "1");
    Some(command)
}
