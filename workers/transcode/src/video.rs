//! One video rendition on a thread of its own: scale, encode, cut at the grid, send.
//!
//! The thread owns its scaler, encoder and muxer, and holds at most one segment. It ends when the pictures end (then it
//! drains everything and reports how many frames it wrote) or when its pictures' channel closes early (then it just stops).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use reelring_protocol::transcode::{FromWorker, Init, InitVideo, Segment, VideoPlan};

use crate::av::{Frame, Packet};
use crate::encoder::{Encoder, has_idr};
use crate::error::Failure;
use crate::filters::Scaler;
use crate::link::Link;
use crate::muxer::{Muxer, Track, avc_codec};
use crate::timeline::Grid;

/// What the decoding thread sends.
pub enum Picture {
    /// Its timestamp is on the timeline, in the rendition's timescale.
    Frame(Frame),
    /// There are no more; the last one ends here.
    End(i64),
}

pub struct Rendition {
    plan: VideoPlan,
    scaler: Scaler,
    encoder: Encoder,
    output: Output,
    grid: Grid,
}

/// From packets to segments. Apart from the encoder so that both can be borrowed at once.
struct Output {
    name: String,
    muxer: Muxer,
    link: Arc<Link>,
    /// Times of the pictures in the encoder, in order of presentation: the decode times to be given out.
    times: VecDeque<i64>,
    /// Times of the key frames asked for and not yet seen.
    key_times: VecDeque<i64>,
    /// The last packet, held until the next one tells its duration.
    held: Option<Packet>,
    index: u32,
    start: i64,
    frames: u32,
    total: u64,
}

impl Rendition {
    /// Starts the muxer and sends the init segment: from here the rendition can be announced.
    pub fn new(
        plan: VideoPlan,
        scaler: Scaler,
        encoder: Encoder,
        grid: Grid,
        timescale: i32,
        link: Arc<Link>,
    ) -> Result<Rendition, Failure> {
        let mut muxer = Muxer::new(Track::Video, &encoder, timescale)?;
        let init = muxer.take_init().unwrap_or_default();
        let message = FromWorker::Init(Init {
            rendition: plan.rendition.clone(),
            codecs: avc_codec(&init)?,
            timescale: timescale as u32,
            video: Some(InitVideo { width: plan.width, height: plan.height }),
            audio: None,
        });
        link.send_with(&message, &init)?;
        let output = Output {
            name: plan.rendition.clone(),
            muxer,
            link,
            times: VecDeque::new(),
            key_times: VecDeque::new(),
            held: None,
            index: 0,
            start: 0,
            frames: 0,
            total: 0,
        };
        Ok(Rendition { plan, scaler, encoder, output, grid })
    }

    /// Runs to the end of the pictures and returns how many frames were written.
    pub fn run(mut self, pictures: &Receiver<Picture>) -> Result<u64, Failure> {
        while let Ok(picture) = pictures.recv() {
            match picture {
                Picture::Frame(frame) => self.take(Some(frame))?,
                Picture::End(end) => {
                    self.take(None)?;
                    let output = &mut self.output;
                    self.encoder.encode(None, |packet| output.take(packet))?;
                    return output.finish(end);
                }
            }
        }
        Err(Failure::cancelled())
    }

    fn take(&mut self, frame: Option<Frame>) -> Result<(), Failure> {
        let Rendition { scaler, encoder, output, grid, plan } = self;
        scaler.scale(frame, |scaled| {
            let at = scaled.get().pts;
            let raw = scaled.get_mut();
            raw.pict_type = ffmpeg_sys_next::AVPictureType::AV_PICTURE_TYPE_NONE;
            // The plan's pixel shape is the encoder's; a frame that disagrees would change it in mid-stream.
            raw.sample_aspect_ratio = encoder.context().sample_aspect_ratio;
            if grid.starts(at) {
                raw.pict_type = ffmpeg_sys_next::AVPictureType::AV_PICTURE_TYPE_I;
                output.key_times.push_back(at);
            }
            output.times.push_back(at);
            encoder
                .encode(Some(scaled), |packet| output.take(packet))
                .map_err(|failure| Failure { message: format!("{}: {failure}", plan.rendition), ..failure })
        })
    }
}

/// Decode times are given to the muxer this much early, because libavformat refuses packets decoded after they are shown;
/// the muxer takes it off again (it makes the first decode time equal to the first presentation time). It holds the
/// difference in 32 bits.
const LEAD: i64 = 1 << 30;

impl Output {
    fn take(&mut self, packet: &mut Packet) -> Result<(), Failure> {
        let mut packet = packet.take()?;
        let at = packet.get().pts;
        // The n-th packet gets the n-th presentation time as its decode time. Groups are closed, so a segment's first decode
        // time is then its first presentation time, exactly, and durations add up, at variable rates too.
        let Some(decode) = self.times.pop_front() else {
            return Err(Failure::internal(format!("{}: the encoder gave more frames than it got", self.name)));
        };
        packet.get_mut().dts = decode - LEAD;
        let boundary = self.key_times.front() == Some(&at);
        if boundary {
            self.key_times.pop_front();
            if !has_idr(packet.data()) || at != decode {
                return Err(Failure::internal(format!(
                    "{}: the encoder gave no key frame for segment {}",
                    self.name, self.index
                )));
            }
        }
        if let Some(mut held) = self.held.take() {
            held.get_mut().duration = packet.get().dts - held.get().dts;
            self.write(&mut held)?;
            if boundary {
                self.cut(at)?;
            }
        }
        self.held = Some(packet);
        Ok(())
    }

    fn write(&mut self, packet: &mut Packet) -> Result<(), Failure> {
        self.muxer.write(packet)?;
        self.frames += 1;
        self.total += 1;
        Ok(())
    }

    fn cut(&mut self, end: i64) -> Result<(), Failure> {
        let bytes = self.muxer.cut()?;
        let segment = Segment {
            rendition: self.name.clone(),
            index: self.index,
            frames: self.frames,
            start: self.start as u64,
            duration: (end - self.start) as u64,
            keyframe: true,
            bytes: bytes.len() as u64,
        };
        self.link.send_segment(segment, &bytes)?;
        self.index += 1;
        self.start = end;
        self.frames = 0;
        Ok(())
    }

    fn finish(&mut self, end: i64) -> Result<u64, Failure> {
        if let Some(mut held) = self.held.take() {
            let decode = held.get().dts + LEAD;
            held.get_mut().duration = (end - decode).max(1);
            self.write(&mut held)?;
            self.cut(end)?;
        }
        if !self.times.is_empty() {
            return Err(Failure::internal(format!(
                "{}: the encoder kept {} frames to itself",
                self.name,
                self.times.len()
            )));
        }
        Ok(self.total)
    }
}
