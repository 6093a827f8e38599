//! libav's reads from the source's descriptor: by offset, within the object's length, until the job is cancelled.

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ffmpeg_sys_next as ff;
use reelring_protocol::transcode::Class;

use crate::av::out_of_memory;
use crate::error::Failure;

const IO_BUFFER_BYTES: usize = 64 << 10;

struct Reader {
    file: File,
    position: u64,
    length: u64,
    cancelled: Arc<AtomicBool>,
    error: Option<std::io::Error>,
    /// A position beyond the end that was sought.
    beyond: Option<u64>,
}

/// The AVIO context over the descriptor; owns its buffer and the reader behind it.
pub struct Io {
    pub context: *mut ff::AVIOContext,
    reader: Box<Reader>,
}

impl Io {
    pub fn new(file: File, length: u64, cancelled: Arc<AtomicBool>) -> Result<Io, Failure> {
        let actual = file.metadata().map(|meta| meta.len()).unwrap_or(0);
        if actual < length {
            return Err(Failure {
                class: Class::Source,
                message: format!("the source's descriptor has {actual} bytes, {length} were announced"),
            });
        }
        let mut reader = Box::new(Reader { file, position: 0, length, cancelled, error: None, beyond: None });
        // SAFETY: the buffer comes from av_malloc as required; the opaque pointer is the box's content, which does not
        // move and is freed after the context.
        let context = unsafe {
            let buffer = ff::av_malloc(IO_BUFFER_BYTES).cast::<u8>();
            if buffer.is_null() {
                return Err(out_of_memory("the read buffer"));
            }
            let opaque = ptr::from_mut(&mut *reader).cast();
            let context =
                ff::avio_alloc_context(buffer, IO_BUFFER_BYTES as c_int, 0, opaque, Some(read), None, Some(seek));
            if context.is_null() {
                ff::av_free(buffer.cast());
                return Err(out_of_memory("the read context"));
            }
            context
        };
        Ok(Io { context, reader })
    }

    /// Why a read failed, which libavformat tells as an end of file.
    pub fn error(&self) -> Option<&std::io::Error> {
        self.reader.error.as_ref()
    }

    pub fn length(&self) -> u64 {
        self.reader.length
    }

    /// The first position beyond the end that was sought since [`Io::forget_beyond`].
    pub fn beyond(&self) -> Option<u64> {
        self.reader.beyond
    }

    pub fn forget_beyond(&mut self) {
        self.reader.beyond = None;
    }

    /// Lets libavformat ask whether the job was cancelled. Valid as long as this value.
    pub fn interrupt(&mut self) -> ff::AVIOInterruptCB {
        ff::AVIOInterruptCB { callback: Some(interrupted), opaque: ptr::from_mut(&mut *self.reader).cast() }
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        // SAFETY: owned; libavformat may have replaced the buffer, so the current one is freed.
        unsafe {
            ff::av_freep(ptr::from_mut(&mut (*self.context).buffer).cast());
            ff::avio_context_free(&mut self.context);
        }
    }
}

unsafe extern "C" fn read(opaque: *mut c_void, buffer: *mut u8, size: c_int) -> c_int {
    // SAFETY: the opaque value is the boxed reader, used by one thread at a time; the buffer has `size` bytes.
    let (reader, buffer) =
        unsafe { (&mut *opaque.cast::<Reader>(), std::slice::from_raw_parts_mut(buffer, size.max(0) as usize)) };
    if reader.cancelled.load(Ordering::Relaxed) {
        return ff::AVERROR_EXIT;
    }
    let left = reader.length.saturating_sub(reader.position);
    let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
    if want == 0 {
        return ff::AVERROR_EOF;
    }
    loop {
        match reader.file.read_at(&mut buffer[..want], reader.position) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            // The length was checked: an early end means the file shrank under us.
            Ok(0) => {
                reader.error = Some(std::io::ErrorKind::UnexpectedEof.into());
                return -libc::EIO;
            }
            Ok(have) => {
                reader.position += have as u64;
                return have as c_int;
            }
            Err(error) => {
                let code = error.raw_os_error().unwrap_or(libc::EIO);
                reader.error = Some(error);
                return -code;
            }
        }
    }
}

unsafe extern "C" fn seek(opaque: *mut c_void, offset: i64, whence: c_int) -> i64 {
    // SAFETY: as in `read`.
    let reader = unsafe { &mut *opaque.cast::<Reader>() };
    let base = match whence & !ff::AVSEEK_FORCE {
        ff::AVSEEK_SIZE => return reader.length as i64,
        libc::SEEK_SET => 0,
        libc::SEEK_CUR => reader.position as i64,
        libc::SEEK_END => reader.length as i64,
        _ => return -i64::from(libc::EINVAL),
    };
    match base.checked_add(offset) {
        Some(position) if position >= 0 => {
            reader.position = position as u64;
            if reader.position > reader.length {
                reader.beyond.get_or_insert(reader.position);
            }
            position
        }
        _ => -i64::from(libc::EINVAL),
    }
}

unsafe extern "C" fn interrupted(opaque: *mut c_void) -> c_int {
    // SAFETY: the opaque value is the boxed reader, alive as long as the context; only the atomic is read.
    unsafe { (*opaque.cast::<Reader>()).cancelled.load(Ordering::Relaxed) as c_int }
}
