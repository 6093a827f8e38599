//! fio's JSON: the same keys in the same order and units.

use std::time::UNIX_EPOCH;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::{PERCENTILES, VERSION, parts};
use crate::run::stats::{Depths, LATENCY_BOUNDS, Latency, Moments, Side};
use crate::run::{JobReport, Report};

/// `plus`: with the histograms.
pub fn json(report: &Report, plus: bool) -> String {
    let since = report.started.duration_since(UNIX_EPOCH).unwrap_or_default();
    let document = Document {
        version: VERSION,
        timestamp: since.as_secs(),
        timestamp_ms: since.as_millis() as u64,
        time: super::human::clock(report.started),
        global_options: report
            .jobs
            .first()
            .map(|job| with_values(&job.job.global))
            .filter(|options| !options.0.is_empty()),
        jobs: report.jobs.iter().map(|job| self::job(job, report, plus)).collect(),
    };
    serde_json::to_string_pretty(&document).expect("maps with string keys are JSON") + "\n"
}

/// fio leaves out the flags that stand alone.
fn with_values(options: &[(String, String)]) -> Ordered<String, String> {
    Ordered(options.iter().filter(|(_, value)| !value.is_empty()).cloned().collect())
}

#[derive(Serialize)]
struct Document {
    #[serde(rename = "fio version")]
    version: &'static str,
    timestamp: u64,
    timestamp_ms: u64,
    time: String,
    #[serde(rename = "global options", skip_serializing_if = "Option::is_none")]
    global_options: Option<Ordered<String, String>>,
    jobs: Vec<Job>,
}

/// A map that keeps its order.
struct Ordered<K, V>(Vec<(K, V)>);

impl<K: Serialize, V: Serialize> Serialize for Ordered<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

type Parts = Ordered<String, f64>;

#[derive(Serialize)]
struct Job {
    jobname: String,
    groupid: u32,
    error: i32,
    eta: u64,
    elapsed: u64,
    #[serde(rename = "job options")]
    options: Ordered<String, String>,
    read: Direction,
    write: Direction,
    /// Never any; readers of fio's JSON expect the key.
    trim: Direction,
    sync: Sync,
    job_runtime: u64,
    usr_cpu: f64,
    sys_cpu: f64,
    ctx: u64,
    majf: u64,
    minf: u64,
    iodepth_level: Parts,
    iodepth_submit: Parts,
    iodepth_complete: Parts,
    latency_ns: Parts,
    latency_us: Parts,
    latency_ms: Parts,
}

#[derive(Serialize)]
struct Direction {
    io_bytes: u64,
    io_kbytes: u64,
    bw_bytes: u64,
    bw: u64,
    iops: f64,
    runtime: u64,
    total_ios: u64,
    short_ios: u64,
    slat_ns: Spread,
    clat_ns: Distribution,
    lat_ns: Distribution,
    bw_min: u64,
    bw_max: u64,
    bw_agg: f64,
    bw_mean: f64,
    bw_dev: f64,
    bw_samples: u64,
    iops_min: u64,
    iops_max: u64,
    iops_mean: f64,
    iops_stddev: f64,
    iops_samples: u64,
}

#[derive(Serialize)]
struct Sync {
    total_ios: u64,
    lat_ns: Distribution,
}

#[derive(Serialize)]
struct Spread {
    min: u64,
    max: u64,
    mean: f64,
    stddev: f64,
    #[serde(rename = "N")]
    count: u64,
}

#[derive(Serialize)]
struct Distribution {
    #[serde(flatten)]
    spread: Spread,
    #[serde(skip_serializing_if = "Option::is_none")]
    percentile: Option<Ordered<String, u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bins: Option<Ordered<String, u64>>,
}

