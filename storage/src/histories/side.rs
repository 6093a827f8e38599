//! One disk of the simulated computer: the data directory's, or a second volume's that may be taken away for a life.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;

use crate::bridge::Bridge;
use crate::engine::sim::{self, Disk, Faults, Machine, Random, Stepped};
use crate::id::BlobId;
use crate::store::attach::{Extra, Here};
use crate::store::open::make_directories;
use crate::volume::lock::DirLock;

pub(super) struct Side {
    number: u32,
    id: BlobId,
    scratch: PathBuf,
    pub(super) dir: PathBuf,
    cuts: usize,
    pub(super) machine: Machine,
    /// It is not plugged in for this life of the process.
    pub(super) away: bool,
}

impl Side {
    pub(super) fn new(number: u32, scratch: &Path, random: &mut Random) -> Side {
        let dir = scratch.join(format!("{number}-0"));
        make_directories(&dir).expect("a scratch directory");
        let mut disk = Disk::new(&dir, random);
        if random.chance(200) {
            disk.capacity = 20_000 + random.below(1_000_000) as u64;
        }
        let machine = Machine::new(disk, random.fork());
        Side { number, id: BlobId::new(), scratch: scratch.into(), dir, cuts: 0, machine, away: false }
    }

    pub(super) fn failed_syncs(&self) -> u64 {
        self.machine.events.failed_syncs.load(Relaxed)
    }

    /// The lock and the bridge that opening would make, with the engine's thread left out.
    pub(super) fn here(&mut self) -> Here {
        make_directories(&self.dir).expect("the directories are there");
        let locked = DirLock::take(&self.dir).expect("the lock is free");
        self.machine.disk.adopt(&self.dir.join("LOCK"));
        let engine = Stepped::default();
        let bridge = Bridge::over(&engine, sim::info()).expect("the engine starts");
        self.machine.attach(engine.intake());
        Here { locked, bridge }
    }

    /// As a volume beside the data directory.
    pub(super) fn extra(&mut self) -> Extra {
        let state = if self.away { Err("it was taken away".to_owned()) } else { Ok(self.here()) };
        Extra { number: self.number, id: self.id, dir: self.dir.clone(), takes_new: true, state }
    }

    /// Somebody takes the disk: in order, or without a word, which is a power cut for it alone.
    pub(super) fn take_away(&mut self, random: &mut Random) {
        self.away = true;
        if random.chance(500) || self.machine.disk.poisoned {
            self.cut(random);
        }
    }

    /// The process is gone. What it had sent may still happen.
    pub(super) fn detach(&mut self) {
        if !self.away {
            self.machine.faults = Faults::default();
            self.machine.detach();
        }
    }

    pub(super) fn cut(&mut self, random: &mut Random) {
        self.cuts += 1;
        let to = self.scratch.join(format!("{}-{}", self.number, self.cuts));
        fs::create_dir(&to).expect("a scratch directory");
        self.machine.disk.cut(&to, random);
        self.dir = to;
    }
}
