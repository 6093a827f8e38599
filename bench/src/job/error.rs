//! What is wrong with a job, where, and what to write instead.

use std::fmt;
use std::path::PathBuf;

/// Where an option or a section was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    Line {
        file: PathBuf,
        line: usize,
    },
    /// On the command line.
    Flags,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            At::Line { file, line } => write!(f, "{}:{line}", file.display()),
            At::Flags => f.write_str("command line"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error("could not read job file {}: {source}", file.display())]
    Read { file: PathBuf, source: std::io::Error },

    #[error("job file {} is over {limit} bytes: split it", file.display())]
    FileTooLong { file: PathBuf, limit: u64 },

    #[error("{at}: {problem}")]
    Syntax { at: At, problem: String },

    #[error("{at}: unknown option {option:?}{}; `reelring-bench run --help` lists all", nearest.map(|n| format!(", did you mean {n:?}?")).unwrap_or_default())]
    Unknown { at: At, option: String, nearest: Option<&'static str> },

    #[error("{at}: fio's option {option:?} is not supported: {advice}")]
    Unsupported { at: At, option: String, advice: &'static str },

    #[error("{at}: {option}={value}: {problem}")]
    Value { at: At, option: &'static str, value: String, problem: String },

    /// Options that are fine alone, but not together.
    #[error("{at}: job {job:?}: {problem}")]
    Conflict { at: At, job: String, problem: String },

    #[error("{count} {what} are over the limit of {limit}")]
    TooMany { what: &'static str, count: usize, limit: usize },

    #[error("no job: name a job file, or describe a job with --name=NAME --rw=randread --bs=4k --size=64m …")]
    NoJob,
}
