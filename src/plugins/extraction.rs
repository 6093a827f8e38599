//! What `extract` returned, checked: the one address to download and what goes with it.
//!
//! A plugin returns `{ url, … }` for one format or `{ formats: [{ url, … }, …] }` for a choice. Fields that the node does
//! not know are ignored (an extractor may say more than we use); those it knows must have their type. Of several formats
//! the one with both picture and sound wins, then the taller, then the one with the higher `tbr`, then the later in the
//! list; formats with DRM are left out.

use std::collections::BTreeMap;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use url::Url;

use crate::limits;

/// What a plugin found behind a page's address.
#[derive(Debug, Clone)]
pub struct Extraction {
    /// The plugin's id.
    pub plugin: String,
    pub title: Option<String>,
    pub url: Url,
    pub headers: HeaderMap,
    pub ext: Option<String>,
    pub format_id: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ExtractionError {
    #[error("it returned nothing; return an object with `url` or `formats`")]
    Nothing,
    #[error("what it returned is not valid: {0}")]
    Shape(#[from] serde_json::Error),
    #[error("what it returned has neither `url` nor `formats`")]
    NoUrl,
    #[error("what it returned has both `url` and `formats`; return one of them")]
    UrlAndFormats,
    #[error("it returned {found} formats, the limit is {}", limits::PLUGIN_FORMATS)]
    TooManyFormats { found: usize },
    #[error("it returned an empty list of formats")]
    NoFormats,
    #[error("every format it returned is protected by DRM, which Reelring does not remove")]
    OnlyDrm,
    #[error("{place} is not a URL ({reason}): {url:?}")]
    NotAUrl { place: String, url: String, reason: url::ParseError },
    #[error("{place} has the scheme {scheme:?}; only http and https are fetched")]
    Scheme { place: String, scheme: String },
    #[error("{place} has {bytes} bytes, the limit is {limit}")]
    TooLong { place: String, bytes: usize, limit: usize },
    #[error("{place} has {found} entries, the limit is {}", limits::JOB_HEADERS)]
    TooManyHeaders { place: String, found: usize },
    #[error("{place} has a name or value that HTTP does not allow: {name:?}")]
    BadHeader { place: String, name: String },
    #[error("{place} is {ext:?}; use 1 to 16 letters or digits")]
    BadExt { place: String, ext: String },
}

#[derive(Debug, Deserialize)]
struct Returned {
    title: Option<String>,
    formats: Option<Vec<Format>>,
    #[serde(flatten)]
    single: Format,
}

#[derive(Debug, Deserialize)]
struct Format {
    url: Option<String>,
    format_id: Option<String>,
    ext: Option<String>,
    height: Option<f64>,
    tbr: Option<f64>,
    vcodec: Option<String>,
    acodec: Option<String>,
    has_drm: Option<bool>,
    http_headers: Option<BTreeMap<String, String>>,
}

impl Format {
    /// Orders formats, best last.
    fn rank(&self) -> (bool, f64, f64) {
        let absent = |codec: &Option<String>| codec.as_deref() == Some("none");
        let whole = !absent(&self.vcodec) && !absent(&self.acodec);
        (whole, self.height.unwrap_or(0.0), self.tbr.unwrap_or(0.0))
    }
}

impl Extraction {
    /// Checks the JSON of what `extract` returned, all of it before anything is chosen.
    pub fn parse(json: &str, plugin: &str) -> Result<Extraction, ExtractionError> {
        let returned: Option<Returned> = serde_json::from_str(json)?;
        let Returned { title, formats, single } = returned.ok_or(ExtractionError::Nothing)?;
        let (place, format) = match formats {
            None => ("url".to_owned(), single),
            Some(_) if single.url.is_some() => return Err(ExtractionError::UrlAndFormats),
            Some(formats) => best(formats)?,
        };
        let url = checked_url(&format, &place)?;
        let beside = |field: &str| place.strip_suffix("url").unwrap_or_default().to_owned() + field;
        let headers = checked_headers(format.http_headers.unwrap_or_default(), beside("http_headers"))?;
        if let Some(ext) = &format.ext
            && (ext.is_empty() || ext.len() > 16 || !ext.bytes().all(|byte| byte.is_ascii_alphanumeric()))
        {
            return Err(ExtractionError::BadExt { place: beside("ext"), ext: ext.chars().take(40).collect() });
        }
        let short = |place: &str, text: Option<String>| match text {
            Some(text) if text.len() > limits::PLUGIN_TITLE_BYTES => {
                let limit = limits::PLUGIN_TITLE_BYTES;
                Err(ExtractionError::TooLong { place: place.into(), bytes: text.len(), limit })
            }
            text => Ok(text),
        };
        let title = short("title", title)?;
        let format_id = short(&beside("format_id"), format.format_id)?;
        Ok(Extraction { plugin: plugin.into(), title, url, headers, ext: format.ext, format_id })
    }
}

/// Checks every format's address and picks the best one, with the name of its place for messages.
fn best(formats: Vec<Format>) -> Result<(String, Format), ExtractionError> {
    match formats.len() {
        0 => return Err(ExtractionError::NoFormats),
        found if found > limits::PLUGIN_FORMATS => return Err(ExtractionError::TooManyFormats { found }),
        _ => {}
    }
    let place = |index: usize| format!("formats[{index}].url");
    for (index, format) in formats.iter().enumerate() {
        checked_url(format, &place(index))?;
    }
    let free = formats.into_iter().enumerate().filter(|(_, format)| format.has_drm != Some(true));
    let best = free.max_by(|(_, a), (_, b)| {
        let (a, b) = (a.rank(), b.rank());
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.total_cmp(&b.2))
    });
    best.map(|(index, format)| (place(index), format)).ok_or(ExtractionError::OnlyDrm)
}

fn checked_url(format: &Format, place: &str) -> Result<Url, ExtractionError> {
    let Some(text) = &format.url else {
        let missing =
            ExtractionError::NotAUrl { place: place.into(), url: String::new(), reason: url::ParseError::EmptyHost };
        return Err(if place == "url" { ExtractionError::NoUrl } else { missing });
    };
    let limit = limits::FETCH_URL_BYTES;
    if text.len() > limit {
        return Err(ExtractionError::TooLong { place: place.into(), bytes: text.len(), limit });
    }
    let url = Url::parse(text).map_err(|reason| {
        let url = text.chars().take(200).collect();
        ExtractionError::NotAUrl { place: place.into(), url, reason }
    })?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        scheme => Err(ExtractionError::Scheme { place: place.into(), scheme: scheme.into() }),
    }
}

