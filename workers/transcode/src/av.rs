//! Owned packets, frames and dictionaries of libav: each value owns one object and frees it on drop.
//!
//! Frames and packets move between threads (reference counts in libav are atomic); they are never shared.

use std::ffi::CString;
use std::ptr;

use ffmpeg_sys_next as ff;

use crate::error::Failure;

pub struct Packet(*mut ff::AVPacket);

// SAFETY: a packet owns its reference to the data; libav counts references atomically.
unsafe impl Send for Packet {}

impl Packet {
    pub fn new() -> Result<Packet, Failure> {
        // SAFETY: no preconditions; null is checked.
        let packet = unsafe { ff::av_packet_alloc() };
        if packet.is_null() { Err(out_of_memory("a packet")) } else { Ok(Packet(packet)) }
    }

    pub fn as_ptr(&self) -> *mut ff::AVPacket {
        self.0
    }

    pub fn get(&self) -> &ff::AVPacket {
        // SAFETY: non-null and owned since new().
        unsafe { &*self.0 }
    }

    pub fn get_mut(&mut self) -> &mut ff::AVPacket {
        // SAFETY: non-null and owned since new().
        unsafe { &mut *self.0 }
    }

    pub fn data(&self) -> &[u8] {
        let packet = self.get();
        if packet.data.is_null() || packet.size <= 0 {
            return &[];
        }
        // SAFETY: libav keeps `size` readable bytes at `data` while the packet holds its reference.
        unsafe { std::slice::from_raw_parts(packet.data, packet.size as usize) }
    }

    /// Moves the contents out, leaving an empty packet.
    pub fn take(&mut self) -> Result<Packet, Failure> {
        let out = Packet::new()?;
        // SAFETY: both packets are valid; the source becomes blank.
        unsafe { ff::av_packet_move_ref(out.0, self.0) };
        Ok(out)
    }

    pub fn clear(&mut self) {
        // SAFETY: valid packet.
        unsafe { ff::av_packet_unref(self.0) };
    }
}

impl Drop for Packet {
    fn drop(&mut self) {
        // SAFETY: owned; the function nulls the pointer.
        unsafe { ff::av_packet_free(&mut self.0) };
    }
}

pub struct Frame(*mut ff::AVFrame);

// SAFETY: as for Packet.
unsafe impl Send for Frame {}

impl Frame {
    pub fn new() -> Result<Frame, Failure> {
        // SAFETY: no preconditions; null is checked.
        let frame = unsafe { ff::av_frame_alloc() };
        if frame.is_null() { Err(out_of_memory("a frame")) } else { Ok(Frame(frame)) }
    }

    /// A second reference to the same pictures or samples.
    pub fn share(&self) -> Result<Frame, Failure> {
        // SAFETY: valid frame; the result is a new frame with its own references.
        let frame = unsafe { ff::av_frame_clone(self.0) };
        if frame.is_null() { Err(out_of_memory("a frame")) } else { Ok(Frame(frame)) }
    }

    pub fn as_ptr(&self) -> *mut ff::AVFrame {
        self.0
    }

    pub fn get(&self) -> &ff::AVFrame {
        // SAFETY: non-null and owned since new().
        unsafe { &*self.0 }
    }

    pub fn get_mut(&mut self) -> &mut ff::AVFrame {
        // SAFETY: non-null and owned since new().
        unsafe { &mut *self.0 }
    }

    pub fn clear(&mut self) {
        // SAFETY: valid frame.
        unsafe { ff::av_frame_unref(self.0) };
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        // SAFETY: owned; the function nulls the pointer.
        unsafe { ff::av_frame_free(&mut self.0) };
    }
}

/// Options for an `open` call. What FFmpeg did not recognise stays in it.
pub struct Options(*mut ff::AVDictionary);

impl Options {
    pub fn new(pairs: &[(&str, &str)]) -> Result<Options, Failure> {
        let mut options = Options(ptr::null_mut());
        for (key, value) in pairs {
            let (key, value) = (text(key)?, text(value)?);
            // SAFETY: both strings are NUL-ended and copied by the call.
            let code = unsafe { ff::av_dict_set(&mut options.0, key.as_ptr(), value.as_ptr(), 0) };
            crate::error::check("setting an option", code)?;
        }
        Ok(options)
    }

    pub fn as_mut(&mut self) -> *mut *mut ff::AVDictionary {
        &mut self.0
    }

    /// An option that nobody took is a mistake of ours, found at once rather than ignored.
    pub fn all_taken(&self, by: &str) -> Result<(), Failure> {
        // SAFETY: a null dictionary is an empty one.
        match unsafe { ff::av_dict_count(self.0) } {
            0 => Ok(()),
            left => Err(Failure::internal(format!("{by} did not know {left} of its options"))),
        }
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: owned or null.
        unsafe { ff::av_dict_free(&mut self.0) };
    }
}

pub fn text(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure::internal(format!("{text:?} contains a NUL")))
}

pub fn out_of_memory(what: &str) -> Failure {
    Failure::internal(format!("no memory for {what}"))
}
