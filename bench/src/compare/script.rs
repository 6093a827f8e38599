//! The job files that the two sides of a comparison run: the user's own, with the files in the scratch folder and with
//! what the other side's engine needs.
//!
//! A blocking engine has one operation in flight for each clone. So where a job has an `iodepth`, clones stand in for
//! it: each does an equal part of the job's work on the job's own files.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{bail, ensure};

use super::fio_output::SameWork;
use crate::job::{self, Flags, Job, Pattern};
use crate::limits;

/// One job file of the user, understood.
#[derive(Debug)]
pub struct Source {
    /// The file's stem.
    pub name: String,
    /// With the lines that give each its length.
    jobs: Vec<(Job, Vec<String>)>,
    /// Lines that every section ends with; they win over what the user wrote.
    common: Vec<String>,
}

/// How long a round is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// As the job says.
    Own,
    /// So long where the job has a time; its work, where it has a size only.
    AtMost(Duration),
    /// So long, whatever the job says.
    Exactly(Duration),
}

impl Length {
    /// Changes the job, and gives the lines that say so.
    fn apply(self, job: &mut Job) -> Vec<String> {
        let runtime = match self {
            Length::AtMost(most) if job.runtime.is_some_and(|own| own > most) => most,
            // Verification is of what was written, and that must end.
            Length::Exactly(runtime) if job.verify.is_none() => {
                job.time_based = true;
                runtime
            }
            _ => return Vec::new(),
        };
        job.runtime = Some(runtime);
        let mut lines = vec![format!("runtime={}ms", runtime.as_millis())];
        lines.extend(job.time_based.then(|| "time_based=1".to_owned()));
        lines
    }
}

/// A job file for one side.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Script {
    pub text: String,
    /// The same, with one block for every clone to move: what it costs to start and to end.
    pub once: String,
    /// Leaves something that is to be written back.
    pub writes: bool,
}

impl Source {
    /// `scratch` is where the files go.
    pub fn read(file: &Path, scratch: &Path, length: Length) -> anyhow::Result<Source> {
        // The engine is chosen here for each side; what the file says is for whoever runs it without us.
        let mut jobs = job::load(&[PathBuf::from(file)], &Flags::default(), Some(job::EngineKind::Raw))?;
        let mut lines = Vec::new();
        for job in &mut jobs {
            for name in &job.files.names {
                ensure!(
                    name.components().count() == 1 && !name.is_absolute(),
                    "{}: [{}] names the file {}: a comparison makes its own files under --dir, write a plain name",
                    file.display(),
                    job.name,
                    name.display()
                );
            }
            ensure!(
                job.size > 0,
                "{}: [{}] has no size: a comparison makes its own files and must know theirs",
                file.display(),
                job.name
            );
            lines.push(length.apply(job));
        }
        let name = file.file_stem().map_or_else(|| "job".to_owned(), |stem| stem.to_string_lossy().replace(' ', "-"));
        let common = vec![
            format!("directory={}", scratch.display()),
            "group_reporting=1".to_owned(),
            "lat_percentiles=1".to_owned(),
        ];
        Ok(Source { name, jobs: jobs.into_iter().zip(lines).collect(), common })
    }

    fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.iter().map(|(job, _)| job)
    }

    /// Every job as the user wrote it.
    pub fn plain(&self) -> Script {
        self.with(&[])
    }

    /// Every job with some more lines.
    pub fn with(&self, lines: &[&str]) -> Script {
        let mut script = Script::default();
        for (job, length) in &self.jobs {
            self.section(&mut script, job, length.iter().cloned().chain(lines.iter().map(|line| (*line).to_owned())));
        }
        script
    }

    fn section(&self, script: &mut Script, job: &Job, lines: impl Iterator<Item = String>) {
        let mut text = job.to_string();
        for line in self.common.iter().cloned().chain(lines) {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{line}");
        }
        let block = job.read_blocks.max.max(job.write_blocks.max);
        script.text += &text;
        script.writes |= job.rw.writes;
        let _ = write!(script.once, "{text}time_based=0\nramp_time=0\nio_size={block}\n");
    }

    /// For a blocking engine: clones instead of depth. Fails with why that would not be the same work.
    pub fn blocking(&self, lines: &[&str]) -> anyhow::Result<Script> {
        let mut script = Script::default();
        for (job, length) in &self.jobs {
            let lines = length.iter().cloned().chain(lines.iter().map(|line| (*line).to_owned()));
            if job.iodepth <= 1 {
                self.section(&mut script, job, lines);
                continue;
            }
            let part = part_of(job)?;
            for clone in 0..job.numjobs {
                let mut lines: Vec<String> = lines.clone().collect();
                lines.extend([format!("numjobs={}", job.iodepth), "iodepth=1".to_owned()]);
                lines.extend(part.clone());
                if job.files.names.is_empty() {
                    // The very files that the clone of the other side has.
                    let names: Vec<String> = (0..job.files.own).map(|n| format!("{}.{clone}.{n}", job.name)).collect();
                    lines.push(format!("filename={}", names.join(":")));
                }
                if clone > 0 {
                    lines.push("stonewall=0".to_owned());
                }
                self.section(&mut script, job, lines.into_iter());
            }
        }
        Ok(script)
    }

    /// What both sides must have in common. `parted` where one of them has clones instead of depth.
    pub fn same_work(&self, parted: bool) -> SameWork {
        let sizes =
            |job: &Job| job.read_blocks.min == job.read_blocks.max && job.write_blocks.min == job.write_blocks.max;
        let one_size = self.jobs().all(sizes);
        let mixed = self.jobs().any(|job| job.rw.reads && job.rw.writes);
        SameWork {
            bounded: self.jobs().all(|job| job.runtime.is_none()),
            one_size,
            same_draw: !parted || (one_size && !mixed),
            deep: self.is_deep(),
        }
    }

    /// Whether a blocking engine needs clones for it.
    pub fn is_deep(&self) -> bool {
        self.jobs().any(|job| job.iodepth > 1)
    }

    pub fn has_ramp(&self) -> bool {
        self.jobs().any(|job| !job.ramp_time.is_zero())
    }
}

