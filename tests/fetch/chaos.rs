//! An origin that does something wrong in most answers, keeps changing the file and outlives several crashes of the fetch:
//! whatever comes out is one whole version, never a splice.

use std::sync::Mutex;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reelring::error::FailureKind;

use crate::bench::{Bench, MIB, media, request};
use crate::support::origin::{Asked, File, LONG_AGO, Origin, Reply};

const LATER: &str = "Mon, 07 Nov 1994 08:49:37 GMT";
/// Each has its own origin; faults and crashes are drawn from its number.
const FETCHES: u64 = 24;

fn answer(file: &File, asked: &Asked, dice: &mut StdRng) -> Reply {
    let start = asked.range_start().map(|start| start as usize).filter(|start| *start < file.bytes.len());
    let reply = match (dice.random_range(0..8), start) {
        // If-Range ignored, both ways.
        (0..=2, Some(start)) => file.part(start),
        (3, _) => file.whole(),
        // The right status with the wrong bytes.
        (4, Some(start)) => file.part(start / 2),
        (5, _) => return Reply::status(503).header("retry-after", "0"),
        _ => file.reply(asked),
    };
    let reply = match dice.random_range(0..6) {
        0 => reply.without("etag"),
        1 => reply.without("etag").without("last-modified"),
        2 => reply.chunked(),
        _ => reply,
    };
    let length = reply.length();
    if length > 1 && dice.random_bool(0.6) { reply.cut_at(dice.random_range(1..length)) } else { reply }
}

/// `None`: it was given up on, which is fair with such an origin.
async fn one(seed: u64) -> Option<()> {
    let (mut bench, origin) = (Bench::new().await, Origin::start().await);
    let mut dice = StdRng::seed_from_u64(seed);
    let version = |number, strong, date| {
        let etag = if seed.is_multiple_of(2) { strong } else { "W/\"same\"" };
        File::new(media(100 * seed + number, MIB)).etag(etag).last_modified(date)
    };
    let versions = [version(1, "\"v1\"", LONG_AGO), version(2, "\"v2\"", LATER)];
    let whole = versions.clone().map(|file| file.bytes);
    let changes_every = dice.random_range(1..5);
    let crashes: Vec<u64> = (0..dice.random_range(0..3)).map(|_| dice.random_range(1..MIB as u64)).collect();
    let faults = Mutex::new(dice);
    let url = origin.answer("/a.mp4", move |asked, before| {
        answer(&versions[before / changes_every % 2], asked, &mut faults.lock().unwrap())
    });
    let req = request(&url);
    let mut ended = None;
    for bytes in crashes {
        tokio::select! {
            outcome = bench.run(req.clone()) => ended = Some(outcome),
            // The future is dropped where it stands, as by a crash.
            () = bench.reported(bytes) => {}
        }
        if ended.is_some() {
            break;
        }
        bench = bench.reopened().await;
    }
    let ended = match ended {
        Some(outcome) => outcome,
        None => bench.run(req).await,
    };
    match ended {
        Ok(fetched) => {
            let bytes = bench.bytes(fetched).await;
            assert!(whole.contains(&bytes), "fetch {seed}: {} bytes that are no version of the file", bytes.len());
            bench.leaves_nothing().await;
            Some(())
        }
        Err(failure) => {
            assert_eq!(failure.kind, FailureKind::Permanent, "fetch {seed}: {failure}");
            bench.leaves_nothing().await;
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_goes_wrong_one_whole_version_comes_out() {
    let ended = futures_util::future::join_all((0..FETCHES).map(one)).await;
    let whole = ended.iter().flatten().count() as u64;
    assert!(whole >= FETCHES / 3, "only {whole} of {FETCHES} came to an end: this shows nothing");
}
