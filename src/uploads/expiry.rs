//! The sweeper: uploads whose time is up lose their bytes, later their row; writers that nobody uses are closed.
//!
//! An append under way is never swept. One task, which ends when the node drains; what it has begun it finishes.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use jiff::Timestamp;

use super::record::State;
use super::{Inner, UploadError};
use crate::limits;

pub(super) async fn sweep_regularly(inner: Arc<Inner>) {
    let every = (inner.expiry / 4).clamp(Duration::from_millis(250), limits::UPLOAD_SWEEP_EVERY);
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = inner.closing.cancelled() => return,
        }
        inner.desk.close_idle(limits::UPLOAD_WRITER_IDLE);
        if let Err(error) = inner.sweep().await {
            tracing::warn!(%error, "expired uploads could not be removed; trying again in {} s", every.as_secs());
        }
    }
}

impl Inner {
    async fn sweep(&self) -> Result<(), UploadError> {
        let now = Timestamp::now();
        for record in self.table.expired(now).await? {
            let entry = self.desk.entry(record.id);
            let Some(mut slot) = entry.try_slot() else { continue };
            // It may have been completed or put off since.
            let Some(record) = self.table.get(record.id).await? else { continue };
            if record.state == State::Open && record.expires_at <= now {
                tracing::info!(upload = %record.id, key = ?record.key, "an unfinished upload has expired");
                drop(slot.take());
                self.give_up(&record).await?;
                self.counts.expired.fetch_add(1, Relaxed);
            }
        }
        while !self.closing.is_cancelled() {
            let outlived = self.table.outlived(now).await?;
            if outlived.is_empty() {
                break;
            }
            self.forget(&outlived).await?;
        }
        Ok(())
    }
}
