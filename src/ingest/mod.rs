//! Bytes from other people's servers: the guard every outgoing request passes, and the fetch of one stream into a blob.

pub mod guard;
