//! Resumable uploads: objects that arrive in pieces, over days and restarts.
//!
//! [`Uploads`] is the handle everybody holds. An upload is a row in the catalog (`table`) and, until it is complete, a
//! journaled partial in the store. What it is told to have, the **durable length**, is what the partial's journal vouches
//! for: it never goes down, over kills and power cuts. The object appears under its key in the transaction that
//! completes the upload.
//!
//! | file | what is in it |
//! |---|---|
//! | `record`, `table`, `metadata`, `checksum` | pure: what an upload is, its row, what clients say about it |
//! | `desk` | what is known in memory of each upload: durable length, open writer, whose turn it is |
//! | `feed`, `append` | taking bytes: one task for each append, checkpoints, the end |
//! | `join` | concatenation |
//! | `expiry` | the sweeper |
//!
//! Cancel: an append runs in a task of its own. When its client goes away, the task keeps what came (`append` tells what
//! exactly) and ends; when the node drains it does the same.

mod append;
mod checksum;
mod desk;
mod expiry;
mod feed;
mod join;
mod metadata;
mod record;
mod table;
#[cfg(test)]
mod tests;

pub use checksum::{Algorithm, Checksum};
pub use feed::{Append, Appended, Feed, Piece};
pub use metadata::{Metadata, MetadataError};
pub use record::{Condition, Kind, Record, State, UploadId};
pub use table::MIGRATION;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use jiff::Timestamp;
use reelring_storage::{BlobId, BlobMeta, Error as StorageError, Key, Store};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::desk::{Desk, Entry};
use self::table::{Added, Table};
use crate::limits;
use crate::media_type;

/// The node's uploads. Cheap to clone.
#[derive(Clone)]
pub struct Uploads {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    table: Table,
    desk: Desk,
    expiry: Duration,
    counts: Counts,
    /// Appends and joins under way. They outlive the connection that began them, and so the threads it lived on.
    tasks: TaskTracker,
    runtime: Handle,
    closing: CancellationToken,
}

impl Inner {
    fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.tasks.spawn_on(task, &self.runtime)
    }
}

#[derive(Default)]
struct Counts {
    completed: AtomicU64,
    expired: AtomicU64,
    cut: AtomicU64,
    preempted: AtomicU64,
    mismatched: AtomicU64,
}

/// For the metrics.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    pub open: u64,
    /// Objects and parts.
    pub completed: u64,
    pub expired: u64,
    /// Appends that broke off, were taken over, had other bytes than their checksum said.
    pub cut: u64,
    pub preempted: u64,
    pub mismatched: u64,
}

/// A new upload, as its client asks for it.
#[derive(Debug, Clone)]
pub struct Creation {
    pub kind: Kind,
    pub metadata: Metadata,
    /// Where the object goes, if the client has named a place.
    pub key: Option<Key>,
    /// The type in the request's own header.
    pub content_type: Option<String>,
    /// `None` while the client does not know it.
    pub length: Option<u64>,
    pub condition: Condition,
    /// Whoever asks how far it is means to go on: an append that is under way then ends.
    pub exclusive: bool,
}

/// What a client is told of an upload.
#[derive(Debug, Clone)]
pub struct Status {
    pub record: Record,
    /// The durable length.
    pub offset: u64,
}

