//! Runs jobs as fio does: files first, then one group after another, each clone on its own.
//!
//! The main thread lays the files out, starts the lanes of a group (`lane.rs`), samples their counters twice a second, shows
//! the progress, and collects what they counted. A lane of `raw` or `mmap` is a thread; one of `bridge`, `threads` or `http` is a
//! task of a multi-thread tokio runtime, as a request is in the node. The first Ctrl-C sets a flag: lanes issue nothing more and
//! await what is in flight, and the partial result is printed; the second ends the process.

mod check;
pub mod command;
mod failure;
mod gather;
mod handicap;
mod iolog;
mod lane;
mod layout;
mod pause;
mod progress;
mod replay;
pub mod stats;
mod usage;
mod verify;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Barrier, mpsc};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use reelring_storage::{Bridge, EngineChoice, Pool};

pub use self::failure::Failure;
use self::handicap::Handicap;
use self::lane::{Lane, Outcome};
pub use self::pause::Pause;
pub use self::progress::Eta;
use self::progress::Watched;
use self::stats::Stats;
pub use self::usage::Usage;
use crate::engine::{Access, Bridged, Http, Mapped, Node, Raw, watch_for_faults};
use crate::job::{EngineKind, Job};
use crate::limits::{BRIDGE_POOL_BYTES, CLONES};

pub struct Options {
    /// Wins over what the jobs say.
    pub engine: Option<EngineKind>,
    /// `host:port` of a node for the `http` engine.
    pub node: Option<String>,
    pub eta: Eta,
    /// Removes the files this run created.
    pub unlink: bool,
    /// Percent by which to be slower than one is.
    pub handicap: Option<f64>,
}

/// What a run found out.
pub struct Report {
    pub started: SystemTime,
    pub jobs: Vec<JobReport>,
    pub interrupted: bool,
}

/// One clone, or all of a group with `group_reporting`.
pub struct JobReport {
    pub job: Arc<Job>,
    pub engine: EngineKind,
    pub group: u32,
    pub clones: u32,
    pub failure: Option<Failure>,
    /// In flight at most.
    pub depth: usize,
    pub stats: Stats,
    /// Of all clones together.
    pub runtime: Duration,
    pub usage: Usage,
    /// From the start of the whole run to the end of its group.
    pub since_start: Duration,
}

/// A clone that is to run.
struct Clone {
    job: Arc<Job>,
    engine: EngineKind,
    group: u32,
    /// Over all jobs, from 1.
    number: u32,
    paths: Vec<PathBuf>,
    sizes: Vec<u64>,
}

struct Runner {
    options: Options,
    started: Instant,
    tokio: tokio::runtime::Runtime,
    stop: Arc<AtomicBool>,
    bridges: [Option<(Bridge, Pool)>; 2],
    node: Option<Node>,
    authority: String,
    /// Files this run made.
    created: BTreeSet<PathBuf>,
}

/// Runs the jobs. An error means that nothing ran; what goes wrong later stands in the report.
pub fn run(jobs: Vec<Job>, options: Options) -> Result<Report, String> {
    let mut clones = expand(jobs, options.engine)?;
    let started = (SystemTime::now(), Instant::now());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let tokio = tokio.map_err(|error| format!("could not start the tokio runtime: {error}"))?;
    let stop = Arc::new(AtomicBool::new(false));
    tokio.spawn(watch_for_signals(Arc::clone(&stop)));
    let mut runner = Runner {
        options,
        started: started.1,
        tokio,
        stop,
        bridges: [const { None }; 2],
        node: None,
        authority: String::new(),
        created: BTreeSet::new(),
    };
    let mut reports = Vec::new();
    let mut groups = clones.last().map_or(0, |clone| clone.group + 1);
    match runner.prepare(&mut clones) {
        Ok(()) => {}
        Err(Unready::Refused(problem)) => return Err(problem),
        Err(Unready::Failed { clone, failure }) => {
            // Nothing runs, as with fio, and the result says why.
            groups = 0;
            reports.push(JobReport::of_failure(&clones[clone], failure));
        }
    }
    for group in 0..groups {
        let members: Vec<&Clone> = clones.iter().filter(|clone| clone.group == group).collect();
        if runner.stop.load(Relaxed) {
            break;
        }
        reports.extend(runner.run_group(&members, started.1));
    }
    let interrupted = runner.stop.load(Relaxed);
    runner.finish();
    Ok(Report { started: started.0, jobs: reports, interrupted })
}

