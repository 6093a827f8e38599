//! `Content-Disposition` (RFC 6266) with a file name in any script (RFC 8187), asked for by `?download=NAME`.

use axum::http::HeaderValue;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reelring_storage::Key;

use crate::limits;

/// What RFC 8187 lets stand for itself.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// The header for a query that has `download`; without a name in it the file is called as the key's last part.
pub(super) fn attachment(query: Option<&str>, key: &Key) -> Option<HeaderValue> {
    let (_, asked) = url::form_urlencoded::parse(query?.as_bytes()).find(|(name, _)| name == "download")?;
    let of_key = || file_name(key.as_str().rsplit('/').next().unwrap_or_default());
    let name = Some(file_name(&asked)).filter(|name| !name.is_empty()).unwrap_or_else(of_key);
    let text = match &*name {
        "" => "attachment".to_string(),
        // Some clients decode a percent sign although they should not: such a name is given both ways as well.
        plain if plain.bytes().all(|byte| matches!(byte, b' '..=b'~') && !b"\"\\%".contains(&byte)) => {
            format!("attachment; filename=\"{plain}\"")
        }
        _ => {
            let fallback: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
            let exact = utf8_percent_encode(&name, ENCODED);
            format!("attachment; filename=\"{fallback}\"; filename*=UTF-8''{exact}")
        }
    };
    HeaderValue::from_str(&text).ok()
}

fn is_plain(c: char) -> bool {
    matches!(c, ' '..='~') && !"\"\\%".contains(c)
}

/// What a file can be called: no folders, nothing invisible that would show the name's end elsewhere than it is.
fn file_name(asked: &str) -> String {
    let visible = |c: &char| {
        !c.is_control() && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let named = asked.chars().filter(visible).map(|c| if matches!(c, '/' | '\\') { '_' } else { c });
    named.take(limits::DOWNLOAD_NAME_CHARS).collect::<String>().trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(query: &str) -> Option<String> {
        let key = Key::parse("films/Ålesund by night.mp4").unwrap();
        attachment(Some(query), &key).map(|value| value.to_str().unwrap().to_string())
    }

    #[test]
    fn names() {
        for (query, expected) in [
            ("x=1", None),
            ("download=film.mp4", Some("attachment; filename=\"film.mp4\"")),
            ("a=b&download=My+film.mp4&download=other", Some("attachment; filename=\"My film.mp4\"")),
            (
                "download",
                Some("attachment; filename=\"_lesund by night.mp4\"; filename*=UTF-8''%C3%85lesund%20by%20night.mp4"),
            ),
            (
                "download=%E2%82%AC%20rates",
                Some("attachment; filename=\"_ rates\"; filename*=UTF-8''%E2%82%AC%20rates"),
            ),
            ("download=50%25%22.mp4", Some("attachment; filename=\"50__.mp4\"; filename*=UTF-8''50%25%22.mp4")),
            ("download=../../etc/passwd", Some("attachment; filename=\".._.._etc_passwd\"")),
            ("download=a%0d%0aSet-Cookie:%20b", Some("attachment; filename=\"aSet-Cookie: b\"")),
            ("download=%E2%80%AEgpj.exe", Some("attachment; filename=\"gpj.exe\"")),
        ] {
            assert_eq!(header(query).as_deref(), expected, "{query}");
        }
    }

    proptest! {
        #[test]
        fn any_name_makes_one_bounded_header(name in "\\PC{0,400}") {
            let query: String = url::form_urlencoded::Serializer::new(String::new()).append_pair("download", &name).finish();
            let header = header(&query).expect("a header");
            prop_assert!(header.starts_with("attachment") && header.len() < 3_000, "{}", header);
            prop_assert!(header.matches('"').count() <= 2 && header.bytes().all(|byte| matches!(byte, b' '..=b'~')));
        }
    }
}
