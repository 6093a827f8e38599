//! The source: a descriptor read by offset, the container over it, and the two streams that matter.
//!
//! libav sees a byte stream and nothing else: protocols are off, further files are refused, and containers and decoders come
//! from the lists below. [`Source`] owns the format context and the AVIO context under it; a cancel makes every read fail.

use std::ffi::{CStr, c_int};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ffmpeg_sys_next as ff;
use reelring_protocol::transcode::{AudioInfo, Class, Open, Probed, Rational, VideoInfo};

use crate::av::{Options, Packet, out_of_memory};
use crate::decoder::Decoder;
use crate::error::{Failure, check, text_of};
use crate::io::Io;
use crate::orientation::Orientation;
use crate::{limits, log};

/// Containers by FFmpeg's names. Playlists, concatenations, images and devices are not among them.
const FORMATS: &str = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,avi,flv,ogg,asf,mxf,nut,ivf,h264,hevc,m4v,mp3,aac,wav,\
                       flac,aiff,caf,ac3,eac3";
/// Decoders by FFmpeg's names: formats with a large, well-fuzzed user base.
const DECODERS: &str = "h264,hevc,av1,libdav1d,vp8,vp9,mpeg1video,mpeg2video,mpeg4,msmpeg4v2,msmpeg4,h263,flv,vc1,wmv1,wmv2,\
                        wmv3,theora,prores,dnxhd,mjpeg,ffv1,rawvideo,\
                        aac,mp3float,mp3,mp2float,mp2,opus,libopus,vorbis,flac,ac3,eac3,alac,wmav1,wmav2,pcm_s16le,pcm_s16be,\
                        pcm_s24le,pcm_s24be,pcm_s32le,pcm_s32be,pcm_f32le,pcm_f32be,pcm_u8,pcm_alaw,pcm_mulaw,adpcm_ms,\
                        adpcm_ima_wav";

pub struct Source {
    context: *mut ff::AVFormatContext,
    // Dropped after the context, which reads through it.
    io: Io,
    name: String,
    /// The container has an index of every packet (the MP4 family).
    indexed: bool,
    pub video: Stream,
    pub audio: Option<Stream>,
    /// What was left out, for the job's notes.
    pub notes: Vec<String>,
}

/// One chosen stream. The pointers stay valid as long as the [`Source`].
#[derive(Clone, Copy)]
pub struct Stream {
    pub index: c_int,
    pub parameters: *const ff::AVCodecParameters,
    pub decoder: *const ff::AVCodec,
    pub time_base: ff::AVRational,
}

/// What reading a packet gave.
pub enum Read {
    Video,
    Audio,
    Other,
    End,
}

impl Source {
    pub fn open(file: File, open: &Open, cancelled: Arc<AtomicBool>) -> Result<Source, Failure> {
        let name = format!("{:?}", open.name);
        if open.length == 0 {
            return Err(Failure::input(format!("{name} is empty (0 bytes): there is no video in it")));
        }
        refuse_text(&name, &file, open.length)?;
        let mut io = Io::new(file, open.length, cancelled)?;
        log::clear();
        let format = recognise(&name, &mut io)?;
        let context = open_container(&name, &mut io, format)?;
        // From here on the value's drop closes the context.
        let mut source =
            Source { context, io, name, indexed: false, video: Stream::none(), audio: None, notes: Vec::new() };
        source.find_streams()?;
        // SAFETY: a format's name is a static string.
        let format = unsafe { CStr::from_ptr((*source.context().iformat).name) };
        source.indexed = format.to_bytes().starts_with(b"mov");
        // Opening may look past the end in good files too; reading packets does not.
        source.io.forget_beyond();
        Ok(source)
    }

    fn context(&self) -> &ff::AVFormatContext {
        // SAFETY: non-null from open to drop.
        unsafe { &*self.context }
    }

    fn stream(&self, index: c_int) -> &ff::AVStream {
        // SAFETY: indices come from av_find_best_stream on this context, whose streams live as long as it.
        unsafe { &**self.context().streams.add(index as usize) }
    }

