//! Why a transcode ended, in the terms the node decides by ([`Class`]) and in words for a person.

use std::ffi::{CStr, c_int};

use ffmpeg_sys_next as ff;
use reelring_protocol::FrameError;
use reelring_protocol::transcode::Class;

#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub class: Class,
    pub message: String,
}

impl Failure {
    pub fn input(message: impl Into<String>) -> Failure {
        Failure { class: Class::Input, message: message.into() }
    }

    pub fn internal(message: impl Into<String>) -> Failure {
        Failure { class: Class::Internal, message: message.into() }
    }

    pub fn cancelled() -> Failure {
        Failure { class: Class::Cancelled, message: "cancelled".into() }
    }

    /// The same failure, naming the source unless it does already.
    pub fn about(self, source: &str) -> Failure {
        if self.class == Class::Cancelled || self.message.contains(source) {
            return self;
        }
        Failure { message: format!("{source}: {}", self.message), ..self }
    }

    /// A failure of an FFmpeg call during which nothing foreign was parsed: out of memory, a device that went away.
    pub fn of_call(what: &str, code: c_int) -> Failure {
        Failure { class: class_of(code), message: format!("{what} failed: {}", text_of(code)) }
    }
}

impl From<FrameError> for Failure {
    fn from(error: FrameError) -> Failure {
        Failure::internal(error.to_string())
    }
}

/// FFmpeg's name for an error code.
pub fn text_of(code: c_int) -> String {
    let mut buffer = [0; 128];
    // SAFETY: the buffer's length is passed along, and av_strerror always ends what it writes with a NUL.
    let text = unsafe {
        ff::av_strerror(code, buffer.as_mut_ptr(), buffer.len());
        CStr::from_ptr(buffer.as_ptr())
    };
    text.to_string_lossy().into_owned()
}

/// The classes of hardware encoders' errors, as nvenc.c maps them.
pub fn class_of(code: c_int) -> Class {
    match -code {
        libc::ENOENT | libc::ENOSYS | libc::ENODEV => Class::Absent,
        libc::ENOMEM | libc::EAGAIN | libc::EBUSY => Class::Capacity,
        libc::EINVAL => Class::Input,
        libc::EIO => Class::Sticky,
        _ if code == ff::AVERROR_EXIT => Class::Cancelled,
        _ => Class::Internal,
    }
}

/// Fails with `what` unless the call succeeded.
pub fn check(what: &str, code: c_int) -> Result<c_int, Failure> {
    if code < 0 { Err(Failure::of_call(what, code)) } else { Ok(code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nvenc_codes_fall_into_the_classes_the_node_acts_on() {
        assert_eq!(class_of(-libc::ENOMEM), Class::Capacity);
        assert_eq!(class_of(-libc::EIO), Class::Sticky);
        assert_eq!(class_of(-libc::ENOSYS), Class::Absent);
        assert_eq!(class_of(ff::AVERROR_EXIT), Class::Cancelled);
        assert!(Failure::of_call("opening", -libc::ENOMEM).message.contains("Cannot allocate memory"));
    }
}
