//! How a command ends: its error, the line that tells it, and the exit status.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use super::output;

pub const FAILED: u8 = 1;
pub const USAGE: u8 = 2;
pub const INTERRUPTED: u8 = 130;

/// Why a command did not do what was asked. The messages are whole sentences for the person at the terminal.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error("{0}")]
    Failed(String),
    /// What was asked makes no sense; asking again the same way will not help.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Interrupted(String),
    /// Standard output is gone or full.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
    /// Already told on standard output.
    #[error("")]
    Told,
}

pub type Result<T> = std::result::Result<T, CliError>;

impl CliError {
    pub fn failed(message: impl Into<String>) -> Self {
        CliError::Failed(message.into())
    }

    pub fn usage(message: impl Into<String>) -> Self {
        CliError::Usage(message.into())
    }

    fn status(&self) -> u8 {
        match self {
            // Whoever read our output has seen enough: `reelring ls | head` is no failure.
            CliError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            CliError::Failed(_) | CliError::Output(_) | CliError::Told => FAILED,
            CliError::Usage(_) => USAGE,
            CliError::Interrupted(_) => INTERRUPTED,
        }
    }
}

/// Prints the error, if any, and gives the status of the process.
pub fn status(outcome: Result<()>) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    let status = error.status();
    if status != 0 && !matches!(error, CliError::Told) {
        let color = io::stderr().is_terminal() && output::color_allowed();
        let label = match error {
            CliError::Interrupted(_) => output::paint("interrupted:", output::YELLOW, color),
            _ => output::paint("error:", output::RED, color),
        };
        let _ = writeln!(io::stderr(), "{label} {}", output::clean(&error.to_string()));
    }
    ExitCode::from(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_the_documented_ones() {
        let broken = |kind| CliError::Output(io::Error::from(kind));
        for (error, status) in [
            (CliError::failed("x"), 1),
            (CliError::Told, 1),
            (CliError::usage("x"), 2),
            (CliError::Interrupted("x".into()), 130),
            (broken(io::ErrorKind::BrokenPipe), 0),
            (broken(io::ErrorKind::StorageFull), 1),
        ] {
            assert_eq!(error.status(), status, "{error:?}");
        }
    }
}
