//! `reelring-bench compare nginx|upload|aria2|ffmpeg` as a user runs them, at tiny sizes, against the real programs.
//!
//! The node and its worker must lie beside reelring-bench: `cargo build -p reelring -p reelring-transcode`, or the whole
//! workspace. Where a rival is not installed the test says that it is skipped.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_reelring-bench");

/// A folder for everything a comparison writes; nobody else writes there.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let parent = env!("CARGO_TARGET_TMPDIR");
        Place(tempfile::Builder::new().prefix("peers-").tempdir_in(parent).expect("a scratch folder"))
    }

    fn command(&self, which: &str, more: &[&str]) -> Command {
        let node = Path::new(BENCH).with_file_name("reelring");
        assert!(node.is_file(), "{} is missing: cargo build -p reelring -p reelring-transcode", node.display());
        let mut command = Command::new(BENCH);
        command.args(["compare", which, "--quick", "--rounds", "2", "--dir"]).arg(self.0.path()).args(more);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a comparison that must succeed, and gives its one section.
    fn compare(&self, which: &str, more: &[&str]) -> Value {
        let report = self.0.path().join("report.json");
        let output = self.command(which, &[more, &["--json"]].concat()).arg(&report).output().expect("reelring-bench");
        assert!(output.status.success(), "{}\n{}", output.status, both(&output));
        let text = fs::read_to_string(&report).expect("the report");
        fs::remove_file(&report).expect("the report");
        self.nothing_is_left();
        let mut report: Value = serde_json::from_str(&text).expect("JSON");
        assert!(report["machine"]["cpus"].as_u64() > Some(0), "{text}");
        assert_eq!(report["sections"].as_array().map(Vec::len), Some(1), "{text}");
        let section = report["sections"][0].take();
        assert_eq!(section["id"], which);
        section
    }

    /// Neither files nor processes that work on them.
    fn nothing_is_left(&self) {
        let files: Vec<_> = fs::read_dir(self.0.path()).expect("the folder").flatten().map(|e| e.file_name()).collect();
        assert!(files.is_empty(), "left behind: {files:?}");
        // A descendant that was killed takes a moment until it is gone.
        let start = Instant::now();
        loop {
            let alive = self.processes();
            if alive.is_empty() {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(5), "still running: {alive:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The command lines that name the folder.
    fn processes(&self) -> Vec<String> {
        let folder = self.0.path().to_string_lossy().into_owned();
        let lines = fs::read_dir("/proc").expect("/proc").flatten().filter_map(|entry| {
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            Some(String::from_utf8_lossy(&line).replace('\0', " "))
        });
        lines.filter(|line| line.contains(&folder)).collect()
    }
}

fn both(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Whether a test cannot run here, which it then says.
fn missing(test: &str, programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let unpacked = Path::new(BENCH).ancestors().nth(2).expect("target").join("tools/nginx/usr/sbin");
    let folders: Vec<PathBuf> = std::env::split_paths(&path).chain(["/usr/sbin".into(), unpacked]).collect();
    let absent = programs.iter().find(|program| !folders.iter().any(|folder| folder.join(program).is_file()));
    if let Some(program) = absent {
        eprintln!("SKIPPED {test}: {program} is not installed; run: make test");
    }
    absent.is_some()
}

/// Checks what every case must have, and gives it by name.
fn case<'a>(section: &'a Value, name: &str) -> &'a Value {
    let cases = section["cases"].as_array().expect("cases");
    let case = cases.iter().find(|case| case["name"] == name).unwrap_or_else(|| panic!("no {name} in {section:#}"));
    for side in ["ours", "theirs"] {
        let runs = case[side]["runs"].as_array().expect("runs");
        assert_eq!(runs.len(), 2, "{case:#}");
        for run in runs {
            assert!(run["seconds"].as_f64() > Some(0.0), "{side}: {run}");
            assert!(run["peak_rss_bytes"].as_u64() > Some(0), "{side}: {run}");
            // fio's are told without those of its start, which may be all there are of so little work.
            if !case[side]["name"].as_str().is_some_and(|name| name.starts_with("fio")) {
                assert!(run["cpu_seconds"].as_f64() > Some(0.0), "{side}: {run}");
                // So little work may be done in one go.
                assert!(run["context_switches"].is_u64(), "{side}: {run}");
            }
        }
        assert!(case[side]["version"].as_str().is_some_and(|version| !version.is_empty()), "{case:#}");
    }
    assert!(case["speed"]["median"].as_f64() > Some(0.0), "{case:#}");
    case
}

#[test]
fn nginx_and_the_node_serve_the_same_bytes() {
    if missing("nginx_and_the_node_serve_the_same_bytes", &["nginx", "wrk"]) {
        return;
    }
    let section = Place::new().compare("nginx", &[]);
    let names: BTreeSet<&str> =
        section["cases"].as_array().unwrap().iter().filter_map(|c| c["name"].as_str()).collect();
    assert_eq!(names, BTreeSet::from(["cold-1m-c8", "hot-64k-c64", "hot-beside-cold-sendfile"]));
    for name in ["cold-1m-c8", "hot-64k-c64"] {
        let case = case(&section, name);
        assert!(case["p99"].is_null(), "a closed loop's p99 says nothing that its speed does not: {case:#}");
        let same = case["same_work"].as_str().unwrap();
        assert!(same.starts_with("SHA-256 of the object and of 16 ranges equal"), "{same}");
        for side in ["ours", "theirs"] {
            for run in case[side]["runs"].as_array().unwrap() {
                let (bytes, requests) = (run["bytes"].as_u64().unwrap(), run["operations"].as_u64().unwrap());
                let answer = if name.contains("64k") { 64 << 10 } else { 1 << 20 };
                assert!(bytes / answer <= requests + 64 && bytes / answer + 64 >= requests, "{run}");
                assert!(run["clat_ns"].as_array().is_some_and(|quantiles| quantiles.len() > 2), "{run}");
                assert!(run["client_cpu_seconds"].as_f64() > Some(0.0), "{run}");
            }
        }
    }
    // Half a second at 100 requests a second, on both sides, while something cold was streamed.
    let mixed = case(&section, "hot-beside-cold-sendfile");
    assert!(mixed["same_work"].as_str().is_some_and(|same| same.starts_with("50 hot requests")), "{mixed:#}");
    for run in ["ours", "theirs"].iter().flat_map(|side| mixed[side]["runs"].as_array().unwrap()) {
        assert_eq!(run["operations"], 50, "{run}");
        assert!(run["bytes"].as_u64() > Some(0) && run["client_cpu_seconds"].as_f64() > Some(0.0), "{run}");
        let latencies: Vec<u64> =
            run["clat_ns"].as_array().unwrap().iter().filter_map(|pair| pair[1].as_u64()).collect();
        assert!(latencies.len() > 2 && latencies.is_sorted() && latencies[0] > 0, "{run}");
    }
    assert!(mixed["p99"]["median"].as_f64() > Some(0.0), "{mixed:#}");
    assert_eq!(mixed["p99"]["verdict"], "too-few-rounds", "{mixed:#}");
    let notes = section["notes"].to_string();
    for side in ["reelring", "nginx sendfile"] {
        assert!(
            notes.contains(&format!("hot-beside-cold-sendfile, {side}: ")),
            "nothing of the disk under {side}: {notes}"
        );
    }
    assert_eq!(notes.contains("DEBUG BUILD"), BENCH.contains("/debug/"), "{notes}");
}

#[test]
fn both_servers_have_the_same_congestion_control_or_the_report_says_that_they_have_not() {
    if missing("both_servers_have_the_same_congestion_control", &["nginx"]) {
        return;
    }
    let system = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").expect("the system's");
    let paces = system.starts_with("bbr");
    for (flag, kept) in [("--congestion=equal", false), ("--congestion=keep", true)] {
        let section = Place::new().compare("nginx", &["--client=drain", "--case=hot-64k", flag]);
        let notes = section["notes"].to_string();
        let (equal, unequal) = (notes.contains("in a network namespace of their own;"), notes.contains("UNEQUAL"));
        assert!(!(equal && unequal) && (equal || unequal) == paces, "{system} {notes}");
        assert!(!kept || !equal, "{notes}");
    }
    let after = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").expect("the system's");
    assert_eq!(after, system);
}

#[test]
fn a_client_that_copies_nothing_can_take_wrks_place() {
    if missing("a_client_that_copies_nothing_can_take_wrks_place", &["nginx"]) {
        return;
    }
    let section = Place::new().compare("nginx", &["--client=drain", "--case=hot-64k"]);
    let case = case(&section, "hot-64k-c64-drain");
    for run in ["ours", "theirs"].iter().flat_map(|side| case[side]["runs"].as_array().unwrap()) {
        let (bytes, requests) = (run["bytes"].as_u64().unwrap(), run["operations"].as_u64().unwrap());
        assert!(requests > 0 && bytes >> 16 >= requests && bytes >> 16 <= requests + 64, "{run}");
        assert!(run["client_cpu_seconds"].as_f64() > Some(0.0), "{run}");
    }
}

#[test]
fn an_upload_is_whole_on_the_node_under_fio_and_under_nginx() {
    if missing("an_upload_is_whole_on_the_node_under_fio_and_under_nginx", &["nginx", "fio"]) {
        return;
    }
    let section = Place::new().compare("upload", &[]);
    for (name, files) in [("fio-direct", 3), ("fio-buffered", 3), ("dav-synced", 6), ("dav-unsynced", 6)] {
        let case = case(&section, name);
        for run in ["ours", "theirs"].iter().flat_map(|side| case[side]["runs"].as_array().unwrap()) {
            assert_eq!((run["bytes"].as_u64(), run["operations"].as_u64()), (Some(16 << 20), Some(1)), "{run}");
        }
        let same = case["same_work"].as_str().unwrap();
        assert!(same.contains(&format!("SHA-256 of all {files} ")), "{same}");
        let client = case["ours"]["runs"][0]["client_cpu_seconds"].as_f64();
        assert!(client > Some(0.0), "{case:#}");
    }
    let notes = section["notes"].to_string();
    for part in ["fio was faster ", "syncs nothing"] {
        assert!(notes.contains(part), "{notes}");
    }
}

#[test]
fn aria2_and_the_node_fetch_the_same_file() {
    if missing("aria2_and_the_node_fetch_the_same_file", &["nginx", "aria2c"]) {
        return;
    }
    let section = Place::new().compare("aria2", &[]);
    for (name, bytes) in [("near-x1-synced", 16 << 20), ("far-x16", 2 << 20)] {
        let case = case(&section, name);
        assert_eq!(case["same_work"], "SHA-256 of all 6 fetched files equal to the origin's");
        assert_eq!(case["theirs"]["runs"][1]["bytes"], bytes);
    }
}

#[test]
fn ffmpeg_and_the_node_encode_the_same_frames() {
    if missing("ffmpeg_and_the_node_encode_the_same_frames", &["ffmpeg", "ffprobe"]) {
        return;
    }
    let section = Place::new().compare("ffmpeg", &[]);
    let case = case(&section, "ladder-360p-144p");
    let same = case["same_work"].as_str().unwrap();
    for part in ["144p: 90 frames each", "360p: 90 frames each", "SSIM"] {
        assert!(same.contains(part), "{same}");
    }
    assert_eq!(case["ours"]["runs"][0]["operations"], 90);
    assert!(case["cpu"]["median"].as_f64() > Some(0.0), "{case:#}");
}

#[test]
fn ctrl_c_leaves_no_process_and_no_file() {
    if missing("ctrl_c_leaves_no_process_and_no_file", &["nginx", "wrk"]) {
        return;
    }
    let place = Place::new();
    let mut child = place.command("nginx", &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("bench");
    let start = Instant::now();
    // In the middle: both servers run, and wrk loads one of them.
    while !place.processes().iter().any(|line| line.starts_with("wrk ")) {
        assert!(start.elapsed() < Duration::from_secs(60), "wrk never ran: {:?}", place.processes());
        assert!(matches!(child.try_wait(), Ok(None)), "it ended before wrk ran");
        std::thread::sleep(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&child), Signal::INT).expect("the signal");
    let status = child.wait().expect("its end");
    assert_eq!(status.code(), Some(130), "{status}");
    place.nothing_is_left();
}

#[test]
fn what_is_missing_is_named() {
    let place = Place::new();
    for (which, program) in [("nginx", "wrk"), ("upload", "fio"), ("aria2", "aria2c"), ("ffmpeg", "ffmpeg")] {
        let output = place.command(which, &[]).env("PATH", place.0.path()).output().expect("reelring-bench");
        assert_eq!(output.status.code(), Some(1), "{}", both(&output));
        let message = both(&output);
        assert!(message.contains(&format!("{program} is not installed: apt install")), "{message}");
    }
    if !missing("what_is_missing_is_named", &["ffmpeg"]) {
        let output = place.command("ffmpeg", &["--reelring", "/nowhere/reelring"]).output().expect("reelring-bench");
        assert_eq!(output.status.code(), Some(1));
        assert!(both(&output).contains("/nowhere/reelring"), "{}", both(&output));
    }
    place.nothing_is_left();
}
