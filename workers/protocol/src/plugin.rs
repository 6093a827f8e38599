//! Node ⇄ `reelring-plugin`.
//!
//! ```text
//! worker → Hello
//! node   → Load       the plugin's text behind it, once
//! worker → Loaded     its manifest, or LoadFailed
//! node   → Extract    any number of them, several at a time
//! worker → Begun      JavaScript is running it, so the engine is not stuck in another one
//! worker → Fetch      on behalf of one of them, since a worker has no network; the node answers Fetched or FetchFailed
//! worker → Extracted  or ExtractFailed
//! ```
//! `Log` may come at any time, `Dying` instead of any answer. Texts and bodies travel behind their message as they are.
//! Manifests and results stay JSON text: the node parses them itself, since it trusts no worker.

use serde::{Deserialize, Serialize};

/// The name the worker gives in its [`Hello`](crate::Hello), and its executable's.
pub const WORKER: &str = "reelring-plugin";

/// From the node to the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToWorker {
    /// The plugin's text follows. `file` is its name for messages, never a path; `cpu_s` is the processor time that
    /// loading may take.
    Load { file: String, cpu_s: u64 },
    /// Call the plugin's `extract(url, ctx)`. `call` is chosen by the node.
    Extract { call: u64, url: String, cpu_s: u64 },
    /// The answer to a fetch; the body follows.
    Fetched { fetch: u64, status: u16, url: String, headers: Vec<(String, String)> },
    /// A fetch that failed, for the plugin to catch.
    FetchFailed { fetch: u64, message: String },
}

/// From the worker to the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToNode {
    /// The plugin is loaded and has an `extract`. The JSON of its manifest follows, `null` without one.
    Loaded,
    /// The plugin could not be loaded.
    LoadFailed { error: ScriptError },
    /// The engine has come to this call.
    Begun { call: u64 },
    /// `ctx.fetch`, on behalf of a call; the request's body follows if it `has_body`.
    Fetch { call: u64, fetch: u64, method: String, url: String, headers: Vec<(String, String)>, has_body: bool },
    /// `extract` returned; the JSON of its result follows.
    Extracted { call: u64 },
    /// `extract` threw.
    ExtractFailed { call: u64, error: ScriptError },
    /// A line of the plugin's console.
    Log { level: LogLevel, text: String },
    /// The worker is about to end; every call in flight is lost.
    Dying { reason: Dying },
}

/// An error of the plugin's code and where it happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptError {
    /// `TypeError: cannot read property 'x' of null`
    pub message: String,
    pub at: Option<Position>,
}

/// A place in the plugin's file, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub line: u32,
    pub column: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}

/// Why a worker ends of its own accord.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dying {
    /// The JavaScript heap reached its limit.
    OutOfMemory { limit_bytes: u64 },
}

/// Bounds both sides keep: the worker so that an author gets an error in the place that caused it, the node because it
/// trusts no worker.
pub mod limits {
    /// A plugin's source text, in bytes.
    pub const SOURCE_BYTES: usize = 1 << 20;
    /// The JSON of a manifest or of a result, in bytes.
    pub const RESULT_BYTES: usize = 1 << 20;
    /// An error's message and a console line, in bytes; longer ones are cut.
    pub const TEXT_BYTES: usize = 4 << 10;
    /// Console lines of one call; further ones are dropped and one line says so.
    pub const LOG_LINES: u32 = 200;
    /// `ctx.fetch`es of one call, and of one worker at the same time.
    pub const FETCHES_PER_CALL: u32 = 64;
    pub const FETCHES_IN_FLIGHT: usize = 4;
    /// Body of a fetch's answer and of its request, in bytes.
    pub const FETCH_BODY_BYTES: usize = crate::limits::PAYLOAD_BYTES_MAX;
    pub const FETCH_REQUEST_BYTES: usize = 1 << 20;
    /// Headers of a fetch, either way, and the bytes of their names and values.
    pub const FETCH_HEADERS: usize = 100;
    pub const FETCH_HEADER_BYTES: usize = 32 << 10;
    /// A method and a URL, in bytes.
    pub const METHOD_BYTES: usize = 16;
    pub const URL_BYTES: usize = 8 << 10;
    /// Calls in flight in one worker; further ones wait in the node.
    pub const CALLS_IN_FLIGHT: usize = 64;
    /// The JavaScript heap, and the address space of the whole process, in bytes.
    pub const HEAP_BYTES: usize = 128 << 20;
    pub const ADDRESS_SPACE_BYTES: u64 = 768 << 20;
}
