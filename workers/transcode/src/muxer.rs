//! Fragmented MP4 (CMAF) in memory: one track per muxer, an init segment once, then one `moof`+`mdat` per cut.
//!
//! Every track starts its decode times at 0 (`tfdt` of the first fragment) and its presentation where an edit list in the init
//! segment says: after the AAC encoder's 1,024 samples of priming, or after the pictures that B-frames hold back. The muxer
//! knows these when it has the first packet (`delay_moov`), so the init segment is there after the first [`Muxer::write`].
//! Negative composition offsets would need no edit list, but FFmpeg's own demuxer shows such a track late by its delay.

use std::ffi::c_int;
use std::ptr;

use ffmpeg_sys_next as ff;

use crate::av::{Options, Packet, out_of_memory};
use crate::encoder::Encoder;
use crate::error::{Failure, check};
use crate::limits;

pub struct Muxer {
    context: *mut ff::AVFormatContext,
    init: Option<Vec<u8>>,
    /// The init segment has been written.
    begun: bool,
    /// Packets wait for the next cut.
    pending: bool,
}

// SAFETY: used by one thread at a time.
unsafe impl Send for Muxer {}

impl Muxer {
    pub fn new(encoder: &Encoder, timescale: i32) -> Result<Muxer, Failure> {
        let mut context = ptr::null_mut();
        // SAFETY: the out pointer is ours; "mp4" is a static name.
        let code =
            unsafe { ff::avformat_alloc_output_context2(&mut context, ptr::null(), c"mp4".as_ptr(), ptr::null()) };
        check("opening the MP4 muxer", code)?;
        let mut muxer = Muxer { context, init: None, begun: false, pending: false };
        muxer.open_buffer()?;
        let mut options = Options::new(&[
            ("movflags", "cmaf+frag_custom+skip_trailer+delay_moov"),
            ("use_editlist", "1"),
            ("brand", "iso6"),
        ])?;
        // SAFETY: a fresh context; the stream belongs to it, and the encoder is open.
        unsafe {
            (*context).flags |= ff::AVFMT_FLAG_BITEXACT;
            // Times are ours: none are shifted.
            (*context).avoid_negative_ts = 0;
            let stream = ff::avformat_new_stream(context, ptr::null());
            if stream.is_null() {
                return Err(out_of_memory("a track"));
            }
            check("describing the track", ff::avcodec_parameters_from_context((*stream).codecpar, encoder.context()))?;
            (*stream).time_base = ff::AVRational { num: 1, den: timescale };
            (*stream).sample_aspect_ratio = encoder.context().sample_aspect_ratio;
            check("starting the MP4 track", ff::avformat_write_header(context, options.as_mut()))?;
            options.all_taken("the MP4 muxer")?;
            let scale = (*stream).time_base;
            if (scale.num, scale.den) != (1, timescale) {
                return Err(Failure::internal(format!(
                    "the muxer chose the time base {}/{} over 1/{timescale}",
                    scale.num, scale.den
                )));
            }
        }
        Ok(muxer)
    }

    /// The init segment, once, from the first packet on.
    pub fn take_init(&mut self) -> Option<Vec<u8>> {
        self.init.take()
    }

    /// Adds a packet to the fragment. Its duration must be exact, for the last of a fragment carries it into the file.
    pub fn write(&mut self, packet: &mut Packet) -> Result<(), Failure> {
        packet.get_mut().stream_index = 0;
        // SAFETY: a started muxer; the packet stays ours.
        check("writing a packet", unsafe { ff::av_write_frame(self.context, packet.as_ptr()) })?;
        self.pending = true;
        if !self.begun {
            self.begun = true;
            // The first flush writes the init segment alone and keeps the packet.
            self.flush()?;
            let bytes = self.take_bytes()?;
            if !begins_with(&bytes, b"ftyp") {
                return Err(Failure::internal("the muxer wrote no init segment"));
            }
            self.init = Some(bytes);
        }
        Ok(())
    }

    /// Ends the fragment and returns its bytes: `moof` and `mdat`.
    pub fn cut(&mut self) -> Result<Vec<u8>, Failure> {
        if !self.pending {
            return Err(Failure::internal("a segment without packets"));
        }
        self.pending = false;
        self.flush()?;
        let bytes = self.take_bytes()?;
        if !begins_with(&bytes, b"moof") && !begins_with(&bytes, b"styp") {
            return Err(Failure::internal("the muxer wrote no fragment"));
        }
        if bytes.len() > limits::SEGMENT_BYTES_MAX {
            return Err(Failure::internal(format!(
                "a segment of {} bytes, the limit is {}",
                bytes.len(),
                limits::SEGMENT_BYTES_MAX
            )));
        }
        Ok(bytes)
    }

    fn flush(&mut self) -> Result<(), Failure> {
        // SAFETY: a started muxer; null flushes.
        check("ending a fragment", unsafe { ff::av_write_frame(self.context, ptr::null_mut()) })?;
        Ok(())
    }

    fn open_buffer(&mut self) -> Result<(), Failure> {
        // SAFETY: the field is null or was closed by take_bytes.
        check("a buffer for the muxer", unsafe { ff::avio_open_dyn_buf(&mut (*self.context).pb) })?;
        Ok(())
    }

    /// What was written since the last call. Fragments carry no absolute positions, so each may start a buffer.
    fn take_bytes(&mut self) -> Result<Vec<u8>, Failure> {
        let mut data: *mut u8 = ptr::null_mut();
        // SAFETY: the buffer is a dynamic one; closing it yields `size` bytes that we copy and free.
        let bytes = unsafe {
            let size = ff::avio_close_dyn_buf((*self.context).pb, &mut data);
            (*self.context).pb = ptr::null_mut();
            let bytes = if data.is_null() || size <= 0 {
                Vec::new()
            } else {
                std::slice::from_raw_parts(data, size as usize).to_vec()
            };
            ff::av_free(data.cast());
            bytes
        };
        self.open_buffer()?;
        Ok(bytes)
    }
}

impl Drop for Muxer {
    fn drop(&mut self) {
        // SAFETY: owned; the buffer is closed first because the context does not own it.
        unsafe {
            if !(*self.context).pb.is_null() {
                let mut data: *mut u8 = ptr::null_mut();
                ff::avio_close_dyn_buf((*self.context).pb, &mut data);
                ff::av_free(data.cast());
                (*self.context).pb = ptr::null_mut();
            }
            ff::avformat_free_context(self.context);
        }
    }
}

fn begins_with(bytes: &[u8], kind: &[u8; 4]) -> bool {
    bytes.get(4..8) == Some(kind)
}

/// `avc1.PPCCLL` from the `avcC` box of an init segment.
pub fn avc_codec(init: &[u8]) -> Result<String, Failure> {
    let at = init
        .windows(4)
        .position(|window| window == b"avcC")
        .ok_or_else(|| Failure::internal("the init segment has no avcC box"))?;
    match init.get(at + 5..at + 8) {
        Some(&[profile, compatibility, level]) => Ok(format!("avc1.{profile:02x}{compatibility:02x}{level:02x}")),
        _ => Err(Failure::internal("the avcC box is cut short")),
    }
}

/// Longest timescale libavformat takes for a track.
pub const TIMESCALE_MAX: c_int = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codec_string_comes_from_the_avcc_box() {
        let init = b"....avcC\x01\x64\x00\x1f\xff";
        assert_eq!(avc_codec(init).unwrap(), "avc1.64001f");
        assert!(avc_codec(b"nothing").is_err());
        assert!(avc_codec(b"avcC\x01\x64").is_err());
    }
}
