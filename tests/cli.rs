//! The command line as people and scripts use it: the whole binary, with and without a running node.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use support::media;
use support::nginx::Nginx;
use support::node::Node;
use support::process::{self, Owned};
use support::{Noise, eventually, scratch, sha256};

/// A folder to work in, with nothing of the caller's settings.
struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Desk {
        Desk { folder: scratch("cli") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn data(&self) -> PathBuf {
        self.path("reelring-data")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reelring"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TZ", "UTC")
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(arguments, self.command(arguments).output().expect("the program starts"))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("a file on the desk");
        path
    }
}

/// How a command ended.
struct Ended {
    shown: String,
    status: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

impl Ended {
    fn of(arguments: &[&str], output: Output) -> Ended {
        Ended {
            shown: format!("reelring {}", arguments.join(" ")),
            status: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.status, Some(0), "{}: {}", self.shown, self.stderr);
        String::from_utf8(self.stdout).expect("text")
    }

    /// Ended with this status and told why in words that contain each of these.
    #[track_caller]
    fn refused(self, status: i32, words: &[&str]) {
        assert_eq!(self.status, Some(status), "{}: {}", self.shown, self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "{}: no {word:?} in {}", self.shown, self.stderr);
        }
        assert!(!self.stderr.contains("panicked") && !self.stderr.contains('\x1b'), "{}", self.stderr);
    }
}

const SUBCOMMANDS: [&[&str]; 26] = [
    &[],
    &["serve"],
    &["fetch"],
    &["put"],
    &["get"],
    &["ls"],
    &["rm"],
    &["transcode"],
    &["jobs"],
    &["cancel"],
    &["pause"],
    &["resume"],
    &["retry"],
    &["plugins"],
    &["plugins", "ls"],
    &["doctor"],
    &["scrub"],
    &["token"],
    &["token", "create"],
    &["token", "ls"],
    &["token", "revoke"],
    &["sign"],
    &["config"],
    &["config", "show"],
    &["config", "check"],
    &["completions"],
];

/// `UPDATE_GOLDEN=1 cargo test --test cli` writes the files anew; the difference belongs in the review.
#[test]
fn help_is_what_was_agreed() {
    let desk = Desk::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for subcommand in SUBCOMMANDS {
        let mut arguments = subcommand.to_vec();
        arguments.push("--help");
        let help = desk.run(&arguments).ok();
        let name = if subcommand.is_empty() { "help".into() } else { format!("help-{}", subcommand.join("-")) };
        let path = folder.join(format!("{name}.txt"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, &help).expect("the golden file");
        }
        let golden = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(help, golden, "{} differs; run with UPDATE_GOLDEN=1 if that is meant", path.display());
    }
}

#[test]
fn usage_errors_have_status_2_and_say_what_is_possible() {
    let desk = Desk::new();
    desk.run(&["fly"]).refused(2, &["fly", "--help"]);
    desk.run(&["get"]).refused(2, &["<KEY>"]);
    desk.run(&["get", "../secret"]).refused(2, &["../secret", ".."]);
    desk.run(&["put", "-"]).refused(2, &["--key KEY"]);
    desk.run(&["jobs", "nonsense"]).refused(2, &["nonsense", "32"]);
    desk.run(&["sign", "--asset", "nonsense"]).refused(2, &["nonsense", "32"]);
    desk.run(&["jobs", "--state", "flying"]).refused(2, &["flying", "queued, running"]);
    desk.run(&["fetch", "ftp://example.org/a"]).refused(2, &["ftp", "http and https"]);
    desk.run(&["ls", "--node", "ftp://h"]).refused(2, &["ftp://h", "http://127.0.0.1:8080"]);
    desk.run(&["serve", "--listen", "0.0.0.0:0"])
        .refused(2, &["0.0.0.0:0", "reelring token create", "--insecure-no-auth", "proxy"]);
    assert_eq!(fs::read_dir(desk.folder.path()).expect("the desk").count(), 0, "a refusal leaves nothing behind");
}

