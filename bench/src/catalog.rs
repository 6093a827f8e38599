//! `catalog`: how a store with very many objects starts, reads, lists, and what memory it takes.
//!
//! The catalog is real: a row of `blobs` and a row of `objects` for each. Files exist for a sample only, the objects that
//! are read; so the sweep after an unclean stop has only these to look at. Each start is measured in a process of its
//! own. Owns a scratch folder under `--dir`, removed when it ends.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use reelring_storage::{BlobId, BlobMeta, EngineChoice, Key, Precondition, Store, StoreOptions};
use serde::{Deserialize, Serialize};

const SAMPLE: u64 = 1_000;
const SAMPLE_BYTES: usize = 64 * 1024;
const ROWS_OF_ONE_COMMIT: u64 = 20_000;
const PAGE: usize = 1_000;
const LISTS: u64 = 200;

#[derive(Args)]
pub struct CatalogArgs {
    /// How many objects the catalog names
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(SAMPLE..=100_000_000))]
    objects: u64,
    /// Where the store goes; choose the volume to measure
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// The bridge's engine: auto, uring or threads
    #[arg(long, default_value = "auto")]
    engine: EngineChoice,
    /// Starts of each kind
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,
    /// The part that a child process carries out, on the store in `--dir`
    #[arg(long, hide = true)]
    step: Option<Step>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Step {
    Fill,
    /// Measures, then closes.
    Start,
    /// Measures, then ends as a crash would.
    Crash,
}

#[derive(Serialize, Deserialize)]
struct Measured {
    first_read_ms: f64,
    list_ms_median: f64,
    list_ms_max: f64,
    rss_mib: f64,
}

pub fn main(args: &CatalogArgs, runtime: &tokio::runtime::Runtime) -> anyhow::Result<ExitCode> {
    match args.step {
        None => drive(args)?,
        Some(Step::Fill) => runtime.block_on(fill(args))?,
        Some(step) => {
            let (store, measured) = runtime.block_on(measure(args))?;
            println!("{}", serde_json::to_string(&measured)?);
            match step {
                // No destructor runs: nothing is closed, as after a SIGKILL.
                Step::Crash => std::process::exit(0),
                _ => runtime.block_on(store.close())?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn drive(args: &CatalogArgs) -> anyhow::Result<()> {
    let scratch = tempfile::Builder::new().prefix("reelring-bench-").tempdir_in(&args.dir);
    let scratch = scratch.with_context(|| format!("could not make a scratch folder in {}", args.dir.display()))?;
    let dir = scratch.path().join("store");
    let started = Instant::now();
    child(args, &dir, "fill")?;
    let bytes = std::fs::metadata(dir.join("catalog.sqlite"))?.len();
    println!("{} objects, {} files, a catalog of {} MiB", args.objects, SAMPLE, bytes >> 20);
    println!("  filled in {:.1} s", started.elapsed().as_secs_f64());
    println!("  each start is a new process; lists are pages of {PAGE} at {LISTS} random places");
    for _ in 0..args.rounds {
        // A crash at the end makes the next start an unclean one.
        for (how, step) in [("after a clean stop", "crash"), ("after a crash", "start")] {
            let Measured { first_read_ms, list_ms_median, list_ms_max, rss_mib } =
                serde_json::from_str(&child(args, &dir, step)?)?;
            println!(
                "  start {how:<18}  first read {first_read_ms:>6.1} ms, list {list_ms_median:.2} ms (at most \
                 {list_ms_max:.2}), resident {rss_mib:.1} MiB"
            );
        }
    }
    Ok(())
}

fn child(args: &CatalogArgs, dir: &Path, step: &str) -> anyhow::Result<String> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["catalog", "--step", step, "--dir"]).arg(dir);
    command.args(["--engine", &args.engine.to_string(), "--objects", &args.objects.to_string()]);
    let output = command.stderr(std::process::Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the step {step} ended with {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

async fn open(args: &CatalogArgs) -> anyhow::Result<Store> {
    Ok(Store::open(StoreOptions { engine: args.engine, ..StoreOptions::new(&args.dir) }).await?)
}

fn key(number: u64) -> String {
    format!("library/{:05}/film-{number:09}.mp4", number / 500)
}

async fn fill(args: &CatalogArgs) -> anyhow::Result<()> {
    let store = open(args).await?;
    let stride = args.objects / SAMPLE;
    for number in (0..SAMPLE).map(|sample| sample * stride) {
        let mut writer = store.create(BlobMeta { key: Some(key(number)), ..Default::default() }).await?;
        writer.write(Bytes::from(vec![number as u8; SAMPLE_BYTES])).await?;
        store.put_object(&Key::parse(&key(number))?, writer.seal().await?, Precondition::None).await?;
    }
    for first in (0..args.objects).step_by(ROWS_OF_ONE_COMMIT as usize) {
        let numbers = first..(first + ROWS_OF_ONE_COMMIT).min(args.objects);
        let rows = store.catalog().write(move |tx| {
            let mut blob = tx.prepare_cached(
                "INSERT INTO blobs (id, length, blake3, content_type, created_ms) VALUES (?1, ?2, ?3, 'video/mp4', 0)",
            )?;
            let mut object = tx.prepare_cached("INSERT INTO objects (key, blob, modified_ms) VALUES (?1, ?2, 0)")?;
            for number in numbers.filter(|number| number % stride != 0 || number / stride >= SAMPLE) {
                let id = BlobId::new().to_string();
                blob.execute((&id, 4_000_000 + number as i64, [number as u8; 32]))?;
                object.execute((key(number), &id))?;
            }
            Ok(())
        });
        rows.await?;
    }
    Ok(store.close().await?)
}

async fn measure(args: &CatalogArgs) -> anyhow::Result<(Store, Measured)> {
    let started = Instant::now();
    let store = open(args).await?;
    let stride = args.objects / SAMPLE;
    let number = started_nanos() % SAMPLE * stride;
    let object = store.object(&Key::parse(&key(number))?).await?.context("a sampled object is gone")?;
    let read = store.open_blob(object.blob).await?.read(0, SAMPLE_BYTES).await?;
    ensure!(read.len() == SAMPLE_BYTES && read[0] == number as u8, "object {number} was read with other bytes");
    let first_read = started.elapsed();

    let mut lists = Vec::new();
    for _ in 0..LISTS {
        let after = key(started_nanos() % (args.objects - PAGE as u64));
        let begun = Instant::now();
        let page = store.list_objects("library/", Some(&after), PAGE).await?;
        lists.push(begun.elapsed());
        ensure!(page.len() == PAGE, "a page of {} after {after}", page.len());
    }
    lists.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let measured = Measured {
        first_read_ms: ms(first_read),
        list_ms_median: ms(lists[lists.len() / 2]),
        list_ms_max: ms(lists[lists.len() - 1]),
        rss_mib: crate::store::memory_mib("VmRSS")?,
    };
    Ok((store, measured))
}

/// Chance enough for choosing places.
fn started_nanos() -> u64 {
    let nanos = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64);
    nanos.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
}
