//! HTTP/2: its bounds, and the end of connections on which nothing moves.
//!
//! One connection carries many requests, so each bound of HTTP/1 is kept here too: streams, windows, header lists, and
//! what a peer may make the node do by resets and broken frames. A silent connection is closed politely; one whose streams
//! all wait for a client that takes nothing is dropped, since HTTP/2 tells the node of no single one among them.
//! A client that is answered before it has sent all is listened to for a while ([`Kept`]).
//! [`drive`] owns the connection; dropping it drops every request on it.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::rt::{Read, Write};
use hyper::server::conn::http2;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::admission::Counted;
use crate::limits;

/// How often a connection is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Time for requests that were on their way when the client was told that the connection ends.
const GOODBYE: Duration = Duration::from_secs(2);

pub(super) fn builder() -> http2::Builder<TokioExecutor> {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .max_concurrent_streams(limits::HTTP2_STREAMS)
        .max_header_list_size(limits::HTTP_HEADER_BYTES as u32)
        .initial_stream_window_size(limits::HTTP2_STREAM_WINDOW)
        .max_send_buf_size(limits::HTTP2_SEND_BUFFER)
        // Opening streams and resetting them at once costs a client nothing and the node a request each.
        .max_pending_accept_reset_streams(limits::HTTP2_RESETS)
        .max_local_error_reset_streams(limits::HTTP2_RESETS)
        .keep_alive_interval(limits::HTTP_HEADER_TIMEOUT)
        .keep_alive_timeout(limits::HTTP_SEND_STALL);
    http
}

/// What may be on its way in bodies of all connections, ahead of who reads them, besides what the protocol lets each send.
pub(super) struct Windows {
    left: AtomicUsize,
}

/// The window of one connection, as long as it lives.
pub(super) struct Window {
    of: Arc<Windows>,
    bytes: usize,
}

impl Windows {
    pub(super) fn new() -> Arc<Windows> {
        Arc::new(Windows { left: AtomicUsize::new(limits::HTTP2_WINDOWS_BYTES) })
    }

    /// For a connection of a client that has so many, this one included. Each gets a part of what is left, and a client's
    /// further ones a smaller one each: few are wide, many are narrow, and there is always some for others.
    pub(super) fn open(self: &Arc<Self>, connections: usize) -> Window {
        let part = |left: usize| left / limits::HTTP2_WINDOWS_PART / connections.max(1);
        let before = self.left.fetch_update(Relaxed, Relaxed, |left| Some(left - part(left)));
        Window { of: self.clone(), bytes: before.map_or(0, part) }
    }
}

impl Window {
    fn size(&self) -> u32 {
        limits::HTTP2_WINDOW_LEAST + self.bytes as u32
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.of.left.fetch_add(self.bytes, Relaxed);
    }
}

/// Serves one connection to its end: the client's, the node's (`closing`), or that of patience.
pub(super) async fn drive<I, S>(
    mut http: http2::Builder<TokioExecutor>,
    window: Window,
    stream: I,
    service: S,
    closing: CancellationToken,
) -> hyper::Result<()>
where
    I: Read + Write + Unpin + Send + 'static,
    S: Service<Request<Kept>, Response = Response<Counted>> + Send + 'static,
    S::Error: std::error::Error + Send + Sync,
    S::Future: Send + 'static,
{
    let movement = Arc::new(Movement::default());
    let service = Watched { service, movement: movement.clone() };
    http.initial_connection_window_size(window.size());
    let mut connection = pin!(http.serve_connection(stream, service));
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut ending: Option<Instant> = None;
    loop {
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = closing.cancelled(), if ending.is_none() => {
                connection.as_mut().graceful_shutdown();
                ending = Some(Instant::now());
            }
            _ = look.tick() => match movement.verdict() {
                // It was told to go, and has nothing left to wait for.
                _ if movement.is_idle() && ending.is_some_and(|since| since.elapsed() > GOODBYE) => return Ok(()),
                Verdict::Moves => {}
                Verdict::Silent if ending.is_some() => {}
                Verdict::Silent => {
                    connection.as_mut().graceful_shutdown();
                    ending = Some(Instant::now());
                }
                Verdict::Stalled => {
                    tracing::debug!("a client of HTTP/2 takes nothing of its answers; its connection is dropped");
                    return Ok(());
                }
            }
        }
    }
}

/// What happens on a connection.
struct Movement {
    /// Streams that wait for the node, and those that wait for the client to take something.
    ours: AtomicUsize,
    theirs: AtomicUsize,
    last: Mutex<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Moves,
    Silent,
    Stalled,
}

impl Default for Movement {
    fn default() -> Self {
        Self { ours: AtomicUsize::new(0), theirs: AtomicUsize::new(0), last: Mutex::new(Instant::now()) }
    }
}

impl Movement {
    fn moved(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn is_idle(&self) -> bool {
        self.ours.load(Relaxed) == 0 && self.theirs.load(Relaxed) == 0
    }

    fn verdict(&self) -> Verdict {
        let still = self.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed() > limits::HTTP_SEND_STALL;
        match (still && self.ours.load(Relaxed) == 0, self.theirs.load(Relaxed)) {
            (false, _) => Verdict::Moves,
            (true, 0) => Verdict::Silent,
            (true, _) => Verdict::Stalled,
        }
    }
}

/// One stream's place in the count, as long as it lives.
struct Turn {
    movement: Arc<Movement>,
    ours: bool,
}

impl Turn {
    fn new(movement: Arc<Movement>) -> Turn {
        movement.ours.fetch_add(1, Relaxed);
        movement.moved();
        Turn { movement, ours: true }
    }

