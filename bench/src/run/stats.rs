//! What is counted of a clone's operations: by the clone alone, without a lock, merged at the end.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::job::Job;
use crate::limits::LATENCY_NS;

/// Count, extremes, mean and standard deviation of whole numbers. The sums are exact.
#[derive(Clone, Copy, Debug)]
pub struct Moments {
    pub count: u64,
    min: u64,
    pub max: u64,
    sum: u64,
    squares: u128,
}

impl Default for Moments {
    fn default() -> Self {
        Moments { count: 0, min: u64::MAX, max: 0, sum: 0, squares: 0 }
    }
}

impl Moments {
    pub fn add(&mut self, value: u64) {
        self.count += 1;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.sum = self.sum.saturating_add(value);
        self.squares += u128::from(value) * u128::from(value);
    }

    pub fn merge(&mut self, other: &Moments) {
        self.count += other.count;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sum = self.sum.saturating_add(other.sum);
        self.squares += other.squares;
    }

    pub fn min(&self) -> u64 {
        if self.count == 0 { 0 } else { self.min }
    }

    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum as f64 / self.count as f64 }
    }

    pub fn deviation(&self) -> f64 {
        if self.count < 2 {
            return 0.0;
        }
        let (count, mean) = (self.count as f64, self.mean());
        ((self.squares as f64 - count * mean * mean).max(0.0) / (count - 1.0)).sqrt()
    }
}

/// Latencies in nanoseconds, two significant digits each, with exact moments.
#[derive(Clone, Debug)]
pub struct Latency {
    pub moments: Moments,
    pub histogram: Histogram<u64>,
}

impl Default for Latency {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_NS, 2).expect("the bounds are valid");
        Latency { moments: Moments::default(), histogram }
    }
}

impl Latency {
    fn add(&mut self, ns: u64) {
        self.moments.add(ns);
        self.histogram.saturating_record(ns);
    }

    fn merge(&mut self, other: &Latency) {
        self.moments.merge(&other.moments);
        self.histogram.add(&other.histogram).expect("all histograms have the same bounds");
    }

    /// The value that `percent` of all are no greater than.
    pub fn percentile(&self, percent: f64) -> u64 {
        self.histogram.value_at_quantile(percent / 100.0).min(self.moments.max)
    }
}

/// One direction.
#[derive(Clone, Debug, Default)]
pub struct Side {
    pub bytes: u64,
    pub operations: u64,
    pub short: u64,
    /// From the runner's hand to the engine's.
    pub submission: Moments,
    /// From the engine's hand to the answer.
    pub completion: Latency,
    pub total: Latency,
    /// How long operations of this direction were issued.
    pub runtime: Duration,
    /// KiB/s and operations/s, twice a second.
    pub bandwidth: Moments,
    pub iops: Moments,
}

impl Side {
    fn merge(&mut self, other: &Side) {
        self.bytes += other.bytes;
        self.operations += other.operations;
        self.short += other.short;
        self.submission.merge(&other.submission);
        self.completion.merge(&other.completion);
        self.total.merge(&other.total);
        self.runtime = self.runtime.max(other.runtime);
        self.bandwidth.merge(&other.bandwidth);
        self.iops.merge(&other.iops);
    }
}

/// Upper bounds of fio's latency distribution, in each of its three units; the last one of milliseconds is open.
pub const LATENCY_BOUNDS: [u64; 11] = [2, 4, 10, 20, 50, 100, 250, 500, 750, 1000, 2000];

/// How many operations were in flight, or submitted, or completed at once.
pub type Depths = [u64; 7];

#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub read: Side,
    pub write: Side,
    pub sync: Latency,
    /// By completion latency: nanoseconds, microseconds, milliseconds.
    pub spread_ns: [u64; 10],
    pub spread_us: [u64; 10],
    pub spread_ms: [u64; 12],
    /// In flight when an operation was issued: 1, 2, 4, 8, 16, 32, 64 or more.
    pub level: Depths,
    /// Operations handed over at once: 0, up to 4, 8, 16, 32, 64, more.
    pub submitted: Depths,
    pub completed: Depths,
    /// Keeps the distribution of `total` too; else its moments only.
    pub lat_percentiles: bool,
}

impl Stats {
    pub fn of(job: &Job) -> Stats {
        Stats { lat_percentiles: job.lat_percentiles, ..Stats::default() }
    }

