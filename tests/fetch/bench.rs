//! What these tests share: a store, a client, and media to fetch.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use reelring::error::Failure;
use reelring::ingest::guard::{Client, Policy};
use reelring::ingest::{FetchRequest, Fetched, fetch};
use reelring::progress::{Progress, Report, Reporter};
use reelring_storage::{BlobId, Key, Precondition, Store, StoreOptions};
use reqwest::header::HeaderMap;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::support::origin::Asked;
use crate::support::{Noise, eventually, scratch};

pub const MIB: usize = 1 << 20;
pub const OPEN: Policy = Policy { allow_private: true };

/// A store, a client and a place for the fetch to report to.
pub struct Bench {
    pub dir: TempDir,
    pub store: Store,
    pub client: Client,
    pub reporter: Reporter,
    reports: watch::Receiver<Report>,
    pub cancel: CancellationToken,
}

impl Bench {
    pub async fn new() -> Bench {
        Bench::on(scratch("fetch")).await
    }

    pub async fn on(dir: TempDir) -> Bench {
        let store = open(dir.path()).await;
        let (reporter, reports) = Reporter::new();
        Bench { dir, store, client: Client::new(OPEN), reporter, reports, cancel: CancellationToken::new() }
    }

    /// The same directory after the process has ended and come again.
    pub async fn reopened(self) -> Bench {
        self.store.close().await.expect("the store closes");
        let store = open(self.dir.path()).await;
        let (reporter, reports) = Reporter::new();
        Bench { store, reporter, reports, cancel: CancellationToken::new(), ..self }
    }

    pub async fn run(&self, req: FetchRequest) -> Result<Fetched, Failure> {
        fetch(&self.store, &self.client, req, &self.reporter, &self.cancel).await
    }

    pub async fn get(&self, url: &Url) -> Result<Fetched, Failure> {
        self.run(request(url)).await
    }

    pub async fn fails(&self, url: &Url) -> Failure {
        match self.get(url).await {
            Ok(fetched) => panic!("{url} was fetched: {fetched:?}"),
            Err(failure) => failure,
        }
    }

    /// Commits what was fetched and reads it back.
    pub async fn bytes(&self, fetched: Fetched) -> Bytes {
        let key = Key::parse("fetched").unwrap();
        let record = self.store.put_object(&key, fetched.sealed, Precondition::None).await.expect("it commits").record;
        let reader = self.store.open_blob(record.blob).await.expect("it opens");
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < reader.len() {
            bytes.extend_from_slice(&reader.read(bytes.len() as u64, MIB / 4).await.expect("it reads"));
        }
        bytes.into()
    }

    pub fn progress(&self) -> Progress {
        self.reports.borrow().progress.clone()
    }

    /// Waits until the fetch has reported `bytes`.
    pub async fn reported(&self, bytes: u64) {
        let mut reports = self.reports.clone();
        let enough = reports.wait_for(|report| report.progress.bytes_done >= bytes);
        tokio::time::timeout(Duration::from_secs(20), enough).await.expect("bytes come").expect("a reporter");
    }

    /// No partial file, no journal. The store removes what a failure leaves in the background, so it is given a moment.
    pub async fn leaves_nothing(&self) {
        let folder = self.dir.path().join("partial");
        eventually("the partial files are removed", Duration::from_secs(10), async || {
            std::fs::read_dir(&folder).expect("the folder is there").next().is_none().then_some(())
        })
        .await;
    }
}

async fn open(dir: &Path) -> Store {
    Store::open(StoreOptions::new(dir)).await.expect("a store")
}

pub fn request(url: &Url) -> FetchRequest {
    FetchRequest { blob: BlobId::new(), url: url.clone(), headers: HeaderMap::new(), sha256: None, key: None }
}

/// Starts like an mp4, then noise.
pub fn media(seed: u64, length: usize) -> Bytes {
    let mut bytes = Noise::bytes(seed, length);
    let start = b"\0\0\0\x20ftypisom";
    let known = start.len().min(length);
    bytes[..known].copy_from_slice(&start[..known]);
    bytes.into()
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// The first bytes asked for, request by request.
pub fn starts(asked: &[Asked]) -> Vec<Option<u64>> {
    asked.iter().map(Asked::range_start).collect()
}
