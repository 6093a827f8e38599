//! `reelring-bench run` as a user runs it: beside fio, on disks that fail, interrupted, and read by others' programs.
//!
//! Where fio, its tools or fio-plot are missing a test says that it is skipped; `tests/demo/setup.sh test` installs them. The
//! test of `http` needs the node beside reelring-bench: `cargo build -p reelring`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_reelring-bench");

/// A folder of one test.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(
            tempfile::Builder::new().prefix("run-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a scratch folder"),
        )
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `reelring-bench run` in this folder.
    fn bench(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BENCH);
        command.arg("run").args(arguments).current_dir(self.0.path()).stdin(Stdio::null());
        command
    }

    /// Its JSON, when it must succeed.
    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.bench(arguments).arg("--output-format=json+").output().expect("reelring-bench");
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON on the standard output")
    }

    /// Its JSON and its words, when it must fail with exit code 1.
    fn failure(&self, arguments: &[&str]) -> (Value, String) {
        failed(&self.bench(arguments).arg("--output-format=json").output().expect("reelring-bench"))
    }
}

fn failed(output: &Output) -> (Value, String) {
    let words = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words}");
    (serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {words}")), words)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn contains(words: &str, parts: &[&str]) {
    for part in parts {
        assert!(words.contains(part), "no {part:?} in: {words}");
    }
}

fn installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("SKIPPED: {program} is not installed; run tests/demo/setup.sh test");
    }
    found
}

/// Every job file, smaller: what is measured in time elsewhere is counted here.
static JOBS: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs");
    let mut jobs = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("bench/jobs").flatten() {
        let lines = fs::read_to_string(entry.path()).expect("a job file");
        jobs.insert(entry.file_name().to_string_lossy().into_owned(), lines.lines().map(shrunk).collect());
    }
    jobs
});

/// Sizes by 32.
fn shrunk(line: &str) -> String {
    let size =
        line.split_once('=').filter(|(name, _)| matches!(*name, "size" | "io_size")).and_then(|(name, value)| {
            let mib: u64 = value.strip_suffix('m')?.parse().ok()?;
            Some(format!("{name}={}k\n", mib * 32))
        });
    size.unwrap_or_else(|| format!("{line}\n"))
}

/// What a job did: its name, its group, operations and bytes of both directions, and its error.
type Work = (String, u64, [u64; 4], u64);

fn work(document: &Value) -> Vec<Work> {
    let jobs = document["jobs"].as_array().expect("jobs");
    let work = |job: &Value| {
        let number = |side: &str, key: &str| job[side][key].as_u64().expect("a number");
        let counts = [
            number("read", "total_ios"),
            number("read", "io_bytes"),
            number("write", "total_ios"),
            number("write", "io_bytes"),
        ];
        let name = job["jobname"].as_str().expect("a name").to_owned();
        (name, job["groupid"].as_u64().expect("a group"), counts, job["error"].as_u64().expect("an error number"))
    };
    jobs.iter().map(work).collect()
}

/// fio's JSON, whose standard output may begin with notes.
fn fio(place: &Place, arguments: &[&str]) -> Value {
    let output = Command::new("fio").args(arguments).current_dir(place.0.path()).output().expect("fio");
    let all = text(&output.stdout);
    let json = &all[all.find('{').unwrap_or_else(|| panic!("no JSON: {all}{}", text(&output.stderr)))..];
    serde_json::from_str(json).expect("fio's JSON")
}

/// What fio does with every job file.
static BY_FIO: LazyLock<BTreeMap<String, Vec<Work>>> = LazyLock::new(|| {
    let done = |(name, job): (&String, &String)| {
        let place = Place::new();
        fs::write(place.path("job.fio"), job).expect("the job file");
        (name.clone(), work(&fio(&place, &["--output-format=json", "--randrepeat=0", "job.fio"])))
    };
    JOBS.iter().map(done).collect()
});

