//! One file from one origin into one blob, however often the connection breaks in between.
//!
//! A fetch is a loop of attempts. Each asks for what is missing, lets [`answer::judge`] say what the answer means for what
//! is held, and pumps the body into the journaled writer (`stream`). What is held is identified by the URL and its
//! validators; it is continued only as the same version and thrown away otherwise.
//!
//! Owner of the partial file is the writer inside [`Held`]. Afterwards it is
//! - sealed and handed to the caller on success,
//! - removed when the origin makes it a permanent failure, so that bad input leaves nothing behind,
//! - kept, up to its last checkpoint at least, on a cancel, a transient failure or trouble with the volume: a later `fetch`
//!   with the same blob id goes on there, in this process or the next. Dropping the future keeps it as well.

use std::time::{Duration, SystemTime};

use reelring_storage::{BlobId, BlobMeta, Error as StoreError, Key, SealedBlob, Store};
use reqwest::Method;
use reqwest::header::{self, HeaderMap, HeaderValue};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::answer::{self, Answer, Ask, Verdict};
use super::digest::{Sha256, hex};
use super::journal::Note;
use super::retry::Backoff;
use super::stream::{Held, Meter};
use super::validators::Validators;
use super::{guard, names, sniff};
use crate::error::{Failure, FailureKind};
use crate::limits;
use crate::progress::Reporter;

/// What to fetch.
#[derive(Debug, Clone)]
pub struct FetchRequest {
    /// Chosen when the job is admitted, so that a restart finds the partial file again.
    pub blob: BlobId,
    pub url: Url,
    pub headers: HeaderMap,
    pub sha256: Option<[u8; 32]>,
    /// The key it will be stored under, if that is known already: written into the blob's footer.
    pub key: Option<Key>,
}

/// The file, complete on disk but not in the catalog yet: that is the caller's commit.
pub struct Fetched {
    pub sealed: SealedBlob,
    pub content_type: Option<String>,
    /// A name for it, made from what the origin says; fit to be a key, never a path.
    pub file_name: String,
    pub final_url: Url,
}

impl std::fmt::Debug for Fetched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Fetched { sealed, content_type, file_name, final_url } = self;
        let (id, length) = (&sealed.id, sealed.length);
        write!(f, "Fetched({id}, {length} bytes, {content_type:?}, {file_name:?}, {})", guard::shown(final_url))
    }
}

