//! The operations behind the prelude: everything JavaScript cannot do for itself here.

use std::cell::RefCell;
use std::rc::Rc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD};
use deno_core::url::{Url, form_urlencoded, quirks};
use deno_core::{JsBuffer, OpState, ToJsBuffer, op2};
use deno_error::JsErrorBox;
use reelring_protocol::plugin::LogLevel;
use serde::{Deserialize, Serialize};

use crate::link::{Link, PageRequest};

deno_core::extension!(
    reelring,
    ops = [
        op_fetch,
        op_log,
        op_url_parse,
        op_url_set,
        op_form_parse,
        op_form_serialize,
        op_base64_encode,
        op_base64_decode,
        op_text_decode,
    ],
    options = { link: Rc<Link> },
    state = |state, options| { state.put(options.link); },
);

#[derive(Deserialize)]
struct FetchArguments {
    call: f64,
    method: String,
    url: String,
    headers: Vec<(String, String)>,
}

#[derive(Serialize)]
struct FetchReply {
    status: u16,
    url: String,
    headers: Vec<(String, String)>,
    body: ToJsBuffer,
}

#[op2]
#[serde]
async fn op_fetch(
    state: Rc<RefCell<OpState>>,
    #[serde] arguments: FetchArguments,
    #[buffer] body: Option<JsBuffer>,
) -> Result<FetchReply, JsErrorBox> {
    let link = state.borrow().borrow::<Rc<Link>>().clone();
    let FetchArguments { call, method, url, headers } = arguments;
    let request = PageRequest { call: call as u64, method, url, headers, body: body.map(|body| body.to_vec()) };
    let page = link.fetch(request).await.map_err(JsErrorBox::generic)?;
    Ok(FetchReply { status: page.status, url: page.url, headers: page.headers, body: page.body.into() })
}

#[op2(fast)]
fn op_log(state: &mut OpState, #[string] level: &str, #[string] text: &str) {
    let level = match level {
        "debug" => LogLevel::Debug,
        "warn" => LogLevel::Warn,
        "error" => LogLevel::Error,
        _ => LogLevel::Info,
    };
    state.borrow::<Rc<Link>>().log(level, text);
}

/// The parts of a URL by their names on the Web.
#[derive(Serialize)]
struct UrlParts {
    href: String,
    origin: String,
    protocol: String,
    username: String,
    password: String,
    host: String,
    hostname: String,
    port: String,
    pathname: String,
    search: String,
    hash: String,
}

impl From<&Url> for UrlParts {
    fn from(url: &Url) -> UrlParts {
        UrlParts {
            href: url.to_string(),
            origin: quirks::origin(url),
            protocol: quirks::protocol(url).into(),
            username: quirks::username(url).into(),
            password: quirks::password(url).into(),
            host: quirks::host(url).into(),
            hostname: quirks::hostname(url).into(),
            port: quirks::port(url).into(),
            pathname: quirks::pathname(url).into(),
            search: quirks::search(url).into(),
            hash: quirks::hash(url).into(),
        }
    }
}

/// `null` for what is not a URL; `base` is empty when there is none.
#[op2]
#[serde]
fn op_url_parse(#[string] url: &str, #[string] base: &str) -> Option<UrlParts> {
    let base = if base.is_empty() { None } else { Some(Url::parse(base).ok()?) };
    Url::options().base_url(base.as_ref()).parse(url).ok().as_ref().map(UrlParts::from)
}

/// The URL with one part replaced; `null` where the Web's rules leave it as it was.
#[op2]
#[serde]
fn op_url_set(#[string] href: &str, #[string] part: &str, #[string] value: &str) -> Option<UrlParts> {
    let mut url = Url::parse(href).ok()?;
    let set = match part {
        "href" => quirks::set_href(&mut url, value).is_ok(),
        "protocol" => quirks::set_protocol(&mut url, value).is_ok(),
        "username" => quirks::set_username(&mut url, value).is_ok(),
        "password" => quirks::set_password(&mut url, value).is_ok(),
        "host" => quirks::set_host(&mut url, value).is_ok(),
        "hostname" => quirks::set_hostname(&mut url, value).is_ok(),
        "port" => quirks::set_port(&mut url, value).is_ok(),
        "pathname" => {
            quirks::set_pathname(&mut url, value);
            true
        }
        "search" => {
            quirks::set_search(&mut url, value);
            true
        }
        "hash" => {
            quirks::set_hash(&mut url, value);
            true
        }
        _ => false,
    };
    set.then(|| UrlParts::from(&url))
}

#[op2]
#[serde]
fn op_form_parse(#[string] query: &str) -> Vec<(String, String)> {
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

#[op2]
#[string]
fn op_form_serialize(#[serde] pairs: Vec<(String, String)>) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

#[op2]
#[string]
fn op_base64_encode(#[string] text: &str) -> Result<String, JsErrorBox> {
    let bytes: Result<Vec<u8>, _> = text.chars().map(|c| u8::try_from(u32::from(c))).collect();
    let bytes =
        bytes.map_err(|_| JsErrorBox::range_error("btoa takes characters up to U+00FF; encode the text first"))?;
    Ok(STANDARD.encode(bytes))
}

/// The Web's forgiving decoder: spaces are skipped, padding may be missing.
#[op2]
#[string]
fn op_base64_decode(#[string] text: &str) -> Result<String, JsErrorBox> {
    const FORGIVING: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true),
    );
    let packed: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    match FORGIVING.decode(packed) {
        Ok(bytes) => Ok(bytes.into_iter().map(char::from).collect()),
        Err(error) => Err(JsErrorBox::range_error(format!("atob was given something that is not base64: {error}"))),
    }
}

#[op2]
#[string]
fn op_text_decode(#[buffer] bytes: &[u8], #[string] label: &str, fatal: bool) -> Result<String, JsErrorBox> {
    let broken = |what: &str| JsErrorBox::type_error(format!("the bytes are not valid {what}"));
    match label {
        "latin1" => Ok(bytes.iter().copied().map(char::from).collect()),
        "utf-16le" => {
            let units = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
            let text: Result<String, _> = char::decode_utf16(units.clone()).collect();
            match text {
                Ok(text) if bytes.len().is_multiple_of(2) => Ok(text),
                _ if fatal => Err(broken("UTF-16")),
                _ => Ok(char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()),
            }
        }
        _ => match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) if fatal => Err(broken("UTF-8")),
            Err(_) => Ok(String::from_utf8_lossy(bytes).into_owned()),
        },
    }
}
