//! Server-sent events, as the node sends them: `id`, `event` and one `data` line each.
//!
//! The stream is foreign input: one event may take at most [`EVENT_BYTES`].

use bytes::Bytes;
use futures_util::StreamExt;

use super::exit::{CliError, Result};
use super::transport::ByteStream;

/// A job with the largest request and error is far below this.
const EVENT_BYTES: usize = 1 << 20;

#[derive(Debug, Default, PartialEq)]
pub struct Event {
    pub name: String,
    pub data: String,
}

/// Reads events off a response. Dropping it closes the connection.
pub struct Events {
    body: ByteStream,
    parser: Parser,
}

impl Events {
    pub fn new(body: ByteStream) -> Self {
        Self { body, parser: Parser::default() }
    }

    /// The next event; `None` when the node ended the stream.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.parser.take() {
                return Ok(Some(event));
            }
            let Some(chunk) = self.body.next().await else { return Ok(None) };
            let chunk = chunk.map_err(|error| CliError::failed(format!("the stream of events broke off: {error}")))?;
            self.parser.push(&chunk)?;
        }
    }
}

/// Bytes that are not yet an event.
#[derive(Default)]
struct Parser {
    pending: Vec<u8>,
}

impl Parser {
    fn push(&mut self, chunk: &Bytes) -> Result<()> {
        if self.pending.len() + chunk.len() > EVENT_BYTES {
            return Err(CliError::failed(format!("the node sent an event of more than {EVENT_BYTES} bytes")));
        }
        self.pending.extend_from_slice(chunk);
        Ok(())
    }

    /// Takes the first whole event; comments, which keep the connection alive, are skipped.
    fn take(&mut self) -> Option<Event> {
        loop {
            let end = self.pending.windows(2).position(|pair| pair == b"\n\n")?;
            let block: Vec<u8> = self.pending.drain(..end + 2).collect();
            let block = String::from_utf8_lossy(&block);
            let mut event = Event::default();
            for line in block.lines() {
                let (field, value) = line.split_once(':').unwrap_or((line, ""));
                let value = value.strip_prefix(' ').unwrap_or(value);
                match field {
                    "event" => event.name = value.into(),
                    "data" => event.data.push_str(value),
                    _ => {}
                }
            }
            if event != Event::default() {
                return Some(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_any_split() {
        let wire = ": hello\n\nid: 7\nevent: job\ndata: {\"a\":1}\n\n:\n\nevent: reset\ndata: {}\n\n";
        for step in [1, 2, 3, 100] {
            let mut parser = Parser::default();
            let mut events = Vec::new();
            for chunk in wire.as_bytes().chunks(step) {
                parser.push(&Bytes::copy_from_slice(chunk)).unwrap();
                events.extend(std::iter::from_fn(|| parser.take()));
            }
            let event = |name: &str, data: &str| Event { name: name.into(), data: data.into() };
            assert_eq!(events, [event("job", "{\"a\":1}"), event("reset", "{}")], "step {step}");
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = Parser::default();
        parser.push(&vec![b'x'; EVENT_BYTES].into()).unwrap();
        assert!(parser.push(&Bytes::from_static(b"x")).is_err());
    }
}
