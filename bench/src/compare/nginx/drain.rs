//! The same load as wrk's by a client that costs little: one thread, which lets the kernel drop what arrives.
//!
//! wrk copies every byte to where it looks at it. Beside a server that does not, on the same processors, wrk's copies are most
//! of the work, and its one thread ends what either server can reach: the ratio of the two then says little. This client
//! asks for the same ranges in the same order, reads the heads, and has bodies discarded (tcp(7), `MSG_TRUNC`).
//!
//! A closed loop: each connection asks again when its answer is complete. Latencies are as they were seen, without wrk's
//! correction. Owns its connections; they end with the call.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::wrk::{Blocks, Load, Outcome};
use crate::compare::{beside, stop};
use crate::limits;

/// Lays the load on `target` of a server for a round. Gives what was counted, and the CPU seconds of the client.
pub fn run(addr: SocketAddr, target: &str, load: &Load, seed: u32, round: Duration) -> anyhow::Result<(Outcome, f64)> {
    let cpu = beside::thread_cpu_seconds();
    let mut drain = Drain::connect(addr, target, load, seed)?;
    let start = Instant::now();
    let ends = start + round;
    for number in 0..drain.connections.len() {
        drain.ask(number)?;
    }
    let mut events = Vec::with_capacity(drain.connections.len());
    loop {
        stop::check()?;
        let left = ends.saturating_duration_since(Instant::now()).min(limits::POLL);
        let wait = Timespec { tv_sec: 0, tv_nsec: left.as_nanos() as i64 };
        events.clear();
        match epoll::wait(&drain.epoll, spare_capacity(&mut events), Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for answers"),
        }
        for event in &events {
            let number = event.data.u64() as usize;
            drain.read(number).with_context(|| format!("connection {number} to http://{addr}{target}"))?;
        }
        if Instant::now() >= ends {
            break;
        }
    }
    let Drain { requests, bytes, latencies, .. } = drain;
    let outcome = Outcome::counted(start.elapsed(), requests, bytes, &latencies);
    Ok((outcome, beside::thread_cpu_seconds() - cpu))
}

struct Drain<'a> {
    epoll: OwnedFd,
    connections: Vec<Connection>,
    load: &'a Load,
    blocks: Blocks,
    /// What a request begins with.
    head: String,
    room: Vec<u8>,
    /// Whole answers, and all bytes, as wrk counts them.
    requests: u64,
    bytes: u64,
    latencies: Histogram<u64>,
}

struct Connection {
    stream: TcpStream,
    asked: Instant,
    answer: Answer,
}

enum Answer {
    /// As much of its head as is there.
    Head(Vec<u8>),
    /// So much of its body is to come.
    Body(u64),
}

impl<'a> Drain<'a> {
    fn connect(addr: SocketAddr, target: &str, load: &'a Load, seed: u32) -> anyhow::Result<Drain<'a>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut connections = Vec::new();
        for number in 0..load.connections {
            stop::check()?;
            let stream = TcpStream::connect_timeout(&addr, limits::HTTP_SILENCE)
                .with_context(|| format!("connection {number} of {} to {addr}", load.connections))?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            epoll::add(&epoll, &stream, epoll::EventData::new_u64(number.into()), epoll::EventFlags::IN)?;
            connections.push(Connection { stream, asked: Instant::now(), answer: Answer::Head(Vec::new()) });
        }
        Ok(Drain {
            epoll,
            connections,
            load,
            blocks: load.blocks_from(seed),
            head: format!("GET {target} HTTP/1.1\r\nHost: {addr}\r\n"),
            room: vec![0; limits::HTTP_DISCARD],
            requests: 0,
            bytes: 0,
            latencies: Histogram::new_with_bounds(1, limits::LATENCY_NS, 3)?,
        })
    }

    fn ask(&mut self, number: usize) -> anyhow::Result<()> {
        let mut request = self.head.clone();
        if let Some(length) = self.load.range {
            let first = self.blocks.next(self.load) * length;
            request.push_str(&format!("Range: bytes={first}-{}\r\n", first + length - 1));
        }
        request.push_str("\r\n");
        let connection = &mut self.connections[number];
        connection.asked = Instant::now();
        connection.answer = Answer::Head(Vec::new());
        // The answer before it was complete, so the socket's buffer is empty.
        connection.stream.write_all(request.as_bytes()).context("asking")
    }

