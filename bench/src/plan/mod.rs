//! Which operations a clone of a job issues, in which order: as fio would for the same `randseed`. Pure, and
//! allocation-free once it is made; it owns nothing but memory, so there is nothing to cancel.
//!
//! fio's sequence depends on time in a few places, and there a plan has the one that needs no clock: a sync comes once
//! for every so many writes (fio with more in flight may send several), a mix is not bent by `rate`, and the end of
//! `ramp_time` restarts no count. fio up to 3.33 draws the first clone's offsets from a seed of its own unless
//! `randrepeat=0` is given; this is what it does since.

mod map;
mod random;
#[cfg(test)]
mod tests;

use crate::job::{BlockSizes, Distribution, Job, Pattern, Rw};
use crate::limits;
use map::Map;
use random::{Purpose, Taus88, Zipf, seed};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Read { file: u16, offset: u64, len: u32 },
    Write { file: u16, offset: u64, len: u32 },
    Sync { file: u16, data_only: bool },
}

impl Op {
    pub fn file(self) -> u16 {
        let (Op::Read { file, .. } | Op::Write { file, .. } | Op::Sync { file, .. }) = self;
        file
    }
}

/// The operations of one clone.
#[derive(Debug)]
pub struct Plan {
    rw: Rw,
    time_based: bool,
    verify: bool,
    io_size: Option<u64>,
    fsync: u64,
    fdatasync: u64,
    end_fsync: bool,
    randrepeat: bool,
    seeds: Seeds,

    files: Vec<File>,
    next_file: usize,
    reads: Direction,
    writes: Direction,
    offsets: Taus88,
    mix: Mix,
    last: Last,

    /// Bytes of one pass, and of all of them unless it is time_based.
    pass_limit: u64,
    limit: u64,
    pass_issued: u64,
    issued: u64,
    finished: bool,
}

#[derive(Debug, Clone, Copy)]
struct Seeds {
    read_sizes: u64,
    write_sizes: u64,
    mix: u64,
    offsets: u64,
}

#[derive(Debug)]
struct Direction {
    blocks: BlockSizes,
    sizes: Taus88,
    issued: u64,
}

/// Which way a mixed job goes: drawn anew when a direction has had its share.
#[derive(Debug)]
struct Mix {
    random: Taus88,
    writes: bool,
    until: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Nothing,
    Read,
    Write,
    Sync,
}

#[derive(Debug)]
struct File {
    /// Operations lie between `start` and `start + span`, in a file of `size` bytes.
    start: u64,
    span: u64,
    size: u64,
    read_end: u64,
    write_end: u64,
    map: Option<Map>,
    zipf: Option<Zipf>,
    done: bool,
    /// A pass over it began after another, and nobody has asked yet.
    anew: bool,
}

impl Plan {
    /// `thread_number` counts the clones of all jobs from 1 in the order of [`Job::clones`]. `file_sizes` are those of the
    /// clone's files; a file that is shorter than the job's `size` asks for counts as laid out.
    pub fn new(job: &Job, thread_number: u32, file_sizes: &[u64]) -> Plan {
        let smallest = job.read_blocks.min.min(job.write_blocks.min).max(1);
        let seed = |purpose| seed(job.randseed, thread_number, purpose);
        let seeds = Seeds {
            read_sizes: seed(Purpose::ReadSizes),
            // Reads that verify draw the sizes of the writes.
            write_sizes: seed(if job.verify.is_some() { Purpose::ReadSizes } else { Purpose::WriteSizes }),
            mix: seed(Purpose::Mix),
            offsets: seed(Purpose::Offsets),
        };
        let file = |(number, &on_disk): (usize, &u64)| {
            let asked = job.file_size(number);
            let span = if asked > 0 { asked } else { on_disk.saturating_sub(job.offset) };
            let size = on_disk.max(job.offset + span);
            let blocks = span / smallest;
            let random = job.rw.pattern == Pattern::Random;
            let (map, zipf) = match job.distribution {
                _ if !random || blocks == 0 => (None, None),
                Distribution::Zipf(theta) => (None, Some(Zipf::new(span.div_ceil(smallest), theta, seeds.offsets))),
                Distribution::Uniform if job.norandommap || blocks > limits::MAPPED_BLOCKS => (None, None),
                Distribution::Uniform => (Some(Map::new(blocks)), None),
            };
            let (read_end, write_end) = (job.offset, job.offset);
            File { start: job.offset, span, size, read_end, write_end, map, zipf, done: false, anew: false }
        };
        let files: Vec<File> = file_sizes.iter().enumerate().map(file).collect();
        let total = files.iter().map(|file| file.span).sum();
        let size = if job.size == 0 { total } else { job.size.min(total) };
        let limit = job.io_size.unwrap_or(size);
        let overwrites = job.rw.writes
            && job.rw.pattern == Pattern::Random
            && (job.norandommap || job.distribution != Distribution::Uniform);
        let direction = |blocks, seed| Direction { blocks, sizes: Taus88::new(seed), issued: 0 };
        Plan {
            rw: job.rw,
            time_based: job.time_based,
            verify: job.verify.is_some(),
            io_size: job.io_size,
            fsync: job.fsync.into(),
            fdatasync: job.fdatasync.into(),
            end_fsync: job.end_fsync,
            randrepeat: job.randrepeat,
            seeds,
            files,
            next_file: 0,
            reads: direction(job.read_blocks, seeds.read_sizes),
            writes: direction(job.write_blocks, seeds.write_sizes),
            offsets: Taus88::new(seeds.offsets),
            mix: Mix { random: Taus88::new(seeds.mix), writes: false, until: 0 },
            last: Last::Nothing,
            pass_limit: if overwrites { size.max(limit) } else { size },
            limit,
            pass_issued: 0,
            issued: 0,
            finished: false,
        }
    }

