//! What a store has promised, and whether it kept it.
//!
//! The oracle hears a process (`load.rs`) through a pipe. It knows what was acknowledged and what was merely begun, so it
//! knows every state that may be found after the process or the file system died: for each key the last acknowledged
//! version, or what the one operation begun after it would have left; for each partial its last checkpoint or more.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use bytes::Bytes;
use reelring_storage::{BlobId, EngineChoice, Key, Precondition, Store};

use super::load::{content, film, finish};
use super::{collect, files_below};

const DIR: &str = "REELRING_CRASH_CHILD";
const ENGINE: &str = "REELRING_CRASH_ENGINE";
/// Far longer than any disk takes, and shorter than anybody waits for a test.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// The version that a key has; `None` when there is no such object.
type Version = Option<u64>;

#[derive(Default)]
pub struct Oracle {
    keys: BTreeMap<String, Promise<Version>>,
    partials: HashMap<BlobId, Promise<Option<u64>>>,
    /// Given up. Not durable by itself: a partial may be there again.
    abandoned: HashSet<BlobId>,
    pub acknowledged: usize,
    judged: u64,
}

/// A state that was acknowledged, and that which an operation begun since then would lead to.
#[derive(Default, Debug, Clone, Copy, PartialEq)]
struct Promise<T> {
    kept: T,
    begun: Option<T>,
}

/// A process that works on a store until it is killed, at the latest when this is dropped.
pub struct Worker {
    child: Child,
    lines: Receiver<String>,
}

/// In the process that a test started through [`Worker::start`]: does the work. Elsewhere it returns at once.
pub fn work_if_told_to() {
    if let Some(dir) = std::env::var_os(DIR) {
        let engine = std::env::var(ENGINE).unwrap().parse().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(super::load::work(Path::new(&dir), engine));
    }
}

impl Worker {
    /// Runs this test binary again, and in it the test of this name, which calls [`work_if_told_to`] first.
    pub fn start(test: &str, dir: &Path, engine: EngineChoice) -> Worker {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--nocapture", test]).env(DIR, dir).env(ENGINE, engine.to_string());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, lines) = channel();
        std::thread::spawn(move || said.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Worker { child, lines }
    }

    /// The next thing it says; `None` when it is gone.
    fn next(&self) -> Option<String> {
        match self.lines.recv_timeout(SILENCE_MAX) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("nothing was said for {SILENCE_MAX:?}: some operation hangs"),
        }
    }

