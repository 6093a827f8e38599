//! Reading a blob while it is written: what a follower gets is what is stored, whole, or an error.

mod common;

use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use common::{collect, engines, flip_byte, open, pattern};
use futures_util::{FutureExt, Stream, StreamExt};
use proptest::prelude::*;
use reelring_storage::{
    BlobId, BlobMeta, BlobWriter, EngineChoice, Error, Follower, Key, Precondition, Result, Store, limits,
};

const PATIENCE: Duration = Duration::from_secs(60);

fn key(name: &str) -> Key {
    Key::parse(name).unwrap()
}

fn meta(name: &str, announced: Option<usize>) -> BlobMeta {
    BlobMeta { key: Some(name.into()), content_type: None, length_hint: announced.map(|length| length as u64) }
}

fn follow(store: &Store, name: &str) -> Follower {
    store.writer_of(&key(name)).expect("somebody writes it").follow().unwrap().expect("it has not ended")
}

async fn store_as(store: &Store, name: &str, writer: BlobWriter) {
    let sealed = writer.seal().await.unwrap();
    store.put_object(&key(name), sealed, Precondition::None).await.unwrap();
}

/// The next `len` bytes; then there is nothing to give for now.
async fn all_there_is(stream: &mut (impl Stream<Item = Result<Bytes>> + Unpin), len: usize) -> Vec<u8> {
    let mut data = Vec::new();
    while data.len() < len {
        let chunk = tokio::time::timeout(PATIENCE, stream.next()).await.expect("it waits for ever").expect("it ended");
        data.extend_from_slice(&chunk.unwrap());
    }
    let more = tokio::time::timeout(Duration::from_millis(50), stream.next()).await;
    assert!(
        more.is_err(),
        "it does not wait after {len} bytes: {:?}",
        more.map(|more| more.map(|more| more.map(|b| b.len())))
    );
    data
}

/// The whole of it, or the error that ends it; never waits for ever.
async fn outcome(follower: Follower) -> Result<Vec<u8>> {
    let mut stream = pin!(follower.stream(0, None));
    let mut data = Vec::new();
    while let Some(chunk) = tokio::time::timeout(PATIENCE, stream.next()).await.expect("it waits for ever") {
        data.extend_from_slice(&chunk?);
    }
    Ok(data)
}

