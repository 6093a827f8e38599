//! `report` as its users run it: a page with every part or the reason why not, whatever is missing or interrupted.
//!
//! Needs no peer: a part whose program is not installed, or that fails, must be named with its reason, which is what is
//! tested. The figures of these runs mean nothing.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_reelring-bench");

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        for folder in ["jobs", "out", "data"] {
            fs::create_dir(dir.path().join(folder)).expect("a folder");
        }
        let bench = Bench { dir };
        for (name, more) in [("qd1", ""), ("randread-4k-hot", "iodepth=16\n")] {
            let text = format!("[{name}]\nrw=randread\nbs=4k\nsize=1m\ninvalidate=0\nrandseed=1\n{more}");
            fs::write(bench.path("jobs").join(format!("{name}.fio")), text).expect("a job file");
        }
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&self, more: &[&str]) -> Child {
        let mut command = Command::new(PROGRAM);
        command.args(["report", "--quick"]).args(more);
        for (flag, folder) in [("--out", "out"), ("--dir", "data"), ("--jobs", "jobs")] {
            command.arg(flag).arg(self.path(folder));
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("reelring-bench starts")
    }

    fn run(&self, more: &[&str]) -> Output {
        self.start(more).wait_with_output().expect("reelring-bench ends")
    }

    fn page(&self) -> String {
        fs::read_to_string(self.path("out/benchmarks.md")).expect("a page")
    }

    fn pictures(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("out/benchmarks")).expect("the folder of the pictures");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        paths.filter(|path| path.extension().is_some_and(|ending| ending == "svg")).collect()
    }

    fn left_behind(&self) -> Vec<PathBuf> {
        fs::read_dir(self.path("data")).expect("the folder").map(|entry| entry.expect("an entry").path()).collect()
    }
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The page names a part either by what was measured or by why it was not.
fn has_part(page: &str, heading: &str, title: &str) -> bool {
    let reason = page.lines().any(|line| line.strip_prefix(&format!("- {title}")).is_some_and(|rest| rest.len() > 8));
    reason || page.contains(&format!("## {heading}"))
}

fn check_pictures(bench: &Bench, page: &str) {
    for path in bench.pictures() {
        let text = fs::read_to_string(&path).expect("a picture");
        let document = roxmltree::Document::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(document.root_element().has_tag_name(("http://www.w3.org/2000/svg", "svg")));
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        assert!(page.contains(&format!("](benchmarks/{name})")), "the page does not show {name}");
    }
    for shown in page.split("](benchmarks/").skip(1).filter_map(|rest| rest.split(')').next()) {
        assert!(bench.path("out/benchmarks").join(shown).exists(), "the page shows {shown}, which is not there");
    }
}

#[test]
fn a_page_has_every_part_or_its_reason() {
    let bench = Bench::new();
    let stale = bench.path("out/benchmarks/latency-old.svg");
    fs::create_dir_all(bench.path("out/benchmarks")).expect("a folder");
    fs::write(&stale, "<svg/>").expect("a picture of an earlier run");
    fs::write(bench.path("out/benchmarks-notes.md"), "by hand").expect("notes");

    let output = bench.run(&["--only", "self,fio,store,sweep"]);
    assert!(output.status.success(), "{}", told(&output));
    let page = bench.page();
    for (heading, title) in [
        ("What this machine can tell apart", "an engine against itself: "),
        ("Storage engine, beside fio", "fio: "),
        ("Along block size and depth", "sweep: "),
    ] {
        assert!(has_part(&page, heading, title), "nothing about {title:?} in\n{page}");
    }
    for part in [
        "Serving files, beside nginx",
        "Storing a file durably, beside fio and nginx",
        "Fetching a file, beside aria2c",
        "Encoding to HLS, beside ffmpeg",
    ] {
        assert!(page.contains(&format!("- {part}: left out by --only")), "nothing about {part:?} in\n{page}");
    }
    // Our own programs are there: an engine beside itself can always be measured.
    assert!(page.contains("an engine measured against itself seemed to differ"), "{page}\n{}", told(&output));
    assert!(page.contains("put of 16 MiB, durable") && page.contains("reelring-bench store --size 16m"), "{page}");
    assert!(page.contains("| machine |") && page.contains("| load before, after |"), "{page}");
    assert!(!page.contains("not yet measured"), "{page}");
    let here = bench.dir.path().display().to_string();
    assert!(!page.replace(&format!("{here}/jobs"), "").contains(&here), "names of this run are in the page:\n{page}");

    check_pictures(&bench, &page);
    assert!(bench.pictures().iter().any(|path| path.ends_with("sweep-blocks.svg")), "{:?}", bench.pictures());
    assert!(!stale.exists(), "a picture of an earlier run was left");
    assert!(page.contains("(benchmarks-notes.md)"), "the notes are not linked");
    assert_eq!(fs::read_to_string(bench.path("out/benchmarks-notes.md")).expect("the notes"), "by hand");
    assert!(bench.left_behind().is_empty(), "{:?}", bench.left_behind());

    let html = fs::read_to_string(bench.path("out/benchmarks/report.html")).expect("the HTML");
    assert!(html.len() < 1_000_000, "{} bytes", html.len());
    let html = html.replace("http://www.w3.org/2000/svg", "");
    for outside in ["http://", "https://", "<link", "<img", "src=", "@import", "url("] {
        assert!(!html.contains(outside), "the page asks for {outside}");
    }
    let data = fs::read(bench.path("out/benchmarks/results.json")).expect("the data");
    let data: serde_json::Value = serde_json::from_slice(&data).expect("JSON");
    assert!(data["machine"]["cpus"].as_u64() > Some(0) && data["tables"][0]["id"] == "store", "{data}");
}

#[test]
fn an_interrupted_report_keeps_what_was_measured() {
    let bench = Bench::new();
    let mut child = bench.start(&["--only", "store,sweep"]);
    // The store is done when the page says so; whatever runs then is interrupted.
    let started = Instant::now();
    while !fs::read_to_string(bench.path("out/benchmarks.md")).is_ok_and(|page| page.contains("put of 16 MiB")) {
        assert!(started.elapsed() < Duration::from_secs(60), "no page after a minute");
        assert!(child.try_wait().expect("its status").is_none(), "it ended before it was interrupted");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(bench.page().contains("not yet measured"), "the page of this moment names what is still to come");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("a signal");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130), "{}", told(&output));

    let page = bench.page();
    assert!(page.contains("put of 16 MiB, durable"), "what was measured is lost:\n{page}");
    assert!(page.contains("the run was stopped"), "the page does not say that it was stopped:\n{page}");
    assert!(!page.contains("not yet measured"), "{page}");
    check_pictures(&bench, &page);
    assert!(bench.left_behind().is_empty(), "{:?}", bench.left_behind());
}

#[test]
fn a_spent_budget_and_a_missing_folder_are_said() {
    let bench = Bench::new();
    let output = bench.run(&["--only", "store,nginx", "--budget", "1s"]);
    let page = bench.page();
    assert!(page.contains("give a larger --budget"), "{page}\n{}", told(&output));
    assert_eq!(output.status.code(), Some(1), "nothing was measured, so nothing was achieved");

    let missing = bench.path("none");
    let output = Command::new(PROGRAM).args(["report", "--dir"]).arg(&missing).output().expect("it ends");
    assert!(!output.status.success() && told(&output).contains(&missing.display().to_string()), "{}", told(&output));
    let output = Command::new(PROGRAM).args(["report", "--budget", "soon"]).output().expect("it ends");
    assert!(output.status.code() == Some(2) && told(&output).contains("write 90s, 20m or 1h"), "{}", told(&output));
}
