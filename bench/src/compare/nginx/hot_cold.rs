//! A hot object read at a fixed rate while others stream what is cold: whose hot clients suffer less?
//!
//! The passes are those of `mixed`, on the node and on nginx in turn. Each case has a node, an nginx and files of its own in
//! a folder that goes with it; while one server is measured the other one rests. What is cold has to be cold to the node's
//! memory too: it starts anew before each of its passes, the set is larger than what a pass streams, and each pass goes on
//! where the one before it stopped.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::runtime::Handle;

use super::server::{self, Reading};
use super::wrk::QUANTILES;
use crate::compare::node::{self, Node, http};
use crate::compare::result::{Case, Run, Side};
use crate::compare::rounds::{self, Turns};
use crate::compare::statistics::Spread;
use crate::limits;
use crate::mixed::{self, Load, Objects, Pass, SATURATED, Shape, Site};

/// One line of the result.
#[derive(Debug, Clone)]
pub struct Plan {
    pub name: String,
    pub reading: Reading,
    objects: u64,
    shape: Shape,
}

/// `runtime` is that of a pass where it was asked for.
pub fn plans(quick: bool, runtime: Option<Duration>) -> Vec<Plan> {
    let runtime = runtime.unwrap_or(limits::MIXED_ROUND);
    let (cold_set, cold_object, cold_clients, rate) =
        if quick { (64 << 20, 4 << 20, 2, 100) } else { (cold_set(runtime), 32 << 20, 8, 400) };
    let plan = |name: &str, reading| {
        let shape = Shape { runtime, rate, clients: 4, cold_object, cold_clients, warm: false };
        Plan { name: name.into(), reading, objects: cold_set / cold_object, shape }
    };
    let sendfile = plan("hot-beside-cold-sendfile", Reading::Sendfile);
    if quick {
        return vec![sendfile];
    }
    vec![sendfile, plan("hot-beside-cold-threads", Reading::Threads), plan("hot-beside-cold-directio", Reading::Direct)]
}

/// More than fast disks read in a pass; shorter passes need less.
fn cold_set(runtime: Duration) -> u64 {
    let share = runtime.div_duration_f64(limits::MIXED_ROUND).clamp(0.1, 1.0);
    (limits::MIXED_COLD_BYTES as f64 * share) as u64
}

/// The disk must have read as much as was streamed, but for what was under way at both ends.
const COLD: f64 = 0.95;
/// A larger share of a cold object in memory is worth a word.
const RESIDENT_SAID: f64 = 0.05;

impl super::Bench<'_> {
    pub(super) fn hot_beside_cold(&self, plan: &Plan, notes: &mut Vec<String>) -> anyhow::Result<Option<Case>> {
        let shape = plan.shape;
        let folder = tempfile::Builder::new().prefix("mixed-").tempdir_in(self.scratch.path())?;
        let (root, data) = (folder.path().join("www"), folder.path().join("data"));
        fs::create_dir(&root)?;
        let items = mixed::items(plan.objects, shape.cold_object);
        for item in &items {
            item.write(&root.join(&item.name))?;
        }
        // One node at a time.
        self.node.take();
        let start = || Node::start(&self.program, folder.path(), &data);
        let mut node = Some(start()?);
        let nginx = server::start(&self.nginx, folder.path(), &root, plan.reading, mixed::RANGE_BYTES.into())?;
        let hot = Arc::new(fs::read(root.join(&items[0].name))?);
        let first = node.as_ref().context("the node runs")?;
        let ours = Objects::of_node(first, &data, &items, |item| Ok(root.join(&item.name)))?;
        let theirs = Objects::of_files(&root, &items)?;
        let (our_site, their_site) =
            (Site { peer: first.peer(), objects: &ours }, Site { peer: &nginx, objects: &theirs });
        same(&[our_site, their_site], &root.join(&items[1].name))?;

        let [our_loads, their_loads] = [RefCell::new(Vec::new()), RefCell::new(Vec::new())];
        let round = |site: Site<'_>, loads: &RefCell<Vec<Load>>| {
            let bench = mixed::Bench::new(shape, Handle::current(), site, Arc::clone(&hot))?;
            warm(site)?;
            let (pass, load) = bench.loaded()?;
            let run = run(&pass, &load);
            loads.borrow_mut().push(load);
            Ok(run)
        };
        let turns = Turns {
            title: &plan.name,
            ours: "reelring",
            theirs: plan.reading.name(),
            rounds: self.options.common.rounds(),
        };
        let anew = || {
            // It ends before the next one has its data.
            node = None;
            let node = node.insert(start()?);
            round(Site { peer: node.peer(), objects: &ours }, &our_loads)
        };
        let pairs = rounds::alternate(turns, anew, || round(their_site, &their_loads))?;
        for (side, loads) in [("reelring", our_loads), (plan.reading.name(), their_loads)] {
            notes.extend(seen(&plan.name, side, &loads.into_inner()));
        }
        let [our_version, their_version] = self.versions.clone();
        let ours = Side { name: "reelring".into(), version: our_version, runs: pairs.ours };
        let theirs = Side { name: plan.reading.name().into(), version: their_version, runs: pairs.theirs };
        let same_work = format!(
            "{} hot requests in every pass, each due at the same time on both sides and compared byte by byte; SHA-256 of a \
             cold object equal, and every one that was streamed to its end of the right length",
            shape.requests()
        );
        Ok(Case::of(&plan.name, ours, theirs, same_work).map(Case::at_a_fixed_rate))
    }
}

