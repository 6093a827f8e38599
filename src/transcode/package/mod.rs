//! Manifests over the one CMAF set: pure functions from the catalog's rows to text.

pub mod hls;
