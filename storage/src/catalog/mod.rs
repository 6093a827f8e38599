//! The catalog: SQLite behind two threads.
//!
//! One thread owns the only writing connection, one a read-only connection; requests reach them
//! over bounded channels. Writes that queue up while a commit runs share the next one: each runs in
//! a savepoint of its own, so that one that fails takes nothing with it, and all are answered after
//! the COMMIT is durable (WAL, `synchronous=FULL`).
//!
//! Cancel: a dropped `write` future still runs once it is queued; only its answer is lost.

pub(crate) mod objects;
pub(crate) mod run;
pub(crate) mod schema;
pub(crate) mod volumes;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender};
use rusqlite::ffi::{SQLITE_IOERR_DIR_FSYNC, SQLITE_IOERR_FSYNC};
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::error::{Error, Result};
use crate::limits::{CATALOG_BATCH_MAX, CATALOG_CACHE_KIB, CATALOG_QUEUE_MAX};
use crate::volume::health::Health;

/// The catalog of one data directory. Cheap to clone.
#[derive(Clone)]
pub struct Catalog {
    inner: Arc<Inner>,
}

struct Inner {
    writes: Queue<Box<dyn WriteRequest>>,
    reads: Queue<ReadRequest>,
    health: Health,
    closing: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

type ReadRequest = Box<dyn FnOnce(&Connection) + Send>;

/// The way to one of the threads: a slot, then a send that finds room.
struct Queue<T> {
    sender: Sender<Message<T>>,
    slots: Arc<Semaphore>,
}

enum Message<T> {
    Run(T, OwnedSemaphorePermit),
    Stop,
}

impl Catalog {
    /// Opens or creates the catalog and brings its schema up to date. Blocks.
    pub(crate) fn open(path: &Path, node_migrations: &[&str], health: Health) -> Result<Catalog> {
        let (catalog, writer, reader) = Catalog::parts(path, node_migrations, health)?;
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            let thread = thread::Builder::new().name(name.into()).stack_size(1024 * 1024).spawn(body);
            thread.map_err(|e| Error::io("start the thread of", path, e))
        };
        let threads = vec![
            spawn("reel-catalog", Box::new(move || writer.run()))?,
            spawn("reel-cat-read", Box::new(move || reader.run()))?,
        ];
        *catalog.inner.threads.lock().unwrap_or_else(PoisonError::into_inner) = threads;
        Ok(catalog)
    }

    /// A catalog whose two threads are yet to be started.
    pub(crate) fn parts(path: &Path, node_migrations: &[&str], health: Health) -> Result<(Catalog, Writer, Reader)> {
        let (writer, reader) = connect(path, node_migrations).map_err(|error| match error {
            Error::Catalog(source) => Error::CatalogUnusable { path: path.into(), source },
            other => other,
        })?;
        let (writes, write_requests) = Queue::new();
        let (reads, read_requests) = Queue::new();
        let writer = Writer {
            connection: writer,
            requests: write_requests,
            health: health.clone(),
            #[cfg(test)]
            fault: None,
        };
        let reader = Reader { connection: reader, requests: read_requests };
        let (closing, threads) = (AtomicBool::new(false), Mutex::default());
        Ok((Catalog { inner: Arc::new(Inner { writes, reads, health, closing, threads }) }, writer, reader))
    }

