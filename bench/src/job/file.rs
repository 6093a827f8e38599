//! Job files, and jobs described by flags: sections in, [`Job`]s out.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::error::{At, JobError};
use super::flags::Flags;
use super::options::{Draft, Entry, name};
use super::{EngineKind, Job};
use crate::limits;

/// One section, unfolded.
#[derive(Debug, Clone)]
pub struct Section {
    pub name: String,
    pub at: At,
    pub entries: Vec<Entry>,
}

impl Section {
    /// As in fio, whatever begins with it.
    fn is_global(&self) -> bool {
        self.name.starts_with("global")
    }
}

/// The jobs of flags and files, in the order in which fio runs them: those of `--name` first. As in fio, flags before the
/// first `--name` are what the jobs of the command line and of the first file begin with (a file's own values win), a
/// file's globals end with it, and every file but the first begins with a stonewall. `-` is the standard input.
pub fn load(files: &[PathBuf], flags: &Flags, engine: Option<EngineKind>) -> Result<Vec<Job>, JobError> {
    let mut globals = Draft::new(engine);
    let mut jobs = Vec::new();
    fold(flags.sections(), &mut globals, false, &mut jobs)?;
    for (number, file) in files.iter().enumerate() {
        if number > 0 {
            globals = Draft::new(engine);
        }
        fold(sections(&read(file)?, file)?, &mut globals, number > 0, &mut jobs)?;
    }
    let clones = jobs.iter().map(|job| job.numjobs as usize).sum();
    match clones {
        0 => Err(JobError::NoJob),
        1..=limits::CLONES => Ok(jobs),
        _ => Err(JobError::TooMany { what: "clones of all jobs", count: clones, limit: limits::CLONES }),
    }
}

pub(super) fn fold(
    sections: Vec<Section>,
    globals: &mut Draft,
    mut stonewall: bool,
    jobs: &mut Vec<Job>,
) -> Result<(), JobError> {
    for section in sections {
        if section.is_global() {
            globals.apply(&section.entries)?;
            globals.seal_globals();
            continue;
        }
        let mut draft = globals.clone();
        draft.apply(&section.entries)?;
        if std::mem::take(&mut stonewall) {
            draft.stonewall();
        }
        jobs.push(draft.finish(&section.name, &section.at)?);
        if jobs.len() > limits::SECTIONS {
            return Err(JobError::TooMany { what: "jobs", count: jobs.len(), limit: limits::SECTIONS });
        }
    }
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>, JobError> {
    let mut text = Vec::new();
    let limited = |source: &mut dyn Read, text: &mut Vec<u8>| source.take(limits::JOB_FILE_BYTES + 1).read_to_end(text);
    let done = match file.to_str() {
        Some("-") => limited(&mut io::stdin().lock(), &mut text),
        _ => File::open(file).and_then(|mut source| limited(&mut source, &mut text)),
    };
    done.map_err(|source| JobError::Read { file: file.to_owned(), source })?;
    if text.len() as u64 > limits::JOB_FILE_BYTES {
        return Err(JobError::FileTooLong { file: file.to_owned(), limit: limits::JOB_FILE_BYTES });
    }
    Ok(text)
}

/// The sections of a job file's text; `file` is only named.
pub fn sections(text: &[u8], file: &Path) -> Result<Vec<Section>, JobError> {
    let mut sections: Vec<Section> = Vec::new();
    for (number, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let at = At::Line { file: file.to_owned(), line: number + 1 };
        let fail = |problem: String| JobError::Syntax { at: at.clone(), problem };
        if line.len() > limits::JOB_LINE_BYTES {
            return Err(fail(format!("the line has {} bytes, the limit is {}", line.len(), limits::JOB_LINE_BYTES)));
        }
        let line = std::str::from_utf8(line).map_err(|_| fail("the line is not UTF-8".into()))?;
        let line = line.split([';', '#']).next().unwrap_or_default().trim();
        if line.contains('\0') {
            return Err(fail("the line has a NUL byte".into()));
        }
        if line.is_empty() {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            let header = header.strip_suffix(']').ok_or_else(|| fail(format!("the section {line:?} lacks its ]")))?;
            let name = name(header).map_err(fail)?;
            if sections.len() >= limits::SECTIONS {
                return Err(fail(format!("over {} sections: split the file", limits::SECTIONS)));
            }
            sections.push(Section { name, at, entries: Vec::new() });
            continue;
        }
        let (option, value) = line.split_once('=').map_or((line, ""), |(option, value)| (option.trim_end(), value));
        if line.contains('=') && value.is_empty() {
            return Err(fail(format!("{option} has no value after its =")));
        }
        // fio takes every line that begins so for one.
        if let Some(included) = line.strip_prefix("include") {
            return Err(fail(format!("include is not supported: copy the lines of {:?} here", included.trim())));
        }
        if option == "name" {
            return Err(fail("a job's name is its section's: write [NAME]".into()));
        }
        let Some(section) = sections.last_mut() else {
            return Err(fail(format!("{option} stands before any section: write [global] or [NAME] first")));
        };
        section.entries.push(Entry { at, option: option.to_owned(), value: value.to_owned() });
    }
    Ok(sections)
}
