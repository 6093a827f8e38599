//! Noise for the whole node: requests that are nearly ones in HTTP/1.1 and HTTP/2, in the clear and in TLS, and what is not
//! even TLS. It must cost neither the node's life, nor its memory, nor its descriptors, nor what others get meanwhile.
//!
//! For `REELRING_FUZZ_SECONDS` (2 by default) in each test, from `REELRING_FUZZ_SEED` (a new one by default, told as it goes).
//! What a connection says depends on the seed and on the connection's number alone, never on what the node answers.

mod ask;
mod conversation;
mod handshake;
mod siege;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use crate::support::node::Node;
use crate::support::scratch;
use crate::tls::Secure;
use ask::Ask;
use rand::Rng;
use rand::rngs::StdRng;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use siege::{Friend, SETTINGS, besiege};

/// An answer is waited for this long; what it says is not looked at.
const GLANCE: Duration = Duration::from_millis(5);

#[tokio::test(flavor = "multi_thread")]
async fn noise_in_the_clear() {
    let folder = scratch("noise");
    let mut node = Node::start_with(&folder.path().join("data"), SETTINGS).await;
    let friend = Friend::new(reqwest::Client::builder(), node.url(""));
    let addr = node.addr();
    besiege("requests", &mut node, friend, move |random, upload| {
        let texts = texts(random, upload);
        let mut stream = connect(addr, random)?;
        stream.set_read_timeout(Some(GLANCE))?;
        Ok(say(&mut stream, random, &texts))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_in_tls() {
    let mut secure = Secure::start_with("noise-tls", SETTINGS).await;
    let friend = Friend::new(secure.client().http1_only(), secure.url(""));
    let door = Door::new(&secure, &[&[], &[b"http/1.1"]]);
    besiege("requests", &mut secure.node, friend, move |random, upload| {
        let texts = texts(random, upload);
        door.say(random, &texts)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_in_http2() {
    let mut secure = Secure::start_with("noise-h2", SETTINGS).await;
    let friend = Friend::new(secure.client(), secure.url(""));
    let door = Door::new(&secure, &[&[b"h2"], &[b"h2", b"http/1.1"]]);
    besiege("frames", &mut secure.node, friend, move |random, upload| {
        let frames = conversation::frames(random, upload);
        // Some together, and seldom the end of one with the beginning of the next.
        let mut flights: Vec<Vec<u8>> = Vec::new();
        for frame in &frames {
            match flights.last_mut() {
                Some(flight) if random.random_ratio(3, 4) => flight.extend(frame),
                _ => flights.push(frame.clone()),
            }
        }
        door.say(random, &flights).map(|_| frames.len() as u64)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_instead_of_tls() {
    let mut secure = Secure::start_with("noise-records", SETTINGS).await;
    let friend = Friend::new(secure.client(), secure.url(""));
    let addr = secure.node.addr();
    besiege("records", &mut secure.node, friend, move |random, _| {
        let records = if random.random_ratio(1, 8) { handshake::nonsense(random) } else { handshake::records(random) };
        let mut stream = connect(addr, random)?;
        stream.set_read_timeout(Some(GLANCE))?;
        Ok(say(&mut stream, random, &records))
    })
    .await;
}

fn texts(random: &mut StdRng, upload: &str) -> Vec<Vec<u8>> {
    (0..random.random_range(1..20)).map(|_| Ask::random(random, upload).as_text(random)).collect()
}

/// As often as not it will end with a reset. The others leave an end behind that takes a port for a while.
fn connect(addr: SocketAddr, random: &mut StdRng) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(Duration::from_millis(500)))?;
    if random.random_ratio(1, 2) {
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    }
    Ok(stream)
}

/// Says one piece after the other until the node wants no more; how many.
fn say(stream: &mut (impl Read + Write), random: &mut StdRng, pieces: &[Vec<u8>]) -> u64 {
    let mut answer = [0; 16 << 10];
    for (at, piece) in pieces.iter().enumerate() {
        if stream.write_all(piece).and(stream.flush()).is_err() {
            return at as u64;
        }
        if random.random_ratio(1, 2) {
            let _ = stream.read(&mut answer);
        }
    }
    let _ = stream.read(&mut answer);
    pieces.len() as u64
}

/// The way in by TLS.
#[derive(Clone)]
struct Door {
    addr: SocketAddr,
    configs: Vec<Arc<ClientConfig>>,
}

impl Door {
    /// With each of the lists of protocols, in both versions of TLS.
    fn new(secure: &Secure, protocols: &[&[&[u8]]]) -> Door {
        let versions = [&[&TLS13, &TLS12][..], &[&TLS12]];
        let configs = protocols.iter().flat_map(|protocols| versions.map(|versions| (*protocols, versions)));
        let configs = configs.map(|(protocols, versions)| Arc::new(secure.config(protocols, versions)));
        Door { addr: secure.node.addr(), configs: configs.collect() }
    }

    fn say(&self, random: &mut StdRng, pieces: &[Vec<u8>]) -> io::Result<u64> {
        let config = self.configs[random.random_range(0..self.configs.len())].clone();
        let mut sock = connect(self.addr, random)?;
        sock.set_read_timeout(Some(Duration::from_secs(10)))?;
        let name = ServerName::try_from("localhost").expect("a name");
        let mut conn = ClientConnection::new(config, name).map_err(io::Error::other)?;
        conn.complete_io(&mut sock)?;
        sock.set_read_timeout(Some(GLANCE))?;
        let mut stream = StreamOwned::new(conn, sock);
        // Seldom is what is said last encrypted and then broken.
        let broken = if random.random_ratio(1, 4) { pieces.len().saturating_sub(1) } else { pieces.len() };
        let said = say(&mut stream, random, &pieces[..broken]);
        if random.random_ratio(1, 16) {
            let _ = stream.conn.refresh_traffic_keys();
        }
        for piece in &pieces[broken..] {
            let mut record = Vec::new();
            stream.conn.writer().write_all(piece)?;
            while stream.conn.wants_write() {
                stream.conn.write_tls(&mut record)?;
            }
            handshake::scratch(random, &mut record);
            let _ = stream.sock.write_all(&record);
            let _ = stream.read(&mut [0; 1 << 10]);
        }
        if random.random_ratio(1, 2) {
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
        Ok(said)
    }
}
