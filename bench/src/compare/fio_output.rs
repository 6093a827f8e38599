//! Reads the JSON that fio and `reelring-bench run` print, both by this one reader, and checks that two of them did the
//! same work.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use super::result::Run;
use super::usage::Ended;
use crate::limits;

/// The quantiles that a report keeps.
pub const QUANTILES: [f64; 6] = [0.5, 0.9, 0.95, 0.99, 0.999, 0.9999];

/// What one invocation did, all its jobs together.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub version: String,
    pub reads: Transfer,
    pub writes: Transfer,
    pub syncs: u64,
    /// While operations were issued. Jobs of a group run side by side, and groups one after the other.
    pub seconds: f64,
    /// Latency in ns to operations.
    latencies: BTreeMap<u64, u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Transfer {
    pub operations: u64,
    pub bytes: u64,
}

#[derive(Deserialize)]
struct Output {
    #[serde(rename = "fio version")]
    version: String,
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    jobname: String,
    #[serde(default)]
    groupid: u64,
    #[serde(default)]
    error: i64,
    read: Direction,
    write: Direction,
    #[serde(default)]
    sync: Sync,
}

#[derive(Deserialize, Default)]
struct Sync {
    lat_ns: SyncLatency,
}

/// fio's own count beside it stays 0 where syncs come between writes.
#[derive(Deserialize, Default)]
struct SyncLatency {
    #[serde(rename = "N", default)]
    count: u64,
}

#[derive(Deserialize)]
struct Direction {
    io_bytes: u64,
    total_ios: u64,
    /// Milliseconds.
    runtime: u64,
    clat_ns: Latency,
    /// With bins where `lat_percentiles` was asked for.
    #[serde(default)]
    lat_ns: Latency,
}

#[derive(Deserialize, Default)]
struct Latency {
    #[serde(default)]
    bins: BTreeMap<String, u64>,
}

impl Outcome {
    /// Of a program's standard output; fio may print notes before the JSON.
    pub fn read(stdout: &[u8]) -> anyhow::Result<Outcome> {
        let text = std::str::from_utf8(stdout).context("the output is not text")?;
        let begin = text.lines().position(|line| line.trim_end() == "{").context("the output has no JSON")?;
        let json: String = text.split_inclusive('\n').skip(begin).collect();
        let mut values = serde_json::Deserializer::from_str(&json).into_iter::<Output>();
        let Output { version, jobs } = values.next().context("the output has no JSON")?.context("fio's JSON")?;
        ensure!(!jobs.is_empty(), "the output has no jobs");

        let mut outcome = Outcome {
            version,
            reads: Transfer::default(),
            writes: Transfer::default(),
            syncs: 0,
            seconds: 0.0,
            latencies: BTreeMap::new(),
        };
        let mut groups: BTreeMap<u64, u64> = BTreeMap::new();
        for job in jobs {
            if job.error != 0 {
                let reason = std::io::Error::from_raw_os_error(i32::try_from(job.error.abs()).unwrap_or(0));
                bail!("job {:?} failed: {reason}", job.jobname);
            }
            let longest = groups.entry(job.groupid).or_default();
            *longest = (*longest).max(job.read.runtime).max(job.write.runtime);
            outcome.syncs += job.sync.lat_ns.count;
            for (direction, total) in [(job.read, &mut outcome.reads), (job.write, &mut outcome.writes)] {
                total.operations += direction.total_ios;
                total.bytes += direction.io_bytes;
                // From submission to answer where it was kept: an engine that answers while it is asked has nearly no
                // completion latency, which says nothing about the operation.
                let whole = !direction.lat_ns.bins.is_empty();
                for (ns, count) in if whole { direction.lat_ns.bins } else { direction.clat_ns.bins } {
                    let ns = ns.parse::<u64>().with_context(|| format!("the latency bin {ns:?}"))?;
                    *outcome.latencies.entry(ns).or_default() += count;
                }
            }
        }
        outcome.seconds = groups.values().sum::<u64>() as f64 / 1000.0;
        ensure!(outcome.seconds > 0.0, "the round was over in less than a millisecond: give it more to do");
        ensure!(outcome.operations() > 0, "the round completed no operation: give it more time");
        Ok(outcome)
    }