/// Each job file moves on `engine` exactly what it moves with fio.
fn as_much_as_fio(engine: &str, refused: impl Fn(&str) -> Option<&'static str>) {
    if !installed("fio") {
        return;
    }
    assert!(JOBS.len() >= 10, "only {} job files", JOBS.len());
    for (name, job) in JOBS.iter() {
        let place = Place::new();
        fs::write(place.path("job.fio"), job).expect("the job file");
        if let Some(reason) = refused(job) {
            let output = place.bench(&["--engine", engine, "job.fio"]).output().expect("reelring-bench");
            assert_eq!(output.status.code(), Some(2), "{name} on {engine}");
            contains(&text(&output.stderr), &[reason]);
            continue;
        }
        let ours = work(&place.json(&["--engine", engine, "job.fio"]));
        assert_eq!(ours, BY_FIO[name], "{name} on {engine}: left ours, right fio's");
    }
}

#[test]
fn raw_moves_as_much_as_fio() {
    as_much_as_fio("raw", |_| None);
}

#[test]
fn bridge_moves_as_much_as_fio() {
    as_much_as_fio("bridge", |_| None);
}

#[test]
fn threads_move_as_much_as_fio() {
    as_much_as_fio("threads", |_| None);
}

#[test]
fn mmap_moves_as_much_as_fio() {
    as_much_as_fio("mmap", |job| job.contains("direct=1").then_some("direct=1 and a map exclude each other"));
}

/// Keys of fio's JSON that have no meaning here, and why.
const OMITTED: [(&str, &str); 7] = [
    ("disk_util", "the disk's own counters count everybody's work: see /proc/diskstats"),
    ("jobs[].latency_depth", "there is no latency_target"),
    ("jobs[].latency_target", "there is no latency_target"),
    ("jobs[].latency_percentile", "there is no latency_target"),
    ("jobs[].latency_window", "there is no latency_target"),
    ("jobs[].read.drop_ios", "an operation that fails ends its job, none is dropped"),
    ("jobs[].write.drop_ios", "an operation that fails ends its job, none is dropped"),
];

/// Paths of all keys, with the kind of their values. Bins and options are data, not keys.
fn keys(value: &Value, path: &str, found: &mut BTreeMap<String, &'static str>) {
    let kind = match value {
        Value::Object(map) if path.ends_with(".bins") || path.ends_with(" options") => {
            if map.values().all(|v| v.is_string() || v.is_u64()) { "data" } else { "no data" }
        }
        Value::Object(map) => {
            for (key, value) in map {
                keys(value, &if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, found);
            }
            "object"
        }
        Value::Array(list) => {
            list.iter().for_each(|value| keys(value, &format!("{path}[]"), found));
            "array"
        }
        Value::Number(number) => {
            if number.is_f64() {
                "float"
            } else {
                "integer"
            }
        }
        Value::String(_) => "string",
        Value::Bool(_) | Value::Null => "other",
    };
    found.insert(path.to_owned(), kind);
}

#[test]
fn the_json_has_fios_keys() {
    if !installed("fio") {
        return;
    }
    let place = Place::new();
    let job = ["--name=j", "--rw=randrw", "--bs=4k", "--size=256k", "--fsync=8", "--ioengine=io_uring", "--iodepth=4"];
    let theirs = fio(&place, &[&job[..], &["--output-format=json+"]].concat());
    let ours = place.json(&job);
    let (mut fios, mut found) = (BTreeMap::new(), BTreeMap::new());
    keys(&theirs, "", &mut fios);
    keys(&ours, "", &mut found);
    for (key, reason) in OMITTED {
        assert!(!found.contains_key(key), "{key} is there, although {reason}");
    }
    let omitted = |key: &str| {
        key.starts_with("disk_util") || key.contains(".trim.") || OMITTED.iter().any(|(omitted, _)| key == *omitted)
    };
    let missing: Vec<_> = fios.iter().filter(|(key, kind)| !omitted(key) && found.get(*key) != Some(*kind)).collect();
    assert!(missing.is_empty(), "missing or of another kind: {missing:?}");
    let more: Vec<_> = found.keys().filter(|key| !key.contains(".trim.") && !fios.contains_key(*key)).collect();
    assert!(more.is_empty(), "fio has no such keys: {more:?}");
}

