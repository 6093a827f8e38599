//! Reelring, a media storage node. The map is docs/architecture.md.
//!
//! Data flows down this list; nothing below names anything above.

pub mod config;
pub mod error;
pub mod ingest;
pub mod limits;
pub mod progress;
