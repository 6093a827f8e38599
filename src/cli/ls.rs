//! `reelring ls [PREFIX]`.

use clap::Args;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::Place;
use super::client::Object;
use super::exit::Result;
use super::output::{self, Output};
use super::session;
use super::target::Absent;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  reelring ls                        every key, one per line
  reelring ls films/ -l              with size, time and type
  reelring ls --json | jq .length    one JSON object per line

The fields are key, length, etag, content_type and modified_at.")]
pub struct Ls {
    /// Only keys that start with this
    #[arg(default_value = "", hide_default_value = true)]
    prefix: String,
    /// Size, time and type too
    #[arg(short, long)]
    long: bool,
    /// One JSON object per line
    #[arg(long, conflicts_with = "long")]
    json: bool,
    #[command(flatten)]
    place: Place,
}

impl Ls {
    pub fn run(self) -> Result<()> {
        session::with(self.place.target(Absent::Refuse)?, async |session| {
            let mut output = Output::new();
            let mut after: Option<String> = None;
            loop {
                let (objects, next) = session.client.objects(&self.prefix, after.as_deref()).await?;
                self.print(&mut output, &objects)?;
                after = next;
                if after.is_none() {
                    return output.finish();
                }
                // A long list shows page by page, and a reader that has gone ends it.
                output.flush()?;
            }
        })
    }

    fn print(&self, output: &mut Output, objects: &[Object]) -> Result<()> {
        if self.long {
            let rows: Vec<_> = objects.iter().map(row).collect();
            return output::table(&rows).iter().try_for_each(|line| output.line(line));
        }
        for object in objects {
            if self.json { output.json(object)? } else { output.line(&output::clean(&object.key))? }
        }
        Ok(())
    }
}

fn row(object: &Object) -> Vec<String> {
    vec![
        format!("{:>11}", output::bytes(object.length)),
        object.modified_at.as_deref().map(local_time).unwrap_or_default(),
        output::clean(object.content_type.as_deref().unwrap_or("-")).into_owned(),
        output::clean(&object.key).into_owned(),
    ]
}

/// RFC 3339 as a short time of this machine's own zone.
pub fn local_time(text: &str) -> String {
    let Ok(time) = text.parse::<Timestamp>() else { return output::clean(text).into_owned() };
    time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string()
}
