//! Reelring, a media storage node. The map is docs/architecture.md.
//!
//! Data flows down this list; nothing below names anything above.

pub mod cli;

pub mod http;
pub mod node;

pub mod jobs;

pub mod ingest;
pub mod plugins;
pub mod transcode;
pub mod uploads;

pub mod access;
pub mod address;
pub mod config;
pub mod error;
pub mod limits;
pub mod media_type;
pub mod progress;
pub mod size;
pub mod telemetry;
pub mod web_origin;
