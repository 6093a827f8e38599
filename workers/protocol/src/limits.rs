//! Every bound of the protocol.

/// The JSON message of one frame. The largest is a list of log lines or a plugin's manifest.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// The bytes that may follow a message. Longer data is sent as several frames.
pub const PAYLOAD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What a worker puts in one frame of segment data, so that the node's memory per worker stays small.
pub const SEGMENT_CHUNK_BYTES: usize = 256 * 1024;

/// Reading grows its buffer by at most this much at a time: a lying length costs no memory.
pub const READ_STEP_BYTES: usize = 64 * 1024;

/// Lines of FFmpeg's log that accompany a failure.
pub const LOG_LINES_MAX: usize = 24;

/// One line of it.
pub const LOG_LINE_BYTES_MAX: usize = 400;
