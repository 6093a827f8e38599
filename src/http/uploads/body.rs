//! A request's body on its way to the upload's task.

use std::pin::pin;

use axum::body::Body;
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::answer;
use super::checksum;
use super::dialect::Dialect;
use crate::http::pace::{Pace, TooSlow};
use crate::http::problem::Problem;
use crate::limits;
use crate::node::Node;
use crate::uploads::{Append, Appended, Feed, Piece, UploadError, UploadId};

/// How moving the body ended.
enum Moved {
    Whole,
    /// The connection, or whoever takes the pieces, is gone.
    Cut,
    Stalled,
    Slow(TooSlow),
    Refused(Problem),
}

/// Appends a body. The socket is not read before the task has its turn.
pub(super) async fn append(
    node: &Node,
    dialect: Dialect,
    id: UploadId,
    ask: Append,
    body: Body,
) -> Result<Appended, Problem> {
    let problem = |error| answer::problem(dialect, error);
    let (sender, feed) = Feed::channel();
    let mut append = pin!(node.uploads().append(id, ask, feed));
    let moved = tokio::select! {
        appended = &mut append => return appended.map_err(problem),
        moved = pump(body, sender) => moved,
    };
    match (append.await, moved) {
        (Err(UploadError::Cut { .. }), Moved::Refused(problem)) => Err(problem),
        (Err(error @ UploadError::Cut { .. }), Moved::Stalled) => {
            Err(Problem::timeout(format!("no byte arrived for {} s: {error}", limits::HTTP_BODY_STALL.as_secs())))
        }
        (Err(error @ UploadError::Cut { .. }), Moved::Slow(slow)) => Err(Problem::timeout(format!("{slow}: {error}"))),
        (appended, _) => appended.map_err(problem),
    }
}

async fn pump(mut body: Body, sender: mpsc::Sender<Piece>) -> Moved {
    let (mut trailer, mut pace) = (None, Pace::new());
    // One timer for the whole body, put off with each piece: a new one for each wakes the thread that waits for events.
    let mut stall = pin!(sleep(limits::HTTP_BODY_STALL));
    loop {
        // A place first, then the socket: a slow disk slows the sender down.
        let Ok(place) = sender.reserve().await else { return Moved::Cut };
        stall.as_mut().reset(Instant::now() + limits::HTTP_BODY_STALL);
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            () = &mut stall => return Moved::Stalled,
        };
        let frame = match frame {
            None => {
                place.send(Piece::End(trailer));
                return Moved::Whole;
            }
            Some(Err(_)) => return Moved::Cut,
            Some(Ok(frame)) => frame,
        };
        match frame.into_data() {
            Ok(data) => {
                if let Err(slow) = pace.arrived(data.len()) {
                    return Moved::Slow(slow);
                }
                place.send(Piece::Data(data));
            }
            Err(frame) => {
                let Some(value) = frame.trailers_ref().and_then(|trailers| trailers.get("upload-checksum")) else {
                    continue;
                };
                match checksum(value) {
                    Ok(checksum) => trailer = Some(checksum),
                    Err(problem) => return Moved::Refused(problem),
                }
            }
        }
    }
}
