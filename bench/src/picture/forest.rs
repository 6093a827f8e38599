//! The table of ratios as a picture: each case's interval around 1.0, and what follows from it.

use super::scale::Log;
use super::svg::{Anchor, Svg};
use super::units;
use crate::compare::result::{Case, Ratio, Section, Verdict};

const WIDTH: f64 = 880.0;
const LEFT: f64 = 310.0;
const RIGHT: f64 = 600.0;
const TOP: f64 = 96.0;
const ROW: f64 = 24.0;

/// Beyond this factor an interval ends in an arrow: one runaway must not press all others together.
const FACTOR_MAX: f64 = 8.0;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    Speed,
    Cpu,
}

impl What {
    pub fn of(self, case: &Case) -> Option<&Ratio> {
        match self {
            What::Speed => Some(&case.speed),
            What::Cpu => case.cpu.as_ref(),
        }
    }
}

/// `None` where no section has such a ratio. `resolution` is the factor below which this machine tells nothing apart.
pub fn picture(what: What, title: &str, sections: &[&Section], resolution: Option<f64>) -> Option<String> {
    let rows: Vec<(&Section, Vec<(&Case, &Ratio)>)> = sections
        .iter()
        .map(|section| {
            (*section, section.cases.iter().filter_map(|case| Some((case, what.of(case)?))).collect::<Vec<_>>())
        })
        .filter(|(_, rows)| !rows.is_empty())
        .collect();
    let ratios = || rows.iter().flat_map(|(_, rows)| rows.iter().map(|(_, ratio)| *ratio));
    if rows.is_empty() {
        return None;
    }
    // The same factor on both sides of 1.0, so that twice and half lie equally far from it.
    let ends =
        ratios().flat_map(|ratio| [ratio.low, ratio.high, ratio.median]).filter(|end| end.is_finite() && *end > 0.0);
    let reach = ends.map(|end| end.max(1.0 / end)).fold(1.1, f64::max).min(FACTOR_MAX);
    let scale = Log::around([1.0 / reach, reach], 1.0, LEFT, RIGHT).padded(0.03);
    let lines: usize = rows.iter().map(|(_, rows)| rows.len() + 1).sum();
    let bottom = TOP + ROW * lines as f64 + 6.0;

    let mut svg = Svg::new(WIDTH, bottom + 62.0, title, &describe(ratios()));
    svg.text_within((20.0, 30.0), "t", Anchor::Start, title, WIDTH - 40.0);
    let (note, worse, better) = match what {
        What::Speed => {
            ("speed of ours divided by theirs, with its interval; further right is better", "slower", "faster")
        }
        What::Cpu => (
            "CPU time for the same work, ours divided by theirs, with its interval; further left is better",
            "costs more",
            "costs less",
        ),
    };
    svg.text((20.0, 50.0), "q", Anchor::Start, note);
    let (left, right) = if what == What::Speed { (worse, better) } else { (better, worse) };
    let one = scale.place(1.0);
    svg.text((one - 12.0, TOP - 12.0), "q", Anchor::End, &format!("← {left}"));
    svg.text((one + 12.0, TOP - 12.0), "q", Anchor::Start, &format!("{right} →"));
    if let Some(factor) = resolution {
        let (from, to) = (scale.place(1.0 / factor), scale.place(factor));
        svg.rect((from, TOP), to - from, bottom - TOP, "band");
    }
    for tick in ticks(reach) {
        let x = scale.place(tick);
        svg.line((x, TOP), (x, bottom), if tick == 1.0 { "x" } else { "g" });
        svg.text((x, bottom + 18.0), "q", Anchor::Middle, &units::plain(tick));
    }

    let mut y = TOP + 17.0;
    for (section, rows) in &rows {
        svg.text_within((20.0, y), "b", Anchor::Start, &section.title, LEFT - 30.0);
        y += ROW;
        for (case, ratio) in rows {
            svg.text_within((34.0, y), "", Anchor::Start, &case.name, LEFT - 44.0);
            mark(&mut svg, &scale, ratio, y - 4.0);
            svg.text((RIGHT + 20.0, y), "", Anchor::Start, &super::words::interval(ratio));
            let (word, class) = match ratio.verdict {
                Verdict::Win => ("win", "b"),
                Verdict::Loss => ("loss", "b"),
                Verdict::NoDifference => ("no difference", "q"),
                Verdict::TooFewRounds => ("too few rounds", "q"),
            };
            svg.text((WIDTH - 20.0, y), class, Anchor::End, word);
            y += ROW;
        }
    }
    legend(&mut svg, bottom + 44.0, resolution.is_some());
    Some(svg.finish())
}