    fn pass(&mut self, ours: bool) {
        if self.ours != ours {
            self.count().fetch_sub(1, Relaxed);
            self.ours = ours;
            self.count().fetch_add(1, Relaxed);
        }
        self.movement.moved();
    }

    fn count(&self) -> &AtomicUsize {
        if self.ours { &self.movement.ours } else { &self.movement.theirs }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.count().fetch_sub(1, Relaxed);
        self.movement.moved();
    }
}

struct Watched<S> {
    service: S,
    movement: Arc<Movement>,
}

impl<S> Service<Request<Incoming>> for Watched<S>
where
    S: Service<Request<Kept>, Response = Response<Counted>>,
    S::Future: Send + 'static,
{
    type Response = Response<WatchedBody>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let turn = Turn::new(self.movement.clone());
        let (head, incoming) = request.into_parts();
        let kept = Kept(Arc::new(Mutex::new(incoming)));
        let answer = self.service.call(Request::from_parts(head, kept.clone()));
        Box::pin(
            async move { Ok(answer.await?.map(|body| WatchedBody { body, rest: Bytes::new(), turn, request: kept })) },
        )
    }
}

/// A request's body that outlives its reader until the answer is out and, where the client has more to send, for a while
/// longer: dropped, it resets the stream. A client that hears of that before the answer, or before it comes to send its
/// body (curl 7.88), never learns why it was refused. As long and as much as on a connection of HTTP/1 ([`super::linger`]).
#[derive(Clone)]
pub(super) struct Kept(Arc<Mutex<Incoming>>);

impl Kept {
    fn incoming(&self) -> MutexGuard<'_, Incoming> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the client still sends, in a task that ends with the connection at the latest.
    fn linger(self) {
        // None when the lane itself ends, and all its connections with it.
        if let Ok(lane) = tokio::runtime::Handle::try_current() {
            lane.spawn(async move { timeout(limits::HTTP_LINGER, self.take_rest()).await });
        }
    }

    async fn take_rest(mut self) {
        let mut taken = 0;
        while let Ok(Some(Ok(frame))) = timeout(limits::HTTP_LINGER_PAUSE, self.frame()).await
            && taken < limits::HTTP_LINGER_BYTES
        {
            taken += frame.data_ref().map_or(0, Bytes::len);
        }
    }
}

impl HttpBody for Kept {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        Pin::new(&mut *self.incoming()).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming().size_hint()
    }
}

struct WatchedBody {
    body: Counted,
    /// Of the last piece, what the client has not come round to.
    rest: Bytes,
    turn: Turn,
    request: Kept,
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        if !self.request.is_end_stream() {
            self.request.clone().linger();
        }
    }
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            let polled = Pin::new(&mut self.body).poll_frame(cx);
            self.turn.pass(polled.is_pending());
            match polled {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                other => return other,
            }
        } else {
            self.turn.pass(false);
        }
        // Small enough that a slow client is seen to come for the next one.
        let next = self.rest.len().min(limits::HTTP2_PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(next)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, hint) = (self.rest.len() as u64, self.body.size_hint());
        match hint.upper() {
            Some(most) if most == hint.lower() => SizeHint::with_exact(most + rest),
            _ => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_windows_are_narrow_and_leave_some_for_others() {
        let windows = Windows::new();
        let first = windows.open(1);
        assert!(first.size() > 4 << 20);
        let greedy: Vec<_> = (1..=1000).map(|count| windows.open(count)).collect();
        assert!(greedy[999].size() < 70_000);
        assert!(windows.open(1).size() > 2 << 20, "another client's");
        let crowd: Vec<_> = (0..4000).map(|_| windows.open(1)).collect();
        let given: usize = crowd.iter().chain(&greedy).chain([&first]).map(|window| window.bytes).sum();
        assert!(given <= limits::HTTP2_WINDOWS_BYTES);
        drop((first, greedy, crowd));
        assert_eq!(windows.left.load(Relaxed), limits::HTTP2_WINDOWS_BYTES);
    }

    #[test]
    fn a_connection_is_silent_without_streams_and_stalled_when_all_wait_for_the_client() {
        let movement = Arc::new(Movement::default());
        let still = || {
            *movement.last.lock().unwrap() = Instant::now() - limits::HTTP_SEND_STALL - Duration::from_secs(1);
            movement.verdict()
        };
        assert_eq!(movement.verdict(), Verdict::Moves, "it has just begun");
        assert_eq!(still(), Verdict::Silent);
        let mut first = Turn::new(movement.clone());
        assert_eq!(still(), Verdict::Moves, "the node is at work");
        first.pass(false);
        assert_eq!(still(), Verdict::Stalled);
        let second = Turn::new(movement.clone());
        assert_eq!(still(), Verdict::Moves, "another stream waits for the node");
        drop(second);
        first.pass(true);
        assert_eq!(still(), Verdict::Moves);
        drop(first);
        assert_eq!(still(), Verdict::Silent);
    }
}
