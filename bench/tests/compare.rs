//! `reelring-bench compare fio|self` as a user runs them, with tiny jobs and few rounds.
//!
//! Tests against fio say that they are skipped where it is not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_reelring-bench");

const READS: &str = "[reads]\nrw=randread\nbs=4k\nsize=1m\niodepth=4\n";

/// A folder of this test's own: the job file lies in it, and the measured files go under `volume`.
struct Place(tempfile::TempDir);

impl Place {
    fn new(job: &str) -> Place {
        let place = tempfile::Builder::new().prefix("compare-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::write(place.path().join("tiny.fio"), job).unwrap();
        fs::create_dir(place.path().join("volume")).unwrap();
        Place(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, which: &str, more: &[&str]) -> Command {
        let mut command = Command::new(BENCH);
        command.args(["compare", which]).arg(self.path("tiny.fio")).arg("--dir").arg(self.path("volume")).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a comparison that must succeed; gives what it printed and its JSON.
    fn compare(&self, which: &str, more: &[&str]) -> (String, Value) {
        let json = self.path("report.json");
        let output = self.command(which, more).arg("--json").arg(&json).output().unwrap();
        assert!(output.status.success(), "{}\n{}", output.status, stderr(&output));
        self.nothing_is_left();
        let report = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
        (String::from_utf8(output.stdout).unwrap(), report)
    }

    /// Neither files nor processes that work on them.
    fn nothing_is_left(&self) {
        let files: Vec<_> =
            fs::read_dir(self.path("volume")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(files.is_empty(), "left behind: {files:?}");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.processes().is_empty() {
            // Who was killed takes a moment until it is gone.
            assert!(Instant::now() < deadline, "still running: {:?}", self.processes());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Processes other than the comparison whose command line names this place.
    fn processes(&self) -> Vec<String> {
        let place = self.0.path().to_string_lossy().into_owned();
        let lines = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            Some(String::from_utf8_lossy(&line).replace('\0', " "))
        });
        lines.filter(|line| line.contains(&place) && !line.contains(" compare ")).collect()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn fio_is_missing() -> bool {
    let missing = Command::new("fio").arg("--version").stdout(Stdio::null()).status().is_err();
    if missing {
        eprintln!("SKIPPED: fio is not installed: apt install fio");
    }
    missing
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn beside_fio_both_do_the_same_work_and_the_report_is_whole() {
    if fio_is_missing() {
        return;
    }
    let place = Place::new(READS);
    let html = place.path("report.html");
    let (text, report) = place.compare("fio", &["--rounds", "2", "--html", html.to_str().unwrap()]);
    let section = &report["sections"][0];
    assert_eq!(section["id"], "fio");
    let names: Vec<&str> =
        section["cases"].as_array().unwrap().iter().map(|case| case["name"].as_str().unwrap()).collect();
    let engines = ["bridge", "raw"]
        .map(|ours| ["psync", "io_uring", "io_uring-fixed"].map(|theirs| format!("tiny/{ours}/{theirs}")));
    assert_eq!(names, engines.concat());
    for case in section["cases"].as_array().unwrap() {
        for side in ["ours", "theirs"] {
            let runs = case[side]["runs"].as_array().unwrap();
            assert_eq!(runs.len(), 2);
            for run in runs {
                assert_eq!((number(&run["bytes"]), number(&run["operations"])), (1048576.0, 256.0), "{case}");
                assert!(number(&run["seconds"]) > 0.0 && number(&run["cpu_seconds"]) >= 0.0, "{case}");
                assert!(number(&run["peak_rss_bytes"]) > 1e6, "{case}");
                let quantiles = run["clat_ns"].as_array().unwrap();
                assert!(quantiles.windows(2).all(|pair| number(&pair[0][1]) <= number(&pair[1][1])), "{case}");
                let cdf = run["cdf"].as_array().unwrap();
                assert!((number(&cdf[cdf.len() - 1][1]) - 1.0).abs() < 1e-9, "{case}");
            }
        }
        assert!(case["same_work"].as_str().unwrap().contains("256 reads of 1048576 bytes"), "{case}");
        // Two rounds are too few for a verdict, and the report says so.
        // So small a job uses less CPU time than fio takes to start, and that the report says too.
        for ratio in [&case["speed"], &case["cpu"]].into_iter().filter(|ratio| !ratio.is_null()) {
            assert_eq!(ratio["verdict"], "too-few-rounds", "{case}");
            assert!(
                number(&ratio["low"]) <= number(&ratio["median"]) && number(&ratio["median"]) <= number(&ratio["high"])
            );
        }
    }
    let notes = section["notes"].to_string();
    assert!(notes.contains("numjobs stands in for iodepth"), "{notes}");
    for words in [
        "tiny/raw/io_uring",
        "too few rounds",
        "switches/op",
        "peak RSS MiB",
        "p99.9",
        "repeat with: reelring-bench compare fio",
    ] {
        assert!(text.contains(words), "{words} is not in\n{text}");
    }
    assert!(report["machine"]["versions"]["fio"].as_str().is_some_and(|version| version.starts_with('3')), "{report}");
    assert!(fs::read_to_string(html).unwrap().contains("</html>"));
}

#[test]
fn an_engine_beside_itself_counts_its_verdicts() {
    let place = Place::new(READS);
    let (text, report) = place.compare("self", &["--rounds", "2", "--repeat", "3", "--engine", "raw"]);
    assert_eq!(report["sections"][0]["cases"].as_array().unwrap().len(), 3);
    assert!(text.contains("speed: too few rounds in 3 of 3"), "{text}");
}

/// So large a handicap that no neighbour hides it.
#[test]
fn a_planted_slowdown_is_a_loss() {
    let place = Place::new("[reads]\nrw=randread\nbs=4k\nsize=4m\niodepth=4\n");
    let more = ["--rounds", "8", "--runtime", "0.2", "--handicap", "80%", "--engine", "raw"];
    let (text, report) = place.compare("self", &more);
    let speed = &report["sections"][0]["cases"][0]["speed"];
    assert_eq!(speed["verdict"], "loss", "{text}");
    assert!(number(&speed["high"]) < 0.99, "{speed}");
    assert!(text.contains("1 LOSS: tiny/raw"), "{text}");
}

#[test]
fn without_fio_it_says_what_to_install() {
    let place = Place::new(READS);
    let output = place.command("fio", &[]).env("PATH", "").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "reelring-bench: fio is not installed: apt install fio\n");
    place.nothing_is_left();
}

#[test]
fn a_job_that_is_wrong_is_named_before_anything_runs() {
    for (job, words) in [
        ("[a]\nrw=sideways\nsize=1m\n", "rw=sideways"),
        ("[a]\nrw=read\nsize=1m\nfilename=/dev/null\n", "a comparison makes its own files under --dir"),
        ("[a]\nrw=read\n", "[a] has no size"),
    ] {
        let place = Place::new(job);
        let output = place.command("self", &[]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{job}");
        assert!(stderr(&output).contains(words), "{job}: {}", stderr(&output));
        place.nothing_is_left();
    }
}

#[test]
fn a_side_that_fails_is_named_with_its_command_line_and_its_words() {
    // A folder is no file to write.
    let place = Place::new("[a]\nrw=write\nbs=4k\nsize=4k\nfilename=.\n");
    let output = place.command("self", &["--engine", "raw"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    for words in
        ["comparing tiny/raw: reelring raw A", "--engine=raw", "reelring-raw", "ended with exit status: ", "it wrote:"]
    {
        assert!(stderr(&output).contains(words), "{words} is not in {}", stderr(&output));
    }
    place.nothing_is_left();
}

#[test]
fn ctrl_c_ends_the_round_and_leaves_nothing() {
    for (signal, which) in [(Signal::INT, "self"), (Signal::TERM, "fio")] {
        if which == "fio" && fio_is_missing() {
            continue;
        }
        let place = Place::new("[a]\nrw=randread\nbs=4k\nsize=1m\nruntime=100\ntime_based\n");
        let child = place.command(which, &[]).spawn().unwrap();
        // Until a side is at work: it has a job file on its command line.
        let started = Instant::now();
        while !place.processes().iter().any(|line| line.contains("reelring-bridge.fio")) {
            assert!(started.elapsed() < Duration::from_secs(30), "no side was started");
            std::thread::sleep(Duration::from_millis(10));
        }
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
        assert!(started.elapsed() < Duration::from_secs(60), "it waited for the round's end");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("stopped by Ctrl-C: only what was complete is reported"), "{text}");
        place.nothing_is_left();
    }
}

#[test]
fn killed_it_takes_what_it_started_along() {
    let place = Place::new("[a]\nrw=randread\nbs=4k\nsize=1m\nruntime=100\ntime_based\n");
    let mut child = place.command("self", &[]).spawn().unwrap();
    let started = Instant::now();
    while place.processes().is_empty() {
        assert!(started.elapsed() < Duration::from_secs(30), "no side was started");
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    while !place.processes().is_empty() {
        assert!(started.elapsed() < Duration::from_secs(60), "still running: {:?}", place.processes());
        std::thread::sleep(Duration::from_millis(10));
    }
    // Nobody was left to remove the files; they lie under the folder that was named.
    assert!(Path::new(&place.path("volume")).is_dir());
}
