//! TLS towards origins: rustls on ring, certificates checked against the system's authorities.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, crypto::ring};

/// A configuration, and whether it knows any authority at all: without one every `https` origin would fail the
/// handshake with a message nobody could act on.
pub struct Tls {
    pub config: ClientConfig,
    pub has_roots: bool,
}

/// Reads the certificate files: call it off the async threads.
pub fn load() -> Result<Tls, rustls::Error> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a CA certificate of this machine cannot be read");
    }
    let mut roots = RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(found.certs);
    tracing::debug!(added, ignored, "loaded the system's CA certificates");
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Tls { config, has_roots: added > 0 })
}
