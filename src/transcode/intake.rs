//! One conversation with a worker: the plan out, segments in, each into a blob and then into the catalog.
//!
//! Memory is bounded by construction: one frame of the socket and what the blob writer has in flight. The next frame is not
//! read before the writer has room, so a slow disk stops the encoders. A segment is listed only after its row and its
//! bytes are durable. Dropping the conversation drops the writer, whose partial file then goes.

use std::collections::HashMap;
use std::time::Instant;

use bytes::Bytes;
use reelring_protocol::transcode::{
    Class, EncoderChoice, Failed, Finished, FromWorker, Init, Open, Probed, Segment, Started, ToWorker, WORKER,
};
use reelring_storage::{BlobMeta, BlobWriter, SealedBlob, Store};

use super::assets::{self, Finish, NewAsset};
use super::plan::{plan, segment_seconds};
use super::supervisor::Worker;
use super::{Outcome, TranscodeRequest};
use crate::error::Failure;
use crate::limits;
use crate::progress::Reporter;

/// Why a conversation ended without an asset.
pub(super) struct Ended {
    pub failure: Failure,
    /// The GPU is to blame: the CPU may still do it.
    pub hardware: bool,
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Ended {
        Ended { failure, hardware: false }
    }
}

impl From<reelring_storage::Error> for Ended {
    fn from(error: reelring_storage::Error) -> Ended {
        Failure::from(error).into()
    }
}

/// What is known of one rendition so far.
struct Track {
    /// Peak bit rate by the plan.
    bitrate: u32,
    video: bool,
    timescale: Option<u32>,
    segments: u32,
    frames: u64,
    /// Where the next segment must begin.
    end: u64,
}

pub(super) struct Intake<'a> {
    store: &'a Store,
    request: &'a TranscodeRequest,
    reporter: &'a Reporter,
    tracks: HashMap<String, Track>,
    /// The segment whose pieces are arriving.
    open: Option<(String, u32, BlobWriter)>,
    started: Option<Started>,
    notes: Vec<String>,
    since: Instant,
}

