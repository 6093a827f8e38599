//! The `Range` header (RFC 9110, section 14): one byte range or several.
//!
//! Many clients are careless and some mean harm, so what is sent is bounded: ranges that overlap become one, so that no
//! byte is sent twice, and a set of more than [`limits::HTTP_RANGES`] is refused. Otherwise the parts are what was asked
//! for, in the order in which it was asked for. A header that is not understood is ignored, as the RFC wants it.

use std::ops::Range;

use axum::http::HeaderMap;
use axum::http::header::RANGE;

use crate::limits;

/// What a `Range` header asks of an object of a known length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// No range, or one that is to be ignored.
    Whole,
    /// At least one part, none of them empty, no two overlapping.
    Parts(Vec<Range<u64>>),
    /// Nothing of it lies in the object: 416.
    Outside,
    /// More ranges than one request may ask for: 416.
    TooMany,
}

/// What the request asks for. A `Range` that comes twice is not understood.
pub(super) fn of(headers: &HeaderMap, length: u64) -> Asked {
    let mut lines = headers.get_all(RANGE).iter();
    match (lines.next().map(|line| line.to_str()), lines.next()) {
        (Some(Ok(range)), None) => parse(range, length),
        _ => Asked::Whole,
    }
}

fn parse(header: &str, length: u64) -> Asked {
    let Some((unit, set)) = header.split_once('=') else { return Asked::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Asked::Whole;
    }
    let (mut count, mut parts) = (0, Vec::new());
    // Empty elements of a list are to be passed over.
    for spec in set.split(',').map(|spec| spec.trim_matches([' ', '\t'])).filter(|spec| !spec.is_empty()) {
        count += 1;
        if count > limits::HTTP_RANGES {
            return Asked::TooMany;
        }
        match part(spec, length) {
            Some(Part::Bytes(range)) => parts.push(range),
            Some(Part::Outside) => {}
            Some(Part::Whole) | None => return Asked::Whole,
        }
    }
    match (count, parts.len()) {
        (0, _) => Asked::Whole,
        (_, 0) => Asked::Outside,
        _ => Asked::Parts(merged(parts)),
    }
}

enum Part {
    Bytes(Range<u64>),
    Outside,
    /// The end of an object without bytes: it is there, and no `Content-Range` can name it.
    Whole,
}

/// One range of the set; `None` when it is none.
fn part(spec: &str, length: u64) -> Option<Part> {
    let (first, last) = spec.split_once('-')?;
    Some(match (number(first)?, number(last)?) {
        (Bound::Absent, Bound::Absent) => return None,
        (Bound::Absent, Bound::At(0)) => Part::Outside,
        (Bound::Absent, Bound::At(_)) if length == 0 => Part::Whole,
        (Bound::Absent, Bound::At(suffix)) => Part::Bytes(length - suffix.min(length)..length),
        (Bound::At(first), Bound::At(last)) if first > last => return None,
        (Bound::At(first), _) if first >= length => Part::Outside,
        (Bound::At(first), Bound::Absent) => Part::Bytes(first..length),
        (Bound::At(first), Bound::At(last)) => Part::Bytes(first..last.saturating_add(1).min(length)),
    })
}

enum Bound {
    Absent,
    At(u64),
}

/// Digits only; a number beyond 64 bits is larger than any object.
fn number(text: &str) -> Option<Bound> {
    if text.is_empty() {
        return Some(Bound::Absent);
    }
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| Bound::At(text.parse().unwrap_or(u64::MAX)))
}

