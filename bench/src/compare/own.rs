//! One engine beside itself, or beside itself made slower by a known share: how small a difference this machine can
//! tell right now.

use std::path::PathBuf;

use clap::Args;

use super::fio::{Engine, Rival, contest};
use super::result::{Section, Verdict};
use super::script::Source;
use super::statistics::NEGLIGIBLE;
use super::{Common, command_line, stop, table};
use crate::limits;

#[derive(Debug, Args)]
pub struct OwnArgs {
    /// A job file.
    #[arg(value_name = "JOBFILE")]
    file: PathBuf,
    #[arg(long, default_value = "bridge")]
    engine: Engine,
    /// Slow the first side down by this share, to see whether it is found: 10%.
    #[arg(long, value_parser = percent)]
    handicap: Option<f64>,
    /// Do it all so many times, and count the verdicts.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::REPEAT)))]
    repeat: u32,
    #[command(flatten)]
    pub common: Common,
}

pub fn compare(args: &OwnArgs) -> anyhow::Result<Section> {
    let scratch = args.common.scratch()?;
    let folder = scratch.path().canonicalize()?;
    let source = Source::read(&args.file, &folder, args.common.length())?;
    let slower: Vec<String> = args.handicap.iter().map(|share| format!("--handicap={share}%")).collect();
    let script = source.plain();
    let mut ours = Rival::ours(args.engine, &slower, &script, &folder)?;
    let mut theirs = Rival::ours(args.engine, &[], &script, &folder)?;
    match args.handicap {
        Some(share) => ours.name += &format!(" slowed by {share} %"),
        None => {
            ours.name += " A";
            theirs.name += " B";
        }
    }
    let mut section = Section {
        id: "self".to_owned(),
        title: "Reelring beside itself".to_owned(),
        command: command_line(),
        notes: Vec::new(),
        cases: Vec::new(),
    };
    let work = source.same_work(false);
    for repetition in 1..=args.repeat {
        let title = match args.repeat {
            1 => format!("{}/{}", source.name, args.engine.name()),
            _ => format!("{}/{}/{repetition}", source.name, args.engine.name()),
        };
        let case = contest(&title, &ours, &theirs, args.common.rounds(), work)?;
        if let Some(case) = &case
            && args.repeat > 1
        {
            eprintln!("{title}: {}", table::words(&case.speed));
        }
        section.cases.extend(case);
        if stop::asked() {
            break;
        }
    }
    section.notes.extend(conclusions(&section));
    Ok(section)
}

/// What the intervals and the verdicts say about the machine.
fn conclusions(section: &Section) -> Vec<String> {
    let cases = &section.cases;
    let mut notes = Vec::new();
    let widths: Vec<f64> = cases.iter().map(|case| (case.speed.high / case.speed.low).sqrt() - 1.0).collect();
    if let Some(width) = super::statistics::Spread::of(&widths) {
        let least = (width.median + NEGLIGIBLE) * 100.0;
        notes.push(format!(
            "the interval of the speed is ± {:.1} % wide: with so many rounds of this length the machine \
            can tell differences from about {least:.0} % right now",
            width.median * 100.0
        ));
    }
    if cases.len() > 1 {
        let all = [Verdict::NoDifference, Verdict::Loss, Verdict::Win, Verdict::TooFewRounds];
        let count = |verdict: Verdict| cases.iter().filter(|case| case.speed.verdict == verdict).count();
        let counts = all.into_iter().map(|verdict| (verdict, count(verdict))).filter(|(_, n)| *n > 0);
        let words = counts.map(|(verdict, n)| format!("{} in {n} of {}", verdict.words().to_lowercase(), cases.len()));
        notes.push(format!("speed: {}", words.collect::<Vec<_>>().join(", ")));
    }
    notes
}

/// "10%" or "10".
pub fn percent(text: &str) -> Result<f64, String> {
    let share: f64 = text.trim_end_matches('%').parse().map_err(|_| format!("{text:?} is no share: write 10%"))?;
    if share > 0.0 && share <= 90.0 { Ok(share) } else { Err(format!("{share} % is not over 0 and up to 90 %")) }
}