    /// Runs `f` in a transaction, which is durable when this returns. When `f` fails, what it did
    /// is undone.
    pub async fn write<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.inner.health.check_writable()?;
        let (reply, result) = oneshot::channel();
        let request = Write { run: Some(f), outcome: None, reply };
        self.send(&self.inner.writes, Box::new(request)).await?;
        result.await.unwrap_or(Err(Error::Closed))
    }

    /// Runs `f` on a consistent snapshot.
    pub async fn read<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, result) = oneshot::channel();
        let request = move |connection: &Connection| {
            let outcome = guarded(|| {
                let snapshot = connection.unchecked_transaction()?;
                f(&snapshot)
            });
            drop(reply.send(outcome));
        };
        self.send(&self.inner.reads, Box::new(request)).await?;
        result.await.unwrap_or(Err(Error::Closed))
    }

    async fn send<R>(&self, queue: &Queue<R>, request: R) -> Result<()> {
        let slot = Arc::clone(&queue.slots).acquire_owned().await.map_err(|_| Error::Closed)?;
        if self.inner.closing.load(Acquire) {
            return Err(Error::Closed);
        }
        queue.sender.try_send(Message::Run(request, slot)).map_err(|_| Error::Closed)
    }

    /// Answers what is queued, then checkpoints the log into the database and closes it.
    pub(crate) async fn close(&self) {
        if self.inner.closing.swap(true, SeqCst) {
            return;
        }
        for slots in [&self.inner.writes.slots, &self.inner.reads.slots] {
            drop(slots.acquire_many(CATALOG_QUEUE_MAX as u32).await);
        }
        // Readers first: the last connection to close is the one that may checkpoint.
        drop(self.inner.reads.sender.try_send(Message::Stop));
        drop(self.inner.writes.sender.try_send(Message::Stop));
        let threads = std::mem::take(&mut *self.inner.threads.lock().unwrap_or_else(PoisonError::into_inner));
        if threads.is_empty() {
            return;
        }
        drop(tokio::task::spawn_blocking(move || threads.into_iter().for_each(|t| drop(t.join()))).await);
    }
}

impl<T> Queue<T> {
    fn new() -> (Queue<T>, Receiver<Message<T>>) {
        // One more than the slots: `Stop` finds room too.
        let (sender, receiver) = crossbeam_channel::bounded(CATALOG_QUEUE_MAX + 1);
        (Queue { sender, slots: Arc::new(Semaphore::new(CATALOG_QUEUE_MAX)) }, receiver)
    }
}

/// The connection that writes and the one that reads, with the schema up to date.
fn connect(path: &Path, node_migrations: &[&str]) -> Result<(Connection, Connection)> {
    let mut writer = Connection::open(path)?;
    writer.pragma_update(None, "journal_mode", "WAL")?;
    writer.pragma_update(None, "synchronous", "FULL")?;
    writer.pragma_update(None, "foreign_keys", true)?;
    configure(&writer)?;
    schema::migrate(&mut writer, path, node_migrations)?;
    // What the last process left in the log may be in the page cache alone, if a sync of it failed. Taking it into the
    // database writes it again.
    writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let reader = Connection::open_with_flags(path, flags)?;
    configure(&reader)?;
    Ok((writer, reader))
}

fn configure(connection: &Connection) -> Result<()> {
    connection.pragma_update(None, "cache_size", -CATALOG_CACHE_KIB)?;
    connection.pragma_update(None, "journal_size_limit", 16 * 1024 * 1024)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// A queued write, whatever it returns.
trait WriteRequest: Send {
    /// Runs the closure; false when its effects are to be undone.
    fn run(&mut self, transaction: &Transaction<'_>) -> bool;
    /// Answers, after the commit or its failure.
    fn finish(self: Box<Self>, commit: Result<()>);
}

struct Write<T, F> {
    run: Option<F>,
    outcome: Option<Result<T>>,
    reply: oneshot::Sender<Result<T>>,
}

impl<T: Send, F: FnOnce(&Transaction<'_>) -> Result<T> + Send> WriteRequest for Write<T, F> {
    fn run(&mut self, transaction: &Transaction<'_>) -> bool {
        let run = self.run.take().expect("a request runs once");
        let outcome = self.outcome.insert(guarded(|| run(transaction)));
        outcome.is_ok()
    }

    fn finish(self: Box<Self>, commit: Result<()>) {
        let outcome = self.outcome.unwrap_or(Err(Error::Closed));
        let _ = self.reply.send(outcome.and_then(|value| commit.map(|()| value)));
    }
}

/// Turns a panic of a caller's closure into that caller's error: the thread serves others too.
fn guarded<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    let text = |panic: Box<dyn Any + Send>| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
    };
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|panic| Err(Error::Rejected(format!("a catalog request panicked: {}", text(panic)))))
}

/// What the writing thread owns.
pub(crate) struct Writer {
    connection: Connection,
    requests: Receiver<Message<Box<dyn WriteRequest>>>,
    health: Health,
    /// How the next commit fails.
    #[cfg(test)]
    pub(crate) fault: Option<CommitFault>,
}

