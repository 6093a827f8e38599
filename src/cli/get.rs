//! `reelring get KEY`: an object into a file or to standard output, checked against its BLAKE3.
//!
//! A file is written beside its destination under a temporary name and renamed when all of it is there and its hash
//! is right, so a file under its own name is always whole. On an error or Ctrl-C the temporary file is removed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use futures_util::StreamExt;
use reelring_storage::Key;

use super::Place;
use super::client::Download;
use super::display::{Display, Transfer};
use super::exit::{CliError, Result};
use super::output;
use super::session::{self, Session};
use super::target::Absent;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  reelring get films/a.mp4                   into ./a.mp4; an existing file is not replaced
  reelring get films/a.mp4 -o /tmp/b.mp4     into that file, replacing it
  reelring get films/a.mp4 -o /tmp           into /tmp/a.mp4
  reelring get films/a.mp4 -o - | ffplay -   to standard output

The bytes are checked against the object's BLAKE3; a file appears only when all are right.")]
pub struct Get {
    /// Key of the object
    key: Key,
    /// File or folder to write to, - for standard output [default: the last part of KEY in the current folder]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace an existing file without -o too
    #[arg(short, long)]
    force: bool,
    /// No progress
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    place: Place,
}

impl Get {
    pub fn run(self) -> Result<()> {
        let destination = Destination::choose(&self.key, self.output.as_deref(), self.force)?;
        let display = Display::new(self.quiet);
        session::with(self.place.target(Absent::Refuse)?, async |session| {
            save(session, &self.key, &destination, &display).await
        })
    }
}

/// Where the bytes go.
#[derive(Debug, PartialEq)]
pub enum Destination {
    Stdout,
    /// A file that appears whole. `replace` tells whether it may take the place of another.
    File {
        path: PathBuf,
        replace: bool,
    },
    /// A device or pipe: nothing to rename.
    Direct(PathBuf),
}

impl Destination {
    pub fn choose(key: &Key, output: Option<&Path>, force: bool) -> Result<Destination> {
        let name = key.as_str().rsplit('/').next().unwrap_or_default();
        let path = match output {
            Some(path) if path == Path::new("-") => return Ok(Destination::Stdout),
            Some(path) if path.is_dir() => path.join(name),
            Some(path) => {
                return Ok(match fs::metadata(path) {
                    Ok(found) if !found.is_file() => Destination::Direct(path.into()),
                    _ => Destination::File { path: path.into(), replace: true },
                });
            }
            None => PathBuf::from(name),
        };
        if name.is_empty() {
            return Err(CliError::usage(format!("the key {key} ends in / and names no file; name one with -o FILE")));
        }
        if !force && path.symlink_metadata().is_ok() {
            return Err(exists(&path));
        }
        Ok(Destination::File { path, replace: force })
    }
}

fn exists(path: &Path) -> CliError {
    CliError::failed(format!(
        "{} exists already and was left alone; replace it with --force, or name another file with -o FILE",
        path.display()
    ))
}

/// Copies the object to its destination.
pub async fn save(session: &Session, key: &Key, destination: &Destination, display: &Display) -> Result<()> {
    let download = session.client.get_object(key).await?;
    let transfer = Transfer::new(display.clone(), "reading".into(), download.length);
    let outcome = match destination {
        Destination::Stdout => {
            receive(session, key, download, transfer, &mut io::stdout().lock(), "standard output").await
        }
        Destination::Direct(path) => match OpenOptions::new().write(true).open(path) {
            Ok(mut file) => receive(session, key, download, transfer, &mut file, &path.display().to_string()).await,
            Err(error) => Err(cannot_write(path, &error)),
        },
        Destination::File { path, replace } => {
            let partial = Partial::create(path)?;
            let name = path.display().to_string();
            match receive(session, key, download, transfer, &mut &partial.file, &name).await {
                Ok(()) => partial.publish(path, *replace),
                Err(error) => Err(error),
            }
        }
    };
    display.clear();
    outcome
}

