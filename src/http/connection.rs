//! One accepted connection: the layers of its stream, what HTTP it speaks, and its end.
//!
//! [`Connections::serve`] spawns a task that owns the stream and the connection's seat until the connection is over.
//! When the client goes away the handler's future is dropped with the task; when the node shuts down a connection ends
//! after the request in progress.

use std::future::Future;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OwnedSemaphorePermit;

use super::access::Peer;
use super::admission::{Admission, Requests, Seat};
use super::linger::Linger;
use super::metrics::SentBytes;
use super::patience::Patience;
use super::zero_copy::{Outgoing, SendStream};
use crate::limits;
use crate::node::Node;

/// What all connections share.
pub(super) struct Connections {
    service: TowerToHyperService<Router>,
    http: http1::Builder,
    graceful: GracefulShutdown,
    sent: SentBytes,
    admission: Arc<Admission>,
}

impl Connections {
    pub(super) fn new(node: &Arc<Node>) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(limits::HTTP_HEADER_TIMEOUT)
            .max_buf_size(limits::HTTP_HEADER_BYTES)
            // A client that has sent its request may close its side and wait for the answer.
            .half_close(true);
        let service = TowerToHyperService::new(super::guarded_router(node.clone()));
        Self {
            service,
            http,
            graceful: GracefulShutdown::new(),
            sent: node.http_metrics().sent().clone(),
            admission: Admission::of(node),
        }
    }

    /// Who may have a connection.
    pub(super) fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }

    /// Serves a client from anywhere in a task of its own, which holds `seat` until the connection is over.
    pub(super) fn serve(&self, stream: TcpStream, seat: Seat) {
        let _ = stream.set_nodelay(true);
        let outgoing = Outgoing::by_file(self.sent.clone());
        let stream = SendStream::new(stream, outgoing.clone());
        spawn(self.http1(stream, outgoing, Peer::Stranger, &seat), seat, None);
    }

    /// Serves whoever owns the data directory.
    pub(super) fn serve_owner(&self, stream: UnixStream, permit: OwnedSemaphorePermit) {
        let (outgoing, seat) = (Outgoing::by_memory(self.sent.clone()), self.admission.admit_owner());
        spawn(self.http1(stream, outgoing, Peer::Owner, &seat), seat, Some(permit));
    }

    fn http1<S>(
        &self,
        stream: S,
        outgoing: Outgoing,
        peer: Peer,
        seat: &Seat,
    ) -> impl Future<Output = hyper::Result<()>> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static,
    {
        let stream = TokioIo::new(Linger::new(Patience::new(stream, seat.requests())));
        let service = Introduced { service: self.service.clone(), peer, outgoing, requests: seat.requests() };
        self.graceful.watch(self.http.serve_connection(stream, service))
    }

    /// Waits until every request in progress is answered and its connection closed.
    pub(super) async fn drain(self) {
        self.graceful.shutdown().await;
    }
}

fn spawn(
    connection: impl Future<Output = hyper::Result<()>> + Send + 'static,
    seat: Seat,
    permit: Option<OwnedSemaphorePermit>,
) {
    tokio::spawn(async move {
        match seat.hold(connection).await {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::debug!(%error, "a connection ended early"),
            None => tracing::debug!("an idle connection was closed to make room"),
        }
        drop(permit);
    });
}

/// The router, told with each request what connection it comes over.
struct Introduced {
    service: TowerToHyperService<Router>,
    peer: Peer,
    outgoing: Outgoing,
    requests: Requests,
}

impl Service<Request<Incoming>> for Introduced {
    type Response = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Response;
    type Error = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.peer);
        request.extensions_mut().insert(self.outgoing.clone());
        let (begun, answer) = (self.requests.begin(), self.service.call(request));
        Box::pin(async move { Ok(begun.until_sent(answer.await?)) })
    }
}
