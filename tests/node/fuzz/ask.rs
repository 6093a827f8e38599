//! Requests that are nearly ones: as a client would make them, and then with a method, an address, a header that is noise.

use crate::support::words::{NAMES, UPLOADING, noise, pick};
use rand::Rng;
use rand::rngs::StdRng;

const OTHERS: &[&str] = &[
    "content-type",
    "content-encoding",
    "content-length",
    "transfer-encoding",
    "connection",
    "te",
    "trailer",
    "expect",
    "host",
    "upgrade",
    "cookie",
    "origin",
    "access-control-request-method",
    "sec-fetch-site",
    "idempotency-key",
    "last-event-id",
];
const METHODS: &[&str] =
    &["GET", "GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get"];
const PATHS: &[&str] = &[
    "/v1/objects/film",
    "/v1/objects/",
    "/v1/objects",
    "/v1/objects?limit=",
    "/v1/uploads",
    "/v1/uploads/",
    "/v1/jobs",
    "/v1/events",
    "/v1/assets",
    "/v1/scrub",
    "/v1/signatures",
    "/v1/tokens",
    "/v1/volumes",
    "/metrics",
    "/play/",
    "/",
    "*",
];

pub struct Ask {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
}

impl Ask {
    /// `upload` is the address of one that is under way.
    pub fn random(random: &mut StdRng, upload: &str) -> Ask {
        let mut ask = match random.random_range(0..10) {
            0 | 1 => reading(random),
            2 => writing(random),
            3 | 4 => beginning_an_upload(random, upload),
            5 | 6 => on_an_upload(random, upload),
            _ => anything(random),
        };
        if random.random_ratio(1, 2) {
            (0..random.random_range(1..4)).for_each(|_| ask.spoil(random));
        }
        ask
    }

    fn new(method: &str, path: impl Into<String>) -> Ask {
        Ask { method: method.into(), path: path.into(), headers: Vec::new(), body: Vec::new() }
    }

    fn with(mut self, name: &str, value: impl Into<Vec<u8>>) -> Ask {
        self.headers.push((name.into(), value.into()));
        self
    }

    fn spoil(&mut self, random: &mut StdRng) {
        let at = if self.headers.is_empty() { None } else { Some(random.random_range(0..self.headers.len())) };
        match (random.random_range(0..7), at) {
            (0, _) => self.method = pick(random, METHODS).into(),
            (1, _) => self.path += &String::from_utf8_lossy(&noise(random)).replace([' ', '\r', '\n'], ""),
            (2, Some(at)) => self.headers[at].1 = value(random),
            (3, Some(at)) => drop(self.headers.remove(at)),
            (4, Some(at)) => self.headers.push(self.headers[at].clone()),
            (5, _) => self.body = noise(random),
            _ => {
                let name = name(random);
                self.headers.push((name.into(), value(random)));
            }
        }
    }

    /// In HTTP/1.1, and seldom with bytes that are none of it.
    pub fn as_text(&self, random: &mut StdRng) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\nHost: 127.0.0.1\r\n", self.method, self.path).into_bytes();
        for (name, value) in &self.headers {
            text.extend_from_slice(format!("{name}: ").as_bytes());
            text.extend_from_slice(value);
            text.extend_from_slice(b"\r\n");
        }
        let body = match random.random_range(0..8) {
            _ if self.body.is_empty() => b"\r\n".to_vec(),
            0 => [b"\r\n", &self.body[..]].concat(),
            1 | 2 => {
                let (first, rest) = self.body.split_at(random.random_range(0..self.body.len()));
                let chunk = |part: &[u8]| [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat();
                let chunks: Vec<u8> =
                    [first, rest].into_iter().filter(|part| !part.is_empty()).flat_map(chunk).collect();
                let trailer: &[u8] =
                    pick(random, &[&b""[..], b"Upload-Checksum: md5 AAAA\r\n", b"Range: bytes=0-\r\n"]);
                [b"Transfer-Encoding: chunked\r\n\r\n", &chunks[..], b"0\r\n", trailer, b"\r\n"].concat()
            }
            _ => [format!("Content-Length: {}\r\n\r\n", self.body.len()).as_bytes(), &self.body].concat(),
        };
        let head = text.len();
        text.extend(body);
        if random.random_ratio(1, 8) {
            for _ in 0..random.random_range(1..10) {
                let at = random.random_range(0..head);
                text[at] = random.random();
            }
        }
        text
    }
}

fn name(random: &mut StdRng) -> &'static str {
    let names = pick(random, &[NAMES, UPLOADING, OTHERS]);
    pick(random, names)
}

/// Noise that most often reaches our own parsers, and otherwise HTTP's.
fn value(random: &mut StdRng) -> Vec<u8> {
    let mut value = noise(random);
    if random.random_ratio(9, 10) {
        value.retain(|byte| *byte == b'\t' || !byte.is_ascii_control());
        value = value.trim_ascii().to_vec();
    }
    value
}

fn bytes(random: &mut StdRng) -> Vec<u8> {
    let longest = if random.random_ratio(1, 20) { 300_000 } else { 5_000 };
    vec![random.random(); random.random_range(0..longest)]
}

fn number(random: &mut StdRng) -> u64 {
    match random.random_range(0..4) {
        0 => random.random_range(0..3),
        1 => random.random(),
        _ => random.random_range(0..4_000_000),
    }
}

