//! A small blocking HTTP/1 client for loopback: one connection a request, every answer bounded and timed out.
//!
//! It stores and checks what is measured, and uploads it; what it uses itself is never a server's. A peer that stops sending ends the request after
//! [`limits::HTTP_SILENCE`]; nothing outlives the call but the [`Response`], which owns its socket.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, bail, ensure};
use rustix::fs::sendfile;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socket_with, sockopt};
use sha2::{Digest, Sha256};

use crate::compare::{congestion, stop};
use crate::limits;

/// An answer whose body has not been read yet.
pub struct Response {
    pub status: u16,
    /// Bytes of the status line and all header lines, as wrk counts them.
    pub head_bytes: u64,
    length: Option<u64>,
    body: BufReader<TcpStream>,
}

/// Sends a request and reads the head of the answer. `body` is its length and where it comes from.
pub fn request(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<(u64, &mut dyn Read)>,
) -> anyhow::Result<Response> {
    let doing = || format!("{method} http://{addr}{path}");
    let mut stream = ask(addr, method, path, headers, body.as_ref().map(|body| body.0)).with_context(doing)?;
    let sent = match body {
        Some((length, source)) => io::copy(&mut source.take(length), &mut stream).map(drop).map_err(Into::into),
        None => Ok(()),
    };
    answer(stream, sent).with_context(doing)
}

/// PUTs a whole file as fast as a client can: the kernel sends it from the page cache, so that the client's share of the
/// processors is small, and the same whoever takes it.
pub fn upload(addr: SocketAddr, path: &str, file: &File) -> anyhow::Result<Response> {
    let doing = || format!("PUT http://{addr}{path}");
    let length = file.metadata()?.len();
    let stream = ask(addr, "PUT", path, &[], Some(length)).with_context(doing)?;
    let sent = send(&stream, file, length);
    answer(stream, sent).with_context(doing)
}

fn send(stream: &TcpStream, file: &File, length: u64) -> anyhow::Result<()> {
    let mut at = 0;
    while at < length {
        stop::check()?;
        let piece = (length - at).min(limits::UPLOAD_PIECE) as usize;
        match sendfile(stream, file, Some(&mut at), piece) {
            Ok(0) => bail!("the file ended after {at} of {length} bytes"),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => bail!("nothing was taken for {:?} after {at} bytes", limits::HTTP_SILENCE),
            Err(error) => return Err(error).with_context(|| format!("sending after {at} bytes")),
        }
    }
    Ok(())
}

/// A connection that is not paced: where the system's congestion control is BBR, an upload would be as fast as its timers,
/// whoever takes it. Chosen before connecting, because a connection that once paced always does.
fn connect(addr: SocketAddr) -> anyhow::Result<TcpStream> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Where it is refused, both servers have the same slower client.
    let _ = sockopt::set_tcp_congestion(&socket, congestion::UNPACED);
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(limits::HTTP_SILENCE))?;
    // For connecting too.
    stream.set_write_timeout(Some(limits::HTTP_SILENCE))?;
    rustix::net::connect(&stream, &addr)?;
    Ok(stream)
}

