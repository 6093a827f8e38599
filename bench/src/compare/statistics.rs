//! Medians, spreads, and the ratio of two sides with its interval and verdict.
//!
//! **The ratio.** Rounds come in neighbouring pairs (A B, B A, A B, …), and each pair gives one log ratio
//! `ln(ours / theirs)`: what slows the machine for longer than a round slows both of a pair and cancels. The estimate
//! is the Hodges–Lehmann median, the median of all means of two log ratios, and the interval is the one that
//! Wilcoxon's signed-rank test does not reject, from its exact distribution (Hollander, Wolfe and Chicken,
//! *Nonparametric Statistical Methods*, 3rd edition, 2014, sections 3.2 to 3.4).
//!
//! **Why this one.** It asks only that a pair's log ratio is as likely to err up as down. For two equal sides that
//! is so whatever the noise looks like, since the two of a pair could be swapped. A t interval asks for a normal
//! distribution, which a shared machine does not have: one round hit by a neighbour makes it so wide that it finds
//! nothing. A bootstrap of so few pairs is too narrow. A drift enters the pairs with alternating sign, because their
//! order alternates, and so makes the interval wider, not wrong. From 16 pairs on, one wild pair does not reach the
//! ends of the interval at all; hence the default number of rounds.
//!
//! **The verdict.** The interval holds the truth in at least 99 of 100 comparisons: of 20 comparisons of equal sides
//! two or more are then called different once in 60 times. 99 % needs 8 pairs; under that the verdict is "too few
//! rounds" and the interval is given with the confidence that it does have. A difference of less than 1 % is never
//! claimed: where code and data happen to lie in memory makes as much.

use super::result::{Better, Ratio, Verdict};

/// Of the interval; see above.
pub const CONFIDENCE: f64 = 0.99;
/// The fewest pairs with which an interval of [`CONFIDENCE`] exists: 1 − 2/2⁸ is 99.2 %.
pub const FEWEST_PAIRS: usize = 8;
/// The share by which sides must differ for a verdict.
pub const NEGLIGIBLE: f64 = 0.01;

/// Median and ends of some figures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// `None` of no figures.
    pub fn of(figures: &[f64]) -> Option<Spread> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Spread { median: median_of_sorted(&sorted)?, min: sorted[0], max: sorted[sorted.len() - 1] })
    }
}

fn median_of_sorted(sorted: &[f64]) -> Option<f64> {
    let upper = sorted.len() / 2;
    Some(match sorted.len() {
        0 => return None,
        n if n % 2 == 1 => sorted[upper],
        _ => f64::midpoint(sorted[upper - 1], sorted[upper]),
    })
}

/// Ours over theirs, pair by pair. `None` when there is no pair, or when a figure is not a positive number: such a
/// round measured nothing.
pub fn ratio(ours: &[f64], theirs: &[f64], better: Better) -> Option<Ratio> {
    let pairs = ours.len().min(theirs.len());
    let logs: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| (ours / theirs).ln()).collect();
    if pairs == 0 || logs.iter().any(|log| !log.is_finite()) {
        return None;
    }
    let mut means = Vec::with_capacity(pairs * (pairs + 1) / 2);
    for (i, a) in logs.iter().enumerate() {
        means.extend(logs[i..].iter().map(|b| f64::midpoint(*a, *b)));
    }
    means.sort_by(f64::total_cmp);
    let (cut, confidence) = signed_rank_cut(pairs);
    let (low, high) = (means[cut].exp(), means[means.len() - 1 - cut].exp());
    let verdict = if confidence < CONFIDENCE { Verdict::TooFewRounds } else { verdict(low, high, better) };
    Some(Ratio { median: median_of_sorted(&means)?.exp(), low, high, confidence, verdict })
}

fn verdict(low: f64, high: f64, better: Better) -> Verdict {
    let (above, below) = (low > 1.0 + NEGLIGIBLE, high < 1.0 - NEGLIGIBLE);
    match better {
        _ if !above && !below => Verdict::NoDifference,
        Better::Higher if above => Verdict::Win,
        Better::Lower if below => Verdict::Win,
        _ => Verdict::Loss,
    }
}

