//! Time: from the source's timestamps to a timeline that starts at zero, and the segment grid on it.
//!
//! Pure arithmetic. Timestamps pass through exactly wherever the source's time base allows it; no rounding to a frame
//! rate, so that variable rates stay what they are.

use ffmpeg_sys_next as ff;
use reelring_protocol::transcode::Rational;

use crate::error::Failure;
use crate::limits::TIME_STEP_SECONDS_MAX;
use crate::muxer::TIMESCALE_MAX;

/// Below this the MP4 muxer would choose a finer scale by itself.
const TIMESCALE_MIN: i64 = 10_000;
const TIMESCALE_DEFAULT: i32 = 90_000;

/// Units per second for a track made from timestamps in `base`: a multiple of the source's, so that nothing is rounded.
pub fn timescale_for(base: ff::AVRational) -> i32 {
    let mut scale = i64::from(base.den.max(1));
    while scale < TIMESCALE_MIN {
        scale *= 2;
    }
    if scale <= i64::from(TIMESCALE_MAX) { scale as i32 } else { TIMESCALE_DEFAULT }
}

/// Rounds to nearest.
pub fn rescale(value: i64, from: ff::AVRational, units_per_second: i32) -> i64 {
    let numerator = i128::from(value) * i128::from(from.num) * i128::from(units_per_second);
    let denominator = i128::from(from.den.max(1));
    let rounded = (2 * numerator + denominator).div_euclid(2 * denominator);
    rounded.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

/// Places decoded pictures on the timeline.
#[derive(Debug, Clone)]
pub struct Clock {
    base: ff::AVRational,
    pub timescale: i32,
    /// One frame at the nominal rate.
    pub nominal: i64,
    origin: Option<i64>,
    last: Option<i64>,
    /// The packet shown last: its timestamp and duration in the source's units.
    last_packet: Option<(i64, i64)>,
    /// Pictures whose timestamp was missing or did not advance.
    pub repaired: u64,
}

/// Where a picture lies, and the source timestamp that is now time zero if that has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    pub at: i64,
    pub new_origin: Option<i64>,
}

impl Clock {
    pub fn new(base: ff::AVRational, frame_rate: Rational) -> Clock {
        let timescale = timescale_for(base);
        let nominal = (i64::from(timescale) * frame_rate.den + frame_rate.num / 2) / frame_rate.num;
        Clock { base, timescale, nominal: nominal.max(1), origin: None, last: None, last_packet: None, repaired: 0 }
    }

    /// Remembers how long the packet shown last lasts. Packets come in decode order.
    pub fn saw_packet(&mut self, pts: i64, duration: i64) {
        if pts != ff::AV_NOPTS_VALUE && self.last_packet.is_none_or(|(last, _)| pts >= last) {
            self.last_packet = Some((pts, duration));
        }
    }

    /// The picture's time, strictly after the one before it.
    pub fn place(&mut self, timestamp: i64) -> Result<Placed, Failure> {
        let at = self.last.map_or(0, |last| last + self.nominal);
        let placed = match self.origin {
            _ if timestamp == ff::AV_NOPTS_VALUE => {
                self.repaired += 1;
                Placed { at, new_origin: None }
            }
            // The first timestamp of all, perhaps after pictures without one.
            None => self.start_over(timestamp, at),
            Some(origin) => {
                let last = self.last.unwrap_or(-1);
                let second = i64::from(self.timescale);
                let there = rescale(timestamp.saturating_sub(origin), self.base, self.timescale);
                if there - last > TIME_STEP_SECONDS_MAX * second {
                    return Err(Failure::input(format!(
                        "timestamps jump by {} s between two pictures, the limit is {TIME_STEP_SECONDS_MAX} s: remux the \
                         source to repair them",
                        (there - last) / second
                    )));
                }
                if there > last {
                    Placed { at: there, new_origin: None }
                } else {
                    self.repaired += 1;
                    if last - there > second {
                        // Joined recordings: time goes on, and its zero moves.
                        self.start_over(timestamp, at)
                    } else {
                        Placed { at, new_origin: None }
                    }
                }
            }
        };
        self.last = Some(placed.at);
        Ok(placed)
    }

    /// From now on the source's `timestamp` means `at`.
    fn start_over(&mut self, timestamp: i64, at: i64) -> Placed {
        let per_second = i128::from(self.timescale) * i128::from(self.base.num.max(1));
        let before = (i128::from(at) * i128::from(self.base.den) + per_second / 2) / per_second;
        let origin = timestamp.saturating_sub(i64::try_from(before).unwrap_or(0));
        if self.origin.replace(origin).is_some() {
            self.last_packet = None;
        }
        Placed { at, new_origin: Some(origin) }
    }

    /// Where the last picture ends: its packet's duration where it is known and plausible, else one nominal frame.
    pub fn end(&self) -> i64 {
        let Some(last) = self.last else { return 0 };
        let origin = self.origin.unwrap_or(0);
        let duration = self
            .last_packet
            .filter(|&(pts, _)| rescale(pts.saturating_sub(origin), self.base, self.timescale) == last)
            .map(|(_, duration)| rescale(duration, self.base, self.timescale))
            .filter(|&duration| duration > 0 && duration <= TIME_STEP_SECONDS_MAX * i64::from(self.timescale));
        last + duration.unwrap_or(self.nominal)
    }
}

/// The segment grid: cell k begins `k * frames / rate` seconds after zero, and a segment at the first frame in a new cell.
///
/// At a constant rate that is exactly every so many frames, for half a frame of tolerance absorbs containers that round
/// timestamps; at a variable one it bounds a segment's length. Cells, and so segments, depend on the timestamp alone: an
/// encode that starts in the middle cuts at the same places.
#[derive(Debug, Clone)]
pub struct Grid {
    /// Units per cell, as a fraction.
    cell_num: i128,
    cell_den: i128,
    tolerance: i64,
    current: Option<i128>,
}

