//! Logs: one line an event on standard error, quiet by default, `REELRING_LOG` for more.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging. `default` is the level without `REELRING_LOG`, in `tracing`'s filter syntax.
pub fn init(default: &str) {
    let filter = EnvFilter::try_from_env("REELRING_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    // A second call, as tests make it, keeps the first subscriber.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .with_target(false)
        .try_init();
}
