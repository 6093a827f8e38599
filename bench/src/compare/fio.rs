//! Our engines beside fio on the same job file, the same files and the same means of measuring.
//!
//! fio lays the files out once before the first round. Each round is one process; what the one before left dirty in the
//! page cache is written back first, outside the clock. fio runs its clones as threads (`--thread`), as we do, so that
//! one process's memory is all of it.

use std::cell::OnceCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};

use super::fio_output::{Outcome, SameWork};
use super::peer::FIO;
use super::result::{Case, Run, Section, Side};
use super::rounds::{self, Turns};
use super::script::{Script, Source};
use super::statistics::Spread;
use super::usage::Usage;
use super::{Common, command_line, stop, usage};
use crate::limits;

#[derive(Debug, Args)]
pub struct FioArgs {
    /// Job files that both programs accept; each is a comparison of its own.
    #[arg(required = true, value_name = "JOBFILE")]
    files: Vec<PathBuf>,
    /// Our engines.
    #[arg(long, value_delimiter = ',', default_value = "bridge,raw")]
    engine: Vec<Engine>,
    /// fio's engines.
    #[arg(long, value_delimiter = ',', default_value = "psync,io_uring,io_uring-fixed")]
    against: Vec<Against>,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    Bridge,
    Raw,
    Threads,
    Mmap,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Against {
    Psync,
    #[value(name = "io_uring")]
    IoUring,
    /// With registered buffers and files.
    #[value(name = "io_uring-fixed")]
    IoUringFixed,
}

impl Engine {
    pub fn name(self) -> &'static str {
        match self {
            Engine::Bridge => "bridge",
            Engine::Raw => "raw",
            Engine::Threads => "threads",
            Engine::Mmap => "mmap",
        }
    }
}

impl Against {
    fn name(self) -> &'static str {
        match self {
            Against::Psync => "psync",
            Against::IoUring => "io_uring",
            Against::IoUringFixed => "io_uring-fixed",
        }
    }
}

/// A program with its job file: one side.
#[derive(Debug)]
pub struct Rival {
    pub name: String,
    pub version: String,
    program: PathBuf,
    args: Vec<String>,
    /// Its job file, and the one that only starts and ends.
    jobs: [PathBuf; 2],
    /// Leaves something that is to be written back.
    writes: bool,
    /// Where it runs, and where its files are.
    folder: PathBuf,
    /// What starting and ending costs.
    start: OnceCell<Usage>,
}

impl Rival {
    /// `reelring-bench run` with one engine.
    pub fn ours(engine: Engine, more: &[String], script: &Script, folder: &Path) -> anyhow::Result<Rival> {
        let name = format!("reelring {}", engine.name());
        let jobs = write(script, folder, &format!("reelring-{}{}", engine.name(), more.concat()))?;
        let mut args: Vec<String> = ["run", "--output-format=json+", "--eta=never"].map(String::from).to_vec();
        args.push(format!("--engine={}", engine.name()));
        args.extend_from_slice(more);
        let program = std::env::current_exe().context("where this program is")?;
        let (version, folder) = (env!("CARGO_PKG_VERSION").to_owned(), folder.to_owned());
        let writes = script.writes;
        Ok(Rival { name, version, program, args, jobs, writes, folder, start: OnceCell::new() })
    }

    /// fio with a job file that names its engine.
    pub fn fio(engine: &str, version: &str, script: &Script, folder: &Path) -> anyhow::Result<Rival> {
        let jobs = write(script, folder, &format!("fio-{engine}"))?;
        let args: Vec<String> = ["--thread", "--output-format=json+", "--eta=never"].map(String::from).to_vec();
        let (name, folder) = (format!("fio {engine}"), folder.to_owned());
        let version = version.trim_start_matches("fio-").to_owned();
        let (program, writes) = (FIO.name.into(), script.writes);
        Ok(Rival { name, version, program, args, jobs, writes, folder, start: OnceCell::new() })
    }

