//! Taking bytes: one append, from its first byte to what its client is told.
//!
//! The task owns the writer while it runs and puts it back. Bytes become durable at checkpoints, every now and then and
//! at the end of the request; only then are they told. How an append ends:
//!
//! | the request | what came since the last checkpoint |
//! |---|---|
//! | ends, all has come that was announced | is sealed; the object appears, and the upload is over |
//! | ends | is kept |
//! | breaks off, or stalls, or the node drains | is kept; with a checksum it is dropped, for nobody has checked it |
//! | goes past the announced length | is kept, if that is not all of it |
//! | has another checksum | is dropped |
//! | is pre-empted | is dropped: the newer request sends it again |
//!
//! An open upload is never told to be as long as it was announced: a client would take it for complete. So no checkpoint
//! is made there, and a crash between the last byte and the commit costs what came after the checkpoint before.
//!
//! Cancel: the task does not notice that its caller has gone, only that no more pieces come.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use reelring_storage::{BlobWriter, Error as StorageError, Key};
use tokio::time::{Instant, sleep};

use super::checksum::{Algorithm, Checksum, Digests};
use super::desk::{Entry, Turn};
use super::feed::{Append, Appended, Feed, Piece};
use super::record::{Kind, Record, State, UploadId};
use super::{Inner, Result, UploadError, Uploads, table};
use crate::{limits, media_type};

/// Why no more bytes are taken.
enum End {
    Whole(Option<Checksum>),
    Cut,
    Preempted,
    Draining,
    TooLong(u64),
}

/// An append at work.
struct Run<'a> {
    inner: &'a Inner,
    record: Record,
    turn: &'a Turn,
    publish: &'a Entry,
    writer: BlobWriter,
    ask: Append,
    digests: Option<Digests>,
    /// The last byte belongs here, if that is known.
    target: Option<u64>,
    durable: u64,
    saved_at: Instant,
    /// The first bytes of an upload whose type nobody has told.
    head: Option<Vec<u8>>,
}

impl Uploads {
    /// Appends what the feed brings. What is told is durable.
    pub async fn append(&self, id: UploadId, ask: Append, feed: Feed) -> Result<Appended> {
        let inner = Arc::clone(&self.inner);
        let run = self.inner.spawn(async move { inner.append(id, ask, feed).await });
        match run.await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(UploadError::Draining { kept: 0 }),
        }
    }
}

impl Inner {
    async fn append(&self, id: UploadId, ask: Append, feed: Feed) -> Result<Appended> {
        // Before anybody is disturbed: a request at the wrong place takes nothing over.
        let record = self.record(id).await?;
        if let Some(done) = already_done(&record, &ask)? {
            return Ok(done);
        }
        let entry = self.desk.entry(id);
        entry.ending().await;
        let (record, durable) = self.durable(record, &entry).await?;
        if let Some(done) = already_done(&record, &ask)? {
            return Ok(done);
        }
        admit(&record, &ask, durable)?;

        let turn = entry.begin();
        let mut slot = turn.slot().await;
        if turn.is_over() {
            return Err(UploadError::Preempted(id, durable));
        }
        // And once more, now that nobody else can change it.
        let (mut record, durable) = self.durable(self.record(id).await?, &entry).await?;
        if let Some(done) = already_done(&record, &ask)? {
            return Ok(done);
        }
        let target = admit(&record, &ask, durable)?;
        if record.length.is_none() {
            // It was promised no room when it began, so what comes now may find none.
            let end = target.or_else(|| ask.bytes.map(|bytes| durable.saturating_add(bytes))).unwrap_or(durable);
            self.store.expect(end - durable)?;
            if let Some(length) = target.filter(|length| *length > durable) {
                self.table.set_length(id, length).await?;
                record.length = Some(length);
            }
        }
        self.desk.busy(id);
        let mut writer = match slot.take() {
            Some(writer) => writer,
            None => self.take_up(&record).await?,
        };
        if writer.len() < durable {
            // What was told is not there: the disk lost what it had synced.
            tracing::error!(upload = %id, told = durable, found = writer.len(), "an unfinished upload became shorter");
            drop(writer);
            self.give_up(&record).await?;
            return Err(UploadError::Gone(id));
        }
        if writer.len() > durable {
            // The journal knew of more than was ever told.
            let expected = writer.len();
            entry.publish(expected);
            *slot = Some(writer);
            self.desk.idle(id);
            return Err(UploadError::Offset { id, expected, given: ask.offset });
        }
        writer.set_payer(ask.payer);
        let digests = match (&ask.checksum, ask.checksum_follows) {
            (Some(checksum), _) => Some(Digests::new(&[checksum.algorithm])),
            (None, true) => Some(Digests::new(&Algorithm::ALL)),
            (None, false) => None,
        };
        let untyped = durable == 0 && media_type::says_nothing(record.content_type.as_deref());
        let run = Run {
            inner: self,
            head: untyped.then(Vec::new),
            record,
            turn: &turn,
            publish: &entry,
            writer,
            ask,
            digests,
            target,
            durable,
            saved_at: Instant::now(),
        };
        let (outcome, writer) = run.run(feed).await;
        let counts = &self.counts;
        let count = match &outcome {
            Ok(appended) if appended.record.state == State::Done => Some(&counts.completed),
            Err(UploadError::Cut { .. }) => Some(&counts.cut),
            Err(UploadError::Preempted(..)) => Some(&counts.preempted),
            Err(UploadError::Checksum { .. }) => Some(&counts.mismatched),
            _ => None,
        };
        if let Some(count) = count {
            count.fetch_add(1, Relaxed);
        }
        if let Some(writer) = writer {
            *slot = Some(writer);
            self.desk.idle(id);
        }
        outcome
    }

