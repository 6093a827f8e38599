//! The bridge between tokio and an engine: lanes, slots, the doorbell.
//!
//! A caller takes a slot of its lane (an async semaphore: waiting is fair and blocks no thread),
//! sends one [`Command`] over the lane's bounded crossbeam channel, and awaits a oneshot. A channel
//! has room for every slot of its lane, so a send never waits; the slots of all lanes together are
//! fewer than half the completion queue, so the ring never overflows. Reads, writes, syncs and
//! names (open, rename, unlink…) have lanes of their own: long fsyncs fill their lane and no other.
//!
//! Who owns what: a command owns the file, the buffer (with its byte permits), the slot and the
//! reply. The engine holds all four until the kernel is done with them, then frees the slot and the
//! write buffer *before* it replies. A caller that goes away loses only the answer: the operation
//! runs to its end, and what it would have been given is dropped by the engine.

mod command;
mod doorbell;

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

pub(crate) use self::command::{Command, Landed, Message, Op, Reach, Reply, Ticket, VolumeSync};
pub use self::command::{How, NamedFile};
pub(crate) use self::doorbell::Doorbell;
use crate::buffer::Buffer;
use crate::engine::{Engine, EngineChoice, EngineInfo, choose};
use crate::error::{Error, Result};
use crate::limits;
use crate::stats::{Counters, OpKind};
use crate::volume::claim::Claim;

/// The engine's end of the lanes.
pub(crate) struct Intake {
    pub(crate) lanes: [Receiver<Message>; LANES],
    pub(crate) doorbell: Arc<Doorbell>,
    pub(crate) counters: Arc<Counters>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    Read,
    Write,
    Sync,
    Names,
}

pub(crate) const LANES: usize = 4;

struct LaneIn {
    messages: Sender<Message>,
    slots: Arc<Semaphore>,
    size: usize,
}

struct Shared {
    lanes: [LaneIn; LANES],
    doorbell: Arc<Doorbell>,
    counters: Arc<Counters>,
    closing: AtomicBool,
    info: EngineInfo,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// The callers' end. Dropping the last clone lets the engine finish what it has and go.
#[derive(Clone)]
pub struct Bridge {
    shared: Arc<Shared>,
}

impl Bridge {
    /// Starts the chosen engine.
    pub fn start(choice: EngineChoice) -> Result<Bridge> {
        let (engine, info) = choose(choice)?;
        Bridge::over(&*engine, info)
    }

    /// Starts this engine.
    pub(crate) fn over(engine: &dyn Engine, info: EngineInfo) -> Result<Bridge> {
        let counters = Arc::new(Counters::default());
        let doorbell = Arc::new(Doorbell::default());
        let sizes = [
            limits::READS_IN_FLIGHT_MAX,
            limits::WRITES_IN_FLIGHT_MAX,
            limits::SYNCS_IN_FLIGHT_MAX,
            limits::NAMES_IN_FLIGHT_MAX,
        ];
        // Room for the stop messages too, one for each thread that may listen on the lane.
        let channels = sizes.map(|size| crossbeam_channel::bounded(size + limits::SYNCS_IN_FLIGHT_MAX));
        let intake = Intake {
            lanes: channels.each_ref().map(|(_, receiver)| receiver.clone()),
            doorbell: Arc::clone(&doorbell),
            counters: Arc::clone(&counters),
        };
        let mut sizes = sizes.into_iter();
        let lanes = channels.map(|(messages, _)| {
            let size = sizes.next().expect("a size for every lane");
            LaneIn { messages, slots: Arc::new(Semaphore::new(size)), size }
        });
        let threads =
            engine.start(intake).map_err(|e| Error::EngineRefused { engine: info.name, reason: e.to_string() })?;
        let threads = Mutex::new(threads);
        let closing = AtomicBool::new(false);
        Ok(Bridge { shared: Arc::new(Shared { lanes, doorbell, counters, closing, info, threads }) })
    }

    pub fn info(&self) -> &EngineInfo {
        &self.shared.info
    }

    /// Reads `len` bytes at `offset`, fewer only where the file ends.
    pub async fn read(&self, file: &Arc<NamedFile>, buffer: Buffer, offset: u64, len: usize) -> Result<Buffer> {
        assert!(len <= buffer.capacity(), "a read of {len} bytes into a buffer of {}", buffer.capacity());
        let file = Arc::clone(file);
        let slot = self.slot(Lane::Read).await?;
        self.send(Lane::Read, slot, OpKind::Read, |reply| Op::Read { file, buffer, offset, len, reply }).await
    }

