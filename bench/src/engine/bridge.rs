//! `bridge` and `threads`: the node's own bridge, with its io_uring reactor or its pool of threads.
//!
//! An operation does what one of the node's does: it takes a buffer of the pool, waits for a slot of the lane, sends a command
//! and awaits the answer. Bytes to be written are copied into the buffer, as the node copies them from a socket; bytes that were
//! read are copied out only for a job that verifies them.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use reelring_storage::{Bridge, Error, How, NamedFile, Pool};

use super::{Access, Block, Done, Engine, ended};
use crate::plan::Op;

/// Bytes of the largest operation: the node makes none larger.
pub const LARGEST: u64 = reelring_storage::limits::BATCH_BYTES_MAX as u64;

pub struct Bridged {
    bridge: Bridge,
    files: Arc<[Arc<NamedFile>]>,
    pool: Pool,
    verifies: bool,
}

impl Bridged {
    /// `pool` is shared by all clones and has room for all their operations in flight.
    pub async fn open(
        bridge: Bridge,
        pool: Pool,
        paths: &[PathBuf],
        access: Access,
        verifies: bool,
    ) -> Result<Bridged, (PathBuf, io::Error)> {
        let how = match (access.write, access.direct) {
            (false, false) => How::Read,
            (false, true) => How::ReadDirect,
            (true, false) => How::Modify,
            (true, true) => How::WriteDirect,
        };
        let mut files = Vec::new();
        for path in paths {
            files.push(bridge.open(path, how).await.map_err(|error| (path.clone(), plain(error)))?);
        }
        Ok(Bridged { bridge, files: files.into(), pool, verifies })
    }
}

impl Engine for Bridged {
    fn start(&self, op: Op, mut block: Block) -> impl Future<Output = Done> + use<> {
        let (bridge, pool, verifies) = (self.bridge.clone(), self.pool.clone(), self.verifies);
        let file = Arc::clone(&self.files[usize::from(op.file())]);
        async move {
            let result = match op {
                Op::Read { offset, len, .. } => {
                    let buffer = pool.take(len as usize).await;
                    match bridge.read(&file, buffer, offset, len as usize).await {
                        Ok(read) if read.len() < len as usize => Err(ended()),
                        Ok(read) => {
                            if verifies {
                                block.bytes_mut()[..len as usize].copy_from_slice(read.as_slice());
                            }
                            Ok(len)
                        }
                        Err(error) => Err(plain(error)),
                    }
                }
                Op::Write { offset, len, .. } => {
                    let mut buffer = pool.take(len as usize).await;
                    buffer.fill(&block.bytes()[..len as usize]);
                    let written = match bridge.write(&file, buffer, offset).await {
                        Ok(pending) => pending.await,
                        Err(error) => Err(error),
                    };
                    written.map(|()| len).map_err(plain)
                }
                Op::Sync { data_only: true, .. } => bridge.sync(&file).await.map(|()| 0).map_err(plain),
                Op::Sync { data_only: false, .. } => bridge.sync_all(&file).await.map(|()| 0).map_err(plain),
            };
            // The bridge continues short transfers itself and does not count them.
            Done { block, result, short: 0 }
        }
    }
}

/// The error number, which the storage crate's error wraps in words the runner says itself.
fn plain(error: Error) -> io::Error {
    match error {
        Error::Io { source, .. } => source,
        Error::NoSpace { .. } => io::Error::from_raw_os_error(libc::ENOSPC),
        other => io::Error::other(other),
    }
}
