//! Latency of both sides as distributions: which share of the operations was done within which time.

use super::scale::{Log, Probability};
use super::svg::{Anchor, Point, Svg};
use super::units;
use crate::compare::result::{Case, Run, Side};

const WIDTH: f64 = 800.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 774.0;
const TOP: f64 = 152.0;
const BOTTOM: f64 = 430.0;
const HEIGHT: f64 = 482.0;

/// Places along the time axis at which a curve is drawn.
const STEPS: usize = 240;

/// Shares named in the legend and marked on the curve.
const NAMED: [(f64, &str); 3] = [(0.5, "half"), (0.99, "99 %"), (0.999, "99.9 %")];

/// `None` where a side was not asked for its distribution.
pub fn picture(heading: &str, case: &Case) -> Option<String> {
    let sides = [Curve::of(&case.ours)?, Curve::of(&case.theirs)?];
    let known = sides.iter().map(|side| side.known).fold(1.0, f64::min);
    let shares = Probability::of(sides.iter().map(|side| side.operations).min()?, known, BOTTOM, TOP);
    let ends = sides.iter().flat_map(|side| [side.within(0.01), side.within(shares.top_share())]);
    let times = Log::around(ends, 4.0, LEFT, RIGHT).padded(0.04);

    let title = format!("Latency: {heading}");
    let mut svg = Svg::new(WIDTH, HEIGHT, &title, &describe(&sides));
    svg.text_within((20.0, 30.0), "t", Anchor::Start, &title, WIDTH - 40.0);
    let axis = "share of operations done within …, all rounds together; shaded: from the best to the worst round; left is better";
    svg.text((20.0, 50.0), "q", Anchor::Start, axis);
    legend(&mut svg, &sides, &shares);

    for (share, label) in shares.ticks() {
        let y = shares.place(share);
        svg.line((LEFT, y), (RIGHT, y), "g");
        svg.text((LEFT - 8.0, y + 4.0), "q", Anchor::End, label);
    }
    for time in times.ticks(12) {
        let x = times.place(time);
        svg.line((x, TOP), (x, BOTTOM), "g");
        svg.line((x, BOTTOM), (x, BOTTOM + 5.0), "x");
        svg.text((x, BOTTOM + 20.0), "q", Anchor::Middle, &units::latency_tick(time));
    }
    svg.line((LEFT, BOTTOM), (RIGHT, BOTTOM), "x");
    svg.text(((LEFT + RIGHT) / 2.0, BOTTOM + 40.0), "q", Anchor::Middle, "completion latency, logarithmic");

    // Their curve below ours: where they agree, the dashes of theirs still show between ours.
    for (series, side) in sides.iter().enumerate() {
        svg.area(&side.band(&times, &shares), series);
    }
    for (series, side) in sides.iter().enumerate() {
        svg.curve(&side.line(&times, &shares), series);
        for (share, _) in NAMED.iter().filter(|(share, _)| *share <= shares.top_share()) {
            svg.marker((times.place(side.within(*share)), shares.place(*share)), series);
        }
    }
    Some(svg.finish())
}

/// Above the plot, as a small table, where it can cover no curve.
fn legend(svg: &mut Svg, sides: &[Curve; 2], shares: &Probability) {
    const NAMES: f64 = 70.0;
    const COLUMNS: [f64; 3] = [530.0, 650.0, 774.0];
    let named = || NAMED.iter().zip(COLUMNS).filter(|((share, _), _)| *share <= shares.top_share());
    for ((_, label), x) in named() {
        svg.text((x, 78.0), "q", Anchor::End, &format!("{label} within"));
    }
    for (series, side) in sides.iter().enumerate() {
        let y = 100.0 + 22.0 * series as f64;
        svg.curve(&[(20.0, y - 4.0), (60.0, y - 4.0)], series);
        svg.marker((40.0, y - 4.0), series);
        svg.text_within((NAMES, y), "b", Anchor::Start, side.name, COLUMNS[0] - 90.0 - NAMES);
        for ((share, _), x) in named() {
            svg.text((x, y), "", Anchor::End, &units::latency(side.within(*share)));
        }
    }
}

fn describe(sides: &[Curve; 2]) -> String {
    let one = |side: &Curve| {
        let named = NAMED.map(|(share, label)| format!("{label} within {}", units::latency(side.within(share))));
        format!("{}: {}", side.name, named.join(", "))
    };
    format!("{}. {}.", one(&sides[0]), one(&sides[1]))
}