async fn receive(
    session: &Session,
    key: &Key,
    mut download: Download,
    mut transfer: Transfer,
    sink: &mut impl Write,
    name: &str,
) -> Result<()> {
    let mut hasher = blake3::Hasher::new();
    let mut received = 0u64;
    loop {
        let chunk = tokio::select! {
            chunk = download.body.next() => chunk,
            () = session.interrupt.cancelled() => {
                let so_far = output::bytes(received);
                return Err(CliError::Interrupted(format!("{key} was not copied to {name}: stopped after {so_far}")));
            }
        };
        let Some(chunk) = chunk else { break };
        let chunk = chunk.map_err(|error| {
            CliError::failed(format!("reading {key} broke off after {received} bytes: {error}; run the command again"))
        })?;
        hasher.update(&chunk);
        received += chunk.len() as u64;
        sink.write_all(&chunk).map_err(|error| told(name, error))?;
        transfer.add(chunk.len() as u64);
    }
    sink.flush().map_err(|error| told(name, error))?;
    if let Some(length) = download.length
        && length != received
    {
        return Err(CliError::failed(format!(
            "{key} has {length} bytes but {received} arrived; run the command again"
        )));
    }
    let hash = hasher.finalize().to_hex();
    match &download.blake3 {
        Some(expected) if expected != hash.as_str() => Err(CliError::failed(format!(
            "the bytes of {key} are not what was stored: their BLAKE3 is {hash}, it should be {expected}; run the \
             command again, and `reelring doctor` if it happens again"
        ))),
        _ => Ok(()),
    }
}

fn told(name: &str, error: io::Error) -> CliError {
    match name {
        "standard output" => CliError::Output(error),
        _ => CliError::failed(format!("cannot write {name}: {error}")),
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> CliError {
    CliError::failed(format!("cannot write {}: {error}", path.display()))
}

/// A file on its way. Removed on drop unless published.
struct Partial {
    file: File,
    path: PathBuf,
    done: bool,
}

impl Partial {
    /// In the destination's own folder, so that the rename stays on one file system.
    fn create(destination: &Path) -> Result<Partial> {
        let folder = destination.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let path = folder.join(format!(".reelring-{}-{:08x}.part", std::process::id(), rand::random::<u32>()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|error| cannot_write(destination, &error))?;
        Ok(Partial { file, path, done: false })
    }

    fn publish(mut self, destination: &Path, replace: bool) -> Result<()> {
        let renamed = if replace {
            fs::rename(&self.path, destination)
        } else {
            // Unlike a rename, a link fails when somebody made the file in the meantime.
            fs::hard_link(&self.path, destination).and_then(|()| fs::remove_file(&self.path))
        };
        match renamed {
            Ok(()) => {
                self.done = true;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(exists(destination)),
            // FAT and some network file systems have no hard links.
            Err(_) if !replace && destination.symlink_metadata().is_err() => self.publish(destination, true),
            Err(error) => Err(cannot_write(destination, &error)),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::parse(text).unwrap()
    }

    #[test]
    fn destinations_are_what_users_of_curl_expect() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("there.mp4");
        fs::write(&file, "old").unwrap();
        let choose = |output: &Path, force| Destination::choose(&key("films/there.mp4"), Some(output), force);
        assert_eq!(choose(Path::new("-"), false).unwrap(), Destination::Stdout);
        assert_eq!(choose(&file, false).unwrap(), Destination::File { path: file.clone(), replace: true });
        let device = Path::new("/dev/null");
        assert_eq!(choose(device, false).unwrap(), Destination::Direct(device.into()), "never renamed over");
        let message = choose(dir.path(), false).unwrap_err().to_string();
        assert!(message.contains("exists already") && message.contains("--force"), "{message}");
        assert_eq!(choose(dir.path(), true).unwrap(), Destination::File { path: file, replace: true });
    }

    #[test]
    fn a_partial_file_leaves_nothing_behind_and_respects_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        drop(Partial::create(&path).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        let partial = Partial::create(&path).unwrap();
        fs::write(&path, "somebody else's").unwrap();
        assert!(partial.publish(&path, false).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"somebody else's");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

        let partial = Partial::create(&path).unwrap();
        (&partial.file).write_all(b"mine").unwrap();
        partial.publish(&path, true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }
}