#[test]
fn without_node_and_data_directory_the_way_out_is_told() {
    let desk = Desk::new();
    for arguments in [&["ls"][..], &["get", "a"], &["rm", "a"], &["jobs"], &["plugins", "ls"]] {
        desk.run(arguments).refused(1, &["reelring-data", "--data", "--node"]);
    }
    assert!(!desk.data().exists(), "asking must not make a data directory");
    desk.run(&["ls", "--node", "127.0.0.1:9"]).refused(1, &["http://127.0.0.1:9", "reelring serve"]);
}

/// The same session of commands, whoever holds the data directory.
fn objects_come_and_go(desk: &Desk) {
    let bytes = Noise::bytes(1, 3_000_001);
    let film = desk.write("film.mp4", &bytes);
    assert_eq!(desk.run(&["put", "film.mp4"]).ok(), "film.mp4\n");
    assert_eq!(desk.run(&["put", "film.mp4", "--key", "films/ü b.mp4"]).ok(), "films/ü b.mp4\n");
    desk.run(&["put", "film.mp4", "--no-replace"]).refused(1, &["film.mp4"]);
    desk.run(&["put", "absent.mp4"]).refused(1, &["absent.mp4"]);

    let mut piped = desk.command(&["put", "-", "--key", "films/piped"]).stdin(Stdio::piped()).spawn().expect("put");
    piped.stdin.take().expect("its input").write_all(&bytes).expect("the pipe takes it");
    assert!(piped.wait().expect("put ends").success());

    assert_eq!(desk.run(&["ls"]).ok(), "film.mp4\nfilms/piped\nfilms/ü b.mp4\n");
    assert_eq!(desk.run(&["ls", "films/"]).ok(), "films/piped\nfilms/ü b.mp4\n");
    let long = desk.run(&["ls", "-l", "film.mp4"]).ok();
    assert!(long.contains("2.86 MiB") && long.contains("video/mp4") && long.contains("film.mp4"), "{long}");
    let line = desk.run(&["ls", "--json", "films/ü"]).ok();
    let object: Value = serde_json::from_str(&line).expect("one JSON document");
    assert_eq!((object["key"].as_str(), object["length"].as_u64()), (Some("films/ü b.mp4"), Some(3_000_001)));

    // An existing file is left alone unless it is named or --force is given.
    fs::remove_file(&film).expect("the file");
    assert_eq!(desk.run(&["get", "film.mp4"]).ok(), "");
    assert!(fs::read(&film).expect("the copy") == bytes);
    desk.write("film.mp4", b"precious");
    desk.run(&["get", "film.mp4"]).refused(1, &["film.mp4", "--force", "-o FILE"]);
    assert_eq!(fs::read(&film).expect("the file"), b"precious");
    desk.run(&["get", "film.mp4", "--force"]).ok();
    assert!(fs::read(&film).expect("the copy") == bytes);
    desk.run(&["get", "films/piped", "-o", "film.mp4"]).ok();
    fs::create_dir(desk.path("folder")).expect("a folder");
    desk.run(&["get", "films/piped", "-o", "folder"]).ok();
    assert!(fs::read(desk.path("folder/piped")).expect("the copy") == bytes);
    assert!(desk.run(&["get", "films/piped", "-o", "-"]).stdout == bytes);
    desk.run(&["get", "films/piped", "-o", "/dev/null"]).ok();
    desk.run(&["get", "films/piped", "-o", "absent/x"]).refused(1, &["absent/x"]);
    desk.run(&["get", "no/such"]).refused(1, &["no/such"]);
    let hidden: Vec<_> = support::node::names(desk.folder.path()).into_iter().filter(|n| n.starts_with('.')).collect();
    assert!(hidden.is_empty(), "temporary files are left: {hidden:?}");

    desk.run(&["rm", "films/piped", "no/such"]).refused(1, &["no/such", "reelring ls"]);
    desk.run(&["rm", "-f", "no/such", "film.mp4", "films/ü b.mp4"]).ok();
    assert_eq!(desk.run(&["ls"]).ok(), "");
}

