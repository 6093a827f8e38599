//! A client of the store: random operations on keys and partials of its own, each checked against the oracle as it
//! returns.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, MutexGuard};
use std::task::Poll;

use bytes::Bytes;

use super::oracle::{Oracle, Partial, key, note, read_all};
use super::world::{Shared, pretend_room};
use crate::blob::{BlobMeta, BlobWriter};
use crate::catalog::objects::Precondition;
use crate::engine::sim::{Events, Random};
use crate::error::Error;
use crate::id::BlobId;
use crate::limits::BLOCK_BYTES;
use crate::scrub::ScrubOptions;
use crate::store::Store;

pub(super) struct Client {
    pub(super) name: usize,
    pub(super) store: Store,
    pub(super) shared: Shared,
    pub(super) random: Random,
    /// How many calls in a thousand are given up half way.
    pub(super) gives_up: u32,
    /// Whether it stores what takes several batches.
    pub(super) large: bool,
}

/// How far a put came when it failed.
enum Stage {
    Before(Error),
    Commit(Error),
}

impl Client {
    pub(super) async fn run(mut self, operations: usize) {
        let mut writer = None;
        for _ in 0..operations {
            match self.random.below(13) {
                0..4 => self.put().await,
                4 => self.delete().await,
                5..7 => self.get().await,
                7 => self.fail_to_commit().await,
                8 => self.scrub().await,
                _ => writer = self.journal(writer).await,
            }
        }
    }

