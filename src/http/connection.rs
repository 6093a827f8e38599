//! One accepted connection: the layers of its stream, what HTTP it speaks, and its end.
//!
//! [`Connections::serve`] spawns a task that owns the stream and the connection's permit until the connection is over.
//! When the client goes away the handler's future is dropped with the task; when the node shuts down a connection ends
//! after the request in progress.

use std::sync::Arc;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_io_timeout::TimeoutWriter;

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
        let service = TowerToHyperService::new(super::router(node.clone()));
        Self { service, http, graceful: GracefulShutdown::new(), sent: node.http_metrics().sent().clone() }
    }

    /// Serves `stream` in a task of its own, which holds `permit` until the connection is over.
    pub(super) fn serve(&self, stream: TcpStream, permit: OwnedSemaphorePermit) {
        let _ = stream.set_nodelay(true);
        // A client that takes nothing holds what was read for it: after a while others need that more.
        let outgoing = Outgoing::by_file(self.sent.clone());
        let mut stream = TimeoutWriter::new(SendStream::new(stream, outgoing.clone()));
        stream.set_timeout(Some(limits::HTTP_SEND_STALL));
        let stream = TokioIo::new(Linger::new(Box::pin(stream)));
        let router = self.service.clone();
        let service = service_fn(move |mut request| {
            request.extensions_mut().insert(outgoing.clone());
            router.call(request)
        });
        let connection = self.graceful.watch(self.http.serve_connection(stream, service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(permit);
        });
    }

    /// Waits until every request in progress is answered and its connection closed.
    pub(super) async fn drain(self) {
        self.graceful.shutdown().await;
    }
}
