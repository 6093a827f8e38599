//! Node ⇄ `reelring-transcode`.
//!
//! ```text
//! worker → Hello
//! node   → Open      name and length of the source, which is the worker's standard output, read by offset
//! worker → Probed    what the source is
//! node   → Encode    the plan: renditions and segment grid
//! worker → Started   which encoder runs, and why
//! worker → Init, then (Data…, Segment) per rendition, with Progress and Note between them
//! worker → Finished
//! ```
//! In place of any of its messages the worker may send `Failed` and exit. The node may close the socket at any time, which ends
//! the worker. Only the socket's buffer lies between the two: a node that does not read stops the encoders.

use serde::{Deserialize, Serialize};

/// The name the worker gives in its [`Hello`](crate::Hello), and its executable's.
pub const WORKER: &str = "reelring-transcode";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToWorker {
    Open(Open),
    Encode(Encode),
    /// Stop soon and say `Failed` with [`Class::Cancelled`].
    Cancel,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Open {
    /// What messages call the source: its object key.
    pub name: String,
    /// The object's length; the file goes on after it with a footer that is not the worker's business.
    pub length: u64,
    pub encoder: EncoderChoice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncoderChoice {
    /// CUDA where a device opens, else the CPU.
    Auto,
    /// The CPU, after the hardware failed on this source.
    Software,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rational {
    pub num: i64,
    pub den: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VideoInfo {
    pub codec: String,
    /// As shown: after rotation.
    pub width: u32,
    pub height: u32,
    /// The shape of a pixel, as shown; 1:1 when the source does not say.
    pub sample_aspect: Rational,
    /// The nominal rate; a source of variable rate has one too.
    pub frame_rate: Rational,
    /// Frames, where the container tells or the duration lets us guess.
    pub frames_estimate: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AudioInfo {
    pub codec: String,
    pub sample_rate: u32,
    pub channels: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probed {
    /// The container, as FFmpeg names it.
    pub format: String,
    pub duration_seconds: Option<f64>,
    pub video: VideoInfo,
    pub audio: Option<AudioInfo>,
}

/// The plan. Rendition names are the node's; the worker only hands them back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Encode {
    pub video: Vec<VideoPlan>,
    pub audio: Option<AudioPlan>,
    /// The grid: segment k starts at the first frame not before `k * frames_per_segment / frame_rate`, less half a frame.
    /// At a constant rate that is exactly every so many frames; at a variable one it bounds a segment's duration.
    pub frames_per_segment: u32,
    pub frame_rate: Rational,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VideoPlan {
    pub rendition: String,
    pub width: u32,
    pub height: u32,
    /// Peak bit rate of the encoder, bits per second.
    pub bitrate_max: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AudioPlan {
    pub rendition: String,
    pub bitrate: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromWorker {
    Hello(crate::Hello),
    Probed(Probed),
    Started(Started),
    /// Payload: `ftyp` and `moov`. Once per rendition, before its first segment.
    Init(Init),
    /// Payload: the next piece of the rendition's current segment. The pieces of one segment, and the `Segment` that ends
    /// it, come without another rendition's between them.
    Data {
        rendition: String,
        index: u32,
    },
    /// The segment whose pieces came before is whole.
    Segment(Segment),
    Progress(Progress),
    /// Something a person may want to know: a conversion, skipped damage.
    Note {
        text: String,
    },
    Finished(Finished),
    Failed(Failed),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// FFmpeg's name of the encoder.
    pub encoder: String,
    /// `cuda` or `cpu`.
    pub decoder: String,
    /// Why it is not the first choice; absent when it is.
    pub fallback_reason: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    pub rendition: String,
    /// RFC 6381, `avc1.64001f` for instance.
    pub codecs: String,
    /// Units per second of the track's times.
    pub timescale: u32,
    pub video: Option<InitVideo>,
    pub audio: Option<InitAudio>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitVideo {
    pub width: u32,
    pub height: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitAudio {
    pub sample_rate: u32,
    pub channels: u32,
}

/// Times are presentation times in the rendition's timescale, 0 at the start of the asset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub rendition: String,
    pub index: u32,
    /// Video frames, or AAC packets.
    pub frames: u32,
    pub start: u64,
    pub duration: u64,
    /// The segment's first frame is an IDR: checked by the worker, always true for audio.
    pub keyframe: bool,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub frames_done: u64,
    pub frames_total: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// Frames the decoder gave; every rendition has exactly as many.
    pub frames: u64,
    /// Compressed packets the decoder could not use.
    pub damaged_packets: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    pub class: Class,
    /// For a person: names the source and what is wrong with it.
    pub message: String,
    /// The last lines of FFmpeg's log.
    pub log: Vec<String>,
}

/// What the node does about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The capability is not on this machine: the next rung.
    Absent,
    /// Out of device memory or sessions: later, or the next rung.
    Capacity,
    /// This source cannot be transcoded: permanent.
    Input,
    /// The device is in a bad state: a new worker, on the CPU.
    Sticky,
    /// Reading the source failed: may be tried again.
    Source,
    Cancelled,
    /// A fault of the worker itself.
    Internal,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FrameReader, encode};

    /// The wire names are a contract between two executables: this fails when one is renamed by accident.
    #[test]
    fn messages_keep_their_wire_names() {
        let cases = [
            (serde_json::to_value(ToWorker::Cancel).unwrap(), r#"{"type":"cancel"}"#),
            (
                serde_json::to_value(FromWorker::Data { rendition: "360p".into(), index: 7 }).unwrap(),
                r#"{"type":"data","rendition":"360p","index":7}"#,
            ),
            (
                serde_json::to_value(FromWorker::Failed(Failed {
                    class: Class::Input,
                    message: "m".into(),
                    log: vec![],
                }))
                .unwrap(),
                r#"{"type":"failed","class":"input","message":"m","log":[]}"#,
            ),
        ];
        for (value, text) in cases {
            assert_eq!(value, serde_json::from_str::<serde_json::Value>(text).unwrap());
        }
    }

    #[test]
    fn a_segment_travels_with_its_bytes() {
        let message = FromWorker::Data { rendition: "720p".into(), index: 3 };
        let wire = encode(&message, &[1, 2, 3]).unwrap();
        let frame = FrameReader::new(&wire[..]).read::<FromWorker>().unwrap().unwrap();
        assert_eq!(frame.message, message);
        assert_eq!(&frame.payload[..], &[1, 2, 3]);
    }
}
