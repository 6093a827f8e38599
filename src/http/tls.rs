//! TLS for the listener: rustls on ring, TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN.
//!
//! [`Tls`] owns the certificate in use. A reload reads both files and takes them only if they fit together; connections
//! keep what they began with. The key is never shown, not even in part.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::admission::Requests;
use super::linger::Linger;
use super::patience::Patience;
use crate::config::Config;
use crate::limits;

/// The first byte of a TLS client.
const HANDSHAKE: u8 = 0x16;
pub(super) const HTTP2: &[u8] = b"h2";

pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    current: RwLock<Arc<ServerConfig>>,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("tls_cert and tls_key belong together: one of them is missing")]
    Half,
    #[error("{setting} {path} cannot be read: {source}")]
    Read { setting: &'static str, path: PathBuf, source: io::Error },
    #[error("{setting} {path} has no {wanted} in PEM: {reason}")]
    Content { setting: &'static str, path: PathBuf, wanted: &'static str, reason: String },
    #[error("the certificate {certificate} and the key {key} cannot be used: {source}; do they belong together?")]
    Pair { certificate: PathBuf, key: PathBuf, source: rustls::Error },
}

impl Tls {
    /// The certificate that the configuration names, if it names one.
    pub fn of(config: &Config) -> Result<Option<Tls>, TlsError> {
        match (&config.tls_cert, &config.tls_key) {
            (None, None) => Ok(None),
            (Some(certificate), Some(key)) => {
                let current = RwLock::new(load(certificate, key)?);
                Ok(Some(Tls { certificate: certificate.clone(), key: key.clone(), current }))
            }
            _ => Err(TlsError::Half),
        }
    }

    /// Takes what lies in the files now for connections to come.
    pub fn reload(&self) -> Result<(), TlsError> {
        let config = load(&self.certificate, &self.key)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone().into()
    }

    /// For a connection with one request, which HTTP/1.1 is enough for.
    pub(super) fn acceptor_of_one_request(&self) -> TlsAcceptor {
        let mut config = ServerConfig::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        config.alpn_protocols.retain(|name| name != HTTP2);
        Arc::new(config).into()
    }
}

fn load(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let bad =
        |setting, path: &Path, wanted, reason: String| TlsError::Content { setting, path: path.into(), wanted, reason };
    let pem = contents("tls_cert", certificate)?;
    let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| bad("tls_cert", certificate, "certificate", error.to_string()))?;
    if chain.is_empty() {
        return Err(bad("tls_cert", certificate, "certificate", "no section begins with BEGIN CERTIFICATE".into()));
    }
    let pem = contents("tls_key", key)?;
    let private =
        PrivateKeyDer::from_pem_slice(&pem).map_err(|error| bad("tls_key", key, "private key", error.to_string()))?;
    let pair = |source| TlsError::Pair { certificate: certificate.into(), key: key.into(), source };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(pair)?;
    config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
    // Tickets keep resumed handshakes cheap without a table of sessions.
    config.ticketer = ring::Ticketer::new().map_err(pair)?;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

fn contents(setting: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let error = |source| TlsError::Read { setting, path: path.into(), source };
    let mut text = Vec::new();
    File::open(path).map_err(error)?.take(limits::TLS_FILE_BYTES + 1).read_to_end(&mut text).map_err(error)?;
    if text.len() as u64 > limits::TLS_FILE_BYTES {
        return Err(error(io::Error::other(format!("it has more than {} bytes", limits::TLS_FILE_BYTES))));
    }
    Ok(text)
}

pub(super) type Encrypted = TlsStream<Patience<TcpStream>>;

/// The handshake, within its time. A client that speaks plain HTTP is told so in its own language.
pub(super) async fn accept(mut stream: TcpStream, acceptor: TlsAcceptor, requests: Requests) -> io::Result<Encrypted> {
    let handshake = async {
        let mut first = [0];
        if stream.peek(&mut first).await? == 1 && first[0] != HANDSHAKE {
            let text = "This port speaks https: use an address that begins with https://\n";
            let answer = format!(
                "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                text.len()
            );
            stream.write_all(answer.as_bytes()).await?;
            // What was sent is taken first, or the kernel would reset the connection before the answer is read.
            Linger::new(stream).shutdown().await?;
            return Err(io::Error::other("it does not speak TLS"));
        }
        acceptor.accept(Patience::new(stream, requests)).await
    };
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long");
    tokio::time::timeout(limits::TLS_HANDSHAKE, handshake).await.map_err(late)?
}
