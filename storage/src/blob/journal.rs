//! The journal of a partial blob: what of it is durable, and the caller's note.
//!
//! ```text
//! header   8 magic "REELJRNL" · u32 version (1) · u32 bytes · u32 crc32c of the bytes · the bytes:
//!          the blob's meta data as JSON
//! record   u32 bytes of the payload · u32 crc32c of the payload · payload:
//!            u64   durable length of the partial file
//!            u32   crc32c of the last, unfinished block (0 when there is none)
//!            u32   number of block checksums that follow: the blocks finished since the last record
//!            u32…
//!            the caller's note
//! ```
//!
//! Append-only. A record is written only after the data it speaks of was synced, and is itself
//! synced before anyone is told. A torn or flipped record ends the journal: it and everything after
//! it is dropped, and the record before it wins.

use serde::{Deserialize, Serialize};

use super::BlobMeta;
use super::format::block_count;
use crate::limits::{BLOCK_BYTES, JOURNAL_NOTE_BYTES_MAX};

const MAGIC: &[u8; 8] = b"REELJRNL";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 20;
const RECORD_HEAD_BYTES: usize = 8;
const PAYLOAD_FIXED_BYTES: usize = 16;

/// What the intact part of a journal says.
#[derive(Debug, PartialEq)]
pub(crate) struct Journal {
    pub(crate) meta: BlobMeta,
    pub(crate) durable: u64,
    /// Of the finished blocks below `durable`.
    pub(crate) block_crcs: Vec<u32>,
    /// Of the bytes of the unfinished block.
    pub(crate) tail_crc: u32,
    pub(crate) note: Vec<u8>,
    /// Where the next record goes; anything beyond is torn.
    pub(crate) bytes: u64,
}

/// One record, before it is encoded.
pub(crate) struct Record<'a> {
    pub(crate) durable: u64,
    pub(crate) new_block_crcs: &'a [u32],
    pub(crate) tail_crc: u32,
    pub(crate) note: &'a [u8],
}

#[derive(Serialize, Deserialize)]
struct Meta {
    key: Option<String>,
    content_type: Option<String>,
    length_hint: Option<u64>,
}

