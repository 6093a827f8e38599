//! `compare upload`: one large file stored durably by a PUT to the node, beside fio writing as many bytes to the same disk,
//! and beside nginx's dav module, which takes the same PUT and syncs nothing.
//!
//! Every round stores the file anew. What was stored is hashed and removed outside the measured time, and the file system
//! is synced before the next round. The uploader is the same for both servers: sendfile from the page cache, one
//! connection; its CPU is counted for itself. Files and servers end with the call.

use std::cell::{OnceCell, RefCell};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail, ensure};

use super::beside::{self, Beside};
use super::fio::{self, Rival};
use super::nginx::server;
use super::node::{self, Node, http};
use super::peer::{FIO, Peer};
use super::result::{Case, Run, Section, Side};
use super::rounds::{self, Turns};
use super::script::{Length, Source};
use super::usage::Usage;
use crate::picture::median;
use crate::run;

/// The object's key on the node, and the file's name below nginx's root.
const KEY: &str = "stored.bin";
/// What fio writes, in its folder.
const WRITTEN: &str = "written.bin";

/// One line of the result.
#[derive(Debug, Clone, Copy)]
struct Plan {
    name: &'static str,
    against: Against,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Against {
    /// Past the page cache or through it.
    Fio { direct: bool },
    /// With the file synced within the measured time or not at all.
    Dav { synced: bool },
}

const PLANS: [Plan; 4] = [
    Plan { name: "fio-direct", against: Against::Fio { direct: true } },
    Plan { name: "fio-buffered", against: Against::Fio { direct: false } },
    Plan { name: "dav-synced", against: Against::Dav { synced: true } },
    Plan { name: "dav-unsynced", against: Against::Dav { synced: false } },
];

impl Against {
    fn name(self) -> &'static str {
        match self {
            Against::Fio { direct: true } => "fio write, O_DIRECT, end_fsync",
            Against::Fio { direct: false } => "fio write, buffered, end_fsync",
            Against::Dav { synced: true } => "nginx dav PUT and fdatasync",
            Against::Dav { synced: false } => "nginx dav PUT, not synced",
        }
    }
}

/// Everything that stays the same from case to case.
struct Bench<'a> {
    options: &'a Beside,
    scratch: &'a Path,
    /// What is uploaded.
    source: File,
    bytes: u64,
    digest: (u64, String),
    node: Node,
    node_version: String,
    nginx: PathBuf,
    /// Started when a case needs it.
    dav: OnceCell<Peer>,
}

pub fn compare(options: &Beside) -> anyhow::Result<Section> {
    let program = options.program()?;
    let plans = options.chosen(PLANS.to_vec(), |plan| plan.name)?;
    let any = |of: fn(Against) -> bool| plans.iter().any(|plan| of(plan.against));
    let (with_fio, with_dav) = (any(|a| matches!(a, Against::Fio { .. })), any(|a| matches!(a, Against::Dav { .. })));
    let fio = if with_fio { FIO.version()? } else { String::new() };
    let nginx = if with_dav { server::executable()? } else { PathBuf::new() };

    let scratch = options.common.scratch()?;
    let bytes: u64 = if options.common.quick { 16 << 20 } else { 1 << 30 };
    let path = scratch.path().join("source.bin");
    node::noise_file(&path, bytes, bytes)?;
    let bench = Bench {
        options,
        scratch: scratch.path(),
        source: File::open(&path)?,
        bytes,
        digest: node::digest_file(&path)?,
        node: Node::start(&program, scratch.path(), &scratch.path().join("data"))?,
        node_version: program.version.clone(),
        nginx,
        dav: OnceCell::new(),
    };
    let mib = bytes >> 20;
    let mut section = Section {
        id: "upload".into(),
        title: "Storing a file durably, beside fio and nginx".into(),
        command: super::command_line(),
        notes: program.note().into_iter().collect(),
        cases: Vec::new(),
    };
    section.notes.push(format!(
        "{mib} MiB by one PUT over loopback, from the page cache by sendfile; measured from the connection to the answer, with \
         which the node has file and catalog on the disk. The uploader asks for a congestion control that does not pace \
         (reno), whoever takes what it sends. The node computes BLAKE3 and CRC-32C of every byte, and shares {} \
         processors with the uploader (client CPUs). CPU, context switches and memory are the server's alone.",
        std::thread::available_parallelism().map_or(1, usize::from)
    ));
    if with_fio {
        section.notes.push(
            "fio: io_uring, bs=1m, iodepth=4, into room that it reserves before its clock starts, the final sync within its \
             time; no socket, no checksum, the same bytes again and again. Of the two variants the faster is the fair one."
                .into(),
        );
    }
    if with_dav {
        section.notes.push(
            "nginx's dav module writes what arrives through the page cache to a temporary file, renames it, answers 201 and \
             syncs nothing: a power cut after the answer loses the file. dav-synced adds the time and CPU of an fdatasync of \
             it, still without its folder's entry."
                .into(),
        );
    }
    beside::each(&mut section, &plans, |plan, _| match plan.against {
        Against::Fio { direct } => bench.beside_fio(plan, direct, &fio),
        Against::Dav { synced } => bench.beside_dav(plan, synced),
    })?;
    section.notes.extend(fairest(&section.cases));
    Ok(section)
}

