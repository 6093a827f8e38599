//! The keys that are being written: where a follower finds its writer.
//!
//! A writer with a key is entered when it is made, and taken out when it ends; a stored one after its row is in the
//! catalog. So who finds no writer here, and asks the catalog *afterwards*, misses no object.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::blob::{BlobWriter, Follower, Progress};
use crate::error::Result;
use crate::key::Key;
use crate::store::Store;

#[derive(Default)]
pub(crate) struct Writing {
    /// In the order of their beginnings.
    by_key: Mutex<HashMap<String, Vec<Weak<Progress>>>>,
    /// How many there are, to be looked at without the lock.
    count: AtomicUsize,
}

/// Somebody who writes a blob for a key.
#[derive(Clone)]
pub struct KeyWriter(Arc<Progress>);

impl Writing {
    pub(crate) fn begin(&self, progress: &Arc<Progress>) {
        let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        by_key.entry(progress.key().to_owned()).or_default().push(Arc::downgrade(progress));
        self.count.fetch_add(1, Release);
    }

    pub(crate) fn end(&self, progress: &Arc<Progress>) {
        let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(writers) = by_key.get_mut(progress.key()) else { return };
        writers.retain(|writer| !std::ptr::eq(writer.as_ptr(), Arc::as_ptr(progress)));
        if writers.is_empty() {
            by_key.remove(progress.key());
        }
        self.count.fetch_sub(1, Release);
    }

    /// Who began last: of several it is most likely the one that goes on.
    fn latest(&self, key: &str) -> Option<Arc<Progress>> {
        if self.count.load(Acquire) == 0 {
            return None;
        }
        let by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        by_key.get(key)?.iter().rev().find_map(Weak::upgrade)
    }
}

impl Store {
    /// Who writes a blob for `key` now. Ask this before [`Store::object`]: a writer that ends in between is found by one
    /// of the two.
    pub fn writer_of(&self, key: &Key) -> Option<KeyWriter> {
        self.inner.writing.latest(key.as_str()).map(KeyWriter)
    }

    /// Lets others follow the writer, if it has a key.
    pub(crate) fn announce(&self, writer: BlobWriter) -> BlobWriter {
        writer.announced_in(&self.inner.writing)
    }
}

impl KeyWriter {
    /// Follows it; `None` when it has ended, with an object or without.
    pub fn follow(&self) -> Result<Option<Follower>> {
        Follower::of(&self.0)
    }
}
