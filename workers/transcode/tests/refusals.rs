//! Inputs that cannot become an asset: each ends with one precise sentence, and the worker stays in its box.

mod support;

use std::path::Path;

use reelring_protocol::transcode::{Class, FromWorker, ToWorker};
use support::{Worker, clip, plan, transcode};

const VIDEO: &str = "-f lavfi -i testsrc2=size=160x90:rate=25:duration=2";

/// The message of a permanent failure.
fn refused(source: &Path) -> String {
    let failed = transcode(source, &[90]).map(|_| ()).unwrap_err();
    assert_eq!(failed.class, Class::Input, "{failed:?}");
    let name = source.file_name().unwrap().to_string_lossy();
    assert!(failed.message.contains(&*name), "names the object: {}", failed.message);
    failed.message
}

fn file(dir: &Path, name: &str, content: &[u8]) -> std::path::PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

#[test]
fn what_is_not_video_is_said_to_be_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let page = file(dir, "page.mp4", b"\n<!DOCTYPE html><html><body>Sign in</body></html>");
    assert!(refused(&page).contains("an HTML page"));
    assert!(refused(&file(dir, "empty.mp4", b"")).contains("is empty (0 bytes)"));
    let noise: Vec<u8> = (0..50_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let message = refused(&file(dir, "noise.mp4", &noise));
    assert!(message.contains("not a video file") || message.contains("allowed containers"), "{message}");
    let playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\nfile:///etc/passwd\n";
    assert!(refused(&file(dir, "list.mp4", playlist)).contains("playlist"));
    let concat = b"ffconcat version 1.0\nfile /etc/passwd\n";
    assert!(refused(&file(dir, "concat.mp4", concat)).contains("list of files"));
    let sound = clip(dir, "sound.m4a", "-f lavfi -i sine=duration=1 -c:a aac");
    assert!(refused(&sound).contains("no video stream: it holds only audio (aac)"));
    let subtitles = b"1\n00:00:00,000 --> 00:00:01,000\nhello\n\n2\n00:00:01,000 --> 00:00:02,000\nyou\n";
    assert!(refused(&file(dir, "words.mp4", subtitles)).contains("allowed containers"));
}

#[test]
fn cut_and_damaged_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let whole = clip(dir, "whole.mp4", &format!("{VIDEO} -c:v libx264 -preset ultrafast"));
    let bytes = std::fs::read(&whole).unwrap();
    let message = refused(&file(dir, "half.mp4", &bytes[..bytes.len() / 2]));
    assert!(message.contains("moov atom") && message.contains("cut short"), "{message}");
    // The index is there, the media is not.
    let front = clip(dir, "front.mp4", &format!("-i {} -c copy -movflags +faststart", whole.display()));
    let bytes = std::fs::read(&front).unwrap();
    let message = refused(&file(dir, "tail.mp4", &bytes[..bytes.len() * 2 / 3]));
    assert!(message.contains("is cut short: its index places media at byte"), "{message}");
}

#[test]
fn decoders_and_sizes_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let magic = clip(dir, "magic.avi", &format!("{VIDEO} -c:v magicyuv"));
    let message = refused(&magic);
    assert!(message.contains("magicyuv") && message.contains("allowed decoders"), "{message}");
    let still = "-f lavfi -i color=size=16x16:rate=1:duration=1 -c:v mjpeg -pix_fmt yuvj420p";
    let small = clip(dir, "small.mov", still);
    // The size in the sample entry is patched: 16x16 becomes 65535x65535.
    let mut bytes = std::fs::read(&small).unwrap();
    let at = bytes.windows(4).position(|window| window == b"jpeg").unwrap() + 4 + 24;
    assert_eq!(bytes[at..at + 4], [0, 16, 0, 16]);
    bytes[at..at + 4].fill(0xff);
    let failed = transcode(&file(dir, "huge.mov", &bytes), &[90]);
    // Either the announced size is refused, or the decoder corrects it and the picture is small after all.
    if let Err(failed) = failed {
        assert!(failed.message.contains("65535x65535, the limit is 8192"), "{failed:?}");
    }
}

#[test]
fn cancel_stops_the_worker_and_so_does_the_nodes_end() {
    let dir = tempfile::tempdir().unwrap();
    let long = "-f lavfi -i testsrc2=size=640x360:rate=25:duration=20 -c:v libx264 -preset ultrafast";
    let source = clip(dir.path(), "long.mp4", long);
    for goodbye in [true, false] {
        let mut worker = Worker::start(&source);
        worker.open(&source);
        let plan = plan(&worker.probed().unwrap(), &[360]);
        worker.writer.write(&ToWorker::Encode(plan), &[]).unwrap();
        while !matches!(worker.next(), FromWorker::Init(_)) {}
        if goodbye {
            worker.writer.write(&ToWorker::Cancel, &[]).unwrap();
            let failed = loop {
                if let FromWorker::Failed(failed) = worker.next() {
                    break failed;
                }
            };
            assert_eq!(failed.class, Class::Cancelled);
            assert_eq!(worker.child.wait().unwrap().code(), Some(1));
        } else {
            // The node's death closes its end of the socket.
            let (ours, _) = std::os::unix::net::UnixStream::pair().unwrap();
            worker.reader = reelring_protocol::FrameReader::new(ours.try_clone().unwrap());
            worker.writer = reelring_protocol::FrameWriter::new(ours);
            assert!(!worker.child.wait().unwrap().success());
        }
    }
}
