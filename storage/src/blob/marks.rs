//! Which blocks of a blob are trusted where they are found in the page cache.
//!
//! One bit for each block, set when what the page cache has of it matched its checksum, and taken away before something
//! may come from the disk unseen. Whoever sends from the page cache looks at the mark, at the page cache, and at the mark
//! again: that order is why a mark is taken with `Release` and read with `Acquire`. Who verifies what he read a while ago
//! sets its mark only if nothing was [forgotten](Marks::forget) since. Shared by all readers of a blob.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::*};

/// Blocks are counted from 0.
pub(super) struct Marks {
    words: Box<[AtomicU64]>,
    forgotten: AtomicU64,
}

/// A moment in the life of marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Epoch(u64);

impl Marks {
    /// For so many blocks, none of them trusted.
    pub fn new(blocks: usize) -> Marks {
        let words = (0..blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Marks { words, forgotten: AtomicU64::new(0) }
    }

    /// True when it was not set before.
    pub fn set(&self, block: u64) -> bool {
        self.word(block).fetch_or(bit(block), AcqRel) & bit(block) == 0
    }

    /// To be asked before reading what is then verified.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.forgotten.load(Acquire))
    }

    /// For what was read in that epoch.
    pub fn set_since(&self, block: u64, epoch: Epoch) {
        // Whoever forgets either finds the mark, or was there before it and has his epoch seen.
        self.set(block);
        if self.epoch() != epoch {
            self.take(block);
        }
    }

    /// Takes marks, those too that are about to be set for what was read before.
    pub fn forget(&self, blocks: Range<u64>) {
        self.forgotten.fetch_add(1, AcqRel);
        blocks.for_each(|block| self.take(block));
    }

    pub fn take(&self, block: u64) {
        self.word(block).fetch_and(!bit(block), Release);
    }

    pub fn take_all(&self) {
        for word in &self.words {
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
        &self.words[(block / 64) as usize]
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
        assert!((0..130).filter(|block| block % 3 == 0).all(|block| marks.set(block)) && !marks.set(0));
        assert!((0..130).all(|block| marks.has(block) == (block % 3 == 0)));
        assert_eq!((60..70).filter(|block| marks.set(*block)).count(), 6);
        assert!(marks.has_all(60..70) && marks.has_all(5..5) && !marks.has_all(59..70) && !marks.has_all(60..71));
        marks.take(64);
        assert!(marks.has_all(60..64) && !marks.has(64) && marks.has_all(65..70));
        let before = marks.epoch();
        marks.forget(65..70);
        assert!((65..70).all(|block| !marks.has(block)));
        marks.set_since(66, before);
        marks.set_since(67, marks.epoch());
        assert!(!marks.has(66) && marks.has(67));
        marks.take_all();
        assert!((0..130).all(|block| !marks.has(block)));
    }
}