fn checked_headers(written: BTreeMap<String, String>, place: String) -> Result<HeaderMap, ExtractionError> {
    if written.len() > limits::JOB_HEADERS {
        return Err(ExtractionError::TooManyHeaders { place, found: written.len() });
    }
    let bytes = written.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > limits::JOB_HEADER_BYTES {
        return Err(ExtractionError::TooLong { place, bytes, limit: limits::JOB_HEADER_BYTES });
    }
    let mut headers = HeaderMap::with_capacity(written.len());
    for (name, value) in written {
        match (HeaderName::try_from(&name), HeaderValue::try_from(value)) {
            (Ok(known), Ok(value)) => headers.append(known, value),
            _ => return Err(ExtractionError::BadHeader { place, name: name.chars().take(80).collect() }),
        };
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parse(value: serde_json::Value) -> Result<Extraction, ExtractionError> {
        Extraction::parse(&value.to_string(), "p")
    }

    #[test]
    fn one_address_with_its_company() {
        let found = parse(json!({
            "url": "https://cdn/v.mp4", "title": "A film", "ext": "mp4", "http_headers": { "Referer": "https://page/" },
            "thumbnail": ["anything", 7],
        }));
        let found = found.unwrap();
        assert_eq!(
            (found.url.as_str(), found.title.as_deref(), found.ext.as_deref()),
            ("https://cdn/v.mp4", Some("A film"), Some("mp4"))
        );
        assert_eq!(found.headers["referer"], "https://page/");
    }

    #[test]
    fn of_several_formats_the_best_is_taken() {
        let pick = |formats: serde_json::Value| parse(json!({ "formats": formats })).unwrap().format_id.unwrap();
        let format = |id: &str, height: u32, tbr: f64| json!({ "url": "https://c/v", "format_id": id, "height": height, "tbr": tbr });
        assert_eq!(pick(json!([format("low", 360, 900.0), format("high", 720, 100.0)])), "high");
        assert_eq!(pick(json!([format("rich", 720, 900.0), format("poor", 720, 100.0)])), "rich");
        assert_eq!(pick(json!([format("first", 720, 1.0), format("last", 720, 1.0)])), "last");
        let silent = json!({ "url": "https://c/v", "format_id": "silent", "height": 2160, "acodec": "none" });
        assert_eq!(pick(json!([silent, format("whole", 480, 1.0)])), "whole");
        let locked = json!({ "url": "https://c/v", "format_id": "locked", "height": 2160, "has_drm": true });
        assert_eq!(pick(json!([locked, format("free", 480, 1.0)])), "free");
    }

    #[test]
    fn everything_else_is_an_error_that_says_so() {
        let many = vec![json!({ "url": "https://a/" }); limits::PLUGIN_FORMATS + 1];
        for (value, reason) in [
            (json!(null), "returned nothing"),
            (json!("https://a/"), "not valid"),
            (json!({}), "neither `url` nor `formats`"),
            (json!({ "url": 7 }), "invalid type"),
            (json!({ "url": "/relative" }), "url is not a URL"),
            (json!({ "url": "file:///etc/passwd" }), "scheme \"file\""),
            (json!({ "url": "data:video/mp4,x" }), "only http and https"),
            (json!({ "url": "https://a/", "formats": [] }), "both"),
            (json!({ "formats": [] }), "empty list"),
            (json!({ "formats": many }), "501 formats, the limit is 500"),
            (
                json!({ "formats": [{ "url": "https://a/" }, { "url": "gopher://a/" }] }),
                "formats[1].url has the scheme",
            ),
            (json!({ "formats": [{ "height": 5 }] }), "formats[0].url is not a URL"),
            (json!({ "formats": [{ "url": "https://a/", "has_drm": true }] }), "DRM"),
            (json!({ "url": "https://a/", "http_headers": { "X": "a\r\nHost: b" } }), "HTTP does not allow"),
            (json!({ "url": "https://a/", "ext": "../x" }), "ext"),
            (json!({ "url": "https://a/", "title": "x".repeat(5000) }), "title has 5000 bytes"),
            (json!({ "url": format!("https://a/{}", "x".repeat(9000)) }), "the limit is 8192"),
        ] {
            let error = parse(value.clone()).unwrap_err().to_string();
            assert!(error.contains(reason), "{value}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_result_or_an_error(text in "\\PC{0,60}") {
            let _ = Extraction::parse(&text, "p");
        }

        #[test]
        fn a_result_is_always_http(url in "\\PC{0,30}") {
            if let Ok(found) = parse(json!({ "url": url })) {
                prop_assert!(matches!(found.url.scheme(), "http" | "https"));
            }
        }
    }
}
