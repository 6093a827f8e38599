//! The volumes of a store. The data directory is number 0; it alone has the catalog and `LOCK`'s protocol of runs.

use std::sync::Arc;

use crate::volume::Volume;

pub(crate) struct Volumes {
    /// In the order of their numbers.
    volumes: Vec<Arc<Volume>>,
}

impl Volumes {
    pub(crate) fn new(first: Arc<Volume>) -> Volumes {
        Volumes { volumes: vec![first] }
    }

    /// The data directory.
    pub(crate) fn first(&self) -> &Arc<Volume> {
        &self.volumes[0]
    }

    /// Those that are there, by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Volume>> {
        self.volumes.iter()
    }
}
