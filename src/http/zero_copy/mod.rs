//! Stored bytes leave by `sendfile`: the stream under a plain HTTP/1.1 connection, and the body that makes use of it.
//!
//! hyper hands every body on as [`Bytes`], uncopied where the stream takes vectored writes. A [`Body`] of a stored blob
//! is one `Bytes` over memory that is mapped and never touched. [`Outgoing`], which the connection shares with its
//! requests, remembers which part of which file stands behind that address. When [`SendStream`] meets it among the slices
//! to write, it sends that part from the file; anything else is an ordinary write.
//!
//! Nothing here waits for a disk: before each `sendfile` the piece must be in memory and verified, or it is fetched
//! through the engine first, one chunk ahead: past the page cache when it is asked for the first time, and then it is sent
//! from its buffer; else it is in the page cache then. A client that takes nothing holds no buffer for longer than a
//! moment. docs/design/zero-copy.md has the measurements and the hazards.
//!
//! The connection's task owns the stream, the files being sent and the fetches under way; dropping it drops them all.

mod stream;
#[cfg(test)]
mod tests;
mod turn;

pub(super) use stream::SendStream;

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::request::Parts;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use reelring_storage::{BlobReader, Chunk, FileRegion, Payer};

use super::metrics::SentBytes;

/// How stored bytes leave on a connection, shared by its stream and its requests, in whose extensions it travels.
#[derive(Clone)]
pub(super) struct Outgoing(Arc<Way>);

struct Way {
    /// The parts of files that the connection was given and has not sent yet, in their order; `None` where everything
    /// passes through memory.
    files: Option<Mutex<VecDeque<Part>>>,
    sent: SentBytes,
    /// Who has the buffers that wait for this client.
    payer: Payer,
}

struct Part {
    /// Where its memory would be.
    address: Range<usize>,
    region: FileRegion,
}

impl Outgoing {
    /// For a connection under a [`SendStream`].
    pub(super) fn by_file(sent: SentBytes) -> Self {
        Self(Arc::new(Way { files: Some(Mutex::default()), sent, payer: Payer::Node }))
    }

    /// For a connection whose bytes are encrypted or framed on the way.
    pub(super) fn by_memory(sent: SentBytes) -> Self {
        Self(Arc::new(Way { files: None, sent, payer: Payer::Node }))
    }

    /// The same, for a client that pays for its buffers itself.
    pub(super) fn on_account_of(self, payer: Payer) -> Self {
        let way = Arc::into_inner(self.0).expect("nobody shares it yet");
        Self(Arc::new(Way { payer, ..way }))
    }

    pub(super) fn payer(&self) -> Payer {
        self.0.payer
    }

    /// Who pays for what a request has in memory: one that came by no connection is the node's own.
    pub(super) fn payer_of(request: &Parts) -> Payer {
        request.extensions.get().map_or(Payer::Node, Self::payer)
    }

    /// The part of `blob` as a body, if it can be sent from the file.
    pub(super) fn body(&self, blob: &BlobReader, part: &Range<u64>) -> Option<Body> {
        if self.0.files.is_none() || part.is_empty() {
            return None;
        }
        Some(Body::new(RegionBody { outgoing: self.clone(), region: Some(blob.region(part.clone())?) }))
    }

    /// Counts a chunk that goes through memory.
    pub(super) fn passed(&self, chunk: &Chunk) {
        let path = if chunk.from_disk { &self.0.sent.reactor } else { &self.0.sent.mmap };
        path.inc_by(chunk.bytes.len() as u64);
    }

    fn parts(&self) -> Option<MutexGuard<'_, VecDeque<Part>>> {
        self.0.files.as_ref().map(|files| files.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn push(&self, region: FileRegion) -> Bytes {
        let bytes = region.bytes();
        let address = bytes.as_ptr().addr()..bytes.as_ptr().addr() + bytes.len();
        self.parts().expect("a body of a file has a connection that sends files").push_back(Part { address, region });
        bytes
    }

    /// The file behind a slice, and the place in it.
    fn find(&self, slice: &[u8]) -> Option<(FileRegion, u64)> {
        let address = slice.as_ptr().addr();
        let parts = self.parts()?;
        let part = parts.front().filter(|part| part.address.contains(&address))?;
        Some((part.region.clone(), part.region.range().start + (address - part.address.start) as u64))
    }

    /// The first part was sent up to `end`, a place in its file.
    fn sent(&self, end: u64) {
        if let Some(mut parts) = self.parts()
            && parts.front().is_some_and(|part| part.region.range().end <= end)
        {
            parts.pop_front();
        }
    }
}

/// One frame: the whole region.
struct RegionBody {
    outgoing: Outgoing,
    region: Option<FileRegion>,
}

impl HttpBody for RegionBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Poll::Ready(self.region.take().map(|region| Ok(Frame::data(self.outgoing.push(region)))))
    }

    fn is_end_stream(&self) -> bool {
        self.region.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let range = self.region.as_ref().map_or(0..0, FileRegion::range);
        SizeHint::with_exact(range.end - range.start)
    }
}