    fn kill(&mut self, deaths: &[i32]) {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        let expected = signal.is_some_and(|signal| deaths.contains(&signal));
        assert!(expected, "the process ended by itself: {status}");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Oracle {
    /// Listens until so much was acknowledged.
    pub fn hear(&mut self, worker: &Worker, acknowledgements: usize) {
        let goal = self.acknowledged + acknowledgements;
        while self.acknowledged < goal {
            let line = worker.next().expect("the process works until it is killed");
            assert!(!line.starts_with("stopped"), "an operation failed before anything was broken: {line}");
            self.note(&line);
        }
    }

    /// Listens until so many workers have stopped, as they must when nothing can be written any more.
    pub fn hear_them_stop(&mut self, worker: &Worker, workers: u64) {
        for _ in 0..workers {
            while let Some(line) = worker.next()
                && !line.starts_with("stopped")
            {
                self.note(&line);
            }
        }
    }

    /// Kills, and hears out what was said before.
    pub fn kill(&mut self, worker: Worker) {
        self.end(worker, &[libc::SIGKILL]);
    }

    /// The same after its file system is gone, of which it may have died already: writing to a mapped page that the file
    /// system refuses, as SQLite does in the index of its log, is SIGBUS on XFS.
    pub fn bury(&mut self, worker: Worker) {
        self.end(worker, &[libc::SIGKILL, libc::SIGBUS]);
    }

    fn end(&mut self, mut worker: Worker, deaths: &[i32]) {
        worker.kill(deaths);
        while let Some(line) = worker.next() {
            self.note(&line);
        }
    }

    fn note(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let acknowledged = match words[..] {
            ["putting", key, version] => self.key(key).begins(Some(version.parse().unwrap())),
            ["put", key, version] => self.key(key).keeps(Some(version.parse().unwrap())),
            ["deleting", key] => self.key(key).begins(None),
            ["deleted", key] => self.key(key).keeps(None),
            ["beginning", id] => self.partial(id).begins(Some(0)),
            ["checkpoint", id, length] => self.partial(id).keeps(Some(length.parse().unwrap())),
            ["finishing", id, length] => {
                self.partial(id).begins(None);
                self.key(id).begins(Some(length.parse().unwrap()))
            }
            ["finished", id, length] => {
                self.partials.remove(&id.parse().unwrap());
                self.key(id).keeps(Some(length.parse().unwrap()))
            }
            ["abandoning", id] => {
                self.partials.remove(&id.parse().unwrap());
                self.abandoned.insert(id.parse().unwrap());
                false
            }
            // The test harness says a word or two on its own.
            _ => false,
        };
        self.acknowledged += usize::from(acknowledged);
    }

    fn key(&mut self, key: &str) -> &mut Promise<Version> {
        self.keys.entry(key.to_owned()).or_default()
    }

    fn partial(&mut self, id: &str) -> &mut Promise<Option<u64>> {
        self.partials.entry(id.parse().unwrap()).or_default()
    }

    /// Opens the store that was left behind and holds it to everything; what is found is a promise from then on.
    pub async fn judge(&mut self, dir: &Path, engine: EngineChoice) {
        let store = super::open(dir, engine).await;
        let finished = self.judge_objects(&store).await;
        let partials = self.judge_partials(&store, &finished).await;
        let stored = self.keys.values().filter(|promise| promise.kept.is_some()).count();
        // Closing waits for the sweep.
        store.close().await.unwrap();
        let (files, debris) = (files_below(&dir.join("partial")), files_below(&dir.join("blobs")));
        assert_eq!(files.len(), 2 * partials, "a partial and its journal for each, and nothing else: {files:?}");
        assert_eq!(debris.len(), stored, "blobs without an object lie about, or the other way round");
    }

    /// Returns the films there were.
    async fn judge_objects(&mut self, store: &Store) -> HashSet<BlobId> {
        let mut found = BTreeMap::new();
        for object in store.list_objects("", None, 10_000).await.unwrap() {
            let key = object.key.as_str().to_owned();
            // A film's version is its length.
            let version = object.content_type.as_ref().map_or(object.length, |version| version.parse().unwrap());
            let expected = match key.parse::<BlobId>() {
                Ok(id) => film(id, 0..version),
                Err(_) => content(&key, version),
            };
            let reader = store.open_blob(object.blob).await.unwrap();
            let data = collect(reader.stream(0..u64::MAX)).await;
            assert!(data == expected, "object {key}, version {version}, is not whole: {} bytes", data.len());
            found.insert(key, version);
        }
        for (key, promise) in &mut self.keys {
            let there = found.get(key).copied();
            assert!(promise.allows(there), "key {key}: {promise:?} was promised, {there:?} is there");
            *promise = Promise { kept: there, begun: None };
        }
        for key in found.keys() {
            assert!(self.keys.contains_key(key), "object {key} was never begun");
        }
        // Films are removed, or they would fill the disk; and they must stay away.
        let films: HashSet<BlobId> = found.keys().filter_map(|key| key.parse().ok()).collect();
        for film in &films {
            self.delete(store, *film).await;
        }
        films
    }

    /// The number of partials there are in the end. In turns they are left for the next process, given up, and finished.
    async fn judge_partials(&mut self, store: &Store, finished: &HashSet<BlobId>) -> usize {
        let mut left = 0;
        let there = store.journaled_partials().await.unwrap();
        for id in &there {
            if self.abandoned.contains(id) {
                store.discard_partial(*id).await.unwrap();
                continue;
            }
            let promise =
                self.partials.get(id).unwrap_or_else(|| panic!("partial {id} was never begun, or was finished"));
            let Some((mut writer, note)) = store.resume(*id).await.unwrap() else {
                // It died while it was created: its journal has no record, and it is gone now.
                assert_eq!(promise.kept, None, "{id} had a checkpoint and does not resume");
                continue;
            };
            let length = writer.len();
            assert!(Some(length) >= promise.kept, "{id}: {:?} bytes were promised, {length} are there", promise.kept);
            assert_eq!(note, length.to_le_bytes());
            self.judged += 1;
            match self.judged % 3 {
                0 => {
                    left += 1;
                    self.partials.insert(*id, Promise { kept: Some(length), begun: None });
                }
                1 => {
                    writer.abort().await;
                    self.partials.remove(id);
                    self.abandoned.insert(*id);
                }
                _ => {
                    writer.write(Bytes::from(film(*id, length..length + 10_000))).await.unwrap();
                    finish(store, writer).await.unwrap();
                    let object = store.object(&Key::parse(&id.to_string()).unwrap()).await.unwrap().unwrap();
                    let reader = store.open_blob(object.blob).await.unwrap();
                    let data = collect(reader.stream(0..u64::MAX)).await;
                    assert!(data == film(*id, 0..length + 10_000), "{id} was resumed with other bytes");
                    drop(reader);
                    self.delete(store, *id).await;
                    self.partials.remove(id);
                }
            }
        }
        self.partials.retain(|id, promise| {
            let may_be_gone = promise.kept.is_none() || finished.contains(id);
            assert!(there.contains(id) || may_be_gone, "partial {id} is gone, {promise:?} was promised");
            there.contains(id)
        });
        left
    }

    async fn delete(&mut self, store: &Store, film: BlobId) {
        let key = film.to_string();
        assert!(store.delete_object(&Key::parse(&key).unwrap(), Precondition::None).await.unwrap());
        self.key(&key).keeps(None);
    }
}

impl<T: PartialEq + Copy> Promise<T> {
    fn begins(&mut self, state: T) -> bool {
        self.begun = Some(state);
        false
    }

    fn keeps(&mut self, state: T) -> bool {
        *self = Promise { kept: state, begun: None };
        true
    }

    fn allows(&self, found: T) -> bool {
        found == self.kept || Some(found) == self.begun
    }
}
