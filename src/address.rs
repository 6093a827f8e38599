//! How names stand in the node's addresses: the one spelling that `http` gives out and `cli` asks for.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reelring_storage::Key;

/// Encoded in one segment of a path, or in a query: all but the unreserved characters (RFC 3986, section 2.3).
pub const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Encoded in a path of several segments.
pub const PATH: &AsciiSet = &SEGMENT.remove(b'/');

pub const OBJECTS: &str = "/v1/objects/";

/// The address of an object.
pub fn of_object(key: &Key) -> String {
    format!("{OBJECTS}{}", utf8_percent_encode(key.as_str(), PATH))
}

/// The first percent sign of a path that two hexadecimal digits do not follow, with what follows instead (RFC 3986, section
/// 2.1). A lenient reader takes it for itself, and then two addresses have one meaning.
pub fn broken_escape(path: &str) -> Option<&str> {
    let whole = |escape: &[u8]| escape.len() == 2 && escape.iter().all(u8::is_ascii_hexdigit);
    let at = path
        .bytes()
        .enumerate()
        .find(|(at, byte)| *byte == b'%' && !path.as_bytes().get(at + 1..at + 3).is_some_and(whole))?
        .0;
    let shown = path[at..].chars().take(3).map(char::len_utf8).sum::<usize>();
    Some(&path[at..at + shown])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_two_hexadecimal_digits() {
        for path in ["", "a", "%00", "a%2Fb%c3%BCc", "%25", "%2525zz"] {
            assert_eq!(broken_escape(path), None, "{path}");
        }
        for (path, expected) in [
            ("%", "%"),
            ("a%", "%"),
            ("a%4", "%4"),
            ("%zz%25", "%zz"),
            ("%20%2g", "%2g"),
            ("%%25", "%%2"),
            ("%é", "%é"),
        ] {
            assert_eq!(broken_escape(path), Some(expected), "{path}");
        }
    }
}
