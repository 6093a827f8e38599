//! FFmpeg's log: warnings go to standard error, which the node keeps the tail of, and the last lines stay here for errors.

use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use ffmpeg_sys_next as ff;
use reelring_protocol::limits::{LOG_LINE_BYTES_MAX, LOG_LINES_MAX};

#[cfg(target_arch = "x86_64")]
type VaList = *mut ff::__va_list_tag;
#[cfg(not(target_arch = "x86_64"))]
type VaList = ff::va_list;

static TAIL: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

pub fn install() {
    // SAFETY: the callback is a plain function that lives as long as the program.
    unsafe {
        ff::av_log_set_level(ff::AV_LOG_WARNING);
        ff::av_log_set_callback(Some(on_line));
    }
}

/// The last lines, oldest first.
pub fn tail() -> Vec<String> {
    lock().iter().cloned().collect()
}

/// The last line, where FFmpeg most often says why a call failed.
pub fn last() -> Option<String> {
    lock().back().cloned()
}

pub fn clear() {
    lock().clear();
}

fn lock() -> std::sync::MutexGuard<'static, VecDeque<String>> {
    TAIL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One line on standard error. It may be closed (the node is gone): that is no reason to fail.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

unsafe extern "C" fn on_line(object: *mut c_void, level: c_int, format: *const c_char, arguments: VaList) {
    if level > ff::AV_LOG_WARNING {
        return;
    }
    let mut line = [0 as c_char; LOG_LINE_BYTES_MAX];
    let mut prefix = 1;
    // SAFETY: FFmpeg's own arguments are handed on; the buffer's length bounds what is written, and it ends with a NUL.
    let text = unsafe {
        ff::av_log_format_line2(object, level, format, arguments, line.as_mut_ptr(), line.len() as c_int, &mut prefix);
        CStr::from_ptr(line.as_ptr())
    };
    let text = without_address(text.to_string_lossy().trim_end());
    // The MP4 muxer's remark on every track we make, on purpose, with an edit list.
    if !text.is_empty() && !text.contains("Assuming writing CMAF") {
        say(&text);
        keep(text);
    }
}

fn keep(text: String) {
    let mut tail = lock();
    // One fault repeated a thousand times must not push out the line that explains it.
    if tail.back().is_some_and(|last| *last == text) {
        return;
    }
    if tail.len() == LOG_LINES_MAX {
        tail.pop_front();
    }
    tail.push_back(text);
}

/// `[mov,mp4 @ 0x55d0c0ffee00] moov atom not found` without the address, which means nothing to a reader.
fn without_address(line: &str) -> String {
    match (line.find(" @ 0x"), line.find(']')) {
        (Some(at), Some(end)) if at < end => format!("{}{}", &line[..at], &line[end..]),
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_left_out() {
        assert_eq!(without_address("[h264 @ 0x7f00] no frame!"), "[h264] no frame!");
        assert_eq!(without_address("plain"), "plain");
    }

    #[test]
    fn the_tail_is_bounded_and_skips_repetitions() {
        clear();
        for number in 0..100 {
            keep(format!("line {number}"));
            keep(format!("line {number}"));
        }
        let tail = tail();
        assert_eq!(tail.len(), LOG_LINES_MAX);
        assert_eq!(tail.last().map(String::as_str), Some("line 99"));
        assert_eq!(tail[LOG_LINES_MAX - 2], "line 98");
    }
}
