//! fio's job language: what a job file or the same flags ask for, as a list of [`Job`]s.
//!
//! Pure: it reads the files it is given and nothing else, starts nothing and owns no resource, so there is nothing to
//! cancel.

use std::path::PathBuf;
use std::time::Duration;

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
    /// A pause after every operation.
    pub thinktime: Duration,
    pub fallocate: Fallocate,
    /// The file is written in full before the job starts.
    pub overwrite: bool,
    /// The page cache forgets the file before the job starts.
    pub invalidate: bool,
    pub write_iolog: Option<PathBuf>,
    /// As the user wrote them, in order: fio's JSON repeats them as "job options".
    pub given: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Files {
    /// Clones take turns; empty: the current folder.
    pub directories: Vec<PathBuf>,
    /// Shared by all clones; empty: every clone has its own file, `<job>.<clone>.0`.
    pub names: Vec<PathBuf>,
}

impl Files {
    /// The files of one clone, counted from 0.
    pub fn of_clone(&self, job: &str, clone: u32) -> Vec<PathBuf> {
        let directory = match self.directories.len() {
            0 => None,
            count => Some(&self.directories[clone as usize % count]),
        };
        let own;
        let names = if self.names.is_empty() {
            own = [PathBuf::from(format!("{job}.{clone}.0"))];
            &own[..]
        } else {
            &self.names
        };
        names.iter().map(|name| directory.map_or_else(|| name.clone(), |directory| directory.join(name))).collect()
    }

    pub fn count(&self) -> usize {
        self.names.len().max(1)
    }
}

impl Job {
    /// Bytes of each of its files, 0 for whatever is there.
    pub fn file_size(&self) -> u64 {
        self.size / self.files.count() as u64
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
            files: Files::default(),
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
            randseed: 0x8989,
            thinktime: Duration::ZERO,
            fallocate: Fallocate::Native,
            overwrite: false,
            invalidate: true,
            write_iolog: None,
            given: Vec::new(),
        }
    }
}
