//! Telling a client that there is no connection for it: 503, when to come again, and why.
//!
//! The answer is sent when the client has said something: one that came unasked is an error to many clients. With TLS that
//! takes the handshake, and then HTTP/1.1. What the client sends besides, a body say, is taken for a while, or the kernel
//! would reset the connection before the answer is read.
//!
//! So many refusals are under way at once; each owns its stream and its place. When few places are left, the clients that have
//! been silent longest go, and when none is left, whoever comes goes at once. They are told unasked, and so is who says nothing
//! in his time. What such a client still sends is answered by a reset; an answer that has arrived can be read even then, on Linux.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::admission::Refusal;
use super::linger::Rest;
use super::tls::Tls;
use crate::limits;

/// The first byte of a client that wants TLS; no request begins with it.
const TLS_HANDSHAKE: u8 = 22;

pub(super) struct Refusals {
    places: Arc<Semaphore>,
    silent: Arc<Mutex<Silent>>,
    tls: Option<Arc<Tls>>,
}

/// The refusals whose client says nothing, not yet or no more.
#[derive(Default)]
struct Silent {
    /// In the order in which they fell silent.
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
    next: u64,
    /// Those that were sent off and still have their place.
    going: usize,
}

/// One refusal under way.
struct Place {
    silent: Arc<Mutex<Silent>>,
    places: Arc<Semaphore>,
    _permit: OwnedSemaphorePermit,
}

impl Refusals {
    pub(super) fn new(tls: Option<Arc<Tls>>) -> Self {
        Self { places: Arc::new(Semaphore::new(limits::HTTP_REFUSALS)), silent: Arc::default(), tls }
    }

    pub(super) fn send(&self, stream: TcpStream, refusal: Refusal) {
        let acceptor = self.tls.as_ref().map(|tls| tls.acceptor_of_one_request());
        match (self.places.clone().try_acquire_owned(), acceptor) {
            (Ok(permit), acceptor) => {
                let place = Place { silent: self.silent.clone(), places: self.places.clone(), _permit: permit };
                tokio::spawn(async move {
                    let _ = refuse(stream, acceptor, &place, &answer(refusal)).await;
                });
            }
            (Err(_), None) => drop(tell_unasked(stream, &answer(refusal))),
            // In the middle of a handshake nobody understands words.
            (Err(_), Some(_)) => {}
        }
    }
}

impl Silent {
    fn send_off(&mut self, most: usize) {
        while self.going < most
            && let Some((_, longest)) = self.waiting.pop_first()
        {
            self.going += 1;
            let _ = longest.send(());
        }
    }
}

impl Place {
    /// Waits until the client says something; `None` when that takes too long, or others need the place.
    async fn until<T>(&self, limit: Duration, said: impl Future<Output = io::Result<T>>) -> io::Result<Option<T>> {
        let (number, sent_off) = {
            let mut silent = self.silent();
            let (send_off, sent_off) = oneshot::channel();
            let number = silent.next;
            silent.next += 1;
            silent.waiting.insert(number, send_off);
            silent.send_off((limits::HTTP_REFUSALS / 4).saturating_sub(self.places.available_permits()));
            (number, sent_off)
        };
        let said = tokio::select! {
            biased;
            said = said => said.map(Some),
            _ = sent_off => Ok(None),
            () = sleep(limit) => Ok(None),
        };
        let mut silent = self.silent();
        if silent.waiting.remove(&number).is_none() {
            silent.going -= 1;
        }
        said
    }

    fn silent(&self) -> MutexGuard<'_, Silent> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn refuse(stream: TcpStream, acceptor: Option<TlsAcceptor>, place: &Place, answer: &[u8]) -> io::Result<()> {
    // `readable` says yes before anybody has looked.
    let said = place.until(limits::HTTP_REFUSAL, stream.peek(&mut [0])).await?;
    match acceptor {
        None if said.is_none() => tell_unasked(stream, answer),
        None => tell(stream, place, answer, |stream| stream).await,
        Some(_) if said.is_none() => Ok(()),
        Some(acceptor) => {
            let stream = timeout(limits::HTTP_REFUSAL, acceptor.accept(stream)).await??;
            tell(stream, place, answer, |stream| stream.get_mut().0).await
        }
    }
}

async fn tell<S>(mut stream: S, place: &Place, answer: &[u8], rest: Rest<S>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut scratch = vec![0; 16 << 10];
    let first = timeout(limits::HTTP_REFUSAL, stream.read(&mut scratch)).await??;
    // Whoever begins with TLS could not read the answer.
    if first == 0 || scratch[0] == TLS_HANDSHAKE {
        return Ok(());
    }
    let told = async { stream.write_all(answer).await.and(stream.shutdown().await) };
    timeout(limits::HTTP_REFUSAL, told).await??;
    // As `Linger` does it, but for those who are sent off.
    let (mut taken, begun, rest) = (0, Instant::now(), rest(&mut stream));
    while taken < limits::HTTP_LINGER_BYTES && begun.elapsed() < limits::HTTP_LINGER {
        match place.until(limits::HTTP_LINGER_PAUSE, rest.read(&mut scratch)).await? {
            Some(more) if more > 0 => taken += more,
            _ => break,
        }
    }
    Ok(())
}

/// Without waiting for anything.
fn tell_unasked(stream: TcpStream, answer: &[u8]) -> io::Result<()> {
    let mut stream = stream.into_std()?;
    let mut request = [0; 64 << 10];
    match stream.read(&mut request) {
        Ok(_) if request[0] == TLS_HANDSHAKE => return Ok(()),
        Ok(0) => return Ok(()),
        // Nothing has come yet, or something.
        _ => {}
    }
    stream.write_all(answer)?;
    stream.shutdown(Shutdown::Write)
}

fn answer(refusal: Refusal) -> Vec<u8> {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    let reason = status.canonical_reason().unwrap_or_default();
    let body = json!({
        "type": "urn:reelring:problem:too-many-connections",
        "title": reason,
        "status": status.as_u16(),
        "detail": refusal.detail(),
        "request_id": uuid::Uuid::now_v7().simple().to_string(),
    });
    let body = body.to_string();
    let seconds = limits::HTTP_REFUSED_RETRY_AFTER.as_secs();
    format!(
        "HTTP/1.1 {} {reason}\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nRetry-After: {seconds}\r\nConnection: close\r\n\r\n{body}",
        status.as_u16(),
        body.len()
    )
    .into_bytes()
}
