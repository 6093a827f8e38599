//! Which renditions a transcode may make: `360p`, `720p`, … Pure.
//!
//! The number counts the lines of the shorter side, so that a portrait film at `360p` is 360 wide.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::LADDER_RUNGS;

/// Lines, and the peak bit rate of a 16:9 picture at up to 30 frames a second.
const KNOWN: [(u32, u32); 9] = [
    (144, 250_000),
    (240, 450_000),
    (360, 900_000),
    (480, 1_600_000),
    (540, 2_200_000),
    (720, 3_500_000),
    (1080, 6_500_000),
    (1440, 12_000_000),
    (2160, 22_000_000),
];

/// One step of a ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rung {
    lines: u32,
}

/// Rungs from the lowest to the highest, each once, at least one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Ladder(Vec<Rung>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LadderError {
    #[error("the ladder is empty: name at least one of {}", names())]
    Empty,
    #[error("{name:?} is not a rung of a ladder: use {known}", name = .0, known = names())]
    Unknown(String),
    #[error("the ladder has {0} rungs, the limit is {LADDER_RUNGS}")]
    TooMany(usize),
}

fn names() -> String {
    KNOWN.map(|(lines, _)| format!("{lines}p")).join(", ")
}

impl Rung {
    pub fn lines(self) -> u32 {
        self.lines
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}p", self.lines)
    }
}

impl Ladder {
    /// Order and repetitions do not matter.
    pub fn parse<S: AsRef<str>>(names: &[S]) -> Result<Ladder, LadderError> {
        if names.len() > LADDER_RUNGS {
            return Err(LadderError::TooMany(names.len()));
        }
        let rung = |name: &S| {
            let name = name.as_ref().trim();
            let known = KNOWN.iter().find(|(lines, _)| name == format!("{lines}p"));
            known.map(|&(lines, _)| Rung { lines }).ok_or_else(|| LadderError::Unknown(name.to_owned()))
        };
        let mut rungs = names.iter().map(rung).collect::<Result<Vec<_>, _>>()?;
        rungs.sort_unstable();
        rungs.dedup();
        if rungs.is_empty() { Err(LadderError::Empty) } else { Ok(Ladder(rungs)) }
    }

    pub fn rungs(&self) -> &[Rung] {
        &self.0
    }
}

impl Default for Ladder {
    fn default() -> Self {
        Ladder([360, 720, 1080].map(|lines| Rung { lines }).into())
    }
}

impl TryFrom<Vec<String>> for Ladder {
    type Error = LadderError;

    fn try_from(names: Vec<String>) -> Result<Ladder, LadderError> {
        Ladder::parse(&names)
    }
}

impl From<Ladder> for Vec<String> {
    fn from(ladder: Ladder) -> Vec<String> {
        ladder.0.iter().map(Rung::to_string).collect()
    }
}

impl fmt::Display for Ladder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Vec::from(self.clone()).join(","))
    }
}

/// The peak bit rate for a picture of this size and rate: between the known rungs in proportion to the pixels.
pub fn bitrate(width: u32, height: u32, frames_per_second: f64) -> u32 {
    let pixels = f64::from(width) * f64::from(height);
    let area = |lines: u32| f64::from(lines) * f64::from(lines) * 16.0 / 9.0;
    let (mut below, mut above) = (KNOWN[0], KNOWN[KNOWN.len() - 1]);
    for pair in KNOWN.windows(2) {
        if area(pair[0].0) <= pixels && pixels <= area(pair[1].0) {
            (below, above) = (pair[0], pair[1]);
        }
    }
    let rate = if pixels <= area(KNOWN[0].0) {
        f64::from(KNOWN[0].1) * pixels / area(KNOWN[0].0)
    } else if pixels >= area(above.0) {
        f64::from(above.1)
    } else {
        let part = (pixels - area(below.0)) / (area(above.0) - area(below.0));
        f64::from(below.1) + part * f64::from(above.1 - below.1)
    };
    // Twice the frames cost about half as much again.
    let faster = if frames_per_second > 32.0 { 1.5 } else { 1.0 };
    ((rate * faster) as u32).max(100_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_sorted_rungs() {
        let ladder = Ladder::parse(&["720p", " 360p", "720p"]).unwrap();
        assert_eq!(ladder.to_string(), "360p,720p");
        assert_eq!(Ladder::default().to_string(), "360p,720p,1080p");
    }

    #[test]
    fn wrong_names_are_named() {
        let error = Ladder::parse(&["360p", "banana"]).unwrap_err().to_string();
        assert!(error.contains("\"banana\"") && error.contains("1080p"), "{error}");
        assert_eq!(Ladder::parse::<&str>(&[]), Err(LadderError::Empty));
        assert_eq!(Ladder::parse(&["360p"; 99]), Err(LadderError::TooMany(99)));
        assert!(Ladder::parse(&["0360p"]).is_err());
    }

    #[test]
    fn json_is_the_list_of_names_and_is_checked() {
        let ladder: Ladder = serde_json::from_str(r#"["720p","240p"]"#).unwrap();
        assert_eq!(serde_json::to_string(&ladder).unwrap(), r#"["240p","720p"]"#);
        assert!(serde_json::from_str::<Ladder>("[]").is_err());
        assert!(serde_json::from_str::<Ladder>(r#"["4k"]"#).is_err());
    }

    #[test]
    fn bit_rates_grow_with_the_picture() {
        assert_eq!(bitrate(640, 360, 25.0), 900_000);
        assert_eq!(bitrate(1280, 720, 50.0), 5_250_000);
        assert_eq!(bitrate(8192, 4320, 24.0), 22_000_000);
        assert_eq!(bitrate(2, 2, 24.0), 100_000);
        let sizes = [(160, 90), (300, 200), (640, 360), (800, 600), (1920, 1080), (2560, 1440)];
        let rates = sizes.map(|(w, h)| bitrate(w, h, 30.0));
        assert!(rates.is_sorted(), "{rates:?}");
    }
}
