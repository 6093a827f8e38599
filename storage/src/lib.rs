//! Reelring's storage: blobs on disk, the catalog that names them, and the bridge between tokio
//! and the io_uring reactor. It knows nothing of HTTP, FFmpeg or JavaScript.
//!
//! The way in is [`Store`]. Bytes go in through a [`BlobWriter`], become a [`SealedBlob`], and are
//! acknowledged by [`Store::commit`]; they come out through a [`BlobReader`]. Everything that
//! blocks happens on a thread of its own: the engine's (`engine/`), or the catalog's (`catalog/`).
//!
//! Dropping any future of this crate is safe. What that means for the work already under way is
//! written at the head of the module that owns it.

mod attach;
mod blob;
mod bridge;
mod buffer;
mod catalog;
mod claim;
mod clock;
mod directory;
mod engine;
mod error;
mod group_sync;
mod health;
#[cfg(test)]
mod histories;
mod id;
mod identity;
mod key;
pub mod limits;
mod lock;
mod open;
mod open_blobs;
mod partials;
mod presence;
mod quarantine;
mod read_path;
mod rebuild;
mod room;
mod sabotage;
mod scrub;
mod stats;
mod store;
mod sweep;
mod volume;
mod volumes;

pub use blob::format::{Footer, Section};
pub use blob::{BlobMeta, BlobReader, BlobWriter, SealedBlob};
pub use bridge::{Bridge, How, NamedFile, Pending};
pub use buffer::{Buffer, Pool};
pub use catalog::Catalog;
pub use catalog::objects::{ObjectRecord, Precondition, PutOutcome};
pub use engine::{EngineChoice, EngineInfo};
pub use error::{Error, NoRoom, Result, RoomLimit};
pub use id::BlobId;
pub use key::{Key, KeyError};
pub use quarantine::Quarantined;
pub use rebuild::{LeftOut, Rebuild, RebuildProgress, RebuildReport};
pub use room::RoomLimits;
pub use rusqlite;
pub use scrub::{ScrubCounts, ScrubOptions, ScrubProgress, ScrubResult, ScrubStatus};
pub use stats::{OP_SECONDS_BUCKETS, OpStats, StoreStats, VolumeState, VolumeStats};
pub use store::{Store, StoreOptions};
