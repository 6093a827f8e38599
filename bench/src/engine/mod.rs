//! Engines: ways of carrying out the operations of a clone.
//!
//! `raw` is tokio-uring on the clone's own thread, `bridge` and `threads` are the node's bridge with its two engines, `mmap`
//! copies to and from a map, `http` asks a node. The runner (`run/lane.rs`) drives all of them alike: it starts an operation
//! with the block it needs and awaits what comes back.
//!
//! An engine owns its open files. An operation owns its block until it is over; dropping the future of one that the kernel has
//! gives up the answer, and the block is freed after the kernel is done with it.

mod block;
mod bridge;
mod http;
mod mmap;
mod node;
mod raw;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

pub use block::Block;
pub use bridge::{Bridged, LARGEST as BRIDGE_LARGEST};
pub use http::Http;
pub use mmap::{Mapped, watch_for_faults};
pub use node::Node;
pub use raw::Raw;

use crate::plan::Op;

/// What one operation gave.
pub struct Done {
    pub block: Block,
    /// Bytes moved: all of them, or it is an error.
    pub result: io::Result<u32>,
    /// How often the kernel moved fewer bytes than asked, and was asked for the rest.
    pub short: u32,
}

pub trait Engine {
    /// Starts an operation. What is read lies at the start of the block afterwards; what is to be written, before.
    fn start(&self, op: Op, block: Block) -> impl Future<Output = Done> + use<Self>;
}

/// What a clone may do with its files.
#[derive(Clone, Copy)]
pub struct Access {
    pub write: bool,
    pub direct: bool,
}

/// Opens the files of a clone; the error names the one that failed.
fn open_all(paths: &[PathBuf], access: Access) -> Result<Vec<File>, (PathBuf, io::Error)> {
    let open = |path: &PathBuf| {
        let direct = if access.direct { libc::O_DIRECT } else { 0 };
        let opened = OpenOptions::new().read(true).write(access.write).custom_flags(direct).open(path);
        opened.map_err(|error| (path.clone(), error))
    };
    paths.iter().map(open).collect()
}

/// What zero bytes read mean to a benchmark that laid the file out: it is not the file any more.
fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends there: it was shortened while the job ran")
}
