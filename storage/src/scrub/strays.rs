//! Files below `blobs/` that no row names: told, never touched. What is known to be debris the sweep of the next start
//! removes; what may be the only copy of something (`catalog/run.rs`) stays, and somebody should know of it.

use std::collections::HashSet;

use super::Watch;
use crate::catalog::volumes;
use crate::error::Result;
use crate::id::BlobId;
use crate::limits::{SCRUB_PAGE_ROWS, SCRUB_STRAYS_TOLD};
use crate::store::Store;
use crate::store::sweep;
use crate::volume::Volume;

#[derive(Default)]
pub(super) struct Strays {
    pub(super) count: u64,
    /// The paths of the first.
    pub(super) first: Vec<String>,
}

/// Looks through the tree, one directory at a time. Files younger than `before_ms` are somebody's work.
pub(super) async fn find(store: &Store, watch: &Watch, before_ms: u64) -> Result<Strays> {
    let mut strays = Strays::default();
    for volume in store.volumes().iter() {
        find_on(volume, store, watch, before_ms, &mut strays).await?;
    }
    Ok(strays)
}

async fn find_on(volume: &Volume, store: &Store, watch: &Watch, before_ms: u64, strays: &mut Strays) -> Result<()> {
    let number = volume.number;
    let journaled: HashSet<BlobId> = sweep::journaled(volume).await?.into_iter().collect();
    let root = volume.dir.join("blobs");
    let sorted = async |path: &std::path::Path| -> Result<Vec<String>> {
        let mut names = volume.bridge.list(path).await?;
        names.sort();
        Ok(names)
    };
    for parent in sorted(&root).await? {
        for leaf in sorted(&root.join(&parent)).await? {
            if watch.stopping() {
                return Ok(());
            }
            let names = sorted(&root.join(&parent).join(&leaf)).await?;
            for names in names.chunks(SCRUB_PAGE_ROWS) {
                let ids: Vec<Option<BlobId>> = names.iter().map(|name| name.parse().ok()).collect();
                // In this order: a blob leaves the unacknowledged only after its row is there.
                let candidates: Vec<BlobId> = ids
                    .iter()
                    .flatten()
                    .filter(|id| {
                        id.created_ms() < before_ms && !journaled.contains(id) && !volume.is_unacknowledged(**id)
                    })
                    .copied()
                    .collect();
                let unknown = store.catalog().read(move |connection| {
                    let mut unknown = HashSet::new();
                    for id in candidates {
                        if volumes::of_blob(connection, id)? != Some(number) {
                            unknown.insert(id);
                        }
                    }
                    Ok(unknown)
                });
                let mut unknown = unknown.await?;
                // Removed meanwhile: the row first, then the file.
                if !unknown.is_empty() {
                    let still: HashSet<String> =
                        volume.bridge.list(&root.join(&parent).join(&leaf)).await?.into_iter().collect();
                    unknown.retain(|id| still.contains(&id.to_string()));
                }
                for (name, id) in names.iter().zip(&ids) {
                    let is_stray = id.is_none_or(|id| unknown.contains(&id));
                    if is_stray {
                        strays.count += 1;
                        if strays.first.len() < SCRUB_STRAYS_TOLD {
                            strays.first.push(root.join(&parent).join(&leaf).join(name).display().to_string());
                        }
                    }
                }
            }
        }
    }
    Ok(())
}
