//! H.264 and AAC encoders: opened once, frames in, packets out.
//!
//! Pictures are never dropped or repeated, groups of pictures are closed, and key frames come where the grid asks and nowhere
//! else (scene-cut detection off), so that every rendition is cut at the same places.

use std::ffi::{CStr, c_int};
use std::ptr;

use ffmpeg_sys_next as ff;
use reelring_protocol::transcode::{Rational, VideoPlan};

use crate::av::{Frame, Options, Packet, out_of_memory};
use crate::error::{Failure, check};
use crate::hardware::Device;

pub const SOFTWARE: &CStr = c"libx264";
pub const HARDWARE: &CStr = c"h264_nvenc";

pub struct Encoder {
    context: *mut ff::AVCodecContext,
    packet: Packet,
}

// SAFETY: used by one thread at a time.
unsafe impl Send for Encoder {}

/// What the renditions of one job share.
#[derive(Debug, Clone)]
pub struct VideoSettings {
    pub timescale: i32,
    pub frame_rate: Rational,
    pub sample_aspect: Rational,
    /// Longest run without a key frame; the grid forces them more often.
    pub gop: u32,
    pub threads: c_int,
    pub color: Color,
}

/// Colour tags of the encoded pictures.
#[derive(Debug, Clone, Copy)]
pub struct Color {
    pub primaries: ff::AVColorPrimaries,
    pub transfer: ff::AVColorTransferCharacteristic,
    pub space: ff::AVColorSpace,
}

impl Color {
    pub const BT709: Color = Color {
        primaries: ff::AVColorPrimaries::AVCOL_PRI_BT709,
        transfer: ff::AVColorTransferCharacteristic::AVCOL_TRC_BT709,
        space: ff::AVColorSpace::AVCOL_SPC_BT709,
    };
}

impl Encoder {
    pub fn open_video(
        name: &CStr,
        plan: &VideoPlan,
        settings: &VideoSettings,
        device: Option<&Device>,
    ) -> Result<Encoder, Failure> {
        let (encoder, codec) = Encoder::allocate(name)?;
        // SAFETY: a fresh context that nobody else uses.
        let context = unsafe { &mut *encoder.context };
        context.width = plan.width as c_int;
        context.height = plan.height as c_int;
        context.pix_fmt = ff::AVPixelFormat::AV_PIX_FMT_YUV420P;
        context.time_base = ff::AVRational { num: 1, den: settings.timescale };
        context.framerate = rational(settings.frame_rate);
        context.sample_aspect_ratio = rational(settings.sample_aspect);
        context.gop_size = settings.gop as c_int;
        context.rc_max_rate = plan.bitrate_max.into();
        context.rc_buffer_size = plan.bitrate_max.saturating_mul(2).min(i32::MAX as u32) as c_int;
        context.thread_count = settings.threads;
        context.color_range = ff::AVColorRange::AVCOL_RANGE_MPEG;
        context.color_primaries = settings.color.primaries;
        context.color_trc = settings.color.transfer;
        context.colorspace = settings.color.space;
        context.flags |= (ff::AV_CODEC_FLAG_GLOBAL_HEADER | ff::AV_CODEC_FLAG_CLOSED_GOP) as c_int;
        let pairs: &[(&str, &str)] = if name == SOFTWARE {
            &[
                ("preset", "veryfast"),
                ("profile", "high"),
                ("crf", "22"),
                ("forced-idr", "1"),
                ("x264-params", "scenecut=0:open-gop=0:log=1"),
            ]
        } else {
            if let Some(device) = device {
                context.hw_device_ctx = device.share();
            }
            &[
                ("preset", "p4"),
                ("profile", "high"),
                ("rc", "vbr"),
                ("cq", "24"),
                ("forced-idr", "1"),
                ("no-scenecut", "1"),
            ]
        };
        encoder.open(codec, name, pairs)
    }

