//! `reelring sign`: an address that works without a token, for a while.

use clap::Args;
use reelring_storage::Key;
use serde_json::json;

use super::Place;
use super::exit::Result;
use super::output::Output;
use super::session;
use super::target::Absent;
use super::token::seconds;
use crate::transcode::AssetId;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  reelring sign films/a.mp4                     for reading, one hour
  reelring sign films/a.mp4 --expires 7d
  reelring sign incoming/b.mp4 --method PUT     for one upload by curl -T
  reelring sign --prefix films/                 everything under films/: add the rest before ?
  reelring sign --asset 0199c1…                 the page with a player, and all it plays

The address dies with the token that signed it. On the node's own machine it is signed in the
node's name.")]
#[command(group(clap::ArgGroup::new("what").required(true).args(["key", "prefix", "asset"])))]
pub struct Sign {
    /// Key of an object
    key: Option<Key>,
    /// Every object whose key begins with this, which ends with /
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// A transcoded asset
    #[arg(long, value_name = "ID")]
    asset: Option<AssetId>,
    /// GET (with HEAD), PUT or DELETE; may be given several times [default: GET]
    #[arg(long = "method", value_name = "METHOD")]
    methods: Vec<String>,
    /// How long it works, 90s, 15m, 12h or 30d for instance
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = seconds)]
    expires: u64,
    /// The answer as JSON: path, page, signature and expires_at
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

impl Sign {
    pub fn run(self) -> Result<()> {
        let methods = if self.methods.is_empty() { vec!["GET".to_string()] } else { self.methods };
        let mut body = json!({ "methods": methods, "expires_s": self.expires });
        for (name, value) in [
            ("key", self.key.map(|key| key.to_string())),
            ("prefix", self.prefix),
            ("asset", self.asset.map(String::from)),
        ] {
            if let Some(value) = value {
                body[name] = value.into();
            }
        }
        let (signed, address) = session::with(self.place.target(Absent::Refuse)?, async |session| {
            let signed = session.client.post_json("/v1/signatures", &body).await?;
            let path = signed["page"].as_str().or(signed["path"].as_str()).unwrap_or_default();
            let address = session.client.full_address(path);
            Ok((signed, address))
        })?;
        let mut out = Output::new();
        if self.json {
            out.json(&signed)?
        } else {
            out.line(&address)?
        }
        out.finish()
    }
}
