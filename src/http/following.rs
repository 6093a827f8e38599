//! The answer to a GET of an object that is still being uploaded or fetched.
//!
//! The answer follows its writer: bytes leave as they land in the file, verified. One that reaches to the object's end is
//! complete only when the object is stored: until then the last byte (of an announced length), or the end of the last
//! chunk, is held back. When the writer fails, pauses for too long, or the node shuts down, the connection ends early, and
//! every client sees that it has not got an object. A part that ends before the object does is complete when its bytes
//! have been sent.
//!
//! The entity tag names the writer, for nobody knows the hash yet: parts with one tag belong together, and the object that
//! is stored has another one. Nothing of such an answer may be cached.
//!
//! An object that exists is served as it is until the new one is stored. The body owns the follower; when the client goes
//! away both are dropped, and the writer does not notice.

use std::ops::Range;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Version as HttpVersion, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use reelring_storage::{Follower, Key};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::blob::insert;
use super::conditional::{self, Decision};
use super::problem::Problem;
use super::range::{self, Asked};
use crate::limits;
use crate::node::Node;

/// Answers with what `follower` brings, as much of it as the request asks for. `described` are the headers of its content.
pub(super) fn send(
    node: &Node,
    request: &Parts,
    key: &Key,
    described: HeaderMap,
    follower: Follower,
) -> Result<Response, Problem> {
    let etag = format!("\"writing-{}\"", follower.tag());
    let announced = follower.announced();
    // It is being modified: whoever has anything older has something else.
    let modified = std::time::SystemTime::now();
    let mut answer = described;
    insert(&mut answer, header::ETAG, &etag);
    answer.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    answer.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    match conditional::evaluate(&request.headers, &etag, modified) {
        Decision::NotModified => return Ok((StatusCode::NOT_MODIFIED, answer).into_response()),
        Decision::Failed => {
            let detail =
                format!("{key} is still being written and has the tag {etag}; read it again when it is stored");
            return Err(Problem::precondition_failed(detail));
        }
        Decision::Send => {}
    }
    let counts = request.method == Method::GET && conditional::range_counts(&request.headers, &etag, modified);
    let (status, start, end) = match if counts { wanted(&request.headers, announced) } else { Wanted::Whole } {
        Wanted::Whole => (StatusCode::OK, 0, announced),
        Wanted::Part(part) => {
            let length = announced.map_or("*".into(), |length| length.to_string());
            let content_range = format!("bytes {}-{}/{length}", part.start, part.end - 1);
            insert(&mut answer, header::CONTENT_RANGE, &content_range);
            (StatusCode::PARTIAL_CONTENT, part.start, Some(part.end))
        }
        Wanted::Outside(length) => {
            let problem = Problem::range(format!("{key} will have {length} bytes, nothing of the range lies in it"));
            let mut response = problem.into_response();
            insert(response.headers_mut(), header::CONTENT_RANGE, &format!("bytes */{length}"));
            return Ok(response);
        }
    };
    if end.is_none() && request.version < HttpVersion::HTTP_11 {
        // Its only sign of the end is that the connection closes, which an aborted answer does too.
        let detail =
            format!("{key} is still being written and its length is not known: ask again later, or by HTTP/1.1");
        return Err(Problem::unavailable("being-written", detail, 5));
    }
    answer.extend(end.map(|end| (header::CONTENT_LENGTH, HeaderValue::from(end - start))));
    let body = match request.method {
        Method::HEAD => Body::empty(),
        _ => Body::from_stream(body(key.clone(), follower, start, end, node.closing().clone())),
    };
    Ok((status, answer, body).into_response())
}

/// What is wanted of an object whose length may not be known.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Whole,
    Part(Range<u64>),
    /// Nothing of what it will have.
    Outside(u64),
}

/// Several ranges are answered with the whole. Without a length a range counts when it says itself where it ends, for the
/// answer has to.
fn wanted(headers: &HeaderMap, announced: Option<u64>) -> Wanted {
    match (range::of(headers, announced.unwrap_or(u64::MAX)), announced) {
        (Asked::Parts(parts), _) => match &parts[..] {
            [part] if announced.is_some() || part.end < u64::MAX => Wanted::Part(part.clone()),
            _ => Wanted::Whole,
        },
        (Asked::Outside, Some(length)) => Wanted::Outside(length),
        _ => Wanted::Whole,
    }
}

/// Why a followed answer ends early.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Storage(#[from] reelring_storage::Error),
    #[error("nothing of it was written for {} s", limits::HTTP_FOLLOW_STALL.as_secs())]
    Stalled,
    #[error("the node is shutting down")]
    Draining,
}

fn body(
    key: Key,
    follower: Follower,
    start: u64,
    end: Option<u64>,
    closing: CancellationToken,
) -> impl Stream<Item = Result<Bytes, Broken>> + Send + 'static {
    let bytes = Box::pin(follower.stream(start, end));
    // One timer for the whole answer, put off with each piece, as for bodies that arrive.
    let stall = Box::pin(sleep(limits::HTTP_FOLLOW_STALL));
    futures_util::stream::try_unfold((bytes, stall, key, closing), |(mut bytes, mut stall, key, closing)| async move {
        stall.as_mut().reset(Instant::now() + limits::HTTP_FOLLOW_STALL);
        let next = tokio::select! {
            biased;
            // What is there is sent, shutting down or not.
            next = bytes.next() => next.transpose().map_err(Broken::from),
            () = closing.cancelled() => Err(Broken::Draining),
            () = &mut stall => Err(Broken::Stalled),
        };
        let next =
            next.inspect_err(|error| tracing::info!(%key, %error, "an answer that followed its writer was cut short"))?;
        // Others have a turn after each chunk, as with stored bytes.
        tokio::task::yield_now().await;
        Ok(next.map(|chunk| (chunk, (bytes, stall, key, closing))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_length_only_closed_ranges_count() {
        for (range, announced, expected) in [
            ("bytes=0-9", None, Wanted::Part(0..10)),
            ("bytes=5-", None, Wanted::Whole),
            ("bytes=-5", None, Wanted::Whole),
            ("bytes=-0", None, Wanted::Whole),
            ("bytes=18446744073709551615-", None, Wanted::Whole),
            ("bytes=0-1,5-6", None, Wanted::Whole),
            ("bytes=0-9", Some(5), Wanted::Part(0..5)),
            ("bytes=2-", Some(5), Wanted::Part(2..5)),
            ("bytes=-2", Some(5), Wanted::Part(3..5)),
            ("bytes=5-", Some(5), Wanted::Outside(5)),
        ] {
            let headers = HeaderMap::from_iter([(header::RANGE, HeaderValue::from_static(range))]);
            assert_eq!(wanted(&headers, announced), expected, "{range} of {announced:?}");
        }
    }
}