#[test]
fn objects_come_and_go_without_a_node() {
    let desk = Desk::new();
    objects_come_and_go(&desk);
    let lock = fs::read_to_string(desk.data().join("LOCK")).expect("LOCK");
    assert!(lock.starts_with("closed\n"), "not closed cleanly: {lock:?}");
}

#[tokio::test]
async fn objects_come_and_go_beside_a_running_node() {
    let desk = Desk::new();
    let node = Node::start(&desk.data()).await;
    objects_come_and_go(&desk);
    // Named, from anywhere, with or without the scheme.
    let elsewhere = Desk::new();
    let address = node.addr().to_string();
    elsewhere.write("a", b"bytes");
    assert_eq!(elsewhere.run(&["put", "a", "--node", &address]).ok(), "a\n");
    let by_variable = elsewhere.command(&["ls"]).env("REELRING_NODE", node.url("")).output().expect("ls");
    assert_eq!(Ended::of(&["ls"], by_variable).ok(), "a\n");
    assert!(!elsewhere.data().exists());
}

#[tokio::test]
async fn the_address_of_a_dead_node_is_not_believed() {
    let desk = Desk::new();
    let node = Node::start(&desk.data()).await;
    node.kill();
    assert!(desk.data().join("http.addr").exists(), "a killed node cannot tidy up");
    desk.write("a", b"bytes");
    assert_eq!(desk.run(&["put", "a"]).ok(), "a\n");
    assert_eq!(desk.run(&["ls"]).ok(), "a\n");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let desk = Desk::new();
    desk.write("a", b"x");
    for number in 0..40 {
        desk.run(&["put", "a", "--key", &format!("{}/{number:03}", "long".repeat(200))]).ok();
    }
    for arguments in [&["ls"][..], &["ls", "--json"], &["config", "show"], &["completions", "bash"]] {
        let mut child = desk.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a child");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("its end");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), errors.as_str()), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn a_full_output_is_an_error() {
    let desk = Desk::new();
    let full = fs::File::options().write(true).open("/dev/full").expect("/dev/full");
    let output = desk.command(&["completions", "bash"]).stdout(full).output().expect("its end");
    Ended::of(&["completions"], output).refused(1, &["standard output", "space"]);
}

#[test]
fn a_fetch_without_a_node_stores_and_copies_out() {
    let desk = Desk::new();
    let origin = Nginx::start(1 << 20);
    let bytes = Noise::bytes(2, 700_000);
    fs::write(origin.root().join("film.mp4"), &bytes).expect("the original");
    let url = origin.url("film.mp4");

    desk.run(&["fetch", &url, "--key", "a"]).refused(1, &["127.0.0.1", "--allow-private-origins"]);
    let private = "--allow-private-origins";
    assert_eq!(desk.run(&["fetch", &url, private]).ok(), "film.mp4\n");
    desk.run(&["get", "film.mp4"]).ok();
    assert!(fs::read(desk.path("film.mp4")).expect("the copy") == bytes);

    let digest = sha256(&bytes);
    let arguments = ["fetch", &url, private, "--key", "k", "--sha256", &digest, "-o", "out.mp4", "--json"];
    let job: Value = serde_json::from_str(&desk.run(&arguments).ok()).expect("one JSON document");
    assert_eq!((job["state"].as_str(), job["result"]["object"].as_str()), (Some("done"), Some("k")));
    assert!(fs::read(desk.path("out.mp4")).expect("the copy") == bytes);
    let other = "0".repeat(64);
    desk.run(&["fetch", &url, private, "--key", "bad", "--sha256", &other]).refused(1, &[&digest]);
    desk.run(&["fetch", &origin.url("absent"), private]).refused(1, &["404"]);
    desk.run(&["fetch", &url, "--no-wait"]).refused(2, &["--no-wait", "reelring serve"]);
    assert_eq!(desk.run(&["ls"]).ok(), "film.mp4\nk\n");
    assert!(support::node::names(&desk.data().join("partial")).is_empty());
}

#[tokio::test]
async fn an_interrupted_fetch_goes_on_with_the_same_command() {
    let desk = Desk::new();
    let origin = Nginx::start(4 << 20);
    let bytes = Noise::bytes(3, 24 << 20);
    fs::write(origin.root().join("film.mp4"), &bytes).expect("the original");
    let (slow, private) = (origin.url("slow/film.mp4"), "--allow-private-origins");
    let arguments = ["fetch", &slow, private, "--key", "film"];

    let mut child = Owned::spawn(desk.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let partial = desk.data().join("partial");
    eventually("a journal with something in it", Duration::from_secs(20), async || {
        let files = fs::read_dir(&partial).ok()?;
        let long = |entry: fs::DirEntry| entry.metadata().is_ok_and(|found| found.len() > 8 << 20);
        files.flatten().any(long).then_some(())
    })
    .await;
    process::signal(child.id(), Signal::INT);
    let status = child.0.wait().expect("its end");
    let mut told = String::new();
    child.0.stderr.take().expect("its errors").read_to_string(&mut told).expect("text");
    assert_eq!(status.code(), Some(130), "{told}");
    assert!(told.contains("paused") && told.contains("the same command"), "{told}");

    let jobs = desk.run(&["jobs", "--json"]).ok();
    let job: Value = serde_json::from_str(&jobs).expect("one job");
    assert_eq!(job["state"], "paused", "asking about a paused job leaves it paused");
    // Only a node and a fetch run jobs: resuming puts it into the queue and leaves it there.
    let id = job["id"].as_str().expect("its id");
    let resumed = desk.run(&["resume", id]);
    assert!(resumed.stderr.contains("reelring serve"), "{}", resumed.stderr);
    assert_eq!(resumed.ok(), format!("{id} queued\n"));
    desk.run(&["jobs", id, "--watch"]).refused(1, &["no node runs", "reelring serve"]);
    desk.run(&["jobs", "--watch"]).refused(1, &["no node runs"]);
    assert_eq!(origin.hits().len(), 1, "nothing was fetched meanwhile: {:?}", origin.hits());
    assert_eq!(desk.run(&["pause", id]).ok(), format!("{id} paused\n"));

    let again = desk.run(&arguments);
    assert!(again.stderr.contains("goes on"), "{}", again.stderr);
    assert_eq!(again.ok(), "film\n");
    assert!(desk.run(&["get", "film", "-o", "-"]).stdout == bytes);
    assert!(origin.hits().iter().any(|hit| hit.start() > 0), "it went on where it stopped: {:?}", origin.hits());
}

#[tokio::test]
async fn jobs_are_shown_watched_and_steered_on_a_node() {
    let desk = Desk::new();
    let origin = Nginx::start(1 << 20);
    fs::write(origin.root().join("a.bin"), Noise::bytes(4, 40 << 20)).expect("the original");
    let _node = Node::start(&desk.data()).await;
    let fetch = desk.run(&["fetch", &origin.url("slow/a.bin"), "--key", "slow", "--no-wait"]).ok();
    let id = fetch.trim();

    let mut watch = Owned::spawn(desk.command(&["jobs", "--watch", "--json"]).stdout(Stdio::piped()));
    let lines = BufReader::new(watch.0.stdout.take().expect("its output")).lines();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let collected = seen.clone();
    let reader = std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let job: Value = serde_json::from_str(&line).expect("one JSON document a line");
            collected.lock().expect("the list").push((job["id"].clone(), job["state"].clone()));
        }
    });
    let saw = async |state: &str| {
        eventually(&format!("a line about {state}"), Duration::from_secs(10), async || {
            seen.lock().expect("the list").contains(&(id.into(), state.into())).then_some(())
        })
        .await;
    };
    saw("running").await;

    let state = |verb: &str| desk.run(&[verb, id]).ok();
    assert_eq!(state("pause"), format!("{id} paused\n"));
    assert!(desk.run(&["jobs"]).ok().contains("paused"));
    desk.run(&["retry", id]).refused(1, &[id, "paused"]);
    assert!(state("resume").starts_with(id));
    assert_eq!(state("cancel"), format!("{id} cancelled\n"));
    desk.run(&["cancel", &"0".repeat(32)]).refused(1, &["reelring jobs"]);
    let shown = desk.run(&["jobs", id]).ok();
    assert!(shown.contains("cancelled") && shown.contains("slow/a.bin"), "{shown}");
    desk.run(&["jobs", id, "--watch"]).refused(1, &["cancelled", "reelring retry"]);

    for state in ["paused", "cancelled"] {
        saw(state).await;
    }
    process::signal(watch.id(), Signal::INT);
    assert_eq!(watch.0.wait().expect("its end").code(), Some(130));
    reader.join().expect("every line was JSON");
}

