//! A data directory, in a third of the histories a second volume, the disks under them, and the lives of the process.
//!
//! [`World::boot`] is one such life: it opens a store, lets a script judge it and set clients to work, takes every step
//! of the engine and of the catalog's threads itself, and ends it as the seed says.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::client::Client;
use super::oracle::{Oracle, judge};
use super::side::Side;
use crate::catalog::{self, Catalog, CommitFault};
use crate::clock;
use crate::engine::sim::trace::Trace;
use crate::engine::sim::{Events, Faults, Random};
use crate::id::BlobId;
use crate::limits::CATALOG_FILE;
use crate::store::Store;
use crate::store::attach::Here;
use crate::store::open::Parts;
use crate::volume::Volume;
use crate::volume::health::Health;
use crate::volume::room::{self, RoomLimits};

/// What script, clients and driver of one boot share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) oracle: Arc<Mutex<Oracle>>,
    /// By volume.
    pub(super) events: Vec<Arc<Events>>,
    /// No faults now: the store is being judged.
    calm: Arc<AtomicBool>,
    /// The clients are at work.
    busy: Arc<AtomicBool>,
    pub(super) failed_before_boot: Vec<u64>,
    /// The second volume is not there.
    pub(super) away: bool,
    pub(super) may_be_full: bool,
    pub(super) faulty: bool,
}

impl Shared {
    /// Bits that reads brought wrong so far.
    pub(super) fn flips(&self) -> u64 {
        self.events.iter().map(|events| events.flips.load(Relaxed)).sum()
    }
}

/// How the script of a boot came to its end.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Closed,
    /// The store could not be opened, or was not closed.
    Abandoned,
}

/// What is decided of a boot beforehand.
struct Plan {
    faults: Faults,
    commit_faults: u32,
    clients: usize,
    operations: usize,
    /// How many fdatasyncs run each for itself, and how many callers make a round.
    syncs: (usize, usize),
    /// The size from which blobs are written past the page cache.
    direct_from: u64,
    gives_up: u32,
    large: bool,
    /// After how many steps it is over.
    steps: usize,
    /// Whether the steps of opening and judging count.
    from_the_start: bool,
    close: bool,
    last: bool,
}

pub(super) struct World {
    _scratch: TempDir,
    /// The data directory first.
    sides: Vec<Side>,
    boots: usize,
    pub(super) random: Random,
    pub(super) oracle: Arc<Mutex<Oracle>>,
    now_ms: u64,
}

impl World {
    pub(super) fn new(seed: u64) -> World {
        let mut random = Random::new(seed);
        let scratch = match Path::new("/dev/shm") {
            memory if memory.is_dir() => TempDir::with_prefix_in("reelring-sim-", memory),
            _ => tempfile::tempdir(),
        };
        let scratch = scratch.expect("a scratch directory");
        let count = if random.chance(333) { 2 } else { 1 };
        let sides = (0..count).map(|number| Side::new(number, scratch.path(), &mut random)).collect();
        World { _scratch: scratch, sides, boots: 0, random, oracle: Arc::default(), now_ms: 1_700_000_000_000 }
    }

    /// What happened on each disk.
    pub(super) fn traces(&self) -> Vec<Trace> {
        self.sides.iter().map(|side| side.machine.trace).collect()
    }

    /// There is room from now on.
    pub(super) fn lift_capacity(&mut self) {
        self.sides.iter_mut().for_each(|side| side.machine.disk.capacity = u64::MAX);
    }

    fn plan(&mut self, last: bool) -> Plan {
        let random = &mut self.random;
        let mut rate = |often: u32, most: usize| if random.chance(often) { 1 + random.below(most) as u32 } else { 0 };
        let faults = Faults {
            io: rate(300, 40),
            sync: rate(250, 100),
            sync_no_space: rate(150, 100),
            too_much: rate(300, 500),
            short: rate(500, 500),
            interrupt: rate(500, 300),
            flip: rate(100, 200),
        };
        let commit_faults = rate(250, 100);
        // Now and then so many that rounds of syncs form.
        let crowded = random.chance(250);
        let clients = if crowded { 4 + random.below(5) } else { 1 + random.below(3) };
        Plan {
            faults: if last { Faults::default() } else { faults },
            commit_faults: if last { 0 } else { commit_faults },
            clients,
            operations: 2 + random.below(if crowded { 6 } else { 12 }),
            direct_from: [0, 600_000, u64::MAX][random.below(3)],
            syncs: (random.below(3), 1 + random.below(4)),
            gives_up: if random.chance(500) { random.below(300) as u32 } else { 0 },
            large: random.chance(150),
            steps: if last || random.chance(250) { usize::MAX } else { random.below(250) },
            from_the_start: random.chance(150),
            close: random.chance(700),
            last,
        }
    }

