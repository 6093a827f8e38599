//! The `uring` engine: one reactor thread, which owns the ring and everything in flight on it.
//!
//! The thread runs a tokio-uring runtime (a current-thread tokio runtime that flushes the
//! submission queue when it parks, and watches the ring through epoll). Its main task drains the
//! lanes, spawns one local task for each command, and sleeps on the doorbell; going to sleep parks
//! the thread, which submits the whole batch in one `io_uring_enter`. Reads, which are many and
//! small, have a ring of their own on the same thread (`uring/reads.rs`). It never spins and never
//! makes a call that can wait for a disk: closing a file, which may free its blocks, goes through
//! the ring too; the operations without an opcode (truncate, list) go to a helper thread, and so do
//! syncs, which would hold the ring's few workers for long.
//!
//! Operations are built with tokio-uring's escape hatch, [`UnsubmittedOneshot`], which keeps what
//! the kernel reads or writes (the buffer, the path, the file) until the completion even if the
//! task is dropped. Its ring is plain: `DEFER_TASKRUN` would never see a completion under
//! tokio-uring 0.5.

mod reads;

use std::cell::Cell;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::TryRecvError;
use io_uring::{cqueue, opcode, squeue, types};
use tokio::sync::Notify;
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

use self::reads::{Read, Reads};
use super::direct::check_direct;
use super::whole::sync_volume_blocking;
use super::{
    DIRECTORY_MODE, Engine, EngineThread, FILE_MODE, Step, Transfer, list_blocking, open_flags, transient, unless,
    write_zero,
};
use crate::bridge::{Command, How, Intake, Message, NamedFile, Op, Reach};
use crate::buffer::Buffer;
use crate::error::Error;
use crate::limits;

pub(super) struct Uring;

impl Engine for Uring {
    fn start(&self, intake: Intake) -> io::Result<Vec<JoinHandle<()>>> {
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let reactor = move || {
            let _guard = EngineThread::enter();
            let mut ring = tokio_uring::uring_builder();
            ring.setup_cqsize(limits::RING_COMPLETIONS);
            let mut builder = tokio_uring::builder();
            builder.entries(limits::RING_ENTRIES).uring_builder(&ring);
            let runtime = match tokio_uring::Runtime::new(&builder) {
                Ok(runtime) => runtime,
                Err(e) => return drop(ready.send(Err(e))),
            };
            runtime.block_on(async {
                match Reads::new() {
                    Ok(reads) => {
                        let _ = ready.send(Ok(()));
                        run(intake, reads).await;
                    }
                    Err(e) => drop(ready.send(Err(e))),
                }
            });
        };
        let thread =
            thread::Builder::new().name("reel-reactor".into()).stack_size(limits::THREAD_STACK_BYTES).spawn(reactor)?;
        match started.recv() {
            Ok(Ok(())) => Ok(vec![thread]),
            Ok(Err(e)) => Err(e),
            Err(_) => Err(io::Error::other("the reactor ended before it was ready")),
        }
    }
}

