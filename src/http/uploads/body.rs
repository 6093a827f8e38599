//! A request's body on its way to the upload's task.

use std::pin::pin;

use axum::body::Body;
use http_body_util::BodyExt;
use tokio::sync::mpsc;

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
    loop {
        // A place first, then the socket: a slow disk slows the sender down.
        let Ok(place) = sender.reserve().await else { return Moved::Cut };
        let frame = match tokio::time::timeout(limits::HTTP_BODY_STALL, body.frame()).await {
            Err(_) => return Moved::Stalled,
            Ok(None) => {
                place.send(Piece::End(trailer));
                return Moved::Whole;
            }
            Ok(Some(Err(_))) => return Moved::Cut,
            Ok(Some(Ok(frame))) => frame,
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
