//! HLS playlists, version 7: fragmented MP4, demuxed audio, independent segments. Pure.
//!
//! While an asset is being encoded its media playlists are EVENT playlists that only grow; when it is done they end with
//! `EXT-X-ENDLIST`. Addresses are relative to the master playlist, so that an asset can be moved or mirrored.

use std::fmt::Write;

use crate::transcode::assets::{Asset, AssetState, Kind, Rendition, Segment};

/// The master playlist, once every rendition has its init segment.
pub fn master(asset: &Asset) -> Option<String> {
    if asset.renditions.len() < asset.renditions_planned as usize {
        return None;
    }
    let mut out = String::from("#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-INDEPENDENT-SEGMENTS\n");
    let audio = asset.renditions.iter().find(|rendition| rendition.kind == Kind::Audio);
    if let Some(audio) = audio {
        let _ = writeln!(
            out,
            "#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"audio\",NAME=\"Audio\",DEFAULT=YES,AUTOSELECT=YES,CHANNELS=\"{}\",\
             URI=\"{}/index.m3u8\"",
            audio.channels.unwrap_or(2),
            audio.name
        );
    }
    let mut video: Vec<_> = asset.renditions.iter().filter(|rendition| rendition.kind == Kind::Video).collect();
    video.sort_by_key(|rendition| (rendition.height, rendition.width));
    for rendition in video {
        let parts = || std::iter::once(rendition).chain(audio);
        let codecs: Vec<_> = parts().map(|part| part.codecs.as_str()).collect();
        let peak: u64 = parts().map(|part| bandwidth(part, asset.state)).sum();
        let _ = write!(out, "#EXT-X-STREAM-INF:BANDWIDTH={peak}");
        if asset.state == AssetState::Ready {
            let average: u64 = parts().map(|part| part.bits_per_second_average).sum();
            let _ = write!(out, ",AVERAGE-BANDWIDTH={average}");
        }
        let _ = write!(out, ",CODECS=\"{}\"", codecs.join(","));
        if let (Some(width), Some(height)) = (rendition.width, rendition.height) {
            let _ = write!(out, ",RESOLUTION={width}x{height}");
        }
        if let Some(rate) = asset.frame_rate {
            let _ = write!(out, ",FRAME-RATE={rate:.3}");
        }
        if audio.is_some() {
            out.push_str(",AUDIO=\"audio\"");
        }
        let _ = writeln!(out, "\n{}/index.m3u8", rendition.name);
    }
    Some(out)
}

/// The peak of any segment: measured once all are there, until then what the encoder may use over a segment.
fn bandwidth(rendition: &Rendition, state: AssetState) -> u64 {
    match state {
        AssetState::Ready => rendition.bits_per_second_peak,
        AssetState::Encoding => {
            // The rate controller may spend its whole buffer (two seconds' worth) within one four-second segment.
            (u64::from(rendition.bitrate) * 3 / 2).max(rendition.bits_per_second_peak)
        }
    }
}

/// The playlist of one rendition: all its segments so far.
pub fn media(asset: &Asset, rendition: &Rendition, segments: &[Segment]) -> String {
    let done = asset.state == AssetState::Ready;
    let seconds = |segment: &Segment| segment.duration as f64 / f64::from(rendition.timescale.max(1));
    // The planned length, rounded up, covers every segment at a constant frame rate (audio ends up to a packet later, which
    // the rounding to whole seconds of RFC 8216 allows), so that it does not change while a player follows. Only a picture
    // that stands still can outlast it.
    let longest = segments.iter().map(|segment| seconds(segment).round()).fold(asset.segment_seconds.ceil(), f64::max);
    let mut out = String::with_capacity(160 + segments.len() * 32);
    let _ = write!(
        out,
        "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:{}\n#EXT-X-MEDIA-SEQUENCE:0\n#EXT-X-PLAYLIST-TYPE:{}\n\
         #EXT-X-INDEPENDENT-SEGMENTS\n#EXT-X-MAP:URI=\"init.mp4\"\n",
        (longest as u64).max(1),
        if done { "VOD" } else { "EVENT" }
    );
    for segment in segments {
        let _ = writeln!(out, "#EXTINF:{:.6},\n{}.m4s", seconds(segment), segment.index);
    }
    if done {
        out.push_str("#EXT-X-ENDLIST\n");
    }
    out
}

