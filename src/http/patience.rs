//! How long a client may take nothing of an answer.
//!
//! What waits for a client holds memory that others need, so a connection that takes nothing for a while ends; sooner when
//! memory is short. A full socket alone says little: the kernel reports room only when a good part of a large buffer is
//! free, which a slow client on a good line needs minutes for. So what the kernel still holds for the client is looked at
//! now and then, and a client that takes any of it is slow, not stalled.
//!
//! Owns the stream; dropping it closes the connection.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::admission::Requests;
use crate::limits;

pub(super) struct Patience<S> {
    stream: S,
    requests: Requests,
    waiting: Option<Waiting>,
    /// Looks at the client when it fires.
    look: Pin<Box<Sleep>>,
}

struct Waiting {
    /// When the client was last seen to take something.
    since: Instant,
    /// What the kernel held for it then, if that was looked at.
    held: Option<u32>,
}

impl<S: AsFd> Patience<S> {
    pub(super) fn new(stream: S, requests: Requests) -> Self {
        Self { stream, requests, waiting: None, look: Box::pin(sleep(limits::HTTP_SEND_LOOK)) }
    }

    /// Passes the outcome of a write on, and ends the wait of one that takes too long.
    fn judge(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            if self.waiting.take().is_some() {
                self.requests.set_blocked(false);
            }
            return written;
        }
        if self.waiting.is_none() {
            self.requests.set_blocked(true);
            self.waiting = Some(Waiting { since: Instant::now(), held: None });
            self.look.as_mut().reset(Instant::now() + limits::HTTP_SEND_LOOK);
        }
        loop {
            ready!(self.look.as_mut().poll(cx));
            self.look.as_mut().reset(Instant::now() + limits::HTTP_SEND_LOOK);
            let held = held_by_kernel(&self.stream)?;
            let waiting = self.waiting.as_mut().expect("set above");
            // With nothing left to take it is the disk that is waited for.
            if held == 0 || waiting.held.is_some_and(|before| held < before) {
                waiting.since = Instant::now();
            }
            waiting.held = Some(held);
            let stalled = waiting.since.elapsed();
            if stalled >= self.requests.stall_limit() {
                let detail = format!("the client took nothing for {} s", stalled.as_secs());
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, detail)));
            }
        }
    }
}

impl<S> Drop for Patience<S> {
    fn drop(&mut self) {
        self.requests.set_blocked(false);
    }
}

/// Bytes that were written and that the other side has not acknowledged.
fn held_by_kernel(stream: &impl AsFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel writes one `int`. SIOCOUTQ has the
    // number of TIOCOUTQ.
    let result = unsafe { libc::ioctl(stream.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result != 0 { Err(io::Error::last_os_error()) } else { Ok(bytes.max(0) as u32) }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patience<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + AsFd + Unpin> AsyncWrite for Patience<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
