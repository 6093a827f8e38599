//! The file that is asked about, its states, and the four ways of asking.

use std::ffi::c_void;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use memmap2::{Mmap, MmapOptions};
use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::time::{ClockId, clock_gettime};

use super::{Fetching, LARGEST, Reading, Row, State, Way};
use crate::limits;

const PAGE: u64 = 4096;
/// The same number on all architectures that Linux got since 2011, x86-64 among them; Linux 6.5 has the call.
const SYS_CACHESTAT: libc::c_long = 451;

/// A file, a map of it that nobody has touched, and room for the answers.
pub struct Asked {
    file: File,
    pub has_cachestat: bool,
    map: Mmap,
    flags: Vec<u8>,
    copy: Vec<u8>,
    /// What preadv2 and cachestat said last.
    pages: u64,
}

impl Asked {
    pub fn of(file: File) -> anyhow::Result<Asked> {
        // SAFETY: the file is our own and keeps its length and bytes; nothing reads through the map.
        let map = unsafe { MmapOptions::new().len(LARGEST as usize).map(&file)? };
        let flags = vec![0; (LARGEST / PAGE) as usize];
        let has_cachestat = match cachestat(&file, 0, PAGE) {
            Ok(_) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => false,
            Err(error) => return Err(error).context("cachestat"),
        };
        Ok(Asked { file, has_cachestat, map, flags, copy: vec![0; LARGEST as usize], pages: 0 })
    }

    /// The kernel's part of a question about the first `bytes`; `answer` reads what came of it.
    fn call(&mut self, way: Way, bytes: u64) -> io::Result<()> {
        let len = bytes as usize;
        match way {
            Way::Mincore => mincore(self.map.as_ptr().cast_mut().cast(), len, &mut self.flags),
            Way::MapMincoreUnmap => {
                // SAFETY: a new mapping at an address of the kernel's choice, never read, unmapped here.
                unsafe {
                    let map = mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, &self.file, 0)?;
                    let asked = mincore(map, len, &mut self.flags);
                    munmap(map, len)?;
                    asked
                }
            }
            Way::Preadv2 => {
                let mut into = [IoSliceMut::new(&mut self.copy[..len])];
                self.pages = match preadv2(&self.file, &mut into, 0, ReadWriteFlags::NOWAIT) {
                    Ok(read) => read as u64 / PAGE,
                    Err(Errno::AGAIN) => 0,
                    Err(error) => return Err(error.into()),
                };
                Ok(())
            }
            Way::Cachestat => {
                self.pages = cachestat(&self.file, 0, bytes)?;
                Ok(())
            }
        }
    }

    /// Pages that the last call found.
    fn answer(&self, way: Way, bytes: u64) -> u64 {
        match way {
            Way::Mincore | Way::MapMincoreUnmap => {
                self.flags[..(bytes / PAGE) as usize].iter().filter(|flag| **flag & 1 == 1).count() as u64
            }
            Way::Preadv2 | Way::Cachestat => self.pages,
        }
    }

    fn ask(&mut self, way: Way, bytes: u64) -> io::Result<u64> {
        self.call(way, bytes)?;
        Ok(self.answer(way, bytes))
    }

    /// Brings the file into a state, and makes sure of it.
    pub fn make(&mut self, bytes: u64, state: State) -> anyhow::Result<()> {
        self.drop_pages(0, LARGEST)?;
        let (advice, step) = match state {
            State::Written => (Advice::Normal, 1 << 20),
            State::ReadInOrder => (Advice::Sequential, 256 << 10),
            State::SinglePages | State::OneMissing => (Advice::Random, PAGE as usize),
        };
        fadvise(&self.file, 0, None, advice)?;
        for (number, piece) in self.copy.chunks_mut(step).enumerate() {
            match state {
                State::Written => self.file.write_all_at(piece, (number * step) as u64)?,
                _ => self.file.read_exact_at(piece, (number * step) as u64)?,
            }
        }
        // Only clean pages can be dropped.
        self.file.sync_all()?;
        if state == State::OneMissing {
            self.drop_pages(middle(bytes), PAGE)?;
        }
        let (found, expected) = (self.ask(Way::Mincore, bytes)?, bytes / PAGE - u64::from(state == State::OneMissing));
        ensure!(found == expected, "{found} of {} pages are there where {expected} should be", bytes / PAGE);
        Ok(())
    }

    /// A page that is being read cannot go: asked again until it is gone. mincore does not see such a page, so cachestat is
    /// asked too; without it a little time is given to what an earlier question may have begun to read.
    fn drop_pages(&mut self, from: u64, len: u64) -> anyhow::Result<()> {
        let (since, pages) = (Instant::now(), (from / PAGE) as usize..((from + len) / PAGE) as usize);
        loop {
            fadvise(&self.file, from, NonZeroU64::new(len), Advice::DontNeed)?;
            self.call(Way::Mincore, LARGEST)?;
            let on_its_way = match self.has_cachestat {
                true => cachestat(&self.file, from, len)? > 0,
                false => since.elapsed() < Duration::from_millis(2),
            };
            if !on_its_way && self.flags[pages.clone()].iter().all(|flag| flag & 1 == 0) {
                return Ok(());
            }
            if since.elapsed() > limits::EVICT {
                bail!("pages of the file would not leave the page cache: it lies on tmpfs; choose another --dir");
            }
        }
    }

    pub fn measure(&mut self, ways: &[Way], bytes: u64, state: State, repetitions: u32) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        let mut times = vec![(Vec::new(), Vec::new()); ways.len()];
        for way in ways {
            rows.push(Row {
                bytes,
                state,
                way: *way,
                pages: self.fresh_answer(*way, bytes, state)?,
                of: bytes / PAGE,
                other_answers: 0,
                calls_each: calls_each(*way, bytes, state),
                cpu_ns: 0.0,
                wall_ns: 0.0,
            });
        }
        for repetition in 0..repetitions as usize {
            for turn in 0..ways.len() {
                // Each way comes first as often as last.
                let which = (turn + repetition) % ways.len();
                let row = &mut rows[which];
                if state == State::OneMissing {
                    self.drop_pages(middle(bytes), PAGE)?;
                }
                let calls = row.calls_each;
                let (cpu, wall) = timed(|| (0..calls).try_for_each(|_| self.call(row.way, bytes)))?;
                row.other_answers += u32::from(self.answer(row.way, bytes) != row.pages);
                times[which].0.push(cpu / f64::from(calls));
                times[which].1.push(wall / f64::from(calls));
            }
        }
        for (row, (cpu, wall)) in rows.iter_mut().zip(&mut times) {
            (row.cpu_ns, row.wall_ns) = (median(cpu), median(wall));
        }
        Ok(rows)
    }

    fn fresh_answer(&mut self, way: Way, bytes: u64, state: State) -> anyhow::Result<u64> {
        if state == State::OneMissing {
            self.drop_pages(middle(bytes), PAGE)?;
        }
        Ok(self.ask(way, bytes)?)
    }

    pub fn fetching(&mut self, way: Way, tries: u32) -> anyhow::Result<Fetching> {
        const BYTES: u64 = 64 << 10;
        self.make(BYTES, State::OneMissing)?;
        let mut came = 0;
        for _ in 0..tries {
            self.fresh_answer(way, BYTES, State::OneMissing)?;
            let since = Instant::now();
            while since.elapsed() < Duration::from_millis(5) {
                if self.ask(Way::Mincore, BYTES)? == BYTES / PAGE {
                    came += 1;
                    break;
                }
            }
        }
        Ok(Fetching { way, tries, came })
    }

    pub fn reading(&mut self, tries: u32) -> anyhow::Result<Reading> {
        let bytes = LARGEST;
        let mut found = Reading { bytes, tries, cachestat_more: 0, cachestat_all: 0, mincore_more: 0, most_pages: 0 };
        fadvise(&self.file, 0, None, Advice::Normal)?;
        for _ in 0..tries {
            self.drop_pages(0, bytes)?;
            fadvise(&self.file, 0, None, Advice::WillNeed)?;
            let by_cachestat = self.ask(Way::Cachestat, bytes)?;
            let by_mincore = self.ask(Way::Mincore, bytes)?;
            let more = by_cachestat > by_mincore;
            found.cachestat_more += u32::from(more);
            found.cachestat_all += u32::from(more && by_cachestat == bytes / PAGE);
            found.mincore_more += u32::from(by_mincore > by_cachestat);
            found.most_pages = found.most_pages.max(by_cachestat.saturating_sub(by_mincore));
        }
        Ok(found)
    }
}