/// Tries on a small ring of its own what the engine needs: set-up, opcodes, one real read.
pub(super) fn probe() -> Result<(), String> {
    let refused = |e: io::Error| format!("io_uring_setup: {e}");
    let mut ring = io_uring::IoUring::new(4).map_err(refused)?;
    let mut known = io_uring::Probe::new();
    ring.submitter().register_probe(&mut known).map_err(|e| format!("io_uring_register: {e}"))?;
    for (code, name) in [
        (opcode::Read::CODE, "read"),
        (opcode::Write::CODE, "write"),
        (opcode::Fallocate::CODE, "fallocate"),
        (opcode::OpenAt::CODE, "openat"),
        (opcode::Close::CODE, "close"),
        (opcode::RenameAt::CODE, "renameat"),
        (opcode::UnlinkAt::CODE, "unlinkat"),
        (opcode::MkDirAt::CODE, "mkdirat"),
    ] {
        if !known.is_supported(code) {
            return Err(format!("this kernel's io_uring has no {name} (Linux 5.15 has all that is needed)"));
        }
    }
    let zero = std::fs::File::open("/dev/zero").map_err(|e| format!("/dev/zero: {e}"))?;
    let mut byte = [1u8];
    let read = opcode::Read::new(types::Fd(zero.as_raw_fd()), byte.as_mut_ptr(), 1).build();
    // SAFETY: `byte` and `zero` live past `submit_and_wait`, which returns after the completion.
    unsafe { ring.submission().push(&read) }.map_err(|e| e.to_string())?;
    ring.submit_and_wait(1).map_err(|e| format!("io_uring_enter: {e}"))?;
    let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).map_err(|e| format!("eventfd: {e}"))?;
    ring.submitter().register_eventfd(bell.as_raw_fd()).map_err(|e| format!("io_uring_register: {e}"))?;
    match ring.completion().next().map(|cqe| cqe.result()) {
        Some(1) if byte == [0] => Ok(()),
        other => Err(format!("a read through io_uring returned {other:?}")),
    }
}

const FLUSH_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Operations spawned and not finished.
#[derive(Default)]
struct InFlight {
    count: Cell<usize>,
    idle: Notify,
}

async fn run(intake: Intake, mut reads: Reads) {
    let in_flight = Rc::new(InFlight::default());
    let Intake { lanes, doorbell, counters } = intake;
    let mut stopped = [false; crate::bridge::LANES];
    while stopped.contains(&false) || !reads.is_idle() {
        let mut batch = 0;
        for (lane, stopped) in lanes.iter().zip(&mut stopped) {
            // Bounded: a lane has no more commands than slots, and a slot comes back only after
            // its operation ran, which needs this task to sleep.
            loop {
                match lane.try_recv() {
                    Ok(Message::Run(command)) => {
                        batch += 1;
                        match *command {
                            Command { op: Op::Read { file, buffer, offset, len, reply }, ticket } => {
                                let progress = Transfer::new(len);
                                reads.push(Read { file, buffer, offset, progress, reply, ticket });
                            }
                            other => spawn(execute(other), &in_flight),
                        }
                    }
                    Ok(Message::Stop) | Err(TryRecvError::Disconnected) => *stopped = true,
                    Err(TryRecvError::Empty) => break,
                }
                if *stopped {
                    break;
                }
            }
        }
        if batch > 0 {
            counters.batch(batch);
        }
        let completed = reads.turn();
        for file in reads.closing.drain(..) {
            spawn(close(file), &in_flight);
        }
        let all_stopped = !stopped.contains(&false);
        // Callers that were answered are about to come back; and nobody else waits for this thread to park.
        if (completed > 0 && in_flight.count.get() == 0) || (all_stopped && reads.is_idle()) {
            continue;
        }
        let work = || lanes.iter().zip(&stopped).any(|(lane, stopped)| !stopped && !lane.is_empty());
        // Both rings may hold what a failed flush left behind (the kernel was short of memory, say). While operations
        // are in flight the thread wakes at least once a second and tries again; an idle reactor sleeps without a timer.
        let again = if reads.has_paused() {
            Some(reads::RETRY_AFTER)
        } else if in_flight.count.get() > 0 || !reads.is_idle() {
            Some(FLUSH_AGAIN_AFTER)
        } else {
            None
        };
        tokio::select! {
            biased;
            () = doorbell.sleep_unless(work) => {}
            () = reads.ready() => {}
            () = pause(again) => reads.resume(),
        }
    }
    while in_flight.count.get() > 0 {
        in_flight.idle.notified().await;
    }
}

fn spawn(operation: impl Future<Output = ()> + 'static, in_flight: &Rc<InFlight>) {
    in_flight.count.set(in_flight.count.get() + 1);
    let in_flight = Rc::clone(in_flight);
    tokio_uring::spawn(async move {
        operation.await;
        in_flight.count.set(in_flight.count.get() - 1);
        if in_flight.count.get() == 0 {
            in_flight.idle.notify_one();
        }
    });
}

