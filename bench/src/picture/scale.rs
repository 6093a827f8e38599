//! From values to places: a logarithmic scale with ticks people expect, and the probability scale of the latency plots.

/// Equal factors are equal distances. A ratio is what a comparison is about, and 4 KiB and 1 MiB fit one picture.
pub struct Log {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Log {
    /// From the smallest to the largest of `values`, which must be positive, onto `from..to`; at least `factor` wide.
    pub fn around(values: impl IntoIterator<Item = f64>, factor: f64, from: f64, to: f64) -> Log {
        let (mut low, mut high) = (f64::INFINITY, 0f64);
        for value in values.into_iter().filter(|value| value.is_finite() && *value > 0.0) {
            (low, high) = (low.min(value), high.max(value));
        }
        if high == 0.0 {
            (low, high) = (1.0, 10.0);
        }
        let short = factor / (high / low);
        if short > 1.0 {
            (low, high) = (low / short.sqrt(), high * short.sqrt());
        }
        Log { low, high, from, to }
    }

    /// Widened on both sides by a share of its length.
    pub fn padded(mut self, share: f64) -> Log {
        let by = (self.high / self.low).powf(share);
        (self.low, self.high) = (self.low / by, self.high * by);
        self
    }

    pub fn place(&self, value: f64) -> f64 {
        let share = (value.clamp(self.low, self.high) / self.low).ln() / (self.high / self.low).ln();
        self.from + share * (self.to - self.from)
    }

    pub fn holds(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }

    pub fn low(&self) -> f64 {
        self.low
    }

    pub fn high(&self) -> f64 {
        self.high
    }

    /// Round values, at most `most` of them, as many as that allows.
    pub fn ticks(&self, most: usize) -> Vec<f64> {
        const STEPS: [&[f64]; 5] = [
            &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
            &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
            &[1.0, 2.0, 5.0],
            &[1.0, 3.0],
            &[1.0],
        ];
        let (first, last) = (self.low.log10().floor() as i32, self.high.log10().floor() as i32);
        let within = |steps: &[f64], stride: i32| -> Vec<f64> {
            let decades = (first..=last).filter(|decade| (decade - first) % stride == 0);
            let all = decades.flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
            all.filter(|&value| self.holds(value)).collect()
        };
        STEPS
            .iter()
            .map(|steps| within(steps, 1))
            .chain((2..=100).map(|stride| within(&[1.0], stride)))
            .find(|ticks| ticks.len() <= most)
            .unwrap_or_default()
    }
}

/// Shares of a distribution at normal quantiles: the median and the tail both have room, which neither a linear share
/// nor a logarithm of the remainder gives them.
pub struct Probability {
    top_share: f64,
    from: f64,
    to: f64,
}

/// Shares that get a line, the first and one of the last being the ends of the scale.
const SHARES: [(f64, &str); 10] = [
    (0.01, "1 %"),
    (0.1, "10 %"),
    (0.25, "25 %"),
    (0.5, "50 %"),
    (0.75, "75 %"),
    (0.9, "90 %"),
    (0.99, "99 %"),
    (0.999, "99.9 %"),
    (0.9999, "99.99 %"),
    (0.99999, "99.999 %"),
];

impl Probability {
    /// Up to the last share of which at least ten of `operations` lie beyond: a tail drawn from two is no tail.
    /// And not past `known`, where the distributions end.
    pub fn of(operations: u64, known: f64, from: f64, to: f64) -> Probability {
        let enough = |share: f64| share <= known && (1.0 - share) * operations as f64 >= 9.99;
        let top = SHARES[6..].iter().rev().find(|(share, _)| enough(*share)).unwrap_or(&SHARES[6]);
        Probability { top_share: top.0, from, to }
    }

    pub fn top_share(&self) -> f64 {
        self.top_share
    }

    pub fn place(&self, share: f64) -> f64 {
        let (low, high) = (normal_quantile(SHARES[0].0), normal_quantile(self.top_share));
        let at = normal_quantile(share.clamp(SHARES[0].0, self.top_share));
        self.from + (at - low) / (high - low) * (self.to - self.from)
    }

    pub fn ticks(&self) -> impl Iterator<Item = (f64, &'static str)> {
        SHARES.into_iter().filter(|(share, _)| *share <= self.top_share)
    }
}

/// Inverse of the normal distribution by bisection of its series: exact enough for a place in a picture.
fn normal_quantile(share: f64) -> f64 {
    let (mut low, mut high) = (-8.0, 8.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if normal_share(middle) < share {
            low = middle;
        } else {
            high = middle;
        }
    }
    (low + high) / 2.0
}

/// Φ by its Taylor series around zero (Marsaglia 2004), exact to double precision inside ±8.
fn normal_share(x: f64) -> f64 {
    let (mut sum, mut term, mut at) = (x, x, 1.0);
    while sum + term != sum && at < 400.0 {
        at += 2.0;
        term *= x * x / at;
        sum += term;
    }
    0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_the_normal_distribution() {
        for (share, x) in [(0.5, 0.0), (0.975, 1.959_964), (0.01, -2.326_348), (0.999, 3.090_232), (0.99999, 4.264_891)]
        {
            assert!((normal_quantile(share) - x).abs() < 1e-5, "{share}: {}", normal_quantile(share));
        }
    }

    #[test]
    fn ticks_are_few_and_inside() {
        for (low, high) in [(3.0, 4.0), (1.0, 10.0), (0.7, 9e6), (1e3, 1e9), (1e-3, 1e12)] {
            let scale = Log::around([low, high], 1.2, 0.0, 100.0);
            let ticks = scale.ticks(9);
            assert!((1..=9).contains(&ticks.len()), "{low}..{high}: {ticks:?}");
            assert!(ticks.iter().all(|&tick| scale.holds(tick)) && ticks.is_sorted(), "{ticks:?}");
        }
    }

    #[test]
    fn scales_fill_their_room_in_order() {
        let log = Log::around([10.0, 1000.0], 2.0, 0.0, 200.0);
        assert_eq!((log.place(10.0), log.place(100.0).round(), log.place(1e9)), (0.0, 100.0, 200.0));
        let one = Log::around([5.0], 4.0, 0.0, 100.0);
        assert!((one.place(5.0) - 50.0).abs() < 1e-9, "a single value stands in the middle");
        let shares = Probability::of(1_000_000, 1.0, 300.0, 0.0);
        assert_eq!((shares.place(0.0), shares.top_share()), (300.0, 0.99999));
        assert!(shares.place(0.5) > shares.place(0.99) && shares.place(1.0).abs() < 1e-9);
        assert_eq!(Probability::of(2_000, 1.0, 300.0, 0.0).top_share(), 0.99, "two of 2000 lie beyond 99.9 %: too few");
        assert_eq!(Probability::of(1_000_000, 0.999, 300.0, 0.0).top_share(), 0.999, "past that nothing is known");
    }
}
