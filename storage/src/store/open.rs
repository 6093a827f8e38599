//! Opening a store: locks, catalog, volumes, the taking over from the last run and the clearing up after it.
//!
//! The data directory decides: whatever fails there fails the opening. A volume beside it that fails is degraded or
//! absent, which the store tells and lives with.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use crate::bridge::Bridge;
use crate::catalog::Catalog;
use crate::catalog::run::{self, Takeover};
use crate::catalog::volumes;
use crate::clock;
use crate::error::{Error, Result};
use crate::id::BlobId;
use crate::limits::CATALOG_FILE;
use crate::sabotage::{self, Sabotage};
use crate::scrub::Scrub;
use crate::store::attach::{self, Extra, Here};
use crate::store::sweep;
use crate::store::volumes::{Absent, Volumes};
use crate::store::{Inner, Store, StoreOptions};
use crate::volume::health::Health;
use crate::volume::lock::{DirLock, Locked};
use crate::volume::quarantine;
use crate::volume::room::{Room, RoomLimits};
use crate::volume::{Volume, VolumeParts};

/// What an open store is made of.
pub(crate) struct Parts {
    pub(crate) dir: PathBuf,
    /// The data directory's id.
    pub(crate) id: BlobId,
    pub(crate) locked: Locked,
    pub(crate) catalog: Catalog,
    pub(crate) bridge: Bridge,
    pub(crate) health: Health,
    pub(crate) limits: RoomLimits,
    /// By number.
    pub(crate) extras: Vec<Extra>,
}

/// A volume that is there, and what its last user left behind.
struct Taken {
    volume: Arc<Volume>,
    clean: bool,
    runs: Vec<BlobId>,
}

impl Store {
    pub async fn open(options: StoreOptions) -> Result<Store> {
        let StoreOptions { dir, engine, node_migrations, room: limits, volumes: configured, direct_from } = options;
        let (dir, locked, catalog, health) = blocking(move || {
            make_directories(&dir)?;
            let locked = DirLock::take(&dir)?;
            // The engine's paths must not depend on the current directory.
            let dir = std::path::absolute(&dir).map_err(|e| Error::io("resolve", &dir, e))?;
            let health = Health::new(0, dir.clone());
            let catalog = Catalog::open(&dir.join(CATALOG_FILE), node_migrations, health.clone())?;
            Ok((dir, locked, catalog, health))
        })
        .await?;
        let known = catalog.read(volumes::all).await?;
        let parts = blocking(move || {
            let id = attach::data_id(&dir, &known)?;
            let extras = attach::attach(&dir, id, &configured, &known, engine)?;
            Ok(Parts { dir, id, locked, catalog, bridge: Bridge::start(engine)?, health, limits, extras })
        });
        let store = Store::assemble(parts.await?).await?;
        store.inner.volumes.iter().for_each(|volume| volume.direct.begin_at(direct_from));
        Ok(store)
    }

    /// The rest of opening: takes over from the last run, and clears up after it.
    pub(crate) async fn assemble(parts: Parts) -> Result<Store> {
        let Parts { dir, id, locked, catalog, bridge, health, limits, extras } = parts;
        let known = catalog.read(volumes::all).await?;
        let used = |number: u32| known.iter().find(|row| row.number == number).map_or(0, |row| row.bytes);
        let share = 1 + extras.iter().filter(|extra| extra.state.is_ok()).count();
        let claims = Arc::default();
        let take = |number, dir: PathBuf, takes_new, locked: Locked, bridge, health| {
            let Locked { lock, clean, runs } = locked;
            let room = Room::new(number, dir.clone(), limits, used(number));
            let (lock, claims) = (Some(lock), Arc::clone(&claims));
            let parts = VolumeParts { number, dir, takes_new, lock, bridge, health, room, claims, share };
            Taken { volume: Arc::new(Volume::new(parts)), clean, runs }
        };
        let mut rows = vec![(0, id, PathBuf::new())];
        let mut taken = vec![take(0, dir, true, locked, bridge, health)];
        let mut absent = Vec::new();
        for Extra { number, id, dir, takes_new, state } in extras {
            match state {
                Ok(Here { locked, bridge }) => {
                    rows.push((number, id, dir.clone()));
                    let health = Health::new(number, dir.clone());
                    taken.push(take(number, dir, takes_new, locked, bridge, health));
                }
                Err(reason) => {
                    let blobs = known.iter().find(|row| row.number == number).map_or(0, |row| row.blobs);
                    tracing::error!(
                        volume = number, dir = %dir.display(), %reason, blobs,
                        "a volume is missing: its blobs are refused until it is back and the node was started again"
                    );
                    absent.push(Absent { number, dir, reason, since_ms: clock::now_ms(), used: used(number) });
                }
            }
        }
        let run = BlobId::new();
        let last = take_over(&taken, &catalog, rows, run).await?;
        for Taken { volume, clean, runs } in &taken {
            let number = volume.number;
            let damaged = catalog.read(move |connection| quarantine::load(connection, number)).await?;
            volume.quarantine.keep(Arc::downgrade(volume), catalog.clone(), damaged);
            let swept = volume.number == 0
                || last.run.is_some_and(|last| runs.contains(&last))
                || sabotage::is(Sabotage::ReturnTrusted);
            let tidied = sweep::partials(volume, &catalog).await;
            if volume.number == 0 {
                tidied?;
            } else if let Err(error) = tidied {
                volume.health.degrade(&error);
            }
            if !(*clean && swept) && last.takeover.is_ours {
                let keep_before_ms = last.takeover.keep_before_ms;
                drop(volume.spawn(sweep::blobs(Arc::clone(volume), catalog.clone(), keep_before_ms)));
            }
        }
        let present = taken.into_iter().map(|taken| taken.volume).collect();
        let inner = Inner {
            volumes: Volumes::new(present, absent),
            catalog,
            open_blobs: Mutex::default(),
            writing: Arc::default(),
            recent: Default::default(),
            scrub: Scrub::default(),
            run,
            closed: AtomicBool::new(false),
        };
        Ok(Store { inner: Arc::new(inner) })
    }
}

