//! What the standard set holds, and how long each step of it may take: 20 minutes on two processors in all.
//!
//! Eight rounds are the fewest that give a verdict (`compare::statistics`); more and shorter rounds beat few long ones.

use std::path::Path;

use super::PartName;
use super::sweep;
use crate::picture::{Axis, Measure};

pub struct Part {
    pub name: PartName,
    pub title: &'static str,
    pub steps: Vec<Step>,
}

pub struct Step {
    pub title: String,
    /// What it takes on two processors.
    pub seconds: f64,
    pub work: Work,
}

pub enum Work {
    /// Arguments of this program; `--dir` and `--json` are added.
    Compare(Vec<String>),
    Store(Vec<String>),
    Sweep(sweep::Plan),
}

impl Part {
    pub fn id(&self) -> &'static str {
        match self.name {
            PartName::Own => "self",
            PartName::Fio => "fio",
            PartName::Store => "store",
            PartName::Sweep => "sweep",
            PartName::Nginx => "nginx",
            PartName::Upload => "upload",
            PartName::Aria2 => "aria2",
            PartName::Ffmpeg => "ffmpeg",
        }
    }
}

/// One job file beside fio.
struct Job {
    file: &'static str,
    engines: &'static str,
    against: &'static str,
    /// Rounds of `--runtime` seconds, for jobs that are too short on a fast disk to be measured whole.
    runtime: Option<f64>,
    /// Of one round of one side, the process around it included.
    seconds: f64,
    quick: bool,
}

const fn job(file: &'static str, engines: &'static str, against: &'static str, quick: bool) -> Job {
    Job { file, engines, against, runtime: Some(1.0), seconds: 1.3, quick }
}

/// As much as the job says: a durable write is one only when it has ended.
const fn whole(file: &'static str, seconds: f64) -> Job {
    Job { file, engines: "bridge", against: "io_uring", runtime: None, seconds, quick: false }
}

const FIO_JOBS: [Job; 10] = [
    job("randread-4k-qd64", "bridge,raw", "io_uring,io_uring-fixed", false),
    job("randread-4k-hot", "bridge", "io_uring", true),
    job("randread-128k-qd32", "bridge", "io_uring", false),
    job("read-1m", "bridge", "io_uring", false),
    whole("write-1m", 1.6),
    whole("write-1m-direct", 1.2),
    whole("durable-4k", 2.2),
    job("randrw-70-30", "bridge", "io_uring", false),
    job("qd1", "bridge,threads", "psync", false),
    job("qd1-idle", "bridge", "psync", false),
];
/// Cases of the other programs, and the seconds of a round of one side.
const NGINX: [(&str, f64); 5] = [
    ("hot-64k-c64", 1.1),
    ("hot-64k-asked-c64", 1.1),
    // wrk would be the limit of both.
    ("hot-1m-c64 --client drain", 1.1),
    ("hot-whole-64m-c1", 1.1),
    ("hot-beside-cold-directio", 3.0),
];
/// A gibibyte each time, and its SHA-256 afterwards.
const UPLOAD: [(&str, f64); 2] = [("fio-direct", 2.0), ("dav-synced", 2.4)];
const ARIA2: [(&str, f64); 2] = [("near-x1-synced", 2.5), ("far-x16", 3.5)];
/// What is left over if the budget runs short stands last.
const FFMPEG: [(&str, f64); 1] = [("ladder-720p-360p", 12.5)];
/// The job of the self-check: the one whose verdict is looked at first.
const OWN_JOB: &str = "randread-4k-qd64";
const ROUNDS: u32 = 8;
/// Seconds around a case: laying out its file, starting the programs.
const AROUND: f64 = 4.0;

