//! SIGKILL at random moments, with an oracle outside the store (`common/oracle.rs`).
//!
//! The child (this test binary, run again) puts, replaces, deletes and records, and prints each acknowledgement to a
//! pipe; the parent kills it, reopens the directory, and holds the store to what it had acknowledged. What a power cut
//! would do is beyond SIGKILL: dirty pages survive a process. `shutdown.rs` has that.
//!
//! `REELRING_KILLS=1000` is the long form.

mod common;

use std::time::{Duration, Instant};

use common::load::mixed;
use common::oracle::{self, Oracle, Worker};

#[test]
fn what_was_acknowledged_survives_sigkill() {
    oracle::work_if_told_to();
    let asked: Option<u64> = std::env::var("REELRING_KILLS").ok().map(|kills| kills.parse().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (engines, mut oracle) = (common::engines(), Oracle::default());
    let started = Instant::now();
    let mut round = 0;
    while asked.map_or(round < 30 && started.elapsed() < Duration::from_secs(6), |kills| round < kills) {
        let engine = engines[round as usize % engines.len()];
        let worker = Worker::start("what_was_acknowledged_survives_sigkill", dir.path(), engine);
        // From a few operations to a few hundred.
        oracle.hear(&worker, 5 + (mixed(round) % 150) as usize);
        oracle.kill(worker);
        runtime.block_on(oracle.judge(dir.path(), engine));
        round += 1;
    }
    assert!(oracle.acknowledged > 100, "{} acknowledgements in {round} rounds prove little", oracle.acknowledged);
    println!("{round} rounds, {} acknowledgements, none lost", oracle.acknowledged);
}
