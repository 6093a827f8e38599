//! The node as its users meet it: the real executable, a real nginx, a real browser; one file per feature.
//!
//! One test executable for all of them, because linking is what costs time.

#[path = "../support/mod.rs"]
mod support;

/// Real file systems to be broken; storage's tests use the same.
#[allow(dead_code, reason = "the storage tests use the rest")]
#[path = "../../storage/tests/common/file_system.rs"]
mod mounted;

mod access;
mod bad_input;
mod browser;
mod clients;
mod dropped;
mod durability;
mod fetch_restart;
mod file_system;
mod following;
mod fuzz;
mod hot;
mod http2;
mod http2_heads;
mod http2_suite;
mod idle;
mod integrity;
mod jobs;
mod large;
mod metrics;
mod objects;
mod overload;
mod plugins;
mod seccomp;
mod semantics;
mod shutdown;
mod tls;
mod transcode;
mod uploads;
mod volumes;
mod wire;