/// Why a request about uploads was refused.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error("there is no upload {0}; begin a new one with POST /v1/uploads")]
    Unknown(UploadId),
    #[error("upload {0} has expired or was given up; begin a new one with POST /v1/uploads")]
    Gone(UploadId),
    #[error("upload {id} has {expected} bytes, the request begins at {given}; ask with HEAD and go on from there")]
    Offset { id: UploadId, expected: u64, given: u64 },
    #[error(
        "upload {id} was announced with {announced} bytes, now it is said to have {given}; the length cannot change"
    )]
    Length { id: UploadId, announced: u64, given: u64 },
    #[error("upload {id} has {length} bytes, the request goes on to {given}; send no more than was announced")]
    TooLong { id: UploadId, length: u64, given: u64 },
    #[error("the upload has {length} bytes, the limit is {}", limits::OBJECT_BYTES)]
    TooLarge { length: u64 },
    #[error("upload {0} is complete and takes no more bytes")]
    Complete(UploadId),
    #[error("a newer request has taken upload {0} over; what this one sent after offset {1} was dropped")]
    Preempted(UploadId, u64),
    #[error("the request on upload {id} broke off; {kept} bytes are kept, go on from there")]
    Cut { id: UploadId, kept: u64 },
    #[error(
        "the bytes received for upload {id} have {algorithm} {actual}, the request says {expected}; all {dropped} were \
             dropped, send them again from {offset}"
    )]
    Checksum { id: UploadId, algorithm: Algorithm, expected: String, actual: String, dropped: u64, offset: u64 },
    #[error(
        "{open} uploads are unfinished and the limit is {}; finish or delete some, or wait until they expire",
        limits::UPLOADS_OPEN
    )]
    Full { open: usize },
    #[error("upload {id} cannot be joined: {reason}")]
    Join { id: UploadId, reason: &'static str },
    #[error("the node is shutting down; {kept} bytes are kept, go on from there when it is back")]
    Draining { kept: u64 },
    #[error(transparent)]
    Storage(#[from] StorageError),
}

pub type Result<T, E = UploadError> = std::result::Result<T, E>;

impl Uploads {
    /// Takes over the uploads an earlier run of the node left. When `closing` fires, appends keep what they have and end.
    pub fn open(store: Store, expiry: Duration, closing: CancellationToken) -> Uploads {
        let table = Table::new(store.catalog().clone());
        let (desk, tasks, runtime) = (Desk::default(), TaskTracker::new(), Handle::current());
        let counts = Counts::default();
        Uploads { inner: Arc::new(Inner { store, table, desk, expiry, counts, tasks, runtime, closing }) }
    }

    /// Starts the sweeper. Called once.
    pub fn run(&self) {
        self.inner.spawn(expiry::sweep_regularly(Arc::clone(&self.inner)));
    }

    /// The partial files of unfinished uploads, which nobody else may discard.
    pub async fn partials(&self) -> Result<Vec<BlobId>, StorageError> {
        self.inner.table.partials().await
    }

    /// Begins an upload. Room for an announced length is taken now. One of no bytes is complete at once.
    pub async fn create(&self, asked: Creation) -> Result<Status> {
        let inner = &self.inner;
        if inner.closing.is_cancelled() {
            return Err(UploadError::Draining { kept: 0 });
        }
        if let Some(length) = asked.length.filter(|length| *length > limits::OBJECT_BYTES) {
            return Err(UploadError::TooLarge { length });
        }
        let (id, blob) = (UploadId::new(), BlobId::new());
        let key = (asked.kind != Kind::Part).then(|| asked.place(blob));
        if let Some(key) = &key
            && asked.condition != Condition::None
        {
            // Decided for good in the transaction that completes; asked here so that a lost race costs nobody an upload.
            let current = inner.store.object(key).await?;
            asked.condition.precondition().check(key, current.as_ref())?;
        }
        let record = Record {
            id,
            blob,
            kind: asked.kind,
            state: State::Open,
            content_type: asked.type_of(key.as_ref(), &[]),
            metadata: asked.metadata.into_text(),
            key,
            length: asked.length,
            condition: asked.condition,
            parts: Vec::new(),
            etag: None,
            exclusive: asked.exclusive,
            expires_at: self.inner.expires(),
        };
        let meta = BlobMeta {
            key: record.key.as_ref().map(Key::to_string),
            content_type: record.content_type.clone(),
            length_hint: record.length,
        };
        let writer = inner.store.create_journaled(blob, meta, id.to_string().into_bytes()).await?;
        match inner.table.add(record.clone()).await {
            Ok(Added::New) => {}
            Ok(Added::Full(open)) => {
                writer.abort().await;
                return Err(UploadError::Full { open });
            }
            Err(error) => {
                writer.abort().await;
                return Err(error.into());
            }
        }
        inner.desk.begin(id, writer);
        if record.length == Some(0) {
            let appended = self.append(id, Append::at(0), Feed::ended()).await?;
            return Ok(Status { record: appended.record, offset: 0 });
        }
        Ok(Status { record, offset: 0 })
    }

    /// How far an upload is. Waits for nobody who appends, but for an append that is just ending; an upload that is
    /// exclusive tells running ones to end, and to keep what came, so that the offset is good for the next.
    pub async fn status(&self, id: UploadId) -> Result<Status> {
        let record = self.inner.record(id).await?;
        if record.state == State::Open && record.exclusive {
            let turn = self.inner.desk.entry(id).begin_keeping();
            drop(turn.slot().await);
        }
        self.inner.status(id).await
    }

    /// How many are open, and what has become of others since the node started.
    pub async fn figures(&self) -> Result<Figures, StorageError> {
        let counts = &self.inner.counts;
        let of = |count: &AtomicU64| count.load(Relaxed);
        Ok(Figures {
            open: self.inner.table.count_open().await?,
            completed: of(&counts.completed),
            expired: of(&counts.expired),
            cut: of(&counts.cut),
            preempted: of(&counts.preempted),
            mismatched: of(&counts.mismatched),
        })
    }

    /// Gives an upload up. Of a complete one only the record goes: the object stays.
    pub async fn terminate(&self, id: UploadId) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        let ended = self.inner.spawn(async move { inner.terminate(id).await });
        ended.await.unwrap_or(Err(UploadError::Draining { kept: 0 }))
    }

    /// Lets appends keep what they have, then closes every writer. The store must still be open.
    pub async fn drain(&self) {
        self.inner.closing.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        self.inner.desk.close_all().await;
    }
}

