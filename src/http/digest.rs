//! Digests (RFC 9530): those a client sends with an upload are verified, the one that is known of an object goes out.
//!
//! Of an upload `Repr-Digest` and `Content-Digest` count, which mean the same bytes here (an upload is whole and has no
//! coding), and `Content-MD5` (RFC 1864). Out goes SHA-256, where it is known because the upload or the fetch was verified
//! by it. Computing it for every object would cost more than all else that is done with an arriving byte; the BLAKE3 of
//! every object is its entity tag, and the registry of digests has no name for it.

use axum::http::{HeaderMap, HeaderValue};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use md5::{Digest as _, Md5};
use sha2::{Sha256, Sha512};

use super::problem::Problem;

pub(super) const REPR_DIGEST: &str = "repr-digest";
const CONTENT_DIGEST: &str = "content-digest";
const WANT_REPR_DIGEST: &str = "want-repr-digest";

/// The digests to verify, computed as the body flows.
#[derive(Default)]
pub(super) struct Expected {
    sha256: Option<Sha256>,
    sha512: Option<Sha512>,
    md5: Option<Md5>,
    claims: Vec<Claim>,
}

/// What one header says.
struct Claim {
    header: &'static str,
    algorithm: Algorithm,
    digest: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Sha256,
    Sha512,
    Md5,
}

impl Expected {
    pub fn from_headers(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut expected = Self::default();
        for (name, header) in [(REPR_DIGEST, "Repr-Digest"), (CONTENT_DIGEST, "Content-Digest")] {
            for value in headers.get_all(name) {
                let value = value.to_str().map_err(|_| invalid(header, "not text"))?;
                for member in value.split(',').map(str::trim).filter(|member| !member.is_empty()) {
                    let (name, digest) = member.split_once('=').ok_or_else(|| invalid(header, member))?;
                    let encoded = digest.strip_prefix(':').and_then(|digest| digest.split_once(':'));
                    let (encoded, parameters) = encoded.ok_or_else(|| invalid(header, member))?;
                    if !parameters.is_empty() && !parameters.starts_with(';') {
                        return Err(invalid(header, member));
                    }
                    // Algorithms nobody here knows are left to whoever does, as the RFC asks.
                    match name {
                        "sha-256" => expected.claim(header, Algorithm::Sha256, encoded)?,
                        "sha-512" => expected.claim(header, Algorithm::Sha512, encoded)?,
                        _ => {}
                    }
                }
            }
        }
        if let Some(value) = headers.get("content-md5") {
            let value = value.to_str().map_err(|_| invalid("Content-MD5", "not text"))?;
            expected.claim("Content-MD5", Algorithm::Md5, value.trim())?;
        }
        Ok(expected)
    }

    /// The last one of a header counts, as in every dictionary of structured fields.
    fn claim(&mut self, header: &'static str, algorithm: Algorithm, encoded: &str) -> Result<(), Problem> {
        let length = match algorithm {
            Algorithm::Sha256 => 32,
            Algorithm::Sha512 => 64,
            Algorithm::Md5 => 16,
        };
        let digest = BASE64_STANDARD.decode(encoded).ok().filter(|digest| digest.len() == length);
        let digest = digest.ok_or_else(|| invalid(header, encoded))?;
        match algorithm {
            Algorithm::Sha256 => _ = self.sha256.get_or_insert_default(),
            Algorithm::Sha512 => _ = self.sha512.get_or_insert_default(),
            Algorithm::Md5 => _ = self.md5.get_or_insert_default(),
        }
        self.claims.retain(|claim| (claim.header, claim.algorithm) != (header, algorithm));
        self.claims.push(Claim { header, algorithm, digest });
        Ok(())
    }

    pub fn update(&mut self, data: &[u8]) {
        if let Some(hasher) = &mut self.sha256 {
            hasher.update(data);
        }
        if let Some(hasher) = &mut self.sha512 {
            hasher.update(data);
        }
        if let Some(hasher) = &mut self.md5 {
            hasher.update(data);
        }
    }

    /// The SHA-256 of the bytes, if it was asked for, once all that was claimed is true.
    pub fn verify(self) -> Result<Option<[u8; 32]>, Problem> {
        let sha256 = self.sha256.map(|hasher| <[u8; 32]>::from(hasher.finalize()));
        let sha512 = self.sha512.map(|hasher| hasher.finalize());
        let md5 = self.md5.map(|hasher| hasher.finalize());
        for Claim { header, algorithm, digest } in &self.claims {
            let (name, actual) = match algorithm {
                Algorithm::Sha256 => (" sha-256", sha256.as_ref().map(|digest| &digest[..])),
                Algorithm::Sha512 => (" sha-512", sha512.as_ref().map(|digest| &digest[..])),
                Algorithm::Md5 => ("", md5.as_ref().map(|digest| &digest[..])),
            };
            if actual != Some(digest) {
                let (expected, actual) =
                    (BASE64_STANDARD.encode(digest), actual.map(|digest| BASE64_STANDARD.encode(digest)));
                let actual = actual.unwrap_or_default();
                return Err(Problem::bad_request(
                    "digest-mismatch",
                    format!(
                        "{header}{name} says {expected}, the bytes received have {actual}; nothing was stored, send them again"
                    ),
                ));
            }
        }
        Ok(sha256)
    }
}

