//! Any decoded audio to planar float at one rate with one or two channels (libswresample).

use std::ffi::c_int;
use std::ptr;

use ffmpeg_sys_next as ff;

use crate::av::{Frame, out_of_memory};
use crate::error::{Failure, check};

pub const CHANNELS_MAX: usize = 2;

pub struct Resampler {
    context: *mut ff::SwrContext,
    input: Input,
    rate: c_int,
    channels: c_int,
}

// SAFETY: used by one thread at a time.
unsafe impl Send for Resampler {}

/// What a resampler is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Input {
    rate: c_int,
    format: c_int,
    channels: c_int,
    mask: u64,
}

impl Input {
    fn of(frame: &Frame) -> Input {
        let frame = frame.get();
        // SAFETY: for a native order the union holds the mask; for others the value is only compared.
        let mask = unsafe { frame.ch_layout.u.mask };
        Input { rate: frame.sample_rate, format: frame.format, channels: frame.ch_layout.nb_channels, mask }
    }
}

impl Resampler {
    pub fn new(frame: &Frame, rate: c_int, channels: c_int) -> Result<Resampler, Failure> {
        let input = Input::of(frame);
        let mut resampler = Resampler { context: ptr::null_mut(), input, rate, channels };
        // SAFETY: layouts are filled before they are read; the input's is the frame's, or a default where it has none.
        unsafe {
            let mut out: ff::AVChannelLayout = std::mem::zeroed();
            ff::av_channel_layout_default(&mut out, channels);
            let mut layout: ff::AVChannelLayout = std::mem::zeroed();
            if frame.get().ch_layout.order == ff::AVChannelOrder::AV_CHANNEL_ORDER_NATIVE {
                check("reading the channels", ff::av_channel_layout_copy(&mut layout, &frame.get().ch_layout))?;
            } else {
                ff::av_channel_layout_default(&mut layout, input.channels);
            }
            let format = sample_format(input.format)?;
            let code = ff::swr_alloc_set_opts2(
                &mut resampler.context,
                &mut out,
                ff::AVSampleFormat::AV_SAMPLE_FMT_FLTP,
                rate,
                &mut layout,
                format,
                input.rate,
                0,
                ptr::null_mut(),
            );
            ff::av_channel_layout_uninit(&mut layout);
            check("describing the audio conversion", code)?;
            check("starting the audio conversion", ff::swr_init(resampler.context))?;
        }
        Ok(resampler)
    }

    pub fn suits(&self, frame: &Frame) -> bool {
        self.input == Input::of(frame)
    }

    /// Samples still inside, at the output's rate.
    pub fn delay(&self) -> u64 {
        // SAFETY: an initialised context.
        unsafe { ff::swr_get_delay(self.context, self.rate.into()) }.max(0) as u64
    }

    /// Converts one frame (`None` drains) to one vector of samples per channel.
    pub fn convert(&mut self, frame: Option<&Frame>) -> Result<Vec<Vec<f32>>, Failure> {
        let samples = frame.map_or(0, |frame| frame.get().nb_samples);
        // SAFETY: an initialised context; the planes below are as long as announced.
        unsafe {
            let room = check("sizing the audio conversion", ff::swr_get_out_samples(self.context, samples))? as usize;
            let mut planes = vec![vec![0f32; room.max(1)]; self.channels as usize];
            let mut pointers = [ptr::null_mut::<u8>(); CHANNELS_MAX];
            for (pointer, plane) in pointers.iter_mut().zip(&mut planes) {
                *pointer = plane.as_mut_ptr().cast();
            }
            let data = frame.map_or(ptr::null_mut(), |frame| frame.get().extended_data);
            let got =
                ff::swr_convert(self.context, pointers.as_mut_ptr().cast(), room.max(1) as c_int, data.cast(), samples);
            let got = check("converting audio", got)? as usize;
            for plane in &mut planes {
                plane.truncate(got);
            }
            Ok(planes)
        }
    }
}

fn sample_format(number: c_int) -> Result<ff::AVSampleFormat, Failure> {
    if !(0..ff::AVSampleFormat::AV_SAMPLE_FMT_NB as c_int).contains(&number) {
        return Err(Failure::internal(format!("the decoder gave the unknown sample format {number}")));
    }
    // SAFETY: the enumeration has every number from 0 to below NB.
    Ok(unsafe { std::mem::transmute::<c_int, ff::AVSampleFormat>(number) })
}

impl Drop for Resampler {
    fn drop(&mut self) {
        // SAFETY: owned or null.
        unsafe { ff::swr_free(&mut self.context) };
    }
}

/// A blank frame of planar float samples for the encoder.
pub fn audio_frame(rate: c_int, channels: c_int, samples: usize) -> Result<Frame, Failure> {
    let mut frame = Frame::new().map_err(|_| out_of_memory("an audio frame"))?;
    let raw = frame.get_mut();
    raw.nb_samples = samples as c_int;
    raw.format = ff::AVSampleFormat::AV_SAMPLE_FMT_FLTP as c_int;
    raw.sample_rate = rate;
    // SAFETY: the layout is filled in place, then the buffer is allocated from the fields above.
    unsafe {
        ff::av_channel_layout_default(&mut raw.ch_layout, channels);
        check("a buffer for audio", ff::av_frame_get_buffer(frame.as_ptr(), 0))?;
    }
    Ok(frame)
}

/// One channel of a frame made by [`audio_frame`].
pub fn plane(frame: &mut Frame, channel: usize) -> &mut [f32] {
    let raw = frame.get_mut();
    let samples = raw.nb_samples.max(0) as usize;
    assert!(channel < raw.ch_layout.nb_channels as usize && channel < CHANNELS_MAX);
    // SAFETY: the frame was allocated with `samples` floats per plane and has no other reference.
    unsafe { std::slice::from_raw_parts_mut(raw.data[channel].cast::<f32>(), samples) }
}
