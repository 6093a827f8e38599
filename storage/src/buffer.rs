//! Buffers for reads and writes, and the budget they are paid from.
//!
//! A [`Buffer`] owns its memory and its permit: whoever holds the buffer holds both, and dropping
//! it gives the memory to the pool's shelf and the permit to the next waiter (`budget.rs` says who that is), whether it is
//! dropped by a caller, by the engine after a completion, or by a response that was sent. Memory is
//! therefore bounded by construction, whatever is cancelled.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::budget::{Budget, Payer, Permit};
use crate::limits::{
    BATCH_BYTES_MAX, BLOCK_BYTES, POOL_RETAINED_BYTES, READ_MAX, SCARCE_CHUNK_BYTES, SMALL_READ_BYTES,
    STREAM_CHUNK_BYTES,
};

/// Fits O_DIRECT on every block device.
pub(crate) const ALIGNMENT: usize = 4096;

/// The sizes buffers come in. The largest holds a read of `READ_MAX` that is not aligned to blocks.
const SIZES: [usize; 7] = [
    ALIGNMENT,
    SCARCE_CHUNK_BYTES,
    SMALL_READ_BYTES,
    BLOCK_BYTES,
    STREAM_CHUNK_BYTES,
    BATCH_BYTES_MAX,
    READ_MAX + BLOCK_BYTES,
];

/// What one permit of the budget stands for.
const UNIT: usize = ALIGNMENT;

/// Hands out buffers against a budget, and keeps some free ones for reuse.
#[derive(Clone)]
pub struct Pool {
    shelf: Arc<Shelf>,
    budget: Arc<Budget>,
}

#[derive(Default)]
struct Shelf {
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    by_size: [Vec<Memory>; SIZES.len()],
    bytes: usize,
}

/// Aligned memory, initialised from its first day (zeroed pages cost nothing until touched).
struct Memory {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: `Memory` is the only owner of its allocation, as a `Box<[u8]>` would be.
unsafe impl Send for Memory {}
// SAFETY: shared references only read the pointer; the bytes behind it follow Rust's borrow rules
// through `Buffer`'s methods.
unsafe impl Sync for Memory {}

/// Bytes on their way to or from the disk. The first `len` are meaningful.
pub struct Buffer {
    /// Taken only by `Drop`.
    memory: Option<Memory>,
    len: usize,
    shelf: Arc<Shelf>,
    permit: Permit,
}

impl Pool {
    pub fn new(budget_bytes: usize) -> Pool {
        Pool { shelf: Arc::default(), budget: Budget::new(budget_bytes / UNIT) }
    }

    /// A buffer of at least `bytes` for the node's own work, once the budget allows. Dropping the future takes nothing.
    ///
    /// # Panics
    /// When `bytes` is more than the largest size, or than the whole budget.
    pub async fn take(&self, bytes: usize) -> Buffer {
        self.take_for(Payer::Node, bytes).await
    }

    /// As [`take`](Pool::take), on somebody's account.
    pub(crate) async fn take_for(&self, payer: Payer, bytes: usize) -> Buffer {
        let class = self.class(bytes);
        self.buffer(class, self.budget.take(payer, SIZES[class] / UNIT).await)
    }

    /// A buffer of at least `bytes` if the budget allows it now.
    pub fn try_take(&self, bytes: usize) -> Option<Buffer> {
        self.try_take_for(Payer::Node, bytes)
    }

    pub(crate) fn try_take_for(&self, payer: Payer, bytes: usize) -> Option<Buffer> {
        let class = self.class(bytes);
        Some(self.buffer(class, self.budget.try_take(payer, SIZES[class] / UNIT, 0)?))
    }

    /// As [`try_take_for`](Pool::try_take_for), for what can wait: an eighth of the budget is left to those who cannot, the
    /// payer himself among them.
    pub(crate) fn try_take_spare(&self, payer: Payer, bytes: usize) -> Option<Buffer> {
        let class = self.class(bytes);
        let rest = self.budget.units() / 8;
        Some(self.buffer(class, self.budget.try_take(payer, SIZES[class] / UNIT, rest)?))
    }

    /// Bytes of the budget that are in use.
    pub fn in_use(&self) -> usize {
        self.budget.in_use() * UNIT
    }

    /// True when a payer who gets a buffer of so many bytes would have less than a quarter of the budget left to get.
    pub(crate) fn is_scarce(&self, payer: Payer, bytes: usize) -> bool {
        self.budget.lacks(payer, SIZES[self.class(bytes)] / UNIT + self.budget.units() / 4)
    }

    /// True when little of the budget is left, or this payer waits.
    pub(crate) fn is_short(&self, payer: Payer) -> bool {
        self.budget.is_short(payer)
    }

    /// How often somebody had to wait: for room, and for his own share.
    pub(crate) fn waits(&self) -> (u64, u64) {
        self.budget.waits()
    }

    fn class(&self, bytes: usize) -> usize {
        let class = class(bytes);
        assert!(SIZES[class] / UNIT <= self.budget.units(), "a buffer of {bytes} bytes exceeds the whole budget");
        class
    }

    fn buffer(&self, class: usize, permit: Permit) -> Buffer {
        let memory = self.shelf.take_or_make(class);
        Buffer { memory: Some(memory), len: 0, shelf: Arc::clone(&self.shelf), permit }
    }
}

/// The smallest size that holds so much.
fn class(bytes: usize) -> usize {
    let class = SIZES.iter().position(|size| *size >= bytes);
    class.unwrap_or_else(|| panic!("no buffer has {bytes} bytes, the largest has {}", SIZES[SIZES.len() - 1]))
}

impl Shelf {
    fn take_or_make(&self, class: usize) -> Memory {
        self.take(class).unwrap_or_else(|| Memory::new(SIZES[class]))
    }

