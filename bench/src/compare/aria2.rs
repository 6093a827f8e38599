//! `compare aria2`: one file fetched from one origin by the node and by aria2c.
//!
//! The origin is a real nginx, directly or behind [`Origin`], which gives every connection a limit and a distance. Each
//! round fetches the whole file anew; what was fetched is hashed and removed outside the measured time.

use std::cell::Cell;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;

use super::beside::{self, Beside};
use super::nginx::server::{self, Reading};
use super::node::{self, Node};
use super::origin::{Origin, Wire};
use super::peer::Program;
use super::result::{Case, Run, Section, Side};
use super::rounds::{self, Turns};
use super::usage::{self, Usage};

const ARIA2: Program = Program { name: "aria2c", package: "aria2", version: "--version" };
const KEY: &str = "fetched.bin";

/// One line of the result.
#[derive(Debug, Clone, Copy)]
struct Plan {
    name: &'static str,
    wire: Option<Wire>,
    bytes: u64,
    /// Of aria2c; the node decides for itself.
    connections: u32,
    /// aria2c's file is synced within the measured time, as the node's is.
    sync: bool,
}

const FAR: Wire = Wire { round_trip: Duration::from_millis(20), bytes_per_second: Some(8_000_000) };

fn plans(quick: bool) -> Vec<Plan> {
    let (near, far) = if quick { (16 << 20, 2 << 20) } else { (512 << 20, 48 << 20) };
    let plan = |name, wire: Option<Wire>, connections, sync| {
        let bytes = if wire.is_some() { far } else { near };
        Plan { name, wire, bytes, connections, sync }
    };
    let all = [
        plan("near-x1", None, 1, false),
        plan("near-x1-synced", None, 1, true),
        plan("near-x16-synced", None, 16, true),
        plan("far-x1", Some(FAR), 1, false),
        plan("far-x16", Some(FAR), 16, false),
    ];
    all.into_iter().filter(|plan| !quick || matches!(plan.name, "near-x1-synced" | "far-x16")).collect()
}

pub fn compare(options: &Beside) -> anyhow::Result<Section> {
    let version = ARIA2.version()?;
    let nginx = server::executable()?;
    let program = options.program()?;
    let plans = options.chosen(plans(options.common.quick), |plan| plan.name)?;

    let scratch = options.common.scratch()?;
    let root = scratch.path().join("www");
    fs::create_dir(&root)?;
    let origin = server::start(
        &nginx,
        scratch.path(),
        &root,
        Reading::Sendfile,
        plans.iter().map(|plan| plan.bytes).min().unwrap_or(0),
    )?;
    let node = Node::start(&program, scratch.path(), &scratch.path().join("data"))?;

    let mut section = Section {
        id: "aria2".into(),
        title: "Fetching a file, beside aria2c".into(),
        command: super::command_line(),
        notes: program.note().into_iter().collect(),
        cases: Vec::new(),
    };
    section.notes.push(format!("Origin: {}, sending from memory, on the same processors.", server::version(&nginx)?));
    if plans.iter().any(|plan| plan.wire.is_some()) {
        section.notes.push(format!(
            "far: a proxy gives every connection {} MB/s and {} ms of round trip; slow start and loss are not imitated.",
            FAR.bytes_per_second.unwrap_or(0) / 1_000_000,
            FAR.round_trip.as_millis()
        ));
    }
    section.notes.push(
        "The node fetches over one connection, computes BLAKE3 and CRC-32C of every byte, and is done when file and catalog \
         are on the disk. aria2c -xN fetches over N connections, hashes nothing, and leaves its file in the page cache; \
         where a case says synced, the time and CPU of an fdatasync of its file are added to its own."
            .into(),
    );
    let versions = [program.version.as_str(), &version];
    beside::each(&mut section, &plans, |plan, _| {
        let file = root.join(format!("{}.bin", plan.bytes));
        if !file.exists() {
            node::noise_file(&file, plan.bytes, plan.bytes)?;
        }
        case(plan, options, &node, origin.address(), &file, scratch.path(), versions)
    })?;
    Ok(section)
}

