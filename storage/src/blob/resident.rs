//! What of a file is in the page cache.
//!
//! Two questions, for neither answers both well. `cachestat` (Linux 6.5) costs by folio: a tenth of `mincore` and less. Yet it
//! counts pages that are still being read. `mincore` looks at each page, on a map, and calls only those present whose bytes
//! are there. Neither brings anything in, and both refuse or flatter whoever neither owns nor may write the file; a node owns its blobs.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use memmap2::Mmap;

use crate::volume::PAGE_BYTES;

/// Whether no page of a range is missing. Some may be on their way from the disk: to be asked only where that is ruled out.
pub(super) fn is_cached(file: &File, range: &Range<u64>, map: impl FnOnce() -> Option<Arc<Mmap>>) -> io::Result<bool> {
    /// An older kernel, or a sandbox that does not know the call.
    static REFUSED: AtomicBool = AtomicBool::new(false);
    if !REFUSED.load(Relaxed) {
        match cachestat(file, range) {
            Ok(pages) if pages == pages_of(range) => return Ok(true),
            // On a processor that others want it pauses on its way, and may go on too far: asked again.
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "cachestat is refused, mincore is asked instead");
                REFUSED.store(true, Relaxed);
            }
        }
    }
    let within = range.start as usize..range.end as usize;
    map().map_or(Ok(false), |map| Ok(present(&map, &within)? == within.len()))
}

/// How many bytes from the start of `within` are in memory, without a page between them that is not.
pub(super) fn present(map: &Mmap, within: &Range<usize>) -> io::Result<usize> {
    const PAGES: usize = 256;
    let first = within.start / PAGE_BYTES * PAGE_BYTES;
    let mut at = first;
    while at < within.end {
        let len = (within.end - at).min(PAGES * PAGE_BYTES);
        let mut pages = [0u8; PAGES];
        assert!(at + len <= map.len());
        // SAFETY: `at..at + len` lies in the map (rounded up to its last page), and `pages` has one byte for each of
        // its pages.
        let result = unsafe { libc::mincore(map.as_ptr().add(at).cast_mut().cast(), len, pages.as_mut_ptr()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let count = len.div_ceil(PAGE_BYTES);
        if let Some(missing) = pages[..count].iter().position(|page| page & 1 == 0) {
            return Ok((at + missing * PAGE_BYTES).saturating_sub(within.start));
        }
        at += len;
    }
    Ok(within.len())
}

/// Pages of a range of a file that the page cache has, or will have when what is being read has come.
pub(super) fn cachestat(file: &File, range: &Range<u64>) -> io::Result<u64> {
    // The same on every architecture; the libc crate has no name for it yet.
    const SYS_CACHESTAT: libc::c_long = 451;
    // struct cachestat_range { off, len }; struct cachestat { nr_cache, four more }: all 64 bits. A length of 0 means to the end.
    let (asked, mut found, flags) = ([range.start, (range.end - range.start).max(1)], [0u64; 5], 0u32);
    // SAFETY: the kernel reads two numbers and writes five, into arrays that have as many.
    let done = unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), asked.as_ptr(), found.as_mut_ptr(), flags) };
    if done == 0 { Ok(found[0]) } else { Err(io::Error::last_os_error()) }
}

fn pages_of(range: &Range<u64>) -> u64 {
    range.end.max(range.start + 1).div_ceil(PAGE_BYTES as u64) - range.start / PAGE_BYTES as u64
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use memmap2::MmapOptions;

    use super::*;

    #[test]
    fn both_questions_have_one_answer_for_what_is_at_rest() {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &vec![7; 100 * PAGE_BYTES + 10]).unwrap();
        file.sync_all().unwrap();
        // SAFETY: the file is this test's own and stays as it is.
        let map = Arc::new(unsafe { MmapOptions::new().map(&file).unwrap() });
        let is_cached = |range: &Range<u64>| is_cached(&file, range, || Some(Arc::clone(&map))).unwrap();
        let page = PAGE_BYTES as u64;
        let all = 0..100 * page + 10;
        let ranges = [all.clone(), 0..1, page - 1..page + 1, 5 * page + 7..90 * page + 1, 100 * page..100 * page + 10];
        for range in &ranges {
            assert!(is_cached(range), "{range:?}");
            let within = range.start as usize..range.end as usize;
            assert_eq!(present(&map, &within).unwrap(), within.len(), "{range:?}");
        }
        let (from, len) = (50 * page, std::num::NonZeroU64::new(page));
        rustix::fs::fadvise(&file, from, len, rustix::fs::Advice::DontNeed).unwrap();
        if present(&map, &(0..map.len())).unwrap() == map.len() {
            return println!("skipped: this file system keeps its pages in memory");
        }
        for range in &ranges {
            let within = range.start as usize..range.end as usize;
            let whole = present(&map, &within).unwrap() == within.len();
            assert_eq!(is_cached(range), whole, "{range:?}");
        }
        assert!(is_cached(&(page..2 * page)), "cached before the hole");
        assert!(!is_cached(&all));
    }

    /// The kernel's count falls short now and then where other threads want the processor.
    #[test]
    fn a_busy_processor_hides_no_page() {
        let mut file = tempfile::tempfile().unwrap();
        // Folios of many sizes.
        for piece in [1 << 20, 100_000, 4096, 20_000, 300_000].into_iter().cycle().take(40) {
            io::Write::write_all(&mut file, &vec![7; piece]).unwrap();
        }
        let length = file.metadata().unwrap().len();
        // SAFETY: the file is this test's own and stays as it is.
        let map = Arc::new(unsafe { MmapOptions::new().map(&file).unwrap() });
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 * std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while !over.load(Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            let begun = Instant::now();
            for n in (0u64..).take_while(|_| begun.elapsed() < Duration::from_secs(1)) {
                let start = n * 7919 * 977 % (length - (512 << 10));
                let range = start..start + (512 << 10);
                let cached = is_cached(&file, &range, || Some(Arc::clone(&map))).unwrap();
                if !cached {
                    over.store(true, Relaxed);
                }
                assert!(cached, "{range:?} at the {n}th time");
            }
            over.store(true, Relaxed);
        });
    }
}
