//! Bytes from other people's servers: the guard every outgoing request passes, and the fetch of one stream into a blob.
//!
//! [`fetch()`] owns the connection and the partial file for as long as it runs; what becomes of the partial file when it
//! ends is written there. Called by `jobs`; the guard also by `plugins`.

pub mod guard;

mod answer;
mod digest;
mod fetch;
mod journal;
mod names;
mod retry;
mod sniff;
mod stream;
mod validators;

pub use fetch::{FetchRequest, Fetched, fetch};
pub use names::of_title;
