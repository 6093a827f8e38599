//! The `Range` header (RFC 9110, section 14): one byte range.
//!
//! Several ranges are answered with the whole object, as the RFC allows.

use std::ops::Range;

/// What a `Range` header asks of an object of a known length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// No range, or one that is to be ignored.
    Whole,
    Part(Range<u64>),
    /// Nothing of the range lies in the object: 416.
    Unsatisfiable,
}

pub(super) fn parse(header: &str, length: u64) -> Asked {
    let Some((unit, set)) = header.split_once('=') else { return Asked::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") || set.contains(',') {
        return Asked::Whole;
    }
    let Some((first, last)) = set.trim().split_once('-') else { return Asked::Whole };
    match (number(first), number(last)) {
        (Some(Bound::Absent), Some(Bound::At(suffix))) => match suffix.min(length) {
            0 => Asked::Unsatisfiable,
            suffix => Asked::Part(length - suffix..length),
        },
        (Some(Bound::At(first)), Some(Bound::Absent)) if first < length => Asked::Part(first..length),
        (Some(Bound::At(first)), Some(Bound::At(last))) if first > last => Asked::Whole,
        (Some(Bound::At(first)), Some(Bound::At(last))) if first < length => {
            Asked::Part(first..last.saturating_add(1).min(length))
        }
        (Some(Bound::At(_)), Some(_)) => Asked::Unsatisfiable,
        _ => Asked::Whole,
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_of_the_rfc() {
        for (header, expected) in [
            ("bytes=0-499", Asked::Part(0..499 + 1)),
            ("bytes=500-", Asked::Part(500..1000)),
            ("bytes=-1", Asked::Part(999..1000)),
            ("bytes=-5000", Asked::Part(0..1000)),
            ("bytes=0-99999999999999999999999", Asked::Part(0..1000)),
            ("BYTES=1-1", Asked::Part(1..2)),
            ("bytes=1000-", Asked::Unsatisfiable),
            ("bytes=1000-2000", Asked::Unsatisfiable),
            ("bytes=-0", Asked::Unsatisfiable),
            ("bytes=5-1", Asked::Whole),
            ("bytes=-", Asked::Whole),
            ("bytes=a-b", Asked::Whole),
            ("bytes=+1-2", Asked::Whole),
            ("bytes=0-1,3-4", Asked::Whole),
            ("items=0-1", Asked::Whole),
            ("", Asked::Whole),
        ] {
            assert_eq!(parse(header, 1000), expected, "{header}");
        }
        assert_eq!(parse("bytes=0-", 0), Asked::Unsatisfiable);
    }

    proptest! {
        #[test]
        fn a_part_is_never_empty_and_lies_inside(header in "bytes=[0-9]{0,20}-[0-9]{0,20}", length in 0u64..10_000) {
            if let Asked::Part(range) = parse(&header, length) {
                prop_assert!(range.start < range.end && range.end <= length);
            }
        }

        #[test]
        fn any_text_is_taken(header in "\\PC*", length in any::<u64>()) {
            parse(&header, length);
        }
    }
}