/// How many of the sorted means of two to leave out at either end, and the confidence of the interval between: the
/// largest `k` with P(W < k) ≤ (1 − confidence) / 2 under the signed-rank distribution; 0 with what confidence there is
/// where none reaches.
fn signed_rank_cut(pairs: usize) -> (usize, f64) {
    // ways[s]: the share of sign patterns in which the positive ranks add up to s.
    let top = pairs * (pairs + 1) / 2;
    let mut share = vec![0.0_f64; top + 1];
    share[0] = 1.0;
    for rank in 1..=pairs {
        for sum in (0..=top).rev() {
            let with = if sum >= rank { share[sum - rank] } else { 0.0 };
            share[sum] = f64::midpoint(share[sum], with);
        }
    }
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let (mut cut, mut below) = (0, share[0]);
    while cut + 1 < top / 2 && below + share[cut + 1] <= tail {
        cut += 1;
        below += share[cut];
    }
    (cut, 1.0 - 2.0 * below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_even_and_odd_counts() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of(&[]), None);
    }

    /// Against the published table of the signed-rank test: the largest w with P(W ≤ w) ≤ 0.005.
    #[test]
    fn the_signed_rank_table() {
        for (pairs, w) in [(8, 0), (9, 1), (10, 3), (12, 7), (15, 15), (16, 19), (20, 37), (25, 68), (30, 109)] {
            let (cut, confidence) = signed_rank_cut(pairs);
            assert_eq!(cut, w, "{pairs} pairs");
            assert!((CONFIDENCE..0.9985).contains(&confidence), "{pairs} pairs: {confidence}");
        }
        assert_eq!(signed_rank_cut(8).1, 1.0 - 2.0 / 256.0);
        assert_eq!(signed_rank_cut(7), (0, 1.0 - 2.0 / 128.0));
        assert_eq!(signed_rank_cut(1), (0, 0.0));
    }

    #[test]
    fn the_ratio_of_clean_pairs() {
        let theirs: Vec<f64> = (0..10).map(|n| 100.0 + f64::from(n)).collect();
        let ours: Vec<f64> = theirs.iter().map(|figure| figure * 0.9).collect();
        let found = ratio(&ours, &theirs, Better::Higher).unwrap();
        assert!((found.median - 0.9).abs() < 1e-9 && (found.high - found.low).abs() < 1e-9, "{found:?}");
        assert_eq!(found.verdict, Verdict::Loss);
        assert_eq!(ratio(&ours, &theirs, Better::Lower).unwrap().verdict, Verdict::Win);
        assert_eq!(ratio(&theirs, &ours, Better::Higher).unwrap().verdict, Verdict::Win);
        assert_eq!(ratio(&theirs, &ours, Better::Lower).unwrap().verdict, Verdict::Loss);
        assert_eq!(ratio(&theirs, &theirs, Better::Higher).unwrap().verdict, Verdict::NoDifference);
        // Real, and not worth a claim.
        let a_little: Vec<f64> = theirs.iter().map(|figure| figure * 0.995).collect();
        assert_eq!(ratio(&a_little, &theirs, Better::Higher).unwrap().verdict, Verdict::NoDifference);
    }

    #[test]
    fn too_few_rounds_give_figures_and_no_verdict() {
        let (ours, theirs) = ([1.0; 7], [2.0; 7]);
        let found = ratio(&ours, &theirs, Better::Higher).unwrap();
        assert_eq!((found.median, found.verdict), (0.5, Verdict::TooFewRounds));
        assert!(found.confidence < CONFIDENCE);
        assert_eq!(ratio(&[1.0; 8], &[2.0; 8], Better::Higher).unwrap().verdict, Verdict::Loss);
        // Ctrl-C in the middle of a pair: the lone round counts for nothing.
        assert_eq!(ratio(&ours, &[2.0; 3], Better::Higher).unwrap().confidence, 1.0 - 2.0 / 8.0);
        assert_eq!(ratio(&[], &[], Better::Higher), None);
        assert_eq!(ratio(&[0.0, 1.0], &[1.0, 1.0], Better::Higher), None);
    }

    #[test]
    fn one_wild_pair_of_sixteen_does_not_decide() {
        let steady: Vec<f64> = (0..16).map(|n| 100.0 + f64::from(n % 4)).collect();
        for wild in [1e-6, 1e6] {
            let mut ours: Vec<f64> = steady.iter().map(|figure| figure * 0.9).collect();
            ours[7] *= wild;
            let found = ratio(&ours, &steady, Better::Higher).unwrap();
            assert!(found.low > 0.85 && found.high < 0.95 && found.verdict == Verdict::Loss, "{found:?}");
        }
    }
}

/// Thousands of comparisons whose truth is known. The seed is fixed, so the counts are too: they are asserted with no
/// room for luck, and a change of the method that makes them worse fails.
#[cfg(test)]
mod simulations {
    use super::*;

    const EXPERIMENTS: usize = 4000;

    /// xorshift64*, and a normal deviate of twelve of its draws: good enough a bell, and no dependency.
    struct Noise(u64);

    impl Noise {
        fn uniform(&mut self) -> f64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64
        }

        fn normal(&mut self) -> f64 {
            (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
        }
    }

    /// What a machine does to the rounds, as shares of a round's figure.
    #[derive(Clone, Copy)]
    struct Machine {
        /// Standard deviation of a round by itself.
        jitter: f64,
        /// Of a slow wave that carries over from round to round by `keep`.
        wave: f64,
        keep: f64,
        /// From the first round to the last.
        drift: f64,
        /// How often a neighbour takes half of a round and more.
        outliers: f64,
    }