/// The figures mean what fio says they mean: they fit each other in its units.
#[test]
fn the_figures_of_the_json_fit_each_other() {
    let place = Place::new();
    let document = place.json(&["--name=j", "--rw=randread", "--bs=8k", "--size=2m", "--iodepth=8", "--engine=raw"]);
    let job = &document["jobs"][0];
    let read = &job["read"];
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value} is no number"));
    let near = |a: f64, b: f64| assert!((a - b).abs() <= 0.01 * b.abs() + 1.0, "{a} is not {b}");
    assert_eq!((number(&read["total_ios"]), number(&read["io_bytes"])), (256.0, 2_097_152.0));
    near(number(&read["io_kbytes"]), 2048.0);
    let seconds = number(&read["runtime"]) / 1000.0;
    near(number(&read["bw_bytes"]), 2_097_152.0 / seconds);
    near(number(&read["bw"]), 2048.0 / seconds);
    near(number(&read["iops"]), 256.0 / seconds);
    near(number(&read["slat_ns"]["mean"]) + number(&read["clat_ns"]["mean"]), number(&read["lat_ns"]["mean"]));
    assert_eq!(number(&read["clat_ns"]["N"]), 256.0);
    let bins = read["clat_ns"]["bins"].as_object().expect("bins");
    assert_eq!(bins.values().filter_map(Value::as_u64).sum::<u64>(), 256);
    let (min, max) = (number(&read["clat_ns"]["min"]), number(&read["clat_ns"]["max"]));
    let percentiles: Vec<f64> =
        read["clat_ns"]["percentile"].as_object().expect("percentiles").values().map(number).collect();
    assert_eq!(percentiles.len(), 17);
    assert!(percentiles.iter().all(|p| *p >= min * 0.99 && *p <= max), "{min} {percentiles:?} {max}");
    let sum = |keys: &[&str]| {
        keys.iter().flat_map(|key| job[key].as_object().expect("parts").values()).map(number).sum::<f64>()
    };
    for keys in [
        &["iodepth_level"][..],
        &["iodepth_submit"],
        &["iodepth_complete"],
        &["latency_ns", "latency_us", "latency_ms"],
    ] {
        near(sum(keys), 100.0);
    }
    assert_eq!(job["job options"]["iodepth"], "8");
}

#[test]
fn the_summary_reads_like_fios() {
    let place = Place::new();
    let job = ["--name=j", "--rw=randrw", "--bs=4k", "--size=256k", "--fsync=8", "--iodepth=4"];
    let output = place.bench(&job).output().expect("reelring-bench");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(output.stderr.is_empty(), "not on a terminal: {}", text(&output.stderr));
    let ours = text(&output.stdout);
    contains(&ours, &["j: (g=0): rw=randrw, bs=(R) 4096B-4096B, (W) 4096B-4096B", "err= 0"]);
    let landmarks = [
        "read: IOPS=",
        "slat (",
        "clat (",
        " lat (",
        "clat percentiles (",
        "     |  1.00th=[",
        "write: IOPS=",
        "fsync/fdatasync/sync_file_range:",
        "    sync (",
        "    sync percentiles (",
        "  cpu          : usr=",
        "  IO depths    : 1=",
        "     submit    : 0=",
        "     complete  : 0=",
        "     issued rwts: total=",
        "\nRun status group 0 (all jobs):",
        "   READ: bw=",
        "  WRITE: bw=",
    ];
    let in_order = |mut rest: &str, whose: &str| {
        for landmark in landmarks {
            let at = rest.find(landmark).unwrap_or_else(|| panic!("no {landmark:?} in its place in {whose}: {rest}"));
            rest = &rest[at + landmark.len()..];
        }
    };
    in_order(&ours, "ours");
    if installed("fio") {
        let output = Command::new("fio").args(job).arg("--ioengine=io_uring").current_dir(place.0.path()).output();
        in_order(&text(&output.expect("fio").stdout), "fio's");
    }
}

