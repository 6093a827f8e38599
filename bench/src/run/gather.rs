//! What the main thread does while a group runs and when it has ended: samples, progress, and one report from many lanes.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::lane::Outcome;
use super::progress::{Eta, Progress, Watched};
use super::stats::Moments;
use super::usage::Usage;
use super::{Clone, JobReport};
use std::sync::Arc;

/// How often bandwidth and IOPS are sampled, as fio does.
const SAMPLE: Duration = Duration::from_millis(500);

pub type Samples = Vec<[(Moments, Moments); 2]>;

/// Waits for every lane, sampling and showing meanwhile.
pub fn collect(outcomes: &mpsc::Receiver<(usize, Outcome)>, lanes: &[Watched], eta: Eta) -> (Vec<Outcome>, Samples) {
    let mut collected: Vec<Option<Outcome>> = lanes.iter().map(|_| None).collect();
    let mut samples: Samples = vec![Default::default(); lanes.len()];
    let mut before: Vec<Option<[(u64, u64); 2]>> = vec![None; lanes.len()];
    let mut progress = Progress::new(eta);
    let (started, mut last) = (Instant::now(), Instant::now());
    loop {
        match outcomes.recv_timeout(SAMPLE.saturating_sub(last.elapsed())) {
            Ok((index, outcome)) => {
                collected[index] = Some(outcome);
                continue;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        let spent = last.elapsed().as_secs_f64();
        last = Instant::now();
        for ((lane, samples), before) in lanes.iter().zip(&mut samples).zip(&mut before) {
            if !lane.live.measuring.load(Relaxed) || lane.live.done.load(Relaxed) {
                continue;
            }
            let now = [0, 1].map(|i| (lane.live.operations[i].load(Relaxed), lane.live.bytes[i].load(Relaxed)));
            let was = before.replace(now);
            // A lane that has just left its ramp was not watched for the whole of the interval.
            let Some(was) = was.or((lane.job.ramp_time.is_zero()).then_some([(0, 0); 2])) else { continue };
            for side in 0..2 {
                let (operations, bytes) =
                    (now[side].0.saturating_sub(was[side].0), now[side].1.saturating_sub(was[side].1));
                if operations > 0 || samples[side].0.count > 0 {
                    samples[side].0.add((bytes as f64 / 1024.0 / spent) as u64);
                    samples[side].1.add((operations as f64 / spent) as u64);
                }
            }
        }
        progress.show(started, lanes);
    }
    progress.end();
    (collected.into_iter().map(|outcome| outcome.expect("every lane sends its outcome")).collect(), samples)
}

/// What the lanes counted, as fio reports it: one entry for each clone, or one for all that are reported together.
pub fn report(clones: &[&Clone], outcomes: Vec<Outcome>, samples: Samples, started: Instant) -> Vec<JobReport> {
    let shares = share_usage(&outcomes);
    let mut reports: Vec<JobReport> = Vec::new();
    for (((clone, outcome), samples), usage) in clones.iter().zip(outcomes).zip(samples).zip(shares) {
        let mut stats = outcome.stats;
        for (side, (bandwidth, iops)) in [&mut stats.read, &mut stats.write].into_iter().zip(samples) {
            (side.bandwidth, side.iops) = (bandwidth, iops);
        }
        let together = clone.job.group_reporting;
        if let Some(report) = reports.last_mut().filter(|report| together && report.job.group_reporting) {
            report.stats.merge(&stats);
            report.clones += 1;
            report.runtime += outcome.elapsed;
            report.usage = report.usage + usage;
            report.failure = report.failure.take().or(outcome.failure);
            continue;
        }
        reports.push(JobReport {
            job: Arc::clone(&clone.job),
            engine: clone.engine,
            group: clone.group,
            clones: 1,
            failure: outcome.failure,
            depth: clone.depth(),
            stats,
            runtime: outcome.elapsed,
            usage,
            since_start: started.elapsed(),
        });
    }
    reports
}

/// Divides what the process used among its lanes: to each what its own thread used, and of the rest (the bridge's threads,
/// tokio's workers, the kernel's io_uring workers) the share of its operations.
fn share_usage(outcomes: &[Outcome]) -> Vec<Usage> {
    let operations = |outcome: &Outcome| (outcome.stats.read.operations + outcome.stats.write.operations).max(1);
    let total: u64 = outcomes.iter().map(operations).sum();
    let own = |outcome: &Outcome| outcome.own.unwrap_or_default();
    // The widest span: ramps end together, lanes end when they end.
    let whole = outcomes.iter().map(|outcome| outcome.process.1 - outcome.process.0);
    let whole = whole.max_by_key(|usage| usage.user + usage.system).unwrap_or_default();
    let rest = outcomes.iter().fold(whole, |rest, outcome| rest - own(outcome));
    let share = |outcome: &Outcome| own(outcome) + rest.part(operations(outcome) as f64 / total as f64);
    outcomes.iter().map(share).collect()
}
