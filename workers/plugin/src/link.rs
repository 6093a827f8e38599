//! The control socket, this process's only door.
//!
//! A thread of its own reads it, so that the end of the node ends the worker at once, whatever JavaScript is doing. The
//! engine's thread writes it and blocks meanwhile: a line logged before an endless loop still arrives, and since the node
//! never stops reading, a write cannot wait for long. A plugin's budgets are counted here, where they are spent.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::process::exit;
use std::thread;

use reelring_protocol::plugin::{LogLevel, ToNode, ToWorker, limits};
use reelring_protocol::{Frame, FrameReader, FrameWriter};
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc, oneshot};

/// The reading thread only moves frames.
const READER_STACK_BYTES: usize = 256 << 10;

/// The node's answer to one fetch.
#[derive(Debug)]
pub struct Page {
    pub status: u16,
    pub url: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// A fetch as the plugin asks for it, before any check.
#[derive(Debug)]
pub struct PageRequest {
    pub call: u64,
    pub method: String,
    pub url: String,
    pub headers: Vec<(String, String)>,
    pub body: Option<Vec<u8>>,
}

/// Starts the reading thread. The channel is unbounded because the thread must never wait (it would miss the node's end);
/// what can be in it is bounded by what the node has in flight.
pub fn listen(socket: UnixStream) -> io::Result<mpsc::UnboundedReceiver<Frame<ToWorker>>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    thread::Builder::new().name("control".into()).stack_size(READER_STACK_BYTES).spawn(move || {
        let mut frames = FrameReader::new(socket);
        loop {
            match frames.read() {
                Ok(Some(frame)) => {
                    let _ = sender.send(frame);
                }
                Ok(None) => exit(0),
                Err(error) => {
                    eprintln!("{error}");
                    exit(1);
                }
            }
        }
    })?;
    Ok(receiver)
}

/// The writing side and the budgets. Lives on the engine's thread.
pub struct Link {
    frames: RefCell<FrameWriter<UnixStream>>,
    /// Fetches made so far by each call in flight.
    calls: RefCell<HashMap<u64, u32>>,
    waiting: RefCell<HashMap<u64, oneshot::Sender<Result<Page, String>>>>,
    fetch_slots: Semaphore,
    fetches: Cell<u64>,
    log_lines_left: Cell<u32>,
}

impl Link {
    pub fn new(socket: UnixStream) -> Link {
        Link {
            frames: RefCell::new(FrameWriter::new(socket)),
            calls: RefCell::default(),
            waiting: RefCell::default(),
            fetch_slots: Semaphore::new(limits::FETCHES_IN_FLIGHT),
            fetches: Cell::new(0),
            log_lines_left: Cell::new(limits::LOG_LINES),
        }
    }

    /// Sends or, since a worker without its node has no purpose, ends the process.
    pub fn send(&self, message: &impl Serialize, payload: &[u8]) {
        if let Err(error) = self.frames.borrow_mut().write(message, payload) {
            eprintln!("{error}");
            exit(1);
        }
    }

    pub fn begin_call(&self, call: u64) {
        self.calls.borrow_mut().insert(call, 0);
        self.log_lines_left.set(limits::LOG_LINES);
    }

    pub fn end_call(&self, call: u64) {
        self.calls.borrow_mut().remove(&call);
    }

    pub fn open_calls(&self) -> Vec<u64> {
        self.calls.borrow().keys().copied().collect()
    }

    pub fn log(&self, level: LogLevel, text: &str) {
        let left = self.log_lines_left.get();
        let Some(after) = left.checked_sub(1) else { return };
        self.log_lines_left.set(after);
        self.send(&ToNode::Log { level, text: cut(text) }, b"");
        if after == 0 {
            let text = format!("further console lines are dropped: the limit is {} for one call", limits::LOG_LINES);
            self.send(&ToNode::Log { level: LogLevel::Warn, text }, b"");
        }
    }

    /// Asks the node for a page. The error is the text of the exception that the plugin sees.
    pub async fn fetch(&self, request: PageRequest) -> Result<Page, String> {
        self.check(&request)?;
        let _slot = self.fetch_slots.acquire().await.map_err(|error| error.to_string())?;
        let PageRequest { call, method, url, headers, body } = request;
        let fetch = self.fetches.get();
        self.fetches.set(fetch + 1);
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().insert(fetch, sender);
        let message = ToNode::Fetch { call, fetch, method, url, headers, has_body: body.is_some() };
        self.send(&message, body.as_deref().unwrap_or_default());
        receiver.await.map_err(|error| error.to_string())?
    }

    fn check(&self, request: &PageRequest) -> Result<(), String> {
        let over = |what: &str, value: usize, limit: usize| {
            if value > limit { Err(format!("{what} is {value}, the limit is {limit}")) } else { Ok(()) }
        };
        over("the length of a fetch's method", request.method.len(), limits::METHOD_BYTES)?;
        over("the length of a fetch's URL", request.url.len(), limits::URL_BYTES)?;
        over("the number of a fetch's headers", request.headers.len(), limits::FETCH_HEADERS)?;
        let header_bytes = request.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        over("the length of a fetch's headers", header_bytes, limits::FETCH_HEADER_BYTES)?;
        over("the length of a fetch's body", request.body.as_ref().map_or(0, Vec::len), limits::FETCH_REQUEST_BYTES)?;
        let mut calls = self.calls.borrow_mut();
        let Some(made) = calls.get_mut(&request.call) else {
            return Err(format!("{} was fetched after extract had ended", request.url));
        };
        *made += 1;
        if *made > limits::FETCHES_PER_CALL {
            return Err(format!(
                "one extract may fetch {} pages, {} is one more",
                limits::FETCHES_PER_CALL,
                request.url
            ));
        }
        Ok(())
    }

    /// Hands an answer to whoever waits; an answer that nobody waits for any more is dropped.
    pub fn answer(&self, fetch: u64, answer: Result<Page, String>) {
        if let Some(sender) = self.waiting.borrow_mut().remove(&fetch) {
            let _ = sender.send(answer);
        }
    }
}

/// At most [`limits::TEXT_BYTES`] of a text, cut between characters.
pub fn cut(text: &str) -> String {
    if text.len() <= limits::TEXT_BYTES {
        return text.to_owned();
    }
    let mut end = limits::TEXT_BYTES;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_keeps_whole_characters() {
        let text = "é".repeat(limits::TEXT_BYTES);
        let short = cut(&text);
        assert!(short.len() <= limits::TEXT_BYTES + "…".len() && short.ends_with("é…"));
        assert_eq!(cut("as it is"), "as it is");
    }
}