    fn command(&self, job: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).arg(job).current_dir(&self.folder);
        command
    }

    /// What starting and ending costs: the median of some runs of one block. A program may look at its clock for a tenth
    /// of a second before it begins, as fio does; in a short round that would be most of its CPU time.
    pub fn start(&self) -> anyhow::Result<Usage> {
        if let Some(start) = self.start.get() {
            return Ok(*start);
        }
        let runs = (0..limits::START_RUNS).map(|_| Ok(usage::run(&mut self.command(&self.jobs[1]))?.usage));
        let runs =
            runs.collect::<anyhow::Result<Vec<Usage>>>().with_context(|| format!("{} with one block", self.name))?;
        let median = |figure: fn(&Usage) -> f64| {
            Spread::of(&runs.iter().map(figure).collect::<Vec<f64>>()).map_or(0.0, |spread| spread.median)
        };
        let start = Usage {
            cpu_seconds: median(|run| run.cpu_seconds),
            context_switches: median(|run| run.context_switches as f64) as u64,
            peak_rss_bytes: 0,
        };
        Ok(*self.start.get_or_init(|| start))
    }

    /// One round.
    pub fn round(&self) -> anyhow::Result<(Outcome, Run)> {
        if self.writes {
            settle(&self.folder)?;
        }
        let mut command = self.command(&self.jobs[0]);
        let mut ended = usage::run_any(&mut command)?;
        let line = usage::words(&command);
        let outcome = Outcome::read(&ended.stdout);
        // fio says in its JSON which job failed.
        let why = outcome.as_ref().err().filter(|_| ended.stdout.contains(&b'{'));
        let why = why.map(|error| format!(": {error:#}")).unwrap_or_default();
        ensure!(ended.status.success(), "`{line}` ended with {}{why}{}", ended.status, usage::quoted(&ended.stderr));
        let outcome =
            outcome.with_context(|| format!("reading what `{line}` printed{}", usage::quoted(&ended.stderr)))?;
        let start = self.start()?;
        ended.usage.cpu_seconds = (ended.usage.cpu_seconds - start.cpu_seconds).max(0.0);
        ended.usage.context_switches = ended.usage.context_switches.saturating_sub(start.context_switches);
        let run = outcome.clone().into_run(&ended);
        Ok((outcome, run))
    }

    /// Whether the start costs so much that what is left after it says nothing.
    pub fn hides(&self, side: &Side) -> bool {
        let start = self.start.get().map_or(0.0, |start| start.cpu_seconds);
        side.runs.iter().any(|run| run.cpu_seconds < start / 2.0)
    }

    pub fn side(&self, runs: Vec<Run>) -> Side {
        Side { name: self.name.clone(), version: self.version.clone(), runs }
    }
}

/// The two job files of a side.
fn write(script: &Script, folder: &Path, name: &str) -> anyhow::Result<[PathBuf; 2]> {
    let files = ["", "-start"].map(|what| folder.join(format!("{name}{what}.fio")));
    for (file, text) in files.iter().zip([&script.text, &script.once]) {
        fs::write(file, text).with_context(|| format!("could not write the job file {}", file.display()))?;
    }
    Ok(files)
}

/// Writes back what the round before left dirty, so that nobody pays for another's writes.
pub fn settle(folder: &Path) -> anyhow::Result<()> {
    let dir = File::open(folder).with_context(|| format!("could not open {}", folder.display()))?;
    rustix::fs::syncfs(&dir).with_context(|| format!("syncfs of {}", folder.display()))
}

/// All rounds of two rivals; every round must have done the same work as the first. `None` when it was stopped before a
/// pair was complete.
pub fn contest(title: &str, ours: &Rival, theirs: &Rival, rounds: u32, work: SameWork) -> anyhow::Result<Option<Case>> {
    let first: OnceCell<Outcome> = OnceCell::new();
    let round = |rival: &Rival| {
        let (outcome, run) = rival.round()?;
        work.check(first.get_or_init(|| outcome.clone()), &outcome)?;
        Ok(run)
    };
    let turns = Turns { title, ours: &ours.name, theirs: &theirs.name, rounds };
    let pairs = rounds::alternate(turns, || round(ours), || round(theirs))?;
    let Some(outcome) = first.get() else { return Ok(None) };
    let mut case = Case::of(title, ours.side(pairs.ours), theirs.side(pairs.theirs), work.words(outcome));
    if let Some(case) = &mut case
        && (ours.hides(&case.ours) || theirs.hides(&case.theirs))
    {
        case.cpu = None;
    }
    Ok(case)
}

pub fn compare(args: &FioArgs) -> anyhow::Result<Section> {
    let version = FIO.version()?;
    let mut section = Section {
        id: "fio".to_owned(),
        title: "Reelring's engines beside fio".to_owned(),
        command: command_line(),
        notes: Vec::new(),
        cases: Vec::new(),
    };
    for file in &args.files {
        let scratch = args.common.scratch()?;
        let folder = scratch.path().canonicalize()?;
        let source = Source::read(file, &folder, args.common.length())?;
        lay_out(&source, &folder)?;
        for engine in &args.engine {
            for against in &args.against {
                if stop::asked() {
                    break;
                }
                match one(args, *engine, *against, &source, &version, &folder, &mut section) {
                    // What was ended did not fail, and what was complete before is still worth a report.
                    Err(_) if stop::asked() => break,
                    outcome => outcome?,
                }
            }
        }
        note_about(&source, &mut section);
    }
    section.notes.dedup();
    Ok(section)
}

