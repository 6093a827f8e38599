use reqwest::header::{HeaderName, HeaderValue};
use url::Url;

use super::*;

const ETAG: &str = "\"v1\"";
const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

fn note(etag: Option<&str>, date: Option<&str>, total: Option<u64>) -> Note {
    let url = Url::parse("http://o/a").unwrap();
    let validators =
        Validators { etag: etag.map(Into::into), last_modified: date.map(Into::into), date_is_strong: true };
    Note {
        url: url.clone(),
        final_url: url,
        validators,
        total,
        content_type: None,
        file_name: "a".into(),
        sha256: None,
    }
}

fn map(list: &[(&'static str, &str)]) -> HeaderMap {
    list.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())).collect()
}

/// The verdict on an answer when 40 of 100 bytes of version `"v1"` are held.
fn with_40(ask: Ask, status: u16, declared: Option<u64>, headers: &[(&'static str, &str)]) -> Verdict {
    held_by(&note(Some(ETAG), Some(DATE), Some(100)), 40, ask, status, declared, headers)
}

fn held_by(
    note: &Note,
    length: u64,
    ask: Ask,
    status: u16,
    declared: Option<u64>,
    headers: &[(&'static str, &str)],
) -> Verdict {
    let headers = map(headers);
    let status = StatusCode::from_u16(status).unwrap();
    let answer = Answer { status, headers: &headers, declared, now: SystemTime::now() };
    judge(ask, Some(Held { note, length }), answer)
}

fn from_nothing(status: u16, declared: Option<u64>, headers: &[(&'static str, &str)]) -> Verdict {
    let headers = map(headers);
    let status = StatusCode::from_u16(status).unwrap();
    judge(Ask::Whole, None, Answer { status, headers: &headers, declared, now: SystemTime::now() })
}

fn is_restart(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Restart(_))
}

fn is_refusal(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Refuse(_))
}

#[test]
fn the_rest_is_appended_when_everything_agrees() {
    let good = Verdict::Append { end: 100, total: Some(100) };
    assert_eq!(with_40(Ask::Rest, 206, Some(60), &[("content-range", "bytes 40-99/100"), ("etag", ETAG)]), good);
    assert_eq!(with_40(Ask::Probe, 206, None, &[("content-range", "bytes 40-99/*"), ("last-modified", DATE)]), good);
    let part = Verdict::Append { end: 50, total: Some(100) };
    assert_eq!(with_40(Ask::Rest, 206, Some(10), &[("content-range", "bytes 40-49/100"), ("etag", ETAG)]), part);
}

#[test]
fn a_206_that_does_not_fit_starts_again() {
    for (declared, range, etag) in [
        (Some(60), "bytes 0-59/100", ETAG),
        (Some(60), "bytes 41-99/100", ETAG),
        (Some(60), "bytes 40-99/101", ETAG),
        (Some(61), "bytes 40-100/*", ETAG),
        (Some(60), "bytes 40-99/100", "\"v2\""),
        (Some(60), "bytes 40-99/100", "W/\"v1\""),
        (Some(59), "bytes 40-99/100", ETAG),
        (Some(60), "bytes=40-99/100", ETAG),
    ] {
        let verdict = with_40(Ask::Rest, 206, declared, &[("content-range", range), ("etag", etag)]);
        assert!(is_restart(verdict.clone()), "{range} {etag}: {verdict:?}");
    }
    assert!(is_restart(with_40(Ask::Rest, 206, Some(60), &[("content-range", "bytes 40-99/100")])), "no validator");
    assert!(is_restart(with_40(Ask::Rest, 206, Some(60), &[("etag", ETAG)])), "no range");
    let multipart = [("content-type", "multipart/byteranges; boundary=x"), ("etag", ETAG)];
    assert!(is_restart(with_40(Ask::Rest, 206, None, &multipart)));
}

#[test]
fn a_200_of_the_same_version_is_probed_once() {
    let same = [("etag", ETAG)];
    assert_eq!(with_40(Ask::Rest, 200, Some(100), &same), Verdict::Probe);
    assert_eq!(with_40(Ask::Probe, 200, Some(100), &same), Verdict::Fresh { total: Some(100) });
    let no_ranges = [("etag", ETAG), ("accept-ranges", "none")];
    assert_eq!(with_40(Ask::Rest, 200, Some(100), &no_ranges), Verdict::Fresh { total: Some(100) });
}

#[test]
fn a_200_of_another_version_is_taken_from_the_start() {
    for headers in [vec![("etag", "\"v2\"")], vec![("last-modified", "Mon, 07 Nov 1994 08:49:37 GMT")], vec![]] {
        assert_eq!(with_40(Ask::Rest, 200, Some(100), &headers), Verdict::Fresh { total: Some(100) }, "{headers:?}");
    }
    assert_eq!(with_40(Ask::Rest, 200, Some(101), &[("etag", ETAG)]), Verdict::Fresh { total: Some(101) });
}

#[test]
fn a_416_completes_only_what_it_proves() {
    let whole = note(Some(ETAG), None, None);
    let answer = |headers: &[(&'static str, &str)]| held_by(&whole, 100, Ask::Rest, 416, Some(0), headers);
    assert_eq!(answer(&[("content-range", "bytes */100"), ("etag", ETAG)]), Verdict::Complete);
    assert_eq!(answer(&[("content-range", "bytes */100")]), Verdict::Confirm);
    assert!(is_restart(answer(&[("content-range", "bytes */100"), ("etag", "\"v2\"")])));
    assert!(is_restart(answer(&[("content-range", "bytes */99"), ("etag", ETAG)])));
    assert!(is_restart(answer(&[("etag", ETAG)])));
    assert!(is_restart(with_40(Ask::Rest, 416, Some(0), &[("content-range", "bytes */40"), ("etag", ETAG)])));
    assert!(is_refusal(from_nothing(416, None, &[])));
}

#[test]
fn a_head_confirms_by_length_and_version() {
    let whole = note(Some(ETAG), None, None);
    let held = Held { note: &whole, length: 100 };
    let says = |status: u16, headers: &[(&'static str, &str)]| {
        let (headers, status) = (map(headers), StatusCode::from_u16(status).unwrap());
        confirms(held, Answer { status, headers: &headers, declared: None, now: SystemTime::now() })
    };
    assert!(says(200, &[("content-length", "100"), ("etag", ETAG)]));
    assert!(!says(200, &[("content-length", "101"), ("etag", ETAG)]));
    assert!(!says(200, &[("content-length", "100")]));
    assert!(!says(405, &[("content-length", "100"), ("etag", ETAG)]));
}

#[test]
fn first_answers() {
    assert_eq!(from_nothing(200, Some(5), &[]), Verdict::Fresh { total: Some(5) });
    assert_eq!(from_nothing(200, None, &[]), Verdict::Fresh { total: None });
    assert!(is_refusal(from_nothing(200, Some(0), &[])));
    assert!(is_refusal(from_nothing(200, Some(limits::OBJECT_BYTES + 1), &[])));
    assert!(is_refusal(from_nothing(200, Some(5), &[("content-encoding", "gzip")])));
    assert_eq!(from_nothing(200, Some(5), &[("content-encoding", "identity")]), Verdict::Fresh { total: Some(5) });
    for status in [204, 206, 304, 400, 401, 403, 404, 410, 412, 451, 501] {
        assert!(is_refusal(from_nothing(status, None, &[])), "{status}");
    }
}

#[test]
fn some_refusals_pass() {
    for status in [408, 425, 429, 500, 502, 503, 504, 520] {
        let verdict = from_nothing(status, None, &[("retry-after", "3")]);
        let Verdict::Later { after, .. } = verdict else { panic!("{status}: {verdict:?}") };
        assert_eq!(after, Some(Duration::from_secs(3)));
    }
}