/// The lines that make a clone do one part of a job with an `iodepth`.
fn part_of(job: &Job) -> anyhow::Result<Vec<String>> {
    let depth = u64::from(job.iodepth);
    let (name, iodepth) = (&job.name, job.iodepth);
    let clones = depth * u64::from(job.numjobs);
    if clones > u64::from(limits::NUMJOBS) {
        bail!("[{name}] would take {clones} clones (iodepth × numjobs), the limit is {}", limits::NUMJOBS);
    }
    ensure!(job.rate == job::Rates::default(), "[{name}] limits its rate, which is one clone's");
    ensure!(job.thinktime.is_zero(), "[{name}] has a thinktime, which is one clone's");
    let random = job.rw.pattern == Pattern::Random;
    let (reads, writes) = (job.read_blocks, job.write_blocks);
    let used =
        [(job.rw.reads, reads), (job.rw.writes, writes)].into_iter().filter_map(|(used, sizes)| used.then_some(sizes));
    let mut sizes: Vec<u64> = used.flat_map(|sizes| [sizes.min, sizes.max]).collect();
    sizes.dedup();
    ensure!(
        job.norandommap || !random || sizes.len() <= 1,
        "[{name}] fits blocks of several sizes into what is left of its file, which clones would not share"
    );
    ensure!(
        job.verify.is_none() || !(random && job.rw.writes),
        "[{name}] verifies random writes, which clones would make over each other"
    );
    if random && (job.time_based || job.runtime.is_some()) {
        // Every clone draws from the whole file until the time is up.
        return Ok(Vec::new());
    }
    let block = job.read_blocks.max.max(job.write_blocks.max);
    let bytes = job.io_size.unwrap_or(job.size);
    ensure!(
        bytes.is_multiple_of(depth * block),
        "[{name}] has {bytes} bytes, which is not {iodepth} equal parts of whole blocks of {block}"
    );
    if random {
        return Ok(vec![format!("io_size={}", bytes / depth)]);
    }
    ensure!(
        job.io_size.is_none() && job.files.count() == 1 && job.size.is_multiple_of(depth * block),
        "[{name}] is sequential over several files or with io_size, which parts cannot follow"
    );
    let part = job.size / depth;
    Ok(vec![format!("size={part}"), format!("offset_increment={part}")])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str, length: Length) -> anyhow::Result<Source> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("my job.fio");
        std::fs::write(&file, text).unwrap();
        Source::read(&file, Path::new("/scratch"), length)
    }

    #[test]
    fn a_section_keeps_its_lines_and_ends_with_ours() {
        let text = "[global]\nbs=8k\ndirectory=/elsewhere\n[a]\nrw=read\nsize=1m\n[b]\nstonewall\nrw=write\nsize=2m\n";
        let source = source(text, Length::Own).unwrap();
        assert_eq!(source.name, "my-job");
        let ours = "directory=/scratch\ngroup_reporting=1\nlat_percentiles=1\nx=1\n";
        let wanted = format!(
            "[a]\nbs=8k\ndirectory=/elsewhere\nrw=read\nsize=1m\n{ours}[b]\nbs=8k\ndirectory=/elsewhere\nstonewall\nrw=write\nsize=2m\n{ours}"
        );
        assert_eq!(source.with(&["x=1"]).text, wanted);
        let once = source.plain().once;
        assert!(
            once.ends_with("time_based=0\nramp_time=0\nio_size=8192\n") && once.matches("io_size").count() == 2,
            "{once}"
        );
    }

    #[test]
    fn a_round_is_as_long_as_was_asked() {
        let half = Duration::from_millis(500);
        let (timed, sized) = ("[a]\nrw=randread\nsize=1m\nruntime=60\ntime_based\n", "[a]\nrw=read\nsize=1m\n");
        let of = |text: &str, length| {
            let source = source(text, length).unwrap();
            (source.plain().text, source.same_work(false).bounded)
        };
        let (text, bounded) = of(timed, Length::AtMost(half));
        assert!(text.contains("\nruntime=500ms\ntime_based=1\n") && !bounded, "{text}");
        let (text, bounded) = of(sized, Length::AtMost(half));
        assert!(!text.contains("runtime") && bounded, "{text}");
        let (text, bounded) = of(sized, Length::Exactly(half));
        assert!(text.contains("\nruntime=500ms\ntime_based=1\n") && !bounded, "{text}");
        let (text, bounded) = of("[a]\nrw=write\nsize=1m\nverify=crc32c\n", Length::Exactly(half));
        assert!(!text.contains("runtime") && bounded, "{text}");
    }

    #[test]
    fn parts_cover_a_sequential_job_and_share_a_random_one() {
        let lines = |text: &str| source(text, Length::Own).unwrap().blocking(&[]).unwrap().text;
        let sequential = lines("[a]\nrw=write\nbs=64k\nsize=1m\niodepth=4\n");
        for line in ["numjobs=4", "iodepth=1", "size=262144", "offset_increment=262144", "filename=a.0.0"] {
            assert!(sequential.contains(&format!("\n{line}\n")), "{line} in {sequential}");
        }
        let random = lines("[a]\nrw=randread\nbs=4k\nsize=1m\niodepth=4\nnumjobs=2\n");
        assert_eq!(random.matches("io_size=262144").count(), 2);
        assert!(random.contains("filename=a.0.0\n[a]"), "{random}");
        assert!(random.contains("filename=a.1.0\nstonewall=0"), "{random}");
        let timed = lines("[a]\nrw=randread\nbs=4k\nsize=1m\niodepth=4\nruntime=1\ntime_based\n");
        assert!(!timed.contains("io_size"), "{timed}");
        let shallow = lines("[a]\nrw=read\nsize=1m\n");
        assert!(!shallow.contains("numjobs"), "{shallow}");
    }

    #[test]
    fn what_clones_cannot_do_is_said() {
        for (line, why) in [
            ("rate=1m", "limits its rate"),
            ("thinktime=1000", "has a thinktime"),
            ("size=1028k", "not 4 equal parts"),
            ("numjobs=200", "would take 800 clones"),
            ("rw=randwrite\nverify=crc32c", "verifies random writes"),
            ("rw=randwrite\nbsrange=4k-16k", "blocks of several sizes"),
            ("rw=randrw\nbs=4k,16k", "blocks of several sizes"),
        ] {
            let text = format!("[a]\nrw=read\nbs=4k\nsize=1m\niodepth=4\n{line}\n");
            let error = source(&text, Length::Own).unwrap().blocking(&[]).unwrap_err().to_string();
            assert!(error.starts_with("[a] ") && error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn a_job_on_somebody_elses_file_is_refused() {
        for name in ["/dev/sda", "../x"] {
            let error =
                source(&format!("[a]\nrw=write\nsize=1m\nfilename={name}\n"), Length::Own).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("write a plain name"), "{error}");
        }
        assert!(source("[a]\nrw=read\n", Length::Own).is_err());
    }
}
