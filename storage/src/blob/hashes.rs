//! The hashes of a blob being written: crc32c for each block, BLAKE3 for the whole.

use crate::limits::BLOCK_BYTES;

/// The hashes of a blob, as far as its bytes are known.
pub(super) struct Hashes {
    pub(super) length: u64,
    blake3: Box<blake3::Hasher>,
    /// Of the blocks that are full.
    pub(super) block_crcs: Vec<u32>,
    /// Of the bytes of the block that is not full yet.
    pub(super) tail_crc: u32,
}

/// A place in the blob that the hashes can go back to: a few KiB, however long the blob is.
pub(super) struct Mark {
    pub(super) length: u64,
    /// How many blocks were full.
    pub(super) blocks: usize,
    blake3: Box<blake3::Hasher>,
    tail_crc: u32,
}

impl Hashes {
    pub(super) fn new() -> Hashes {
        Hashes { length: 0, blake3: Box::new(blake3::Hasher::new()), block_crcs: Vec::new(), tail_crc: 0 }
    }

    /// Takes the next bytes, block by block, so that the second hash finds the bytes in the cache.
    pub(super) fn update(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let room = BLOCK_BYTES - (self.length % BLOCK_BYTES as u64) as usize;
            let (piece, rest) = data.split_at(room.min(data.len()));
            self.tail_crc = crc32c::crc32c_append(self.tail_crc, piece);
            self.blake3.update(piece);
            self.length += piece.len() as u64;
            if piece.len() == room {
                self.block_crcs.push(std::mem::take(&mut self.tail_crc));
            }
            data = rest;
        }
    }

    pub(super) fn mark(&self) -> Mark {
        let Hashes { length, blake3, block_crcs, tail_crc } = self;
        Mark { length: *length, blocks: block_crcs.len(), blake3: blake3.clone(), tail_crc: *tail_crc }
    }

    /// Forgets the bytes after the mark.
    pub(super) fn go_back(&mut self, mark: &Mark) {
        assert!(mark.length <= self.length && mark.blocks <= self.block_crcs.len(), "a mark of other bytes");
        self.length = mark.length;
        self.blake3 = mark.blake3.clone();
        self.block_crcs.truncate(mark.blocks);
        self.tail_crc = mark.tail_crc;
    }

    /// BLAKE3 of the whole, and the checksums of all blocks.
    pub(super) fn finish(&mut self) -> ([u8; 32], Vec<u32>) {
        let mut block_crcs = std::mem::take(&mut self.block_crcs);
        if !self.length.is_multiple_of(BLOCK_BYTES as u64) {
            block_crcs.push(self.tail_crc);
        }
        (*self.blake3.finalize().as_bytes(), block_crcs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_do_not_matter() {
        let data: Vec<u8> = (0..3 * BLOCK_BYTES as u32 / 4 + 5).flat_map(u32::to_le_bytes).collect();
        let expected: Vec<u32> = data.chunks(BLOCK_BYTES).map(crc32c::crc32c).collect();
        for piece in [1_000, BLOCK_BYTES - 1, BLOCK_BYTES, data.len()] {
            let mut hashes = Hashes::new();
            data.chunks(piece).for_each(|piece| hashes.update(piece));
            assert_eq!(hashes.length, data.len() as u64);
            assert_eq!(hashes.finish(), (*blake3::hash(&data).as_bytes(), expected.clone()));
        }
        assert!(Hashes::new().finish().1.is_empty());
    }

    #[test]
    fn what_came_after_a_mark_is_forgotten() {
        let data: Vec<u8> = (0..3 * BLOCK_BYTES as u32 / 4 + 5).flat_map(u32::to_le_bytes).collect();
        for (kept, dropped) in [(0, 10), (5, 2 * BLOCK_BYTES), (BLOCK_BYTES, 1), (BLOCK_BYTES + 7, BLOCK_BYTES)] {
            let mut hashes = Hashes::new();
            hashes.update(&data[..kept]);
            let mark = hashes.mark();
            hashes.update(&vec![7; dropped]);
            hashes.go_back(&mark);
            hashes.update(&data[kept..]);
            let crcs: Vec<u32> = data.chunks(BLOCK_BYTES).map(crc32c::crc32c).collect();
            assert_eq!(hashes.finish(), (*blake3::hash(&data).as_bytes(), crcs), "{kept} kept, {dropped} dropped");
        }
    }
}
