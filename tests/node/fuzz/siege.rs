//! A node under noise: who makes it, what others want of the node meanwhile, and what must be as before when it is over.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::node::{Node, Setting};
use crate::support::process::{open_files, peak_rss, rss};
use crate::support::{Noise, eventually};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::{ClientBuilder, Method, RequestBuilder, Response};

/// Uploads that noise has begun must not outlast the test.
pub const SETTINGS: &[Setting] = &[("REELRING_UPLOAD_EXPIRY_S", "2")];

const PATIENCE: Duration = Duration::from_secs(60);
const THREADS: u64 = 2;
/// How often somebody else wants something.
const FRIEND_EVERY: Duration = Duration::from_millis(100);
/// Uploads that noise may go on with at any time.
const UPLOADS: usize = 8;
const ROUNDS: u64 = 4;
/// The first round fills pools and caches, the last must not be larger by more.
const GROWTH: u64 = 48 << 20;

/// Somebody who uses the node as it is meant.
pub struct Friend {
    client: reqwest::Client,
    url: String,
    /// What he has stored, which noise knows no name of; and what he stores again and again, because noise takes it away.
    kept: Vec<u8>,
    film: Vec<u8>,
}

impl Friend {
    pub fn new(client: ClientBuilder, url: String) -> Friend {
        let client = client.no_proxy().timeout(Duration::from_secs(20)).build().expect("a client");
        Friend { client, url, kept: Noise::bytes(83, 100_000), film: Noise::bytes(84, 3_000_000) }
    }

    fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    fn tus(&self, method: Method, path: &str) -> RequestBuilder {
        self.ask(method, path).header("Tus-Resumable", "1.0.0")
    }

    async fn put(&self, key: &str, body: Vec<u8>) {
        succeeds(self.ask(Method::PUT, &format!("/v1/objects/{key}")).body(body)).await;
    }

    async fn has_all(&self) {
        let got = succeeds(self.ask(Method::GET, "/v1/objects/kept")).await;
        assert!(got.bytes().await.expect("a body") == self.kept, "other bytes");
    }

    async fn has_part(&self, from: usize, to: usize) {
        let get = self.ask(Method::GET, "/v1/objects/kept").header("Range", format!("bytes={from}-{}", to - 1));
        let got = succeeds(get).await;
        assert_eq!(got.status(), 206);
        assert!(got.bytes().await.expect("a body") == self.kept[from..to], "other bytes from {from} to {to}");
    }

    /// The address of an upload that may go on as long as it likes.
    async fn begin(&self, key: &str) -> String {
        let create = self.tus(Method::POST, "/v1/uploads").header("Upload-Defer-Length", "1");
        let created = succeeds(create.header("Upload-Metadata", format!("key {key}"))).await;
        created.headers()["location"].to_str().expect("an address").to_owned()
    }

    /// In two pieces, to its end.
    async fn uploads(&self) {
        let path = self.begin("b3du").await;
        let patch = |offset: usize| {
            let patch = self.tus(Method::PATCH, &path).header("Content-Type", "application/offset+octet-stream");
            patch.header("Upload-Offset", offset)
        };
        succeeds(patch(0).body("half ")).await;
        succeeds(patch(5).header("Upload-Length", 9).body("half")).await;
        let got = succeeds(self.ask(Method::GET, "/v1/objects/own")).await;
        assert_eq!(got.text().await.expect("a body"), "half half");
    }

    /// Everything that somebody else might want, once.
    async fn lives(&self, random: &mut StdRng) {
        self.put("film", self.film.clone()).await;
        self.uploads().await;
        let from = random.random_range(0..self.kept.len());
        self.has_part(from, random.random_range(from..self.kept.len()) + 1).await;
    }

    /// What the node counts of answers that say that it is at fault.
    async fn faults(&self) -> Vec<String> {
        let metrics = succeeds(self.ask(Method::GET, "/metrics")).await.text().await.expect("metrics");
        metrics.lines().filter(|line| line.contains("status=\"500\"")).map(str::to_owned).collect()
    }

    /// Who listens for events and has left is found out when something is to be told: a job that fails at once.
    async fn makes_news(&self) {
        let job = r#"{"kind":"fetch","url":"http://127.0.0.1:9/"}"#;
        let submit = self.ask(Method::POST, "/v1/jobs").header("Content-Type", "application/json");
        succeeds(submit.body(job)).await;
    }
}

async fn succeeds(request: RequestBuilder) -> Response {
    let shown = format!("{request:?}");
    let answer = request.send().await.unwrap_or_else(|error| panic!("{shown}: {error:?}"));
    assert!(answer.status().is_success(), "{shown}: {}", answer.text().await.unwrap_or_default());
    answer
}

