//! Transcoding through the library: a stored object becomes an asset; what goes wrong leaves nothing behind.
//!
//! The worker executable must lie beside the tests' (`cargo build -p reelring-transcode`); without it the tests say so and
//! are skipped.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use reelring::config::WorkerPath;
use reelring::error::FailureKind;
use reelring::progress::{Report, Reporter};
use reelring::transcode::assets::{self, AssetState, Kind};
use reelring::transcode::package::hls;
use reelring::transcode::{AssetId, Ladder, MIGRATION, Outcome, TranscodeRequest, Transcoder};
use reelring_protocol::transcode::{Class, Failed, FromWorker, Probed, Rational, Started, VideoInfo};
use reelring_protocol::{Hello, encode};
use reelring_storage::{BlobMeta, Key, ObjectRecord, Precondition, Store, StoreOptions};
use support::{media, scratch, skipped};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const WORKER: &str = "reelring-transcode";

struct Bench {
    dir: TempDir,
    store: Store,
    transcoder: Transcoder,
    reporter: Reporter,
    report: watch::Receiver<Report>,
    cancel: CancellationToken,
}

impl Bench {
    async fn new(test: &str) -> Option<Bench> {
        let worker = WorkerPath::find(WORKER, None);
        if let Err(reason) = worker.require() {
            skipped(test, &reason);
            return None;
        }
        Some(Bench::with(worker).await)
    }

    async fn with(worker: WorkerPath) -> Bench {
        let dir = scratch("transcode");
        let options = StoreOptions { node_migrations: &[MIGRATION], ..StoreOptions::new(dir.path().join("data")) };
        let store = Store::open(options).await.expect("the store opens");
        let (reporter, report) = Reporter::new();
        let transcoder = Transcoder::new(store.clone(), worker);
        Bench { dir, store, transcoder, reporter, report, cancel: CancellationToken::new() }
    }

    async fn put(&self, key: &str, bytes: Vec<u8>) -> ObjectRecord {
        let mut writer = self.store.create(BlobMeta::default()).await.expect("a blob");
        writer.write(Bytes::from(bytes)).await.expect("written");
        let sealed = writer.seal().await.expect("sealed");
        let key = Key::parse(key).expect("a key");
        self.store.put_object(&key, sealed, Precondition::None).await.expect("stored").record
    }

    fn request(&self, source: &ObjectRecord, ladder: &[&str]) -> TranscodeRequest {
        let ladder = Ladder::parse(ladder).expect("a ladder");
        TranscodeRequest { source: source.clone(), ladder, asset: AssetId::new() }
    }

    async fn run(&self, request: &TranscodeRequest) -> Result<Outcome, reelring::error::Failure> {
        self.transcoder.run(request.clone(), &self.reporter, &self.cancel).await
    }

