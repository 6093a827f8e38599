//! Storing a large file on a running node, so that a lost connection or a restart of the node costs only what was on its
//! way: an upload by the IETF's draft (docs/design/uploads.md), which answers at its end as a PUT does.
//!
//! The file is read by a thread for each attempt, which ends when the attempt's body is dropped. Its bytes are hashed
//! once, however often they are sent. When the command is interrupted the node is told to drop the upload.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::StreamExt;
use reelring_storage::Key;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::client::{Client, Stored, etag, header, put_headers, refusal};
use super::exit::{CliError, Result};
use super::transport::{ByteStream, CALL_TIMEOUT, RequestBody};
use crate::address;

/// From this length on an upload is worth the two requests more.
pub const RESUMABLE_BYTES: u64 = 32 << 20;

/// Attempts without a new byte in between, and the pause before the next one, which doubles up to a limit.
const ATTEMPTS: u32 = 12;
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
const CHUNK: usize = 512 << 10;
const AHEAD: usize = 4;

const COMPLETE: HeaderName = HeaderName::from_static("upload-complete");
const OFFSET: HeaderName = HeaderName::from_static("upload-offset");

/// A regular file that is sent in as many attempts as it takes.
pub struct Parts {
    path: PathBuf,
    length: u64,
    seen: Arc<Mutex<Seen>>,
}

/// What all attempts together have read.
struct Seen {
    hasher: blake3::Hasher,
    to: u64,
    /// The file itself is to blame: trying again does not help.
    failure: Option<String>,
    progress: Box<dyn FnMut(u64) + Send>,
}

impl Parts {
    pub fn new(path: &Path, length: u64, progress: impl FnMut(u64) + Send + 'static) -> Parts {
        let seen = Seen { hasher: blake3::Hasher::new(), to: 0, failure: None, progress: Box::new(progress) };
        Parts { path: path.to_owned(), length, seen: Arc::new(Mutex::new(seen)) }
    }

    /// BLAKE3 of what was sent, once all of it was.
    pub fn hash(&self) -> Option<blake3::Hash> {
        let seen = self.seen();
        (seen.to == self.length).then(|| seen.hasher.finalize())
    }

