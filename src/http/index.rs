//! An address that ends with `/` is a folder: a page with links to what lies in it.
//!
//! For people, and for programs that read a directory from a page (rclone's http backend, `wget -r`). The page is sent
//! while it is read from the catalog, some rows at a time, so a folder of any size takes no memory; it ends at
//! [`limits::INDEX_ENTRIES`].

use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use jiff::Timestamp;
use percent_encoding::utf8_percent_encode;
use reelring_storage::{Entry, Error as StorageError};

use super::access::SIGNATURE;
use super::problem::Problem;
use crate::address::SEGMENT;
use crate::limits;
use crate::node::Node;

/// Whether the client can only read JSON: a program that asks for the list.
pub(super) fn wants_json(headers: &HeaderMap) -> bool {
    let accepts = |kind: &str| {
        let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|one| one.split(';').next().unwrap_or_default().trim() == kind)
    };
    accepts("application/json") && !accepts("text/html")
}

/// The page of the folder `prefix`, which is empty or ends with `/`; nothing when there is no such folder.
///
/// Links of a page that was reached by a signed address carry the signature on: what it covers, they reach.
pub(super) async fn page(node: &Arc<Node>, prefix: &str, signature: Option<&str>) -> Result<Option<Response>, Problem> {
    let query = signature.map(|signature| format!("?{SIGNATURE}={}", utf8_percent_encode(signature, SEGMENT)));
    let query = query.unwrap_or_default();
    let mut page = Page { node: node.clone(), prefix: prefix.into(), query, from: Some(prefix.into()), entries: 0 };
    let (first, found) = page.rows().await?;
    if found == 0 && !prefix.is_empty() {
        return Ok(None);
    }
    let mut head = head(prefix, &page.query);
    head.push_str(&first);
    let rest = stream::try_unfold(page, |mut page| async move {
        match page.from.is_some() {
            true => page.rows().await.map(|(rows, _)| Some((rows, page))),
            false => Ok(None),
        }
    });
    let body = futures_util::StreamExt::chain(stream::iter([Ok::<_, StorageError>(head)]), rest);
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"),
        ),
        (header::VARY, HeaderValue::from_static("Accept")),
    ];
    Ok(Some((headers, Body::from_stream(body)).into_response()))
}

/// How far the page has come.
struct Page {
    node: Arc<Node>,
    prefix: String,
    /// What each link ends with.
    query: String,
    /// Where the next rows begin; nothing after the last ones.
    from: Option<String>,
    entries: usize,
}

impl Page {
    /// The next rows, and how many they are.
    async fn rows(&mut self) -> Result<(String, usize), StorageError> {
        let Some(from) = self.from.take() else { return Ok((String::new(), 0)) };
        let (entries, next) = self.node.store().list_folder(&self.prefix, &from, limits::INDEX_PAGE).await?;
        let mut rows = String::new();
        for entry in &entries {
            row(&mut rows, &self.prefix, &self.query, entry);
        }
        self.entries += entries.len();
        self.from = next;
        if self.from.is_some() && self.entries >= limits::INDEX_ENTRIES {
            self.from = None;
            let prefix = utf8_percent_encode(&self.prefix, SEGMENT);
            let _ = writeln!(
                rows,
                "<tr><td colspan=3>More than {} entries; <a href=\"/v1/objects?prefix={prefix}\">the list</a> has them all.",
                limits::INDEX_ENTRIES
            );
        }
        Ok((rows, entries.len()))
    }
}

fn head(prefix: &str, query: &str) -> String {
    let mut head = String::from(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\n\
         <style>body{font-family:system-ui,sans-serif;margin:2em}td,th{padding:.2em 1.5em .2em 0;text-align:left}\
         td:nth-child(2){text-align:right;font-variant-numeric:tabular-nums}</style>\n<title>Index of /",
    );
    escape(&mut head, prefix);
    head.push_str("</title>\n<h1>Index of /");
    escape(&mut head, prefix);
    head.push_str("</h1>\n<table><tr><th>Name<th>Bytes<th>Modified\n");
    if !prefix.is_empty() && query.is_empty() {
        head.push_str("<tr><td><a href=\"../\">../</a>\n");
    }
    head
}

fn row(rows: &mut String, prefix: &str, query: &str, entry: &Entry) {
    let key = match entry {
        Entry::Folder(folder) => folder.as_str(),
        Entry::Object(object) => object.key.as_str(),
    };
    let name = key.strip_prefix(prefix).unwrap_or(key);
    // The slash at the end says that it is a folder. A part without a name is nothing but its slash.
    let (bare, slash) = match name.strip_suffix('/') {
        Some("") => ("/", ""),
        Some(bare) => (bare, "/"),
        None => (name, ""),
    };
    let _ = write!(rows, "<tr><td><a href=\"{}{slash}{query}\">", utf8_percent_encode(bare, SEGMENT));
    escape(rows, name);
    rows.push_str("</a>");
    if let Entry::Object(object) = entry {
        let modified = Timestamp::from_millisecond(object.modified_ms).unwrap_or_default();
        let _ = write!(rows, "<td>{}<td>{}", object.length, modified.strftime("%Y-%m-%d %H:%M"));
    }
    rows.push('\n');
}

fn escape(into: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => into.push_str("&amp;"),
            '<' => into.push_str("&lt;"),
            '>' => into.push_str("&gt;"),
            '"' => into.push_str("&quot;"),
            '\'' => into.push_str("&#39;"),
            c => into.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_markup_and_no_address() {
        let mut rows = String::new();
        for folder in ["p/<script>/", "p/a b:c?#/", "p//", "p/../", "p/é/"] {
            row(&mut rows, "p/", "", &Entry::Folder(folder.into()));
        }
        let expected = "<tr><td><a href=\"%3Cscript%3E/\">&lt;script&gt;/</a>\n\
                        <tr><td><a href=\"a%20b%3Ac%3F%23/\">a b:c?#/</a>\n\
                        <tr><td><a href=\"%2F\">/</a>\n\
                        <tr><td><a href=\"../\">../</a>\n\
                        <tr><td><a href=\"%C3%A9/\">é/</a>\n";
        assert_eq!(rows, expected);
        rows.clear();
        row(&mut rows, "p/", "?signature=x", &Entry::Folder("p/a/".into()));
        assert_eq!(rows, "<tr><td><a href=\"a/?signature=x\">a/</a>\n");
    }

    #[test]
    fn programs_that_ask_for_json_get_it() {
        let of = |accept: &'static str| {
            wants_json(&HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]))
        };
        assert!(!wants_json(&HeaderMap::new()));
        assert!(of("application/json") && of("text/plain, application/json;q=0.5"));
        assert!(!of("*/*") && !of("text/html,application/xhtml+xml,*/*;q=0.8") && !of("application/json, text/html"));
    }
}
