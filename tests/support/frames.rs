//! Frames of HTTP/2 (RFC 9113) and header blocks (RFC 7541) as bytes, made by hand so that they can be wrong.

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const PRIORITISED: u8 = 0x20;

/// The length of a frame's head, and where its kind, flags and stream stand in it.
pub const HEAD: usize = 9;

/// How a field stands in a header block: remembered for later ones, not remembered, never to be.
pub const REMEMBERED: u8 = 0x40;
pub const LITERAL: u8 = 0x00;
pub const NEVER: u8 = 0x10;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// `GET /healthz` in HPACK: method and scheme from the table, path and authority spelled out.
pub fn get() -> Vec<u8> {
    [&[0x82, 0x87, 0x04, 8][..], b"/healthz", &[0x01, 9], b"localhost"].concat()
}

/// A header that no table has.
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    field(LITERAL, name.as_bytes(), value.as_bytes())
}

/// A header spelled out, without Huffman's code.
pub fn field(form: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![form];
    for text in [name, value] {
        length(&mut bytes, text.len());
        bytes.extend(text);
    }
    bytes
}

/// An integer of HPACK with seven bits in its first byte.
fn length(bytes: &mut Vec<u8>, length: usize) {
    if length < 127 {
        return bytes.push(length as u8);
    }
    bytes.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        bytes.push(rest as u8 | 128);
        rest >>= 7;
    }
    bytes.push(rest as u8);
}

pub fn request(stream: u32, flags: u8, headers: &[u8]) -> Vec<u8> {
    frame(HEADERS, flags, stream, headers)
}

pub fn setting(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

/// The status that a header block begins with, from HPACK's static table or spelled out in Huffman's code; 0 where it
/// stands otherwise.
pub fn status_in(block: &[u8]) -> u16 {
    const LISTED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    match block {
        [first @ 0x88..=0x8e, ..] => LISTED[usize::from(first - 0x88)],
        // The name from the table, two or three bytes of code.
        [0x08 | 0x18 | 0x48, 0x82 | 0x83, code @ ..] => {
            let mut bits = code.iter().take(3).flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1));
            let mut take = |count| (0..count).fold(0, |value, _| value << 1 | u16::from(bits.next().unwrap_or(0)));
            // 0 to 2 have five bits, the others six and begin at 25.
            (0..3).fold(0, |status, _| {
                let short = take(5);
                status * 10 + if short <= 2 { short } else { (short << 1 | take(1)) - 22 }
            })
        }
        _ => 0,
    }
}