fn case(
    plan: &Plan,
    options: &Beside,
    node: &Node,
    server: SocketAddr,
    file: &Path,
    scratch: &Path,
    versions: [&str; 2],
) -> anyhow::Result<Option<Case>> {
    let expected = node::digest_file(file)?;
    // Ends with the case, and its threads with it.
    let proxy = plan.wire.map(|wire| Origin::start(server, wire)).transpose().context("starting the distant origin")?;
    let server = proxy.as_ref().map_or(server, Origin::addr);
    let name = file.file_name().context("the file has a name")?.to_string_lossy();
    let url = format!("http://{server}/{name}");
    let checked = Cell::new(0);
    let same = |what: &str, got: (u64, String)| {
        ensure!(got == expected, "{what} fetched {} bytes with SHA-256 {}, not those of {url}", got.0, got.1);
        checked.set(checked.get() + 1);
        Ok(())
    };

    let ours = || {
        let (seconds, used) = node.measure(|| {
            let start = Instant::now();
            node.job(&json!({ "kind": "fetch", "url": url, "key": KEY }))?;
            Ok(start.elapsed().as_secs_f64())
        })?;
        same("the node", node.digest(KEY)?)?;
        node.delete(&node::object(KEY))?;
        Ok(run(plan, seconds, used))
    };
    let theirs = || {
        let folder = tempfile::Builder::new().prefix("aria2-").tempdir_in(scratch)?;
        let ended = usage::run(&mut command(plan, &url, folder.path()))?;
        let (mut seconds, mut used) = (ended.seconds, ended.usage);
        let path = folder.path().join(KEY);
        if plan.sync {
            let (waited, cpu) = beside::sync(&path)?;
            seconds += waited;
            used.cpu_seconds += cpu;
        }
        same("aria2c", node::digest_file(&path)?)?;
        Ok(run(plan, seconds, used))
    };
    let their_name = format!("aria2c -x{}{}", plan.connections, if plan.sync { " and fdatasync" } else { "" });
    let turns =
        Turns { title: plan.name, ours: "reelring fetch", theirs: &their_name, rounds: options.common.rounds() };
    let pairs = rounds::alternate(turns, ours, theirs)?;
    let [our_version, their_version] = versions.map(str::to_owned);
    let ours = Side { name: "reelring fetch".into(), version: our_version, runs: pairs.ours };
    let theirs = Side { name: their_name, version: their_version, runs: pairs.theirs };
    let same_work = format!("SHA-256 of all {} fetched files equal to the origin's", checked.get());
    Ok(Case::of(plan.name, ours, theirs, same_work))
}

fn run(plan: &Plan, seconds: f64, used: Usage) -> Run {
    Run {
        seconds,
        bytes: plan.bytes,
        operations: 1,
        cpu_seconds: used.cpu_seconds,
        context_switches: used.context_switches,
        peak_rss_bytes: used.peak_rss_bytes,
        ..Run::default()
    }
}

fn command(plan: &Plan, url: &str, folder: &Path) -> Command {
    let connections = plan.connections.to_string();
    let mut command = Command::new(ARIA2.name);
    command
        // The user's own configuration and proxies decide nothing.
        .args(["--no-conf=true", "--no-netrc=true", "--all-proxy=", "--no-proxy=127.0.0.1"])
        .args(["-x", &connections, "-s", &connections, "-k", "1M", "--file-allocation=falloc"])
        .args(["--allow-overwrite=true", "--auto-file-renaming=false", "--async-dns=false", "--disable-ipv6=true"])
        .args(["--quiet=true", "--download-result=hide", "--summary-interval=0"])
        .arg("-d")
        .arg(folder)
        .args(["-o", KEY, url]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aria2_gets_the_connections_of_the_case() {
        let plan = plans(false).into_iter().find(|plan| plan.name == "far-x16").unwrap();
        let words = usage::words(&command(&plan, "http://127.0.0.1:1/x", Path::new("/tmp")));
        assert!(words.contains("-x 16 -s 16 -k 1M --file-allocation=falloc"), "{words}");
        assert!(plans(true).len() >= 2);
    }
}
