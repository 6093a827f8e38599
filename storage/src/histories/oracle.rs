//! What the store has promised, written down outside of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::{StreamExt, pin_mut};

use super::world::Shared;
use crate::blob::BlobReader;
use crate::error::{Error, Result};
use crate::id::BlobId;
use crate::key::Key;
use crate::scrub::ScrubOptions;
use crate::store::Store;

/// An object's bytes, or that there is no object.
pub(super) type State = Option<Arc<[u8]>>;

#[derive(Default)]
pub(super) struct Oracle {
    pub(super) keys: BTreeMap<String, Promise>,
    pub(super) partials: BTreeMap<BlobId, Partial>,
    /// Blobs in which a bit was flipped at rest: they may be refused, and never served wrong.
    pub(super) damaged: BTreeSet<BlobId>,
    pub(super) acknowledged: u64,
    /// Removing a file may have failed.
    pub(super) unlinks_failed: bool,
    /// Objects there were when the store was last judged.
    pub(super) objects: BTreeSet<BlobId>,
}

#[derive(Default)]
pub(super) struct Promise {
    /// As last acknowledged.
    pub(super) state: State,
    /// What calls without an answer may have made of it. While there are any, nobody touches the key: in which order
    /// they happen is nobody's business.
    pub(super) maybe: Vec<State>,
}

/// A journaled partial.
#[derive(Clone)]
pub(super) struct Partial {
    pub(super) key: String,
    /// What is written to it, as far as it gets.
    pub(super) bytes: Arc<[u8]>,
    /// The last acknowledged checkpoint.
    pub(super) durable: u64,
    /// The lengths of all checkpoints that were tried.
    pub(super) tried: BTreeSet<u64>,
    /// It was acknowledged, and nobody has begun to give it up.
    pub(super) promised: bool,
    /// A client has it in hand.
    pub(super) held: bool,
    /// It may be on the volume that is away.
    pub(super) away: bool,
}

impl Promise {
    /// The bytes of an object that cannot be read now; the catalog tells their hash.
    fn of_hash(&self, hash: &[u8; 32]) -> Arc<[u8]> {
        let mut states = self.maybe.iter().chain([&self.state]).flatten();
        let state = states.find(|bytes| blake3::hash(bytes).as_bytes() == hash);
        Arc::clone(state.expect("an object that cannot be read is one that was stored"))
    }
}

impl Oracle {
    pub(super) fn promise(&mut self, key: &str) -> &mut Promise {
        self.keys.entry(key.into()).or_default()
    }

    /// The state of a key nobody is in doubt about.
    pub(super) fn certain(&self, key: &str) -> Option<State> {
        match self.keys.get(key) {
            None => Some(None),
            Some(promise) => promise.maybe.is_empty().then(|| promise.state.clone()),
        }
    }

    pub(super) fn begin(&mut self, key: &str, state: State) {
        self.promise(key).maybe.push(state);
    }

    pub(super) fn acknowledge(&mut self, key: &str, state: State) {
        self.acknowledged += 1;
        let promise = self.promise(key);
        promise.state = state;
        promise.maybe.clear();
    }

    /// The partial may be gone from now on.
    pub(super) fn give_up(&mut self, id: BlobId) {
        let partial = self.partials.get_mut(&id).expect("it is known");
        (partial.promised, partial.held) = (false, false);
    }

    /// It surely did not happen.
    pub(super) fn withdraw(&mut self, key: &str) {
        self.promise(key).maybe.clear();
    }
}

/// Reads an object to its end.
pub(super) async fn read_all(reader: &BlobReader) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let stream = reader.stream(0..u64::MAX);
    pin_mut!(stream);
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok(bytes)
}

pub(super) fn note(length: u64) -> Vec<u8> {
    length.to_le_bytes().to_vec()
}

