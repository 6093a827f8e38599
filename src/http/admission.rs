//! Who may have a connection.
//!
//! There are so many seats, and so many for one client (an IPv4 address, or the /64 of an IPv6 one). When they are taken,
//! a connection that has no request in progress gives its seat up: the one that has been idle longest, of the client that
//! has the most. Where nobody is idle the newcomer is told 503 and when to come again, instead of waiting unseen in the
//! kernel's backlog.
//!
//! [`Seat`] is held by the task of its connection and given up with it. Whether the connection is idle is decided in that
//! task, so that no request is lost that has begun: asked to leave, a connection that has become busy stays.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::http;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use reelring_storage::Payer;
use rustix::process::{Resource, getrlimit};
use tokio::sync::Notify;

use super::metrics::ConnectionCounts;
use crate::limits;
use crate::node::Node;

/// Who shares the seats of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Client {
    Address(IpAddr),
    /// Whoever owns the data directory: it always gets a seat, for it counts its connections itself.
    Owner,
}

impl Client {
    fn of(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            v4 => v4,
        })
    }

    /// As whom the store knows it. A network of version 6 ends in zeroes, an address of version 4 in `ffff` and itself.
    fn payer(self) -> Payer {
        match self {
            Self::Address(IpAddr::V4(address)) => Payer::Guest(address.to_ipv6_mapped().to_bits()),
            Self::Address(IpAddr::V6(address)) => Payer::Guest(address.to_bits()),
            Self::Owner => Payer::Node,
        }
    }
}

/// Why somebody has to come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Full { limit: usize },
    ClientFull { limit: usize },
}

impl Refusal {
    pub fn detail(self) -> String {
        match self {
            Refusal::Full { limit } => format!(
                "the node has {limit} connections, its limit (max_connections), and all of them are busy; come again later"
            ),
            Refusal::ClientFull { limit } => format!(
                "your address has {limit} connections, the limit for one (max_connections_per_client), and all of them \
                 are busy; use those, or come again later"
            ),
        }
    }
}

pub(super) struct Admission {
    limit: usize,
    limit_per_client: usize,
    begun: Instant,
    seats: Mutex<Seats>,
    counts: ConnectionCounts,
    is_short_of_memory: Box<dyn Fn(Payer) -> bool + Send + Sync>,
}

struct Seats {
    taken: HashMap<u64, Arc<Occupant>>,
    per_client: HashMap<Client, usize>,
    next: u64,
    /// How many of those taken were asked to leave and are on their way.
    leaving: usize,
    /// For whom nobody idle was found, and when.
    nobody_idle: (Option<Client>, i64),
}

/// What everybody may know of a connection.
struct Occupant {
    client: Client,
    /// The admission's: a request then shares nothing with those of other connections.
    begun: Instant,
    requests: AtomicUsize,
    /// Bytes of an answer wait for the client.
    blocked: AtomicBool,
    /// Milliseconds after the beginning at which the last request ended, or the connection came.
    idle_since: AtomicI64,
    asked_to_leave: AtomicBool,
    asked: Notify,
}

/// The right to a connection. Dropping it gives it to the next.
pub(super) struct Seat {
    admission: Arc<Admission>,
    number: u64,
    occupant: Arc<Occupant>,
}

/// A request in progress, to the last byte of its answer.
pub(super) struct InRequest(Arc<Occupant>);

impl Admission {
    fn new(
        limit: usize,
        limit_per_client: usize,
        counts: ConnectionCounts,
        is_short_of_memory: impl Fn(Payer) -> bool + Send + Sync + 'static,
    ) -> Arc<Self> {
        let (taken, per_client) = Default::default();
        let seats = Mutex::new(Seats { taken, per_client, next: 0, leaving: 0, nobody_idle: (None, -1) });
        let begun = Instant::now();
        let is_short_of_memory = Box::new(is_short_of_memory);
        Arc::new(Self { limit, limit_per_client, begun, seats, counts, is_short_of_memory })
    }

    pub fn of(node: &Node) -> Arc<Self> {
        let (config, counts, store) = (node.config(), node.http_metrics().connections().clone(), node.store().clone());
        let limit = within_descriptors(config.max_connections);
        Self::new(limit, config.max_connections_per_client, counts, move |payer| store.is_short_of_read_memory(payer))
    }

