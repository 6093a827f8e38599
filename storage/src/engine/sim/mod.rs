//! The `sim` engine: a disk that tears, reorders and loses what it may, and fails when told to. For tests alone.
//!
//! It takes the same lanes as the real engines. What programs see is a real directory (`disk.rs` tells why, and what a
//! power cut does to it); beside it the engine keeps what is durable. Everything it decides comes from a seed: which of
//! the operations in flight completes next, which fails, how much a short transfer moves, what a cut leaves.
//!
//! Two ways of running it. [`Stepped`] has no thread: it hands its end of the lanes to a [`Machine`], and whoever holds
//! that carries out one operation at a time, on the thread of the callers, so that a history repeats exactly.
//! [`Threaded`] has one thread, like a real engine, and no faults: the conformance suite runs on it.
//!
//! Faults, each with its own rate: EIO on any operation (a write may have moved some bytes), ENOSPC beyond a capacity,
//! or found only by a sync, EINTR, EAGAIN, short transfers, failed syncs of files and directories, a flipped bit in what
//! a read of a blob brings. An operation stays in flight until its turn comes: that is the delay, and the reordering.

mod disk;
mod random;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use crossbeam_channel::Select;
use rustix::fs::{FallocateFlags, OFlags};

pub(crate) use disk::Disk;
pub(crate) use random::Random;

use super::{
    Engine, EngineInfo, EngineThread, Step, Transfer, list_blocking, make_directory_blocking, open_blocking, transient,
    unless, write_zero,
};
use crate::bridge::{Command, How, Intake, LANES, Message, NamedFile, Op, VolumeSync};
use crate::buffer::ALIGNMENT;
use crate::error::Error;

/// How often what fails, in a thousand operations.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// EIO, on anything but a sync.
    pub(crate) io: u32,
    /// A sync that fails for good.
    pub(crate) sync: u32,
    /// A sync of a file that finds no room.
    pub(crate) sync_no_space: u32,
    /// Syncs of everything that are declined.
    pub(crate) too_much: u32,
    /// Transfers cut short.
    pub(crate) short: u32,
    /// EINTR and EAGAIN.
    pub(crate) interrupt: u32,
    /// Reads of blobs that bring a flipped bit.
    pub(crate) flip: u32,
}

/// What happened, for those who judge a history.
#[derive(Default)]
pub(crate) struct Events {
    /// Syncs reported as failed, but for want of room.
    pub(crate) failed_syncs: AtomicU64,
    /// Failures that the first sync of everything was told.
    pub(crate) old_failures: AtomicU64,
    /// Syncs of everything that succeeded.
    pub(crate) rounds: AtomicU64,
    pub(crate) flips: AtomicU64,
}

/// The engine without a thread.
#[derive(Default)]
pub(crate) struct Stepped {
    handed_over: Mutex<Option<Intake>>,
}

impl Stepped {
    pub(crate) fn intake(&self) -> Intake {
        self.handed_over.lock().expect("nothing panics here").take().expect("the engine was started")
    }
}

impl Engine for Stepped {
    fn start(&self, intake: Intake) -> io::Result<Vec<JoinHandle<()>>> {
        *self.handed_over.lock().expect("nothing panics here") = Some(intake);
        Ok(Vec::new())
    }
}

/// The engine with one thread.
pub(crate) struct Threaded {
    pub(crate) seed: u64,
}

impl Engine for Threaded {
    fn start(&self, intake: Intake) -> io::Result<Vec<JoinHandle<()>>> {
        let mut random = Random::new(self.seed);
        let empty = tempfile::tempdir()?;
        let disk = Disk::new(empty.path(), &mut random);
        let body = move || {
            let _guard = EngineThread::enter();
            let mut machine = Machine::new(disk, random);
            let lanes = intake.lanes.clone();
            machine.attach(intake);
            loop {
                while machine.step() {}
                if machine.stopped.iter().all(|stopped| *stopped) {
                    return;
                }
                let mut select = Select::new();
                lanes.iter().zip(&machine.stopped).filter(|(_, stopped)| !**stopped).for_each(|(lane, _)| {
                    select.recv(lane);
                });
                select.ready();
            }
        };
        Ok(vec![thread::Builder::new().name("reel-sim".into()).spawn(body)?])
    }
}

