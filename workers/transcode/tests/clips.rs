//! Real clips through the real worker: every frame once, timelines from zero, sound as long as the picture.

mod support;

use std::path::Path;

use support::{Asset, clip, count_frames, ffprobe, frame_times, transcode};

const VIDEO: &str = "-f lavfi -i testsrc2=size=320x180:rate=25:duration=3";
const SOUND: &str = "-f lavfi -i sine=frequency=440:sample_rate=48000:duration=3";
const FAST: &str = "-c:v libx264 -preset ultrafast -pix_fmt yuv420p";

/// What holds for every result; returns the files of the video renditions.
fn check(dir: &Path, source: &Path, result: &Asset) {
    let frames = count_frames(source);
    assert_eq!(result.finished.frames, frames, "frames decoded");
    let times = frame_times(source);
    let mut video_seconds = 0.0;
    for (name, track) in &result.tracks {
        let file = track.write(&dir.join(format!("{name}.mp4")));
        let decode_times = track.decode_times();
        assert_eq!(decode_times[0].0, 0, "{name}: first tfdt");
        for pair in decode_times.windows(2) {
            assert_eq!(pair[0].0 + pair[0].1, pair[1].0, "{name}: fragments follow each other");
        }
        if name == "audio" {
            continue;
        }
        assert_eq!(track.frames(), frames, "{name}: frames announced");
        assert_eq!(count_frames(&file), frames, "{name}: frames in the file");
        assert!(track.codecs.starts_with("avc1.64"), "{}", track.codecs);
        for (segment, (base, total)) in track.segments.iter().zip(&decode_times) {
            assert_eq!(
                (segment.0.start, segment.0.duration),
                (*base, *total),
                "{source:?} {name}: segment {}",
                segment.0.index
            );
        }
        assert_eq!(
            ffprobe("-show_entries stream=start_time", &file),
            "0.000000",
            "{name}: the first picture is at zero"
        );
        // Not a frame moves by more than the rounding of the source's container.
        let got = frame_times(&file);
        for (want, got) in times.iter().zip(&got) {
            assert!((want - got).abs() < 0.0011, "{name}: a frame at {want} is now at {got}");
        }
        video_seconds = track.duration();
    }
    if let Some(audio) = result.tracks.get("audio") {
        let difference = (audio.duration() - video_seconds).abs();
        assert!(difference < 1024.0 / f64::from(audio.timescale), "audio is {difference} s off the video");
        let file = dir.join("audio.mp4");
        let seconds: f64 = ffprobe("-show_entries stream=duration", &file).parse().unwrap();
        let frame = 1024.0 / f64::from(audio.timescale);
        assert!((seconds - video_seconds).abs() < frame, "ffprobe says {seconds}, video lasts {video_seconds}");
    }
}

/// The first moment at which the sound of a clip becomes loud, in seconds.
fn onset(path: &Path) -> f64 {
    let output = std::process::Command::new("ffmpeg")
        .args(["-hide_banner", "-nostdin", "-loglevel", "error", "-i"])
        .arg(path)
        .args(["-map", "0:a:0", "-ac", "1", "-f", "f32le", "-"])
        .output()
        .unwrap();
    let rate: f64 = ffprobe("-select_streams a:0 -show_entries stream=sample_rate", path).parse().unwrap();
    let samples: Vec<f32> =
        output.stdout.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    // ffmpeg writes out what lies before time zero as well, priming for one; the stream's start says how much that is.
    let start: f64 = ffprobe("-select_streams a:0 -show_entries stream=start_time", path).parse().unwrap();
    start + samples.iter().position(|sample| sample.abs() > 0.03).expect("a sound") as f64 / rate
}

#[test]
fn an_ordinary_clip_becomes_two_renditions_and_audio() {
    let dir = tempfile::tempdir().unwrap();
    let source = clip(dir.path(), "in.mp4", &format!("{VIDEO} {SOUND} {FAST} -bf 2 -c:a aac -shortest"));
    let result = transcode(&source, &[90, 180]).unwrap();
    check(dir.path(), &source, &result);
    assert_eq!(result.tracks.len(), 3);
    let starts: Vec<_> = result.tracks["180p"].segments.iter().map(|(segment, _)| segment.frames).collect();
    assert_eq!(starts, [25, 25, 25]);
    assert!(["libx264", "h264_nvenc"].contains(&result.started.encoder.as_str()));
    if result.started.encoder == "libx264" {
        let reason = result.started.fallback_reason.unwrap();
        assert!(reason.contains("CUDA") || reason.contains("nvenc"), "{reason}");
    }
    let sizes = ffprobe("-show_entries stream=width,height", &dir.path().join("90p.mp4"));
    assert_eq!(sizes, "160\n90");
}