impl Bench<'_> {
    fn beside_fio(&self, plan: &Plan, direct: bool, version: &str) -> anyhow::Result<Option<Case>> {
        let folder = self.scratch.join(plan.name);
        fs::create_dir(&folder)?;
        let job = folder.join("upload.fio");
        let text = format!(
            "[upload]\nrw=write\nbs=1m\nsize={}\nfilename={WRITTEN}\nfallocate=native\nend_fsync=1\niodepth=4\n",
            self.bytes
        );
        fs::write(&job, text).with_context(|| job.display().to_string())?;
        let script = Source::read(&job, &folder, Length::Own)?
            .with(&["ioengine=io_uring", &format!("direct={}", u8::from(direct))]);
        let fio = Rival::fio("io_uring", version, &script, &folder)?;
        let written = folder.join(WRITTEN);
        let theirs = || {
            // A file that is there would be overwritten in its place.
            let _ = fs::remove_file(&written);
            let (_, run) = fio.round()?;
            let length = fs::metadata(&written).with_context(|| written.display().to_string())?.len();
            ensure!(
                run.bytes == self.bytes && length == self.bytes,
                "fio wrote {} bytes into {length}, {} were wanted",
                run.bytes,
                self.bytes
            );
            fs::remove_file(&written)?;
            // One file, as on our side; its blocks are no requests.
            Ok(Run { operations: 1, clat_ns: None, cdf: None, ..run })
        };
        let checked = RefCell::new(0);
        let pairs = rounds::alternate(self.turns(plan), || self.ours(&checked), theirs)?;
        let same = format!(
            "{} bytes in every round on both sides; SHA-256 of all {} objects equal to the file's",
            self.bytes,
            checked.take()
        );
        let theirs = Side { name: plan.against.name().into(), version: fio.version.clone(), runs: pairs.theirs };
        let mut case = Case::of(plan.name, self.side(pairs.ours), theirs, same);
        // What fio takes to start can be more than what it takes to write.
        if let Some(case) = &mut case
            && fio.hides(&case.theirs)
        {
            case.cpu = None;
        }
        Ok(case)
    }

    fn beside_dav(&self, plan: &Plan, synced: bool) -> anyhow::Result<Option<Case>> {
        let root = self.scratch.join("www");
        if self.dav.get().is_none() {
            fs::create_dir(&root)?;
            let peer = server::start_receiving(&self.nginx, self.scratch, &root)?;
            if self.dav.set(peer).is_err() {
                bail!("nginx was started twice");
            }
        }
        let dav = self.dav.get().context("nginx runs")?;
        let (target, stored) = (format!("/{KEY}"), root.join(KEY));
        let checked = RefCell::new(0);
        let theirs = || {
            fio::settle(self.scratch)?;
            let put = || http::upload(dav.address(), &target, &self.source)?.expect(201);
            let mut run = self.measured(dav, || put().map(drop))?;
            if synced {
                let (waited, cpu) = beside::sync(&stored)?;
                run.seconds += waited;
                run.cpu_seconds += cpu;
            }
            self.same("nginx", &node::digest_file(&stored)?, &checked)?;
            fs::remove_file(&stored)?;
            Ok(run)
        };
        let pairs = rounds::alternate(self.turns(plan), || self.ours(&checked), theirs)?;
        let same = format!("SHA-256 of all {} stored files equal to that of what was sent", checked.take());
        let version = server::version(&self.nginx)?;
        let theirs = Side { name: plan.against.name().into(), version, runs: pairs.theirs };
        Ok(Case::of(plan.name, self.side(pairs.ours), theirs, same))
    }

    /// One PUT to the node.
    fn ours(&self, checked: &RefCell<u32>) -> anyhow::Result<Run> {
        fio::settle(self.scratch)?;
        let run = self.measured(self.node.peer(), || self.node.upload(KEY, &self.source))?;
        self.same("the node", &self.node.digest(KEY)?, checked)?;
        self.node.delete(&node::object(KEY))?;
        Ok(run)
    }

    /// One upload to a server.
    fn measured(&self, server: &Peer, upload: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Run> {
        let before = run::Usage::of_process();
        let (seconds, used) = server.measure(|| {
            let start = Instant::now();
            upload()?;
            Ok(start.elapsed().as_secs_f64())
        })?;
        let client = run::Usage::of_process() - before;
        let Usage { cpu_seconds, context_switches, peak_rss_bytes } = used;
        Ok(Run {
            seconds,
            bytes: self.bytes,
            operations: 1,
            cpu_seconds,
            context_switches,
            peak_rss_bytes,
            client_cpu_seconds: Some((client.user + client.system).as_secs_f64()),
            ..Run::default()
        })
    }

    fn same(&self, who: &str, got: &(u64, String), checked: &RefCell<u32>) -> anyhow::Result<()> {
        ensure!(*got == self.digest, "{who} stored {} bytes with SHA-256 {}, not what was sent", got.0, got.1);
        *checked.borrow_mut() += 1;
        Ok(())
    }

    fn turns<'b>(&self, plan: &'b Plan) -> Turns<'b> {
        let rounds = self.options.common.rounds();
        Turns { title: plan.name, ours: "reelring PUT", theirs: plan.against.name(), rounds }
    }

    fn side(&self, runs: Vec<Run>) -> Side {
        Side { name: "reelring PUT".into(), version: self.node_version.clone(), runs }
    }
}

