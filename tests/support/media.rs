//! Clips made by FFmpeg's command line, cached under cargo's target, and what ffprobe says about a result.

use std::path::{Path, PathBuf};
use std::process::Command;

/// H.264 and AAC stereo in an mp4: a moving test picture with a running clock, and a tone.
pub fn clip(width: u32, height: u32, rate: u32, seconds: u32) -> PathBuf {
    let picture = format!("testsrc2=size={width}x{height}:rate={rate}:duration={seconds}");
    let tone = format!("sine=frequency=440:sample_rate=48000:duration={seconds}");
    let gop = (2 * rate).to_string();
    let arguments = ["-f", "lavfi", "-i", &picture, "-f", "lavfi", "-i", &tone, "-pix_fmt", "yuv420p"];
    let encoders = ["-c:v", "libx264", "-preset", "ultrafast", "-g", &gop, "-c:a", "aac", "-ac", "2"];
    let all: Vec<&str> = arguments.into_iter().chain(encoders).collect();
    make(&format!("clip-{width}x{height}-{rate}-{seconds}s.mp4"), &all)
}

/// A valid mp4 without any picture.
pub fn audio_only() -> PathBuf {
    make("audio-only.mp4", &["-f", "lavfi", "-i", "sine=duration=3", "-c:a", "aac"])
}

/// An mp4 whose index, at the end of the file, is cut off: what a broken download looks like.
pub fn truncated() -> Vec<u8> {
    let whole = std::fs::read(clip(320, 180, 30, 4)).expect("the clip");
    whole[..whole.len() / 2].to_vec()
}

fn make(name: &str, arguments: &[&str]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("media");
    std::fs::create_dir_all(&folder).expect("the media folder");
    let path = folder.join(name);
    if !path.is_file() {
        // Several test executables may want the same clip: each makes its own file, the last rename wins.
        let unfinished = folder.join(format!("{}-{:?}-{name}", std::process::id(), std::thread::current().id()));
        run(Command::new("ffmpeg").args(["-v", "error", "-y"]).args(arguments).arg(&unfinished));
        std::fs::rename(&unfinished, &path).expect("the clip in its place");
    }
    path
}

fn run(command: &mut Command) -> String {
    let shown = format!("{command:?}");
    let output = command.output().unwrap_or_else(|error| panic!("{shown}: {error}; run: make setup"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shown}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// One packet of a stream, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Packet {
    pub pts: f64,
    pub duration: f64,
}

/// All packets of the first `v` or `a` stream of a file or address.
pub fn packets(source: &str, kind: &str) -> Vec<Packet> {
    let entries = ["-show_entries", "packet=pts_time,duration_time", "-of", "csv=p=0"];
    let mut command = Command::new("ffprobe");
    command.args(["-v", "error", "-allowed_extensions", "ALL", "-select_streams"]);
    if !source.contains(".m3u8") {
        command = Command::new("ffprobe");
        command.args(["-v", "error", "-select_streams"]);
    }
    let listed = run(command.arg(format!("{kind}:0")).args(entries).arg(source));
    let number = |word: Option<&str>| word.and_then(|word| word.parse::<f64>().ok());
    listed
        .lines()
        .filter_map(|line| {
            let mut words = line.split(',');
            Some(Packet { pts: number(words.next())?, duration: number(words.next()).unwrap_or(0.0) })
        })
        .collect()
}

/// From the first presented instant to the end of the last packet.
pub fn duration(packets: &[Packet]) -> f64 {
    let start = packets.iter().map(|packet| packet.pts).fold(f64::INFINITY, f64::min).max(0.0);
    let end = packets.iter().map(|packet| packet.pts + packet.duration).fold(0.0, f64::max);
    end - start
}

/// Frames that really decode in the first video stream.
pub fn decoded_frames(source: &str) -> u64 {
    let entries = ["-count_frames", "-select_streams", "v:0", "-show_entries", "stream=nb_read_frames"];
    let counted = run(Command::new("ffprobe").args(["-v", "error"]).args(entries).args(["-of", "csv=p=0"]).arg(source));
    counted.lines().next().and_then(|line| line.trim_matches(',').parse().ok()).unwrap_or_else(|| panic!("{counted:?}"))
}

/// `baseMediaDecodeTime` of the first fragment in a media segment.
pub fn first_tfdt(segment: &[u8]) -> u64 {
    let at = segment.windows(4).position(|window| window == b"tfdt").expect("a tfdt box") + 4;
    let word = |from: usize, length: usize| {
        segment[from..from + length].iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte))
    };
    if segment[at] == 1 { word(at + 4, 8) } else { word(at + 4, 4) }
}
