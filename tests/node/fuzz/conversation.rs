//! What a client of HTTP/2 says from its preface on: requests and all else that RFC 9113 knows, whole and in their order,
//! or with frames that are changed, cut, lost, repeated, out of place.

use super::ask::Ask;
use crate::support::frames::*;
use crate::support::words::{noise, pick};
use rand::Rng;
use rand::rngs::StdRng;

/// Priorities in HTTP's own terms (RFC 9218).
const PRIORITY_UPDATE: u8 = 0x10;

/// Frames, the preface in front of the first. As often as not they are as they should be: then what the requests say reaches
/// what lies behind.
pub fn frames(random: &mut StdRng, upload: &str) -> Vec<Vec<u8>> {
    let settings = if random.random_ratio(1, 2) { frame(SETTINGS, 0, 0, &[]) } else { settings(random) };
    let mut frames = vec![[PREFACE, &settings].concat(), frame(SETTINGS, ACK, 0, &[])];
    let mut open: Vec<Vec<Vec<u8>>> = Vec::new();
    let mut stream = 1;
    for _ in 0..random.random_range(1..30) {
        match random.random_range(0..4) {
            0 => frames.push(control(random, stream)),
            _ => {
                let mut exchange = exchange(random, stream, upload);
                // A header block must not be interrupted; bodies may be.
                let whole = exchange.iter().take_while(|frame| matches!(frame[3], HEADERS | CONTINUATION)).count();
                frames.extend(exchange.drain(..whole));
                open.push(exchange);
                stream += if random.random_ratio(1, 20) { random.random_range(1..9) * 2 } else { 2 };
            }
        }
        // Bodies take turns.
        while random.random_ratio(3, 4) && !open.is_empty() {
            let at = random.random_range(0..open.len());
            if open[at].is_empty() {
                open.remove(at);
            } else {
                frames.push(open[at].remove(0));
            }
        }
    }
    frames.extend(open.into_iter().filter(|_| random.random_ratio(3, 4)).flatten());
    if random.random_ratio(1, 2) {
        (0..random.random_range(1..4)).for_each(|_| spoil(random, &mut frames));
    }
    frames
}

/// One request: its header block, in one frame or several, its body, and its end, of whatever kind.
fn exchange(random: &mut StdRng, stream: u32, upload: &str) -> Vec<Vec<u8>> {
    let ask = Ask::random(random, upload);
    let block = block(random, &ask);
    let (mut flags, mut head) = (0, Vec::new());
    if ask.body.is_empty() && random.random_ratio(9, 10) {
        flags |= END_STREAM;
    }
    if random.random_ratio(1, 8) {
        flags |= PRIORITISED;
        head = random.random::<[u8; 5]>().to_vec();
    }
    let pad = if random.random_ratio(1, 8) { random.random() } else { 0 };
    let mut pieces = split(random, &block, 8_000);
    let last = pieces.len() - 1;
    let mut frames: Vec<_> = pieces
        .drain(..)
        .enumerate()
        .map(|(at, piece)| {
            let end = if at == last { END_HEADERS } else { 0 };
            match (at, pad) {
                (0, 0) => frame(HEADERS, flags | end, stream, &[&head, piece].concat()),
                (0, pad) => frame(
                    HEADERS,
                    flags | end | PADDED,
                    stream,
                    &[&[pad][..], &head, piece, &vec![0; pad.into()]].concat(),
                ),
                _ => frame(CONTINUATION, end, stream, piece),
            }
        })
        .collect();
    if flags & END_STREAM != 0 {
        return frames;
    }
    frames.extend(split(random, &ask.body, 16_384).into_iter().map(|piece| frame(DATA, 0, stream, piece)));
    match random.random_range(0..8) {
        0 => frames.push(frame(RST_STREAM, 0, stream, &random.random_range(0..14u32).to_be_bytes())),
        1 => frames.push(frame(HEADERS, END_STREAM | END_HEADERS, stream, &literal("upload-checksum", "md5 AAAA"))),
        2 => {}
        _ => frames.push(frame(DATA, END_STREAM, stream, &[])),
    }
    frames
}

/// In some pieces, none of them longer; some of nothing.
fn split<'a>(random: &mut StdRng, mut bytes: &'a [u8], longest: usize) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    while bytes.len() > longest || random.random_ratio(1, 4) {
        let (first, rest) = bytes.split_at(random.random_range(0..=bytes.len().min(longest)));
        pieces.push(first);
        bytes = rest;
    }
    pieces.push(bytes);
    pieces
}

