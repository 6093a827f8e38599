//! An HTTP origin that misbehaves as told, and remembers what it was asked for.
//!
//! A path is answered by a function of the request and of how often the path was asked before, so a test scripts any fault
//! in a line or two. [`File`] is the well-behaved answer to start from. The origin listens on a random loopback port and
//! ends with its handle.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use url::Url;

/// One request as the origin saw it.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("tests send text"))
    }

    /// The first byte of `Range: bytes=N-`.
    pub fn range_start(&self) -> Option<u64> {
        self.header("range").map(|range| {
            let start = range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
            start.and_then(|start| start.parse().ok()).unwrap_or_else(|| panic!("unexpected range {range}"))
        })
    }
}

/// An answer: a head, and a body in pieces.
#[derive(Debug)]
pub struct Reply {
    status: u16,
    headers: HeaderMap,
    pieces: Vec<Piece>,
    declared: bool,
}

#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    Wait(Duration),
    /// The connection is closed in mid-body.
    Cut,
}

/// Small enough that a cut or a pause falls between two reads of the client.
const PIECE_BYTES: usize = 64 << 10;

impl Reply {
    pub fn status(status: u16) -> Reply {
        Reply { status, headers: HeaderMap::new(), pieces: Vec::new(), declared: true }
    }

    pub fn bytes(status: u16, bytes: impl Into<Bytes>) -> Reply {
        let mut bytes = bytes.into();
        let mut reply = Reply::status(status);
        while !bytes.is_empty() {
            reply.pieces.push(Piece::Bytes(bytes.split_to(bytes.len().min(PIECE_BYTES))));
        }
        reply
    }

    pub fn redirect(to: &str) -> Reply {
        Reply::status(302).header("location", to)
    }

    pub fn header(mut self, name: &'static str, value: &str) -> Reply {
        let value = HeaderValue::from_str(value).expect("a header value");
        self.headers.insert(HeaderName::from_static(name), value);
        self
    }

    pub fn without(mut self, name: &str) -> Reply {
        self.headers.remove(name);
        self
    }

    /// Chunked instead of a declared length.
    pub fn chunked(mut self) -> Reply {
        self.declared = false;
        self
    }

    /// Closes the connection after `at` bytes of the body.
    pub fn cut_at(self, at: usize) -> Reply {
        self.then_at(at, Piece::Cut)
    }

    /// Sends nothing for `pause` after `at` bytes of the body.
    pub fn pause_at(self, at: usize, pause: Duration) -> Reply {
        self.then_at(at, Piece::Wait(pause))
    }

    fn then_at(mut self, at: usize, then: Piece) -> Reply {
        // The head declares the whole body, whatever becomes of it.
        self = self.declare();
        let mut sent = 0;
        for index in 0..self.pieces.len() {
            let Piece::Bytes(bytes) = &mut self.pieces[index] else { continue };
            if sent + bytes.len() >= at {
                let rest = bytes.split_off(at - sent);
                self.pieces.insert(index + 1, Piece::Bytes(rest));
                self.pieces.insert(index + 1, then);
                return self;
            }
            sent += bytes.len();
        }
        panic!("the body has only {sent} bytes");
    }

    /// Bytes of the body.
    pub fn length(&self) -> usize {
        let bytes = |piece: &Piece| if let Piece::Bytes(bytes) = piece { bytes.len() } else { 0 };
        self.pieces.iter().map(bytes).sum()
    }

    fn declare(mut self) -> Reply {
        if self.declared && !self.headers.contains_key("content-length") {
            self.headers.insert("content-length", HeaderValue::from(self.length()));
        }
        self
    }
}

/// A file served as it should be: ranges, `If-Range`, 416.
#[derive(Debug, Clone)]
pub struct File {
    pub bytes: Bytes,
    pub etag: Option<&'static str>,
    pub last_modified: Option<&'static str>,
    pub content_type: &'static str,
}

/// A date long gone, so that it counts as a strong validator.
pub const LONG_AGO: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

impl File {
    pub fn new(bytes: impl Into<Bytes>) -> File {
        File { bytes: bytes.into(), etag: None, last_modified: None, content_type: "video/mp4" }
    }

    pub fn etag(self, etag: &'static str) -> File {
        File { etag: Some(etag), ..self }
    }

    pub fn last_modified(self, date: &'static str) -> File {
        File { last_modified: Some(date), ..self }
    }

    pub fn reply(&self, asked: &Asked) -> Reply {
        let fresh = match asked.header("if-range") {
            None => true,
            Some(version) if version.starts_with('"') => self.etag == Some(version),
            Some(date) => self.last_modified == Some(date),
        };
        match asked.range_start().filter(|_| fresh) {
            None => self.whole(),
            Some(start) if start < self.bytes.len() as u64 => self.part(start as usize),
            Some(_) => {
                self.described(Reply::status(416)).header("content-range", &format!("bytes */{}", self.bytes.len()))
            }
        }
    }