    const QUIET: Machine = Machine { jitter: 0.03, wave: 0.0, keep: 0.0, drift: 0.0, outliers: 0.0 };

    /// Rounds in the order A B B A… with ours at `truth` of theirs.
    fn experiment(noise: &mut Noise, machine: Machine, rounds: usize, truth: f64) -> Ratio {
        let (mut ours, mut theirs, mut wave) = (Vec::new(), Vec::new(), 0.0);
        let slots = 2 * rounds;
        for slot in 0..slots {
            let Machine { jitter, wave: height, keep, drift, outliers } = machine;
            wave = keep * wave + (1.0 - keep * keep).sqrt() * height * noise.normal();
            let mut log = jitter * noise.normal() + wave + drift * slot as f64 / slots as f64;
            if noise.uniform() < outliers {
                // A heavy tail: now and then a round takes ten times as long.
                log -= 0.5 / noise.uniform().max(0.05);
            }
            if matches!(slot % 4, 0 | 3) {
                ours.push(1000.0 * truth * log.exp());
            } else {
                theirs.push(1000.0 * log.exp());
            }
        }
        ratio(&ours, &theirs, Better::Higher).unwrap()
    }

    /// What became of all experiments, in order.
    fn verdicts(machine: Machine, rounds: usize, truth: f64) -> Vec<Verdict> {
        let mut noise = Noise(0x5eed_0fab_ba5e);
        (0..EXPERIMENTS).map(|_| experiment(&mut noise, machine, rounds, truth).verdict).collect()
    }

    fn count(verdicts: &[Verdict], wanted: Verdict) -> usize {
        verdicts.iter().filter(|verdict| **verdict == wanted).count()
    }

    const BUSY: Machine = Machine { jitter: 0.05, ..QUIET };
    const DRIFTING: Machine = Machine { drift: 0.30, ..QUIET };
    const WAVY: Machine = Machine { wave: 0.10, keep: 0.8, ..QUIET };
    const NEIGHBOURS: Machine = Machine { outliers: 0.08, ..QUIET };
    const ALL_OF_IT: Machine = Machine { jitter: 0.05, wave: 0.05, keep: 0.9, drift: -0.20, outliers: 0.05 };

    /// Of 4000: at most 40 may be called different, and hardly ever two among twenty in a row.
    #[test]
    fn equal_sides_are_no_difference() {
        for (name, machine) in [
            ("quiet", QUIET),
            ("busy", BUSY),
            ("drifting", DRIFTING),
            ("wavy", WAVY),
            ("neighbours", NEIGHBOURS),
            ("all of it", ALL_OF_IT),
        ] {
            let found = verdicts(machine, 16, 1.0);
            let wrong = EXPERIMENTS - count(&found, Verdict::NoDifference);
            assert!(wrong <= 24, "{name}: {wrong} of {EXPERIMENTS} are called different");
            let unlucky = found.chunks(20).filter(|twenty| count(twenty, Verdict::NoDifference) < 19).count();
            assert!(unlucky <= 2, "{name}: {unlucky} of {} twenties have two wrong ones", EXPERIMENTS / 20);
        }
    }

    /// How many of 4000 find a planted slowdown of 10 %; none may call it a win.
    #[test]
    fn a_slowdown_of_a_tenth_is_a_loss() {
        for (name, machine, rounds, least) in [
            ("quiet, the fewest rounds", QUIET, 8, 3600),
            ("quiet", QUIET, 16, 3990),
            ("busy", BUSY, 16, 3700),
            ("drifting", DRIFTING, 16, 3980),
            ("wavy", WAVY, 16, 3800),
            ("neighbours", NEIGHBOURS, 16, 2500),
            ("all of it", ALL_OF_IT, 16, 2500),
        ] {
            let found = verdicts(machine, rounds, 0.9);
            let losses = count(&found, Verdict::Loss);
            assert!(losses >= least, "{name}: {losses} of {EXPERIMENTS} are losses");
            assert_eq!(count(&found, Verdict::Win), 0, "{name}");
        }
    }

    /// The interval holds the truth as often as it says.
    #[test]
    fn the_interval_holds_the_truth() {
        let mut noise = Noise(0x00c0_ffee);
        let outside = |machine: Machine, noise: &mut Noise| {
            let missed = |found: Ratio| found.low > 0.9 || found.high < 0.9;
            (0..EXPERIMENTS).filter(|_| missed(experiment(noise, machine, 12, 0.9))).count()
        };
        for machine in [BUSY, DRIFTING, ALL_OF_IT] {
            let missed = outside(machine, &mut noise);
            assert!(missed <= EXPERIMENTS / 100, "{missed} of {EXPERIMENTS} intervals miss");
        }
    }
}
