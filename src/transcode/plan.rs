//! From what the source is to what will be made of it. Pure: the worker probes, this decides, the worker encodes.

use reelring_protocol::transcode::{AudioPlan, Encode, Probed, VideoInfo, VideoPlan};

use super::ladder::{Ladder, bitrate};

/// The audio rendition's name; video renditions are named after their rungs.
pub const AUDIO: &str = "audio";
/// Segments are as many whole frames as come nearest to this.
const SEGMENT_SECONDS: i64 = 4;

/// Every rung that needs no upscaling; a source below all of them is encoded once, at its own size.
pub fn plan(probed: &Probed, ladder: &Ladder) -> Encode {
    let source = &probed.video;
    let rate = source.frame_rate;
    let short = source.width.min(source.height);
    let mut video: Vec<VideoPlan> = ladder
        .rungs()
        .iter()
        .filter(|rung| rung.lines() <= short)
        .map(|rung| rendition(rung.to_string(), source, rung.lines()))
        .collect();
    if video.is_empty() {
        let lines = even(f64::from(short));
        video.push(rendition(format!("{lines}p"), source, lines));
    }
    let audio = probed.audio.as_ref().map(|audio| AudioPlan {
        rendition: AUDIO.into(),
        bitrate: if audio.channels == 1 { 80_000 } else { 128_000 },
    });
    let frames = (SEGMENT_SECONDS * rate.num + rate.den / 2) / rate.den.max(1);
    Encode { video, audio, frames_per_segment: frames.clamp(1, i64::from(u32::MAX)) as u32, frame_rate: rate }
}

/// Seconds of one segment of the plan.
pub fn segment_seconds(plan: &Encode) -> f64 {
    f64::from(plan.frames_per_segment) * plan.frame_rate.den as f64 / plan.frame_rate.num.max(1) as f64
}

/// The source's picture with its shorter side brought to `lines`; the shape of its pixels is kept, so is the picture's.
fn rendition(name: String, source: &VideoInfo, lines: u32) -> VideoPlan {
    let scale = f64::from(lines) / f64::from(source.width.min(source.height).max(1));
    let (width, height) = (even(f64::from(source.width) * scale), even(f64::from(source.height) * scale));
    let rate = source.frame_rate.num as f64 / source.frame_rate.den.max(1) as f64;
    VideoPlan { rendition: name, width, height, bitrate_max: bitrate(width, height, rate) }
}

/// The nearest even number: 4:2:0 pictures have no other sides.
fn even(side: f64) -> u32 {
    ((side / 2.0).round() as u32 * 2).max(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use reelring_protocol::transcode::{AudioInfo, Rational};

    fn probed(width: u32, height: u32, num: i64, den: i64) -> Probed {
        Probed {
            format: "mov".into(),
            duration_seconds: Some(10.0),
            video: VideoInfo {
                codec: "h264".into(),
                width,
                height,
                sample_aspect: Rational { num: 1, den: 1 },
                frame_rate: Rational { num, den },
                frames_estimate: None,
            },
            audio: Some(AudioInfo { codec: "aac".into(), sample_rate: 48000, channels: 2 }),
        }
    }

    fn sizes(probed: &Probed, names: &[&str]) -> Vec<(String, u32, u32)> {
        let plan = plan(probed, &Ladder::parse(names).unwrap());
        plan.video.into_iter().map(|video| (video.rendition, video.width, video.height)).collect()
    }

    #[test]
    fn rungs_above_the_source_are_left_out() {
        let got = sizes(&probed(1280, 720, 25, 1), &["360p", "720p", "1080p"]);
        assert_eq!(got, [("360p".into(), 640, 360), ("720p".into(), 1280, 720)]);
    }

    #[test]
    fn a_small_source_is_encoded_once_at_its_own_even_size() {
        assert_eq!(sizes(&probed(161, 91, 25, 1), &["360p"]), [("92p".into(), 162, 92)]);
        assert_eq!(sizes(&probed(1, 1, 25, 1), &["144p"]), [("2p".into(), 2, 2)]);
    }

    #[test]
    fn portrait_films_count_their_width() {
        assert_eq!(sizes(&probed(1080, 1920, 30, 1), &["360p"]), [("360p".into(), 360, 640)]);
        assert_eq!(sizes(&probed(853, 480, 30, 1), &["360p"]), [("360p".into(), 640, 360)]);
    }

    #[test]
    fn segments_are_whole_frames_near_four_seconds() {
        let of = |num, den| {
            let plan = plan(&probed(640, 360, num, den), &Ladder::default());
            (plan.frames_per_segment, segment_seconds(&plan))
        };
        assert_eq!(of(25, 1), (100, 4.0));
        assert_eq!(of(30000, 1001).0, 120);
        assert!((of(30000, 1001).1 - 4.004).abs() < 1e-9);
        assert_eq!(of(24000, 1001).0, 96);
        assert_eq!(of(1, 10), (1, 10.0));
    }

    #[test]
    fn silent_sources_get_no_audio_track() {
        let mut silent = probed(640, 360, 25, 1);
        silent.audio = None;
        assert_eq!(plan(&silent, &Ladder::default()).audio, None);
        assert_eq!(plan(&probed(640, 360, 25, 1), &Ladder::default()).audio.unwrap().rendition, AUDIO);
    }
}
