//! `Upload-Metadata`: what a client says about its upload. Names and base64 values, bounded, kept as they were sent.
//!
//! The node itself reads `key`, `content_type` and, because the clients people have send those, `filetype`, `type`,
//! `filename` and `name`.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reelring_storage::{BlobId, Key, KeyError};

use crate::limits;

/// The pairs of one upload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    text: String,
    pairs: Vec<(String, Vec<u8>)>,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum MetadataError {
    #[error("Upload-Metadata has {bytes} bytes, the limit is {}", limits::UPLOAD_METADATA_BYTES)]
    TooLong { bytes: usize },
    #[error("Upload-Metadata has more than {} pairs", limits::UPLOAD_METADATA_PAIRS)]
    TooMany,
    #[error(
        "Upload-Metadata: {0:?} is no name with a value in base64; write it as `name dmFsdWU=`, pairs separated by commas"
    )]
    Pair(String),
    #[error("Upload-Metadata names {0:?} twice")]
    Twice(String),
    #[error("Upload-Metadata: the key is not UTF-8")]
    KeyText,
    #[error("Upload-Metadata: {0}")]
    Key(#[from] KeyError),
}

impl Metadata {
    pub fn parse(text: &str) -> Result<Metadata, MetadataError> {
        if text.len() > limits::UPLOAD_METADATA_BYTES {
            return Err(MetadataError::TooLong { bytes: text.len() });
        }
        let mut pairs: Vec<(String, Vec<u8>)> = Vec::new();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let bad = || MetadataError::Pair(pair.chars().take(100).collect());
            let (name, value) = pair.split_once(' ').unwrap_or((pair, ""));
            if !name.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(bad());
            }
            let value = BASE64_STANDARD.decode(value.trim()).map_err(|_| bad())?;
            if pairs.iter().any(|(known, _)| known == name) {
                return Err(MetadataError::Twice(name.into()));
            }
            if pairs.len() == limits::UPLOAD_METADATA_PAIRS {
                return Err(MetadataError::TooMany);
            }
            pairs.push((name.into(), value));
        }
        Ok(Metadata { text: text.into(), pairs })
    }

    /// The place its client has named.
    pub fn key(&self) -> Result<Option<Key>, MetadataError> {
        let Some((_, value)) = self.pairs.iter().find(|(name, _)| name == "key") else { return Ok(None) };
        let text = std::str::from_utf8(value).map_err(|_| MetadataError::KeyText)?;
        Ok(Some(Key::parse(text)?))
    }

    /// Where an upload goes whose client has named no place: nobody else's, so it replaces nothing.
    pub(super) fn place(&self, blob: BlobId) -> Key {
        let own = format!("uploads/{blob}");
        let named = ["filename", "name"].iter().find_map(|name| self.text_of(name)).map(|name| {
            let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
            format!("{own}/{last}")
        });
        named
            .and_then(|key| Key::parse(&key).ok())
            .unwrap_or_else(|| Key::parse(&own).expect("a prefix and hexadecimal digits are a key"))
    }

    /// The media type that the client names.
    pub(super) fn content_type(&self) -> Option<&str> {
        ["content_type", "filetype", "type"].iter().find_map(|name| self.text_of(name))
    }

    fn text_of(&self, name: &str) -> Option<&str> {
        let (_, value) = self.pairs.iter().find(|(known, _)| known == name)?;
        std::str::from_utf8(value).ok().filter(|text| !text.is_empty())
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair(name: &str, value: &str) -> String {
        format!("{name} {}", BASE64_STANDARD.encode(value))
    }

    #[test]
    fn what_clients_send_is_understood() {
        let blob = BlobId::new();
        let of = |pairs: &[(&str, &str)]| {
            let text: Vec<String> = pairs.iter().map(|(name, value)| pair(name, value)).collect();
            Metadata::parse(&text.join(",")).unwrap()
        };
        let metadata = of(&[("key", "films/a.mp4"), ("filetype", "video/mp4"), ("filename", "a.mp4")]);
        assert_eq!(metadata.key().unwrap().unwrap().as_str(), "films/a.mp4");
        assert_eq!(metadata.content_type().unwrap(), "video/mp4");
        let unnamed = of(&[("name", "../b c.mkv"), ("type", "no type")]);
        assert_eq!(unnamed.key().unwrap(), None);
        assert_eq!(unnamed.place(blob).as_str(), format!("uploads/{blob}/b c.mkv"));
        assert_eq!(unnamed.content_type(), Some("no type"));
        assert_eq!(of(&[("filename", "..")]).place(blob).as_str(), format!("uploads/{blob}"));
        assert!(of(&[("key", "a/../b")]).key().is_err());
        assert_eq!(Metadata::parse("").unwrap(), Metadata::default());
        // A name without a value is allowed.
        assert_eq!(Metadata::parse("is_confidential").unwrap().pairs, [("is_confidential".to_owned(), vec![])]);
        for bad in ["a b c", "a ====", "\u{e9} AAAA", "a AAAA,a AAAA"] {
            assert!(Metadata::parse(bad).is_err(), "{bad}");
        }
        assert!(Metadata::parse(&"a".repeat(limits::UPLOAD_METADATA_BYTES + 1)).is_err());
    }

    proptest! {
        #[test]
        fn no_text_is_a_panic_and_a_place_is_always_found(text in "\\PC{0,200}", name in "\\PC{0,80}") {
            let _ = Metadata::parse(&text);
            let metadata = Metadata::parse(&pair("filename", &name)).unwrap();
            prop_assert!(metadata.place(BlobId::new()).as_str().starts_with("uploads/"));
        }
    }
}