/// The distributions of a side's rounds, each weighted by its operations.
struct Curve<'a> {
    name: &'a str,
    operations: u64,
    /// The last share that every round tells: wrk ends at 99.9 %, fio at 100 %.
    known: f64,
    /// (nanoseconds, share done within it), both rising.
    pooled: Vec<(f64, f64)>,
    rounds: Vec<&'a [(u64, f64)]>,
}

impl<'a> Curve<'a> {
    fn of(side: &'a Side) -> Option<Curve<'a>> {
        let runs: Vec<(&Run, &[(u64, f64)])> =
            side.runs.iter().filter_map(|run| Some((run, run.cdf.as_deref().filter(|cdf| !cdf.is_empty())?))).collect();
        let operations: u64 = runs.iter().map(|(run, _)| run.operations).sum();
        if operations == 0 {
            return None;
        }
        let mut times: Vec<u64> = runs.iter().flat_map(|(_, cdf)| cdf.iter().map(|(ns, _)| (*ns).max(1))).collect();
        times.sort_unstable();
        times.dedup();
        let share = |ns: f64| {
            runs.iter().map(|(run, cdf)| done_within(cdf, ns) * run.operations as f64).sum::<f64>() / operations as f64
        };
        let pooled = times.into_iter().map(|ns| (ns as f64, share(ns as f64))).collect();
        let rounds: Vec<&[(u64, f64)]> = runs.into_iter().map(|(_, cdf)| cdf).collect();
        let known = rounds.iter().filter_map(|cdf| cdf.last()).map(|(_, share)| *share).fold(1.0, f64::min);
        Some(Curve { name: &side.name, operations, known, pooled, rounds })
    }

    /// The time within which `share` of the operations was done.
    fn within(&self, share: f64) -> f64 {
        let at = self.pooled.partition_point(|(_, done)| *done < share - 1e-12);
        match (at.checked_sub(1).map(|before| self.pooled[before]), self.pooled.get(at)) {
            (Some((from, less)), Some(&(to, more))) => from * (to / from).powf((share - less) / (more - less)),
            (None, Some(&(first, _))) => first,
            (_, None) => self.pooled[self.pooled.len() - 1].0,
        }
    }

    fn line(&self, times: &Log, shares: &Probability) -> Vec<Point> {
        let (first, last) = (self.within(0.01), self.within(shares.top_share()));
        let mut points = vec![(times.place(first), shares.place(0.01))];
        for ns in steps(times).filter(|ns| (first..=last).contains(ns)) {
            points.push((times.place(ns), shares.place(between(&self.pooled, ns, |point| *point))));
        }
        points.push((times.place(last), shares.place(shares.top_share())));
        points
    }

    /// The outline between the round that was ahead and the one that was behind, at every time.
    fn band(&self, times: &Log, shares: &Probability) -> Vec<Point> {
        let at = |ns: f64, pick: fn(f64, f64) -> f64| {
            let done = self.rounds.iter().map(|cdf| done_within(cdf, ns)).reduce(pick).unwrap_or(0.0);
            (times.place(ns), shares.place(done))
        };
        let ahead = steps(times).map(|ns| at(ns, f64::max));
        let behind: Vec<Point> = steps(times).map(|ns| at(ns, f64::min)).collect();
        ahead.chain(behind.into_iter().rev()).collect()
    }
}

fn steps(times: &Log) -> impl Iterator<Item = f64> {
    let (low, span) = (times.low(), times.high() / times.low());
    (0..=STEPS).map(move |step| low * span.powf(step as f64 / STEPS as f64))
}

fn done_within(cdf: &[(u64, f64)], ns: f64) -> f64 {
    between(cdf, ns, |&(time, share)| (time.max(1) as f64, share))
}

/// The share at a time between two that are known: some programs tell their distribution in a dozen quantiles.
fn between<T>(points: &[T], ns: f64, point: impl Fn(&T) -> (f64, f64)) -> f64 {
    let at = points.partition_point(|known| point(known).0 <= ns);
    let share = match (at.checked_sub(1).map(|before| point(&points[before])), points.get(at).map(&point)) {
        (None, _) => 0.0,
        (Some((_, last)), None) => last,
        (Some((from, less)), Some((to, more))) => less + (more - less) * (ns / from).ln() / (to / from).ln(),
    };
    share.clamp(0.0, 1.0)
}
