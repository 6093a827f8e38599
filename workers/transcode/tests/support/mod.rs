//! Plays the node's part for one worker, makes clips with the ffmpeg command, and reads results with ffprobe.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use reelring_protocol::transcode::*;
use reelring_protocol::{FrameReader, FrameWriter};

/// Makes a clip; panics with ffmpeg's own words.
pub fn clip(dir: &Path, name: &str, arguments: &str) -> PathBuf {
    let path = dir.join(name);
    let mut command = Command::new("ffmpeg");
    command.args(["-hide_banner", "-loglevel", "error", "-nostdin", "-y"]);
    command.args(arguments.split_whitespace()).arg(&path);
    let output = command.output().expect("the ffmpeg command is installed");
    assert!(output.status.success(), "ffmpeg {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    path
}

pub fn ffprobe(arguments: &str, path: &Path) -> String {
    let output = Command::new("ffprobe")
        .args(["-v", "error", "-of", "default=noprint_wrappers=1:nokey=1"])
        .args(arguments.split_whitespace())
        .arg(path)
        .output()
        .expect("ffprobe is installed");
    assert!(output.status.success(), "ffprobe {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("ffprobe prints UTF-8").trim().to_owned()
}

pub fn count_frames(path: &Path) -> u64 {
    let text = ffprobe("-count_frames -select_streams v:0 -show_entries stream=nb_read_frames", path);
    text.lines().next().and_then(|line| line.parse().ok()).unwrap_or_else(|| panic!("no count: {text:?}"))
}

/// Presentation times of the video frames, in seconds from the first, sorted as shown.
pub fn frame_times(path: &Path) -> Vec<f64> {
    let text = ffprobe("-select_streams v:0 -show_entries frame=best_effort_timestamp_time", path);
    let times: Vec<f64> = text.lines().filter_map(|line| line.trim_end_matches(',').parse().ok()).collect();
    let first = times.first().copied().unwrap_or(0.0);
    times.into_iter().map(|time| time - first).collect()
}

pub struct Worker {
    pub child: Child,
    pub reader: FrameReader<UnixStream>,
    pub writer: FrameWriter<UnixStream>,
}

impl Worker {
    pub fn start(source: &Path) -> Worker {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_reelring-transcode"))
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(File::open(source).unwrap()))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut worker =
            Worker { child, reader: FrameReader::new(ours.try_clone().unwrap()), writer: FrameWriter::new(ours) };
        let FromWorker::Hello(hello) = worker.next() else { panic!("no hello") };
        hello.check(WORKER).unwrap();
        worker
    }

    pub fn open(&mut self, source: &Path) {
        let length = std::fs::metadata(source).unwrap().len();
        let name = source.file_name().unwrap().to_string_lossy().into_owned();
        let open = Open { name, length, encoder: EncoderChoice::Auto };
        self.writer.write(&ToWorker::Open(open), &[]).unwrap();
    }

    pub fn next(&mut self) -> FromWorker {
        self.reader.read::<FromWorker>().unwrap().expect("the worker goes on").message
    }

    pub fn probed(&mut self) -> Result<Probed, Failed> {
        match self.next() {
            FromWorker::Probed(probed) => Ok(probed),
            FromWorker::Failed(failed) => Err(failed),
            other => panic!("unexpected {other:?}"),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One rendition as it came over the socket.
#[derive(Default)]
pub struct Track {
    pub init: Vec<u8>,
    pub codecs: String,
    pub timescale: u32,
    pub segments: Vec<(Segment, Vec<u8>)>,
}

impl Track {
    pub fn frames(&self) -> u64 {
        self.segments.iter().map(|(segment, _)| u64::from(segment.frames)).sum()
    }

    pub fn duration(&self) -> f64 {
        let (last, _) = self.segments.last().expect("segments");
        (last.start + last.duration) as f64 / f64::from(self.timescale)
    }

    pub fn write(&self, path: &Path) -> PathBuf {
        let mut bytes = self.init.clone();
        self.segments.iter().for_each(|(_, segment)| bytes.extend_from_slice(segment));
        std::fs::write(path, bytes).unwrap();
        path.to_owned()
    }

    /// Base decode time and summed sample durations of each fragment, as they stand in the file.
    pub fn decode_times(&self) -> Vec<(u64, u64)> {
        self.segments.iter().map(|(_, bytes)| fragment_times(bytes)).collect()
    }
}

pub struct Asset {
    pub probed: Probed,
    pub started: Started,
    pub tracks: BTreeMap<String, Track>,
    pub notes: Vec<String>,
    pub finished: Finished,
}

/// Runs a whole job with the given heights (widths keep the shape).
pub fn transcode(source: &Path, heights: &[u32]) -> Result<Asset, Failed> {
    let mut worker = Worker::start(source);
    worker.open(source);
    let probed = worker.probed()?;
    let plan = plan(&probed, heights);
    worker.writer.write(&ToWorker::Encode(plan), &[]).unwrap();
    let mut tracks: BTreeMap<String, Track> = BTreeMap::new();
    let (mut started, mut notes, mut pending) = (None, Vec::new(), Vec::new());
    loop {
        let frame = worker.reader.read::<FromWorker>().unwrap().expect("the worker goes on");
        match frame.message {
            FromWorker::Started(message) => started = Some(message),
            FromWorker::Init(init) => {
                let track = tracks.entry(init.rendition).or_default();
                assert!(track.init.is_empty(), "one init segment a rendition");
                track.init = frame.payload.to_vec();
                track.codecs = init.codecs;
                track.timescale = init.timescale;
            }
            FromWorker::Data { .. } => pending.extend_from_slice(&frame.payload),
            FromWorker::Segment(segment) => {
                let track = tracks.get_mut(&segment.rendition).expect("init first");
                assert_eq!(segment.index as usize, track.segments.len());
                assert_eq!(segment.bytes, pending.len() as u64);
                assert!(segment.keyframe);
                let expected = track.segments.last().map_or(0, |(last, _)| last.start + last.duration);
                assert_eq!(segment.start, expected, "segments are contiguous");
                track.segments.push((segment, std::mem::take(&mut pending)));
            }
            FromWorker::Note { text } => notes.push(text),
            FromWorker::Progress(_) => {}
            FromWorker::Finished(finished) => {
                assert!(worker.child.wait().unwrap().success());
                let started = started.expect("Started");
                return Ok(Asset { probed, started, tracks, notes, finished });
            }
            FromWorker::Failed(failed) => return Err(failed),
            other => panic!("unexpected {other:?}"),
        }
    }
}

pub fn plan(probed: &Probed, heights: &[u32]) -> Encode {
    let rate = probed.video.frame_rate;
    Encode {
        video: heights
            .iter()
            .map(|&height| VideoPlan {
                rendition: format!("{height}p"),
                width: (probed.video.width * height / probed.video.height).max(2) & !1,
                height,
                bitrate_max: 800_000,
            })
            .collect(),
        audio: probed.audio.as_ref().map(|_| AudioPlan { rendition: "audio".into(), bitrate: 96_000 }),
        // One second.
        frames_per_segment: ((rate.num + rate.den / 2) / rate.den).max(1) as u32,
        frame_rate: rate,
    }
}

/// Walks `moof/traf/{tfdt,tfhd,trun}`: (base decode time, sum of durations).
fn fragment_times(bytes: &[u8]) -> (u64, u64) {
    let moof = child(bytes, b"moof").expect("moof");
    let traf = child(moof, b"traf").expect("traf");
    let tfdt = child(traf, b"tfdt").expect("tfdt");
    let base = if tfdt[0] == 1 { u64::from_be_bytes(tfdt[4..12].try_into().unwrap()) } else { u32_at(tfdt, 4).into() };
    let tfhd = child(traf, b"tfhd").expect("tfhd");
    let flags = u32_at(tfhd, 0) & 0xff_ffff;
    let at = 8 + if flags & 1 != 0 { 8 } else { 0 } + if flags & 2 != 0 { 4 } else { 0 };
    let default = if flags & 8 != 0 { u32_at(tfhd, at) } else { 0 };
    let trun = child(traf, b"trun").expect("trun");
    let flags = u32_at(trun, 0) & 0xff_ffff;
    let count = u32_at(trun, 4);
    let mut at = 8 + if flags & 1 != 0 { 4 } else { 0 } + if flags & 4 != 0 { 4 } else { 0 };
    let mut total = 0;
    for _ in 0..count {
        if flags & 0x100 != 0 {
            total += u64::from(u32_at(trun, at));
            at += 4;
        } else {
            total += u64::from(default);
        }
        at += [0x200, 0x400, 0x800].iter().filter(|&&flag| flags & flag != 0).count() * 4;
    }
    (base, total)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// The body of the first box of this kind.
pub fn child<'a>(mut bytes: &'a [u8], kind: &[u8; 4]) -> Option<&'a [u8]> {
    while bytes.len() >= 8 {
        let size = u32_at(bytes, 0) as usize;
        if size < 8 || size > bytes.len() {
            return None;
        }
        if &bytes[4..8] == kind {
            return Some(&bytes[8..size]);
        }
        bytes = &bytes[size..];
    }
    None
}