#[test]
fn every_kind_of_timeline_keeps_its_frames() {
    let dir = tempfile::tempdir().unwrap();
    let ntsc = "-f lavfi -i testsrc2=size=160x90:rate=30000/1001:duration=2.1";
    let vfr = format!("{VIDEO} -vf select='not(mod(n,7))+lt(mod(n,5),2)' -vsync vfr {FAST} -bf 3");
    let cases = [
        ("ntsc.mp4", format!("{ntsc} {FAST}")),
        ("ntsc.mkv", format!("{ntsc} {FAST} -bf 2")),
        ("vfr.mp4", vfr.clone()),
        ("vfr.mkv", vfr),
        ("odd.mkv", "-f lavfi -i testsrc2=size=161x91:rate=10:duration=1.5 -c:v ffv1".into()),
        (
            "negative.mkv",
            format!("{VIDEO} {SOUND} {FAST} -c:a libopus -output_ts_offset -0.4 -avoid_negative_ts disabled"),
        ),
        ("stream.ts", format!("{VIDEO} {SOUND} {FAST} -bf 2 -c:a aac")),
        (
            "vp9.webm",
            "-f lavfi -i testsrc2=size=160x90:rate=24:duration=1 -c:v libvpx-vp9 -cpu-used 8 -deadline realtime".into(),
        ),
        ("fields.mpg", format!("{VIDEO} -c:v mpeg2video -flags +ildct+ilme -top 1")),
        ("slow.mp4", format!("-f lavfi -i testsrc2=size=160x90:rate=1/2:duration=9 {FAST}")),
        ("one.mp4", format!("{VIDEO} {FAST} -frames:v 1")),
    ];
    for (name, arguments) in cases {
        let source = clip(dir.path(), name, &arguments);
        let result = transcode(&source, &[90]).unwrap_or_else(|failed| panic!("{name}: {failed:?}"));
        eprintln!("{name}: {} frames, notes {:?}", result.finished.frames, result.notes);
        check(dir.path(), &source, &result);
    }
}

#[test]
fn an_edit_list_that_cuts_into_a_group_is_honoured() {
    let dir = tempfile::tempdir().unwrap();
    let whole = clip(dir.path(), "whole.mp4", &format!("{VIDEO} {SOUND} {FAST} -g 50 -bf 2 -c:a aac"));
    let source = clip(dir.path(), "cut.mp4", &format!("-ss 1.23 -i {} -c copy", whole.display()));
    let result = transcode(&source, &[90]).unwrap();
    check(dir.path(), &source, &result);
    assert!(result.finished.frames < count_frames(&whole));
}

#[test]
fn late_sound_stays_late_to_the_millisecond() {
    let dir = tempfile::tempdir().unwrap();
    for (name, codec) in [("late.mp4", "aac"), ("late.mkv", "pcm_s16le")] {
        let source = clip(
            dir.path(),
            name,
            &format!(
                "{VIDEO} -itsoffset 0.7 -f lavfi -i sine=frequency=880:sample_rate=44100:duration=2 {FAST} -c:a {codec}"
            ),
        );
        let result = transcode(&source, &[90]).unwrap();
        check(dir.path(), &source, &result);
        let got = onset(&dir.path().join("audio.mp4"));
        assert!((got - 0.7).abs() < 0.003, "{name}: the sound begins at {got}");
    }
}

/// A beep exactly at 1 s must come out at 1 s: priming is neither heard nor counted.
#[test]
fn priming_does_not_shift_the_sound() {
    let dir = tempfile::tempdir().unwrap();
    let beep = "-f lavfi -i aevalsrc=gte(t\\,1)*sin(2*PI*1000*t):s=48000:d=3";
    let source = clip(dir.path(), "beep.mkv", &format!("{VIDEO} {beep} {FAST} -c:a flac"));
    let result = transcode(&source, &[90]).unwrap();
    check(dir.path(), &source, &result);
    let (before, after) = (onset(&source), onset(&dir.path().join("audio.mp4")));
    assert!((before - after).abs() < 0.0015, "{before} became {after}");
}

#[test]
fn sound_with_a_gap_and_sound_that_ends_early_are_filled() {
    let dir = tempfile::tempdir().unwrap();
    let gap = "-af aselect='lt(t,0.8)+gt(t,1.6)'";
    let source = clip(dir.path(), "gap.mkv", &format!("{VIDEO} {SOUND} {FAST} {gap} -c:a pcm_s16le"));
    let result = transcode(&source, &[90]).unwrap();
    check(dir.path(), &source, &result);
    let short = clip(
        dir.path(),
        "short.mp4",
        &format!("{VIDEO} -f lavfi -i sine=sample_rate=22050:duration=1 {FAST} -c:a aac -ac 1"),
    );
    let result = transcode(&short, &[90]).unwrap();
    check(dir.path(), &short, &result);
    assert_eq!(result.tracks["audio"].timescale, 48000);
}

#[test]
fn rotation_is_applied_and_deep_colour_reduced() {
    let dir = tempfile::tempdir().unwrap();
    let flat = clip(dir.path(), "flat.mp4", &format!("{VIDEO} {FAST} -frames:v 10"));
    let turned = clip(dir.path(), "turned.mp4", &format!("-i {} -c copy -metadata:s:v:0 rotate=90", flat.display()));
    let result = transcode(&turned, &[320]).unwrap();
    assert_eq!((result.probed.video.width, result.probed.video.height), (180, 320));
    check(dir.path(), &turned, &result);
    assert_eq!(ffprobe("-show_entries stream=width,height", &dir.path().join("320p.mp4")), "180\n320");

    let hdr = clip(
        dir.path(),
        "hdr.mkv",
        "-f lavfi -i testsrc2=size=160x90:rate=10:duration=1 -c:v libx265 -x265-params log-level=error -preset ultrafast \
         -pix_fmt yuv420p10le -color_primaries bt2020 -color_trc smpte2084 -colorspace bt2020nc",
    );
    let result = transcode(&hdr, &[90]).unwrap();
    check(dir.path(), &hdr, &result);
    assert!(result.notes.iter().any(|note| note.contains("HDR")), "{:?}", result.notes);
    let format = ffprobe("-show_entries stream=pix_fmt,color_transfer", &dir.path().join("90p.mp4"));
    assert_eq!(format, "yuv420p\nbt709");
}
