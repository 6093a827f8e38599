//! TLS as bytes: greetings of a client and what may follow them, made by hand from random numbers, so that the same seed says
//! the same; whole, and broken.

use crate::support::words::{noise, pick};
use rand::Rng;
use rand::rngs::StdRng;

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION: u8 = 23;
const HEARTBEAT: u8 = 24;

const CLIENT_HELLO: u8 = 1;

/// Records of one connection.
pub fn records(random: &mut StdRng) -> Vec<Vec<u8>> {
    let hello = message(CLIENT_HELLO, &hello(random));
    let mut records = Vec::new();
    // A message may come in several records.
    let mut rest = &hello[..];
    while !rest.is_empty() {
        let most = if random.random_ratio(3, 4) { rest.len() } else { random.random_range(1..=rest.len()) };
        let (first, later) = rest.split_at(most);
        records.push(record(random, HANDSHAKE, first));
        rest = later;
    }
    for _ in 0..random.random_range(0..5) {
        let next = match random.random_range(0..8) {
            0 => record(random, CHANGE_CIPHER_SPEC, &[1]),
            1 => {
                let alert = [random.random_range(0..3), random.random()];
                record(random, ALERT, &alert)
            }
            2 => {
                // A message of the handshake that is not its turn, or that no one knows.
                let bytes = noise(random);
                let message = message(random.random_range(0..26), &bytes);
                record(random, HANDSHAKE, &message)
            }
            3 => record(random, HANDSHAKE, &hello),
            4 => {
                let bytes = noise(random);
                record(random, APPLICATION, &bytes)
            }
            // It claims to be longer than it is.
            5 => record(random, HEARTBEAT, &[1, 0xff, 0xff, 0]),
            6 => {
                let bytes = vec![random.random(); random.random_range(0..20_000)];
                record(random, APPLICATION, &bytes)
            }
            _ => record(random, APPLICATION, &[]),
        };
        records.push(next);
    }
    if random.random_ratio(3, 4) {
        (0..random.random_range(1..4)).for_each(|_| spoil(random, &mut records));
    }
    records
}

/// What has no beginning of TLS: text, or nothing of sense.
pub fn nonsense(random: &mut StdRng) -> Vec<Vec<u8>> {
    let mut bytes: Vec<u8> = (0..random.random_range(1..400)).map(|_| random.random()).collect();
    match random.random_range(0..4) {
        0 => bytes[0] = HANDSHAKE,
        1 => bytes = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        2 => bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        _ => {}
    }
    vec![bytes]
}

/// Changes some bytes, or cuts the end off.
pub fn scratch(random: &mut StdRng, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    if random.random_ratio(1, 4) {
        return bytes.truncate(random.random_range(0..bytes.len()));
    }
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..bytes.len());
        bytes[at] = random.random();
    }
}

fn spoil(random: &mut StdRng, records: &mut Vec<Vec<u8>>) {
    let at = random.random_range(0..records.len());
    match random.random_range(0..5) {
        0 => records.insert(at, records[at].clone()),
        1 => {
            let other = random.random_range(0..records.len());
            records.swap(at, other);
        }
        // A length that is not true: the two bytes after kind and version.
        2 if records[at].len() > 4 => records[at][3 + usize::from(random.random_ratio(1, 2))] = random.random(),
        _ => scratch(random, &mut records[at]),
    }
}

fn record(random: &mut StdRng, kind: u8, payload: &[u8]) -> Vec<u8> {
    let version: u16 = pick(random, &[0x0301, 0x0303, 0x0303, 0x0303, 0x0304, 0x0200]);
    [&[kind][..], &version.to_be_bytes(), &(payload.len() as u16).to_be_bytes(), payload].concat()
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &(body.len() as u32).to_be_bytes()[1..], body].concat()
}

/// With its length before it, in two bytes.
fn counted(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

/// As today's clients greet, more or less.
fn hello(random: &mut StdRng) -> Vec<u8> {
    let name = [&[0][..], &counted(b"localhost")].concat();
    let protocols: &[u8] = pick(random, &[&b"\x02h2\x08http/1.1"[..], b"\x02h2", b"\x08http/1.1", b"\x00", b"\x05h2"]);
    let key = counted(&[&[0, 29][..], &counted(&random.random::<[u8; 32]>())].concat());
    let known: &[(u16, Vec<u8>)] = &[
        (0, counted(&name)),
        (16, counted(protocols)),
        (10, counted(&[0, 29, 0, 23, 0, 24])),
        (11, vec![1, 0]),
        (13, counted(&[4, 3, 8, 4, 4, 1, 5, 3, 8, 5, 8, 7])),
        (43, vec![4, 3, 4, 3, 3]),
        (45, vec![1, 1]),
        (51, key),
        (35, noise(random)),
        (23, vec![]),
        (5, vec![1, 0, 0, 0, 0]),
        (0xff01, vec![0]),
    ];
    let mut extensions = Vec::new();
    for (id, body) in known {
        // Left out, sent twice, or another's.
        let times = if random.random_ratio(9, 10) { 1 } else { random.random_range(0..3) };
        let id = if random.random_ratio(1, 100) { random.random() } else { *id };
        for _ in 0..times {
            extensions.extend([&id.to_be_bytes()[..], &counted(body)].concat());
        }
    }
    if random.random_ratio(1, 4) {
        let identity = [&counted(&noise(random))[..], &random.random::<[u8; 4]>()].concat();
        let binder = [&[32][..], &random.random::<[u8; 32]>()].concat();
        extensions
            .extend([&41u16.to_be_bytes()[..], &counted(&[counted(&identity), counted(&binder)].concat())].concat());
    }
    let session: Vec<u8> = if random.random_ratio(1, 2) { random.random::<[u8; 32]>().to_vec() } else { Vec::new() };
    let suites = [0x13, 1, 0x13, 2, 0x13, 3, 0xc0, 0x2b, 0xc0, 0x2c, 0xc0, 0x2f, 0xcc, 0xa9, 0, 0xff];
    [
        &[3, 3][..],
        &random.random::<[u8; 32]>(),
        &[session.len() as u8],
        &session,
        &counted(&suites),
        &[1, 0],
        &counted(&extensions),
    ]
    .concat()
}
