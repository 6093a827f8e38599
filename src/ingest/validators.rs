//! Is it still the same file? What an origin says about a version, and what it says about a range of it.
//!
//! Pure parsers and comparisons. The rule behind them: two versions of a file are never spliced, so whatever is not known
//! to be the same counts as different.

use std::time::{Duration, SystemTime};

use reqwest::header::{self, HeaderMap, HeaderValue};
use serde::{Deserialize, Serialize};

/// A longer validator is ignored: it would be copied into every journal record.
const VALIDATOR_BYTES: usize = 1024;

/// What identifies one version of the file behind a URL.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validators {
    pub etag: Option<String>,
    pub last_modified: Option<String>,
    /// The date is old enough to stand for one version alone: a second change within its second would have been seen.
    #[serde(default)]
    pub date_is_strong: bool,
}

/// Two answers compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    Same,
    Different,
    /// Nothing in common to compare by.
    Unknown,
}

impl Validators {
    pub fn of(headers: &HeaderMap, now: SystemTime) -> Self {
        let etag = text(headers, &header::ETAG);
        let last_modified = text(headers, &header::LAST_MODIFIED);
        let changed = last_modified.as_deref().and_then(|date| httpdate::parse_http_date(date).ok());
        let answered =
            text(headers, &header::DATE).and_then(|date| httpdate::parse_http_date(&date).ok()).unwrap_or(now);
        let date_is_strong = changed
            .is_some_and(|changed| answered.duration_since(changed).is_ok_and(|age| age >= Duration::from_secs(1)));
        Self { etag, last_modified, date_is_strong }
    }

    pub fn has_strong_etag(&self) -> bool {
        self.etag.as_deref().is_some_and(is_strong)
    }

    /// What to put in `If-Range`: a strong ETag, else a date that stands for one version. `None`: it cannot be resumed.
    pub fn if_range(&self) -> Option<HeaderValue> {
        let strong = self.etag.as_deref().filter(|etag| is_strong(etag));
        let date = self.last_modified.as_deref().filter(|_| self.date_is_strong);
        HeaderValue::from_str(strong.or(date)?).ok()
    }

    /// A strong ETag decides alone. A weak one says "as good as", not "the same bytes", so the date must agree too.
    pub fn compare(&self, other: &Self) -> Agreement {
        let dates = match (&self.last_modified, &other.last_modified) {
            (Some(one), Some(two)) if one == two && self.date_is_strong => Agreement::Same,
            (Some(one), Some(two)) if one != two => Agreement::Different,
            _ => Agreement::Unknown,
        };
        match (&self.etag, &other.etag) {
            (Some(one), Some(two)) if one == two && is_strong(one) => Agreement::Same,
            (Some(one), Some(two)) if opaque(one) != opaque(two) => Agreement::Different,
            _ => dates,
        }
    }
}

fn is_strong(etag: &str) -> bool {
    etag.len() >= 2 && etag.starts_with('"') && etag.ends_with('"')
}

fn opaque(etag: &str) -> &str {
    etag.strip_prefix("W/").unwrap_or(etag)
}

fn text(headers: &HeaderMap, name: &header::HeaderName) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?.trim();
    (!value.is_empty() && value.len() <= VALIDATOR_BYTES).then(|| value.to_owned())
}

/// `Content-Range` of a 206 or a 416.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentRange {
    /// `bytes first-last/total`, the total `*` when unknown.
    Part { first: u64, last: u64, total: Option<u64> },
    /// `bytes */total`.
    Unsatisfied { total: u64 },
}

impl ContentRange {
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        Self::parse(headers.get(header::CONTENT_RANGE)?.to_str().ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let (unit, rest) = text.trim().split_once(' ')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (range, total) = rest.trim().split_once('/')?;
        let total = match total {
            "*" => None,
            digits => Some(number(digits)?),
        };
        if range == "*" {
            return Some(Self::Unsatisfied { total: total? });
        }
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        (first <= last && total.is_none_or(|total| last < total)).then_some(Self::Part { first, last, total })
    }
}

