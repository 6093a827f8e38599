//! The messages between the node and its workers, and nothing else.
//!
//! A worker is a separate executable that talks to the node over one Unix stream socket (its standard input). Everything
//! on that socket is a [`frame`]: a small JSON message, optionally followed by bytes. This package does no I/O of its own
//! choosing: [`frame::decode`] works on a buffer the node fills with tokio, [`frame::FrameReader`] and
//! [`frame::FrameWriter`] on any blocking stream, and both follow the same bounds ([`limits`]).
//!
//! Neither side trusts the other's frames: a length is checked before it is believed, memory grows with the bytes that
//! arrived and not with the bytes that were announced, and a message that does not parse is a named error.

pub mod frame;
pub mod hello;
pub mod limits;
pub mod plugin;
pub mod transcode;

pub use frame::{Frame, FrameError, FrameReader, FrameWriter, decode, encode};
pub use hello::{Hello, HelloError, VERSION};