    /// Starts a read if there is a slot now, without waiting.
    pub(crate) fn try_read(
        &self,
        file: &Arc<NamedFile>,
        buffer: Buffer,
        offset: u64,
        len: usize,
    ) -> Option<Pending<Buffer>> {
        assert!(len <= buffer.capacity(), "a read of {len} bytes into a buffer of {}", buffer.capacity());
        let file = Arc::clone(file);
        let slot = self.try_slot(Lane::Read)?;
        Some(self.send(Lane::Read, slot, OpKind::Read, |reply| Op::Read { file, buffer, offset, len, reply }))
    }

    /// Starts writing the buffer at `offset`; the write goes on whether or not the result is awaited.
    pub async fn write(&self, file: &Arc<NamedFile>, buffer: Buffer, offset: u64) -> Result<Pending<()>> {
        self.write_telling(file, buffer, offset, None).await
    }

    /// The same, and calls `landed` once the bytes are in the file.
    pub(crate) async fn write_telling(
        &self,
        file: &Arc<NamedFile>,
        buffer: Buffer,
        offset: u64,
        landed: Option<Landed>,
    ) -> Result<Pending<()>> {
        let file = Arc::clone(file);
        let slot = self.slot(Lane::Write).await?;
        Ok(self.send(Lane::Write, slot, OpKind::Write, |reply| Op::Write {
            file,
            buffer,
            offset,
            reply: reply.telling(landed),
        }))
    }

    /// fdatasync. Await the completion of the writes first: a sync covers nothing still in flight.
    pub async fn sync(&self, file: &Arc<NamedFile>) -> Result<()> {
        self.sync_reaching(file, Reach::Data).await
    }

    /// fsync: also what is not needed to find the bytes, times for instance.
    pub async fn sync_all(&self, file: &Arc<NamedFile>) -> Result<()> {
        self.sync_reaching(file, Reach::All).await
    }

    /// fsync of a directory: the names in it.
    pub(crate) async fn sync_directory(&self, directory: &Arc<NamedFile>) -> Result<()> {
        self.sync_reaching(directory, Reach::All).await
    }

    async fn sync_reaching(&self, file: &Arc<NamedFile>, reach: Reach) -> Result<()> {
        let file = Arc::clone(file);
        let slot = self.slot(Lane::Sync).await?;
        self.send(Lane::Sync, slot, OpKind::Sync, |reply| Op::Sync { file, reach, reply }).await
    }

    /// Syncs the whole file system of `directory`, if that is allowed.
    pub(crate) async fn sync_volume(&self, directory: &Arc<NamedFile>) -> Result<VolumeSync> {
        let directory = Arc::clone(directory);
        let slot = self.slot(Lane::Sync).await?;
        self.send(Lane::Sync, slot, OpKind::SyncVolume, |reply| Op::SyncVolume { directory, reply }).await
    }

    pub async fn allocate(&self, file: &Arc<NamedFile>, len: u64) -> Result<()> {
        let file = Arc::clone(file);
        let slot = self.slot(Lane::Names).await?;
        self.send(Lane::Names, slot, OpKind::Allocate, |reply| Op::Allocate { file, len, reply }).await
    }

    pub(crate) async fn truncate(&self, file: &Arc<NamedFile>, len: u64) -> Result<()> {
        let file = Arc::clone(file);
        let slot = self.slot(Lane::Names).await?;
        self.send(Lane::Names, slot, OpKind::Truncate, |reply| Op::Truncate { file, len, reply }).await
    }

    pub async fn open(&self, path: &Path, how: How) -> Result<Arc<NamedFile>> {
        let path = path.to_owned();
        let slot = self.slot(Lane::Names).await?;
        self.send(Lane::Names, slot, OpKind::Open, |reply| Op::Open { path, how, reply }).await.map(Arc::new)
    }

    /// Opens a file that belongs to a claim.
    pub(crate) async fn open_claimed(&self, path: &Path, how: How, claim: Arc<Claim>) -> Result<Arc<NamedFile>> {
        let path = path.to_owned();
        let slot = self.slot(Lane::Names).await?;
        let mut file = self.send(Lane::Names, slot, OpKind::Open, |reply| Op::Open { path, how, reply }).await?;
        file.claim = Some(claim);
        Ok(Arc::new(file))
    }

    pub(crate) async fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let (from, to) = (from.to_owned(), to.to_owned());
        let slot = self.slot(Lane::Names).await?;
        self.send(Lane::Names, slot, OpKind::Rename, |reply| Op::Rename { from, to, reply }).await
    }

    /// Removes a name; a name that is not there is no error.
    pub async fn unlink(&self, path: &Path) -> Result<()> {
        let path = path.to_owned();
        let slot = self.slot(Lane::Names).await?;
        self.send(Lane::Names, slot, OpKind::Unlink, |reply| Op::Unlink { path, reply }).await
    }