    /// The whole, whatever was asked for.
    pub fn whole(&self) -> Reply {
        self.described(Reply::bytes(200, self.bytes.clone()))
    }

    /// The rest from `start`, whatever `If-Range` said.
    pub fn part(&self, start: usize) -> Reply {
        let total = self.bytes.len();
        let reply = self.described(Reply::bytes(206, self.bytes.slice(start..)));
        reply.header("content-range", &format!("bytes {start}-{}/{total}", total - 1))
    }

    fn described(&self, mut reply: Reply) -> Reply {
        reply = reply.header("content-type", self.content_type).header("accept-ranges", "bytes");
        if let Some(etag) = self.etag {
            reply = reply.header("etag", etag);
        }
        if let Some(date) = self.last_modified {
            reply = reply.header("last-modified", date);
        }
        reply
    }
}

type Handler = Arc<dyn Fn(&Asked, usize) -> Reply + Send + Sync>;

#[derive(Default)]
struct Shared {
    handlers: Mutex<HashMap<String, Handler>>,
    log: Mutex<Vec<Asked>>,
}

/// The running origin; dropping it closes the listener.
pub struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Origin {
    pub async fn start() -> Origin {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a loopback port");
        let address = listener.local_addr().expect("a bound address");
        let shared = Arc::<Shared>::default();
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Origin { address, shared, accepting }
    }

    /// Every connection is answered with these bytes, as they are, and closed.
    pub async fn raw(answer: Vec<u8>) -> Origin {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a loopback port");
        let address = listener.local_addr().expect("a bound address");
        let accepting = tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let answer = answer.clone();
                tokio::spawn(async move {
                    // Whoever asks may well hang up on such an answer, so no result counts here.
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n")
                        && connection.read_buf(&mut request).await.is_ok_and(|n| n > 0)
                    {}
                    let _ = connection.write_all(&answer).await;
                    let _ = connection.shutdown().await;
                });
            }
        });
        Origin { address, shared: Arc::default(), accepting }
    }

    pub fn url(&self, path: &str) -> Url {
        Url::parse(&format!("http://{}{path}", self.address)).expect("a URL")
    }

    /// Answers `path` by `handler`, which is given the request and how many came before it.
    pub fn answer(&self, path: &str, handler: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Url {
        self.shared.handlers.lock().unwrap().insert(path.to_owned(), Arc::new(handler));
        self.url(path)
    }

    pub fn serve(&self, path: &str, file: File) -> Url {
        self.answer(path, move |asked, _| file.reply(asked))
    }

    /// The requests for `path` so far.
    pub fn asked(&self, path: &str) -> Vec<Asked> {
        self.shared.log.lock().unwrap().iter().filter(|asked| asked.path == path).cloned().collect()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((connection, _)) = listener.accept().await {
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let reply = shared.reply(&request);
                async move { Ok::<_, Infallible>(respond(reply)) }
            });
            // A scripted cut ends the connection with an error here.
            let _ =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(connection), service).await;
        });
    }
}

impl Shared {
    fn reply(&self, request: &Request<Incoming>) -> Reply {
        let path = request.uri().path().to_owned();
        let asked = Asked { method: request.method().clone(), path, headers: request.headers().clone() };
        let before = {
            let mut log = self.log.lock().unwrap();
            log.push(asked.clone());
            log.iter().filter(|other| other.path == asked.path).count() - 1
        };
        let handler = self.handlers.lock().unwrap().get(&asked.path).cloned();
        handler.map_or_else(|| Reply::status(404), |handler| handler(&asked, before)).declare()
    }
}

type Pieces = std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send>>;

fn respond(reply: Reply) -> Response<StreamBody<Pieces>> {
    let frames: Pieces = Box::pin(stream::unfold(reply.pieces.into_iter(), |mut pieces| async move {
        loop {
            match pieces.next()? {
                Piece::Bytes(bytes) if bytes.is_empty() => {}
                Piece::Bytes(bytes) => return Some((Ok(Frame::data(bytes)), pieces)),
                Piece::Wait(pause) => tokio::time::sleep(pause).await,
                Piece::Cut => {
                    // What was sent so far gets a chance to leave before the connection goes.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    return Some((Err(std::io::Error::other("cut")), pieces));
                }
            }
        }
    }));
    let mut response = Response::new(StreamBody::new(frames));
    *response.status_mut() = StatusCode::from_u16(reply.status).expect("a status");
    *response.headers_mut() = reply.headers;
    response
}
