//! What happens to jobs, as numbered events: a ring for replay and a broadcast for those who listen.
//!
//! Numbers start at the clock's microseconds, so they go on rising over a restart and an old `Last-Event-ID` is
//! recognised as too old rather than taken for a new one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;

use super::model::{Job, JobId};
use crate::limits;

/// One change of one job.
#[derive(Debug, Clone)]
pub struct Event {
    pub id: u64,
    pub job: JobId,
    /// The job as JSON.
    pub data: Arc<str>,
}

/// Where a reader goes on.
#[derive(Debug)]
pub struct Replay {
    /// Events after the given id that are still kept.
    pub missed: Vec<Event>,
    /// Some events after it are gone: the reader must list the jobs anew.
    pub gap: bool,
    pub live: broadcast::Receiver<Event>,
}

#[derive(Clone)]
pub struct Events {
    kept: Arc<Mutex<Kept>>,
    live: broadcast::Sender<Event>,
}

struct Kept {
    ring: VecDeque<Event>,
    next: u64,
}

impl Default for Events {
    fn default() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            kept: Arc::new(Mutex::new(Kept { ring: VecDeque::new(), next: now.as_micros() as u64 })),
            live: broadcast::channel(limits::EVENTS_LAG).0,
        }
    }
}

impl Events {
    pub(super) fn publish(&self, job: &Job) {
        let Ok(data) = serde_json::to_string(job) else { return };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let event = Event { id: kept.next, job: job.id.clone(), data: data.into() };
        kept.next += 1;
        if kept.ring.len() == limits::EVENTS_KEPT {
            kept.ring.pop_front();
        }
        kept.ring.push_back(event.clone());
        // Sent under the lock: a reader that subscribes sees each event exactly once, replayed or live.
        let _ = self.live.send(event);
    }

    /// Listens from now on, and replays what came after `last`.
    pub fn follow(&self, last: Option<u64>) -> Replay {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let live = self.live.subscribe();
        let Some(last) = last else { return Replay { missed: Vec::new(), gap: false, live } };
        let first = kept.ring.front().map_or(kept.next, |event| event.id);
        let gap = last.saturating_add(1) < first || last >= kept.next;
        let missed = kept.ring.iter().filter(|event| event.id > last || gap).cloned().collect();
        Replay { missed, gap, live }
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{JobSpec, Record};
    use super::*;

    fn job() -> Job {
        let spec: JobSpec = serde_json::from_str(r#"{"kind":"fetch","url":"http://a/"}"#).unwrap();
        Record::new(spec).view()
    }

    #[test]
    fn a_reader_gets_every_event_once_and_is_told_of_a_gap() {
        let events = Events::default();
        let job = job();
        for _ in 0..3 {
            events.publish(&job);
        }
        let all = events.follow(Some(0));
        assert!(all.gap, "id 0 lies before the ring");
        let first = all.missed[0].id;
        let mut rest = events.follow(Some(first));
        assert_eq!((rest.missed.len(), rest.gap), (2, false));
        events.publish(&job);
        assert_eq!(rest.live.try_recv().unwrap().id, first + 3);
        assert!(events.follow(Some(first + 100)).gap, "an id from the future is not ours");
        for _ in 0..limits::EVENTS_KEPT {
            events.publish(&job);
        }
        let replay = events.follow(Some(first));
        assert!(replay.gap);
        assert_eq!(replay.missed.len(), limits::EVENTS_KEPT);
    }
}