/// Holds the store to its promises, and takes what it found for the state from here on. No faults are injected
/// meanwhile, so any error is one.
pub(super) async fn judge(store: &Store, shared: &Shared) {
    let oracle = &*shared.oracle;
    let objects = store.list_objects("", None, 10_000).await.expect("the catalog can be read");
    let mut found: BTreeMap<String, (BlobId, State)> = BTreeMap::new();
    for object in &objects {
        let read = match store.open_blob(object.blob).await {
            Ok(reader) => read_all(&reader).await,
            Err(e) => Err(e),
        };
        let damaged = oracle.lock().unwrap().damaged.contains(&object.blob);
        let state = match read {
            Ok(bytes) => Some(bytes.into()),
            // Its bytes are beyond asking, or were wrong once on their way here: the catalog tells which they were.
            Err(Error::Corrupt { .. } | Error::Quarantined { .. }) if damaged || shared.flips() > 0 => {
                let mut oracle = oracle.lock().unwrap();
                Some(oracle.promise(object.key.as_str()).of_hash(&object.blake3))
            }
            Err(Error::VolumeMissing { volume: 1, .. }) if shared.away => {
                let mut oracle = oracle.lock().unwrap();
                Some(oracle.promise(object.key.as_str()).of_hash(&object.blake3))
            }
            Err(e) => panic!("object {} cannot be read: {e}", object.key),
        };
        found.insert(object.key.to_string(), (object.blob, state));
    }
    {
        let mut oracle = oracle.lock().unwrap();
        oracle.objects = objects.iter().map(|object| object.blob).collect();
        for (key, (_, state)) in &found {
            let promise = oracle.promise(key);
            let known = promise.state == *state || promise.maybe.contains(state);
            assert!(known, "object {key} has {} bytes that nobody stored there", state.as_ref().map_or(0, |s| s.len()));
        }
        for (key, promise) in &mut oracle.keys {
            let now = found.get(key).and_then(|(_, state)| state.clone());
            let fine = now == promise.state || promise.maybe.contains(&now);
            assert!(
                fine,
                "{key}: acknowledged {:?} bytes, found {:?}",
                promise.state.as_ref().map(|s| s.len()),
                now.as_ref().map(|s| s.len())
            );
            promise.state = now;
            promise.maybe.clear();
        }
    }
    judge_quarantine(store, shared, &found).await;
    judge_partials(store, shared, &found.values().map(|(blob, _)| *blob).collect()).await;
}

/// What is refused is what is damaged: a scrub finds all of it, and releases what was only read wrongly once.
async fn judge_quarantine(store: &Store, shared: &Shared, found: &BTreeMap<String, (BlobId, State)>) {
    let damaged = shared.oracle.lock().unwrap().damaged.clone();
    let blobs: BTreeMap<BlobId, &State> = found.values().map(|(blob, state)| (*blob, state)).collect();
    let before = store.quarantined(None, usize::MAX);
    for refused in &before {
        assert!(blobs.contains_key(&refused.blob), "{} is quarantined and not an object's", refused.blob);
        let reason = damaged.contains(&refused.blob) || shared.flips() > 0;
        assert!(reason, "{} is quarantined without a reason: {}", refused.blob, refused.detail);
    }
    let before: BTreeSet<BlobId> = before.iter().map(|found| found.blob).collect();
    // Where nothing is wrong, every other time is enough.
    if before.is_empty() && damaged.is_empty() && blobs.len().is_multiple_of(2) {
        return;
    }
    store.start_scrub(ScrubOptions { restart: true, ..ScrubOptions::default() }).await.expect("a scrub can start");
    store.scrub_to_the_end().await;
    let refused: BTreeSet<BlobId> = store.quarantined(None, usize::MAX).iter().map(|found| found.blob).collect();
    let (mut expected, mut away) = (BTreeSet::new(), BTreeSet::new());
    for blob in blobs.keys().copied() {
        let volume = store.volume_of(blob).await.expect("the catalog can be read").expect("it is an object's");
        if store.volumes().by_number(volume).is_err() {
            away.insert(blob);
        } else if damaged.contains(&blob) {
            expected.insert(blob);
        }
    }
    assert_eq!(refused, expected, "the scrub found other blobs than those that were damaged");
    // A data directory whose sync has failed takes no notes: what is damaged is refused all the same.
    if !store.volumes().first().health.is_degraded() {
        let status = store.scrub_status().await.expect("the catalog can be read");
        let counts = status.last.as_ref().expect("the scrub came to its end").counts;
        let all = (blobs.len() as u64, expected.len() as u64, away.len() as u64);
        assert_eq!((counts.blobs, counts.damaged, counts.unreadable), all, "{status:?}");
    }
    let asked = before.union(&expected).filter(|blob| !away.contains(blob));
    for (blob, state) in asked.map(|blob| (*blob, blobs[blob])) {
        match store.open_blob(blob).await {
            Ok(reader) if !expected.contains(&blob) => {
                let bytes = read_all(&reader).await.expect("a blob that the scrub found whole can be read");
                assert!(Some(&bytes[..]) == state.as_deref(), "{blob} has other bytes after the scrub");
            }
            Err(Error::Quarantined { .. }) if expected.contains(&blob) => {}
            Ok(_) => panic!("{blob} is damaged and was opened"),
            Err(e) => panic!("{blob} cannot be opened after a scrub: {e}"),
        }
    }
}