    fn find_streams(&mut self) -> Result<(), Failure> {
        let name = self.name.clone();
        let streams = self.context().nb_streams;
        if streams > limits::STREAMS_MAX {
            return Err(Failure::input(format!(
                "{name} has {streams} streams, the limit is {}: remux it with only the streams you want",
                limits::STREAMS_MAX
            )));
        }
        // SAFETY: an open context; a null option array means none.
        let code = unsafe { ff::avformat_find_stream_info(self.context, ptr::null_mut()) };
        if code < 0 {
            return Err(self.read_failure("its streams could not be read", code));
        }
        let video = self.best(ff::AVMediaType::AVMEDIA_TYPE_VIDEO);
        let audio = self.best(ff::AVMediaType::AVMEDIA_TYPE_AUDIO);
        let Some(video) = video.filter(|&index| self.stream(index).disposition & ff::AV_DISPOSITION_ATTACHED_PIC == 0)
        else {
            let what = match audio {
                Some(index) => format!("only audio ({})", codec_name(self.parameters(index).codec_id)),
                None => format!("{streams} streams, none of them video or audio"),
            };
            return Err(Failure::input(format!(
                "{name} has no video stream: it holds {what}; an asset needs video, so play the object itself instead"
            )));
        };
        self.video = self.allowed(video).map_err(|codec| {
            let what = if codec == "none" { "video of an unknown codec".to_owned() } else { format!("{codec} video") };
            Failure::input(format!(
                "{name} holds {what}, which is not on the list of allowed decoders: convert it to a common codec first"
            ))
        })?;
        self.check_size(video)?;
        if let Some(index) = audio {
            let parameters = self.parameters(index);
            let (rate, channels) = (parameters.sample_rate, parameters.ch_layout.nb_channels);
            match self.allowed(index) {
                Ok(stream) if rate > 0 && (1..=limits::CHANNELS_MAX).contains(&channels) => self.audio = Some(stream),
                Ok(_) => self.notes.push(format!("audio left out: {channels} channels at {rate} Hz cannot be decoded")),
                Err(codec) => {
                    self.notes.push(format!("audio left out: {codec} is not on the list of allowed decoders"))
                }
            }
        }
        for index in 0..streams as c_int {
            let wanted = index == video || self.audio.is_some_and(|audio| audio.index == index);
            // SAFETY: an index below nb_streams; nobody else holds a reference to the stream now.
            unsafe {
                (**(*self.context).streams.add(index as usize)).discard =
                    if wanted { ff::AVDiscard::AVDISCARD_DEFAULT } else { ff::AVDiscard::AVDISCARD_ALL };
            }
        }
        Ok(())
    }

    fn best(&self, kind: ff::AVMediaType) -> Option<c_int> {
        // SAFETY: an open context; -1 means any stream; no decoder is asked for, its list is ours.
        let index = unsafe { ff::av_find_best_stream(self.context, kind, -1, -1, ptr::null_mut(), 0) };
        (index >= 0).then_some(index)
    }

    fn parameters(&self, index: c_int) -> &ff::AVCodecParameters {
        // SAFETY: set by libavformat for every stream.
        unsafe { &*self.stream(index).codecpar }
    }

    /// The stream with its decoder, or the name of a codec we do not decode.
    fn allowed(&self, index: c_int) -> Result<Stream, String> {
        let parameters = self.parameters(index);
        // SAFETY: a lookup by number; names of codecs are static strings.
        let decoder = unsafe { ff::avcodec_find_decoder(parameters.codec_id) };
        let codec = codec_name(parameters.codec_id);
        if decoder.is_null() {
            return Err(codec);
        }
        // SAFETY: non-null, static.
        let name = unsafe { CStr::from_ptr((*decoder).name) }.to_string_lossy();
        if !listed(DECODERS, &name) {
            return Err(codec);
        }
        Ok(Stream { index, parameters, decoder, time_base: self.stream(index).time_base })
    }

    fn check_size(&self, index: c_int) -> Result<(), Failure> {
        let parameters = self.parameters(index);
        let (width, height) = (parameters.width, parameters.height);
        if width <= 0 || height <= 0 {
            return Err(Failure::input(format!(
                "{} has a video stream ({}) without a picture size: no picture of it could be decoded",
                self.name,
                codec_name(parameters.codec_id)
            )));
        }
        let pixels = i64::from(width) * i64::from(height);
        if width > limits::SIDE_MAX || height > limits::SIDE_MAX || pixels > limits::PIXELS_MAX {
            return Err(Failure::input(format!(
                "{} has pictures of {width}x{height}, the limit is {} on a side and {} pixels",
                self.name,
                limits::SIDE_MAX,
                limits::PIXELS_MAX
            )));
        }
        Ok(())
    }

