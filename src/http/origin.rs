//! What a browser must not be made to do to a node that trusts its surroundings. Pure.
//!
//! A node on loopback without tokens trusts whoever reaches it, and every page that the machine's browser shows reaches
//! it. Two checks keep such pages out: the name it is called by must be one of this machine, or a page whose own name was
//! pointed here (DNS rebinding) would count as the node's; and what changes something must not come from another site.
//! Requests with a token of their own need neither: no page has it.

use axum::http::{HeaderMap, Method, StatusCode, Uri, Version, header};

use super::problem::Problem;
use crate::web_origin::WebOrigin;

/// Refuses a host name that is none of this machine's and not one of `known`. A client without one is no browser.
pub(super) fn check_host(uri: &Uri, headers: &HeaderMap, known: &[String]) -> Result<(), Problem> {
    let Some(authority) = authority(uri, headers) else { return Ok(()) };
    let name = host_name(authority);
    if is_local(name) || known.iter().any(|known| known.eq_ignore_ascii_case(name)) {
        return Ok(());
    }
    let shown: String = name.chars().take(100).collect();
    Err(Problem::misdirected(format!(
        "this node listens on loopback and asks for no token, so it answers only to the names of this machine, not to \
         {shown:?}; call it 127.0.0.1 or localhost, add the name to the setting `hosts`, or protect it by a token \
         (reelring token create)"
    )))
}

/// Refuses a change that a page of another site asks for. `known` are sites whose pages may.
pub(super) fn check_origin(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    known: &[WebOrigin],
) -> Result<(), Problem> {
    if method.is_safe() {
        return Ok(());
    }
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let Some(origin) = text("origin") else {
        // Browsers tell where a request comes from in one header or both.
        return match text("sec-fetch-site") {
            None | Some("same-origin" | "none") => Ok(()),
            Some(_) => Err(cross_site("another site")),
        };
    };
    let own = match text("sec-fetch-site") {
        Some(site) => site == "same-origin",
        None => origin.split_once("://").is_some_and(|(_, host)| authority(uri, headers) == Some(host)),
    };
    // The star opens reading: whoever wants every page of the web to write has to make tokens.
    let listed = |known: &WebOrigin| !known.is_any() && known.covers(origin.as_bytes());
    if own || known.iter().any(listed) { Ok(()) } else { Err(cross_site(origin)) }
}

fn cross_site(origin: &str) -> Problem {
    let shown: String = origin.chars().take(200).collect();
    Problem::forbidden(
        "cross-site",
        format!(
            "a page of {shown} asks for a change, and the node cannot know whether its user wants it; send a token \
             (Authorization: Bearer …), or add the origin to the setting `cors_origins`"
        ),
    )
}

/// Refuses a request that two readers could read in two ways, and that the reader of messages has let through: a proxy in
/// front may have read the other one.
pub(super) fn check_one_meaning(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    if version >= Version::HTTP_2 {
        return check_fields(uri, headers);
    }
    // One is needed since HTTP/1.1 (RFC 9112, section 3.2).
    let hosts = headers.get_all(header::HOST).iter().count();
    if hosts != 1 && hosts != usize::from(version == Version::HTTP_11) {
        return Err(Problem::bad_request("host", format!("the request has {hosts} Host headers; send one")));
    }
    // Of other codings only the chunks would be taken off, and the rest stored (RFC 9112, section 6.1).
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => Ok(()),
        (Some(coding), _) => Err(Problem::new(
            StatusCode::NOT_IMPLEMENTED,
            "transfer-coding",
            format!(
                "Transfer-Encoding {coding:?} is not spoken here; send the body in chunks alone, or with its length"
            ),
        )),
    }
}

/// What makes a request of HTTP/2 malformed and is not seen below: two names for the node (RFC 9113, section 8.3.1), a
/// value with blanks at its ends (8.2.1).
fn check_fields(uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    let name = |authority: &str| authority.strip_suffix(":443").unwrap_or(authority).to_ascii_lowercase();
    let mut hosts = headers.get_all(header::HOST).iter();
    if let Some(authority) = uri.authority()
        && hosts.any(|host| host.to_str().map_or(true, |host| name(host) != name(authority.as_str())))
    {
        return Err(Problem::bad_request("host", "Host is not what :authority says; send one of them"));
    }
    match headers.iter().find(|(_, value)| value.as_bytes().trim_ascii().len() != value.len()) {
        None => Ok(()),
        Some((name, _)) => {
            Err(Problem::bad_request("header", format!("{name} begins or ends with a blank; send it without")))
        }
    }
}

