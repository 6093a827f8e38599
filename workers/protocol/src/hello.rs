//! The first message of every connection, from the worker: who it is and which protocol it speaks.
//!
//! Node and worker are installed together; a mismatch means a half-finished upgrade, and says so.

use serde::{Deserialize, Serialize};

/// Raised with every change that an older peer would misread.
pub const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The executable's name, `reelring-transcode` or `reelring-plugin`.
    pub worker: String,
    pub protocol: u32,
    /// The package's version, for the log and `doctor`.
    pub version: String,
    /// What it was built with or runs on, `FFmpeg 5.1.9` for instance.
    pub about: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    #[error("the worker is {found}, {wanted} was expected: check the worker's path in the configuration")]
    WrongWorker { found: String, wanted: String },
    #[error(
        "{worker} {version} speaks protocol {found}, this node speaks {VERSION}: install node and workers of the same release"
    )]
    WrongProtocol { worker: String, version: String, found: u32 },
}

impl Hello {
    pub fn new(worker: &str, version: &str, about: impl Into<String>) -> Hello {
        Hello { worker: worker.into(), protocol: VERSION, version: version.into(), about: about.into() }
    }

    /// The node's check before it sends anything.
    pub fn check(&self, wanted: &str) -> Result<(), HelloError> {
        if self.worker != wanted {
            return Err(HelloError::WrongWorker { found: self.worker.clone(), wanted: wanted.into() });
        }
        if self.protocol != VERSION {
            return Err(HelloError::WrongProtocol {
                worker: self.worker.clone(),
                version: self.version.clone(),
                found: self.protocol,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_wanted_worker_of_this_protocol_passes() {
        let hello = Hello::new("reelring-transcode", "0.1.0", "");
        assert_eq!(hello.check("reelring-transcode"), Ok(()));
        let wrong = hello.check("reelring-plugin").unwrap_err();
        assert!(wrong.to_string().contains("reelring-plugin was expected"), "{wrong}");
        let old = Hello { protocol: VERSION + 1, ..hello };
        assert!(matches!(old.check("reelring-transcode"), Err(HelloError::WrongProtocol { .. })));
    }
}
