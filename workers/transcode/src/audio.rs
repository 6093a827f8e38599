//! The audio track on a thread of its own: decode, place on the video's timeline, encode once as AAC-LC, cut, send.
//!
//! Time zero is the first picture. Audio before it is cut off, audio that starts later is led by silence, gaps are filled,
//! overlaps removed; at the end the track is brought to the video's end, so that both last equally long. Samples wait
//! until the picture has come as far (bounded), because only the last picture tells where the end is.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use ffmpeg_sys_next as ff;
use reelring_protocol::transcode::{AudioPlan, FromWorker, Init, InitAudio, Segment};

use crate::av::{Frame, Packet};
use crate::decoder::Decoder;
use crate::encoder::Encoder;
use crate::error::Failure;
use crate::limits;
use crate::link::Link;
use crate::muxer::Muxer;
use crate::resampler::{Resampler, audio_frame, plane};
use crate::samples::Samples;
use crate::timeline::{Grid, rescale};

/// What the reading thread sends, in order.
pub enum Sound {
    Packet(Packet),
    /// This source timestamp of the video is time zero from now on.
    Origin(i64),
    /// The picture has come this far, in the video's timescale.
    Reached(i64),
    /// The last picture ends here.
    End(i64),
}

/// What the track is made for.
pub struct Settings {
    pub plan: AudioPlan,
    pub rate: c_int,
    pub channels: c_int,
    pub source_base: ff::AVRational,
    pub video_base: ff::AVRational,
    pub video_timescale: i32,
    pub grid: Grid,
}

pub struct AudioTrack {
    settings: Settings,
    decoder: Decoder,
    resampler: Option<Resampler>,
    encoder: Encoder,
    output: Output,
    /// Packets that came before the first picture told where time begins.
    waiting: VecDeque<Packet>,
    waiting_bytes: usize,
    /// Time zero, in samples of the source's clock.
    origin: Option<i64>,
    /// How far the picture has come, in samples.
    reached: u64,
    samples: Samples,
    /// Samples ever put into `samples`, and how many of them are encoded.
    pushed: u64,
    encoded: u64,
    /// Samples yet to be dropped because they overlap with what was placed before.
    skip: u64,
    started: bool,
}

/// Deviations below this are rounding in the container; above it they are gaps and overlaps.
const TOLERANCE_MS: i64 = 30;
/// A gap that reaches this far beyond the picture is a break in the timestamps, not silence.
const BREAK_SECONDS: i64 = 10;
/// Audio that outlasts the picture by more is kept: it is the programme, not the container's rounding.
const TAIL_SECONDS: u64 = 1;

impl AudioTrack {
    pub fn new(settings: Settings, decoder: Decoder, link: Arc<Link>) -> Result<AudioTrack, Failure> {
        let encoder = Encoder::open_audio(settings.rate, settings.channels, settings.plan.bitrate)?;
        let output = Output {
            name: settings.plan.rendition.clone(),
            muxer: Muxer::new(&encoder, settings.rate)?,
            link,
            rate: settings.rate,
            channels: settings.channels,
            grid: settings.grid.clone(),
            held: None,
            index: 0,
            start: 0,
            packets: 0,
        };
        Ok(AudioTrack {
            settings,
            decoder,
            resampler: None,
            encoder,
            output,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            origin: None,
            reached: 0,
            samples: Samples::default(),
            pushed: 0,
            encoded: 0,
            skip: 0,
            started: false,
        })
    }

    /// Runs to the end of the sound and returns how many of its packets were damaged.
    pub fn run(mut self, sounds: &Receiver<Sound>) -> Result<u64, Failure> {
        while let Ok(sound) = sounds.recv() {
            match sound {
                Sound::Packet(packet) if self.origin.is_some() => self.decode(Some(&packet))?,
                Sound::Packet(packet) => self.wait(packet)?,
                Sound::Origin(timestamp) => {
                    self.origin = Some(rescale(timestamp, self.settings.video_base, self.settings.rate));
                    while let Some(packet) = self.waiting.pop_front() {
                        self.decode(Some(&packet))?;
                    }
                }
                Sound::Reached(at) => {
                    self.reached = self.samples_at(at);
                    self.encode_up_to(self.reached)?;
                }
                Sound::End(end) => return self.finish(end),
            }
        }
        Err(Failure::cancelled())
    }

    fn samples_at(&self, video_time: i64) -> u64 {
        let base = ff::AVRational { num: 1, den: self.settings.video_timescale };
        rescale(video_time, base, self.settings.rate).max(0) as u64
    }

