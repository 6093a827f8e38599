//! The options of fio's language that are supported: one line each, from which parsing, `--help` and docs/bench.md all
//! come, and how they add up to a [`Job`].

use std::path::PathBuf;
use std::time::Duration;

use super::error::{At, JobError};
use super::values::{ByDirection, Read, Value};
use super::{BlockSizes, Distribution, EngineKind, Fallocate, Job, Pattern, Rw, Verify};
use crate::limits;

pub struct Spec {
    pub name: &'static str,
    pub alias: &'static str,
    /// What the value looks like; empty: a flag that may stand alone.
    pub value: &'static str,
    pub meaning: &'static str,
    apply: fn(&mut Draft, Value) -> Read<()>,
}

const fn spec(
    name: &'static str,
    alias: &'static str,
    value: &'static str,
    meaning: &'static str,
    apply: fn(&mut Draft, Value) -> Read<()>,
) -> Spec {
    Spec { name, alias, value, meaning, apply }
}

const YEAR: Duration = Duration::from_secs(366 * 24 * 60 * 60);
const SECOND: Duration = Duration::from_secs(1);
const MICROSECOND: Duration = Duration::from_micros(1);

#[rustfmt::skip]
pub const OPTIONS: &[Spec] = &[
    spec("name", "", "NAME", "Begins a job on the command line; in a job file write [NAME]", |d, v| set(&mut d.job.name, name(v.text))),
    spec("description", "", "TEXT", "A note, repeated in the results", |_, v| v.word().map(drop)),
    spec("rw", "readwrite", "PATTERN", "read, write, randread, randwrite, rw (or readwrite), randrw", rw),
    spec("rwmixread", "", "PERCENT", "Share of reads in a mix [50]", |d, v| set(&mut d.job.rw.read_percent, percent(v))),
    spec("rwmixwrite", "", "PERCENT", "Share of writes in a mix [50]", |d, v| set(&mut d.job.rw.read_percent, percent(v).map(|writes| 100 - writes))),
    spec("bs", "blocksize", "SIZE[,SIZE]", "Bytes of an operation, or READ,WRITE [4k]", |d, v| each(&mut d.block, v.by_direction(|v| v.number(1..=limits::BLOCK_BYTES)))),
    spec("bsrange", "blocksize_range", "LOW-HIGH", "Bytes of an operation drawn from a range, or READ,WRITE", |d, v| each_some(&mut d.range, v.by_direction(|v| v.range(1..=limits::BLOCK_BYTES)))),
    spec("size", "", "SIZE", "Bytes of the job's files together [what is there]", |d, v| set(&mut d.job.size, size(v))),
    spec("io_size", "io_limit", "SIZE", "Bytes to transfer [size]", |d, v| set(&mut d.job.io_size, size(v).map(|bytes| Some(bytes).filter(|&bytes| bytes > 0)))),
    spec("offset", "", "SIZE", "Where in each file to begin [0]", |d, v| set(&mut d.job.offset, size(v))),
    spec("filename", "", "NAME[:NAME]", "Files that all clones share [one per clone]", |d, v| set(&mut d.job.files.names, names(v))),
    spec("directory", "", "DIR[:DIR]", "Where files go; clones take turns", |d, v| set(&mut d.job.files.directories, names(v))),
    spec("nrfiles", "nr_files", "COUNT", "Files of a clone, where filename names none [1]", |d, v| set(&mut d.job.files.own, v.count(1..=limits::FILES as u32))),
    spec("ioengine", "", "NAME", "io_uring is the engine raw, mmap is mmap; others need --engine", ioengine),
    spec("iodepth", "", "COUNT", "Operations in flight [1]", |d, v| set(&mut d.job.iodepth, v.count(1..=limits::IODEPTH))),
    spec("numjobs", "", "COUNT", "Clones of the job that run at once [1]", |d, v| set(&mut d.job.numjobs, v.count(1..=limits::NUMJOBS))),
    spec("thread", "", "", "Clones are threads of one process, as they always are here", |_, v| if v.flag()? { Ok(()) } else { Err("clones are always threads: leave it out".into()) }),
    spec("direct", "", "0|1", "Past the page cache [0]", |d, v| set(&mut d.job.direct, v.boolean())),
    spec("buffered", "", "0|1", "The opposite of direct [1]", |d, v| set(&mut d.job.direct, v.boolean().map(|buffered| !buffered))),
    spec("fsync", "", "WRITES", "fsync after every so many writes [0: never]", |d, v| set(&mut d.job.fsync, v.count(0..=u32::MAX))),
    spec("fdatasync", "", "WRITES", "fdatasync after every so many writes [0: never]", |d, v| set(&mut d.job.fdatasync, v.count(0..=u32::MAX))),
    spec("end_fsync", "", "0|1", "fsync when the job's writes are done [0]", |d, v| set(&mut d.job.end_fsync, v.boolean())),
    spec("runtime", "timeout", "TIME", "Ends the job after so many seconds [when size is done]", |d, v| set(&mut d.job.runtime, v.duration(SECOND, YEAR).map(|time| Some(time).filter(|time| !time.is_zero())))),
    spec("time_based", "", "", "Starts over until runtime is up", |d, v| set(&mut d.job.time_based, v.flag())),
    spec("ramp_time", "", "TIME", "Seconds that run before anything is counted [0]", |d, v| set(&mut d.job.ramp_time, v.duration(SECOND, YEAR))),
    spec("rate", "", "SIZE[,SIZE]", "Bytes per second at most, or READ,WRITE [0: no limit]", rate),
    spec("thinktime", "", "TIME", "Microseconds of pause after every operation [0]", |d, v| set(&mut d.job.thinktime, v.duration(MICROSECOND, Duration::from_secs(3600)))),
    spec("random_distribution", "", "KIND", "random, or zipf:THETA (1.1 without THETA) [random]", |d, v| set(&mut d.job.distribution, distribution(v))),
    spec("norandommap", "", "", "Random blocks may come twice before all came once", |d, v| set(&mut d.job.norandommap, v.flag())),
    spec("randseed", "", "NUMBER", "Seed of everything random [0x89]", |d, v| { d.seeded = true; set(&mut d.job.randseed, v.number(0..=i64::MAX as u64)) }),
    spec("randrepeat", "", "0|1", "Without randseed: the same randomness every time [1]", |d, v| set(&mut d.job.randrepeat, v.boolean())),
    spec("verify", "", "KIND", "crc32c: reads back what was written and checks it; 0: does not [0]", |d, v| set(&mut d.job.verify, verify(v))),
    spec("refill_buffers", "", "", "New random bytes for every write", |d, v| set(&mut d.refill, v.flag().map(Some))),
    spec("fallocate", "", "KIND", "Room for a new file: none, native, posix, keep, truncate [native]", |d, v| set(&mut d.job.fallocate, fallocate(v))),
    spec("overwrite", "", "0|1", "Writes the file in full before the job overwrites it [0]", |d, v| set(&mut d.job.overwrite, v.boolean())),
    spec("invalidate", "", "0|1", "Drops the file from the page cache before the job starts [1]", |d, v| set(&mut d.job.invalidate, v.boolean())),
    spec("stonewall", "wait_for_previous", "", "Starts when all jobs before it have ended", |d, v| set(&mut d.job.stonewall, v.flag())),
    spec("group_reporting", "", "", "One result for all clones of a group", |d, v| set(&mut d.job.group_reporting, v.flag())),
    spec("lat_percentiles", "", "0|1", "Percentiles of lat too, from submission to answer, in JSON [0]", |d, v| set(&mut d.job.lat_percentiles, v.boolean())),
    spec("write_iolog", "", "FILE", "Writes down every operation, in fio's format", |d, v| set(&mut d.job.write_iolog, v.word().map(|name| Some(name.into())))),
];

