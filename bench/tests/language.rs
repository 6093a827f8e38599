//! fio's job language, by the whole program: every job file in bench/jobs does what it does under fio.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

use serde_json::Value;

fn bench() -> Command {
    Command::new(env!("CARGO_BIN_EXE_reelring-bench"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What fio runs here: its ring where the kernel has one, else its other asynchronous engine.
fn fio_engine() -> Option<&'static str> {
    let folder = tempfile::tempdir().unwrap();
    let works = |engine: &str| {
        let mut fio = Command::new("fio");
        fio.args(["--output=result", "--name=probe", "--size=4k"]).arg(format!("--ioengine={engine}"));
        fio.current_dir(folder.path()).output().is_ok_and(|output| output.status.success())
    };
    let engine = ["io_uring", "libaio"].into_iter().find(|engine| works(engine));
    if engine.is_none() {
        eprintln!("skipped: fio is not installed (apt install fio), or can use neither io_uring nor libaio here");
    }
    engine
}

/// The job file with a sixteenth of its sizes, so that the test is quick.
fn smaller(text: &str) -> String {
    let line = |line: &str| match line.strip_suffix('m').and_then(|line| line.split_once("size=")) {
        Some((io, megabytes)) => format!("{io}size={}k\n", megabytes.parse::<u64>().unwrap() * 64),
        None => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// Of every result: the job, operations and bytes of reads and of writes, and syncs.
fn facts(output: &Output, folder: &Path) -> Vec<(String, [u64; 5])> {
    let result = std::fs::read_to_string(folder.join("result.json")).unwrap_or_default();
    assert!(output.status.success(), "{}{}{result}", text(&output.stdout), text(&output.stderr));
    let json: Value = serde_json::from_str(&result[result.find('{').expect(&result)..]).unwrap();
    let count = |value: &Value| value.as_u64().unwrap();
    let job = |job: &Value| {
        let (read, write) = (&job["read"], &job["write"]);
        let transferred = [&read["total_ios"], &read["io_bytes"], &write["total_ios"], &write["io_bytes"]].map(count);
        let [a, b, c, d] = transferred;
        (job["jobname"].as_str().unwrap().to_owned(), [a, b, c, d, count(&job["sync"]["total_ios"])])
    };
    json["jobs"].as_array().unwrap().iter().map(job).collect()
}

/// What was issued, by file: action, offset and length, in order.
fn trace(folder: &Path) -> BTreeMap<String, Vec<String>> {
    let mut actions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in std::fs::read_to_string(folder.join("trace")).unwrap().lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_time, file, action, offset, len] = fields[..] else { continue };
        // The place of a sync means nothing.
        let action = if action.ends_with("sync") { action.to_owned() } else { format!("{action} {offset} {len}") };
        actions.entry(file.to_owned()).or_default().push(action);
    }
    actions
}

/// Whether something else than the job decides the order on a file: two jobs that share it, or what fio looks at first
/// when it verifies.
fn is_orderly(job: &str, file: &str) -> bool {
    !job.contains("verify=") && job.matches(&format!("filename={file}\n")).count() < 2
}

fn assert_same_work(file: &Path, fio_engine: &str) {
    let job = format!("[global]\nwrite_iolog=trace\n{}", smaller(&std::fs::read_to_string(file).unwrap()));
    let run = |mut command: Command, job: &str| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("job.fio"), job).unwrap();
        command.args(["--output-format=json", "--output=result.json", "job.fio"]).current_dir(folder.path());
        let facts = facts(&command.output().unwrap(), folder.path());
        (facts, trace(folder.path()))
    };
    let mut ours = bench();
    ours.arg("run");
    if fio_engine != "io_uring" {
        ours.args(["--engine", "threads"]);
    }
    let (mut ours, mut our_trace) = run(ours, &job);
    let (theirs, mut their_trace) = run(Command::new("fio"), &job.replace("io_uring", fio_engine));
    if job.contains("fdatasync=") {
        // fio 3.33 does not report them.
        assert!(ours[0].1[4] > 0);
        ours[0].1[4] = theirs[0].1[4];
    }
    assert_eq!(ours, theirs, "{}: [read operations, bytes, write operations, bytes, syncs]", file.display());
    assert!(ours.iter().all(|(_, facts)| facts[0] + facts[2] > 0));
    assert!(our_trace.keys().eq(their_trace.keys()), "{our_trace:?}\n{their_trace:?}");
    for ((name, ours), theirs) in our_trace.iter_mut().zip(their_trace.values_mut()) {
        if !is_orderly(&job, name) {
            ours.sort();
            theirs.sort();
        }
        let differs = ours.iter().zip(&*theirs).position(|(ours, theirs)| ours != theirs);
        let at = differs.unwrap_or(ours.len().min(theirs.len()));
        assert!(ours == theirs, "operation {at} on {name} is {:?}, under fio {:?}", ours.get(at), theirs.get(at));
    }
}

#[test]
fn every_job_file_does_as_much_as_under_fio() {
    let Some(engine) = fio_engine() else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 12);
    let files = Mutex::new(files.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some(file) = files.lock().unwrap().next() else { break };
                    assert_same_work(&file, engine);
                }
            });
        }
    });
}

#[test]
fn flags_do_what_a_job_file_does() {
    let run = |arguments: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("job.fio"),
            "[global]\nbs=8k\nsize=128k\n[a]\nrw=randwrite\n[b]\nrw=read\nbs=4k\n",
        )
        .unwrap();
        let mut command = bench();
        command.args(["run", "--engine=threads", "--output-format=json", "--output=result.json"]).args(arguments);
        facts(&command.current_dir(folder.path()).output().unwrap(), folder.path())
    };
    let by_file = run(&["job.fio"]);
    let by_flags =
        run(&["--bs=8k", "--size=128k", "--name=a", "--rw=randwrite", "--name", "b", "--rw", "read", "--bs=4k"]);
    assert_eq!(by_file, by_flags);
    assert_eq!(by_file[0].1[2..4], [16, 128 << 10]);
    assert_eq!(by_file[1].1[0..2], [32, 128 << 10]);
}

#[test]
fn what_is_not_understood_is_refused_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |job: &str, message: &str| {
        std::fs::write(folder.path().join("job.fio"), job).unwrap();
        let output = bench().args(["run", "job.fio"]).current_dir(folder.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{job}");
        assert!(text(&output.stderr).contains(message), "{}", text(&output.stderr));
        assert!(output.stdout.is_empty());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "{job} made a file");
    };
    refused(
        "[a]\nsize=64k\nrw=read\n[b]\nblocksiz=4k\n",
        "job.fio:5: unknown option \"blocksiz\", did you mean \"blocksize\"?",
    );
    refused(
        "[a]\nsize=64k\nbssplit=4k/50:8k/50\n",
        "job.fio:3: fio's option \"bssplit\" is not supported: use bsrange",
    );
    refused("[a]\nsize=64k\nioengine=libaio\n", "pass --engine");
    let output = bench().args(["run", "absent.fio"]).current_dir(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("could not read job file absent.fio"));
}

#[test]
fn help_lists_every_option() {
    let output = bench().args(["run", "--help"]).output().unwrap();
    let help = text(&output.stdout);
    for option in
        ["--rw ", "--bs ", "--randseed ", "--random_distribution ", "--time_based", "--fdatasync ", "--verify "]
    {
        assert!(help.contains(option), "{help}");
    }
}
