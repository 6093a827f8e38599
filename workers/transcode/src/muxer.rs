//! Fragmented MP4 (CMAF) in memory: one track per muxer, an init segment once, then one `moof`+`mdat` per cut.
//!
//! Two ways to start a timeline at zero. Video: composition offsets may be negative (`cmaf`), so decode times start at 0
//! with the first picture and need no edit list. Audio: the AAC encoder's 1,024 samples of priming come before time zero; they
//! are media time 0…1023, and the edit list in the init segment starts the presentation after them (`delay_moov`, because
//! the muxer writes that list when it has seen the first packet).

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
    written: bool,
}

// SAFETY: used by one thread at a time.
unsafe impl Send for Muxer {}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Track {
    Video,
    Audio,
}

impl Muxer {
    pub fn new(track: Track, encoder: &Encoder, timescale: i32) -> Result<Muxer, Failure> {
        let mut context = ptr::null_mut();
        // SAFETY: the out pointer is ours; "mp4" is a static name.
        let code =
            unsafe { ff::avformat_alloc_output_context2(&mut context, ptr::null(), c"mp4".as_ptr(), ptr::null()) };
        check("opening the MP4 muxer", code)?;
        let mut muxer = Muxer { context, init: None, written: false };
        muxer.open_buffer()?;
        let flags = match track {
            Track::Video => "cmaf+frag_custom+skip_trailer",
            Track::Audio => "cmaf+frag_custom+skip_trailer+delay_moov",
        };
        let edit_list = if track == Track::Audio { "1" } else { "0" };
        let scale = timescale.to_string();
        let mut options = Options::new(&[("movflags", flags), ("use_editlist", edit_list)])?;
        if track == Track::Video {
            options =
                Options::new(&[("movflags", flags), ("use_editlist", edit_list), ("video_track_timescale", &scale)])?;
        }
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
        if track == Track::Video {
            muxer.init = Some(muxer.take_bytes()?);
        }
        Ok(muxer)
    }

    /// The init segment, once: at once for video, after the first cut for audio.
    pub fn take_init(&mut self) -> Option<Vec<u8>> {
        self.init.take()
    }

    /// Adds a packet to the fragment. Its duration must be exact, for the last of a fragment carries it into the file.
    pub fn write(&mut self, packet: &mut Packet) -> Result<(), Failure> {
        packet.get_mut().stream_index = 0;
        self.written = true;
        // SAFETY: a started muxer; the packet stays ours.
        check("writing a packet", unsafe { ff::av_write_frame(self.context, packet.as_ptr()) })?;
        // SAFETY: the context's buffer is the dynamic one opened by us.
        Ok(())
    }

    /// Ends the fragment and returns its bytes: `moof` and `mdat`.
    pub fn cut(&mut self) -> Result<Vec<u8>, Failure> {
        if !self.written {
            return Err(Failure::internal("a segment without packets"));
        }
        self.written = false;
        self.flush()?;
        let mut bytes = self.take_bytes()?;
        if begins_with(&bytes, b"ftyp") {
            // With delay_moov the first flush writes the init segment only.
            self.init = Some(bytes);
            self.flush()?;
            bytes = self.take_bytes()?;
        }
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