/// Stands for O_DIRECT, which the file system below may not have: it stays with the descriptor, and means nothing for files.
const DIRECT: OFlags = OFlags::NONBLOCK;

fn is_direct(file: &File) -> bool {
    rustix::fs::fcntl_getfl(file).is_ok_and(|flags| flags.contains(DIRECT))
}

/// What a transfer that is cut short moves a multiple of.
fn unit_of(file: &File) -> usize {
    if is_direct(file) { ALIGNMENT } else { 1 }
}

/// As strict as a disk with sectors of 4 KiB.
fn check_alignment(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let misaligned = bytes.as_ptr().addr() | bytes.len() | offset as usize;
    if is_direct(file) && !misaligned.is_multiple_of(ALIGNMENT) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(())
}

pub(crate) fn info() -> EngineInfo {
    EngineInfo { name: "sim", reason: "a test".into() }
}

/// The computer under the store: its disk, and the operations on their way to it.
pub(crate) struct Machine {
    pub(crate) disk: Disk,
    random: Random,
    pub(crate) faults: Faults,
    pub(crate) events: Arc<Events>,
    intake: Option<Intake>,
    stopped: [bool; LANES],
    in_flight: Vec<Command>,
    /// This process has seen a sync of everything succeed.
    everything_synced: bool,
    /// A digest of all that was carried out: two runs of one seed must agree on it.
    pub(crate) trace: trace::Trace,
}

impl Machine {
    pub(crate) fn new(disk: Disk, random: Random) -> Machine {
        Machine {
            disk,
            random,
            faults: Faults::default(),
            events: Arc::default(),
            intake: None,
            stopped: [false; LANES],
            in_flight: Vec::new(),
            everything_synced: false,
            trace: trace::Trace::default(),
        }
    }

    /// Takes over a bridge's lanes.
    pub(crate) fn attach(&mut self, intake: Intake) {
        self.intake = Some(intake);
        self.everything_synced = false;
        self.stopped = [false; LANES];
    }

    /// Operations on their way.
    pub(crate) fn in_flight(&mut self) -> usize {
        let Some(intake) = &self.intake else { return 0 };
        for (lane, stopped) in intake.lanes.iter().zip(&mut self.stopped) {
            while !*stopped {
                match lane.try_recv() {
                    Ok(Message::Run(command)) => {
                        if matches!(command.op, Op::SyncVolume { .. }) {
                            self.disk.all_sync_begun();
                        }
                        self.in_flight.push(*command);
                    }
                    Ok(Message::Stop) => *stopped = true,
                    Err(_) => break,
                }
            }
        }
        self.in_flight.len()
    }

    /// Completes one operation, whichever; false when there is none.
    pub(crate) fn step(&mut self) -> bool {
        let count = self.in_flight();
        if count == 0 {
            return false;
        }
        let command = self.in_flight.swap_remove(self.random.below(count));
        self.execute(command);
        true
    }

    /// The process died. What it had sent may still happen, in any order.
    pub(crate) fn detach(&mut self) {
        self.in_flight();
        while !self.in_flight.is_empty() {
            let command = self.in_flight.swap_remove(self.random.below(self.in_flight.len()));
            if self.random.chance(500) {
                self.execute(command);
            }
        }
        self.intake = None;
        self.disk.closed_all();
    }

