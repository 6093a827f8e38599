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