    pub fn operations(&self) -> u64 {
        self.reads.operations + self.writes.operations
    }

    pub fn bytes(&self) -> u64 {
        self.reads.bytes + self.writes.bytes
    }

    /// With what the program used, as it was measured from outside.
    pub fn into_run(self, ended: &Ended) -> Run {
        let (clat_ns, cdf) = self.distribution();
        Run {
            client_cpu_seconds: None,
            disk_busy: None,
            seconds: self.seconds,
            bytes: self.bytes(),
            operations: self.operations(),
            cpu_seconds: ended.usage.cpu_seconds,
            context_switches: ended.usage.context_switches,
            peak_rss_bytes: ended.usage.peak_rss_bytes,
            clat_ns,
            cdf,
        }
    }

    /// Quantiles, and the whole distribution in at most [`limits::CDF_POINTS`] points.
    #[allow(clippy::type_complexity)] // the types of the two fields they go into
    fn distribution(&self) -> (Option<Vec<(f64, u64)>>, Option<Vec<(u64, f64)>>) {
        let total: u64 = self.latencies.values().sum();
        if total == 0 {
            return (None, None);
        }
        let mut seen = 0;
        let mut points: Vec<(u64, f64)> = Vec::with_capacity(self.latencies.len());
        for (ns, count) in &self.latencies {
            seen += count;
            points.push((*ns, seen as f64 / total as f64));
        }
        let at = |quantile: f64| {
            let index = points.partition_point(|(_, share)| *share < quantile);
            (quantile, points[index.min(points.len() - 1)].0)
        };
        let quantiles = QUANTILES.map(at).to_vec();
        // The tail is what such a plot is looked at for: all of the last percent, and of the rest every so many.
        let body = points.partition_point(|(_, share)| *share < 0.99);
        let every = body.div_ceil(limits::CDF_POINTS / 2).max(1);
        let tail_every = (points.len() - body).div_ceil(limits::CDF_POINTS / 2 - 2).max(1);
        let last = points.len() - 1;
        let keep = |index: usize| {
            index == last
                || if index < body { index.is_multiple_of(every) } else { (index - body).is_multiple_of(tail_every) }
        };
        let mut index = 0;
        points.retain(|_| {
            index += 1;
            keep(index - 1)
        });
        (Some(quantiles), Some(points))
    }
}

/// What two outcomes of the same job must have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SameWork {
    /// The job ends by itself. Else only the mix and the sizes of the blocks can agree.
    pub bounded: bool,
    /// All blocks are of one size; else their mean lies within the draw.
    pub one_size: bool,
    /// Both draw the same directions and sizes, so that every operation and byte agrees. Not where clones stand in for
    /// depth: each has a draw of its own.
    pub same_draw: bool,
    /// Several operations are in flight: fio may then send a sync more than once, and each clone that stands in for depth
    /// sends its own. That there are syncs can agree, not how many.
    pub deep: bool,
}

impl SameWork {
    /// What [`SameWork::check`] found, for the report.
    pub fn words(self, outcome: &Outcome) -> String {
        let Outcome { reads, writes, syncs, .. } = outcome;
        match (self.bounded, self.same_draw) {
            (true, true) => format!(
                "every round: {} reads of {} bytes together, {} writes of {} bytes together, {syncs} syncs",
                reads.operations, reads.bytes, writes.operations, writes.bytes
            ),
            (true, false) => {
                format!("every round moved {} bytes within 1 %, mix and block sizes within the draw", outcome.bytes())
            }
            (false, _) => "bounded by time: the mix and the block sizes agree in every round".to_owned(),
        }
    }