    fn execute(&mut self, Command { op, ticket }: Command) {
        match op {
            Op::Read { file, mut buffer, offset, len, reply } => {
                let result = self.transfer(
                    len,
                    unit_of(&file.file),
                    || Step::Complete,
                    |machine, done, end| {
                        machine.maybe_fail()?;
                        if offset + (done as u64) < file.file.metadata()?.len() {
                            check_alignment(&file.file, &buffer.spare()[done..end], offset + done as u64)?;
                        }
                        file.file.read_at(&mut buffer.spare()[done..end], offset + done as u64)
                    },
                );
                self.trace.note("read", &file.path, result.is_ok());
                let result = result.map_err(|e| Error::io("read", &file.path, e)).map(|done| {
                    self.maybe_flip(&file, &mut buffer.spare()[..done]);
                    buffer.set_len(done);
                    buffer
                });
                drop(file);
                ticket.finish(reply, result);
            }
            Op::Write { file, buffer, offset, reply } => {
                let data = buffer.as_slice();
                let result = self.transfer(data.len(), unit_of(&file.file), write_zero, |machine, done, end| {
                    check_alignment(&file.file, &data[done..end], offset + done as u64)?;
                    machine.write(&file.file, &data[done..end], offset + done as u64)
                });
                self.trace.note("write", &file.path, result.is_ok());
                let result = result.map(drop).map_err(|e| Error::io("write", &file.path, e));
                drop((file, buffer));
                ticket.finish(reply, result);
            }
            Op::Sync { file, reach: _, reply } => {
                let result = self.sync(&file);
                self.trace.note("sync", &file.path, result.is_ok());
                let result = result.map_err(|e| Error::io("sync", &file.path, e));
                drop(file);
                ticket.finish(reply, result);
            }
            Op::SyncVolume { directory, reply } => {
                let result = self.sync_volume();
                self.trace.note("sync everything", &directory.path, result.is_ok());
                let result = result.map_err(|e| Error::io("sync", &directory.path, e));
                drop(directory);
                ticket.finish(reply, result);
            }
            Op::Allocate { file, len, reply } => {
                let result = self.allocate(&file.file, len);
                self.trace.note("allocate", &file.path, result.is_ok());
                let result = result.map_err(|e| Error::io("allocate", &file.path, e));
                drop(file);
                ticket.finish(reply, result);
            }
            Op::Truncate { file, len, reply } => {
                let result = self.persist(|machine| {
                    machine.maybe_fail()?;
                    file.file.set_len(len)?;
                    machine.disk.truncated(&file.file, len);
                    Ok(())
                });
                self.trace.note("truncate", &file.path, result.is_ok());
                let result = result.map_err(|e| Error::io("truncate", &file.path, e));
                drop(file);
                ticket.finish(reply, result);
            }
            Op::Open { path, how, reply } => {
                let result = self.persist(|machine| {
                    machine.maybe_fail()?;
                    if how == How::CreateNew {
                        machine.disk.check_names()?;
                    }
                    // What is direct follows the rules of alignment; the real disk below need not allow more.
                    let (how, direct) = match how {
                        How::ModifyDirect => (How::Modify, true),
                        How::ReadDirect => (How::Read, true),
                        other => (other, false),
                    };
                    let file = open_blocking(&path, how)?;
                    if direct {
                        rustix::fs::fcntl_setfl(&file, rustix::fs::fcntl_getfl(&file)? | DIRECT)?;
                    }
                    if how == How::CreateNew {
                        machine.disk.made_file(&path, &file);
                    }
                    Ok(file)
                });
                self.trace.note("open", &path, result.is_ok());
                let result = match result {
                    Ok(file) => Ok(NamedFile { file, path, claim: None }),
                    Err(e) => Err(Error::io("open", &path, e)),
                };
                ticket.finish(reply, result);
            }
            Op::Rename { from, to, reply } => {
                let result = self.persist(|machine| {
                    machine.maybe_fail()?;
                    machine.disk.check_names()?;
                    machine.disk.about_to_change(&[&from, &to]);
                    fs::rename(&from, &to)?;
                    machine.disk.renamed(&from, &to);
                    Ok(())
                });
                self.trace.note("rename", &from, result.is_ok());
                ticket.finish(reply, result.map_err(|e| Error::io("rename", &from, e)));
            }
            Op::Unlink { path, reply } => {
                let result = self.persist(|machine| {
                    machine.maybe_fail()?;
                    machine.disk.check_names()?;
                    let file = File::open(&path)?;
                    machine.disk.about_to_change(&[&path]);
                    fs::remove_file(&path)?;
                    machine.disk.unlinked(&path, &file);
                    Ok(())
                });
                self.trace.note("unlink", &path, result.is_ok());
                let result = unless(result, io::ErrorKind::NotFound);
                ticket.finish(reply, result.map_err(|e| Error::io("unlink", &path, e)));
            }
            Op::MakeDirectory { path, reply } => {
                let result = self.persist(|machine| {
                    machine.maybe_fail()?;
                    machine.disk.check_names()?;
                    make_directory_blocking(&path)?;
                    machine.disk.made_directory(&path);
                    Ok(())
                });
                self.trace.note("mkdir", &path, result.is_ok());
                let result = unless(result, io::ErrorKind::AlreadyExists);
                ticket.finish(reply, result.map_err(|e| Error::io("make directory", &path, e)));
            }
            Op::List { path, reply } => {
                let result = self.maybe_fail().and_then(|()| list_blocking(&path)).map(|mut names| {
                    names.sort();
                    names
                });
                self.trace.note("list", &path, result.is_ok());
                ticket.finish(reply, result.map_err(|e| Error::io("list", &path, e)));
            }
            Op::Close { file, reply } => {
                drop(file);
                ticket.finish(reply, Ok(()));
            }
        }
    }

