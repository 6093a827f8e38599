//! One decoder: packets in, frames in main memory out. With a CUDA device pictures are decoded by NVDEC and copied down.

use std::ffi::c_int;
use std::ptr;

use ffmpeg_sys_next as ff;

use crate::av::{Frame, Packet, out_of_memory};
use crate::error::{Failure, check, text_of};
use crate::hardware::Device;
use crate::limits;
use crate::source::{Stream, apply_parameters, codec_name};

pub struct Decoder {
    context: *mut ff::AVCodecContext,
    frame: Frame,
    /// Packets the decoder refused. The pictures around them are kept, as every player does.
    pub damaged: u64,
}

// SAFETY: used by one thread at a time; libav ties no decoder to the thread that opened it.
unsafe impl Send for Decoder {}

impl Decoder {
    /// `threads` is 0 for "as many as there are processors".
    pub fn open(stream: &Stream, device: Option<&Device>, threads: c_int) -> Result<Decoder, Failure> {
        // SAFETY: a decoder from avcodec_find_decoder.
        let context = unsafe { ff::avcodec_alloc_context3(stream.decoder) };
        if context.is_null() {
            return Err(out_of_memory("a decoder"));
        }
        let decoder = Decoder { context, frame: Frame::new()?, damaged: 0 };
        apply_parameters(context, stream)?;
        // SAFETY: a fresh context that nobody else uses.
        unsafe {
            let context = &mut *context;
            context.pkt_timebase = stream.time_base;
            context.thread_count = threads;
            context.max_pixels = limits::PIXELS_MAX;
            if let Some(device) = device.filter(|_| Device::decodes(stream.decoder)) {
                // Frame threads multiply the surfaces held on the device and gain nothing there.
                context.thread_count = 1;
                context.hw_device_ctx = device.share();
                context.get_format = Some(prefer_cuda);
            }
        }
        // SAFETY: the context was made for this decoder.
        let code = unsafe { ff::avcodec_open2(context, stream.decoder, ptr::null_mut()) };
        // SAFETY: parameters live as long as the source.
        let codec = codec_name(unsafe { (*stream.parameters).codec_id });
        if code < 0 && code != -libc::ENOMEM {
            // Whatever its number says: a decoder on our list refuses what this stream says about itself.
            return Err(Failure::input(format!("its {codec} stream is not one the decoder takes ({})", text_of(code))));
        }
        check(&format!("opening the {codec} decoder"), code)?;
        Ok(decoder)
    }

    pub fn context(&self) -> &ff::AVCodecContext {
        // SAFETY: non-null and owned since open().
        unsafe { &*self.context }
    }

    /// Decodes one packet (`None` drains) and hands every finished frame to `each`.
    pub fn decode(
        &mut self,
        packet: Option<&Packet>,
        mut each: impl FnMut(&mut Frame) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let raw = packet.map_or(ptr::null(), |packet| packet.as_ptr().cast_const());
        loop {
            // SAFETY: an open decoder; null means "drain".
            let sent = unsafe { ff::avcodec_send_packet(self.context, raw) };
            self.receive(&mut each)?;
            match sent {
                // Its output was full: it has just been emptied.
                _ if sent == again() => continue,
                _ if sent == ff::AVERROR_EOF || sent >= 0 => return Ok(()),
                _ if sent == -libc::ENOMEM => return Err(Failure::of_call("decoding", sent)),
                _ => {
                    self.damaged += 1;
                    return Ok(());
                }
            }
        }
    }

    fn receive(&mut self, each: &mut impl FnMut(&mut Frame) -> Result<(), Failure>) -> Result<(), Failure> {
        loop {
            self.frame.clear();
            // SAFETY: an open decoder and a blank frame.
            let code = unsafe { ff::avcodec_receive_frame(self.context, self.frame.as_ptr()) };
            match code {
                _ if code == again() || code == ff::AVERROR_EOF => return Ok(()),
                _ if code >= 0 => {
                    if self.frame.get().format == ff::AVPixelFormat::AV_PIX_FMT_CUDA as c_int
                        && !self.frame.get().hw_frames_ctx.is_null()
                    {
                        each(&mut download(&self.frame)?)?;
                    } else {
                        each(&mut self.frame)?;
                    }
                }
                _ if code == -libc::ENOMEM || code == -libc::EIO => {
                    return Err(Failure::of_call("decoding", code));
                }
                _ => {
                    crate::log::say(&format!("a frame could not be decoded: {}", text_of(code)));
                    self.damaged += 1;
                }
            }
        }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: owned.
        unsafe { ff::avcodec_free_context(&mut self.context) };
    }
}

fn again() -> c_int {
    -libc::EAGAIN
}

fn download(frame: &Frame) -> Result<Frame, Failure> {
    let mut down = Frame::new()?;
    // SAFETY: a hardware frame with its frames context, and a blank frame to allocate into.
    unsafe {
        check("copying a picture from the GPU", ff::av_hwframe_transfer_data(down.as_ptr(), frame.as_ptr(), 0))?;
        check("copying a picture's properties", ff::av_frame_copy_props(down.as_ptr(), frame.as_ptr()))?;
    }
    down.get_mut().best_effort_timestamp = frame.get().best_effort_timestamp;
    Ok(down)
}

/// CUDA where the stream's profile allows it, else the decoder's own software format.
unsafe extern "C" fn prefer_cuda(_: *mut ff::AVCodecContext, formats: *const ff::AVPixelFormat) -> ff::AVPixelFormat {
    // SAFETY: libavcodec passes a list that ends with AV_PIX_FMT_NONE.
    unsafe {
        let mut format = formats;
        while *format != ff::AVPixelFormat::AV_PIX_FMT_NONE {
            if *format == ff::AVPixelFormat::AV_PIX_FMT_CUDA {
                return *format;
            }
            format = format.add(1);
        }
        let mut format = formats;
        while *format != ff::AVPixelFormat::AV_PIX_FMT_NONE {
            let description = ff::av_pix_fmt_desc_get(*format);
            if !description.is_null() && (*description).flags & ff::AV_PIX_FMT_FLAG_HWACCEL as u64 == 0 {
                return *format;
            }
            format = format.add(1);
        }
    }
    ff::AVPixelFormat::AV_PIX_FMT_NONE
}
