//! The footer of a blob file: encoding, decoding, checking. Pure; no I/O.
//!
//! ```text
//! 0            the object's bytes, so that a file offset is an object offset
//! length       body     version 1, little-endian
//!                 u64   length of the object
//!                 32    BLAKE3 of the object
//!                 u32   bytes per block (256 KiB)
//!                 u32…  crc32c of each block, the last one may be short
//!                 u16   number of sections, then each: u16 tag, u32 bytes, bytes
//! end - 24     trailer
//!                 u32   bytes of the body
//!                 u32   version (1)
//!                 u32   crc32c of the body and of the two fields above
//!                 u32   zero
//!                 8     magic "REELBLOB"
//! ```
//!
//! Sections carry what may be absent or may come later: the object's key (1), the content type (2),
//! a rendition's segment table (3). A reader skips tags it does not know.

use std::ops::Range;

use super::BlobMeta;
use crate::limits::{BLOB_BYTES_MAX, BLOCK_BYTES, CONTENT_TYPE_BYTES_MAX, KEY_BYTES_MAX, SEGMENT_TABLE_BYTES_MAX};

const MAGIC: &[u8; 8] = b"REELBLOB";
const VERSION: u32 = 1;
pub(crate) const TRAILER_BYTES: usize = 24;
const FIXED_BODY_BYTES: usize = 8 + 32 + 4 + 2;
const SECTION_HEAD_BYTES: usize = 6;
const SECTIONS_MAX: usize = 16;

const TAG_KEY: u16 = 1;
const TAG_CONTENT_TYPE: u16 = 2;
const TAG_SEGMENT_TABLE: u16 = 3;

/// The largest footer that can be: what a reader allocates at most for foreign bytes.
const BODY_BYTES_MAX: u64 = (FIXED_BODY_BYTES
    + KEY_BYTES_MAX
    + CONTENT_TYPE_BYTES_MAX
    + SEGMENT_TABLE_BYTES_MAX
    + SECTIONS_MAX * SECTION_HEAD_BYTES) as u64
    + BLOB_BYTES_MAX / BLOCK_BYTES as u64 * 4;

/// What a blob file says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    pub length: u64,
    pub blake3: [u8; 32],
    /// crc32c of each block of 256 KiB.
    pub block_crcs: Vec<u32>,
    pub sections: Vec<Section>,
}

/// An optional part of a footer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Section {
    Key(String),
    ContentType(String),
    SegmentTable(Vec<u8>),
    /// Written by a later version.
    Unknown {
        tag: u16,
        bytes: Vec<u8>,
    },
}

/// Most footers fit this end of their file: 64 KiB hold the checksums of 4 GiB.
pub(crate) const TAIL_BYTES: u64 = 64 * 1024;

/// Bytes of the footer of a blob with `length` bytes.
pub(super) fn footer_bytes(meta: &BlobMeta, length: u64) -> u64 {
    let section = |text: &Option<String>| text.as_ref().map_or(0, |text| SECTION_HEAD_BYTES + text.len());
    let fixed = FIXED_BODY_BYTES + TRAILER_BYTES + section(&meta.key) + section(&meta.content_type);
    fixed as u64 + block_count(length) * 4
}

/// Blocks in a blob of `length` bytes.
pub(crate) fn block_count(length: u64) -> u64 {
    length.div_ceil(BLOCK_BYTES as u64)
}

/// The object bytes that block `index` covers.
pub(crate) fn block_range(index: u64, length: u64) -> Range<u64> {
    let start = index * BLOCK_BYTES as u64;
    start..(start + BLOCK_BYTES as u64).min(length)
}

/// What the trailer tells: enough to find the body.
pub(crate) struct Trailer {
    pub(crate) body_bytes: usize,
    crc: u32,
}

/// What the last part of a file tells of its footer.
pub(crate) enum InTail {
    Whole(Footer),
    /// It begins before that part: its body is to be read from there.
    BeginsAt {
        body: Range<u64>,
        trailer: Trailer,
    },
}

impl Trailer {
    /// Reads the last bytes of a file of `file_bytes`.
    pub(crate) fn decode(bytes: &[u8; TRAILER_BYTES], file_bytes: u64) -> Result<Trailer, String> {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if &bytes[16..] != MAGIC {
            return Err("the file does not end with a blob footer (truncated, or not a blob)".into());
        }
        if word(4) != VERSION {
            return Err(format!("footer version {}, this version reads {VERSION}", word(4)));
        }
        if word(12) != 0 {
            return Err(format!("reserved footer field is {}, not 0", word(12)));
        }
        let body_bytes = u64::from(word(0));
        if body_bytes > BODY_BYTES_MAX || body_bytes + TRAILER_BYTES as u64 > file_bytes {
            return Err(format!("a footer of {body_bytes} bytes in a file of {file_bytes}"));
        }
        Ok(Trailer { body_bytes: body_bytes as usize, crc: word(8) })
    }
}