    fn write(&mut self, file: &File, data: &[u8], offset: u64) -> io::Result<usize> {
        self.disk.check_names()?;
        let unit = unit_of(file);
        let room = self.disk.room(file, offset, data.len() as u64) as usize / unit * unit;
        if room == 0 && !data.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let mut data = &data[..room];
        let failure = self.maybe_fail();
        if failure.is_err() {
            data = &data[..self.random.below(data.len().max(1)) / unit * unit];
        }
        let written = file.write_at(data, offset)?;
        self.disk.wrote(file, offset, &data[..written]);
        failure.map(|()| written)
    }

    fn sync(&mut self, file: &NamedFile) -> io::Result<()> {
        self.disk.check_names()?;
        let directory = file.file.metadata()?.is_dir();
        if !directory && self.random.chance(self.faults.sync_no_space) {
            self.disk.sync_failed(&file.file);
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        if !directory && let Some(code) = self.disk.take_untold(&file.file) {
            self.events.failed_syncs.fetch_add(u64::from(code != libc::ENOSPC), Relaxed);
            return Err(io::Error::from_raw_os_error(code));
        }
        let failed = self.random.chance(self.faults.sync);
        match (directory, failed) {
            (true, false) => self.disk.directory_synced(&file.path),
            (true, true) => self.disk.directory_sync_failed(&file.path),
            (false, false) => self.disk.synced(&file.file),
            (false, true) => self.disk.sync_failed(&file.file),
        }
        if failed {
            self.events.failed_syncs.fetch_add(1, Relaxed);
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }

    fn sync_volume(&mut self) -> io::Result<VolumeSync> {
        self.disk.check_names()?;
        if self.random.chance(self.faults.too_much) {
            return Ok(VolumeSync::TooMuch);
        }
        let code = match () {
            _ if self.random.chance(self.faults.sync_no_space) => libc::ENOSPC,
            _ if self.random.chance(self.faults.sync) => libc::EIO,
            _ => {
                self.everything_synced = true;
                self.events.rounds.fetch_add(1, Relaxed);
                self.disk.all_synced();
                return Ok(VolumeSync::Done);
            }
        };
        self.disk.all_sync_failed(code, &mut self.random);
        // The first answer a process gets may be older than the process: it is no promise broken.
        let events = &self.events;
        let counter = if self.everything_synced { &events.failed_syncs } else { &events.old_failures };
        counter.fetch_add(u64::from(code != libc::ENOSPC), Relaxed);
        Err(io::Error::from_raw_os_error(code))
    }

    fn allocate(&mut self, file: &File, len: u64) -> io::Result<()> {
        self.maybe_fail()?;
        self.disk.check_names()?;
        if self.disk.room(file, 0, len) < len {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let result = rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, len);
        unless(result.map_err(io::Error::from), io::ErrorKind::Unsupported)?;
        self.disk.allocated(file, len);
        Ok(())
    }

    fn maybe_fail(&mut self) -> io::Result<()> {
        if self.random.chance(self.faults.io) { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }

    fn maybe_interrupt(&mut self) -> io::Result<()> {
        if !self.random.chance(self.faults.interrupt) {
            return Ok(());
        }
        let code = if self.random.chance(500) { libc::EINTR } else { libc::EAGAIN };
        Err(io::Error::from_raw_os_error(code))
    }

    fn maybe_flip(&mut self, file: &NamedFile, bytes: &mut [u8]) {
        let blob = file.path.components().any(|part| part.as_os_str() == "blobs");
        if blob && !bytes.is_empty() && self.random.chance(self.faults.flip) {
            let at = self.random.below(bytes.len());
            bytes[at] ^= 1 << self.random.below(8);
            self.events.flips.fetch_add(1, Relaxed);
        }
    }

    /// Goes on as the real engines do, by the same rules, through interruptions and short transfers of whole units.
    fn transfer(
        &mut self,
        len: usize,
        unit: usize,
        end: impl Fn() -> Step,
        mut call: impl FnMut(&mut Machine, usize, usize) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut progress = Transfer::new(len);
        loop {
            let rest = len - progress.done;
            let short = rest > 1 && self.random.chance(self.faults.short);
            let to = if short { progress.done + 1 + self.random.below(rest - 1) } else { len };
            let to = to.next_multiple_of(unit).min(len);
            let result = self.maybe_interrupt().and_then(|()| call(self, progress.done, to));
            match progress.step(result, end()) {
                Step::Again | Step::Pause => {}
                Step::Complete => return Ok(progress.done),
                Step::Failed(e) => return Err(e),
            }
        }
    }

    fn persist<T>(&mut self, mut call: impl FnMut(&mut Machine) -> io::Result<T>) -> io::Result<T> {
        let mut retries = 0;
        loop {
            let error = match self.maybe_interrupt().and_then(|()| call(self)) {
                Ok(value) => return Ok(value),
                Err(e) => e,
            };
            if let Step::Failed(e) = transient(error, &mut retries) {
                return Err(e);
            }
        }
    }
}

pub(crate) mod trace {
    //! A digest of a history; shown line by line when `REELRING_SIM_TRACE` is set.

    use std::path::Path;
    use std::sync::LazyLock;

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Trace {
        pub(crate) events: u64,
        digest: u32,
    }

    impl Trace {
        pub(super) fn note(&mut self, op: &str, path: &Path, ok: bool) {
            let name = path.file_name().map_or(&b""[..], |name| name.as_encoded_bytes());
            self.events += 1;
            self.digest = crc32c::crc32c_append(self.digest, op.as_bytes());
            self.digest = crc32c::crc32c_append(self.digest, name);
            self.digest = crc32c::crc32c_append(self.digest, &[u8::from(ok)]);
            static SHOWN: LazyLock<bool> = LazyLock::new(|| std::env::var_os("REELRING_SIM_TRACE").is_some());
            if *SHOWN {
                eprintln!("{:>5} {op} {} {}", self.events, path.display(), if ok { "" } else { "FAILED" });
            }
        }
    }
}