impl Grid {
    pub fn new(frames: u32, rate: Rational, timescale: i32, tolerant: bool) -> Grid {
        let nominal = i64::from(timescale) * rate.den / rate.num.max(1);
        Grid {
            cell_num: i128::from(frames.max(1)) * i128::from(rate.den) * i128::from(timescale),
            cell_den: i128::from(rate.num.max(1)),
            tolerance: if tolerant { nominal / 2 } else { 0 },
            current: None,
        }
    }

    /// Whether a segment starts with the frame at this time. Ask once per frame, in order.
    pub fn starts(&mut self, at: i64) -> bool {
        let cell = ((i128::from(at) + i128::from(self.tolerance)) * self.cell_den).div_euclid(self.cell_num.max(1));
        let new = self.current.is_none_or(|current| cell > current);
        if new {
            self.current = Some(cell);
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn base(num: i32, den: i32) -> ff::AVRational {
        ff::AVRational { num, den }
    }

    fn rate(num: i64, den: i64) -> Rational {
        Rational { num, den }
    }

    #[test]
    fn timescales_are_multiples_of_the_source() {
        assert_eq!(timescale_for(base(1, 90000)), 90000);
        assert_eq!(timescale_for(base(1, 12800)), 12800);
        assert_eq!(timescale_for(base(1, 1000)), 16000);
        assert_eq!(timescale_for(base(1001, 30000)), 30000);
        assert_eq!(timescale_for(base(1, 1_000_000_000)), 90000);
        assert_eq!(timescale_for(base(1, 25)), 12800);
    }

    #[test]
    fn pictures_keep_their_distances_from_the_first() {
        let mut clock = Clock::new(base(1, 1000), rate(30, 1));
        let times: Vec<_> = [-33, 0, 34, 167, 168].map(|t| clock.place(t).unwrap().at).into();
        assert_eq!(times, [0, 33, 67, 200, 201].map(|ms| ms * 16));
        assert_eq!(clock.repaired, 0);
    }

    #[test]
    fn missing_and_repeated_timestamps_still_advance() {
        let mut clock = Clock::new(base(1, 30), rate(30, 1));
        let times = [0, 0, ff::AV_NOPTS_VALUE, 1].map(|t| clock.place(t).unwrap().at);
        assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
        assert_eq!(clock.repaired, 3);
    }

    #[test]
    fn pictures_before_the_first_timestamp_come_before_it() {
        let mut clock = Clock::new(base(1, 1000), rate(25, 1));
        let none = ff::AV_NOPTS_VALUE;
        assert_eq!(clock.place(none).unwrap(), Placed { at: 0, new_origin: None });
        clock.place(none).unwrap();
        assert_eq!(clock.place(0).unwrap(), Placed { at: 80 * 16, new_origin: Some(-80) });
        assert_eq!(clock.place(40).unwrap().at, 120 * 16);
        assert_eq!(clock.repaired, 2);
    }

    #[test]
    fn a_recording_that_starts_over_goes_on() {
        let mut clock = Clock::new(base(1, 90000), rate(25, 1));
        for k in 0..100 {
            clock.place(k * 3600).unwrap();
        }
        let placed = clock.place(0).unwrap();
        assert_eq!(placed.at, 100 * 3600);
        assert_eq!(placed.new_origin, Some(-100 * 3600));
        assert_eq!(clock.place(3600).unwrap(), Placed { at: 101 * 3600, new_origin: None });
    }

    #[test]
    fn a_jump_of_hours_is_an_error() {
        let mut clock = Clock::new(base(1, 1), rate(25, 1));
        clock.place(0).unwrap();
        let error = clock.place(4000).unwrap_err();
        assert!(error.message.contains("4000 s") && error.message.contains("3600 s"), "{error}");
    }

    #[test]
    fn the_end_uses_the_last_packets_duration_in_any_decode_order() {
        let mut clock = Clock::new(base(1, 90000), rate(30, 1));
        for pts in [0, 9000, 3000, 6000] {
            clock.saw_packet(pts, if pts == 9000 { 4500 } else { 3000 });
        }
        for pts in [0, 3000, 6000, 9000] {
            clock.place(pts).unwrap();
        }
        assert_eq!(clock.end(), 13500);
        assert_eq!(Clock::new(base(1, 90000), rate(30, 1)).end(), 0);
    }

    #[test]
    fn the_grid_is_exact_at_constant_rates_even_with_rounded_timestamps() {
        for (num, den) in [(30000, 1001), (24000, 1001), (25, 1), (50, 1), (60000, 1001)] {
            let frames = (4 * num + den / 2) / den;
            for scale in [16000i64, 90000, 30000] {
                let mut grid = Grid::new(frames as u32, rate(num, den), scale as i32, true);
                for frame in 0..2000 {
                    // Milliseconds, as Matroska stores them.
                    let ms = (frame * den * 1000 + num / 2) / num;
                    let at = ms * scale / 1000;
                    assert_eq!(grid.starts(at), frame % frames == 0, "frame {frame} at {num}/{den}, {scale}");
                }
            }
        }
    }

    #[test]
    fn the_grid_bounds_segments_at_variable_rates() {
        let mut grid = Grid::new(100, rate(25, 1), 1000, true);
        let starts: Vec<_> =
            [0, 1000, 3900, 4100, 4200, 19000, 19500, 20000].into_iter().filter(|&at| grid.starts(at)).collect();
        assert_eq!(starts, [0, 4100, 19000, 20000]);
    }
}
