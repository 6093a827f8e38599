//! Every bound of the node in one place, by room. Sizes in bytes. The storage package has its own `limits`.

use std::time::Duration;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const GIB: u64 = 1 << 30;

// --- http ---
/// Open client connections, of all clients and of one, unless configured otherwise; and what may be configured.
pub const HTTP_CONNECTIONS: usize = 4096;
pub const HTTP_CONNECTIONS_PER_CLIENT: usize = 1024;
pub const HTTP_CONNECTIONS_MAX: u64 = 1_000_000;
/// Descriptors that are left for other things than connections.
pub const DESCRIPTORS_BESIDE_CONNECTIONS: u64 = 512;
/// A connection without a request may be closed for another one after this long.
pub const HTTP_IDLE_GRACE: Duration = Duration::from_secs(1);
/// How often all connections are looked through for idle ones while none is.
pub const HTTP_IDLE_LOOK: Duration = Duration::from_millis(20);
/// Connections that have been asked to make room and are still there.
pub const HTTP_LEAVING: usize = 64;
/// Clients that are being told to come again, how long each of them may take to say something and to be answered, and when
/// they should come.
pub const HTTP_REFUSALS: usize = 256;
pub const HTTP_REFUSAL: Duration = Duration::from_secs(2);
pub const HTTP_REFUSED_RETRY_AFTER: Duration = Duration::from_secs(5);
/// Request line and headers together.
pub const HTTP_HEADER_BYTES: usize = 64 * KIB;
/// Time a client has to send the headers of a request.
pub const HTTP_HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// A TLS handshake; a file with a certificate or a key.
pub const TLS_HANDSHAKE: Duration = Duration::from_secs(10);
pub const TLS_FILE_BYTES: u64 = 1 << 20;
/// Requests at the same time on one connection of HTTP/2, what of the body of one may be on the way, and what of one answer
/// waits in memory.
pub const HTTP2_STREAMS: u32 = 64;
pub const HTTP2_STREAM_WINDOW: u32 = 1 << 20;
pub const HTTP2_SEND_BUFFER: usize = 256 * KIB;
/// What a stream is given at once, a frame: who comes for the next takes something, however slowly.
pub const HTTP2_PIECE: usize = 16 * KIB;
/// What of all bodies of one connection may be on the way: the protocol's least, and a part of what is left for all
/// connections, which a client's further ones share.
pub const HTTP2_WINDOW_LEAST: u32 = 65_535;
pub const HTTP2_WINDOWS_BYTES: usize = 64 * MIB;
pub const HTTP2_WINDOWS_PART: usize = 16;
/// Streams reset before they are looked at, and for breaking the protocol; one more ends the connection.
pub const HTTP2_RESETS: usize = 20;
/// Connections of commands on the node's own machine, beside those above.
pub const LOCAL_CONNECTIONS: usize = 64;
/// Longest pause between two pieces of an upload.
pub const HTTP_BODY_STALL: Duration = Duration::from_secs(60);
/// A pause in an upload after which it gives up the memory it has, until more arrives.
pub const HTTP_BODY_PAUSE: Duration = Duration::from_millis(250);
/// What an upload must bring in each such stretch of time.
pub const HTTP_UPLOAD_STRETCH: Duration = Duration::from_secs(60);
pub const HTTP_UPLOAD_BYTES_MIN: u64 = 32 * KIB as u64;
/// Threads that serve connections, one for each processor.
pub const LANES_MAX: usize = 64;
/// How long the reader of an object that is still being written waits for its next bytes.
pub const HTTP_FOLLOW_STALL: Duration = Duration::from_secs(90);
/// How much a closing connection takes of what the client still sends, how long, and the pause that ends it.
pub const HTTP_LINGER_BYTES: usize = 256 * MIB;
pub const HTTP_LINGER: Duration = Duration::from_secs(10);
pub const HTTP_LINGER_PAUSE: Duration = Duration::from_millis(500);
/// Longest time a client may take nothing of an answer; a player asks again for the rest.
pub const HTTP_SEND_STALL: Duration = Duration::from_secs(30);
/// The same while memory for reads is short, and how often it is looked at what the client takes.
pub const HTTP_SEND_STALL_PRESSED: Duration = Duration::from_secs(10);
pub const HTTP_SEND_LOOK: Duration = Duration::from_secs(5);
/// Bytes of one `sendfile`, and of those in a row before others have a turn.
pub const SEND_PIECE_BYTES: usize = 512 * KIB;
pub const SEND_BURST_BYTES: usize = 2 * MIB;
/// The same of what comes from a disk, and bytes of one write of it: it takes a checksum and a copy besides.
pub const SEND_BURST_COLD_BYTES: usize = 128 * KIB;
/// A client that takes nothing for this long is slow: what was read for it past the page cache is given back, and what it
/// comes round to waits in the page cache.
pub const SEND_PAUSE: Duration = Duration::from_millis(250);
/// A JSON request body.
pub const HTTP_JSON_BODY: usize = 256 * KIB;
/// Largest object.
pub const OBJECT_BYTES: u64 = 1024 * GIB;
/// Rows of one list page, and the default.
pub const LIST_PAGE_MAX: usize = 1000;
pub const LIST_PAGE_DEFAULT: usize = 100;
/// Ranges of one request.
pub const HTTP_RANGES: usize = 128;
/// Entries of a folder's page, and how many are read at a time.
pub const INDEX_ENTRIES: usize = 100_000;
pub const INDEX_PAGE: usize = 250;
// Headers of a request: 100, hyper's own bound. Being told it, even the same, would cost hyper a table for each request.
/// Characters of a name given by `?download=`.
pub const DOWNLOAD_NAME_CHARS: usize = 200;
/// An idempotency key.
pub const IDEMPOTENCY_KEY_BYTES: usize = 256;
/// Open event streams.
pub const EVENT_STREAMS: usize = 256;