/// Has connections made by `attack` for as long as is asked for; it gets the random numbers of one, and the address of
/// an upload, and says how much of `what` it has sent.
pub async fn besiege<A>(what: &str, node: &mut Node, friend: Friend, attack: A)
where
    A: Fn(&mut StdRng, &str) -> io::Result<u64> + Send + Sync + 'static,
{
    let seconds = std::env::var("REELRING_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let seed: u64 =
        std::env::var("REELRING_FUZZ_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    friend.put("kept", friend.kept.clone()).await;
    friend.has_all().await;
    friend.lives(&mut random).await;
    let before = held(node).len();

    let attack = Arc::new(Attack { attack, seed, number: AtomicU64::new(0), uploads: Mutex::default() });
    let mut sizes = Vec::new();
    let mut all = Sum::default();
    for round in 0..ROUNDS {
        let end = Instant::now() + Duration::from_millis(seconds * 1000 / ROUNDS);
        attack.goes_on_with(friend.begin("ZmlsbQ==").await);
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let attack = attack.clone();
                std::thread::spawn(move || attack.until(end))
            })
            .collect();
        while Instant::now() < end {
            tokio::time::sleep(FRIEND_EVERY).await;
            assert!(node.running(), "seed {seed}, connection {}: {}", attack.number.load(Relaxed), node.log());
            friend.lives(&mut random).await;
            for _ in 0..UPLOADS / 2 {
                attack.goes_on_with(friend.begin("ZmlsbQ==").await);
            }
        }
        for thread in threads {
            let sum = thread.join().expect("no panic here");
            all = Sum { tried: all.tried + sum.tried, made: all.made + sum.made, sent: all.sent + sum.sent };
        }
        sizes.push(rss(node.pid()));
        let Sum { tried, made, sent } = all;
        eprintln!("round {round}: {made} of {tried} connections, {sent} {what}, {} MiB", sizes[round as usize] >> 20);
    }
    assert!(node.running(), "seed {seed}: {}", node.log());
    assert!(!node.log().contains("panicked"), "seed {seed}: {}", node.log());
    assert!(!node.log().contains(" ERROR ") && !node.log().contains(" WARN "), "seed {seed}: {}", node.log());
    friend.has_all().await;
    assert_eq!(friend.faults().await, Vec::<String>::new(), "seed {seed}: {}", node.log());
    assert!(all.made * 10 > all.tried * 9, "seed {seed}: only {} connections were made", all.made);
    let (first, last) = (sizes[0], sizes[ROUNDS as usize - 1]);
    assert!(last < first + GROWTH, "seed {seed}: memory grew from {first} to {last} bytes");
    let begun = Instant::now();
    while held(node).len() > before + 1 {
        assert!(begun.elapsed() < PATIENCE, "seed {seed}: {before} descriptors were held, now {:#?}", held(node));
        friend.makes_news().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    eventually("uploads are cleared away", PATIENCE, async || node.partials().is_empty().then_some(())).await;
    eprintln!("peak RSS {} MiB", peak_rss(node.pid()) >> 20);
}

/// What the node has open, but for the objects that it keeps open because they were read: there is a bound to those.
fn held(node: &Node) -> Vec<PathBuf> {
    let blobs = node.data().join("blobs");
    let is_kept = |path: &Path| path.starts_with(&blobs) && !path.to_string_lossy().ends_with("(deleted)");
    open_files(node.pid()).into_iter().filter(|path| !is_kept(path)).collect()
}

/// What the threads of a siege share.
struct Attack<A> {
    attack: A,
    seed: u64,
    /// Connections so far.
    number: AtomicU64,
    uploads: Mutex<Vec<String>>,
}

#[derive(Default)]
struct Sum {
    tried: u64,
    made: u64,
    sent: u64,
}

impl<A: Fn(&mut StdRng, &str) -> io::Result<u64>> Attack<A> {
    /// Noise ends uploads, or takes them far: there is always a new one.
    fn goes_on_with(&self, upload: String) {
        let mut uploads = self.uploads.lock().unwrap();
        uploads.push(upload);
        if uploads.len() > UPLOADS {
            uploads.remove(0);
        }
    }

    fn until(&self, end: Instant) -> Sum {
        let mut sum = Sum::default();
        while Instant::now() < end {
            let number = self.number.fetch_add(1, Relaxed);
            let mut random = StdRng::seed_from_u64(self.seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let upload = {
                let uploads = self.uploads.lock().unwrap();
                uploads[random.random::<u64>() as usize % uploads.len()].clone()
            };
            sum.tried += 1;
            if let Ok(sent) = (self.attack)(&mut random, &upload) {
                sum.made += 1;
                sum.sent += sent;
            }
        }
        sum
    }
}
