//! The kernel's account of this process or of one of its threads.

use std::ops::{Add, Sub};
use std::time::Duration;

#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub user: Duration,
    pub system: Duration,
    pub switches: u64,
    pub major_faults: u64,
    pub minor_faults: u64,
}

impl Usage {
    /// Of all threads, the kernel's io_uring workers among them.
    pub fn of_process() -> Usage {
        Usage::of(libc::RUSAGE_SELF)
    }

    pub fn of_thread() -> Usage {
        Usage::of(libc::RUSAGE_THREAD)
    }

    fn of(who: libc::c_int) -> Usage {
        // SAFETY: the structure is plain numbers, for which zero is a value, and the kernel fills it in; it cannot fail for
        // these two subjects.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(who, &mut usage);
            usage
        };
        let time = |t: libc::timeval| Duration::from_secs(t.tv_sec as u64) + Duration::from_micros(t.tv_usec as u64);
        Usage {
            user: time(usage.ru_utime),
            system: time(usage.ru_stime),
            switches: (usage.ru_nvcsw + usage.ru_nivcsw) as u64,
            major_faults: usage.ru_majflt as u64,
            minor_faults: usage.ru_minflt as u64,
        }
    }

    /// The part of it that falls to `share` of 1.
    pub fn part(self, share: f64) -> Usage {
        let count = |n: u64| (n as f64 * share).round() as u64;
        Usage {
            user: self.user.mul_f64(share),
            system: self.system.mul_f64(share),
            switches: count(self.switches),
            major_faults: count(self.major_faults),
            minor_faults: count(self.minor_faults),
        }
    }
}

impl Add for Usage {
    type Output = Usage;

    fn add(self, other: Usage) -> Usage {
        Usage {
            user: self.user + other.user,
            system: self.system + other.system,
            switches: self.switches + other.switches,
            major_faults: self.major_faults + other.major_faults,
            minor_faults: self.minor_faults + other.minor_faults,
        }
    }
}

/// Never below zero: a thread's account and its process's are not read at the same instant.
impl Sub for Usage {
    type Output = Usage;

    fn sub(self, other: Usage) -> Usage {
        Usage {
            user: self.user.saturating_sub(other.user),
            system: self.system.saturating_sub(other.system),
            switches: self.switches.saturating_sub(other.switches),
            major_faults: self.major_faults.saturating_sub(other.major_faults),
            minor_faults: self.minor_faults.saturating_sub(other.minor_faults),
        }
    }
}
