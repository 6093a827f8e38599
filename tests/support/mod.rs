//! What the whole-binary tests share: the real node as a process, a real nginx as origin, media made by FFmpeg.
//!
//! Every process started here is ended by its own handle's drop, every folder lies under cargo's target and is removed
//! with its owner. A test that cannot run on this machine says so on standard error and returns.

// Each test executable uses a part of this.
#![allow(dead_code)]

pub mod browser;
pub mod frames;
pub mod gate;
pub mod media;
pub mod nginx;
pub mod node;
pub mod origin;
pub mod process;
pub mod raw;
pub mod words;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// A new folder on the disk that holds cargo's target, removed on drop.
pub fn scratch(label: &str) -> tempfile::TempDir {
    let parent = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    tempfile::Builder::new().prefix(&format!("{label}-")).tempdir_in(&parent).expect("a scratch folder")
}

/// Says why a test does not run here; the line carries the word a reader of the log looks for.
pub fn skipped(test: &str, reason: &str) {
    eprintln!("SKIPPED {test}: {reason}");
}

/// Asks every 20 ms until `look` has an answer; panics with `what` and the node's own words after `limit`.
pub async fn eventually<T>(what: &str, limit: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that do not repeat and do not compress, the same for the same seed (xorshift64*).
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Noise {
        Noise(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let word = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        Noise::new(seed).fill(&mut bytes);
        bytes
    }
}