    fn failure(&self) -> Option<CliError> {
        self.seen().failure.clone().map(CliError::failed)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes from `offset` on, which is not beyond what was read before.
    fn from(&self, offset: u64) -> Result<ByteStream> {
        let (chunks, body) = mpsc::channel(AHEAD);
        let (path, length, seen) = (self.path.clone(), self.length, Arc::clone(&self.seen));
        let read = move || {
            if let Err(error) = read(&path, offset, length, &seen, &chunks) {
                let message = format!("cannot read {}: {error}", path.display());
                seen.lock().unwrap_or_else(PoisonError::into_inner).failure = Some(message.clone());
                let _ = chunks.blocking_send(Err(io::Error::other(message)));
            }
        };
        thread::Builder::new()
            .name("read-source".into())
            .spawn(read)
            .map_err(|error| CliError::failed(format!("cannot start a thread: {error}")))?;
        Ok(ReceiverStream::new(body).boxed())
    }
}

fn read(
    path: &Path,
    offset: u64,
    length: u64,
    seen: &Mutex<Seen>,
    chunks: &mpsc::Sender<io::Result<bytes::Bytes>>,
) -> io::Result<()> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut at = offset;
    while at < length {
        let mut chunk = vec![0; CHUNK.min(usize::try_from(length - at).unwrap_or(CHUNK))];
        let bytes = match file.read(&mut chunk) {
            Ok(0) => {
                let message =
                    format!("it became shorter while it was read: {} of {length} bytes are gone", length - at);
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            bytes => bytes?,
        };
        chunk.truncate(bytes);
        let end = at + bytes as u64;
        {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            if end > seen.to {
                let new = (end - seen.to) as usize;
                seen.hasher.update(&chunk[bytes - new..]);
                seen.to = end;
                (seen.progress)(new as u64);
            }
        }
        at = end;
        if chunks.blocking_send(Ok(chunk.into())).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

impl Client {
    /// Begins an upload; `None` where the node has none of these.
    pub async fn begin_upload(
        &self,
        key: &Key,
        length: u64,
        content_type: Option<&str>,
        replace: bool,
    ) -> Result<Option<String>> {
        let mut request = self.request(Method::POST, "/v1/uploads".into());
        request.timeout = Some(CALL_TIMEOUT);
        request.headers.insert(COMPLETE, HeaderValue::from_static("?0"));
        request.headers.insert("upload-length", length.into());
        let metadata = format!("key {}", BASE64_STANDARD.encode(key.as_str()));
        request.headers.insert("upload-metadata", HeaderValue::from_str(&metadata).expect("base64 is a header value"));
        put_headers(&mut request, content_type, replace)?;
        let reply = self.send(request).await?;
        match reply.status {
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Ok(None),
            status if status.is_success() => Ok(header(&reply, &LOCATION)),
            _ => Err(refusal(reply).await),
        }
    }

    /// Sends the file to an upload, again from where the node has it when the connection breaks.
    pub async fn finish_upload(&self, upload: &str, key: &Key, parts: &Parts) -> Result<Stored> {
        let (mut offset, mut failures) = (0, 0);
        loop {
            let failed = match self.append(upload, offset, key, parts).await {
                Ok(stored) => return Ok(stored),
                Err(Failed::ForGood(error)) => return Err(parts.failure().unwrap_or(error)),
                Err(Failed::Perhaps(error)) => parts.failure().map_or(Ok(error), Err)?,
            };
            // Where is it? The node may not be back yet.
            let mut last = failed;
            loop {
                failures += 1;
                if failures > ATTEMPTS {
                    return Err(last);
                }
                tokio::time::sleep((PAUSE * (1 << (failures - 1).min(8))).min(PAUSE_MAX)).await;
                match self.upload_offset(upload).await {
                    Ok(found) => {
                        if found > offset {
                            failures = 0;
                        }
                        offset = found;
                        break;
                    }
                    Err(Failed::Perhaps(error)) => last = error,
                    Err(Failed::ForGood(error)) => return Err(error),
                }
            }
        }
    }

    /// Lets the node drop what it has of it.
    pub async fn drop_upload(&self, upload: &str) {
        let mut request = self.request(Method::DELETE, upload.to_owned());
        request.timeout = Some(CALL_TIMEOUT);
        let _ = self.send(request).await;
    }

    async fn append(&self, upload: &str, offset: u64, key: &Key, parts: &Parts) -> std::result::Result<Stored, Failed> {
        let mut request = self.request(Method::PATCH, upload.to_owned());
        request.headers.insert(COMPLETE, HeaderValue::from_static("?1"));
        request.headers.insert(OFFSET, offset.into());
        request.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/partial-upload"));
        request.headers.insert(CONTENT_LENGTH, parts.length.saturating_sub(offset).into());
        request.body = RequestBody::Stream(parts.from(offset).map_err(Failed::ForGood)?);
        let reply = self.send(request).await.map_err(Failed::Perhaps)?;
        match reply.status {
            status if status.is_success() => {
                let (created, blake3) = (status == StatusCode::CREATED, etag(&reply));
                let object = self.parse(reply, &address::of_object(key)).await.map_err(Failed::Perhaps)?;
                Ok(Stored { created, blake3, object })
            }
            status if status.is_server_error() && status != StatusCode::INSUFFICIENT_STORAGE => {
                Err(Failed::Perhaps(refusal(reply).await))
            }
            // It is further, or not as far, as was thought.
            StatusCode::CONFLICT | StatusCode::REQUEST_TIMEOUT => Err(Failed::Perhaps(refusal(reply).await)),
            _ => Err(Failed::ForGood(refusal(reply).await)),
        }
    }

    async fn upload_offset(&self, upload: &str) -> std::result::Result<u64, Failed> {
        let mut request = self.request(Method::HEAD, upload.to_owned());
        request.timeout = Some(CALL_TIMEOUT);
        let reply = self.send(request).await.map_err(Failed::Perhaps)?;
        match reply.status {
            status if status.is_success() => {
                let offset = header(&reply, &OFFSET).and_then(|text| text.parse().ok());
                offset.ok_or_else(|| Failed::ForGood(CliError::failed("the node does not say how far the upload is")))
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                Err(Failed::ForGood(CliError::failed("the node has lost the upload; run the command again")))
            }
            _ => Err(Failed::Perhaps(refusal(reply).await)),
        }
    }
}

enum Failed {
    /// Trying again may help.
    Perhaps(CliError),
    ForGood(CliError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_sent_twice_is_hashed_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("film");
        let data: Vec<u8> = (0..3 * CHUNK as u32).map(|at| (at / 7) as u8).collect();
        std::fs::write(&path, &data).unwrap();
        let parts = Parts::new(&path, data.len() as u64, |_| {});
        let all = async |offset: u64, chunks: usize| {
            let mut body = parts.from(offset).unwrap();
            let mut sent = Vec::new();
            for _ in 0..chunks {
                match body.next().await {
                    Some(chunk) => sent.extend_from_slice(&chunk.unwrap()),
                    None => break,
                }
            }
            sent
        };
        assert!(all(0, 1).await == data[..CHUNK]);
        assert!(all(10, usize::MAX).await == data[10..]);
        assert_eq!(parts.hash(), Some(blake3::hash(&data)));

        let longer = Parts::new(&path, data.len() as u64 + 1, |_| {});
        let mut body = longer.from(0).unwrap();
        let mut last = Ok(bytes::Bytes::new());
        while let Some(chunk) = body.next().await {
            last = chunk;
        }
        assert!(last.unwrap_err().to_string().contains("became shorter"));
        assert!(longer.failure().is_some() && longer.hash().is_none());
    }
}
