//! Object keys: what people name their objects. A key never becomes a path.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::KEY_BYTES_MAX;

/// A valid object key: 1 to 1,024 bytes of UTF-8, no control characters, no `.` or `..` parts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(String);

/// Why a text is not an object key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the object key is empty: a key has 1 to {KEY_BYTES_MAX} bytes")]
    Empty,
    #[error("the object key has {actual} bytes, the limit is {KEY_BYTES_MAX}: choose a shorter key")]
    TooLong { actual: usize },
    #[error("object key {key:?} has the control character {character:?} at byte {at}: remove it")]
    Control { key: String, character: char, at: usize },
    #[error("object key {key:?} has a part {part:?}: a key names an object, not a path, so write it without")]
    DotPart { key: String, part: String },
}

impl Key {
    pub fn parse(text: &str) -> Result<Key, KeyError> {
        if text.is_empty() {
            return Err(KeyError::Empty);
        }
        if text.len() > KEY_BYTES_MAX {
            return Err(KeyError::TooLong { actual: text.len() });
        }
        if let Some((at, character)) = text.char_indices().find(|(_, c)| c.is_control()) {
            return Err(KeyError::Control { key: text.into(), character, at });
        }
        if let Some(part) = text.split('/').find(|part| matches!(*part, "." | "..")) {
            return Err(KeyError::DotPart { key: text.into(), part: part.into() });
        }
        Ok(Key(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Key {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Key, KeyError> {
        Key::parse(text)
    }
}

impl TryFrom<String> for Key {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Key, KeyError> {
        Key::parse(&text)
    }
}

impl From<Key> for String {
    fn from(key: Key) -> String {
        key.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_keys() {
        for text in ["a", "films/2024/Ålesund (1).mp4", "..a", "a..", "...", "a//b", "/a/", "名前", &"k".repeat(1024)]
        {
            assert_eq!(Key::parse(text).map(String::from), Ok(text.to_owned()));
        }
    }

    #[test]
    fn every_rule_has_its_own_error() {
        assert_eq!(Key::parse(""), Err(KeyError::Empty));
        assert_eq!(Key::parse(&"é".repeat(513)), Err(KeyError::TooLong { actual: 1026 }));
        assert!(matches!(Key::parse("a\nb"), Err(KeyError::Control { at: 1, .. })));
        assert!(matches!(Key::parse("a\u{85}b"), Err(KeyError::Control { .. })));
        for text in ["..", ".", "a/../b", "../a", "a/.", "a/./b"] {
            assert!(matches!(Key::parse(text), Err(KeyError::DotPart { .. })), "{text}");
        }
        assert!(serde_json::from_str::<Key>("\"a/../b\"").is_err(), "deserialising must validate too");
    }
}
