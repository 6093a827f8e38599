//! Who may do what: tokens with scopes, and signed addresses. Knows nothing of HTTP.
//!
//! [`Access`] owns `access.json` in the data directory: what it keeps of a token is a hash, and the key that signs
//! addresses in the token's name. A check reads a snapshot in memory and never waits. A change writes the file anew and
//! is durable before anybody relies on it; it blocks, so callers on async threads move it off them. `http` asks it for
//! every request, the command line looks at the file before a node listens.

mod file;
mod scope;
mod signature;
mod token;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use jiff::Timestamp;

pub use file::FileError;
pub use scope::{Scope, Scopes};
pub use signature::{Cover, Methods, Signature, SignatureError};
pub use token::{Token, TokenId, TokenName};

use crate::limits;
use token::Secret;

/// The tokens of one data directory.
pub struct Access {
    path: PathBuf,
    tokens: RwLock<Arc<Vec<Token>>>,
    /// Of those: whether any can be presented. Beside them, because every request asks.
    presentable: AtomicBool,
    /// Held while the file is written, so that changes follow each other.
    changing: Mutex<()>,
}

/// A change that was not made, or an answer that cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("there is a token {name} already; revoke it first, or choose another name")]
    Named { name: TokenName },
    #[error("there are {actual} tokens and that is the limit; revoke one first")]
    Full { actual: usize },
    #[error("the token would have expired already, at {expires_at}; choose a later time")]
    Expired { expires_at: Timestamp },
    #[error("an address may be valid for {limit} days at most, until {expires_at} is longer", limit = limits::SIGNATURE_DAYS)]
    TooLong { expires_at: Timestamp },
    #[error("the token {name} has the scope {has}, signing this needs {needs}")]
    Scope { name: TokenName, has: Scopes, needs: Scope },
    #[error("there is no token {id} any more")]
    Gone { id: TokenId },
    #[error("this machine gives no random bytes")]
    Random,
}

/// Why a token or a signature counts for nothing. The words are for whoever sent it, so they tell of it and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the token is none of this node: it was revoked, belongs to another node, or was cut short")]
    Unknown,
    #[error("the token expired at {0}; ask for another")]
    Expired(Timestamp),
    #[error(transparent)]
    Malformed(#[from] SignatureError),
    #[error("the signature does not fit this address, or its token was revoked; ask for another")]
    Signature,
    #[error("the signed address expired at {0}; ask for another")]
    SignatureExpired(Timestamp),
    #[error("the address is signed for {signed}, not for {asked}")]
    Method { signed: Methods, asked: String },
}

/// A token as it leaves the node the only time.
pub struct Created {
    pub token: Token,
    /// What a client sends.
    pub bearer: String,
}

impl Access {
    /// Reads the tokens of a data directory, which may have none.
    pub fn open(data: &Path) -> Result<Access, AccessError> {
        let path = data.join(file::NAME);
        let access =
            Access { tokens: RwLock::default(), presentable: AtomicBool::new(false), changing: Mutex::default(), path };
        access.replace(file::read(&access.path)?);
        Ok(access)
    }

