//! What to call a fetched file: a suggestion for its key, made from what the origin says.
//!
//! The name is metadata. It is never a path on this machine, but people will save it as one, so it has no directories, no
//! control characters, no characters that reverse or hide text, and no leading dot.

use percent_encoding::percent_decode_str;
use reqwest::header::HeaderValue;
use url::Url;

use crate::limits;

/// The name in `Content-Disposition`, else the last part of the address, else `download`; with an extension if the type
/// is a known one and the name has none.
pub fn suggest(disposition: Option<&HeaderValue>, url: &Url, content_type: Option<&str>) -> String {
    let told = disposition.and_then(|value| from_disposition(&decode(value.as_bytes())));
    let name = told.and_then(|name| sanitise(&name)).or_else(|| {
        let last = url.path_segments()?.rfind(|part| !part.is_empty())?;
        sanitise(&percent_decode_str(last).decode_utf8_lossy())
    });
    let name = name.unwrap_or_else(|| "download".into());
    match content_type.and_then(extension) {
        Some(extension) if split_extension(&name).1.is_empty() => shorten(&format!("{name}.{extension}")),
        _ => shorten(&name),
    }
}

/// The name of a file that has a title: the title, with the extension that is told or else that of `like`.
pub fn of_title(title: &str, extension: Option<&str>, like: &str) -> Option<String> {
    let title = sanitise(&title.replace(['/', '\\'], "-"))?;
    let extension =
        extension.and_then(sanitise).unwrap_or_else(|| split_extension(like).1.trim_start_matches('.').into());
    Some(shorten(&if extension.is_empty() { title } else { format!("{title}.{extension}") }))
}

/// Header bytes as people send them: UTF-8 if it is that, else Latin-1.
fn decode(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|&byte| char::from(byte)).collect(),
    }
}

/// `filename*` (RFC 5987) if it can be read, else `filename` (RFC 6266).
fn from_disposition(text: &str) -> Option<String> {
    let (mut plain, mut extended) = (None, None);
    let mut rest = text.split_once(';')?.1;
    while let Some((name, tail)) = rest.split_once('=') {
        let (value, tail) = parameter(tail.trim_start());
        match name.trim().to_ascii_lowercase().as_str() {
            "filename" if plain.is_none() => plain = Some(value),
            "filename*" if extended.is_none() => extended = from_extended(&value),
            _ => {}
        }
        rest = tail;
    }
    extended.or(plain)
}

/// One value, quoted or not, and what follows its `;`.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_once(';').unwrap_or((text, ""));
        return (value.trim().to_owned(), rest);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => {
                let rest = &quoted[at + 1..];
                return (value, rest.split_once(';').map_or("", |(_, rest)| rest));
            }
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

fn from_extended(value: &str) -> Option<String> {
    let mut parts = value.splitn(3, '\'');
    let (charset, _language, encoded) = (parts.next()?, parts.next()?, parts.next()?);
    let bytes = percent_decode_str(encoded);
    match charset.to_ascii_lowercase().as_str() {
        "utf-8" => bytes.decode_utf8().ok().map(Into::into),
        "iso-8859-1" => Some(bytes.map(char::from).collect()),
        _ => None,
    }
}

fn sanitise(name: &str) -> Option<String> {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let clean: String = last.chars().filter(|&character| !hides(character)).collect();
    let clean = clean.trim_matches(|character: char| character.is_whitespace() || character == '.');
    (!clean.is_empty()).then(|| clean.to_owned())
}

