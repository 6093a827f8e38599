//! fio's job language: what a job file or the same flags ask for, as a list of [`Job`]s.
//!
//! Pure: it reads the files it is given and nothing else, starts nothing and owns no resource, so there is nothing to
//! cancel.

mod error;
mod file;
mod flags;
mod options;
#[cfg(test)]
mod tests;
mod values;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use file::load;
pub use flags::Flags;

/// One section of a job file, globals folded in, before `numjobs` makes clones of it. Sizes are bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    pub name: String,
    /// What `--engine` or `ioengine=` chose.
    pub engine: Option<EngineKind>,
    pub rw: Rw,
    pub read_blocks: BlockSizes,
    pub write_blocks: BlockSizes,
    /// Of all files of the job together; 0: whatever is there.
    pub size: u64,
    /// Bytes to transfer where that is not `size`.
    pub io_size: Option<u64>,
    pub offset: u64,
    pub files: Files,
    pub iodepth: u32,
    pub numjobs: u32,
    pub direct: bool,
    /// A sync after every so many writes; 0: none.
    pub fsync: u32,
    pub fdatasync: u32,
    /// A sync when the job ends.
    pub end_fsync: bool,
    pub runtime: Option<Duration>,
    /// Start over until `runtime` is up.
    pub time_based: bool,
    pub ramp_time: Duration,
    pub rate: Rates,
    pub distribution: Distribution,
    pub norandommap: bool,
    pub verify: Option<Verify>,
    pub refill_buffers: bool,
    /// Starts only when everything before it has ended.
    pub stonewall: bool,
    pub group_reporting: bool,
    pub randseed: u64,
    /// A second pass over the files repeats the first one's randomness.
    pub randrepeat: bool,
    /// A pause after every operation.
    pub thinktime: Duration,
    pub fallocate: Fallocate,
    /// The file is written in full before the job starts.
    pub overwrite: bool,
    /// The page cache forgets the file before the job starts.
    pub invalidate: bool,
    /// The distribution of the whole latency is kept, not only its moments.
    pub lat_percentiles: bool,
    pub write_iolog: Option<PathBuf>,
    /// What its section said, in order: fio's JSON repeats it as "job options".
    pub given: Vec<(String, String)>,
    /// What it inherited: fio's "global options".
    pub global: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineKind {
    Raw,
    Bridge,
    Threads,
    Mmap,
    Http,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rw {
    pub pattern: Pattern,
    pub reads: bool,
    pub writes: bool,
    /// Of a mixed job.
    pub read_percent: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    Sequential,
    Random,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    pub min: u64,
    pub max: u64,
}

/// Bytes per second; `None`: as fast as it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rates {
    pub read: Option<u64>,
    pub write: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Distribution {
    Uniform,
    /// Theta.
    Zipf(f64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    Crc32c,
}

/// How room for a file is reserved before a job writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallocate {
    None,
    /// fallocate(2), and the file has its full length at once.
    Native,
    /// fallocate(2) with FALLOC_FL_KEEP_SIZE.
    Keep,
    /// ftruncate(2).
    Truncate,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Where they are; empty: the current folder. Clones with files of their own take turns.
    pub directories: Vec<PathBuf>,
    /// Shared by all clones; empty: every clone has its own, `<job>.<clone>.<number>`.
    pub names: Vec<PathBuf>,
    /// How many a clone has of its own.
    pub own: u32,
}

impl Files {
    /// The files of one clone, counted from 0.
    pub fn of_clone(&self, job: &str, clone: u32) -> Vec<PathBuf> {
        let (turn, names) = if self.names.is_empty() {
            (clone as usize, (0..self.own).map(|number| PathBuf::from(format!("{job}.{clone}.{number}"))).collect())
        } else {
            (0, self.names.clone())
        };
        match self.directories.len() {
            0 => names,
            count => {
                let directory = &self.directories[turn % count];
                // As in fio, a name that begins with a slash is under the directory all the same.
                let under = |name: &PathBuf| {
                    name.strip_prefix("/").map_or_else(|_| directory.join(name), |name| directory.join(name))
                };
                names.iter().map(under).collect()
            }
        }
    }

    pub fn count(&self) -> usize {
        if self.names.is_empty() { self.own as usize } else { self.names.len() }
    }
}

/// The job as a section of a job file, what it inherited included.
impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "[{}]", self.name)?;
        for (option, value) in self.global.iter().chain(&self.given) {
            match value.as_str() {
                _ if option == "name" => Ok(()),
                "" => writeln!(f, "{option}"),
                value => writeln!(f, "{option}={value}"),
            }?;
        }
        Ok(())
    }
}

impl Job {
    /// Bytes of its file `number`, behind `offset`; 0: whatever is there. What does not divide goes to the first files,
    /// block by block.
    pub fn file_size(&self, number: usize) -> u64 {
        let (files, block) = (self.files.count() as u64, self.read_blocks.min.min(self.write_blocks.min).max(1));
        let share = self.size / files;
        let larger = (self.size - share * files) / block;
        share + if (number as u64) < larger { block } else { 0 }
    }

    /// Its clones in the order in which fio numbers them: the first, then the last, and down to the second.
    pub fn clones(&self) -> impl Iterator<Item = u32> + use<> {
        std::iter::once(0).chain((1..self.numjobs).rev())
    }
}

impl Default for Job {
    /// fio's defaults.
    fn default() -> Self {
        Job {
            name: "job".into(),
            engine: None,
            rw: Rw { pattern: Pattern::Sequential, reads: true, writes: false, read_percent: 50 },
            read_blocks: BlockSizes { min: 4096, max: 4096 },
            write_blocks: BlockSizes { min: 4096, max: 4096 },
            size: 0,
            io_size: None,
            offset: 0,
            files: Files { directories: Vec::new(), names: Vec::new(), own: 1 },
            iodepth: 1,
            numjobs: 1,
            direct: false,
            fsync: 0,
            fdatasync: 0,
            end_fsync: false,
            runtime: None,
            time_based: false,
            ramp_time: Duration::ZERO,
            rate: Rates::default(),
            distribution: Distribution::Uniform,
            norandommap: false,
            verify: None,
            refill_buffers: false,
            stonewall: false,
            group_reporting: false,
            randseed: 0x89,
            randrepeat: true,
            thinktime: Duration::ZERO,
            fallocate: Fallocate::Native,
            overwrite: false,
            invalidate: true,
            lat_percentiles: false,
            write_iolog: None,
            given: Vec::new(),
            global: Vec::new(),
        }
    }
}