    /// One life of the process, and what ends it.
    pub(super) fn boot(&mut self, last: bool) {
        let plan = self.plan(last);
        self.plug(last);
        {
            let mut oracle = self.oracle.lock().unwrap();
            // A volume that was away keeps what was removed meanwhile.
            oracle.unlinks_failed |= plan.faults.io > 0 || self.sides.iter().any(|side| side.away);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (mut writer, mut reader, parts) = self.parts();
        let shared = Shared {
            oracle: Arc::clone(&self.oracle),
            events: self.sides.iter().map(|side| Arc::clone(&side.machine.events)).collect(),
            calm: Arc::new(AtomicBool::new(plan.last || self.random.chance(700))),
            busy: Arc::new(AtomicBool::new(plan.from_the_start)),
            failed_before_boot: self.sides.iter().map(Side::failed_syncs).collect(),
            away: self.sides.iter().any(|side| side.away),
            may_be_full: self.sides.iter().any(|side| side.machine.disk.capacity < u64::MAX)
                || plan.faults.sync_no_space > 0
                || plan.commit_faults > 0,
            faulty: plan.faults.io > 0 || plan.faults.sync > 0 || plan.commit_faults > 0,
        };
        let random = self.random.fork();
        let ended = runtime.block_on(async {
            let script = tokio::spawn(script(parts, shared.clone(), plan.script(), random));
            self.drive(&plan, &shared, &mut writer, &mut reader, script).await
        });
        let end = ended.unwrap_or(End::Abandoned);
        if end == End::Closed {
            drop((runtime, reader));
            writer.end();
            for side in self.sides.iter_mut().filter(|side| !side.away) {
                side.detach();
                side.machine.disk.written_behind_our_back(&side.dir.join("LOCK"));
            }
            if last {
                return;
            }
            if self.random.chance(500) || self.is_poisoned() {
                let catalog = catalog_files(&self.sides[0].dir);
                self.cut(catalog);
            }
            return;
        }
        // The process dies; a commit may be under way.
        let cut = self.random.chance(600) || self.is_poisoned();
        let before = catalog_files(&self.sides[0].dir);
        let mut catalog = before.clone();
        if writer.has_work() && self.random.chance(300) {
            writer.turn();
            catalog = catalog_files(&self.sides[0].dir);
            if cut {
                tear(&before, &mut catalog, &mut self.random);
            }
        }
        drop((runtime, writer, reader));
        self.sides.iter_mut().for_each(Side::detach);
        if cut {
            self.cut(catalog);
        } else {
            put_back(&self.sides[0].dir, &catalog);
        }
    }

    /// The second volume may be taken away for the coming life, once the store knows it, and is back for the last.
    fn plug(&mut self, last: bool) {
        let known = self.boots > 0;
        self.boots += 1;
        for side in self.sides.iter_mut().skip(1) {
            let leaves = known && !last && self.random.chance(300);
            if leaves && !side.away {
                side.take_away(&mut self.random);
            }
            side.away = leaves;
        }
    }

    fn is_poisoned(&self) -> bool {
        self.sides.iter().any(|side| side.machine.disk.poisoned)
    }

    /// What opening a store makes of the directory, with the threads left out.
    fn parts(&mut self) -> (catalog::Writer, catalog::Reader, Parts) {
        clock::held::set(Some(self.now_ms));
        let Here { locked, bridge } = self.sides[0].here();
        let dir = self.sides[0].dir.clone();
        let health = Health::new(0, dir.clone());
        let (catalog, writer, reader) =
            Catalog::parts(&dir.join(CATALOG_FILE), &[], health.clone()).expect("the catalog opens");
        let extras = self.sides.iter_mut().skip(1).map(Side::extra).collect();
        let (id, limits) = (BlobId::new(), RoomLimits::default());
        (writer, reader, Parts { dir, id, locked, catalog, bridge, health, limits, extras })
    }

    /// Takes steps until the script ends, or the boot's time is up.
    async fn drive(
        &mut self,
        plan: &Plan,
        shared: &Shared,
        writer: &mut catalog::Writer,
        reader: &mut catalog::Reader,
        script: JoinHandle<End>,
    ) -> Option<End> {
        let (mut steps, mut idle) = (0, 0);
        loop {
            for _ in 0..=self.random.below(3) {
                tokio::task::yield_now().await;
            }
            if script.is_finished() {
                return Some(script.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic())));
            }
            if steps >= plan.steps {
                return None;
            }
            let calm = shared.calm.load(Relaxed);
            let mut in_flight = 0;
            for side in self.sides.iter_mut().filter(|side| !side.away) {
                side.machine.faults = if calm { Faults::default() } else { plan.faults };
                in_flight += side.machine.in_flight();
            }
            match self.random.below((in_flight + 2).max(2)) {
                0 if writer.has_work() => {
                    if !calm && self.random.chance(plan.commit_faults) {
                        writer.fault = Some(self.commit_fault());
                    }
                    writer.turn();
                    writer.fault = None;
                }
                1 if reader.has_work() => drop(reader.turn()),
                _ if in_flight > 0 => self.step(in_flight),
                _ if writer.has_work() || reader.has_work() => continue,
                _ => {
                    idle += 1;
                    assert!(idle < 10_000, "nothing moves any more");
                    continue;
                }
            }
            idle = 0;
            steps += usize::from(shared.busy.load(Relaxed));
            // Now and then the blobs' directory changes.
            self.now_ms += if self.random.chance(5) { 70_000 } else { 1 + self.random.below(4) as u64 };
            clock::held::set(Some(self.now_ms));
        }
    }

    /// Completes one of the operations in flight, whichever.
    fn step(&mut self, in_flight: usize) {
        let mut which = self.random.below(in_flight);
        for side in self.sides.iter_mut().filter(|side| !side.away) {
            match which.checked_sub(side.machine.in_flight()) {
                Some(rest) => which = rest,
                None => {
                    side.machine.step();
                    return;
                }
            }
        }
    }

    fn commit_fault(&mut self) -> CommitFault {
        if self.random.chance(500) {
            return CommitFault::Full;
        }
        self.sides[0].machine.events.failed_syncs.fetch_add(1, Relaxed);
        CommitFault::SyncFailed { found_later: self.random.chance(500) }
    }

    fn cut(&mut self, catalog: Files) {
        for side in self.sides.iter_mut().filter(|side| !side.away) {
            side.cut(&mut self.random);
        }
        put_back(&self.sides[0].dir, &catalog);
    }

    /// Between two boots a bit may rot.
    pub(super) fn rot(&mut self) {
        let at = self.random.below(self.sides.len());
        let side = &mut self.sides[at];
        let blobs = files_below(&side.dir.join("blobs"));
        if blobs.is_empty() {
            return;
        }
        let path = &blobs[self.random.below(blobs.len())];
        let id: Option<BlobId> = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        let mut oracle = self.oracle.lock().unwrap();
        // Once: the same bit flipped again would mend it.
        if id.is_some_and(|id| oracle.damaged.insert(id)) {
            side.machine.disk.flip(path, &mut self.random);
        }
    }

    /// After a boot left in peace: nothing lies about.
    pub(super) fn check_tidiness(&self) {
        let below = |folder: &str| -> Vec<PathBuf> {
            self.sides.iter().flat_map(|side| files_below(&side.dir.join(folder))).collect()
        };
        let partials = below("partial");
        assert!(partials.is_empty(), "partials lie about: {partials:?}");
        let oracle = self.oracle.lock().unwrap();
        let is_object = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.parse().is_ok_and(|id| oracle.objects.contains(&id))
        };
        let orphans: Vec<PathBuf> = below("blobs").into_iter().filter(|path| !is_object(path)).collect();
        assert!(orphans.is_empty(), "blobs without an object lie about: {orphans:?}");
    }
}

