//! A pause that ends within microseconds of its time, in any tokio runtime: tokio's own timers count whole milliseconds.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::unix::AsyncFd;

pub struct Pause {
    timer: AsyncFd<OwnedFd>,
}

impl Pause {
    pub fn new() -> io::Result<Pause> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // SAFETY: the timer is an open descriptor of our own; the `AsyncFd` owns it, so it stays open and the same.
        let timer = unsafe { AsyncFd::register(timer) }?;
        Ok(Pause { timer })
    }

    /// Returns at `until`; at once if that is past. Dropping the future is a shorter pause.
    pub async fn until(&self, until: Instant) {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let nanos = i64::from(left.subsec_nanos());
            let value = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: nanos };
            let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
            // Neither can fail for a timer of our own; if one did, the loop would only look at the clock more often.
            let _ = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
            if let Ok(mut ready) = self.timer.readable().await {
                let _ = rustix::io::read(&self.timer, &mut [0u8; 8]);
                ready.clear_ready();
            }
        }
    }
}