    /// A seat for a connection from `address`.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Seat, Refusal> {
        let client = Client::of(address);
        let mut seats = self.seats();
        let of_client = seats.per_client.get(&client).copied().unwrap_or(0);
        let refused = if of_client >= self.limit_per_client {
            (!self.make_room(&mut seats, Some(client))).then_some(Refusal::ClientFull { limit: self.limit_per_client })
        } else if seats.taken.len() - seats.leaving >= self.limit {
            (!self.make_room(&mut seats, None)).then_some(Refusal::Full { limit: self.limit })
        } else {
            None
        };
        if let Some(refusal) = refused {
            drop(seats);
            self.counts.refused(match refusal {
                Refusal::Full { .. } => "full",
                Refusal::ClientFull { .. } => "client",
            });
            return Err(refusal);
        }
        Ok(self.seat(&mut seats, client))
    }

    pub fn admit_owner(self: &Arc<Self>) -> Seat {
        self.seat(&mut self.seats(), Client::Owner)
    }

    fn seat(self: &Arc<Self>, seats: &mut Seats, client: Client) -> Seat {
        let occupant = Arc::new(Occupant {
            client,
            begun: self.begun,
            requests: AtomicUsize::new(0),
            blocked: AtomicBool::new(false),
            idle_since: AtomicI64::new(self.now()),
            asked_to_leave: AtomicBool::new(false),
            asked: Notify::new(),
        });
        let number = seats.next;
        seats.next += 1;
        seats.taken.insert(number, occupant.clone());
        *seats.per_client.entry(client).or_default() += 1;
        self.counts.open.set(seats.taken.len() as i64);
        Seat { admission: self.clone(), number, occupant }
    }

    /// Asks idle connections to leave, of this client or of those that have most; false when there are none. It looks at
    /// every seat, so it clears a few at a time, and does not look again at once when it found nobody.
    fn make_room(&self, seats: &mut Seats, of: Option<Client>) -> bool {
        let (now, limit) = (self.now(), of.map_or(self.limit, |_| self.limit_per_client));
        let most = (limit / 64).clamp(1, 16).min(limits::HTTP_LEAVING - seats.leaving);
        if most == 0 || seats.nobody_idle == (of, now / limits::HTTP_IDLE_LOOK.as_millis() as i64) {
            return false;
        }
        let before = now - limits::HTTP_IDLE_GRACE.as_millis() as i64;
        let mut idle: Vec<_> = seats
            .taken
            .values()
            .filter(|occupant| of.is_none_or(|client| client == occupant.client) && occupant.may_leave(before))
            .map(|occupant| (seats.per_client.get(&occupant.client).copied().unwrap_or(0), occupant.clone()))
            .collect();
        if idle.is_empty() {
            seats.nobody_idle = (of, now / limits::HTTP_IDLE_LOOK.as_millis() as i64);
            return false;
        }
        idle.sort_unstable_by_key(|(share, occupant)| (std::cmp::Reverse(*share), occupant.idle_since.load(Relaxed)));
        for (_, leaving) in idle.into_iter().take(most) {
            leaving.asked_to_leave.store(true, Release);
            leaving.asked.notify_one();
            seats.leaving += 1;
        }
        true
    }

    fn now(&self) -> i64 {
        millis_since(self.begun)
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis_since(begun: Instant) -> i64 {
    begun.elapsed().as_millis() as i64
}

/// Each connection needs a descriptor; so does everything else.
fn within_descriptors(limit: usize) -> usize {
    let Some(descriptors) = getrlimit(Resource::Nofile).current else { return limit };
    let most = descriptors.saturating_sub(limits::DESCRIPTORS_BESIDE_CONNECTIONS).max(1) as usize;
    if most < limit {
        tracing::warn!(
            "max_connections is {limit}, but with {descriptors} descriptors there will be at most {most}: raise the limit \
             of open files (LimitNOFILE=, ulimit -n)"
        );
    }
    limit.min(most)
}

impl Occupant {
    /// Idle since then, and not asked to leave yet.
    fn may_leave(&self, before: i64) -> bool {
        self.is_idle() && self.idle_since.load(Relaxed) <= before && !self.asked_to_leave.load(Relaxed)
    }

    fn is_idle(&self) -> bool {
        self.requests.load(Acquire) == 0 && !self.blocked.load(Acquire)
    }
}

impl Seat {
    /// Runs the connection to its end, or until it is idle and others need its seat.
    pub async fn hold<T>(self, connection: impl Future<Output = T>) -> Option<T> {
        let mut connection = std::pin::pin!(connection);
        loop {
            tokio::select! {
                biased;
                ended = &mut connection => return Some(ended),
                () = self.occupant.asked.notified() => {}
            }
            if self.occupant.is_idle() {
                self.admission.counts.closed_idle.inc();
                return None;
            }
            self.stay();
        }
    }

    /// For the connection, to tell what it does.
    pub fn requests(&self) -> Requests {
        Requests { admission: self.admission.clone(), occupant: self.occupant.clone() }
    }

    fn stay(&self) {
        let mut seats = self.admission.seats();
        if self.occupant.asked_to_leave.swap(false, AcqRel) {
            seats.leaving -= 1;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.stay();
        let mut seats = self.admission.seats();
        seats.taken.remove(&self.number);
        if let Some(count) = seats.per_client.get_mut(&self.occupant.client) {
            *count -= 1;
            if *count == 0 {
                seats.per_client.remove(&self.occupant.client);
            }
        }
        self.admission.counts.open.set(seats.taken.len() as i64);
    }
}

/// What a connection tells of itself.
#[derive(Clone)]
pub(super) struct Requests {
    admission: Arc<Admission>,
    occupant: Arc<Occupant>,
}

impl Requests {
    /// A request begins; it ends when what is returned is dropped.
    pub fn begin(&self) -> InRequest {
        self.occupant.requests.fetch_add(1, AcqRel);
        InRequest(self.occupant.clone())
    }

    /// Who pays for what is in memory for this connection.
    pub fn payer(&self) -> Payer {
        self.occupant.client.payer()
    }

    /// How many connections its client has.
    pub fn connections_of_client(&self) -> usize {
        self.admission.seats().per_client.get(&self.occupant.client).copied().unwrap_or(0)
    }

    /// The client takes nothing now, or takes something again.
    pub fn set_blocked(&self, blocked: bool) {
        self.occupant.blocked.store(blocked, Release);
    }

    /// How long a client may take nothing of what waits for it.
    pub fn stall_limit(&self) -> Duration {
        if (self.admission.is_short_of_memory)(self.payer()) {
            limits::HTTP_SEND_STALL_PRESSED
        } else {
            limits::HTTP_SEND_STALL
        }
    }
}

impl InRequest {
    /// Makes the request last to the end of its answer.
    pub fn until_sent(self, answer: Response) -> http::Response<Counted> {
        answer.map(|body| Counted { body, _request: self })
    }
}

/// The body of an answer, and the request it belongs to.
pub(super) struct Counted {
    body: Body,
    _request: InRequest,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for InRequest {
    fn drop(&mut self) {
        self.0.idle_since.store(millis_since(self.0.begun), Relaxed);
        self.0.requests.fetch_sub(1, AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(limit: usize, per_client: usize) -> Arc<Admission> {
        Admission::new(limit, per_client, ConnectionCounts::default(), |_| false)
    }

    fn v4(last: u8) -> IpAddr {
        [127, 0, 0, last].into()
    }

    fn idle_for(seat: &Seat, seconds: i64) {
        seat.occupant.idle_since.store(seat.admission.now() - seconds * 1000, Relaxed);
    }

    /// Seats taken, clients, and those that are leaving.
    fn counts(admission: &Admission) -> (usize, usize, usize) {
        let seats = admission.seats();
        (seats.taken.len(), seats.per_client.len(), seats.leaving)
    }

    #[test]
    fn an_address_is_a_client_and_so_is_a_network_of_version_6() {
        let of = |text: &str| Client::of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn seats_are_limited_for_all_and_for_each() {
        let admission = admission(3, 2);
        let mut seats = vec![admission.admit(v4(1)).unwrap(), admission.admit(v4(1)).unwrap()];
        assert_eq!(admission.admit(v4(1)).err(), Some(Refusal::ClientFull { limit: 2 }));
        seats.push(admission.admit(v4(2)).unwrap());
        assert_eq!(admission.admit(v4(3)).err(), Some(Refusal::Full { limit: 3 }));
        drop(seats);
        assert_eq!(counts(&admission), (0, 0, 0));
        assert!(admission.admit(v4(3)).is_ok());
    }

    #[tokio::test]
    async fn the_longest_idle_of_the_greediest_leaves() {
        let admission = admission(5, 3);
        let seats: Vec<_> = [2, 1, 1, 1, 3].into_iter().map(|last| admission.admit(v4(last)).unwrap()).collect();
        assert!(admission.admit(v4(4)).is_err(), "they have only just come");
        tokio::time::sleep(limits::HTTP_IDLE_LOOK).await;
        for (seat, seconds) in seats.iter().zip([60, 50, 40, 30, 20]) {
            idle_for(seat, seconds);
        }
        // Of the three of one client one is busy, one still sends, and one is idle, for less long than the others' are.
        let busy = seats[1].requests().begin();
        seats[2].requests().set_blocked(true);
        let newcomer = admission.admit(v4(4)).unwrap();
        let mut tasks: Vec<_> =
            seats.into_iter().map(|seat| tokio::spawn(seat.hold(std::future::pending::<()>()))).collect();
        assert!(tasks.remove(3).await.unwrap().is_none());
        assert_eq!(counts(&admission), (5, 4, 0));
        assert!(tasks.iter().all(|task| !task.is_finished()));
        drop((newcomer, busy));
        tasks.iter().for_each(|task| task.abort());
    }

    #[tokio::test]
    async fn who_is_busy_by_then_stays() {
        let admission = admission(1, 1);
        let seat = admission.admit(v4(1)).unwrap();
        idle_for(&seat, 10);
        let newcomer = admission.admit(v4(2)).unwrap();
        let request = seat.requests().begin();
        let held = tokio::spawn(seat.hold(tokio::time::sleep(Duration::from_millis(50))));
        assert!(held.await.unwrap().is_some(), "its request was not cut");
        assert_eq!(counts(&admission), (1, 1, 0));
        drop((newcomer, request));
    }
}