/// Fetches `req.url` into the blob `req.blob`, resuming what an earlier call left.
pub async fn fetch(
    store: &Store,
    client: &guard::Client,
    req: FetchRequest,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<Fetched, Failure> {
    guard::check(&req.url, client.policy())?;
    let held = take_up(store, &req).await?;
    let mut meter = Meter::new(reporter.clone());
    let mut best = 0;
    if let Some(held) = &held {
        best = held.len();
        meter.at(best, held.note.total);
    }
    let backoff = Backoff::default();
    let mut fetch =
        Fetch { store, client, req: &req, cancel, held, meter, backoff, restarts: 0, best, answered: false };
    let ended = match fetch.run().await {
        Ok(()) => fetch.finish().await,
        Err(stop) => Err(stop),
    };
    match ended {
        Ok(fetched) => Ok(fetched),
        Err(stop) => {
            fetch.put_down(&stop).await;
            Err(stop.failure)
        }
    }
}

/// What an earlier run left, if it is this URL's and this version of the node understands it.
async fn take_up(store: &Store, req: &FetchRequest) -> Result<Option<Held>, Failure> {
    let (writer, bytes) = match store.resume(req.blob).await {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(None),
        Err(error @ StoreError::Corrupt { .. }) => {
            tracing::warn!(blob = %req.blob, %error, "the partial file cannot be trusted; starting again");
            store.discard_partial(req.blob).await?;
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    match Note::decode(&bytes) {
        Some(mut note) if is_of(&note, &req.url) && hash_goes_on(&note, req, writer.len()) => {
            note.url = req.url.clone();
            if req.sha256.is_none() {
                note.sha256 = None;
            }
            tracing::info!(blob = %req.blob, held = writer.len(), "resuming a fetch from its journal");
            Ok(Some(Held::resumed(writer, note)))
        }
        _ => {
            tracing::info!(blob = %req.blob, "the partial file is of another request; starting again");
            writer.abort().await;
            Ok(None)
        }
    }
}

/// The same address; or one that differs in its query alone, as when a plugin extracts it again and it carries another
/// token: then only a strong ETag and the length are proof enough that it is still the same file.
fn is_of(note: &Note, url: &Url) -> bool {
    let bare = |url: &Url| {
        let mut url = url.clone();
        url.set_query(None);
        url
    };
    note.url == *url || (note.validators.has_strong_etag() && note.total.is_some() && bare(&note.url) == bare(url))
}

/// A wanted hash must cover every byte held.
fn hash_goes_on(note: &Note, req: &FetchRequest, length: u64) -> bool {
    req.sha256.is_none() || note.sha256.as_ref().is_some_and(|hash| hash.fits(length))
}

/// Why an attempt ended before the file was complete.
#[derive(Debug)]
pub(super) enum Fault {
    /// Try again from where it broke.
    Retry {
        failure: Failure,
        after: Option<Duration>,
    },
    /// The origin sent less than the rest, in good order: ask for more.
    Short,
    /// What is held is of no use any more.
    Restart(String),
    Final(Stop),
}

/// The end of a fetch without its file.
#[derive(Debug)]
pub(super) struct Stop {
    failure: Failure,
    /// Not the origin's doing: retrying the download would not help, and what is held is not at fault.
    of_volume: bool,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self { failure, of_volume: false }
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self { failure: error.into(), of_volume: true }
    }
}

impl Fault {
    pub fn permanent(message: String) -> Self {
        Fault::Final(Failure::permanent(message).into())
    }
}

impl From<guard::Error> for Fault {
    fn from(error: guard::Error) -> Self {
        let failure = Failure::from(error);
        match failure.kind {
            FailureKind::Transient => Fault::Retry { failure, after: None },
            _ => Fault::Final(failure.into()),
        }
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Fault::Final(error.into())
    }
}

struct Fetch<'a> {
    store: &'a Store,
    client: &'a guard::Client,
    req: &'a FetchRequest,
    cancel: &'a CancellationToken,
    held: Option<Held>,
    meter: Meter,
    backoff: Backoff,
    restarts: u32,
    /// Most bytes ever held: only what goes beyond it is progress, or an origin that cuts every connection at the same byte
    /// and knows no ranges would be asked for ever.
    best: u64,
    /// The origin has answered at least once.
    answered: bool,
}

/// An accepted answer: where its body goes and where it ends.
struct Accepted {
    body: guard::Body,
    end: Option<u64>,
}

impl Fetch<'_> {
    async fn run(&mut self) -> Result<(), Stop> {
        loop {
            let fault = match self.attempt().await {
                Ok(()) => return Ok(()),
                Err(fault) => fault,
            };
            match fault {
                Fault::Final(stop) => return Err(stop),
                Fault::Restart(reason) => self.restart(&reason).await?,
                Fault::Short if self.progressed() => {}
                Fault::Short => {
                    let failure = Failure::transient(format!("{} sends almost nothing", guard::shown(&self.req.url)));
                    self.pause(failure, None).await?;
                }
                Fault::Retry { failure, after } => {
                    self.progressed();
                    self.pause(failure, after).await?;
                }
            }
        }
    }

    /// Whether there is more than there ever was; renews the budget of retries.
    fn progressed(&mut self) -> bool {
        let length = self.held.as_ref().map_or(0, Held::len);
        if length < self.best + limits::FETCH_PROGRESS {
            return false;
        }
        self.best = length;
        self.backoff.progressed();
        true
    }

    async fn pause(&mut self, failure: Failure, after: Option<Duration>) -> Result<(), Stop> {
        // Nothing of what came is left to chance while waiting.
        if let Some(held) = &mut self.held {
            held.save().await?;
        }
        let budget = if self.answered { limits::FETCH_RETRIES } else { limits::FETCH_RETRIES_UNANSWERED };
        let Some(pause) = self.backoff.failed(budget, after) else {
            let tries = self.backoff.failures() + 1;
            let message = format!("{failure}; given up after {tries} attempts");
            return Err(Failure { message, ..failure }.into());
        };
        tracing::info!(blob = %self.req.blob, %failure, pause_ms = pause.as_millis() as u64, "trying the origin again");
        self.client.count_retry();
        self.meter.pause();
        tokio::select! {
            () = self.cancel.cancelled() => Err(Failure::cancelled().into()),
            () = tokio::time::sleep(pause) => Ok(()),
        }
    }

    /// Throws away what is held because no answer can continue it.
    async fn restart(&mut self, reason: &str) -> Result<(), Stop> {
        self.restarts += 1;
        let limit = limits::FETCH_RESTARTS;
        if self.restarts > limit {
            let url = guard::shown(&self.req.url);
            let message = format!("{url}: {reason}; given up after {limit} new starts");
            return Err(Failure::permanent(message).into());
        }
        if let Some(held) = self.held.take() {
            tracing::info!(blob = %self.req.blob, %reason, dropped = held.len(), "starting again from the first byte");
            held.discard().await;
        }
        self.meter.at(0, None);
        Ok(())
    }

    async fn attempt(&mut self) -> Result<(), Fault> {
        if self.held.as_ref().is_some_and(Held::is_whole) {
            return Ok(());
        }
        let Some(Accepted { mut body, end }) = self.ask().await? else {
            return Ok(());
        };
        let held = self.held.as_mut().expect("an accepted answer has a place to go");
        held.pump(&mut body, end, &mut self.meter, self.cancel).await
    }

    /// Asks for what is missing until an answer can be used. `None`: nothing is missing.
    async fn ask(&mut self) -> Result<Option<Accepted>, Fault> {
        let resumable = self.held.as_ref().filter(|held| held.len() > 0);
        let mut ask = match resumable.and_then(|held| held.note.validators.if_range()) {
            Some(_) => Ask::Rest,
            None => Ask::Whole,
        };
        loop {
            let response = self.send(Method::GET, ask).await?;
            let declared = response.body.declared();
            let answer =
                Answer { status: response.status, headers: &response.headers, declared, now: SystemTime::now() };
            let verdict = answer::judge(ask, self.held.as_ref().map(Held::seen), answer);
            tracing::debug!(blob = %self.req.blob, ?ask, status = %response.status, ?verdict, "the origin answered");
            match verdict {
                Verdict::Fresh { total } => {
                    if ask != Ask::Whole {
                        self.restart("the origin sends the file from its first byte").await.map_err(Fault::Final)?;
                    }
                    self.begin(&response, total).await?;
                    return Ok(Some(Accepted { body: response.body, end: total }));
                }
                Verdict::Append { end, total } => {
                    let held = self.held.as_mut().expect("judged against what is held");
                    held.note.total = total;
                    held.note.final_url = response.final_url;
                    return Ok(Some(Accepted { body: response.body, end: Some(end) }));
                }
                Verdict::Complete => return Ok(None),
                Verdict::Confirm => return self.confirm().await.map(|()| None),
                Verdict::Probe => ask = Ask::Probe,
                Verdict::Restart(reason) => return Err(Fault::Restart(reason)),
                Verdict::Later { reason, after } => {
                    let failure = Failure::transient(format!("{} {reason}", guard::shown(&response.final_url)));
                    return Err(Fault::Retry { failure, after });
                }
                Verdict::Refuse(reason) => {
                    let message = format!("{} {reason}", guard::shown(&response.final_url));
                    return Err(Fault::permanent(message));
                }
            }
        }
    }

    async fn send(&mut self, method: Method, ask: Ask) -> Result<guard::Response, Fault> {
        let mut headers = self.req.headers.clone();
        headers.remove(header::RANGE);
        headers.remove(header::IF_RANGE);
        if let Some(held) = self.held.as_ref().filter(|_| ask != Ask::Whole) {
            let range = HeaderValue::from_str(&format!("bytes={}-", held.len())).expect("digits are a header value");
            headers.insert(header::RANGE, range);
            if let Some(version) = held.note.validators.if_range().filter(|_| ask == Ask::Rest) {
                headers.insert(header::IF_RANGE, version);
            }
        }
        let response = self.client.send(method, &self.req.url, &headers, None, self.cancel).await;
        if let Err(guard::Error::UnknownHost { .. }) = &response
            && !self.answered
        {
            // A name nobody has heard of is a typing error until it has worked once.
            return response.map_err(|error| Fault::permanent(error.to_string()));
        }
        let response = response?;
        self.answered = true;
        Ok(response)
    }

    /// Starts a new partial file for the version that `response` is of.
    async fn begin(&mut self, response: &guard::Response, total: Option<u64>) -> Result<(), Fault> {
        if let Some(old) = self.held.take() {
            // It has no validator to resume by.
            old.discard().await;
        }
        let text = |name| response.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let declared_type = text(header::CONTENT_TYPE);
        let disposition = response.headers.get(header::CONTENT_DISPOSITION);
        let file_name = names::suggest(disposition, &response.final_url, declared_type);
        let content_type = sniff::content_type(declared_type, &file_name);
        let note = Note {
            url: self.req.url.clone(),
            final_url: response.final_url.clone(),
            validators: Validators::of(&response.headers, SystemTime::now()),
            total,
            content_type: content_type.clone(),
            file_name,
            sha256: self.req.sha256.map(|_| Sha256::new()),
        };
        let key = self.req.key.as_ref().map(|key| key.as_str().to_owned());
        let meta = BlobMeta { key, content_type, length_hint: total };
        let writer = self.store.create_journaled(self.req.blob, meta, note.encode()).await?;
        let page_type = declared_type.map(str::to_owned);
        self.held = Some(Held::started(writer, note, page_type));
        self.meter.at(0, total);
        Ok(())
    }

    /// The origin says there is nothing after what is held, but not of which version: its headers do.
    async fn confirm(&mut self) -> Result<(), Fault> {
        let response = self.send(Method::HEAD, Ask::Whole).await?;
        let held = self.held.as_ref().expect("there is something to confirm");
        let answer =
            Answer { status: response.status, headers: &response.headers, declared: None, now: SystemTime::now() };
        if answer::confirms(held.seen(), answer) {
            return Ok(());
        }
        Err(Fault::Restart("the origin does not confirm that what is held is the whole file".into()))
    }

    /// Seals the complete file and checks it against the expected hash.
    async fn finish(&mut self) -> Result<Fetched, Stop> {
        let Held { writer, note, .. } = self.held.take().expect("a fetch ends with a file");
        let length = writer.len();
        self.meter.at(length, Some(length));
        let mut verified = None;
        if let (Some(expected), Some(hash)) = (self.req.sha256, note.sha256) {
            let actual = hash.finish();
            if expected != actual {
                writer.abort().await;
                return Err(self.wrong_hash(expected, actual).into());
            }
            verified = Some(actual);
        }
        let mut sealed = writer.seal().await?;
        // Worth keeping: it goes out as Repr-Digest.
        sealed.sha256 = verified;
        Ok(Fetched { sealed, content_type: note.content_type, file_name: note.file_name, final_url: note.final_url })
    }

    fn wrong_hash(&self, expected: [u8; 32], actual: [u8; 32]) -> Failure {
        let (expected, actual) = (hex(&expected), hex(&actual));
        let url = guard::shown(&self.req.url);
        Failure::permanent(format!("{url} has the SHA-256 {actual}, expected {expected}; nothing was stored"))
    }

    /// Leaves the partial file as the kind of failure asks for.
    async fn put_down(&mut self, stop: &Stop) {
        let blob = self.req.blob;
        match self.held.take() {
            // The writer has failed; what was checkpointed stays.
            _ if stop.of_volume => {}
            Some(held) if stop.failure.kind == FailureKind::Permanent => held.discard().await,
            None if stop.failure.kind == FailureKind::Permanent => {
                if let Err(error) = self.store.discard_partial(blob).await {
                    tracing::warn!(%blob, %error, "the partial file of a failed fetch stays behind");
                }
            }
            Some(mut held) => {
                if let Err(error) = held.save().await {
                    tracing::warn!(%blob, %error, "the last bytes of a stopped fetch are not kept");
                }
            }
            None => {}
        }
    }
}
