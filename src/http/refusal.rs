//! Telling a client that there is no connection for it: 503, when to come again, and why.
//!
//! The answer is sent when the client has said something: one that came unasked is an error to many clients. A few refusals
//! are under way at once, each for a short time; beyond that a connection is closed without a word. Each owns its stream.

use std::sync::Arc;

use axum::http::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::admission::Refusal;
use super::linger::Linger;
use crate::limits;

/// The first byte of a client that wants TLS; no request begins with it.
const TLS_HANDSHAKE: u8 = 22;

pub(super) struct Refusals {
    under_way: Arc<Semaphore>,
}

impl Refusals {
    pub(super) fn new() -> Self {
        Self { under_way: Arc::new(Semaphore::new(limits::HTTP_REFUSALS)) }
    }

    pub(super) fn send(&self, stream: TcpStream, refusal: Refusal) {
        let Ok(permit) = self.under_way.clone().try_acquire_owned() else { return };
        tokio::spawn(async move {
            let _ = timeout(limits::HTTP_REFUSAL, tell(stream, &answer(refusal))).await;
            drop(permit);
        });
    }
}

async fn tell(mut stream: TcpStream, answer: &[u8]) -> std::io::Result<()> {
    let mut request = [0; 4096];
    // Whoever begins with TLS could not read the answer.
    if stream.read(&mut request).await? == 0 || request[0] == TLS_HANDSHAKE {
        return Ok(());
    }
    stream.write_all(answer).await?;
    // What the client has sent besides is taken, or the kernel would reset the connection before the answer is read.
    Linger::new(stream).shutdown().await
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