fn job(job: &JobReport, report: &Report, plus: bool) -> Job {
    let stats = &job.stats;
    let operations = stats.read.operations + stats.write.operations;
    let of_runtime = |used: f64| used * 100.0 / job.runtime.as_secs_f64().max(1e-3);
    let in_group = |side: fn(&JobReport) -> &Side| {
        let group = report.jobs.iter().filter(|other| other.group == job.group);
        group.map(|other| side(other).bytes_per_second()).sum::<u64>()
    };
    Job {
        jobname: job.job.name.clone(),
        groupid: job.group,
        error: job.failure.as_ref().map_or(0, |failure| failure.errno),
        // What fio writes for a job that is over.
        eta: i32::MAX as u64,
        elapsed: job.since_start.as_secs() + 1,
        options: with_values(&job.job.given),
        read: direction(&stats.read, in_group(|job| &job.stats.read), plus),
        write: direction(&stats.write, in_group(|job| &job.stats.write), plus),
        trim: direction(&Side::default(), 0, plus),
        sync: Sync { total_ios: stats.sync.moments.count, lat_ns: distribution(&stats.sync, plus) },
        job_runtime: job.runtime.as_millis() as u64,
        usr_cpu: of_runtime(job.usage.user.as_secs_f64()),
        sys_cpu: of_runtime(job.usage.system.as_secs_f64()),
        ctx: job.usage.switches,
        majf: job.usage.major_faults,
        minf: job.usage.minor_faults,
        iodepth_level: depths(["1", "2", "4", "8", "16", "32", ">=64"], &stats.level, operations),
        iodepth_submit: batches(&stats.submitted),
        iodepth_complete: batches(&stats.completed),
        latency_ns: latencies(&stats.spread_ns, operations),
        latency_us: latencies(&stats.spread_us, operations),
        latency_ms: latencies(&stats.spread_ms, operations),
    }
}

fn direction(side: &Side, group_bytes_per_second: u64, plus: bool) -> Direction {
    let (bw, iops) = (&side.bandwidth, &side.iops);
    Direction {
        io_bytes: side.bytes,
        io_kbytes: side.bytes >> 10,
        bw_bytes: side.bytes_per_second(),
        bw: side.bytes_per_second() >> 10,
        iops: side.iops(),
        runtime: side.milliseconds(),
        total_ios: side.operations,
        short_ios: side.short,
        slat_ns: spread(&side.submission),
        clat_ns: distribution(&side.completion, plus),
        lat_ns: distribution(&side.total, plus),
        bw_min: bw.min(),
        bw_max: bw.max,
        bw_agg: part_of_group(bw, group_bytes_per_second),
        bw_mean: bw.mean(),
        bw_dev: bw.deviation(),
        bw_samples: bw.count,
        iops_min: iops.min(),
        iops_max: iops.max,
        iops_mean: iops.mean(),
        iops_stddev: iops.deviation(),
        iops_samples: iops.count,
    }
}

/// The sampled bandwidth in percent of the group's.
pub fn part_of_group(bandwidth: &Moments, group_bytes_per_second: u64) -> f64 {
    match group_bytes_per_second >> 10 {
        _ if bandwidth.count == 0 => 0.0,
        0 => 100.0,
        kib => (bandwidth.mean() * 100.0 / kib as f64).min(100.0),
    }
}

fn spread(moments: &Moments) -> Spread {
    let (min, max, mean, stddev) = (moments.min(), moments.max, moments.mean(), moments.deviation());
    Spread { min, max, mean, stddev, count: moments.count }
}

fn distribution(latency: &Latency, plus: bool) -> Distribution {
    let some = !latency.histogram.is_empty();
    let percentile = || PERCENTILES.iter().map(|p| (format!("{p:.6}"), latency.percentile(*p))).collect();
    let middle = |value| latency.histogram.median_equivalent(value).min(latency.moments.max).to_string();
    let recorded = || latency.histogram.iter_recorded();
    let bins = || recorded().map(|bin| (middle(bin.value_iterated_to()), bin.count_since_last_iteration())).collect();
    Distribution {
        spread: spread(&latency.moments),
        percentile: some.then(|| Ordered(percentile())),
        bins: (plus && some).then(|| Ordered(bins())),
    }
}

fn depths(names: [&str; 7], depths: &Depths, total: u64) -> Parts {
    Ordered(names.map(str::to_owned).into_iter().zip(parts(depths, total)).collect())
}

fn batches(counts: &Depths) -> Parts {
    depths(["0", "4", "8", "16", "32", "64", ">=64"], counts, counts.iter().sum())
}

fn latencies(counts: &[u64], total: u64) -> Parts {
    let name = |slot: usize| LATENCY_BOUNDS.get(slot).map_or(">=2000".to_owned(), u64::to_string);
    let part = |count: u64| if total == 0 { 0.0 } else { count as f64 * 100.0 / total as f64 };
    Ordered(counts.iter().enumerate().map(|(slot, count)| (name(slot), part(*count))).collect())
}