#[tokio::test]
async fn a_film_is_made_playable_with_and_without_a_node() {
    let desk = Desk::new();
    fs::copy(media::clip(320, 180, 30, 4), desk.path("film.mp4")).expect("the clip");
    desk.run(&["put", "film.mp4"]).ok();
    let local = desk.run(&["transcode", "film.mp4", "--ladder", "144p"]);
    assert!(local.stderr.contains("encoding with"), "the encoder and its reason are told: {}", local.stderr);
    let path = local.ok();
    assert!(path.starts_with("/v1/assets/") && path.ends_with("/hls/main.m3u8\n"), "{path}");
    desk.run(&["transcode", "film.mp4", "--ladder", "77p"]).refused(2, &["77p", "144p"]);
    desk.run(&["transcode", "absent.mp4"]).refused(1, &["absent.mp4", "reelring ls"]);

    let node = Node::start(&desk.data()).await;
    let id = desk.run(&["transcode", "film.mp4"]).ok();
    desk.run(&["jobs", id.trim(), "--watch"]).ok();
    let waited = desk.run(&["transcode", "film.mp4", "--ladder", "144p", "--wait"]);
    assert!(waited.stderr.contains(&node.url("/play/")), "{}", waited.stderr);
    let address = waited.ok();
    assert!(address.starts_with(&node.url("/v1/assets/")), "{address}");
    let playlist = reqwest::get(address.trim()).await.expect("the playlist").text().await.expect("text");
    assert!(playlist.starts_with("#EXTM3U"), "{playlist}");
}