/// What a reader of these cases must know.
pub fn note(plan: &Plan) -> String {
    let Shape { rate, clients, cold_clients, cold_object, .. } = plan.shape;
    format!(
        "hot-beside-cold: {clients} clients read ranges of {} KiB of an object of {} MiB, {rate} a second, while {cold_clients} \
         stream a set of {} MiB in objects of {} MiB past an emptied page cache, as fast as they get it; the node starts anew \
         before each pass, and each pass goes on in the set where the one before it stopped. Latencies are of the \
         hot requests, from when each was due. Speed is that of the streams alone; CPU is the server's for both, per GB \
         streamed. Who streams less has an easier time with the hot requests: read both.",
        mixed::RANGE_BYTES >> 10,
        mixed::HOT_BYTES >> 20,
        (plan.objects * cold_object) >> 20,
        cold_object >> 20
    )
}

/// Whether both send the cold objects as they are; the hot one is compared whenever it is read.
fn same(sites: &[Site<'_>], file: &Path) -> anyhow::Result<()> {
    let expected = node::digest_file(file)?;
    for site in sites {
        let (addr, target) = (site.peer.address(), &site.objects.cold[0].target);
        let got = http::request(addr, "GET", target, &[], None)?.expect(200)?.digest()?;
        ensure!(got == expected, "http://{addr}{target} is not the file {}: {got:?}, {expected:?}", file.display());
    }
    Ok(())
}

/// Reads the hot object, twice: a node that has just started may let in what it reads a second time only.
fn warm(site: Site<'_>) -> anyhow::Result<()> {
    for _ in 0..2 {
        http::request(site.peer.address(), "GET", &site.objects.hot.target, &[], None)?.expect(200)?.digest()?;
    }
    Ok(())
}

fn run(pass: &Pass, load: &Load) -> Run {
    let latency: Vec<(f64, u64)> =
        QUANTILES.map(|quantile| (quantile, pass.latencies.value_at_quantile(quantile))).to_vec();
    Run {
        seconds: load.seconds,
        bytes: load.bytes,
        operations: pass.latencies.len(),
        cpu_seconds: pass.server.cpu_seconds,
        context_switches: pass.server.context_switches,
        peak_rss_bytes: pass.server.peak_rss_bytes,
        cdf: Some(latency.iter().map(|&(quantile, ns)| (ns, quantile)).collect()),
        clat_ns: Some(latency),
        client_cpu_seconds: Some(pass.client_cpu_seconds),
        disk_busy: load.disk.map(|(busy, _)| busy),
    }
}

/// What the disk did for a side: whether the cold set was cold, and the disk saturated.
fn seen(case: &str, side: &str, loads: &[Load]) -> Vec<String> {
    let median = |of: &dyn Fn(&Load) -> Option<f64>| {
        Spread::of(&loads.iter().skip(1).filter_map(of).collect::<Vec<_>>()).map(|spread| spread.median)
    };
    let Some(streamed) = median(&|load| Some(load.mib_per_second())) else { return Vec::new() };
    let mut notes = Vec::new();
    match median(&|load| Some(load.disk?.0)).zip(median(&|load| Some(load.disk?.1))) {
        Some((busy, read)) => {
            let warm = if read < streamed * COLD { ": SOME OF IT CAME FROM MEMORY" } else { "" };
            let saturated = if busy < SATURATED { ": IT WAS NOT SATURATED" } else { "" };
            notes.push(format!(
                "{case}, {side}: {streamed:.0} MiB/s streamed, {read:.0} MiB/s read by the disk, which was busy {:.0} % of the \
                 time{saturated}{warm}",
                busy * 100.0
            ));
        }
        None => {
            notes.push(format!("{case}, {side}: the device of --dir is not in /proc/diskstats: nobody knows its load"))
        }
    }
    let times = loads.iter().map(|load| load.times).fold(0.0, f64::max);
    if times > 1.0 {
        notes.push(format!(
            "{case}, {side}: the fastest pass read the set {times:.1} times, only the first of them cold to the server: a faster \
             disk needs a larger set"
        ));
    }
    let warm = median(&|load| Some(load.resident_at_start)).unwrap_or(0.0);
    if warm > RESIDENT_SAID {
        notes.push(format!(
            "{case}, {side}: {:.0} % of a cold object was in memory when its stream began",
            warm * 100.0
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_are_asked_for_the_same() {
        for (quick, runtime) in [(false, None), (false, Some(Duration::from_secs(1))), (true, None)] {
            let plans = plans(quick, runtime);
            assert!(plans.iter().all(|plan| plan.name.starts_with("hot-beside-cold")));
            assert!(plans.windows(2).all(|pair| pair[0].shape == pair[1].shape && pair[0].reading != pair[1].reading));
            let streamed = plans[0].objects * plans[0].shape.cold_object;
            assert!(note(&plans[0]).contains(&format!("a set of {} MiB", streamed >> 20)));
        }
    }

    #[test]
    fn the_set_follows_the_length_of_a_pass_and_has_an_end() {
        let objects = |seconds| plans(false, Some(Duration::from_secs_f64(seconds)))[0].objects;
        assert_eq!([0.01, 1.5, 3.0, 3600.0].map(objects), [25, 128, 256, 256]);
    }
}
