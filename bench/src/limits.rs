//! Every bound of reelring-bench, in one place.

use std::time::Duration;

/// Bytes of one job file.
pub const JOB_FILE_BYTES: u64 = 1 << 20;
/// Bytes of one line of a job file.
pub const JOB_LINE_BYTES: usize = 4096;
/// Sections of all job files and flags together.
pub const SECTIONS: usize = 256;
/// Bytes of a job's name.
pub const NAME_BYTES: usize = 200;
/// Clones of one section.
pub const NUMJOBS: u32 = 256;
/// Clones of all sections together.
pub const CLONES: usize = 1024;
/// Operations in flight of one clone.
pub const IODEPTH: u32 = 4096;
/// Files of one job.
pub const FILES: usize = 256;
/// Bytes of one operation.
pub const BLOCK_BYTES: u64 = 64 << 20;
/// Bytes of the files of one job: the largest offset a file system takes, well under an overflow.
pub const SIZE_BYTES: u64 = 1 << 60;
/// Blocks one file may have where the plan remembers which it has touched: 1 bit each, 512 MiB at most.
pub const MAPPED_BLOCKS: u64 = 1 << 32;

/// Measured rounds of each side of a comparison.
pub const ROUNDS: u32 = 100;
/// As many as it takes until one wild pair does not reach the ends of the interval.
pub const DEFAULT_ROUNDS: u32 = 16;
/// A round of `--quick`.
pub const QUICK_ROUND: Duration = Duration::from_millis(500);
/// Runs of one block that tell what starting a program costs.
pub const START_RUNS: usize = 3;
/// Points of a latency distribution in a report.
pub const CDF_POINTS: usize = 200;
/// Repetitions of a comparison of an engine with itself.
pub const REPEAT: u32 = 1000;
/// Bytes a measured program may write to its standard output: fio's JSON with all its bins.
pub const STDOUT: usize = 64 << 20;
/// Bytes kept of what it writes to standard error.
pub const STDERR_TAIL: usize = 8 << 10;
/// Lines of that in an error.
pub const STDERR_LINES: usize = 12;
/// Characters of a program's version.
pub const VERSION_CHARS: usize = 120;
/// How long a server may take until it accepts connections.
pub const PEER_START: Duration = Duration::from_secs(15);
/// How long a program that was asked to end may take before it is killed.
pub const PEER_GRACE: Duration = Duration::from_secs(2);
/// Processes of one measured server.
pub const FAMILY: usize = 4096;

/// Bytes of pictures inside one HTML report; what does not fit is named there.
pub const HTML_PICTURE_BYTES_MAX: usize = 480 << 10;
/// Bytes of results inside one HTML report; distributions are thinned until they fit.
pub const HTML_DATA_BYTES_MAX: usize = 320 << 10;

/// How long a peer on loopback may be silent in the middle of a request.
pub const HTTP_SILENCE: Duration = Duration::from_secs(60);
/// Bytes of an answer's head.
pub const HTTP_HEAD_BYTES: u64 = 64 << 10;
/// Bytes of an answer that is kept in memory.
pub const HTTP_TEXT_BYTES: u64 = 4 << 20;
/// Bytes of a refusal that are shown.
pub const HTTP_COMPLAINT_BYTES: u64 = 2 << 10;
/// Bytes read at once.
pub const HTTP_BUFFER: usize = 256 << 10;
/// Bytes dropped at once by a client that does not look at them.
pub const HTTP_DISCARD: usize = 1 << 20;
/// How often the sockets of a server are counted until it has taken all its connections.
pub const LOOK_AT_SOCKETS: Duration = Duration::from_millis(50);
/// Bytes read at once of an answer's head, which few bytes of its body share.
pub const DRAIN_HEAD_BYTES: usize = 2 << 10;
/// Bytes of an upload between two looks at Ctrl-C.
pub const UPLOAD_PIECE: u64 = 16 << 20;
/// How often something is looked at that cannot tell by itself.
pub const POLL: Duration = Duration::from_millis(20);
/// How long a job of the node may take.
pub const JOB: Duration = Duration::from_secs(1800);
/// How long wrk waits for one answer: a large file over many connections takes its time.
pub const WRK_TIMEOUT: Duration = Duration::from_secs(60);
/// A round of wrk or of the client in its place; wrk counts whole seconds: short, so that a cold round ends before everything is warm.
pub const CLIENT_ROUND: Duration = Duration::from_secs(1);
/// The same with very many connections, of something hot.
pub const CLIENT_ROUND_OF_MANY: Duration = Duration::from_secs(3);
/// How many times its bytes an object is sent before it counts as hot: the node reads what it sends often into larger pages.
pub const ASKED_TIMES: u64 = 100;
/// A pass of hot requests beside cold streams.
pub const MIXED_ROUND: Duration = Duration::from_secs(3);
/// What is streamed in it, once; less in a shorter one. It lies on the disk twice, for two servers.
pub const MIXED_COLD_BYTES: u64 = 8 << 30;
/// How long pages of a file may be in use until it counts as impossible to make cold.
pub const EVICT: Duration = Duration::from_secs(5);
/// Connections of wrk.
#[cfg(test)]
pub const WRK_CONNECTIONS: u32 = 1024;
/// Connections of the distant origin at once.
pub const ORIGIN_CONNECTIONS: usize = 64;
/// Bytes the distant origin takes up at once.
pub const ORIGIN_PIECE_BYTES: usize = 64 << 10;
/// Pieces under way on one connection of the distant origin, in one direction.
pub const ORIGIN_PIECES: usize = 64;

/// Times an operation is repeated after EINTR or EAGAIN before the error counts.
pub const RETRIES: u32 = 64;
/// Bytes of all operations in flight of all clones together.
pub const IN_FLIGHT_BYTES: u64 = 2 << 30;
/// The longest latency told from longer ones: an hour.
pub const LATENCY_NS: u64 = 3_600_000_000_000;
/// Bytes written at once while files are laid out.
pub const LAYOUT_BYTES: usize = 1 << 20;
/// The bridge's buffers: all slots of its lanes with the largest operation.
pub const BRIDGE_POOL_BYTES: u64 = 256 << 20;
/// Bytes of an object that a job writes or lays out over HTTP.
pub const HTTP_OBJECT_BYTES: u64 = 1 << 30;
/// Bytes kept of a node's refusal.
pub const HTTP_ERROR_BYTES: usize = 4096;
/// How long a node may take until it listens, and to go when asked.
pub const NODE_START: Duration = Duration::from_secs(30);
pub const NODE_STOP: Duration = Duration::from_secs(15);
/// Points of a latency distribution in the data beside docs/benchmarks.md, which is kept under version control.
pub const PAGE_CDF_POINTS: usize = 50;
/// Characters of the reason why a part of the standard set is missing.
pub const REASON_CHARS: usize = 400;
/// How far a step of the standard set may run over its plan before it is ended.
pub const STEP_OVERRUN: f64 = 2.5;
/// What every step may take at least.
pub const STEP_LEAST: Duration = Duration::from_secs(10);
/// How long a step that was asked to end may take: to end its round and its peers, and to write what it has.
pub const STEP_GRACE: Duration = Duration::from_secs(15);
/// Processes that measure the store one after the other.
pub const STORE_ROUNDS: u32 = 3;

/// Bytes of a lane's iolog that are gathered before they are written.
pub const IOLOG_BYTES: usize = 64 << 10;
