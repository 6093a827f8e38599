//! `reelring-transcode --encoders`: which H.264 encoders open on this machine, for `reelring doctor`.
//!
//! One line an encoder, the preferred one first: its name, a tab, and why it does not open; nothing after the tab when it
//! does. Opening is all that is tried: no picture is encoded.

use std::ffi::CStr;

use reelring_protocol::transcode::{Rational, VideoPlan};

use crate::encoder::{Color, Encoder, HARDWARE, SOFTWARE, VideoSettings};
use crate::hardware::Device;

/// A picture that every encoder takes.
const WIDTH: u32 = 640;
const HEIGHT: u32 = 360;

pub fn lines() -> [String; 2] {
    let hardware = Device::open().and_then(|device| open(HARDWARE, Some(&device)));
    let line = |name: &CStr, result: Result<(), String>| {
        let reason = result.err().unwrap_or_default().replace(['\t', '\n'], " ");
        format!("{}\t{reason}", name.to_string_lossy())
    };
    [line(HARDWARE, hardware), line(SOFTWARE, open(SOFTWARE, None))]
}

fn open(name: &CStr, device: Option<&Device>) -> Result<(), String> {
    let plan = VideoPlan { rendition: String::new(), width: WIDTH, height: HEIGHT, bitrate_max: 1_000_000 };
    let settings = VideoSettings {
        timescale: 25,
        frame_rate: Rational { num: 25, den: 1 },
        sample_aspect: Rational { num: 1, den: 1 },
        gop: 250,
        threads: 1,
        color: Color::BT709,
    };
    Encoder::open_video(name, &plan, &settings, device).map(drop).map_err(|failure| failure.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_software_encoder_opens_and_each_has_its_line() {
        let [hardware, software] = lines();
        assert!(hardware.starts_with("h264_nvenc\t"), "{hardware:?}");
        assert_eq!(software, "libx264\t");
    }
}
