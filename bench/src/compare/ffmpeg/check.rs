//! Whether two encodes are the same work: as many frames, as long, at about the same bit rate, and pictures as good.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use super::super::usage;
use super::cli::{Clip, Rung};

/// One rendition, looked at from outside.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    pub frames: u64,
    pub seconds: f64,
    pub bits_per_second: f64,
    /// Structural similarity to the scaled source, 1 is equal. Costly, so only the last round of each side has it.
    pub ssim: Option<f64>,
}

/// Of the bit rates, between the sides.
const BITRATE_TOLERANCE: f64 = 0.15;
/// Of the similarity, between the sides: smaller than an eye can tell.
const SSIM_TOLERANCE: f64 = 0.01;

/// Counts the pictures of a rendition's playlist, a file or an address. `bytes` is the size of its segments.
pub fn look(ffprobe: &Path, playlist: &str, clip: &Clip, bytes: u64) -> anyhow::Result<Seen> {
    let mut command = Command::new(ffprobe);
    command
        .args(["-v", "error", "-select_streams", "v:0", "-count_packets", "-allowed_extensions", "ALL"])
        .args(["-show_entries", "stream=nb_read_packets:format=duration", "-of", "default=nokey=0:noprint_wrappers=1"])
        .arg(playlist);
    let text = run(command)?;
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.and_then(|value| value.trim().parse::<f64>().ok())
            .with_context(|| format!("ffprobe shows no {name}: {text:?}"))
    };
    let (frames, seconds) = (value("nb_read_packets")? as u64, value("duration")?);
    ensure!(frames == clip.frames(), "{playlist}: {frames} frames, the source has {}", clip.frames());
    let expected = f64::from(clip.seconds);
    ensure!((seconds - expected).abs() <= 0.1, "{playlist}: {seconds} s, the source lasts {expected} s");
    Ok(Seen { frames, seconds, bits_per_second: bytes as f64 * 8.0 / seconds, ssim: None })
}

/// Compares every picture with the source's, scaled to the rendition as the encoders were given it.
pub fn ssim(ffmpeg: &Path, playlist: &str, source: &Path, rung: &Rung) -> anyhow::Result<f64> {
    let Rung { width, height, .. } = rung;
    // Frame for frame, whatever the two containers say about time.
    let graph = format!(
        "[0:v:0]settb=1/90000,setpts=N[got];[1:v:0]scale={width}:{height}:flags=bicubic:out_range=tv,settb=1/90000,\
         setpts=N[want];[got][want]ssim"
    );
    let mut command = Command::new(ffmpeg);
    command
        .args(["-v", "info", "-nostats", "-nostdin", "-allowed_extensions", "ALL", "-i", playlist, "-i"])
        .arg(source);
    command.args(["-lavfi", &graph, "-f", "null", "-"]);
    let text = run(command)?;
    // "[Parsed_ssim_5 @ 0x…] SSIM Y:0.98 (17.2) U:… V:… All:0.98 (18.4)"
    let all = text.lines().rev().find_map(|line| line.split_once(" SSIM ")?.1.split_once("All:")?.1.split(' ').next());
    all.and_then(|value| value.parse().ok()).with_context(|| format!("ffmpeg's ssim filter said nothing: {text:?}"))
}

/// Ours beside theirs, in words; an error when the two did not do the same work.
pub fn same(rung: &Rung, ours: Seen, theirs: Seen) -> anyhow::Result<String> {
    let name = rung.name;
    let apart = ours.bits_per_second / theirs.bits_per_second;
    ensure!(
        (1.0 - BITRATE_TOLERANCE..=1.0 / (1.0 - BITRATE_TOLERANCE)).contains(&apart),
        "{name}: {:.0} bit/s against {:.0}: more than {:.0} % apart",
        ours.bits_per_second,
        theirs.bits_per_second,
        BITRATE_TOLERANCE * 100.0
    );
    let pictures = match (ours.ssim, theirs.ssim) {
        (Some(ours), Some(theirs)) => {
            ensure!((ours - theirs).abs() <= SSIM_TOLERANCE, "{name}: SSIM {ours:.4} against {theirs:.4}");
            format!(", SSIM {ours:.4} and {theirs:.4}")
        }
        _ => String::new(),
    };
    Ok(format!(
        "{name}: {} frames each, {:.0} and {:.0} kbit/s{pictures}",
        ours.frames,
        ours.bits_per_second / 1e3,
        theirs.bits_per_second / 1e3
    ))
}

/// What a program that must succeed printed, on either stream.
fn run(mut command: Command) -> anyhow::Result<String> {
    let ended = usage::run(&mut command)?;
    Ok(String::from_utf8_lossy(&ended.stdout).into_owned() + &ended.stderr)
}

#[cfg(test)]
mod tests {
    use super::super::cli::R360;
    use super::*;

    fn seen(bits_per_second: f64, ssim: f64) -> Seen {
        Seen { frames: 30, seconds: 1.0, bits_per_second, ssim: Some(ssim) }
    }

    #[test]
    fn worse_pictures_and_other_bit_rates_are_not_the_same_work() {
        let fair = same(&R360, seen(9e5, 0.98), seen(9.4e5, 0.979)).unwrap();
        assert_eq!(fair, "360p: 30 frames each, 900 and 940 kbit/s, SSIM 0.9800 and 0.9790");
        assert!(same(&R360, seen(9e5, 0.93), seen(9e5, 0.98)).is_err());
        assert!(same(&R360, seen(7e5, 0.98), seen(9e5, 0.98)).is_err());
    }
}
