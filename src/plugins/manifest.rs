//! What a plugin says of itself, and which addresses it claims.
//!
//! A pattern is `scheme://host/path`: the scheme is `http`, `https` or `*` for both; the host is a name, `*.name` (the name
//! and everything below it) or `*`, with a port where only that one is meant; the path is compared with the address's path
//! and query, `*` standing for any text in it.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use url::Url;

use crate::limits;

/// A validated manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub id: String,
    pub version: String,
    pub matches: Vec<Pattern>,
}

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("the plugin exports no manifest; add `export const manifest = {{ matches: [\"https://example.com/*\"] }}`")]
    Missing,
    #[error("the manifest is not valid: {0}")]
    Shape(#[from] serde_json::Error),
    #[error(
        "the manifest's id {0:?} is not valid: use 1 to 64 letters, digits, `-`, `_` or `.`, beginning with a letter or digit"
    )]
    Id(String),
    #[error("the manifest's version {0:?} is not valid: use 1 to 64 printable ASCII characters")]
    Version(String),
    #[error("the manifest has no `matches`, so no address would ever reach the plugin")]
    NoMatches,
    #[error("the manifest has {found} patterns in `matches`, the limit is {}", limits::PLUGIN_PATTERNS)]
    TooManyMatches { found: usize },
    #[error(transparent)]
    Pattern(#[from] PatternError),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the pattern {pattern:?} in `matches` is not valid: {reason}")]
pub struct PatternError {
    pattern: String,
    reason: &'static str,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    id: Option<String>,
    version: Option<String>,
    #[serde(default)]
    matches: Vec<String>,
}

impl Manifest {
    /// Reads the JSON that the worker sent. The id defaults to the file's `stem`, the version to `0`.
    pub fn parse(json: &str, stem: &str) -> Result<Manifest, ManifestError> {
        let written: Option<Written> = serde_json::from_str(json)?;
        let Written { id, version, matches } = written.ok_or(ManifestError::Missing)?;
        let id = id.unwrap_or_else(|| stem.to_owned());
        if !is_id(&id) {
            return Err(ManifestError::Id(id));
        }
        let version = version.unwrap_or_else(|| "0".into());
        if version.is_empty() || version.len() > 64 || !version.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return Err(ManifestError::Version(version));
        }
        match matches.len() {
            0 => return Err(ManifestError::NoMatches),
            found if found > limits::PLUGIN_PATTERNS => return Err(ManifestError::TooManyMatches { found }),
            _ => {}
        }
        let matches = matches.iter().map(|pattern| pattern.parse()).collect::<Result<_, _>>()?;
        Ok(Manifest { id, version, matches })
    }

    pub fn claims(&self, url: &Url) -> bool {
        self.matches.iter().any(|pattern| pattern.matches(url))
    }
}

/// Ids and the stems of plugin files: what needs no quoting in a log, a metric or an address.
pub fn is_id(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// One entry of `matches`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    scheme: Scheme,
    host: Host,
    port: Option<u16>,
    path: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
    Either,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Any,
    /// The name itself and every name below it.
    Below(String),
    Exactly(String),
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Pattern, PatternError> {
        let bad = |reason| PatternError { pattern: text.chars().take(80).collect(), reason };
        if text.len() > limits::PLUGIN_PATTERN_BYTES {
            return Err(bad("it is longer than 512 bytes"));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(bad("write spaces and other than ASCII characters as in an address: %20, xn--…"));
        }
        let (scheme, rest) =
            text.split_once("://").ok_or_else(|| bad("it must look like https://example.com/watch/*"))?;
        let scheme = match scheme {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "*" => Scheme::Either,
            _ => return Err(bad("the scheme must be http, https or *")),
        };
        let slash = rest.find('/').ok_or_else(|| bad("a path is missing; end it with /* to match every page"))?;
        let (authority, path) = rest.split_at(slash);
        if path.contains('#') {
            return Err(bad("an address's fragment never reaches a server and cannot be matched"));
        }
        let (host, port) = split_port(authority).ok_or_else(|| bad("the port must be a number up to 65535"))?;
        let host = match host {
            "*" => Host::Any,
            name => match name.strip_prefix("*.") {
                Some(name) => Host::Below(host_name(name).ok_or_else(|| bad("the host after *. is not a name"))?),
                None => Host::Exactly(host_name(name).ok_or_else(|| bad("the host must be a name, *.name or *"))?),
            },
        };
        Ok(Pattern { scheme, host, port, path: path.to_owned() })
    }
}

