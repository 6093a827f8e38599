//! https with real clients: curl over HTTP/1.1 and HTTP/2, the command line, and certificates that change while it runs.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use crate::support::node::{Node, Setting, log_tail, reelring, serve};
use crate::support::process::signal;
use crate::support::{Noise, eventually, raw, scratch};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustix::process::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ALL_VERSIONS, ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const SOON: Duration = Duration::from_secs(20);

/// An authority that only this test knows, and what it certifies.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub file: PathBuf,
}

impl Authority {
    pub fn new(folder: &Path) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Reelring's test authority");
        let key = KeyPair::generate().unwrap();
        let file = folder.join("ca.pem");
        std::fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
        Authority { issuer: Issuer::new(params, key), file }
    }

    /// Writes a new certificate for this machine and its key; the certificate in DER tells it from others.
    pub fn certify(&self, certificate: &Path, key: &Path) -> Vec<u8> {
        let pair = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        let made = params.signed_by(&pair, &self.issuer).unwrap();
        std::fs::write(certificate, made.pem()).unwrap();
        std::fs::write(key, pair.serialize_pem()).unwrap();
        made.der().to_vec()
    }
}

/// A node that speaks https, and what it needed.
pub struct Secure {
    pub folder: tempfile::TempDir,
    pub authority: Authority,
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub der: Vec<u8>,
    pub node: Node,
}

impl Secure {
    pub async fn start(label: &str) -> Secure {
        Secure::start_with(label, &[]).await
    }

    pub async fn start_with(label: &str, settings: &[Setting<'_>]) -> Secure {
        let folder = scratch(label);
        let [certificate, key] = ["cert.pem", "key.pem"].map(|name| folder.path().join(name));
        let authority = Authority::new(folder.path());
        let der = authority.certify(&certificate, &key);
        let files = [("REELRING_TLS_CERT", certificate.to_str().unwrap()), ("REELRING_TLS_KEY", key.to_str().unwrap())];
        let node = Node::start_with(&folder.path().join("data"), &[&files, settings].concat()).await;
        Secure { folder, authority, certificate, key, der, node }
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.node.addr())
    }

    /// A connection from 127.0.0.`client`, which counts as a client of its own.
    pub async fn connect(&self, client: u8) -> TlsStream<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, client], 0))).unwrap();
        self.encrypt(socket.connect(self.node.addr()).await.unwrap(), &[]).await
    }

    /// With the protocols that are offered.
    pub async fn encrypt(&self, stream: TcpStream, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(self.config(protocols, ALL_VERSIONS))).connect(name, stream).await.unwrap()
    }

    /// What a client says who trusts the authority.
    pub fn config(&self, protocols: &[&[u8]], versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.authority.file).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        config
    }

    /// A client of HTTP who does.
    pub fn client(&self) -> reqwest::ClientBuilder {
        let ca = reqwest::Certificate::from_pem(&std::fs::read(&self.authority.file).unwrap()).unwrap();
        reqwest::Client::builder().no_proxy().tls_certs_only([ca])
    }

    /// A number of `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let text = printed(&self.curl(&[&self.url("/metrics")]));
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    pub fn curl(&self, arguments: &[&str]) -> Output {
        let ca = self.authority.file.to_str().unwrap();
        Command::new("curl").args(["-sS", "--cacert", ca]).args(arguments).output().expect("curl runs")
    }

    /// The certificate that a new connection gets.
    async fn shown(&self) -> Vec<u8> {
        let client = self.client().tls_info(true).build().unwrap();
        let answer = client.get(self.url("/healthz")).send().await.expect("a trusted answer");
        let info = answer.extensions().get::<reqwest::tls::TlsInfo>().expect("the handshake");
        info.peer_certificate().expect("a certificate").to_vec()
    }
}