    /// Files under `blobs/` and `partial/`, which may take a moment to be unlinked after a drop.
    async fn files_settle_at(&self, want: usize) {
        let mut have = usize::MAX;
        for _ in 0..100 {
            have = count(&self.dir.path().join("data/blobs")) + count(&self.dir.path().join("data/partial"));
            if have == want {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(have, want, "files left behind");
    }

    /// One rendition as a player would put it together.
    async fn download(&self, asset: &AssetId, rendition: &str) -> PathBuf {
        let catalog = self.store.catalog();
        let (_, _, segments) = assets::rendition(catalog, asset, rendition).await.unwrap().expect("the rendition");
        let names = std::iter::once("init.mp4".to_owned()).chain(segments.iter().map(|s| format!("{}.m4s", s.index)));
        let mut whole = Vec::new();
        for name in names {
            let blob = assets::part(catalog, asset, rendition, &name).await.unwrap().expect("the part");
            let reader = self.store.open_blob(blob).await.unwrap();
            whole.extend_from_slice(&reader.read(0, reader.len() as usize).await.unwrap());
        }
        let path = self.dir.path().join(format!("{rendition}.mp4"));
        std::fs::write(&path, whole).unwrap();
        path
    }
}

/// What ffprobe finds the durations in the file to add up to.
fn stream_seconds(path: &Path) -> f64 {
    let arguments = ["-v", "error", "-show_entries", "stream=duration", "-of", "csv=p=0"];
    let output = std::process::Command::new("ffprobe").args(arguments).arg(path).output().expect("ffprobe");
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a duration")
}

fn count(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries.filter_map(Result::ok).map(|entry| if entry.path().is_dir() { count(&entry.path()) } else { 1 }).sum()
}

#[tokio::test]
async fn an_object_becomes_an_asset_that_plays() {
    let Some(bench) = Bench::new("an_object_becomes_an_asset_that_plays").await else { return };
    let clip = media::clip(320, 180, 25, 6);
    let source = bench.put("films/test.mp4", std::fs::read(&clip).unwrap()).await;
    let request = bench.request(&source, &["144p", "720p"]);
    let outcome = bench.run(&request).await.unwrap();
    assert_eq!(outcome.frames, 150);
    assert!((outcome.duration_seconds - 6.0).abs() < 0.05, "{outcome:?}");
    assert!(!outcome.encoder.is_empty());

    let report = bench.report.borrow().clone();
    assert_eq!((report.progress.frames_done, report.progress.frames_total), (150, Some(150)));
    assert_eq!(report.notes.encoder, Some(outcome.encoder.clone()));

    let catalog = bench.store.catalog();
    let asset = assets::get(catalog, &request.asset).await.unwrap().expect("the asset");
    assert_eq!(asset.state, AssetState::Ready);
    assert_eq!(asset.source, source.key);
    // 720p would be larger than the source.
    let names: Vec<_> = asset.renditions.iter().map(|rendition| rendition.name.as_str()).collect();
    assert_eq!(names, ["144p", "audio"]);
    assert!(asset.renditions.iter().all(|rendition| rendition.segments == 2 && rendition.bytes > 0));
    assert_eq!(asset.renditions[0].frames, 150);
    assert_eq!(asset.renditions[1].kind, Kind::Audio);
    assert_eq!(assets::list(catalog, None, 10).await.unwrap(), std::slice::from_ref(&asset));
    assert_eq!(assets::list(catalog, Some(asset.id.clone()), 10).await.unwrap(), []);

    let master = hls::master(&asset).expect("every rendition has its init segment");
    assert!(master.contains("RESOLUTION=256x144") && master.contains("CODECS=\"avc1.64"), "{master}");
    let (asset, rendition, segments) = assets::rendition(catalog, &request.asset, "144p").await.unwrap().unwrap();
    let playlist = hls::media(&asset, &rendition, &segments);
    assert!(playlist.contains("#EXTINF:4.000000,\n0.m4s\n#EXTINF:2.000000,\n1.m4s\n#EXT-X-ENDLIST\n"), "{playlist}");
    assert_eq!(assets::part(catalog, &request.asset, "144p", "2.m4s").await.unwrap(), None);
    assert_eq!(assets::part(catalog, &request.asset, "144p", "00.m4s").await.unwrap(), None);

    let video = bench.download(&request.asset, "144p").await;
    assert_eq!(media::packets(&video.to_string_lossy(), "v").len(), 150);
    let audio = bench.download(&request.asset, "audio").await;
    let difference = (stream_seconds(&audio) - stream_seconds(&video)).abs();
    assert!(difference < 1024.0 / 48_000.0, "{difference}");

    // A second run of the job starts a fresh set under the same id.
    bench.run(&request).await.unwrap();
    bench.files_settle_at(1 + 2 * 3).await;
    assert!(assets::delete(&bench.store, &request.asset).await.unwrap());
    assert!(!assets::delete(&bench.store, &request.asset).await.unwrap());
    bench.files_settle_at(1).await;
}

#[tokio::test]
async fn bad_sources_fail_for_good_and_leave_nothing() {
    let Some(bench) = Bench::new("bad_sources_fail_for_good_and_leave_nothing").await else { return };
    let page = b"<!doctype html><title>Sign in</title>".to_vec();
    let audio = std::fs::read(media::audio_only()).unwrap();
    let cases = [
        ("page.mp4", page, "an HTML page"),
        ("cut.mp4", media::truncated(), "moov"),
        ("song.mp4", audio, "no video stream"),
        ("nothing.mp4", Vec::new(), "empty (0 bytes)"),
    ];
    for (number, (key, bytes, words)) in cases.into_iter().enumerate() {
        let source = bench.put(key, bytes).await;
        let request = bench.request(&source, &["360p"]);
        let failure = bench.run(&request).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Permanent, "{failure}");
        assert!(failure.message.contains(key) && failure.message.contains(words), "{failure}");
        assert_eq!(assets::get(bench.store.catalog(), &request.asset).await.unwrap(), None);
        bench.files_settle_at(number + 1).await;
    }
}

/// The worker is killed in the middle: the job may be tried again, and then succeeds.
#[tokio::test]
async fn a_killed_worker_is_a_transient_failure_and_a_cancel_ends_it() {
    let test = "a_killed_worker_is_a_transient_failure_and_a_cancel_ends_it";
    let Some(bench) = Bench::new(test).await else { return };
    let clip = media::clip(640, 360, 25, 20);
    let source = bench.put("long.mp4", std::fs::read(&clip).unwrap()).await;
    let request = bench.request(&source, &["360p"]);
    for signal in ["-SEGV", "-KILL"] {
        let kill = async {
            let worker = worker_at_work(&bench, &request.asset).await;
            let killed = std::process::Command::new("kill").args([signal, &worker.to_string()]).status().unwrap();
            assert!(killed.success());
        };
        let (result, ()) = tokio::join!(bench.run(&request), kill);
        let failure = result.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Transient, "{failure}");
        assert!(failure.message.contains(&format!("SIG{}", &signal[1..])), "{failure}");
        bench.files_settle_at(1).await;
    }
    let mut process = 0;
    let cancel = async {
        process = worker_at_work(&bench, &request.asset).await;
        bench.cancel.cancel();
    };
    let (result, ()) = tokio::join!(bench.run(&request), cancel);
    assert_eq!(result.unwrap_err().kind, FailureKind::Cancelled);
    assert!(!Path::new(&format!("/proc/{process}")).exists(), "the worker is gone, not a zombie");
    bench.files_settle_at(1).await;
}

