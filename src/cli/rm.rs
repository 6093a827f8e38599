//! `reelring rm KEY…`.

use clap::Args;
use reelring_storage::Key;

use super::Place;
use super::exit::{CliError, Result};
use super::session;
use super::target::Absent;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  reelring rm films/a.mp4
  reelring rm a.mp4 b.mp4 -f                     no error if one is not there
  reelring ls old/ | xargs -d '\\n' reelring rm   everything under old/

Renditions made from an object stay playable.")]
pub struct Rm {
    /// Keys of the objects
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<Key>,
    /// An object that is not there is no error
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    place: Place,
}

impl Rm {
    pub fn run(self) -> Result<()> {
        let missing = session::with(self.place.target(Absent::Refuse)?, async |session| {
            let mut missing = Vec::new();
            for key in &self.keys {
                if session.interrupt.is_cancelled() {
                    return Err(CliError::Interrupted(format!("stopped before {key}; what came before it is deleted")));
                }
                if !session.client.delete_object(key).await? {
                    missing.push(key.to_string());
                }
            }
            Ok(missing)
        })?;
        if missing.is_empty() || self.force {
            return Ok(());
        }
        Err(CliError::failed(format!("there is no object {}; `reelring ls` shows those there are", missing.join(", "))))
    }
}