    fn wait(&mut self, packet: Packet) -> Result<(), Failure> {
        self.waiting_bytes += packet.data().len();
        if self.waiting_bytes > limits::AUDIO_BEFORE_VIDEO_BYTES_MAX {
            return Err(Failure::input(format!(
                "{} bytes of audio come before the first picture, the limit is {}: remux the source so that they interleave",
                self.waiting_bytes,
                limits::AUDIO_BEFORE_VIDEO_BYTES_MAX
            )));
        }
        self.waiting.push_back(packet);
        Ok(())
    }

    fn decode(&mut self, packet: Option<&Packet>) -> Result<(), Failure> {
        // Frames are few per packet; collecting them frees the decoder's borrow.
        let mut frames = Vec::new();
        self.decoder.decode(packet, |frame| {
            frames.push(frame.share()?);
            Ok(())
        })?;
        for frame in &frames {
            self.place(frame)?;
        }
        Ok(())
    }

    fn place(&mut self, frame: &Frame) -> Result<(), Failure> {
        let raw = frame.get();
        if raw.nb_samples <= 0 || raw.sample_rate <= 0 {
            return Ok(());
        }
        if self.resampler.as_ref().is_some_and(|resampler| !resampler.suits(frame)) {
            self.drain_resampler()?;
        }
        let timestamp =
            if raw.best_effort_timestamp != ff::AV_NOPTS_VALUE { raw.best_effort_timestamp } else { raw.pts };
        if timestamp != ff::AV_NOPTS_VALUE {
            let rate = self.settings.rate;
            let at = rescale(timestamp, self.settings.source_base, rate) - self.origin.unwrap_or(0);
            let inside = self.resampler.as_ref().map_or(0, Resampler::delay);
            // Samples yet to be skipped lie before what was placed last.
            let next = self.pushed as i64 - self.skip as i64 + inside as i64;
            let deviation = at - next;
            let second = i64::from(rate);
            let believable = at <= self.reached as i64 + BREAK_SECONDS * second && deviation > -BREAK_SECONDS * second;
            if !self.started || (deviation.abs() > TOLERANCE_MS * second / 1000 && believable) {
                self.move_to(at)?;
            }
        }
        self.started = true;
        if self.resampler.is_none() {
            self.resampler = Some(Resampler::new(frame, self.settings.rate, self.settings.channels)?);
        }
        if let Some(resampler) = &mut self.resampler {
            let planes = resampler.convert(Some(frame))?;
            self.push(planes);
        }
        // Held back beyond the bound, it goes out before the picture has come as far.
        let ahead = self.samples.held().saturating_sub(limits::AUDIO_HELD_SAMPLES_MAX);
        if ahead > 0 {
            self.encode_up_to(self.encoded + ahead)?;
        }
        Ok(())
    }

    /// The next sample belongs at `at`: silence up to there, or what overlaps is dropped.
    fn move_to(&mut self, at: i64) -> Result<(), Failure> {
        self.drain_resampler()?;
        self.skip = 0;
        let step = at - self.pushed as i64;
        if step > limits::TIME_STEP_SECONDS_MAX * i64::from(self.settings.rate) {
            return Err(Failure::input(format!(
                "the audio has a gap of {} s, the limit is {} s: remux the source to repair its timestamps",
                step / i64::from(self.settings.rate),
                limits::TIME_STEP_SECONDS_MAX
            )));
        }
        if step >= 0 {
            self.samples.push_silence(step as u64);
            self.pushed += step as u64;
        } else {
            self.skip = step.unsigned_abs();
        }
        Ok(())
    }

    fn push(&mut self, planes: Vec<Vec<f32>>) {
        let length = planes.first().map_or(0, Vec::len) as u64;
        let skipped = self.samples.push(planes, self.skip);
        self.skip -= skipped;
        self.pushed += length - skipped;
    }

    fn drain_resampler(&mut self) -> Result<(), Failure> {
        if let Some(mut resampler) = self.resampler.take() {
            let planes = resampler.convert(None)?;
            self.push(planes);
        }
        Ok(())
    }

    fn frame_samples(&self) -> u64 {
        u64::try_from(self.encoder.context().frame_size).unwrap_or(0).max(1)
    }

    /// Encodes whole frames that end before `limit`.
    fn encode_up_to(&mut self, limit: u64) -> Result<(), Failure> {
        let size = self.frame_samples();
        while self.encoded + size <= limit && self.samples.held() >= size {
            self.encode(size as usize)?;
        }
        Ok(())
    }

