//! `/v1/events`: changes of jobs as server-sent events, with replay by `Last-Event-ID`.
//!
//! An event's data is the job as `GET /v1/jobs/{id}` shows it. After a gap the first event is `reset`: list the jobs
//! anew. With `?job=` the stream begins with that job's present state and ends when the job does.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event as Message, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, stream};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, broadcast};
use tokio_util::sync::CancellationToken;

use super::problem::Problem;
use crate::jobs::{Event, Job, JobError, JobId, JobState};
use crate::limits;
use crate::node::Node;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FollowQuery {
    job: Option<String>,
}

pub(super) async fn follow(
    State(node): State<Arc<Node>>,
    query: Result<Query<FollowQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Query(query) = query?;
    let Ok(permit) = node.event_streams().clone().try_acquire_owned() else {
        let detail = format!("{} event streams are open and that is the limit; close one", limits::EVENT_STREAMS);
        return Err(Problem::unavailable("too-many-streams", detail, 10));
    };
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok()).and_then(|id| id.trim().parse().ok());
    let job = query.job.as_deref().map(super::jobs::parse_id).transpose()?;
    // Follow first, then look: a change in between is seen twice, never missed.
    let replay = node.jobs().events().follow(last);
    let snapshot = match &job {
        None => None,
        Some(id) => {
            let found = node.jobs().get(id).await?;
            Some(found.ok_or_else(|| JobError::Unknown(id.clone()))?)
        }
    };
    let feed = Feed {
        pending: replay.missed.into(),
        gap: replay.gap,
        snapshot,
        live: replay.live,
        job,
        over: false,
        closing: node.closing().clone(),
        _permit: permit,
    };
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(15));
    Ok(Sse::new(feed.into_stream()).keep_alive(keep_alive).into_response())
}

struct Feed {
    pending: std::collections::VecDeque<Event>,
    gap: bool,
    snapshot: Option<Job>,
    live: broadcast::Receiver<Event>,
    job: Option<JobId>,
    over: bool,
    closing: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Feed {
    fn into_stream(self) -> impl Stream<Item = Result<Message, Infallible>> {
        stream::unfold(self, |mut feed| async move { feed.next().await.map(|message| (Ok(message), feed)) })
    }

    async fn next(&mut self) -> Option<Message> {
        if std::mem::take(&mut self.gap) {
            return Some(Message::default().event("reset").data("{}"));
        }
        if let Some(job) = self.snapshot.take() {
            self.over = job.state.is_final();
            self.pending.retain(|event| event.job != job.id);
            return Message::default().event("job").json_data(&job).ok();
        }
        while !self.over {
            let event = match self.pending.pop_front() {
                Some(event) => event,
                None => tokio::select! {
                    () = self.closing.cancelled() => return None,
                    received = self.live.recv() => match received {
                        Ok(event) => event,
                        Err(broadcast::error::RecvError::Lagged(_)) => {
                            return Some(Message::default().event("reset").data("{}"));
                        }
                        Err(broadcast::error::RecvError::Closed) => return None,
                    }
                },
            };
            if self.job.as_ref().is_some_and(|job| *job != event.job) {
                continue;
            }
            self.over = self.job.is_some() && is_final(&event.data);
            return Some(Message::default().id(event.id.to_string()).event("job").data(&*event.data));
        }
        None
    }
}

fn is_final(data: &str) -> bool {
    #[derive(Deserialize)]
    struct Only {
        state: JobState,
    }
    serde_json::from_str::<Only>(data).is_ok_and(|job| job.state.is_final())
}
