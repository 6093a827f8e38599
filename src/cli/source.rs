//! A file or standard input as the body of a request.
//!
//! A thread of its own reads and hashes, because a read of a pipe blocks and must not hold up Ctrl-C. It is at most
//! [`AHEAD`] chunks ahead and ends when the body is dropped (a blocked read of a terminal or pipe ends with the process).

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::thread;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::exit::{CliError, Result};
use super::transport::ByteStream;

const CHUNK: usize = 512 << 10;
const AHEAD: usize = 4;

/// Where the bytes of a `put` come from.
pub struct Source {
    reader: Box<dyn Read + Send>,
    /// For messages.
    name: String,
    /// Known for a regular file only.
    pub length: Option<u64>,
}

impl Source {
    /// Opens a file, or standard input for `-`.
    pub fn open(path: &Path) -> Result<Source> {
        if path == Path::new("-") {
            return Ok(Source { reader: Box::new(io::stdin()), name: "standard input".into(), length: None });
        }
        let name = path.display().to_string();
        let failed = |error: io::Error| CliError::failed(format!("cannot read {name}: {error}"));
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Err(CliError::failed(format!("{name} is a directory; `reelring put` stores one file at a time")));
        }
        let length = metadata.is_file().then_some(metadata.len());
        Ok(Source { reader: Box::new(file), name, length })
    }

    /// Starts reading. The receiver gives the BLAKE3 of what was sent once all of it was; `sent` counts the bytes as
    /// they are taken.
    pub fn stream(
        self,
        mut sent: impl FnMut(u64) + Send + 'static,
    ) -> Result<(ByteStream, oneshot::Receiver<blake3::Hash>)> {
        let (chunks, body) = mpsc::channel(AHEAD);
        let (hash, hashed) = oneshot::channel();
        thread::Builder::new()
            .name("read-source".into())
            .spawn(move || self.read(&chunks, hash))
            .map_err(|error| CliError::failed(format!("cannot start a thread: {error}")))?;
        let count = move |chunk: &io::Result<Bytes>| {
            if let Ok(bytes) = chunk {
                sent(bytes.len() as u64);
            }
        };
        Ok((ReceiverStream::new(body).inspect(count).boxed(), hashed))
    }

    fn read(mut self, chunks: &mpsc::Sender<io::Result<Bytes>>, hash: oneshot::Sender<blake3::Hash>) {
        let mut hasher = blake3::Hasher::new();
        // What a file gains while it is read is left out: its length was announced already.
        let mut left = self.length.unwrap_or(u64::MAX);
        while left > 0 {
            let mut chunk = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
            match self.reader.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => {
                    chunk.truncate(read);
                    hasher.update(&chunk);
                    left -= read as u64;
                    if chunks.blocking_send(Ok(chunk.into())).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let error = io::Error::new(error.kind(), format!("cannot read {}: {error}", self.name));
                    let _ = chunks.blocking_send(Err(error));
                    return;
                }
            }
        }
        if let Some(length) = self.length
            && left > 0
        {
            let message = format!("{} became shorter while it was read: {left} of {length} bytes are gone", self.name);
            let _ = chunks.blocking_send(Err(io::Error::new(io::ErrorKind::UnexpectedEof, message)));
            return;
        }
        let _ = hash.send(hasher.finalize());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn source(data: &'static [u8], length: Option<u64>) -> Source {
        Source { reader: Box::new(data), name: "test".into(), length }
    }

    async fn collect(source: Source) -> (Vec<u8>, Option<String>, Option<blake3::Hash>, u64) {
        let count = Arc::new(AtomicU64::new(0));
        let counter = count.clone();
        let count_bytes = move |bytes| {
            counter.fetch_add(bytes, Ordering::Relaxed);
        };
        let (mut body, hash) = source.stream(count_bytes).unwrap();
        let (mut all, mut failure) = (Vec::new(), None);
        while let Some(chunk) = body.next().await {
            match chunk {
                Ok(bytes) => all.extend_from_slice(&bytes),
                Err(error) => failure = Some(error.to_string()),
            }
        }
        (all, failure, hash.await.ok(), count.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn all_of_it_arrives_with_its_hash() {
        static DATA: [u8; 3 * CHUNK + 5] = [7; 3 * CHUNK + 5];
        for length in [None, Some(DATA.len() as u64)] {
            let (all, failure, hash, count) = collect(source(&DATA, length)).await;
            assert!(all == DATA && failure.is_none());
            let length = DATA.len() as u64;
            assert_eq!((hash, count), (Some(blake3::hash(&DATA)), length));
        }
    }

    #[tokio::test]
    async fn a_file_that_grows_is_cut_and_one_that_shrinks_is_an_error() {
        let (all, failure, hash, _) = collect(source(b"hello and more", Some(5))).await;
        assert_eq!((all.as_slice(), failure, hash), (&b"hello"[..], None, Some(blake3::hash(b"hello"))));
        let (_, failure, hash, _) = collect(source(b"hel", Some(5))).await;
        assert!(failure.unwrap().contains("became shorter") && hash.is_none());
    }
}
