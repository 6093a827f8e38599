//! Every bound of the worker. A source is foreign data: nothing it says is believed beyond these.

/// Bytes FFmpeg may look at to recognise a container and its streams.
pub const PROBE_BYTES_MAX: i64 = 16 << 20;
/// Media time it may look at.
pub const PROBE_MICROSECONDS_MAX: i64 = 15_000_000;
/// Bytes read to tell which container it is.
pub const CONTAINER_PROBE_BYTES_MAX: u32 = 1 << 20;
/// Streams in the container, subtitles and data included.
pub const STREAMS_MAX: u32 = 64;
/// Width and height of the source's pictures.
pub const SIDE_MAX: i32 = 8192;
/// Pixels of one picture: a little over 8192x4320.
pub const PIXELS_MAX: i64 = 36 << 20;
/// Renditions of one plan.
pub const RENDITIONS_MAX: usize = 8;
/// Channels of the source's audio.
pub const CHANNELS_MAX: i32 = 16;

/// Decoded pictures waiting for one rendition's encoder.
pub const FRAMES_QUEUED: usize = 4;
/// Audio packets and marks waiting for the audio thread.
pub const AUDIO_QUEUED: usize = 256;
/// Compressed audio held until the first picture tells where time begins.
pub const AUDIO_BEFORE_VIDEO_BYTES_MAX: usize = 64 << 20;
/// Samples (per channel) held back until the picture has come as far; beyond it audio is encoded ahead.
pub const AUDIO_HELD_SAMPLES_MAX: u64 = 8 << 20;
/// A step in the source's timestamps that is believed; a longer one is an error rather than hours of silence.
pub const TIME_STEP_SECONDS_MAX: i64 = 3600;

/// One segment in memory.
pub const SEGMENT_BYTES_MAX: usize = 256 << 20;

/// Address space without a GPU (CUDA reserves hundreds of GiB of it).
pub const ADDRESS_SPACE_BYTES: u64 = 16 << 30;
/// Processor time: the node's watchdog ends a hang long before; this ends a worker whose node is gone and cannot.
pub const CPU_SECONDS: u64 = 7 * 24 * 3600;
/// Descriptors, without and with a GPU.
pub const DESCRIPTORS: u64 = 32;
pub const DESCRIPTORS_GPU: u64 = 512;

/// Shortest pause between two progress messages.
pub const PROGRESS_EVERY: std::time::Duration = std::time::Duration::from_millis(250);
