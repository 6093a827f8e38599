//! `reelring put FILE`: a file or standard input into an object.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use reelring_storage::Key;

use super::Place;
use super::client::Stored;
use super::display::{Display, Transfer};
use super::exit::{CliError, Result};
use super::output::{self, Output};
use super::resumable::{Parts, RESUMABLE_BYTES};
use super::session;
use super::source::Source;
use super::target::Absent;
use crate::media_type;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  reelring put film.mp4                          as film.mp4
  reelring put film.mp4 --key films/2024/a.mp4   under another key
  pg_dump shop | reelring put - --key shop.sql   from standard input

When the command ends with status 0 the object is on disk and survives a power cut.
Its key is printed.")]
pub struct Put {
    /// File to store, - for standard input
    file: PathBuf,
    /// Key of the object [default: the file's name]
    #[arg(short, long)]
    key: Option<Key>,
    /// Media type [default: from the key's extension]
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// Fail if an object with this key exists
    #[arg(long)]
    no_replace: bool,
    /// Print the stored object as JSON
    #[arg(long)]
    json: bool,
    /// No progress, no summary
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    place: Place,
}

impl Put {
    pub fn run(self) -> Result<()> {
        let key = match self.key {
            Some(key) => key,
            None => key_of(&self.file)?,
        };
        let content_type = self.content_type.as_deref().or_else(|| media_type::by_name(key.as_str()));
        let source = Source::open(&self.file)?;
        let length = source.length;
        let display = Display::new(self.quiet || self.json);
        let begun = Instant::now();
        let stored = session::with(self.place.target(Absent::Create)?, async |session| {
            let mut transfer = Transfer::new(display.clone(), "storing".into(), length);
            if let Some(length) = length.filter(|length| *length >= RESUMABLE_BYTES)
                && session.client.address().is_some()
                && let Some(upload) =
                    session.client.begin_upload(&key, length, content_type, !self.no_replace).await?
            {
                let parts = Parts::new(&self.file, length, move |bytes| transfer.add(bytes));
                return tokio::select! {
                    stored = session.client.finish_upload(&upload, &key, &parts) => compare(&key, stored?, parts.hash()),
                    () = session.interrupt.cancelled() => {
                        session.client.drop_upload(&upload).await;
                        Err(CliError::Interrupted(format!("{key} was not stored; what was sent is discarded")))
                    }
                };
            }
            let (body, hash) = source.stream(move |bytes| transfer.add(bytes))?;
            let stored = tokio::select! {
                stored = session.client.put_object(&key, length, content_type, !self.no_replace, body) => stored?,
                () = session.interrupt.cancelled() => {
                    return Err(CliError::Interrupted(format!("{key} was not stored; what was sent is discarded")));
                }
            };
            compare(&key, stored, hash.await.ok())
        })
        .inspect_err(|_| display.clear())?;
        display.clear();
        let verb = if stored.created { "stored" } else { "replaced" };
        let bytes = output::bytes(stored.object.length);
        display.say(&format!("{verb} {bytes} in {}", output::duration(begun.elapsed())));
        let mut out = Output::new();
        if self.json {
            out.json(&stored.object)?
        } else {
            out.line(key.as_str())?
        }
        out.finish()
    }
}

/// Whether the node has what was sent.
fn compare(key: &Key, stored: Stored, sent: Option<blake3::Hash>) -> Result<Stored> {
    let Some(hash) = sent else {
        return Err(CliError::failed(format!(
            "the node acknowledged {key} before all of it was read; run the command again"
        )));
    };
    match &stored.blake3 {
        Some(kept) if kept != hash.to_hex().as_str() => Err(CliError::failed(format!(
            "the node stored other bytes under {key} than were sent: BLAKE3 {kept} instead of {hash}; check the \
             machine's memory and the way to the node, then store it again"
        ))),
        _ => Ok(stored),
    }
}

/// The file's own name as a key.
fn key_of(file: &Path) -> Result<Key> {
    if file == Path::new("-") {
        return Err(CliError::usage("standard input has no name; give one with --key KEY"));
    }
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    Key::parse(name).map_err(|error| {
        CliError::usage(format!("the name of {} cannot be a key: {error}; give one with --key KEY", file.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_defaults_to_the_name() {
        assert_eq!(key_of(Path::new("/a/b/film.mp4")).unwrap().as_str(), "film.mp4");
        for path in ["-", "/", "a/.."] {
            assert!(key_of(Path::new(path)).unwrap_err().to_string().contains("--key KEY"), "{path}");
        }
    }
}