async fn execute(Command { op, ticket }: Command) {
    match op {
        Op::Read { .. } => unreachable!("reads have a ring of their own"),
        Op::Write { file, buffer, offset, reply } => {
            let (result, file) = write(file, buffer, offset).await;
            let result = result.map_err(|e| Error::io("write", &file.path, e));
            release(file).await;
            ticket.finish(reply, result);
        }
        Op::Sync { file, reach, reply } => {
            // On a helper thread: the ring has four workers per CPU for all calls that wait, and buffered writes need
            // them. Not repeated whatever the error: a failed sync may have dropped the dirty pages.
            let synced = tokio::task::spawn_blocking(move || {
                let result = match reach {
                    Reach::Data => file.file.sync_data(),
                    Reach::All => file.file.sync_all(),
                };
                (result, file)
            });
            let (result, file) = synced.await.expect("a sync does not panic");
            let result = result.map_err(|e| Error::io("sync", &file.path, e));
            release(file).await;
            ticket.finish(reply, result);
        }
        Op::SyncVolume { directory, reply } => {
            // io_uring has no syncfs.
            let synced = tokio::task::spawn_blocking(move || (sync_volume_blocking(&directory.file), directory));
            let (result, directory) = synced.await.expect("a sync does not panic");
            let result = result.map_err(|e| Error::io("sync", &directory.path, e));
            release(directory).await;
            ticket.finish(reply, result);
        }
        Op::Allocate { file, len, reply } => {
            let allocate = || opcode::Fallocate::new(fd(&file), len).mode(libc::FALLOC_FL_KEEP_SIZE).build();
            let result = persist(|| submit(Arc::clone(&file), allocate())).await.map(drop);
            let result = unless(result, io::ErrorKind::Unsupported).map_err(|e| Error::io("allocate", &file.path, e));
            release(file).await;
            ticket.finish(reply, result);
        }
        Op::Truncate { file, len, reply } => {
            // io_uring has ftruncate only since Linux 6.9.
            let truncated = tokio::task::spawn_blocking(move || (file.file.set_len(len), file)).await;
            let (result, file) = truncated.expect("set_len does not panic");
            let result = result.map_err(|e| Error::io("truncate", &file.path, e));
            release(file).await;
            ticket.finish(reply, result);
        }
        Op::Open { path, how, reply } => {
            let result = match open(&path, how).await {
                Ok(file) => Ok(NamedFile { file, path, claim: None }),
                Err(e) => Err(Error::io("open", &path, e)),
            };
            if let Some(unwanted) = ticket.finish(reply, result) {
                close(unwanted).await;
            }
        }
        Op::Rename { from, to, reply } => {
            let result = rename(&from, &to).await.map_err(|e| Error::io("rename", &from, e));
            ticket.finish(reply, result);
        }
        Op::Unlink { path, reply } => {
            let result = unless(unlink(&path).await, io::ErrorKind::NotFound);
            ticket.finish(reply, result.map_err(|e| Error::io("unlink", &path, e)));
        }
        Op::MakeDirectory { path, reply } => {
            let result = unless(make_directory(&path).await, io::ErrorKind::AlreadyExists);
            ticket.finish(reply, result.map_err(|e| Error::io("make directory", &path, e)));
        }
        Op::List { path, reply } => {
            // io_uring has no getdents.
            let listed = tokio::task::spawn_blocking(move || (list_blocking(&path), path)).await;
            let (result, path) = listed.expect("a listing does not panic");
            ticket.finish(reply, result.map_err(|e| Error::io("list", &path, e)));
        }
        Op::Close { file, reply } => {
            close(file).await;
            ticket.finish(reply, Ok(()));
        }
    }
}

