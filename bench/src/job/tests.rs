//! The language as a whole: files, flags, what they add up to, and what a foreign file may contain.

use std::path::Path;

use proptest::prelude::*;

use super::error::JobError;
use super::file::{fold, sections};
use super::options::{Draft, OPTIONS};
use super::*;

/// The jobs of a job file's text.
fn jobs(text: impl AsRef<[u8]>) -> Result<Vec<Job>, JobError> {
    let mut jobs = Vec::new();
    fold(sections(text.as_ref(), Path::new("a.fio"))?, &mut Draft::new(None), false, &mut jobs)?;
    Ok(jobs)
}

fn flags(line: &[&str]) -> Result<Vec<Job>, JobError> {
    load(&[], &flags::parse(line.iter().copied()).expect("flags"), None)
}

fn one(options: &str) -> Result<Job, JobError> {
    Ok(jobs(format!("[job]\nsize=64m\n{options}\n"))?.remove(0))
}

#[track_caller]
fn refused(options: &str, message: &str) {
    let error = one(options).expect_err(options).to_string();
    assert!(error.contains(message), "{options:?} is refused with {error:?}, not {message:?}");
}

#[test]
fn globals_apply_to_what_follows() {
    let jobs = jobs(
        "; a comment\n\n[global]\nbs=8k # and another\nsize=1m\n[a]\n[global]\nsize=2m\n  rw=randwrite\n[b]\nbs=16k\nstonewall\n[c]\nwait_for_previous=0\r\n",
    )
    .unwrap();
    let facts: Vec<_> =
        jobs.iter().map(|j| (j.name.as_str(), j.read_blocks.min, j.size, j.rw.writes, j.stonewall)).collect();
    assert_eq!(
        facts,
        [("a", 8192, 1 << 20, false, false), ("b", 16384, 2 << 20, true, true), ("c", 8192, 2 << 20, true, false)]
    );
    assert_eq!(jobs[1].given, [("bs".into(), "16k".into()), ("stonewall".into(), String::new())]);
    assert_eq!(jobs[0].global, [("bs".into(), "8k".into()), ("size".into(), "1m".into())]);
}

#[test]
fn flags_are_the_same_options() {
    let jobs = flags(&[
        "--bs=8k",
        "--time_based",
        "--runtime=1",
        "--name=a",
        "--rw",
        "randread",
        "--name",
        "b",
        "--bs=4k,64k",
        "--readwrite=rw",
        "--time_based=0",
    ])
    .unwrap();
    assert_eq!(jobs.len(), 2);
    assert_eq!((jobs[0].name.as_str(), jobs[0].read_blocks.min, jobs[0].time_based), ("a", 8192, true));
    assert_eq!(jobs[0].rw.pattern, Pattern::Random);
    assert_eq!((jobs[1].read_blocks.min, jobs[1].write_blocks.max, jobs[1].time_based), (4096, 65536, false));
    assert!(jobs[1].rw.reads && jobs[1].rw.writes);
    assert!(matches!(flags(&["--bs=8k"]), Err(JobError::NoJob)));
    let error = flags(&["--name=a", "--loops=3"]).unwrap_err().to_string();
    assert!(error.contains("use time_based"), "{error}");
    assert!(flags::parse(["--nonsense=3"]).is_err());
}

#[test]
fn a_command_may_have_flags_of_its_own() {
    #[derive(clap::Parser)]
    struct Line {
        #[arg(long)]
        unlink: bool,
        files: Vec<PathBuf>,
        #[command(flatten)]
        flags: Flags,
    }
    let line =
        <Line as clap::Parser>::try_parse_from(["run", "--group_reporting", "a.fio", "--unlink", "--bs=8k"]).unwrap();
    assert!(line.unlink);
    assert_eq!(line.files, [Path::new("a.fio")], "a bare flag does not take the word after it");
    assert!(!line.flags.is_empty());
}

