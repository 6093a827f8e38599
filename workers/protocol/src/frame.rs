//! Frames: `RRW1`, the message's length, the payload's length (little-endian u32), the message as JSON, the payload.
//!
//! The lengths are checked against [`limits`](crate::limits) before anything is allocated, so garbage on the socket is
//! [`FrameError::BadMagic`] or [`FrameError::TooLong`] after twelve bytes. Buffers belong to the caller; dropping a reader
//! in mid-frame loses the stream's position, so that the connection must then be closed (which is what both sides do).

use std::io::{self, Read, Write};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

use crate::limits::{MESSAGE_BYTES_MAX, PAYLOAD_BYTES_MAX, READ_STEP_BYTES};

const MAGIC: [u8; 4] = *b"RRW1";
/// Bytes before the message.
pub const PROLOGUE_BYTES: usize = 12;

/// A message with the bytes that came with it (empty where the message carries none).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame<M> {
    pub message: M,
    pub payload: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("the peer sent {found:02x?} where a frame begins with {MAGIC:02x?}: it does not speak this protocol")]
    BadMagic { found: [u8; 4] },
    #[error("the peer announced a {what} of {bytes} bytes, the limit is {limit}")]
    TooLong { what: &'static str, bytes: usize, limit: usize },
    #[error("the stream ended inside a frame: {have} of {want} bytes of its {what} had arrived")]
    Truncated { what: &'static str, have: usize, want: usize },
    #[error("the peer sent a message that is not understood ({source}): {excerpt}")]
    BadMessage { source: serde_json::Error, excerpt: String },
    #[error("a message could not be written as JSON: {0}")]
    Unserialisable(serde_json::Error),
    #[error("the socket between node and worker failed: {0}")]
    Io(#[from] io::Error),
}

#[derive(Clone, Copy)]
struct Prologue {
    message: usize,
    payload: usize,
}

impl Prologue {
    fn parse(bytes: &[u8; PROLOGUE_BYTES]) -> Result<Prologue, FrameError> {
        let [m0, m1, m2, m3, a0, a1, a2, a3, b0, b1, b2, b3] = *bytes;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(FrameError::BadMagic { found: [m0, m1, m2, m3] });
        }
        let prologue = Prologue {
            message: u32::from_le_bytes([a0, a1, a2, a3]) as usize,
            payload: u32::from_le_bytes([b0, b1, b2, b3]) as usize,
        };
        prologue.check()?;
        Ok(prologue)
    }

    fn check(self) -> Result<(), FrameError> {
        for (what, bytes, limit) in
            [("message", self.message, MESSAGE_BYTES_MAX), ("payload", self.payload, PAYLOAD_BYTES_MAX)]
        {
            if bytes > limit {
                return Err(FrameError::TooLong { what, bytes, limit });
            }
        }
        Ok(())
    }

    fn total(self) -> usize {
        PROLOGUE_BYTES + self.message + self.payload
    }
}

fn parse_message<M: DeserializeOwned>(json: &[u8]) -> Result<M, FrameError> {
    serde_json::from_slice(json).map_err(|source| FrameError::BadMessage {
        source,
        excerpt: String::from_utf8_lossy(&json[..json.len().min(120)]).into_owned(),
    })
}

/// Prologue and message of a frame whose payload of `payload_len` bytes the caller writes right after it.
pub fn encode_head<M: Serialize>(message: &M, payload_len: usize) -> Result<BytesMut, FrameError> {
    let json = serde_json::to_vec(message).map_err(FrameError::Unserialisable)?;
    let prologue = Prologue { message: json.len(), payload: payload_len };
    prologue.check()?;
    let mut out = BytesMut::with_capacity(PROLOGUE_BYTES + json.len());
    out.put_slice(&MAGIC);
    out.put_u32_le(prologue.message as u32);
    out.put_u32_le(prologue.payload as u32);
    out.put_slice(&json);
    Ok(out)
}

/// A whole frame in one buffer.
pub fn encode<M: Serialize>(message: &M, payload: &[u8]) -> Result<BytesMut, FrameError> {
    let mut out = encode_head(message, payload.len())?;
    out.put_slice(payload);
    Ok(out)
}

/// Takes the first frame off `buffer` if all of it is there; `None` asks for more bytes.
///
/// For an asynchronous reader: `loop { if let Some(f) = decode(&mut buf)? {…} else if socket.read_buf(&mut buf)? == 0 {
/// return check_end(&buf) } }`. An error is final for the connection.
pub fn decode<M: DeserializeOwned>(buffer: &mut BytesMut) -> Result<Option<Frame<M>>, FrameError> {
    let Some(head) = buffer.first_chunk::<PROLOGUE_BYTES>() else {
        // Garbage shorter than a prologue is found out as well.
        let have = buffer.len().min(MAGIC.len());
        if buffer[..have] != MAGIC[..have] {
            let mut found = [0; 4];
            found[..have].copy_from_slice(&buffer[..have]);
            return Err(FrameError::BadMagic { found });
        }
        return Ok(None);
    };
    let prologue = Prologue::parse(head)?;
    if buffer.len() < prologue.total() {
        return Ok(None);
    }
    buffer.advance(PROLOGUE_BYTES);
    let json = buffer.split_to(prologue.message);
    let payload = buffer.split_to(prologue.payload).freeze();
    Ok(Some(Frame { message: parse_message(&json)?, payload }))
}

/// What an end of stream means with these bytes left over: nothing, if it fell between two frames.
pub fn check_end(rest: &[u8]) -> Result<(), FrameError> {
    if rest.is_empty() {
        return Ok(());
    }
    let want = match rest.first_chunk::<PROLOGUE_BYTES>() {
        Some(head) => Prologue::parse(head)?.total(),
        None => PROLOGUE_BYTES,
    };
    Err(FrameError::Truncated { what: "frame", have: rest.len(), want })
}

/// Blocking reader of frames. `&UnixStream` is `Read`, so a worker can read and write one socket from two threads.
#[derive(Debug)]
pub struct FrameReader<R> {
    inner: R,
}

impl<R: Read> FrameReader<R> {
    pub fn new(inner: R) -> FrameReader<R> {
        FrameReader { inner }
    }

    /// The next frame; `None` when the peer closed the stream between two frames.
    pub fn read<M: DeserializeOwned>(&mut self) -> Result<Option<Frame<M>>, FrameError> {
        let mut head = [0; PROLOGUE_BYTES];
        let mut have = 0;
        while have < head.len() {
            match self.inner.read(&mut head[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => {
                    return Err(FrameError::Truncated { what: "prologue", have, want: PROLOGUE_BYTES });
                }
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        let prologue = Prologue::parse(&head)?;
        let json = self.read_part("message", prologue.message)?;
        let payload = self.read_part("payload", prologue.payload)?;
        Ok(Some(Frame { message: parse_message(&json)?, payload: payload.freeze() }))
    }

    fn read_part(&mut self, what: &'static str, want: usize) -> Result<BytesMut, FrameError> {
        let mut part = BytesMut::new();
        while part.len() < want {
            let have = part.len();
            part.resize(have + (want - have).min(READ_STEP_BYTES), 0);
            match self.inner.read(&mut part[have..]) {
                Ok(0) => return Err(FrameError::Truncated { what, have, want }),
                Ok(n) => part.truncate(have + n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => part.truncate(have),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(part)
    }
}

/// Blocking writer of frames; every frame is flushed.
#[derive(Debug)]
pub struct FrameWriter<W> {
    inner: W,
}

impl<W: Write> FrameWriter<W> {
    pub fn new(inner: W) -> FrameWriter<W> {
        FrameWriter { inner }
    }

    pub fn write<M: Serialize>(&mut self, message: &M, payload: &[u8]) -> Result<(), FrameError> {
        let head = encode_head(message, payload.len())?;
        self.inner.write_all(&head)?;
        self.inner.write_all(payload)?;
        self.inner.flush()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    struct Note {
        text: String,
        number: u64,
    }

    fn note() -> impl Strategy<Value = Note> {
        (".{0,200}", any::<u64>()).prop_map(|(text, number)| Note { text, number })
    }

    proptest! {
        #[test]
        fn frames_survive_any_split(
            notes in prop::collection::vec((note(), prop::collection::vec(any::<u8>(), 0..2000)), 0..6),
            step in 1usize..700,
        ) {
            let mut wire = Vec::new();
            for (message, payload) in &notes {
                wire.extend_from_slice(&encode(message, payload).unwrap());
            }
            let mut buffer = BytesMut::new();
            let mut decoded = Vec::new();
            for piece in wire.chunks(step) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = decode::<Note>(&mut buffer).unwrap() {
                    decoded.push((frame.message, frame.payload.to_vec()));
                }
            }
            check_end(&buffer).unwrap();
            prop_assert_eq!(&decoded, &notes);

            let mut reader = FrameReader::new(&wire[..]);
            for (message, payload) in &notes {
                let frame = reader.read::<Note>().unwrap().unwrap();
                prop_assert_eq!(&frame.message, message);
                prop_assert_eq!(&frame.payload[..], &payload[..]);
            }
            prop_assert!(reader.read::<Note>().unwrap().is_none());
        }

        #[test]
        fn a_cut_frame_is_truncated_never_a_message(note in note(), payload in prop::collection::vec(any::<u8>(), 0..500), cut in any::<prop::sample::Index>()) {
            let wire = encode(&note, &payload).unwrap();
            let cut = 1 + cut.index(wire.len() - 1);
            let part = &wire[..cut];
            let mut buffer = BytesMut::from(part);
            prop_assert!(decode::<Note>(&mut buffer).unwrap().is_none());
            let ended = matches!(check_end(&buffer), Err(FrameError::Truncated { .. }));
            prop_assert!(ended);
            let read = FrameReader::new(part).read::<Note>();
            let truncated = matches!(read, Err(FrameError::Truncated { .. }));
            prop_assert!(truncated);
        }

        #[test]
        fn garbage_is_a_named_error(garbage in prop::collection::vec(any::<u8>(), 1..300)) {
            prop_assume!(!garbage.starts_with(&MAGIC[..garbage.len().min(4)]));
            let bad = matches!(decode::<Note>(&mut BytesMut::from(&garbage[..])), Err(FrameError::BadMagic { .. }));
            prop_assert!(bad);
            let read = FrameReader::new(&garbage[..]).read::<Note>();
            let named = matches!(read, Err(FrameError::BadMagic { .. } | FrameError::Truncated { .. }));
            prop_assert!(named);
        }

        #[test]
        fn any_lengths_and_any_json_after_the_magic_never_panic(message in any::<u32>(), payload in any::<u32>(), rest in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut wire = BytesMut::from(&MAGIC[..]);
            wire.put_u32_le(message);
            wire.put_u32_le(payload);
            wire.put_slice(&rest);
            let read = FrameReader::new(&wire.clone()[..]).read::<Note>();
            prop_assert!(read.is_err());
            let _ = decode::<Note>(&mut wire);
        }
    }

    #[test]
    fn lengths_over_the_limits_are_refused_on_both_sides() {
        let payload = vec![0; PAYLOAD_BYTES_MAX + 1];
        let sent = encode(&1u8, &payload);
        assert!(matches!(sent, Err(FrameError::TooLong { what: "payload", .. })), "{sent:?}");
        let text = "x".repeat(MESSAGE_BYTES_MAX);
        assert!(matches!(encode(&text, b""), Err(FrameError::TooLong { what: "message", .. })));

        let mut wire = BytesMut::from(&MAGIC[..]);
        wire.put_u32_le(u32::MAX);
        wire.put_u32_le(0);
        let got = decode::<Note>(&mut wire);
        assert!(matches!(got, Err(FrameError::TooLong { what: "message", .. })), "{got:?}");
    }

    /// A peer that announces the largest payload and sends little must not cost the largest buffer.
    #[test]
    fn memory_follows_the_bytes_that_arrived() {
        struct Meter<'a>(&'a [u8], usize);
        impl Read for Meter<'_> {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                self.1 = self.1.max(buf.len());
                self.0.read(buf)
            }
        }
        let mut wire = BytesMut::from(&MAGIC[..]);
        wire.put_u32_le(4);
        wire.put_u32_le(PAYLOAD_BYTES_MAX as u32);
        wire.put_slice(b"null");
        wire.put_slice(&[7; 1000]);
        let mut reader = FrameReader::new(Meter(&wire, 0));
        let got = reader.read::<()>();
        assert!(
            matches!(got, Err(FrameError::Truncated { what: "payload", have: 1000, want: PAYLOAD_BYTES_MAX })),
            "{got:?}"
        );
        assert!(reader.inner.1 <= READ_STEP_BYTES);
    }

    #[test]
    fn a_message_of_another_shape_names_what_came() {
        let wire = encode(&serde_json::json!({"surprise": true}), b"").unwrap();
        let error = FrameReader::new(&wire[..]).read::<Note>().unwrap_err();
        assert!(error.to_string().contains("surprise"), "{error}");
    }
}
