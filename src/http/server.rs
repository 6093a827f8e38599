//! The listener: a bounded number of connections, and a graceful end.
//!
//! `serve` owns the listening socket; what happens on one connection is `connection`'s. When `shutdown` fires it accepts
//! no more, lets requests in progress finish until the drain deadline, then drops the rest.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::connection::Connections;
use super::socket::LocalSocket;
use crate::limits;
use crate::node::Node;

pub async fn serve(node: Arc<Node>, listener: TcpListener, shutdown: CancellationToken) -> io::Result<()> {
    let connections = Arc::new(Connections::new(&node));
    let local = LocalSocket::bind(&node.config().data)
        .inspect_err(|error| tracing::warn!(%error, "http.sock cannot be made: commands beside this node need a token"))
        .map(|socket| tokio::spawn(socket.serve(connections.clone(), shutdown.clone())));
    let _address = AddressFile::write(&node.config().data, &listener)
        .inspect_err(
            |error| tracing::warn!(%error, "http.addr cannot be written: commands need --node to find this node"),
        )
        .ok();
    let permits = Arc::new(Semaphore::new(limits::HTTP_CONNECTIONS));

    loop {
        let accepted = async {
            // The permit comes first: beyond the limit, connections wait in the kernel's backlog.
            let permit = permits.clone().acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accepted => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) if is_of_one_connection(&error) => continue,
            Err(error) => {
                // Out of descriptors or memory: others may give some back.
                tracing::warn!(%error, "a connection could not be accepted; trying again in 100 ms");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if let Ok(permit) = permit {
            connections.serve(stream, permit);
        }
    }
    drop(listener);
    node.closing().cancel();
    if let Ok(local) = local {
        let _ = local.await;
    }
    // Both listeners are gone, and with them all other owners.
    if let Some(connections) = Arc::into_inner(connections)
        && tokio::time::timeout(limits::DRAIN, connections.drain()).await.is_err()
    {
        tracing::warn!(seconds = limits::DRAIN.as_secs(), "requests were still open at the drain deadline");
    }
    Ok(())
}

/// Tells the command line beside the node where it listens; gone when the node is.
struct AddressFile(PathBuf);

impl AddressFile {
    fn write(data: &Path, listener: &TcpListener) -> io::Result<Self> {
        let path = data.join("http.addr");
        let unfinished = data.join("http.addr.new");
        std::fs::write(&unfinished, format!("{}\n", listener.local_addr()?))?;
        std::fs::rename(&unfinished, &path)?;
        Ok(Self(path))
    }
}

impl Drop for AddressFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
