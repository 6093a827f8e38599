//! The whole job: decode once on this thread, one thread per video rendition, one for the audio.
//!
//! This thread owns the source and the video decoder and hands pictures (shared, not copied) to bounded channels; a full one
//! stops the decoding. When a thread fails its channel closes, everything winds down, and the first cause is reported.

use std::ffi::{CStr, c_int};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use ffmpeg_sys_next as ff;
use reelring_protocol::transcode::{
    AudioPlan, Class, Encode, Finished, FromWorker, Probed, Progress, Started, VideoPlan,
};

use crate::audio::{AudioTrack, Settings, Sound};
use crate::av::{Frame, Packet};
use crate::decoder::Decoder;
use crate::encoder::{Color, Encoder, HARDWARE, SOFTWARE, VideoSettings};
use crate::error::Failure;
use crate::filters::{Scaler, Target, can_tone_map};
use crate::hardware::Device;
use crate::limits;
use crate::link::Link;
use crate::source::{Read, Source};
use crate::timeline::{Clock, Grid};
use crate::video::{Picture, Rendition};

/// Runs the plan to its end. `device` is the CUDA device, or why there is none.
pub fn run(
    source: &mut Source,
    probed: &Probed,
    plan: &Encode,
    device: Result<&Device, &str>,
    link: &Arc<Link>,
) -> Result<(), Failure> {
    check_plan(plan, probed)?;
    let clock = Clock::new(source.video.time_base, plan.frame_rate);
    let decoder = Decoder::open(&source.video, device.ok(), 0)?;
    for note in &source.notes {
        link.note(note)?;
    }
    let look = look_of(source, &decoder, link)?;
    let (encoders, started) = open_encoders(source, probed, plan, &clock, &look, device)?;
    link.send(&FromWorker::Started(started))?;

    let mut job = Job { link, clock, pictures: Vec::new(), sound: None, frames: 0, said: Instant::now() };
    let mut threads = Threads::default();
    for (video, encoder) in plan.video.iter().zip(encoders) {
        let target = Target {
            width: video.width,
            height: video.height,
            sample_aspect: probed.video.sample_aspect,
            orientation: source.orientation(),
            interlaced: look.interlaced,
            tone_map: look.tone_map,
            timescale: job.clock.timescale,
        };
        let grid = Grid::new(plan.frames_per_segment, plan.frame_rate, job.clock.timescale, true);
        let rendition = Rendition::new(video.clone(), Scaler::new(target)?, encoder, grid, &job.clock, link.clone())?;
        let (sender, receiver) = sync_channel(limits::FRAMES_QUEUED);
        job.pictures.push(sender);
        threads.video.push(spawn(&video.rendition, move || rendition.run(&receiver))?);
    }
    if let (Some(audio), Some(_)) = (&plan.audio, source.audio) {
        let track = audio_track(source, probed, plan, audio, &job.clock, link)?;
        let (sender, receiver) = sync_channel(limits::AUDIO_QUEUED);
        job.sound = Some(sender);
        threads.audio = Some(spawn("audio", move || track.run(&receiver))?);
    }

    let read = job.read_all(source, decoder, probed.video.frames_estimate);
    let (frames, repaired) = (job.frames, job.clock.repaired);
    let seconds = job.clock.end() as f64 / f64::from(job.clock.timescale);
    // Closing the channels ends the threads, whatever came of the reading.
    drop(job);
    let damaged = threads.join(read, frames)?;
    if frames == 0 {
        return Err(Failure::input(format!("{}: no picture of its video could be decoded", source.name())));
    }
    if let Some(announced) = probed.duration_seconds.filter(|announced| seconds < announced * 0.9 - 2.0) {
        link.note(format!(
            "the source announces {announced:.1} s, its video ends after {seconds:.1} s: it may be cut short"
        ))?;
    }
    if repaired > 0 {
        link.note(format!("{repaired} timestamps were missing or went backwards and were repaired"))?;
    }
    if damaged > 0 {
        link.note(format!("{damaged} damaged packets were left out"))?;
    }
    link.send(&FromWorker::Progress(Progress { frames_done: frames, frames_total: Some(frames) }))?;
    link.send(&FromWorker::Finished(Finished { frames, damaged_packets: damaged }))
}

fn check_plan(plan: &Encode, probed: &Probed) -> Result<(), Failure> {
    let sane = |video: &VideoPlan| {
        let even = video.width.is_multiple_of(2) && video.height.is_multiple_of(2);
        let side = limits::SIDE_MAX as u32;
        even && (2..=side).contains(&video.width) && (2..=side).contains(&video.height) && video.bitrate_max > 0
    };
    if plan.video.is_empty()
        || plan.video.len() > limits::RENDITIONS_MAX
        || !plan.video.iter().all(sane)
        || plan.frames_per_segment == 0
        || plan.frame_rate.num <= 0
        || plan.frame_rate.den <= 0
        || (plan.audio.is_some() && probed.audio.is_none())
    {
        return Err(Failure::internal(format!("the node sent a plan that cannot be carried out: {plan:?}")));
    }
    Ok(())
}

