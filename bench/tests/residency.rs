//! `reelring-bench residency` as a user runs it: that every way of asking gives the right answer, not what it costs.

use std::fs;
use std::process::Command;

use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_reelring-bench");

const REPETITIONS: u64 = 5;

#[test]
fn every_way_of_asking_tells_what_is_there() {
    // Beside the build, which lies on a disk: what tmpfs holds cannot leave memory.
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let repetitions = format!("--repetitions={REPETITIONS}");
    let output = Command::new(BENCH)
        .args(["residency", &repetitions, "--tries=5", "--json", "--dir"])
        .arg(place.path())
        .output()
        .expect("a run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_dir(place.path()).expect("the folder").count(), 0, "a file was left");
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let cachestat = found["cachestat"].as_bool().expect("whether the kernel has it");
    let rows = found["rows"].as_array().expect("rows");
    let ways = if cachestat { 4 } else { 3 };
    assert_eq!(rows.len(), 4 * 4 * ways, "sizes, states and ways: {found}");
    for row in rows {
        let number = |key: &str| row[key].as_u64().unwrap_or_else(|| panic!("{key} of {row}"));
        let of = number("bytes") / 4096;
        assert_eq!(number("of"), of, "{row}");
        let right: &[u64] = match (row["state"].as_str(), row["way"].as_str()) {
            // It reads up to what is missing, or all if the disk brought that before it looked again.
            (Some("one-missing"), Some("preadv2")) => &[of / 2, of],
            (Some("one-missing"), Some(_)) => &[of - 1],
            _ => &[of],
        };
        assert!(right.contains(&number("pages")), "{row}: not one of {right:?}");
        assert!(number("other_answers") <= REPETITIONS && row["cpu_ns"].as_f64() > Some(0.0), "{row}");
    }
    assert_eq!(found["fetching"].as_array().map(Vec::len), Some(ways), "{found}");
    for fetching in found["fetching"].as_array().expect("a list") {
        let came = fetching["came"].as_u64().expect("a count");
        assert_eq!(fetching["tries"], 5, "{fetching}");
        // Only a read may bring a page in; whether it does is the kernel's affair.
        assert!(fetching["way"] == "preadv2" || came == 0, "{fetching}");
    }
    assert_eq!(found["reading"].is_object(), cachestat, "{found}");
    if cachestat {
        let reading = &found["reading"];
        let count = |key: &str| reading[key].as_u64().unwrap_or_else(|| panic!("{key} of {reading}"));
        assert_eq!((count("tries"), count("mincore_more") <= 5), (5, true), "{reading}");
        assert!(count("cachestat_all") <= count("cachestat_more") && count("most_pages") <= 512, "{reading}");
    }
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let output = Command::new(BENCH).args(["residency", "--dir", "/no/such/folder"]).output().expect("a run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("/no/such/folder"), "{said}");
}
