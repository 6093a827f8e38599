//! What goes over the bridge: an operation, what it needs, and the way back to its caller.
//!
//! A command owns the file, the buffer, the slot and the reply; who holds the command holds all four.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::buffer::Buffer;
use crate::engine::end_if_panicking;
use crate::error::Result;
use crate::stats::{Counters, OpKind};
use crate::volume::claim::Claim;

/// A file and the name it goes by in messages.
pub struct NamedFile {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    /// What must not be claimed again while an operation on the file is under way.
    pub(crate) claim: Option<Arc<Claim>>,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Must exist; read only.
    Read,
    /// Must not exist; read and write.
    CreateNew,
    /// Must exist; read and write.
    Modify,
    /// A directory, to be synced.
    Directory,
    /// Must exist; read only, past the page cache. A file system that does not do it may say so at the first read only.
    ReadDirect,
    /// Created if absent; read and write, past the page cache (measurements).
    WriteDirect,
    /// Must exist; read and write, past the page cache. Refused where buffers of this crate do not fit.
    ModifyDirect,
}

/// Called on the engine's thread when an operation has succeeded, before its caller is told, and whether or not there is
/// one left. It must be short, and must not wait.
pub(crate) type Landed = Box<dyn FnOnce() + Send>;

/// The way back to the caller.
pub(crate) struct Reply<T> {
    /// Taken when the answer is sent.
    sender: Option<oneshot::Sender<Result<T>>>,
    landed: Option<Landed>,
}

impl<T> Reply<T> {
    pub(super) fn to(sender: oneshot::Sender<Result<T>>) -> Reply<T> {
        Reply { sender: Some(sender), landed: None }
    }

    pub(super) fn telling(mut self, landed: Option<Landed>) -> Reply<T> {
        self.landed = landed;
        self
    }

    /// Hands the answer back when nobody waits for it.
    fn send(mut self, result: Result<T>) -> Option<T> {
        let sender = self.sender.take().expect("an answer is sent once");
        if let Some(landed) = self.landed.take().filter(|_| result.is_ok()) {
            landed();
        }
        sender.send(result).err().and_then(Result::ok)
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if self.sender.is_some() {
            end_if_panicking();
        }
    }
}

/// How much a sync makes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// fdatasync: a file's bytes, and what is needed to find them.
    Data,
    /// fsync. For directories: a new name need not count as data (on ext4 it does not as long as
    /// the directory keeps its size), so fdatasync may return without it.
    All,
}

/// What became of the wish to sync a whole file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VolumeSync {
    /// Everything written there before the call is durable.
    Done,
    /// Nothing was done: too much else would be written with it now.
    TooMuch,
    /// Nothing was done: nobody vouches for the answer of this file system.
    Unknown,
}

/// One piece of work for an engine.
pub(crate) enum Op {
    /// Fills the buffer with `len` bytes from `offset`, or fewer where the file ends.
    Read {
        file: Arc<NamedFile>,
        buffer: Buffer,
        offset: u64,
        len: usize,
        reply: Reply<Buffer>,
    },
    /// Writes all of the buffer's meaningful bytes at `offset`.
    Write {
        file: Arc<NamedFile>,
        buffer: Buffer,
        offset: u64,
        reply: Reply<()>,
    },
    Sync {
        file: Arc<NamedFile>,
        reach: Reach,
        reply: Reply<()>,
    },
    /// Syncs everything on the file system of the directory, if that is allowed (`engine/whole.rs`).
    SyncVolume {
        directory: Arc<NamedFile>,
        reply: Reply<VolumeSync>,
    },
    /// Reserves room for the first `len` bytes, leaving the length alone.
    Allocate {
        file: Arc<NamedFile>,
        len: u64,
        reply: Reply<()>,
    },
    Truncate {
        file: Arc<NamedFile>,
        len: u64,
        reply: Reply<()>,
    },
    Open {
        path: PathBuf,
        how: How,
        reply: Reply<NamedFile>,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
        reply: Reply<()>,
    },
    Unlink {
        path: PathBuf,
        reply: Reply<()>,
    },
    MakeDirectory {
        path: PathBuf,
        reply: Reply<()>,
    },
    /// The names in a directory, in no particular order. Names that are not UTF-8 are left out.
    List {
        path: PathBuf,
        reply: Reply<Vec<String>>,
    },
    /// Closes the file away from any thread that must not wait for the blocks to be freed.
    Close {
        file: NamedFile,
        reply: Reply<()>,
    },
}

/// An operation and its right to run.
pub(crate) struct Command {
    pub(crate) op: Op,
    pub(crate) ticket: Ticket,
}

pub(crate) enum Message {
    Run(Box<Command>),
    /// The last message on a lane: nothing follows.
    Stop,
}

/// One slot of a lane, and the stopwatch of the operation that holds it.
pub(crate) struct Ticket {
    _slot: OwnedSemaphorePermit,
    kind: OpKind,
    since: Instant,
    counters: Arc<Counters>,
}

impl Ticket {
    /// The stopwatch starts.
    pub(super) fn new(slot: OwnedSemaphorePermit, kind: OpKind, counters: Arc<Counters>) -> Ticket {
        Ticket { _slot: slot, kind, since: Instant::now(), counters }
    }

    /// Frees the slot, then replies. An answer nobody waits for is handed back.
    pub(crate) fn finish<T>(self, reply: Reply<T>, result: Result<T>) -> Option<T> {
        self.counters.op(self.kind, self.since.elapsed(), result.is_err());
        drop(self);
        reply.send(result)
    }
}