/// `Repr-Digest` of an object whose SHA-256 is known, unless the client wants others only.
pub(super) fn of_object(request: &HeaderMap, sha256: Option<[u8; 32]>) -> Option<HeaderValue> {
    let digest = sha256.filter(|_| wants_sha256(request))?;
    HeaderValue::from_str(&format!("sha-256=:{}:", BASE64_STANDARD.encode(digest))).ok()
}

/// By `Want-Repr-Digest`, where 0 means "not this one". What cannot be read is as good as absent.
fn wants_sha256(request: &HeaderMap) -> bool {
    let mut named = request.get_all(WANT_REPR_DIGEST).iter().peekable();
    if named.peek().is_none() {
        return true;
    }
    let mut wanted = None;
    for line in named {
        let Ok(line) = line.to_str() else { return true };
        for member in line.split(',').map(str::trim).filter(|member| !member.is_empty()) {
            let weight = member.split_once('=').and_then(|(name, weight)| {
                let weight = weight.split(';').next().unwrap_or_default().trim_end();
                Some((name, weight.parse::<u8>().ok().filter(|weight| *weight <= 10)?))
            });
            match weight {
                Some(("sha-256", weight)) => wanted = Some(weight > 0),
                Some(_) => {}
                None => return true,
            }
        }
    }
    wanted.unwrap_or(false)
}

fn invalid(header: &str, value: &str) -> Problem {
    let value: String = value.chars().take(100).collect();
    Problem::bad_request("invalid-digest", format!("{header}: {value:?} is no digest in base64 of the right length"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn verify(pairs: &[(&'static str, &str)], body: &[u8]) -> bool {
        Expected::from_headers(&headers(pairs)).is_ok_and(|mut expected| {
            expected.update(body);
            expected.verify().is_ok()
        })
    }

    #[test]
    fn digests_of_the_empty_body() {
        for (name, value, of_empty, of_x) in [
            ("repr-digest", EMPTY, true, false),
            ("content-digest", EMPTY, true, false),
            ("repr-digest", &format!("{EMPTY};q=1, unknown=:AAAA:"), true, false),
            ("repr-digest", &format!("sha-256=:{}:, {EMPTY}", "A".repeat(43) + "="), true, false),
            ("repr-digest", "unknown=:AAAA:", true, true),
            ("repr-digest", "sha-256=:AAAA:", false, false),
            ("repr-digest", "sha-256=AAAA", false, false),
            ("repr-digest", &format!("{EMPTY}x"), false, false),
            ("repr-digest", "sha-256", false, false),
            ("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==", true, false),
            ("content-md5", "", false, false),
        ] {
            assert_eq!(verify(&[(name, value)], b""), of_empty, "{name}: {value}");
            assert_eq!(verify(&[(name, value)], b"x"), of_x, "{name}: {value}");
        }
        let other = "sha-256=:LXEWQrcmsEQBYnyp+6wy9chTD7GQPMTbAiWHF5IaSIE=:";
        assert!(verify(&[("repr-digest", other)], b"x"));
        assert!(!verify(&[("repr-digest", other), ("content-digest", EMPTY)], b"x"), "each header must be true");
        assert!(!verify(&[("repr-digest", EMPTY), ("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==")], b""));
        let expected = Expected::from_headers(&headers(&[("content-digest", EMPTY)])).unwrap();
        assert_eq!(expected.verify().unwrap(), Some(Sha256::digest(b"").into()));
        assert_eq!(Expected::default().verify().unwrap(), None);
    }

    #[test]
    fn a_digest_goes_out_unless_others_are_wanted() {
        let of = |wanted: &[&str]| {
            let mut request = HeaderMap::new();
            for value in wanted {
                request.append(WANT_REPR_DIGEST, value.parse().unwrap());
            }
            of_object(&request, Some(Sha256::digest(b"").into()))
        };
        for wanted in [
            &[][..],
            &["sha-256=1"],
            &["sha-512=3, sha-256=10"],
            &["sha-512=3", "sha-256=1;x"],
            &["?"],
            &["sha-256=11"],
        ] {
            assert_eq!(of(wanted).unwrap(), EMPTY, "{wanted:?}");
        }
        for wanted in [&["sha-256=0"][..], &["sha-512=10"], &["md5=1, sha-256=1, sha-256=0"], &[""]] {
            assert_eq!(of(wanted), None, "{wanted:?}");
        }
        assert_eq!(of_object(&HeaderMap::new(), None), None);
    }
}
