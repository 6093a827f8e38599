//! The bytes of one answer on their way into the partial file.
//!
//! Memory is bounded by the writer: room for the next piece is taken before the socket is read. Bytes become durable at
//! checkpoints, and only then may a restart count on them; a checkpoint is due after so many bytes, or after some seconds
//! with anything new, an idle origin included.

use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reelring_storage::{BlobWriter, Error as StoreError};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;

use super::answer;
use super::fetch::Fault;
use super::guard;
use super::journal::Note;
use super::sniff;
use crate::error::Failure;
use crate::limits;
use crate::progress::Reporter;

/// A partial file, what it is of, and how much of it is safe.
pub(super) struct Held {
    pub writer: BlobWriter,
    pub note: Note,
    /// The declared type of the first bytes, until they have been looked at.
    unseen: Option<Unseen>,
    durable: u64,
    saved_at: Instant,
}

#[derive(Debug, Default)]
struct Unseen {
    content_type: Option<String>,
    head: BytesMut,
}

impl Held {
    pub fn started(writer: BlobWriter, note: Note, content_type: Option<String>) -> Self {
        let unseen = Some(Unseen { content_type, head: BytesMut::new() });
        Self { writer, note, unseen, durable: 0, saved_at: Instant::now() }
    }

    pub fn resumed(writer: BlobWriter, note: Note) -> Self {
        let durable = writer.len();
        let unseen = (durable == 0).then(Unseen::default);
        Self { writer, note, unseen, durable, saved_at: Instant::now() }
    }

    pub fn len(&self) -> u64 {
        self.writer.len()
    }

    pub fn is_whole(&self) -> bool {
        self.note.total == Some(self.len())
    }

    pub fn seen(&self) -> answer::Held<'_> {
        answer::Held { note: &self.note, length: self.len() }
    }

    /// Removes the partial file.
    pub async fn discard(self) {
        self.writer.abort().await;
    }

    /// Makes everything so far durable, if it is not.
    pub async fn save(&mut self) -> Result<(), StoreError> {
        self.saved_at = Instant::now();
        if self.len() > self.durable {
            self.durable = self.writer.checkpoint(self.note.encode()).await?;
        }
        Ok(())
    }

    /// Appends the body. `Ok` means that the file is complete: it reached its total, or an end the origin vouches for.
    pub async fn pump(
        &mut self,
        body: &mut guard::Body,
        end: Option<u64>,
        meter: &mut Meter,
        cancel: &CancellationToken,
    ) -> Result<(), Fault> {
        self.saved_at = Instant::now();
        // One timer for the whole body: a new one for each piece wakes the thread that waits for events.
        let mut due = pin!(sleep(limits::FETCH_CHECKPOINT_EVERY));
        while let Some(chunk) = self.next(body, due.as_mut(), cancel).await? {
            let Some(chunk) = self.look_at(chunk, false)? else { continue };
            self.append(chunk, end, meter).await?;
        }
        if let Some(rest) = self.look_at(Bytes::new(), true)? {
            self.append(rest, end, meter).await?;
        }
        self.judge_end(end)
    }

    fn judge_end(&mut self, end: Option<u64>) -> Result<(), Fault> {
        let length = self.len();
        let url = guard::shown(&self.note.final_url);
        if let Some(end) = end.filter(|end| length < *end) {
            let failure =
                Failure::transient(format!("{url}: the body ended after {length} bytes, {end} were declared"));
            return Err(Fault::Retry { failure, after: None });
        }
        match self.note.total {
            Some(total) if length < total => Err(Fault::Short),
            Some(_) => Ok(()),
            // The end of a part is not known to be the end of the file.
            None if end.is_some() => Err(Fault::Short),
            None if length == 0 => Err(Fault::permanent(format!("{url} answered an empty file (0 bytes)"))),
            None => {
                self.note.total = Some(length);
                Ok(())
            }
        }
    }

    /// The next piece, after room for it has been taken; saves what is there when the origin makes us wait.
    async fn next(
        &mut self,
        body: &mut guard::Body,
        mut due: Pin<&mut Sleep>,
        cancel: &CancellationToken,
    ) -> Result<Option<Bytes>, Fault> {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(Fault::Final(Failure::cancelled().into())),
            room = self.writer.ready() => room?,
        }
        if self.len() == self.durable {
            return Ok(body.next().await?);
        }
        due.as_mut().reset(self.saved_at + limits::FETCH_CHECKPOINT_EVERY);
        tokio::select! {
            biased;
            chunk = body.next() => return Ok(chunk?),
            () = due => {}
        }
        self.save().await?;
        Ok(body.next().await?)
    }

    /// Holds the first bytes back until there are enough to tell a page from a film.
    fn look_at(&mut self, chunk: Bytes, ended: bool) -> Result<Option<Bytes>, Fault> {
        let Some(unseen) = &mut self.unseen else {
            return Ok((!chunk.is_empty()).then_some(chunk));
        };
        let whole = unseen.head.is_empty() && chunk.len() >= limits::FETCH_SNIFF;
        let head = if whole {
            chunk
        } else {
            unseen.head.extend_from_slice(&chunk);
            if unseen.head.len() < limits::FETCH_SNIFF && !ended {
                return Ok(None);
            }
            std::mem::take(&mut unseen.head).freeze()
        };
        let start = &head[..head.len().min(limits::FETCH_SNIFF)];
        if sniff::is_html(start, unseen.content_type.as_deref()) {
            let content_type = unseen.content_type.as_deref().unwrap_or("of no declared type");
            return Err(Fault::permanent(format!(
                "{} answered an HTML page ({content_type}), not media; if it is a page with a player, a plugin can extract it",
                guard::shown(&self.note.final_url)
            )));
        }
        self.unseen = None;
        Ok((!head.is_empty()).then_some(head))
    }

    async fn append(&mut self, chunk: Bytes, end: Option<u64>, meter: &mut Meter) -> Result<(), Fault> {
        let after = self.len() + chunk.len() as u64;
        if let Some(end) = end.filter(|end| after > *end) {
            return Err(Fault::Restart(format!("the body goes on after the {end} bytes that were declared")));
        }
        if after > limits::OBJECT_BYTES {
            let (url, limit) = (guard::shown(&self.note.final_url), limits::OBJECT_BYTES);
            return Err(Fault::permanent(format!("{url} has more than the limit of {limit} bytes")));
        }
        if let Some(hash) = &mut self.note.sha256 {
            hash.update(&chunk);
        }
        self.writer.write(chunk).await?;
        meter.at(after, self.note.total);
        let due = after - self.durable >= limits::FETCH_CHECKPOINT_BYTES
            || self.saved_at.elapsed() >= limits::FETCH_CHECKPOINT_EVERY;
        if due {
            self.save().await?;
        }
        Ok(())
    }
}