/// The hls.js file of the player page.
pub const PLAYER_SCRIPT_BYTES: u64 = 8 << 20;

// --- access ---
/// Tokens of one node; the file that has them; the name of one.
pub const TOKENS: usize = 1000;
pub const TOKENS_FILE_BYTES: u64 = 1 << 20;
pub const TOKEN_NAME_BYTES: usize = 100;
/// The value of a `signature` parameter, and the longest a signed address is valid.
pub const SIGNATURE_BYTES: usize = 128;
pub const SIGNATURE_DAYS: u64 = 366;
// --- uploads ---
/// Uploads begun and not finished; one more is refused with 503.
pub const UPLOADS_OPEN: usize = 10_000;
/// Uploads that are over and still remembered, so that a client whose answer was lost can ask.
pub const UPLOADS_KEPT: usize = 50_000;
/// Writers that stay open between the requests of an upload, and how long: resuming one reads all of it again.
pub const UPLOAD_WRITERS_IDLE: usize = 128;
pub const UPLOAD_WRITER_IDLE: Duration = Duration::from_secs(300);
/// Bytes, and time with bytes, between two checkpoints of an append: what a crash may cost. Each waits for two syncs.
pub const UPLOAD_CHECKPOINT_BYTES: u64 = 256 << 20;
pub const UPLOAD_CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// How long a question waits for an append that is just ending.
pub const UPLOAD_ENDING: Duration = Duration::from_secs(20);
/// `Upload-Metadata`, and its pairs.
pub const UPLOAD_METADATA_BYTES: usize = 8 * KIB;
pub const UPLOAD_METADATA_PAIRS: usize = 64;
/// Parts of one joined upload, and joins at the same time.
pub const UPLOAD_PARTS: usize = 1000;
pub const UPLOAD_JOINS: usize = 4;
/// How often the sweeper looks, and rows it takes at once.
pub const UPLOAD_SWEEP_EVERY: Duration = Duration::from_secs(60);
pub const UPLOADS_SWEPT_AT_ONCE: usize = 256;

// --- jobs ---
/// Jobs waiting; one more is refused with 503.
pub const JOBS_QUEUED: usize = 100_000;
/// Fetches and transcodes at the same time.
pub const FETCHES_RUNNING: usize = 4;
pub const TRANSCODES_RUNNING: usize = 1;
/// Runs of one job before a transient failure becomes final.
pub const JOB_ATTEMPTS: u32 = 3;
/// Pause before the second run; doubles each time.
pub const JOB_RETRY_PAUSE: Duration = Duration::from_secs(2);
/// How often a running job's progress becomes an event and, less often, a catalog row.
pub const PROGRESS_EVENT_EVERY: Duration = Duration::from_millis(250);
pub const PROGRESS_SAVE_EVERY: Duration = Duration::from_secs(5);
/// Events kept for replay, and events a slow reader may lag behind before it is told to start again.
pub const EVENTS_KEPT: usize = 4096;
pub const EVENTS_LAG: usize = 1024;
/// Finished jobs remembered.
pub const JOBS_KEPT: usize = 10_000;
/// Headers a fetch job may set, and bytes of them.
pub const JOB_HEADERS: usize = 64;
pub const JOB_HEADER_BYTES: usize = 16 * KIB;