/// The same playlist with `query` at every address in it: players carry no query over to what a playlist names.
pub fn with_query(playlist: &str, query: &str) -> String {
    let mut out = String::with_capacity(playlist.len() * 2);
    for line in playlist.lines() {
        match line.split_once("URI=\"").and_then(|(before, rest)| Some((before, rest.split_once('"')?))) {
            Some((before, (address, after))) if line.starts_with('#') => {
                let _ = writeln!(out, "{before}URI=\"{address}?{query}\"{after}");
            }
            _ if line.starts_with('#') || line.is_empty() => {
                let _ = writeln!(out, "{line}");
            }
            _ => {
                let _ = writeln!(out, "{line}?{query}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcode::assets::AssetId;
    use reelring_storage::{BlobId, Key};

    #[test]
    fn a_query_is_carried_over_to_every_address() {
        let plain =
            "#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,URI=\"audio/index.m3u8\",X=1\n\n#EXTINF:4,\n0.m4s\n#EXT-X-ENDLIST\n";
        let signed = "#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,URI=\"audio/index.m3u8?s=1\",X=1\n\n#EXTINF:4,\n0.m4s?s=1\n\
                      #EXT-X-ENDLIST\n";
        assert_eq!(with_query(plain, "s=1"), signed);
    }

    fn rendition(name: &str, kind: Kind, codecs: &str, size: Option<(u32, u32)>, bitrate: u32) -> Rendition {
        Rendition {
            name: name.into(),
            kind,
            codecs: codecs.into(),
            width: size.map(|size| size.0),
            height: size.map(|size| size.1),
            channels: (kind == Kind::Audio).then_some(2),
            sample_rate: (kind == Kind::Audio).then_some(48_000),
            bitrate,
            timescale: if kind == Kind::Audio { 48_000 } else { 12_800 },
            init: BlobId::new(),
            segments: 2,
            frames: 150,
            bytes: 600_000,
            bits_per_second_average: u64::from(bitrate) / 2,
            bits_per_second_peak: u64::from(bitrate) - 1,
        }
    }

    fn asset(state: AssetState) -> Asset {
        let renditions = vec![
            rendition("720p", Kind::Video, "avc1.64001f", Some((1280, 720)), 3_500_000),
            rendition("360p", Kind::Video, "avc1.64001e", Some((640, 360)), 900_000),
            rendition("audio", Kind::Audio, "mp4a.40.2", None, 128_000),
        ];
        Asset {
            id: AssetId::new(),
            source: Key::parse("films/a.mp4").unwrap(),
            state,
            created_at: jiff::Timestamp::UNIX_EPOCH,
            renditions_planned: 3,
            segment_seconds: 4.0,
            frame_rate: Some(25.0),
            duration_seconds: None,
            encoder: None,
            fallback_reason: None,
            notes: Vec::new(),
            renditions,
        }
    }

    fn segment(index: u32, start: u64, duration: u64) -> Segment {
        Segment { index, blob: BlobId::new(), frames: 100, start, duration, bytes: 1 }
    }

    #[test]
    fn the_master_playlist_of_a_finished_asset() {
        assert_eq!(
            master(&asset(AssetState::Ready)).unwrap(),
            "#EXTM3U\n\
             #EXT-X-VERSION:7\n\
             #EXT-X-INDEPENDENT-SEGMENTS\n\
             #EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"audio\",NAME=\"Audio\",DEFAULT=YES,AUTOSELECT=YES,CHANNELS=\"2\",URI=\"audio/index.m3u8\"\n\
             #EXT-X-STREAM-INF:BANDWIDTH=1027998,AVERAGE-BANDWIDTH=514000,CODECS=\"avc1.64001e,mp4a.40.2\",RESOLUTION=640x360,FRAME-RATE=25.000,AUDIO=\"audio\"\n\
             360p/index.m3u8\n\
             #EXT-X-STREAM-INF:BANDWIDTH=3627998,AVERAGE-BANDWIDTH=1814000,CODECS=\"avc1.64001f,mp4a.40.2\",RESOLUTION=1280x720,FRAME-RATE=25.000,AUDIO=\"audio\"\n\
             720p/index.m3u8\n"
        );
    }

    #[test]
    fn the_master_playlist_while_encoding_and_without_audio() {
        let mut asset = asset(AssetState::Encoding);
        asset.renditions.truncate(1);
        assert_eq!(master(&asset), None, "a rendition is still without its init segment");
        asset.renditions_planned = 1;
        assert_eq!(
            master(&asset).unwrap(),
            "#EXTM3U\n\
             #EXT-X-VERSION:7\n\
             #EXT-X-INDEPENDENT-SEGMENTS\n\
             #EXT-X-STREAM-INF:BANDWIDTH=5250000,CODECS=\"avc1.64001f\",RESOLUTION=1280x720,FRAME-RATE=25.000\n\
             720p/index.m3u8\n"
        );
    }

    #[test]
    fn a_media_playlist_grows_and_ends() {
        let segments = [segment(0, 0, 51_200), segment(1, 51_200, 25_600)];
        let encoding = asset(AssetState::Encoding);
        let growing = media(&encoding, &encoding.renditions[0], &segments[..1]);
        assert_eq!(
            growing,
            "#EXTM3U\n\
             #EXT-X-VERSION:7\n\
             #EXT-X-TARGETDURATION:4\n\
             #EXT-X-MEDIA-SEQUENCE:0\n\
             #EXT-X-PLAYLIST-TYPE:EVENT\n\
             #EXT-X-INDEPENDENT-SEGMENTS\n\
             #EXT-X-MAP:URI=\"init.mp4\"\n\
             #EXTINF:4.000000,\n\
             0.m4s\n"
        );
        let ready = asset(AssetState::Ready);
        let whole = media(&ready, &ready.renditions[0], &segments);
        assert_eq!(
            whole,
            growing.replace("EVENT", "VOD") + "#EXTINF:2.000000,\n1.m4s\n#EXT-X-ENDLIST\n",
            "only additions, so that a player can follow"
        );
    }

    #[test]
    fn a_picture_that_stands_still_raises_the_target() {
        let ready = asset(AssetState::Ready);
        let target = |seconds: f64| {
            let segments = [segment(0, 0, (12_800.0 * seconds) as u64)];
            let text = media(&ready, &ready.renditions[0], &segments);
            text.lines().find_map(|line| line.strip_prefix("#EXT-X-TARGETDURATION:")).unwrap().to_owned()
        };
        assert_eq!(target(3.9), "4");
        assert_eq!(target(4.011), "4", "an audio segment that ends with a whole packet");
        assert_eq!(target(9.6), "10");
    }
}
