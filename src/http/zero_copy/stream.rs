//! The stream under a plain HTTP/1.1 connection: ordinary writes, and `sendfile` where a file stands behind the bytes.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use reelring_storage::{Arrival, Fetch, Fetched, FileRegion, Wanted};
use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::Outgoing;
use super::turn::{Turn, give_way};
use crate::limits;

/// A TCP stream that sends files.
pub(crate) struct SendStream {
    socket: TcpStream,
    outgoing: Outgoing,
    fetching: Fetching,
    /// Sent since the task last waited or gave others a turn.
    burst: usize,
    /// To check and to copy what comes from a disk.
    turn: Turn,
}

/// The chunks of the region in front that come from the disk.
#[derive(Default)]
struct Fetching {
    now: Option<Fetch>,
    /// The chunk behind it, begun early.
    ahead: Option<Fetch>,
    /// What has come and is not verified yet: that waits for its turn.
    arrived: Option<Arrival>,
    /// What was fetched past the page cache, or pushed out of it before it could be sent: it is sent from here.
    in_hand: Option<(u64, Fetched)>,
    pause: Pause,
}

/// How the client keeps up.
#[derive(Default)]
struct Pause {
    /// The client paused in this region, or in the one before: what it will come round to waits in the page cache.
    slow: bool,
    /// It paused in this region.
    paused: bool,
    /// Since when it takes nothing.
    since: Option<Instant>,
    /// Looks at that now and then.
    look: Option<Pin<Box<Sleep>>>,
}

impl SendStream {
    pub(crate) fn new(socket: TcpStream, outgoing: Outgoing) -> Self {
        Self { socket, outgoing, fetching: Fetching::default(), burst: 0, turn: Turn::default() }
    }

    /// Writes what the socket takes at once. With `more` it waits for what follows, so that both travel together.
    fn poll_send(&self, cx: &mut Context<'_>, parts: &[IoSlice<'_>], more: bool) -> Poll<io::Result<usize>> {
        let flags = if more { SendFlags::MORE | SendFlags::NOSIGNAL } else { SendFlags::NOSIGNAL };
        poll_socket(cx, &self.socket, parts.iter().map(|part| part.len()).sum(), || {
            Ok(rustix::net::sendmsg(&self.socket, parts, &mut SendAncillaryBuffer::default(), flags)?)
        })
    }

    /// Sends some of the `len` bytes at `at` of a file.
    fn poll_region(
        &mut self,
        cx: &mut Context<'_>,
        region: &FileRegion,
        at: u64,
        len: usize,
    ) -> Poll<io::Result<usize>> {
        let most = if self.fetching.is_under_way() { limits::SEND_BURST_COLD_BYTES } else { limits::SEND_BURST_BYTES };
        if self.burst >= most {
            // A client that takes bytes as fast as they come would keep its thread to itself. Those who are ready come
            // first, and those whose sockets have become ready meanwhile, which a mere wake-up would pass over.
            self.burst = 0;
            give_way(cx);
            return Poll::Pending;
        }
        let sent = match self.poll_piece(cx, region, at, len) {
            Poll::Pending => {
                self.burst = 0;
                if !self.turn.is_waiting() {
                    self.fetching.settle(cx);
                }
                return Poll::Pending;
            }
            Poll::Ready(sent) => sent?,
        };
        self.fetching.pause.since = None;
        if at + sent as u64 == region.range().end {
            self.fetching.end();
        }
        self.outgoing.sent(at + sent as u64);
        Poll::Ready(Ok(sent))
    }

    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        region: &FileRegion,
        at: u64,
        len: usize,
    ) -> Poll<io::Result<usize>> {
        loop {
            // Asked first: as long as the socket is full nobody needs to know what is in memory.
            if self.socket.poll_write_ready(cx)?.is_pending() {
                self.turn.leave();
                return Poll::Pending;
            }
            let in_hand = self.fetching.in_hand(at);
            if in_hand.as_ref().is_none_or(|(_, in_page_cache)| *in_page_cache) {
                let piece = region.sendable(at, len.min(limits::SEND_PIECE_BYTES)).map_err(cut_short)?;
                if piece > 0 {
                    self.turn.leave();
                    self.fetching.in_hand = None;
                    // Somebody else brought it in. A fetch that nobody polls would keep what it was given meanwhile.
                    (self.fetching.now, self.fetching.arrived) = (None, None);
                    // A part does not mean that the socket is full: a signal ends a `sendfile` too. Whoever then waited for room
                    // would wait for good, so it is tried until the kernel says that there is none.
                    let sent = ready!(poll_socket(cx, &self.socket, 0, || {
                        Ok(rustix::fs::sendfile(&self.socket, region.file(), Some(&mut at.clone()), piece)?)
                    }))?;
                    self.outgoing.0.sent.sendfile.inc_by(sent as u64);
                    self.burst += sent;
                    // Nothing sent of a piece that is there: somebody has cut the file off.
                    return Poll::Ready(if sent > 0 { Ok(sent) } else { Err(io::ErrorKind::UnexpectedEof.into()) });
                }
            }
            if in_hand.is_none() && self.fetching.poll(cx, region, at).map_err(cut_short)?.is_pending() {
                self.turn.leave();
                return Poll::Pending;
            }
            let turn = ready!(self.turn.poll(cx));
            if let Some((rest, _)) = in_hand {
                let piece = rest.len().min(len).min(limits::SEND_BURST_COLD_BYTES);
                let sent = ready!(self.poll_send(cx, &[IoSlice::new(&rest[..piece])], false))?;
                turn.over();
                if sent == rest.len() {
                    self.fetching.in_hand = None;
                }
                self.outgoing.0.sent.reactor.inc_by(sent as u64);
                return Poll::Ready(Ok(sent));
            }
            self.fetching.verify().map_err(cut_short)?;
            turn.over();
        }
    }
}

