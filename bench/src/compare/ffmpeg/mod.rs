//! `compare ffmpeg`: one clip made into HLS by the node with its worker, and by ffmpeg's command line.
//!
//! Both encode with libx264 on the processor, with the same settings. Every round makes everything anew; what it made is
//! checked and removed outside the measured time. The node's CPU and memory are those of node and worker together.

mod check;
mod cli;

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use self::check::Seen;
use self::cli::{Clip, R144, R360, R720, Rung};
use super::beside::{self, Beside};
use super::node::Node;
use super::peer::Program;
use super::result::{Case, Run, Section, Side};
use super::rounds::{self, Turns};
use super::usage::{self, Usage};

const FFMPEG: Program = Program { name: "ffmpeg", package: "ffmpeg", version: "-version" };
const FFPROBE: Program = Program { name: "ffprobe", package: "ffmpeg", version: "-version" };
const KEY: &str = "clip.mp4";

/// One line of the result.
struct Plan {
    name: &'static str,
    rungs: Vec<Rung>,
}

const CLIP: Clip = Clip { width: 1920, height: 1080, rate: 30, seconds: 20 };
const QUICK: Clip = Clip { width: 640, height: 360, rate: 30, seconds: 3 };

fn plans(quick: bool) -> (Clip, Vec<Plan>) {
    if quick {
        return (QUICK, vec![Plan { name: "ladder-360p-144p", rungs: vec![R144, R360] }]);
    }
    let one = Plan { name: "one-720p", rungs: vec![R720] };
    let ladder = Plan { name: "ladder-720p-360p", rungs: vec![R360, R720] };
    (CLIP, vec![one, ladder])
}

/// What stays the same from case to case.
struct Bench<'a> {
    options: &'a Beside,
    clip: Clip,
    source: PathBuf,
    scratch: &'a Path,
    node: Node,
    versions: [String; 2],
}

pub fn compare(options: &Beside) -> anyhow::Result<Section> {
    let version = FFMPEG.version()?;
    FFPROBE.version()?;
    let program = options.program()?;
    let (clip, plans) = plans(options.common.quick);
    let plans = options.chosen(plans, |plan| plan.name)?;

    let scratch = options.common.scratch()?;
    let source = scratch.path().join(clip.file_name());
    usage::run(&mut clip.command(Path::new(FFMPEG.name), &source)).context("making the clip")?;
    let node = Node::start(&program, scratch.path(), &scratch.path().join("data"))?;
    node.put(KEY, &source)?;

    let mut section = Section {
        id: "ffmpeg".into(),
        title: "Encoding to HLS, beside ffmpeg".into(),
        command: super::command_line(),
        notes: program.note().into_iter().collect(),
        cases: Vec::new(),
    };
    let Clip { width, height, rate, seconds } = clip;
    section.notes.push(format!(
        "Clip: {seconds} s of {width}x{height} at {rate} frames a second, H.264 and AAC. Both sides: libx264 veryfast, crf 22, \
         the same peak rates, closed groups with a key frame every 4 s, AAC at {} kbit/s, CMAF segments. Speed is frames of \
         the source a second; CPU is per frame.",
        cli::AUDIO_BITRATE / 1000
    ));
    section.notes.push(
        "The node makes every segment durable before it shows it in a playlist, and checksums it; ffmpeg leaves its files in \
         the page cache. A process start is within the time of both: ffmpeg itself, the node's worker (probing included)."
            .into(),
    );
    let versions = [program.version.clone(), version];
    let bench = Bench { options, clip, source, scratch: scratch.path(), node, versions };
    beside::each(&mut section, &plans, |plan, _| bench.case(plan))?;
    Ok(section)
}

