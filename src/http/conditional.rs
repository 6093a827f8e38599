//! Conditional requests (RFC 9110, section 13), in its order of precedence.
//!
//! The entity tag is the object's BLAKE3 hash in hexadecimal, always strong. A condition that cannot be read never lets a
//! write through; on a read it is as if the client knew nothing.
//!
//! A date stands for a version only because the catalog lets no two versions of an object, one after the other, have the
//! same second (`objects::put`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderName, header};
use reelring_storage::{ObjectRecord, Precondition};

use super::problem::Problem;

pub(super) fn etag(object: &ObjectRecord) -> String {
    ["\"", blake3::Hash::from_bytes(object.blake3).to_hex().as_str(), "\""].concat()
}

/// Modification time in whole seconds, as HTTP dates have it.
pub(super) fn modified(object: &ObjectRecord) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs((object.modified_ms / 1000).max(0) as u64)
}

/// What the conditions of a GET or HEAD decide.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Send,
    NotModified,
    Failed,
}

/// For an object that exists: conditions say nothing about one that does not.
pub(super) fn evaluate(headers: &HeaderMap, etag: &str, modified: SystemTime) -> Decision {
    if let Some(tags) = Tags::of(headers, header::IF_MATCH) {
        if !tags.is_some_and(|tags| tags.has(etag, Comparison::Strong)) {
            return Decision::Failed;
        }
    } else if let Some(date) = date(headers, header::IF_UNMODIFIED_SINCE)
        && modified > date
    {
        return Decision::Failed;
    }
    if let Some(tags) = Tags::of(headers, header::IF_NONE_MATCH) {
        if tags.is_some_and(|tags| tags.has(etag, Comparison::Weak)) {
            return Decision::NotModified;
        }
    } else if let Some(date) = date(headers, header::IF_MODIFIED_SINCE)
        && modified <= date
    {
        return Decision::NotModified;
    }
    Decision::Send
}

/// Whether `Range` counts: without `If-Range`, or when its validator still holds.
pub(super) fn range_counts(headers: &HeaderMap, etag: &str, modified: SystemTime) -> bool {
    let mut lines = headers.get_all(header::IF_RANGE).iter();
    match (lines.next().map(|line| line.to_str()), lines.next()) {
        (None, _) => true,
        (Some(Ok(tag)), None) if tag.ends_with('"') => tag == etag,
        (Some(Ok(date)), None) => httpdate::parse_http_date(date).is_ok_and(|date| date == modified),
        _ => false,
    }
}

/// The condition of a PUT or DELETE, for the catalog to check in the transaction that writes.
pub(super) fn precondition(headers: &HeaderMap) -> Result<Precondition, Problem> {
    let read = |name: HeaderName| match Tags::of(headers, name.clone()) {
        None => Ok(None),
        Some(Some(tags)) => Ok(Some(tags)),
        Some(None) => Err(Problem::bad_request(
            "invalid-condition",
            format!("{name} is neither * nor a list of entity tags in quotes; nothing was changed"),
        )),
    };
    let mut all = Vec::new();
    match read(header::IF_MATCH)? {
        Some(Tags::Any) => all.push(Precondition::IfMatchAny),
        Some(Tags::List(tags)) => {
            all.push(Precondition::IfMatch(tags.iter().filter(|tag| !tag.weak).filter_map(Tag::hash).collect()));
        }
        // Left out beside If-Match, which says it better.
        None => all.extend(date(headers, header::IF_UNMODIFIED_SINCE).map(|date| {
            let since = date.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            Precondition::IfUnmodifiedSince(since as i64)
        })),
    }
    match read(header::IF_NONE_MATCH)? {
        Some(Tags::Any) => all.push(Precondition::IfNoneMatchAny),
        Some(Tags::List(tags)) => {
            all.push(Precondition::IfNoneMatch(tags.iter().filter_map(Tag::hash).collect()));
        }
        None => {}
    }
    Ok(match all.len() {
        0 => Precondition::None,
        1 => all.remove(0),
        _ => Precondition::All(all),
    })
}

enum Comparison {
    Strong,
    Weak,
}

/// The value of `If-Match` or `If-None-Match`.
#[derive(Debug, PartialEq)]
enum Tags<'a> {
    Any,
    List(Vec<Tag<'a>>),
}

#[derive(Debug, PartialEq)]
struct Tag<'a> {
    weak: bool,
    /// With its quotes.
    opaque: &'a [u8],
}