/// Digits alone: `u64::from_str` would take a sign.
pub(super) fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const OTHER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn some(etag: Option<&str>, date: Option<&str>) -> Validators {
        Validators { etag: etag.map(Into::into), last_modified: date.map(Into::into), date_is_strong: true }
    }

    #[test]
    fn if_range_takes_the_strongest() {
        assert_eq!(some(Some("\"a\""), Some(OLD)).if_range().unwrap(), "\"a\"");
        assert_eq!(some(Some("W/\"a\""), Some(OLD)).if_range().unwrap(), OLD);
        assert_eq!(some(Some("unquoted"), Some(OLD)).if_range().unwrap(), OLD);
        assert_eq!(some(Some("W/\"a\""), None).if_range(), None);
        assert_eq!(Validators { date_is_strong: false, ..some(None, Some(OLD)) }.if_range(), None);
    }

    #[test]
    fn a_date_of_this_very_second_is_weak() {
        let now = httpdate::parse_http_date(OLD).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::LAST_MODIFIED, HeaderValue::from_static(OLD));
        assert!(!Validators::of(&headers, now).date_is_strong);
        assert!(Validators::of(&headers, now + Duration::from_secs(1)).date_is_strong);
        headers.insert(header::DATE, HeaderValue::from_static(OTHER));
        assert!(Validators::of(&headers, now).date_is_strong, "the origin's clock decides when it tells it");
    }

    #[test]
    fn same_means_proven() {
        use Agreement::{Different, Same, Unknown};
        for (one, two, expected) in [
            (some(Some("\"a\""), None), some(Some("\"a\""), None), Same),
            (some(Some("\"a\""), Some(OLD)), some(Some("\"a\""), Some(OTHER)), Same),
            (some(Some("\"a\""), Some(OLD)), some(Some("\"b\""), Some(OLD)), Different),
            (some(Some("W/\"a\""), Some(OLD)), some(Some("W/\"a\""), Some(OLD)), Same),
            (some(Some("W/\"a\""), Some(OLD)), some(Some("W/\"a\""), Some(OTHER)), Different),
            (some(Some("W/\"a\""), None), some(Some("W/\"a\""), None), Unknown),
            (some(Some("W/\"a\""), None), some(Some("\"a\""), None), Unknown),
            (some(Some("\"a\""), None), some(None, None), Unknown),
            (some(Some("\"a\""), Some(OLD)), some(None, Some(OLD)), Same),
            (some(None, Some(OLD)), some(None, Some(OTHER)), Different),
            (some(None, None), some(None, None), Unknown),
        ] {
            assert_eq!(one.compare(&two), expected, "{one:?} {two:?}");
        }
    }

    #[test]
    fn content_ranges() {
        let part = |first, last, total| Some(ContentRange::Part { first, last, total });
        assert_eq!(ContentRange::parse("bytes 5-9/10"), part(5, 9, Some(10)));
        assert_eq!(ContentRange::parse("Bytes 0-0/*"), part(0, 0, None));
        assert_eq!(ContentRange::parse("bytes */10"), Some(ContentRange::Unsatisfied { total: 10 }));
        for bad in [
            "",
            "bytes",
            "bytes 5-9",
            "bytes 9-5/10",
            "bytes 5-10/10",
            "bytes -1-5/10",
            "bytes +5-9/10",
            "items 0-1/2",
            "bytes */*",
            "bytes 0-99999999999999999999/*",
        ] {
            assert_eq!(ContentRange::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_parsed_or_refused(text in "\\PC{0,40}") {
            if let Some(ContentRange::Part { first, last, total }) = ContentRange::parse(&text) {
                prop_assert!(first <= last && total.is_none_or(|total| last < total));
            }
        }
    }
}
