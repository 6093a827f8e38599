//! Conditional requests (RFC 9110, section 13), in its order of precedence.
//!
//! The entity tag is the object's BLAKE3 hash in hexadecimal, always strong.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderName, header};
use reelring_storage::{ObjectRecord, Precondition};

use super::problem::Problem;

pub(super) fn etag(object: &ObjectRecord) -> String {
    format!("\"{}\"", blake3::Hash::from_bytes(object.blake3).to_hex())
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

pub(super) fn evaluate(headers: &HeaderMap, etag: &str, modified: SystemTime) -> Decision {
    if let Some(tags) = text(headers, header::IF_MATCH) {
        if !matches(&tags, etag, Comparison::Strong) {
            return Decision::Failed;
        }
    } else if let Some(date) = date(headers, header::IF_UNMODIFIED_SINCE)
        && modified > date
    {
        return Decision::Failed;
    }
    if let Some(tags) = text(headers, header::IF_NONE_MATCH) {
        if matches(&tags, etag, Comparison::Weak) {
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
    match text(headers, header::IF_RANGE) {
        None => true,
        Some(tag) if tag.starts_with('"') => tag == etag,
        Some(date) => httpdate::parse_http_date(&date).is_ok_and(|date| date == modified),
    }
}

/// The condition of a PUT or DELETE, for the catalog to check in the transaction that writes.
pub(super) fn precondition(headers: &HeaderMap) -> Result<Precondition, Problem> {
    let if_match = text(headers, header::IF_MATCH);
    let if_none_match = text(headers, header::IF_NONE_MATCH);
    match (if_match.as_deref(), if_none_match.as_deref()) {
        (None, None) => Ok(Precondition::None),
        (None, Some("*")) => Ok(Precondition::IfNoneMatchAny),
        (Some("*"), None) => Ok(Precondition::IfMatchAny),
        (Some(tags), None) => Ok(Precondition::IfMatch(list(tags).filter_map(hash).collect())),
        (None, Some(tags)) => Err(Problem::bad_request(
            "invalid-condition",
            format!("If-None-Match: {tags} is not possible on a write; only * is"),
        )),
        (Some(_), Some(_)) => Err(Problem::bad_request(
            "invalid-condition",
            "If-Match and If-None-Match exclude each other on a write; send one of them",
        )),
    }
}

enum Comparison {
    Strong,
    Weak,
}

fn matches(tags: &str, etag: &str, comparison: Comparison) -> bool {
    tags.trim() == "*"
        || list(tags).any(|tag| match comparison {
            Comparison::Strong => tag == etag,
            Comparison::Weak => tag.trim_start_matches("W/") == etag,
        })
}

fn list(tags: &str) -> impl Iterator<Item = &str> {
    tags.split(',').map(str::trim)
}

fn hash(tag: &str) -> Option<[u8; 32]> {
    let hex = tag.strip_prefix('"')?.strip_suffix('"')?;
    Some(*blake3::Hash::from_hex(hex).ok()?.as_bytes())
}

/// All values of a header as one list; a value that is no text counts as one that matches nothing.
fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let values: Vec<_> = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("").trim()).collect();
    (!values.is_empty()).then(|| values.join(","))
}

fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    const TAG: &str = "\"abc\"";

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn conditions_in_their_order() {
        let at = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let (same, before) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sat, 05 Nov 1994 08:49:37 GMT");
        for (pairs, expected) in [
            (&[][..], Decision::Send),
            (&[(header::IF_NONE_MATCH, "\"abc\"")], Decision::NotModified),
            (&[(header::IF_NONE_MATCH, "W/\"abc\"")], Decision::NotModified),
            (&[(header::IF_NONE_MATCH, "\"x\", \"abc\"")], Decision::NotModified),
            (&[(header::IF_NONE_MATCH, "*")], Decision::NotModified),
            (&[(header::IF_NONE_MATCH, "\"x\"")], Decision::Send),
            (&[(header::IF_NONE_MATCH, "\"x\""), (header::IF_MODIFIED_SINCE, same)], Decision::Send),
            (&[(header::IF_MODIFIED_SINCE, same)], Decision::NotModified),
            (&[(header::IF_MODIFIED_SINCE, before)], Decision::Send),
            (&[(header::IF_MATCH, "\"x\"")], Decision::Failed),
            (&[(header::IF_MATCH, "W/\"abc\"")], Decision::Failed),
            (&[(header::IF_MATCH, "\"abc\""), (header::IF_NONE_MATCH, "\"abc\"")], Decision::NotModified),
            (&[(header::IF_UNMODIFIED_SINCE, before)], Decision::Failed),
            (&[(header::IF_UNMODIFIED_SINCE, same)], Decision::Send),
        ] {
            assert_eq!(evaluate(&headers(pairs), TAG, at), expected, "{pairs:?}");
        }
        assert!(range_counts(&headers(&[]), TAG, at));
        assert!(range_counts(&headers(&[(header::IF_RANGE, "\"abc\"")]), TAG, at));
        assert!(range_counts(&headers(&[(header::IF_RANGE, same)]), TAG, at));
        assert!(!range_counts(&headers(&[(header::IF_RANGE, before)]), TAG, at));
        assert!(!range_counts(&headers(&[(header::IF_RANGE, "\"x\"")]), TAG, at));
        assert!(!range_counts(&headers(&[(header::IF_RANGE, "W/\"abc\"")]), TAG, at));
    }
}