/// Connects and sends the head of a request.
fn ask(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    length: Option<u64>,
) -> anyhow::Result<TcpStream> {
    let mut stream = connect(addr)?;
    // HTTP/1.0: the answer is never chunked, and its end is the end of the connection.
    let mut head = format!("{method} {path} HTTP/1.0\r\nHost: {addr}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(length) = length {
        head.push_str(&format!("Content-Length: {length}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    Ok(stream)
}

/// A refusal may come, and the connection close, before the body is sent: the answer says why.
fn answer(stream: TcpStream, sent: anyhow::Result<()>) -> anyhow::Result<Response> {
    match read_head(BufReader::with_capacity(limits::HTTP_BUFFER, stream)) {
        Ok(response) => Ok(response),
        Err(error) => Err(sent.err().unwrap_or(error)),
    }
}

fn read_head(mut stream: BufReader<TcpStream>) -> anyhow::Result<Response> {
    let mut head = String::new();
    let mut limited = (&mut stream).take(limits::HTTP_HEAD_BYTES);
    while !head.ends_with("\r\n\r\n") {
        if limited.read_line(&mut head)? == 0 {
            bail!("the answer's head ended after {} bytes (the limit is {})", head.len(), limits::HTTP_HEAD_BYTES);
        }
    }
    let mut lines = head.lines();
    let first = lines.next().unwrap_or_default();
    let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("not an HTTP/1 answer: {first:?}"))?;
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    Ok(Response { status, head_bytes: head.len() as u64, length, body: stream })
}

impl Response {
    /// Turns any status but `expected` into an error that carries the start of the answer.
    pub fn expect(mut self, expected: u16) -> anyhow::Result<Response> {
        if self.status != expected {
            let status = self.status;
            self.length = None;
            let mut start = Vec::new();
            let _ = self.body.take(limits::HTTP_COMPLAINT_BYTES).read_to_end(&mut start);
            bail!("answered {status} where {expected} was expected: {}", String::from_utf8_lossy(&start).trim());
        }
        Ok(self)
    }

    /// The whole body; more than [`limits::HTTP_TEXT_BYTES`] is an error.
    pub fn text(mut self) -> anyhow::Result<String> {
        let mut text = String::new();
        let read = (&mut self.body).take(limits::HTTP_TEXT_BYTES + 1).read_to_string(&mut text)? as u64;
        ensure!(read <= limits::HTTP_TEXT_BYTES, "an answer of more than {} bytes", limits::HTTP_TEXT_BYTES);
        self.complete(read)?;
        Ok(text)
    }

    /// Length and SHA-256 of the body.
    pub fn digest(mut self) -> anyhow::Result<(u64, String)> {
        let (read, hash) = digest(&mut self.body)?;
        self.complete(read)?;
        Ok((read, hash))
    }

    /// Hands over whatever arrives, piece by piece, until the answer ends or `each` says false. A silence of the length of
    /// the socket's time-out is handed over as an empty piece.
    pub fn follow(mut self, mut each: impl FnMut(&[u8]) -> anyhow::Result<bool>) -> anyhow::Result<()> {
        self.body.get_ref().set_read_timeout(Some(limits::POLL))?;
        loop {
            let piece = match self.body.fill_buf() {
                Ok([]) => return Ok(()),
                Ok(piece) => piece,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => &[],
                Err(error) => return Err(error.into()),
            };
            let read = piece.len();
            if !each(piece)? {
                return Ok(());
            }
            self.body.consume(read);
        }
    }

    /// Lets the body arrive without looking at it, and tells how many bytes came, until the answer ends or `each` says
    /// false; 0 is a silence, as in [`Response::follow`]. The kernel drops the bytes where they lie (tcp(7), `MSG_TRUNC`):
    /// a client that copies them takes processors that the server beside it lacks.
    pub fn discard(self, mut each: impl FnMut(usize) -> anyhow::Result<bool>) -> anyhow::Result<()> {
        self.body.get_ref().set_read_timeout(Some(limits::POLL))?;
        if !self.body.buffer().is_empty() && !each(self.body.buffer().len())? {
            return Ok(());
        }
        let mut room = vec![0; limits::HTTP_DISCARD];
        loop {
            let arrived = match recv(self.body.get_ref(), &mut room[..], RecvFlags::TRUNC) {
                Ok((_, 0)) => return Ok(()),
                Ok((_, arrived)) => arrived,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN | Errno::TIMEDOUT) => 0,
                Err(error) => return Err(error.into()),
            };
            if !each(arrived)? {
                return Ok(());
            }
        }
    }

    fn complete(&self, read: u64) -> anyhow::Result<()> {
        match self.length {
            Some(length) if length != read => bail!("the answer announced {length} bytes and ended after {read}"),
            _ => Ok(()),
        }
    }
}

/// Length and SHA-256 in hexadecimal of all that a reader gives.
pub fn digest(source: &mut dyn Read) -> io::Result<(u64, String)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; limits::HTTP_BUFFER];
    let mut total = 0;
    loop {
        match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                hash.update(&buffer[..read]);
                total += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok((total, hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Answers one request with these bytes.
    fn answering(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            stream.write_all(answer).unwrap();
        });
        addr
    }

    #[test]
    fn an_answer_is_taken_apart() {
        let head = b"HTTP/1.1 206 Partial Content\r\ncontent-length: 3\r\n\r\n";
        let addr = answering(b"HTTP/1.1 206 Partial Content\r\ncontent-length: 3\r\n\r\nabc");
        let response = request(addr, "GET", "/", &[("Range", "bytes=0-2")], None).unwrap();
        assert_eq!((response.status, response.head_bytes), (206, head.len() as u64));
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(response.digest().unwrap(), (3, abc.into()));
    }

    #[test]
    fn a_short_body_and_a_wrong_status_are_errors() {
        let addr = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc");
        let error = request(addr, "GET", "/", &[], None).unwrap().text().unwrap_err().to_string();
        assert_eq!(error, "the answer announced 9 bytes and ended after 3");
        let addr = answering(b"HTTP/1.1 507 Insufficient Storage\r\n\r\nno room");
        let error = request(addr, "GET", "/", &[], None).unwrap().expect(200).err().unwrap().to_string();
        assert_eq!(error, "answered 507 where 200 was expected: no room");
    }

    #[test]
    fn a_connection_is_not_paced() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(sockopt::tcp_congestion(&stream).unwrap(), congestion::UNPACED);
        assert_eq!(stream.write_timeout().unwrap(), Some(limits::HTTP_SILENCE));
    }

    #[test]
    fn a_file_is_uploaded_whole_and_a_refusal_in_between_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let mut taken = Vec::new();
            let (mut stream, _) = listener.accept().unwrap();
            while !taken.ends_with(b"the end") {
                let mut piece = [0; 4096];
                let read = stream.read(&mut piece).unwrap();
                taken.extend_from_slice(&piece[..read]);
            }
            stream.write_all(b"HTTP/1.1 201 Created\r\n\r\n").unwrap();
            taken
        });
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 100_000]).unwrap();
        file.write_all(b"the end").unwrap();
        upload(addr, "/x", &file).unwrap().expect(201).unwrap();
        let taken = server.join().unwrap();
        let head = b"PUT /x HTTP/1.0\r\n";
        assert!(taken.starts_with(head) && taken.len() > 100_007 + head.len(), "{}", taken.len());

        file.set_len(64 << 20).unwrap();
        let addr = answering(b"HTTP/1.1 507 Insufficient Storage\r\n\r\nno room");
        let told = upload(addr, "/x", &file).map(|answer| answer.status);
        // What is still under way may reset the connection before the answer is read, as with any client.
        assert!(matches!(told, Ok(507) | Err(_)), "{told:?}");
    }

    #[test]
    fn every_byte_that_is_discarded_is_counted_and_a_silence_is_none() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            // Some of the body comes with the head, the rest after a silence.
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nabc").unwrap();
            thread::sleep(limits::POLL * 3);
            stream.write_all(&vec![7; 3 << 20]).unwrap();
        });
        let (mut bytes, mut silences) = (0, 0);
        let counted = request(addr, "GET", "/", &[], None).unwrap().discard(|arrived| {
            bytes += arrived;
            silences += usize::from(arrived == 0);
            Ok(true)
        });
        counted.unwrap();
        assert_eq!(bytes, 3 + (3 << 20));
        assert!(silences > 0);
    }

    #[test]
    fn nonsense_is_refused() {
        for answer in [&b"SSH-2.0-x\r\n\r\n"[..], b"HTTP/1.1 2", b""] {
            assert!(request(answering(answer), "GET", "/", &[], None).is_err());
        }
    }
}
