//! What every measurement shares: the target, the A B B A alternation, CPU time, statistics.

use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

/// What is measured.
pub struct Target {
    pub path: PathBuf,
    pub size: u64,
    pub bs: usize,
    pub iodepth: usize,
    pub round: Duration,
    pub rounds: u32,
    pub direct: bool,
}

/// The median of some rounds, and how far they lie apart.
#[derive(Debug, Clone, Copy, Serialize, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(mut values: Vec<f64>) -> Spread {
        assert!(!values.is_empty(), "no rounds were measured");
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Spread { median, min: values[0], max: values[values.len() - 1] }
    }
}

/// Runs two rivals `rounds` times each in the order A B B A A B B A…, so that a drift of the
/// machine falls on both alike.
pub async fn alternate<T, FA, FB>(
    rounds: u32,
    mut a: impl FnMut() -> FA,
    mut b: impl FnMut() -> FB,
) -> anyhow::Result<(Vec<T>, Vec<T>)>
where
    FA: Future<Output = anyhow::Result<T>>,
    FB: Future<Output = anyhow::Result<T>>,
{
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        if round % 2 == 0 {
            of_a.push(a().await?);
            of_b.push(b().await?);
        } else {
            of_b.push(b().await?);
            of_a.push(a().await?);
        }
    }
    Ok((of_a, of_b))
}

/// CPU time of this process, all threads, user and system.
pub fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may hold spaces; utime and stime are the 12th and 13th fields after it.
    let after = text.rsplit_once(')').map_or("", |(_, after)| after);
    let ticks: u64 = after.split_ascii_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
    // USER_HZ is 100 on every Linux there is.
    Duration::from_millis(ticks * 10)
}

/// The share of one core that this process uses while nothing is asked of it, in percent.
pub async fn idle_cpu(during: Duration) -> anyhow::Result<f64> {
    let (cpu, clock) = (cpu_time(), Instant::now());
    tokio::time::sleep(during).await;
    Ok((cpu_time() - cpu).as_secs_f64() / clock.elapsed().as_secs_f64() * 100.0)
}

/// Offsets of a file in random order, the same in every run.
pub struct Offsets {
    state: u64,
    blocks: u64,
    bs: u64,
}

impl Offsets {
    pub fn new(target: &Target, bs: usize, seed: u64) -> Offsets {
        let bs = bs as u64;
        Offsets { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, blocks: target.size / bs, bs }
    }
}

impl Iterator for Offsets {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        // xorshift64: cheap beside a read, and no two tasks walk alike.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        Some(self.state % self.blocks * self.bs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_even_and_odd_counts() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 3.0]), Spread { median: 2.5, min: 1.0, max: 4.0 });
    }

    #[tokio::test]
    async fn rivals_take_turns_in_both_orders() {
        let order = std::cell::RefCell::new(String::new());
        let side = |name: char| {
            let order = &order;
            move || {
                order.borrow_mut().push(name);
                async move { Ok(name) }
            }
        };
        let (a, b) = alternate(4, side('A'), side('B')).await.unwrap();
        assert_eq!(order.into_inner(), "ABBAABBA");
        assert_eq!((a.len(), b.len()), (4, 4));
    }

    #[test]
    fn offsets_stay_inside_and_are_aligned() {
        let target = Target {
            path: PathBuf::new(),
            size: 10 * 4096,
            bs: 4096,
            iodepth: 1,
            round: Duration::ZERO,
            rounds: 1,
            direct: false,
        };
        let offsets: Vec<u64> = Offsets::new(&target, 4096, 7).take(1000).collect();
        assert!(offsets.iter().all(|o| o % 4096 == 0 && *o < target.size));
        assert!((0..10).all(|block| offsets.contains(&(block * 4096))), "some block is never read");
    }
}
