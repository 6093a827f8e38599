//! Verdicts in words, the same in the pictures, the HTML page and docs/benchmarks.md.

use crate::compare::result::{Case, Ratio, Section, Verdict};

/// `0.65 [0.60 .. 0.71]`
pub fn interval(ratio: &Ratio) -> String {
    let digits = if ratio.high < 9.995 { 2 } else { 1 };
    format!("{:.digits$} [{:.digits$} .. {:.digits$}]", ratio.median, ratio.low, ratio.high)
}

/// `loss: 35 % slower (29 % to 40 %)`
pub fn speed(ratio: &Ratio) -> String {
    phrase(ratio, "faster", "slower", "as fast")
}

/// `win: 20 % less CPU (12 % to 27 %)`
pub fn cpu(ratio: &Ratio) -> String {
    phrase(ratio, "more CPU", "less CPU", "the CPU")
}

/// `loss: 2.1 times the p99 (1.7 to 2.6)`
pub fn p99(ratio: &Ratio) -> String {
    phrase(ratio, "longer p99", "shorter p99", "the p99")
}

fn phrase(ratio: &Ratio, above: &str, below: &str, equal: &str) -> String {
    let Ratio { median, low, high, .. } = *ratio;
    let one = |value: f64| match value {
        _ if value >= 2.0 => format!("{value:.1} times {equal}"),
        _ if value >= 1.0 => format!("{:.0} % {above}", (value - 1.0) * 100.0),
        _ => format!("{:.0} % {below}", (1.0 - value) * 100.0),
    };
    // The end nearer to 1.0 first: "29 % to 40 %".
    let (near, far) = if median < 1.0 { (high, low) } else { (low, high) };
    let bare = |value: f64| match value {
        _ if median >= 2.0 => format!("{value:.1}"),
        _ => format!("{:.0} %", (value - 1.0).abs() * 100.0),
    };
    match ratio.verdict {
        Verdict::NoDifference => format!("no difference: between {} and {}", one(low), one(high)),
        Verdict::TooFewRounds => format!("too few rounds to tell: {} in their median", one(median)),
        Verdict::Win => format!("win: {} ({} to {})", one(median), bare(near), bare(far)),
        Verdict::Loss => format!("loss: {} ({} to {})", one(median), bare(near), bare(far)),
    }
}

/// `1.22.1` of `nginx/1.22.1`, `5.1.6-0` of `ffmpeg version 5.1.6-0 Copyright …`; without a number all of it.
pub fn version(text: &str) -> &str {
    let digit = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
    text.split([' ', '/']).find(digit).unwrap_or(text)
}

/// `2026-11-22 20:05 UTC` of an RFC 3339 time with fractions of seconds.
pub fn minute(date: &str) -> String {
    match (date.get(..10), date.get(10..11), date.get(11..16), date.ends_with('Z')) {
        (Some(day), Some("T"), Some(minute), true) => format!("{day} {minute} UTC"),
        _ => date.to_owned(),
    }
}

/// A shape for each verdict, so that nothing hangs on colour.
pub fn sign(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Win => "▲",
        Verdict::Loss => "▼",
        Verdict::NoDifference => "○",
        Verdict::TooFewRounds => "?",
    }
}

/// One thing in which we are behind.
pub struct Loss<'a> {
    pub section: &'a Section,
    pub case: &'a Case,
    /// `35 % slower (29 % to 40 %)`
    pub words: String,
}

/// All losses, the heaviest first; speed and latency before CPU.
pub fn losses(sections: &[Section]) -> Vec<Loss<'_>> {
    let mut found: Vec<(bool, f64, Loss)> = Vec::new();
    for section in sections {
        for case in &section.cases {
            let speed = Some((false, &case.speed, speed(&case.speed), case.speed.median));
            let cpu = case.cpu.as_ref().map(|ratio| (true, ratio, cpu(ratio), 1.0 / ratio.median));
            let p99 = case.p99.as_ref().map(|ratio| (false, ratio, p99(ratio), 1.0 / ratio.median));
            for (is_cpu, ratio, words, weight) in speed.into_iter().chain(p99).chain(cpu) {
                if ratio.verdict == Verdict::Loss {
                    let words = words.trim_start_matches("loss: ").to_owned();
                    found.push((is_cpu, weight, Loss { section, case, words }));
                }
            }
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    found.into_iter().map(|(_, _, loss)| loss).collect()
}

/// The sentence for a page without a loss, which must not claim more than was measured.
pub fn no_losses(sections: &[Section]) -> String {
    let undecided = |case: &&Case| case.speed.verdict == Verdict::TooFewRounds;
    let all = sections.iter().map(|section| section.cases.len()).sum::<usize>();
    match sections.iter().flat_map(|section| &section.cases).filter(undecided).count() {
        0 => "Nowhere, as far as this machine could tell: no interval below lies wholly on the losing side.".into(),
        some => format!(
            "Unknown: {some} of {all} cases had too few rounds for a verdict, and none of the others is a loss."
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratio(median: f64, low: f64, high: f64, verdict: Verdict) -> Ratio {
        Ratio { median, low, high, confidence: 0.95, verdict }
    }

    #[test]
    fn verdicts_read_as_sentences() {
        let loss = ratio(0.65, 0.6, 0.71, Verdict::Loss);
        assert_eq!(speed(&loss), "loss: 35 % slower (29 % to 40 %)");
        assert_eq!(interval(&loss), "0.65 [0.60 .. 0.71]");
        assert_eq!(p99(&ratio(2.1, 1.7, 2.6, Verdict::Loss)), "loss: 2.1 times the p99 (1.7 to 2.6)");
        assert_eq!(cpu(&ratio(0.8, 0.73, 0.88, Verdict::Win)), "win: 20 % less CPU (12 % to 27 %)");
        let level = ratio(1.0, 0.97, 1.04, Verdict::NoDifference);
        assert_eq!(speed(&level), "no difference: between 3 % slower and 4 % faster");
        assert_eq!(speed(&ratio(2.5, 1.9, 2.9, Verdict::Win)), "win: 2.5 times as fast (1.9 to 2.9)");
    }

    #[test]
    fn versions_and_dates_are_short() {
        let versions = ["1.22.1", "nginx/1.22.1", "aria2 version 1.22.1", "ffmpeg version 1.22.1 Copyright (c) 2000"];
        assert!(versions.iter().all(|text| version(text) == "1.22.1"));
        assert_eq!(version("unknown"), "unknown");
        assert_eq!(minute("2026-11-22T20:05:50.166820537Z"), "2026-11-22 20:05 UTC");
        assert_eq!(minute("yesterday"), "yesterday");
    }
}
