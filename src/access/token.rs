//! A token: 256 random bits that a client presents, and what the node keeps of it.
//!
//! The bits are random, so a fast hash is enough at rest: there is nothing to guess. BLAKE3 compares hashes in constant
//! time.

use std::fmt;

use jiff::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Deserializer, Serialize};

use super::{AccessError, Scopes};
use crate::limits;

/// Says what it is, to people and to programs that look for secrets in the wrong place.
const MARK: &str = "reelring_";
const CONTEXT: &str = "reelring 2026-11 access token";
const ID_CHARS: usize = 16;
const SECRET_BYTES: usize = 32;

/// Names a token in lists and in signatures; public.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct TokenId(String);

impl TokenId {
    /// Sixteen lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Option<TokenId> {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (text.len() == ID_CHARS && text.bytes().all(hex)).then(|| TokenId(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TokenId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        TokenId::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not the id of a token")))
    }
}

/// What people call a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct TokenName(String);

impl TokenName {
    pub fn parse(text: &str) -> Result<TokenName, String> {
        if text.is_empty() || text.len() > limits::TOKEN_NAME_BYTES {
            let limit = limits::TOKEN_NAME_BYTES;
            return Err(format!("a token's name has 1 to {limit} bytes, this one has {}", text.len()));
        }
        if text.starts_with('(') || text.chars().any(char::is_control) {
            return Err(format!("{text:?} cannot be a token's name: it begins with ( or has control characters"));
        }
        Ok(TokenName(text.into()))
    }

    /// In brackets, which no other name begins with.
    pub(super) fn of_node() -> TokenName {
        TokenName("(node)".into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TokenName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TokenName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if text == TokenName::of_node().0 {
            return Ok(TokenName::of_node());
        }
        TokenName::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// What the node knows of a token.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    pub id: TokenId,
    pub name: TokenName,
    pub scopes: Scopes,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    /// BLAKE3 of the secret in hexadecimal; the node's own signer has no secret.
    hash: Option<Hash>,
    /// The key of the addresses signed in this token's name.
    pub signing_key: SigningKey,
}

impl Token {
    pub(super) fn new(
        name: TokenName,
        scopes: Scopes,
        expires_at: Option<Timestamp>,
        secret: Option<&Secret>,
    ) -> Result<Token, AccessError> {
        let id = hex(&random::<{ ID_CHARS / 2 }>()?);
        Ok(Token {
            id: TokenId(id),
            name,
            scopes,
            created_at: Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default(),
            expires_at,
            hash: secret.map(|secret| Hash(secret.hash())),
            signing_key: SigningKey(random()?),
        })
    }

    pub(super) fn has_bearer(&self) -> bool {
        self.hash.is_some()
    }

    /// Takes as long for a secret that is wrong in its first bit as in its last.
    pub(super) fn accepts(&self, secret: &Secret) -> bool {
        self.hash.as_ref().is_some_and(|hash| hash.0 == secret.hash())
    }

    /// When it expired, if it has.
    pub(super) fn expired(&self, now: Timestamp) -> Option<Timestamp> {
        self.expires_at.filter(|at| *at <= now)
    }
}

/// Equal in constant time.
#[derive(Clone, PartialEq, Eq)]
struct Hash(blake3::Hash);

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, into: S) -> Result<S::Ok, S::Error> {
        into.serialize_str(self.0.to_hex().as_str())
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        blake3::Hash::from_hex(&text).map(Hash).map_err(serde::de::Error::custom)
    }
}

/// The key of HMAC-SHA256. Used as its hexadecimal text, which is what every language's HMAC can be given.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey([u8; SECRET_BYTES]);

impl SigningKey {
    pub fn to_hex(&self) -> String {
        hex(&self.0)
    }

    #[cfg(test)]
    pub(super) fn of(byte: u8) -> SigningKey {
        SigningKey([byte; SECRET_BYTES])
    }
}

impl Serialize for SigningKey {
    fn serialize<S: serde::Serializer>(&self, into: S) -> Result<S::Ok, S::Error> {
        into.serialize_str(&self.to_hex())
    }
}

impl<'de> Deserialize<'de> for SigningKey {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        unhex(&text).map(SigningKey).ok_or_else(|| serde::de::Error::custom("a signing key has 64 hexadecimal digits"))
    }
}

/// What only the client has.
pub(super) struct Secret([u8; SECRET_BYTES]);

impl Secret {
    pub fn random() -> Result<Secret, AccessError> {
        Ok(Secret(random()?))
    }

    /// `reelring_ID_SECRET`
    pub fn bearer(&self, id: &TokenId) -> String {
        format!("{MARK}{id}_{}", hex(&self.0))
    }

    pub fn parse(bearer: &str) -> Option<(TokenId, Secret)> {
        let (id, secret) = bearer.strip_prefix(MARK)?.split_once('_')?;
        Some((TokenId::parse(id)?, Secret(unhex(secret)?)))
    }

    fn hash(&self) -> blake3::Hash {
        blake3::Hasher::new_derive_key(CONTEXT).update(&self.0).finalize()
    }
}

fn random<const N: usize>() -> Result<[u8; N], AccessError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| AccessError::Random)?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Lower-case digits only, so that a secret has one spelling.
fn unhex(text: &str) -> Option<[u8; SECRET_BYTES]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; SECRET_BYTES];
    if text.len() != 2 * SECRET_BYTES {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}