fn not_stored<T>(result: Result<T>) -> bool {
    matches!(result, Err(Error::NotStored { .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_held_back_until_the_object_is_stored() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), engine).await;
        for (announced, len) in
            [(true, 2_000_001), (false, 2_000_001), (true, 1), (true, 0), (false, 0), (true, 1 << 20)]
        {
            let data = pattern(len);
            let name = format!("film {announced} {len}");
            let mut writer = store.create(meta(&name, announced.then_some(len))).await.unwrap();
            let mut early = Box::pin(follow(&store, &name).stream(0, None));
            assert!(early.next().now_or_never().is_none(), "nothing is there yet");
            for piece in data.chunks(77_777) {
                writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
            }
            let sealed = writer.seal().await.unwrap();
            // All but what tells that it is complete.
            let mut got = all_there_is(&mut early, if announced { len.saturating_sub(1) } else { len }).await;
            assert!(store.object(&key(&name)).await.unwrap().is_none());
            let late = follow(&store, &name);
            store.put_object(&key(&name), sealed, Precondition::None).await.unwrap();
            got.extend(collect(early).await);
            assert!(got == data, "{name}");
            assert!(outcome(late).await.unwrap() == data, "{name}");
            assert!(store.writer_of(&key(&name)).is_none(), "it is an object now");
        }
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_before_the_end_is_complete_when_its_bytes_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let data = pattern(3_000_000);
    for announced in [Some(data.len()), None] {
        let mut writer = store.create(meta("part", announced)).await.unwrap();
        let parts = [0..1, 5..300_000, 262_143..262_145, 1_000_000..2_000_000];
        let wanted = parts.clone().map(|part| {
            let follower = follow(&store, "part");
            collect(follower.stream(part.start as u64, Some(part.end as u64)))
        });
        let beyond = announced.is_none().then(|| follow(&store, "part").stream(2_999_999, Some(3_000_001)));
        writer.write(data.clone().into()).await.unwrap();
        for (part, wanted) in parts.into_iter().zip(wanted) {
            assert!(tokio::time::timeout(PATIENCE, wanted).await.unwrap() == data[part.clone()], "{part:?}");
        }
        let last = follow(&store, "part").stream(2_999_990, Some(3_000_000));
        store_as(&store, "part", writer).await;
        assert!(collect(last).await == data[2_999_990..]);
        if let Some(beyond) = beyond {
            let beyond: Vec<_> = beyond.collect().await;
            assert!(beyond.into_iter().any(not_stored), "fewer bytes than were promised");
        }
    }
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_ends_without_an_object_ends_its_followers() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let data = pattern(1_500_000);
    let begin = async || {
        let mut writer = store.create(meta("film", Some(data.len()))).await.unwrap();
        writer.write(data.clone().into()).await.unwrap();
        let following = tokio::spawn(outcome(follow(&store, "film")));
        (writer, following)
    };
    let (writer, following) = begin().await;
    writer.abort().await;
    assert!(not_stored(following.await.unwrap()), "aborted");

    let (writer, following) = begin().await;
    drop(writer);
    assert!(not_stored(following.await.unwrap()), "dropped");

    let (writer, following) = begin().await;
    let sealed = writer.seal().await.unwrap();
    drop(sealed);
    assert!(not_stored(following.await.unwrap()), "sealed and dropped");

    let (writer, following) = begin().await;
    let sealed = writer.seal().await.unwrap();
    let refused = store.put_object(&key("film"), sealed, Precondition::IfMatchAny).await;
    assert!(matches!(refused, Err(Error::PreconditionFailed { .. })));
    assert!(not_stored(following.await.unwrap()), "sealed and refused");

    let (mut writer, following) = begin().await;
    writer.write(Bytes::from_static(b"more than was announced")).await.unwrap();
    store_as(&store, "film", writer).await;
    assert!(not_stored(following.await.unwrap()), "another length than was announced");
    assert!(store.writer_of(&key("film")).is_none());
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_writer_is_followed_from_the_first_byte() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let data = pattern(2_345_678);
    let id = BlobId::new();
    let mut writer = store.create_journaled(id, meta("film", Some(data.len())), vec![]).await.unwrap();
    let tag = follow(&store, "film").tag();
    writer.write(Bytes::copy_from_slice(&data[..1_000_001])).await.unwrap();
    writer.checkpoint(vec![]).await.unwrap();
    writer.write(Bytes::copy_from_slice(&pattern(700_000))).await.unwrap();
    let slow = follow(&store, "film");
    let mut slow = Box::pin(slow.stream(0, None));
    let first = slow.next().await.unwrap().unwrap();
    assert!(first == data[..first.len()]);
    drop(writer);
    // A slow reader keeps nobody from taking the blob up again.
    let (mut writer, _) = tokio::time::timeout(PATIENCE, store.resume(id)).await.unwrap().unwrap().expect("a partial");
    assert!(slow.next().await.is_some_and(not_stored));
    let following = tokio::spawn(outcome(follow(&store, "film")));
    writer.write(Bytes::copy_from_slice(&data[writer.len() as usize..])).await.unwrap();
    assert_eq!(follow(&store, "film").tag(), tag, "the same blob, the same bytes");
    store_as(&store, "film", writer).await;
    assert!(following.await.unwrap().unwrap() == data);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_goes_back_is_another_one_for_its_followers() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let data = pattern(2_000_000);
    for (kept, announced, more) in [(1_000_001, true, true), (262_144, false, true), (1_500_000, false, false)] {
        let len = if more { data.len() } else { kept };
        let meta = meta("film", announced.then_some(len));
        let mut writer = store.create_journaled(BlobId::new(), meta, vec![]).await.unwrap();
        writer.write(Bytes::copy_from_slice(&data[..kept])).await.unwrap();
        writer.checkpoint(vec![]).await.unwrap();
        let old = follow(&store, "film");
        let tag = old.tag();
        let old = tokio::spawn(outcome(old));
        writer.write(vec![7; 400_000].into()).await.unwrap();
        writer.hand_over().await.unwrap();
        assert_eq!(writer.rewind().await.unwrap(), kept as u64);
        if more {
            writer.write(Bytes::copy_from_slice(&data[kept..])).await.unwrap();
            writer.hand_over().await.unwrap();
            let new = follow(&store, "film");
            assert_ne!(new.tag(), tag);
            let new = tokio::spawn(outcome(new));
            store_as(&store, "film", writer).await;
            assert!(new.await.unwrap().unwrap() == data);
        } else {
            store_as(&store, "film", writer).await;
        }
        assert!(not_stored(old.await.unwrap()), "it may have been given what was dropped");
        let object = store.object(&key("film")).await.unwrap().unwrap();
        assert_eq!(object.blake3, *blake3::hash(&data[..len]).as_bytes());
        assert!(store.delete_object(&key("film"), Precondition::None).await.unwrap());
    }
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_writer_is_followed_closely() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let mut writer = store.create(meta("live", None)).await.unwrap();
    let mut stream = Box::pin(follow(&store, "live").stream(0, None));
    let (mut sent, mut got) = (Vec::new(), Vec::new());
    for piece in pattern(5_000).chunks(1_000) {
        tokio::time::sleep(limits::FOLLOWED_BATCH_AGE).await;
        writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
        sent.extend_from_slice(piece);
        let chunk = tokio::time::timeout(PATIENCE, stream.next()).await.expect("far from a full batch").unwrap();
        got.extend_from_slice(&chunk.unwrap());
        assert!(got == sent);
    }
    writer.write(Bytes::from_static(b"then a pause")).await.unwrap();
    writer.hand_over().await.unwrap();
    sent.extend_from_slice(b"then a pause");
    got.extend_from_slice(&stream.next().await.unwrap().unwrap());
    assert!(got == sent);
    store_as(&store, "live", writer).await;
    got.extend(collect(stream).await);
    assert!(got == sent);
    let object = store.object(&key("live")).await.unwrap().unwrap();
    assert_eq!(object.blake3, *blake3::hash(&sent).as_bytes());
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_writers_the_later_one_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let (one, two) = (pattern(900_000), pattern(800_000));
    let mut first = store.create(meta("film", None)).await.unwrap();
    let of_first = follow(&store, "film");
    let mut second = store.create(meta("film", None)).await.unwrap();
    let of_second = follow(&store, "film");
    assert_ne!(of_first.tag(), of_second.tag());
    assert_eq!(of_second.id(), second.id());
    first.write(one.clone().into()).await.unwrap();
    second.write(two.clone().into()).await.unwrap();
    let tasks = [tokio::spawn(outcome(of_first)), tokio::spawn(outcome(of_second))];
    store_as(&store, "film", second).await;
    assert_eq!(follow(&store, "film").id(), first.id());
    // Its object is replaced while it is read: the reader has the file.
    store_as(&store, "film", first).await;
    let [of_first, of_second] = tasks;
    assert!(of_first.await.unwrap().unwrap() == one);
    assert!(of_second.await.unwrap().unwrap() == two);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_deleted_is_still_read_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let data = pattern(4_000_000);
    let mut writer = store.create(meta("film", Some(data.len()))).await.unwrap();
    let mut slow = Box::pin(follow(&store, "film").stream(0, None));
    writer.write(data.clone().into()).await.unwrap();
    let mut got = slow.next().await.unwrap().unwrap().to_vec();
    store_as(&store, "film", writer).await;
    assert!(store.delete_object(&key("film"), Precondition::None).await.unwrap());
    got.extend(collect(slow).await);
    assert!(got == data);
    store.close().await.unwrap();
}

fn partial_of(dir: &Path, id: BlobId) -> std::path::PathBuf {
    dir.join("partial").join(id.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_not_sent() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let data = pattern(1 << 20);
    let mut writer = store.create(meta("film", None)).await.unwrap();
    writer.write(data.clone().into()).await.unwrap();
    writer.hand_over().await.unwrap();
    let mut stream = Box::pin(follow(&store, "film").stream(0, None));
    assert!(all_there_is(&mut stream, data.len()).await == data);
    flip_byte(&partial_of(dir.path(), writer.id()), 300_000);
    let mut stream = Box::pin(follow(&store, "film").stream(262_144, Some(300_010)));
    assert!(matches!(stream.next().await, Some(Err(Error::Corrupt { .. }))));
    let mut stream = Box::pin(follow(&store, "film").stream(0, Some(1000)));
    assert!(stream.next().await.unwrap().unwrap() == data[..1000], "another block");
    drop(writer);
    store.close().await.unwrap();
}

/// Many wait at the end for the same bytes, and some are slow: memory and descriptors stay within their bounds.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_followers_get_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineChoice::Auto).await;
    let data = pattern(6_000_000);
    let mut writer = store.create(meta("film", Some(data.len()))).await.unwrap();
    let partial = partial_of(dir.path(), writer.id());
    let open_files = || {
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        descriptors.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|path| path == partial)).count()
    };
    let hash = blake3::hash(&data);
    let followers: Vec<_> = (0..1000)
        .map(|n| {
            let mut stream = Box::pin(follow(&store, "film").stream(0, None));
            tokio::spawn(async move {
                let (mut hasher, mut chunks) = (blake3::Hasher::new(), 0);
                while let Some(chunk) = stream.next().await {
                    hasher.update(&chunk.unwrap());
                    chunks += 1;
                    if n % 100 == 0 {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
                (hasher.finalize(), chunks)
            })
        })
        .collect();
    assert_eq!(open_files(), 2, "one for the writer, one for all of them");
    for piece in data.chunks(500_000) {
        writer.ready().await.unwrap();
        writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    store_as(&store, "film", writer).await;
    for follower in followers {
        assert_eq!(tokio::time::timeout(PATIENCE, follower).await.unwrap().unwrap().0, hash);
    }
    let reads: u64 = store.stats().ops.iter().filter(|op| op.op == "read").map(|op| op.total).sum();
    println!("1,000 followers, {reads} reads");
    store.close().await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever the pieces, the checkpoints and the moments at which followers come: each gets the same bytes, or an error.
    #[test]
    fn any_writer_is_followed_exactly(
        pieces in proptest::collection::vec((1usize..700_000, 0u8..4, any::<bool>()), 1..12),
        announced: bool,
        journaled: bool,
        stored in prop::bool::weighted(0.7),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        runtime.block_on(async {
            let store = open(dir.path(), EngineChoice::Auto).await;
            let data = pattern(pieces.iter().map(|(len, ..)| len).sum());
            let meta = meta("film", announced.then_some(data.len()));
            let mut writer = match journaled {
                true => store.create_journaled(BlobId::new(), meta, vec![]).await.unwrap(),
                false => store.create(meta).await.unwrap(),
            };
            let (mut at, mut followers) = (0, Vec::new());
            for (len, act, followed) in pieces {
                if followed {
                    followers.push(tokio::spawn(outcome(follow(&store, "film"))));
                }
                writer.write(Bytes::copy_from_slice(&data[at..at + len])).await.unwrap();
                at += len;
                match act {
                    1 if journaled => assert_eq!(writer.checkpoint(vec![]).await.unwrap(), at as u64),
                    2 => writer.hand_over().await.unwrap(),
                    3 => tokio::task::yield_now().await,
                    _ => {}
                }
            }
            match stored {
                true => store_as(&store, "film", writer).await,
                false => drop(writer),
            }
            for follower in followers {
                match follower.await.unwrap() {
                    Ok(got) => assert!(stored && got == data),
                    Err(error) => assert!(!stored, "{error}"),
                }
            }
            store.close().await.unwrap();
        });
    }
}