    /// Makes one directory; one that is there is no error.
    pub(crate) async fn make_directory(&self, path: &Path) -> Result<()> {
        let path = path.to_owned();
        let slot = self.slot(Lane::Names).await?;
        self.send(Lane::Names, slot, OpKind::MakeDirectory, |reply| Op::MakeDirectory { path, reply }).await
    }

    /// The names in a directory, in no particular order.
    pub(crate) async fn list(&self, path: &Path) -> Result<Vec<String>> {
        let path = path.to_owned();
        let slot = self.slot(Lane::Names).await?;
        self.send(Lane::Names, slot, OpKind::List, |reply| Op::List { path, reply }).await
    }

    /// Closes a file on the engine. The last close of a large unlinked file frees its blocks, which
    /// may take tens of milliseconds; only when no slot is free is it done here and now.
    pub(crate) fn close_file(&self, file: NamedFile) {
        if let Some(slot) = self.try_slot(Lane::Names) {
            drop(self.send(Lane::Names, slot, OpKind::Close, |reply| Op::Close { file, reply }));
        }
    }

    /// Lets what is in flight complete, refuses the rest, and ends the engine's threads.
    pub async fn close(&self) {
        if self.shared.closing.swap(true, SeqCst) {
            return;
        }
        for lane in &self.shared.lanes {
            // All slots back means that everything sent has completed. Later callers find
            // `closing` once they have their slot.
            let all = lane.slots.acquire_many(lane.size as u32).await;
            drop(all);
        }
        self.shared.stop();
        let threads = std::mem::take(&mut *self.shared.threads.lock().unwrap_or_else(PoisonError::into_inner));
        if threads.is_empty() {
            return;
        }
        let joined = tokio::task::spawn_blocking(move || threads.into_iter().map(JoinHandle::join).all(|r| r.is_ok()));
        if !joined.await.unwrap_or(false) {
            tracing::error!("an engine thread had panicked");
        }
    }

    /// Operations handed to the engine and not complete.
    pub fn inflight(&self) -> usize {
        self.shared.lanes.iter().map(|lane| lane.size - lane.slots.available_permits().min(lane.size)).sum()
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    async fn slot(&self, lane: Lane) -> Result<OwnedSemaphorePermit> {
        if let Some(slot) = self.try_slot(lane) {
            return Ok(slot);
        }
        if self.shared.closing.load(Acquire) {
            return Err(Error::Closed);
        }
        let waiting = Waiting::new(&self.shared.counters);
        let slot = Arc::clone(&self.shared.lanes[lane as usize].slots).acquire_owned().await;
        drop(waiting);
        match slot {
            Ok(slot) if !self.shared.closing.load(Acquire) => Ok(slot),
            _ => Err(Error::Closed),
        }
    }

    pub(crate) fn try_slot(&self, lane: Lane) -> Option<OwnedSemaphorePermit> {
        let slot = Arc::clone(&self.shared.lanes[lane as usize].slots).try_acquire_owned().ok()?;
        (!self.shared.closing.load(Acquire)).then_some(slot)
    }

    pub(crate) fn send<T>(
        &self,
        lane: Lane,
        slot: OwnedSemaphorePermit,
        kind: OpKind,
        op: impl FnOnce(Reply<T>) -> Op,
    ) -> Pending<T> {
        let (sender, result) = oneshot::channel();
        let reply = Reply::to(sender);
        let counters = Arc::clone(&self.shared.counters);
        let ticket = Ticket::new(slot, kind, counters);
        let message = Message::Run(Box::new(Command { op: op(reply), ticket }));
        // A send fails only when the engine is gone; the reply goes with the message, and the
        // caller finds `Closed`.
        if self.shared.lanes[lane as usize].messages.try_send(message).is_ok() && self.shared.doorbell.ring() {
            self.shared.counters.doorbell_rings.fetch_add(1, Relaxed);
        }
        Pending { result }
    }
}

impl Shared {
    /// Tells every thread to end once it has emptied its lane: a lane has room for one `Stop` for
    /// each thread beyond its slots, and more of them do no harm.
    fn stop(&self) {
        for lane in &self.lanes {
            while lane.messages.try_send(Message::Stop).is_ok() {}
        }
        self.doorbell.ring();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An operation under way. Dropping it gives up the answer, not the operation.
pub struct Pending<T> {
    result: oneshot::Receiver<Result<T>>,
}

impl<T> Future for Pending<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let result = ready!(Pin::new(&mut self.result).poll(cx));
        Poll::Ready(result.unwrap_or(Err(Error::Closed)))
    }
}

/// Counts a caller in the queue for a slot, however its wait ends.
struct Waiting<'a>(&'a Counters);

impl<'a> Waiting<'a> {
    fn new(counters: &'a Counters) -> Waiting<'a> {
        counters.waiting.fetch_add(1, Relaxed);
        Waiting(counters)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}
