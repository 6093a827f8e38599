//! Words that readers of HTTP stumble over, and noise made of them: for the fuzz of the parsers (`src/http/fuzz.rs`) and that
//! of the whole node (`tests/node/fuzz`).

use rand::Rng;
use rand::rngs::StdRng;

const WORDS: &[&str] = &[
    "bytes=",
    "bytes",
    "=",
    "-",
    "--",
    ",",
    ";",
    ":",
    " ",
    "\t",
    "0",
    "1",
    "7",
    "9",
    "499",
    "18446744073709551615",
    "18446744073709551616",
    "\"",
    "\"\"",
    "W/",
    "w/",
    "*",
    "/",
    "..",
    "%",
    "%00",
    "%ff",
    "%2e",
    "%2e%2e",
    "?",
    "&",
    "#",
    "@",
    "?0",
    "?1",
    "download=",
    "prefix=",
    "limit=",
    "signature=",
    "sha1 ",
    "sha-256",
    "sha-512",
    "md5",
    "=:",
    ":=",
    "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
    "AAAA",
    "key ",
    "filename ",
    "q=0.5",
    "10",
    "11",
    "é",
    "\u{1}",
    "\u{7f}",
    "\u{80}",
    "\r\n",
    "\0",
    "a",
    "film",
    "\"0707070707070707070707070707070707070707070707070707070707070707\"",
    "1.",
    "0123456789abcdef.",
    "1800000000.",
    "GET-PUT.",
    "exact.",
    "UyKVGxAIFn1bYPbn8sYbXHDI7UAIU-92zYLAufVDhRM",
    "Bearer ",
    "Basic ",
    "YTpi",
    "Sun, 06 Nov 1994 08:49:37 GMT",
    "Sunday, 06-Nov-94 08:49:37 GMT",
    "Sun Nov  6 08:49:37 1994",
    "video/mp4",
    "application/octet-stream",
    "application/json",
    "text/html",
    "charset",
    "https://",
    "http://",
    "null",
    "localhost",
    "example.org",
    ":443",
    "[::1]",
    "partial",
    "final;",
    "chunked",
    "100-continue",
];

/// Headers of which our own parsers read what the client wants of an object.
pub const NAMES: &[&str] = &[
    "range",
    "if-range",
    "if-match",
    "if-none-match",
    "if-modified-since",
    "if-unmodified-since",
    "accept",
    "repr-digest",
    "content-digest",
    "want-repr-digest",
    "content-md5",
    "authorization",
];

/// Headers of both kinds of resumable uploads.
pub const UPLOADING: &[&str] = &[
    "tus-resumable",
    "upload-length",
    "upload-defer-length",
    "upload-offset",
    "upload-metadata",
    "upload-concat",
    "upload-checksum",
    "upload-complete",
    "upload-draft-interop-version",
    "x-http-method-override",
];

/// Some words, sometimes many, with some bytes that are none.
pub fn noise(random: &mut StdRng) -> Vec<u8> {
    let longest = if random.random_ratio(1, 50) { 2_000 } else { 12 };
    let words = (0..random.random_range(0..longest)).map(|_| WORDS[random.random_range(0..WORDS.len())]);
    let mut bytes = words.collect::<String>().into_bytes();
    for _ in 0..random.random_range(0..4) {
        if !bytes.is_empty() {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
    }
    bytes
}

/// One of them.
pub fn pick<T: Copy>(random: &mut StdRng, of: &[T]) -> T {
    of[random.random_range(0..of.len())]
}