fn block(random: &mut StdRng, ask: &Ask) -> Vec<u8> {
    const FORMS: &[u8] = &[LITERAL, LITERAL, REMEMBERED, NEVER];
    let mut fields = vec![(":method", ask.method.as_bytes()), (":scheme", b"https"), (":path", ask.path.as_bytes())];
    match random.random_range(0..10) {
        0 => {}
        1 => fields.push((":authority", b"localhost:443")),
        _ => fields.push((":authority", b"127.0.0.1")),
    }
    let own = ask.headers.iter().map(|(name, value)| (name.as_str(), &value[..]));
    fields.extend(own.filter(|(name, _)| !matches!(*name, "connection" | "transfer-encoding" | "upgrade")));
    let length = ask.body.len().to_string();
    if random.random_ratio(1, 2) {
        fields.push(("content-length", length.as_bytes()));
    }
    let mut block = Vec::new();
    if random.random_ratio(1, 20) {
        block.push(0x20 | random.random_range(0..31));
    }
    for (name, value) in fields {
        block.extend(field(pick(random, FORMS), name.as_bytes(), value));
    }
    // What was remembered, or the table's end.
    for _ in 0..random.random_range(0..3) {
        if random.random_ratio(1, 8) {
            block.push(0x80 | random.random_range(15..75));
        }
    }
    block
}

fn settings(random: &mut StdRng) -> Vec<u8> {
    let values = (0..random.random_range(0..6)).flat_map(|_| {
        let (id, value) = match random.random_range(0..8) {
            0 => (1, pick(random, &[0, 100, 4096, u32::MAX])),
            1 => (3, pick(random, &[0, 1, 100])),
            2 => (4, pick(random, &[0, 1, 65_535, 1 << 20, (1 << 31) - 1])),
            3 => (5, pick(random, &[16_384, 20_000, (1 << 24) - 1])),
            4 => (6, pick(random, &[0, 1000, u32::MAX])),
            5 => (8, pick(random, &[0, 1])),
            _ => (random.random_range(7..20), random.random()),
        };
        [&(id as u16).to_be_bytes()[..], &value.to_be_bytes()].concat()
    });
    frame(SETTINGS, 0, 0, &values.collect::<Vec<u8>>())
}

/// A frame of the connection, or one that any stream may have.
fn control(random: &mut StdRng, next: u32) -> Vec<u8> {
    let stream = random.random_range(0..next.max(2)) | 1;
    match random.random_range(0..9) {
        0 => settings(random),
        1 => frame(SETTINGS, ACK, 0, &[]),
        2 => frame(PING, pick(random, &[0, ACK]), 0, &random.random::<[u8; 8]>()),
        3 => frame(WINDOW_UPDATE, 0, 0, &random.random_range(1..1u32 << 20).to_be_bytes()),
        4 => frame(
            WINDOW_UPDATE,
            0,
            stream.min(next.saturating_sub(2).max(1)),
            &random.random_range(1..1u32 << 20).to_be_bytes(),
        ),
        5 => frame(PRIORITY, 0, stream, &[&(next + 2).to_be_bytes()[..], &[random.random()]].concat()),
        6 if random.random_ratio(1, 6) => {
            frame(GOAWAY, 0, 0, &[&[0; 4][..], &random.random_range(0..14u32).to_be_bytes(), &noise(random)].concat())
        }
        7 => frame(PRIORITY_UPDATE, 0, 0, &[&stream.to_be_bytes()[..], b"u=1, i"].concat()),
        _ => frame(random.random_range(0x0a..=0xff), random.random(), stream, &noise(random)),
    }
}

fn spoil(random: &mut StdRng, frames: &mut Vec<Vec<u8>>) {
    // The preface stands before the first; seldom is it what suffers.
    let (at, head) = match random.random_ratio(1, 50) {
        true => (0, PREFACE.len()),
        false => (random.random_range(1..frames.len()), 0),
    };
    let count = frames.len();
    let found = &mut frames[at];
    if found.len() < head + HEAD {
        return;
    }
    match random.random_range(0..10) {
        0 if at > 0 && count > 2 => drop(frames.remove(at)),
        0 | 1 => frames.push(frames[at].clone()),
        2 => frames.swap(at, random.random_range(1..count)),
        3 => found[head + 3] = random.random_range(0..12),
        4 => found[head + 4] = random.random(),
        5 => {
            let stream: u32 = pick(random, &[0, 1, 2, 3, 5, 7, 0x7fff_ffff, 0x8000_0001]);
            found[head + 5..head + HEAD].copy_from_slice(&stream.to_be_bytes());
        }
        6 => found[head + random.random_range(0..3)] = random.random(),
        7 => {
            // Cut, and said to be.
            let left = random.random_range(0..=found.len() - head - HEAD);
            found.truncate(head + HEAD + left);
            found[head..head + 3].copy_from_slice(&(left as u32).to_be_bytes()[1..]);
        }
        8 => found.truncate(random.random_range(0..found.len())),
        _ => {
            for _ in 0..random.random_range(1..6) {
                let byte = random.random_range(head..found.len());
                found[byte] = random.random();
            }
        }
    }
}
