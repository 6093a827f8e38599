//! What an engine cannot do, and what would not fit, said before anything is touched.

use crate::engine::BRIDGE_LARGEST;
use crate::job::{EngineKind, Job, Pattern};
use crate::limits::{HTTP_OBJECT_BYTES, IN_FLIGHT_BYTES};
use crate::run::verify;

/// What keeps `job` from running on `engine`.
pub fn check(job: &Job, engine: EngineKind) -> Result<(), String> {
    let refuse = |what: String| Err(format!("job {}: {what}", job.name));
    let largest = job.read_blocks.max.max(job.write_blocks.max);
    let smallest = job.read_blocks.min.min(job.write_blocks.min);
    let syncs = job.fsync > 0 || job.fdatasync > 0 || job.end_fsync;
    match engine {
        EngineKind::Raw => {}
        EngineKind::Bridge | EngineKind::Threads if largest > BRIDGE_LARGEST => {
            return refuse(format!(
                "bs is {largest} bytes, and the bridge moves at most {BRIDGE_LARGEST} at once, as the node does: give bs=1m or less, or \
                 --engine raw"
            ));
        }
        EngineKind::Bridge | EngineKind::Threads => {}
        EngineKind::Mmap if job.direct => {
            return refuse(
                "direct=1 and a map exclude each other: a map is the page cache; give direct=0 or --engine raw".into(),
            );
        }
        EngineKind::Mmap => {}
        EngineKind::Http if job.direct => {
            return refuse("direct=1 is the node's own decision over HTTP: give direct=0".into());
        }
        EngineKind::Http if syncs => {
            return refuse(
                "HTTP has no sync: a PUT that was acknowledged is durable; leave fsync, fdatasync and end_fsync out"
                    .into(),
            );
        }
        EngineKind::Http if job.rw.writes => {
            let whole = job.rw.pattern == Pattern::Sequential
                && job.write_blocks.min == job.file_size(0)
                && job.write_blocks.max == job.file_size(0)
                && job.offset == 0;
            if job.rw.reads || !whole {
                return refuse(format!(
                    "HTTP stores whole objects, it cannot write inside one: give rw=write and bs equal to the size of each file ({} \
                     bytes here, bs is {})",
                    job.file_size(0),
                    job.write_blocks.max
                ));
            }
        }
        EngineKind::Http => {}
    }
    if engine == EngineKind::Http && job.file_size(0) > HTTP_OBJECT_BYTES {
        return refuse(format!(
            "an object of {} bytes is more than the {HTTP_OBJECT_BYTES} this program sends",
            job.file_size(0)
        ));
    }
    if job.verify.is_some() {
        if smallest < 2 * verify::HEADER as u64 {
            return refuse(format!("verify needs blocks of {} bytes or more, bs is {smallest}", 2 * verify::HEADER));
        }
        if !job.rw.writes && job.read_blocks.min != job.read_blocks.max {
            return refuse("verify reads blocks as they were written: give one bs, not a bsrange".into());
        }
    }
    if job.direct && !smallest.is_multiple_of(SECTOR) {
        return refuse(format!("direct=1 needs blocks of a multiple of {SECTOR} bytes, bs is {smallest}"));
    }
    if job.direct && !job.offset.is_multiple_of(SECTOR) {
        return refuse(format!("direct=1 needs an offset of a multiple of {SECTOR} bytes, it is {}", job.offset));
    }
    Ok(())
}

/// No device takes direct operations of less.
const SECTOR: u64 = 512;

/// Whether the blocks of all clones fit in memory.
pub fn check_memory(jobs: impl Iterator<Item = (u64, u64)>) -> Result<(), String> {
    let total = jobs.map(|(block, depth)| block.saturating_mul(depth)).fold(0, u64::saturating_add);
    if total > IN_FLIGHT_BYTES {
        return Err(format!(
            "all operations in flight together have {total} bytes (bs × iodepth × numjobs), the limit is {IN_FLIGHT_BYTES}: lower one of \
             them"
        ));
    }
    Ok(())
}
