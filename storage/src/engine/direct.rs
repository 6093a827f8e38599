//! Whether a file may be written past the page cache with this program's buffers. Asked once, as it is opened: a refusal
//! at the first write would come too late for what was to be written.

use std::fs::File;
use std::io;

use rustix::fs::{AtFlags, StatxFlags};

use super::{EXT4, XFS};
use crate::buffer::ALIGNMENT;

pub(super) fn check_direct(file: &File) -> io::Result<()> {
    let unfit = |why: &str| Err(io::Error::new(io::ErrorKind::Unsupported, why));
    let stat = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
    if stat.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        // Linux before 6.1, or a file system that does not tell. Of these two it is known.
        return match rustix::fs::fstatfs(file)?.f_type as u64 {
            EXT4 | XFS => Ok(()),
            _ => unfit("the file system does not tell how direct writes must be aligned"),
        };
    }
    match (stat.stx_dio_mem_align, stat.stx_dio_offset_align) {
        (0, _) | (_, 0) => unfit("the file system takes no direct writes to this file"),
        (memory, offset) if memory.max(offset) as usize <= ALIGNMENT => Ok(()),
        (memory, offset) => unfit(&format!(
            "direct writes must be aligned to {} bytes here, buffers are to {ALIGNMENT}",
            memory.max(offset)
        )),
    }
}
