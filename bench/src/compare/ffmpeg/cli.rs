//! ffmpeg's own command line for the same work: the clip, and the ladder as an expert would encode it.
//!
//! The settings repeat those of the transcode worker (`workers/transcode/src/encoder.rs`) and of the plan the node makes
//! for it (`src/transcode/plan.rs`, `ladder.rs`): a change there belongs here too. [`super::check`] would notice most of
//! them, since bit rates and pictures would no longer match.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

/// What is encoded.
#[derive(Debug, Clone, Copy)]
pub struct Clip {
    pub width: u32,
    pub height: u32,
    pub rate: u32,
    pub seconds: u32,
}

/// One rendition as the node plans it for a 16:9 clip of at most 30 frames a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rung {
    pub name: &'static str,
    pub width: u32,
    pub height: u32,
    pub bitrate_max: u32,
}

pub const R720: Rung = Rung { name: "720p", width: 1280, height: 720, bitrate_max: 3_500_000 };
pub const R360: Rung = Rung { name: "360p", width: 640, height: 360, bitrate_max: 900_000 };
pub const R144: Rung = Rung { name: "144p", width: 256, height: 144, bitrate_max: 250_000 };

pub const AUDIO_BITRATE: u32 = 128_000;
const SEGMENT_SECONDS: u32 = 4;

impl Clip {
    pub fn frames(&self) -> u64 {
        u64::from(self.rate * self.seconds)
    }

    pub fn file_name(&self) -> String {
        format!("clip-{}x{}-{}-{}s.mp4", self.width, self.height, self.rate, self.seconds)
    }

    /// Makes the clip: a moving test picture with noise enough to give the encoder work, and a tone.
    pub fn command(&self, ffmpeg: &Path, output: &Path) -> Command {
        let Clip { width, height, rate, seconds } = self;
        let picture = format!("testsrc2=size={width}x{height}:rate={rate}:duration={seconds},noise=alls=6:allf=t");
        let tone = format!("sine=frequency=440:sample_rate=48000:duration={seconds}");
        let mut command = Command::new(ffmpeg);
        command
            .args(["-v", "error", "-nostdin", "-y", "-f", "lavfi", "-i", &picture, "-f", "lavfi", "-i", &tone])
            .args(["-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "ultrafast", "-crf", "18"])
            .args(["-g", &(2 * rate).to_string(), "-c:a", "aac", "-ac", "2", "-movflags", "+faststart"])
            .arg(output);
        command
    }
}

/// One process: decoded once, split, scaled and encoded for every rung, audio once, CMAF segments in HLS playlists.
pub fn encode(ffmpeg: &Path, clip: &Clip, rungs: &[Rung], source: &Path, folder: &Path) -> Command {
    let mut command = Command::new(ffmpeg);
    command.args(["-v", "error", "-nostdin", "-y", "-i"]).arg(source);
    command.args(["-filter_complex", &filters(rungs)]);
    let mut streams = String::new();
    for (index, rung) in rungs.iter().enumerate() {
        command.args(["-map", &format!("[v{index}]")]);
        command.args([&format!("-maxrate:v:{index}"), &rung.bitrate_max.to_string()]);
        command.args([&format!("-bufsize:v:{index}"), &(rung.bitrate_max * 2).to_string()]);
        let _ = write!(streams, "v:{index},agroup:audio,name:{} ", rung.name);
    }
    let frames_per_segment = clip.rate * SEGMENT_SECONDS;
    command
        .args(["-map", "0:a:0", "-c:v", "libx264", "-preset", "veryfast", "-profile:v", "high", "-crf", "22"])
        .args(["-g", &(frames_per_segment * 4).max(250).to_string(), "-flags:v", "+cgop", "-forced-idr", "1"])
        .args(["-x264-params", "scenecut=0:open-gop=0"])
        .args(["-force_key_frames", &format!("expr:gte(n,n_forced*{frames_per_segment})")])
        // Every decoded picture once: neither side drops or repeats any.
        .args(["-fps_mode:v", "passthrough"])
        .args(["-c:a", "aac", "-ac", "2", "-b:a", &AUDIO_BITRATE.to_string()])
        .args(["-f", "hls", "-hls_time", &SEGMENT_SECONDS.to_string(), "-hls_playlist_type", "vod"])
        .args(["-hls_segment_type", "fmp4", "-hls_flags", "independent_segments", "-master_pl_name", "main.m3u8"])
        .args(["-var_stream_map", &format!("{streams}a:0,agroup:audio,name:audio")])
        .arg("-hls_segment_filename")
        .arg(folder.join("%v/%d.m4s"))
        .arg(folder.join("%v/index.m3u8"));
    command
}

fn filters(rungs: &[Rung]) -> String {
    let mut filters = format!("[0:v:0]split={}", rungs.len());
    for index in 0..rungs.len() {
        let _ = write!(filters, "[s{index}]");
    }
    for (index, rung) in rungs.iter().enumerate() {
        let Rung { width, height, .. } = rung;
        let _ =
            write!(filters, ";[s{index}]scale={width}:{height}:flags=bicubic:out_range=tv,format=yuv420p[v{index}]");
    }
    filters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_is_one_split_and_one_scale_each() {
        let filters = filters(&[R720, R360]);
        assert!(filters.starts_with("[0:v:0]split=2[s0][s1];[s0]scale=1280:720:"), "{filters}");
        assert!(filters.ends_with("[s1]scale=640:360:flags=bicubic:out_range=tv,format=yuv420p[v1]"), "{filters}");
    }
}
