//! What kind of content it is: by what its sender says, by its name, by its first bytes, in this order.
//!
//! Bytes are only ever taken for media. What a browser would run (HTML, SVG, scripts) has to be called so by its sender or
//! its name, or anybody who may store an object could make a page of it. Pure; named by `http`, `ingest` and `cli`.

use std::borrow::Cow;

/// Bytes of a type that are kept; a longer one counts as none.
pub const TYPE_BYTES: usize = 256;
/// First bytes that are looked at.
pub const HEAD_BYTES: usize = 512;

const UNKNOWN: &str = "application/octet-stream";

/// The type of an object with this name whose sender declared this type, as far as it is known. An empty `head` means that
/// the bytes are still to come.
pub fn of(declared: Option<&str>, name: &str, head: &[u8]) -> Option<String> {
    let declared = declared.map(str::trim).filter(|declared| is_type(declared));
    if !says_nothing(declared) {
        return declared.map(str::to_string);
    }
    let found = by_name(name).or_else(|| by_bytes(head));
    match declared.filter(|declared| essence(declared) == UNKNOWN) {
        // Many clients say so of everything. It is believed where the difference is more than that a player plays it.
        Some(unknown) => Some(found.filter(|found| is_media(found)).unwrap_or(unknown).to_string()),
        None => found.map(str::to_string),
    }
}

/// Whether a type tells nothing about the content: what programs say when they do not know, and what curl says of every
/// body that it is given with `--data-binary`.
pub fn says_nothing(declared: Option<&str>) -> bool {
    let Some(declared) = declared else { return true };
    matches!(&*essence(declared), UNKNOWN | "binary/octet-stream" | "application/x-www-form-urlencoded")
}

/// What the end of a name promises.
pub fn by_name(name: &str) -> Option<&'static str> {
    let last = name.rsplit('/').next().unwrap_or_default();
    let (stem, extension) = last.rsplit_once('.')?;
    if stem.is_empty() || extension.len() > 8 {
        return None;
    }
    // Where the general list is of another opinion than players are.
    match &*extension.to_ascii_lowercase() {
        "ts" | "m2ts" | "mts" => Some("video/mp2t"),
        "m4s" | "m4v" | "cmfv" => Some("video/mp4"),
        "m4a" | "cmfa" => Some("audio/mp4"),
        "m3u8" => Some("application/vnd.apple.mpegurl"),
        "mpd" => Some("application/dash+xml"),
        "mkv" => Some("video/x-matroska"),
        "mka" => Some("audio/x-matroska"),
        "opus" | "oga" => Some("audio/ogg"),
        "vtt" => Some("text/vtt"),
        "srt" => Some("application/x-subrip"),
        _ => mime_guess::from_ext(extension).first_raw(),
    }
}

/// What the first bytes show, if it is media, a playlist, or a document without life of its own.
pub fn by_bytes(head: &[u8]) -> Option<&'static str> {
    let head = &head[..head.len().min(HEAD_BYTES)];
    let has = |at: usize, bytes: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(bytes));
    let somewhere = |bytes: &[u8]| head.windows(bytes.len()).any(|window| window == bytes);
    if has(4, b"ftyp") {
        return Some(match head.get(8..12).unwrap_or_default() {
            b"qt  " => "video/quicktime",
            b"M4A " | b"M4B " | b"M4P " => "audio/mp4",
            b"avif" | b"avis" => "image/avif",
            b"heic" | b"heix" | b"mif1" | b"msf1" => "image/heic",
            _ => "video/mp4",
        });
    }
    Some(match head {
        _ if has(4, b"styp") || has(4, b"moof") || has(4, b"sidx") => "video/mp4",
        _ if has(0, b"\x1a\x45\xdf\xa3") && somewhere(b"webm") => "video/webm",
        _ if has(0, b"\x1a\x45\xdf\xa3") && somewhere(b"matroska") => "video/x-matroska",
        _ if has(0, b"OggS") && somewhere(b"\x80theora") => "video/ogg",
        _ if has(0, b"OggS") => "audio/ogg",
        _ if has(0, b"RIFF") && has(8, b"WAVE") => "audio/wav",
        _ if has(0, b"RIFF") && has(8, b"AVI ") => "video/x-msvideo",
        _ if has(0, b"RIFF") && has(8, b"WEBP") => "image/webp",
        _ if has(0, b"fLaC") => "audio/flac",
        _ if has(0, b"ID3") || is_mpeg_audio(head) => "audio/mpeg",
        _ if has(0, b"\xff\xf1") || has(0, b"\xff\xf9") => "audio/aac",
        // One packet alone may be anything that begins with a G.
        _ if has(0, b"G") && has(188, b"G") && has(376, b"G") => "video/mp2t",
        _ if has(0, b"\0\0\x01\xba") => "video/mpeg",
        _ if has(0, b"FLV\x01") => "video/x-flv",
        _ if has(0, b"\x89PNG\r\n\x1a\n") => "image/png",
        _ if has(0, b"\xff\xd8\xff") => "image/jpeg",
        _ if has(0, b"GIF87a") || has(0, b"GIF89a") => "image/gif",
        _ if has(0, b"#EXTM3U") || has(0, b"\xef\xbb\xbf#EXTM3U") => "application/vnd.apple.mpegurl",
        _ if has(0, b"WEBVTT") || has(0, b"\xef\xbb\xbfWEBVTT") => "text/vtt",
        _ if has(0, b"%PDF-") => "application/pdf",
        _ => return None,
    })
}

