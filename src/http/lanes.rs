//! The threads that connections live on.
//!
//! Each has a runtime and an epoll of its own, so what happens on a socket is heard by the one thread that serves it. Under one
//! runtime of several workers the kernel tells each segment and each acknowledgement of a connection that is being served to
//! another worker, which sleeps in the epoll they share: it is woken, finds nothing to do, and sleeps again.
//!
//! A connection goes to the lane with the fewest and stays there. Whatever is to outlive it is spawned elsewhere. Dropping
//! the lanes ends their threads, and with them every connection.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use crate::limits;

pub(super) struct Lanes {
    lanes: Vec<Lane>,
    stop: CancellationToken,
}

struct Lane {
    handle: Handle,
    connections: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Lanes {
    /// One lane for each processor.
    pub(super) fn start() -> io::Result<Self> {
        let mut lanes = Self { lanes: Vec::new(), stop: CancellationToken::new() };
        let count = thread::available_parallelism().map_or(1, usize::from).min(limits::LANES_MAX);
        for n in 0..count {
            let lane = Lane::start(n, lanes.stop.clone())?;
            lanes.lanes.push(lane);
        }
        Ok(lanes)
    }

    /// Runs a connection on the lane with the fewest. Its sockets and timers must be made by the future, to belong there.
    pub(super) fn spawn(&self, connection: impl Future<Output = ()> + Send + 'static) {
        let lane = self.lanes.iter().min_by_key(|lane| lane.connections.load(Relaxed)).expect("there is a processor");
        lane.connections.fetch_add(1, Relaxed);
        let leaving = Leaving(lane.connections.clone());
        lane.handle.spawn(async move {
            let _leaving = leaving;
            connection.await;
        });
    }
}

impl Lane {
    fn start(n: usize, stop: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .event_interval(limits::RUNTIME_TURNS)
            .global_queue_interval(limits::RUNTIME_TURNS)
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let name = format!("http-{n}");
        let thread = thread::Builder::new().name(name).spawn(move || runtime.block_on(stop.cancelled()))?;
        Ok(Self { handle, connections: Arc::default(), thread: Some(thread) })
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.stop.cancel();
        for lane in &mut self.lanes {
            if let Some(thread) = lane.thread.take() {
                drop(thread.join());
            }
        }
    }
}

/// A connection that counts until it is gone.
struct Leaving(Arc<AtomicUsize>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::{mpsc, oneshot};

    use super::*;

    #[tokio::test]
    async fn connections_are_spread_and_end_with_their_lanes() {
        let lanes = Lanes::start().unwrap();
        let (tell, mut told) = mpsc::unbounded_channel();
        let mut held = Vec::new();
        for _ in 0..2 * lanes.lanes.len() {
            let (hold, release) = oneshot::channel::<()>();
            let tell = tell.clone();
            lanes.spawn(async move {
                // A timer, so that it is known to be one of this thread's runtime.
                tokio::time::sleep(Duration::from_millis(1)).await;
                tell.send(thread::current().id()).unwrap();
                let _ = release.await;
            });
            held.push(hold);
        }
        let mut threads = Vec::new();
        for _ in 0..held.len() {
            threads.push(told.recv().await.unwrap());
        }
        for lane in &lanes.lanes {
            let id = lane.thread.as_ref().unwrap().thread().id();
            assert_eq!(threads.iter().filter(|thread| **thread == id).count(), 2);
        }
        drop(tell);
        drop(lanes);
        assert!(told.recv().await.is_none(), "nobody is left");
    }
}
