//! Reelring's storage: blobs on disk, the catalog that names them, and the bridge between tokio
//! and the io_uring reactor. It knows nothing of HTTP, FFmpeg or JavaScript.
//!
//! The way in is [`Store`]. Bytes go in through a [`BlobWriter`], become a [`SealedBlob`], and are
//! acknowledged by [`Store::commit`]; they come out through a [`BlobReader`]. Everything that
//! blocks happens on a thread of its own: the engine's (`engine/`), or the catalog's (`catalog/`).
//!
//! | room | what is in it |
//! |---|---|
//! | `store/` | opening, placing, committing, listing, rebuilding: what ties files to the catalog |
//! | `blob/` | one blob: its format, writing it, resuming it, reading it |
//! | `catalog/` | SQLite: the tables, the one writer |
//! | `volume/` | one disk: its room, its health, its syncs, what is quarantined on it |
//! | `scrub/` | looking at every blob again |
//! | `bridge/`, `engine/` | the way to the reactor, and the reactor |
//! | `histories/` | tests: random lives of a store on a disk that lies, and the oracle |
//!
//! Dropping any future of this crate is safe. What that means for the work already under way is
//! written at the head of the module that owns it.

mod blob;
mod bridge;
mod budget;
mod buffer;
mod catalog;
mod clock;
mod engine;
mod error;
#[cfg(test)]
mod histories;
mod id;
mod key;
pub mod limits;
mod linux;
mod sabotage;
mod scrub;
mod stats;
mod store;
mod volume;

pub use blob::format::{Footer, Section};
pub use blob::{
    Arrival, BlobMeta, BlobReader, BlobWriter, Chunk, Fetch, Fetched, FileRegion, Follower, SealedBlob, Wanted,
};
pub use bridge::{Bridge, How, NamedFile, Pending};
pub use budget::Payer;
pub use buffer::{Buffer, Pool};
pub use catalog::Catalog;
pub use catalog::objects::{Entry, ObjectRecord, Precondition, PutOutcome};
pub use engine::{EngineChoice, EngineInfo};
pub use error::{Error, NoRoom, Result, RoomLimit};
pub use id::BlobId;
pub use key::{Key, KeyError};
pub use rusqlite;
pub use scrub::{ScrubCounts, ScrubOptions, ScrubProgress, ScrubResult, ScrubStatus};
pub use stats::{OP_SECONDS_BUCKETS, OpStats, StoreStats, VolumeState, VolumeStats};
pub use store::rebuild::{LeftOut, Rebuild, RebuildProgress, RebuildReport};
pub use store::writing::KeyWriter;
pub use store::{Store, StoreOptions};
pub use volume::quarantine::Quarantined;
pub use volume::room::RoomLimits;