/// Pictures and sound, which a browser plays and never runs.
pub fn is_audio_or_video(content_type: &str) -> bool {
    let essence = essence(content_type);
    essence.starts_with("video/") || essence.starts_with("audio/")
}

fn is_media(content_type: &str) -> bool {
    let essence = essence(content_type);
    is_audio_or_video(&essence)
        || essence.starts_with("image/") && essence != "image/svg+xml"
        || matches!(&*essence, "application/vnd.apple.mpegurl" | "application/dash+xml" | "text/vtt")
}

/// A frame header of MPEG audio with values that exist.
fn is_mpeg_audio(head: &[u8]) -> bool {
    match head {
        [0xff, second, third, ..] => {
            matches!(second, 0xfa | 0xfb | 0xf2 | 0xf3) && third >> 4 != 0xf && third >> 4 != 0 && third >> 2 & 3 != 3
        }
        _ => false,
    }
}

/// Without its parameters, in small letters.
fn essence(content_type: &str) -> Cow<'_, str> {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    match essence.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(essence.to_ascii_lowercase()),
        false => Cow::Borrowed(essence),
    }
}

/// `type/subtype`, with or without parameters, that HTTP can carry. Two types in one header are none.
fn is_type(text: &str) -> bool {
    let is_token = |token: &str| {
        !token.is_empty()
            && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
    };
    let essence = text.split(';').next().unwrap_or_default().trim_end();
    text.len() <= TYPE_BYTES
        && text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        && essence.split_once('/').is_some_and(|(kind, subtype)| is_token(kind) && is_token(subtype))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sender_then_the_name_then_the_bytes() {
        const MP4: &[u8] = b"\0\0\0\x20ftypisom";
        for (declared, name, head, expected) in [
            (Some("video/webm; codecs=vp9"), "a.mp4", MP4, Some("video/webm; codecs=vp9")),
            (Some("text/html"), "a.mp4", MP4, Some("text/html")),
            (None, "films/a.MKV", MP4, Some("video/x-matroska")),
            (None, "a.html", MP4, Some("text/html")),
            (None, "a", MP4, Some("video/mp4")),
            (None, "a", b"", None),
            (None, "a", b"<!doctype html><script>", None),
            (None, "a", b"<svg xmlns='http://www.w3.org/2000/svg'>", None),
            (Some("application/x-www-form-urlencoded"), "a", MP4, Some("video/mp4")),
            (Some("application/x-www-form-urlencoded"), "a", b"x", None),
            (Some("application/octet-stream"), "a.ts", b"", Some("video/mp2t")),
            (Some("application/octet-stream"), "a", MP4, Some("video/mp4")),
            (Some("application/octet-stream"), "a.html", b"x", Some("application/octet-stream")),
            (Some("Application/Octet-Stream; x=y"), "a.svg", b"x", Some("Application/Octet-Stream; x=y")),
            // What is no type counts as none.
            (Some("garbage"), "a.mp4", b"", Some("video/mp4")),
            (Some("text/html, video/mp4"), "a", b"", None),
            (Some("a/b/c"), "a", b"", None),
            (Some("text/h\u{fc}"), "a", b"", None),
        ] {
            assert_eq!(of(declared, name, head).as_deref(), expected, "{declared:?} {name}");
        }
        assert_eq!(of(Some(&format!("a/{}", "b".repeat(TYPE_BYTES))), "a", b""), None);
    }

    #[test]
    fn first_bytes() {
        let mut ts = vec![0xff; HEAD_BYTES];
        (0..3).for_each(|packet| ts[packet * 188] = 0x47);
        for (head, expected) in [
            (&b"\0\0\0\x14ftypqt  "[..], Some("video/quicktime")),
            (b"\0\0\0\x14ftypM4A \0", Some("audio/mp4")),
            (b"\0\0\0\x14ftypavif\0", Some("image/avif")),
            (b"\0\0\0\x14ftyp", Some("video/mp4")),
            (b"\0\0\0\x18styp", Some("video/mp4")),
            (b"\x1a\x45\xdf\xa3\x9f\x42\x82\x84webm", Some("video/webm")),
            (b"\x1a\x45\xdf\xa3\x9f\x42\x82\x88matroska", Some("video/x-matroska")),
            (b"OggS\0\x02OpusHead", Some("audio/ogg")),
            (b"RIFF1234WAVE", Some("audio/wav")),
            (b"RIFF1234", None),
            (b"\xff\xfb\x90\x00", Some("audio/mpeg")),
            (b"\xff\xfb\xf0\x00", None),
            (b"\xff\xf1\x50\x80", Some("audio/aac")),
            (b"#EXTM3U\n", Some("application/vnd.apple.mpegurl")),
            (b"\xef\xbb\xbfWEBVTT\n", Some("text/vtt")),
            (b"Good morning", None),
            (b"", None),
            (&ts, Some("video/mp2t")),
            (&ts[..376], None),
        ] {
            assert_eq!(by_bytes(head), expected, "{:?}", String::from_utf8_lossy(head));
        }
    }

    #[test]
    fn names() {
        for (name, expected) in [
            ("a/b.ts", Some("video/mp2t")),
            ("a.ts/b", None),
            ("A.M3U8", Some("application/vnd.apple.mpegurl")),
            (".mp4", None),
            ("mp4", None),
            ("a.nosuchthing", None),
            ("archive.tar.gz", Some("application/gzip")),
        ] {
            assert_eq!(by_name(name), expected, "{name}");
        }
    }
}