    /// Fails with both figures when they did not do the same.
    pub fn check(self, one: &Outcome, other: &Outcome) -> anyhow::Result<()> {
        for (what, a, b) in [("reads", one.reads, other.reads), ("writes", one.writes, other.writes)] {
            if self.bounded && self.same_draw {
                ensure!(
                    a == b,
                    "not the same work: {} {what} of {} bytes together in one round, {} of {} in another",
                    a.operations,
                    a.bytes,
                    b.operations,
                    b.bytes
                );
                continue;
            }
            if a.operations == 0 && b.operations == 0 {
                continue;
            }
            let mean = |t: Transfer| t.bytes as f64 / t.operations.max(1) as f64;
            // Four deviations of the widest draw there is between sizes that differ by a factor of two and more.
            let tolerance =
                if self.one_size { 0.0 } else { 4.0 / (a.operations.min(b.operations).max(1) as f64).sqrt() };
            ensure!(
                (mean(a) / mean(b) - 1.0).abs() <= tolerance,
                "not the same work: {what} of {:.0} bytes in one round, of {:.0} in another",
                mean(a),
                mean(b)
            );
        }
        let (a, b) = (one.syncs, other.syncs);
        let alike = (a == 0) == (b == 0) && (a.abs_diff(b) <= 2 || !self.bounded || self.deep);
        ensure!(alike, "not the same work: {a} syncs in one round, {b} in another");
        if self.bounded {
            let (a, b) = (one.bytes() as f64, other.bytes() as f64);
            ensure!((a / b - 1.0).abs() <= 0.01, "not the same work: {a} bytes in one round, {b} in another");
        }
        let share = |o: &Outcome| o.reads.operations as f64 / o.operations() as f64;
        let (a, b) = (share(one), share(other));
        // Four deviations of a draw of so many operations, and a little for what was drawn and not completed.
        let variance = |p: f64, o: &Outcome| p * (1.0 - p) / o.operations() as f64;
        let tolerance = 4.0 * (variance(a, one) + variance(b, other)).sqrt() + 0.002;
        ensure!((a - b).abs() <= tolerance, "not the same work: {a:.3} are reads in one round, {b:.3} in another");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direction(ios: u64, bytes: u64, runtime: u64, bins: &str) -> String {
        format!(
            r#"{{"io_bytes":{bytes},"total_ios":{ios},"runtime":{runtime},"clat_ns":{{"min":1,"bins":{{{bins}}}}}}}"#
        )
    }

    fn job(group: u64, error: i64, read: &str, write: &str) -> String {
        format!(r#"{{"jobname":"j","groupid":{group},"error":{error},"read":{read},"write":{write}}}"#)
    }

    fn output(jobs: &[String]) -> Vec<u8> {
        format!("note: a word before\n{{\n\"fio version\":\"fio-3.33\",\"jobs\":[{}]}}\nand after\n", jobs.join(","))
            .into()
    }

    fn transferred(reads: (u64, u64), writes: (u64, u64)) -> Outcome {
        let job = job(0, 0, &direction(reads.0, reads.1, 100, ""), &direction(writes.0, writes.1, 100, ""));
        Outcome::read(&output(&[job])).unwrap()
    }

    #[test]
    fn groups_follow_each_other_and_jobs_of_one_do_not() {
        let none = direction(0, 0, 0, "");
        let jobs = [
            job(0, 0, &direction(10, 40960, 1000, r#""100":9,"900":1"#), &none),
            job(0, 0, &direction(10, 40960, 1500, r#""100":10"#), &none),
            job(1, 0, &none, &direction(5, 5000, 250, r#""5000":5"#)),
        ];
        let outcome = Outcome::read(&output(&jobs)).unwrap();
        assert_eq!(outcome.reads, Transfer { operations: 20, bytes: 81920 });
        assert_eq!(outcome.writes, Transfer { operations: 5, bytes: 5000 });
        assert!((outcome.seconds - 1.75).abs() < 1e-9);
        let (quantiles, cdf) = outcome.distribution();
        assert_eq!(quantiles.unwrap()[..4], [(0.5, 100), (0.9, 5000), (0.95, 5000), (0.99, 5000)]);
        assert_eq!(cdf.unwrap(), [(100, 0.76), (900, 0.8), (5000, 1.0)]);
    }

    #[test]
    fn a_long_distribution_keeps_its_ends() {
        let bins: Vec<String> = (1..=1800).map(|n| format!("\"{}\":{}", n * 64, 1 + 100_000 / n)).collect();
        let none = direction(0, 0, 0, "");
        let jobs = [job(0, 0, &direction(1, 1, 1, &bins.join(",")), &none)];
        let cdf = Outcome::read(&output(&jobs)).unwrap().distribution().1.unwrap();
        assert!(cdf.len() <= limits::CDF_POINTS && cdf.len() > 50, "{}", cdf.len());
        assert_eq!((cdf[0].0, *cdf.last().unwrap()), (64, (1800 * 64, 1.0)));
        assert!(cdf.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1));
    }

    #[test]
    fn what_is_no_result_is_an_error() {
        let none = direction(0, 0, 0, "");
        let of = |stdout: &[u8]| format!("{:#}", Outcome::read(stdout).unwrap_err());
        assert!(of(&output(&[job(0, 28, &none, &none)])).contains("No space left"));
        assert!(of(&output(&[job(0, 0, &none, &none)])).contains("less than a millisecond"));
        assert!(of(&output(&[])).contains("no jobs"));
        assert!(of(b"fio: bad option\n").contains("no JSON"));
        assert!(of(b"{\n\"jobs\": 7}").contains("fio's JSON"));
        assert!(of(b"\xff").contains("not text"));
    }

    #[test]
    fn bounded_work_must_agree_to_the_byte() {
        let exact = SameWork { bounded: true, one_size: true, same_draw: true, deep: false };
        let one = transferred((100, 409_600), (0, 0));
        exact.check(&one, &one).unwrap();
        let error = exact.check(&one, &transferred((99, 405_504), (0, 0))).unwrap_err().to_string();
        assert_eq!(
            error,
            "not the same work: 100 reads of 409600 bytes together in one round, 99 of 405504 in another"
        );
        exact.check(&one, &transferred((0, 0), (100, 409_600))).unwrap_err();
        let synced = |syncs: u64| Outcome { syncs, ..one.clone() };
        exact.check(&synced(100), &synced(99)).unwrap();
        exact.check(&synced(100), &synced(50)).unwrap_err();
        let deep = SameWork { deep: true, ..exact };
        deep.check(&synced(100), &synced(50)).unwrap();
        deep.check(&synced(100), &synced(0)).unwrap_err();
    }

    #[test]
    fn timed_work_must_agree_in_mix_and_sizes() {
        let timed = SameWork { bounded: false, one_size: true, same_draw: true, deep: false };
        let mix = |reads: u64, writes: u64| transferred((reads, reads * 4096), (writes, writes * 4096));
        timed.check(&mix(7000, 3000), &mix(14_100, 5900)).unwrap();
        timed.check(&mix(7000, 3000), &mix(12_000, 8000)).unwrap_err();
        timed.check(&mix(7000, 0), &transferred((7000, 7000 * 8192), (0, 0))).unwrap_err();
        timed.check(&mix(7000, 3000), &mix(7000, 0)).unwrap_err();
        let ranged = SameWork { one_size: false, ..timed };
        let sized = |size: u64| transferred((10_000, 10_000 * size), (0, 0));
        ranged.check(&sized(34_000), &sized(34_500)).unwrap();
        ranged.check(&sized(34_000), &sized(65_536)).unwrap_err();
        // Clones instead of depth: another draw, the same bytes.
        let parted = SameWork { bounded: true, one_size: true, same_draw: false, deep: true };
        parted.check(&mix(7000, 3000), &mix(7050, 2950)).unwrap();
        parted.check(&mix(7000, 3000), &mix(3500, 1500)).unwrap_err();
    }
}
