//! `reelring config show|check`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::exit::{CliError, Result};
use super::output::{self, DIM, Output};
use super::serve::check_listen;
use crate::config::{Config as Resolved, Origins, Settings};
use crate::http::Tls;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  reelring config show                           every setting, and where its value came from
  reelring config show --json
  reelring config check --config reelring.toml   status 1 if a node would not start with it

Flags win over REELRING_* variables, those over the file, that over the defaults.")]
pub struct Config {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print every setting and where its value came from
    #[command(after_help = "Examples:\n  reelring config show\n  REELRING_LISTEN=127.0.0.1:9000 reelring config show")]
    Show {
        /// One JSON object: setting → value and origin
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        source: Source,
    },
    /// Check that a node could start with it
    #[command(after_help = "Examples:\n  reelring config check --config /etc/reelring.toml")]
    Check {
        #[command(flatten)]
        source: Source,
    },
}

#[derive(Debug, Args)]
struct Source {
    /// Configuration file [default: ./reelring.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data directory, as a flag of the other commands
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

impl Source {
    fn resolve(&self) -> Result<(Resolved, Origins)> {
        let flags = Settings { data: self.data.clone(), ..Settings::default() };
        Resolved::resolve(self.config.as_deref(), flags).map_err(|error| CliError::failed(error.to_string()))
    }
}

impl Config {
    pub fn run(self) -> Result<()> {
        let mut out = Output::new();
        match self.action {
            Action::Show { json, source } => {
                let (config, origins) = source.resolve()?;
                if json { out.json(&document(&config, &origins)?)? } else { show(&mut out, &config, &origins)? }
            }
            Action::Check { source } => {
                let (config, origins) = source.resolve()?;
                check_listen(&config).map_err(CliError::failed)?;
                Tls::of(&config).map_err(|error| CliError::failed(error.to_string()))?;
                let mut files: Vec<_> = origins.values().filter_map(|origin| origin.strip_prefix("file ")).collect();
                files.dedup();
                let from = files.first().map_or("no file is in use".into(), |file| format!("{file} is in use"));
                out.line(&format!("the configuration is valid; {from}"))?;
            }
        }
        out.finish()
    }
}

fn show(out: &mut Output, config: &Resolved, origins: &Origins) -> Result<()> {
    let Value::Object(document) = document(config, origins)? else { return Ok(()) };
    let rows: Vec<_> = document
        .into_iter()
        .map(|(name, entry)| {
            let value = match &entry["value"] {
                Value::Null => "-".to_string(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let origin = entry["origin"].as_str().unwrap_or_default().to_string();
            vec![name, output::clean(&value).into_owned(), out.paint(&origin, DIM)]
        })
        .collect();
    output::table(&rows).iter().try_for_each(|line| out.line(line))
}

/// `{"listen": {"value": "127.0.0.1:8080", "origin": "default"}, …}`
fn document(config: &Resolved, origins: &Origins) -> Result<Value> {
    let values = serde_json::to_value(config)
        .map_err(|error| CliError::failed(format!("the configuration cannot be shown: {error}")))?;
    let entry =
        |(name, origin): (&&str, &String)| (name.to_string(), json!({ "value": values[*name], "origin": origin }));
    Ok(Value::Object(origins.iter().map(entry).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_shown_with_its_origin() {
        let (config, origins) = Resolved::resolve(None, Settings::default()).unwrap();
        let document = document(&config, &origins).unwrap();
        let all = serde_json::to_value(&config).unwrap();
        for name in all.as_object().unwrap().keys() {
            assert!(document[name]["origin"].is_string(), "{name} has no origin");
        }
        assert!(document["listen"]["value"].is_string());
    }
}