    /// Reads the next packet of a chosen stream into `packet`.
    pub fn read(&mut self, packet: &mut Packet) -> Result<Read, Failure> {
        packet.clear();
        // SAFETY: an open context and a blank packet.
        let code = unsafe { ff::av_read_frame(self.context, packet.as_ptr()) };
        if code == ff::AVERROR_EOF {
            // libavformat also calls a failed read the end, and data that its index expects beyond it.
            return match (self.io.error(), self.io.beyond()) {
                (Some(error), _) => Err(self.source_failure(error)),
                (None, Some(position)) => Err(self.cut_short(position)),
                (None, None) => Ok(Read::End),
            };
        }
        if code < 0 {
            return Err(self.read_failure("it is damaged or cut short", code));
        }
        let index = packet.get().stream_index;
        // In MP4 a packet is marked corrupt only when the file ends inside it.
        if packet.get().flags & ff::AV_PKT_FLAG_CORRUPT != 0 && self.indexed {
            return Err(self.cut_short(self.io.length()));
        }
        Ok(if index == self.video.index {
            Read::Video
        } else if self.audio.is_some_and(|audio| audio.index == index) {
            Read::Audio
        } else {
            Read::Other
        })
    }

    fn cut_short(&self, position: u64) -> Failure {
        Failure::input(format!(
            "{} is cut short: its index places media at byte {position} and beyond, but the object has {} bytes; fetch or \
             upload it again",
            self.name,
            self.io.length()
        ))
    }

    fn read_failure(&self, what: &str, code: c_int) -> Failure {
        if let Some(error) = self.io.error() {
            return self.source_failure(error);
        }
        if code == ff::AVERROR_EXIT {
            return Failure::cancelled();
        }
        Failure::input(format!("{}: {what} ({}{})", self.name, text_of(code), said()))
    }

    fn source_failure(&self, error: &std::io::Error) -> Failure {
        Failure { class: Class::Source, message: format!("{} could not be read: {error}", self.name) }
    }

    /// The rotation of the display matrix, clockwise in degrees, if it is a multiple of 90; and whether it mirrors.
    pub fn orientation(&self) -> Orientation {
        let mut size = Default::default();
        // SAFETY: the stream lives; side data is read only as far as its size says.
        unsafe {
            let data = ff::av_stream_get_side_data(
                self.stream(self.video.index),
                ff::AVPacketSideDataType::AV_PKT_DATA_DISPLAYMATRIX,
                &mut size,
            );
            if data.is_null() || size < 36 {
                return Orientation::default();
            }
            Orientation::from_matrix(&ptr::read_unaligned(data.cast::<[i32; 9]>()))
        }
    }

    pub fn probed(&self) -> Probed {
        let parameters = self.parameters(self.video.index);
        let orientation = self.orientation();
        let frame_rate = self.frame_rate();
        let mut aspect = Rational { num: 1, den: 1 };
        // SAFETY: both pointers belong to this context; a null frame means "ask the stream".
        let guess = unsafe {
            ff::av_guess_sample_aspect_ratio(
                self.context,
                *(*self.context).streams.add(self.video.index as usize),
                ptr::null_mut(),
            )
        };
        // A shape beyond 16:1 is damage, not a picture.
        if guess.num > 0 && guess.den > 0 && guess.num / guess.den < 16 && guess.den / guess.num < 16 {
            aspect = Rational { num: guess.num.into(), den: guess.den.into() };
        }
        let (mut width, mut height) = (parameters.width as u32, parameters.height as u32);
        if orientation.swaps_sides() {
            std::mem::swap(&mut width, &mut height);
            std::mem::swap(&mut aspect.num, &mut aspect.den);
        }
        let duration = self.context().duration;
        let duration_seconds = (duration > 0).then(|| duration as f64 / f64::from(ff::AV_TIME_BASE));
        let counted = self.stream(self.video.index).nb_frames;
        let frames_estimate = match duration_seconds {
            _ if counted > 0 => Some(counted as u64),
            Some(seconds) => Some((seconds * frame_rate.num as f64 / frame_rate.den as f64).round() as u64),
            None => None,
        };
        // SAFETY: a format's name is a static string.
        let format = unsafe { CStr::from_ptr((*self.context().iformat).name) };
        Probed {
            format: format.to_string_lossy().into_owned(),
            duration_seconds,
            video: VideoInfo {
                codec: codec_name(parameters.codec_id),
                width,
                height,
                sample_aspect: aspect,
                frame_rate,
                frames_estimate,
            },
            audio: self.audio.map(|audio| {
                let parameters = self.parameters(audio.index);
                AudioInfo {
                    codec: codec_name(parameters.codec_id),
                    sample_rate: parameters.sample_rate as u32,
                    channels: parameters.ch_layout.nb_channels as u32,
                }
            }),
        }
    }