impl<'a> Tags<'a> {
    /// `None` without the header, `Some(None)` when it cannot be read.
    fn of(headers: &'a HeaderMap, name: HeaderName) -> Option<Option<Tags<'a>>> {
        let mut lines = headers.get_all(name).iter().peekable();
        lines.peek()?;
        let mut tags = Vec::new();
        for line in lines.by_ref() {
            if line.as_bytes().trim_ascii() == b"*" {
                // Alone, or it is a contradiction.
                return Some((tags.is_empty() && lines.next().is_none()).then_some(Tags::Any));
            }
            if read_list(line.as_bytes(), &mut tags).is_none() {
                return Some(None);
            }
        }
        Some(Some(Tags::List(tags)))
    }

    fn has(&self, etag: &str, comparison: Comparison) -> bool {
        match self {
            Tags::Any => true,
            Tags::List(tags) => tags
                .iter()
                .any(|tag| tag.opaque == etag.as_bytes() && (!tag.weak || matches!(comparison, Comparison::Weak))),
        }
    }
}

impl Tag<'_> {
    /// The hash, if the tag is one that [`etag`] made: octet for octet.
    fn hash(&self) -> Option<[u8; 32]> {
        let hex = self.opaque.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
        let hash = blake3::Hash::from_hex(hex).ok()?;
        (hash.to_hex().as_bytes() == hex).then_some(*hash.as_bytes())
    }
}

/// Adds the tags of one line. A comma inside the quotes belongs to the tag.
fn read_list<'a>(line: &'a [u8], tags: &mut Vec<Tag<'a>>) -> Option<()> {
    let mut rest = line.trim_ascii();
    while !rest.is_empty() {
        if let Some(behind) = rest.strip_prefix(b",") {
            rest = behind.trim_ascii_start();
            continue;
        }
        let (weak, quoted) = match rest.strip_prefix(b"W/") {
            Some(quoted) => (true, quoted),
            None => (false, rest),
        };
        let inner = quoted.strip_prefix(b"\"")?;
        let end = inner.iter().position(|byte| *byte == b'"')?;
        if inner[..end].iter().any(|byte| matches!(byte, 0..=0x20 | 0x7f)) {
            return None;
        }
        tags.push(Tag { weak, opaque: &quoted[..end + 2] });
        rest = quoted[end + 2..].trim_ascii_start();
        if !rest.is_empty() && !rest.starts_with(b",") {
            return None;
        }
    }
    Some(())
}