    pub fn side(&mut self, write: bool) -> &mut Side {
        if write { &mut self.write } else { &mut self.read }
    }

    pub fn transferred(&mut self, write: bool, bytes: u32, short: u32, submission: Option<u64>, completion: u64) {
        self.spread(completion);
        let whole = self.lat_percentiles;
        let side = self.side(write);
        side.operations += 1;
        side.bytes += u64::from(bytes);
        side.short += u64::from(short);
        if let Some(submission) = submission {
            side.submission.add(submission);
        }
        side.completion.add(completion);
        let total = completion + submission.unwrap_or(0);
        if whole {
            side.total.add(total);
        } else {
            side.total.moments.add(total);
        }
    }

    pub fn synced(&mut self, ns: u64) {
        self.sync.add(ns);
    }

    fn spread(&mut self, ns: u64) {
        let slot = |value: u64| LATENCY_BOUNDS.partition_point(|bound| *bound <= value);
        if ns < 1000 {
            self.spread_ns[slot(ns)] += 1;
        } else if ns < 1_000_000 {
            self.spread_us[slot(ns / 1000)] += 1;
        } else {
            self.spread_ms[slot(ns / 1_000_000)] += 1;
        }
    }

    pub fn issued_at_depth(&mut self, depth: usize) {
        self.level[depth.max(1).ilog2().min(6) as usize] += 1;
    }

    pub fn merge(&mut self, other: &Stats) {
        self.lat_percentiles |= other.lat_percentiles;
        self.read.merge(&other.read);
        self.write.merge(&other.write);
        self.sync.merge(&other.sync);
        let sum = |into: &mut [u64], from: &[u64]| into.iter_mut().zip(from).for_each(|(a, b)| *a += b);
        sum(&mut self.spread_ns, &other.spread_ns);
        sum(&mut self.spread_us, &other.spread_us);
        sum(&mut self.spread_ms, &other.spread_ms);
        sum(&mut self.level, &other.level);
        sum(&mut self.submitted, &other.submitted);
        sum(&mut self.completed, &other.completed);
    }
}

/// Counts a batch in `submitted` or `completed`.
pub fn count_batch(depths: &mut Depths, batch: usize) {
    let slot = match batch {
        0 => 0,
        1..=4 => 1,
        5..=8 => 2,
        9..=16 => 3,
        17..=32 => 4,
        33..=64 => 5,
        _ => 6,
    };
    depths[slot] += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_values_however_they_were_split() {
        let (mut a, mut b) = (Moments::default(), Moments::default());
        [2, 4, 4, 4].iter().for_each(|v| a.add(*v));
        [5, 5, 7, 9].iter().for_each(|v| b.add(*v));
        a.merge(&b);
        assert_eq!((a.count, a.min(), a.max, a.mean()), (8, 2, 9, 5.0));
        assert!((a.deviation() - 2.138_089_935).abs() < 1e-6, "{}", a.deviation());
        assert_eq!(
            (Moments::default().min(), Moments::default().mean(), Moments::default().deviation()),
            (0, 0.0, 0.0)
        );
    }

    #[test]
    fn latencies_fall_into_fios_buckets() {
        let mut stats = Stats::default();
        for ns in [1, 3, 999, 1000, 999_999, 1_000_000, 1_999_999_999, 2_000_000_000, u64::MAX / 4] {
            stats.transferred(false, 1, 0, None, ns);
        }
        assert_eq!((stats.spread_ns[0], stats.spread_ns[1], stats.spread_ns[9]), (1, 1, 1));
        assert_eq!((stats.spread_us[0], stats.spread_us[9]), (1, 1));
        assert_eq!((stats.spread_ms[0], stats.spread_ms[10], stats.spread_ms[11]), (1, 1, 2));
    }

    #[test]
    fn depths_and_batches_fall_into_fios_buckets() {
        let mut stats = Stats::default();
        [1, 2, 3, 63, 64, 500].iter().for_each(|depth| stats.issued_at_depth(*depth));
        assert_eq!(stats.level, [1, 2, 0, 0, 0, 1, 2]);
        [0, 1, 4, 5, 64, 65].iter().for_each(|batch| count_batch(&mut stats.submitted, *batch));
        assert_eq!(stats.submitted, [1, 2, 1, 0, 0, 1, 1]);
    }
}
