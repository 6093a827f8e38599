//! `reelring token create|ls|revoke`: who may use the node.

use std::io::IsTerminal;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Place;
use super::exit::Result;
use super::ls::local_time;
use super::output::{self, Output};
use super::session;
use super::target::Absent;
use crate::access::Scopes;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  reelring token create ops --scope admin > ops.token    admins may do everything
  reelring token create web --scope read --expires 90d
  reelring token ls
  reelring token revoke web

The first token closes a node to everybody without one. Commands on the node's own machine need
none: whoever owns the data directory may do everything.")]
pub struct Token {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a token and print it: it is not shown again
    #[command(after_help = "\
Examples:
  reelring token create ops --scope admin
  reelring token create uploader --scope write --expires 30d
  reelring token create web --scope read --json            with the key that signs addresses

Use it as  curl -H \"Authorization: Bearer TOKEN\"  or as the password of any user in
http://user:TOKEN@HOST:8080/, and with --token-file or REELRING_TOKEN for reelring itself.")]
    Create {
        /// What to call it
        name: String,
        /// read, write or admin, or several: read,write
        #[arg(long, value_name = "SCOPES")]
        scope: Scopes,
        /// How long it works, 12h or 90d for instance [default: until it is revoked]
        #[arg(long, value_name = "TIME", value_parser = seconds)]
        expires: Option<u64>,
        /// The answer as JSON, with the key that signs addresses in the token's name
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Place,
    },
    /// List tokens, without anything that could be used
    #[command(after_help = "Examples:\n  reelring token ls\n  reelring token ls --json | jq -r .name")]
    Ls {
        /// One JSON object per line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Make a token worthless, and every address that it signed
    #[command(after_help = "Examples:\n  reelring token revoke web\n  reelring token revoke 3f1c2a9be07d4411")]
    Revoke {
        /// Name or id
        which: String,
        #[command(flatten)]
        place: Place,
    },
}

impl Token {
    pub fn run(self) -> Result<()> {
        let mut out = Output::new();
        match self.action {
            Action::Create { name, scope, expires, json, place } => {
                let body = json!({ "name": name, "scopes": scope, "expires_s": expires });
                let target = place.target(Absent::Create)?;
                let made: Value =
                    session::with(target, async |session| session.client.post_json("/v1/tokens", &body).await)?;
                if json {
                    out.json(&made)?;
                } else {
                    if std::io::stderr().is_terminal() {
                        eprintln!("Keep it now, it is not shown again:");
                    }
                    out.line(&output::clean(made["token"].as_str().unwrap_or_default()))?;
                }
            }
            Action::Ls { json, place } => {
                let target = place.target(Absent::Refuse)?;
                let list = session::with(target, async |session| session.client.json("/v1/tokens").await)?;
                let tokens = list["tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
                if json {
                    tokens.iter().try_for_each(|token| out.json(token))?;
                } else {
                    let rows: Vec<_> = tokens.iter().map(row).collect();
                    output::table(&rows).iter().try_for_each(|line| out.line(line))?;
                }
            }
            Action::Revoke { which, place } => {
                let target = place.target(Absent::Refuse)?;
                session::with(target, async |session| session.client.revoke_token(&which).await)?;
            }
        }
        out.finish()
    }
}

fn row(token: &Value) -> Vec<String> {
    let text = |name: &str| output::clean(token[name].as_str().unwrap_or_default()).into_owned();
    let scopes: Vec<_> = token["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let expires = token["expires_at"].as_str().map_or("until revoked".into(), |at| format!("until {}", local_time(at)));
    vec![text("id"), scopes.join(","), expires, text("name")]
}

/// `90s`, `15m`, `12h`, `30d`.
pub fn seconds(text: &str) -> std::result::Result<u64, String> {
    let parsed = text.char_indices().last().and_then(|(at, unit)| {
        let factor = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return None,
        };
        text[..at].parse::<u64>().ok()?.checked_mul(factor).filter(|seconds| *seconds > 0)
    });
    parsed.ok_or_else(|| format!("{text:?} is not a time: write 90s, 15m, 12h or 30d"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        assert_eq!([seconds("90s"), seconds("2h"), seconds("30d")], [Ok(90), Ok(7200), Ok(2_592_000)]);
        for bad in ["", "h", "10", "1w", "-1d", "0d", "99999999999999999999d", "1ü"] {
            assert!(seconds(bad).unwrap_err().contains("30d"), "{bad}");
        }
    }
}
