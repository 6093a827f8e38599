//! Which blocks a verifying job reads back: what its plan wrote, without a list of it.

use crate::job::Job;
use crate::plan::{Op, Plan};

/// The reads that verify a lane's writes: those of its plan, as many as were made, each block once.
pub struct Replay<'a> {
    plan: &'a mut Plan,
    left: u64,
    seen: Seen,
}

impl<'a> Replay<'a> {
    /// `writes` of `plan`, which is at the start of a pass over files of `sizes`.
    pub fn new(plan: &'a mut Plan, writes: u64, sizes: &[u64], job: &Job) -> Replay<'a> {
        let blocks = job.write_blocks;
        Replay { plan, left: writes, seen: Seen::new(sizes, job.offset, blocks.min) }
    }

    pub fn next(&mut self) -> Option<Op> {
        while self.left > 0 {
            match self.plan.next()? {
                Op::Write { file, offset, len } => {
                    self.left -= 1;
                    if self.seen.first_time(file, offset) {
                        return Some(Op::Read { file, offset, len });
                    }
                }
                Op::Read { .. } | Op::Sync { .. } => {}
            }
        }
        None
    }
}

/// Which blocks were met: one bit each.
struct Seen {
    files: Vec<Vec<u64>>,
    from: u64,
    block: u64,
}

impl Seen {
    fn new(sizes: &[u64], from: u64, block: u64) -> Seen {
        let words = |size: &u64| vec![0; (size.saturating_sub(from) / block / 64 + 1) as usize];
        Seen { files: sizes.iter().map(words).collect(), from, block }
    }

    fn first_time(&mut self, file: u16, offset: u64) -> bool {
        let block = offset.saturating_sub(self.from) / self.block;
        let Some(word) = self.files[usize::from(file)].get_mut((block / 64) as usize) else { return true };
        let bit = 1 << (block % 64);
        let first = *word & bit == 0;
        *word |= bit;
        first
    }
}
