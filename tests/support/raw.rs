//! HTTP by hand, for what a well-behaved client refuses to send: `..` in a path, half a body, a closed connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Sends the bytes as they are and reads to the end of the connection; the request must say `Connection: close`.
pub fn exchange(node: SocketAddr, request: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(node).expect("the node listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    stream.write_all(request).expect("the request is sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    (status.unwrap_or_else(|| panic!("no status in {answer:?}")), answer)
}

/// One request with a body whose path is not normalised on the way.
pub fn request(node: SocketAddr, method: &str, path: &str, body: &[u8]) -> (u16, String) {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {node}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    exchange(node, &[head.as_bytes(), body].concat())
}