/// The part of a plan that the script follows.
struct Script {
    clients: usize,
    operations: usize,
    syncs: (usize, usize),
    direct_from: u64,
    gives_up: u32,
    large: bool,
    close: bool,
    last: bool,
}

impl Plan {
    fn script(&self) -> Script {
        let Plan { clients, operations, syncs, direct_from, gives_up, large, close, last, .. } = *self;
        Script { clients, operations, syncs, direct_from, gives_up, large, close, last }
    }
}

/// Opens the store, judges it, sets the clients to work, and closes it or does not.
async fn script(parts: Parts, shared: Shared, script: Script, mut random: Random) -> End {
    let calm = shared.calm.load(Relaxed);
    let store = match Store::assemble(parts).await {
        Ok(store) => store,
        Err(error) => {
            assert!(!calm, "the store does not open: {error}");
            return End::Abandoned;
        }
    };
    let hot = random.chance(500);
    for volume in store.volumes().iter() {
        pretend_room(volume, &mut random);
        if !hot {
            // All reads through the engine.
            volume.map_budget.forget_permits(usize::MAX >> 4);
        }
    }
    let (alone_max, round_min) = script.syncs;
    for volume in store.volumes().iter() {
        volume.direct.begin_at(script.direct_from);
        // With no place for a sync alone, one caller must be enough for a round.
        volume.group_sync.tune(alone_max, if alone_max == 0 { 1 } else { round_min });
    }
    shared.calm.store(true, Relaxed);
    judge(&store, &shared).await;
    if script.last {
        give_up_partials(&store, &shared).await;
        store.close().await.expect("a store left in peace closes");
        return End::Closed;
    }
    shared.calm.store(false, Relaxed);
    shared.busy.store(true, Relaxed);
    let clients: Vec<_> = (0..script.clients)
        .map(|name| {
            let client = Client {
                name,
                store: store.clone(),
                shared: shared.clone(),
                random: random.fork(),
                gives_up: script.gives_up,
                large: script.large,
            };
            tokio::spawn(client.run(script.operations))
        })
        .collect();
    for client in clients {
        client.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
    }
    if !script.close {
        return End::Abandoned;
    }
    match store.close().await {
        Ok(()) => End::Closed,
        Err(error) => {
            assert!(shared.faulty || shared.may_be_full, "the store does not close: {error}");
            End::Closed
        }
    }
}