    /// Takes what has arrived, at most the rest of one answer: others wait.
    fn read(&mut self, number: usize) -> anyhow::Result<()> {
        loop {
            let connection = &mut self.connections[number];
            let (room, flags) = match &connection.answer {
                Answer::Head(_) => (limits::DRAIN_HEAD_BYTES, RecvFlags::empty()),
                Answer::Body(left) => ((*left).min(limits::HTTP_DISCARD as u64) as usize, RecvFlags::TRUNC),
            };
            let arrived = match recv(&connection.stream, &mut self.room[..room], flags) {
                Ok((_, 0)) => bail!("it was closed within an answer"),
                Ok((_, arrived)) => arrived,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            self.bytes += arrived as u64;
            let left = match &mut connection.answer {
                Answer::Head(head) => {
                    head.extend_from_slice(&self.room[..arrived]);
                    let Some(left) = body_left(head, self.load)? else { continue };
                    left
                }
                Answer::Body(left) => *left - arrived as u64,
            };
            connection.answer = Answer::Body(left);
            if left == 0 {
                self.latencies.saturating_record(connection.asked.elapsed().as_nanos() as u64);
                self.requests += 1;
                return self.ask(number);
            }
        }
    }
}

/// How much of the body is still to come, of an answer of which this is there; none while its head is not complete.
fn body_left(start: &[u8], load: &Load) -> anyhow::Result<Option<u64>> {
    let Some(head) = start.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4) else {
        ensure!(start.len() < limits::HTTP_HEAD_BYTES as usize, "a head of over {} bytes", limits::HTTP_HEAD_BYTES);
        return Ok(None);
    };
    let text = std::str::from_utf8(&start[..head]).context("the head of an answer")?;
    let expected = if load.range.is_some() { " 206 " } else { " 200 " };
    let status = text.lines().next().unwrap_or_default();
    ensure!(status.contains(expected), "answered {status:?}, not{expected}");
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<u64>().ok())?
    });
    let (length, there) = (length.context("an answer without a length")?, (start.len() - head) as u64);
    ensure!(length == load.answer(), "an answer of {length} bytes, not {}", load.answer());
    ensure!(there <= length, "an answer of {length} bytes is followed by {} that nobody asked for", there - length);
    Ok(Some(length - there))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    use super::*;

    const LOAD: Load = Load { connections: 3, size: 1 << 20, range: Some(1 << 16), distinct: true };

    /// Answers every request with `length` bytes; gives the ranges it was asked for when all its clients are gone.
    fn server(length: usize) -> (SocketAddr, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let serve = move |stream: TcpStream| {
            let mut asked = Vec::new();
            for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                let Ok(line) = line else { break };
                asked.extend(line.strip_prefix("Range: ").map(str::to_owned));
                let head = format!("HTTP/1.1 206 Partial Content\r\ncontent-length: {length}\r\n\r\n");
                let body = [head.into_bytes(), vec![7; length]].concat();
                if line.is_empty() && (&stream).write_all(&body).is_err() {
                    break;
                }
            }
            asked
        };
        let all = std::thread::spawn(move || {
            let clients: Vec<_> = (0..LOAD.connections)
                .map(|_| listener.accept().unwrap().0)
                .map(|stream| std::thread::spawn(move || serve(stream)))
                .collect();
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
        });
        (addr, all)
    }

    #[test]
    fn it_asks_for_what_wrk_asks_for_and_counts_every_byte() {
        let (addr, asked) = server(1 << 16);
        let (outcome, cpu) = run(addr, "/x", &LOAD, 7, Duration::from_millis(200)).unwrap();
        let head = "HTTP/1.1 206 Partial Content\r\ncontent-length: 65536\r\n\r\n".len() as u64;
        outcome.check(&LOAD, head).unwrap();
        assert!(outcome.requests > 3 && cpu > 0.0, "{outcome:?}");
        assert!(outcome.latency_ns().iter().all(|(_, ns)| *ns > 0) && outcome.seconds() >= 0.2, "{outcome:?}");
        let asked = asked.join().unwrap();
        assert!((outcome.requests..=outcome.requests + 3).contains(&(asked.len() as u64)));
        // Distinct: no block of the 16 comes a second time before each has come once.
        let mut first: Vec<&String> = asked.iter().collect();
        first.sort();
        first.dedup();
        assert_eq!(first.len(), asked.len().min(16));
    }

    #[test]
    fn a_wrong_answer_is_an_error() {
        let (addr, server) = server(1 << 15);
        let error = format!("{:#}", run(addr, "/x", &LOAD, 7, Duration::from_millis(200)).unwrap_err());
        assert!(error.contains("an answer of 32768 bytes, not 65536"), "{error}");
        server.join().unwrap();
        let whole = Load { range: None, ..LOAD };
        let head = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
        assert!(body_left(head, &whole).unwrap_err().to_string().contains("503"));
        assert_eq!(body_left(&head[..20], &whole).unwrap(), None);
    }
}
