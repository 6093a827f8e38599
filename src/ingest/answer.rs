//! What an origin's answer means for the bytes already held: pure, so that every hard case is a row in a test.
//!
//! Origins ignore ranges, ignore `If-Range`, change the file under the same name, answer a different range than asked for
//! or an error page with status 200. The one rule: bytes are appended only to bytes of the same version, proven by
//! validators, at the offset that was asked for.

use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{self, HeaderMap};

use super::journal::Note;
use super::retry::retry_after;
use super::validators::{Agreement, ContentRange, Validators, number};
use crate::limits;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// The file from its first byte.
    Whole,
    /// The rest, if the file is still the same (`Range` and `If-Range`).
    Rest,
    /// The rest, whatever the file is (`Range` alone): some CDNs answer 200 to every `If-Range` although nothing changed.
    /// The validators of the answer decide.
    Probe,
}

/// What is there already.
#[derive(Debug, Clone, Copy)]
pub struct Held<'a> {
    pub note: &'a Note,
    pub length: u64,
}

/// The parts of an answer that matter.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    pub status: StatusCode,
    pub headers: &'a HeaderMap,
    /// The body's declared length.
    pub declared: Option<u64>,
    pub now: SystemTime,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The body is the file from its first byte; whatever is held is of no use.
    Fresh { total: Option<u64> },
    /// The body continues what is held, up to `end` (exclusive).
    Append { end: u64, total: Option<u64> },
    /// Nothing is missing.
    Complete,
    /// Nothing seems to be missing, but the answer does not say of which version: ask for the headers.
    Confirm,
    /// Ask again with [`Ask::Probe`].
    Probe,
    /// Ranges of this origin, or this version, cannot be used: start again with [`Ask::Whole`].
    Restart(String),
    /// Ask again later.
    Later { reason: String, after: Option<Duration> },
    /// Asking again changes nothing.
    Refuse(String),
}

pub fn judge(ask: Ask, held: Option<Held<'_>>, answer: Answer<'_>) -> Verdict {
    if let Some(encoding) = foreign_encoding(answer.headers) {
        return Verdict::Refuse(format!("answered with Content-Encoding {encoding} although asked for identity"));
    }
    match (answer.status.as_u16(), held.filter(|_| ask != Ask::Whole)) {
        (200, None) => fresh(answer),
        (200, Some(held)) => whole_instead_of_rest(ask, held, answer),
        (206, Some(held)) => rest(held, answer),
        (206, None) => Verdict::Refuse("answered 206 Partial Content to a request for the whole file".into()),
        (416, Some(held)) => nothing_left(held, answer),
        (408 | 425 | 429, _) => later(answer),
        (501 | 505, _) => Verdict::Refuse(format!("answered {}", answer.status)),
        (500..=599, _) => later(answer),
        (401 | 403, _) => Verdict::Refuse(format!(
            "answered {}; the address may have expired, or it needs credentials (headers)",
            answer.status
        )),
        (400..=499, _) => Verdict::Refuse(format!("answered {}", answer.status)),
        _ => Verdict::Refuse(format!("answered {}, which carries no file", answer.status)),
    }
}

/// Whether a `HEAD` says that the held bytes are the whole current version.
pub fn confirms(held: Held<'_>, answer: Answer<'_>) -> bool {
    let length = answer.headers.get(header::CONTENT_LENGTH).and_then(|value| number(value.to_str().ok()?));
    answer.status == StatusCode::OK && length == Some(held.length) && agreement(held, answer) == Agreement::Same
}

fn fresh(answer: Answer<'_>) -> Verdict {
    match answer.declared {
        Some(0) => Verdict::Refuse("answered an empty file (0 bytes)".into()),
        total => within_limit(total).unwrap_or(Verdict::Fresh { total }),
    }
}

fn within_limit(total: Option<u64>) -> Option<Verdict> {
    let (total, limit) = (total?, limits::OBJECT_BYTES);
    (total > limit).then(|| Verdict::Refuse(format!("the file has {total} bytes, the limit is {limit}")))
}

fn whole_instead_of_rest(ask: Ask, held: Held<'_>, answer: Answer<'_>) -> Verdict {
    let takes_ranges = answer.headers.get(header::ACCEPT_RANGES).is_none_or(|value| value != "none");
    let same_length = held.note.total.is_none() || answer.declared.is_none() || held.note.total == answer.declared;
    if ask == Ask::Rest && takes_ranges && same_length && agreement(held, answer) == Agreement::Same {
        return Verdict::Probe;
    }
    fresh(answer)
}

fn rest(held: Held<'_>, answer: Answer<'_>) -> Verdict {
    let restart = |reason: &str| Verdict::Restart(reason.to_owned());
    let content_type = answer.headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes().to_ascii_lowercase());
    if content_type.is_some_and(|value| value.starts_with(b"multipart/byteranges")) {
        return restart("answered several ranges where one was asked for");
    }
    let Some(ContentRange::Part { first, last, total }) = ContentRange::of(answer.headers) else {
        return restart("answered 206 without a usable Content-Range");
    };
    if first != held.length {
        return Verdict::Restart(format!("answered bytes from {first} where {} was asked for", held.length));
    }
    if let (Some(was), Some(is)) = (held.note.total, total)
        && was != is
    {
        return Verdict::Restart(format!("the file had {was} bytes and has {is} now"));
    }
    if held.note.total.is_some_and(|was| last >= was) {
        return restart("answered bytes past the end of the file");
    }
    match agreement(held, answer) {
        Agreement::Different => return restart("the file has changed"),
        Agreement::Unknown => return restart("the answer does not say which version its bytes are of"),
        Agreement::Same => {}
    }
    let end = last + 1;
    if answer.declared.is_some_and(|declared| declared != end - first) {
        return restart("Content-Range and Content-Length contradict each other");
    }
    let total = total.or(held.note.total);
    within_limit(total).unwrap_or(Verdict::Append { end, total })
}

fn nothing_left(held: Held<'_>, answer: Answer<'_>) -> Verdict {
    match ContentRange::of(answer.headers) {
        Some(ContentRange::Unsatisfied { total }) if total == held.length => {}
        Some(ContentRange::Unsatisfied { total }) => {
            return Verdict::Restart(format!("{} bytes are held and the file has {total} now", held.length));
        }
        _ => return Verdict::Restart("answered 416 without the length of the file".into()),
    }
    if held.note.total.is_some_and(|was| was != held.length) {
        return Verdict::Restart("the file is shorter now than it said before".into());
    }
    match agreement(held, answer) {
        Agreement::Same => Verdict::Complete,
        Agreement::Different => Verdict::Restart("the file has changed".into()),
        Agreement::Unknown => Verdict::Confirm,
    }
}

fn later(answer: Answer<'_>) -> Verdict {
    let after = answer.headers.get(header::RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?, answer.now));
    Verdict::Later { reason: format!("answered {}", answer.status), after }
}

fn agreement(held: Held<'_>, answer: Answer<'_>) -> Agreement {
    held.note.validators.compare(&Validators::of(answer.headers, answer.now))
}

fn foreign_encoding(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_ENCODING)?;
    let value = String::from_utf8_lossy(value.as_bytes()).trim().to_owned();
    (!value.is_empty() && !value.eq_ignore_ascii_case("identity")).then_some(value)
}

#[cfg(test)]
mod tests;