impl Footer {
    pub fn key(&self) -> Option<&str> {
        self.sections.iter().find_map(|s| if let Section::Key(key) = s { Some(key.as_str()) } else { None })
    }

    pub fn content_type(&self) -> Option<&str> {
        self.sections.iter().find_map(|s| if let Section::ContentType(t) = s { Some(t.as_str()) } else { None })
    }

    /// Body and trailer, as they follow the object's bytes.
    pub fn encode(&self) -> Vec<u8> {
        debug_assert_eq!(self.block_crcs.len() as u64, block_count(self.length));
        let mut out = Vec::with_capacity(FIXED_BODY_BYTES + self.block_crcs.len() * 4 + 256 + TRAILER_BYTES);
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&self.blake3);
        out.extend_from_slice(&(BLOCK_BYTES as u32).to_le_bytes());
        for crc in &self.block_crcs {
            out.extend_from_slice(&crc.to_le_bytes());
        }
        out.extend_from_slice(&(self.sections.len() as u16).to_le_bytes());
        for section in &self.sections {
            let (tag, bytes) = section.parts();
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            out.extend_from_slice(bytes);
        }
        let body_bytes = out.len() as u32;
        out.extend_from_slice(&body_bytes.to_le_bytes());
        out.extend_from_slice(&VERSION.to_le_bytes());
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        out.extend_from_slice(MAGIC);
        out
    }

    /// Finds the footer at the end of a file of `file_bytes`, of which `tail` is the last part, [`TAIL_BYTES`] or all.
    pub(crate) fn in_tail(tail: &[u8], file_bytes: u64) -> Result<InTail, String> {
        let Some((before, trailer)) = tail.split_last_chunk::<TRAILER_BYTES>() else {
            return Err(format!("a file of {file_bytes} bytes has no blob footer"));
        };
        let trailer = Trailer::decode(trailer, file_bytes)?;
        if let Some(start) = before.len().checked_sub(trailer.body_bytes) {
            return Footer::decode(&before[start..], &trailer, file_bytes).map(InTail::Whole);
        }
        let end = file_bytes - TRAILER_BYTES as u64;
        Ok(InTail::BeginsAt { body: end - trailer.body_bytes as u64..end, trailer })
    }

    /// Compares a block's bytes with its checksum; the message tells where they differ.
    pub(crate) fn check_block(&self, index: u64, bytes: &[u8]) -> Result<(), String> {
        let (found, expected) = (crc32c::crc32c(bytes), self.block_crcs[index as usize]);
        if found == expected {
            return Ok(());
        }
        let Range { start, end } = block_range(index, self.length);
        Err(format!("bytes {start}..{end} have crc32c {found:08x}, the footer says {expected:08x}"))
    }

    /// Decodes the body that `trailer` announced, for a file of `file_bytes`.
    pub(crate) fn decode(body: &[u8], trailer: &Trailer, file_bytes: u64) -> Result<Footer, String> {
        let crc = crc32c::crc32c(body);
        let crc = crc32c::crc32c_append(crc, &(body.len() as u32).to_le_bytes());
        let crc = crc32c::crc32c_append(crc, &VERSION.to_le_bytes());
        if body.len() != trailer.body_bytes || crc != trailer.crc {
            return Err(format!("footer checksum {crc:08x}, expected {:08x}", trailer.crc));
        }
        let mut fields = Fields { rest: body };
        let length = u64::from_le_bytes(fields.take()?);
        let object_bytes = file_bytes - (body.len() + TRAILER_BYTES) as u64;
        if length != object_bytes {
            return Err(format!("the footer says {length} bytes, the file holds {object_bytes}"));
        }
        let blake3 = fields.take()?;
        let block_bytes = u32::from_le_bytes(fields.take()?);
        if block_bytes as usize != BLOCK_BYTES {
            return Err(format!("blocks of {block_bytes} bytes, expected {BLOCK_BYTES}"));
        }
        let table = fields.take_slice(block_count(length) * 4)?;
        let block_crcs = table.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().expect("four bytes"))).collect();
        let count = u16::from_le_bytes(fields.take()?);
        if usize::from(count) > SECTIONS_MAX {
            return Err(format!("{count} footer sections, the limit is {SECTIONS_MAX}"));
        }
        let mut sections = Vec::with_capacity(count.into());
        for _ in 0..count {
            let tag = u16::from_le_bytes(fields.take()?);
            let bytes = u32::from_le_bytes(fields.take()?);
            sections.push(Section::decode(tag, fields.take_slice(bytes.into())?)?);
        }
        match fields.rest {
            [] => Ok(Footer { length, blake3, block_crcs, sections }),
            rest => Err(format!("{} bytes after the last footer section", rest.len())),
        }
    }
}

