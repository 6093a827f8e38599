//! A small object written and read back the way the node does it, to see the engine and the disk at work.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use reelring_storage::{BlobMeta, Error, Key, Precondition, Store, StoreOptions};

use super::Check;
use super::machine::existing;
use crate::config::Config;

const BYTES: usize = 1 << 20;
/// A disk that takes longer than this for one durable megabyte is worth a warning.
const SLOW: Duration = Duration::from_millis(500);
const TIMEOUT: Duration = Duration::from_secs(20);

struct Trial {
    engine: &'static str,
    reason: String,
    took: Duration,
}

pub async fn run(config: &Config) -> Vec<Check> {
    let folder = existing(&config.data);
    let scratch =
        Scratch(folder.join(format!(".reelring-doctor-{}-{:08x}", std::process::id(), rand::random::<u32>())));
    let outcome = tokio::time::timeout(TIMEOUT, attempt(config, &scratch)).await;
    let place = folder.display();
    match outcome {
        Ok(Ok(trial)) => {
            let engine = match (trial.engine, config.engine) {
                ("threads", reelring_storage::EngineChoice::Auto) => Check::warn(
                    "engine",
                    format!("threads: {}", trial.reason),
                    "all works, at a lower rate; allow io_uring in the container or the kernel for more",
                ),
                (engine, _) => Check::ok("engine", format!("{engine}: {}", trial.reason)),
            };
            let finding = format!("1 MiB durable and read back in {} ms", trial.took.as_millis());
            let disk = match trial.took > SLOW {
                true => Check::warn("durable write", finding, "every upload waits for the disk: look for a faster one"),
                false => Check::ok("durable write", finding),
            };
            vec![engine, disk]
        }
        Ok(Err(error @ Error::EngineRefused { .. })) => {
            vec![Check::fail("engine", error.to_string(), "use --engine auto, or leave it out")]
        }
        Ok(Err(error)) => vec![Check::fail(
            "durable write",
            format!("a trial in {place} failed: {error}"),
            "free space, correct the permissions, or choose another place with --data",
        )],
        Err(_) => vec![Check::fail(
            "durable write",
            format!("1 MiB in {place} did not reach the disk in {} s", TIMEOUT.as_secs()),
            "look for disk errors with `dmesg`",
        )],
    }
}

async fn attempt(config: &Config, scratch: &Scratch) -> Result<Trial, Error> {
    let store = Store::open(StoreOptions { engine: config.engine, ..StoreOptions::new(&scratch.0) }).await?;
    let outcome = exercise(&store).await;
    let engine = store.engine();
    let (name, reason) = (engine.name, engine.reason.clone());
    store.close().await?;
    Ok(Trial { engine: name, reason, took: outcome? })
}

async fn exercise(store: &Store) -> Result<Duration, Error> {
    let data = vec![0x5a; BYTES];
    let begun = Instant::now();
    let mut writer = store.create(BlobMeta { key: None, content_type: None, length_hint: Some(BYTES as u64) }).await?;
    writer.ready().await?;
    writer.write(data.clone().into()).await?;
    let sealed = writer.seal().await?;
    let key = Key::parse("trial").map_err(|error| Error::Rejected(error.to_string()))?;
    let blob = store.put_object(&key, sealed, Precondition::None).await?.record.blob;
    let reader = store.open_blob(blob).await?;
    let mut at = 0;
    while at < BYTES {
        let chunk = reader.read(at as u64, BYTES - at).await?;
        if chunk.is_empty() || chunk != data[at..at + chunk.len()] {
            return Err(Error::Rejected(format!("other bytes came back than were written, from byte {at} on")));
        }
        at += chunk.len();
    }
    Ok(begun.elapsed())
}

/// The trial's folder, removed whatever happens.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
