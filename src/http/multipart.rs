//! `multipart/byteranges` (RFC 9110, section 14.6): several parts of an object in one answer.
//!
//! Its length is known before the first byte is sent. The parts become bodies one after another, each when the one before
//! has been sent: a request for many parts holds no more than a request for one.

use std::ops::Range;

use axum::body::{Body, BodyDataStream};
use axum::http::HeaderValue;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};

/// The texts around the parts.
pub(super) struct Multipart {
    boundary: String,
    parts: Vec<(Bytes, Range<u64>)>,
    end: Bytes,
}

impl Multipart {
    /// For `parts` of an object of `length` bytes and this type.
    pub(super) fn new(parts: Vec<Range<u64>>, length: u64, content_type: Option<&HeaderValue>) -> Multipart {
        // Nobody can store an object that has it: it is drawn anew for each answer.
        let boundary = format!("{:032x}", rand::random::<u128>());
        let content_type = content_type.and_then(|value| value.to_str().ok());
        let content_type = content_type.map(|value| format!("Content-Type: {value}\r\n")).unwrap_or_default();
        let head = |(at, part): (usize, Range<u64>)| {
            let line = if at == 0 { "" } else { "\r\n" };
            let shown = format!("bytes {}-{}/{length}", part.start, part.end - 1);
            let head = format!("{line}--{boundary}\r\n{content_type}Content-Range: {shown}\r\n\r\n");
            (Bytes::from(head), part)
        };
        let parts = parts.into_iter().enumerate().map(head).collect();
        let end = Bytes::from(format!("\r\n--{boundary}--\r\n"));
        Multipart { boundary, parts, end }
    }

    pub(super) fn content_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.boundary)
    }

    /// Bytes of the whole body.
    pub(super) fn content_length(&self) -> u64 {
        let parts = self.parts.iter().map(|(head, part)| head.len() as u64 + (part.end - part.start));
        parts.sum::<u64>() + self.end.len() as u64
    }

    /// The body; `body_of` makes the bytes of one part.
    pub(super) fn body(self, mut body_of: impl FnMut(Range<u64>) -> Body + Send + 'static) -> Body {
        let parts =
            stream::iter(self.parts).flat_map(move |(head, part)| text(head).chain(body_of(part).into_data_stream()));
        Body::from_stream(parts.chain(text(self.end)))
    }
}

fn text(bytes: Bytes) -> impl Stream<Item = <BodyDataStream as Stream>::Item> + Send {
    stream::iter([Ok(bytes)])
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn the_body_is_what_the_rfc_shows_and_as_long_as_announced() {
        let object = b"0123456789";
        let video = HeaderValue::from_static("video/mp4");
        let multipart = Multipart::new(vec![7..10, 0..2], 10, Some(&video));
        let (boundary, length) = (multipart.boundary.clone(), multipart.content_length());
        assert_eq!(multipart.content_type(), format!("multipart/byteranges; boundary={boundary}"));
        let body = multipart.body(|part| Body::from(&object[part.start as usize..part.end as usize]));
        let body = body.collect().await.unwrap().to_bytes();
        let expected = format!(
            "--{boundary}\r\nContent-Type: video/mp4\r\nContent-Range: bytes 7-9/10\r\n\r\n789\r\n\
             --{boundary}\r\nContent-Type: video/mp4\r\nContent-Range: bytes 0-1/10\r\n\r\n01\r\n--{boundary}--\r\n"
        );
        assert_eq!(String::from_utf8_lossy(&body), expected);
        assert_eq!(body.len() as u64, length);
        assert_ne!(Multipart::new(Vec::new(), 0, None).boundary, boundary, "drawn anew");
    }

    #[tokio::test]
    async fn a_part_that_fails_fails_the_body() {
        let failing = |_| Body::from_stream(stream::iter([Err::<Bytes, _>(std::io::Error::other("gone"))]));
        assert!(Multipart::new(vec![0..1, 5..6], 10, None).body(failing).collect().await.is_err());
    }
}
