//! `reelring-bench mixed` as a user runs it, with a tiny cold set: counts, what was cold, and that nothing stays.
//!
//! The node must lie beside reelring-bench: `cargo build -p reelring`, or the whole workspace.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_reelring-bench");

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let parent = env!("CARGO_TARGET_TMPDIR");
        Place(tempfile::Builder::new().prefix("mixed-").tempdir_in(parent).expect("a scratch folder"))
    }

    /// Two cold objects of 4 MiB, half a second a pass.
    fn command(&self, more: &[&str]) -> Command {
        let node = Path::new(BENCH).with_file_name("reelring");
        assert!(node.is_file(), "{} is missing: cargo build -p reelring", node.display());
        let mut command = Command::new(BENCH);
        command.args(["mixed", "--cold-size=8m", "--cold-object=4m", "--cold-clients=2", "--rate=40", "--dir"]);
        command.arg(self.0.path()).args(more).stdin(Stdio::null());
        command
    }

    fn nothing_is_left(&self) {
        let files: Vec<_> = fs::read_dir(self.0.path()).expect("the folder").flatten().map(|e| e.file_name()).collect();
        assert!(files.is_empty(), "left behind: {files:?}");
        let place = self.0.path().to_string_lossy().into_owned();
        let since = Instant::now();
        loop {
            let nodes = fs::read_dir("/proc").expect("/proc").flatten().filter_map(|entry| {
                let line = fs::read(entry.path().join("cmdline")).ok()?;
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                (line.contains(&place) && line.contains(" serve ")).then_some(line)
            });
            let nodes: Vec<_> = nodes.collect();
            if nodes.is_empty() {
                return;
            }
            assert!(since.elapsed() < Duration::from_secs(10), "still running: {nodes:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn both_kinds_of_pass_answer_every_request_and_the_cold_set_was_cold() {
    let place = Place::new();
    let output = place.command(&["--rounds=1", "--runtime=0.5", "--json"]).output().expect("a run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    // One block, A B B A: two pairs of passes of half a second at 40 requests a second.
    assert_eq!((found["pairs"].as_u64(), found["requests_each_pass"].as_u64()), (Some(2), Some(20)), "{found}");
    for side in ["quiet", "loaded"] {
        let hot = &found[side];
        assert_eq!(hot["requests"], 40, "{found}");
        assert_eq!(hot["p99_of_passes_ns"].as_array().map(Vec::len), Some(2), "{found}");
        let ends = ["p50_ns", "p99_ns", "p999_ns", "max_ns"].map(|key| number(&hot[key]));
        assert!(ends[0] > 0.0 && ends.is_sorted(), "{found}");
    }
    assert!(number(&found["cold_mib_per_second"]["min"]) > 0.0, "{found}");
    // Two clients share two objects, so a page may be on its way to the other one; were nothing dropped it would be all.
    assert!(number(&found["resident_at_start"]["median"]) < 0.6, "{found}");
    // Two pairs are too few for any interval of 99 %, whatever they found.
    assert_eq!(found["verdict"], "too-few-rounds", "{found}");
    assert!(number(&found["p99_ratio"]["low"]) <= number(&found["p99_ratio"]["high"]), "{found}");
    place.nothing_is_left();
}

#[test]
fn with_warm_the_streams_come_from_memory() {
    let place = Place::new();
    let output = place.command(&["--rounds=1", "--runtime=0.2", "--json", "--warm"]).output().expect("a run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(number(&found["resident_at_start"]["min"]) > 0.9, "{found}");
    let notes = found["notes"].to_string();
    assert!(notes.contains("says nothing about the disk"), "{notes}");
    place.nothing_is_left();
}

#[test]
fn an_interrupt_ends_the_node_and_removes_its_data() {
    let place = Place::new();
    let mut command = place.command(&["--rounds=50", "--runtime=60"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a run");
    // Once the node has its data directory, at the earliest; any later moment is as good.
    let since = Instant::now();
    while fs::read_dir(place.0.path()).expect("the folder").count() == 0 {
        assert!(since.elapsed() < Duration::from_secs(30), "no scratch folder");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(700));
    kill_process(Pid::from_child(&child), Signal::INT).expect("the child runs");
    let status = child.wait().expect("the child");
    assert_eq!(status.code(), Some(130));
    place.nothing_is_left();
}

#[test]
fn a_cold_set_that_cannot_be_is_refused() {
    let place = Place::new();
    for (wrong, word) in [("--cold-object=1m", "under 2m"), ("--cold-object=16m", "0 objects"), ("--rate=0", "--rate")]
    {
        let mut command = Command::new(BENCH);
        let output = command.args(["mixed", "--cold-size=8m", wrong, "--dir"]).arg(place.0.path()).output();
        let output = output.expect("a run");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(word), "{wrong}: {said}");
    }
    place.nothing_is_left();
}
