//! The wall clock, and the ids made from it. Tests may hold it still on their thread: the simulated histories must be
//! the same for the same seed, names of files included.

use uuid::Uuid;

/// Milliseconds since the epoch.
pub(crate) fn now_ms() -> u64 {
    #[cfg(test)]
    if let Some(ms) = held::now_ms() {
        return ms;
    }
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}

/// A version 7 UUID that was never used before.
pub(crate) fn uuid() -> Uuid {
    #[cfg(test)]
    if let Some(uuid) = held::uuid() {
        return uuid;
    }
    Uuid::now_v7()
}

/// A clock that moves only when it is told to.
#[cfg(test)]
pub(crate) mod held {
    use std::cell::Cell;

    use uuid::{Builder, Uuid};

    thread_local! {
        /// The time, and how many ids were made of this clock.
        static HELD: Cell<Option<(u64, u64)>> = const { Cell::new(None) };
    }

    /// Holds this thread's clock at `ms`; `None` lets it go. Ids never repeat while it is held.
    pub(crate) fn set(ms: Option<u64>) {
        HELD.set(ms.map(|ms| (ms, HELD.get().map_or(0, |(_, made)| made))));
    }

    pub(super) fn now_ms() -> Option<u64> {
        HELD.get().map(|(ms, _)| ms)
    }

    pub(super) fn uuid() -> Option<Uuid> {
        let (ms, made) = HELD.get()?;
        HELD.set(Some((ms, made + 1)));
        let mut rest = [0; 10];
        rest[2..].copy_from_slice(&made.to_be_bytes());
        Some(Builder::from_unix_timestamp_millis(ms, &rest).into_uuid())
    }
}
