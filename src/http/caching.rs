//! `Cache-Control` for each class of answers (RFC 9111).
//!
//! An answer that says nothing may be kept by caches as they see fit, a 404 too: so every answer says something. What a
//! client may see by its own right is turned to `private` on the way out (`access`), errors are `no-store` (`problem`).

use axum::http::{HeaderMap, HeaderValue, header};

/// An object under its key. The key may get other bytes at any time: kept, and asked for again by its entity tag.
pub(super) const OBJECT: HeaderValue = HeaderValue::from_static("no-cache");
/// What never has other bytes under its address.
pub(super) const FOR_EVER: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
/// A playlist that is complete. The asset may be removed, and another one never has its address.
pub(super) const FINISHED_PLAYLIST: HeaderValue = HeaderValue::from_static("public, max-age=3600");
/// A playlist that still grows: a player asks again within seconds.
pub(super) const GROWING_PLAYLIST: HeaderValue = HeaderValue::from_static("no-cache");
/// The node's state: lists, jobs, figures.
const STATE: HeaderValue = HeaderValue::from_static("no-cache");

/// What says nothing of caching is the state of something.
pub(super) fn by_default(answer: &mut HeaderMap) {
    answer.entry(header::CACHE_CONTROL).or_insert(STATE);
}
