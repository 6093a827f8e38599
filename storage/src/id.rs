//! The identity of a blob: a version 7 UUID, never used twice, and the place it names on disk.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// Names one blob for ever. Shown, parsed and stored as 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId(Uuid);

/// The text is not a blob id.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text:?} is not a blob id: expected 32 lower-case hexadecimal digits")]
pub struct BlobIdError {
    text: String,
}

impl BlobId {
    #[expect(clippy::new_without_default, reason = "two calls give two different ids")]
    pub fn new() -> BlobId {
        BlobId(crate::clock::uuid())
    }

    /// The milliseconds since the epoch at which the id was made: its first 48 bits.
    pub fn created_ms(self) -> u64 {
        self.0.as_bytes()[..6].iter().fold(0, |ms, byte| (ms << 8) | u64::from(*byte))
    }

    pub(crate) fn as_u128(self) -> u128 {
        self.0.as_u128()
    }

    /// Which of the 65,536 leaf directories holds the blob.
    ///
    /// The digits come from the middle of the id's time, so that they change once in 65 seconds:
    /// blobs written together share a directory, hence one directory fsync, and the leaves fill
    /// evenly over the 50 days after which the digits repeat.
    pub(crate) fn shard(self) -> u16 {
        (self.created_ms() >> 16) as u16
    }

    /// The blob's path below `blobs/`.
    pub(crate) fn relative_path(self) -> PathBuf {
        PathBuf::from(shard_path(self.shard())).join(self.to_string())
    }
}

/// `ab/cd` for a leaf directory.
pub(crate) fn shard_path(shard: u16) -> String {
    format!("{:02x}/{:02x}", shard >> 8, shard & 0xff)
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_simple().fmt(f)
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobId({self})")
    }
}

impl FromStr for BlobId {
    type Err = BlobIdError;

    fn from_str(text: &str) -> Result<BlobId, BlobIdError> {
        let canonical = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match Uuid::try_parse(text) {
            Ok(id) if canonical => Ok(BlobId(id)),
            _ => Err(BlobIdError { text: text.chars().take(64).collect() }),
        }
    }
}

impl Serialize for BlobId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BlobId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<BlobId, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl ToSql for BlobId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(self.to_string()))
    }
}

impl FromSql for BlobId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<BlobId> {
        value.as_str()?.parse().map_err(|e| FromSqlError::Other(Box::new(e)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_is_canonical() {
        let id = BlobId::new();
        let text = id.to_string();
        assert_eq!(text.len(), 32);
        assert_eq!(text.parse::<BlobId>().unwrap(), id);
        assert_eq!(serde_json::from_str::<BlobId>(&serde_json::to_string(&id).unwrap()).unwrap(), id);
        for bad in ["", "../../etc/passwd", &text.to_uppercase().replace(|c: char| c.is_ascii_digit(), "A"), &text[1..]]
        {
            assert!(bad.parse::<BlobId>().is_err(), "{bad:?} was taken for a blob id");
        }
    }

    #[test]
    fn blobs_of_one_minute_share_a_directory() {
        let id: BlobId = "018f1234abcd7000800000000000000a".parse().unwrap();
        let next: BlobId = "018f1234ffff7000800000000000000b".parse().unwrap();
        let later: BlobId = "018f12350000700080000000000000ff".parse().unwrap();
        assert_eq!(id.relative_path(), PathBuf::from("12/34/018f1234abcd7000800000000000000a"));
        assert_eq!(id.shard(), next.shard());
        assert_ne!(id.shard(), later.shard());
    }
}