impl Bench<'_> {
    fn case(&self, plan: &Plan) -> anyhow::Result<Option<Case>> {
        // Looked at after every round; the similarity of the pictures once a side, in the warm-up.
        let (node_saw, ffmpeg_saw) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
        let ours = || self.ours(plan, &mut node_saw.borrow_mut());
        let theirs = || self.theirs(plan, &mut ffmpeg_saw.borrow_mut());
        let rounds = self.options.common.rounds();
        let turns = Turns { title: plan.name, ours: "reelring transcode", theirs: "ffmpeg", rounds };
        let pairs = rounds::alternate(turns, ours, theirs)?;
        if pairs.ours.is_empty() {
            return Ok(None);
        }
        let (node_saw, ffmpeg_saw) = (node_saw.into_inner(), ffmpeg_saw.into_inner());
        let mut same = Vec::new();
        for (index, rung) in plan.rungs.iter().enumerate() {
            same.push(check::same(rung, node_saw[index], ffmpeg_saw[index])?);
        }
        let [our_version, their_version] = self.versions.clone();
        let ours = Side { name: "reelring transcode".into(), version: our_version, runs: pairs.ours };
        let theirs = Side { name: "ffmpeg".into(), version: their_version, runs: pairs.theirs };
        Ok(Case::of(plan.name, ours, theirs, same.join("; ")))
    }

    fn ours(&self, plan: &Plan, saw: &mut Vec<Seen>) -> anyhow::Result<Run> {
        let ladder: Vec<&str> = plan.rungs.iter().map(|rung| rung.name).collect();
        let ((job, seconds), used) = self.node.measure_watched(|| {
            let start = Instant::now();
            let job = self.node.job(&json!({ "kind": "transcode", "source": KEY, "ladder": ladder }))?;
            Ok((job, start.elapsed().as_secs_f64()))
        })?;
        ensure!(job["encoder"] == "libx264", "the worker encoded with {}, not with libx264", job["encoder"]);
        let id = job["result"]["asset"].as_str().context("the job's asset")?;
        let asset = self.node.json(&format!("/v1/assets/{id}"))?;
        self.look(plan, saw, |rung| {
            let renditions = asset["renditions"].as_array().map_or(&[][..], Vec::as_slice);
            let rendition: Option<&Value> = renditions.iter().find(|rendition| rendition["name"] == rung.name);
            let bytes = rendition.and_then(|rendition| rendition["bytes"].as_u64());
            let bytes = bytes.with_context(|| format!("the asset has no {}: {asset}", rung.name))?;
            Ok((self.node.url(&format!("/v1/assets/{id}/hls/{}/index.m3u8", rung.name)), bytes))
        })?;
        self.node.delete(&format!("/v1/assets/{id}"))?;
        Ok(self.run(seconds, used))
    }

    fn theirs(&self, plan: &Plan, saw: &mut Vec<Seen>) -> anyhow::Result<Run> {
        let folder = tempfile::Builder::new().prefix("ffmpeg-").tempdir_in(self.scratch)?;
        let mut command = cli::encode(Path::new(FFMPEG.name), &self.clip, &plan.rungs, &self.source, folder.path());
        let ended = usage::run(&mut command)?;
        self.look(plan, saw, |rung| {
            let rendition = folder.path().join(rung.name);
            Ok((rendition.join("index.m3u8").to_string_lossy().into_owned(), size_of(&rendition)?))
        })?;
        Ok(self.run(ended.seconds, ended.usage))
    }

    /// Checks the frames of every rendition, and in the first round the pictures too.
    fn look(
        &self,
        plan: &Plan,
        saw: &mut Vec<Seen>,
        place: impl Fn(&Rung) -> anyhow::Result<(String, u64)>,
    ) -> anyhow::Result<()> {
        for (index, rung) in plan.rungs.iter().enumerate() {
            let (playlist, bytes) = place(rung)?;
            let seen = check::look(Path::new(FFPROBE.name), &playlist, &self.clip, bytes)?;
            if saw.len() <= index {
                let ssim = check::ssim(Path::new(FFMPEG.name), &playlist, &self.source, rung)?;
                saw.push(Seen { ssim: Some(ssim), ..seen });
            }
        }
        Ok(())
    }

    fn run(&self, seconds: f64, used: Usage) -> Run {
        Run {
            seconds,
            // Frames are the work; the bytes that come out are not what should be large.
            bytes: 0,
            operations: self.clip.frames(),
            cpu_seconds: used.cpu_seconds,
            context_switches: used.context_switches,
            peak_rss_bytes: used.peak_rss_bytes,
            ..Run::default()
        }
    }
}

/// Bytes of the segments in a folder.
fn size_of(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "m4s") {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}