/// What the reading thread owns.
pub(crate) struct Reader {
    connection: Connection,
    requests: Receiver<Message<ReadRequest>>,
}

/// A commit that fails, for the simulated histories.
#[cfg(test)]
#[derive(Clone, Copy, Debug)]
pub(crate) enum CommitFault {
    /// No room for the log: nothing is committed.
    Full,
    /// The log was written, its sync failed. The next start finds the transaction in the log, or not.
    SyncFailed { found_later: bool },
}

impl Writer {
    fn run(mut self) {
        while let Ok(message) = self.requests.recv()
            && self.serve(message)
        {}
        self.end();
    }

    /// Takes the log into the database.
    pub(crate) fn end(self) {
        if let Err(error) = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
            tracing::warn!(%error, "the catalog's log was not checkpointed; the next start does it");
        }
    }

    /// Commits the first request and those that wait behind it; false when it was told to stop.
    fn serve(&mut self, first: Message<Box<dyn WriteRequest>>) -> bool {
        let Message::Run(first, slot) = first else { return false };
        let mut open = true;
        let mut batch = vec![first];
        // Slots come back as soon as a request is taken up: the queue, not the batch, is bounded
        // by them.
        let mut slots = vec![slot];
        while batch.len() < CATALOG_BATCH_MAX {
            match self.requests.try_recv() {
                Ok(Message::Run(request, slot)) => {
                    batch.push(request);
                    slots.push(slot);
                }
                Ok(Message::Stop) => {
                    open = false;
                    break;
                }
                Err(_) => break,
            }
        }
        let commit = self.commit(&mut batch);
        if let Err(error) = &commit
            && is_failed_sync(error)
        {
            self.health.degrade(error);
        }
        if commit.is_ok()
            && let Err(gone) = self.health.confirm_journal()
        {
            self.health.degrade(&gone);
        }
        for request in batch {
            request.finish(match &commit {
                // Beside a sync that failed, here or in a file, this one proves nothing: ext4 has returned 0 for the
                // log's sync in the very milliseconds in which its journal was given up.
                Ok(()) => self.health.confirm_commit(),
                Err(e) => Err(same_error(e)),
            });
        }
        open
    }

    fn commit(&mut self, batch: &mut [Box<dyn WriteRequest>]) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let step = |sql| transaction.prepare_cached(sql)?.execute([]).map(drop);
        for request in batch {
            step("SAVEPOINT request")?;
            if !request.run(&transaction) {
                step("ROLLBACK TO request")?;
            }
            step("RELEASE request")?;
        }
        #[cfg(test)]
        if let Some(fault) = self.fault.take() {
            return fault.end(transaction);
        }
        transaction.commit()
    }

    /// As the thread does, when a request waits; false when none does.
    #[cfg(test)]
    pub(crate) fn turn(&mut self) -> bool {
        self.requests.try_recv().is_ok_and(|message| self.serve(message))
    }

    #[cfg(test)]
    pub(crate) fn has_work(&self) -> bool {
        !self.requests.is_empty()
    }
}

#[cfg(test)]
impl CommitFault {
    fn end(self, transaction: Transaction<'_>) -> rusqlite::Result<()> {
        let code = match self {
            CommitFault::Full => rusqlite::ffi::SQLITE_FULL,
            CommitFault::SyncFailed { found_later } => {
                if found_later {
                    transaction.commit()?;
                }
                SQLITE_IOERR_FSYNC
            }
        };
        Err(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None))
    }
}

/// SQLite's own sync failed: later commits could build on frames that are not on the disk.
fn is_failed_sync(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|e| e.extended_code);
    matches!(code, Some(SQLITE_IOERR_FSYNC | SQLITE_IOERR_DIR_FSYNC))
}

/// The same failure for each request of a batch.
fn same_error(error: &rusqlite::Error) -> Error {
    match error {
        rusqlite::Error::SqliteFailure(code, message) => {
            Error::from(rusqlite::Error::SqliteFailure(*code, message.clone()))
        }
        other => Error::Rejected(format!("catalog: {other}")),
    }
}

impl Reader {
    fn run(self) {
        while let Ok(Message::Run(request, _slot)) = self.requests.recv() {
            request(&self.connection);
        }
    }