async fn judge_partials(store: &Store, shared: &Shared, committed: &BTreeSet<BlobId>) {
    let oracle = &*shared.oracle;
    let listed = store.journaled_partials().await.expect("partials can be listed");
    let known: Vec<BlobId> = oracle.lock().unwrap().partials.keys().copied().collect();
    for id in listed.iter().copied() {
        if known.contains(&id) {
            continue;
        }
        // The journal of an object that was deleted since, which a failing disk would not let go.
        assert!(oracle.lock().unwrap().unlinks_failed, "the partial {id} is nobody's");
        store.discard_partial(id).await.expect("a partial can be discarded");
    }
    for id in known {
        if committed.contains(&id) {
            oracle.lock().unwrap().partials.remove(&id);
            continue;
        }
        let mut partial = oracle.lock().unwrap().partials[&id].clone();
        // On the volume that is away, perhaps: nobody touches it in this life.
        partial.away = shared.away && !listed.contains(&id);
        oracle.lock().unwrap().partials.insert(id, partial.clone());
        if partial.away || !partial.promised && !listed.contains(&id) {
            continue;
        }
        // Sealed and not committed, its file may have rotted among the blobs.
        partial.promised &= !oracle.lock().unwrap().damaged.contains(&id);
        match store.resume(id).await {
            Ok(Some((writer, found))) => {
                let length = writer.len();
                let path = writer.volume().partial_path(id);
                drop(writer);
                // One that was discarded may come back, from the volume where it first began too.
                let kept = !partial.promised || length >= partial.durable;
                assert!(kept, "{id}: {} bytes were promised, {length} are there", partial.durable);
                assert!(partial.tried.contains(&length), "{id} resumes at {length}, which no checkpoint was");
                assert_eq!(found, note(length), "{id} has another checkpoint's note");
                let bytes = std::fs::read(path).expect("the partial is there");
                assert!(bytes == partial.bytes[..length as usize], "{id} has other bytes below {length}");
                // Whoever resumes is told this length, and may forget what came before it.
                (partial.durable, partial.promised, partial.held) = (length, true, false);
                oracle.lock().unwrap().partials.insert(id, partial);
            }
            Ok(None) | Err(Error::Corrupt { .. }) if !partial.promised => {
                // Not forgotten: a power cut may bring it back.
                oracle.lock().unwrap().partials.insert(id, partial);
                store.discard_partial(id).await.expect("what is left of a partial can be discarded");
            }
            // Its volume failed while the store was opened.
            Err(Error::Degraded { .. }) if shared.faulty => {
                partial.away = true;
                oracle.lock().unwrap().partials.insert(id, partial);
            }
            Ok(None) if store.volumes().iter().any(|volume| volume.health.is_degraded()) => {
                partial.away = true;
                oracle.lock().unwrap().partials.insert(id, partial);
            }
            Ok(None) => panic!("{id} had a checkpoint at {} and does not resume", partial.durable),
            Err(e) => panic!("{id} had a checkpoint at {} and does not resume: {e}", partial.durable),
        }
    }
}

pub(super) fn key(text: &str) -> Key {
    Key::parse(text).expect("histories use valid keys")
}
