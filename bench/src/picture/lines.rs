//! Throughput along an axis (block size, queue depth): a line for each engine, its rounds' spread as bars.

use serde::{Deserialize, Serialize};

use super::scale::Log;
use super::svg::{Anchor, SERIES_MAX, Svg, apart};
use super::units;

const WIDTH: f64 = 800.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 600.0;
const TOP: f64 = 74.0;
const BOTTOM: f64 = 380.0;
const HEIGHT: f64 = 432.0;

/// How one thing changes along another, for several engines.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Sweep {
    pub id: String,
    pub title: String,
    /// What repeats one point of it.
    pub command: String,
    pub along: Axis,
    pub of: Measure,
    pub series: Vec<Series>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    BlockBytes,
    Depth,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    BytesPerSecond,
    OperationsPerSecond,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Series {
    pub name: String,
    pub points: Vec<Spot>,
}

/// What every round gave at one place of the axis; not empty.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Spot {
    pub at: u64,
    pub rounds: Vec<f64>,
}

impl Axis {
    pub fn name(self) -> &'static str {
        match self {
            Axis::BlockBytes => "block size",
            Axis::Depth => "operations in flight",
        }
    }

    pub fn label(self, at: u64) -> String {
        match self {
            Axis::BlockBytes => units::bytes(at as f64),
            Axis::Depth => at.to_string(),
        }
    }
}

impl Measure {
    pub fn name(self) -> &'static str {
        match self {
            Measure::BytesPerSecond => "MiB/s",
            Measure::OperationsPerSecond => "operations a second",
        }
    }

    pub fn label(self, value: f64) -> String {
        match self {
            Measure::BytesPerSecond => units::number(value / units::MIB),
            Measure::OperationsPerSecond => units::count(value),
        }
    }

    fn scaled(self, value: f64) -> f64 {
        match self {
            Measure::BytesPerSecond => value / units::MIB,
            Measure::OperationsPerSecond => value,
        }
    }
}

impl Spot {
    pub fn median(&self) -> f64 {
        super::median(self.rounds.iter().copied())
    }

    pub fn low(&self) -> f64 {
        self.rounds.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub fn high(&self) -> f64 {
        self.rounds.iter().copied().fold(0.0, f64::max)
    }
}

/// `None` where nothing was measured.
pub fn picture(sweep: &Sweep) -> Option<String> {
    let series: Vec<&Series> =
        sweep.series.iter().filter(|series| !series.points.is_empty()).take(SERIES_MAX).collect();
    let spots = || series.iter().flat_map(|series| &series.points);
    let mut places: Vec<u64> = spots().map(|spot| spot.at.max(1)).collect();
    places.sort_unstable();
    places.dedup();
    if places.is_empty() {
        return None;
    }
    let along = Log::around(places.iter().map(|at| *at as f64), 4.0, LEFT + 28.0, RIGHT - 20.0);
    let ends = spots().flat_map(|spot| [spot.low(), spot.high()]).map(|value| sweep.of.scaled(value));
    let up = Log::around(ends, 3.0, BOTTOM, TOP).padded(0.05);

    let mut svg = Svg::new(WIDTH, HEIGHT, &sweep.title, &describe(sweep, &series));
    svg.text_within((20.0, 30.0), "t", Anchor::Start, &sweep.title, WIDTH - 40.0);
    let note = format!(
        "{}, logarithmic; medians, bars from the lowest to the highest round; higher is better",
        sweep.of.name()
    );
    svg.text((20.0, 50.0), "q", Anchor::Start, &note);
    for value in up.ticks(9) {
        let y = up.place(value);
        svg.line((LEFT, y), (RIGHT, y), "g");
        let label = match sweep.of {
            Measure::BytesPerSecond => units::plain(value),
            Measure::OperationsPerSecond if value >= 1e6 => format!("{} M", units::plain(value / 1e6)),
            Measure::OperationsPerSecond if value >= 1e4 => format!("{} k", units::plain(value / 1e3)),
            Measure::OperationsPerSecond => units::plain(value),
        };
        svg.text((LEFT - 8.0, y + 4.0), "q", Anchor::End, &label);
    }
    for &at in &places {
        let x = along.place(at as f64);
        svg.line((x, BOTTOM), (x, BOTTOM + 5.0), "x");
        svg.text((x, BOTTOM + 20.0), "q", Anchor::Middle, &sweep.along.label(at));
    }
    svg.line((LEFT, BOTTOM), (RIGHT, BOTTOM), "x");
    svg.text(((LEFT + RIGHT) / 2.0, BOTTOM + 40.0), "q", Anchor::Middle, sweep.along.name());

    // A few pixels beside each other: bars that lie over each other cannot be read.
    let beside = |at: usize| (at as f64 - (series.len() as f64 - 1.0) / 2.0) * 5.0;
    let place = |at: usize, spot: &Spot, value: f64| {
        (along.place(spot.at.max(1) as f64) + beside(at), up.place(sweep.of.scaled(value)))
    };
    for (at, series) in series.iter().enumerate() {
        for spot in &series.points {
            let (x, top) = place(at, spot, spot.high());
            svg.spread(x, top, place(at, spot, spot.low()).1, at);
        }
        let points: Vec<_> = series.points.iter().map(|spot| place(at, spot, spot.median())).collect();
        svg.curve(&points, at);
        for point in points {
            svg.marker(point, at);
        }
    }
    labels(&mut svg, &series, |at, spot| place(at, spot, spot.median()));
    Some(svg.finish())
}

/// Each line is named at its right end, where the eye arrives, instead of in a box that must lie somewhere.
fn labels(svg: &mut Svg, series: &[&Series], place: impl Fn(usize, &Spot) -> (f64, f64)) {
    let ends: Vec<(f64, f64)> =
        series.iter().enumerate().filter_map(|(at, series)| Some(place(at, series.points.last()?))).collect();
    let heights = apart(&ends.iter().map(|(_, y)| *y).collect::<Vec<_>>(), 18.0, TOP, BOTTOM);
    for (at, (series, y)) in series.iter().zip(heights).enumerate() {
        svg.marker((RIGHT + 14.0, y), at);
        svg.text_within((RIGHT + 26.0, y + 4.0), "b", Anchor::Start, &series.name, WIDTH - RIGHT - 40.0);
    }
}

fn describe(sweep: &Sweep, series: &[&Series]) -> String {
    let one = |series: &&Series| {
        let spots = series
            .points
            .iter()
            .map(|spot| format!("{} at {}", sweep.of.label(spot.median()), sweep.along.label(spot.at)));
        format!("{}: {}", series.name, spots.collect::<Vec<_>>().join(", "))
    };
    format!("Medians in {}. {}.", sweep.of.name(), series.iter().map(one).collect::<Vec<_>>().join(". "))
}
