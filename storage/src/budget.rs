//! Who has how much of a pool's memory, and whose turn it is.
//!
//! Buffers wait for the slowest: for a disk, and for clients that take or send nothing. So no guest gets more than a share
//! that grows with what is left free ([`GUEST_SHARE`] times as much): alone he may have three quarters, two who want all
//! they can get have three sevenths each, and whoever comes finds something. Where memory has to be waited for, the next
//! is who has least; among equals, who has waited longest. Who waits for his own share holds nobody up.
//!
//! A [`Permit`] is a place in the queue until it is granted, and the right to its bytes from then on. Dropping it gives up
//! the one or the other, so a wait can be cancelled at any time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::limits::GUEST_SHARE;

/// On whose account memory is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Payer {
    /// The node's own work, which is bounded by other limits.
    #[default]
    Node,
    /// Somebody from outside, by a number that tells him from others.
    Guest(u128),
}

pub(crate) struct Budget {
    units: usize,
    state: Mutex<State>,
    /// Times somebody had to wait because there was nothing left, and because he had his share.
    waits_for_room: AtomicU64,
    waits_for_share: AtomicU64,
}

struct State {
    free: usize,
    /// Whoever has something, or waits.
    accounts: HashMap<Payer, Account>,
    /// Those who wait, in the order of their turns: what they have, and their first place in the queue.
    turns: BTreeSet<(usize, u64, Payer)>,
    next_place: u64,
}

#[derive(Default)]
struct Account {
    held: usize,
    waiting: BTreeMap<u64, Waiter>,
}

struct Waiter {
    units: usize,
    granted: oneshot::Sender<()>,
}

/// Units of a budget, or a place in its queue.
pub(crate) struct Permit {
    budget: Arc<Budget>,
    payer: Payer,
    units: usize,
    place: Option<u64>,
}

impl Budget {
    pub(crate) fn new(units: usize) -> Arc<Budget> {
        let (accounts, turns) = Default::default();
        let state = Mutex::new(State { free: units, accounts, turns, next_place: 0 });
        Arc::new(Budget { units, state, waits_for_room: AtomicU64::new(0), waits_for_share: AtomicU64::new(0) })
    }

    pub(crate) fn units(&self) -> usize {
        self.units
    }

    pub(crate) fn in_use(&self) -> usize {
        self.units - self.state().free
    }

    /// True when little is left, or this payer waits.
    pub(crate) fn is_short(&self, payer: Payer) -> bool {
        let state = self.state();
        state.free < self.units / 8 || state.accounts.get(&payer).is_some_and(|account| !account.waiting.is_empty())
    }

    /// True when there are not so many for this payer.
    pub(crate) fn lacks(&self, payer: Payer, units: usize) -> bool {
        !self.state().allows(payer, units)
    }

    /// How often somebody had to wait: for room, and for his own share.
    pub(crate) fn waits(&self) -> (u64, u64) {
        (self.waits_for_room.load(Relaxed), self.waits_for_share.load(Relaxed))
    }

    /// Once it is `payer`'s turn. Dropping the future takes nothing.
    pub(crate) async fn take(self: &Arc<Self>, payer: Payer, units: usize) -> Permit {
        let (tell, granted) = oneshot::channel();
        let (permit, told) = {
            let mut state = self.state();
            if let Some(permit) = self.take_now(&mut state, payer, units, 0) {
                return permit;
            }
            let reason = if units > state.free { &self.waits_for_room } else { &self.waits_for_share };
            reason.fetch_add(1, Relaxed);
            let place = state.next_place;
            state.next_place += 1;
            state.change(payer, |account| account.waiting.insert(place, Waiter { units, granted: tell }));
            let permit = Permit { budget: Arc::clone(self), payer, units, place: Some(place) };
            (permit, state.grant())
        };
        tell_all(told);
        granted.await.expect("a place in the queue is only left by its owner, or granted");
        permit
    }

    /// If it is `payer`'s turn now, and `rest` more could be had besides.
    pub(crate) fn try_take(self: &Arc<Self>, payer: Payer, units: usize, rest: usize) -> Option<Permit> {
        self.take_now(&mut self.state(), payer, units, rest)
    }

