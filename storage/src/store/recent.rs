//! Object records read lately, so that a hot object costs no question to the catalog's thread.
//!
//! Two halves: what is found in the older one moves to the younger, and when that is full the older one is dropped. That
//! keeps what is asked for often, without a list to maintain at each look-up.
//!
//! A record is never older than the last acknowledged change: whoever changes an object forgets its record after the
//! commit and before the acknowledgement, and a record read from the catalog meanwhile is not kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::catalog::objects::ObjectRecord;
use crate::key::Key;
use crate::limits::RECENT_OBJECTS_MAX;

#[derive(Default)]
pub(crate) struct Recent {
    records: Mutex<Records>,
}

#[derive(Default)]
struct Records {
    young: HashMap<Key, Arc<ObjectRecord>>,
    old: HashMap<Key, Arc<ObjectRecord>>,
    /// Changes seen.
    changes: u64,
}

/// The changes seen when a record was looked for.
pub(crate) struct Missed(u64);

impl Recent {
    pub(crate) fn get(&self, key: &Key) -> Result<Arc<ObjectRecord>, Missed> {
        let mut records = self.lock();
        if let Some(record) = records.young.get(key) {
            return Ok(Arc::clone(record));
        }
        match records.old.remove(key) {
            Some(record) => {
                records.keep(Arc::clone(&record));
                Ok(record)
            }
            None => Err(Missed(records.changes)),
        }
    }

    /// Keeps what the catalog had, unless something changed since it was looked for here.
    pub(crate) fn put(&self, missed: &Missed, record: Arc<ObjectRecord>) {
        let mut records = self.lock();
        if records.changes == missed.0 {
            records.keep(record);
        }
    }

    /// The object was changed, or may have been.
    pub(crate) fn forget(&self, key: &Key) {
        let mut records = self.lock();
        records.changes += 1;
        records.young.remove(key);
        records.old.remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Records {
    fn keep(&mut self, record: Arc<ObjectRecord>) {
        if self.young.len() >= RECENT_OBJECTS_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(record.key.clone(), record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::BlobId;

    fn record(key: &str) -> Arc<ObjectRecord> {
        let key = Key::parse(key).unwrap();
        let (blob, blake3) = (BlobId::new(), [0; 32]);
        Arc::new(ObjectRecord { key, blob, length: 1, blake3, content_type: None, sha256: None, modified_ms: 0 })
    }

    fn missed(recent: &Recent, key: &Key) -> Missed {
        recent.get(key).expect_err("not kept")
    }

    #[test]
    fn what_was_read_before_a_change_is_not_kept_after_it() {
        let (recent, read) = (Recent::default(), record("a"));
        let looked = missed(&recent, &read.key);
        recent.forget(&Key::parse("b").unwrap());
        recent.put(&looked, Arc::clone(&read));
        let looked = missed(&recent, &read.key);
        recent.put(&looked, Arc::clone(&read));
        assert!(recent.get(&read.key).is_ok());
        recent.forget(&read.key);
        missed(&recent, &read.key);
    }

    #[test]
    fn what_is_asked_for_stays_and_the_rest_goes() {
        let (recent, often) = (Recent::default(), record("often"));
        recent.put(&missed(&recent, &often.key), Arc::clone(&often));
        for n in 0..RECENT_OBJECTS_MAX * 2 {
            let other = record(&n.to_string());
            recent.put(&missed(&recent, &other.key), other);
            assert!(recent.get(&often.key).is_ok(), "after {n}");
        }
        let records = recent.lock();
        assert!(records.young.len() + records.old.len() <= RECENT_OBJECTS_MAX);
        assert!(!records.young.contains_key(&Key::parse("0").unwrap()));
    }
}