    /// AAC-LC, one or two channels.
    pub fn open_audio(rate: c_int, channels: c_int, bitrate: u32) -> Result<Encoder, Failure> {
        let (encoder, codec) = Encoder::allocate(c"aac")?;
        // SAFETY: a fresh context; the layout is filled in place.
        unsafe {
            let context = &mut *encoder.context;
            context.sample_rate = rate;
            context.sample_fmt = ff::AVSampleFormat::AV_SAMPLE_FMT_FLTP;
            context.time_base = ff::AVRational { num: 1, den: rate };
            context.bit_rate = bitrate.into();
            context.thread_count = 1;
            context.flags |= ff::AV_CODEC_FLAG_GLOBAL_HEADER as c_int;
            ff::av_channel_layout_default(&mut context.ch_layout, channels);
        }
        encoder.open(codec, c"aac", &[])
    }

    fn allocate(name: &CStr) -> Result<(Encoder, *const ff::AVCodec), Failure> {
        // SAFETY: a lookup by a static name.
        let codec = unsafe { ff::avcodec_find_encoder_by_name(name.as_ptr()) };
        if codec.is_null() {
            return Err(Failure {
                class: reelring_protocol::transcode::Class::Absent,
                message: format!("this FFmpeg has no {} encoder: install one built with it", name.to_string_lossy()),
            });
        }
        // SAFETY: a codec from the lookup above.
        let context = unsafe { ff::avcodec_alloc_context3(codec) };
        if context.is_null() {
            return Err(out_of_memory("an encoder"));
        }
        Ok((Encoder { context, packet: Packet::new()? }, codec))
    }

    fn open(self, codec: *const ff::AVCodec, name: &CStr, pairs: &[(&str, &str)]) -> Result<Encoder, Failure> {
        let mut options = Options::new(pairs)?;
        let name = name.to_string_lossy();
        // SAFETY: a context made for this codec.
        let code = unsafe { ff::avcodec_open2(self.context, codec, options.as_mut()) };
        check(&format!("opening the encoder {name}"), code)?;
        options.all_taken(&name)?;
        Ok(self)
    }

    pub fn context(&self) -> &ff::AVCodecContext {
        // SAFETY: non-null and owned since open().
        unsafe { &*self.context }
    }

    /// Encodes one frame (`None` drains) and hands every finished packet to `each`.
    pub fn encode(
        &mut self,
        frame: Option<&Frame>,
        mut each: impl FnMut(&mut Packet) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let raw = frame.map_or(ptr::null(), |frame| frame.as_ptr().cast_const());
        // SAFETY: an open encoder, whose output the loop below always empties; null means "drain".
        check("encoding", unsafe { ff::avcodec_send_frame(self.context, raw) })?;
        loop {
            self.packet.clear();
            // SAFETY: an open encoder and a blank packet.
            let code = unsafe { ff::avcodec_receive_packet(self.context, self.packet.as_ptr()) };
            if code == -libc::EAGAIN || code == ff::AVERROR_EOF {
                return Ok(());
            }
            check("encoding", code)?;
            each(&mut self.packet)?;
        }
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        // SAFETY: owned.
        unsafe { ff::avcodec_free_context(&mut self.context) };
    }
}

/// The nearest fraction FFmpeg's 32-bit rationals can hold.
pub fn rational(value: Rational) -> ff::AVRational {
    let mut out = ff::AVRational { num: 0, den: 1 };
    // SAFETY: both outputs are ours.
    unsafe { ff::av_reduce(&mut out.num, &mut out.den, value.num, value.den, i32::MAX.into()) };
    out
}

/// Whether an Annex B access unit contains an IDR slice: a segment must begin with one.
pub fn has_idr(data: &[u8]) -> bool {
    data.windows(4).any(|window| window[..3] == [0, 0, 1] && window[3] & 0x1f == 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idr_slices_are_found_behind_parameter_sets() {
        assert!(has_idr(&[0, 0, 0, 1, 0x67, 1, 2, 0, 0, 0, 1, 0x68, 9, 0, 0, 1, 0x65, 0x88]));
        assert!(!has_idr(&[0, 0, 0, 1, 0x41, 0x9a, 5, 5, 5]));
        assert!(!has_idr(&[]));
    }

    #[test]
    fn rationals_are_reduced() {
        let ntsc = rational(Rational { num: 60000, den: 2002 });
        assert_eq!((ntsc.num, ntsc.den), (30000, 1001));
    }
}
