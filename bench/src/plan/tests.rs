//! A plan beside fio's own record of what it issued, and what holds for any plan.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::job::{self, EngineKind, Flags};

/// One line of fio's iolog: the file, what was done, where and how much.
type Line = (String, &'static str, u64, u64);

fn jobs(folder: &Path, text: &str) -> Vec<Job> {
    let file = folder.join("job.fio");
    std::fs::write(&file, text).unwrap();
    job::load(&[file], &Flags::default(), Some(EngineKind::Raw)).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The engine to compare with, if fio is there: containers often refuse io_uring, and what fio issues is the same with
/// its other asynchronous engine.
fn fio_engine() -> Option<&'static str> {
    let folder = tempfile::tempdir().unwrap();
    let works = |engine: &str| {
        let line = ["--output=result", "--name=probe", "--size=4k", engine];
        Command::new("fio").args(line).current_dir(folder.path()).output().is_ok_and(|output| output.status.success())
    };
    let engine = ["ioengine=io_uring", "ioengine=libaio"].into_iter().find(|engine| works(&format!("--{engine}")));
    if engine.is_none() {
        eprintln!("skipped: fio is not installed (apt install fio), or can use neither io_uring nor libaio here");
    }
    engine
}

/// What fio does with the job file in a folder, by file.
fn trace(folder: &Path) -> HashMap<String, Vec<Line>> {
    let output = Command::new("fio").args(["--output=result", "job.fio"]).current_dir(folder).output().unwrap();
    let result = std::fs::read_to_string(folder.join("result")).unwrap_or_default();
    assert!(output.status.success(), "fio: {}{result}", String::from_utf8_lossy(&output.stderr));
    let mut lines: HashMap<String, Vec<Line>> = HashMap::new();
    for line in std::fs::read_to_string(folder.join("trace")).unwrap().lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_time, file, action, offset, len] = fields[..] else { continue };
        let action = match action {
            "read" => "read",
            "write" => "write",
            "sync" => "sync",
            "datasync" => "datasync",
            other => panic!("fio did {other}"),
        };
        // The place of a sync means nothing.
        let (offset, len) =
            if action.ends_with("sync") { (0, 0) } else { (offset.parse().unwrap(), len.parse().unwrap()) };
        lines.entry(file.to_owned()).or_default().push((file.to_owned(), action, offset, len));
    }
    lines
}

fn line(op: Op, files: &[PathBuf]) -> Line {
    let (file, action, offset, len) = match op {
        Op::Read { file, offset, len } => (file, "read", offset, len),
        Op::Write { file, offset, len } => (file, "write", offset, len),
        Op::Sync { file, data_only } => (file, if data_only { "datasync" } else { "sync" }, 0, 0),
    };
    (files[file as usize].display().to_string(), action, offset, len.into())
}

/// What the plans of these jobs issue, by file, the reads of a verification and the syncs at the end included. With
/// `time_based` only the first `most` operations.
fn planned(jobs: &[Job], most: usize) -> HashMap<String, Vec<Line>> {
    let mut lines: HashMap<String, Vec<Line>> = HashMap::new();
    let clones = jobs.iter().flat_map(|job| job.clones().map(move |clone| (job, clone)));
    for ((job, clone), thread_number) in clones.zip(1..) {
        let files = job.files.of_clone(&job.name, clone);
        let mut plan = Plan::new(job, thread_number, &vec![0; files.len()]);
        let mut done = Vec::new();
        while let Some(op) = plan.next() {
            done.push(line(op, &files));
            if job.time_based && done.len() == most {
                break;
            }
        }
        let sync = |file: &PathBuf| (file.display().to_string(), "sync", 0, 0);
        if plan.ends_with_sync() && !job.time_based {
            done.extend(files.iter().map(sync));
        }
        if job.verify.is_some() {
            let written: Vec<Line> = done.iter().filter(|line| line.1 == "write").cloned().collect();
            done.extend(written.into_iter().map(|(file, _, offset, len)| (file, "read", offset, len)));
        }
        for line in done {
            lines.entry(line.0.clone()).or_default().push(line);
        }
    }
    lines
}

/// The job made small, and its record asked for. A shared record is written by every clone in one piece only while it is
/// shorter than fio's buffer, so clones get fewer operations.
fn small(job: &Job, engine: &str) -> String {
    let operations = if job.numjobs > 1 { 40 } else { 300 };
    let block = job.read_blocks.max.max(job.write_blocks.max);
    let size = (operations * block).min(4 << 20).max(16 * block);
    let io_size = job.io_size.map(|bytes| format!("io_size={}\n", size * bytes / job.size)).unwrap_or_default();
    let seed = if job.randrepeat { "randseed=5\n" } else { "" };
    // Without randrepeat=0, fio up to 3.33 does not use the seed for offsets.
    format!("{job}size={size}\n{io_size}{seed}randrepeat=0\n{engine}\ndirect=0\nwrite_iolog=trace\n")
}

