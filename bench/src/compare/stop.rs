//! Ctrl-C and SIGTERM, for code that waits on other programs.
//!
//! The measured programs run in process groups of their own, so the terminal's Ctrl-C reaches only us: we end them,
//! report what is complete, and exit with 130. A second one exits at once; the kernel then ends what is left, because
//! every child asks for its parent's death signal (see `usage`).

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

static ASKED: AtomicBool = AtomicBool::new(false);

/// The exit code of a comparison that was stopped.
pub const EXIT: u8 = 130;

/// Why a round has no result.
#[derive(Debug, thiserror::Error)]
#[error("stopped by Ctrl-C")]
pub struct Stopped;

/// Starts listening; needs a tokio runtime, which goes on running while the comparison blocks.
pub fn listen() -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if ASKED.swap(true, Ordering::SeqCst) {
                std::process::exit(EXIT.into());
            }
        }
    });
    Ok(())
}

pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// For loops of the code that measures: fails once a stop was asked for.
pub fn check() -> Result<(), Stopped> {
    if asked() { Err(Stopped) } else { Ok(()) }
}