impl<'a> Intake<'a> {
    pub fn new(store: &'a Store, request: &'a TranscodeRequest, reporter: &'a Reporter) -> Intake<'a> {
        Intake {
            store,
            request,
            reporter,
            tracks: HashMap::new(),
            open: None,
            started: None,
            notes: Vec::new(),
            since: Instant::now(),
        }
    }

    /// Talks to the worker until the asset is ready. `fallback` is why the GPU is not asked this time.
    pub async fn converse(mut self, worker: &mut Worker, fallback: Option<String>) -> Result<Outcome, Ended> {
        let probed = self.open_source(worker, fallback.is_some()).await?;
        let plan = plan(&probed, &self.request.ladder);
        let audio = plan.audio.iter().map(|audio| (&audio.rendition, audio.bitrate, false));
        let video = plan.video.iter().map(|video| (&video.rendition, video.bitrate_max, true));
        for (name, bitrate, video) in video.chain(audio) {
            let track = Track { bitrate, video, timescale: None, segments: 0, frames: 0, end: 0 };
            self.tracks.insert(name.clone(), track);
        }
        let new = NewAsset {
            id: self.request.asset.clone(),
            source: self.request.source.key.clone(),
            renditions_planned: self.tracks.len() as u32,
            segment_seconds: segment_seconds(&plan),
            frame_rate: plan.frame_rate.num as f64 / plan.frame_rate.den.max(1) as f64,
        };
        assets::begin(self.store, new).await?;
        self.reporter.update(|progress| progress.frames_total = probed.video.frames_estimate);
        worker.send(&ToWorker::Encode(plan)).await?;
        loop {
            let frame = worker.next().await.map_err(|failure| Ended { failure, hardware: self.on_gpu() })?;
            match frame.message {
                FromWorker::Started(started) => self.start(started, fallback.as_deref()).await?,
                FromWorker::Init(init) => self.init(init, frame.payload).await?,
                FromWorker::Data { rendition, index } => self.data(rendition, index, frame.payload).await?,
                FromWorker::Segment(segment) => self.segment(segment).await?,
                FromWorker::Progress(progress) => self.progress(progress.frames_done, progress.frames_total),
                FromWorker::Note { text } => {
                    tracing::info!(asset = %self.request.asset, "{text}");
                    if self.notes.len() < limits::TRANSCODE_NOTES {
                        self.notes.push(text);
                    }
                }
                FromWorker::Finished(finished) => return self.finish(finished).await,
                FromWorker::Failed(failed) => return Err(self.failed(failed)),
                other @ (FromWorker::Hello(_) | FromWorker::Probed(_)) => {
                    return Err(unexpected(&format!("{other:?} in the middle of a job")).into());
                }
            }
        }
    }

    async fn open_source(&mut self, worker: &mut Worker, software: bool) -> Result<Probed, Ended> {
        match worker.next().await?.message {
            FromWorker::Hello(hello) => {
                hello.check(WORKER).map_err(|error| Failure::permanent(error.to_string()))?;
            }
            other => return Err(unexpected(&format!("{other:?} in place of its hello")).into()),
        }
        let source = &self.request.source;
        let encoder = if software { EncoderChoice::Software } else { EncoderChoice::Auto };
        let open = Open { name: source.key.to_string(), length: source.length, encoder };
        worker.send(&ToWorker::Open(open)).await?;
        match worker.next().await?.message {
            FromWorker::Probed(probed) => Ok(probed),
            FromWorker::Failed(failed) => Err(self.failed(failed)),
            other => Err(unexpected(&format!("{other:?} in place of what the source is")).into()),
        }
    }

    async fn start(&mut self, mut started: Started, fallback: Option<&str>) -> Result<(), Ended> {
        // The node knows better than the worker why the GPU was not asked.
        if let Some(fallback) = fallback {
            started.fallback_reason = Some(fallback.to_owned());
        }
        if started.decoder == "cuda"
            && let Some(reason) = &mut started.fallback_reason
        {
            reason.push_str("; decoding runs on the GPU");
        }
        tracing::info!(
            asset = %self.request.asset,
            encoder = started.encoder,
            decoder = started.decoder,
            reason = started.fallback_reason,
            "transcoding"
        );
        self.reporter.note(|notes| {
            notes.encoder = Some(started.encoder.clone());
            notes.fallback_reason = started.fallback_reason.clone();
        });
        assets::set_encoder(self.store, &self.request.asset, started.clone()).await?;
        self.started = Some(started);
        Ok(())
    }

    fn track(&mut self, rendition: &str) -> Result<&mut Track, Failure> {
        self.tracks.get_mut(rendition).ok_or_else(|| unexpected(&format!("a rendition {rendition:?} not in the plan")))
    }

    async fn init(&mut self, init: Init, bytes: Bytes) -> Result<(), Ended> {
        let track = self.track(&init.rendition)?;
        if track.timescale.is_some() || init.timescale == 0 || bytes.is_empty() || track.video != init.video.is_some() {
            return Err(unexpected(&format!("a wrong init segment: {init:?}")).into());
        }
        track.timescale = Some(init.timescale);
        let bitrate = track.bitrate;
        let mut writer = self.writer(&init.rendition, "init.mp4").await?;
        writer.write(bytes).await?;
        let sealed = writer.seal().await?;
        assets::add_rendition(self.store, &self.request.asset, init, bitrate, sealed).await?;
        Ok(())
    }

    async fn writer(&self, rendition: &str, file: &str) -> Result<BlobWriter, Ended> {
        let meta = BlobMeta {
            // For whoever reads the footer: a segment has no key in the objects' name space.
            key: Some(format!("assets/{}/{rendition}/{file}", self.request.asset)),
            content_type: Some("video/mp4".into()),
            length_hint: None,
        };
        Ok(self.store.create(meta).await?)
    }

    async fn data(&mut self, rendition: String, index: u32, bytes: Bytes) -> Result<(), Ended> {
        let expected = self.track(&rendition)?.segments;
        if index != expected || index >= limits::RENDITION_SEGMENTS {
            return Err(unexpected(&format!("data of {rendition} segment {index}, expected {expected}")).into());
        }
        if self.open.is_none() {
            let writer = self.writer(&rendition, &format!("{index}.m4s")).await?;
            self.open = Some((rendition.clone(), index, writer));
        }
        match &mut self.open {
            Some((open, number, writer)) if *open == rendition && *number == index => {
                if writer.len() + bytes.len() as u64 > limits::SEGMENT_BYTES {
                    let message = format!("{rendition} segment {index} beyond {} bytes", limits::SEGMENT_BYTES);
                    return Err(unexpected(&message).into());
                }
                writer.write(bytes).await?;
                // Room for the next piece, before the socket is read again.
                writer.ready().await?;
                Ok(())
            }
            _ => Err(unexpected(&format!("pieces of {rendition} segment {index} within another one")).into()),
        }
    }

    async fn segment(&mut self, segment: Segment) -> Result<(), Ended> {
        let track = self.track(&segment.rendition)?;
        let follows = segment.index == track.segments && segment.start == track.end && segment.frames > 0;
        if !follows || !segment.keyframe || track.timescale.is_none() {
            let message = format!("{segment:?} after {} segments that end at {}", track.segments, track.end);
            return Err(unexpected(&message).into());
        }
        track.segments += 1;
        track.frames += u64::from(segment.frames);
        track.end = segment.start + segment.duration;
        let sealed: SealedBlob = match self.open.take() {
            Some((rendition, index, writer))
                if rendition == segment.rendition && index == segment.index && writer.len() == segment.bytes =>
            {
                writer.seal().await?
            }
            _ => return Err(unexpected(&format!("{segment:?} without its bytes")).into()),
        };
        assets::add_segment(self.store, &self.request.asset, segment, sealed).await?;
        Ok(())
    }

    fn progress(&self, done: u64, total: Option<u64>) {
        let seconds = self.since.elapsed().as_secs_f64();
        self.reporter.update(|progress| {
            progress.frames_done = done;
            progress.frames_total = total;
            progress.eta_s = total
                .filter(|_| done > 0)
                .map(|total| (seconds / done as f64 * total.saturating_sub(done) as f64).ceil() as u64);
        });
    }

    async fn finish(mut self, finished: Finished) -> Result<Outcome, Ended> {
        let mut duration_seconds = 0.0f64;
        for (name, track) in &self.tracks {
            let Some(timescale) = track.timescale.filter(|_| track.segments > 0) else {
                return Err(unexpected(&format!("the end without any segment of {name}")).into());
            };
            // Every frame once, in every rendition: this is the promise, so it is checked here as well.
            if track.video && track.frames != finished.frames {
                let message = format!("{} frames in {name}, the source has {}", track.frames, finished.frames);
                return Err(unexpected(&message).into());
            }
            duration_seconds = duration_seconds.max(track.end as f64 / f64::from(timescale));
        }
        let Some(started) = self.started.take() else {
            return Err(unexpected("the end without naming its encoder").into());
        };
        let finish = Finish { duration_seconds, notes: self.notes.clone() };
        assets::finish(self.store, &self.request.asset, finish).await?;
        self.progress(finished.frames, Some(finished.frames));
        Ok(Outcome {
            asset: self.request.asset.clone(),
            encoder: started.encoder,
            fallback_reason: started.fallback_reason,
            frames: finished.frames,
            duration_seconds,
            notes: self.notes,
        })
    }

    fn failed(&self, failed: Failed) -> Ended {
        let on_gpu = self.on_gpu();
        let log = match failed.log.last() {
            Some(line) if !failed.message.contains(line.as_str()) && failed.class != Class::Input => {
                format!(" ({line})")
            }
            _ => String::new(),
        };
        let message = format!("{}{log}", failed.message);
        let failure = match failed.class {
            Class::Input => Failure::permanent(message),
            Class::Cancelled => Failure::cancelled(),
            Class::Absent if !on_gpu => Failure::permanent(message),
            Class::Absent | Class::Capacity | Class::Sticky | Class::Source | Class::Internal => {
                Failure::transient(message)
            }
        };
        let blames_device = matches!(failed.class, Class::Absent | Class::Capacity | Class::Sticky | Class::Internal);
        Ended { failure, hardware: on_gpu && blames_device }
    }

    /// Whether the GPU takes part, so that it may be to blame.
    fn on_gpu(&self) -> bool {
        self.started.as_ref().is_some_and(|started| started.encoder != "libx264" || started.decoder == "cuda")
    }
}

fn unexpected(what: &str) -> Failure {
    Failure::transient(format!("{WORKER} sent {what}"))
}