/// Bytes done, the rate they come at and the time that is left.
pub(super) struct Meter {
    reporter: Reporter,
    window: Option<(Instant, u64)>,
    rate: Option<f64>,
}

/// Long enough to smooth bursts, short enough to follow an origin that slows down.
const WINDOW: Duration = Duration::from_millis(500);
/// Weight of the newest window.
const NEWEST: f64 = 0.3;

impl Meter {
    pub fn new(reporter: Reporter) -> Self {
        Self { reporter, window: None, rate: None }
    }

    pub fn at(&mut self, done: u64, total: Option<u64>) {
        self.observe(done, Instant::now());
        let rate = self.rate.map(|rate| rate as u64);
        let left = total.map(|total| total.saturating_sub(done));
        let eta = left.zip(rate).and_then(|(left, rate)| left.checked_div(rate));
        self.reporter.update(|progress| {
            progress.bytes_done = done;
            progress.bytes_total = total;
            progress.rate_bytes_per_s = rate;
            progress.eta_s = eta;
        });
    }

    /// The origin is being waited for: no rate is better than an old one.
    pub fn pause(&mut self) {
        (self.window, self.rate) = (None, None);
        self.reporter.update(|progress| (progress.rate_bytes_per_s, progress.eta_s) = (None, None));
    }

    fn observe(&mut self, done: u64, now: Instant) {
        let Some((since, had)) = self.window.filter(|(_, had)| *had <= done) else {
            (self.window, self.rate) = (Some((now, done)), None);
            return;
        };
        let elapsed = now.duration_since(since);
        if elapsed >= WINDOW {
            let newest = (done - had) as f64 / elapsed.as_secs_f64();
            self.rate = Some(self.rate.map_or(newest, |rate| rate + NEWEST * (newest - rate)));
            self.window = Some((now, done));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_the_bytes() {
        let (reporter, receiver) = Reporter::new();
        let mut meter = Meter::new(reporter);
        let start = Instant::now();
        meter.observe(1000, start);
        assert_eq!(meter.rate, None);
        meter.observe(2000, start + WINDOW / 2);
        assert_eq!(meter.rate, None, "too early to tell");
        meter.observe(3000, start + WINDOW);
        assert_eq!(meter.rate, Some(4000.0));
        meter.observe(3000, start + 2 * WINDOW);
        assert_eq!(meter.rate, Some(4000.0 * (1.0 - NEWEST)));
        meter.observe(0, start + 3 * WINDOW);
        assert_eq!(meter.rate, None, "a restart has no rate yet");

        meter.rate = Some(100.0);
        meter.window = None;
        meter.at(500, Some(1500));
        assert_eq!(receiver.borrow().progress.bytes_done, 500);
        meter.pause();
        assert_eq!(receiver.borrow().progress.eta_s, None);
    }
}
