//! The plugins directory in memory: one slot per file, each with the generation at work and what is wrong with the file.
//!
//! A scan compares the directory with the slots and loads what changed, each file in a task of its own, so that a plugin
//! that hangs while loading holds up no other. The new generation replaces the old one only when it is whole; until then,
//! and for ever if it is broken, the old one answers. A file that changes again while it loads is loaded anew and the
//! older load is abandoned with its worker.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use reelring_protocol::plugin::limits as bounds;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinHandle};
use url::Url;

use super::manifest::is_id;
use super::supervisor::Generation;
use super::{Home, PluginState, PluginStatus};
use crate::error::{Failure, FailureKind};
use crate::limits;

#[derive(Debug)]
pub struct Registry {
    dir: PathBuf,
    home: Home,
    slots: RwLock<Slots>,
    generations: AtomicU64,
    loading: Semaphore,
}

#[derive(Debug, Default)]
struct Slots {
    files: BTreeMap<String, Slot>,
    /// Why the directory cannot be read.
    problem: Option<String>,
}

#[derive(Debug)]
struct Slot {
    seen: Seen,
    live: Option<Arc<Generation>>,
    problem: Option<String>,
    load: Option<AbortHandle>,
    /// The load failed for a reason outside the file, so that the next scan tries again.
    retry: bool,
}

