//! Which blocks of a blob are trusted where they are found in the page cache.
//!
//! One bit for each block, set when what the page cache has of it matched its checksum, and taken away before something
//! may come from the disk unseen. Whoever sends from the page cache looks at the mark, at the page cache, and at the mark
//! again: that order is why a mark is taken with `Release` and read with `Acquire`. Shared by all readers of a blob.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::*};

/// Blocks are counted from 0.
pub(super) struct Marks(Box<[AtomicU64]>);

impl Marks {
    /// For so many blocks, none of them trusted.
    pub fn new(blocks: usize) -> Marks {
        Marks((0..blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    pub fn set(&self, block: u64) {
        self.word(block).fetch_or(bit(block), Relaxed);
    }

    pub fn take(&self, block: u64) {
        self.word(block).fetch_and(!bit(block), Release);
    }

    pub fn take_all(&self) {
        for word in &self.0 {
            // Looked at first, so that doing it twice costs no cache line.
            if word.load(Relaxed) != 0 {
                word.store(0, Release);
            }
        }
    }

    pub fn has(&self, block: u64) -> bool {
        self.word(block).load(Acquire) & bit(block) != 0
    }

    pub fn has_all(&self, mut blocks: Range<u64>) -> bool {
        blocks.all(|block| self.has(block))
    }

    fn word(&self, block: u64) -> &AtomicU64 {
        &self.0[(block / 64) as usize]
    }
}

fn bit(block: u64) -> u64 {
    1 << (block % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_block_has_a_mark_of_its_own() {
        let marks = Marks::new(130);
        (0..130).filter(|block| block % 3 == 0).for_each(|block| marks.set(block));
        assert!((0..130).all(|block| marks.has(block) == (block % 3 == 0)));
        (60..70).for_each(|block| marks.set(block));
        assert!(marks.has_all(60..70) && marks.has_all(5..5) && !marks.has_all(59..70) && !marks.has_all(60..71));
        marks.take(64);
        assert!(marks.has_all(60..64) && !marks.has(64) && marks.has_all(65..70));
        marks.take_all();
        assert!((0..130).all(|block| !marks.has(block)));
    }
}