impl Creation {
    /// Where its object goes.
    fn place(&self, blob: BlobId) -> Key {
        self.key.clone().unwrap_or_else(|| self.metadata.place(blob))
    }

    /// The object's type, as far as client, key and first bytes tell it.
    fn type_of(&self, key: Option<&Key>, head: &[u8]) -> Option<String> {
        let declared = self.content_type.as_deref().or_else(|| self.metadata.content_type());
        media_type::of(declared, key.map_or("", Key::as_str), head)
    }
}

impl Inner {
    async fn record(&self, id: UploadId) -> Result<Record> {
        let record = self.table.get(id).await?.ok_or(UploadError::Unknown(id))?;
        let expired = record.expires_at <= Timestamp::now() && !self.desk.is_busy(id);
        match record.state {
            State::Gone => Err(UploadError::Gone(id)),
            State::Open if expired => Err(UploadError::Gone(id)),
            _ => Ok(record),
        }
    }

    async fn status(&self, id: UploadId) -> Result<Status> {
        let mut record = self.record(id).await?;
        if record.state == State::Open {
            let entry = self.desk.entry(id);
            entry.ending().await;
            let offset = entry.durable(&self.store, &record).await;
            // It may have been completed or given up while its length was asked for.
            record = self.record(id).await?;
            if record.state == State::Open {
                return self.or_gone(&record, offset).await.map(|offset| Status { record, offset });
            }
        }
        let offset = record.length.unwrap_or(0);
        Ok(Status { record, offset })
    }

    /// How far an upload is. Whoever has just completed it or given it up leaves nothing to be found, or has it in hand
    /// still: then the record, read again, tells.
    async fn durable(&self, record: Record, entry: &Entry) -> Result<(Record, u64)> {
        let known = match record.state {
            State::Open => entry.durable(&self.store, &record).await,
            _ => Ok(record.length),
        };
        if let Ok(Some(length)) = known {
            return Ok((record, length));
        }
        let record = self.record(record.id).await?;
        let length = match record.state {
            State::Open => self.or_gone(&record, known).await?,
            _ => record.length.unwrap_or(0),
        };
        Ok((record, length))
    }

    /// An open upload whose partial is not there is given up, unless it may be on a disk that is away.
    async fn or_gone(&self, record: &Record, length: Result<Option<u64>, StorageError>) -> Result<u64> {
        match length {
            Ok(Some(length)) => Ok(length),
            Ok(None) if self.store.may_lack_partials() => Err(UploadError::Storage(StorageError::VolumeMissing {
                volume: 0,
                dir: "partial".into(),
                reason: format!("upload {} is on none of the volumes that can be read", record.id),
            })),
            Ok(None) => {
                tracing::warn!(upload = %record.id, "an unfinished upload has lost its bytes");
                self.give_up(record).await?;
                Err(UploadError::Gone(record.id))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn terminate(&self, id: UploadId) -> Result<()> {
        let record = self.record(id).await?;
        if record.state == State::Open {
            let entry = self.desk.entry(id);
            let turn = entry.begin();
            let mut slot = turn.slot().await;
            // Completed in the meantime: then only the record goes.
            let record = self.record(id).await?;
            if record.state == State::Open {
                drop(slot.take());
                return self.give_up(&record).await;
            }
        }
        self.forget(&[record]).await
    }

    /// Removes what there is of an open upload, whose slot the caller holds or nobody can.
    async fn give_up(&self, record: &Record) -> Result<()> {
        // The row first: a partial that nobody names is discarded at the next start. Whoever completed it has the bytes.
        if !self.table.give_up(record.id, self.expires()).await? {
            return Ok(());
        }
        self.desk.remove(record.id);
        if let Err(error) = self.store.discard_partial(record.blob).await {
            tracing::warn!(upload = %record.id, %error, "the partial file of an upload stays behind until the next start");
        }
        Ok(())
    }

    /// Forgets uploads that are over; a part that was not joined goes with its bytes.
    async fn forget(&self, records: &[Record]) -> Result<()> {
        let ids: Vec<UploadId> = records.iter().map(|record| record.id).collect();
        let parts = records.iter().filter(|record| record.kind == Kind::Part && record.state == State::Done);
        let blobs: Vec<BlobId> = parts.map(|part| part.blob).collect();
        for id in &ids {
            self.desk.remove(*id);
        }
        self.store
            .remove(move |tx| {
                ids.iter().try_for_each(|id| table::delete(tx, *id))?;
                Ok(((), blobs))
            })
            .await?;
        Ok(())
    }

    fn expires(&self) -> Timestamp {
        Timestamp::now().checked_add(self.expiry).unwrap_or(Timestamp::MAX)
    }
}
