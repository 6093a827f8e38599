//! SHA-256 that survives a restart: its state fits into the journal's note, so what an earlier process downloaded need not
//! be read again to know its hash. Blocks and padding are the `digest` crate's, the compression the `sha2` crate's; here is
//! only the state, in the open.

use serde::{Deserialize, Serialize};
use sha2::compress256;
use sha2::digest::block_buffer::EagerBuffer;
use sha2::digest::typenum::U64;

const BLOCK: u64 = 64;
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
        Self { state: INITIAL, length: 0, tail: Vec::new() }
    }

    /// Whether these are the bytes hashed so far: a state read back from a journal is used only if it fits the bytes
    /// beside it.
    pub fn fits(&self, length: u64) -> bool {
        self.length == length && self.tail.len() as u64 == length % BLOCK
    }

    pub fn update(&mut self, bytes: &[u8]) {
        let mut buffer = EagerBuffer::<U64>::new(&self.tail);
        buffer.digest_blocks(bytes, |blocks| compress256(&mut self.state, blocks));
        self.length += bytes.len() as u64;
        self.tail.clear();
        self.tail.extend_from_slice(buffer.get_data());
    }

    pub fn finish(mut self) -> [u8; 32] {
        let mut buffer = EagerBuffer::<U64>::new(&self.tail);
        let bits = self.length.wrapping_mul(8);
        buffer.len64_padding_be(bits, |block| compress256(&mut self.state, std::slice::from_ref(block)));
        let mut hash = [0; 32];
        for (bytes, word) in hash.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        hash
    }
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
        for length in 0..=3 * BLOCK as usize {
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
