//! `reelring plugins ls`.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::Place;
use super::exit::Result;
use super::output::{self, GREEN, Output, RED};
use super::session;
use super::target::Absent;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  reelring plugins ls             the extractors in DIR/plugins, their state and last error
  reelring plugins ls --json      one JSON object per line

A plugin is a file plugins/NAME.js in the data directory. A running node takes up a changed
file by itself. One that does not load leaves the version before it in place, and its
error is shown here.")]
pub struct Plugins {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the loaded extractors
    #[command(after_help = "Examples:\n  reelring plugins ls\n  reelring plugins ls --json | jq .id")]
    Ls {
        /// One JSON object per line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Place,
    },
}

impl Plugins {
    pub fn run(self) -> Result<()> {
        let Action::Ls { json, place } = self.action;
        let list =
            session::with(place.target(Absent::Refuse)?, async |session| session.client.json("/v1/plugins").await)?;
        let mut out = Output::new();
        let plugins = list["plugins"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut rows = Vec::new();
        for plugin in plugins {
            if json { out.json(plugin)? } else { rows.push(row(plugin, &out)) }
        }
        if !rows.is_empty() {
            let header = ["STATE", "ID", "VERSION", "GENERATION", "MATCHES", "LAST ERROR"];
            rows.insert(0, header.map(String::from).to_vec());
        }
        output::table(&rows).iter().try_for_each(|line| out.line(line))?;
        out.finish()
    }
}

fn row(plugin: &Value, out: &Output) -> Vec<String> {
    let text = |field: &str| match &plugin[field] {
        Value::Null => "-".to_string(),
        Value::String(text) => output::clean(text).replace('\n', " "),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(|item| item.as_str().unwrap_or_default()).collect();
            output::clean(&items.join(" ")).into_owned()
        }
        other => other.to_string(),
    };
    let color = if plugin["last_error"].is_null() { GREEN } else { RED };
    let state = out.paint(&text("state"), color);
    vec![state, text("id"), text("version"), text("generation"), text("matches"), text("last_error")]
}
