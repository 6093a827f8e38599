//! `ctx.fetch`, done for the plugin: the same guarded client as every other request of the node.
//!
//! The worker's request is foreign input and is checked anew. A page is held in memory whole, so the number of fetches at
//! one time is bounded over all plugins. The token ends a fetch whose call has ended.

use std::sync::Arc;

use bytes::Bytes;
use reelring_protocol::plugin::{ToWorker, limits as bounds};
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::ingest::guard;
use crate::limits;

/// What a worker asked for.
#[derive(Debug)]
pub struct PageRequest {
    pub fetch: u64,
    pub method: String,
    pub url: String,
    pub headers: Vec<(String, String)>,
    pub body: Option<Bytes>,
}

/// Fetches pages for all plugins. Clones share the bound.
#[derive(Debug, Clone)]
pub struct Pages {
    client: guard::Client,
    slots: Arc<Semaphore>,
}

impl Pages {
    pub fn new(client: guard::Client) -> Pages {
        Pages { client, slots: Arc::new(Semaphore::new(limits::PLUGIN_FETCHES)) }
    }

    /// The answer for the worker: the page, or why there is none.
    pub async fn fetch(&self, request: PageRequest, cancel: &CancellationToken) -> (ToWorker, Bytes) {
        let fetch = request.fetch;
        match self.try_fetch(request, cancel).await {
            Ok(answer) => answer,
            Err(message) => (ToWorker::FetchFailed { fetch, message }, Bytes::new()),
        }
    }

    async fn try_fetch(&self, request: PageRequest, cancel: &CancellationToken) -> Result<(ToWorker, Bytes), String> {
        let PageRequest { fetch, method, url, headers, body } = request;
        let method = match method.as_str() {
            "GET" => Method::GET,
            "HEAD" => Method::HEAD,
            "POST" => Method::POST,
            _ => return Err(format!("ctx.fetch knows GET, HEAD and POST, not {}", shortened(&method))),
        };
        if url.len() > limits::FETCH_URL_BYTES {
            let (bytes, limit) = (url.len(), limits::FETCH_URL_BYTES);
            return Err(format!("the URL given to ctx.fetch has {bytes} bytes, the limit is {limit}"));
        }
        let url = Url::parse(&url).map_err(|error| format!("{} is not a URL: {error}", shortened(&url)))?;
        let headers = header_map(headers)?;
        let _slot = self.slots.acquire().await.map_err(|error| error.to_string())?;
        let sent = self.client.request(method, &url, &headers, body, cancel).await;
        let response = sent.map_err(|failure| failure.message)?;
        let status = response.status.as_u16();
        let url = response.final_url.to_string();
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = response.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let page = response.body.collect(bounds::FETCH_BODY_BYTES).await.map_err(|failure| failure.message)?;
        Ok((ToWorker::Fetched { fetch, status, url, headers }, page))
    }
}

fn header_map(written: Vec<(String, String)>) -> Result<HeaderMap, String> {
    if written.len() > bounds::FETCH_HEADERS {
        return Err(format!("ctx.fetch was given {} headers, the limit is {}", written.len(), bounds::FETCH_HEADERS));
    }
    let mut headers = HeaderMap::with_capacity(written.len());
    for (name, value) in written {
        match (HeaderName::try_from(&name), HeaderValue::try_from(value)) {
            (Ok(known), Ok(value)) => headers.append(known, value),
            _ => return Err(format!("the header {} has a name or value that HTTP does not allow", shortened(&name))),
        };
    }
    Ok(headers)
}

fn shortened(text: &str) -> String {
    format!("{:?}", text.chars().take(80).collect::<String>())
}