fn series(verdict: Verdict) -> usize {
    match verdict {
        Verdict::Win => 0,
        Verdict::Loss => 1,
        Verdict::NoDifference | Verdict::TooFewRounds => 5,
    }
}

/// The interval as a bar, the ratio as a shape that tells the verdict without its colour.
fn mark(svg: &mut Svg, scale: &Log, ratio: &Ratio, y: f64) {
    let series = series(ratio.verdict);
    let class = format!("m s{series}");
    let (low, high) = (scale.place(ratio.low), scale.place(ratio.high));
    svg.bar((low, y), (high, y), series);
    if !scale.holds(ratio.low) {
        svg.shape(&[(low - 6.0, y), (low + 2.0, y - 4.0), (low + 2.0, y + 4.0)], &class);
    }
    if !scale.holds(ratio.high) {
        svg.shape(&[(high + 6.0, y), (high - 2.0, y - 4.0), (high - 2.0, y + 4.0)], &class);
    }
    // Past the end, the shape stands before the arrow, not on it.
    let beyond = |edge: f64, back: f64| if scale.holds(ratio.median) { scale.place(ratio.median) } else { edge + back };
    let x = if ratio.median > 1.0 { beyond(high, -12.0) } else { beyond(low, 12.0) };
    verdict_shape(svg, x, y, ratio.verdict);
}

fn verdict_shape(svg: &mut Svg, x: f64, y: f64, verdict: Verdict) {
    match verdict {
        Verdict::Win => svg.shape(&[(x, y - 6.0), (x + 6.0, y + 5.0), (x - 6.0, y + 5.0)], "m s0"),
        Verdict::Loss => svg.shape(&[(x, y + 6.0), (x + 6.0, y - 5.0), (x - 6.0, y - 5.0)], "m s1"),
        Verdict::NoDifference | Verdict::TooFewRounds => svg.circle((x, y), 4.5, "h s5"),
    }
}

fn legend(svg: &mut Svg, y: f64, resolution: bool) {
    let entries =
        [(Verdict::Win, "win", 34.0), (Verdict::Loss, "loss", 104.0), (Verdict::NoDifference, "no difference", 178.0)];
    for (verdict, label, x) in entries {
        verdict_shape(svg, x, y - 4.0, verdict);
        svg.text((x + 12.0, y), "q", Anchor::Start, label);
    }
    if resolution {
        svg.rect((300.0, y - 10.0), 22.0, 12.0, "band");
        svg.text(
            (330.0, y),
            "q",
            Anchor::Start,
            "less than this machine could tell apart, by an engine against itself",
        );
    }
}

/// Round factors on both sides of 1.0.
fn ticks(reach: f64) -> impl Iterator<Item = f64> {
    let round: &[f64] = match reach {
        _ if reach < 1.25 => &[0.8, 0.9, 1.0, 1.1, 1.2],
        _ if reach < 1.8 => &[0.6, 0.8, 1.0, 1.25, 1.5],
        _ if reach < 3.0 => &[0.33, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0],
        _ => &[0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0],
    };
    round.iter().copied().filter(move |tick| tick.max(1.0 / tick) <= reach * 1.03)
}

fn describe<'a>(ratios: impl Iterator<Item = &'a Ratio>) -> String {
    let (mut wins, mut losses, mut level) = (0, 0, 0);
    for ratio in ratios {
        match ratio.verdict {
            Verdict::Win => wins += 1,
            Verdict::Loss => losses += 1,
            Verdict::NoDifference | Verdict::TooFewRounds => level += 1,
        }
    }
    format!("{wins} wins, {losses} losses, {level} without a difference.")
}