fn mincore(map: *mut c_void, len: usize, flags: &mut [u8]) -> io::Result<()> {
    debug_assert!(flags.len() as u64 * PAGE >= len as u64, "a flag for each page");
    // SAFETY: the kernel looks at a mapping of ours of `len` bytes, and writes one byte for each of its pages.
    let done = unsafe { libc::mincore(map, len, flags.as_mut_ptr()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How many pages of a range are in the page cache, whether they have been read yet or not.
fn cachestat(file: &File, from: u64, len: u64) -> io::Result<u64> {
    // struct cachestat_range { off, len }; struct cachestat { nr_cache, four more }: all 64 bits.
    let (range, mut found, flags) = ([from, len], [0u64; 5], 0u32);
    // SAFETY: the kernel reads two numbers and writes five, into arrays that have as many.
    let done = unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), range.as_ptr(), found.as_mut_ptr(), flags) };
    if done == 0 { Ok(found[0]) } else { Err(io::Error::last_os_error()) }
}

fn middle(bytes: u64) -> u64 {
    bytes / 2 / PAGE * PAGE
}

/// Nanoseconds of this thread's CPU, and of the wall clock.
pub fn timed(work: impl FnOnce() -> io::Result<()>) -> io::Result<(f64, f64)> {
    let cpu = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let (wall, before) = (Instant::now(), cpu());
    work()?;
    let (after, wall) = (cpu(), wall.elapsed());
    Ok(((after - before).as_nanos() as f64, wall.as_nanos() as f64))
}

/// Between two looks at the clocks. preadv2 begins to read what is missing, so it gets a fresh start for each call.
fn calls_each(way: Way, bytes: u64, state: State) -> u32 {
    if way == Way::Preadv2 && state == State::OneMissing { 1 } else { ((4 << 20) / bytes).clamp(16, 64) as u32 }
}

pub fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
