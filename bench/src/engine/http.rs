//! `http`: reads are GETs with a Range, writes are PUTs of whole objects, against a node.
//!
//! It uses hyper's connection itself, one for each operation in flight, without the pool, the redirects and the TLS that a
//! general client such as reqwest puts around the same connection: what is measured should be the node. A connection is taken
//! by one operation and given back when its answer was read to the end; one whose operation failed is closed.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_LENGTH, HOST, RANGE};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Block, Done, Engine};
use crate::limits::HTTP_ERROR_BYTES;
use crate::plan::Op;

#[derive(Clone)]
pub struct Http {
    shared: Arc<Shared>,
}

struct Shared {
    /// `host:port` of the node.
    authority: String,
    /// The request targets of the clone's files.
    targets: Vec<String>,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Http {
    /// `authority` is the node's `host:port`, `keys` the names of the clone's objects.
    pub fn new(authority: &str, keys: &[String]) -> Http {
        Http::of_targets(authority, keys.iter().map(|key| format!("/v1/objects/{}", percent(key))).collect())
    }

    /// The same for whatever lies where on a server.
    pub fn of_targets(authority: &str, targets: Vec<String>) -> Http {
        Http { shared: Arc::new(Shared { authority: authority.into(), targets, idle: Mutex::default() }) }
    }

    /// Bytes of an object, or none if there is no such object.
    pub async fn length(&self, file: usize) -> io::Result<Option<u64>> {
        let request = self.request(Method::HEAD, file).body(Full::default()).map_err(io::Error::other)?;
        let mut connection = self.connection().await?;
        let answer = connection.send_request(request).await.map_err(io::Error::other)?;
        match answer.status() {
            StatusCode::OK => {
                let length = answer.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
                self.give_back(connection);
                length.map(Some).ok_or_else(|| io::Error::other("the node told no length"))
            }
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(io::Error::other(format!("HEAD was answered {status}"))),
        }
    }

    pub async fn put(&self, file: usize, body: Bytes) -> io::Result<()> {
        let request = self.request(Method::PUT, file).body(Full::new(body)).map_err(io::Error::other)?;
        let answer = self.exchange(request, &[StatusCode::CREATED, StatusCode::OK], None).await?;
        debug_assert!(answer <= HTTP_ERROR_BYTES as u64, "the answer to a PUT is short");
        Ok(())
    }

    async fn get(&self, file: usize, offset: u64, into: &mut [u8]) -> io::Result<u32> {
        let range = format!("bytes={offset}-{}", offset + into.len() as u64 - 1);
        let request = self.request(Method::GET, file).header(RANGE, range).body(Full::default());
        let request = request.map_err(io::Error::other)?;
        let asked = into.len();
        let got = self.exchange(request, &[StatusCode::PARTIAL_CONTENT], Some(into)).await?;
        if got == asked as u64 {
            return Ok(asked as u32);
        }
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("the node sent {got} of {asked} bytes")))
    }

    fn request(&self, method: Method, file: usize) -> hyper::http::request::Builder {
        Request::builder().method(method).uri(&self.shared.targets[file]).header(HOST, &self.shared.authority)
    }

    async fn connection(&self) -> io::Result<SendRequest<Full<Bytes>>> {
        loop {
            let idle = self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut connection) = idle else { break };
            // One that the node closed meanwhile is dropped.
            if connection.ready().await.is_ok() {
                return Ok(connection);
            }
        }
        let stream = TcpStream::connect(&self.shared.authority).await?;
        stream.set_nodelay(true)?;
        let (connection, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // Ends when the connection is dropped or the node closes it; its error reaches the operation too.
        tokio::spawn(driver);
        Ok(connection)
    }

    fn give_back(&self, connection: SendRequest<Full<Bytes>>) {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }

    /// Sends a request, reads the answer to its end, and returns how many bytes that was.
    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        expected: &[StatusCode],
        mut into: Option<&mut [u8]>,
    ) -> io::Result<u64> {
        let mut connection = self.connection().await?;
        let what = format!("{} {}", request.method(), request.uri());
        let mut answer = connection.send_request(request).await.map_err(io::Error::other)?;
        let mut got = 0;
        if !expected.contains(&answer.status()) {
            let status = answer.status();
            let mut told = Vec::new();
            while let Some(Ok(frame)) = answer.frame().await {
                let data = frame.into_data().unwrap_or_default();
                told.extend_from_slice(&data[..data.len().min(HTTP_ERROR_BYTES - told.len())]);
                if told.len() == HTTP_ERROR_BYTES {
                    break;
                }
            }
            let told = String::from_utf8_lossy(&told);
            return Err(io::Error::other(format!("{what} was answered {status}: {}", told.trim())));
        }
        while let Some(frame) = answer.frame().await {
            let Ok(data) = frame.map_err(io::Error::other)?.into_data() else { continue };
            let from = got as usize;
            got += data.len() as u64;
            if let Some(into) = &mut into {
                let room = into.get_mut(from..from + data.len());
                room.ok_or_else(|| io::Error::other(format!("{what} brought more than was asked")))?
                    .copy_from_slice(&data);
            } else if got > HTTP_ERROR_BYTES as u64 {
                return Err(io::Error::other(format!("{what} was answered at unexpected length")));
            }
        }
        self.give_back(connection);
        Ok(got)
    }
}

impl Engine for Http {
    fn start(&self, op: Op, mut block: Block) -> impl Future<Output = Done> + use<> {
        let http = self.clone();
        async move {
            let result = match op {
                Op::Read { file, offset, len } => {
                    http.get(file.into(), offset, &mut block.bytes_mut()[..len as usize]).await
                }
                Op::Write { file, len, .. } => {
                    let body = Bytes::copy_from_slice(&block.bytes()[..len as usize]);
                    http.put(file.into(), body).await.map(|()| len)
                }
                Op::Sync { .. } => Err(io::Error::other("HTTP has no sync: a PUT that was acknowledged is durable")),
            };
            Done { block, result, short: 0 }
        }
    }
}

/// A key as it stands in a request target.
fn percent(key: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for byte in key.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(byte.into()),
            _ => write!(out, "%{byte:02X}").expect("a String takes everything"),
        }
    }
    out
}