impl Section {
    fn parts(&self) -> (u16, &[u8]) {
        match self {
            Section::Key(key) => (TAG_KEY, key.as_bytes()),
            Section::ContentType(content_type) => (TAG_CONTENT_TYPE, content_type.as_bytes()),
            Section::SegmentTable(table) => (TAG_SEGMENT_TABLE, table),
            Section::Unknown { tag, bytes } => (*tag, bytes),
        }
    }

    fn decode(tag: u16, bytes: &[u8]) -> Result<Section, String> {
        let text = |what: &str, limit: usize| match std::str::from_utf8(bytes) {
            Ok(text) if bytes.len() <= limit => Ok(text.to_owned()),
            Ok(_) => Err(format!("{what} of {} bytes, the limit is {limit}", bytes.len())),
            Err(_) => Err(format!("{what} is not UTF-8")),
        };
        Ok(match tag {
            TAG_KEY => Section::Key(text("key", KEY_BYTES_MAX)?),
            TAG_CONTENT_TYPE => Section::ContentType(text("content type", CONTENT_TYPE_BYTES_MAX)?),
            TAG_SEGMENT_TABLE => Section::SegmentTable(bytes.to_vec()),
            tag => Section::Unknown { tag, bytes: bytes.to_vec() },
        })
    }
}

/// A cursor that never reads past the end.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take_slice(N as u64)?.try_into().expect("the slice has N bytes"))
    }

    fn take_slice(&mut self, count: u64) -> Result<&'a [u8], String> {
        if count > self.rest.len() as u64 {
            return Err(format!("footer field of {count} bytes with {} left", self.rest.len()));
        }
        let (taken, rest) = self.rest.split_at(count as usize);
        self.rest = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sections() -> impl Strategy<Value = Vec<Section>> {
        let section = prop_oneof![
            "[a-z/]{1,80}".prop_map(Section::Key),
            "[a-z/;=]{1,40}".prop_map(Section::ContentType),
            proptest::collection::vec(any::<u8>(), 0..200).prop_map(Section::SegmentTable),
            (4u16.., proptest::collection::vec(any::<u8>(), 0..50))
                .prop_map(|(tag, bytes)| Section::Unknown { tag, bytes }),
        ];
        proptest::collection::vec(section, 0..5)
    }

    fn footers() -> impl Strategy<Value = Footer> {
        (0u64..40 * BLOCK_BYTES as u64, any::<[u8; 32]>(), any::<u32>(), sections()).prop_map(
            |(length, blake3, seed, sections)| {
                let block_crcs = (0..block_count(length) as u32).map(|i| seed.wrapping_mul(i + 1)).collect();
                Footer { length, blake3, block_crcs, sections }
            },
        )
    }

    /// Decodes as the reader does: from the end of a file whose object has `object_bytes`.
    fn decode(encoded: &[u8], object_bytes: u64) -> Result<Footer, String> {
        let file_bytes = object_bytes + encoded.len() as u64;
        let Some((body, trailer)) = encoded.split_last_chunk::<TRAILER_BYTES>() else {
            return Err("shorter than a trailer".into());
        };
        let trailer = Trailer::decode(trailer, file_bytes)?;
        let Some(start) = body.len().checked_sub(trailer.body_bytes) else {
            return Err("the body starts before what was read".into());
        };
        Footer::decode(&body[start..], &trailer, file_bytes)
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(footer in footers()) {
            prop_assert_eq!(decode(&footer.encode(), footer.length), Ok(footer));
        }

        #[test]
        fn a_flipped_bit_anywhere_is_noticed(footer in footers(), at in any::<prop::sample::Index>(), bit in 0u32..8) {
            let mut encoded = footer.encode();
            let at = at.index(encoded.len());
            encoded[at] ^= 1u8 << bit;
            prop_assert!(decode(&encoded, footer.length).is_err(), "bit {} of byte {} went unnoticed", bit, at);
        }

        #[test]
        fn a_truncated_footer_is_noticed(footer in footers(), keep in any::<prop::sample::Index>()) {
            let encoded = footer.encode();
            let kept = &encoded[..keep.index(encoded.len())];
            prop_assert!(decode(kept, footer.length).is_err());
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096), length: u64) {
            let mut sealed = bytes.clone();
            sealed.extend_from_slice(MAGIC);
            let _ = decode(&bytes, length >> 1);
            let _ = decode(&sealed, length >> 1);
        }
    }

    #[test]
    fn a_file_cut_before_the_footer_is_noticed() {
        let footer = Footer { length: 10, blake3: [7; 32], block_crcs: vec![1], sections: vec![] };
        let error = decode(&footer.encode(), 9).unwrap_err();
        assert_eq!(error, "the footer says 10 bytes, the file holds 9");
    }

    #[test]
    fn the_last_block_is_short() {
        assert_eq!(block_count(0), 0);
        assert_eq!(block_count(BLOCK_BYTES as u64 + 1), 2);
        assert_eq!(block_range(1, BLOCK_BYTES as u64 + 1), BLOCK_BYTES as u64..BLOCK_BYTES as u64 + 1);
    }
}