/// Both must have done the same, in the same order; where clones share a file or blocks are verified, in any order.
fn assert_same(text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let jobs = jobs(folder.path(), text);
    let fio = trace(folder.path());
    let most = fio.values().map(Vec::len).sum();
    let plan = planned(&jobs, most);
    let mut names: Vec<_> = plan.keys().collect();
    names.sort();
    assert_eq!(fio.len(), plan.len(), "fio used {:?}, the plan {names:?}", fio.keys());
    for name in names {
        let (mut ours, mut theirs) = (plan[name].clone(), fio[name].clone());
        let users =
            jobs.iter().filter(|job| job.files.names.iter().any(|file| file.as_os_str() == name.as_str())).count();
        if users > 1 || jobs.iter().any(|job| job.verify.is_some()) {
            ours.sort();
            theirs.sort();
        }
        let differs = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs);
        if let Some(at) = differs {
            let around = at.saturating_sub(3)..;
            let show = |lines: &[Line]| format!("{:#?}", lines[around.clone()].iter().take(8).collect::<Vec<_>>());
            panic!("operation {at} on {name} differs\nplan {}\nfio {}\n{text}", show(&ours), show(&theirs));
        }
        let time_based = jobs.iter().any(|job| job.time_based);
        assert!(
            time_based || ours.len() == theirs.len(),
            "{name}: {} operations, fio {}\n{text}",
            ours.len(),
            theirs.len()
        );
    }
}

/// Runs all cases a few at a time: fio mostly waits.
fn assert_all_same(texts: Vec<String>) {
    let texts = std::sync::Mutex::new(texts.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some(text) = texts.lock().unwrap().next() else { break };
                    assert_same(&text);
                }
            });
        }
    });
}

#[test]
fn every_job_file_issues_what_fio_issues() {
    let Some(engine) = fio_engine() else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 12, "{files:?}");
    let text = |file: PathBuf| {
        let jobs = job::load(&[file], &Flags::default(), None).unwrap();
        jobs.iter().map(|job| small(job, engine)).collect::<String>()
    };
    assert_all_same(files.into_iter().map(text).collect());
}

#[test]
fn combinations_of_options_issue_what_fio_issues() {
    let Some(engine) = fio_engine() else { return };
    let cases = [
        // Sizes that do not divide, block sizes that are no power of two.
        "rw=read\nbs=3k\nsize=100k",
        "rw=randwrite\nbs=3000\nsize=100000",
        "rw=randread\nbsrange=3000-20000\nsize=1000000",
        "rw=write\nbsrange=1k-64k\nsize=1000000",
        "rw=randrw\nbsrange=512-8k,4k-32k\nsize=1m",
        // Mixes.
        "rw=rw\nrwmixread=10\nsize=1m",
        "rw=randrw\nrwmixwrite=5\nbs=1k,2k\nsize=300k",
        "rw=randrw\nrwmixread=100\nsize=300k",
        "rw=randrw\nrandom_distribution=zipf:0.8\nsize=1m\niodepth=4",
        // More than a pass, less than a pass, the middle of a file.
        "rw=write\nsize=256k\nio_size=600k",
        "rw=read\nsize=256k\nio_size=100k",
        "rw=randread\nsize=256k\nio_size=1m\nnorandommap",
        "rw=randwrite\nsize=256k\nio_size=1m\nnorandommap",
        "rw=randwrite\nsize=256k\nio_size=1m",
        "rw=randrw\noffset=64k\nsize=256k",
        "rw=read\noffset=10000\nsize=50000\nbs=4k",
        // Syncs.
        "rw=write\nsize=200k\nfsync=7\nend_fsync=1",
        "rw=randwrite\nsize=200k\nfdatasync=1\nend_fsync=1",
        "rw=write\nsize=200k\nfsync=6\nfdatasync=4",
        // Files in turn, some of them larger.
        "rw=write\nnrfiles=3\nsize=100k",
        "rw=randrw\nnrfiles=3\nsize=400k\nbsrange=1k-16k",
        "rw=read\nfilename=a:b\nsize=1m\nio_size=2500k",
        // Clones, each with its own randomness.
        "rw=randread\nnumjobs=4\nsize=128k",
        // The beginning of what only time ends.
        "rw=randread\nsize=64k\ntime_based\nruntime=100ms\nthinktime=1ms",
        "rw=randwrite\nbsrange=1k-8k\nsize=64k\ntime_based\nruntime=100ms\nthinktime=1ms",
        "rw=rw\nsize=64k\ntime_based\nruntime=100ms\nthinktime=1ms",
        "rw=write\nnrfiles=2\nsize=64k\ntime_based\nruntime=100ms\nthinktime=1ms",
    ];
    let text = |case: &&str| format!("[job]\n{case}\n{engine}\nrandseed=77\nrandrepeat=0\nwrite_iolog=trace\n");
    assert_all_same(cases.iter().map(text).collect());
}