    /// Reads the file again, for an administrator who put another in its place. What is wrong with it changes nothing.
    pub fn reload(&self) -> Result<usize, AccessError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = file::read(&self.path)?;
        let count = tokens.len();
        self.replace(tokens);
        Ok(count)
    }

    /// Whether any token can be presented. One that expired counts: its node is not meant to be open.
    pub fn has_tokens(&self) -> bool {
        self.presentable.load(Acquire)
    }

    pub fn tokens(&self) -> Vec<Token> {
        self.snapshot().iter().filter(|token| token.has_bearer()).cloned().collect()
    }

    pub fn create(
        &self,
        name: TokenName,
        scopes: Scopes,
        expires_at: Option<Timestamp>,
    ) -> Result<Created, AccessError> {
        if let Some(expires_at) = expires_at.filter(|time| *time <= Timestamp::now()) {
            return Err(AccessError::Expired { expires_at });
        }
        let secret = Secret::random()?;
        let token = Token::new(name, scopes, expires_at, Some(&secret))?;
        let bearer = secret.bearer(&token.id);
        self.add(token.clone())?;
        Ok(Created { token, bearer })
    }

    /// Removes the token of this id or name, and with it every address that it signed.
    pub fn revoke(&self, which: &str) -> Result<Option<Token>, AccessError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tokens = self.snapshot().to_vec();
        let Some(at) = tokens.iter().position(|token| token.id.as_str() == which || token.name.as_str() == which)
        else {
            return Ok(None);
        };
        let revoked = tokens.remove(at);
        file::write(&self.path, &tokens)?;
        self.replace(tokens);
        Ok(Some(revoked))
    }

    /// The token that `bearer` is the secret of.
    pub fn authenticate(&self, bearer: &str) -> Result<Token, Refusal> {
        let (id, secret) = Secret::parse(bearer).ok_or(Refusal::Unknown)?;
        let tokens = self.snapshot();
        let token = tokens.iter().find(|token| token.id == id && token.accepts(&secret)).ok_or(Refusal::Unknown)?;
        match token.expired(Timestamp::now()) {
            Some(at) => Err(Refusal::Expired(at)),
            None => Ok(token.clone()),
        }
    }

    /// Signs `resource` in the name of a token, or in the node's own.
    pub fn sign(
        &self,
        by: Option<&TokenId>,
        methods: Methods,
        cover: Cover,
        resource: &[u8],
        expires_at: Timestamp,
    ) -> Result<Signature, AccessError> {
        let longest = std::time::Duration::from_secs(limits::SIGNATURE_DAYS * 86_400);
        if expires_at.duration_since(Timestamp::now()).unsigned_abs() > longest {
            return Err(AccessError::TooLong { expires_at });
        }
        let token = match by {
            Some(id) => {
                let found = self.snapshot().iter().find(|token| token.id == *id).cloned();
                found.ok_or_else(|| AccessError::Gone { id: id.clone() })?
            }
            None => self.node_signer()?,
        };
        if let Some(needs) = methods.missing(token.scopes) {
            return Err(AccessError::Scope { name: token.name, has: token.scopes, needs });
        }
        let expires_s = u64::try_from(expires_at.as_second()).unwrap_or(0);
        Ok(Signature::sign(&token.signing_key, token.id, expires_s, methods, cover, resource))
    }

    /// The token in whose name `text` allows `method` on `resource`.
    pub fn verify(&self, text: &str, method: &str, resource: &[u8]) -> Result<Token, Refusal> {
        let signature = Signature::parse(text)?;
        let tokens = self.snapshot();
        let signer = tokens.iter().find(|token| token.id == signature.key).ok_or(Refusal::Signature)?;
        // Only what is proven is told about: a forged address learns nothing of its own dates.
        if !signature.fits(&signer.signing_key, resource) {
            return Err(Refusal::Signature);
        }
        let now = Timestamp::now();
        let expires_at = signature.expires_at();
        if expires_at <= now {
            return Err(Refusal::SignatureExpired(expires_at));
        }
        if signer.expired(now).is_some() || signature.methods.missing(signer.scopes).is_some() {
            return Err(Refusal::Signature);
        }
        if !signature.methods.allow(method) {
            return Err(Refusal::Method { signed: signature.methods, asked: method.chars().take(20).collect() });
        }
        Ok(signer.clone())
    }

    /// What signs for the owner of the data directory. Made when it is first asked for; nobody can present it.
    fn node_signer(&self) -> Result<Token, AccessError> {
        let find = || self.snapshot().iter().find(|token| !token.has_bearer()).cloned();
        if let Some(token) = find() {
            return Ok(token);
        }
        let token = Token::new(TokenName::of_node(), Scopes::of(&[Scope::Read, Scope::Write]), None, None)?;
        match self.add(token.clone()) {
            Ok(()) => Ok(token),
            // Another request made it in the meantime.
            Err(AccessError::Named { name }) => find().ok_or(AccessError::Named { name }),
            Err(error) => Err(error),
        }
    }

    fn add(&self, token: Token) -> Result<(), AccessError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tokens = self.snapshot().to_vec();
        if tokens.iter().any(|known| known.name == token.name) {
            return Err(AccessError::Named { name: token.name });
        }
        if tokens.len() >= limits::TOKENS {
            return Err(AccessError::Full { actual: tokens.len() });
        }
        tokens.push(token);
        file::write(&self.path, &tokens)?;
        self.replace(tokens);
        Ok(())
    }

    fn snapshot(&self) -> Arc<Vec<Token>> {
        self.tokens.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, tokens: Vec<Token>) {
        let presentable = tokens.iter().any(Token::has_bearer);
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tokens);
        self.presentable.store(presentable, Release);
    }
}

#[cfg(test)]
mod tests;