    /// The next operation. With `time_based` there always is one; whoever carries them out watches the clock. A job that
    /// verifies ends at each pass over its files: check what was written, then call [`Plan::restart`].
    ///
    /// The sync of `end_fsync` is not among them, for it comes when everything before it has completed, whatever ended
    /// the job: see [`Plan::ends_with_sync`].
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Op> {
        while !self.finished {
            let pass_is_over = self.pass_issued >= self.pass_limit && (!self.time_based || self.verify);
            let job_is_over = self.issued >= self.limit && !self.time_based;
            if !pass_is_over
                && !job_is_over
                && let Some(op) = self.draw()
            {
                return Some(op);
            }
            if self.verify {
                break;
            }
            self.restart();
        }
        None
    }

    /// Begins another pass over the files, if fio would: until `io_size` is done, or without end with `time_based`.
    pub fn restart(&mut self) -> bool {
        let missing = self.limit.saturating_sub(self.issued);
        let largest = self.reads.blocks.max.max(self.writes.blocks.max);
        let files_done = self.files.iter().all(|file| file.done);
        let goes_on = self.time_based || (missing >= largest && !(files_done && self.io_size.is_none()));
        self.finished |= self.pass_issued == 0 || !goes_on;
        if self.finished {
            return false;
        }
        self.pass_issued = 0;
        self.mix.until = 0;
        self.files.iter_mut().for_each(File::begin);
        if self.randrepeat {
            self.reads.sizes = Taus88::new(self.seeds.read_sizes);
            self.writes.sizes = Taus88::new(self.seeds.write_sizes);
            self.mix.random = Taus88::new(self.seeds.mix);
            self.offsets = Taus88::new(self.seeds.offsets);
        }
        true
    }

    /// Whether another pass over the file began since this was last asked. fio has the page cache forget it then.
    pub fn began_anew(&mut self, file: u16) -> bool {
        std::mem::take(&mut self.files[usize::from(file)].anew)
    }

    /// Whether every file is synced when the job ends: `end_fsync`, unless a sync was the last thing anyway.
    pub fn ends_with_sync(&self) -> bool {
        self.end_fsync && self.rw.writes && self.last != Last::Sync
    }

    /// Tries the files in turn; one that has no room for an operation is done for this pass.
    fn draw(&mut self) -> Option<Op> {
        loop {
            let turns = self.files.len();
            let number =
                (0..turns).map(|turn| (self.next_file + turn) % turns).find(|&number| !self.files[number].done)?;
            self.next_file = (number + 1) % turns;
            let file = number as u16;
            if let Some(data_only) = self.sync_is_due() {
                self.last = Last::Sync;
                return Some(Op::Sync { file, data_only });
            }
            let writes = self.turns_to_writes();
            let Some((offset, len)) = self.place(number, writes) else {
                self.files[number].done = true;
                continue;
            };
            self.pass_issued += len;
            self.issued += len;
            let len = u32::try_from(len).expect("a block is bounded by limits::BLOCK_BYTES");
            if writes {
                self.writes.issued += 1;
                self.last = Last::Write;
                return Some(Op::Write { file, offset, len });
            }
            self.reads.issued += 1;
            self.last = Last::Read;
            return Some(Op::Read { file, offset, len });
        }
    }

