//! `access.json`: the tokens on disk. Only the node's user may read it: whoever has a signing key can sign.
//!
//! Written anew for every change: a file beside it, synced, renamed over it, and the directory synced. A crash leaves
//! the old one or the new one.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Token;
use crate::limits;

pub(super) const NAME: &str = "access.json";
const VERSION: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("the tokens in {path} cannot be read: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "the tokens in {path} are not valid: {reason}; restore the file from a back-up, or remove it to begin anew \
             without any token"
    )]
    Invalid { path: PathBuf, reason: String },
    #[error("the tokens cannot be written to {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored<T> {
    version: u32,
    tokens: T,
}

/// No file means no tokens. One that cannot be read is an error: it must not open the node to everybody.
pub(super) fn read(path: &Path) -> Result<Vec<Token>, FileError> {
    let error = |source| FileError::Read { path: path.into(), source };
    let invalid = |reason| FileError::Invalid { path: path.into(), reason };
    let mut text = String::new();
    match File::open(path) {
        Ok(file) => file.take(limits::TOKENS_FILE_BYTES + 1).read_to_string(&mut text).map_err(error)?,
        Err(absent) if absent.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(error(source)),
    };
    if text.len() as u64 > limits::TOKENS_FILE_BYTES {
        return Err(invalid(format!("it has more than {} bytes", limits::TOKENS_FILE_BYTES)));
    }
    let stored: Stored<Vec<Token>> = serde_json::from_str(&text).map_err(|error| invalid(error.to_string()))?;
    if stored.version != VERSION {
        return Err(invalid(format!("it is of version {}, this program knows version {VERSION}", stored.version)));
    }
    if stored.tokens.len() > limits::TOKENS {
        return Err(invalid(format!("it has {} tokens, the limit is {}", stored.tokens.len(), limits::TOKENS)));
    }
    for (at, token) in stored.tokens.iter().enumerate() {
        if stored.tokens[..at].iter().any(|other| other.id == token.id || other.name == token.name) {
            return Err(invalid(format!("it has the token {} ({}) twice", token.id, token.name)));
        }
    }
    Ok(stored.tokens)
}

pub(super) fn write(path: &Path, tokens: &[Token]) -> Result<(), FileError> {
    replace(path, tokens).map_err(|source| FileError::Write { path: path.into(), source })
}

fn replace(path: &Path, tokens: &[Token]) -> io::Result<()> {
    let unfinished = path.with_extension("json.new");
    // One that a crash left may have other rights.
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut text = serde_json::to_vec_pretty(&Stored { version: VERSION, tokens })?;
    text.push(b'\n');
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}
