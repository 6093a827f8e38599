//! Which protocol a request speaks, and how that one writes its headers.
//!
//! tus requests say so in `Tus-Resumable`. Whatever else names `Upload-Complete`, the draft's interop version or its media
//! type is the draft's, and so is a bare HEAD, GET or DELETE, which the draft sends without any mark.

use axum::body::{Body, HttpBody as _};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, header};

use super::version_problem;
use crate::http::problem::Problem;
use crate::uploads::{Algorithm, Checksum};

pub(super) const TUS_VERSION: &str = "1.0.0";
pub(super) const TUS_TYPE: &str = "application/offset+octet-stream";
pub(super) const DRAFT_TYPE: &str = "application/partial-upload";
/// Up to this interop version of the draft its PATCH had no media type.
const DRAFT_UNTYPED_TO: u32 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Dialect {
    Tus,
    Draft {
        /// What the client says it speaks; what will be the RFC says nothing.
        interop: Option<u32>,
    },
}

impl Dialect {
    pub(super) fn of(parts: &Parts) -> Result<Dialect, Problem> {
        let headers = &parts.headers;
        if let Some(version) = headers.get("tus-resumable") {
            if version == TUS_VERSION {
                return Ok(Dialect::Tus);
            }
            return Err(version_problem(format!("Tus-Resumable {version:?} is not spoken here, {TUS_VERSION} is")));
        }
        let interop = headers.get("upload-draft-interop-version");
        let marked =
            headers.contains_key("upload-complete") || interop.is_some() || media_type(parts) == Some(DRAFT_TYPE);
        if marked || matches!(parts.method, Method::HEAD | Method::GET | Method::DELETE) {
            let interop = interop.and_then(|version| version.to_str().ok()?.trim().parse().ok());
            return Ok(Dialect::Draft { interop });
        }
        Err(version_problem(format!(
            "the request says neither Tus-Resumable: {TUS_VERSION} (tus) nor Upload-Complete (the IETF's draft); send one of them"
        )))
    }

    /// A header that is a number. A tus header that is none is an error; the draft wants it ignored.
    pub(super) fn number(self, parts: &Parts, name: &'static str) -> Result<Option<u64>, Problem> {
        let Some(value) = parts.headers.get(name) else { return Ok(None) };
        let text = value.to_str().unwrap_or_default();
        let (text, most) = match self {
            Dialect::Tus => (text.trim(), 19),
            // An Item may have parameters, and an Integer 15 digits.
            Dialect::Draft { .. } => (text.split(';').next().unwrap_or_default().trim(), 15),
        };
        let digits = !text.is_empty() && text.len() <= most && text.bytes().all(|byte| byte.is_ascii_digit());
        match (digits.then(|| text.parse().ok()).flatten(), self) {
            (Some(number), _) => Ok(Some(number)),
            (None, Dialect::Draft { .. }) => Ok(None),
            (None, Dialect::Tus) => {
                Err(Problem::bad_request("invalid-header", format!("{name}: {value:?} is no number of bytes")))
            }
        }
    }

    /// Whether the bytes of the request end the upload. The draft has to say so, tus never does.
    pub(super) fn completes(self, parts: &Parts) -> Result<bool, Problem> {
        if self == Dialect::Tus {
            return Ok(false);
        }
        let value = parts.headers.get("upload-complete").map(HeaderValue::as_bytes).unwrap_or_default();
        let item = value.split(|byte| *byte == b';').next().unwrap_or_default();
        match item.trim_ascii() {
            b"?1" => Ok(true),
            b"?0" => Ok(false),
            _ => Err(Problem::bad_request(
                "upload-complete",
                "Upload-Complete is missing or neither ?1 nor ?0: say whether the upload ends with this request",
            )),
        }
    }

    /// Bytes to append have to be called that.
    pub(super) fn check_patch_type(self, parts: &Parts) -> Result<(), Problem> {
        let found = media_type(parts);
        let wanted = match self {
            Dialect::Tus => TUS_TYPE,
            Dialect::Draft { interop: Some(interop) } if interop <= DRAFT_UNTYPED_TO && found.is_none() => {
                return Ok(());
            }
            Dialect::Draft { .. } => DRAFT_TYPE,
        };
        if found == Some(wanted) {
            return Ok(());
        }
        let found = found.unwrap_or("missing");
        Err(Problem::unsupported("media-type", format!("Content-Type is {found}, bytes to append are {wanted}")))
    }
}

/// `Content-Type` without its parameters.
pub(super) fn media_type(parts: &Parts) -> Option<&str> {
    let value = parts.headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim())
}