async fn write(file: Arc<NamedFile>, buffer: Buffer, offset: u64) -> (io::Result<()>, Arc<NamedFile>) {
    let mut progress = Transfer::new(buffer.len());
    let mut owned = (file, buffer);
    loop {
        let rest = &owned.1.as_slice()[progress.done..];
        let sqe = opcode::Write::new(types::Fd(owned.0.file.as_raw_fd()), rest.as_ptr(), rest.len() as u32)
            .offset(offset + progress.done as u64)
            .build();
        let result;
        (result, owned) = submit(owned, sqe).await;
        match progress.step(result.map(|n| n as usize), write_zero()) {
            Step::Again => {}
            Step::Pause => pause(Some(reads::RETRY_AFTER)).await,
            Step::Complete => return (Ok(()), owned.0),
            Step::Failed(e) => return (Err(e), owned.0),
        }
    }
}

async fn open(path: &Path, how: How) -> io::Result<File> {
    let path = c_path(path)?;
    let fd = persist(|| {
        let path = path.clone();
        let sqe = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).flags(open_flags(how)).mode(FILE_MODE);
        submit(path, sqe.build())
    })
    .await?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    if how == How::ModifyDirect {
        check_direct(&file)?;
    }
    Ok(file)
}

async fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let paths = (c_path(from)?, c_path(to)?);
    let cwd = types::Fd(libc::AT_FDCWD);
    persist(|| {
        let paths = paths.clone();
        let sqe = opcode::RenameAt::new(cwd, paths.0.as_ptr(), cwd, paths.1.as_ptr()).build();
        submit(paths, sqe)
    })
    .await
    .map(drop)
}

async fn unlink(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    persist(|| {
        let path = path.clone();
        let sqe = opcode::UnlinkAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build();
        submit(path, sqe)
    })
    .await
    .map(drop)
}

async fn make_directory(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    persist(|| {
        let path = path.clone();
        let sqe = opcode::MkDirAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).mode(DIRECTORY_MODE).build();
        submit(path, sqe)
    })
    .await
    .map(drop)
}

/// Gives up one reference to a file. The last one is closed through the ring.
async fn release(file: Arc<NamedFile>) {
    if let Some(file) = Arc::into_inner(file) {
        close(file).await;
    }
}

/// Closes a file in a kernel worker: the last close of an unlinked file frees its blocks, and that
/// work would otherwise run on this thread.
async fn close(file: NamedFile) {
    let fd = file.file.into_raw_fd();
    let sqe = opcode::Close::new(types::Fd(fd)).build().flags(squeue::Flags::ASYNC);
    let (result, ()) = submit((), sqe).await;
    if let Err(error) = result {
        tracing::warn!(%error, path = %file.path.display(), "closing a file failed");
    }
}

/// Repeats an operation that was interrupted.
async fn persist<T, F>(mut call: impl FnMut() -> F) -> io::Result<u32>
where
    F: Future<Output = (io::Result<u32>, T)>,
{
    let mut retries = 0;
    loop {
        let error = match call().await.0 {
            Ok(value) => return Ok(value),
            Err(e) => e,
        };
        match transient(error, &mut retries) {
            Step::Failed(e) => return Err(e),
            Step::Pause => pause(Some(reads::RETRY_AFTER)).await,
            Step::Again | Step::Complete => {}
        }
    }
}

/// Sleeps, without a time for ever.
async fn pause(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

fn fd(file: &NamedFile) -> types::Fd {
    types::Fd(file.file.as_raw_fd())
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

/// Gives back what the operation held, with its result.
struct HandBack<T>(std::marker::PhantomData<T>);

impl<T> OneshotOutputTransform for HandBack<T> {
    type Output = (io::Result<u32>, T);
    type StoredData = T;

    fn transform_oneshot_output(self, data: T, cqe: cqueue::Entry) -> Self::Output {
        let result = cqe.result();
        let result = if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result as u32) };
        (result, data)
    }
}

/// Queues an entry, to be submitted when the thread parks. `held` must own every address and
/// descriptor the entry names: tokio-uring keeps it until the completion, come what may.
fn submit<T: Unpin + 'static>(held: T, entry: squeue::Entry) -> impl Future<Output = (io::Result<u32>, T)> {
    UnsubmittedOneshot::new(held, HandBack(std::marker::PhantomData), entry).submit()
}