/// Why nothing was run.
enum Unready {
    Refused(String),
    /// The files of a clone could not be laid out.
    Failed {
        clone: usize,
        failure: Failure,
    },
}

impl From<String> for Unready {
    fn from(problem: String) -> Unready {
        Unready::Refused(problem)
    }
}

impl JobReport {
    fn of_failure(clone: &Clone, failure: Failure) -> JobReport {
        JobReport {
            job: Arc::clone(&clone.job),
            engine: clone.engine,
            group: clone.group,
            clones: 1,
            failure: Some(failure),
            depth: clone.depth(),
            stats: Stats::default(),
            runtime: Duration::ZERO,
            usage: Usage::default(),
            since_start: Duration::ZERO,
        }
    }
}

/// Every clone of every job, in order, with its engine and group.
fn expand(jobs: Vec<Job>, chosen: Option<EngineKind>) -> Result<Vec<Clone>, String> {
    let mut clones = Vec::new();
    let mut group = 0;
    for job in jobs {
        let engine = chosen.or(job.engine).unwrap_or(EngineKind::Raw);
        check::check(&job, engine)?;
        if job.stonewall && !clones.is_empty() {
            group += 1;
        }
        let job = Arc::new(job);
        for clone in job.clones() {
            let paths = job.files.of_clone(&job.name, clone);
            let number = clones.len() as u32 + 1;
            clones.push(Clone { job: Arc::clone(&job), engine, group, number, paths, sizes: Vec::new() });
        }
        if clones.len() > CLONES {
            return Err(format!("all jobs together have {} clones (numjobs), the limit is {CLONES}", clones.len()));
        }
    }
    if clones.is_empty() {
        return Err("there is no job: give a job file, or --name=NAME with its options".into());
    }
    check::check_memory(clones.iter().map(|clone| (clone.largest_block(), clone.depth() as u64)))?;
    Ok(clones)
}

impl Clone {
    fn largest_block(&self) -> u64 {
        self.job.read_blocks.max.max(self.job.write_blocks.max)
    }

    /// In flight at most: a map answers before the next operation can start.
    fn depth(&self) -> usize {
        if self.engine == EngineKind::Mmap { 1 } else { self.job.iodepth.max(1) as usize }
    }

    /// Whether its files are to come from the disk.
    fn forgets(&self) -> bool {
        self.job.invalidate && !self.job.direct && self.engine != EngineKind::Http
    }

    fn has_own_thread(&self) -> bool {
        matches!(self.engine, EngineKind::Raw | EngineKind::Mmap)
    }

    fn access(&self) -> Access {
        Access { write: self.job.rw.writes, direct: self.job.direct }
    }

    /// Bytes it goes over once.
    fn bytes(&self) -> u64 {
        if self.job.size > 0 {
            self.job.size
        } else {
            self.sizes.iter().map(|size| size.saturating_sub(self.job.offset)).sum()
        }
    }

    /// The names of its objects at a node.
    fn keys(&self) -> Vec<String> {
        let key = |path: &PathBuf| format!("bench/{}", path.file_name().unwrap_or_default().to_string_lossy());
        self.paths.iter().map(key).collect()
    }
}

