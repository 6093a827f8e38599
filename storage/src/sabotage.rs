//! Ways to break the protocol on purpose, to prove that the simulated histories would notice.
//!
//! The places that matter ask [`is`] whether they are to fail their duty. Outside this crate's tests the answer is a
//! constant `false`, and the question is gone from the program.

/// A duty neglected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "named at the places, set by tests alone"))]
pub(crate) enum Sabotage {
    /// A blob's directory is not synced after the rename.
    NoDirectorySync,
    /// A blob is sealed before its data is on the disk.
    AcknowledgeBeforeSync,
    /// A sync that failed is tried again, and believed.
    SyncRetried,
    /// A round of syncs answers who came after it had begun.
    RoundTakesLatecomers,
    /// A volume that was away is taken for clean when it returns.
    ReturnTrusted,
}

#[cfg(test)]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Sabotage>> = const { std::cell::Cell::new(None) };
}

/// Neglects a duty on this thread until told otherwise.
#[cfg(test)]
pub(crate) fn set(sabotage: Option<Sabotage>) {
    ACTIVE.set(sabotage);
}

#[cfg(test)]
pub(crate) fn is(sabotage: Sabotage) -> bool {
    ACTIVE.get() == Some(sabotage)
}

#[cfg(not(test))]
pub(crate) const fn is(_: Sabotage) -> bool {
    false
}