#[test]
fn job_files_follow_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let files = ["a", "b"].map(|name| folder.path().join(name));
    std::fs::write(&files[0], "[global]\nbs=8k\n[a]\nsize=1m\n").unwrap();
    std::fs::write(&files[1], "[b]\nsize=1m\n[c]\nsize=1m\n").unwrap();
    let flags = flags::parse(["--rw=randread", "--bs=16k", "--name=first", "--size=1m"]).unwrap();
    let jobs = load(&files, &flags, None).unwrap();
    let facts: Vec<_> =
        jobs.iter().map(|job| (job.name.as_str(), job.read_blocks.min, job.rw.pattern, job.stonewall)).collect();
    assert_eq!(
        facts,
        [
            ("first", 16384, Pattern::Random, false),
            ("a", 8192, Pattern::Random, false),
            ("b", 4096, Pattern::Sequential, true),
            ("c", 4096, Pattern::Sequential, false),
        ]
    );
    assert!(jobs[2].to_string().contains("\nstonewall\n"));
}

#[test]
fn options_have_fios_meaning() {
    assert_eq!(
        one("rw=randrw\nrwmixread=70").unwrap().rw,
        Rw { pattern: Pattern::Random, reads: true, writes: true, read_percent: 70 }
    );
    assert_eq!(one("rw=rw\nrwmixwrite=10").unwrap().rw.read_percent, 90);
    assert_eq!(one("bsrange=1k-64k\nbs=4k").unwrap().write_blocks, BlockSizes { min: 1024, max: 65536 });
    assert_eq!(one("bsrange=1k-2k,4k-8k").unwrap().write_blocks, BlockSizes { min: 4096, max: 8192 });
    assert_eq!(one("bs=,8k").unwrap().read_blocks, BlockSizes { min: 4096, max: 4096 });
    assert_eq!(one("rate=1m,").unwrap().rate, Rates { read: Some(1 << 20), write: None });
    assert_eq!(one("thinktime=1ms").unwrap().thinktime, Duration::from_millis(1));
    assert_eq!(one("thinktime=7").unwrap().thinktime, Duration::from_micros(7));
    assert_eq!(one("runtime=7").unwrap().runtime, Some(Duration::from_secs(7)));
    assert_eq!(one("random_distribution=zipf").unwrap().distribution, Distribution::Zipf(1.1));
    assert_eq!(one("random_distribution=zipf:0.9").unwrap().distribution, Distribution::Zipf(0.9));
    assert!(one("verify=crc32c").unwrap().refill_buffers);
    assert!(!one("verify=crc32c\nrefill_buffers=0").unwrap().refill_buffers);
    assert!(!one("randseed=7").unwrap().randrepeat);
    assert!(one("").unwrap().randrepeat);
    assert_eq!(one("ioengine=io_uring").unwrap().engine, Some(EngineKind::Raw));
    assert!(one("buffered=0").unwrap().direct);
}

#[test]
fn files_are_named_as_fio_names_them() {
    let files = |options: &str, clone| one(options).unwrap().files.of_clone("job", clone);
    assert_eq!(files("", 2), [Path::new("job.2.0")]);
    assert_eq!(files("nrfiles=2\ndirectory=d:e", 1), [Path::new("e/job.1.0"), Path::new("e/job.1.1")]);
    assert_eq!(files("filename=a:b\ndirectory=d:e", 1), [Path::new("d/a"), Path::new("d/b")]);
    assert_eq!(files("filename=/a\ndirectory=d", 0), [Path::new("d/a")]);
}

