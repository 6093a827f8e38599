//! Which operations a clone of a job issues, in which order: pure, and allocation-free once it is made.

use crate::job::{Job, Pattern};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Read { file: u16, offset: u64, len: u32 },
    Write { file: u16, offset: u64, len: u32 },
    Sync { file: u16, data_only: bool },
}

/// The operations of one clone; it owns nothing but memory.
#[derive(Debug)]
pub struct Plan {
    random: bool,
    read: bool,
    block: u64,
    files: Vec<u64>,
    left: u64,
    total: u64,
    position: u64,
    state: u64,
}

impl Plan {
    /// `clone` counts the clones of the job from 0, `thread_number` those of all jobs from 1, as fio does.
    pub fn new(job: &Job, _clone: u32, thread_number: u32, file_sizes: &[u64]) -> Plan {
        let total = job.io_size.unwrap_or(file_sizes.iter().sum());
        Plan {
            random: job.rw.pattern == Pattern::Random,
            read: job.rw.reads,
            block: job.read_blocks.min,
            files: file_sizes.to_vec(),
            left: total,
            total,
            position: 0,
            state: job.randseed.wrapping_mul(thread_number.into()) | 1,
        }
    }

    /// The next operation, or none when the job has done its size.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Op> {
        if self.left < self.block {
            return None;
        }
        self.left -= self.block;
        let blocks = self.files[0] / self.block;
        let block = if self.random {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            self.state % blocks
        } else {
            self.position += 1;
            (self.position - 1) % blocks
        };
        let (offset, len) = (block * self.block, self.block as u32);
        Some(match self.read {
            true => Op::Read { file: 0, offset, len },
            false => Op::Write { file: 0, offset, len },
        })
    }

    /// Starts over, as `time_based` does.
    pub fn restart(&mut self) {
        self.left = self.total;
        self.position = 0;
    }
}