pub fn parts(quick: bool, jobs: &Path) -> Vec<Part> {
    let part = |name, title, steps| Part { name, title, steps };
    vec![
        part(PartName::Own, "What this machine can tell apart", vec![own(quick, jobs)]),
        part(PartName::Fio, "Storage engine, beside fio", fio_jobs(quick, jobs)),
        part(PartName::Store, "Whole objects through the store", vec![whole_objects(quick)]),
        part(PartName::Sweep, "Along block size and depth", sweeps(quick)),
        part(PartName::Nginx, "Serving files, beside nginx", peer("nginx", quick, &NGINX)),
        part(PartName::Upload, "Storing a file durably, beside fio and nginx", peer("upload", quick, &UPLOAD)),
        part(PartName::Aria2, "Fetching a file, beside aria2c", peer("aria2", quick, &ARIA2)),
        part(PartName::Ffmpeg, "Encoding to HLS, beside ffmpeg", peer("ffmpeg", quick, &FFMPEG)),
    ]
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn own(quick: bool, jobs: &Path) -> Step {
    let name = if quick { "qd1" } else { OWN_JOB };
    let runtime = if quick { 0.1 } else { 1.0 };
    let line = format!(
        "compare self {} --runtime {runtime} --rounds {ROUNDS}",
        jobs.join(name).with_extension("fio").display()
    );
    Step {
        title: "an engine against itself".into(),
        seconds: rounds(runtime + 0.3) + AROUND,
        work: Work::Compare(words(&line)),
    }
}

/// Both sides, and the round of each that is not measured.
fn rounds(seconds: f64) -> f64 {
    2.0 * seconds * f64::from(ROUNDS + 1)
}

fn fio_jobs(quick: bool, jobs: &Path) -> Vec<Step> {
    let step = |job: &Job| {
        let Job { file, engines, against, runtime, seconds, .. } = job;
        let runtime =
            runtime.map(|seconds| format!(" --runtime {}", if quick { 0.1 } else { seconds })).unwrap_or_default();
        let path = jobs.join(file).with_extension("fio");
        let line =
            format!("compare fio {} --engine {engines} --against {against}{runtime} --rounds {ROUNDS}", path.display());
        let contests = (engines.split(',').count() * against.split(',').count()) as f64;
        let seconds = contests * rounds(*seconds) + AROUND;
        Step { title: format!("fio: {file}"), seconds, work: Work::Compare(words(&line)) }
    };
    FIO_JOBS.iter().filter(|job| job.quick || !quick).map(step).collect()
}

/// One step for each case, so that what a slow one costs is its own.
fn peer(name: &str, quick: bool, cases: &[(&str, f64)]) -> Vec<Step> {
    if quick {
        let line = format!("compare {name} --quick");
        return vec![Step { title: name.to_owned(), seconds: 60.0, work: Work::Compare(words(&line)) }];
    }
    let step = |(case, seconds): &(&str, f64)| {
        let line = format!("compare {name} --case {case} --rounds {ROUNDS} --runtime 1");
        let seconds = rounds(*seconds) + AROUND;
        Step { title: format!("{name}: {case}"), seconds, work: Work::Compare(words(&line)) }
    };
    cases.iter().map(step).collect()
}

fn whole_objects(quick: bool) -> Step {
    let line = if quick { "store --size 16m --puts 64 --connections 16" } else { "store --size 2g" };
    let seconds = if quick { 10.0 } else { 60.0 };
    Step { title: "whole objects through the store".into(), seconds, work: Work::Store(words(line)) }
}

fn sweeps(quick: bool) -> Vec<Step> {
    let (runtime, rounds, size) = if quick { (0.1, 1, 16 << 20) } else { (0.6, 3, 512 << 20) };
    let sizes: &[u64] = if quick { &[4 << 10, 64 << 10] } else { &[4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20] };
    let depths: &[u64] = if quick { &[1, 16] } else { &[1, 4, 16, 64, 128] };
    let plan = |id: &str, title: &str, along, of, places: &[u64], fixed| sweep::Plan {
        id: id.into(),
        title: title.into(),
        along,
        of,
        places: places.to_vec(),
        fixed,
        direct: true,
        size,
        runtime,
        rounds,
    };
    let plans = [
        plan(
            "blocks",
            "Random reads past the page cache, 32 in flight, by block size",
            Axis::BlockBytes,
            Measure::BytesPerSecond,
            sizes,
            32,
        ),
        plan(
            "depth",
            "Random reads of 4 KiB past the page cache, by depth",
            Axis::Depth,
            Measure::OperationsPerSecond,
            depths,
            4 << 10,
        ),
    ];
    let step = |plan: sweep::Plan| {
        let runs = plan.places.len() as f64 * sweep::ENGINES as f64 * f64::from(plan.rounds);
        let seconds = runs * (plan.runtime + 0.3) + AROUND;
        Step { title: format!("sweep: {}", plan.title), seconds, work: Work::Sweep(plan) }
    };
    plans.into_iter().map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_set_fits_twenty_minutes() {
        let all: f64 =
            parts(false, Path::new("bench/jobs")).iter().flat_map(|part| &part.steps).map(|step| step.seconds).sum();
        assert!((300.0..1190.0).contains(&all), "{all} s");
        let quick: f64 =
            parts(true, Path::new("bench/jobs")).iter().flat_map(|part| &part.steps).map(|step| step.seconds).sum();
        assert!(quick < all / 2.0, "{quick} s");
    }

    #[test]
    fn every_line_is_one_this_program_takes_and_every_job_file_is_there() {
        use clap::Parser;
        let jobs = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs");
        for quick in [false, true] {
            for step in parts(quick, &jobs).iter().flat_map(|part| &part.steps) {
                let (Work::Compare(line) | Work::Store(line)) = &step.work else { continue };
                let line: Vec<&str> = line.iter().map(String::as_str).collect();
                if let Err(error) =
                    crate::Cli::try_parse_from([&["reelring-bench"], &line[..], &["--dir", "."]].concat())
                {
                    panic!("{line:?}: {error}");
                }
                let files = line.iter().filter(|word| word.ends_with(".fio"));
                assert!(
                    files.into_iter().all(|file| Path::new(file).exists()),
                    "{line:?} names a file that is not there"
                );
            }
        }
    }
}
