use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn name(text: &str) -> TokenName {
    TokenName::parse(text).unwrap()
}

fn scopes(text: &str) -> Scopes {
    text.parse().unwrap()
}

fn in_an_hour() -> Timestamp {
    Timestamp::now() + Duration::from_secs(3600)
}

fn get() -> Methods {
    Methods::of(["GET"]).unwrap()
}

#[test]
fn a_token_works_until_it_is_revoked_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let access = Access::open(dir.path()).unwrap();
    assert!(!access.has_tokens());
    let made = access.create(name("web"), scopes("read"), None).unwrap();
    assert!(access.has_tokens());
    for access in [&access, &Access::open(dir.path()).unwrap()] {
        let found = access.authenticate(&made.bearer).unwrap();
        assert_eq!((found.id, found.scopes), (made.token.id.clone(), scopes("read")));
    }
    assert!(matches!(access.create(name("web"), scopes("admin"), None), Err(AccessError::Named { .. })));
    assert_eq!(access.revoke("nobody").unwrap().map(|token| token.id), None);
    assert_eq!(access.revoke("web").unwrap().unwrap().id, made.token.id);
    assert_eq!(access.authenticate(&made.bearer).map(|_| ()), Err(Refusal::Unknown));
    assert!(!Access::open(dir.path()).unwrap().has_tokens());
}

#[test]
fn the_file_is_the_owners_alone_and_has_no_secret_of_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let access = Access::open(dir.path()).unwrap();
    let made = access.create(name("web"), scopes("read"), None).unwrap();
    let path = dir.path().join(file::NAME);
    let text = std::fs::read_to_string(&path).unwrap();
    let secret = made.bearer.rsplit('_').next().unwrap();
    assert!(!text.contains(secret) && text.contains(made.token.id.as_str()), "{text}");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_file_that_cannot_be_understood_is_an_error_and_never_an_open_node() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(file::NAME);
    let access = Access::open(dir.path()).unwrap();
    let made = access.create(name("web"), scopes("read"), None).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let twice = {
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let token = value["tokens"][0].clone();
        value["tokens"].as_array_mut().unwrap().push(token);
        value.to_string()
    };
    let long = " ".repeat(limits::TOKENS_FILE_BYTES as usize + 1);
    for bad in ["", "{}", &text[..text.len() / 2], &text.replace("\"version\": 1", "\"version\": 2"), &twice, &long] {
        std::fs::write(&path, bad).unwrap();
        let error = Access::open(dir.path()).err().expect("an error").to_string();
        assert!(error.contains("access.json"), "{error}");
        // Whoever holds tokens already keeps them.
        assert!(access.reload().is_err());
        assert!(access.authenticate(&made.bearer).is_ok());
    }
    std::fs::write(&path, &text).unwrap();
    assert_eq!(access.reload().unwrap(), 1);
}

#[test]
fn an_expired_token_is_refused_and_keeps_the_node_shut() {
    let dir = tempfile::tempdir().unwrap();
    let access = Access::open(dir.path()).unwrap();
    let made = access.create(name("web"), scopes("read"), Some(in_an_hour())).unwrap();
    assert!(matches!(
        access.create(name("late"), scopes("read"), Some(Timestamp::UNIX_EPOCH)),
        Err(AccessError::Expired { .. })
    ));
    let path = dir.path().join(file::NAME);
    let mut stored: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    stored["tokens"][0]["expires_at"] = "2020-01-01T00:00:00Z".into();
    std::fs::write(&path, stored.to_string()).unwrap();
    access.reload().unwrap();
    assert!(matches!(access.authenticate(&made.bearer), Err(Refusal::Expired(_))));
    assert!(access.has_tokens());
}

#[test]
fn a_signature_is_for_its_path_its_method_and_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let access = Access::open(dir.path()).unwrap();
    let path: &[u8] = b"/v1/objects/films/a.mp4";
    let exact = access.sign(None, get(), Cover::Exact, path, in_an_hour()).unwrap().to_string();
    assert!(access.verify(&exact, "GET", path).is_ok() && access.verify(&exact, "HEAD", path).is_ok());
    assert!(matches!(access.verify(&exact, "PUT", path), Err(Refusal::Method { .. })));
    for other in [&b"/v1/objects/films/a.mp"[..], b"/v1/objects/films/a.mp4x", b"/v1/objects/films/b.mp4", b""] {
        assert_eq!(access.verify(&exact, "GET", other).map(|_| ()), Err(Refusal::Signature));
    }
    let films = b"/v1/objects/films/";
    let under = access.sign(None, get(), Cover::Prefix(films.len() as u16), films, in_an_hour()).unwrap().to_string();
    assert!(access.verify(&under, "GET", path).is_ok() && access.verify(&under, "GET", films).is_ok());
    for other in [&b"/v1/objects/films"[..], b"/v1/objects/filmsx/a.mp4", b"/v1/objects/other/a.mp4"] {
        assert_eq!(access.verify(&under, "GET", other).map(|_| ()), Err(Refusal::Signature));
    }
    let past = access.sign(None, get(), Cover::Exact, path, Timestamp::now() - Duration::from_secs(1)).unwrap();
    assert!(matches!(access.verify(&past.to_string(), "GET", path), Err(Refusal::SignatureExpired(_))));
    let far = Timestamp::now() + Duration::from_secs((limits::SIGNATURE_DAYS + 1) * 86_400);
    assert!(matches!(access.sign(None, get(), Cover::Exact, path, far), Err(AccessError::TooLong { .. })));
    assert!(!access.has_tokens(), "the node's own signer cannot be presented");
}

