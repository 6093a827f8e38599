//! What a caller's headers may say, and what survives a redirect to another origin.

use reqwest::header::{self, HeaderMap, HeaderValue};
use url::Url;

/// Headers the client itself speaks for. A caller's value would desynchronise the connection (framing), dress one host up
/// as another (`Host`) or bring bytes that nobody decodes (`Accept-Encoding`); it is dropped.
const OWN: &[&str] = &[
    "host",
    "connection",
    "keep-alive",
    "content-length",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "accept-encoding",
    "proxy-authorization",
    "proxy-connection",
];

/// Headers meant for the origin they were given for.
const SECRET: &[&str] = &["cookie", "cookie2", "authorization"];

/// A caller's headers as they go out on the first hop.
pub fn outgoing(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    for name in OWN {
        headers.remove(*name);
    }
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.entry(header::ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    headers
        .entry(header::USER_AGENT)
        .or_insert(HeaderValue::from_static(concat!("reelring/", env!("CARGO_PKG_VERSION"))));
    headers
}

/// Drops the secrets when a redirect leaves the origin (scheme, host and port). They stay dropped for the rest of the
/// chain, even if it comes back.
pub fn follow(headers: &mut HeaderMap, from: &Url, to: &Url) {
    if from.origin() != to.origin() {
        for name in SECRET {
            headers.remove(*name);
        }
    }
}

/// Names and values together.
pub fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderName;

    fn map(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn framing_and_host_are_not_the_callers() {
        let out =
            outgoing(&map(&[("host", "internal"), ("content-length", "5"), ("accept-encoding", "gzip"), ("x", "y")]));
        assert!(!out.contains_key("host") && !out.contains_key("content-length"));
        assert_eq!(out["accept-encoding"], "identity");
        assert_eq!(out["x"], "y");
    }

    #[test]
    fn the_callers_user_agent_wins() {
        assert_eq!(outgoing(&map(&[("user-agent", "browser")]))["user-agent"], "browser");
        assert!(outgoing(&HeaderMap::new())["user-agent"].to_str().unwrap().starts_with("reelring/"));
    }

    #[test]
    fn secrets_stay_with_their_origin() {
        let secrets = map(&[("cookie", "a=b"), ("authorization", "Bearer t"), ("referer", "r")]);
        let url = |text| Url::parse(text).unwrap();
        for (from, to, kept) in [
            ("https://a.example/x", "https://a.example/y", true),
            ("https://a.example/x", "https://a.example:443/y", true),
            ("https://a.example/x", "https://cdn.a.example/y", false),
            ("https://a.example/x", "http://a.example/y", false),
            ("https://a.example/x", "https://a.example:8443/y", false),
        ] {
            let mut headers = secrets.clone();
            follow(&mut headers, &url(from), &url(to));
            assert_eq!(headers.contains_key("cookie"), kept, "{to}");
            assert_eq!(headers.contains_key("authorization"), kept, "{to}");
            assert!(headers.contains_key("referer"));
        }
    }

    #[test]
    fn a_line_break_is_no_header_value() {
        assert!(HeaderValue::from_str("a\r\nX-Injected: 1").is_err());
        assert!(HeaderName::from_bytes(b"x\r\ny").is_err());
    }
}
