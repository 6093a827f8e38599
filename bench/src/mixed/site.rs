//! A server with the hot object and the cold set on it: whose, it does not matter.
//!
//! [`Objects`] owns open handles of the files behind a server's objects, by which they are made cold, and outlives the
//! server's process: it can be started anew on the same files. A [`Site`] borrows both. The files themselves belong to
//! whoever owns the folders.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;

use anyhow::{Context, anyhow};

use super::HOT_BYTES;
use crate::compare::node::{self, Node};
use crate::compare::peer::Peer;
use crate::compare::stop;

#[derive(Clone, Copy)]
pub struct Site<'a> {
    pub peer: &'a Peer,
    pub objects: &'a Objects,
}

pub struct Objects {
    pub hot: Object,
    pub cold: Vec<Object>,
    /// How many cold ones were begun so far: a pass goes on where the one before it stopped.
    pub begun: AtomicUsize,
}

/// One object of a server.
pub struct Object {
    /// The request's target.
    pub target: String,
    /// Where its bytes lie; a node's file is a little longer than they are.
    pub file: File,
}

/// What is to be on the server: the same on every one, by the same seeds.
pub struct Item {
    pub name: String,
    bytes: u64,
    seed: u64,
}

/// The hot object first, then the cold ones.
pub fn items(objects: u64, object_bytes: u64) -> Vec<Item> {
    let hot = Item { name: "hot".into(), bytes: HOT_BYTES, seed: 1 };
    let cold = (0..objects).map(|n| Item { name: format!("cold-{n}"), bytes: object_bytes, seed: n + 2 });
    std::iter::once(hot).chain(cold).collect()
}

impl Item {
    /// Its bytes as a file.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        node::noise_file(path, self.bytes, self.seed)
    }
}

impl Objects {
    /// Stores all items on a node whose data directory is `data`. `source` says where an item's bytes lie.
    pub fn of_node(
        node: &Node,
        data: &Path,
        items: &[Item],
        source: impl Fn(&Item) -> anyhow::Result<PathBuf>,
    ) -> anyhow::Result<Objects> {
        let blobs = |bytes| anyhow::Ok(node::blobs(data, bytes)?.into_iter().collect::<BTreeSet<PathBuf>>());
        let mut known = blobs(0)?;
        let store = |item: &Item| {
            stop::check()?;
            node.put(&item.name, &source(item)?)?;
            // Which blob is whose: the one that was not there before.
            let now = blobs(item.bytes)?;
            let mut new = now.difference(&known);
            let (Some(path), None) = (new.next(), new.next()) else {
                let Item { name, bytes, .. } = item;
                return Err(anyhow!("after {name} was stored there is not one new blob of {bytes} bytes below blobs/"));
            };
            let object = Object { target: node::object(&item.name), file: open(path)? };
            known.insert(path.clone());
            Ok(object)
        };
        Objects::of(items, store)
    }

    /// The items that lie as files below the root of a server of files.
    pub fn of_files(root: &Path, items: &[Item]) -> anyhow::Result<Objects> {
        Objects::of(items, |item| Ok(Object { target: format!("/{}", item.name), file: open(&root.join(&item.name))? }))
    }

    fn of(items: &[Item], mut object: impl FnMut(&Item) -> anyhow::Result<Object>) -> anyhow::Result<Objects> {
        let mut objects = items.iter().map(&mut object);
        let hot = objects.next().context("the hot object comes first")??;
        let cold = objects.collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Objects { hot, cold, begun: AtomicUsize::new(0) })
    }
}

fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| path.display().to_string())
}

/// The bytes of the hot object.
pub fn hot_bytes(items: &[Item], scratch: &Path) -> anyhow::Result<Vec<u8>> {
    let path = scratch.join("hot-bytes");
    items.first().context("the hot object comes first")?.write(&path)?;
    let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
    fs::remove_file(&path)?;
    Ok(bytes)
}
