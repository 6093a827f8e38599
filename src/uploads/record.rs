//! What an upload is, as its row has it.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use reelring_storage::{BlobId, Key, Precondition};
use serde::{Deserialize, Serialize};

/// Names one upload, and is all that is needed to go on with it: 128 random bits as 32 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct UploadId([u8; 16]);

/// The text is not an upload's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an upload's id has 32 lower-case hexadecimal digits")]
pub struct UploadIdError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Becomes an object by itself.
    Whole,
    /// Becomes a piece of one.
    Part,
    /// Was made of parts.
    Joined,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Takes bytes.
    Open,
    /// All bytes are durable: as an object, or as a part that waits.
    Done,
    /// A part that is in an object now.
    Used,
    /// Expired, terminated or lost. Remembered for a while so that its client hears so.
    Gone,
}

/// What must hold of the key when the object appears.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    #[default]
    None,
    Absent,
    Present,
    /// It has one of these hashes.
    Is(Vec<[u8; 32]>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub id: UploadId,
    /// The partial, and later the blob.
    pub blob: BlobId,
    pub kind: Kind,
    pub state: State,
    /// Where the object goes; a part has none.
    pub key: Option<Key>,
    pub content_type: Option<String>,
    pub length: Option<u64>,
    /// `Upload-Metadata` as the client sent it.
    pub metadata: String,
    pub condition: Condition,
    /// Of what it was joined.
    pub parts: Vec<UploadId>,
    /// BLAKE3 of the object, once there is one.
    pub etag: Option<[u8; 32]>,
    /// Who asks how far it is ends an append that is under way.
    #[serde(default)]
    pub exclusive: bool,
    pub expires_at: Timestamp,
}

impl UploadId {
    #[expect(clippy::new_without_default, reason = "two calls give two different ids")]
    pub fn new() -> UploadId {
        UploadId(rand::random())
    }

    pub(super) fn first_byte(self) -> u8 {
        self.0[0]
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for UploadId {
    type Err = UploadIdError;

    fn from_str(text: &str) -> Result<UploadId, UploadIdError> {
        let bytes = text.as_bytes();
        if bytes.len() != 32 || !bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(UploadIdError);
        }
        let number = u128::from_str_radix(text, 16).map_err(|_| UploadIdError)?;
        Ok(UploadId(number.to_be_bytes()))
    }
}

impl From<UploadId> for String {
    fn from(id: UploadId) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for UploadId {
    type Error = UploadIdError;

    fn try_from(text: String) -> Result<UploadId, UploadIdError> {
        text.parse()
    }
}

impl Condition {
    pub fn precondition(&self) -> Precondition {
        match self {
            Condition::None => Precondition::None,
            Condition::Absent => Precondition::IfNoneMatchAny,
            Condition::Present => Precondition::IfMatchAny,
            Condition::Is(hashes) => Precondition::IfMatch(hashes.clone()),
        }
    }
}

impl TryFrom<Precondition> for Condition {
    type Error = Precondition;

    /// A condition on dates, or on what the object is not, is about this moment: it is not kept for days.
    fn try_from(precondition: Precondition) -> Result<Condition, Precondition> {
        match precondition {
            Precondition::None => Ok(Condition::None),
            Precondition::IfNoneMatchAny => Ok(Condition::Absent),
            Precondition::IfMatchAny => Ok(Condition::Present),
            Precondition::IfMatch(hashes) => Ok(Condition::Is(hashes)),
            other => Err(other),
        }
    }
}

impl State {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            State::Open => "open",
            State::Done => "done",
            State::Used => "used",
            State::Gone => "gone",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_its_text() {
        let id = UploadId::new();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_ne!(id, UploadId::new());
        for text in [
            "",
            "0",
            "G0000000000000000000000000000000",
            "A0000000000000000000000000000000",
            "+0000000000000000000000000000000",
        ] {
            assert_eq!(text.parse::<UploadId>(), Err(UploadIdError), "{text}");
        }
    }
}
