//! Where io_uring is refused, as container runtimes do, the node says so once and works on threads.

use std::collections::BTreeMap;

use crate::support::node::{Node, forget_address, serve};
use crate::support::process::Owned;
use crate::support::{Noise, scratch};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// Refuses the three io_uring calls with EPERM, as Docker's default profile does; everything else is allowed.
fn without_io_uring() -> BpfProgram {
    let rules = BTreeMap::from([
        (libc::SYS_io_uring_setup, vec![]),
        (libc::SYS_io_uring_enter, vec![]),
        (libc::SYS_io_uring_register, vec![]),
    ]);
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let architecture = TargetArch::try_from(std::env::consts::ARCH).expect("a known architecture");
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture).expect("a filter");
    filter.try_into().expect("a program")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_io_uring_falls_back_to_threads() {
    let folder = scratch("seccomp");
    let data = folder.path().join("data");
    forget_address(&data);
    let mut command = serve(&data, &[]);
    // The filter holds for the thread that asks for it and for what that thread starts: for the node, not for us.
    let spawn = move || {
        seccompiler::apply_filter(&without_io_uring()).expect("the filter is in force");
        Owned::spawn(&mut command)
    };
    let process = std::thread::spawn(spawn).join().expect("a spawned node");
    let node = Node::adopt(process, &data).await;

    let log = node.log();
    let warned: Vec<&str> = log.lines().filter(|line| line.contains("WARN") && line.contains("threads")).collect();
    assert_eq!(warned.len(), 1, "the choice is logged once: {log}");
    let reason = "io_uring_setup: Operation not permitted";
    assert!(warned[0].contains(reason), "with its reason: {}", warned[0]);

    let body = Noise::bytes(21, 5_000_003);
    assert_eq!(node.put("film", body.clone()).send().await.unwrap().status(), 201);
    assert!(node.object("film").send().await.unwrap().bytes().await.unwrap() == body);
    let tail = node.object("film").header("range", "bytes=-1000").send().await.unwrap();
    assert!(tail.bytes().await.unwrap() == body[body.len() - 1000..]);
}

/// Asked for io_uring by name and refused, the node does not pretend.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_told_to_use_io_uring_does_not_start_without_it() {
    let folder = scratch("seccomp-uring");
    let data = folder.path().join("data");
    let mut command = serve(&data, &[("REELRING_ENGINE", "uring")]);
    let run = move || {
        seccompiler::apply_filter(&without_io_uring()).expect("the filter is in force");
        command.status().expect("a node")
    };
    let status = std::thread::spawn(run).join().expect("an ended node");
    assert_eq!(status.code(), Some(1));
    let log = std::fs::read_to_string(folder.path().join("data.log")).unwrap();
    assert!(log.contains("io_uring") && log.contains("threads"), "what is missing and the way out: {log}");
}