    /// The nominal rate, always positive and at most 1000 a second.
    fn frame_rate(&self) -> Rational {
        // SAFETY: as in `probed`.
        let guess = unsafe {
            ff::av_guess_frame_rate(
                self.context,
                *(*self.context).streams.add(self.video.index as usize),
                ptr::null_mut(),
            )
        };
        let average = self.stream(self.video.index).avg_frame_rate;
        let plausible = |rate: ff::AVRational| rate.num > 0 && rate.den > 0 && rate.num / rate.den <= 1000;
        match [guess, average].into_iter().find(|&rate| plausible(rate)) {
            Some(rate) => Rational { num: rate.num.into(), den: rate.den.into() },
            None => Rational { num: 25, den: 1 },
        }
    }

    /// A film with broken sound is still a film: the stream is left out, with a note.
    pub fn drop_undecodable_audio(&mut self) {
        if let Some(audio) = self.audio
            && let Err(failure) = Decoder::open(&audio, None, 1)
        {
            self.notes.push(format!("audio left out: {failure}"));
            self.audio = None;
        }
    }

    pub fn is_interlaced(&self) -> bool {
        let order = self.parameters(self.video.index).field_order;
        !matches!(order, ff::AVFieldOrder::AV_FIELD_UNKNOWN | ff::AVFieldOrder::AV_FIELD_PROGRESSIVE)
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // SAFETY: owned; the custom AVIO context is not closed by it but by `io`, dropped after.
        unsafe { ff::avformat_close_input(&mut self.context) };
    }
}

impl Stream {
    fn none() -> Stream {
        Stream {
            index: -1,
            parameters: ptr::null(),
            decoder: ptr::null(),
            time_base: ff::AVRational { num: 1, den: 1 },
        }
    }
}

pub fn codec_name(id: ff::AVCodecID) -> String {
    // SAFETY: returns a static string for every number.
    unsafe { CStr::from_ptr(ff::avcodec_get_name(id)) }.to_string_lossy().into_owned()
}

fn listed(list: &str, name: &str) -> bool {
    list.split(',').any(|entry| entry.trim() == name)
}

fn said() -> String {
    log::last().map(|line| format!("; {line}")).unwrap_or_default()
}

/// A web page saved under a video's name is the commonest wrong input, so it gets its own words.
fn refuse_text(name: &str, file: &File, length: u64) -> Result<(), Failure> {
    let mut head = [0; 512];
    let have = head.len().min(length as usize);
    let have = file
        .read_at(&mut head[..have], 0)
        .map_err(|error| Failure { class: Class::Source, message: format!("{name} could not be read: {error}") })?;
    let head = String::from_utf8_lossy(&head[..have]).trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    let what = if head.starts_with("<!doctype html") || head.starts_with("<html") {
        "an HTML page"
    } else if head.starts_with("#extm3u") {
        "a playlist (m3u8), which only names other files"
    } else if head.starts_with("ffconcat") {
        "a list of files to join (ffconcat), which only names other files"
    } else {
        return Ok(());
    };
    Err(Failure::input(format!("{name} is not a video file: it is {what}; fetch or store the media itself")))
}

