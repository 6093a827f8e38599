//! Random histories of a store on the simulated disk, held against an oracle.
//!
//! A history is a few boots of one data directory. In each, clients work on keys and partials of their own, at once and
//! through one bridge, while operations fail and calls are given up half way; it ends with a clean close, with the death
//! of the process (what programs saw stays) or with a power cut (`engine/sim/disk.rs` tells what stays). The next boot
//! is judged: acknowledged objects are whole, all others absent or whole, what was deleted stays deleted, partials
//! resume at or after their last checkpoint. After the last boot, which is left in peace, nothing lies about.
//!
//! Everything happens on one thread and follows from the seed: the runtime has one thread and no timers, the engine and
//! the catalog's two threads are replaced by steps that `world.rs` takes in seeded order, the clock is held. So a
//! seed that fails fails again: `REELRING_SIM_SEED=<seed> cargo test -p reelring-storage --lib one_history`, with
//! `REELRING_SIM_TRACE=1` to see each operation.
//!
//! **Volumes.** A third of the histories have a second one, on a disk of its own. It may be away for a life of the process,
//! taken in order or in the midst of its writes, and is back for the last two. While it is away its objects are refused
//! by name, and nothing else is; what was deleted meanwhile is gone from it when it is back.
//!
//! **The catalog.** SQLite makes its calls itself, past the engine. Its commits are single steps here, durable when they
//! return, as WAL with `synchronous=FULL` promises. A cut may fall into one: then the log ends with a torn piece of it.
//! A commit may also fail for want of room, or in its sync, after which the next start may find it in the log all the
//! same. What SQLite does within one commit is SQLite's to test.

mod client;
mod oracle;
mod side;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::clock;
use crate::engine::sim::trace::Trace;
use crate::sabotage::{self, Sabotage};
use world::World;

/// Lives through a whole history; panics when the store breaks a promise.
fn live(seed: u64, sabotage: Option<Sabotage>) -> (Vec<Trace>, u64) {
    clock::held::set(None);
    sabotage::set(sabotage);
    let mut world = World::new(seed);
    let rots = world.random.chance(50);
    for _ in 0..1 + world.random.below(3) {
        world.boot(false);
        if rots {
            world.rot();
        }
    }
    world.lift_capacity();
    // Two: the first clears up, the second shows that it did so for good.
    world.boot(true);
    world.check_tidiness();
    world.boot(true);
    world.check_tidiness();
    clock::held::set(None);
    sabotage::set(None);
    let acknowledged = world.oracle.lock().unwrap().acknowledged;
    (world.traces(), acknowledged)
}

/// As [`live`], with the panic as an error.
fn outcome(seed: u64, sabotage: Option<Sabotage>) -> Result<(Vec<Trace>, u64), String> {
    catch_unwind(AssertUnwindSafe(|| live(seed, sabotage))).map_err(|panic| {
        clock::held::set(None);
        sabotage::set(None);
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string())).unwrap_or("a panic".into())
    })
}

/// The first of `seeds` that fails, and how many acknowledgements the others held.
fn first_failure(seeds: std::ops::Range<u64>, sabotage: Option<Sabotage>) -> Result<u64, (u64, String)> {
    let (next, acknowledged) = (AtomicU64::new(seeds.start), AtomicU64::new(0));
    let failure: Mutex<Option<(u64, String)>> = Mutex::default();
    let failures = AtomicUsize::new(0);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cpus {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= seeds.end || failures.load(Relaxed) > 0 {
                        return;
                    }
                    match outcome(seed, sabotage) {
                        Ok((_, heard)) => drop(acknowledged.fetch_add(heard, Relaxed)),
                        Err(message) => {
                            failures.fetch_add(1, Relaxed);
                            failure.lock().unwrap().get_or_insert((seed, message));
                        }
                    }
                }
            });
        }
    });
    match failure.into_inner().unwrap() {
        Some(failure) => Err(failure),
        None => Ok(acknowledged.into_inner()),
    }
}

fn seeds() -> u64 {
    std::env::var("REELRING_SIM_HISTORIES").ok().and_then(|count| count.parse().ok()).unwrap_or(10_000)
}

#[test]
fn ten_thousand_histories_keep_every_promise() {
    let started = std::time::Instant::now();
    match first_failure(0..seeds(), None) {
        Ok(acknowledged) => {
            println!("{} histories, {acknowledged} acknowledgements, {:?}", seeds(), started.elapsed());
            assert!(acknowledged > seeds(), "only {acknowledged} acknowledgements prove little");
        }
        Err((seed, message)) => panic!(
            "history {seed}: {message}\nrepeat it: REELRING_SIM_SEED={seed} cargo test -p reelring-storage --lib one_history -- --nocapture"
        ),
    }
}

/// The one that `REELRING_SIM_SEED` names.
#[test]
fn one_history() {
    if let Ok(seed) = std::env::var("REELRING_SIM_SEED") {
        let (traces, acknowledged) = live(seed.parse().expect("a seed is a number"), None);
        let operations: u64 = traces.iter().map(|trace| trace.events).sum();
        println!("{operations} operations on {} volumes, {acknowledged} acknowledgements", traces.len());
    }
}

#[test]
fn the_same_seed_is_the_same_history() {
    for seed in 0..40 {
        assert_eq!(outcome(seed, None).map(|(trace, _)| trace), outcome(seed, None).map(|(trace, _)| trace), "{seed}");
    }
}

/// Each way of breaking the protocol is noticed, and soon.
#[test]
fn a_broken_protocol_is_noticed() {
    for broken in [
        Sabotage::NoDirectorySync,
        Sabotage::AcknowledgeBeforeSync,
        Sabotage::SyncRetried,
        Sabotage::RoundTakesLatecomers,
        Sabotage::ReturnTrusted,
    ] {
        let (seed, message) =
            first_failure(0..1_000, Some(broken)).err().unwrap_or_else(|| panic!("{broken:?} went unnoticed"));
        println!("{broken:?} is noticed by history {seed}: {message}");
    }
}