/// Options of fio that people reach for, and what to write here.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("blockalign", "operations are aligned to their smallest block size"),
    ("ba", "operations are aligned to their smallest block size"),
    ("bssplit", "use bsrange=LOW-HIGH, or several sections with their own bs="),
    ("bs_unaligned", "block sizes of a range are multiples of the smallest"),
    ("percentage_random", "use rw=read and rw=randread in sections of their own"),
    ("rate_iops", "use rate=, which is bytes: operations times bs"),
    ("rate_min", "leave it out and read the result's bandwidth"),
    ("rate_process", "operations are spaced evenly"),
    ("loops", "use time_based with runtime=, or io_size="),
    ("number_ios", "use io_size=, which is bytes: operations times bs"),
    ("filesize", "use size= with nrfiles="),
    ("fill_device", "use size="),
    ("file_append", "use offset="),
    ("file_service_type", "files take turns, as with fio's roundrobin"),
    ("random_generator", "the generator is tausworthe"),
    ("allrandrepeat", "use randseed="),
    ("softrandommap", "use norandommap"),
    ("do_verify", "leave verify= out"),
    ("verify_fatal", "a job ends at the first block that fails"),
    ("verify_backlog", "blocks are verified when all are written"),
    ("verify_pattern", "use verify=crc32c"),
    ("zero_buffers", "buffers are filled once with random bytes"),
    ("buffer_compress_percentage", "buffers are filled once with random bytes"),
    ("create_on_open", "files are made before the job starts"),
    ("unlink", "pass --unlink to reelring-bench run, or remove the file yourself"),
    ("startdelay", "use stonewall"),
    ("new_group", "a group begins at stonewall"),
    ("wait_for", "use stonewall"),
    ("iodepth_batch", "use iodepth="),
    ("iodepth_low", "use iodepth="),
    ("thinktime_blocks", "thinktime comes after every operation"),
    ("sync", "use fsync= or fdatasync="),
    ("cpus_allowed", "run reelring-bench under taskset"),
    ("nice", "run reelring-bench under nice"),
    ("ioprio", "run reelring-bench under ionice"),
    ("read_iolog", "describe the operations with rw=, bs= and size="),
    ("rwmixcycle", "leave it out"),
    ("zonemode", "zoned devices are not supported"),
    ("kb_base", "k is 1024 bytes, kib 1000: write bytes in full for other sizes"),
    ("include", "copy the included lines into the job file"),
];