#[test]
fn a_signature_dies_with_its_token_and_another_node_knows_none_of_it() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [access, foreign] = [0, 1].map(|at| Access::open(dirs[at].path()).unwrap());
    let path = b"/v1/objects/a";
    let reader = access.create(name("web"), scopes("read"), None).unwrap().token;
    let signed = access.sign(Some(&reader.id), get(), Cover::Exact, path, in_an_hour()).unwrap().to_string();
    let put = Methods::of(["PUT"]).unwrap();
    let refused = access.sign(Some(&reader.id), put, Cover::Exact, path, in_an_hour());
    assert!(matches!(refused, Err(AccessError::Scope { needs: Scope::Write, .. })));
    assert_eq!(access.verify(&signed, "GET", path).unwrap().id, reader.id);
    assert_eq!(foreign.verify(&signed, "GET", path).map(|_| ()), Err(Refusal::Signature));
    access.revoke(reader.id.as_str()).unwrap();
    assert_eq!(access.verify(&signed, "GET", path).map(|_| ()), Err(Refusal::Signature));
    assert!(matches!(
        access.sign(Some(&reader.id), get(), Cover::Exact, path, in_an_hour()),
        Err(AccessError::Gone { .. })
    ));
    // Both sign themselves under the same name, with keys of their own.
    let of_node = access.sign(None, get(), Cover::Exact, path, in_an_hour()).unwrap().to_string();
    assert!(foreign.sign(None, get(), Cover::Exact, path, in_an_hour()).is_ok());
    assert_eq!(foreign.verify(&of_node, "GET", path).map(|_| ()), Err(Refusal::Signature));
}

/// Made with another program: `printf 'reelring-url-1\n…' | openssl dgst -sha256 -hmac 0707…`
#[test]
fn the_signature_is_the_documented_one() {
    let key = token::SigningKey::of(7);
    let id = TokenId::parse("0123456789abcdef").unwrap();
    let signed = Signature::sign(&key, id, 1_800_000_000, get(), Cover::Exact, b"/v1/objects/a b");
    assert_eq!(signed.to_string(), KNOWN);
}

const KNOWN: &str = "1.0123456789abcdef.1800000000.GET.exact.UyKVGxAIFn1bYPbn8sYbXHDI7UAIU-92zYLAufVDhRM";

fn signature() -> impl Strategy<Value = Signature> {
    let methods = prop::sample::subsequence(vec!["GET", "PUT", "DELETE"], 1..=3);
    let cover = prop_oneof![Just(Cover::Exact), (1..=u16::MAX).prop_map(Cover::Prefix)];
    ("[0-9a-f]{16}", 1..100_000_000_000u64, methods, cover, any::<u8>()).prop_map(
        |(id, expires_s, methods, cover, key)| {
            let id = TokenId::parse(&id).unwrap();
            let methods = Methods::of(methods).unwrap();
            let resource = vec![b'/'; 70_000];
            Signature::sign(&token::SigningKey::of(key), id, expires_s, methods, cover, &resource)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_back(signature in signature()) {
        prop_assert_eq!(Signature::parse(&signature.to_string()), Ok(signature));
    }

    /// No two texts are one signature: nobody can respell a valid one.
    #[test]
    fn a_signature_has_one_spelling(text in "[0-9a-zA-Z._+-]{0,140}|1\\.[0-9a-f]{16}\\.[0-9]{1,12}\\.(GET|PUT|DELETE|-){1,4}\\.(exact|0?[0-9]{1,5})\\.[A-Za-z0-9_-]{42,44}") {
        if let Ok(parsed) = Signature::parse(&text) {
            prop_assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn foreign_bytes_never_panic(text in "\\PC*") {
        let _ = Signature::parse(&text);
        let _ = token::Secret::parse(&text);
    }

    /// One character changed anywhere makes it unreadable or wrong.
    #[test]
    fn an_altered_signature_does_not_fit(signature in signature(), at in any::<prop::sample::Index>(), with in "[0-9a-zA-Z._-]") {
        // The strategy signs with one of 256 keys of equal bytes; which one does not matter here.
        let resource = vec![b'/'; 70_000];
        let key = token::SigningKey::of(9);
        let text = Signature::sign(&key, signature.key, 1_800_000_000, signature.methods, signature.cover, &resource).to_string();
        let mut altered = text.clone();
        let at = at.index(text.len());
        altered.replace_range(at..=at, &with);
        if altered != text && let Ok(parsed) = Signature::parse(&altered) {
            // Another key's id is looked up and has another key; everything else is under the code.
            prop_assert!(parsed.key.as_str() != &text[2..18] || !parsed.fits(&key, &resource), "{altered}");
        }
    }
}