fn recognise(name: &str, io: &mut Io) -> Result<*const ff::AVInputFormat, Failure> {
    let mut format = ptr::null();
    // SAFETY: an AVIO context that we own; the name is empty so that no extension is believed.
    let code = unsafe {
        ff::av_probe_input_buffer2(
            io.context,
            &mut format,
            c"".as_ptr(),
            ptr::null_mut(),
            0,
            limits::CONTAINER_PROBE_BYTES_MAX,
        )
    };
    if let Some(error) = io.error() {
        return Err(Failure { class: Class::Source, message: format!("{name} could not be read: {error}") });
    }
    if code < 0 || format.is_null() {
        return Err(Failure::input(format!(
            "{name} is not a video file: no container format was recognised in its first {} bytes",
            io.length().min(limits::CONTAINER_PROBE_BYTES_MAX.into())
        )));
    }
    // SAFETY: formats and their names are static.
    let found = unsafe { CStr::from_ptr((*format).name) }.to_string_lossy();
    if !found.split(',').all(|part| listed(FORMATS, part)) {
        return Err(Failure::input(format!(
            "{name} is in the format {found:?}, which is not on the list of allowed containers"
        )));
    }
    Ok(format)
}

fn open_container(
    name: &str,
    io: &mut Io,
    format: *const ff::AVInputFormat,
) -> Result<*mut ff::AVFormatContext, Failure> {
    let mut options = Options::new(&[
        ("format_whitelist", FORMATS),
        ("codec_whitelist", DECODERS),
        ("protocol_whitelist", ""),
        ("probesize", &limits::PROBE_BYTES_MAX.to_string()),
        ("analyzeduration", &limits::PROBE_MICROSECONDS_MAX.to_string()),
        ("max_streams", &(limits::STREAMS_MAX * 4).to_string()),
    ])?;
    // SAFETY: the context is ours until avformat_open_input, which frees it on failure; the callbacks' opaque value is
    // the reader, which outlives the context.
    unsafe {
        let mut context = ff::avformat_alloc_context();
        if context.is_null() {
            return Err(out_of_memory("a format context"));
        }
        (*context).pb = io.context;
        (*context).flags |= ff::AVFMT_FLAG_CUSTOM_IO;
        (*context).io_open = Some(refuse_to_open);
        (*context).interrupt_callback = io.interrupt();
        let code = ff::avformat_open_input(&mut context, c"".as_ptr(), format, options.as_mut());
        if code < 0 {
            if let Some(error) = io.error() {
                return Err(Failure { class: Class::Source, message: format!("{name} could not be read: {error}") });
            }
            if code == ff::AVERROR_EXIT {
                return Err(Failure::cancelled());
            }
            let log = log::tail().join("; ");
            let why = if log.contains("moov atom not found") {
                "it is cut short: its index (the moov atom) is missing, fetch or upload it again".to_owned()
            } else {
                format!("it is damaged or not what it seems ({}{})", text_of(code), said())
            };
            return Err(Failure::input(format!("{name} cannot be opened as video: {why}")));
        }
        Ok(context)
    }
}

unsafe extern "C" fn refuse_to_open(
    _: *mut ff::AVFormatContext,
    _: *mut *mut ff::AVIOContext,
    _: *const std::ffi::c_char,
    _: c_int,
    _: *mut *mut ff::AVDictionary,
) -> c_int {
    -libc::EPERM
}

/// For the hello: which FFmpeg runs.
pub fn ffmpeg_version() -> String {
    // SAFETY: a static string.
    let version = unsafe { CStr::from_ptr(ff::av_version_info()) };
    format!("FFmpeg {}", version.to_string_lossy())
}

/// Used where a stream's parameters must be copied into a codec context.
pub fn apply_parameters(context: *mut ff::AVCodecContext, stream: &Stream) -> Result<(), Failure> {
    // SAFETY: a fresh codec context, and parameters that live as long as the source.
    check("copying codec parameters", unsafe { ff::avcodec_parameters_to_context(context, stream.parameters) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_match_whole_names() {
        assert!(listed(DECODERS, "h264") && listed(DECODERS, "aac") && listed(DECODERS, "adpcm_ima_wav"));
        assert!(!listed(DECODERS, "magicyuv") && !listed(DECODERS, "h26"));
        assert!(!listed(FORMATS, "hls") && !listed(FORMATS, "concat") && listed(FORMATS, "mj2"));
    }
}