/// What one look at the directory says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    /// A plugin, and what tells this text from the next.
    Plugin(Fingerprint),
    Ignored(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Fingerprint {
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Fingerprint {
    fn from(meta: &Metadata) -> Fingerprint {
        Fingerprint {
            inode: meta.ino(),
            length: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// The loads that a scan began.
pub struct Loads(Vec<JoinHandle<()>>);

impl Loads {
    pub async fn finished(self) {
        for load in self.0 {
            // An abandoned load is finished too.
            let _ = load.await;
        }
    }
}

impl Registry {
    pub fn new(dir: PathBuf, home: Home) -> Registry {
        if let Err(error) = fs::create_dir_all(&dir) {
            tracing::warn!("cannot make the plugins directory {}: {error}", dir.display());
        }
        let loading = Semaphore::new(limits::PLUGINS_LOADING);
        Registry { dir, home, slots: RwLock::default(), generations: AtomicU64::new(0), loading }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    // A panic while the lock is held leaves no half-made state: every change below is one assignment.
    fn read(&self) -> RwLockReadGuard<'_, Slots> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Slots> {
        self.slots.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn claiming(&self, url: &Url) -> Option<Arc<Generation>> {
        let slots = self.read();
        let mut live = slots.files.values().filter_map(|slot| slot.live.as_ref());
        live.find(|generation| generation.manifest.claims(url)).cloned()
    }

    pub fn clear(&self) {
        let mut slots = self.write();
        slots.files.values().filter_map(|slot| slot.load.as_ref()).for_each(AbortHandle::abort);
        slots.files.clear();
    }

    /// Looks at the directory, forgets what is gone and begins to load what is new or changed.
    pub async fn scan(self: &Arc<Self>) -> Loads {
        let dir = self.dir.clone();
        let looked = tokio::task::spawn_blocking(move || look(&dir)).await.map_err(io::Error::other).flatten();
        let mut loads = Vec::new();
        let mut slots = self.write();
        let found = match looked {
            Ok(found) => found,
            Err(error) => {
                let problem = format!("cannot read the plugins directory: {error}");
                if slots.problem.as_ref() != Some(&problem) {
                    tracing::warn!("{}: {problem}", self.dir.display());
                }
                slots.problem = Some(problem);
                return Loads(loads);
            }
        };
        slots.problem = None;
        slots.files.retain(|file, slot| {
            let stays = found.contains_key(file);
            if !stays {
                slot.load.iter().for_each(AbortHandle::abort);
                tracing::info!("plugin {file} is gone and unloaded");
            }
            stays
        });
        if self.home.shutdown.is_cancelled() {
            return Loads(loads);
        }
        for (file, seen) in found {
            if slots.files.get(&file).is_some_and(|slot| slot.seen == seen && !slot.retry) {
                continue;
            }
            let slot = slots.files.entry(file.clone()).or_insert_with(|| Slot {
                seen: seen.clone(),
                live: None,
                problem: None,
                load: None,
                retry: false,
            });
            slot.seen = seen.clone();
            slot.retry = false;
            slot.load.take().iter().for_each(AbortHandle::abort);
            match seen {
                // What used to be a plugin under this name no longer is one.
                Seen::Ignored(_) => (slot.live, slot.problem) = (None, None),
                Seen::Plugin(fingerprint) => {
                    let load = self.home.tracker.spawn(self.clone().load(file, fingerprint));
                    slot.load = Some(load.abort_handle());
                    loads.push(load);
                }
            }
        }
        Loads(loads)
    }

    async fn load(self: Arc<Self>, file: String, fingerprint: Fingerprint) {
        let path = self.dir.join(&file);
        let text = tokio::task::spawn_blocking(move || read_plugin(&path)).await.map_err(|error| error.to_string());
        let outcome = match text.flatten() {
            Ok(text) if self.is_live(&file, &text) => Ok(None),
            Ok(text) => self.generation(&file, text).await.map(Some),
            Err(problem) => Err(Failure::permanent(problem)),
        };
        let mut slots = self.write();
        let taken = outcome.as_ref().ok().and_then(Option::as_ref).and_then(|new| {
            let id = &new.manifest.id;
            let other = slots
                .files
                .iter()
                .find(|(name, slot)| **name != file && slot.live.as_ref().is_some_and(|live| live.manifest.id == *id));
            other.map(|(name, _)| {
                Failure::permanent(format!("the id {id} belongs to {name} already; give this plugin another one"))
            })
        });
        let Some(slot) = slots.files.get_mut(&file) else { return };
        // The file changed again: another load is on its way.
        if slot.seen != Seen::Plugin(fingerprint) {
            return;
        }
        slot.load = None;
        match (outcome, taken) {
            (Ok(None), _) => slot.problem = None,
            (Ok(Some(new)), None) => {
                let (id, version, number) = (&new.manifest.id, &new.manifest.version, new.number);
                tracing::info!("plugin {id} {version} is loaded from {file}, generation {number}");
                slot.live = Some(Arc::new(new));
                slot.problem = None;
            }
            (Err(problem), _) | (Ok(Some(_)), Some(problem)) => {
                let kept = if slot.live.is_some() { "; the version before it stays at work" } else { "" };
                tracing::warn!("plugin {file} cannot be loaded: {problem}{kept}");
                slot.retry = problem.kind == FailureKind::Transient;
                slot.problem = Some(problem.message);
            }
        }
    }

    fn is_live(&self, file: &str, text: &str) -> bool {
        self.read().files.get(file).and_then(|slot| slot.live.as_ref()).is_some_and(|live| *live.source == *text)
    }

    async fn generation(&self, file: &str, text: String) -> Result<Generation, Failure> {
        let _slot = self.loading.acquire().await.map_err(|error| Failure::transient(error.to_string()))?;
        let number = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
        Generation::load(self.home.clone(), file, text.into(), number).await
    }

    pub fn list(&self) -> Vec<PluginStatus> {
        let slots = self.read();
        let directory = slots.problem.as_ref().map(|problem| PluginStatus {
            id: String::new(),
            file: self.dir.display().to_string(),
            version: None,
            generation: None,
            matches: Vec::new(),
            state: PluginState::Broken,
            last_error: Some(problem.clone()),
        });
        directory.into_iter().chain(slots.files.iter().map(|(file, slot)| self.status(file, slot))).collect()
    }

    fn status(&self, file: &str, slot: &Slot) -> PluginStatus {
        let manifest = slot.live.as_ref().map(|live| &live.manifest);
        let state = match (&slot.seen, &slot.live) {
            (Seen::Ignored(_), _) => PluginState::Ignored,
            (_, Some(_)) => PluginState::Ready,
            _ if slot.load.is_some() => PluginState::Loading,
            _ if self.home.worker.require().is_err() => PluginState::Unavailable,
            _ => PluginState::Broken,
        };
        let ignored = match &slot.seen {
            Seen::Ignored(reason) => Some(reason.clone()),
            Seen::Plugin(_) => None,
        };
        PluginStatus {
            id: manifest.map_or_else(|| stem(file).to_owned(), |manifest| manifest.id.clone()),
            file: file.to_owned(),
            version: manifest.map(|manifest| manifest.version.clone()),
            generation: slot.live.as_ref().map(|live| live.number),
            matches: manifest
                .map(|manifest| manifest.matches.iter().map(ToString::to_string).collect())
                .unwrap_or_default(),
            state,
            last_error: ignored.or_else(|| slot.problem.clone()),
        }
    }
}

fn stem(file: &str) -> &str {
    file.rsplit_once('.').map_or(file, |(stem, _)| stem)
}

/// The files of the directory. Hidden ones, as editors leave them while they write, are passed over in silence.
fn look(dir: &Path) -> io::Result<BTreeMap<String, Seen>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || name.ends_with('~') {
            continue;
        }
        let plugins = found.values().filter(|seen| matches!(seen, Seen::Plugin(_))).count();
        let seen = match entry.metadata() {
            Ok(meta) => judge(&name, &meta, plugins),
            // Gone since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => Seen::Ignored(format!("it cannot be looked at: {error}")),
        };
        found.insert(name, seen);
        if found.len() >= 4 * limits::PLUGINS {
            break;
        }
    }
    Ok(found)
}

fn judge(name: &str, meta: &Metadata, plugins: usize) -> Seen {
    let ignored = |reason: String| Seen::Ignored(reason);
    if meta.is_symlink() {
        return ignored("symbolic links are not followed; put the file itself here".into());
    }
    if !meta.is_file() {
        return ignored("it is not a file".into());
    }
    match name.rsplit_once('.') {
        Some((_, "ts")) => {
            return ignored("TypeScript is not compiled yet; save the compiled plugin here as a .js file".into());
        }
        Some((stem, "js")) if is_id(stem) => {}
        Some((_, "js")) => {
            return ignored("the name must consist of 1 to 64 letters, digits, `-`, `_` or `.` before .js".into());
        }
        _ => return ignored("plugins are .js files".into()),
    }
    if meta.len() > bounds::SOURCE_BYTES as u64 {
        return ignored(format!("it has {} bytes, the limit is {}", meta.len(), bounds::SOURCE_BYTES));
    }
    if plugins >= limits::PLUGINS {
        return ignored(format!("there are {} plugins already, which is the limit", limits::PLUGINS));
    }
    Seen::Plugin(Fingerprint::from(meta))
}

/// The plugin's text. Whatever has taken the file's place since it was looked at is not followed and not waited for.
fn read_plugin(path: &Path) -> Result<String, String> {
    let open = || -> io::Result<Vec<u8>> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let mut bytes = Vec::new();
        file.take(bounds::SOURCE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = open().map_err(|error| format!("it cannot be read: {error}"))?;
    if bytes.len() > bounds::SOURCE_BYTES {
        return Err(format!("it has more than {} bytes", bounds::SOURCE_BYTES));
    }
    String::from_utf8(bytes).map_err(|error| format!("it is not UTF-8: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_js_files_are_plugins() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in
            ["good.js", "site.v2.js", "typed.ts", "notes.txt", ".hidden.js", "saved.js~", "bad name.js", "-x.js"]
        {
            fs::write(at(name), "x").unwrap();
        }
        fs::write(at("long.js"), vec![b' '; bounds::SOURCE_BYTES + 1]).unwrap();
        fs::create_dir(at("folder.js")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", at("link.js")).unwrap();
        let found = look(dir.path()).unwrap();
        let reason = |name: &str| match &found[name] {
            Seen::Ignored(reason) => reason.clone(),
            Seen::Plugin(_) => "plugin".into(),
        };
        assert!(!found.contains_key(".hidden.js") && !found.contains_key("saved.js~"));
        assert_eq!((reason("good.js"), reason("site.v2.js")), ("plugin".into(), "plugin".into()));
        assert!(reason("typed.ts").contains("TypeScript"));
        assert!(reason("notes.txt").contains(".js files"));
        assert!(reason("bad name.js").contains("the name must") && reason("-x.js").contains("the name must"));
        assert!(reason("long.js").contains("1048577 bytes, the limit is 1048576"));
        assert!(reason("folder.js").contains("not a file"));
        assert!(reason("link.js").contains("symbolic"));
        assert!(read_plugin(&at("link.js")).is_err(), "a link is not followed even if it slips in late");
    }

    #[test]
    fn one_plugin_too_many_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..=limits::PLUGINS {
            fs::write(dir.path().join(format!("p{number}.js")), "").unwrap();
        }
        let found = look(dir.path()).unwrap();
        let ignored: Vec<_> = found.values().filter(|seen| matches!(seen, Seen::Ignored(_))).collect();
        assert_eq!(ignored.len(), 1);
    }
}