pub(crate) fn encode_header(meta: &BlobMeta) -> Vec<u8> {
    let BlobMeta { key, content_type, length_hint } = meta.clone();
    let meta = serde_json::to_vec(&Meta { key, content_type, length_hint }).expect("strings and numbers become JSON");
    let mut out = Vec::with_capacity(HEADER_BYTES + meta.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(meta.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(&meta).to_le_bytes());
    out.extend_from_slice(&meta);
    out
}

impl Record<'_> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let payload_bytes = PAYLOAD_FIXED_BYTES + self.new_block_crcs.len() * 4 + self.note.len();
        let mut out = Vec::with_capacity(RECORD_HEAD_BYTES + payload_bytes);
        out.extend_from_slice(&(payload_bytes as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.durable.to_le_bytes());
        out.extend_from_slice(&self.tail_crc.to_le_bytes());
        out.extend_from_slice(&(self.new_block_crcs.len() as u32).to_le_bytes());
        for crc in self.new_block_crcs {
            out.extend_from_slice(&crc.to_le_bytes());
        }
        out.extend_from_slice(self.note);
        let crc = crc32c::crc32c(&out[RECORD_HEAD_BYTES..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }
}

impl Journal {
    /// Reads the intact part. An error means that not even the first record is whole: nothing was
    /// ever promised.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Journal, String> {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if bytes.len() < HEADER_BYTES || &bytes[..8] != MAGIC {
            return Err("not a journal".into());
        }
        if word(8) != VERSION {
            return Err(format!("journal version {}, this version reads {VERSION}", word(8)));
        }
        let (meta_bytes, meta_crc) = (word(12) as usize, word(16));
        let Some(meta) = bytes.get(HEADER_BYTES..).and_then(|rest| rest.get(..meta_bytes)) else {
            return Err("the journal's header is torn".into());
        };
        if crc32c::crc32c(meta) != meta_crc {
            return Err("the journal's header does not match its checksum".into());
        }
        let Meta { key, content_type, length_hint } = serde_json::from_slice(meta).map_err(|e| e.to_string())?;
        let start = HEADER_BYTES + meta_bytes;
        let mut journal = Journal {
            meta: BlobMeta { key, content_type, length_hint },
            durable: 0,
            block_crcs: Vec::new(),
            tail_crc: 0,
            note: Vec::new(),
            bytes: start as u64,
        };
        let mut rest = &bytes[start..];
        while let Some(taken) = journal.apply_record(rest) {
            rest = &rest[taken..];
            journal.bytes += taken as u64;
        }
        if journal.bytes == start as u64 {
            return Err("the journal's first record is torn".into());
        }
        Ok(journal)
    }

    /// Applies the record at the start of `bytes`, and returns its size; `None` when it is torn, or
    /// does not follow from what came before.
    fn apply_record(&mut self, bytes: &[u8]) -> Option<usize> {
        let (head, rest) = bytes.split_first_chunk::<RECORD_HEAD_BYTES>()?;
        let payload_bytes = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
        let crc = u32::from_le_bytes(head[4..].try_into().ok()?);
        let payload = rest.get(..payload_bytes)?;
        if crc32c::crc32c(payload) != crc {
            return None;
        }
        let (fixed, rest) = payload.split_first_chunk::<PAYLOAD_FIXED_BYTES>()?;
        let durable = u64::from_le_bytes(fixed[..8].try_into().ok()?);
        let tail_crc = u32::from_le_bytes(fixed[8..12].try_into().ok()?);
        let count = u32::from_le_bytes(fixed[12..].try_into().ok()?) as usize;
        let (crcs, note) = rest.split_at_checked(count.checked_mul(4)?)?;
        let finished = durable / BLOCK_BYTES as u64;
        if durable < self.durable
            || self.block_crcs.len() as u64 + count as u64 != finished
            || note.len() > JOURNAL_NOTE_BYTES_MAX
        {
            return None;
        }
        self.durable = durable;
        self.tail_crc = tail_crc;
        self.block_crcs.extend(crcs.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().expect("four bytes"))));
        self.note = note.to_vec();
        Some(RECORD_HEAD_BYTES + payload_bytes)
    }

    /// What the partial file must hold, block by block.
    pub(crate) fn expected_crc(&self, block: u64) -> u32 {
        debug_assert!(block < block_count(self.durable));
        self.block_crcs.get(block as usize).copied().unwrap_or(self.tail_crc)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn meta() -> BlobMeta {
        BlobMeta { key: Some("a/b".into()), content_type: None, length_hint: Some(1 << 20) }
    }

    /// A journal with a record for each step of `steps` bytes, and where each record ends.
    fn journal_of(steps: &[u32]) -> (Vec<u8>, Vec<(usize, u64)>) {
        let mut bytes = encode_header(&meta());
        let mut ends = vec![(bytes.len(), 0)];
        let mut durable = 0u64;
        for (i, step) in steps.iter().enumerate() {
            let before = durable / BLOCK_BYTES as u64;
            durable += u64::from(*step);
            let crcs: Vec<u32> = (before..durable / BLOCK_BYTES as u64).map(|b| b as u32 * 3).collect();
            let note = format!("note {i}");
            bytes.extend(Record { durable, new_block_crcs: &crcs, tail_crc: 9, note: note.as_bytes() }.encode());
            ends.push((bytes.len(), durable));
        }
        (bytes, ends)
    }

    proptest! {
        #[test]
        fn the_last_intact_record_wins(
            steps in proptest::collection::vec(0u32..2_000_000, 0..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let (bytes, ends) = journal_of(&steps);
            let keep = ends[0].0 + cut.index(bytes.len() - ends[0].0 + 1);
            let (at, &(end, durable)) = ends.iter().enumerate().rfind(|(_, (end, _))| *end <= keep).unwrap();
            let journal = match Journal::decode(&bytes[..keep]) {
                Ok(journal) => journal,
                Err(_) => {
                    prop_assert_eq!(at, 0, "an intact record was lost");
                    return Ok(());
                }
            };
            prop_assert_eq!((journal.bytes, journal.durable), (end as u64, durable));
            prop_assert_eq!(journal.block_crcs.len() as u64, durable / BLOCK_BYTES as u64);
            prop_assert!(at > 0, "a journal without a record was accepted");
            let note = format!("note {}", at - 1);
            prop_assert_eq!(journal.note, note.as_bytes());
            prop_assert_eq!(journal.meta, meta());
        }

        #[test]
        fn a_flipped_bit_drops_its_record_and_what_follows(
            steps in proptest::collection::vec(0u32..2_000_000, 1..8),
            at in any::<prop::sample::Index>(),
            bit in 0u32..8,
        ) {
            let (mut bytes, ends) = journal_of(&steps);
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
            match Journal::decode(&bytes) {
                Err(_) => prop_assert!(at < ends[1].0),
                Ok(journal) => {
                    let expected = ends.iter().rfind(|(end, _)| *end <= at).unwrap();
                    prop_assert_eq!(journal.durable, expected.1);
                }
            }
        }
    }

    #[test]
    fn a_record_that_goes_backwards_is_refused() {
        let mut bytes = encode_header(&meta());
        for durable in [100, 50] {
            bytes.extend(Record { durable, new_block_crcs: &[], tail_crc: 1, note: b"" }.encode());
        }
        assert_eq!(Journal::decode(&bytes).unwrap().durable, 100);
    }
}
