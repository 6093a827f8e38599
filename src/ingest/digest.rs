//! SHA-256 that survives a restart: its state fits into the journal's note, so what an earlier process downloaded need not
//! be read again to know its hash. The compression function is the sha2 crate's; here is only the padding around it.

use serde::{Deserialize, Serialize};
use sha2::compress256;
use sha2::digest::generic_array::{GenericArray, typenum::U64};

const BLOCK: usize = 64;
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// A hash in progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sha256 {
    state: [u32; 8],
    /// Bytes hashed, the tail included.
    length: u64,
    /// The bytes of the block that is not full yet: fewer than 64.
    tail: Vec<u8>,
}

impl Sha256 {
    pub fn new() -> Self {
        Self { state: INITIAL, length: 0, tail: Vec::with_capacity(BLOCK) }
    }

    /// Bytes hashed so far. A state read back from a journal is believed only if it fits the bytes beside it.
    pub fn fits(&self, length: u64) -> bool {
        self.length == length && self.tail.len() as u64 == length % BLOCK as u64
    }

    pub fn update(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len() as u64;
        if !self.tail.is_empty() {
            let room = (BLOCK - self.tail.len()).min(bytes.len());
            self.tail.extend_from_slice(&bytes[..room]);
            bytes = &bytes[room..];
            if self.tail.len() < BLOCK {
                return;
            }
            compress256(&mut self.state, &[*block(&self.tail)]);
            self.tail.clear();
        }
        let mut blocks = bytes.chunks_exact(BLOCK);
        for chunk in &mut blocks {
            compress256(&mut self.state, std::slice::from_ref(block(chunk)));
        }
        self.tail.extend_from_slice(blocks.remainder());
    }

    pub fn finish(mut self) -> [u8; 32] {
        let bits = self.length.wrapping_mul(8);
        self.update(&[0x80]);
        let zeros = (2 * BLOCK - 8 - self.tail.len()) % BLOCK;
        self.update(&[0; BLOCK][..zeros]);
        self.update(&bits.to_be_bytes());
        let mut hash = [0; 32];
        for (bytes, word) in hash.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        hash
    }
}

fn block(bytes: &[u8]) -> &GenericArray<u8, U64> {
    GenericArray::from_slice(bytes)
}

pub fn hex(hash: &[u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sha2::Digest;

    fn reference(bytes: &[u8]) -> [u8; 32] {
        sha2::Sha256::digest(bytes).into()
    }

    #[test]
    fn every_padding_agrees_with_the_crate() {
        for length in 0..=3 * BLOCK {
            let bytes: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let mut hash = Sha256::new();
            hash.update(&bytes);
            assert!(hash.fits(length as u64));
            assert_eq!(hash.finish(), reference(&bytes), "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn pieces_and_restarts_change_nothing(pieces in proptest::collection::vec(proptest::collection::vec(0u8.., 0..200), 0..8)) {
            let mut hash = Sha256::new();
            for piece in &pieces {
                hash.update(piece);
                let written = serde_json::to_vec(&hash).unwrap();
                hash = serde_json::from_slice(&written).unwrap();
            }
            prop_assert_eq!(hash.finish(), reference(&pieces.concat()));
        }
    }
}
