//! What a fetch writes beside its bytes so that it can go on after a restart: which version of which file they are.
//!
//! The note travels as JSON inside the storage package's journal, which vouches for its integrity and for the length that
//! is durable. Here it is only given a meaning. A note that cannot be understood (a newer node wrote it) is not an error:
//! the fetch starts again from the first byte.

use serde::{Deserialize, Serialize};
use url::Url;

use super::digest::Sha256;
use super::validators::Validators;

/// Raised when a field changes its meaning; a new optional field does not need it.
const VERSION: u32 = 1;

/// The identity of a partial file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The address asked for: a resume asks it again, because what it redirects to may have expired.
    pub url: Url,
    /// The address that answered.
    pub final_url: Url,
    pub validators: Validators,
    /// Length of the whole file, if the origin told it.
    pub total: Option<u64>,
    pub content_type: Option<String>,
    /// The suggested name.
    pub file_name: String,
    /// The hash of exactly the bytes held, if one is wanted.
    pub sha256: Option<Sha256>,
}

/// The same as it is written down.
#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    url: String,
    final_url: String,
    #[serde(flatten)]
    validators: Validators,
    total: Option<u64>,
    content_type: Option<String>,
    file_name: String,
    #[serde(default)]
    sha256: Option<Sha256>,
}

impl Note {
    pub fn encode(&self) -> Vec<u8> {
        let Note { url, final_url, validators, total, content_type, file_name, sha256 } = self.clone();
        let (url, final_url) = (url.into(), final_url.into());
        let record = Record { version: VERSION, url, final_url, validators, total, content_type, file_name, sha256 };
        serde_json::to_vec(&record).expect("strings and numbers always become JSON")
    }

    /// `None`: not ours, or from a version that this one does not know.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let record = serde_json::from_slice::<Record>(bytes).ok().filter(|record| record.version == VERSION)?;
        Some(Note {
            url: Url::parse(&record.url).ok()?,
            final_url: Url::parse(&record.final_url).ok()?,
            validators: record.validators,
            total: record.total,
            content_type: record.content_type,
            file_name: record.file_name,
            sha256: record.sha256,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note() -> Note {
        let url = |text| Url::parse(text).unwrap();
        let validators =
            Validators { etag: Some("\"a\"".into()), last_modified: Some("now".into()), date_is_strong: false };
        Note {
            url: url("http://o/a"),
            final_url: url("http://cdn/a"),
            validators,
            total: Some(7),
            content_type: None,
            file_name: "a".into(),
            sha256: Some(Sha256::new()),
        }
    }

    #[test]
    fn survives_the_journal() {
        assert_eq!(Note::decode(&note().encode()), Some(note()));
    }

    #[test]
    fn an_added_field_is_ignored_and_a_new_version_refused() {
        let mut value: serde_json::Value = serde_json::from_slice(&note().encode()).unwrap();
        value["chunks"] = serde_json::json!([1, 2]);
        assert_eq!(Note::decode(value.to_string().as_bytes()), Some(note()));
        value["version"] = 2.into();
        assert_eq!(Note::decode(value.to_string().as_bytes()), None);
        assert_eq!(Note::decode(b""), None);
        assert_eq!(Note::decode(b"\xff{"), None);
    }
}
