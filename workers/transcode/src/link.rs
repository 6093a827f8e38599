//! The worker's end of the socket: messages out from any thread, `Cancel` and the node's death in.
//!
//! A segment goes out under one lock, so its pieces are never mixed with another rendition's, and a node that does not
//! read blocks the encoder that wants to send: that is the whole back-pressure. When the node closes the socket (it always
//! does by dying) the process ends at once, whatever a codec is doing. A parent-death signal is not used: it follows the
//! thread that spawned the worker, and in the node threads come and go.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use reelring_protocol::limits::SEGMENT_CHUNK_BYTES;
use reelring_protocol::transcode::{FromWorker, Segment, ToWorker};
use reelring_protocol::{FrameReader, FrameWriter};

use crate::error::Failure;

pub struct Link {
    writer: Mutex<FrameWriter<UnixStream>>,
    cancelled: Arc<AtomicBool>,
}

/// The reading side until the plan has come; then [`Commands::watch`] takes it to its own thread.
pub struct Commands(FrameReader<UnixStream>);

/// Takes the socket that is the process's standard input.
pub fn connect() -> Result<(Arc<Link>, Commands), Failure> {
    let broken = |error: std::io::Error| {
        Failure::internal(format!(
            "standard input is not the node's socket ({error}): only the node starts this program"
        ))
    };
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().map_err(broken)?);
    socket.peer_addr().map_err(broken)?;
    let reader = socket.try_clone().map_err(broken)?;
    let link = Link { writer: Mutex::new(FrameWriter::new(socket)), cancelled: Arc::default() };
    Ok((Arc::new(link), Commands(FrameReader::new(reader))))
}

impl Link {
    pub fn send(&self, message: &FromWorker) -> Result<(), Failure> {
        self.send_with(message, &[])
    }

    pub fn send_with(&self, message: &FromWorker, payload: &[u8]) -> Result<(), Failure> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(writer.write(message, payload)?)
    }

    pub fn note(&self, text: impl Into<String>) -> Result<(), Failure> {
        self.send(&FromWorker::Note { text: text.into() })
    }

    pub fn send_segment(&self, segment: Segment, bytes: &[u8]) -> Result<(), Failure> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let data = FromWorker::Data { rendition: segment.rendition.clone(), index: segment.index };
        for chunk in bytes.chunks(SEGMENT_CHUNK_BYTES) {
            writer.write(&data, chunk)?;
        }
        Ok(writer.write(&FromWorker::Segment(segment), &[])?)
    }

    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        self.cancelled.clone()
    }

    pub fn check_cancelled(&self) -> Result<(), Failure> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Failure::cancelled()) } else { Ok(()) }
    }
}

impl Commands {
    /// The next command; the end of the stream means that the node has gone or no longer wants this job.
    pub fn next(&mut self) -> Result<ToWorker, Failure> {
        match self.0.read::<ToWorker>()? {
            Some(frame) => Ok(frame.message),
            None => Err(Failure::cancelled()),
        }
    }

    /// From now on a thread waits for `Cancel`, and for the end of the node.
    pub fn watch(mut self, link: &Link) -> Result<(), Failure> {
        let flag = link.cancel_flag();
        let watch = move || loop {
            match self.next() {
                Ok(ToWorker::Cancel) => flag.store(true, Ordering::Relaxed),
                Ok(other) => crate::log::say(&format!("unexpected message while encoding: {other:?}")),
                // SAFETY: ends the process without running exit handlers, which would race with the codec threads.
                Err(_) => unsafe { libc::_exit(crate::EXIT_ABANDONED) },
            }
        };
        std::thread::Builder::new()
            .name("commands".into())
            .spawn(watch)
            .map(drop)
            .map_err(|error| Failure::internal(format!("no thread for commands: {error}")))
    }
}
