//! The memory of one operation: aligned for direct I/O, owned by whoever carries the operation out.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Fits O_DIRECT on every block device.
const ALIGNMENT: usize = 4096;

/// Aligned bytes, initialised from their first day. It moves with the operation, so an engine that hands its address to the
/// kernel keeps it until the kernel is done.
pub struct Block {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: a block is the only owner of its allocation, as a `Box<[u8]>` would be.
unsafe impl Send for Block {}

impl Block {
    pub fn new(size: usize) -> Block {
        let size = size.max(1);
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc_zeroed(Block::layout(size)) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(Block::layout(size)));
        Block { start, size }
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the allocation has `size` initialised bytes, and `&self` keeps writers away.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.size) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.size) }
    }

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, ALIGNMENT).expect("blocks are bounded by limits::BLOCK_BYTES")
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this very layout, and is freed only here.
        unsafe { dealloc(self.start.as_ptr(), Block::layout(self.size)) }
    }
}
