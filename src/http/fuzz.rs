//! Noise for every parser of what clients send: none panics, and what they let through keeps its bounds.
//!
//! For `REELRING_FUZZ_SECONDS` (2 by default), from `REELRING_FUZZ_SEED` (a new one by default, told when a test fails).

use std::time::{Duration, Instant, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Version, header};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reelring_storage::{Key, Precondition};

use super::range::Asked;
use super::{access, conditional, digest, disposition, index, range, uploads};
use crate::access::Signature;
use crate::web_origin::WebOrigin;
use crate::{limits, media_type};
use words::{NAMES, UPLOADING, noise, pick};

#[path = "../../tests/support/words.rs"]
mod words;

/// A head with some of these headers that are noise, as far as HTTP can carry it.
fn head(random: &mut StdRng, names: &[&'static str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for _ in 0..random.random_range(0..6) {
        let mut value = noise(random);
        value.retain(|byte| *byte == b'\t' || !byte.is_ascii_control());
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            headers.append(HeaderName::from_static(pick(random, names)), value);
        }
    }
    headers
}

/// What a request may lead to, whatever it says.
fn judge(random: &mut StdRng) {
    let headers = head(random, NAMES);
    let length = match random.random_range(0..4) {
        0 => random.random_range(0..3),
        1 => random.random_range(0..1_000),
        2 => 1 << 40,
        _ => u64::MAX,
    };
    if let Asked::Parts(mut parts) = range::of(&headers, length) {
        assert!((1..=limits::HTTP_RANGES).contains(&parts.len()));
        assert!(parts.iter().all(|part| part.start < part.end && part.end <= length), "{parts:?} of {length}");
        parts.sort_by_key(|part| part.start);
        assert!(parts.windows(2).all(|pair| pair[0].end <= pair[1].start), "a byte twice: {parts:?}");
    }

    let modified = UNIX_EPOCH + Duration::from_secs(784_111_777);
    let etag = "\"0707070707070707070707070707070707070707070707070707070707070707\"";
    conditional::evaluate(&headers, etag, modified);
    let counts = conditional::range_counts(&headers, etag, modified);
    assert!(counts || headers.contains_key(header::IF_RANGE));
    // A write with a condition is never a write without one, unless the RFC says that it is to be ignored: a date that is none.
    if let Ok(Precondition::None) = conditional::precondition(&headers) {
        assert!(!headers.contains_key(header::IF_MATCH) && !headers.contains_key(header::IF_NONE_MATCH));
    }

    if let Ok(mut expected) = digest::Expected::from_headers(&headers) {
        expected.update(b"x");
        let _ = expected.verify();
    }
    let sent = digest::of_object(&headers, Some([7; 32]));
    assert!(sent.is_some() || headers.contains_key("want-repr-digest"));
    index::wants_json(&headers);
    if let Ok(found) = access::bearer(&headers) {
        assert_eq!(found.is_some(), headers.contains_key(header::AUTHORIZATION));
    }

    let text = noise(random);
    let text = String::from_utf8_lossy(&text);
    if let Some(value) = disposition::attachment(Some(&text), &Key::parse("a/b").unwrap()) {
        assert!(value.len() < 3_000 && value.as_bytes().starts_with(b"attachment"), "{value:?}");
        assert!(value.as_bytes().iter().all(|byte| (b' '..=b'~').contains(byte)), "{value:?}");
    }
    let bytes = noise(random);
    if let Some(kind) = media_type::of(Some(&text), &String::from_utf8_lossy(&bytes), &bytes) {
        assert!(kind.len() <= media_type::TYPE_BYTES && HeaderValue::from_str(&kind).is_ok(), "{kind:?}");
    }
    if let Some(found) = media_type::by_bytes(&bytes) {
        assert!(!found.contains("html") && !found.contains("svg") && !found.contains("script"), "{found}");
    }
    if let Ok(origin) = text.parse::<WebOrigin>() {
        assert!(origin.is_any() || !origin.covers(b"null"), "{origin}");
        assert_eq!(origin.as_str().parse().as_ref(), Ok(&origin), "written as it is read");
    }
    if let Ok(signature) = Signature::parse(&text) {
        assert_eq!(signature.to_string(), text, "written as it is read");
    }
    if let Ok(uri) = format!("/v1/objects/{text}").parse::<axum::http::Uri>()
        && let Ok(key) = super::objects::key_of(&uri)
    {
        assert!(!key.as_str().split('/').any(|part| part == ".." || part == "."), "{key}");
    }
}

/// The same of a request for an upload, in a dialect that it may have said.
fn judge_upload(random: &mut StdRng) {
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = pick(random, &[&Method::POST, &Method::PATCH, &Method::HEAD]).clone();
    parts.version = pick(random, &[Version::HTTP_11, Version::HTTP_2]);
    parts.headers = head(random, UPLOADING);
    parts.headers.extend(head(random, NAMES));
    let said = [
        (header::CONTENT_TYPE, "application/partial-upload"),
        (header::CONTENT_TYPE, "application/offset+octet-stream"),
        (HeaderName::from_static("tus-resumable"), "1.0.0"),
        (HeaderName::from_static("upload-complete"), "?1"),
        (HeaderName::from_static("upload-defer-length"), "1"),
        (HeaderName::from_static("trailer"), "upload-checksum"),
    ];
    for (name, value) in said {
        if random.random_ratio(1, 2) {
            parts.headers.insert(name, HeaderValue::from_static(value));
        }
    }
    uploads::read(&parts);
}

#[test]
fn parsers_withstand_a_fuzz() {
    let seconds = std::env::var("REELRING_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let seed: u64 =
        std::env::var("REELRING_FUZZ_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    let begun = Instant::now();
    let mut random = StdRng::seed_from_u64(seed);
    let mut rounds: u64 = 0;
    // Told only when it fails; the round says how far the seed had come.
    let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        while begun.elapsed() < Duration::from_secs(seconds) {
            for _ in 0..100 {
                judge(&mut random);
                judge_upload(&mut random);
                rounds += 1;
            }
        }
    }));
    eprintln!("seed {seed}: {rounds} heads in {:?}", begun.elapsed());
    if let Err(panic) = told {
        std::panic::resume_unwind(panic);
    }
    assert!(rounds > 0);
}
