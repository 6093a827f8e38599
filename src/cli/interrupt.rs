//! Ctrl-C: the first one asks the command to stop politely, the second one ends the process at once.
//!
//! Ending at once is safe for the data directory: everything acknowledged is durable and a fetch keeps its journal.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::exit::INTERRUPTED;

/// Watches SIGINT and SIGTERM for as long as the runtime lives. The token is cancelled by the first of them.
pub fn watch() -> io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let first = CancellationToken::new();
    let token = first.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if token.is_cancelled() {
                std::process::exit(i32::from(INTERRUPTED));
            }
            token.cancel();
        }
    });
    Ok(first)
}