    /// As the thread does, when a request waits; false when none does.
    #[cfg(test)]
    pub(crate) fn turn(&mut self) -> bool {
        let Ok(Message::Run(request, _slot)) = self.requests.try_recv() else { return false };
        request(&self.connection);
        true
    }

    #[cfg(test)]
    pub(crate) fn has_work(&self) -> bool {
        !self.requests.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &[&str] = &["CREATE TABLE numbers (n INTEGER PRIMARY KEY) STRICT"];

    fn open() -> (tempfile::TempDir, Catalog) {
        let dir = tempfile::tempdir().unwrap();
        let catalog = reopen(&dir);
        (dir, catalog)
    }

    fn reopen(dir: &tempfile::TempDir) -> Catalog {
        Catalog::open(&dir.path().join("c.sqlite"), SCRIPT, Health::new(0, dir.path().into())).unwrap()
    }

    async fn insert(catalog: &Catalog, n: i64) -> Result<()> {
        catalog.write(move |tx| Ok(tx.execute("INSERT INTO numbers VALUES (?1)", [n]).map(drop)?)).await
    }

    async fn count(catalog: &Catalog) -> i64 {
        catalog.read(|c| Ok(c.query_row("SELECT count(*) FROM numbers", [], |row| row.get(0))?)).await.unwrap()
    }

    #[tokio::test]
    async fn one_failing_write_takes_no_other_with_it() {
        let (_dir, catalog) = open();
        // Queued behind a slow write, so that they share one transaction.
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let slow = {
            let catalog = catalog.clone();
            tokio::spawn(async move {
                catalog.write(move |_| held.recv().map_err(|e| Error::Rejected(e.to_string()))).await
            })
        };
        let writes: Vec<_> = [1, 2, 2, 3, 1, 4]
            .into_iter()
            .map(|n| {
                let catalog = catalog.clone();
                tokio::spawn(async move { insert(&catalog, n).await.is_ok() })
            })
            .collect();
        tokio::task::yield_now().await;
        hold.send(()).unwrap();
        slow.await.unwrap().unwrap();
        let mut succeeded = 0;
        for write in writes {
            succeeded += i64::from(write.await.unwrap());
        }
        assert_eq!(succeeded, 4);
        assert_eq!(count(&catalog).await, 4);
    }

    #[tokio::test]
    async fn a_failed_or_panicked_write_is_undone_and_the_thread_goes_on() {
        let (_dir, catalog) = open();
        let failed = catalog
            .write(|tx| {
                tx.execute("INSERT INTO numbers VALUES (1)", [])?;
                Err::<(), _>(Error::Rejected("no".into()))
            })
            .await;
        assert!(matches!(failed, Err(Error::Rejected(_))));
        let panicked = catalog
            .write(|tx| {
                tx.execute("INSERT INTO numbers VALUES (1)", [])?;
                if tx.changes() == 1 { panic!("on purpose") } else { Ok(()) }
            })
            .await;
        assert!(panicked.unwrap_err().to_string().contains("on purpose"));
        insert(&catalog, 1).await.unwrap();
        assert_eq!(count(&catalog).await, 1);
    }

    #[tokio::test]
    async fn a_degraded_volume_takes_no_commit_and_still_reads() {
        let (_dir, catalog) = open();
        insert(&catalog, 1).await.unwrap();
        let failed =
            rusqlite::ffi::Error { code: rusqlite::ErrorCode::SystemIoFailure, extended_code: SQLITE_IOERR_FSYNC };
        assert!(is_failed_sync(&rusqlite::Error::SqliteFailure(failed, None)));
        catalog.inner.health.degrade(&"on purpose");
        assert!(matches!(insert(&catalog, 2).await, Err(Error::Degraded { .. })));
        assert_eq!(count(&catalog).await, 1);
    }

    #[tokio::test]
    async fn closing_answers_the_queue_and_then_refuses() {
        let (dir, catalog) = open();
        insert(&catalog, 1).await.unwrap();
        catalog.close().await;
        assert!(matches!(insert(&catalog, 2).await, Err(Error::Closed)));
        let left = std::fs::metadata(dir.path().join("c.sqlite-wal")).map_or(0, |m| m.len());
        assert_eq!(left, 0, "the log was not checkpointed");
        assert_eq!(count(&reopen(&dir)).await, 1);
    }
}