/// fio-plot, from PyPI, unchanged, draws from our JSON.
#[test]
fn fio_plot_draws_our_json() {
    let target = Path::new(BENCH).ancestors().nth(2).expect("the target folder");
    let plotter = target.join("tools/fio-plot/bin/fio-plot");
    if !plotter.is_file() {
        eprintln!("SKIPPED: {} is not there; run tests/demo/setup.sh test", plotter.display());
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("in")).expect("a folder");
    for depth in ["1", "4"] {
        let output = format!("--output=in/randread-{depth}-1.json");
        let job = [
            "--name=j",
            "--filename=f",
            "--rw=randread",
            "--bs=4k",
            "--size=512k",
            "--numjobs=1",
            "--output-format=json",
        ];
        let status =
            place.bench(&[&job[..], &["--iodepth", depth, &output]].concat()).status().expect("reelring-bench");
        assert!(status.success());
    }
    for (graph, name) in
        [(&["-l", "-d", "1", "4", "--show-cpu"][..], "bars.png"), (&["-H", "-d", "4", "-f", "read"], "histogram.png")]
    {
        let mut command = Command::new(&plotter);
        command.args(["-i", "in", "-T", "reelring", "-r", "randread", "-n", "1", "-o", name]).args(graph);
        let output = command.env("MPLBACKEND", "Agg").current_dir(place.0.path()).output().expect("fio-plot");
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        let picture =
            fs::read(place.path(name)).unwrap_or_else(|error| panic!("{name}: {error}: {}", text(&output.stdout)));
        assert!(picture.starts_with(b"\x89PNG"), "{name} is no picture");
    }
}

/// fio's own converter of json+ takes ours.
#[test]
fn fios_converter_takes_our_histograms() {
    if !installed("fio_jsonplus_clat2csv") {
        return;
    }
    let place = Place::new();
    let document = place.json(&["--name=j", "--rw=randread", "--bs=4k", "--size=512k", "--iodepth=4"]);
    fs::write(place.path("out.json"), document.to_string()).expect("the JSON");
    let mut command = Command::new("fio_jsonplus_clat2csv");
    let output = command.args(["out.json", "out.csv"]).current_dir(place.0.path()).output().expect("the converter");
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let rows = fs::read_to_string(place.path("out_job0.csv")).expect("the table");
    let bins = document["jobs"][0]["read"]["clat_ns"]["bins"].as_object().expect("bins").len();
    assert_eq!(rows.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit())).count(), bins, "{rows}");
}

#[test]
fn a_byte_flipped_behind_its_back_is_found() {
    for engine in ["raw", "bridge", "threads", "mmap"] {
        let place = Place::new();
        let job = ["--name=v", "--filename=data", "--bs=16k", "--size=256k", "--verify=crc32c", "--engine", engine];
        let written = place.json(&[&job[..], &["--rw=randwrite"]].concat());
        assert_eq!(work(&written)[0].2, [16, 262_144, 16, 262_144], "{engine}");
        place.json(&[&job[..], &["--rw=read"]].concat());
        let mut bytes = fs::read(place.path("data")).expect("the file");
        bytes[5 * 16_384 + 12_000] ^= 0x10;
        fs::write(place.path("data"), bytes).expect("the file");
        let (document, words) = place.failure(&[&job[..], &["--rw=read"]].concat());
        contains(&words, &["job v: verify: data at offset 81920, 16384 bytes: expected crc32c ", ", got "]);
        assert_eq!(work(&document)[0].3, 84, "EILSEQ, as fio has it");
    }
}

/// A small tmpfs, unmounted when it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf, size: &str) -> Option<SmallDisk> {
        fs::create_dir(&at).expect("a folder");
        let size = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "reelring-test"]).arg(&at).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(SmallDisk(at));
        }
        eprintln!("SKIPPED: a small tmpfs cannot be mounted here (this needs root)");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_a_clear_error() {
    let place = Place::new();
    let Some(_disk) = SmallDisk::mount(place.path("disk"), "1m") else { return };
    let job = ["--name=full", "--filename=disk/data", "--rw=write", "--bs=64k", "--size=4m"];
    for engine in ["raw", "bridge", "threads"] {
        let (document, words) = place.failure(&[&job[..], &["--fallocate=none", "--engine", engine]].concat());
        let parts = [
            "job full: could not write disk/data at offset ",
            "65536 bytes: No space left on device",
            "bytes are free in disk",
        ];
        contains(&words, &parts);
        let [(_, _, [_, _, operations, bytes], error)] = &work(&document)[..] else { panic!("{document}") };
        assert_eq!((*error, *bytes), (28, operations * 65_536), "{engine}: the partial result");
        assert!(*bytes > 0 && *bytes <= 1 << 20, "{engine}: {bytes} bytes");
        fs::remove_file(place.path("disk/data")).expect("the file");
    }
    // Room is reserved before the clock starts, so this is known before anything is written.
    let (document, words) = place.failure(&[&job[..], &["--fallocate=native"]].concat());
    contains(&words, &["could not lay out 4194304 bytes in disk/data", "No space left"]);
    assert_eq!(work(&document)[0].3, 28);
    assert!(!place.path("disk/data").exists(), "half a file stayed");
    // A map has no error number: the process ends with a message, and without a result.
    let output = place.bench(&[&job[..], &["--fallocate=truncate", "--engine=mmap"]].concat()).output().expect("a run");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{}", text(&output.stderr));
    contains(&text(&output.stderr), &["SIGBUS", "nothing of this run counts"]);
}

