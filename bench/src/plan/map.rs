//! Which blocks of a file have been touched in this pass. A tree of bits: a bit of a higher level is set where a whole
//! word of the level below is, so that the next free block is found in a few steps even when hardly any is left.

#[derive(Debug)]
pub struct Map {
    blocks: u64,
    /// The blocks first; the last level is one word.
    levels: Vec<Vec<u64>>,
}

impl Map {
    pub fn new(blocks: u64) -> Map {
        let mut levels = Vec::new();
        let mut bits = blocks;
        loop {
            let words = bits.div_ceil(64).max(1);
            levels.push(vec![0; words as usize]);
            if words == 1 {
                break Map { blocks, levels };
            }
            bits = words;
        }
    }

    pub fn clear(&mut self) {
        self.levels.iter_mut().for_each(|level| level.fill(0));
    }

    pub fn is_touched(&self, block: u64) -> bool {
        self.levels[0].get((block / 64) as usize).is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    /// Touches up to `count` blocks from `first` on, and stops at one that is touched or at the end. Returns how many.
    pub fn touch(&mut self, first: u64, count: u64) -> u64 {
        let end = self.blocks.min(first.saturating_add(count));
        let mut next = first;
        while next < end {
            let (word, bit) = (next / 64, next % 64);
            let wanted = (64 - bit).min(end - next);
            let free = wanted.min(u64::from((self.levels[0][word as usize] >> bit).trailing_zeros()));
            if free == 0 {
                break;
            }
            self.set(word, (u64::MAX >> (64 - free)) << bit);
            next += free;
            if free < wanted {
                break;
            }
        }
        next.saturating_sub(first)
    }

    /// Sets bits of a word of blocks, and the bit above each word that is full now.
    fn set(&mut self, word: u64, mut bits: u64) {
        let mut word = word;
        for level in &mut self.levels {
            let place = &mut level[word as usize];
            *place |= bits;
            if *place != u64::MAX {
                return;
            }
            bits = 1 << (word % 64);
            word /= 64;
        }
    }

    /// The first free block after `block`, from the start again behind the last one.
    pub fn next_free(&self, block: u64) -> Option<u64> {
        self.free_from(block.saturating_add(1)).or_else(|| self.free_from(0))
    }

    fn free_from(&self, block: u64) -> Option<u64> {
        let mut from = block;
        // Up, until a word has a clear bit at or after `from`.
        for (height, level) in self.levels.iter().enumerate() {
            let word = level.get((from / 64) as usize)?;
            let clear = !word & (u64::MAX << (from % 64));
            if clear != 0 {
                let mut found = from / 64 * 64 + u64::from(clear.trailing_zeros());
                // And down again: below a clear bit there is always one.
                for level in self.levels[..height].iter().rev() {
                    let word = level.get(found as usize)?;
                    found = found * 64 + u64::from((!word).trailing_zeros());
                }
                return (found < self.blocks).then_some(found);
            }
            from = from / 64 + 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn levels_meet_at_one_word() {
        for blocks in [0, 1, 63, 64, 65, 4096, 4097, 262_145] {
            let mut map = Map::new(blocks);
            assert_eq!(map.levels.last().map(Vec::len), Some(1));
            let touched = (0..blocks).filter(|&block| map.touch(block, 1) == 1).count() as u64;
            assert_eq!(touched, blocks);
            assert_eq!(map.next_free(0), None);
            map.clear();
            assert_eq!(map.next_free(0), (blocks > 0).then_some(u64::from(blocks > 1)));
        }
    }

    proptest! {
        #[test]
        fn does_as_a_plain_list_of_flags(blocks in 1_u64..9000, steps in prop::collection::vec((0_u64..9000, 0_u64..300), 0..80)) {
            let mut map = Map::new(blocks);
            let mut plain = vec![false; blocks as usize];
            for (first, count) in steps {
                let first = first % blocks;
                let free = plain[first as usize..].iter().take(count as usize).take_while(|touched| !**touched).count();
                prop_assert_eq!(map.touch(first, count), free as u64);
                plain[first as usize..first as usize + free].fill(true);
                prop_assert_eq!(map.is_touched(first), plain[first as usize]);
                let after = |from: usize| plain[from..].iter().position(|touched| !touched).map(|found| (from + found) as u64);
                prop_assert_eq!(map.next_free(first), after(first as usize + 1).or_else(|| after(0)));
            }
        }
    }
}
