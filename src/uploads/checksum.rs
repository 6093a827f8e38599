//! Checksums of single requests: the bytes count only when they match.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Sha1,
    Sha256,
    Sha512,
    Md5,
}

/// What the bytes of one request must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum {
    pub algorithm: Algorithm,
    pub digest: Vec<u8>,
}

impl Algorithm {
    pub const ALL: [Algorithm; 4] = [Algorithm::Sha1, Algorithm::Sha256, Algorithm::Sha512, Algorithm::Md5];

    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha1 => "sha1",
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
            Algorithm::Md5 => "md5",
        }
    }

    pub fn named(name: &str) -> Option<Algorithm> {
        Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    pub fn digest_bytes(self) -> usize {
        match self {
            Algorithm::Sha1 => 20,
            Algorithm::Sha256 => 32,
            Algorithm::Sha512 => 64,
            Algorithm::Md5 => 16,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Checksum {
    /// `sha1 BASE64`, as `Upload-Checksum` has it. `None` when it is not that, or of an algorithm nobody here knows.
    pub fn parse(text: &str) -> Option<Checksum> {
        let (name, digest) = text.trim().split_once(' ')?;
        Checksum::of(Algorithm::named(name)?, digest.trim())
    }

    /// A digest in base64; `None` when it has not the algorithm's length.
    pub fn of(algorithm: Algorithm, digest: &str) -> Option<Checksum> {
        let digest = BASE64_STANDARD.decode(digest).ok()?;
        (digest.len() == algorithm.digest_bytes()).then_some(Checksum { algorithm, digest })
    }
}

/// Computes digests as the bytes flow: one, or all of them while it is not known which one the trailer will have.
#[derive(Default)]
pub(super) struct Digests {
    sha1: Option<Sha1>,
    sha256: Option<Sha256>,
    sha512: Option<Sha512>,
    md5: Option<Md5>,
}

impl Digests {
    pub fn new(algorithms: &[Algorithm]) -> Digests {
        let mut digests = Digests::default();
        for algorithm in algorithms {
            match algorithm {
                Algorithm::Sha1 => digests.sha1 = Some(Sha1::new()),
                Algorithm::Sha256 => digests.sha256 = Some(Sha256::new()),
                Algorithm::Sha512 => digests.sha512 = Some(Sha512::new()),
                Algorithm::Md5 => digests.md5 = Some(Md5::new()),
            }
        }
        digests
    }

    pub fn update(&mut self, data: &[u8]) {
        fn update<D: Digest>(digest: &mut Option<D>, data: &[u8]) {
            if let Some(digest) = digest {
                digest.update(data);
            }
        }
        update(&mut self.sha1, data);
        update(&mut self.sha256, data);
        update(&mut self.sha512, data);
        update(&mut self.md5, data);
    }

    /// Base64 of what the bytes have instead, if they do not match.
    pub fn verify(&self, expected: &Checksum) -> Result<(), String> {
        fn of<D: Digest + Clone>(digest: &Option<D>) -> Vec<u8> {
            digest.as_ref().map_or(Vec::new(), |digest| digest.clone().finalize().to_vec())
        }
        let actual = match expected.algorithm {
            Algorithm::Sha1 => of(&self.sha1),
            Algorithm::Sha256 => of(&self.sha256),
            Algorithm::Sha512 => of(&self.sha512),
            Algorithm::Md5 => of(&self.md5),
        };
        if actual == expected.digest { Ok(()) } else { Err(BASE64_STANDARD.encode(actual)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_of_abc() {
        let mut digests = Digests::new(&Algorithm::ALL);
        digests.update(b"a");
        digests.update(b"bc");
        let known = [
            "sha1 qZk+NkcGgWq6PiVxeFDCbJzQ2J0=",
            "sha256 ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=",
            "md5 kAFQmDzST7DWlj99KOF/cg==",
        ];
        for text in known {
            let checksum = Checksum::parse(text).unwrap();
            assert_eq!(digests.verify(&checksum), Ok(()), "{text}");
            let mut wrong = checksum.clone();
            wrong.digest[0] ^= 1;
            assert_eq!(Err(text.split_once(' ').unwrap().1.to_owned()), digests.verify(&wrong));
        }
        for text in ["", "sha1", "sha1 AAAA", "crc32 AAAAAA==", "sha1 !!!"] {
            assert_eq!(Checksum::parse(text), None, "{text}");
        }
    }
}