fn pattern() -> impl Strategy<Value = (Job, Vec<u64>)> {
    let blocks = (1_u64..5, 0_u64..4).prop_map(|(min, more)| BlockSizes { min: min * 512, max: (min << more) * 512 });
    (blocks, 1_u64..200, 1_usize..4, any::<[bool; 3]>(), 0_u8..=100, 0_u64..3, any::<u32>()).prop_map(
        |(blocks, count, files, [random, reads, writes], read_percent, offset, seed)| {
            let pattern = if random { Pattern::Random } else { Pattern::Sequential };
            let job = Job {
                rw: Rw { pattern, reads: reads || !writes, writes, read_percent },
                read_blocks: blocks,
                write_blocks: blocks,
                size: count * blocks.min * files as u64,
                offset: offset * 512,
                randseed: seed.into(),
                files: job::Files { own: files as u32, ..Job::default().files },
                ..Job::default()
            };
            (job, vec![0; files])
        },
    )
}

proptest! {
    #[test]
    fn one_pass_touches_every_block_once((job, files) in pattern()) {
        let mut plan = Plan::new(&job, 1, &files);
        let share = job.size / files.len() as u64;
        let mut touched: HashMap<(u16, bool, u64), u32> = HashMap::new();
        let mut bytes = 0;
        while let Some(op) = plan.next() {
            let (file, writes, offset, len) = match op {
                Op::Read { file, offset, len } => (file, false, offset, len),
                Op::Write { file, offset, len } => (file, true, offset, len),
                Op::Sync { .. } => unreachable!("the job asks for none"),
            };
            prop_assert!(offset >= job.offset && offset + u64::from(len) <= job.offset + share);
            prop_assert!(len > 0 && u64::from(len) <= job.read_blocks.max);
            bytes += u64::from(len);
            // A sequential mix reads and writes from the start each; a random one shares a map.
            let direction = writes && job.rw.pattern == Pattern::Sequential;
            for block in (offset..offset + u64::from(len)).step_by(512) {
                *touched.entry((file, direction, block)).or_default() += 1;
            }
        }
        // The last operation of a sequential mix may go past the size: each direction has room of its own.
        let over = if job.rw.reads && job.rw.writes && job.rw.pattern == Pattern::Sequential { job.read_blocks.max } else { 1 };
        prop_assert!((job.size..job.size + over).contains(&bytes), "{} bytes", bytes);
        prop_assert!(touched.values().all(|&times| times == 1));
        prop_assert!(plan.next().is_none(), "the end is the end");
        prop_assert!(!plan.restart());
    }

    #[test]
    fn time_based_never_ends((job, files) in pattern(), zipf in any::<bool>()) {
        let distribution = if zipf { Distribution::Zipf(1.2) } else { Distribution::Uniform };
        let job = Job { time_based: true, distribution, ..job };
        let mut plan = Plan::new(&job, 1, &files);
        for _ in 0..2000 {
            prop_assert!(plan.next().is_some());
        }
    }

    #[test]
    fn a_job_that_verifies_stops_at_every_pass((job, files) in pattern()) {
        let job = Job { verify: Some(job::Verify::Crc32c), time_based: true, ..job };
        let mut plan = Plan::new(&job, 1, &files);
        for _ in 0..3 {
            let mut operations = 0;
            while plan.next().is_some() {
                operations += 1;
            }
            prop_assert!(operations > 0 && operations <= 800);
            prop_assert!(plan.restart());
        }
    }
}

#[test]
fn nothing_to_do_is_an_end() {
    for (size, files) in [(0, vec![]), (0, vec![0]), (0, vec![100, 4095]), (1, vec![0])] {
        let own = files.len().max(1) as u32;
        let job = Job { size, time_based: true, files: job::Files { own, ..Job::default().files }, ..Job::default() };
        assert_eq!(Plan::new(&job, 1, &files).next(), None);
    }
}

/// Where fio has the page cache forget a file: before every pass but the first, which its start sees to.
#[test]
fn a_pass_after_the_first_is_told() {
    let folder = tempfile::tempdir().unwrap();
    for rw in ["read", "randread", "randrw"] {
        let text = format!("[a]\nrw={rw}\nbs=4k\nsize=32k\ntime_based\nruntime=1\n");
        let mut plan = Plan::new(&jobs(folder.path(), &text)[0], 1, &[32 << 10]);
        for number in 0..40 {
            let op = plan.next().unwrap();
            assert_eq!(plan.began_anew(op.file()), number > 0 && number % 8 == 0, "{rw}, operation {number}");
        }
    }
}
