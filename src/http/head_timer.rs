//! The time a client has for a request's head, by one timer for each connection.
//!
//! hyper asks for a timer before each head and drops it when the head is there. As timers of the runtime these are entries
//! made, put into its wheel and taken out again for every request. Here all heads of a connection share one: it goes on
//! while a request is answered, and when it fires too early it is put off.
//!
//! The connection owns the timer; dropping both ends it.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};
use tokio::time::{Sleep as Entry, sleep};

use crate::limits;

#[derive(Clone)]
pub(super) struct HeadTimer(Arc<Mutex<Pin<Box<Entry>>>>);

/// The wait for one head.
struct Head {
    timer: HeadTimer,
    deadline: Instant,
}

impl HeadTimer {
    /// On the runtime of the connection.
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Box::pin(sleep(limits::HTTP_HEADER_TIMEOUT)))))
    }
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Head { timer: self.clone(), deadline })
    }
}

impl Sleep for Head {}

impl Future for Head {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut entry = self.timer.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entry.deadline().into_std() > self.deadline {
            entry.as_mut().reset(self.deadline.into());
        }
        loop {
            ready!(entry.as_mut().poll(cx));
            if entry.deadline().into_std() >= self.deadline {
                return Poll::Ready(());
            }
            entry.as_mut().reset(self.deadline.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_head_has_its_own_time() {
        let timer = HeadTimer::new();
        let begun = Instant::now();
        let after = |ms| begun + Duration::from_millis(ms);
        // A head that came in time, one that is waited for longer than the timer was set for, one that is late already.
        let mut came = timer.sleep_until(after(20));
        assert!(futures_util::poll!(came.as_mut()).is_pending());
        drop(came);
        timer.sleep_until(after(60)).await;
        assert!(begun.elapsed() >= Duration::from_millis(60));
        timer.sleep_until(after(10)).await;
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
}
