//! Ctrl-C: the first one asks the command to stop politely, the second one ends the process at once.
//!
//! One stop often comes twice: `timeout`, a shell or the init of a container signals the process and then its whole group.
//! Nobody means two by that, so a second signal counts from [`ECHO`] on.
//!
//! Ending at once is safe for the data directory: everything acknowledged is durable and a fetch keeps its journal.

use std::io;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::exit::INTERRUPTED;

/// A signal so soon after the first is the same one.
const ECHO: Duration = Duration::from_millis(300);

/// Watches SIGINT and SIGTERM for as long as the runtime lives. The token is cancelled by the first of them.
pub fn watch() -> io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let first = CancellationToken::new();
    let token = first.clone();
    tokio::spawn(async move {
        let mut since: Option<Instant> = None;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if since.get_or_insert_with(Instant::now).elapsed() >= ECHO {
                std::process::exit(i32::from(INTERRUPTED));
            }
            token.cancel();
        }
    });
    Ok(first)
}
