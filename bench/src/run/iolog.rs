//! `write_iolog`: what a lane issues, in its order, in version 3 of fio's format; `fio --read_iolog` repeats it.
//!
//! The lane owns the file and what is not yet in it. Lanes that name the same file append to it, whole lines at a time.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::limits::IOLOG_BYTES;
use crate::plan::Op;

pub struct IoLog {
    file: File,
    lines: Vec<u8>,
    names: Vec<String>,
    since: Instant,
}

impl IoLog {
    pub fn open(path: &Path, files: &[PathBuf]) -> io::Result<IoLog> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let names = files.iter().map(|file| file.display().to_string()).collect();
        let mut log = IoLog { file, lines: Vec::with_capacity(IOLOG_BYTES), names, since: Instant::now() };
        log.lines.extend_from_slice(b"fio version 3 iolog\n");
        log.of_every_file("add")?;
        log.of_every_file("open")?;
        Ok(log)
    }

    pub fn issued(&mut self, op: Op) -> io::Result<()> {
        let (file, action, offset, len) = match op {
            Op::Read { file, offset, len } => (file, "read", offset, len),
            Op::Write { file, offset, len } => (file, "write", offset, len),
            Op::Sync { file, data_only } => (file, if data_only { "datasync" } else { "sync" }, 0, 0),
        };
        self.line(usize::from(file), format_args!("{action} {offset} {len}"))
    }

    pub fn close(mut self) -> io::Result<()> {
        self.of_every_file("close")?;
        self.file.write_all(&self.lines)
    }

    fn of_every_file(&mut self, action: &str) -> io::Result<()> {
        (0..self.names.len()).try_for_each(|file| self.line(file, format_args!("{action}")))
    }

    fn line(&mut self, file: usize, what: std::fmt::Arguments) -> io::Result<()> {
        writeln!(self.lines, "{} {} {what}", self.since.elapsed().as_micros(), self.names[file])?;
        if self.lines.len() >= IOLOG_BYTES {
            self.file.write_all(&self.lines)?;
            self.lines.clear();
        }
        Ok(())
    }
}
