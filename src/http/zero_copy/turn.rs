//! Turns of work on bytes that come from a disk: one of them on each lane between two looks at its sockets.
//!
//! To check or to copy cold bytes takes longer than to answer a request for something hot. Streams that are ready together
//! would have such a request wait for all of them; here it waits for the one that is at work. Turns are taken in the order
//! in which they were asked for, and after each of them the processor is offered to others as well.
//!
//! A [`Turn`] belongs to its stream and goes with it, and so does its place in the queue. Dropping [`Taken`] passes the turn
//! on at once; [`Taken::over`] passes it on after the next look at the sockets, and nobody has to come back for that.

use std::cell::OnceCell;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};
use std::thread;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

thread_local! {
    /// The turn of this thread's lane. A stream stays on its lane.
    static LANE: OnceCell<Arc<Semaphore>> = const { OnceCell::new() };
}

/// A stream's place in the queue.
#[derive(Default)]
pub(super) struct Turn {
    queue: Option<PollSemaphore>,
    waiting: bool,
}

/// The turn, taken.
pub(super) struct Taken {
    _permit: OwnedSemaphorePermit,
}

impl Turn {
    /// Waits until it is this stream's turn. Who does not want it any more must [`leave`](Self::leave), or it may come to
    /// somebody who does not use it, and stay there.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Taken> {
        let lane = || LANE.with(|lane| lane.get_or_init(|| Arc::new(Semaphore::new(1))).clone());
        self.waiting = true;
        let queue = self.queue.get_or_insert_with(|| PollSemaphore::new(lane()));
        let permit = ready!(queue.poll_acquire(cx)).expect("a lane's turn is never closed");
        self.waiting = false;
        Poll::Ready(Taken { _permit: permit })
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Gives up the place in the queue, and with it a turn that has come meanwhile.
    pub(super) fn leave(&mut self) {
        if std::mem::take(&mut self.waiting) {
            self.queue = None;
        }
    }
}

impl Taken {
    /// The turn was used: somebody else may have it when this thread has looked at its sockets and served who was ready.
    pub(super) fn over(self) {
        // A lane with cold work never sleeps, and the kernel takes a processor away at its ticks only, 4 ms apart at worst: a
        // client on this machine, or the other lane, would wait for so long while the next processor may be idle.
        thread::yield_now();
        give_way(&mut Context::from_waker(&Waker::from(Arc::new(PassOn { _turn: self }))));
    }
}

/// A waker that is there to be dropped.
struct PassOn {
    _turn: Taken,
}

impl Wake for PassOn {
    fn wake(self: Arc<Self>) {}
}

/// Has the task woken when the others had their turn and the sockets were looked at. Woken at once it would be ahead of those
/// whose sockets have become ready meanwhile.
pub(super) fn give_way(cx: &mut Context<'_>) {
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::future::poll_fn;
    use std::rc::Rc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::{LocalSet, yield_now};

    use super::*;

    /// Four streams with endless cold work, and a client that asks now and then: between its bytes and their being read there
    /// is one turn, the one that was begun, and the next that was granted before they came.
    #[tokio::test]
    async fn a_socket_that_is_ready_waits_for_no_queue() {
        let (turns, over) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
        let local = LocalSet::new();
        for _ in 0..4 {
            let (turns, over) = (turns.clone(), over.clone());
            local.spawn_local(async move {
                let mut turn = Turn::default();
                while !over.get() {
                    let taken = poll_fn(|cx| turn.poll(cx)).await;
                    turns.set(turns.get() + 1);
                    taken.over();
                }
            });
        }
        let asking = async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (mut server, _) = listener.accept().await.unwrap();
            for _ in 0..200 {
                client.write_all(&[7]).await.unwrap();
                let before = turns.get();
                server.read_u8().await.unwrap();
                let passed = turns.get() - before;
                assert!(passed <= 2, "{passed} turns were taken before a ready socket was served");
                yield_now().await;
            }
            over.set(true);
        };
        local.run_until(asking).await;
        assert!(turns.get() >= 100, "cold work went on: {} turns", turns.get());
        local.await;
    }

    #[tokio::test]
    async fn turns_are_taken_in_order() {
        let order = Rc::new(RefCell::new(Vec::new()));
        let local = LocalSet::new();
        for name in 0..3 {
            let order = order.clone();
            local.spawn_local(async move {
                let mut turn = Turn::default();
                for _ in 0..5 {
                    let taken = poll_fn(|cx| turn.poll(cx)).await;
                    order.borrow_mut().push(name);
                    taken.over();
                }
            });
        }
        local.await;
        let order = order.borrow();
        assert_eq!(order.len(), 15);
        // The first one asks again before the others were there.
        assert!(order[1..13].chunks(3).all(|round| round == [0, 1, 2]), "{order:?}");
    }

    #[tokio::test]
    async fn whoever_goes_away_keeps_the_turn_from_nobody() {
        let mut streams: [Turn; 4] = Default::default();
        let [holds, leaves, dropped, last] = &mut streams;
        let taken = poll_fn(|cx| holds.poll(cx)).await;
        poll_fn(|cx| {
            for waiting in [&mut *leaves, dropped, last] {
                assert!(waiting.poll(cx).is_pending() && waiting.is_waiting());
            }
            Poll::Ready(())
        })
        .await;
        drop(taken);
        // It is the turn of the one that leaves now, and then of the one that is dropped.
        leaves.leave();
        *dropped = Turn::default();
        assert!(!leaves.is_waiting());
        poll_fn(|cx| last.poll(cx)).await.over();
        poll_fn(|cx| leaves.poll(cx)).await;
    }
}