fn one(
    args: &FioArgs,
    engine: Engine,
    against: Against,
    source: &Source,
    version: &str,
    folder: &Path,
    section: &mut Section,
) -> anyhow::Result<()> {
    let title = format!("{}/{}/{}", source.name, engine.name(), against.name());
    let mut parted = false;
    let script = match against {
        Against::IoUring => source.with(&["ioengine=io_uring"]),
        Against::IoUringFixed => fixed(source, version, folder, &mut section.notes)?,
        Against::Psync => match source.blocking(&["ioengine=psync"]) {
            Ok(script) => {
                parted = source.is_deep();
                if parted {
                    note(
                        &mut section.notes,
                        format!(
                            "{}: psync has one operation in flight a clone: numjobs stands in for iodepth, each clone does an equal part on the same files",
                            source.name
                        ),
                    );
                }
                script
            }
            Err(why) => {
                note(&mut section.notes, format!("{}: psync is left out: {why}", source.name));
                return Ok(());
            }
        },
    };
    let ours = Rival::ours(engine, &[], &source.plain(), folder)?;
    let theirs = Rival::fio(against.name(), version, &script, folder)?;
    section.cases.extend(contest(&title, &ours, &theirs, args.common.rounds(), source.same_work(parted))?);
    for rival in [&ours, &theirs] {
        if let Some(start) = rival.start.get() {
            let (name, ms) = (&rival.name, start.cpu_seconds * 1000.0);
            note(
                &mut section.notes,
                format!("{}: without the start of {name}, which took {ms:.0} ms of CPU time", source.name),
            );
        }
    }
    Ok(())
}

/// With registered buffers and files; without the buffers where the kernel refuses to lock so much memory.
fn fixed(source: &Source, version: &str, folder: &Path, notes: &mut Vec<String>) -> anyhow::Result<Script> {
    let full = source.with(&["ioengine=io_uring", "fixedbufs=1", "registerfiles=1"]);
    let Err(error) = Rival::fio("io_uring-fixed", version, &full, folder)?.round() else { return Ok(full) };
    stop::check()?;
    let less = source.with(&["ioengine=io_uring", "registerfiles=1"]);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    let limit = limit.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{} KiB", bytes / 1024));
    // Anything but the buffers fails again, with its own words.
    Rival::fio("io_uring-fixed", version, &less, folder)?.round().map_err(|_| error)?;
    note(
        notes,
        format!(
            "{}: fio could not register its buffers (`ulimit -l` is {limit}): io_uring-fixed has registered files only",
            source.name
        ),
    );
    Ok(less)
}

/// Makes the files as fio makes them, once.
fn lay_out(source: &Source, folder: &Path) -> anyhow::Result<()> {
    let job = folder.join("layout.fio");
    let script = source.with(&["ioengine=psync", "create_only=1"]);
    fs::write(&job, script.text).with_context(|| format!("could not write the job file {}", job.display()))?;
    let mut command = FIO.command();
    command.args(["--thread", "--eta=never"]).arg(&job).current_dir(folder);
    usage::run(&mut command).context("laying out the files")?;
    settle(folder)
}

fn note(notes: &mut Vec<String>, text: String) {
    if !notes.contains(&text) {
        notes.push(text);
    }
}