/// Controls, and the invisible characters that make a name read as another.
fn hides(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{fffd}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// Cuts the stem and keeps the extension.
fn shorten(name: &str) -> String {
    let limit = limits::FETCH_NAME_BYTES;
    if name.len() <= limit {
        return name.to_owned();
    }
    let (stem, extension) = split_extension(name);
    let room = limit - extension.len();
    let mut end = room.min(stem.len());
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{extension}", stem[..end].trim_end())
}

/// The name in two, the extension with its dot: short and alphanumeric, or none.
fn split_extension(name: &str) -> (&str, &str) {
    match name.rfind('.') {
        Some(at) if at > 0 && (2..=10).contains(&(name.len() - at)) => {
            let plain = name[at + 1..].bytes().all(|byte| byte.is_ascii_alphanumeric());
            if plain { name.split_at(at) } else { (name, "") }
        }
        _ => (name, ""),
    }
}

fn extension(content_type: &str) -> Option<&'static str> {
    Some(match content_type.split(';').next()?.trim().to_ascii_lowercase().as_str() {
        "video/mp4" | "application/mp4" => "mp4",
        "video/webm" => "webm",
        "video/x-matroska" | "video/matroska" => "mkv",
        "video/quicktime" => "mov",
        "video/mp2t" => "ts",
        "video/mpeg" => "mpg",
        "video/ogg" => "ogv",
        "video/x-msvideo" => "avi",
        "video/x-flv" => "flv",
        "audio/mpeg" => "mp3",
        "audio/mp4" | "audio/x-m4a" => "m4a",
        "audio/aac" => "aac",
        "audio/ogg" => "ogg",
        "audio/flac" | "audio/x-flac" => "flac",
        "audio/wav" | "audio/x-wav" => "wav",
        "audio/webm" => "weba",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_title_keeps_the_files_extension() {
        for (title, extension, like, expected) in [
            ("A film", None, "x.mp4", Some("A film.mp4")),
            ("A film", Some("webm"), "x.mp4", Some("A film.webm")),
            ("AC/DC: live", None, "download", Some("AC-DC: live")),
            ("../..", None, "x.mp4", Some("-.mp4")),
            (" \u{202e} ", None, "x.mp4", None),
        ] {
            assert_eq!(of_title(title, extension, like).as_deref(), expected, "{title}");
        }
    }

    fn named(disposition: &str) -> String {
        let value = HeaderValue::from_bytes(disposition.as_bytes()).unwrap();
        suggest(Some(&value), &Url::parse("http://o/from-url.mp4").unwrap(), None)
    }

    fn from_url(url: &str, content_type: Option<&str>) -> String {
        suggest(None, &Url::parse(url).unwrap(), content_type)
    }

    #[test]
    fn content_disposition() {
        assert_eq!(named("attachment; filename=film.mp4"), "film.mp4");
        assert_eq!(named("attachment; filename=\"a; b \\\"c\\\".mp4\"; size=5"), "a; b \"c\".mp4");
        assert_eq!(
            named("attachment; filename=\"plain.mp4\"; filename*=UTF-8'en'%e2%82%ac%20rates.mp4"),
            "€ rates.mp4"
        );
        assert_eq!(named("attachment; filename*=iso-8859-1''%A3.mp4"), "£.mp4");
        assert_eq!(named("attachment; filename*=utf-8''%ff%fe; filename=b.mp4"), "b.mp4");
        assert_eq!(named("attachment; filename=\"größe.mp4\""), "größe.mp4");
        assert_eq!(named("inline"), "from-url.mp4");
        assert_eq!(named("attachment; filename=\"\""), "from-url.mp4");
        assert_eq!(named("attachment; filename=\"unclosed.mp4"), "unclosed.mp4");
    }

    #[test]
    fn latin_1_bytes() {
        let value = HeaderValue::from_bytes(b"attachment; filename=\"gr\xf6\xdfe.mp4\"").unwrap();
        assert_eq!(suggest(Some(&value), &Url::parse("http://o/").unwrap(), None), "größe.mp4");
    }

    #[test]
    fn hostile_names_lose_their_teeth() {
        assert_eq!(named("attachment; filename=\"../../etc/passwd\""), "passwd");
        assert_eq!(named("attachment; filename=\"C:\\\\Windows\\\\x.exe\""), "x.exe");
        assert_eq!(named("attachment; filename=\"..\""), "from-url.mp4");
        assert_eq!(named("attachment; filename=\".bashrc\""), "bashrc");
        assert_eq!(named("attachment; filename*=UTF-8''%00a%0d%0ab%1b.mp4"), "ab.mp4");
        assert_eq!(named("attachment; filename*=UTF-8''film%E2%80%AE4pm.exe"), "film4pm.exe");
        assert_eq!(named("attachment; filename*=UTF-8''..%2f..%2fx.mp4"), "x.mp4");
    }

    #[test]
    fn the_address_names_it_otherwise() {
        assert_eq!(from_url("http://o/a/b%20c.mp4?token=1", None), "b c.mp4");
        assert_eq!(from_url("http://o/a/", None), "a");
        assert_eq!(from_url("http://o/", Some("video/mp4")), "download.mp4");
        assert_eq!(from_url("http://o/watch", Some("video/webm; codecs=vp9")), "watch.webm");
        assert_eq!(from_url("http://o/v1.2", Some("application/octet-stream")), "v1.2");
        assert_eq!(from_url("http://o/%2e%2e%2fx", None), "x");
    }

    #[test]
    fn a_long_name_keeps_its_extension() {
        let name = from_url(&format!("http://o/{}.mp4", "%C3%A9".repeat(300)), None);
        assert!(name.len() <= limits::FETCH_NAME_BYTES && name.ends_with("é.mp4"), "{name}");
    }

    proptest! {
        #[test]
        fn every_suggestion_is_a_usable_key(bytes in proptest::collection::vec(32u8..=255, 0..300), path in "\\PC{0,60}") {
            let value = [b"attachment; filename=".as_slice(), &bytes].concat();
            let value = HeaderValue::from_bytes(&value).ok();
            let mut url = Url::parse("http://o/").unwrap();
            url.set_path(&path);
            let name = suggest(value.as_ref(), &url, Some("video/mp4"));
            prop_assert!(!name.is_empty() && name.len() <= limits::FETCH_NAME_BYTES);
            prop_assert!(!name.contains(['/', '\\']) && !name.starts_with('.') && !name.contains(hides));
        }
    }
}
