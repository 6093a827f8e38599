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
use crate::muxer::{Muxer, avc_codec};
use crate::timeline::{Clock, Grid};

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
    plan: VideoPlan,
    muxer: Muxer,
    link: Arc<Link>,
    timescale: i32,
    /// Times of the pictures in the encoder, in order of presentation.
    times: VecDeque<i64>,
    /// Times of the key frames asked for and not yet seen.
    key_times: VecDeque<i64>,
    /// Packets in decode order, held until those that follow tell how early they must be decoded.
    reordered: VecDeque<Held>,
    reorder_max: usize,
    /// How long B-frames hold back the first picture: decode times begin this much before zero.
    delay: i64,
    /// The last packet with a decode time, held until the next one tells its duration.
    last: Option<Packet>,
    index: u32,
    start: i64,
    frames: u32,
    total: u64,
}

struct Held {
    packet: Packet,
    /// The time of the picture that is shown when this one is decoded, at a constant rate.
    slot: i64,
    boundary: bool,
}

impl Rendition {
    pub fn new(
        plan: VideoPlan,
        scaler: Scaler,
        encoder: Encoder,
        grid: Grid,
        clock: &Clock,
        link: Arc<Link>,
    ) -> Result<Rendition, Failure> {
        let reorder = usize::try_from(encoder.context().has_b_frames).unwrap_or(0);
        let output = Output {
            plan: plan.clone(),
            muxer: Muxer::new(&encoder, clock.timescale)?,
            link,
            timescale: clock.timescale,
            times: VecDeque::new(),
            key_times: VecDeque::new(),
            reordered: VecDeque::new(),
            reorder_max: reorder + 2,
            delay: reorder as i64 * clock.nominal,
            last: None,
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

impl Output {
    fn take(&mut self, packet: &mut Packet) -> Result<(), Failure> {
        let packet = packet.take()?;
        let at = packet.get().pts;
        let Some(slot) = self.times.pop_front() else {
            return Err(self.broken("the encoder gave more frames than it got"));
        };
        let boundary = self.key_times.front() == Some(&at);
        if boundary {
            self.key_times.pop_front();
            if !has_idr(packet.data()) || at != slot {
                return Err(self.broken(&format!("the encoder gave no key frame for segment {}", self.index)));
            }
        }
        self.reordered.push_back(Held { packet, slot, boundary });
        if self.reordered.len() > self.reorder_max { self.release() } else { Ok(()) }
    }

    /// Gives the oldest packet its decode time.
    ///
    /// The n-th packet is decoded when the n-th picture is shown, less the delay, but before itself and whatever comes after it
    /// is shown. So a segment's first decode time is its first presentation time less the delay, exactly, at variable rates
    /// too (an encoder's own decode times drift there), and `tfdt` is the place on the timeline.
    fn release(&mut self) -> Result<(), Failure> {
        let mut latest = i64::MAX;
        for held in self.reordered.iter().rev() {
            latest = (latest - 1).min(held.slot - self.delay).min(held.packet.get().pts);
        }
        let Some(Held { mut packet, boundary, .. }) = self.reordered.pop_front() else { return Ok(()) };
        packet.get_mut().dts = latest;
        if let Some(mut last) = self.last.take() {
            last.get_mut().duration = latest - last.get().dts;
            self.write(&mut last)?;
            if boundary {
                self.cut(packet.get().pts)?;
            }
        }
        self.last = Some(packet);
        Ok(())
    }

    fn write(&mut self, packet: &mut Packet) -> Result<(), Failure> {
        self.muxer.write(packet)?;
        if let Some(init) = self.muxer.take_init() {
            let message = FromWorker::Init(Init {
                rendition: self.plan.rendition.clone(),
                codecs: avc_codec(&init)?,
                timescale: self.timescale as u32,
                video: Some(InitVideo { width: self.plan.width, height: self.plan.height }),
                audio: None,
            });
            self.link.send_with(&message, &init)?;
        }
        self.frames += 1;
        self.total += 1;
        Ok(())
    }

    /// Groups are closed, so every packet since the last cut is shown before `end`.
    fn cut(&mut self, end: i64) -> Result<(), Failure> {
        let bytes = self.muxer.cut()?;
        let segment = Segment {
            rendition: self.plan.rendition.clone(),
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
        while !self.reordered.is_empty() {
            self.release()?;
        }
        if let Some(mut last) = self.last.take() {
            // The durations of the whole track add up to its presentation.
            last.get_mut().duration = (end - self.delay - last.get().dts).max(1);
            self.write(&mut last)?;
            self.cut(end)?;
        }
        if !self.times.is_empty() {
            return Err(self.broken("the encoder kept frames to itself"));
        }
        Ok(self.total)
    }

    fn broken(&self, what: &str) -> Failure {
        Failure::internal(format!("{}: {what}", self.plan.rendition))
    }
}