fn note_about(source: &Source, section: &mut Section) {
    let Section { notes, cases, .. } = section;
    let name = &source.name;
    if source.has_ramp() {
        note(notes, format!("{name}: CPU time and context switches count the ramp too, bytes and operations do not"));
    }
    let short = cases.iter().filter(|case| case.name.starts_with(&format!("{name}/")));
    let shortest = short.flat_map(|case| case.ours.runs.iter().chain(&case.theirs.runs)).map(|run| run.seconds);
    if cases.iter().any(|case| case.name.starts_with(&format!("{name}/")) && case.cpu.is_none()) {
        note(
            notes,
            format!(
                "{name}: where CPU has no ratio, a round used less of it than half a program's start: give it more to do"
            ),
        );
    }
    let shortest = shortest.fold(f64::INFINITY, f64::min);
    if shortest < 0.1 {
        let ms = shortest * 1000.0;
        note(
            notes,
            format!("{name}: the shortest round took {ms:.0} ms and fio counts whole ones: give it more to do"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::script::Length;

    struct Place {
        folder: tempfile::TempDir,
        version: String,
    }

    /// `None` without fio, after saying so.
    fn place() -> Option<Place> {
        match FIO.version() {
            Ok(version) => Some(Place { folder: tempfile::tempdir().unwrap(), version }),
            Err(why) => {
                eprintln!("SKIPPED: {why}");
                None
            }
        }
    }

    impl Place {
        fn source(&self, lines: &str) -> Source {
            let file = self.folder.path().join("tiny.fio");
            std::fs::write(&file, lines).unwrap();
            Source::read(&file, self.folder.path(), Length::Own).unwrap()
        }

        fn rival(&self, engine: &str, script: &Script) -> Rival {
            Rival::fio(engine, &self.version, script, self.folder.path()).unwrap()
        }
    }

    const DEEP: &str = "[tiny]\nrw=randread\nbs=4k\nsize=4m\niodepth=8\nnumjobs=2\n";

    #[test]
    fn clones_stand_in_for_depth_on_the_same_files() {
        let Some(place) = place() else { return };
        for lines in [DEEP.to_owned(), DEEP.replace("randread", "write"), DEEP.replace("numjobs=2", "filename=one")] {
            let source = place.source(&lines);
            lay_out(&source, place.folder.path()).unwrap();
            let before = std::fs::read_dir(place.folder.path()).unwrap().count();
            let deep = place.rival("io_uring", &source.with(&["ioengine=io_uring"]));
            let parted = place.rival("psync", &source.blocking(&["ioengine=psync"]).unwrap());
            let case = contest("tiny", &deep, &parted, 1, source.same_work(true)).unwrap().unwrap();
            let bytes = if lines.contains("numjobs=2") { 8 << 20 } else { 4 << 20 };
            for side in [&case.ours, &case.theirs] {
                assert_eq!((side.runs[0].bytes, side.runs[0].operations), (bytes, bytes / 4096), "{lines}");
                assert!(side.runs[0].peak_rss_bytes > 1 << 20);
                assert!(side.runs[0].latency_ns(0.99) >= side.runs[0].latency_ns(0.5));
            }
            assert!(deep.start().unwrap().cpu_seconds > 0.0);
            // The four job files are new; no file beside those laid out is.
            for file in deep.jobs.iter().chain(&parted.jobs) {
                std::fs::remove_file(file).unwrap();
            }
            assert_eq!(std::fs::read_dir(place.folder.path()).unwrap().count(), before, "{lines}");
        }
    }

    #[test]
    fn a_side_that_does_less_is_found_out() {
        let Some(place) = place() else { return };
        let source = place.source(DEEP);
        let honest = place.rival("io_uring", &source.with(&["ioengine=io_uring"]));
        for forged in ["size=2m", "rw=randwrite"] {
            let other = place.rival("psync", &source.with(&["ioengine=psync", forged]));
            let error = contest("tiny", &honest, &other, 1, source.same_work(false)).unwrap_err();
            let text = format!("{error:#}");
            assert!(text.contains("fio psync failed in its warm-up: not the same work"), "{forged}: {text}");
        }
    }

    #[test]
    fn a_failure_shows_the_command_line_and_fios_words() {
        let Some(place) = place() else { return };
        let source = place.source(DEEP);
        let good = place.rival("io_uring", &source.with(&["ioengine=io_uring"]));
        let bad = place.rival("psync", &source.with(&["ioengine=psync", "no_such_option=1"]));
        let error = format!("{:#}", contest("tiny", &good, &bad, 1, source.same_work(false)).unwrap_err());
        assert!(error.contains("fio psync failed in its warm-up"), "{error}");
        assert!(error.contains("fio-psync.fio` ended with exit status: 1"), "{error}");
        assert!(error.contains("no_such_option"), "{error}");
    }

    #[test]
    fn registered_buffers_where_they_may_be() {
        let Some(place) = place() else { return };
        let source = place.source(DEEP);
        let mut notes = Vec::new();
        let script = fixed(&source, &place.version, place.folder.path(), &mut notes).unwrap();
        assert!(script.text.contains("registerfiles=1"));
        assert_eq!(script.text.contains("fixedbufs=1"), notes.is_empty(), "{notes:?}");
    }
}
