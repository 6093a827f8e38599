//! Takes turns: A B B A A B B A …, after one unmeasured warm-up of each side.
//!
//! The order alternates so that a machine that becomes slower or faster meanwhile is unfair to neither. A round that
//! fails ends the comparison with the side's name; Ctrl-C ends it with the pairs that are complete.

use std::io::{IsTerminal, Write};

use anyhow::Context;

use super::result::Run;
use super::stop;

/// Who takes turns at what.
#[derive(Debug, Clone, Copy)]
pub struct Turns<'a> {
    /// The case, for the progress line.
    pub title: &'a str,
    pub ours: &'a str,
    pub theirs: &'a str,
    /// Measured rounds of each side.
    pub rounds: u32,
}

/// Run `n` of one side was measured next to run `n` of the other.
#[derive(Debug, Default)]
pub struct Pairs {
    pub ours: Vec<Run>,
    pub theirs: Vec<Run>,
    /// False after Ctrl-C; the pairs are whole all the same.
    pub complete: bool,
}

/// Runs both sides in turn. Fails with the side's name in front of why its round failed.
pub fn alternate(
    turns: Turns<'_>,
    mut ours: impl FnMut() -> anyhow::Result<Run>,
    mut theirs: impl FnMut() -> anyhow::Result<Run>,
) -> anyhow::Result<Pairs> {
    let progress = Progress { turns, tty: std::io::stderr().is_terminal() };
    let mut pairs = Pairs::default();
    let outcome = (|| {
        progress.show(0, turns.ours);
        one(turns.ours, "warm-up", &mut ours)?;
        progress.show(0, turns.theirs);
        one(turns.theirs, "warm-up", &mut theirs)?;
        for round in 1..=turns.rounds {
            for first in [true, false] {
                let which = format!("round {round}");
                if first == (round % 2 == 1) {
                    progress.show(round, turns.ours);
                    pairs.ours.push(one(turns.ours, &which, &mut ours)?);
                } else {
                    progress.show(round, turns.theirs);
                    pairs.theirs.push(one(turns.theirs, &which, &mut theirs)?);
                }
            }
        }
        anyhow::Ok(())
    })();
    progress.clear();
    match outcome {
        Ok(()) => pairs.complete = true,
        // A program that died of our own stop did not fail.
        Err(_) if stop::asked() => {
            let whole = pairs.ours.len().min(pairs.theirs.len());
            pairs.ours.truncate(whole);
            pairs.theirs.truncate(whole);
        }
        Err(error) => return Err(error.context(format!("comparing {}", turns.title))),
    }
    Ok(pairs)
}

fn one(side: &str, which: &str, round: &mut impl FnMut() -> anyhow::Result<Run>) -> anyhow::Result<Run> {
    stop::check()?;
    let run = round().with_context(|| format!("{side} failed in its {which}"))?;
    stop::check()?;
    Ok(run)
}

/// One line that overwrites itself on a terminal; else a line per case.
struct Progress<'a> {
    turns: Turns<'a>,
    tty: bool,
}

impl Progress<'_> {
    fn show(&self, round: u32, side: &str) {
        let Turns { title, rounds, ours, theirs } = self.turns;
        let mut err = std::io::stderr().lock();
        // A progress line that cannot be written must not end a measurement.
        let _ = match (self.tty, round) {
            (true, 0) => write!(err, "\r\x1b[K{title}: {side} warms up"),
            (true, _) => write!(err, "\r\x1b[K{title}: round {round} of {rounds}, {side}"),
            (false, 0) if side == ours => writeln!(err, "{title}: {ours} against {theirs}, {rounds} rounds each"),
            (false, _) => Ok(()),
        };
        let _ = err.flush();
    }

    fn clear(&self) {
        if self.tty {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const TURNS: Turns<'static> = Turns { title: "t", ours: "red", theirs: "blue", rounds: 4 };

    #[test]
    fn both_orders_after_a_warm_up_of_each() {
        let order = RefCell::new(String::new());
        let side = |name: char| {
            let order = &order;
            move || {
                order.borrow_mut().push(name);
                Ok(Run { bytes: order.borrow().len() as u64, ..Run::default() })
            }
        };
        let pairs = alternate(TURNS, side('A'), side('B')).unwrap();
        assert_eq!(order.borrow().as_str(), "ABABBAABBA");
        assert!(pairs.complete);
        let bytes = |runs: &[Run]| runs.iter().map(|run| run.bytes).collect::<Vec<_>>();
        assert_eq!((bytes(&pairs.ours), bytes(&pairs.theirs)), (vec![3, 6, 7, 10], vec![4, 5, 8, 9]));
    }

    #[test]
    fn a_failed_round_names_the_side() {
        let mut left = 3;
        let blue = || {
            left -= 1;
            anyhow::ensure!(left > 0, "disk on fire");
            Ok(Run::default())
        };
        let error = alternate(TURNS, || Ok(Run::default()), blue).unwrap_err();
        let text = format!("{error:#}");
        assert_eq!(text, "comparing t: blue failed in its round 2: disk on fire");
    }
}