/// The names of options that get an answer of their own although they are not supported.
pub fn unsupported() -> impl Iterator<Item = &'static str> {
    UNSUPPORTED.iter().map(|(name, _)| *name)
}

pub fn find(name: &str, at: &At) -> Result<&'static Spec, JobError> {
    if let Some(spec) = OPTIONS.iter().find(|spec| spec.name == name || (spec.alias == name && !name.is_empty())) {
        return Ok(spec);
    }
    let (at, option) = (at.clone(), name.to_owned());
    Err(match UNSUPPORTED.iter().find(|(known, _)| *known == name) {
        Some((_, advice)) => JobError::Unsupported { at, option, advice },
        None => JobError::Unknown { at, nearest: nearest(name), option },
    })
}

fn nearest(name: &str) -> Option<&'static str> {
    let names = OPTIONS.iter().flat_map(|spec| [spec.name, spec.alias]).filter(|known| !known.is_empty());
    let (distance, known) = names.map(|known| (distance(name, known), known)).min()?;
    (distance <= known.len().div_ceil(3)).then_some(known)
}

/// Levenshtein's, as far as it matters: of names longer than any option only the start counts.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, other) in b.chars().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(*letter != other)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}

/// A job that is being put together: what a section inherits, then what it says itself.
#[derive(Clone)]
pub struct Draft {
    job: Job,
    block: (u64, u64),
    range: ByDirection<(u64, u64)>,
    seeded: bool,
    refill: Option<bool>,
    /// `--engine`.
    engine: Option<EngineKind>,
}

/// One option as it was written.
#[derive(Debug, Clone)]
pub struct Entry {
    pub at: At,
    pub option: String,
    pub value: String,
}

impl Draft {
    pub fn new(engine: Option<EngineKind>) -> Draft {
        let job = Job { engine, ..Job::default() };
        Draft { job, block: (4096, 4096), range: (None, None), seeded: false, refill: None, engine }
    }

    /// Takes in one section.
    pub fn apply(&mut self, entries: &[Entry]) -> Result<(), JobError> {
        for entry in entries {
            let spec = find(&entry.option, &entry.at)?;
            let fail = |problem| JobError::Value {
                at: entry.at.clone(),
                option: spec.name,
                value: entry.value.chars().take(64).collect(),
                problem,
            };
            // Whoever prints a job must be able to read it again, and fio misreads a blank after the `=`.
            if entry.value.starts_with(char::is_whitespace) {
                return Err(fail("begins with a blank, which fio would misread: remove it".into()));
            }
            if entry.value.contains([';', '#', '\n', '\r', '\0']) || entry.value.ends_with(char::is_whitespace) {
                return Err(fail(
                    "has what a job file cannot hold: ; # NUL, a line break, or a blank at its end".into(),
                ));
            }
            if entry.value.len() + spec.name.len() >= limits::JOB_LINE_BYTES {
                return Err(fail(format!(
                    "has {} bytes, over a job file's line of {}",
                    entry.value.len(),
                    limits::JOB_LINE_BYTES
                )));
            }
            (spec.apply)(self, Value { text: &entry.value }).map_err(fail)?;
            self.job.given.push((spec.name.to_owned(), entry.value.clone()));
        }
        Ok(())
    }

