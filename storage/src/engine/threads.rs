//! The `threads` engine: blocking system calls, a few threads for each lane.
//!
//! A thread owns the command it took until the call returns, so nothing a caller does can take a
//! buffer away from the kernel. Threads sleep in the channel while there is nothing to do.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::Receiver;
use rustix::fs::FallocateFlags;

use super::whole::sync_volume_blocking;
use super::{
    Engine, EngineThread, Step, Transfer, list_blocking, make_directory_blocking, open_blocking, transient, unless,
    write_zero,
};
use crate::bridge::{Command, Intake, LANES, Message, NamedFile, Op, Reach};
use crate::error::Error;
use crate::limits;

pub(super) struct Threads;

impl Engine for Threads {
    fn start(&self, intake: Intake) -> io::Result<Vec<JoinHandle<()>>> {
        let crews: [(&str, usize); LANES] = [
            ("read", limits::READ_THREADS),
            ("write", limits::WRITE_THREADS),
            ("sync", limits::SYNCS_IN_FLIGHT_MAX),
            ("names", limits::NAMES_THREADS),
        ];
        let mut threads = Vec::new();
        for ((name, count), lane) in crews.into_iter().zip(intake.lanes) {
            for _ in 0..count {
                let lane = lane.clone();
                let builder =
                    thread::Builder::new().name(format!("reel-{name}")).stack_size(limits::THREAD_STACK_BYTES);
                threads.push(builder.spawn(move || work(&lane))?);
            }
        }
        Ok(threads)
    }
}

fn work(lane: &Receiver<Message>) {
    let _guard = EngineThread::enter();
    while let Ok(Message::Run(command)) = lane.recv() {
        execute(*command);
    }
}

fn execute(Command { op, ticket }: Command) {
    match op {
        Op::Read { file, mut buffer, offset, len, reply } => {
            let read = |done: usize| file.file.read_at(&mut buffer.spare()[done..len], offset + done as u64);
            let result = transfer(len, read, || Step::Complete);
            let result = result.map_err(|e| Error::io("read", &file.path, e)).map(|done| {
                buffer.set_len(done);
                buffer
            });
            drop(file);
            ticket.finish(reply, result);
        }
        Op::Write { file, buffer, offset, reply } => {
            let data = buffer.as_slice();
            let write = |done: usize| file.file.write_at(&data[done..], offset + done as u64);
            let result = transfer(data.len(), write, write_zero);
            let result = result.map(drop).map_err(|e| Error::io("write", &file.path, e));
            drop((file, buffer));
            ticket.finish(reply, result);
        }
        Op::Sync { file, reach, reply } => {
            // Not repeated whatever the error: a failed sync may have dropped the dirty pages.
            let result = match reach {
                Reach::Data => file.file.sync_data(),
                Reach::All => file.file.sync_all(),
            };
            let result = result.map_err(|e| Error::io("sync", &file.path, e));
            drop(file);
            ticket.finish(reply, result);
        }
        Op::SyncVolume { directory, reply } => {
            let result = sync_volume_blocking(&directory.file).map_err(|e| Error::io("sync", &directory.path, e));
            drop(directory);
            ticket.finish(reply, result);
        }
        Op::Allocate { file, len, reply } => {
            let result = persist(|| Ok(rustix::fs::fallocate(&file.file, FallocateFlags::KEEP_SIZE, 0, len)?));
            let result = unless(result, io::ErrorKind::Unsupported).map_err(|e| Error::io("allocate", &file.path, e));
            drop(file);
            ticket.finish(reply, result);
        }
        Op::Truncate { file, len, reply } => {
            let result = persist(|| file.file.set_len(len)).map_err(|e| Error::io("truncate", &file.path, e));
            drop(file);
            ticket.finish(reply, result);
        }
        Op::Open { path, how, reply } => {
            let result = match persist(|| open_blocking(&path, how)) {
                Ok(file) => Ok(NamedFile { file, path, claim: None }),
                Err(e) => Err(Error::io("open", &path, e)),
            };
            ticket.finish(reply, result);
        }
        Op::Rename { from, to, reply } => {
            let result = persist(|| fs::rename(&from, &to)).map_err(|e| Error::io("rename", &from, e));
            ticket.finish(reply, result);
        }
        Op::Unlink { path, reply } => {
            let result = unless(persist(|| fs::remove_file(&path)), io::ErrorKind::NotFound);
            ticket.finish(reply, result.map_err(|e| Error::io("unlink", &path, e)));
        }
        Op::MakeDirectory { path, reply } => {
            let result = unless(persist(|| make_directory_blocking(&path)), io::ErrorKind::AlreadyExists);
            ticket.finish(reply, result.map_err(|e| Error::io("make directory", &path, e)));
        }
        Op::List { path, reply } => {
            ticket.finish(reply, list_blocking(&path).map_err(|e| Error::io("list", &path, e)));
        }
        Op::Close { file, reply } => {
            drop(file);
            ticket.finish(reply, Ok(()));
        }
    }
}

/// Repeats a transferring call until all is done, and returns how much that was.
fn transfer(len: usize, mut call: impl FnMut(usize) -> io::Result<usize>, end: impl Fn() -> Step) -> io::Result<usize> {
    let mut progress = Transfer::new(len);
    loop {
        let result = call(progress.done);
        match progress.step(result, end()) {
            Step::Again => {}
            Step::Pause => thread::sleep(Duration::from_millis(1)),
            Step::Complete => return Ok(progress.done),
            Step::Failed(e) => return Err(e),
        }
    }
}

/// Repeats a call that was interrupted.
fn persist<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut retries = 0;
    loop {
        let error = match call() {
            Ok(value) => return Ok(value),
            Err(e) => e,
        };
        match transient(error, &mut retries) {
            Step::Failed(e) => return Err(e),
            Step::Pause => thread::sleep(Duration::from_millis(1)),
            Step::Again | Step::Complete => {}
        }
    }
}