#[test]
fn what_cannot_be_read_is_named() {
    let place = Place::new();
    let read = |more: &[&str]| place.failure(&[&["--name=r", "--rw=read", "--bs=4k", "--size=64k"], more].concat());
    for engine in ["raw", "bridge", "threads", "mmap"] {
        let (document, words) = read(&["--directory=absent", "--engine", engine]);
        contains(
            &words,
            &["job r: could not lay out 65536 bytes in absent/r.0.0: No such file or directory", "make the folder"],
        );
        assert_eq!(work(&document)[0].3, 2, "{engine}");
    }
    fs::create_dir(place.path("folder")).expect("a folder");
    let (document, words) = read(&["--filename=folder"]);
    contains(&words, &["could not use folder: Is a directory", "name a file"]);
    assert_eq!(work(&document)[0].3, 21);
    let (_, words) = place.failure(&["--name=r", "--rw=read", "--filename=nothing"]);
    contains(&words, &["nothing is absent or empty, and no size="]);
}

/// A run that lasts until it is ended, from the moment when it is known to be at work.
fn at_work(place: &Place, arguments: &[&str]) -> (Child, BufReader<std::process::ChildStderr>) {
    let lasting = ["--time_based", "--runtime=60", "--eta=always", "--output-format=json"];
    let mut command = place.bench(&[arguments, &lasting].concat());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("reelring-bench");
    let mut words = BufReader::new(child.stderr.take().expect("piped"));
    let mut line = String::new();
    words.read_line(&mut line).expect("the progress line");
    assert!(line.starts_with("Jobs: 1 (f=1): [") && line.contains(" IOPS][eta "), "{line}");
    (child, words)
}

fn end(mut child: Child, mut words: BufReader<std::process::ChildStderr>) -> Output {
    use std::io::Read;
    let mut stderr = Vec::new();
    words.read_to_end(&mut stderr).expect("its words");
    let mut stdout = Vec::new();
    child.stdout.take().expect("piped").read_to_end(&mut stdout).expect("its result");
    Output { status: child.wait().expect("its end"), stdout, stderr }
}

#[test]
fn a_file_shortened_under_a_read_is_never_success() {
    for engine in ["raw", "bridge", "threads", "mmap"] {
        let place = Place::new();
        let job =
            ["--name=r", "--filename=data", "--rw=randread", "--bs=4k", "--size=1m", "--iodepth=4", "--engine", engine];
        let (child, words) = at_work(&place, &job);
        fs::OpenOptions::new()
            .write(true)
            .open(place.path("data"))
            .expect("the file")
            .set_len(0)
            .expect("a shorter file");
        let output = end(child, words);
        if engine == "mmap" {
            assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{}", text(&output.stderr));
            contains(&text(&output.stderr), &["SIGBUS"]);
            continue;
        }
        let (document, words) = failed(&output);
        contains(
            &words,
            &["job r: could not read data at offset ", "4096 bytes: the file ends there: it was shortened"],
        );
        let [(_, _, [operations, ..], error)] = &work(&document)[..] else { panic!("{document}") };
        assert!(*operations > 0 && *error == 5, "{engine}: {operations} operations, error {error}");
    }
}