/// What has to be done to the pictures, and the colours they then have.
struct Look {
    color: Color,
    interlaced: bool,
    tone_map: bool,
}

fn look_of(source: &Source, decoder: &Decoder, link: &Link) -> Result<Look, Failure> {
    let context = decoder.context();
    let orientation = source.orientation();
    if orientation.odd_angle {
        link.note("the source asks to be turned by an angle that is not a multiple of 90°: it is left as stored")?;
    }
    let interlaced = source.is_interlaced();
    if interlaced {
        link.note("interlaced: two fields become one whole picture (yadif)")?;
    }
    let hdr = matches!(
        context.color_trc,
        ff::AVColorTransferCharacteristic::AVCOL_TRC_SMPTE2084
            | ff::AVColorTransferCharacteristic::AVCOL_TRC_ARIB_STD_B67
    );
    // SAFETY: a static description, or null for an unknown format.
    let depth = unsafe { ff::av_pix_fmt_desc_get(context.pix_fmt).as_ref() }.map_or(8, |format| format.comp[0].depth);
    if hdr && can_tone_map() {
        link.note(format!("HDR, {depth} bits: mapped to the range of ordinary screens, BT.709, 8 bits"))?;
        return Ok(Look { color: Color::BT709, interlaced, tone_map: true });
    }
    if hdr {
        link.note(format!("HDR, {depth} bits: cut to 8 bits without tone mapping, this FFmpeg has no zscale filter"))?;
    } else if depth > 8 {
        link.note(format!("{depth} bits a sample: reduced to 8"))?;
    }
    let color = Color { primaries: context.color_primaries, transfer: context.color_trc, space: context.colorspace };
    Ok(Look { color, interlaced, tone_map: false })
}

/// All renditions on the GPU, or all on the CPU with the reason: never a mixture within one asset.
fn open_encoders(
    source: &Source,
    probed: &Probed,
    plan: &Encode,
    clock: &Clock,
    look: &Look,
    device: Result<&Device, &str>,
) -> Result<(Vec<Encoder>, Started), Failure> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    // As x264 counts, three threads for two processors, divided among the renditions.
    let threads = (processors * 3).div_ceil(2 * plan.video.len()).clamp(1, 16) as c_int;
    let settings = VideoSettings {
        timescale: clock.timescale,
        frame_rate: plan.frame_rate,
        sample_aspect: probed.video.sample_aspect,
        gop: plan.frames_per_segment.saturating_mul(4).clamp(250, 100_000),
        threads,
        color: look.color,
    };
    let open = |name: &CStr, device: Option<&Device>| {
        plan.video
            .iter()
            .map(|video| Encoder::open_video(name, video, &settings, device))
            .collect::<Result<Vec<_>, _>>()
    };
    let decoder = match device {
        Ok(_) if Device::decodes(source.video.decoder) => "cuda",
        _ => "cpu",
    };
    let started = |encoder: &CStr, fallback_reason| Started {
        encoder: encoder.to_string_lossy().into_owned(),
        decoder: decoder.into(),
        fallback_reason,
    };
    let reason = match device {
        Err(reason) => reason.to_owned(),
        Ok(device) => match open(HARDWARE, Some(device)) {
            Ok(encoders) => return Ok((encoders, started(HARDWARE, None))),
            Err(failure) => {
                let said = crate::log::last().map(|line| format!("; {line}")).unwrap_or_default();
                format!("{failure}{said}")
            }
        },
    };
    let encoders = open(SOFTWARE, None)?;
    Ok((encoders, started(SOFTWARE, Some(reason))))
}

fn audio_track(
    source: &Source,
    probed: &Probed,
    plan: &Encode,
    audio: &AudioPlan,
    clock: &Clock,
    link: &Arc<Link>,
) -> Result<AudioTrack, Failure> {
    let (Some(stream), Some(info)) = (source.audio, &probed.audio) else {
        return Err(Failure::internal("an audio track without audio"));
    };
    let rate = match info.sample_rate {
        rate @ (32_000 | 44_100 | 48_000) => rate as c_int,
        _ => 48_000,
    };
    let settings = Settings {
        plan: audio.clone(),
        rate,
        channels: info.channels.clamp(1, 2) as c_int,
        source_base: stream.time_base,
        video_base: source.video.time_base,
        video_timescale: clock.timescale,
        grid: Grid::new(plan.frames_per_segment, plan.frame_rate, rate, false),
    };
    AudioTrack::new(settings, Decoder::open(&stream, None, 1)?, link.clone())
}

fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<JoinHandle<Result<T, Failure>>, Failure> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map_err(|error| Failure::internal(format!("no thread for {name}: {error}")))
}

/// The reading side: dropping it closes every channel.
struct Job<'a> {
    link: &'a Arc<Link>,
    clock: Clock,
    pictures: Vec<SyncSender<Picture>>,
    sound: Option<SyncSender<Sound>>,
    frames: u64,
    said: Instant,
}

impl Job<'_> {
    /// Returns how many packets of the video were damaged.
    fn read_all(
        &mut self,
        source: &mut Source,
        mut decoder: Decoder,
        frames_total: Option<u64>,
    ) -> Result<u64, Failure> {
        let mut packet = Packet::new()?;
        loop {
            self.link.check_cancelled()?;
            match source.read(&mut packet)? {
                Read::Video => {
                    self.clock.saw_packet(packet.get().pts, packet.get().duration);
                    decoder.decode(Some(&packet), |frame| self.picture(frame, frames_total))?;
                }
                Read::Audio if self.sound.is_some() => {
                    let packet = packet.take()?;
                    self.sound(Sound::Packet(packet))?;
                }
                Read::Audio | Read::Other => {}
                Read::End => break,
            }
        }
        decoder.decode(None, |frame| self.picture(frame, frames_total))?;
        let end = self.clock.end();
        if self.frames > 0 {
            for pictures in &self.pictures {
                pictures.send(Picture::End(end)).map_err(|_| Failure::cancelled())?;
            }
            if self.sound.is_some() {
                self.sound(Sound::End(end))?;
            }
        }
        Ok(decoder.damaged)
    }

    fn picture(&mut self, frame: &mut Frame, frames_total: Option<u64>) -> Result<(), Failure> {
        let placed = self.clock.place(frame.get().best_effort_timestamp)?;
        frame.get_mut().pts = placed.at;
        if let Some(origin) = placed.new_origin {
            self.sound(Sound::Origin(origin))?;
        }
        self.sound(Sound::Reached(placed.at))?;
        for pictures in &self.pictures {
            // A closed channel means that its thread has failed; joining it tells why.
            pictures.send(Picture::Frame(frame.share()?)).map_err(|_| Failure::cancelled())?;
        }
        self.frames += 1;
        if self.said.elapsed() >= limits::PROGRESS_EVERY {
            self.said = Instant::now();
            let total = frames_total.map(|total| total.max(self.frames));
            self.link.send(&FromWorker::Progress(Progress { frames_done: self.frames, frames_total: total }))?;
        }
        Ok(())
    }

    fn sound(&self, sound: Sound) -> Result<(), Failure> {
        match &self.sound {
            Some(channel) => channel.send(sound).map_err(|_| Failure::cancelled()),
            None => Ok(()),
        }
    }
}

#[derive(Default)]
struct Threads {
    video: Vec<JoinHandle<Result<u64, Failure>>>,
    audio: Option<JoinHandle<Result<u64, Failure>>>,
}

impl Threads {
    /// Waits for all of them. The first real cause wins over the cancellations that follow from it.
    fn join(self, read: Result<u64, Failure>, frames: u64) -> Result<u64, Failure> {
        let mut causes = Vec::new();
        let mut damaged = read.as_ref().copied().unwrap_or(0);
        let incomplete = read.is_err() || frames == 0;
        causes.extend(read.err());
        for thread in self.video {
            match thread.join() {
                Ok(Ok(written)) if written == frames => {}
                Ok(Ok(written)) => {
                    causes.push(Failure::internal(format!("{written} frames were written where {frames} were decoded")))
                }
                Ok(Err(failure)) if incomplete && failure.class == Class::Cancelled => {}
                Ok(Err(failure)) => causes.push(failure),
                Err(_) => causes.push(Failure::internal("an encoding thread panicked")),
            }
        }
        match self.audio.map(JoinHandle::join) {
            None => {}
            Some(Ok(Ok(packets))) => damaged += packets,
            Some(Ok(Err(failure))) if incomplete && failure.class == Class::Cancelled => {}
            Some(Ok(Err(failure))) => causes.push(failure),
            Some(Err(_)) => causes.push(Failure::internal("the audio thread panicked")),
        }
        let cause = causes.iter().position(|failure| failure.class != Class::Cancelled).unwrap_or(0);
        if causes.is_empty() { Ok(damaged) } else { Err(causes.swap_remove(cause)) }
    }
}