#[test]
fn errors_say_where_and_what_instead() {
    let error = jobs("[a]\nsize=64m\nrw=randread\nbs=banana\n").unwrap_err().to_string();
    assert_eq!(error, "a.fio:4: bs=banana: is no number");
    refused("blocksiz=4k", "did you mean \"blocksize\"?");
    refused("norandmap", "did you mean \"norandommap\"?");
    refused("xyzzy=1", "unknown option \"xyzzy\"; `reelring-bench run --help`");
    refused("loops=3", "use time_based");
    refused("include other.fio", "include is not supported");
    refused("name=b", "write [NAME]");
    refused("rw=trim", "trims are not supported");
    refused("rw=randread:8", "leave it out");
    refused("rw=sideways", "is no pattern");
    refused("ioengine=psync", "--engine");
    refused("bs=0", "not between 1 and");
    refused("bs=128m", "not between 1 and 67108864");
    refused("bs= 4k", "fio would misread");
    refused("bs=", "no value after its =");
    refused("bs", "needs a value");
    refused("bs=4k-8k", "is no unit");
    refused("bsrange=8k-4k", "write 4k-8k");
    refused("bsrange=4k", "is no range");
    refused("size=18446744073709551615t", "not between 0 and");
    refused("size=99999999999999999999", "does not fit 64 bits");
    refused("size=-1", "is negative");
    refused("size=50%", "share of the file");
    refused("size=1k", "under one block of 4096 bytes");
    refused("size=512p\noffset=513p", "make them smaller");
    refused("size=64t\nrw=randread\nbs=512", "add norandommap");
    refused("iodepth=0", "not between 1 and 4096");
    refused("numjobs=100000", "not between 1 and 256");
    refused("direct=1\nbs=1000", "multiples of 512");
    refused("direct=1\noffset=100", "multiples of 512");
    refused("direct=yes", "write 0 or 1");
    refused("direct", "write 0 or 1");
    refused("time_based", "needs a runtime=");
    refused("runtime=5min", "is no unit of time");
    refused("rwmixread=101", "not between 0 and 100");
    refused("random_distribution=zipf:1", "no theta of 1");
    refused("random_distribution=zipf:NaN", "theta is a number");
    refused("random_distribution=pareto", "use random or zipf");
    refused("verify=md5", "use crc32c");
    refused("filename=${HOME}/a", "is not replaced");
    refused("thread=0", "always threads");
    for (text, message) in [
        (&b"bs=4k\n"[..], "before any section"),
        (b"[a\n", "lacks its ]"),
        (b"[]\n", "needs a name"),
        (b"[a/b]\n", "no / [ ]"),
        (b"[a]\nfilename=a\0b\n", "a.fio:2: the line has a NUL byte"),
        (b"[a]\nfilename=\xff\n", "not UTF-8"),
    ] {
        let error = jobs(text).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    assert!(
        jobs(format!("[a]\nfilename={}\n", "x".repeat(5000))).unwrap_err().to_string().contains("the limit is 4096")
    );
    assert!(jobs("[a]\nsize=1m\n".repeat(257)).unwrap_err().to_string().contains("over 256 sections"));
    let long = format!("--filename={}", "x".repeat(5000));
    for (flag, message) in [
        ("--filename=a#b", "cannot hold"),
        ("--filename=a ", "cannot hold"),
        ("--filename=a\nb", "cannot hold"),
        (&long, "over a job file's line"),
        ("--name=a/b", "no / [ ]"),
        ("--name=", "needs a name"),
        ("--size=", "needs a value"),
        ("--time_based=maybe", "write 0 or 1"),
    ] {
        let error = flags(&["--name=a", "--size=1m", flag]).unwrap_err().to_string();
        assert!(error.contains(message), "{flag}: {error}");
        assert!(error.len() < 300, "{} bytes", error.len());
    }
}

/// An option with a value of its kind, most of them good.
fn option() -> impl Strategy<Value = String> {
    let number = (1_u64..5000, prop::sample::select(vec!["", "k", "K", "kb", "kib", "m", "g"]))
        .prop_map(|(n, unit)| format!("{n}{unit}"));
    let time =
        (0_u64..5000, prop::sample::select(vec!["", "us", "ms", "s", "m"])).prop_map(|(n, unit)| format!("{n}{unit}"));
    let word = prop::sample::select(vec![
        "0", "1", "read", "randrw", "crc32c", "zipf:1.2", "random", "native", "io_uring", "4k-64k", "4k,8k", ",8k",
        "a:b", r"a\:b", "1000",
    ]);
    let value = prop_oneof![number, time, word.prop_map(str::to_owned), Just(String::new())];
    let spec = prop::sample::select((1..OPTIONS.len()).collect::<Vec<_>>());
    (spec, value, any::<bool>()).prop_map(|(spec, value, alias)| {
        let spec = &OPTIONS[spec];
        let name = if alias && !spec.alias.is_empty() { spec.alias } else { spec.name };
        if value.is_empty() { name.to_owned() } else { format!("{name}={value}") }
    })
}

#[test]
fn the_manual_has_every_option_and_job_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manual = std::fs::read_to_string(root.join("../docs/bench.md")).unwrap();
    for spec in OPTIONS {
        let alias = if spec.alias.is_empty() { String::new() } else { format!(", `{}`", spec.alias) };
        let value = if spec.value.is_empty() { String::new() } else { format!("`{}`", spec.value.replace('|', r"\|")) };
        let row = format!("| `{}`{alias} | {value} | {} |\n", spec.name, spec.meaning);
        assert!(manual.contains(&row), "docs/bench.md lacks the row {row}");
    }
    for entry in std::fs::read_dir(root.join("jobs")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let first = text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("; "))
            .expect("a job file begins with what it stands for");
        let row = format!("| `{}` | {first} |\n", path.file_name().unwrap().display());
        assert!(manual.contains(&row), "docs/bench.md lacks the row {row}");
    }
}

