//! Why a piece of work ended without its result, in the terms the job layer decides by: again, later, or never.
//!
//! Every room below `jobs` returns [`Failure`]; the message is written for the person who reads the job and names the
//! object, the limit, the actual value and the next step.

use std::fmt;

/// What the job layer may do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The same input will fail again: bad media, a refused address, a wrong hash.
    Permanent,
    /// Trying again may help: a dropped connection, a worker killed by a signal.
    Transient,
    /// The volume is full. State is kept so that the work resumes once there is room.
    NoSpace,
    /// Somebody asked for it.
    Cancelled,
}

/// A failed piece of work: its class and the sentence a user reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

impl Failure {
    pub fn permanent(message: impl Into<String>) -> Self {
        Self { kind: FailureKind::Permanent, message: message.into() }
    }

    pub fn transient(message: impl Into<String>) -> Self {
        Self { kind: FailureKind::Transient, message: message.into() }
    }

    pub fn no_space(message: impl Into<String>) -> Self {
        Self { kind: FailureKind::NoSpace, message: message.into() }
    }

    pub fn cancelled() -> Self {
        Self { kind: FailureKind::Cancelled, message: "cancelled".into() }
    }

    /// The same failure, its message led by what was being done.
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<reelring_storage::Error> for Failure {
    fn from(error: reelring_storage::Error) -> Self {
        use reelring_storage::Error as E;
        let message = error.to_string();
        match error {
            E::NoSpace { .. } => Self::no_space(message),
            E::Closed => Self::cancelled(),
            // Another volume may take the next attempt.
            E::Io { .. } | E::Catalog(_) | E::Degraded { .. } | E::VolumeMissing { .. } => Self::transient(message),
            _ => Self::permanent(message),
        }
    }
}