    fn encode(&mut self, samples: usize) -> Result<(), Failure> {
        let mut frame = audio_frame(self.settings.rate, self.settings.channels, samples)?;
        let mut planes: Vec<Vec<f32>> = vec![vec![0.0; samples]; self.settings.channels as usize];
        let mut slices: Vec<&mut [f32]> = planes.iter_mut().map(Vec::as_mut_slice).collect();
        self.samples.pop(&mut slices);
        for (channel, samples) in planes.iter().enumerate() {
            plane(&mut frame, channel).copy_from_slice(samples);
        }
        frame.get_mut().pts = self.encoded as i64;
        self.encoded += samples as u64;
        let output = &mut self.output;
        self.encoder.encode(Some(&frame), |packet| output.take(packet))
    }

    fn finish(mut self, end: i64) -> Result<u64, Failure> {
        // One sample less: with its priming, which players that ignore edit lists play too, the track then outlasts the
        // picture by less than one AAC frame.
        let end = self.samples_at(end).saturating_sub(1).max(1);
        self.decode(None)?;
        self.drain_resampler()?;
        if !self.started {
            self.output.link.note("the audio stream held no sound that could be decoded: the track is silent")?;
        }
        let mut total = end.max(self.encoded);
        if self.pushed < total {
            self.samples.push_silence(total - self.pushed);
        } else if self.pushed - total > TAIL_SECONDS * self.settings.rate as u64 {
            let seconds = (self.pushed - total) / self.settings.rate as u64;
            self.output.link.note(format!("the audio goes on for {seconds} s after the last picture"))?;
            total = self.pushed;
        }
        self.encode_up_to(total)?;
        let rest = (total - self.encoded) as usize;
        if rest > 0 {
            self.encode(rest)?;
        }
        let output = &mut self.output;
        self.encoder.encode(None, |packet| output.take(packet))?;
        output.finish(total as i64)?;
        Ok(self.decoder.damaged)
    }
}

/// From AAC packets to segments.
struct Output {
    name: String,
    muxer: Muxer,
    link: Arc<Link>,
    rate: c_int,
    channels: c_int,
    grid: Grid,
    /// The last packet, held until the next one tells its duration.
    held: Option<Packet>,
    index: u32,
    start: i64,
    packets: u32,
}

impl Output {
    fn take(&mut self, packet: &mut Packet) -> Result<(), Failure> {
        let packet = packet.take()?;
        let at = packet.get().pts;
        // Priming lies before time zero and belongs to the first segment.
        let boundary = at >= 0 && self.grid.starts(at) && at > 0;
        if let Some(mut held) = self.held.take() {
            held.get_mut().duration = at - held.get().pts;
            self.write(&mut held)?;
            if boundary {
                self.cut(at)?;
            }
        }
        self.held = Some(packet);
        Ok(())
    }

    fn write(&mut self, packet: &mut Packet) -> Result<(), Failure> {
        packet.get_mut().dts = packet.get().pts;
        self.packets += 1;
        self.muxer.write(packet)?;
        if let Some(init) = self.muxer.take_init() {
            let audio = InitAudio { sample_rate: self.rate as u32, channels: self.channels as u32 };
            let message = FromWorker::Init(Init {
                rendition: self.name.clone(),
                codecs: "mp4a.40.2".into(),
                timescale: self.rate as u32,
                video: None,
                audio: Some(audio),
            });
            self.link.send_with(&message, &init)?;
        }
        Ok(())
    }

    fn cut(&mut self, end: i64) -> Result<(), Failure> {
        let bytes = self.muxer.cut()?;
        let segment = Segment {
            rendition: self.name.clone(),
            index: self.index,
            frames: self.packets,
            start: self.start as u64,
            duration: (end - self.start) as u64,
            keyframe: true,
            bytes: bytes.len() as u64,
        };
        self.link.send_segment(segment, &bytes)?;
        self.index += 1;
        self.start = end;
        self.packets = 0;
        Ok(())
    }

    fn finish(&mut self, total: i64) -> Result<(), Failure> {
        // A packet that begins at the end or later is the encoder's padding.
        if let Some(mut held) = self.held.take_if(|held| held.get().pts < total) {
            held.get_mut().duration = total - held.get().pts;
            self.write(&mut held)?;
        }
        if self.packets > 0 {
            self.cut(total)?;
        }
        Ok(())
    }
}
