use proptest::prelude::*;

use super::*;

const CLOSED: Policy = Policy { allow_private: false };
const OPEN: Policy = Policy { allow_private: true };

fn refusal(text: &str, policy: Policy) -> String {
    check(&Url::parse(text).unwrap(), policy).unwrap_err().to_string()
}

#[test]
fn the_message_names_the_address_and_the_way_out() {
    assert_eq!(
        refusal("http://127.0.0.1:8080/x", CLOSED),
        "refused http://127.0.0.1:8080/x: 127.0.0.1 is a loopback address; start the node with --allow-private-origins to \
         fetch from it"
    );
    assert_eq!(
        refusal("http://169.254.169.254/latest/meta-data", OPEN),
        "refused http://169.254.169.254/latest/meta-data: 169.254.169.254 is a link-local address; it is never fetched from"
    );
}

#[test]
fn every_spelling_of_loopback_is_loopback() {
    for text in [
        "http://127.1/",
        "http://0x7f000001/",
        "http://2130706433/",
        "http://017700000001/",
        "http://0x7f.0.0.1/",
        "http://127.0.0.1./",
        "http://127。0。0。1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://%31%32%37.1/",
    ] {
        assert!(refusal(text, CLOSED).contains("loopback"), "{text}");
        assert!(check(&Url::parse(text).unwrap(), OPEN).is_ok(), "{text}");
    }
}

#[test]
fn other_closed_hosts() {
    for text in ["http://[fc00::1]/", "http://10.1.2.3/", "http://100.64.0.1/", "http://192.168.1.1/", "http://0/"] {
        assert!(check(&Url::parse(text).unwrap(), CLOSED).is_err(), "{text}");
    }
    assert!(check(&Url::parse("https://example.org/a.mp4").unwrap(), CLOSED).is_ok());
    assert!(check(&Url::parse("http://1.1.1.1/a.mp4").unwrap(), CLOSED).is_ok());
}

#[test]
fn schemes_and_userinfo() {
    for text in ["file:///etc/passwd", "gopher://x/", "ftp://x/", "data:,x", "javascript:x"] {
        assert!(refusal(text, OPEN).contains("only http and https"), "{text}");
    }
    let message = refusal("http://example.org:secret@127.0.0.1/x", OPEN);
    assert_eq!(
        message,
        "refused http://127.0.0.1/x: the address carries a user name or password; give an Authorization header instead"
    );
}

#[test]
fn a_long_address_is_refused_and_shown_short() {
    let message = refusal(&format!("http://example.org/{}", "a".repeat(limits::FETCH_URL_BYTES)), OPEN);
    assert!(message.contains("the limit is 8192") && message.len() < 2 * SHOWN_CHARS, "{message}");
}

#[test]
fn methods_after_a_redirect() {
    assert!(becomes_get(StatusCode::SEE_OTHER, &Method::PUT));
    assert!(!becomes_get(StatusCode::SEE_OTHER, &Method::HEAD));
    assert!(becomes_get(StatusCode::FOUND, &Method::POST));
    assert!(!becomes_get(StatusCode::FOUND, &Method::PUT));
    assert!(!becomes_get(StatusCode::TEMPORARY_REDIRECT, &Method::POST));
}

#[test]
fn a_certificate_problem_is_found_however_deep_it_is_wrapped() {
    let problem = || rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
    let once = std::io::Error::new(std::io::ErrorKind::InvalidData, problem());
    assert_eq!(tls_error(&once), Some(&problem()));
    let twice = std::io::Error::other(once);
    assert_eq!(tls_error(&twice), Some(&problem()));
    assert_eq!(tls_error(&std::io::Error::other("x")), None);
}

#[tokio::test]
async fn a_name_that_resolves_to_loopback_is_refused() {
    let client = Client::new(CLOSED);
    let url = Url::parse("http://localhost:1/x").unwrap();
    let failure = client.get(&url, &HeaderMap::new(), &CancellationToken::new()).await.unwrap_err();
    assert_eq!(failure.kind, crate::error::FailureKind::Permanent);
    assert!(failure.message.starts_with("refused http://localhost:1/x: localhost resolves to "), "{failure}");
}

#[tokio::test]
async fn a_cancelled_request_ends_at_once() {
    let cancel = CancellationToken::new();
    cancel.cancel();
    let url = Url::parse("http://127.0.0.1:1/x").unwrap();
    let failure = Client::new(OPEN).get(&url, &HeaderMap::new(), &cancel).await.unwrap_err();
    assert_eq!(failure.kind, crate::error::FailureKind::Cancelled);
}

proptest! {
    /// Whatever a URL looks like, if it passes the check it names a public host by number or a host by name.
    #[test]
    fn what_passes_is_public(text in "(http|https|file|gopher)://([a-z0-9.:@\\[\\]%x-]{0,24})(:[0-9]{1,5})?/[a-z]{0,4}") {
        if let Ok(url) = Url::parse(&text) && check(&url, CLOSED).is_ok() {
            match url.host() {
                Some(Host::Ipv4(address)) => prop_assert_eq!(classify(address.into()), Class::Public),
                Some(Host::Ipv6(address)) => prop_assert_eq!(classify(address.into()), Class::Public),
                Some(Host::Domain(name)) => prop_assert!(!name.is_empty()),
                None => prop_assert!(false, "no host in {}", url),
            }
        }
    }

    #[test]
    fn every_private_literal_is_refused(bits: u32, hex: bool) {
        let address = std::net::Ipv4Addr::from(bits);
        let text = if hex { format!("http://0x{bits:x}/") } else { format!("http://{bits}/") };
        let verdict = check(&Url::parse(&text).unwrap(), CLOSED);
        prop_assert_eq!(verdict.is_ok(), classify(address.into()) == Class::Public);
    }
}
