//! A running node as commands see it: its address, the way there, and what they show to be let in.
//!
//! Beside the node the way is its local socket, and the right to open that is enough. Elsewhere it is the network, with
//! a token from `--token-file` or `REELRING_TOKEN`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use axum::http::HeaderValue;
use url::Url;

use super::exit::{CliError, Result};
use crate::http::socket;

/// Both files are small; a bundle of certificates is the larger.
const TOKEN_FILE_BYTES: u64 = 4 << 10;
const CA_FILE_BYTES: u64 = 1 << 20;

pub struct Remote {
    /// For people, and for addresses in answers.
    pub url: Url,
    pub socket: Option<socket::Address>,
    pub pass: Pass,
}

/// What a command shows, and whom it believes.
#[derive(Default)]
pub struct Pass {
    /// Marked as secret: no log shows it.
    pub authorization: Option<HeaderValue>,
    /// PEM certificates of authorities to believe beside the machine's own.
    pub authorities: Option<Vec<u8>>,
}

impl Remote {
    pub fn at(url: Url) -> Remote {
        Remote { url, socket: None, pass: Pass::default() }
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("url", &self.url.as_str()).finish_non_exhaustive()
    }
}

impl Pass {
    pub fn collect(token_file: Option<&Path>, ca_file: Option<&PathBuf>) -> Result<Pass> {
        let token = match token_file {
            Some(path) => Some(text_of(path, "--token-file", TOKEN_FILE_BYTES)?),
            None => std::env::var("REELRING_TOKEN").ok().filter(|token| !token.is_empty()),
        };
        let authorization = token.map(|token| bearer(&token)).transpose()?;
        let authorities = ca_file.map(|path| text_of(path, "--ca-file", CA_FILE_BYTES).map(String::into_bytes));
        Ok(Pass { authorization, authorities: authorities.transpose()? })
    }
}

fn bearer(token: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
        .map_err(|_| CliError::usage("the token has characters that no token has; give it as it was printed"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn text_of(path: &Path, option: &str, limit: u64) -> Result<String> {
    let refuse = |why: String| CliError::usage(format!("{option} {}: {why}", path.display()));
    let mut text = String::new();
    let file = File::open(path).map_err(|error| refuse(error.to_string()))?;
    file.take(limit + 1).read_to_string(&mut text).map_err(|error| refuse(error.to_string()))?;
    if text.len() as u64 > limit {
        return Err(refuse(format!("it has more than {limit} bytes")));
    }
    if text.trim().is_empty() {
        return Err(refuse("it is empty".into()));
    }
    Ok(text)
}