/// Waits until the first init segment is committed, and finds the worker among this process's children.
async fn worker_at_work(bench: &Bench, asset: &AssetId) -> u32 {
    loop {
        let found = assets::get(bench.store.catalog(), asset).await.unwrap();
        if found.is_some_and(|asset| !asset.renditions.is_empty()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Tests run in parallel, each with a worker of its own: the one with this source is wanted.
    let blob = bench.dir.path().canonicalize().unwrap();
    for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let command = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let source = std::fs::read_link(entry.path().join("fd/1")).unwrap_or_default();
        if command.starts_with("reelring-transc") && source.starts_with(&blob) {
            return id;
        }
    }
    panic!("no worker has this source open");
}

#[tokio::test]
async fn a_worker_that_is_missing_or_not_one_is_said_so() {
    let missing = WorkerPath::Missing { name: WORKER, searched: vec!["/nowhere".into()] };
    let bench = Bench::with(missing).await;
    let source = bench.put("a.mp4", vec![0; 64]).await;
    let failure = bench.run(&bench.request(&source, &["360p"])).await.unwrap_err();
    assert!(failure.message.contains("not installed") && failure.message.contains("/nowhere"), "{failure}");

    let impostor = bench.dir.path().join("impostor");
    std::fs::write(&impostor, "#!/bin/sh\necho hello >&0\n").unwrap();
    std::fs::set_permissions(&impostor, std::fs::Permissions::from_mode(0o755)).unwrap();
    let transcoder = Transcoder::new(bench.store.clone(), WorkerPath::Found(impostor));
    let request = bench.request(&source, &["360p"]);
    let failure = transcoder.run(request, &bench.reporter, &bench.cancel).await.unwrap_err();
    assert!(failure.message.contains("does not follow the protocol"), "{failure}");
    bench.files_settle_at(1).await;
}

/// A worker whose GPU fails in mid-job is started again on the CPU, and the job says why.
#[tokio::test]
async fn a_failing_gpu_costs_the_gpu_and_not_the_job() {
    let Some(bench) = Bench::new("a_failing_gpu_costs_the_gpu_and_not_the_job").await else { return };
    let WorkerPath::Found(worker) = WorkerPath::find(WORKER, None) else { return };
    let clip = media::clip(320, 180, 25, 6);
    let source = bench.put("a.mp4", std::fs::read(&clip).unwrap()).await;

    // The first time this stands in for a worker on a broken GPU, the second time it is the real one.
    let rate = Rational { num: 25, den: 1 };
    let video = VideoInfo {
        codec: "h264".into(),
        width: 320,
        height: 180,
        sample_aspect: Rational { num: 1, den: 1 },
        frame_rate: rate,
        frames_estimate: None,
    };
    let said = [
        FromWorker::Hello(Hello::new(WORKER, "test", "")),
        FromWorker::Probed(Probed { format: "mov".into(), duration_seconds: None, video, audio: None }),
        FromWorker::Started(Started { encoder: "h264_nvenc".into(), decoder: "cuda".into(), fallback_reason: None }),
        FromWorker::Failed(Failed { class: Class::Sticky, message: "the device went away".into(), log: vec![] }),
    ];
    let words: Vec<u8> = said.iter().flat_map(|message| encode(message, &[]).unwrap()).collect();
    let folder = bench.dir.path().canonicalize().unwrap();
    std::fs::write(folder.join("words"), words).unwrap();
    let path = folder.join("two-faced");
    let script = format!(
        "#!/bin/sh\nif [ -e {0}/again ]; then exec {1}; fi\n: > {0}/again\ncat {0}/words >&0\nsleep 5\n",
        folder.display(),
        worker.display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();

    let transcoder = Transcoder::new(bench.store.clone(), WorkerPath::Found(path));
    let request = bench.request(&source, &["144p"]);
    let outcome = transcoder.run(request.clone(), &bench.reporter, &bench.cancel).await.unwrap();
    assert_eq!((outcome.encoder.as_str(), outcome.frames), ("libx264", 150));
    let reason = outcome.fallback_reason.unwrap();
    assert!(reason.contains("the device went away"), "{reason}");
    let asset = assets::get(bench.store.catalog(), &request.asset).await.unwrap().unwrap();
    assert_eq!(asset.fallback_reason, Some(reason));
    bench.files_settle_at(1 + 2 * 3).await;
}
