//! A client that is refused in the middle of an upload should read why.
//!
//! Closing a socket while the client still sends makes the kernel reset the connection, and the reset overtakes the
//! answer. So a closing connection first ends its own direction, then takes what the client still sends until it pauses
//! or closes, for a bounded time and amount: a client that looks for an answer only when its writes stall needs most of a
//! body to notice. Under TLS it is taken as it comes: nobody needs to understand it, and it may be broken.
//!
//! Owns the stream; dropping it closes at once.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::limits;

pub(super) struct Linger<S> {
    stream: S,
    rest: Rest<S>,
    closing: Option<Closing>,
}

/// Where in a stream that has ended its own direction the other one's bytes are taken.
pub(super) type Rest<S> = fn(&mut S) -> &mut (dyn AsyncRead + Unpin + Send);

struct Closing {
    end: Instant,
    /// The client's next piece must come before this, and `end` is the last it is put off to.
    deadline: Pin<Box<Sleep>>,
    taken: usize,
}

impl Closing {
    fn begin() -> Self {
        let now = Instant::now();
        let deadline = Box::pin(sleep_until(now + limits::HTTP_LINGER_PAUSE));
        Self { end: now + limits::HTTP_LINGER, deadline, taken: 0 }
    }

    fn took(&mut self, count: usize) {
        self.taken += count;
        self.deadline.as_mut().reset(self.end.min(Instant::now() + limits::HTTP_LINGER_PAUSE));
    }
}

impl<S: AsyncRead + Unpin + Send> Linger<S> {
    pub(super) fn new(stream: S) -> Self {
        Self::with_rest(stream, |stream| stream)
    }

    pub(super) fn with_rest(stream: S, rest: Rest<S>) -> Self {
        Self { stream, rest, closing: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Linger<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Linger<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.closing.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        let closing = this.closing.get_or_insert_with(Closing::begin);
        let mut scratch = [0; 16 << 10];
        while closing.taken < limits::HTTP_LINGER_BYTES && closing.deadline.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut scratch);
            // An error means that the client is gone, which is what is waited for.
            match ready!(Pin::new((this.rest)(&mut this.stream)).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => closing.took(buffer.filled().len()),
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// Ends its own direction as any other, and must not be asked for what comes after.
    struct Encrypted(DuplexStream);

    impl AsyncRead for Encrypted {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            panic!("what nobody needs is decrypted");
        }
    }

    impl AsyncWrite for Encrypted {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    #[tokio::test]
    async fn what_comes_under_tls_is_taken_as_it_is() {
        let (mut client, server) = duplex(4 << 10);
        let sending = tokio::spawn(async move { client.write_all(&vec![1; 300_000]).await.is_ok() });
        Linger::with_rest(Encrypted(server), |stream| &mut stream.0).shutdown().await.unwrap();
        assert!(sending.await.unwrap());
    }

    #[tokio::test]
    async fn what_the_client_still_sends_is_taken_up_to_the_bound() {
        let (mut client, server) = duplex(4 << 10);
        let mut server = Linger::new(server);
        server.write_all(b"no").await.unwrap();
        let sending = tokio::spawn(async move {
            let sent = client.write_all(&vec![1; 300_000]).await;
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            (sent.is_ok(), answer)
        });
        server.shutdown().await.unwrap();
        drop(server);
        assert_eq!(sending.await.unwrap(), (true, b"no".to_vec()));

        let (mut client, server) = duplex(1 << 20);
        let mut server = Linger::new(server);
        let endless = tokio::spawn(async move { while client.write_all(&[1; 256 << 10]).await.is_ok() {} });
        server.shutdown().await.unwrap();
        drop(server);
        endless.await.unwrap();
    }

    #[tokio::test]
    async fn a_silent_client_is_not_waited_for_for_ever() {
        let (_client, server) = duplex(64);
        let begun = Instant::now();
        Linger::new(server).shutdown().await.unwrap();
        assert!(begun.elapsed() >= limits::HTTP_LINGER_PAUSE);
    }
}
