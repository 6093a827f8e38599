//! `verify=crc32c`: every written block carries a header that tells what it must be.
//!
//! Header, 32 bytes, little endian: magic (8), file offset (8), block length (4), zero (4), crc32c of all other bytes of the
//! block (4), zero (4). What follows is noise from the offset and `randseed` alone, so two writes of one block are alike and may
//! overtake each other. fio's own header is another one: a block is verified by the program that wrote it.

use std::path::Path;

const MAGIC: [u8; 8] = *b"RR-BENCH";
pub const HEADER: usize = 32;
const CRC: std::ops::Range<usize> = 24..28;

/// Makes `block` what belongs at `offset`.
pub fn fill(block: &mut [u8], offset: u64, seed: u64) {
    noise(&mut block[HEADER..], seed ^ offset.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let len = block.len() as u32;
    block[..HEADER].fill(0);
    block[..8].copy_from_slice(&MAGIC);
    block[8..16].copy_from_slice(&offset.to_le_bytes());
    block[16..20].copy_from_slice(&len.to_le_bytes());
    let crc = checksum(block);
    block[CRC].copy_from_slice(&crc.to_le_bytes());
}

/// Whether `block`, read at `offset`, is what was written there.
pub fn check(block: &[u8], offset: u64, file: &Path) -> Result<(), String> {
    let field = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes"));
    let wrong = |what: &str, expected: String, got: String| {
        let file = file.display();
        Err(format!("verify: {file} at offset {offset}, {} bytes: expected {what} {expected}, got {got}", block.len()))
    };
    if block[..8] != MAGIC {
        let hex = |bytes: &[u8]| format!("{:016x}", u64::from_be_bytes(bytes.try_into().expect("eight bytes")));
        return wrong("the header's magic", hex(&MAGIC), hex(&block[..8]));
    }
    if field(8) != offset {
        return wrong("a header for offset", offset.to_string(), field(8).to_string());
    }
    let (len, expected) = (field(16) as u32, field(CRC.start) as u32);
    if len as usize != block.len() {
        return wrong("a block of", block.len().to_string(), len.to_string());
    }
    match checksum(block) {
        got if got == expected => Ok(()),
        got => wrong("crc32c", format!("{expected:08x}"), format!("{got:08x}")),
    }
}

fn checksum(block: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&block[..CRC.start]);
    crc32c::crc32c_append(crc, &block[CRC.end..])
}

/// Bytes that neither compress nor repeat: what benchmarks write.
pub fn noise(bytes: &mut [u8], seed: u64) {
    let mut state = seed | 1;
    let mut next = || {
        // xorshift64*: fast, and no disk sees through it.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    let mut words = bytes.chunks_exact_mut(8);
    for word in &mut words {
        word.copy_from_slice(&next().to_le_bytes());
    }
    let rest = words.into_remainder();
    let len = rest.len();
    rest.copy_from_slice(&next().to_le_bytes()[..len]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_found() {
        let mut block = vec![0; 512];
        fill(&mut block, 4096, 7);
        check(&block, 4096, Path::new("f")).unwrap();
        for bit in 0..block.len() * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&block, 4096, Path::new("f")).is_err(), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn the_message_names_file_offset_and_both_sums() {
        let mut block = vec![0; 64];
        fill(&mut block, 128, 7);
        let stored = u32::from_le_bytes(block[CRC].try_into().unwrap());
        block[40] ^= 1;
        let message = check(&block, 128, Path::new("/d/file")).unwrap_err();
        assert!(message.starts_with("verify: /d/file at offset 128, 64 bytes: expected crc32c"), "{message}");
        assert!(message.contains(&format!("{stored:08x}")), "{message}");
        assert!(check(&block, 64, Path::new("f")).unwrap_err().contains("offset 64"));
    }
}
