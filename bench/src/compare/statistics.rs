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
}
