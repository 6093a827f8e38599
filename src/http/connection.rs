//! One accepted connection: the layers of its stream, what HTTP it speaks, and its end.
//!
//! [`Connections::serve`] spawns a task that owns the stream and the connection's seat until the connection is over.
//! When the client goes away the handler's future is dropped with the task; when the node shuts down a connection ends
//! after the request in progress.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use axum::BoxError;
use bytes::Bytes;
use hyper::body::Body as HttpBody;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::access::Peer;
use super::admission::{Admission, Counted, Requests, Seat};
use super::head_timer::HeadTimer;
use super::http2::Windows;
use super::lanes::Lanes;
use super::linger::Linger;
use super::metrics::SentBytes;
use super::patience::Patience;
use super::site::{Site, Visit};
use super::tls::{self, Tls};
use super::zero_copy::{Outgoing, SendStream};
use crate::limits;
use crate::node::Node;

/// What all connections share, and the way to their common end.
pub(super) struct Connections {
    shared: Shared,
    tls: Option<Arc<Tls>>,
    graceful: GracefulShutdown,
    admission: Arc<Admission>,
    lanes: Lanes,
}

#[derive(Clone)]
struct Shared {
    site: Arc<Site>,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    windows: Arc<Windows>,
    sent: SentBytes,
    closing: CancellationToken,
}

impl Connections {
    pub(super) fn new(node: &Arc<Node>, tls: Option<Arc<Tls>>) -> io::Result<Self> {
        let mut http1 = http1::Builder::new();
        http1
            .header_read_timeout(limits::HTTP_HEADER_TIMEOUT)
            .max_buf_size(limits::HTTP_HEADER_BYTES)
            // A client that has sent its request may close its side and wait for the answer.
            .half_close(true);
        let shared = Shared {
            site: Arc::new(Site::new(node)),
            http1,
            http2: super::http2::builder(),
            windows: Windows::new(),
            sent: node.http_metrics().sent().clone(),
            closing: node.closing().clone(),
        };
        let (graceful, admission) = (GracefulShutdown::new(), Admission::of(node));
        Ok(Self { shared, tls, graceful, admission, lanes: Lanes::start()? })
    }

    /// Who may have a connection.
    pub(super) fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }

    /// Serves a client from anywhere in a task of its own, which holds `seat` until the connection is over.
    pub(super) fn serve(&self, stream: TcpStream, seat: Seat) {
        let _ = stream.set_nodelay(true);
        let (shared, watcher, requests) = (self.shared.clone(), self.graceful.watcher(), seat.requests());
        let (stream, acceptor) = (stream.into_std(), self.tls.as_ref().map(|tls| tls.acceptor()));
        let connection: Connection = match acceptor {
            Some(acceptor) => Box::pin(async move {
                let stream = TcpStream::from_std(stream?)?;
                shared.encrypted(stream, acceptor, requests, watcher).await
            }),
            None => Box::pin(async move {
                let stream = TcpStream::from_std(stream?)?;
                let outgoing = Outgoing::by_file(shared.sent.clone()).on_account_of(requests.payer());
                let stream = Patience::new(SendStream::new(stream, outgoing.clone()), requests.clone());
                let visit = shared.visit(Peer::Stranger, outgoing, requests);
                shared.http1(Linger::new(stream), visit, watcher).await
            }),
        };
        self.lanes.spawn(run(connection, seat));
    }

    /// Serves whoever owns the data directory.
    pub(super) fn serve_owner(&self, stream: UnixStream, permit: OwnedSemaphorePermit) {
        let (shared, watcher, seat) = (self.shared.clone(), self.graceful.watcher(), self.admission.admit_owner());
        let (stream, requests) = (stream.into_std(), seat.requests());
        let connection: Connection = Box::pin(async move {
            let _permit = permit;
            let stream = Patience::new(UnixStream::from_std(stream?)?, requests.clone());
            let visit = shared.visit(Peer::Owner, Outgoing::by_memory(shared.sent.clone()), requests);
            shared.http1(Linger::new(stream), visit, watcher).await
        });
        self.lanes.spawn(run(connection, seat));
    }

    /// Waits until every request in progress is answered and its connection closed.
    pub(super) async fn drain(self) {
        self.graceful.shutdown().await;
    }
}

impl Shared {
    async fn http1<S>(mut self, stream: Linger<S>, visit: Visit, watcher: Watcher) -> Result<(), Ended>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.http1.timer(HeadTimer::new());
        Ok(watcher.watch(self.http1.serve_connection(TokioIo::new(stream), service::<Incoming>(visit))).await?)
    }

    async fn encrypted(
        self,
        stream: TcpStream,
        acceptor: TlsAcceptor,
        requests: Requests,
        watcher: Watcher,
    ) -> Result<(), Ended> {
        let stream = tokio::select! {
            stream = tls::accept(stream, acceptor, requests.clone()) => stream?,
            () = self.closing.cancelled() => return Ok(()),
        };
        let outgoing = Outgoing::by_memory(self.sent.clone()).on_account_of(requests.payer());
        let connections = requests.connections_of_client();
        let visit = self.visit(Peer::Stranger, outgoing, requests);
        if stream.get_ref().1.alpn_protocol() != Some(tls::HTTP2) {
            let stream = Linger::with_rest(stream, |stream| stream.get_mut().0);
            return self.http1(stream, visit, watcher).await;
        }
        let window = self.windows.open(connections);
        let ended = super::http2::drive(self.http2, window, TokioIo::new(stream), service(visit), self.closing).await;
        // The drain waits for it.
        drop(watcher);
        Ok(ended?)
    }

    fn visit(&self, peer: Peer, outgoing: Outgoing, requests: Requests) -> Visit {
        Visit { site: self.site.clone(), peer, outgoing, requests }
    }
}

type Ended = Box<dyn std::error::Error + Send + Sync>;

/// Boxed: a future that is handed on by value takes its size anew at each step, and there are thousands of connections.
type Connection = Pin<Box<dyn Future<Output = Result<(), Ended>> + Send>>;

async fn run(connection: Connection, seat: Seat) {
    match seat.hold(connection).await {
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::debug!(%error, "a connection ended early"),
        None => tracing::debug!("an idle connection was closed to make room"),
    }
}

/// Answers each request of a connection.
fn service<B>(
    visit: Visit,
) -> impl Service<Request<B>, Response = Response<Counted>, Error = Infallible, Future: Send + 'static> + Send + 'static
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let visit = Arc::new(visit);
    service_fn(move |request| {
        let (begun, visit) = (visit.requests.begin(), visit.clone());
        async move { Ok(begun.until_sent(visit.answer(request).await)) }
    })
}
