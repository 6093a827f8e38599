//! Going on where it broke: after a connection, a cancel or a process is lost, and only as the same version.

use std::time::{Duration, Instant};

use reelring::error::FailureKind;
use reelring::ingest::FetchRequest;
use reelring::ingest::guard::Client;

use crate::bench::{Bench, MIB, OPEN, media, request, sha256, starts};
use crate::support::origin::{Asked, File, LONG_AGO, Origin, Reply};

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_is_continued_where_it_broke() {
    for (file, if_range) in [
        (File::new(media(3, 2 * MIB)).etag("\"v1\"").last_modified(LONG_AGO), "\"v1\""),
        (File::new(media(3, 2 * MIB)).etag("W/\"v1\"").last_modified(LONG_AGO), LONG_AGO),
        (File::new(media(3, 2 * MIB)).last_modified(LONG_AGO), LONG_AGO),
    ] {
        let (bench, origin) = (Bench::new().await, Origin::start().await);
        let bytes = file.bytes.clone();
        let url = origin.answer("/a.mp4", move |asked, before| match before {
            0 => file.reply(asked).cut_at(MIB),
            1 => file.reply(asked).cut_at(MIB / 2),
            _ => file.reply(asked),
        });
        let fetched = bench.get(&url).await.unwrap();
        assert_eq!(bench.bytes(fetched).await, bytes);
        let asked = origin.asked("/a.mp4");
        assert_eq!(starts(&asked), [None, Some(MIB as u64), Some((MIB + MIB / 2) as u64)], "no byte twice");
        assert_eq!(asked[1].header("if-range"), Some(if_range));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_validator_it_starts_again() {
    for file in [File::new(media(4, MIB)), File::new(media(4, MIB)).etag("W/\"weak\"")] {
        let (bench, origin) = (Bench::new().await, Origin::start().await);
        let bytes = file.bytes.clone();
        let url = origin.answer("/a.mp4", move |asked, before| match before {
            0 => file.reply(asked).cut_at(MIB / 2),
            _ => file.reply(asked),
        });
        let fetched = bench.get(&url).await.unwrap();
        assert_eq!(bench.bytes(fetched).await, bytes);
        assert_eq!(starts(&origin.asked("/a.mp4")), [None, None]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_versions_are_never_spliced() {
    type Second = fn(&File, &Asked) -> Reply;
    let honest: Second = |file, asked| file.reply(asked);
    let ignores_if_range: Second = |file, asked| match asked.range_start() {
        Some(start) => file.part(start as usize),
        None => file.whole(),
    };
    let silent: Second = |file, asked| match asked.range_start() {
        Some(start) => file.part(start as usize).without("etag").without("last-modified"),
        None => file.whole(),
    };
    const LATER: &str = "Mon, 07 Nov 1994 08:49:37 GMT";
    let strong = |seed, etag| File::new(media(seed, MIB)).etag(etag);
    let dated = |seed, date| File::new(media(seed, MIB)).etag("W/\"same\"").last_modified(date);
    for (name, one, two, second) in [
        ("strong, honest", strong(5, "\"v1\""), strong(6, "\"v2\""), honest),
        ("strong, If-Range ignored", strong(5, "\"v1\""), strong(6, "\"v2\""), ignores_if_range),
        ("strong, validators left out", strong(5, "\"v1\""), strong(6, "\"v2\""), silent),
        ("weak with a date, honest", dated(5, LONG_AGO), dated(6, LATER), honest),
        ("weak with a date, If-Range ignored", dated(5, LONG_AGO), dated(6, LATER), ignores_if_range),
        ("nothing", File::new(media(5, MIB)), File::new(media(6, MIB)), ignores_if_range),
    ] {
        let (bench, origin) = (Bench::new().await, Origin::start().await);
        let expected = two.bytes.clone();
        let url = origin.answer("/a.mp4", move |asked, before| match before {
            0 => one.reply(asked).cut_at(MIB / 2),
            _ => second(&two, asked),
        });
        let fetched = bench.get(&url).await.unwrap_or_else(|failure| panic!("{name}: {failure}"));
        assert!(bench.bytes(fetched).await == expected, "{name}: not the second version whole");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cdn_that_answers_200_to_if_range_is_probed() {
    let (bench, origin) = (Bench::new().await, Origin::start().await);
    let file = File::new(media(7, MIB)).etag("\"v1\"");
    let bytes = file.bytes.clone();
    let url = origin.answer("/a.mp4", move |asked, before| match (before, asked.header("if-range")) {
        (0, _) => file.reply(asked).cut_at(MIB / 2),
        (_, Some(_)) => file.whole(),
        _ => file.reply(asked),
    });
    let fetched = bench.get(&url).await.unwrap();
    assert_eq!(bench.bytes(fetched).await, bytes);
    let half = Some(MIB as u64 / 2);
    let asked = origin.asked("/a.mp4");
    assert_eq!(starts(&asked), [None, half, half]);
    assert_eq!(asked[2].header("if-range"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_without_ranges_is_fetched_whole() {
    let (bench, origin) = (Bench::new().await, Origin::start().await);
    let file = File::new(media(8, MIB)).etag("\"v1\"");
    let bytes = file.bytes.clone();
    let url = origin.answer("/a.mp4", move |_, before| match before {
        0 => file.whole().cut_at(MIB / 2),
        _ => file.whole().header("accept-ranges", "none"),
    });
    let fetched = bench.get(&url).await.unwrap();
    assert_eq!(bench.bytes(fetched).await, bytes);
    assert_eq!(origin.asked("/a.mp4").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_range_is_not_believed() {
    type Lie = fn(Reply) -> Reply;
    let lies: [Lie; 6] = [
        |reply| reply.header("content-range", "bytes 0-524287/1048576"),
        |reply| reply.header("content-range", "bytes 524288-1048575/1048577"),
        |reply| reply.header("content-range", "bytes 524288-1048574/1048576"),
        |reply| reply.header("content-type", "multipart/byteranges; boundary=x"),
        |reply| reply.without("content-range"),
        // One byte more than declared, in a body without a length.
        |reply| reply.header("content-range", "bytes 524288-1048574/1048576").chunked(),
    ];
    for (index, lie) in lies.into_iter().enumerate() {
        let (bench, origin) = (Bench::new().await, Origin::start().await);
        let file = File::new(media(9, MIB)).etag("\"v1\"");
        let bytes = file.bytes.clone();
        let url = origin.answer("/a.mp4", move |asked, before| match before {
            0 => file.reply(asked).cut_at(MIB / 2),
            1 => lie(file.reply(asked)),
            _ => file.reply(asked),
        });
        let fetched = bench.get(&url).await.unwrap_or_else(|failure| panic!("lie {index}: {failure}"));
        assert!(bench.bytes(fetched).await == bytes, "lie {index}");
        assert_eq!(starts(&origin.asked("/a.mp4")), [None, Some(MIB as u64 / 2), None], "lie {index}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_lies_every_time_is_given_up_on() {
    let (bench, origin) = (Bench::new().await, Origin::start().await);
    let file = File::new(media(10, MIB)).etag("\"v1\"");
    let url = origin.answer("/a.mp4", move |asked, _| match asked.range_start() {
        None => file.reply(asked).cut_at(MIB / 2),
        Some(_) => file.part(0),
    });
    let failure = bench.fails(&url).await;
    assert_eq!(failure.kind, FailureKind::Permanent);
    assert!(failure.message.contains("answered bytes from 0 where 524288 was asked for"), "{failure}");
    bench.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_416_completes_only_the_same_version() {
    for (name, keeps_etag, head, requests) in
        [("etag in the 416", true, 200, 2), ("a HEAD confirms", false, 200, 3), ("no HEAD: again", false, 405, 4)]
    {
        let (bench, origin) = (Bench::new().await, Origin::start().await);
        let file = File::new(media(11, MIB)).etag("\"v1\"");
        let bytes = file.bytes.clone();
        let url = origin.answer("/a.mp4", move |asked, before| match (asked.method.as_str(), before) {
            // No length, and the end of the last chunk gets lost.
            (_, 0) => file.whole().chunked().cut_at(MIB),
            ("HEAD", _) if head == 200 => file.whole(),
            ("HEAD", _) => Reply::status(405),
            _ if keeps_etag || asked.range_start().is_none() => file.reply(asked),
            _ => file.reply(asked).without("etag"),
        });
        let fetched = bench.get(&url).await.unwrap_or_else(|failure| panic!("{name}: {failure}"));
        assert!(bench.bytes(fetched).await == bytes, "{name}");
        assert_eq!(origin.asked("/a.mp4").len(), requests, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_fetch_goes_on_after_a_restart() {
    let (bench, origin) = (Bench::new().await, Origin::start().await);
    let file = File::new(media(17, 3 * MIB)).etag("\"v1\"");
    let bytes = file.bytes.clone();
    let url = origin.answer("/a.mp4", move |asked, before| match before {
        0 => file.reply(asked).pause_at(2 * MIB + 99, Duration::from_secs(60)),
        _ => file.reply(asked),
    });
    let req = FetchRequest { sha256: Some(sha256(&bytes)), ..request(&url) };
    let fetching = bench.run(req.clone());
    let stop = async {
        bench.reported(2 * MIB as u64 + 99).await;
        bench.cancel.cancel();
        Instant::now()
    };
    let (outcome, cancelled_at) = tokio::join!(fetching, stop);
    assert_eq!(outcome.unwrap_err().kind, FailureKind::Cancelled);
    assert!(cancelled_at.elapsed() < Duration::from_secs(5));

    let bench = bench.reopened().await;
    assert_eq!(bench.store.journaled_partials().await.unwrap(), [req.blob]);
    let fetched = bench.run(req).await.unwrap();
    assert_eq!(bench.bytes(fetched).await, bytes);
    assert_eq!(starts(&origin.asked("/a.mp4")), [None, Some(2 * MIB as u64 + 99)]);
    bench.leaves_nothing().await;
}

/// What a SIGKILL leaves: the bytes of the last checkpoint. No byte before it is asked for again.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_fetch_goes_on_from_its_last_checkpoint() {
    let (bench, origin) = (Bench::new().await, Origin::start().await);
    let file = File::new(media(18, 40 * MIB)).etag("\"v1\"");
    let (bytes, there) = (file.bytes.clone(), 37 * MIB);
    let url = origin.answer("/a.mp4", move |asked, before| match before {
        0 => file.reply(asked).pause_at(there, Duration::from_secs(60)),
        _ => file.reply(asked),
    });
    let req = request(&url);
    let lost = tokio::select! {
        outcome = bench.run(req.clone()) => panic!("it ended: {outcome:?}"),
        () = bench.reported(there as u64) => bench.progress().bytes_done,
    };
    let bench = bench.reopened().await;
    let fetched = bench.run(req).await.unwrap();
    assert_eq!(bench.bytes(fetched).await, bytes);
    let resumed = origin.asked("/a.mp4")[1].range_start().expect("it resumes");
    assert!(resumed <= lost && lost - resumed <= 17 * MIB as u64, "{resumed} of {lost}");
    assert!(resumed >= 32 * MIB as u64, "two checkpoints had passed, it resumed at {resumed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_of_another_address_is_not_continued() {
    let (bench, origin) = (Bench::new().await, Origin::start().await);
    let cut = File::new(media(19, MIB)).etag("\"v1\"");
    let first = origin.answer("/a.mp4", move |asked, _| cut.reply(asked).pause_at(MIB / 2, Duration::from_secs(60)));
    let other = File::new(media(20, MIB)).etag("\"v1\"");
    let expected = other.bytes.clone();
    let second = origin.serve("/b.mp4", other);
    let req = request(&first);
    tokio::select! {
        outcome = bench.run(req.clone()) => panic!("it ended: {outcome:?}"),
        () = bench.reported(MIB as u64 / 2) => {}
    }
    let bench = bench.reopened().await;
    let fetched = bench.run(FetchRequest { url: second, ..req }).await.unwrap();
    assert_eq!(bench.bytes(fetched).await, expected);
    assert_eq!(starts(&origin.asked("/b.mp4")), [None]);
}

/// A plugin extracts the address again and gets another token: the same file if a strong ETag says so.
#[tokio::test(flavor = "multi_thread")]
async fn another_token_is_the_same_file_only_with_a_strong_etag() {
    for (file, resumes) in
        [(File::new(media(22, MIB)).etag("\"v1\""), true), (File::new(media(22, MIB)).last_modified(LONG_AGO), false)]
    {
        let (bench, origin) = (Bench::new().await, Origin::start().await);
        let bytes = file.bytes.clone();
        let url = origin.answer("/a.mp4", move |asked, before| match before {
            0 => file.reply(asked).pause_at(MIB / 2, Duration::from_secs(60)),
            _ => file.reply(asked),
        });
        let with_token = |token: &str| {
            let mut url = url.clone();
            url.set_query(Some(token));
            url
        };
        let req = request(&with_token("token=1"));
        let stop = async {
            bench.reported(MIB as u64 / 2).await;
            bench.cancel.cancel();
        };
        let (outcome, ()) = tokio::join!(bench.run(req.clone()), stop);
        assert_eq!(outcome.unwrap_err().kind, FailureKind::Cancelled);
        let bench = bench.reopened().await;
        let fetched = bench.run(FetchRequest { url: with_token("token=2"), ..req }).await.unwrap();
        assert_eq!(bench.bytes(fetched).await, bytes);
        let expected = resumes.then_some(MIB as u64 / 2);
        assert_eq!(starts(&origin.asked("/a.mp4")), [None, expected]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_origin_is_left_and_asked_again() {
    let (mut bench, origin) = (Bench::new().await, Origin::start().await);
    bench.client = Client::new(OPEN).with_stall(Duration::from_millis(300));
    let file = File::new(media(21, MIB)).etag("\"v1\"");
    let bytes = file.bytes.clone();
    let url = origin.answer("/a.mp4", move |asked, before| match before {
        0 => file.reply(asked).pause_at(MIB / 2, Duration::from_secs(60)),
        _ => file.reply(asked),
    });
    let fetched = bench.get(&url).await.unwrap();
    assert_eq!(bench.bytes(fetched).await, bytes);
    assert_eq!(starts(&origin.asked("/a.mp4")), [None, Some(MIB as u64 / 2)]);
}