#[track_caller]
fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_travel_over_both_versions_of_http() {
    let secure = Secure::start("https").await;
    let source = secure.folder.path().join("source");
    let body = Noise::bytes(81, 5_000_011);
    std::fs::write(&source, &body).unwrap();
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let url = secure.url(&format!("/v1/objects/film-{version}"));
        let told = ["-o", "/dev/null", "-w", "%{http_version} %{http_code}"];
        let stored = secure.curl(&[&[flag, "-T", source.to_str().unwrap(), &url][..], &told].concat());
        assert_eq!(printed(&stored), format!("{version} 201"));
        assert!(secure.curl(&[flag, &url]).stdout == body, "{version}");
        let part = secure.curl(&[flag, "-r", "1000000-1999999", &url]);
        assert!(part.stdout == body[1_000_000..2_000_000], "{version}");
        // Refused before its body is read: the client learns why.
        let wrong =
            secure.curl(&[&[flag, "-H", "If-Match: \"x\"", "-T", source.to_str().unwrap(), &url][..], &told].concat());
        assert_eq!(printed(&wrong), format!("{version} 412"), "{}", String::from_utf8_lossy(&wrong.stderr));
    }
    // Many requests on one connection.
    let urls: Vec<String> = (0..40).map(|_| secure.url("/v1/objects/film-2")).collect();
    let outputs: Vec<String> = urls.iter().flat_map(|url| [url.clone(), "-o".into(), "/dev/null".into()]).collect();
    let parallel = ["-Z", "--parallel-max", "40", "--http2", "-w", "%{http_code} %{size_download}\n"];
    let arguments: Vec<&str> = parallel.into_iter().chain(outputs.iter().map(String::as_str)).collect();
    let told = printed(&secure.curl(&arguments));
    assert_eq!(told.lines().filter(|line| *line == "200 5000011").count(), 40, "{told}");
    // Nobody has to believe the certificate.
    let distrusting = Command::new("curl").args(["-sS", &secure.url("/healthz")]).output().unwrap();
    assert_eq!(distrusting.status.code(), Some(60));
    let (status, answer) = raw::exchange(secure.node.addr(), b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(status == 400 && answer.contains("https://"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_speaks_https() {
    let secure = Secure::start("https-cli").await;
    let data = secure.node.data();
    let elsewhere = secure.folder.path().join("elsewhere");
    let ca = secure.authority.file.to_str().unwrap();
    let token = printed(&reelring(data, &["token", "create", "ops", "--scope", "admin"]));
    let file = secure.folder.path().join("token");
    std::fs::write(&file, token).unwrap();
    let file = file.to_str().unwrap();
    let there = ["--node", &secure.url(""), "--ca-file", ca, "--token-file", file];
    let body = secure.folder.path().join("source");
    std::fs::write(&body, Noise::bytes(82, 3_000_000)).unwrap();
    let body = body.to_str().unwrap();
    printed(&reelring(&elsewhere, &[&["put", body, "--key", "a"][..], &there].concat()));
    assert_eq!(printed(&reelring(&elsewhere, &[&["ls"][..], &there].concat())), "a");
    assert_eq!(printed(&reelring(data, &["ls"])), "a", "beside it, over the socket");
    let signed = printed(&reelring(data, &["sign", "a"]));
    assert!(signed.starts_with(&secure.url("/v1/objects/a?signature=")), "{signed}");
    assert_eq!(secure.curl(&[&signed]).stdout.len(), 3_000_000);
    let untrusted = reelring(&elsewhere, &["ls", "--node", &secure.url(""), "--token-file", file]);
    assert!(!untrusted.status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_taken_on_sighup_and_a_broken_one_is_not() {
    let secure = Secure::start("reload").await;
    let Secure { authority, certificate, key, der, node, .. } = &secure;
    assert!(secure.shown().await == *der);
    // A connection that is open goes on with what it has.
    let open = secure.client().build().unwrap();
    assert_eq!(open.get(secure.url("/healthz")).send().await.unwrap().status(), 200);
    let second = authority.certify(certificate, key);
    assert!(secure.shown().await == *der, "not before it is told");
    signal(node.pid(), Signal::HUP);
    eventually("the new certificate", SOON, async || (secure.shown().await == second).then_some(())).await;
    assert_eq!(open.get(secure.url("/healthz")).send().await.unwrap().status(), 200);

    let stays = "the certificate stays as it was";
    let complaints = || node.log().matches(stays).count();
    // The key of another certificate, no key, no file.
    let lost = secure.folder.path().join("lost.pem");
    authority.certify(&lost, key);
    for broken in 1..=3 {
        match broken {
            2 => std::fs::write(key, "nothing").unwrap(),
            3 => std::fs::remove_file(key).unwrap(),
            _ => {}
        }
        signal(node.pid(), Signal::HUP);
        eventually("a complaint", SOON, async || (complaints() == broken).then_some(())).await;
        assert!(secure.shown().await == second);
    }
    assert!(!node.log().contains("PRIVATE KEY"), "{}", node.log());
}

#[test]
fn what_cannot_be_used_is_told_at_the_start() {
    let folder = scratch("tls-start");
    let data = folder.path().join("data");
    let [certificate, key, other] = ["cert.pem", "key.pem", "other.pem"].map(|name| folder.path().join(name));
    let authority = Authority::new(folder.path());
    authority.certify(&certificate, &key);
    authority.certify(&folder.path().join("unused.pem"), &other);
    let [certificate, key, other] = [&certificate, &key, &other].map(|path| path.to_str().unwrap());
    for (settings, word) in [
        (vec![("REELRING_TLS_CERT", certificate)], "belong together"),
        (vec![("REELRING_TLS_CERT", certificate), ("REELRING_TLS_KEY", other)], "other.pem"),
        (vec![("REELRING_TLS_CERT", key), ("REELRING_TLS_KEY", key)], "BEGIN CERTIFICATE"),
        (vec![("REELRING_TLS_CERT", certificate), ("REELRING_TLS_KEY", certificate)], "private key"),
        (vec![("REELRING_TLS_CERT", "/nowhere.pem"), ("REELRING_TLS_KEY", key)], "/nowhere.pem"),
    ] {
        assert_eq!(serve(&data, &settings).status().unwrap().code(), Some(2), "{settings:?}");
        assert!(log_tail(&data).lines().last().unwrap_or_default().contains(word), "{word}: {}", log_tail(&data));
    }
}