/// `host:port`, the port being optional. `None` for a port that is not a number.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => Some((host, Some(port.parse().ok()?))),
        _ => Some((authority, None)),
    }
}

/// A host as addresses spell it: lower case, IDNA, canonical numbers.
fn host_name(text: &str) -> Option<String> {
    if text.is_empty() || text.contains(['*', '@', '?', '\\']) {
        return None;
    }
    Url::parse(&format!("http://{text}/")).ok()?.host_str().map(str::to_owned)
}

impl Pattern {
    pub fn matches(&self, url: &Url) -> bool {
        let scheme = match self.scheme {
            Scheme::Http => url.scheme() == "http",
            Scheme::Https => url.scheme() == "https",
            Scheme::Either => matches!(url.scheme(), "http" | "https"),
        };
        let Some(host) = url.host_str() else { return false };
        let host = match &self.host {
            Host::Any => true,
            Host::Exactly(name) => host == name,
            Host::Below(name) => {
                host.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
        };
        let port = self.port.is_none_or(|port| url.port_or_known_default() == Some(port));
        scheme && host && port && self.matches_path(url)
    }

    fn matches_path(&self, url: &Url) -> bool {
        match url.query() {
            None => glob(self.path.as_bytes(), url.path().as_bytes()),
            Some(query) => glob(self.path.as_bytes(), format!("{}?{query}", url.path()).as_bytes()),
        }
    }
}

/// Whether `text` has the shape of `pattern`, in which `*` stands for any text. Only the last `*` is ever tried again, so
/// the work is at most the product of the two lengths.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p, t));
                p += 1;
            }
            Some(byte) if *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((star, from)) = retry else { return false };
                retry = Some((star, from + 1));
                p = star + 1;
                t = from + 1;
            }
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Either => "*",
        };
        write!(f, "{scheme}://")?;
        match &self.host {
            Host::Any => f.write_str("*")?,
            Host::Below(name) => write!(f, "*.{name}")?,
            Host::Exactly(name) => f.write_str(name)?,
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, url: &str) -> bool {
        pattern.parse::<Pattern>().unwrap().matches(&Url::parse(url).unwrap())
    }

    #[test]
    fn a_pattern_claims_what_it_says_and_no_more() {
        for (pattern, yes, no) in [
            ("https://example.com/watch/*", "https://example.com/watch/1?t=2", "https://example.com/watch"),
            ("https://example.com/watch/*", "https://EXAMPLE.com/watch/", "http://example.com/watch/1"),
            ("*://*.example.com/*", "http://a.b.example.com/", "http://badexample.com/"),
            ("*://*.example.com/*", "https://example.com/", "https://example.com.evil.net/"),
            ("http://127.0.0.1:8080/*", "http://127.0.0.1:8080/x", "http://127.0.0.1:8081/x"),
            ("http://127.0.0.1/*", "http://127.0.0.1:8081/x", "http://127.0.0.2/x"),
            ("http://[::1]:80/*", "http://[::1]/", "http://[::2]/"),
            ("https://example.com/*.html", "https://example.com/a/b.html", "https://example.com/a.html?x"),
            ("https://example.com/w?v=*", "https://example.com/w?v=1", "https://example.com/w"),
            (
                "https://bücher.example/*".replace("bücher", "xn--bcher-kva").as_str(),
                "https://bücher.example/",
                "https://bucher.example/",
            ),
            ("*://*/*", "http://anything/at/all", "ftp://anything/at/all"),
        ] {
            assert!(matches(pattern, yes), "{pattern} must match {yes}");
            assert!(!matches(pattern, no), "{pattern} must not match {no}");
        }
    }

    #[test]
    fn a_pattern_that_means_nothing_is_refused_with_its_reason() {
        for (pattern, reason) in [
            ("example.com/*", "must look like"),
            ("ftp://example.com/*", "scheme"),
            ("https://example.com", "path is missing"),
            ("https:///x", "host must be"),
            ("https://*/ *", "ASCII"),
            ("https://ex*mple.com/*", "host must be"),
            ("https://*.*/*", "after *."),
            ("https://user@example.com/*", "host must be"),
            ("https://example.com:99999/*", "port"),
            ("https://example.com:*/*", "port"),
            ("https://example.com/#a", "fragment"),
        ] {
            let error = pattern.parse::<Pattern>().unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains(pattern), "{pattern}: {error}");
        }
    }

    #[test]
    fn defaults_are_the_stem_and_version_zero() {
        let manifest = Manifest::parse(r#"{"matches":["https://a/*"]}"#, "site").unwrap();
        assert_eq!((manifest.id.as_str(), manifest.version.as_str()), ("site", "0"));
    }

    #[test]
    fn bad_manifests_say_what_is_wrong() {
        let many = format!(r#"{{"matches":[{}]}}"#, vec![r#""https://a/*""#; 65].join(","));
        for (json, reason) in [
            ("null", "exports no manifest"),
            ("7", "not valid"),
            (r#"{"match":["https://a/*"]}"#, "unknown field `match`"),
            (r#"{"matches":"https://a/*"}"#, "expected a sequence"),
            (r#"{"matches":[]}"#, "no `matches`"),
            (r#"{"id":"../x","matches":["https://a/*"]}"#, "id"),
            (r#"{"version":"","matches":["https://a/*"]}"#, "version"),
            (r#"{"matches":["a"]}"#, "pattern \"a\""),
            (many.as_str(), "65 patterns"),
        ] {
            let error = Manifest::parse(json, "x").unwrap_err().to_string();
            assert!(error.contains(reason), "{json}: {error}");
        }
    }

    /// The obvious way to match, to compare the fast one with.
    fn slow_glob(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|skip| slow_glob(rest, &text[skip..])),
            Some((byte, rest)) => {
                text.split_first().is_some_and(|(first, text)| first == byte && slow_glob(rest, text))
            }
        }
    }

    proptest! {
        #[test]
        fn the_glob_agrees_with_the_obvious_one(pattern in "[ab*]{0,8}", text in "[ab]{0,10}") {
            prop_assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), slow_glob(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn any_text_is_a_pattern_or_an_error(text in "\\PC{0,40}") {
            let _ = text.parse::<Pattern>();
        }

        #[test]
        fn a_pattern_reads_back_as_it_is_shown(
            scheme in "(http|https|\\*)", below in any::<bool>(), host in "[a-z]{1,5}\\.[a-z]{2}", port in proptest::option::of(1u16..), path in "/[a-z/*?=]{0,12}",
        ) {
            let text = format!("{scheme}://{}{host}{}{path}", if below { "*." } else { "" }, port.map(|port| format!(":{port}")).unwrap_or_default());
            let pattern: Pattern = text.parse().unwrap();
            prop_assert_eq!(pattern.to_string(), text);
        }

        #[test]
        fn an_address_matches_the_pattern_made_of_it(host in "[a-z]{1,5}\\.[a-z]{2}", path in "/[a-z0-9/]{0,12}") {
            let url = format!("https://{host}{path}");
            prop_assert!(matches(&url, &url));
            let (wide, star) = (format!("*://*.{host}/*"), format!("https://{host}{path}*"));
            prop_assert!(matches(&wide, &url));
            prop_assert!(matches(&star, &url));
        }
    }
}
