//! The origin of a web page as browsers name it: scheme, host and port of its site (RFC 6454). Pure; named by `config` and
//! `http`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use url::Url;

/// One site whose pages are trusted, or all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WebOrigin(String);

/// Why a text names no origin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no origin of web pages: write it as https://example.org or http://localhost:3000, or * for every page"
)]
pub struct WebOriginError(String);

const ANY: &str = "*";

impl WebOrigin {
    pub fn is_any(&self) -> bool {
        self.0 == ANY
    }

    /// Whether a page that a browser says comes from `origin` is meant. `null`, which every page can make itself, never is.
    pub fn covers(&self, origin: &[u8]) -> bool {
        self.is_any() || self.0.as_bytes() == origin
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WebOrigin {
    type Err = WebOriginError;

    fn from_str(text: &str) -> Result<WebOrigin, WebOriginError> {
        let error = || WebOriginError(text.chars().take(200).collect());
        if text == ANY {
            return Ok(WebOrigin(ANY.into()));
        }
        let url = Url::parse(text).map_err(|_| error())?;
        let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none();
        // Browsers know no pattern of names, and neither do we, however it is spelled.
        let pattern = text.contains('*') || url.host_str().is_some_and(|host| host.contains('*'));
        if !bare || pattern || url.fragment().is_some() || !matches!(url.path(), "" | "/") {
            return Err(error());
        }
        match url.scheme() {
            // As browsers write it: small letters, no standard port.
            "http" | "https" => Ok(WebOrigin(url.origin().ascii_serialization())),
            // Applications in a browser's clothes.
            scheme => {
                let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(error)?;
                let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
                Ok(WebOrigin(format!("{scheme}://{host}{port}")))
            }
        }
    }
}

impl TryFrom<String> for WebOrigin {
    type Error = WebOriginError;

    fn try_from(text: String) -> Result<WebOrigin, WebOriginError> {
        text.parse()
    }
}

impl From<WebOrigin> for String {
    fn from(origin: WebOrigin) -> String {
        origin.0
    }
}

impl fmt::Display for WebOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_written_as_browsers_write_them() {
        for (text, expected) in [
            ("https://Example.ORG", Some("https://example.org")),
            ("https://example.org:443/", Some("https://example.org")),
            ("http://localhost:3000", Some("http://localhost:3000")),
            ("http://[::1]:80", Some("http://[::1]")),
            ("capacitor://localhost", Some("capacitor://localhost")),
            ("*", Some("*")),
            ("null", None),
            ("example.org", None),
            ("https://example.org/player", None),
            ("https://example.org?x", None),
            ("https://user@example.org", None),
            ("https://*.example.org", None),
            ("https://%2a.example.org", None),
            ("file:///tmp", None),
            ("", None),
        ] {
            let parsed = text.parse::<WebOrigin>();
            assert_eq!(parsed.as_ref().ok().map(WebOrigin::as_str), expected, "{text}: {parsed:?}");
        }
        let origin: WebOrigin = "https://example.org".parse().unwrap();
        assert!(origin.covers(b"https://example.org") && !origin.is_any());
        for other in ["http://example.org", "https://example.org.evil", "https://example.org:444", "null", ""] {
            assert!(!origin.covers(other.as_bytes()), "{other}");
        }
    }
}