    /// A sync of data only, or of everything, or none.
    fn sync_is_due(&self) -> Option<bool> {
        let due = |every: u64| self.last == Last::Write && every > 0 && self.writes.issued.is_multiple_of(every);
        if due(self.fsync) { Some(false) } else { due(self.fdatasync).then_some(true) }
    }

    fn turns_to_writes(&mut self) -> bool {
        if !self.rw.reads || !self.rw.writes {
            return self.rw.writes;
        }
        let issued = |writes: bool| if writes { self.writes.issued } else { self.reads.issued };
        let mix = &mut self.mix;
        if issued(mix.writes) >= mix.until {
            let writes = mix.random.percent() > self.rw.read_percent;
            if writes != mix.writes {
                // How long the new direction has: the other's share of what the old one did.
                let share = if mix.writes { self.rw.read_percent } else { 100 - self.rw.read_percent };
                mix.until = issued(mix.writes) * u64::from(share) / 100;
            }
            mix.writes = writes;
        }
        mix.writes
    }

    /// Offset and length of the next operation in a file, if it has room for one.
    fn place(&mut self, number: usize, writes: bool) -> Option<(u64, u64)> {
        let Plan { files, reads, writes: write, offsets, time_based, .. } = self;
        let alone = files.len() == 1;
        let file = &mut files[number];
        let direction = if writes { write } else { reads };
        let BlockSizes { min, max } = direction.blocks;
        let within = match self.rw.pattern {
            Pattern::Random => file.random_block(min, offsets, *time_based)?.checked_mul(min)?,
            Pattern::Sequential => file.sequential(writes, *time_based && alone)?,
        };
        let offset = file.start + within;
        if within >= file.span || offset >= file.size {
            return None;
        }
        let mut len = min;
        if min != max {
            let room = (file.span - within).min(max);
            if room < min {
                return None;
            }
            len = direction.draw_size();
            while len > room {
                len = direction.draw_size();
            }
        }
        if offset + len > file.size {
            return None;
        }
        if let Some(map) = &mut file.map {
            // A block that runs into one that was touched before ends there.
            len = len.min(map.touch(within / min, len.div_ceil(min)) * min);
        }
        *file.end(writes) = offset + len;
        (len > 0).then_some((offset, len))
    }
}

impl Direction {
    /// A multiple of the smallest block. fio adds a share of the largest to the smallest and cuts what is over it.
    fn draw_size(&mut self) -> u64 {
        let BlockSizes { min, max } = self.blocks;
        let drawn = min + (max as f64 * self.sizes.fraction()) as u64;
        (drawn - drawn % min).min(max)
    }
}

impl File {
    fn begin(&mut self) {
        self.done = false;
        self.anew = true;
        self.read_end = self.start;
        self.write_end = self.start;
        if let Some(map) = &mut self.map {
            map.clear();
        }
    }

    fn end(&mut self, writes: bool) -> &mut u64 {
        if writes { &mut self.write_end } else { &mut self.read_end }
    }

    /// Where the last operation of that direction ended, counted from the start.
    fn sequential(&mut self, writes: bool, wraps: bool) -> Option<u64> {
        let (start, span, size) = (self.start, self.span, self.size);
        let end = self.end(writes);
        let anew = wraps && *end >= start + span;
        if anew {
            *end = start;
        }
        let within = (*end < size).then_some(*end - start);
        self.anew |= anew;
        within
    }

    fn random_block(&mut self, block_size: u64, offsets: &mut Taus88, time_based: bool) -> Option<u64> {
        if let Some(zipf) = &mut self.zipf {
            return Some(zipf.draw());
        }
        let blocks = self.span.min(self.size) / block_size;
        if blocks == 0 {
            return None;
        }
        let mut draw = || (blocks as f64 * offsets.fraction()) as u64;
        let block = draw();
        match &self.map {
            Some(map) if map.is_touched(block) => {
                let free = map.next_free(block);
                if free.is_some() || !time_based {
                    return free;
                }
                // Every block had its turn.
                self.begin();
                Some(draw())
            }
            _ => Some(block),
        }
    }
}
