//! A TCP proxy that is far away and has a limit: what passes through it arrives later, and no faster than the limit.
//!
//! It stands between a downloader and an origin, so that both rivals meet the same distance without root rights or kernel
//! modules. Each direction of each connection has a thread that reads and stamps pieces with the time they are due, and
//! one that writes them when they are. Delays do not add up: a bounded queue between the two is the wire. The distance
//! shows as the latency of every request and of the handshake; congestion control and loss are not imitated.
//!
//! [`Origin`] owns the listener and all threads: dropping it closes every socket and joins them.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::limits;

/// How far away, and how narrow.
#[derive(Debug, Clone, Copy)]
pub struct Wire {
    /// Of a request and the first byte of its answer.
    pub round_trip: Duration,
    /// Towards the client, each connection for itself.
    pub bytes_per_second: Option<u64>,
}

/// A running proxy in front of one address.
pub struct Origin {
    addr: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    to: SocketAddr,
    wire: Wire,
    ending: AtomicBool,
    connections: Mutex<Vec<Connection>>,
}

/// Both sockets of a connection and the threads that serve it.
struct Connection {
    sockets: [TcpStream; 2],
    threads: Vec<JoinHandle<()>>,
}

/// A piece of the stream and when it is due at the other end.
type Due = (Instant, Vec<u8>);

impl Origin {
    /// Listens on a free port of loopback and passes everything on to `to`.
    pub fn start(to: SocketAddr, wire: Wire) -> io::Result<Origin> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared { to, wire, ending: AtomicBool::new(false), connections: Mutex::default() });
        let acceptor = thread::Builder::new().name("origin".into()).spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        })?;
        Ok(Origin { addr, shared, acceptor: Some(acceptor) })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Release);
        // Wakes the acceptor, which is the only one that adds connections.
        let _ = TcpStream::connect_timeout(&self.addr, Duration::from_secs(1));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        let connections = std::mem::take(&mut *self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner));
        connections.into_iter().for_each(Connection::end);
    }
}

impl Connection {
    fn end(self) {
        for socket in &self.sockets {
            let _ = socket.shutdown(Shutdown::Both);
        }
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((client, _)) = listener.accept() {
        if shared.ending.load(Ordering::Acquire) {
            return;
        }
        let mut connections = shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that are over make room; beyond the limit a client is turned away.
        let (over, live) = std::mem::take(&mut *connections)
            .into_iter()
            .partition(|connection: &Connection| connection.threads.iter().all(JoinHandle::is_finished));
        *connections = live;
        let over: Vec<Connection> = over;
        over.into_iter().for_each(Connection::end);
        if connections.len() < limits::ORIGIN_CONNECTIONS
            && let Ok(connection) = connect(client, shared)
        {
            connections.push(connection);
        }
    }
}

fn connect(client: TcpStream, shared: &Shared) -> io::Result<Connection> {
    let server = TcpStream::connect_timeout(&shared.to, Duration::from_secs(5))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let one_way = shared.wire.round_trip / 2;
    let mut connection = Connection { sockets: [client.try_clone()?, server.try_clone()?], threads: Vec::new() };
    let outcome = (|| {
        // The kernel has shaken hands at once; the first request waits as long as it would have taken.
        let open = Instant::now() + shared.wire.round_trip;
        let up = Leg { delay: one_way, not_before: open, bytes_per_second: None };
        let down = Leg { delay: one_way, not_before: open, bytes_per_second: shared.wire.bytes_per_second };
        connection.threads.extend(up.start(client.try_clone()?, server.try_clone()?)?);
        connection.threads.extend(down.start(server, client)?);
        Ok(())
    })();
    match outcome {
        Ok(()) => Ok(connection),
        Err(error) => {
            connection.end();
            Err(error)
        }
    }
}

/// One direction of one connection.
struct Leg {
    delay: Duration,
    not_before: Instant,
    bytes_per_second: Option<u64>,
}

impl Leg {
    fn start(self, from: TcpStream, to: TcpStream) -> io::Result<[JoinHandle<()>; 2]> {
        let (sender, receiver) = sync_channel(limits::ORIGIN_PIECES);
        let reader = thread::Builder::new().name("origin-in".into()).spawn(move || self.read(from, &sender))?;
        let writer = thread::Builder::new().name("origin-out".into()).spawn(move || write(to, &receiver))?;
        Ok([reader, writer])
    }

    /// Ends with the stream, an error, or the writer.
    fn read(self, mut from: TcpStream, sender: &SyncSender<Due>) {
        let mut buffer = vec![0; limits::ORIGIN_PIECE_BYTES];
        let mut free = self.not_before;
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            let now = Instant::now();
            // The wire is busy with one piece until the next may enter it; an idle wire saves up nothing.
            free = free.max(now);
            if let Some(rate) = self.bytes_per_second {
                free += Duration::from_secs_f64(read as f64 / rate.max(1) as f64);
            }
            if sender.send((free + self.delay, buffer[..read].to_vec())).is_err() {
                break;
            }
        }
    }
}

fn write(mut to: TcpStream, receiver: &Receiver<Due>) {
    for (due, piece) in receiver {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&piece).is_err() {
            // The reader notices when its next piece finds no taker, or when its socket is closed here.
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `bytes` to whoever says something.
    fn server(bytes: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().take(4) {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    let _ = stream.read(&mut [0; 16]);
                    let _ = stream.write_all(&vec![7; bytes]);
                });
            }
        });
        addr
    }

    fn ask(addr: SocketAddr) -> (Duration, Duration, usize) {
        let start = Instant::now();
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.write_all(b"go").unwrap();
        let mut rest = Vec::new();
        stream.read_exact(&mut [0]).unwrap();
        let first = start.elapsed();
        stream.read_to_end(&mut rest).unwrap();
        (first, start.elapsed(), rest.len() + 1)
    }

    #[test]
    fn the_wire_is_long_and_narrow() {
        let wire = Wire { round_trip: Duration::from_millis(40), bytes_per_second: Some(4 << 20) };
        let origin = Origin::start(server(1 << 20), wire).unwrap();
        let (first, all, bytes) = ask(origin.addr());
        assert_eq!(bytes, 1 << 20);
        // Handshake, request and answer are two round trips. Only lower bounds: a busy machine is slower, never faster.
        assert!(first >= Duration::from_millis(80), "{first:?}");
        assert!(all >= Duration::from_millis(80 + 240), "{all:?}");
    }

    #[test]
    fn an_end_in_mid_stream_leaves_no_thread_and_no_listener() {
        let wire = Wire { round_trip: Duration::ZERO, bytes_per_second: Some(1 << 20) };
        let origin = Origin::start(server(64 << 20), wire).unwrap();
        let addr = origin.addr();
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.write_all(b"go").unwrap();
        stream.read_exact(&mut [0; 1000]).unwrap();
        drop(origin);
        // Joined: otherwise this would still deliver a minute's worth.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.len() < 32 << 20, "{}", rest.len());
        assert!(TcpStream::connect(addr).is_err());
    }
}
