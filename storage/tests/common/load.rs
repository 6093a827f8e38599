//! The load that crash tests put on a store, in a process of its own, and what it says of it.
//!
//! One line is printed before an operation begins and one after it was acknowledged, each in one write to a pipe. The
//! lines are all that the oracle knows, so it lives outside the file system that is tested. An operation that fails ends
//! its worker, which says so: whether it may fail is for the test to judge.

use std::io::Write;
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use reelring_storage::{BlobId, BlobMeta, BlobWriter, EngineChoice, Error, Key, Precondition, Result, Store};

pub const WRITERS: u64 = 6;
pub const RECORDERS: u64 = 2;
const KEYS_OF_WRITER: u64 = 8;
const CHECKPOINT_BYTES: u64 = 333_333;

/// Splitmix64: of any number one that looks like chance.
pub fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The bytes that a partial has in this range, wherever it is cut.
pub fn film(id: BlobId, range: Range<u64>) -> Vec<u8> {
    noise(id.created_ms() ^ id.to_string().bytes().fold(0, |sum, byte| mixed(sum ^ u64::from(byte))), range)
}

/// The bytes of an object: nothing, a few, some tens of KiB, or a few MiB.
pub fn content(key: &str, version: u64) -> Vec<u8> {
    let chance = mixed(version);
    let len = match chance % 16 {
        0 => 0,
        1..=4 => chance >> 4 & 0xfff,
        5..=13 => chance >> 4 & 0x1_ffff,
        _ => (chance >> 4) % (4 << 20),
    };
    let key = key.bytes().fold(0, |sum, byte| mixed(sum ^ u64::from(byte)));
    noise(key ^ version, 0..len)
}

fn noise(seed: u64, range: Range<u64>) -> Vec<u8> {
    let words = range.start / 8..range.end.div_ceil(8);
    let mut bytes = Vec::with_capacity((words.end - words.start) as usize * 8);
    for word in words.clone() {
        bytes.extend_from_slice(&mixed(seed.wrapping_add(word)).to_le_bytes());
    }
    bytes.truncate((range.end - words.start * 8) as usize);
    bytes.drain(..(range.start - words.start * 8) as usize);
    bytes
}

fn say(line: String) {
    // One write of a whole line: the pipe does not tear what is shorter than PIPE_BUF.
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

/// Works until it is killed, or until the store refuses everything.
pub async fn work(dir: &Path, engine: EngineChoice) {
    let store = super::open(dir, engine).await;
    let partials = store.journaled_partials().await.unwrap();
    // Ends the line that the test harness began.
    say("\n".into());
    // Versions grow over all runs.
    let base = std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as u64;
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        tasks.spawn(async move { (writer, write_objects(&store, writer, base).await) });
    }
    for recorder in 0..RECORDERS {
        let store = store.clone();
        let left: Vec<BlobId> = partials.iter().copied().skip(recorder as usize).step_by(RECORDERS as usize).collect();
        tasks.spawn(async move { (WRITERS + recorder, record(&store, left, base + recorder).await) });
    }
    while let Some(task) = tasks.join_next().await {
        let (worker, error) = task.unwrap();
        say(format!("stopped {worker} {}\n", error.to_string().replace('\n', " ")));
    }
    // The test ends this process; until then it may look at it.
    std::future::pending().await
}

/// Puts, replaces, reads and deletes. Each key has one writer, so that its states follow each other.
async fn write_objects(store: &Store, writer: u64, base: u64) -> Error {
    for step in 0.. {
        let version = base + step;
        let chance = mixed(version ^ writer << 56);
        let key = format!("{}", chance % KEYS_OF_WRITER * WRITERS + writer);
        let done = match chance >> 8 & 7 {
            0 => delete(store, &key).await,
            1 => read_back(store, &key).await,
            _ => put(store, &key, version).await,
        };
        if let Err(error) = done {
            return error;
        }
    }
    unreachable!()
}

async fn put(store: &Store, key: &str, version: u64) -> Result<()> {
    say(format!("putting {key} {version}\n"));
    let data = content(key, version);
    let length_hint = version.is_multiple_of(2).then_some(data.len() as u64);
    let meta = BlobMeta { length_hint, content_type: Some(version.to_string()), ..Default::default() };
    let mut writer = store.create(meta).await?;
    for piece in data.chunks(200_000) {
        writer.ready().await?;
        writer.write(Bytes::copy_from_slice(piece)).await?;
    }
    let sealed = writer.seal().await?;
    store.put_object(&Key::parse(key).unwrap(), sealed, Precondition::None).await?;
    say(format!("put {key} {version}\n"));
    Ok(())
}

async fn delete(store: &Store, key: &str) -> Result<()> {
    say(format!("deleting {key}\n"));
    store.delete_object(&Key::parse(key).unwrap(), Precondition::None).await?;
    say(format!("deleted {key}\n"));
    Ok(())
}

async fn read_back(store: &Store, key: &str) -> Result<()> {
    let Some(object) = store.object(&Key::parse(key).unwrap()).await? else { return Ok(()) };
    let version = object.content_type.unwrap().parse().unwrap();
    let expected = content(key, version);
    let reader = store.open_blob(object.blob).await?;
    let read = futures_util::TryStreamExt::try_collect::<Vec<Bytes>>(reader.stream(0..u64::MAX)).await?;
    assert!(read.concat() == expected, "object {key} was read with other bytes than version {version} has");
    Ok(())
}

/// Journaled partials: those that the last process left are taken up first.
async fn record(store: &Store, left: Vec<BlobId>, base: u64) -> Error {
    for id in left {
        let taken_up = async {
            let Some((writer, _)) = store.resume(id).await? else { return Ok(()) };
            // What `resume` says is a promise as well.
            say(format!("checkpoint {id} {}\n", writer.len()));
            record_some(store, writer, mixed(base)).await
        };
        if let Err(error) = taken_up.await {
            return error;
        }
    }
    for step in 0.. {
        let id = BlobId::new();
        let begun = async {
            say(format!("beginning {id}\n"));
            let writer = store.create_journaled(id, BlobMeta::default(), 0u64.to_le_bytes().to_vec()).await?;
            say(format!("checkpoint {id} 0\n"));
            record_some(store, writer, mixed(base + 2 * step)).await
        };
        if let Err(error) = begun.await {
            return error;
        }
    }
    unreachable!()
}

async fn record_some(store: &Store, mut writer: BlobWriter, chance: u64) -> Result<()> {
    let id = writer.id();
    for _ in 0..chance % 6 {
        writer.write(Bytes::from(film(id, writer.len()..writer.len() + CHECKPOINT_BYTES))).await?;
        let length = writer.checkpoint(writer.len().to_le_bytes().to_vec()).await?;
        say(format!("checkpoint {id} {length}\n"));
    }
    match chance >> 8 & 3 {
        0 => {
            say(format!("abandoning {id}\n"));
            writer.abort().await;
            Ok(())
        }
        // Stays, for the next process to find.
        1 => Ok(()),
        _ => {
            writer.write(Bytes::from(film(id, writer.len()..writer.len() + chance % 50_000))).await?;
            let length = writer.len();
            say(format!("finishing {id} {length}\n"));
            finish(store, writer).await?;
            say(format!("finished {id} {length}\n"));
            Ok(())
        }
    }
}

/// Seals a partial and stores it under its id.
pub async fn finish(store: &Store, writer: BlobWriter) -> Result<()> {
    let key = Key::parse(&writer.id().to_string()).unwrap();
    let sealed = writer.seal().await?;
    store.put_object(&key, sealed, Precondition::None).await.map(drop)
}