#[tokio::test]
async fn what_keeps_a_node_from_starting_is_a_clear_error() {
    let desk = Desk::new();
    let node = Node::start(&desk.data()).await;
    let address = node.addr().to_string();
    // The same data directory on another port, the same address, and a port of somebody else.
    desk.run(&["serve", "--listen", "127.0.0.1:0"]).refused(1, &["reelring-data", "in use", "--data"]);
    desk.run(&["serve", "--listen", &address]).refused(1, &["already", &address, &node.pid().to_string()]);
    let other = Desk::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let in_use = listener.local_addr().expect("its address").to_string();
    other.run(&["serve", "--listen", &in_use]).refused(1, &[&in_use, "in use", "--listen"]);
    assert!(!other.data().exists(), "nothing is made before the port is there");
    // An address by name or without a host, by flag and by file; and a directory that cannot be one.
    for listen in ["localhost:8080", ":8080", "8080"] {
        other.run(&["serve", "--listen", listen]).refused(2, &[listen, "127.0.0.1:8080"]);
    }
    other.write("reelring.toml", b"listen = 'localhost:8080'\n");
    other.run(&["serve"]).refused(2, &["reelring.toml", "127.0.0.1:8080"]);
    fs::remove_file(other.path("reelring.toml")).expect("the file");
    other.write("taken", b"");
    other.run(&["serve", "--listen", "127.0.0.1:0", "--data", "taken"]).refused(1, &["taken", "choose another"]);

    node.terminate();
    assert!(node.ended(Duration::from_secs(20)).await.success());
    assert!(!desk.data().join("http.addr").exists(), "a drained node takes its address back");
}

