//! `compare nginx`: the same bytes served by the node and by nginx, with wrk, or a client that costs less, at both.
//!
//! Hot cases repeat over what is in memory: as it was written and read in order, or, where they are called so, as the requests
//! themselves brought it there. Before each round of a cold one both servers' files leave the page cache and
//! the node is started anew, so that it has to verify what it reads. Only the server is measured, not wrk; both share the
//! processors. The scratch folder and everything in it end with the call.

pub mod cold;
mod drain;
mod hot_cold;
pub mod server;
mod wrk;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use clap::{Args, ValueEnum};

use self::server::Reading;
use self::wrk::{Load, Outcome};
use super::beside::{self, Beside};
use super::congestion::Congestion;
use super::node::{self, Node, http};
use super::peer::{Peer, Program};
use super::result::{Case, Run, Section, Side};
use super::rounds::{self, Turns};
use super::usage;
use crate::limits;

const WRK: Program = Program { name: "wrk", package: "wrk", version: "-v" };
/// Connections that take longer rounds.
const MANY: u32 = 512;
/// Connections that make something hot.
const CROWD: u32 = 64;
/// Of the ranges whose hashes are compared before the first round.
const SAMPLED: usize = 16;

#[derive(Debug, Args)]
pub struct NginxArgs {
    #[command(flatten)]
    pub beside: Beside,
    /// Who asks: wrk, or a client that has the kernel drop what arrives
    #[arg(long, value_enum, default_value_t = Client::Wrk)]
    client: Client,
    /// Whether both servers use the same congestion control
    #[arg(long, value_enum, default_value_t = Congestion::Equal)]
    pub congestion: Congestion,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Client {
    Wrk,
    Drain,
}

/// One line of the result.
#[derive(Debug, Clone)]
struct Plan {
    name: String,
    load: Load,
    cold: bool,
    /// Before the first round both servers' files leave the page cache, and come back by the requests of the case.
    asked: bool,
    reading: Reading,
}

impl Plan {
    /// A file of its own where it matters how it came into the page cache.
    fn object(&self) -> String {
        format!("{}{}.bin", if self.asked { "asked-" } else { "" }, self.load.size)
    }
}

/// One case, and by what it is measured.
enum Step {
    Wrk(Plan),
    Mixed(hot_cold::Plan),
}

impl Step {
    fn name(&self) -> &str {
        match self {
            Step::Wrk(plan) => &plan.name,
            Step::Mixed(plan) => &plan.name,
        }
    }
}

/// Sizes of the objects.
struct Sizes {
    hot: u64,
    small: u64,
    large: u64,
    cold: u64,
}

const SIZES: Sizes = Sizes { hot: 256 << 20, small: 4 << 20, large: 64 << 20, cold: 2 << 30 };
const QUICK: Sizes = Sizes { hot: 16 << 20, small: 1 << 20, large: 4 << 20, cold: 64 << 20 };

fn plans(quick: bool) -> Vec<Plan> {
    let sizes = if quick { QUICK } else { SIZES };
    let hot = |name: &str, connections: u32, size, range| Plan {
        name: format!("hot-{name}-c{connections}"),
        load: Load { connections, size, range, distinct: false },
        cold: false,
        asked: false,
        reading: Reading::Sendfile,
    };
    let asked = |name: &str, connections, range| Plan {
        asked: true,
        ..hot(&format!("{name}-asked"), connections, sizes.hot, Some(range))
    };
    let cold = |name: &str, connections: u32, reading| Plan {
        name: format!("cold-{name}-c{connections}"),
        load: Load { connections, size: sizes.cold, range: Some(1 << 20), distinct: true },
        cold: true,
        asked: false,
        reading,
    };
    if quick {
        return vec![hot("64k", 64, sizes.hot, Some(64 << 10)), cold("1m", 8, Reading::Sendfile)];
    }
    let mut plans = Vec::new();
    for connections in [1, 64, 512] {
        plans.push(hot("64k", connections, sizes.hot, Some(64 << 10)));
        plans.push(hot("1m", connections, sizes.hot, Some(1 << 20)));
        plans.push(asked("64k", connections, 64 << 10));
        plans.push(asked("1m", connections, 1 << 20));
        plans.push(hot("whole-4m", connections, sizes.small, None));
        plans.push(hot("whole-64m", connections, sizes.large, None));
        plans.push(cold("1m", connections, Reading::Sendfile));
        plans.push(cold("1m-directio", connections, Reading::Direct));
    }
    plans
}

/// Everything that stays the same from case to case.
struct Bench<'a> {
    options: &'a Beside,
    client: Client,
    program: node::Program,
    nginx: PathBuf,
    versions: [String; 2],
    scratch: tempfile::TempDir,
    node: RefCell<Option<Node>>,
    /// Objects that a server was seen to send whole, and what they are.
    sent: RefCell<BTreeSet<(&'static str, String)>>,
    /// Objects that both servers have sent so often that they are as hot as they will be.
    warm: RefCell<BTreeSet<String>>,
    digests: RefCell<BTreeMap<String, (u64, String)>>,
    /// Of the rounds of a case, the fewest sockets that a server had open at its best moment.
    fewest: RefCell<BTreeMap<String, usize>>,
}

pub fn compare(args: &NginxArgs) -> anyhow::Result<Section> {
    let NginxArgs { beside: options, client, .. } = args;
    let nginx = server::executable()?;
    let program = options.program()?;
    let quick = options.common.quick;
    let steps = plans(quick)
        .into_iter()
        .map(Step::Wrk)
        .chain(hot_cold::plans(quick, options.common.runtime()).into_iter().map(Step::Mixed));
    let steps = options.chosen(steps.collect(), Step::name)?;
    let loaded = steps.iter().any(|step| matches!(step, Step::Wrk(_)));
    let wrk = if loaded && *client == Client::Wrk { WRK.version()? } else { String::new() };

    let versions = [program.version.clone(), server::version(&nginx)?];
    let scratch = options.common.scratch()?;
    fs::create_dir(scratch.path().join("www"))?;
    let mut section = Section {
        id: "nginx".into(),
        title: "Serving files, beside nginx".into(),
        command: super::command_line(),
        notes: program.note().into_iter().collect(),
        cases: Vec::new(),
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let who = match client {
        Client::Wrk => format!("{wrk}, one thread, which copies all it receives,"),
        Client::Drain => "A client of our own, one thread, which reads heads and has the kernel drop bodies,".into(),
    };
    if loaded {
        section.notes.push(format!(
            "{who} shares {processors} processors with the server it loads: throughput is that of both together, and the \
             client's where its processors (client CPUs) are near 1. CPU, context switches and memory are the server's alone."
        ));
    }
    section.notes.push(
        "Memory: what the node maps of the page cache counts as its resident set; what nginx hands over by sendfile does not."
            .into(),
    );
    if let Some(plan) = steps.iter().find_map(|step| if let Step::Mixed(plan) = step { Some(plan) } else { None }) {
        section.notes.push(hot_cold::note(plan));
    }
    if steps.iter().any(|step| matches!(step, Step::Wrk(plan) if plan.asked)) {
        section.notes.push(format!(
            "Asked: before the first round both files leave the page cache and the node starts anew; then both servers answer \
             the requests of the case until they have sent {} times the object's bytes, as in every hot case. What comes into \
             the page cache by ranges lies there in small pages, which cost sendfile more than those of a file that was \
             just written.",
            limits::ASKED_TIMES
        ));
    }
    if steps.iter().any(|step| matches!(step, Step::Wrk(plan) if plan.cold)) {
        section.notes.push(
            "Cold: before each round both files leave the page cache and the node starts anew, so it verifies the checksum of \
             every block it reads; nginx has no checksums. Ranges do not repeat within a round until all were read."
                .into(),
        );
    }
    let bench = Bench {
        options,
        client: *client,
        program,
        nginx,
        versions,
        scratch,
        node: RefCell::default(),
        sent: RefCell::default(),
        warm: RefCell::default(),
        digests: RefCell::default(),
        fewest: RefCell::default(),
    };
    beside::each(&mut section, &steps, |step, notes| match step {
        Step::Wrk(plan) => bench.case(plan, notes),
        Step::Mixed(plan) => bench.hot_beside_cold(plan, notes),
    })?;
    Ok(section)
}

impl Bench<'_> {
    fn case(&self, plan: &Plan, notes: &mut Vec<String>) -> anyhow::Result<Option<Case>> {
        let root = self.scratch.path().join("www");
        let object = plan.object();
        let file = root.join(&object);
        self.ensure_node()?;
        if !file.exists() {
            node::noise_file(&file, plan.load.size, plan.load.size)?;
            self.with_node(|node| node.put(&object, &file))?;
        }
        let nginx = server::start(&self.nginx, self.scratch.path(), &root, plan.reading, plan.load.answer())?;
        let (same_work, heads) = self.same(plan, &nginx, &object, &file)?;

        let (node_rounds, nginx_rounds) = (RefCell::new(1..), RefCell::new(1..));
        let next = |seeds: &RefCell<std::ops::RangeFrom<u32>>| seeds.borrow_mut().next().unwrap_or(1);
        let ours = || {
            if plan.cold {
                // A node that ran before has verified its blocks, and may still have some of them mapped.
                self.node.take();
                self.ensure_node()?;
                self.evict(&file)?;
            }
            self.with_node(|node| {
                let (target, seed) = (node::object(&object), next(&node_rounds));
                let (answered, used) = node.measure(|| self.load(plan, &target, seed, node.peer()))?;
                finish(plan, answered, used, heads[0])
            })
        };
        let theirs = || {
            if plan.cold {
                self.node.take();
                self.evict(&file)?;
            }
            let (target, seed) = (format!("/{object}"), next(&nginx_rounds));
            let (answered, used) = nginx.measure(|| self.load(plan, &target, seed, &nginx))?;
            finish(plan, answered, used, heads[1])
        };
        if plan.asked {
            // The node anew: it knows nothing of what it was asked for.
            self.node.take();
            self.ensure_node()?;
            self.evict(&file)?;
        }
        if !plan.cold && (self.warm.borrow_mut().insert(object.clone()) || plan.asked) {
            self.with_node(|node| self.warm_up(plan, &node::object(&object), node.peer()))?;
            self.warm_up(plan, &format!("/{object}"), &nginx)?;
        }
        // The same load by another client is another case.
        let name = match self.client {
            Client::Wrk => plan.name.clone(),
            Client::Drain => format!("{}-drain", plan.name),
        };
        let turns =
            Turns { title: &name, ours: "reelring", theirs: plan.reading.name(), rounds: self.options.common.rounds() };
        let pairs = rounds::alternate(turns, ours, theirs)?;
        for (server, open) in self.fewest.take() {
            let wanted = plan.load.connections;
            if open < wanted as usize {
                notes.push(format!(
                    "{name}: {server} HAD NEVER MORE THAN {open} SOCKETS OPEN IN A ROUND: the rest of the {wanted} connections \
                     waited outside"
                ));
            }
        }
        if plan.cold {
            let most = pairs.ours.iter().chain(&pairs.theirs).map(|run| run.bytes).max().unwrap_or(0);
            if most > plan.load.size {
                notes.push(format!(
                    "{}: the fastest round read the {} MiB {:.1} times, only the first of them cold: a faster disk needs a \
                     larger set",
                    plan.name,
                    plan.load.size >> 20,
                    most as f64 / plan.load.size as f64
                ));
            }
        }
        let [our_version, their_version] = self.versions.clone();
        let ours = Side { name: "reelring".into(), version: our_version, runs: pairs.ours };
        let theirs = Side { name: plan.reading.name().into(), version: their_version, runs: pairs.theirs };
        Ok(Case::of(name, ours, theirs, same_work))
    }

    /// Asks for what the case asks for, by many connections whatever it has: one alone would take minutes.
    fn warm_up(&self, plan: &Plan, target: &str, server: &Peer) -> anyhow::Result<()> {
        let load = Load { connections: plan.load.connections.max(CROWD), ..plan.load };
        let plan = Plan { load, ..plan.clone() };
        let (mut bytes, mut seed) = (0, u32::MAX);
        while bytes < plan.load.size * limits::ASKED_TIMES {
            let (answered, _) = self.load(&plan, target, seed, server)?;
            bytes += answered.body_bytes(0);
            seed -= 1;
        }
        self.fewest.borrow_mut().clear();
        Ok(())
    }

    fn ensure_node(&self) -> anyhow::Result<()> {
        let mut node = self.node.borrow_mut();
        if node.is_none() {
            *node = Some(Node::start(&self.program, self.scratch.path(), &self.scratch.path().join("data"))?);
        }
        Ok(())
    }

    fn with_node<T>(&self, work: impl FnOnce(&Node) -> anyhow::Result<T>) -> anyhow::Result<T> {
        work(self.node.borrow().as_ref().context("the node runs")?)
    }

    /// Whether both send the same bytes: the whole object, and some of the ranges that will be asked for. Gives the
    /// lengths of both servers' heads too.
    fn same(&self, plan: &Plan, nginx: &Peer, name: &str, file: &Path) -> anyhow::Result<(String, [u64; 2])> {
        let node = self.with_node(|node| Ok(node.addr()))?;
        let sides =
            [("reelring", node, node::object(name)), (plan.reading.name(), nginx.address(), format!("/{name}"))];
        let ranges = if plan.load.range.is_some() { plan.load.sample(1, SAMPLED) } else { Vec::new() };
        let mut heads = [0; 2];
        let mut hashes: [Vec<String>; 2] = Default::default();
        for (side, (server, addr, path)) in sides.iter().enumerate() {
            let get = |headers: &[(&str, &str)], status| {
                http::request(*addr, "GET", path, headers, None)?
                    .expect(status)
                    .with_context(|| format!("{server}, {name}"))
            };
            if self.sent.borrow_mut().insert((server, name.to_owned())) {
                let (got, whole) = (get(&[], 200)?.digest()?, self.digest(name, file)?);
                ensure!(got == whole, "{server} does not send the file {name}: {got:?} instead of {whole:?}");
                if !plan.cold {
                    // Once more: the node lets in what is asked for again, and in order, as nginx's file came in.
                    get(&[], 200)?.digest()?;
                }
            }
            for (first, last) in &ranges {
                let answer = get(&[("Range", &format!("bytes={first}-{last}"))], 206)?;
                heads[side] = answer.head_bytes;
                let (length, hash) = answer.digest()?;
                ensure!(length == plan.load.answer(), "{server}, {name}, bytes {first} to {last}: {length} bytes");
                hashes[side].push(hash);
            }
            if ranges.is_empty() {
                heads[side] = get(&[], 200)?.head_bytes;
            }
        }
        ensure!(hashes[0] == hashes[1], "{}: the two servers send different ranges", plan.name);
        let sampled = if ranges.is_empty() { String::new() } else { format!(" and of {SAMPLED} ranges") };
        let same = format!(
            "SHA-256 of the object{sampled} equal; in every round no errors, the bytes that so many answers have, and the same \
             requests by the same seeds"
        );
        Ok((same, heads))
    }

    fn digest(&self, name: &str, file: &Path) -> anyhow::Result<(u64, String)> {
        if let Some(known) = self.digests.borrow().get(name) {
            return Ok(known.clone());
        }
        let digest = node::digest_file(file)?;
        self.digests.borrow_mut().insert(name.to_owned(), digest.clone());
        Ok(digest)
    }

    fn evict(&self, file: &Path) -> anyhow::Result<()> {
        let length = File::open(file)?.metadata()?.len();
        let mut files = node::blobs(&self.scratch.path().join("data"), length)?;
        files.push(file.to_path_buf());
        cold::evict(&files)
    }

    /// What the client counted, and the CPU seconds that it took for that.
    fn load(&self, plan: &Plan, target: &str, seed: u32, server: &Peer) -> anyhow::Result<(Outcome, f64)> {
        // Many connections take their time until all of them have something; what is cold is all read soon.
        let many = plan.load.connections >= MANY && !plan.cold;
        let own = if many { limits::CLIENT_ROUND_OF_MANY } else { limits::CLIENT_ROUND };
        let round = self.options.common.runtime().unwrap_or(own);
        // wrk counts whole seconds; a comparison of the two clients should not be one of round lengths.
        let round = Duration::from_secs(wrk::whole_seconds(round));
        let (over, wanted) = (AtomicBool::new(false), plan.load.connections as usize);
        let (answered, open) = std::thread::scope(|scope| {
            let looker = scope.spawn(|| {
                let mut most = 0;
                while most < wanted && !over.load(Ordering::Acquire) {
                    std::thread::sleep(limits::LOOK_AT_SOCKETS);
                    most = most.max(usage::sockets(server.pid()));
                }
                most
            });
            let answered = match self.client {
                Client::Wrk => self.wrk(plan, target, seed, server, round),
                Client::Drain => drain::run(server.address(), target, &plan.load, seed, round),
            };
            over.store(true, Ordering::Release);
            (answered, looker.join())
        });
        let (answered, open) = (answered?, open.map_err(|_| anyhow!("the thread that counts connections panicked"))?);
        // A server that lets some wait outside is measured with the others alone, whatever the client was told.
        let mut fewest = self.fewest.borrow_mut();
        let known = fewest.entry(server.name().to_owned()).or_insert(usize::MAX);
        *known = open.min(*known);
        Ok(answered)
    }

    fn wrk(
        &self,
        plan: &Plan,
        target: &str,
        seed: u32,
        server: &Peer,
        round: Duration,
    ) -> anyhow::Result<(Outcome, f64)> {
        let script = self.scratch.path().join("load.lua");
        fs::write(&script, plan.load.script(seed)).with_context(|| script.display().to_string())?;
        let url = format!("http://{}{target}", server.address());
        let mut command: Command = plan.load.command(Path::new(WRK.name), &script, &url, round);
        let ended = usage::run(&mut command)?;
        let outcome = Outcome::parse(&String::from_utf8_lossy(&ended.stdout))?;
        Ok((outcome, ended.usage.cpu_seconds))
    }
}

fn finish(
    plan: &Plan,
    (outcome, client_cpu_seconds): (Outcome, f64),
    used: usage::Usage,
    head_bytes: u64,
) -> anyhow::Result<Run> {
    outcome.check(&plan.load, head_bytes)?;
    // With large objects and many connections a short round may end before any answer does.
    let latency = (outcome.requests > 0).then(|| outcome.latency_ns());
    Ok(Run {
        seconds: outcome.seconds(),
        bytes: outcome.body_bytes(head_bytes),
        operations: outcome.requests,
        cpu_seconds: used.cpu_seconds,
        context_switches: used.context_switches,
        peak_rss_bytes: used.peak_rss_bytes,
        cdf: latency.as_ref().map(|latency| latency.iter().map(|&(quantile, ns)| (ns, quantile)).collect()),
        clat_ns: latency,
        client_cpu_seconds: Some(client_cpu_seconds),
        disk_busy: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_have_names_of_their_own_and_fit_their_objects() {
        for quick in [false, true] {
            let plans = plans(quick);
            let mut names: Vec<&str> = plans.iter().map(|plan| plan.name.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), plans.len());
            assert!(plans.iter().all(|plan| plan.load.size.is_multiple_of(plan.load.answer())));
            assert!(plans.iter().all(|plan| plan.load.connections <= limits::WRK_CONNECTIONS));
        }
    }
}