impl Runner {
    /// Engines and files, before any clock starts.
    fn prepare(&mut self, clones: &mut [Clone]) -> Result<(), Unready> {
        for (slot, kind, choice) in
            [(0, EngineKind::Bridge, EngineChoice::Uring), (1, EngineKind::Threads, EngineChoice::Threads)]
        {
            let of_kind = || clones.iter().filter(|clone| clone.engine == kind);
            if of_kind().next().is_some() {
                // Buffers come in sizes up to four times what was asked for.
                let wanted = of_kind().map(|clone| clone.largest_block().max(4096) * clone.depth() as u64).sum::<u64>();
                let bytes = wanted.saturating_mul(16).clamp(8 << 20, BRIDGE_POOL_BYTES) as usize;
                let bridge = self.tokio.block_on(async { Bridge::start(choice) }).map_err(|error| error.to_string())?;
                self.bridges[slot] = Some((bridge, Pool::new(bytes)));
            }
        }
        if clones.iter().any(|clone| clone.engine == EngineKind::Mmap) {
            watch_for_faults().map_err(|error| format!("could not watch for SIGBUS: {error}"))?;
        }
        if let Some(first) = clones.iter().find(|clone| clone.engine == EngineKind::Http) {
            self.authority = match &self.options.node {
                Some(node) => node.clone(),
                None => {
                    let dir =
                        first.paths[0].parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
                    let node = Node::start(dir).map_err(|error| format!("could not start a node: {error}"))?;
                    self.node.insert(node).authority().to_owned()
                }
            };
        }
        for (index, clone) in clones.iter_mut().enumerate() {
            let failed = |failure| Unready::Failed { clone: index, failure };
            for file in 0..clone.paths.len() {
                let size = if clone.engine == EngineKind::Http {
                    self.tokio.block_on(lay_out_object(clone, file, &self.authority)).map_err(failed)?
                } else {
                    let path = &clone.paths[file];
                    let laid =
                        layout::lay_out(&clone.job, path, clone.job.file_size(file), &self.stop).map_err(failed)?;
                    if laid.created {
                        self.created.insert(path.clone());
                    }
                    laid.size
                };
                clone.sizes.push(size);
            }
        }
        Ok(())
    }

    /// Starts the clones of one group together and waits for all of them.
    fn run_group(&mut self, clones: &[&Clone], started: Instant) -> Vec<JobReport> {
        for clone in clones {
            if clone.forgets() {
                // As for fio, a cache that does not forget is no error.
                clone.paths.iter().for_each(|path| drop(layout::forget(path)));
            }
        }
        let (send, outcomes) = mpsc::channel();
        let threads = clones.iter().filter(|clone| clone.has_own_thread()).count();
        let gate = Arc::new(Barrier::new(threads + 1));
        let mut watched = Vec::new();
        let mut tasks = Vec::new();
        let mut handles = Vec::new();
        for (index, clone) in clones.iter().enumerate() {
            let lane = self.lane(clone);
            let (live, job, size) = (Arc::clone(&lane.live), Arc::clone(&clone.job), clone.bytes());
            watched.push(Watched { live, job, size });
            let send = send.clone();
            if clone.has_own_thread() {
                let (gate, engine, access) = (Arc::clone(&gate), clone.engine, clone.access());
                let name = format!("clone-{}", lane.number);
                let work = move || drop(send.send((index, run_on_thread(lane, engine, access, &gate))));
                match std::thread::Builder::new().name(name).spawn(work) {
                    Ok(handle) => handles.push(handle),
                    Err(error) => {
                        // The others wait at the gate: the run ends here.
                        eprintln!(
                            "reelring-bench: could not start a thread for clone {} of {}: {error}",
                            index + 1,
                            clones.len()
                        );
                        std::process::exit(1);
                    }
                }
            } else {
                tasks.push(self.task(clone, lane, index, send));
            }
        }
        drop(send);
        gate.wait();
        tasks.into_iter().for_each(|task| drop(self.tokio.spawn(task)));
        let (outcomes, samples) = gather::collect(&outcomes, &watched, self.options.eta);
        for handle in handles {
            handle.join().expect("a lane's thread does not panic after its outcome");
        }
        gather::report(clones, outcomes, samples, started)
    }

    fn lane(&self, clone: &Clone) -> Lane {
        Lane {
            job: Arc::clone(&clone.job),
            number: clone.number,
            paths: clone.paths.clone(),
            sizes: clone.sizes.clone(),
            depth: clone.depth(),
            synchronous: clone.engine == EngineKind::Mmap,
            own_thread: clone.has_own_thread(),
            forgets: clone.forgets(),
            handicap: self.options.handicap.map(|percent| Handicap::new(percent, self.started)),
            live: Arc::default(),
            stop: Arc::clone(&self.stop),
        }
    }