    /// Everything said so far was global: what follows inherits it.
    pub fn seal_globals(&mut self) {
        self.job.global.append(&mut self.job.given);
    }

    pub fn stonewall(&mut self) {
        self.job.stonewall = true;
        self.job.given.push(("stonewall".to_owned(), String::new()));
    }

    /// The job, if its options go together.
    pub fn finish(self, name: &str, at: &At) -> Result<Job, JobError> {
        let Draft { mut job, block, range, seeded, refill, .. } = self;
        job.name = name.to_owned();
        let sizes = |block: u64, range: Option<(u64, u64)>| {
            let (min, max) = range.unwrap_or((block, block));
            BlockSizes { min, max }
        };
        job.read_blocks = sizes(block.0, range.0);
        job.write_blocks = sizes(block.1, range.1);
        job.refill_buffers = refill.unwrap_or(job.verify.is_some());
        if seeded {
            job.randrepeat = false;
        } else if !job.randrepeat {
            use std::hash::{BuildHasher, RandomState};
            job.randseed = RandomState::new().hash_one(0) >> 1;
        }
        match conflict(&job) {
            Some(problem) => Err(JobError::Conflict { at: at.clone(), job: job.name, problem }),
            None => Ok(job),
        }
    }
}

/// What does not go together.
fn conflict(job: &Job) -> Option<String> {
    let Job { rw, size, offset, read_blocks, write_blocks, .. } = job;
    let used = [(rw.reads, read_blocks), (rw.writes, write_blocks)]
        .into_iter()
        .filter_map(|(used, blocks)| used.then_some(blocks));
    let smallest = used.clone().map(|blocks| blocks.min).min().unwrap_or(1);
    if *size > 0 && *size < smallest {
        return Some(format!("size={size} is under one block of {smallest} bytes: make size larger or bs smaller"));
    }
    if size.checked_add(*offset).is_none_or(|end| end > limits::SIZE_BYTES) {
        return Some(format!(
            "offset={offset} and size={size} end past {} bytes: make them smaller",
            limits::SIZE_BYTES
        ));
    }
    if job.direct
        && let Some(blocks) = used.clone().find(|blocks| blocks.min % 512 > 0 || blocks.max % 512 > 0)
    {
        return Some(format!(
            "direct=1 needs blocks in multiples of 512 bytes, not {}-{}: change bs or use direct=0",
            blocks.min, blocks.max
        ));
    }
    if job.direct && offset % 512 > 0 {
        return Some(format!("direct=1 needs an offset in multiples of 512 bytes, not {offset}"));
    }
    if job.time_based && job.runtime.is_none() {
        return Some("time_based needs a runtime=".into());
    }
    if rw.pattern == Pattern::Random
        && !job.norandommap
        && job.distribution == Distribution::Uniform
        && size / smallest > limits::MAPPED_BLOCKS
    {
        return Some(format!(
            "{} blocks are too many to remember which were touched (limit {}): add norandommap",
            size / smallest,
            limits::MAPPED_BLOCKS
        ));
    }
    if job.files.names.len() > 1 && job.files.own > 1 && job.files.own as usize != job.files.names.len() {
        return Some(format!(
            "nrfiles={} but filename names {}: leave nrfiles out",
            job.files.own,
            job.files.names.len()
        ));
    }
    None
}

fn set<T>(place: &mut T, value: Read<T>) -> Read<()> {
    *place = value?;
    Ok(())
}

/// A place left empty keeps what it had.
fn each<T>(place: &mut (T, T), value: Read<ByDirection<T>>) -> Read<()> {
    let (reads, writes) = value?;
    if let Some(reads) = reads {
        place.0 = reads;
    }
    if let Some(writes) = writes {
        place.1 = writes;
    }
    Ok(())
}

fn each_some<T>(place: &mut (Option<T>, Option<T>), value: Read<ByDirection<T>>) -> Read<()> {
    let (reads, writes) = value?;
    each(place, Ok((reads.map(Some), writes.map(Some))))
}

