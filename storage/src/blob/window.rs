//! A mapped part of a blob, as long as somebody holds bytes of it.
//!
//! Owns the map and its share of the budget of maps; both go with the last `Bytes` made from it. Nothing here touches the
//! memory: reading a page that is not there waits for the disk, so whoever does asks [`Window::is_resident`] before.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::blob::resident::present;
use crate::volume::PAGE_BYTES;

pub(crate) struct Window {
    map: Mmap,
    /// Of the object, in bytes; starts with a block.
    range: Range<u64>,
    _permits: OwnedSemaphorePermit,
}

/// Bytes of a window, for `Bytes::from_owner`.
struct Mapped {
    window: Arc<Window>,
    range: Range<u64>,
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self.window.slice(&self.range)
    }
}

impl Window {
    /// Maps a range of a sealed blob's file, which starts with a page; `None` when the budget (in pages) is spent.
    pub fn map(file: &File, range: Range<u64>, budget: &Arc<Semaphore>) -> io::Result<Option<Window>> {
        let len = (range.end - range.start) as usize;
        let permits = len.div_ceil(PAGE_BYTES) as u32;
        let Ok(_permits) = Arc::clone(budget).try_acquire_many_owned(permits) else {
            return Ok(None);
        };
        // SAFETY: blob files are never overwritten or truncated, only unlinked, so the mapped bytes
        // do not change under the shared reference (LOCK keeps other nodes away).
        let map = unsafe { MmapOptions::new().offset(range.start).len(len).map(file)? };
        Ok(Some(Window { map, range, _permits }))
    }

    pub fn covers(&self, range: &Range<u64>) -> bool {
        self.range.start <= range.start && range.end <= self.range.end
    }

    /// # Panics
    ///
    /// Where the window does not cover it, as those below.
    pub fn slice(&self, range: &Range<u64>) -> &[u8] {
        &self.map[self.within(range)]
    }

    pub fn bytes(self: &Arc<Self>, range: &Range<u64>) -> Bytes {
        Bytes::from_owner(Mapped { window: Arc::clone(self), range: range.clone() })
    }

    /// All of it is in memory now.
    pub fn is_resident(&self, range: &Range<u64>) -> io::Result<bool> {
        let within = self.within(range);
        Ok(present(&self.map, &within)? == within.len())
    }

    fn within(&self, range: &Range<u64>) -> Range<usize> {
        (range.start - self.range.start) as usize..(range.end - self.range.start) as usize
    }
}