    fn take(&self, class: usize) -> Option<Memory> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = free.by_size[class].pop()?;
        free.bytes -= memory.size;
        Some(memory)
    }

    fn put(&self, memory: Memory) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let class = SIZES.iter().position(|size| *size == memory.size);
        if let Some(class) = class
            && free.bytes + memory.size <= POOL_RETAINED_BYTES
        {
            free.bytes += memory.size;
            free.by_size[class].push(memory);
        }
    }
}

impl Memory {
    fn new(size: usize) -> Memory {
        let layout = Memory::layout(size);
        // SAFETY: the layout has a size above zero, as every entry of `SIZES` does.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        Memory { start, size }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the allocation has `size` initialised bytes, and `&mut self` makes this the only
        // reference to them.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.size) }
    }

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, ALIGNMENT).expect("sizes are small multiples of the alignment")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this very layout, and is freed only here.
        unsafe { dealloc(self.start.as_ptr(), Memory::layout(self.size)) }
    }
}

impl Buffer {
    pub fn capacity(&self) -> usize {
        self.memory().size
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Says how many bytes are meaningful.
    ///
    /// # Panics
    /// When `len` exceeds the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "{len} bytes in a buffer of {}", self.capacity());
        self.len = len;
    }

    /// Appends as much of `data` as fits, and returns how much that was.
    pub fn fill(&mut self, data: &[u8]) -> usize {
        let from = self.len;
        let count = data.len().min(self.capacity() - from);
        self.spare()[from..from + count].copy_from_slice(&data[..count]);
        self.len += count;
        count
    }

    pub fn as_slice(&self) -> &[u8] {
        let memory = self.memory();
        // SAFETY: `len` never exceeds the allocation, whose bytes are initialised from the start,
        // and `&self` keeps writers away.
        unsafe { std::slice::from_raw_parts(memory.start.as_ptr(), self.len) }
    }

    /// The whole capacity, to be read into.
    pub(crate) fn spare(&mut self) -> &mut [u8] {
        self.memory.as_mut().expect("taken only by drop").bytes_mut()
    }

    /// The meaningful bytes `range` as `Bytes`, without a copy: memory and permit live as long as
    /// the last clone.
    pub fn into_bytes(self, range: std::ops::Range<usize>) -> Bytes {
        Bytes::from_owner(self).slice(range)
    }

    /// As [`into_bytes`](Buffer::into_bytes), moved into the smallest buffer that holds them, if that is a smaller one.
    pub(crate) fn cut_out(mut self, range: std::ops::Range<usize>) -> Bytes {
        let class = class(range.len());
        if SIZES[class] >= self.capacity() {
            return self.into_bytes(range);
        }
        let mut small = self.shelf.take_or_make(class);
        small.bytes_mut()[..range.len()].copy_from_slice(&self.as_slice()[range.clone()]);
        self.len = range.len();
        if let Some(large) = self.memory.replace(small) {
            self.shelf.put(large);
        }
        self.permit.keep(SIZES[class] / UNIT);
        Bytes::from_owner(self)
    }

    fn memory(&self) -> &Memory {
        self.memory.as_ref().expect("taken only by drop")
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.shelf.put(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_budget_bounds_what_is_out() {
        let pool = Pool::new(2 * BLOCK_BYTES);
        let first = pool.take(BLOCK_BYTES).await;
        let second = pool.take(BLOCK_BYTES - 1).await;
        assert!(pool.try_take(1).is_none(), "a third buffer was handed out over the budget");
        assert_eq!(pool.in_use(), 2 * BLOCK_BYTES);
        drop(first);
        assert!(pool.try_take(1).is_some());
        let bytes = {
            let mut second = second;
            second.fill(b"kept");
            second.into_bytes(1..4)
        };
        assert_eq!((&bytes[..], pool.in_use()), (&b"ept"[..], BLOCK_BYTES));
        drop(bytes);
        assert_eq!(pool.in_use(), 0);
        let cut = {
            let mut large = pool.take(BLOCK_BYTES).await;
            large.fill(b"the part that is kept");
            large.cut_out(17..21)
        };
        assert_eq!((&cut[..], pool.in_use()), (&b"kept"[..], ALIGNMENT));
        let same = {
            let mut small = pool.take(1).await;
            small.fill(b"kept");
            small.cut_out(1..4)
        };
        assert_eq!((&same[..], pool.in_use()), (&b"ept"[..], 2 * ALIGNMENT));
    }

    #[tokio::test]
    async fn freed_memory_is_reused_and_its_amount_bounded() {
        let pool = Pool::new(64 * BATCH_BYTES_MAX);
        let mut out = Vec::new();
        for _ in 0..32 {
            out.push(pool.take(BATCH_BYTES_MAX).await);
        }
        drop(out);
        let kept = pool.shelf.free.lock().unwrap().bytes;
        assert_eq!(kept, POOL_RETAINED_BYTES / BATCH_BYTES_MAX * BATCH_BYTES_MAX);
        let _again = pool.take(BATCH_BYTES_MAX).await;
        assert_eq!(pool.shelf.free.lock().unwrap().bytes, kept - BATCH_BYTES_MAX);
    }

    #[tokio::test]
    async fn filling_stops_at_the_capacity() {
        let pool = Pool::new(BATCH_BYTES_MAX);
        let mut buffer = pool.take(4096).await;
        assert_eq!(buffer.fill(&[1; 4000]), 4000);
        assert_eq!(buffer.fill(&[2; 4000]), 96);
        assert_eq!((buffer.len(), buffer.as_slice()[3999], buffer.as_slice()[4000]), (4096, 1, 2));
    }
}
