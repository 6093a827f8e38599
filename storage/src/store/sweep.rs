//! Clearing up after a process that did not close its store.
//!
//! A partial without a journal belongs to nobody once its process is gone. A blob without a row was
//! sealed and never acknowledged, or its unlink did not happen. The blobs' sweep runs in the
//! background: it reads one leaf directory at a time and asks the catalog about one batch of names
//! at a time, so that neither memory nor the catalog's thread is held for long.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use crate::catalog::Catalog;
use crate::catalog::volumes;
use crate::clock;
use crate::error::{Error, Result};
use crate::id::BlobId;
use crate::volume::Volume;

/// Names looked up in one catalog request.
const LOOKUP_MAX: usize = 256;

/// Removes partials without a journal, and journals whose blob was committed.
pub(crate) async fn partials(volume: &Arc<Volume>, catalog: &Catalog) -> Result<()> {
    let names = volume.bridge.list(&volume.dir.join("partial")).await?;
    let journaled: HashSet<BlobId> = names.iter().filter_map(|name| journal_of(name)).collect();
    let mut committed = HashSet::new();
    for id in &journaled {
        let id = *id;
        if catalog.read(move |connection| volumes::of_blob(connection, id)).await?.is_some() {
            committed.insert(id);
        }
    }
    let mut debris = Vec::new();
    for name in &names {
        let id = journal_of(name).or_else(|| name.parse().ok());
        // What is not named as ours is not ours to delete.
        let Some(id) = id else { continue };
        if !journaled.contains(&id) || committed.contains(&id) {
            debris.push(volume.dir.join("partial").join(name));
        }
    }
    if !debris.is_empty() {
        tracing::info!(files = debris.len(), "removing what the last run left half written");
        volume.remove_files(&debris).await;
        if !committed.is_empty() {
            // As after a commit.
            volume.sync_directory(&volume.dir.join("partial")).await?;
        }
    }
    Ok(())
}

/// The journaled partials.
pub(crate) async fn journaled(volume: &Volume) -> Result<Vec<BlobId>> {
    let mut ids: Vec<BlobId> =
        volume.bridge.list(&volume.dir.join("partial")).await?.iter().filter_map(|name| journal_of(name)).collect();
    ids.sort();
    Ok(ids)
}

/// Whether anything was ever stored here.
pub(crate) async fn any_blob(volume: &Volume) -> Result<bool> {
    Ok(!volume.bridge.list(&volume.dir.join("blobs")).await?.is_empty())
}

/// Removes blobs that no row names, but none made before `keep_before_ms`.
pub(crate) async fn blobs(volume: Arc<Volume>, catalog: Catalog, keep_before_ms: u64) {
    match sweep_blobs(&volume, &catalog, keep_before_ms).await {
        Ok(0) | Err(Error::Closed) => {}
        Ok(removed) => tracing::info!(removed, "removed blobs that were never acknowledged"),
        Err(error) => {
            volume.leave_debris();
            tracing::warn!(%error, "the sweep for orphaned blobs stopped early; the next start repeats it")
        }
    }
}

async fn sweep_blobs(volume: &Arc<Volume>, catalog: &Catalog, keep_before_ms: u64) -> Result<usize> {
    let started_ms = clock::now_ms();
    let journaled: HashSet<BlobId> = journaled(volume).await?.into_iter().collect();
    let root = volume.dir.join("blobs");
    let mut removed = 0;
    for parent in volume.bridge.list(&root).await? {
        for leaf in volume.bridge.list(&root.join(&parent)).await? {
            let path = root.join(&parent).join(&leaf);
            let ids: Vec<BlobId> = volume
                .bridge
                .list(&path)
                .await?
                .iter()
                .filter_map(|name| name.parse::<BlobId>().ok())
                // Younger than the sweep: written by this process, which looks after it.
                .filter(|id| (keep_before_ms..started_ms).contains(&id.created_ms()) && !journaled.contains(id))
                .collect();
            for batch in ids.chunks(LOOKUP_MAX) {
                removed += remove_unknown(volume, catalog, batch.to_vec()).await?;
            }
            // What the last process removed may be back after a power cut just as well, and once this store is closed
            // nobody looks again. For a directory without changes this costs nothing.
            volume.sync_directory(&root.join(&parent).join(&leaf)).await?;
        }
    }
    Ok(removed)
}

async fn remove_unknown(volume: &Volume, catalog: &Catalog, ids: Vec<BlobId>) -> Result<usize> {
    // In this order: a blob leaves the unacknowledged only after its row is there.
    let candidates: Vec<BlobId> = ids.into_iter().filter(|id| !volume.is_unacknowledged(*id)).collect();
    let number = volume.number;
    let unknown = catalog.read(move |connection| {
        let mut unknown = Vec::new();
        for id in candidates {
            // A blob that was begun again elsewhere while this volume was away is not this one's.
            if volumes::of_blob(connection, id)? != Some(number) {
                unknown.push(id);
            }
        }
        Ok(unknown)
    });
    let paths: Vec<PathBuf> = unknown.await?.into_iter().map(|id| volume.blob_path(id)).collect();
    volume.remove_files(&paths).await;
    Ok(paths.len())
}

fn journal_of(name: &str) -> Option<BlobId> {
    name.strip_suffix(".journal")?.parse().ok()
}
