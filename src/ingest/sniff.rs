//! Is it media, or a page about media? Login pages, captchas and "please enable JavaScript" come with status 200 under
//! names like `film.mp4`; stored, they would fail much later and far away from the cause.

use crate::media_type;

/// The types a browser shows as a page.
pub fn is_html_type(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("text/html") || essence.eq_ignore_ascii_case("application/xhtml+xml")
}

/// Whether these first bytes are a page: by how they begin, or by the declared type unless they are plainly binary (media
/// served under a wrong type is still media).
pub fn is_html(head: &[u8], content_type: Option<&str>) -> bool {
    const OPENINGS: &[&[u8]] =
        &[b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<title", b"<meta", b"<iframe"];
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let opens = |opening: &&[u8]| head.len() >= opening.len() && head[..opening.len()].eq_ignore_ascii_case(opening);
    OPENINGS.iter().any(opens) || (content_type.is_some_and(is_html_type) && !is_binary(head))
}

/// Control bytes that no text has; every media container has some in its first lines.
fn is_binary(head: &[u8]) -> bool {
    head.iter().any(|byte| matches!(byte, 0..=8 | 14..=26 | 28..=31))
}

/// The type to record: what the origin says, unless that says nothing; then what the name suggests.
pub fn content_type(declared: Option<&str>, file_name: &str) -> Option<String> {
    let declared = declared.map(str::trim).filter(|declared| (1..=TYPE_BYTES).contains(&declared.len()));
    let essence = declared.and_then(|declared| declared.split(';').next()).unwrap_or_default().trim();
    const SAYS_NOTHING: &[&str] = &[
        "",
        "application/octet-stream",
        "binary/octet-stream",
        "application/force-download",
        "text/plain",
        "text/html",
    ];
    if !SAYS_NOTHING.iter().any(|nothing| nothing.eq_ignore_ascii_case(essence)) {
        return declared.map(str::to_owned);
    }
    media_type::by_name(file_name).or(declared).map(str::to_owned)
}

const TYPE_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages() {
        assert!(is_html(b"\n <!DOCTYPE HTML><title>", Some("video/mp4")));
        assert!(is_html(b"\xef\xbb\xbf<html lang=en>", None));
        assert!(is_html(b"please log in", Some("text/html; charset=utf-8")));
        assert!(is_html(b"<?xml version='1.0'?><!DOCTYPE html>", Some("application/xhtml+xml")));
    }

    #[test]
    fn media() {
        assert!(!is_html(b"\0\0\0\x20ftypisom", Some("video/mp4")));
        assert!(!is_html(b"\0\0\0\x20ftypisom", Some("text/html")), "a wrong type does not make it a page");
        assert!(!is_html(b"#EXTM3U\n", Some("application/vnd.apple.mpegurl")));
        assert!(!is_html(b"1\n00:00:01 --> 00:00:02\n<b>", Some("text/plain")));
        assert!(!is_html(b"", None));
    }

    #[test]
    fn types() {
        assert_eq!(content_type(Some("video/webm; codecs=vp9"), "a.mp4").unwrap(), "video/webm; codecs=vp9");
        assert_eq!(content_type(Some("application/octet-stream"), "a.mp4").unwrap(), "video/mp4");
        assert_eq!(content_type(None, "a.mkv").unwrap(), "video/x-matroska");
        assert_eq!(content_type(Some("application/octet-stream"), "a").unwrap(), "application/octet-stream");
        assert_eq!(content_type(None, "a"), None);
        assert_eq!(content_type(Some(&"x/y".repeat(200)), "a"), None);
    }
}