/// What a client might say of an object.
fn condition(random: &mut StdRng, name: &str) -> Vec<u8> {
    const ETAGS: &[&str] =
        &["*", "\"0707070707070707070707070707070707070707070707070707070707070707\"", "\"a\", W/\"b\""];
    const DATES: &[&str] = &["Sun, 06 Nov 1994 08:49:37 GMT", "Fri, 06 Nov 2099 08:49:37 GMT"];
    let text = match name {
        "range" => {
            let parts = (0..random.random_range(1..6)).map(|_| match random.random_range(0..3) {
                0 => format!("{}-", number(random)),
                1 => format!("-{}", number(random)),
                _ => format!("{}-{}", number(random), number(random)),
            });
            format!("bytes={}", parts.collect::<Vec<_>>().join(","))
        }
        "if-match" | "if-none-match" | "if-range" => pick(random, ETAGS).into(),
        "if-modified-since" | "if-unmodified-since" => pick(random, DATES).into(),
        "accept" => "application/json".into(),
        "content-md5" => "1B2M2Y8AsgTpgAmY7PhCfg==".into(),
        "authorization" => "Bearer 0123456789abcdef".into(),
        _ => "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:".into(),
    };
    text.into_bytes()
}

fn with_conditions(mut ask: Ask, random: &mut StdRng) -> Ask {
    for _ in 0..random.random_range(0..3) {
        let name = pick(random, NAMES);
        ask = ask.with(name, condition(random, name));
    }
    ask
}

fn reading(random: &mut StdRng) -> Ask {
    let ask = Ask::new(pick(random, &["GET", "GET", "HEAD"]), "/v1/objects/film");
    let range = condition(random, "range");
    let ask = if random.random_ratio(3, 4) { ask.with("range", range) } else { ask };
    with_conditions(ask, random)
}

fn writing(random: &mut StdRng) -> Ask {
    let method = pick(random, &["PUT", "PUT", "PUT", "DELETE"]);
    let mut ask = with_conditions(Ask::new(method, "/v1/objects/film"), random);
    ask.body = bytes(random);
    if random.random_ratio(1, 4) { ask.with("expect", "100-continue") } else { ask }
}

/// In either dialect, with or without its first bytes.
fn beginning_an_upload(random: &mut StdRng, upload: &str) -> Ask {
    if random.random_ratio(1, 3) {
        let (method, path) = pick(random, &[("POST", "/v1/uploads"), ("PUT", "/v1/objects/film")]);
        let mut ask = Ask::new(method, path).with("upload-complete", pick(random, &["?0", "?0", "?1"]));
        ask.body = bytes(random);
        return if random.random_ratio(1, 3) { ask.with("upload-length", number(random).to_string()) } else { ask };
    }
    let mut ask = Ask::new("POST", "/v1/uploads").with("tus-resumable", "1.0.0");
    ask = ask.with("upload-metadata", pick(random, &["key ZmlsbQ==", "filename YS5tcDQ=", "note,key ZmlsbQ=="]));
    ask = match random.random_range(0..6) {
        0 => ask.with("upload-defer-length", "1"),
        1 => ask.with("upload-concat", format!("final;{upload} {upload}")),
        2 => ask.with("upload-concat", "partial").with("upload-length", number(random).to_string()),
        _ => ask.with("upload-length", number(random).to_string()),
    };
    if random.random_ratio(1, 2) {
        ask.body = bytes(random);
        ask = ask.with("content-type", "application/offset+octet-stream");
    }
    ask
}

fn on_an_upload(random: &mut StdRng, upload: &str) -> Ask {
    let offset = if random.random_ratio(3, 4) { 0 } else { number(random) };
    let mut ask = match random.random_range(0..8) {
        0 => Ask::new("HEAD", upload).with("tus-resumable", "1.0.0"),
        1 => Ask::new(pick(random, &["HEAD", "HEAD", "DELETE", "OPTIONS", "GET"]), upload),
        2 => Ask::new("POST", upload).with("tus-resumable", "1.0.0").with("x-http-method-override", "PATCH"),
        3 | 4 => Ask::new("PATCH", upload)
            .with("content-type", "application/partial-upload")
            .with("upload-complete", pick(random, &["?0", "?0", "?0", "?1"])),
        _ => Ask::new("PATCH", upload)
            .with("content-type", "application/offset+octet-stream")
            .with("tus-resumable", "1.0.0"),
    };
    if ask.method == "PATCH" || ask.method == "POST" {
        ask = ask.with("upload-offset", offset.to_string());
        ask.body = bytes(random);
        ask = match random.random_range(0..6) {
            0 => ask.with("upload-checksum", "sha1 2jmj7l5rSw0yVb/vlWAYkK/YBwk="),
            1 => ask.with("trailer", "upload-checksum"),
            2 => ask.with("content-digest", condition(random, "content-digest")),
            _ => ask,
        };
    }
    ask
}

fn anything(random: &mut StdRng) -> Ask {
    let mut ask = Ask::new(pick(random, METHODS), pick(random, PATHS));
    if random.random_ratio(1, 3) {
        ask.path += &String::from_utf8_lossy(&noise(random)).replace([' ', '\r', '\n'], "");
    }
    for _ in 0..random.random_range(0..5) {
        let name = name(random);
        ask = ask.with(name, value(random));
    }
    ask
}