    /// Opens the partial again.
    async fn take_up(&self, record: &Record) -> Result<BlobWriter> {
        match self.store.resume(record.blob).await {
            Ok(Some((writer, _))) => Ok(writer),
            Ok(None) => Err(match self.or_gone(record, Ok(None)).await {
                Ok(_) => UploadError::Gone(record.id),
                Err(error) => error,
            }),
            Err(error @ StorageError::Corrupt { .. }) => {
                tracing::error!(upload = %record.id, %error, "an unfinished upload is damaged and given up");
                self.give_up(record).await?;
                Err(UploadError::Gone(record.id))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The answer for an upload that is over: a repetition of the last, empty request is answered as it was.
fn already_done(record: &Record, ask: &Append) -> Result<Option<Appended>> {
    let id = record.id;
    let length = match record.state {
        State::Open => return Ok(None),
        State::Gone => return Err(UploadError::Gone(id)),
        State::Done | State::Used => record.length.unwrap_or(0),
    };
    if record.kind == Kind::Joined {
        return Err(UploadError::Complete(id));
    }
    if ask.offset != length {
        return Err(UploadError::Offset { id, expected: length, given: ask.offset });
    }
    if ask.bytes != Some(0) {
        return Err(UploadError::Complete(id));
    }
    Ok(Some(Appended { record: record.clone(), offset: length, created: None }))
}

/// Whether the request fits the upload as it is; gives the length that the upload is to have, if it is known.
fn admit(record: &Record, ask: &Append, durable: u64) -> Result<Option<u64>> {
    let id = record.id;
    if ask.offset != durable {
        return Err(UploadError::Offset { id, expected: durable, given: ask.offset });
    }
    let end = ask.bytes.map(|bytes| ask.offset.saturating_add(bytes));
    let implied = end.filter(|_| ask.completes);
    let mut target = record.length;
    for given in [ask.length, implied].into_iter().flatten() {
        match target {
            Some(announced) if announced != given => return Err(UploadError::Length { id, announced, given }),
            None if given < durable => return Err(UploadError::Length { id, announced: durable, given }),
            _ => target = Some(given),
        }
    }
    match (target, end) {
        (Some(length), _) if length > limits::OBJECT_BYTES => Err(UploadError::TooLarge { length }),
        (Some(length), Some(given)) if given > length => Err(UploadError::TooLong { id, length, given }),
        (None, Some(length)) if length > limits::OBJECT_BYTES => Err(UploadError::TooLarge { length }),
        _ => Ok(target),
    }
}

impl Run<'_> {
    /// Takes the bytes and settles what becomes of them. Gives the writer back where it can be used again.
    async fn run(mut self, mut feed: Feed) -> (Result<Appended>, Option<BlobWriter>) {
        let end = match self.take(&mut feed).await {
            Ok(end) => end,
            // The writer has failed; what was checkpointed stays, and the next append takes it up.
            Err(error) => return (Err(error.into()), None),
        };
        drop(feed);
        let _ending = self.turn.end();
        let id = self.record.id;
        let (offset, received) = (self.durable, self.writer.len() - self.ask.offset);
        if let End::Whole(trailer) = &end
            && let Some(digests) = &self.digests
        {
            let expected = self.ask.checksum.as_ref().or(trailer.as_ref());
            // A trailer that was announced and did not come promised nothing.
            if let Some(expected) = expected
                && let Err(actual) = digests.verify(expected)
            {
                let wrong = UploadError::Checksum {
                    id,
                    algorithm: expected.algorithm,
                    expected: base64::Engine::encode(&base64::prelude::BASE64_STANDARD, &expected.digest),
                    actual,
                    dropped: received,
                    offset: self.ask.offset,
                };
                return self.back(wrong).await;
            }
        }
        match end {
            End::Whole(_) if self.ask.completes && self.target.is_none_or(|target| target == self.writer.len()) => {
                self.complete().await
            }
            End::Whole(_) if self.is_whole() => self.complete().await,
            End::Whole(_) => {
                if let Err(error) = self.save().await {
                    return (Err(error.into()), None);
                }
                self.put_off().await;
                let appended = Appended { record: self.record, offset: self.durable, created: None };
                (Ok(appended), Some(self.writer))
            }
            End::Preempted if !self.turn.keeps() => {
                let preempted = UploadError::Preempted(id, offset);
                self.back(preempted).await
            }
            // At its full length it would be taken for complete, and it is not what was announced.
            End::TooLong(_) if self.is_whole() => {
                let why = self.why(&end);
                self.back(why).await
            }
            // What nobody has checked is not kept.
            End::Cut | End::Draining | End::Preempted | End::TooLong(_) if self.digests.is_some() => {
                let why = self.why(&end);
                self.back(why).await
            }
            End::Cut | End::Draining | End::Preempted if self.is_whole() => self.complete().await,
            End::Cut | End::Draining | End::Preempted | End::TooLong(_) => match self.save().await {
                Ok(()) => {
                    self.put_off().await;
                    (Err(self.why(&end)), Some(self.writer))
                }
                Err(error) => (Err(error.into()), None),
            },
        }
    }

    fn why(&self, end: &End) -> UploadError {
        let (id, kept) = (self.record.id, self.durable);
        match end {
            End::Draining => UploadError::Draining { kept },
            End::Preempted => UploadError::Preempted(id, kept),
            End::TooLong(given) => match self.target {
                Some(length) => UploadError::TooLong { id, length, given: *given },
                None => UploadError::TooLarge { length: *given },
            },
            End::Cut | End::Whole(_) => UploadError::Cut { id, kept },
        }
    }

    fn is_whole(&self) -> bool {
        self.target == Some(self.writer.len())
    }

    /// Moves pieces into the writer until there are no more.
    async fn take(&mut self, feed: &mut Feed) -> Result<End, StorageError> {
        let (turn, closing) = (self.turn, &self.inner.closing);
        // Nothing is left to do until the next piece.
        let mut waits = false;
        // One timer, put off with each piece: a new one for each wakes the thread that waits for events.
        let mut alarm = pin!(sleep(limits::HTTP_BODY_PAUSE));
        loop {
            tokio::select! {
                biased;
                () = turn.over() => return Ok(End::Preempted),
                () = closing.cancelled() => return Ok(End::Draining),
                room = self.writer.ready(), if !waits => room?,
                () = std::future::ready(()), if waits => {}
            }
            let due = match self.may_save() {
                true => self.saved_at + limits::UPLOAD_CHECKPOINT_EVERY,
                false => Instant::now() + limits::HTTP_BODY_PAUSE,
            };
            alarm.as_mut().reset(due);
            let piece = tokio::select! {
                biased;
                () = turn.over() => return Ok(End::Preempted),
                () = closing.cancelled() => return Ok(End::Draining),
                piece = feed.next() => Some(piece),
                () = &mut alarm, if !waits => None,
            };
            match piece {
                // The client makes us wait: what is there may as well be safe, and its memory is for others meanwhile.
                None => {
                    match self.may_save() {
                        true => self.save().await?,
                        false => self.writer.hand_over().await?,
                    }
                    waits = true;
                    continue;
                }
                Some(None) => return Ok(End::Cut),
                Some(Some(Piece::End(checksum))) => return Ok(End::Whole(checksum)),
                Some(Some(Piece::Data(data))) => {
                    let after = self.writer.len() + data.len() as u64;
                    if after > self.target.unwrap_or(limits::OBJECT_BYTES) {
                        return Ok(End::TooLong(after));
                    }
                    if let Some(digests) = &mut self.digests {
                        digests.update(&data);
                    }
                    if let Some(head) = &mut self.head {
                        head.extend_from_slice(&data[..data.len().min(media_type::HEAD_BYTES - head.len())]);
                    }
                    self.writer.write(data).await?;
                    let due = after - self.durable >= limits::UPLOAD_CHECKPOINT_BYTES
                        || self.saved_at.elapsed() >= limits::UPLOAD_CHECKPOINT_EVERY;
                    if due && self.may_save() {
                        self.save().await?;
                    }
                }
            }
            waits = false;
        }
    }

    /// There is something to make durable, and it may be told: it was checked, and is not all.
    fn may_save(&self) -> bool {
        self.writer.len() > self.durable && self.digests.is_none() && !self.is_whole()
    }

    async fn save(&mut self) -> Result<(), StorageError> {
        self.saved_at = Instant::now();
        if self.writer.len() > self.durable {
            if self.tell_type() {
                self.inner.table.set_content_type(self.record.id, self.record.content_type.clone()).await?;
            }
            self.durable = self.writer.checkpoint(self.record.id.to_string().into_bytes()).await?;
            self.publish.publish(self.durable);
        }
        Ok(())
    }

    /// Lets the first bytes tell the type, once they are believed; true when they did.
    fn tell_type(&mut self) -> bool {
        let Some(head) = self.head.take() else { return false };
        let name = self.record.key.as_ref().map_or("", Key::as_str);
        let found = media_type::of(self.record.content_type.as_deref(), name, &head);
        let told = found != self.record.content_type;
        self.record.content_type = found;
        told
    }

    /// Drops what came since the last checkpoint.
    async fn back(mut self, why: UploadError) -> (Result<Appended>, Option<BlobWriter>) {
        match self.writer.rewind().await {
            Ok(_) => (Err(why), Some(self.writer)),
            Err(error) => {
                tracing::warn!(upload = %self.record.id, %error, "the bytes of a request could not be dropped; the partial is opened anew");
                (Err(why), None)
            }
        }
    }

    /// The upload was touched: it lives on. Not noted at every request, for it is a commit.
    async fn put_off(&mut self) {
        let (inner, record) = (self.inner, &mut self.record);
        let late = inner.expires();
        let gained = late.duration_since(record.expires_at).as_secs();
        if gained < 0 || (gained as u64) < inner.expiry.as_secs() / 16 {
            return;
        }
        match inner.table.put_off(record.id, late).await {
            Ok(()) => record.expires_at = late,
            Err(error) => tracing::warn!(upload = %record.id, %error, "an upload will expire although it was touched"),
        }
    }

    /// All bytes are there: the object appears, or the part waits for its like.
    async fn complete(mut self) -> (Result<Appended>, Option<BlobWriter>) {
        self.tell_type();
        let Run { inner, mut record, publish, mut writer, .. } = self;
        writer.set_content_type(record.content_type.clone());
        let sealed = match writer.seal().await {
            Ok(sealed) => sealed,
            Err(error) => return (Err(error.into()), None),
        };
        record.state = State::Done;
        record.length = Some(sealed.length);
        record.etag = Some(sealed.blake3);
        record.expires_at = inner.expires();
        let (id, done) = (record.id, record.clone());
        let stored = match record.key.clone() {
            Some(key) => {
                let condition = record.condition.precondition();
                let put = inner.store.put_object_with(&key, sealed, condition, move |tx, _| {
                    table::change(tx, id, |known| *known = done)?;
                    Ok(Vec::new())
                });
                put.await.map(|outcome| Some(outcome.created))
            }
            None => inner
                .store
                .commit(vec![sealed], move |tx| table::change(tx, id, |known| *known = done))
                .await
                .map(|()| None),
        };
        match stored {
            Ok(created) => {
                inner.desk.remove(id);
                let offset = record.length.unwrap_or(0);
                (Ok(Appended { record, offset, created }), None)
            }
            Err(error) => {
                // The store may have let go of the bytes; a lost race for the key is the end of the upload.
                publish.doubt();
                if matches!(error, StorageError::PreconditionFailed { .. }) {
                    record.state = State::Open;
                    if let Err(error) = inner.give_up(&record).await {
                        tracing::warn!(upload = %id, %error, "an upload that lost its key is not forgotten yet");
                    }
                }
                (Err(error.into()), None)
            }
        }
    }
}
