//! One accepted connection: the layers of its stream, what HTTP it speaks, and its end.
//!
//! [`Connections::serve`] spawns a task that owns the stream and the connection's permit until the connection is over.
//! When the client goes away the handler's future is dropped with the task; when the node shuts down a connection ends
//! after the request in progress.

use std::future::Future;
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
use tokio_io_timeout::TimeoutWriter;

use super::access::Peer;
use super::linger::Linger;
use super::metrics::SentBytes;
use super::zero_copy::{Outgoing, SendStream};
use crate::limits;
use crate::node::Node;

/// What all connections share.
pub(super) struct Connections {
    service: TowerToHyperService<Router>,
    http: http1::Builder,
    graceful: GracefulShutdown,
    sent: SentBytes,
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
        Self { service, http, graceful: GracefulShutdown::new(), sent: node.http_metrics().sent().clone() }
    }

    /// Serves a client from anywhere in a task of its own, which holds `permit` until the connection is over.
    pub(super) fn serve(&self, stream: TcpStream, permit: OwnedSemaphorePermit) {
        let _ = stream.set_nodelay(true);
        let outgoing = Outgoing::by_file(self.sent.clone());
        let stream = SendStream::new(stream, outgoing.clone());
        spawn(self.http1(stream, outgoing, Peer::Stranger), permit);
    }

    /// Serves whoever owns the data directory.
    pub(super) fn serve_owner(&self, stream: UnixStream, permit: OwnedSemaphorePermit) {
        let outgoing = Outgoing::by_memory(self.sent.clone());
        spawn(self.http1(stream, outgoing, Peer::Owner), permit);
    }

    fn http1<S>(
        &self,
        stream: S,
        outgoing: Outgoing,
        peer: Peer,
    ) -> impl Future<Output = hyper::Result<()>> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        // A client that takes nothing holds what was read for it: after a while others need that more.
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(limits::HTTP_SEND_STALL));
        let stream = TokioIo::new(Linger::new(Box::pin(stream)));
        let service = Introduced { service: self.service.clone(), peer, outgoing };
        self.graceful.watch(self.http.serve_connection(stream, service))
    }

    /// Waits until every request in progress is answered and its connection closed.
    pub(super) async fn drain(self) {
        self.graceful.shutdown().await;
    }
}

fn spawn(connection: impl Future<Output = hyper::Result<()>> + Send + 'static, permit: OwnedSemaphorePermit) {
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended early");
        }
        drop(permit);
    });
}

/// The router, told with each request what connection it comes over.
struct Introduced {
    service: TowerToHyperService<Router>,
    peer: Peer,
    outgoing: Outgoing,
}

impl Service<Request<Incoming>> for Introduced {
    type Response = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Response;
    type Error = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Error;
    type Future = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.peer);
        request.extensions_mut().insert(self.outgoing.clone());
        self.service.call(request)
    }
}