/// Makes one of those that overlap; it takes the place of the first of them.
fn merged(parts: Vec<Range<u64>>) -> Vec<Range<u64>> {
    if parts.len() < 2 {
        return parts;
    }
    let mut placed: Vec<(usize, Range<u64>)> = parts.into_iter().enumerate().collect();
    placed.sort_by_key(|(_, range)| range.start);
    let mut kept: Vec<(usize, Range<u64>)> = Vec::with_capacity(placed.len());
    for (place, range) in placed {
        match kept.last_mut() {
            Some((first, last)) if range.start < last.end => {
                last.end = last.end.max(range.end);
                *first = place.min(*first);
            }
            _ => kept.push((place, range)),
        }
    }
    kept.sort_by_key(|(place, _)| *place);
    kept.into_iter().map(|(_, range)| range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts<const N: usize>(parts: [(u64, u64); N]) -> Asked {
        Asked::Parts(parts.into_iter().map(|(start, end)| start..end).collect())
    }

    #[test]
    fn ranges_of_the_rfc() {
        for (header, expected) in [
            ("bytes=0-499", parts([(0, 500)])),
            ("bytes=500-", parts([(500, 1000)])),
            ("bytes=-1", parts([(999, 1000)])),
            ("bytes=-5000", parts([(0, 1000)])),
            ("bytes=0-99999999999999999999999", parts([(0, 1000)])),
            ("BYTES=1-1", parts([(1, 2)])),
            ("bytes=1000-", Asked::Outside),
            ("bytes=1000-2000", Asked::Outside),
            ("bytes=-0", Asked::Outside),
            ("bytes=99999999999999999999999-", Asked::Outside),
            ("bytes=5-1", Asked::Whole),
            ("bytes=-", Asked::Whole),
            ("bytes=a-b", Asked::Whole),
            ("bytes=+1-2", Asked::Whole),
            ("bytes=1 -2", Asked::Whole),
            ("bytes=1-2-3", Asked::Whole),
            ("bytes=", Asked::Whole),
            ("bytes=,", Asked::Whole),
            ("items=0-1", Asked::Whole),
            ("", Asked::Whole),
        ] {
            assert_eq!(parse(header, 1000), expected, "{header}");
        }
        assert_eq!(parse("bytes=0-", 0), Asked::Outside);
        assert_eq!(parse("bytes=-5", 0), Asked::Whole, "the end of nothing is there, but has no first byte");
    }

    #[test]
    fn several_ranges() {
        for (header, expected) in [
            ("bytes=0-0,-1", parts([(0, 1), (999, 1000)])),
            ("bytes=500-600, 0-9 ,, \t700-", parts([(500, 601), (0, 10), (700, 1000)])),
            ("bytes=0-4,5-9", parts([(0, 5), (5, 10)])),
            // Those that overlap become one, in the place of the first of them.
            ("bytes=0-4,4-9", parts([(0, 10)])),
            ("bytes=900-,0-9,5-20,-50", parts([(900, 1000), (0, 21)])),
            ("bytes=0-,0-,0-,0-", parts([(0, 1000)])),
            ("bytes=500-600,0-9,550-700,5-520", parts([(0, 701)])),
            // What lies outside is left out.
            ("bytes=2000-,0-9", parts([(0, 10)])),
            ("bytes=2000-,-0", Asked::Outside),
            ("bytes=0-9,x", Asked::Whole),
            ("bytes=0-9,9-0", Asked::Whole),
        ] {
            assert_eq!(parse(header, 1000), expected, "{header}");
        }
        let many = |count: usize| format!("bytes={}", vec!["0-0"; count].join(","));
        assert_eq!(parse(&many(limits::HTTP_RANGES), 1000), parts([(0, 1)]));
        assert_eq!(parse(&many(limits::HTTP_RANGES + 1), 1000), Asked::TooMany);
    }

    #[test]
    fn a_header_that_comes_twice_is_not_understood() {
        let mut headers = HeaderMap::new();
        headers.append(RANGE, "bytes=0-1".parse().unwrap());
        assert_eq!(of(&headers, 10), parts([(0, 2)]));
        headers.append(RANGE, "bytes=2-3".parse().unwrap());
        assert_eq!(of(&headers, 10), Asked::Whole);
    }

    proptest! {
        /// Against a set of bytes: no byte twice, none that was not asked for, none forgotten.
        #[test]
        fn the_parts_are_the_union_of_what_was_asked_for(
            asked in proptest::collection::vec((0u64..120, 0u64..120), 1..20), length in 1u64..100,
        ) {
            let spec = |(a, b): &(u64, u64)| format!("{}-{}", a.min(b), a.max(b));
            let header = format!("bytes={}", asked.iter().map(spec).collect::<Vec<_>>().join(", "));
            let wanted: std::collections::BTreeSet<u64> =
                asked.iter().flat_map(|(a, b)| *a.min(b)..=*a.max(b)).filter(|byte| *byte < length).collect();
            match parse(&header, length) {
                Asked::Parts(parts) => {
                    prop_assert!(parts.iter().all(|part| part.start < part.end && part.end <= length));
                    let sent: Vec<u64> = parts.into_iter().flatten().collect();
                    prop_assert_eq!(sent.len(), wanted.len());
                    prop_assert_eq!(sent.into_iter().collect::<std::collections::BTreeSet<_>>(), wanted);
                }
                other => {
                    prop_assert_eq!(other, Asked::Outside);
                    prop_assert!(wanted.is_empty());
                }
            }
        }

        #[test]
        fn any_text_is_taken(header in "\\PC*", length in any::<u64>()) {
            parse(&header, length);
            parse(&format!("bytes={header}"), length);
        }
    }
}