// --- ingest ---
/// Hops of one request.
pub const FETCH_REDIRECTS: usize = 10;
/// An address, the ones redirects name included.
pub const FETCH_URL_BYTES: usize = 8 * KIB;
/// Headers of one response, names and values together. (Before they are parsed the HTTP client stops at 408 KiB.)
pub const FETCH_HEADER_BYTES: usize = 64 * KIB;
pub const FETCH_HEADERS: usize = 200;
/// Addresses of one name that are tried.
pub const FETCH_ADDRESSES: usize = 32;
/// The name look-up, and after it TCP and TLS together.
pub const FETCH_CONNECT: Duration = Duration::from_secs(10);
/// From the request to the last header of the answer.
pub const FETCH_RESPONSE: Duration = Duration::from_secs(40);
/// Longest pause between two pieces of a body.
pub const FETCH_STALL: Duration = Duration::from_secs(30);
/// Connections kept open to one host between requests.
pub const FETCH_IDLE_PER_HOST: usize = 2;
/// Attempts after failures without progress in between, and the same before the origin has answered even once.
pub const FETCH_RETRIES: u32 = 10;
pub const FETCH_RETRIES_UNANSWERED: u32 = 2;
/// New bytes that count as progress, so that an origin which sends one byte per connection is given up on.
pub const FETCH_PROGRESS: u64 = 64 << 10;
/// Pause before the first retry; the ceiling doubles each time up to the second. An origin's Retry-After may ask for more.
pub const FETCH_PAUSE: Duration = Duration::from_millis(500);
pub const FETCH_PAUSE_MAX: Duration = Duration::from_secs(30);
pub const FETCH_RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
/// Times one fetch starts again from the first byte because the file changed or its ranges cannot be trusted.
pub const FETCH_RESTARTS: u32 = 5;
/// Bytes, and time with bytes, between two checkpoints: what a crash may cost.
pub const FETCH_CHECKPOINT_BYTES: u64 = 16 << 20;
pub const FETCH_CHECKPOINT_EVERY: Duration = Duration::from_secs(2);
/// First bytes of a body that are looked at before it is believed to be media.
pub const FETCH_SNIFF: usize = 512;
/// A suggested file name.
pub const FETCH_NAME_BYTES: usize = 200;

// --- plugins ---
/// Files looked at in the plugins directory.
pub const PLUGINS: usize = 64;
/// Plugins loading at the same time.
pub const PLUGINS_LOADING: usize = 4;
/// From the start of a worker to its manifest.
pub const PLUGIN_LOAD: Duration = Duration::from_secs(10);
/// One `extract`, unless configured otherwise.
pub const PLUGIN_EXTRACT: Duration = Duration::from_secs(30);
/// A worker without calls is ended after this long; the next call starts another.
pub const PLUGIN_IDLE: Duration = Duration::from_secs(60);
/// Quiet time after a change of a file before it is read; and the longest a busy directory puts that off.
pub const PLUGIN_SETTLE: Duration = Duration::from_millis(200);
pub const PLUGIN_SETTLE_MAX: Duration = Duration::from_secs(1);
/// The directory is looked at this often even if nothing was heard of it, and this often where the kernel cannot watch it.
pub const PLUGIN_RESCAN: Duration = Duration::from_secs(30);
pub const PLUGIN_RESCAN_UNWATCHED: Duration = Duration::from_secs(1);
/// Fetches of all plugins at the same time; each holds its page in memory.
pub const PLUGIN_FETCHES: usize = 8;
/// A worker that does not begin a call within this long is busy with another; the call gets a worker of its own.
pub const PLUGIN_BUSY: Duration = Duration::from_secs(1);
/// Calls that run at the same time each in a worker of its own, because the shared one failed or is busy.
pub const PLUGIN_CALLS_ALONE: usize = 4;
/// Patterns of one manifest and the length of one.
pub const PLUGIN_PATTERNS: usize = 64;
pub const PLUGIN_PATTERN_BYTES: usize = 512;
/// Formats of one result; its title and other short texts.
pub const PLUGIN_FORMATS: usize = 500;
pub const PLUGIN_TITLE_BYTES: usize = 4 * KIB;
/// The end of a worker's standard error that is kept to explain its death.
pub const PLUGIN_STDERR_BYTES: usize = 2 * KIB;

// --- node ---
/// Turns of tasks on a thread before it looks at the sockets and at what other threads have made ready. Tokio's own 61
/// are meant for turns of microseconds.
pub const RUNTIME_TURNS: u32 = 8;
/// How long a drain waits for requests and jobs before it stops them.
pub const DRAIN: Duration = Duration::from_secs(20);

// --- transcode ---
/// Rungs of one ladder.
pub const LADDER_RUNGS: usize = 8;
/// Silence of a worker before it is taken for hung and killed. It speaks several times a second while pictures move.
pub const WORKER_SILENCE: Duration = Duration::from_secs(90);
/// How long a worker that closed its socket may take to exit.
pub const WORKER_EXIT: Duration = Duration::from_secs(5);
/// One segment of one rendition.
pub const SEGMENT_BYTES: u64 = 256 << 20;
/// Segments of one rendition: over four days at four seconds.
pub const RENDITION_SEGMENTS: u32 = 100_000;
/// Notes kept of one transcode.
pub const TRANSCODE_NOTES: usize = 32;
