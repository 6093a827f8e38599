//! Signed addresses: who may do what with which path until when, in one query parameter. Pure.
//!
//! ```text
//! signature=1.KEY.EXPIRES.METHODS.COVER.MAC
//! ```
//!
//! `KEY` is the id of the token that signed, `EXPIRES` the second since 1970 from which it is void, `METHODS` names
//! joined by `-` in a fixed order, `COVER` the word `exact` or how many bytes of the path are covered: then every path that
//! begins with them is, and the last of them is a `/`. `MAC` is HMAC-SHA256 in base64url over these lines:
//!
//! ```text
//! reelring-url-1 ⏎ EXPIRES ⏎ METHODS ⏎ COVER ⏎ covered path, percent-decoded
//! ```
//!
//! Each value has exactly one spelling, so a signature cannot be altered and stay valid; the comparison takes constant time.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::hmac;

use super::token::SigningKey;
use super::{Scope, Scopes, TokenId};
use crate::limits;

const VERSION: &str = "1";
const CONTEXT: &str = "reelring-url-1";
const MAC_BYTES: usize = 32;
/// Of an expiry: far beyond the longest that is ever signed.
const EXPIRES_DIGITS: usize = 11;

/// Which methods an address is signed for. HEAD goes with GET.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Methods(u8);

const NAMES: [&str; 3] = ["GET", "PUT", "DELETE"];

impl Methods {
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Methods, String> {
        let mut set = 0;
        for name in names {
            let at = NAMES.iter().position(|known| *known == name);
            set |=
                1 << at.ok_or_else(|| format!("{name:?} cannot be signed for; GET (with HEAD), PUT and DELETE can"))?;
        }
        if set == 0 { Err("a signature needs a method: GET, PUT or DELETE".into()) } else { Ok(Methods(set)) }
    }

    pub fn allow(self, method: &str) -> bool {
        let method = if method == "HEAD" { "GET" } else { method };
        self.names().any(|name| name == method)
    }

    /// A scope that signing for them takes and `scopes` lack: nobody gives more than he has.
    pub fn missing(self, scopes: Scopes) -> Option<Scope> {
        let mut needed = self.names().map(|name| if name == "GET" { Scope::Read } else { Scope::Write });
        needed.find(|scope| !scopes.allow(*scope))
    }

    fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES.into_iter().enumerate().filter(move |(at, _)| self.0 & 1 << at != 0).map(|(_, name)| name)
    }

    /// Only the spelling that [`Display`](fmt::Display) has.
    fn parse(text: &str) -> Option<Methods> {
        let methods = Methods::of(text.split('-').take(NAMES.len() + 1)).ok()?;
        (methods.to_string() == text).then_some(methods)
    }
}

impl fmt::Display for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().collect::<Vec<_>>().join("-"))
    }
}

/// How much of the path a signature is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cover {
    /// This path and no other.
    Exact,
    /// Every path that begins with as many bytes.
    Prefix(u16),
}

impl Cover {
    /// The part of `resource` that is signed; `None` where this cover cannot apply to it.
    fn covered(self, resource: &[u8]) -> Option<&[u8]> {
        match self {
            Cover::Exact => Some(resource),
            Cover::Prefix(bytes) => resource.get(..bytes.into()).filter(|prefix| prefix.ends_with(b"/")),
        }
    }

    fn parse(text: &str) -> Option<Cover> {
        if text == "exact" {
            return Some(Cover::Exact);
        }
        number(text, 5).and_then(|bytes| u16::try_from(bytes).ok()).map(Cover::Prefix)
    }
}

impl fmt::Display for Cover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cover::Exact => f.write_str("exact"),
            Cover::Prefix(bytes) => write!(f, "{bytes}"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    pub key: TokenId,
    expires_s: u64,
    pub methods: Methods,
    pub cover: Cover,
    mac: [u8; MAC_BYTES],
}

/// A parameter that no node has signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("the signature has {actual} bytes, the limit is {limit}", limit = limits::SIGNATURE_BYTES)]
    TooLong { actual: usize },
    #[error("the signature's {part} cannot be read; the address was cut short or altered, ask for another")]
    Part { part: &'static str },
    #[error("the signature is of version {0:?}, this node knows version 1")]
    Version(String),
}

impl Signature {
    pub fn sign(
        key: &SigningKey,
        id: TokenId,
        expires_s: u64,
        methods: Methods,
        cover: Cover,
        resource: &[u8],
    ) -> Signature {
        let mut signature = Signature { key: id, expires_s, methods, cover, mac: [0; MAC_BYTES] };
        if let Some(message) = signature.message(resource) {
            signature.mac.copy_from_slice(hmac::sign(&hmac_key(key), &message).as_ref());
        }
        signature
    }

    /// Whether the owner of `key` signed this for `resource`.
    pub fn fits(&self, key: &SigningKey, resource: &[u8]) -> bool {
        self.message(resource).is_some_and(|message| hmac::verify(&hmac_key(key), &message, &self.mac).is_ok())
    }

    pub fn expires_at(&self) -> Timestamp {
        i64::try_from(self.expires_s).ok().and_then(|second| Timestamp::from_second(second).ok()).unwrap_or_default()
    }

    pub fn parse(text: &str) -> Result<Signature, SignatureError> {
        if text.len() > limits::SIGNATURE_BYTES {
            return Err(SignatureError::TooLong { actual: text.len() });
        }
        let mut parts = text.split('.');
        let mut part = |part: &'static str| parts.next().ok_or(SignatureError::Part { part }).map(|text| (part, text));
        let bad = |part| SignatureError::Part { part };
        let (_, version) = part("version")?;
        if version != VERSION {
            return Err(SignatureError::Version(version.chars().take(8).collect()));
        }
        let (name, text) = part("key")?;
        let key = TokenId::parse(text).ok_or(bad(name))?;
        let (name, text) = part("expiry")?;
        let expires_s = number(text, EXPIRES_DIGITS).ok_or(bad(name))?;
        let (name, text) = part("method")?;
        let methods = Methods::parse(text).ok_or(bad(name))?;
        let (name, text) = part("cover")?;
        let cover = Cover::parse(text).ok_or(bad(name))?;
        let (name, text) = part("code")?;
        let mac = URL_SAFE_NO_PAD.decode(text).ok().and_then(|mac| mac.try_into().ok()).ok_or(bad(name))?;
        if parts.next().is_some() {
            return Err(bad("end"));
        }
        Ok(Signature { key, expires_s, methods, cover, mac })
    }

    fn message(&self, resource: &[u8]) -> Option<Vec<u8>> {
        let Self { expires_s, methods, cover, .. } = self;
        let covered = cover.covered(resource)?;
        let mut message = format!("{CONTEXT}\n{expires_s}\n{methods}\n{cover}\n").into_bytes();
        message.extend_from_slice(covered);
        Some(message)
    }
}

/// The value of the parameter `signature`.
impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, expires_s, methods, cover, mac } = self;
        write!(f, "{VERSION}.{key}.{expires_s}.{methods}.{cover}.{}", URL_SAFE_NO_PAD.encode(mac))
    }
}

fn hmac_key(key: &SigningKey) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, key.to_hex().as_bytes())
}

/// Decimal digits without a sign or leading zeros.
fn number(text: &str, digits: usize) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && text.len() <= digits;
    (plain && !text.starts_with('0')).then(|| text.parse().ok()).flatten()
}