/// Which of fio's variants is the one to judge by.
fn fairest(cases: &[Case]) -> Option<String> {
    let speed = |name: &str| {
        let case = cases.iter().find(|case| case.name == name)?;
        let mib = median(case.theirs.figures(Run::bytes_per_second)) / f64::from(1 << 20);
        Some((mib, case.speed.median))
    };
    let (direct, buffered) = (speed("fio-direct")?, speed("fio-buffered")?);
    let (name, (mib, ratio)) = if direct.0 >= buffered.0 { ("O_DIRECT", direct) } else { ("buffered", buffered) };
    Some(format!("fio was faster {name}, with {mib:.0} MiB/s: by that the node's upload is judged, {ratio:.2} of it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_faster_variant_is_the_judge() {
        let case = |name: &str, theirs: u64, ours: u64| {
            let side = |bytes| Side {
                name: "x".into(),
                version: String::new(),
                runs: vec![Run { seconds: 1.0, bytes, operations: 1, cpu_seconds: 1.0, ..Run::default() }; 2],
            };
            Case::of(name, side(ours << 20), side(theirs << 20), "").unwrap()
        };
        let cases = [case("fio-direct", 1000, 800), case("fio-buffered", 500, 800)];
        let said = fairest(&cases).unwrap();
        assert_eq!(said, "fio was faster O_DIRECT, with 1000 MiB/s: by that the node's upload is judged, 0.80 of it");
        assert_eq!(fairest(&cases[..1]), None);
    }
}