/// What the request line says or HTTP/2, else Host (RFC 9112, section 3.2.2).
fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    let host = || headers.get(header::HOST).map(|value| value.to_str().unwrap_or("?"));
    uri.authority().map(|authority| authority.as_str()).or_else(host).filter(|host| !host.is_empty())
}

/// Without the port, and without the brackets of an IPv6 address.
fn host_name(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    }
}

fn is_local(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    match name.parse::<std::net::IpAddr>() {
        // An address is nobody's to point elsewhere; another machine's reaches us by a forwarded port.
        Ok(_) => true,
        Err(_) => {
            let name = name.to_ascii_lowercase();
            name == "localhost" || name.ends_with(".localhost")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| ((*name).parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_names_of_this_machine_and_known_ones() {
        let known = ["media.example.org".to_string()];
        let check = |host: &str| check_host(&Uri::from_static("/"), &headers(&[("host", host)]), &known).is_ok();
        for host in ["127.0.0.1:8080", "[::1]:8080", "localhost", "LOCALHOST:1", "a.localhost:1", "10.0.0.7:8080"] {
            assert!(check(host), "{host}");
        }
        assert!(check("media.example.org") && check("Media.Example.ORG:443"));
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8080", "xlocalhost", "[::1"] {
            assert_eq!(check(host), host == "[::1", "{host}");
        }
        assert!(check_host(&Uri::from_static("/"), &HeaderMap::new(), &[]).is_ok());
        let two = Uri::from_static("https://evil.example/v1/objects");
        assert!(check_host(&two, &HeaderMap::new(), &[]).is_err(), "HTTP/2 has no Host");
        assert!(check_host(&two, &headers(&[("host", "localhost")]), &[]).is_err(), "the whole address counts");
    }

    #[test]
    fn a_request_says_once_whom_it_is_for() {
        let check = |version, hosts: usize| {
            let mut headers = HeaderMap::new();
            (0..hosts).for_each(|_| _ = headers.append(header::HOST, "x".parse().unwrap()));
            check_one_meaning(version, &Uri::from_static("/"), &headers).is_ok()
        };
        assert!(check(Version::HTTP_11, 1) && !check(Version::HTTP_11, 0) && !check(Version::HTTP_11, 2));
        assert!(check(Version::HTTP_10, 0) && check(Version::HTTP_10, 1) && !check(Version::HTTP_10, 2));
        assert!(check(Version::HTTP_2, 0));
        let check = |authority: &'static str, more: &[(&'static str, &str)]| {
            check_one_meaning(Version::HTTP_2, &Uri::from_static(authority), &headers(more)).is_ok()
        };
        assert!(check("https://a.example/", &[("host", "A.example:443")]));
        assert!(!check("https://a.example/", &[("host", "b.example")]));
        assert!(check("/", &[("host", "b.example"), ("x", "a b"), ("y", "")]));
        assert!(!check("/", &[("x", "a ")]) && !check("/", &[("x", "\ta")]));
    }

    #[test]
    fn a_body_is_chunked_and_nothing_else() {
        let check = |codings: &[&str]| {
            let mut all = headers(&[("host", "x")]);
            codings.iter().for_each(|coding| _ = all.append(header::TRANSFER_ENCODING, coding.parse().unwrap()));
            check_one_meaning(Version::HTTP_11, &Uri::from_static("/"), &all).is_ok()
        };
        assert!(check(&[]) && check(&["chunked"]) && check(&["Chunked"]));
        for bad in [&["gzip, chunked"][..], &["gzip", "chunked"], &["chunked", "chunked"], &["identity"], &[""]] {
            assert!(!check(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_change_must_not_come_from_another_site() {
        let known = ["https://app.example".parse().unwrap()];
        let check = |method: Method, more: &[(&'static str, &str)]| {
            let headers = headers(&[&[("host", "127.0.0.1:8080")], more].concat());
            check_origin(&method, &Uri::from_static("/"), &headers, &known).is_ok()
        };
        assert!(check(Method::PUT, &[]), "no browser");
        assert!(check(Method::PUT, &[("origin", "http://127.0.0.1:8080")]));
        assert!(check(Method::PUT, &[("origin", "https://app.example"), ("sec-fetch-site", "cross-site")]));
        assert!(check(Method::POST, &[("sec-fetch-site", "same-origin")]));
        assert!(check(Method::GET, &[("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")]));
        for bad in ["https://evil.example", "null", "http://127.0.0.1:8081", "http://127.0.0.1:8080.evil.example"] {
            assert!(!check(Method::DELETE, &[("origin", bad)]), "{bad}");
        }
        assert!(!check(Method::POST, &[("sec-fetch-site", "cross-site")]));
        assert!(!check(Method::POST, &[("sec-fetch-site", "same-site"), ("origin", "http://127.0.0.1:9")]));
    }
}
