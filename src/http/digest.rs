//! Digests a client sends with an upload: `Repr-Digest` (RFC 9530) and `Content-MD5` (RFC 1864).

use axum::http::HeaderMap;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use md5::{Digest as _, Md5};
use sha2::{Sha256, Sha512};

use super::problem::Problem;

/// The digests to verify, computed as the body flows.
#[derive(Default)]
pub(super) struct Expected {
    sha256: Option<(Sha256, Vec<u8>)>,
    sha512: Option<(Sha512, Vec<u8>)>,
    md5: Option<(Md5, Vec<u8>)>,
}

impl Expected {
    pub fn from_headers(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut expected = Self::default();
        for value in headers.get_all("repr-digest") {
            let value = value.to_str().map_err(|_| invalid("Repr-Digest", "not text"))?;
            for member in value.split(',').map(str::trim) {
                let (name, digest) = member.split_once('=').ok_or_else(|| invalid("Repr-Digest", member))?;
                let encoded = digest.trim().strip_prefix(':').and_then(|digest| digest.strip_suffix(':'));
                let encoded = encoded.ok_or_else(|| invalid("Repr-Digest", member))?;
                // Algorithms nobody here knows are left to whoever does, as the RFC asks.
                match name.trim() {
                    "sha-256" => expected.sha256 = Some((Sha256::new(), decode("Repr-Digest", encoded, 32)?)),
                    "sha-512" => expected.sha512 = Some((Sha512::new(), decode("Repr-Digest", encoded, 64)?)),
                    _ => {}
                }
            }
        }
        if let Some(value) = headers.get("content-md5") {
            let value = value.to_str().map_err(|_| invalid("Content-MD5", "not text"))?;
            expected.md5 = Some((Md5::new(), decode("Content-MD5", value.trim(), 16)?));
        }
        Ok(expected)
    }

    pub fn update(&mut self, data: &[u8]) {
        if let Some((hasher, _)) = &mut self.sha256 {
            hasher.update(data);
        }
        if let Some((hasher, _)) = &mut self.sha512 {
            hasher.update(data);
        }
        if let Some((hasher, _)) = &mut self.md5 {
            hasher.update(data);
        }
    }

    pub fn verify(self) -> Result<(), Problem> {
        if let Some((hasher, expected)) = self.sha256 {
            compare("Repr-Digest sha-256", &expected, &hasher.finalize())?;
        }
        if let Some((hasher, expected)) = self.sha512 {
            compare("Repr-Digest sha-512", &expected, &hasher.finalize())?;
        }
        if let Some((hasher, expected)) = self.md5 {
            compare("Content-MD5", &expected, &hasher.finalize())?;
        }
        Ok(())
    }
}

fn compare(name: &str, expected: &[u8], actual: &[u8]) -> Result<(), Problem> {
    if expected == actual {
        return Ok(());
    }
    let (expected, actual) = (BASE64_STANDARD.encode(expected), BASE64_STANDARD.encode(actual));
    Err(Problem::bad_request(
        "digest-mismatch",
        format!("{name} says {expected}, the bytes received have {actual}; nothing was stored, send them again"),
    ))
}

fn decode(header: &str, encoded: &str, length: usize) -> Result<Vec<u8>, Problem> {
    let digest = BASE64_STANDARD.decode(encoded).map_err(|_| invalid(header, encoded))?;
    if digest.len() == length { Ok(digest) } else { Err(invalid(header, encoded)) }
}

fn invalid(header: &str, value: &str) -> Problem {
    let value: String = value.chars().take(100).collect();
    Problem::bad_request("invalid-digest", format!("{header}: {value:?} is no digest in base64 of the right length"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verify(name: &'static str, value: &str, body: &[u8]) -> bool {
        let headers = HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]);
        Expected::from_headers(&headers).is_ok_and(|mut expected| {
            expected.update(body);
            expected.verify().is_ok()
        })
    }

    #[test]
    fn digests_of_the_empty_body() {
        let sha256 = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:";
        assert!(verify("repr-digest", sha256, b""));
        assert!(!verify("repr-digest", sha256, b"x"));
        assert!(verify("repr-digest", "unknown=:AAAA:", b"x"));
        assert!(!verify("repr-digest", "sha-256=:AAAA:", b""));
        assert!(!verify("repr-digest", "sha-256=AAAA", b""));
        assert!(verify("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==", b""));
        assert!(!verify("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==", b"x"));
    }
}