/// A date that comes once and can be read; any other is to be ignored.
fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    let mut lines = headers.get_all(name).iter();
    let date = httpdate::parse_http_date(lines.next()?.to_str().ok()?).ok()?;
    lines.next().is_none().then_some(date)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    const TAG: &str = "\"abc\"";
    const SAME: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sat, 05 Nov 1994 08:49:37 GMT";

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.clone(), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn conditions_in_their_order() {
        use header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE};
        let at = httpdate::parse_http_date(SAME).unwrap();
        for (pairs, expected) in [
            (&[][..], Decision::Send),
            (&[(IF_NONE_MATCH, "\"abc\"")], Decision::NotModified),
            (&[(IF_NONE_MATCH, "W/\"abc\"")], Decision::NotModified),
            (&[(IF_NONE_MATCH, "\"x\", \"abc\"")], Decision::NotModified),
            (&[(IF_NONE_MATCH, "\"x\""), (IF_NONE_MATCH, "\"abc\"")], Decision::NotModified),
            (&[(IF_NONE_MATCH, "*")], Decision::NotModified),
            (&[(IF_NONE_MATCH, "\"x\"")], Decision::Send),
            (&[(IF_NONE_MATCH, "abc")], Decision::Send),
            (&[(IF_NONE_MATCH, "\"x,\"abc\",y\"")], Decision::Send),
            (&[(IF_NONE_MATCH, "\"x\""), (IF_MODIFIED_SINCE, SAME)], Decision::Send),
            (&[(IF_MODIFIED_SINCE, SAME)], Decision::NotModified),
            (&[(IF_MODIFIED_SINCE, BEFORE)], Decision::Send),
            (&[(IF_MODIFIED_SINCE, "yesterday")], Decision::Send),
            (&[(IF_MODIFIED_SINCE, SAME), (IF_MODIFIED_SINCE, SAME)], Decision::Send),
            (&[(IF_MATCH, "*")], Decision::Send),
            (&[(IF_MATCH, "\"x\"")], Decision::Failed),
            (&[(IF_MATCH, "W/\"abc\"")], Decision::Failed),
            (&[(IF_MATCH, "abc")], Decision::Failed),
            (&[(IF_MATCH, "")], Decision::Failed),
            (&[(IF_MATCH, "\"abc\""), (IF_UNMODIFIED_SINCE, BEFORE)], Decision::Send),
            (&[(IF_MATCH, "\"abc\""), (IF_NONE_MATCH, "\"abc\"")], Decision::NotModified),
            (&[(IF_MATCH, "\"x\""), (IF_NONE_MATCH, "\"abc\"")], Decision::Failed),
            (&[(IF_UNMODIFIED_SINCE, BEFORE), (IF_NONE_MATCH, "\"abc\"")], Decision::Failed),
            (&[(IF_UNMODIFIED_SINCE, BEFORE)], Decision::Failed),
            (&[(IF_UNMODIFIED_SINCE, SAME)], Decision::Send),
            (&[(IF_UNMODIFIED_SINCE, "never")], Decision::Send),
        ] {
            assert_eq!(evaluate(&headers(pairs), TAG, at), expected, "{pairs:?}");
        }
        assert!(range_counts(&headers(&[]), TAG, at));
        for (value, expected) in [
            ("\"abc\"", true),
            (SAME, true),
            (BEFORE, false),
            ("Mon, 07 Nov 1994 08:49:37 GMT", false),
            ("\"x\"", false),
            ("W/\"abc\"", false),
            ("", false),
        ] {
            assert_eq!(range_counts(&headers(&[(header::IF_RANGE, value)]), TAG, at), expected, "{value}");
        }
        assert!(!range_counts(&headers(&[(header::IF_RANGE, "\"abc\""), (header::IF_RANGE, "\"abc\"")]), TAG, at));
    }

    #[test]
    fn lists_of_tags() {
        let read = |line: &'static str| {
            let mut tags = Vec::new();
            read_list(line.as_bytes(), &mut tags)?;
            Some(tags.iter().map(|tag| (tag.weak, std::str::from_utf8(tag.opaque).unwrap())).collect::<Vec<_>>())
        };
        assert_eq!(
            read(" \"a\" ,,W/\"b,c\"\t, \"\" ,"),
            Some(vec![(false, "\"a\""), (true, "\"b,c\""), (false, "\"\"")])
        );
        assert_eq!(read(","), Some(vec![]));
        for line in ["a", "\"a", "\"a\" \"b\"", "w/\"a\"", "W/a", "\"a b\"", "*", "\"a\", *"] {
            assert_eq!(read(line), None, "{line}");
        }
    }

    #[test]
    fn conditions_of_writes() {
        use header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE};
        const HASH: &str = "\"0707070707070707070707070707070707070707070707070707070707070707\"";
        let at = httpdate::parse_http_date(SAME).unwrap().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let since = || Precondition::IfUnmodifiedSince(at);
        for (pairs, expected) in [
            (&[][..], Precondition::None),
            (&[(IF_MODIFIED_SINCE, SAME)], Precondition::None),
            (&[(IF_UNMODIFIED_SINCE, SAME)], since()),
            (&[(IF_UNMODIFIED_SINCE, "soon")], Precondition::None),
            (&[(IF_MATCH, "*"), (IF_UNMODIFIED_SINCE, SAME)], Precondition::IfMatchAny),
            (&[(IF_MATCH, HASH)], Precondition::IfMatch(vec![[7; 32]])),
            (&[(IF_MATCH, "W/\"x\", \"y\"")], Precondition::IfMatch(vec![])),
            (&[(IF_NONE_MATCH, "*")], Precondition::IfNoneMatchAny),
            (&[(IF_NONE_MATCH, HASH)], Precondition::IfNoneMatch(vec![[7; 32]])),
            (
                &[(IF_UNMODIFIED_SINCE, SAME), (IF_NONE_MATCH, HASH)],
                Precondition::All(vec![since(), Precondition::IfNoneMatch(vec![[7; 32]])]),
            ),
        ] {
            assert_eq!(precondition(&headers(pairs)).unwrap(), expected, "{pairs:?}");
        }
        let weak = headers(&[(IF_MATCH, "W/\"0707070707070707070707070707070707070707070707070707070707070707\"")]);
        assert_eq!(precondition(&weak).unwrap(), Precondition::IfMatch(vec![]), "a weak tag guards no write");
        for pairs in [&[(IF_MATCH, "x")][..], &[(IF_NONE_MATCH, "*, \"a\"")], &[(IF_MATCH, "*"), (IF_MATCH, "*")]] {
            precondition(&headers(pairs)).expect_err("it cannot be read");
        }
    }
}