/// What the bytes of a draft's request must have: `Content-Digest`, of the algorithms known here.
pub(super) fn content_digest(parts: &Parts) -> Result<Option<Checksum>, Problem> {
    for value in parts.headers.get_all("content-digest") {
        let invalid = || {
            Problem::bad_request(
                "invalid-digest",
                format!("Content-Digest: {value:?} is no digest of the right length"),
            )
        };
        for member in value.to_str().map_err(|_| invalid())?.split(',').map(str::trim) {
            let (name, digest) = member.split_once('=').ok_or_else(invalid)?;
            let algorithm = match name {
                "sha-256" => Algorithm::Sha256,
                "sha-512" => Algorithm::Sha512,
                _ => continue,
            };
            let digest = digest.strip_prefix(':').and_then(|digest| digest.split_once(':')).ok_or_else(invalid)?.0;
            return Checksum::of(algorithm, digest).ok_or_else(invalid).map(Some);
        }
    }
    Ok(None)
}

/// How many bytes the body has, if the request says so.
pub(super) fn content_length(parts: &Parts, body: &Body) -> Option<u64> {
    if parts.headers.contains_key(header::TRANSFER_ENCODING) {
        return None;
    }
    match parts.headers.get(header::CONTENT_LENGTH) {
        Some(value) => value.to_str().ok()?.parse().ok(),
        // Neither of the two: in HTTP/1.1 there is no body. In HTTP/2 it is as long as it is, but for one that has ended
        // with the head.
        None => (parts.version < axum::http::Version::HTTP_2 || body.is_end_stream()).then_some(0),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn parts(method: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri("/v1/uploads/x");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_request_is_understood_in_its_own_words() {
        let draft = |interop| Some(Dialect::Draft { interop });
        for (method, headers, expected) in [
            ("PATCH", &[("tus-resumable", "1.0.0")][..], Some(Dialect::Tus)),
            ("PATCH", &[("tus-resumable", "0.2.2")], None),
            ("PATCH", &[("content-type", TUS_TYPE)], None),
            ("POST", &[], None),
            ("HEAD", &[], draft(None)),
            ("DELETE", &[], draft(None)),
            ("POST", &[("upload-complete", "?0")], draft(None)),
            ("PATCH", &[("content-type", "application/partial-upload; a=b")], draft(None)),
            ("HEAD", &[("upload-draft-interop-version", "6")], draft(Some(6))),
            ("HEAD", &[("tus-resumable", "1.0.0"), ("upload-draft-interop-version", "6")], Some(Dialect::Tus)),
        ] {
            assert_eq!(Dialect::of(&parts(method, headers)).ok(), expected, "{method} {headers:?}");
        }
    }

    #[test]
    fn numbers_are_digits_and_bounded() {
        let (tus, draft) = (Dialect::Tus, Dialect::Draft { interop: None });
        let read =
            |dialect: Dialect, text| dialect.number(&parts("PATCH", &[("upload-offset", text)]), "upload-offset").ok();
        assert_eq!(read(tus, "42"), Some(Some(42)));
        assert_eq!(read(draft, "42;x=1"), Some(Some(42)));
        for bad in ["", "-1", "+1", "1.5", "99999999999999999999", "0x10", "1 2"] {
            assert_eq!(read(tus, bad), None, "{bad}");
            assert_eq!(read(draft, bad), Some(None), "{bad}");
        }
    }

    #[test]
    fn the_first_digest_that_is_known_counts() {
        fn read(value: &str) -> Result<Option<Checksum>, Problem> {
            content_digest(&parts("PATCH", &[("content-digest", value)]))
        }
        let sha256 = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:";
        assert_eq!(read(sha256).unwrap().unwrap().algorithm, Algorithm::Sha256);
        assert_eq!(read(&format!("md5=:AAAA:, {sha256}")).unwrap().unwrap().algorithm, Algorithm::Sha256);
        assert_eq!(read("unknown=:AAAA:").unwrap(), None);
        for bad in ["sha-256=:AAAA:", "sha-256=AAAA", "sha-256", "sha-512=:!:"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_the_old_draft_may_leave_the_type_out() {
        let untyped = parts("PATCH", &[]);
        assert!(Dialect::Draft { interop: Some(5) }.check_patch_type(&untyped).is_ok());
        for dialect in [Dialect::Tus, Dialect::Draft { interop: Some(6) }, Dialect::Draft { interop: None }] {
            assert!(dialect.check_patch_type(&untyped).is_err());
        }
    }
}
