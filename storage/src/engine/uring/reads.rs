//! Reads: a ring of their own on the reactor's thread, beside tokio-uring's.
//!
//! Reads are what is many and small. On tokio-uring's ring each costs a task and an interruption of the thread for its
//! completion; here an operation is a slot in a slab, and completions wait until the thread asks for them, all at once.
//! What that is worth, and what else was tried, is in docs/design/bridge.md.
//!
//! A slot owns file, buffer, permits and reply until the completion, whatever becomes of the caller. Dropping [`Reads`]
//! waits for what is in flight.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, opcode, types};
use rustix::event::EventfdFlags;
use slab::Slab;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::bridge::{NamedFile, Reply, Ticket};
use crate::buffer::Buffer;
use crate::engine::{Step, Transfer, end_if_panicking};
use crate::error::Error;
use crate::limits::READ_RING_ENTRIES;

/// How soon an operation is tried again for which the kernel had no resources.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(1);

/// `IORING_ENTER_GETEVENTS`: do what completions left for this thread to do.
const GETEVENTS: u32 = 1;

pub(super) struct Reads {
    ring: IoUring,
    /// The kernel signals it when completions begin to wait. Watched for its edges, so never read.
    bell: AsyncFd<OwnedFd>,
    slots: Slab<Read>,
    /// To be queued again after [`RETRY_AFTER`].
    paused: Vec<usize>,
    /// Files whose last user was a read: closing them is the reactor's work.
    pub(super) closing: Vec<NamedFile>,
}

/// One read under way.
pub(super) struct Read {
    pub(super) file: Arc<NamedFile>,
    pub(super) buffer: Buffer,
    pub(super) offset: u64,
    pub(super) progress: Transfer,
    pub(super) reply: Reply<Buffer>,
    pub(super) ticket: Ticket,
}

impl Reads {
    /// To be called on the thread that will use it, within its tokio runtime.
    pub(super) fn new() -> io::Result<Reads> {
        // Completions wait to be asked for (Linux 6.1), or at least do not interrupt the thread (5.19).
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(READ_RING_ENTRIES)
            .or_else(|_| IoUring::builder().setup_coop_taskrun().build(READ_RING_ENTRIES))
            .or_else(|_| IoUring::new(READ_RING_ENTRIES))?;
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        ring.submitter().register_eventfd(bell.as_raw_fd())?;
        // SAFETY: an `OwnedFd` names the same open descriptor for as long as it lives.
        let bell = unsafe { AsyncFd::register_with_interest(bell, Interest::READABLE) }?;
        let slots = Slab::with_capacity(READ_RING_ENTRIES as usize);
        Ok(Reads { ring, bell, slots, paused: Vec::new(), closing: Vec::new() })
    }

    pub(super) fn is_idle(&self) -> bool {
        self.slots.is_empty()
    }

    /// Some reads wait for [`RETRY_AFTER`] to pass, and then for [`resume`](Reads::resume).
    pub(super) fn has_paused(&self) -> bool {
        !self.paused.is_empty()
    }

    /// Queues a read, to be submitted by the next [`turn`](Reads::turn).
    pub(super) fn push(&mut self, read: Read) {
        let slot = self.slots.insert(read);
        self.queue(slot);
    }

    fn queue(&mut self, slot: usize) {
        let read = &mut self.slots[slot];
        let (done, len) = (read.progress.done, read.progress.len);
        let rest = &mut read.buffer.spare()[done..len];
        // The kernel takes at most 2 GiB at once; buffers are far smaller.
        let entry = opcode::Read::new(types::Fd(read.file.file.as_raw_fd()), rest.as_mut_ptr(), rest.len() as u32)
            .offset(read.offset + done as u64)
            .build()
            .user_data(slot as u64);
        // SAFETY: the slot owns descriptor and buffer, and is given up only at the completion.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the ring has an entry for every slot of the lane");
    }

    /// Queues again what was paused.
    pub(super) fn resume(&mut self) {
        for slot in std::mem::take(&mut self.paused) {
            self.queue(slot);
        }
    }

    /// Submits what is queued and answers what is complete. Never waits. Returns how many completed.
    pub(super) fn turn(&mut self) -> usize {
        let mut completed = 0;
        while !self.slots.is_empty() {
            let queued = self.ring.submission().len() as u32;
            // SAFETY: no argument is passed, and the entries are valid, as `queue` says.
            let entered = unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, 0, GETEVENTS, None) };
            // What the kernel did not take (it was short of memory, say) stays queued for a later turn.
            drop(entered);
            let before = completed;
            while let Some(completion) = self.next_completion() {
                self.complete(completion.user_data() as usize, completion.result());
                completed += 1;
            }
            // Reads that were cut short are queued again and must not wait.
            if completed == before || self.ring.submission().is_empty() {
                break;
            }
        }
        completed
    }

    fn next_completion(&mut self) -> Option<io_uring::cqueue::Entry> {
        self.ring.completion().next()
    }

    fn complete(&mut self, slot: usize, result: i32) {
        let result = if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result as usize) };
        let failure = match self.slots[slot].progress.step(result, Step::Complete) {
            Step::Again => return self.queue(slot),
            Step::Pause => return self.paused.push(slot),
            Step::Complete => None,
            Step::Failed(e) => Some(e),
        };
        let Read { file, mut buffer, progress, reply, ticket, .. } = self.slots.remove(slot);
        buffer.set_len(progress.done);
        let result = match failure {
            None => Ok(buffer),
            Some(e) => Err(Error::io("read", &file.path, e)),
        };
        self.closing.extend(Arc::into_inner(file));
        ticket.finish(reply, result);
    }

    /// Waits until something may have completed.
    pub(super) async fn ready(&self) {
        if self.slots.is_empty() {
            return std::future::pending().await;
        }
        match self.bell.readable().await {
            Ok(mut guard) => guard.clear_ready(),
            // Only while the runtime goes away; the turn that follows looks by itself.
            Err(_) => tokio::time::sleep(RETRY_AFTER).await,
        }
    }
}

impl Drop for Reads {
    fn drop(&mut self) {
        end_if_panicking();
        loop {
            for slot in std::mem::take(&mut self.paused) {
                drop(self.slots.remove(slot));
            }
            if self.slots.is_empty() {
                return;
            }
            if let Err(error) = self.ring.submit_and_wait(1)
                && error.kind() != io::ErrorKind::Interrupted
            {
                // The kernel may still write to the buffers.
                std::process::abort();
            }
            self.turn();
        }
    }
}