/// Where the next blob goes is the seed's choice, not the real disk's.
pub(super) fn pretend_room(volume: &Volume, random: &mut Random) {
    volume.room.pretend(room::Disk { size: 1 << 40, free: (100 + random.below(900) as u64) << 30 });
}

async fn give_up_partials(store: &Store, shared: &Shared) {
    let ids = store.journaled_partials().await.expect("partials can be listed");
    for id in ids {
        match store.resume(id).await.expect("a partial that was judged resumes") {
            Some((writer, _)) => writer.abort().await,
            None => panic!("{id} resumed once and not again"),
        }
        shared.oracle.lock().unwrap().partials.remove(&id);
    }
}

type Files = Vec<(String, Vec<u8>)>;

const LOG: &str = "catalog.sqlite-wal";

fn catalog_files(dir: &Path) -> Files {
    let read = |name: &str| fs::read(dir.join(name)).ok().map(|bytes| (name.to_owned(), bytes));
    [CATALOG_FILE, LOG].into_iter().filter_map(read).collect()
}

fn put_back(dir: &Path, files: &Files) {
    for name in [CATALOG_FILE, LOG, "catalog.sqlite-shm"] {
        drop(fs::remove_file(dir.join(name)));
    }
    for (name, bytes) in files {
        fs::write(dir.join(name), bytes).expect("the catalog can be put back");
    }
}

/// Ends the log somewhere in what the commit under way added, with a torn sector.
fn tear(before: &Files, after: &mut Files, random: &mut Random) {
    let len = |files: &Files| files.iter().find(|(name, _)| name == LOG).map_or(0, |(_, bytes)| bytes.len());
    let (old, new) = (len(before), len(after));
    if let Some((_, log)) = after.iter_mut().find(|(name, _)| name == LOG)
        && new > old
    {
        log.truncate(old + random.below(new - old + 1));
        let torn = log.len() - old.max(log.len().saturating_sub(512));
        let garbage = if random.chance(500) { random.bytes(torn) } else { return };
        let at = log.len() - torn;
        log[at..].copy_from_slice(&garbage);
    }
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else { return files };
    for entry in entries {
        let path = entry.expect("the tree can be listed").path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}
