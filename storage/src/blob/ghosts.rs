//! What was asked for lately and is not in memory: whether to let it into the page cache now.
//!
//! What is asked for once, as most of a large library is, goes past the page cache and displaces nothing there. What is
//! asked for again comes through the page cache and stays. Between the two there is only this table, for a blob that
//! nobody reads is closed, and with it goes what it knew of itself.
//!
//! What was let in and is missing all the same was evicted: memory has better use for it. Each time it must be asked for
//! twice as often before it is let in again, so a set larger than memory that is read over and over goes past the page
//! cache too.
//!
//! One atomic for each entry, placed by its hash; the latest in a place wins. A lost update or a mistaken identity costs
//! one read by the other way.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::id::BlobId;

pub(crate) struct Ghosts {
    places: Box<[AtomicU64]>,
    since: Instant,
}

/// A chunk that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ghost {
    print: u32,
    /// How often it is to be asked for until it is let in; 0 when it was.
    asks_left: u8,
    evictions: u8,
    /// The tick in which it was let in.
    let_in: u16,
}

/// Asked for by several at once, a chunk that was let in a moment ago is on its way and not evicted.
const COMING_IN: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(125);
/// 64 times.
const EVICTIONS_MAX: u8 = 6;

impl Ghosts {
    pub(crate) fn new(entries: usize) -> Ghosts {
        Ghosts { places: (0..entries).map(|_| AtomicU64::new(0)).collect(), since: Instant::now() }
    }

    /// Notes that a chunk which is not in memory is asked for; true when it is to come through the page cache.
    pub(crate) fn lets_in(&self, blob: BlobId, chunk: u64) -> bool {
        // It wraps after two hours: an eviction that is taken for a chunk on its way costs nothing.
        let tick = (self.since.elapsed().as_millis() / TICK.as_millis()) as u16;
        self.lets_in_at(hash(blob.as_u128(), chunk), tick)
    }

    fn lets_in_at(&self, hash: u64, tick: u16) -> bool {
        let place = &self.places[(hash % self.places.len() as u64) as usize];
        let print = (hash >> 32) as u32;
        let known = Ghost::unpack(place.load(Relaxed)).filter(|ghost| ghost.print == print);
        let (ghost, lets_in) = match known {
            None => (Ghost { print, asks_left: 1, evictions: 0, let_in: 0 }, false),
            Some(ghost) if ghost.asks_left == 0 => {
                if u128::from(tick.wrapping_sub(ghost.let_in)) < COMING_IN.as_millis() / TICK.as_millis() {
                    return true;
                }
                let evictions = (ghost.evictions + 1).min(EVICTIONS_MAX);
                (Ghost { asks_left: (1 << evictions) - 1, evictions, ..ghost }, false)
            }
            Some(ghost) => {
                let asks_left = ghost.asks_left - 1;
                (Ghost { asks_left, let_in: tick, ..ghost }, asks_left == 0)
            }
        };
        place.store(ghost.pack(), Relaxed);
        lets_in
    }
}

impl Ghost {
    fn pack(self) -> u64 {
        let Ghost { print, asks_left, evictions, let_in } = self;
        u64::from(print) << 32 | u64::from(let_in) << 16 | u64::from(asks_left) << 8 | u64::from(evictions)
    }

    /// `None` where nobody was.
    fn unpack(word: u64) -> Option<Ghost> {
        let ghost = Ghost {
            print: (word >> 32) as u32,
            let_in: (word >> 16) as u16,
            asks_left: (word >> 8) as u8,
            evictions: word as u8,
        };
        (word != 0).then_some(ghost)
    }
}

/// The finish of splitmix64 over what names the chunk.
fn hash(blob: u128, chunk: u64) -> u64 {
    let mut hash = (blob >> 64) as u64 ^ (blob as u64).rotate_left(32) ^ chunk.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::GHOSTS_MAX;

    /// Long after whatever is coming in has come.
    const LATER: u16 = 100;

    #[test]
    fn what_is_asked_for_again_is_let_in_by_all_who_ask_at_once() {
        let (ghosts, film) = (Ghosts::new(GHOSTS_MAX), BlobId::new());
        assert!(!ghosts.lets_in(film, 0), "asked for once");
        assert!(!ghosts.lets_in(film, 1), "its neighbour is another");
        assert!(!ghosts.lets_in(BlobId::new(), 0), "and so is that of another blob");
        for asked in 2..20 {
            assert!(ghosts.lets_in(film, 0), "asked for {asked} times");
        }
    }

    #[test]
    fn what_memory_does_not_keep_must_be_asked_for_more_often() {
        let ghosts = Ghosts::new(16);
        let ways: String = (0..26u16).map(|ask| if ghosts.lets_in_at(5, ask * LATER) { 'c' } else { '.' }).collect();
        assert_eq!(ways, ".c.c...c.......c..........");
        for ask in 26..2_000u16 {
            ghosts.lets_in_at(5, ask.wrapping_mul(LATER));
        }
        let again = (0..200u16).filter(|ask| ghosts.lets_in_at(5, ask.wrapping_mul(LATER))).count();
        assert!((3..=4).contains(&again), "at least one in 64: {again} of 200");
    }

    /// Segments of popular films between those that are asked for once: more of them than there are blobs kept open.
    #[test]
    fn popular_chunks_are_found_again_in_a_scan() {
        let ghosts = Ghosts::new(GHOSTS_MAX);
        let popular: Vec<BlobId> = (0..1_000).map(|_| BlobId::new()).collect();
        let round = || {
            let mut let_in = 0;
            for film in &popular {
                let_in += usize::from(ghosts.lets_in(*film, 0));
                for chunk in 0..10 {
                    ghosts.lets_in(BlobId::new(), chunk);
                }
            }
            let_in
        };
        let (first, second) = (round(), round());
        assert!(first <= 1 && second > 800, "{first}, then {second} of 1,000");
    }

    proptest! {
        #[test]
        fn a_ghost_comes_back_as_it_was(print: u32, asks_left in 1u8.., evictions: u8, let_in: u16) {
            let ghost = Ghost { print, asks_left, evictions, let_in };
            prop_assert_eq!(Ghost::unpack(ghost.pack()), Some(ghost));
        }

        #[test]
        fn the_first_ask_is_never_let_in_and_the_second_always(blob: u128, chunk: u64, tick: u16) {
            let ghosts = Ghosts::new(64);
            let hash = hash(blob, chunk);
            prop_assert!(!ghosts.lets_in_at(hash, tick));
            prop_assert!(ghosts.lets_in_at(hash, tick));
        }
    }
}
