//! `reelring doctor --rebuild`: the catalog from the blobs' footers, for when it is lost or damaged.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use reelring_storage::{Error, Rebuild, RebuildProgress, RebuildReport};

use super::super::Place;
use super::super::display::{Display, Position};
use super::super::exit::{CliError, Result};
use super::super::output::{self, DIM, GREEN, Output, YELLOW};
use crate::config::Settings;
use crate::node;
use crate::transcode;

const SHOW_EVERY: Duration = Duration::from_millis(100);
/// Files printed one by one; `--json` has more of them.
const SHOWN: usize = 50;

/// Rebuilds, or only looks. What could not be taken up is a failure, told already.
pub(super) fn run(place: &Place, dry_run: bool, json: bool) -> Result<()> {
    let config = place.resolve(Settings::default())?;
    let rebuild = Rebuild {
        dir: config.data.clone(),
        volumes: config.volumes.clone(),
        node_migrations: node::MIGRATIONS,
        is_object: &|key| !transcode::is_part(key),
        stamp: Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string(),
        dry_run,
    };
    let display = Display::new(json);
    let mut shown = Instant::now();
    let report = rebuild.run(|RebuildProgress { files, bytes }| {
        if files == 1 || shown.elapsed() >= SHOW_EVERY {
            shown = Instant::now();
            display.show(&Position { what: "reading footers".into(), done: bytes, ..Position::default() });
        }
    });
    display.clear();
    let report = report.map_err(|error| match error {
        Error::Locked { .. } => {
            CliError::failed(format!("{error}. A catalog can be rebuilt only while nothing uses the directory"))
        }
        other => CliError::failed(format!("the catalog was not rebuilt, nothing was changed in blobs/: {other}")),
    })?;
    let mut out = Output::new();
    if json {
        out.json(&report)?
    } else {
        print(&mut out, &report)?
    }
    out.finish()?;
    if report.broken > 0 { Err(CliError::Told) } else { Ok(()) }
}

fn print(out: &mut Output, report: &RebuildReport) -> Result<()> {
    for left in report.left_out.iter().take(SHOWN) {
        let word = out.paint("left out", YELLOW);
        let path = left.path.display().to_string();
        out.line(&format!("{word}  {}: {}", output::clean(&path), output::clean(&left.reason)))?;
    }
    let left_out = report.superseded + report.broken + report.nameless;
    if left_out > SHOWN as u64 {
        out.line(&format!("… {left_out} in all; --json lists up to a thousand"))?;
    }
    let verb = if report.dry_run { "would restore" } else { "restored" };
    let RebuildReport { objects, bytes, files, superseded, broken, parts, nameless, .. } = report;
    let text = format!("{verb} {objects} objects with {} from {files} files", output::bytes(*bytes));
    out.line(&out.paint(&text, GREEN))?;
    out.line(&format!(
        "left out, and kept where they are: {superseded} older blobs of a key, {broken} with a damaged footer, {nameless} \
         without a key"
    ))?;
    out.line(&out.paint(
        &format!(
            "not restored: jobs, and renditions ({parts} files of them are kept); transcode again what is to be played"
        ),
        DIM,
    ))?;
    if let Some(old) = &report.old_catalog {
        out.line(&format!("the catalog there was is now {}", output::clean(&old.display().to_string())))?;
    }
    if !report.dry_run {
        out.line("only footers were read: `reelring scrub` compares the bytes too")?;
    }
    Ok(())
}
