//! `raw`: tokio-uring without the bridge, on a thread of each clone.
//!
//! The thread's runtime submits what was queued when it parks, or when the submission queue is full. The queue is kept
//! short, so that the disk begins with the first operations of a deep job while the rest are still being prepared. An operation in flight holds its block and the files; tokio-uring keeps both until the
//! completion even if the future is dropped.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::rc::Rc;

use io_uring::{cqueue, opcode, squeue, types};
use tokio_uring::{InFlightOneshot, OneshotOutputTransform, UnsubmittedOneshot};

use super::{Access, Block, Done, Engine, ended, open_all};
use crate::limits::RETRIES;
use crate::plan::Op;

/// Entries of the submission queue. With one as long as the depth, 64 reads in flight reached about a tenth fewer
/// operations per second: the disk waited while all 64 were queued.
const SUBMITTED_AT_ONCE: u32 = 16;

pub struct Raw {
    files: Rc<[File]>,
}

impl Raw {
    pub fn open(paths: &[PathBuf], access: Access) -> Result<Raw, (PathBuf, io::Error)> {
        Ok(Raw { files: open_all(paths, access)?.into() })
    }

    /// A runtime for one clone. The completion queue has room for every operation in flight, so that the kernel can always
    /// take what is submitted; a full submission queue is submitted at once.
    pub fn runtime(iodepth: u32) -> io::Result<tokio_uring::Runtime> {
        let mut ring = tokio_uring::uring_builder();
        // One thread submits, and completions need no interrupt of it: it looks when it parks. DEFER_TASKRUN, which would go
        // further, hangs tokio-uring 0.5.
        let completions = 2 * iodepth.next_power_of_two().max(SUBMITTED_AT_ONCE);
        ring.setup_cqsize(completions).setup_coop_taskrun().setup_single_issuer();
        let mut builder = tokio_uring::builder();
        builder.entries(SUBMITTED_AT_ONCE).uring_builder(&ring);
        match tokio_uring::Runtime::new(&builder) {
            // Kernels before 6.0 do not know the flags.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let mut plain = tokio_uring::uring_builder();
                tokio_uring::Runtime::new(builder.uring_builder(plain.setup_cqsize(completions)))
            }
            other => other,
        }
    }
}

impl Engine for Raw {
    fn start(&self, op: Op, block: Block) -> impl Future<Output = Done> + use<> {
        let mut held = Held { block, files: Rc::clone(&self.files) };
        // In the ring before this returns; the kernel sees it when the thread parks.
        let entry = held.entry(op, 0);
        let mut call = submit(held, entry);
        async move {
            let (mut done, mut short, mut retries) = (0, 0, 0);
            loop {
                let (result, held) = call.await;
                let finish = move |held: Held, result| Done { block: held.block, result, short };
                let error = match (result, op) {
                    (Ok(_), Op::Sync { .. }) => return finish(held, Ok(0)),
                    (Ok(0), Op::Read { .. }) => return finish(held, Err(ended())),
                    (Ok(0), Op::Write { .. }) => return finish(held, Err(io::ErrorKind::WriteZero.into())),
                    (Ok(count), Op::Read { len, .. } | Op::Write { len, .. }) => {
                        done += count;
                        if done >= len {
                            return finish(held, Ok(done));
                        }
                        short += 1;
                        None
                    }
                    (Err(error), _) => Some(error),
                };
                if let Some(error) = error {
                    retries += 1;
                    let transient = matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN));
                    // A failed sync may have dropped the dirty pages: repeating it would hide that.
                    if !transient || retries > RETRIES || matches!(op, Op::Sync { .. }) {
                        return finish(held, Err(error));
                    }
                }
                let mut held = held;
                let entry = held.entry(op, done);
                call = submit(held, entry);
            }
        }
    }
}

/// Everything an entry points to.
struct Held {
    block: Block,
    files: Rc<[File]>,
}

impl Held {
    /// The entry for what is left of an operation after `done` bytes.
    fn entry(&mut self, op: Op, done: u32) -> squeue::Entry {
        let fd = |file: u16| types::Fd(self.files[usize::from(file)].as_raw_fd());
        match op {
            Op::Read { file, offset, len } => {
                let fd = fd(file);
                let rest = &mut self.block.bytes_mut()[done as usize..len as usize];
                opcode::Read::new(fd, rest.as_mut_ptr(), len - done).offset(offset + u64::from(done)).build()
            }
            Op::Write { file, offset, len } => {
                let rest = &self.block.bytes()[done as usize..len as usize];
                opcode::Write::new(fd(file), rest.as_ptr(), len - done).offset(offset + u64::from(done)).build()
            }
            Op::Sync { file, data_only } => {
                let flags = if data_only { types::FsyncFlags::DATASYNC } else { types::FsyncFlags::empty() };
                opcode::Fsync::new(fd(file)).flags(flags).build()
            }
        }
    }
}

struct HandBack;

impl OneshotOutputTransform for HandBack {
    type Output = (io::Result<u32>, Held);
    type StoredData = Held;

    fn transform_oneshot_output(self, held: Held, cqe: cqueue::Entry) -> Self::Output {
        let result = cqe.result();
        (if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result as u32) }, held)
    }
}

/// Queues an entry. `held` owns every address and descriptor it names: a block's bytes stay where they are when it moves.
fn submit(held: Held, entry: squeue::Entry) -> InFlightOneshot<Held, HandBack> {
    UnsubmittedOneshot::new(held, HandBack, entry).submit()
}