impl Fetching {
    /// Reads the chunk at `at`, and begins with the one behind it.
    fn poll(&mut self, cx: &mut Context<'_>, region: &FileRegion, at: u64) -> Poll<reelring_storage::Result<()>> {
        if self.arrived.as_ref().is_some_and(|arrival| arrival.range().contains(&at)) {
            return Poll::Ready(Ok(()));
        }
        let wanted = if self.pause.slow { Wanted::Later } else { Wanted::Now };
        let covers = |fetch: &Fetch| fetch.range().contains(&at);
        let now = self.now.take().filter(covers).or_else(|| self.ahead.take().filter(covers));
        let now = self.now.insert(now.unwrap_or_else(|| region.fetch(at, wanted)));
        let range = now.range();
        if self.ahead.is_none() && range.end < region.range().end {
            self.ahead = region.try_fetch(range.end, wanted);
        }
        let arrival = ready!(now.poll_arrival(cx));
        self.now = None;
        self.arrived = Some(arrival?);
        Poll::Ready(Ok(()))
    }

    /// Takes in hand what has come.
    fn verify(&mut self) -> reelring_storage::Result<()> {
        if let Some(arrival) = self.arrived.take() {
            self.in_hand = Some((arrival.range().start, arrival.verify()?));
        }
        Ok(())
    }

    /// The bytes at `at`, if they are here, and whether they are in the page cache too.
    fn in_hand(&self, at: u64) -> Option<(Bytes, bool)> {
        let (from, fetched) = self.in_hand.as_ref()?;
        let skip = at.checked_sub(*from)?;
        (skip < fetched.bytes.len() as u64).then(|| (fetched.bytes.slice(skip as usize..), fetched.in_page_cache))
    }

    /// Something of the region comes from the disk.
    fn is_under_way(&self) -> bool {
        self.now.is_some() || self.ahead.is_some() || self.arrived.is_some() || self.in_hand.is_some()
    }

    /// While the client is waited for, or the disk.
    fn settle(&mut self, cx: &mut Context<'_>) {
        if self.now.is_some() {
            return;
        }
        // What has come ahead through the page cache is in memory, and its buffer is of more use to others.
        if let Some(ahead) = self.ahead.as_mut().filter(|ahead| ahead.in_page_cache())
            && Pin::new(ahead).poll(cx).is_ready()
        {
            self.ahead = None;
        }
        self.in_hand.take_if(|(_, fetched)| fetched.in_page_cache);
        // What came past it is kept for a client that soon goes on: it would have to be read again.
        let holds = self.arrived.is_some() || self.in_hand.is_some() || self.ahead.is_some();
        if (self.pause.slow || holds) && self.pause.is_long(cx) {
            (self.arrived, self.in_hand) = (None, None);
            self.ahead.take_if(|ahead| !ahead.in_page_cache());
        }
    }

    /// The region was sent.
    fn end(&mut self) {
        (self.now, self.ahead, self.arrived, self.in_hand) = (None, None, None, None);
        self.pause.slow = std::mem::take(&mut self.pause.paused);
    }
}

impl Pause {
    /// To be asked while the client takes nothing, and again when the task is woken for it.
    fn is_long(&mut self, cx: &mut Context<'_>) -> bool {
        if self.paused {
            return true;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        // It goes on through pauses that end early, so that a full socket costs no timer.
        let look = self.look.get_or_insert_with(|| Box::pin(sleep(limits::SEND_PAUSE)));
        while look.as_mut().poll(cx).is_ready() {
            let rest = limits::SEND_PAUSE.saturating_sub(since.elapsed());
            if rest.is_zero() {
                (self.look, self.slow, self.paused) = (None, true, true);
                return true;
            }
            look.as_mut().reset(tokio::time::Instant::now() + rest);
        }
        false
    }
}

/// Tries `write` when the socket takes something, until it does. Fewer than `full` bytes mean that the socket is full now.
fn poll_socket(
    cx: &mut Context<'_>,
    socket: &TcpStream,
    full: usize,
    mut write: impl FnMut() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(socket.poll_write_ready(cx))?;
        let mut written = 0;
        // Said so, the next try waits for room without asking the kernel.
        let tried = socket.try_io(Interest::WRITABLE, || {
            written = write()?;
            if written < full { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match tried {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && written == 0 => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(error)),
            _ => return Poll::Ready(Ok(written)),
        }
    }
}

fn cut_short(error: reelring_storage::Error) -> io::Error {
    tracing::error!(%error, "an answer had to be cut short");
    io::Error::other(error)
}

impl AsFd for SendStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsyncWrite for SendStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let next = parts.iter().enumerate().find_map(|(at, part)| Some((at, this.outgoing.find(part)?)));
        let Some((plain, (region, at))) = next else { return this.poll_send(cx, parts, false) };
        let before: usize = parts[..plain].iter().map(|part| part.len()).sum();
        if before > 0 {
            let sent = ready!(this.poll_send(cx, &parts[..plain], true))?;
            if sent < before {
                return Poll::Ready(Ok(sent));
            }
        }
        match this.poll_region(cx, &region, at, parts[plain].len()) {
            Poll::Ready(Ok(sent)) => Poll::Ready(Ok(before + sent)),
            // What was sent counts first; the next call hears the rest.
            _ if before > 0 => Poll::Ready(Ok(before)),
            other => other,
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.turn.leave();
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

impl AsyncRead for SendStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, into)
    }
}