    fn take_now(self: &Arc<Self>, state: &mut State, payer: Payer, units: usize, rest: usize) -> Option<Permit> {
        if !state.is_his_turn(payer) || !state.allows(payer, units + rest) {
            return None;
        }
        state.free -= units;
        state.change(payer, |account| account.held += units);
        Some(Permit { budget: Arc::clone(self), payer, units, place: None })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn held(&self, payer: Payer) -> usize {
        self.accounts.get(&payer).map_or(0, |account| account.held)
    }

    /// There is as much, and within the payer's share. Whoever has nothing yet may have what there is.
    fn allows(&self, payer: Payer, units: usize) -> bool {
        let Some(left) = self.free.checked_sub(units) else { return false };
        let held = self.held(payer);
        payer == Payer::Node || held == 0 || held + units <= GUEST_SHARE * left
    }

    /// Nobody who waits comes before `payer`: neither he himself nor anybody with less, but for those who wait for their
    /// own share.
    fn is_his_turn(&self, payer: Payer) -> bool {
        let held = self.held(payer);
        let mut before = self.turns.iter().take_while(|(other, ..)| *other <= held);
        before.all(|(_, place, other)| self.waits_for_share(*other, *place))
            && self.accounts.get(&payer).is_none_or(|account| account.waiting.is_empty())
    }

    /// There would be enough for who is first in this payer's queue, but not within his share.
    fn waits_for_share(&self, payer: Payer, place: u64) -> bool {
        self.wanted(payer, place) <= self.free
    }

    fn wanted(&self, payer: Payer, place: u64) -> usize {
        self.accounts[&payer].waiting[&place].units
    }

    /// Changes an account, and its turn with it.
    fn change<T>(&mut self, payer: Payer, change: impl FnOnce(&mut Account) -> T) -> T {
        let account = self.accounts.entry(payer).or_default();
        if let Some(turn) = account.turn(payer) {
            self.turns.remove(&turn);
        }
        let changed = change(account);
        match account.turn(payer) {
            Some(turn) => drop(self.turns.insert(turn)),
            None if account.held == 0 => drop(self.accounts.remove(&payer)),
            None => {}
        }
        changed
    }

    /// Gives what can be given to those whose turn it is. They are told when the lock is released.
    fn grant(&mut self) -> Vec<oneshot::Sender<()>> {
        let mut told = Vec::new();
        while let Some((place, payer)) = self.next_in_turn() {
            let waiter = self.change(payer, |account| {
                let waiter = account.waiting.remove(&place).expect("a turn names who waits");
                account.held += waiter.units;
                waiter
            });
            self.free -= waiter.units;
            told.push(waiter.granted);
        }
        told
    }

    /// Who can be given what he waits for. Who is next and finds too little left keeps those behind him from taking it.
    fn next_in_turn(&self) -> Option<(u64, Payer)> {
        for &(_, place, payer) in &self.turns {
            let units = self.wanted(payer, place);
            if self.allows(payer, units) {
                return Some((place, payer));
            }
            if units > self.free {
                return None;
            }
        }
        None
    }
}

impl Account {
    fn turn(&self, payer: Payer) -> Option<(usize, u64, Payer)> {
        self.waiting.keys().next().map(|place| (self.held, *place, payer))
    }
}

impl Permit {
    /// Gives back what is not needed any more. Only for what was granted.
    pub(crate) fn keep(&mut self, units: usize) {
        let told = {
            let mut state = self.budget.state();
            let rest = self.units - units;
            state.change(self.payer, |account| account.held -= rest);
            state.free += rest;
            self.units = units;
            state.grant()
        };
        tell_all(told);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let told = {
            let mut state = self.budget.state();
            let (units, place) = (self.units, self.place);
            let waited = state.change(self.payer, |account| {
                let waited = place.is_some_and(|place| account.waiting.remove(&place).is_some());
                account.held -= if waited { 0 } else { units };
                waited
            });
            state.free += if waited { 0 } else { units };
            state.grant()
        };
        tell_all(told);
    }
}

fn tell_all(told: Vec<oneshot::Sender<()>>) {
    for granted in told {
        // Who has gone away meanwhile gives it back by the drop of his permit.
        let _ = granted.send(());
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use proptest::prelude::*;

    use super::*;

    const A: Payer = Payer::Guest(1);
    const B: Payer = Payer::Guest(2);
    const C: Payer = Payer::Guest(3);

    type Taking = Pin<Box<dyn Future<Output = Permit> + Send>>;

    fn taking(budget: &Arc<Budget>, payer: Payer, units: usize) -> Taking {
        let budget = Arc::clone(budget);
        Box::pin(async move { budget.take(payer, units).await })
    }

    fn poll(taking: &mut Taking) -> Option<Permit> {
        match taking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(permit) => Some(permit),
            Poll::Pending => None,
        }
    }

    /// As many single units as there are for him now.
    fn all_for(budget: &Arc<Budget>, payer: Payer) -> Vec<Permit> {
        std::iter::from_fn(|| budget.try_take(payer, 1, 0)).collect()
    }

    #[test]
    fn a_guest_leaves_something_to_the_next_and_the_node_takes_what_there_is() {
        let budget = Budget::new(64);
        let greedy = all_for(&budget, A);
        assert_eq!(greedy.len(), 48);
        let second = all_for(&budget, B);
        assert_eq!(second.len(), 12);
        assert!(!all_for(&budget, C).is_empty());
        drop(greedy);
        assert_eq!(all_for(&budget, Payer::Node).len(), 64 - second.len());
        let last = budget.try_take(Payer::Node, 64 - second.len(), 0).unwrap();
        assert!(all_for(&budget, A).is_empty());
        drop((last, second));
        assert_eq!(all_for(&budget, A).len(), 48, "all of it came back");
        let state = budget.state();
        assert!(state.free == 64 && state.accounts.is_empty() && state.turns.is_empty());
    }

    #[test]
    fn who_has_least_is_next_and_who_waits_for_his_share_holds_nobody_up() {
        let budget = Budget::new(64);
        let mut greedy = all_for(&budget, A);
        let mut his = taking(&budget, A, 1);
        assert!(poll(&mut his).is_none() && budget.is_short(A) && !budget.is_short(B));
        assert_eq!(budget.waits(), (0, 1));
        let rest = budget.try_take(B, 16, 0).expect("what is left is for others");
        let (mut more, mut newcomer) = (taking(&budget, B, 1), taking(&budget, C, 2));
        assert!(poll(&mut more).is_none() && poll(&mut newcomer).is_none());
        // One unit is not enough for who is next, and nobody else gets it meanwhile.
        greedy.pop();
        assert!(poll(&mut more).is_none() && poll(&mut newcomer).is_none());
        greedy.pop();
        let newcomer = poll(&mut newcomer).expect("he has nothing yet");
        assert!(poll(&mut more).is_none());
        greedy.truncate(20);
        assert!(poll(&mut more).is_some() && poll(&mut his).is_some());
        drop((greedy, rest, newcomer, more, his));
        assert_eq!(budget.in_use(), 0);
    }

    #[test]
    fn what_is_not_pressing_leaves_a_rest() {
        let budget = Budget::new(64);
        let ahead: Vec<_> = std::iter::from_fn(|| budget.try_take(A, 1, 8)).collect();
        assert_eq!(ahead.len(), 40);
        assert!(budget.lacks(A, 9) && !budget.lacks(A, 2) && !budget.lacks(B, 9));
        assert_eq!(all_for(&budget, A).len(), 8);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Take(u128, usize),
        /// Gives all but one unit back.
        Keep(usize),
        /// Drops what was taken, or the wait for it.
        Drop(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0u128..4, 1usize..20).prop_map(|(payer, units)| Step::Take(payer, units)),
            2 => (0usize..64).prop_map(Step::Drop),
            1 => (0usize..64).prop_map(Step::Keep),
        ];
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        /// Whatever is taken, waited for and given up: nothing is given twice or lost, and nobody waits who need not.
        #[test]
        fn the_books_agree(steps in steps()) {
            let budget = Budget::new(64);
            let mut taken: Vec<(Payer, usize, Result<Permit, Taking>)> = Vec::new();
            for step in steps {
                match step {
                    Step::Take(number, units) => {
                        let payer = if number == 0 { Payer::Node } else { Payer::Guest(number) };
                        taken.push((payer, units, Err(taking(&budget, payer, units))));
                    }
                    Step::Drop(at) if at < taken.len() => drop(taken.swap_remove(at)),
                    Step::Keep(at) => {
                        if let Some((_, units, Ok(permit))) = taken.get_mut(at) {
                            permit.keep(1);
                            *units = 1;
                        }
                    }
                    Step::Drop(_) => {}
                }
                for (.., entry) in &mut taken {
                    if let Err(taking) = entry && let Some(permit) = poll(taking) {
                        *entry = Ok(permit);
                    }
                }
                let held: usize = taken.iter().filter(|(.., entry)| entry.is_ok()).map(|(_, units, _)| units).sum();
                prop_assert_eq!(budget.in_use(), held);
                let state = budget.state();
                prop_assert!(state.next_in_turn().is_none());
                let waiting: usize = state.accounts.values().map(|account| account.waiting.len()).sum();
                prop_assert_eq!(waiting, taken.iter().filter(|(.., entry)| entry.is_err()).count());
            }
            drop(taken);
            let state = budget.state();
            prop_assert!(state.free == 64 && state.accounts.is_empty() && state.turns.is_empty());
        }
    }
}
