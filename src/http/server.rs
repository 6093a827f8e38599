//! The listener: who gets a connection (`admission`), and a graceful end.
//!
//! `serve` owns the listening socket; what happens on one connection is `connection`'s. When `shutdown` fires it accepts
//! no more, lets requests in progress finish until the drain deadline, then drops the rest.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::connection::Connections;
use super::refusal::Refusals;
use super::socket::LocalSocket;
use super::tls::Tls;
use crate::limits;
use crate::node::Node;

pub async fn serve(
    node: Arc<Node>,
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    if let Err(error) = spare_pacing(&listener) {
        tracing::debug!(%error, "the system's congestion control stays on loopback");
    }
    let scheme = if tls.is_some() { "https://" } else { "" };
    let connections = Arc::new(Connections::new(&node, tls.clone())?);
    let refusals = Refusals::new(tls);
    let local = LocalSocket::bind(&node.config().data)
        .inspect_err(|error| tracing::warn!(%error, "http.sock cannot be made: commands beside this node need a token"))
        .map(|socket| tokio::spawn(socket.serve(connections.clone(), shutdown.clone())));
    let _address = AddressFile::write(&node.config().data, &listener, scheme)
        .inspect_err(
            |error| tracing::warn!(%error, "http.addr cannot be written: commands need --node to find this node"),
        )
        .ok();

    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_of_one_connection(&error) => continue,
            Err(error) => {
                // Out of descriptors or memory: others may give some back.
                tracing::warn!(%error, "a connection could not be accepted; trying again in 100 ms");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match connections.admission().admit(client.ip()) {
            Ok(seat) => connections.serve(stream, seat),
            Err(refusal) => refusals.send(stream, refusal),
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

/// What reaches a loopback address never leaves this machine, and there is nothing to be careful of: Reno, which every
/// kernel has. Where the system's choice is one that paces (BBR), the kernel sets a timer for each piece of 64 KiB, which costs
/// many times what sending it does. On the listener, because a connection that once paced always does.
fn spare_pacing(listener: &TcpListener) -> io::Result<()> {
    if listener.local_addr()?.ip().to_canonical().is_loopback() {
        rustix::net::sockopt::set_tcp_congestion(listener, "reno")?;
    }
    Ok(())
}

/// Tells the command line beside the node where it listens; gone when the node is.
struct AddressFile(PathBuf);

impl AddressFile {
    fn write(data: &Path, listener: &TcpListener, scheme: &str) -> io::Result<Self> {
        let path = data.join("http.addr");
        let unfinished = data.join("http.addr.new");
        std::fs::write(&unfinished, format!("{scheme}{}\n", listener.local_addr()?))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_paced_that_stays_on_this_machine() {
        for (address, spared) in [("127.0.0.1:0", true), ("0.0.0.0:0", false)] {
            let listener = TcpListener::bind(address).await.unwrap();
            let before = rustix::net::sockopt::tcp_congestion(&listener).unwrap();
            spare_pacing(&listener).unwrap();
            let port = listener.local_addr().unwrap().port();
            let _client = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            let chosen = rustix::net::sockopt::tcp_congestion(&accepted).unwrap();
            assert_eq!(chosen, if spared { "reno" } else { &before });
        }
    }
}
