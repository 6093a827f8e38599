//! `mmap`: reads and writes are copies from and to a shared map of the file, syncs are `msync`.
//!
//! The clone's thread waits in page faults, so its depth is 1 as it is for fio's engine of that name. A map has no error
//! numbers: where the file was shortened or the disk fails, the kernel raises SIGBUS. [`watch_for_faults`] turns that into a
//! message and exit code 1, so that it is never taken for success.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::ptr;
use std::sync::Arc;

use memmap2::{Advice, MmapOptions, MmapRaw};

use super::{Access, Block, Done, Engine, ended, open_all};
use crate::plan::Op;

pub struct Mapped {
    files: Arc<[Map]>,
}

struct Map {
    file: File,
    map: MmapRaw,
    writable: bool,
}

impl Mapped {
    pub fn open(paths: &[PathBuf], access: Access, random: bool) -> Result<Mapped, (PathBuf, io::Error)> {
        let files = open_all(paths, access)?;
        let map = |(file, path): (File, &PathBuf)| {
            let options = MmapOptions::new();
            let map = if access.write { options.map_raw(&file) } else { options.map_raw_read_only(&file) };
            let map = map.and_then(|map| {
                map.advise(if random { Advice::Random } else { Advice::Sequential })?;
                Ok(map)
            });
            let map = map.map_err(|error| (path.clone(), error))?;
            Ok(Map { file, map, writable: access.write })
        };
        Ok(Mapped { files: files.into_iter().zip(paths).map(map).collect::<Result<Vec<_>, _>>()?.into() })
    }
}

impl Engine for Mapped {
    fn start(&self, op: Op, mut block: Block) -> impl Future<Output = Done> + use<> {
        let result = self.carry_out(op, &mut block);
        std::future::ready(Done { block, result, short: 0 })
    }
}

impl Mapped {
    fn carry_out(&self, op: Op, block: &mut Block) -> io::Result<u32> {
        match op {
            Op::Read { file, offset, len } => {
                let map = &self.files[usize::from(file)];
                let from = map.at(offset, len)?;
                let to = &mut block.bytes_mut()[..len as usize];
                // SAFETY: `at` checked that the bytes lie inside the map; `to` is memory of our own and cannot overlap it. The
                // bytes of a shared map may change while they are copied: no reference to them is made, and any value will do.
                unsafe { ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
                Ok(len)
            }
            Op::Write { file, offset, len } => {
                let map = &self.files[usize::from(file)];
                assert!(map.writable, "a job that only reads wrote");
                let to = map.at(offset, len)?;
                let from = &block.bytes()[..len as usize];
                // SAFETY: as above, and the map was made writable.
                unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
                Ok(len)
            }
            Op::Sync { file, data_only } => {
                let map = &self.files[usize::from(file)];
                if map.writable {
                    map.map.flush()?;
                }
                // msync(MS_SYNC) covers the data; what only fsync promises is the rest of the inode.
                if !data_only {
                    map.file.sync_all()?;
                }
                Ok(0)
            }
        }
    }
}

impl Map {
    fn at(&self, offset: u64, len: u32) -> io::Result<*mut u8> {
        let end = offset.checked_add(len.into()).ok_or_else(ended)?;
        if end > self.map.len() as u64 {
            return Err(ended());
        }
        // SAFETY: `offset` lies inside the map, as was just checked.
        Ok(unsafe { self.map.as_mut_ptr().add(offset as usize) })
    }
}

/// From now on a fault on a map ends the process with a message and exit code 1.
pub fn watch_for_faults() -> io::Result<()> {
    extern "C" fn fault(_: libc::c_int) {
        let text = b"reelring-bench: SIGBUS: a mapped file was shortened while the job ran, or its disk failed; nothing of this run \
counts. Run it again with --engine raw, which names the file, the offset and the error\n";
        // SAFETY: write and _exit may be called in a signal handler; `text` is static.
        unsafe {
            libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
            libc::_exit(1);
        }
    }
    // SAFETY: the handler makes only calls that are safe in one, and does not return; the action is zeroed as the kernel's
    // defaults, then filled in.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = fault as extern "C" fn(libc::c_int) as usize;
        libc::sigaction(libc::SIGBUS, &action, ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
