//! The node under somebody else's tests of RFC 9113: `httpwg`, which follows h2spec's and the RFC's sections.
//!
//! It speaks HTTP/2 in the clear, which the node does not; a gate of this test puts TLS around each connection.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::tls::Secure;
use tokio::io::copy_bidirectional;
use tokio::net::TcpListener;

/// What the suite counts as a failure and the RFC allows, or leaves no other way to, by the end of the test's name.
const ANSWERED_OTHERWISE: [&str; 6] = [
    // Refused by an answer of 400 or 404, which 8.1.1 allows; the suite wants to see the stream reset.
    "sends headers frame with leading space in field value",
    "sends headers frame with trailing tab in field value",
    "sends headers frame with mismatched host authority",
    "sends connect without authority",
    // Sent without END_HEADERS: it is refused when its block ends.
    "client sends push promise frame",
    // The answer, a 404, is complete before the trailer comes.
    "sends headers frame with pseudo header in trailer",
];
/// 5.4: a generic code can always be used in place of a more specific one.
const GENERIC: &str = "but got ProtocolError";
/// The node was the faster one: it had answered the request before the fault came and, as 8.1 has it, reset the stream
/// with NO_ERROR. Asked again it may not be; a fault that it answers so each time is one that it passes over.
const EARLY: &str = "but got NoError";
const ATTEMPTS: usize = 20;
/// Runs of the whole suite until one has all of its tests.
const RUNS: usize = 3;
/// It has one more, which gives up because it wants 200 for a POST of `/`, where a node has nothing.
const TESTS: usize = 106;

async fn gate(secure: Arc<Secure>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut plain, _)) = listener.accept().await {
            let secure = secure.clone();
            tokio::spawn(async move {
                let mut encrypted = crate::http2::connect(&secure).await;
                // Either side may break it off, and the suite does.
                let _ = copy_bidirectional(&mut plain, &mut encrypted).await;
            });
        }
    });
    address
}

/// What the suite said of its tests whose names contain `filter`: how many pass, and of the others name and reason.
struct Verdict {
    passed: usize,
    failed: Vec<(String, String)>,
}

async fn judge(address: SocketAddr, filter: &str) -> Verdict {
    let target = Path::new(env!("CARGO_BIN_EXE_reelring")).ancestors().nth(2).expect("target");
    let mut suite = Command::new(target.join("tools/httpwg/bin/httpwg"));
    suite.args(["--address", &address.to_string(), "--connect-timeout", "10000", "--frame-timeout", "5000"]);
    suite.args(["--filter", filter]);
    // 16 MiB of buffers instead of 256.
    suite.env_clear().env("BUFFET_NUM_BUFS", "4096").env("NO_COLOR", "1").stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || suite.output()).await.unwrap();
    let output = output.expect("httpwg runs; tests/demo/setup.sh test installs it");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    let failed = said.split("Test failed: ").skip(1).map(|report| {
        let mut lines = report.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned);
        (lines.next().unwrap_or_default(), lines.next().unwrap_or_default())
    });
    Verdict { passed: said.matches("Test passed: ").count(), failed: failed.collect() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_of_others_finds_nothing_that_the_rfc_forbids() {
    let secure = Arc::new(Secure::start("h2-suite").await);
    let address = gate(secure.clone()).await;
    let mut verdict = judge(address, "RFC 9113").await;
    // One of its tests panics, and says neither, when the machine is too busy for what it waits for.
    for _ in 1..RUNS {
        if verdict.passed + verdict.failed.len() < TESTS {
            verdict = judge(address, "RFC 9113").await;
        }
    }
    let Verdict { mut passed, failed } = verdict;
    assert_eq!(passed + failed.len(), TESTS, "not every test has run: {failed:#?}");
    let (mut generic, mut wrong) = (0, Vec::new());
    for (name, mut reason) in failed {
        let mut attempts = 1;
        while reason.contains(EARLY) && attempts < ATTEMPTS {
            attempts += 1;
            let again = judge(address, &name).await;
            assert!(again.passed + again.failed.len() > 0, "{name} has not run again");
            reason = again.failed.into_iter().find(|(failed, _)| *failed == name).map_or(String::new(), |(_, why)| why);
        }
        if reason.is_empty() {
            passed += 1;
        } else if reason.contains(GENERIC) {
            generic += 1;
        } else if !ANSWERED_OTHERWISE.iter().any(|known| name.ends_with(known)) {
            wrong.push(format!("{name}: {reason}, {attempts} times"));
        }
    }
    eprintln!("{passed} of {TESTS} as the suite wants it, {generic} with a generic code");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(!secure.node.log().contains("panicked"), "{}", secure.node.log());
}
