//! The node as its users meet it: the real executable, a real nginx, a real browser; one file per feature.
//!
//! One test executable for all of them, because linking is what costs time.

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod browser;
mod durability;
mod fetch_restart;
mod idle;
mod jobs;
mod large;
mod objects;
mod plugins;
mod seccomp;
mod shutdown;
mod transcode;