#[tokio::test]
async fn doctor_names_what_is_wrong_and_what_to_do() {
    let desk = Desk::new();
    let report = |arguments: &[&str]| -> (Option<i32>, Value) {
        let ended = desk.run(arguments);
        let report = serde_json::from_slice(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {}", ended.stderr));
        (ended.status, report)
    };
    let check = |report: &Value, name: &str| -> Value {
        let checks = report["checks"].as_array().expect("checks");
        checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name} in {report:#}")).clone()
    };
    let (status, healthy) = report(&["doctor", "--json"]);
    // Whether the workers are built is not this test's business, that the status agrees with the report is.
    assert_eq!(status, Some(i32::from(healthy["status"] == "fail")), "{healthy:#}");
    assert_eq!(check(&healthy, "durable write")["status"], "ok", "{healthy:#}");
    assert!(!desk.data().exists() && fs::read_dir(desk.folder.path()).expect("the desk").count() == 0);
    let text = String::from_utf8(desk.run(&["doctor"]).stdout).expect("text");
    assert!(text.contains("ok    data directory") && !text.contains('\x1b'), "{text}");

    desk.write("file", b"");
    let (status, report_of_file) = report(&["doctor", "--json", "--data", "file"]);
    assert_eq!((status, &report_of_file["status"]), (Some(1), &Value::from("fail")));
    assert!(check(&report_of_file, "data directory")["next"].as_str().is_some_and(|next| next.contains("--data")));

    desk.write("reelring.toml", b"listen = 'nowhere'\n");
    let (status, broken) = report(&["doctor", "--json"]);
    assert_eq!((status, &check(&broken, "configuration")["status"]), (Some(1), &Value::from("fail")));
    fs::remove_file(desk.path("reelring.toml")).expect("the file");

    let (status, absent) = report(&["doctor", "--json", "--node", "127.0.0.1:9"]);
    assert_eq!((status, &check(&absent, "node")["status"]), (Some(1), &Value::from("fail")));
    let node = Node::start(&desk.data()).await;
    let (_, running) = report(&["doctor", "--json"]);
    let found = check(&running, "node");
    assert_eq!(found["status"], "ok", "{running:#}");
    assert!(found["finding"].as_str().is_some_and(|text| text.contains(&node.addr().to_string())), "{found}");
}

#[test]
fn settings_are_shown_with_where_they_come_from() {
    let desk = Desk::new();
    desk.write("reelring.toml", b"listen = '127.0.0.1:7000'\nplugin_timeout_s = 5\n");
    let mut show = desk.command(&["config", "show", "--json", "--data", "elsewhere"]);
    let shown = show.env("REELRING_LISTEN", "[::1]:1").output().expect("its end").stdout;
    let settings: Value = serde_json::from_slice(&shown).expect("one JSON document");
    for (name, value, origin) in [
        ("listen", Value::from("[::1]:1"), "environment REELRING_LISTEN"),
        ("plugin_timeout_s", Value::from(5), "file reelring.toml"),
        ("data", Value::from("elsewhere"), "flag --data"),
        ("engine", Value::from("auto"), "default"),
    ] {
        assert_eq!((&settings[name]["value"], settings[name]["origin"].as_str()), (&value, Some(origin)), "{name}");
    }
    assert!(desk.run(&["config", "check"]).ok().contains("reelring.toml"));
    desk.write("bad.toml", b"lisen = '127.0.0.1:7000'\n");
    desk.run(&["config", "check", "--config", "bad.toml"]).refused(1, &["bad.toml", "lisen"]);
    desk.run(&["config", "check", "--config", "absent.toml"]).refused(1, &["absent.toml"]);
    desk.write("open.toml", b"listen = '0.0.0.0:1'\n");
    desk.run(&["config", "check", "--config", "open.toml"]).refused(1, &["0.0.0.0:1", "--insecure-no-auth"]);
    desk.run(&["serve", "--config", "bad.toml"]).refused(2, &["bad.toml", "lisen"]);
}

#[test]
fn every_shell_gets_its_completions() {
    let desk = Desk::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(desk.run(&["completions", shell]).ok().contains("transcode"), "{shell}");
    }
}