/// Whether fio takes the text for a job file; `None` without fio.
fn fio_accepts(text: &str) -> Option<Result<(), String>> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("job.fio"), text).unwrap();
    ["d", "e", "a", "b"].iter().for_each(|name| std::fs::create_dir(folder.path().join(name)).unwrap());
    let mut fio = std::process::Command::new("fio");
    let output = fio.args(["--parse-only", "job.fio"]).current_dir(folder.path()).output().ok()?;
    let said = || String::from_utf8_lossy(&[output.stdout.clone(), output.stderr.clone()].concat()).into_owned();
    Some(if output.status.success() { Ok(()) } else { Err(said()) })
}

#[test]
fn fio_accepts_every_job_file_as_it_is() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs");
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        jobs(&text).unwrap();
        assert!(!text.contains("=/") && !text.contains("directory"), "job files say nothing of where they run");
        match fio_accepts(&text) {
            Some(accepted) => accepted.unwrap(),
            None => return eprintln!("skipped: fio is not installed (apt install fio)"),
        }
        files += 1;
    }
    assert!(files >= 12);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn fio_accepts_what_is_accepted_here(options in prop::collection::vec(option(), 1..4)) {
        let text = format!("[job]\nsize=1g\n{}\n", options.join("\n"));
        if jobs(&text).is_ok() && let Some(Err(said)) = fio_accepts(&text) {
            panic!("{text}{said}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_are_a_job_or_an_error(text in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = jobs(&text);
    }

    #[test]
    fn any_text_of_the_language_is_a_job_or_an_error(
        lines in prop::collection::vec(prop_oneof![option(), "[ -~]{0,40}", "\\[[a-z]{0,8}\\]?", "[a-z_]{1,12}=[0-9a-zA-Z%:,.-]{0,24}"], 0..30),
    ) {
        let _ = jobs(lines.join("\n"));
    }

    #[test]
    fn a_printed_job_reads_back_as_the_same_job(options in prop::collection::vec(option(), 0..6)) {
        let text = format!("[global]\nsize=1g\nrandseed=7\n[job]\n{}\n", options.join("\n"));
        if let Ok(read) = jobs(text) {
            let again = jobs(read[0].to_string()).expect("what was printed").remove(0);
            let options = |job: &Job| [job.global.clone(), job.given.clone()].concat();
            prop_assert_eq!(options(&again), options(&read[0]));
            prop_assert_eq!(Job { given: vec![], global: vec![], ..again }, Job { given: vec![], global: vec![], ..read[0].clone() });
        }
    }
}
