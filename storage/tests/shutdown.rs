//! A file system that is shut down under the store, as a power cut would: what was acknowledged is there.
//!
//! A process works on a store in an ext4 or XFS image. At a random moment `FS_IOC_SHUTDOWN` without a log flush makes
//! the file system forget what it has in memory; mounting it again recovers the log, and the store is held to every
//! acknowledgement that was printed, those printed after the shutdown too: whatever a sync called durable is. Sometimes
//! the process lives on for a while, and then must notice: every worker fails, nothing hangs. The same file system
//! goes on with what it has, until its checker has looked at it and a new one takes its place.
//!
//! `REELRING_SHUTDOWNS=200` is the long form. Without root, a loop device or the file system's programs the test says
//! that it is skipped.

mod common;

use std::time::{Duration, Instant};

use common::file_system::{Kind, Mounted, own_mounts};
use common::load::{self, mixed};
use common::oracle::{self, Oracle, Worker};

/// XFS has no smaller ones than 300 MiB. The image is sparse.
const IMAGE_BYTES: u64 = 400 << 20;
const ROUNDS: u64 = 15;
const ROUNDS_OF_ONE_FILE_SYSTEM: u64 = 10;

#[test]
fn what_was_acknowledged_survives_the_shutdown_of_ext4() {
    oracle::work_if_told_to();
    shut_down("what_was_acknowledged_survives_the_shutdown_of_ext4", Kind::Ext4);
}

#[test]
fn what_was_acknowledged_survives_the_shutdown_of_xfs() {
    oracle::work_if_told_to();
    shut_down("what_was_acknowledged_survives_the_shutdown_of_xfs", Kind::Xfs);
}

fn shut_down(test: &str, kind: Kind) {
    let asked: Option<u64> = std::env::var("REELRING_SHUTDOWNS").ok().map(|rounds| rounds.parse().unwrap());
    let started = Instant::now();
    let goes_on =
        |round| asked.map_or(round < ROUNDS && started.elapsed() < Duration::from_secs(12), |all| round < all);
    let images = tempfile::tempdir().unwrap();
    let (mut round, mut acknowledged) = (0, 0);
    while goes_on(round) {
        let image = images.path().join("image");
        let mounted = match own_mounts().and_then(|()| Mounted::new(kind, &image, IMAGE_BYTES)) {
            Ok(mounted) => mounted,
            Err(reason) if round == 0 => return eprintln!("SKIPPED {test}: {reason}"),
            Err(reason) => panic!("{reason}"),
        };
        let mut oracle = Oracle::default();
        for _ in 0..ROUNDS_OF_ONE_FILE_SYSTEM {
            if goes_on(round) {
                one_round(test, &mounted, &mut oracle, round);
                round += 1;
            }
        }
        acknowledged += oracle.acknowledged;
        mounted.check();
    }
    println!("{kind:?}: {round} shutdowns, {acknowledged} acknowledgements, none lost");
    assert!(acknowledged > 50, "{acknowledged} acknowledgements prove little");
}

fn one_round(test: &str, mounted: &Mounted, oracle: &mut Oracle, round: u64) {
    let engines = common::engines();
    let [working, judging] = [round, round / 2].map(|number| engines[number as usize % engines.len()]);
    let dir = mounted.path().join("data");
    // Not the same moments in every run: the one that finds something is printed.
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let (acknowledgements, delay_us) = (3 + mixed(now) % 60, mixed(now ^ 1) % 8_000);
    println!("round {round}: {working}, shut down {delay_us} µs after {acknowledgements} acknowledgements");
    let worker = Worker::start(test, &dir, working);
    oracle.hear(&worker, acknowledgements as usize);
    std::thread::sleep(Duration::from_micros(delay_us));
    mounted.shut_down();
    if round.is_multiple_of(3) {
        oracle.hear_them_stop(&worker, load::WRITERS + load::RECORDERS);
    }
    oracle.bury(worker);
    mounted.remount();
    // Without threads left over: nothing of this process keeps the file system busy.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(oracle.judge(&dir, judging));
}