    fn oracle(&self) -> MutexGuard<'_, Oracle> {
        self.shared.oracle.lock().unwrap()
    }

    /// The volumes on which a sync has failed, if that has had time to be noticed.
    async fn sync_failed_before(&self) -> Vec<bool> {
        let shared = &self.shared;
        let since = |(events, before): (&Arc<Events>, &u64)| events.failed_syncs.load(Relaxed) > *before;
        let failed: Vec<bool> = shared.events.iter().zip(&shared.failed_before_boot).map(since).collect();
        if failed.contains(&true) {
            for _ in 0..16 {
                tokio::task::yield_now().await;
            }
        }
        failed
    }

    fn some_key(&mut self) -> String {
        format!("c{}/{}", self.name, self.random.below(4))
    }

    fn content(&mut self) -> Arc<[u8]> {
        let len = match self.random.below(20) {
            0 => 0,
            1 if self.large => BLOCK_BYTES - 300 + self.random.below(600),
            2 if self.large => self.random.below(6 * BLOCK_BYTES),
            3 | 4 => self.random.below(70_000),
            _ => 1 + self.random.below(6_000),
        };
        self.random.bytes(len).into()
    }

    /// Polls a call to its end, or gives it up after some polls.
    async fn attempt<T>(&mut self, call: impl Future<Output = T>) -> Option<T> {
        let mut polls = match self.random.chance(self.gives_up) {
            true => self.random.below(30),
            false => usize::MAX,
        };
        let mut call = pin!(call);
        std::future::poll_fn(|cx| match polls.checked_sub(1) {
            None => Poll::Ready(None),
            Some(left) => {
                polls = left;
                call.as_mut().poll(cx).map(Some)
            }
        })
        .await
    }

    async fn put(&mut self) {
        let name = self.some_key();
        let Some(current) = self.oracle().certain(&name) else { return };
        let bytes = self.content();
        let hash = current.as_ref().map(|bytes| *blake3::hash(bytes).as_bytes());
        let (condition, holds) = match self.random.below(8) {
            0 => (Precondition::IfNoneMatchAny, hash.is_none()),
            1 => (Precondition::IfMatchAny, hash.is_some()),
            2 => (Precondition::IfMatch(vec![hash.unwrap_or([7; 32])]), hash.is_some()),
            3 => (Precondition::IfMatch(vec![[7; 32]]), false),
            _ => (Precondition::None, true),
        };
        let failed_before = self.sync_failed_before().await;
        for volume in self.store.volumes().iter() {
            if self.random.chance(200) {
                pretend_room(volume, &mut self.random);
            }
        }
        self.oracle().begin(&name, Some(Arc::clone(&bytes)));
        let length_hint = match self.random.below(4) {
            0 | 1 => None,
            2 => Some(bytes.len() as u64),
            _ => Some(self.random.below(2 * bytes.len() + 1) as u64),
        };
        let meta = BlobMeta { key: Some(name.clone()), content_type: None, length_hint };
        let pieces = 1 + self.random.below(4);
        let (store, data, to) = (self.store.clone(), Arc::clone(&bytes), key(&name));
        let put = async move {
            let sealed = async {
                let mut writer = store.create(meta).await?;
                for piece in data.chunks(data.len().div_ceil(pieces).max(1)) {
                    writer.ready().await?;
                    writer.write(Bytes::copy_from_slice(piece)).await?;
                }
                writer.seal().await
            };
            let sealed = sealed.await.map_err(Stage::Before)?;
            let volume = sealed.volume().number;
            let outcome = store.put_object(&to, sealed, condition).await.map_err(Stage::Commit)?;
            Ok((outcome, volume))
        };
        match self.attempt(put).await {
            None => {}
            Some(Ok((outcome, volume))) => {
                assert!(!refused(&failed_before, volume), "{name} was acknowledged after a sync had failed");
                assert!(holds, "{name} was stored against its precondition");
                assert_eq!(outcome.created, hash.is_none());
                self.oracle().acknowledge(&name, Some(bytes));
            }
            Some(Err(Stage::Before(error))) => {
                self.accept(&error);
                self.oracle().withdraw(&name);
            }
            Some(Err(Stage::Commit(error))) => {
                self.accept(&error);
                assert!(!(holds && matches!(error, Error::PreconditionFailed { .. })), "{name}: {error}");
                if surely_nothing(&error) {
                    self.oracle().withdraw(&name);
                }
            }
        }
    }

    async fn delete(&mut self) {
        let name = self.some_key();
        let Some(current) = self.oracle().certain(&name) else { return };
        let failed_before = self.sync_failed_before().await;
        self.oracle().begin(&name, None);
        let (store, of) = (self.store.clone(), key(&name));
        match self.attempt(async move { store.delete_object(&of, Precondition::None).await }).await {
            None => {}
            Some(Ok(existed)) => {
                assert!(!refused(&failed_before, 0), "deleting {name} was acknowledged after a sync had failed");
                assert_eq!(existed, current.is_some(), "{name}");
                self.oracle().acknowledge(&name, None);
            }
            Some(Err(error)) => {
                self.accept(&error);
                if surely_nothing(&error) {
                    self.oracle().withdraw(&name);
                }
            }
        }
    }

    async fn get(&mut self) {
        let name = self.some_key();
        let Some(current) = self.oracle().certain(&name) else { return };
        let record = self.store.object(&key(&name)).await.expect("the catalog can be read");
        let (record, bytes) = match (record, current) {
            (None, None) => return,
            (Some(record), Some(bytes)) => (record, bytes),
            (record, _) => panic!("{name}: there is an object: {}", record.is_some()),
        };
        let whole = self.random.chance(500);
        let (start, len) = (self.random.below(bytes.len() + 1), self.random.below(100_000));
        let store = self.store.clone();
        let read = async move {
            let reader = store.open_blob(record.blob).await?;
            match whole {
                true => read_all(&reader).await,
                false => reader.read(start as u64, len).await.map(|bytes| bytes.to_vec()),
            }
        };
        match self.attempt(read).await {
            None => {}
            Some(Ok(found)) => {
                let expected = if whole { &bytes[..] } else { &bytes[start..bytes.len().min(start + len)] };
                assert!(found == expected, "{name}: other bytes were served");
            }
            Some(Err(Error::Corrupt { .. } | Error::Quarantined { .. }))
                if self.oracle().damaged.contains(&record.blob) => {}
            Some(Err(Error::VolumeMissing { volume: 1, .. })) if self.shared.away => {}
            Some(Err(error)) => self.accept(&error),
        }
    }

    /// Starts a scrub, or stops it.
    async fn scrub(&mut self) {
        let (store, stop) = (self.store.clone(), self.random.chance(300));
        let options = ScrubOptions { restart: self.random.chance(200), ..ScrubOptions::default() };
        let scrub = async move { if stop { Ok(store.stop_scrub().await) } else { store.start_scrub(options).await } };
        if let Some(Err(error)) = self.attempt(scrub).await {
            self.accept(&error);
        }
    }

    /// A commit that its own closure declines.
    async fn fail_to_commit(&mut self) {
        let (store, data) = (self.store.clone(), self.content());
        let failing = async move {
            let mut writer = store.create(BlobMeta::default()).await?;
            writer.write(Bytes::copy_from_slice(&data)).await?;
            let sealed = writer.seal().await?;
            store.commit(vec![sealed], |_| Err::<(), _>(Error::Rejected("no".into()))).await
        };
        if let Some(result) = self.attempt(failing).await {
            self.accept(&result.expect_err("a declined commit was acknowledged"));
        }
    }

    /// The next step with a journaled partial.
    async fn journal(&mut self, writer: Option<BlobWriter>) -> Option<BlobWriter> {
        match writer {
            Some(writer) => match self.random.below(9) {
                0 => self.finish(writer).await,
                8 => self.rewind(writer).await,
                1 => {
                    // Put aside.
                    self.release(writer.id());
                    None
                }
                _ => self.append(writer).await,
            },
            None => {
                let waiting =
                    self.oracle().partials.iter().find(|(_, p)| !p.held && !p.away && self.owns(p)).map(|(id, _)| *id);
                match waiting {
                    Some(id) if self.random.chance(100) => self.discard(id).await,
                    Some(id) if self.random.chance(150) => self.ask_length(id).await,
                    Some(id) if self.random.chance(700) => self.resume(id).await,
                    _ => self.start().await,
                }
            }
        }
    }

    fn owns(&self, partial: &Partial) -> bool {
        partial.key.starts_with(&format!("c{}/", self.name))
    }

    fn release(&self, id: BlobId) {
        if let Some(partial) = self.oracle().partials.get_mut(&id) {
            partial.held = false;
        }
    }

    async fn start(&mut self) -> Option<BlobWriter> {
        let id = BlobId::new();
        let bytes: Arc<[u8]> = match self.large && self.random.chance(300) {
            true => self.random.bytes(4 * BLOCK_BYTES).into(),
            false => self.random.bytes(20_000).into(),
        };
        let partial = Partial {
            key: format!("c{}/j{}", self.name, self.random.below(3)),
            bytes,
            durable: 0,
            tried: [0].into(),
            promised: false,
            held: true,
            away: false,
        };
        let failed_before = self.sync_failed_before().await;
        self.oracle().partials.insert(id, partial);
        let store = self.store.clone();
        let length_hint = self.random.chance(300).then(|| self.random.below(1_500_000) as u64);
        let meta = BlobMeta { length_hint, ..BlobMeta::default() };
        match self.attempt(async move { store.create_journaled(id, meta, note(0)).await }).await {
            Some(Ok(writer)) => {
                assert!(!refused(&failed_before, writer.volume().number), "{id} was begun after a sync had failed");
                let mut oracle = self.oracle();
                oracle.acknowledged += 1;
                oracle.partials.get_mut(&id).expect("just begun").promised = true;
                Some(writer)
            }
            Some(Err(error)) => {
                self.accept(&error);
                None
            }
            None => None,
        }
    }

    /// Writes some bytes and, mostly, makes them a checkpoint.
    async fn append(&mut self, mut writer: BlobWriter) -> Option<BlobWriter> {
        let id = writer.id();
        let (bytes, at) = (Arc::clone(&self.oracle().partials[&id].bytes), writer.len() as usize);
        let end = (at + 1 + self.random.below(1 + bytes.len() / 4)).min(bytes.len());
        let checkpoint = self.random.chance(700);
        let failed_before = self.sync_failed_before().await;
        if checkpoint {
            self.oracle().partials.get_mut(&id).expect("it is held").tried.insert(end as u64);
        }
        let append = async move {
            writer.ready().await?;
            writer.write(Bytes::copy_from_slice(&bytes[at..end])).await?;
            let durable = if checkpoint { Some(writer.checkpoint(note(end as u64)).await?) } else { None };
            Ok::<_, Error>((writer, durable))
        };
        match self.attempt(append).await {
            Some(Ok((writer, durable))) => {
                if let Some(durable) = durable {
                    assert!(
                        !failed_before[writer.volume().number as usize],
                        "a checkpoint of {id} was acknowledged after a sync had failed"
                    );
                    let mut oracle = self.oracle();
                    oracle.acknowledged += 1;
                    oracle.partials.get_mut(&id).expect("it is held").durable = durable;
                }
                Some(writer)
            }
            Some(Err(error)) => {
                self.accept(&error);
                self.release(id);
                None
            }
            None => {
                self.release(id);
                None
            }
        }
    }

    /// Writes bytes that are not meant, and goes back.
    async fn rewind(&mut self, mut writer: BlobWriter) -> Option<BlobWriter> {
        let id = writer.id();
        let wrong = 1 + self.random.below(if self.large { 3 * BLOCK_BYTES } else { 9_000 });
        let wrong: Bytes = self.random.bytes(wrong).into();
        let rewound = async move {
            writer.write(wrong).await?;
            let length = writer.rewind().await?;
            Ok::<_, Error>((writer, length))
        };
        match self.attempt(rewound).await {
            Some(Ok((writer, length))) => {
                assert_eq!(length, self.oracle().partials[&id].durable, "{id} went back to another place");
                Some(writer)
            }
            other => {
                if let Some(Err(error)) = other {
                    self.accept(&error);
                }
                self.release(id);
                None
            }
        }
    }

    /// What is told of a partial without taking it up is a promise too.
    async fn ask_length(&mut self, id: BlobId) -> Option<BlobWriter> {
        let store = self.store.clone();
        let asked = self.attempt(async move { store.partial_length(id).await }).await;
        let degraded = self.store.may_lack_partials();
        match asked {
            None => {}
            Some(Ok(Some(length))) => {
                let mut oracle = self.oracle();
                let partial = oracle.partials.get_mut(&id).expect("it is known");
                let (durable, tried) = (partial.durable, &partial.tried);
                assert!(length >= durable && tried.contains(&length), "{id}: {durable} were promised, {length} told");
                partial.durable = length;
                partial.promised = true;
            }
            Some(Ok(None)) => {
                let promised = self.oracle().partials[&id].promised;
                assert!(!promised || degraded, "{id} is gone");
            }
            Some(Err(error)) => self.accept(&error),
        }
        None
    }

    async fn resume(&mut self, id: BlobId) -> Option<BlobWriter> {
        let store = self.store.clone();
        match self.attempt(async move { store.resume(id).await }).await {
            None => None,
            Some(Ok(Some((writer, found)))) => {
                let length = writer.len();
                let mut oracle = self.oracle();
                let partial = oracle.partials.get_mut(&id).expect("it is known");
                assert!(length >= partial.durable, "{id}: {} bytes were promised, {length} are there", partial.durable);
                assert_eq!(found, note(length), "{id} has another checkpoint's note");
                partial.durable = length;
                partial.promised = true;
                partial.held = true;
                Some(writer)
            }
            Some(Ok(None)) | Some(Err(Error::Corrupt { .. })) if !self.oracle().partials[&id].promised => None,
            Some(Ok(None)) if self.store.volumes().iter().any(|volume| volume.health.is_degraded()) => {
                // It is there; its volume is not asked in this life.
                self.oracle().partials.get_mut(&id).expect("it is known").away = true;
                None
            }
            Some(Ok(None)) => panic!("{id} does not resume"),
            Some(Err(error)) => {
                assert!(!matches!(error, Error::Corrupt { .. }), "{id} does not resume: {error}");
                self.accept(&error);
                None
            }
        }
    }

    async fn finish(&mut self, writer: BlobWriter) -> Option<BlobWriter> {
        let id = writer.id();
        let partial = self.oracle().partials[&id].clone();
        if self.oracle().certain(&partial.key).is_none() {
            return Some(writer);
        }
        let bytes: Arc<[u8]> = partial.bytes[..writer.len() as usize].into();
        let failed_before = self.sync_failed_before().await;
        self.oracle().begin(&partial.key, Some(Arc::clone(&bytes)));
        let volume = writer.volume().number;
        let sealed = match self.attempt(writer.seal()).await {
            Some(Ok(sealed)) => sealed,
            other => {
                if let Some(Err(error)) = other {
                    self.accept(&error);
                }
                // Never offered to the catalog; the journal keeps it.
                self.oracle().withdraw(&partial.key);
                self.release(id);
                return None;
            }
        };
        assert_eq!(sealed.blake3, *blake3::hash(&bytes).as_bytes(), "{id} has other bytes");
        if self.shared.may_be_full {
            // A commit that finds no room gives the blob up, and the process may die over that.
            self.oracle().partials.get_mut(&id).expect("it is held").promised = false;
        }
        let (store, to) = (self.store.clone(), key(&partial.key));
        let put = self.attempt(async move { store.put_object(&to, sealed, Precondition::None).await }).await;
        let mut oracle = self.oracle();
        match put {
            Some(Ok(_)) => {
                assert!(!refused(&failed_before, volume), "{id} was acknowledged after a sync had failed");
                oracle.acknowledge(&partial.key, Some(bytes));
                oracle.partials.remove(&id);
            }
            Some(Err(error)) => {
                if surely_nothing(&error) {
                    oracle.withdraw(&partial.key);
                }
                oracle.give_up(id);
                drop(oracle);
                self.accept(&error);
            }
            None => oracle.give_up(id),
        }
        None
    }

    async fn discard(&mut self, id: BlobId) -> Option<BlobWriter> {
        self.oracle().partials.get_mut(&id).expect("it is known").promised = false;
        let store = self.store.clone();
        if let Some(Err(error)) = self.attempt(async move { store.discard_partial(id).await }).await {
            self.accept(&error);
        }
        None
    }

    /// An error must have its reason in what was done to the disk.
    fn accept(&self, error: &Error) {
        let shared = &self.shared;
        let reason = match error {
            Error::PreconditionFailed { .. } | Error::Rejected(_) => true,
            Error::NoSpace { .. } => shared.may_be_full,
            Error::Corrupt { .. } | Error::Quarantined { .. } => shared.flips() > 0,
            Error::Degraded { .. } => {
                let failed = shared.events.iter().zip(&shared.failed_before_boot);
                shared.faulty || failed.into_iter().any(|(now, before)| now.failed_syncs.load(Relaxed) > *before)
            }
            Error::Io { .. } | Error::Catalog(_) | Error::VolumeMissing { .. } => shared.faulty,
            _ => false,
        };
        assert!(reason, "an error without a reason: {error}");
    }
}

/// Nothing may be acknowledged there any more: the volume's sync failed, or the data directory's, which has the catalog.
fn refused(failed: &[bool], volume: u32) -> bool {
    failed[0] || failed[volume as usize]
}

/// The error says that the catalog was not changed.
fn surely_nothing(error: &Error) -> bool {
    matches!(
        error,
        Error::PreconditionFailed { .. } | Error::Rejected(_) | Error::NoSpace { .. } | Error::Degraded { .. }
    )
}