/// The run before this one, as the catalog tells it.
struct Last {
    run: Option<BlobId>,
    takeover: Takeover,
}

/// Makes directories and catalog agree on who uses them now. The order is explained in `lock.rs`.
async fn take_over(taken: &[Taken], catalog: &Catalog, rows: Vec<(u32, BlobId, PathBuf)>, run: BlobId) -> Result<Last> {
    let (first, extras) = taken.split_first().expect("there is a data directory");
    let (volume, runs) = (&first.volume, first.runs.clone());
    let blobs_exist = sweep::any_blob(volume).await?;
    let last = catalog.read(run::last).await?;
    let both: Vec<BlobId> = last.filter(|last| runs.contains(last)).into_iter().chain([run]).collect();
    volume.note_running(&both).await?;
    let takeover = catalog.write(move |tx| {
        for (number, id, path) in &rows {
            volumes::note(tx, *number, *id, path)?;
        }
        run::take_over(tx, &runs, run, blobs_exist)
    });
    let takeover = takeover.await?;
    volume.note_running(&[run]).await?;
    if !takeover.is_ours {
        tracing::error!(
            dir = %volume.dir.display(),
            "the catalog is not the one this directory was last used with: objects stored since it was saved, or all \
             of them, are not listed. Their files in blobs/ are kept; stop the node and restore the right \
             {CATALOG_FILE}, or run `reelring doctor --rebuild`, to see them again"
        );
    }
    for Taken { volume, .. } in extras {
        // Without the note it names an older run than the catalog does, and is swept at the next start all the same.
        if let Err(error) = volume.note_running(&[run]).await {
            let error = volume.judge_write(error);
            tracing::warn!(%error, volume = volume.number, "the volume's LOCK does not tell who uses it");
        }
    }
    Ok(Last { run: last, takeover })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// The first thing that goes wrong for whoever starts a node, so it says what to do.
fn not_made(dir: &Path, path: &Path, error: std::io::Error) -> Error {
    let advice = match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "change its owner, run as another user, or choose another directory"
        }
        ErrorKind::AlreadyExists | ErrorKind::NotADirectory => "something else has that name: choose another directory",
        _ => return Error::io("make directory", path, error),
    };
    let reason = format!("could not make directory {}: {error}; {advice}", path.display());
    Error::VolumeRefused { dir: dir.into(), reason }
}

pub(crate) fn make_directories(dir: &Path) -> Result<()> {
    let is_new = !dir.exists();
    for path in [dir.to_owned(), dir.join("blobs"), dir.join("partial")] {
        std::fs::create_dir_all(&path).map_err(|e| not_made(dir, &path, e))?;
    }
    let sync = |path: &Path| std::fs::File::open(path)?.sync_all();
    sync(dir).map_err(|e| Error::io("sync", dir, e))?;
    match dir.parent() {
        // A directory above that may not be read cannot be synced; whoever set it up so will have seen to it.
        Some(parent) if is_new && !parent.as_os_str().is_empty() => drop(sync(parent)),
        _ => {}
    }
    Ok(())
}