/// A job's name is a section's header and part of its files' names.
pub fn name(text: &str) -> Read<String> {
    match text {
        "" => Err("a job needs a name".into()),
        _ if text.len() > limits::NAME_BYTES => Err(format!("the job's name is over {} bytes", limits::NAME_BYTES)),
        _ if text.contains(['/', '[', ']']) || text.trim() != text => {
            Err("a job's name has no / [ ] and no blank around it".into())
        }
        _ => Ok(text.to_owned()),
    }
}

fn size(value: Value) -> Read<u64> {
    value.number(0..=limits::SIZE_BYTES)
}

fn percent(value: Value) -> Read<u8> {
    Ok(value.count(0..=100)? as u8)
}

fn names(value: Value) -> Read<Vec<PathBuf>> {
    Ok(value.names(limits::FILES)?.into_iter().map(PathBuf::from).collect())
}

fn rw(draft: &mut Draft, value: Value) -> Read<()> {
    let (pattern, reads, writes) = match value.word()? {
        "read" => (Pattern::Sequential, true, false),
        "write" => (Pattern::Sequential, false, true),
        "rw" | "readwrite" => (Pattern::Sequential, true, true),
        "randread" => (Pattern::Random, true, false),
        "randwrite" => (Pattern::Random, false, true),
        "randrw" => (Pattern::Random, true, true),
        other if other.contains("trim") => {
            return Err("trims are not supported: use read, write, rw, randread, randwrite or randrw".into());
        }
        other if other.contains(':') => return Err("a number after the pattern is not supported: leave it out".into()),
        _ => return Err("is no pattern: use read, write, rw, randread, randwrite or randrw".into()),
    };
    draft.job.rw = Rw { pattern, reads, writes, ..draft.job.rw };
    Ok(())
}

fn ioengine(draft: &mut Draft, value: Value) -> Read<()> {
    let named = match value.word()? {
        "io_uring" | "raw" => Some(EngineKind::Raw),
        "bridge" => Some(EngineKind::Bridge),
        "threads" => Some(EngineKind::Threads),
        "mmap" => Some(EngineKind::Mmap),
        "http" => Some(EngineKind::Http),
        _ => None,
    };
    draft.job.engine = draft.engine.or(named);
    match draft.job.engine {
        Some(_) => Ok(()),
        None => Err("is an engine of fio only: pass --engine raw, bridge, threads, mmap or http".into()),
    }
}

fn rate(draft: &mut Draft, value: Value) -> Read<()> {
    let limit = |value: Value| Ok(Some(value.number(0..=limits::SIZE_BYTES)?).filter(|&rate| rate > 0));
    let rates = &mut draft.job.rate;
    let mut both = (rates.read, rates.write);
    each(&mut both, value.by_direction(limit))?;
    (rates.read, rates.write) = both;
    Ok(())
}

fn distribution(value: Value) -> Read<Distribution> {
    let (kind, theta) = value.word()?.split_once(':').map_or((value.text, None), |(kind, theta)| (kind, Some(theta)));
    match (kind, theta) {
        ("random", None) => Ok(Distribution::Uniform),
        ("zipf", None) => Ok(Distribution::Zipf(1.1)),
        ("zipf", Some(theta)) => match theta.parse::<f64>() {
            Ok(1.0) => Err("zipf has no theta of 1: write zipf:1.1".into()),
            Ok(theta) if theta > 0.0 && theta <= 100.0 => Ok(Distribution::Zipf(theta)),
            _ => Err("theta is a number over 0, at most 100: write zipf:1.1".into()),
        },
        _ => Err("is not supported: use random or zipf:THETA".into()),
    }
}

fn verify(value: Value) -> Read<Option<Verify>> {
    match value.word()? {
        "0" => Ok(None),
        "crc32c" | "crc32c-intel" => Ok(Some(Verify::Crc32c)),
        _ => Err("is not supported: use crc32c".into()),
    }
}

fn fallocate(value: Value) -> Read<Fallocate> {
    match value.word()? {
        "none" | "0" => Ok(Fallocate::None),
        // On Linux posix_fallocate is fallocate(2) wherever that is supported.
        "native" | "posix" | "1" => Ok(Fallocate::Native),
        "keep" => Ok(Fallocate::Keep),
        "truncate" => Ok(Fallocate::Truncate),
        _ => Err("use none, native, posix, keep or truncate".into()),
    }
}