#[test]
fn an_interrupted_run_prints_what_it_measured() {
    for engine in ["raw", "bridge", "mmap"] {
        let place = Place::new();
        let (child, words) = at_work(&place, &["--name=r", "--rw=randrw", "--bs=4k", "--size=1m", "--engine", engine]);
        kill_process(Pid::from_raw(child.id() as i32).expect("its id"), Signal::INT).expect("a signal");
        let output = end(child, words);
        assert_eq!(output.status.code(), Some(130), "{engine}: {}", text(&output.stderr));
        let document: Value = serde_json::from_slice(&output.stdout).expect("the partial result");
        let [(_, _, [reads, _, writes, _], 0)] = work(&document)[..] else { panic!("{document}") };
        assert!(reads > 0 && writes > 0, "{engine}: {reads} reads, {writes} writes");
    }
}

#[test]
fn a_rate_and_a_ramp_are_kept() {
    let place = Place::new();
    let started = Instant::now();
    place.json(&["--name=slow", "--rw=read", "--bs=64k", "--size=512k", "--rate=1m", "--iodepth=4"]);
    // Eight blocks, a sixteenth of a second apart.
    assert!(started.elapsed() >= Duration::from_millis(430), "{:?}", started.elapsed());
    let started = Instant::now();
    let ramp = [
        "--name=ramp",
        "--rw=read",
        "--bs=64k",
        "--size=512k",
        "--rate=1m",
        "--time_based",
        "--runtime=1",
        "--ramp_time=1",
    ];
    let document = place.json(&ramp);
    assert!(started.elapsed() >= Duration::from_secs(2), "{:?}", started.elapsed());
    let (read, job) = (&document["jobs"][0]["read"], &document["jobs"][0]["job_runtime"]);
    // What was read in the ramp is not counted: at most what the rate allows in the second after it, and the burst at its start.
    let bytes = read["io_bytes"].as_u64().expect("bytes");
    let milliseconds = job.as_u64().expect("a time");
    assert!(bytes <= milliseconds * 1100 + 2 * 65_536, "{bytes} bytes in {milliseconds} ms");
    assert!(milliseconds < 1000 + started.elapsed().as_millis() as u64 - 1900, "{milliseconds} ms without the ramp");
}

#[test]
fn files_stay_unless_unlink_is_given() {
    let place = Place::new();
    let job = ["--name=j", "--rw=write", "--bs=4k", "--size=16k", "--numjobs=2"];
    place.json(&[&job[..], &["--unlink"]].concat());
    assert_eq!(fs::read_dir(place.0.path()).expect("the folder").count(), 0);
    place.json(&job);
    place.json(&[&job[..], &["--unlink"]].concat());
    assert!(place.path("j.0.0").is_file() && place.path("j.1.0").is_file(), "files of an earlier run were removed");
}

#[test]
fn a_node_is_read_and_written_over_http() {
    let node = Path::new(BENCH).with_file_name("reelring");
    if !node.is_file() {
        eprintln!("SKIPPED: {} is missing: cargo build -p reelring", node.display());
        return;
    }
    let place = Place::new();
    let put =
        ["--name=put", "--rw=write", "--bs=256k", "--size=256k", "--numjobs=2", "--verify=crc32c", "--engine=http"];
    let stored = work(&place.json(&put));
    assert!(stored.iter().all(|job| job.2 == [1, 262_144, 1, 262_144]) && stored.len() == 2, "{stored:?}");
    let read =
        work(&place.json(&["--name=get", "--rw=randread", "--bs=16k", "--size=256k", "--iodepth=4", "--engine=http"]));
    assert_eq!(read[0].2, [16, 262_144, 0, 0]);
    assert_eq!(fs::read_dir(place.0.path()).expect("the folder").count(), 0, "the node's data stayed");
    let refused = |more: &[&str]| {
        let output =
            place.bench(&[&["--name=j", "--size=256k", "--engine=http"], more].concat()).output().expect("a run");
        assert_eq!(output.status.code(), Some(2));
        text(&output.stderr)
    };
    contains(&refused(&["--rw=randwrite", "--bs=4k"]), &["HTTP stores whole objects, it cannot write inside one"]);
    contains(&refused(&["--rw=write", "--bs=256k", "--fsync=1"]), &["HTTP has no sync"]);
}