    /// The work of a lane that is a task.
    fn task(
        &self,
        clone: &Clone,
        lane: Lane,
        index: usize,
        send: mpsc::Sender<(usize, Outcome)>,
    ) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        if clone.engine == EngineKind::Http {
            let http = Http::new(&self.authority, &clone.keys());
            return Box::pin(async move { drop(send.send((index, lane.run(http).await))) });
        }
        let slot = usize::from(clone.engine == EngineKind::Threads);
        let (bridge, pool) = self.bridges[slot].as_ref().expect("prepared").clone();
        let (access, verifies) = (clone.access(), clone.job.verify.is_some());
        Box::pin(async move {
            let opened = Bridged::open(bridge, pool, &lane.paths, access, verifies).await;
            let outcome = match opened {
                Ok(engine) => lane.run(engine).await,
                Err(error) => lane.never_ran(cannot_open(&lane.job, &error)),
            };
            drop(send.send((index, outcome)));
        })
    }

    fn finish(mut self) {
        for (bridge, _) in self.bridges.iter().flatten() {
            self.tokio.block_on(bridge.close());
        }
        if self.options.unlink {
            for path in &self.created {
                if let Err(error) = std::fs::remove_file(path) {
                    eprintln!("reelring-bench: could not remove {}: {error}", path.display());
                }
            }
        }
        // Before the runtime: stopping the node needs no task.
        drop(self.node.take());
        self.tokio.shutdown_background();
    }
}

/// The body of a lane's own thread.
fn run_on_thread(lane: Lane, engine: EngineKind, access: Access, gate: &Barrier) -> Outcome {
    if engine == EngineKind::Mmap {
        let random = lane.job.rw.pattern == crate::job::Pattern::Random;
        let opened = Mapped::open(&lane.paths, access, random);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        gate.wait();
        return match (opened, runtime) {
            (Ok(engine), Ok(runtime)) => runtime.block_on(lane.run(engine)),
            (Err(error), _) => lane.never_ran(cannot_open(&lane.job, &error)),
            (_, Err(error)) => lane.never_ran(Failure::from_io("could not start a runtime", &error)),
        };
    }
    let opened = Raw::open(&lane.paths, access);
    let runtime = Raw::runtime(lane.depth as u32);
    gate.wait();
    match (opened, runtime) {
        (Ok(engine), Ok(runtime)) => runtime.block_on(lane.run(engine)),
        (Err(error), _) => lane.never_ran(cannot_open(&lane.job, &error)),
        (_, Err(error)) => {
            let what =
                "io_uring cannot be used here (seccomp, a container, or an old kernel); use --engine threads or mmap";
            lane.never_ran(Failure::from_io(what, &error))
        }
    }
}

fn cannot_open(job: &Job, (path, error): &(PathBuf, std::io::Error)) -> Failure {
    Failure::from_io(&format!("job {}: could not open {}", job.name, path.display()), error)
}

/// An object as a job needs it: reads want one that is long enough.
async fn lay_out_object(clone: &Clone, file: usize, authority: &str) -> Result<u64, Failure> {
    let (job, keys) = (&clone.job, clone.keys());
    let http = Http::new(authority, &keys);
    let failed = |error: std::io::Error| {
        Failure::from_io(&format!("job {}: object {} at {authority}", job.name, keys[file]), &error)
    };
    let size = job.file_size(file);
    let length = http.length(file).await.map_err(failed)?.unwrap_or(0);
    let usable = length.saturating_sub(job.offset);
    if usable > 0 && usable >= size {
        return Ok(length);
    }
    if size == 0 {
        return Err(failed(std::io::Error::other("it is absent or empty, and no size= says how long to make it")));
    }
    if job.rw.reads {
        let mut bytes = vec![0; (job.offset + size) as usize];
        verify::noise(&mut bytes, job.randseed);
        http.put(file, Bytes::from(bytes)).await.map_err(failed)?;
    }
    Ok(job.offset + size)
}

/// The first SIGINT or SIGTERM stops the lanes, the second ends the process.
async fn watch_for_signals(stop: Arc<AtomicBool>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if stop.swap(true, Relaxed) {
            std::process::exit(130);
        }
        eprintln!("\nreelring-bench: stopping; what was measured follows (interrupt again to end at once)");
    }
}
