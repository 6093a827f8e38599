//! Which node a command talks to: the one named, the one that already runs on the data directory, or one of its own.
//!
//! A running node writes its address into `http.addr` in its data directory once it listens and removes the file when
//! it drains. After a crash the file stays, so it only counts while the process in `LOCK` lives and somebody answers.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use url::Url;

use super::Place;
use super::exit::{CliError, Result};
use super::remote::{Pass, Remote};
use crate::config::{Config, Settings};
use crate::http::socket;

/// Written by the node, read by commands that share its data directory.
const ADDRESS_FILE: &str = "http.addr";
const LOCK_FILE: &str = "LOCK";
const CATALOG_FILE: &str = "catalog.sqlite";

/// Both files hold one short line.
const SMALL_FILE_BYTES: u64 = 256;
/// The node runs on this machine: it accepts at once or not at all.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub enum Target {
    Node(Remote),
    /// Nobody runs on this data directory: the command opens it.
    Local(Box<Config>),
}

/// What to do where no data directory exists yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// There is nothing to read: say so rather than leave an empty directory behind.
    Refuse,
    Create,
}

impl Place {
    pub fn target(&self, absent: Absent) -> Result<Target> {
        self.target_with(absent, Settings::default())
    }

    /// As [`Place::target`], with more settings for a node of this process.
    pub fn target_with(&self, absent: Absent, settings: Settings) -> Result<Target> {
        if let Some(text) = self.node.as_deref().filter(|text| !text.is_empty()) {
            return self.remote(text).map(Target::Node);
        }
        let config = self.resolve(settings)?;
        if let Some(mut node) = running_node(&config.data) {
            // Where there is no socket the token is asked for here too.
            node.pass = self.pass()?;
            return Ok(Target::Node(node));
        }
        if absent == Absent::Refuse && !config.data.join(CATALOG_FILE).exists() {
            return Err(CliError::failed(format!(
                "there is no data directory at {}; give its place with --data DIR, or a running node with --node URL \
                 (for instance --node http://{})",
                config.data.display(),
                config.listen
            )));
        }
        Ok(Target::Local(Box::new(config)))
    }

    /// The node at a named address.
    pub fn remote(&self, text: &str) -> Result<Remote> {
        Ok(Remote { pass: self.pass()?, ..Remote::at(node_url(text)?) })
    }

    fn pass(&self) -> Result<Pass> {
        Pass::collect(self.token_file.as_deref(), self.ca_file.as_ref())
    }

    pub fn resolve(&self, settings: Settings) -> Result<Config> {
        let flags = Settings { data: self.data.clone(), ..settings };
        let (config, _) =
            Config::resolve(self.config.as_deref(), flags).map_err(|error| CliError::usage(error.to_string()))?;
        Ok(config)
    }
}

/// Takes `127.0.0.1:8080` as well as a whole URL.
pub fn node_url(text: &str) -> Result<Url> {
    let whole = if text.contains("://") { text.to_string() } else { format!("http://{text}") };
    let refuse = |why: &str| {
        CliError::usage(format!("{text:?} is not the address of a node: {why}; write it as http://127.0.0.1:8080"))
    };
    let url = Url::parse(&whole).map_err(|error| refuse(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refuse(&format!("its scheme is {:?}, only http and https work", url.scheme())));
    }
    if url.host_str().is_none_or(str::is_empty) || url.query().is_some() || url.fragment().is_some() {
        return Err(refuse("it needs a host and takes no query"));
    }
    Ok(url)
}

/// The node that runs on this data directory now, if one does and has told its address.
pub fn running_node(data: &Path) -> Option<Remote> {
    let told = small_file(&data.join(ADDRESS_FILE))?;
    let told = told.trim();
    let (scheme, address) = told.split_once("://").unwrap_or(("http", told));
    let mut address: SocketAddr = address.parse().ok()?;
    lock_holder(data)?;
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    let url = Url::parse(&format!("{scheme}://{address}")).ok()?;
    // Somebody else's command cannot open the socket, and goes where all others go.
    let socket = socket::Address::of(data).ok().filter(|socket| UnixStream::connect(socket.path()).is_ok());
    if socket.is_none() {
        TcpStream::connect_timeout(&address, PROBE_TIMEOUT).ok()?;
    }
    Some(Remote { socket, ..Remote::at(url) })
}

/// The process that `LOCK` names, if it lives.
pub fn lock_holder(data: &Path) -> Option<u32> {
    let text = small_file(&data.join(LOCK_FILE))?;
    let pid: u32 = text.split_whitespace().next()?.parse().ok()?;
    Path::new("/proc").join(pid.to_string()).exists().then_some(pid)
}

fn small_file(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(SMALL_FILE_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_node_address_may_leave_out_the_scheme() {
        assert_eq!(node_url("127.0.0.1:80").unwrap().as_str(), "http://127.0.0.1/");
        assert_eq!(node_url("https://h.example/base").unwrap().as_str(), "https://h.example/base");
        for text in ["ftp://h", "http://", "http://h/?a=b", "not a host"] {
            let message = node_url(text).unwrap_err().to_string();
            assert!(message.contains(text) && message.contains("http://127.0.0.1:8080"), "{message}");
        }
    }

    #[test]
    fn a_running_node_is_found_only_while_it_lives() {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(running_node(dir.path()).is_none(), "no address file");
        fs::write(dir.path().join(ADDRESS_FILE), format!("{address}\n")).unwrap();
        assert!(running_node(dir.path()).is_none(), "no lock");
        fs::write(dir.path().join(LOCK_FILE), format!("{}\n", std::process::id())).unwrap();
        assert_eq!(running_node(dir.path()).unwrap().url.port(), Some(address.port()));
        // Process ids end far below this one.
        fs::write(dir.path().join(LOCK_FILE), "4294967295\n").unwrap();
        assert!(running_node(dir.path()).is_none(), "the process of the lock is gone");
        fs::write(dir.path().join(LOCK_FILE), format!("{}\n", std::process::id())).unwrap();
        drop(listener);
        assert!(running_node(dir.path()).is_none(), "nobody listens");
    }

    #[test]
    fn a_node_on_all_addresses_is_reached_over_loopback() {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        fs::write(dir.path().join(ADDRESS_FILE), format!("0.0.0.0:{port}")).unwrap();
        fs::write(dir.path().join(LOCK_FILE), std::process::id().to_string()).unwrap();
        assert_eq!(running_node(dir.path()).unwrap().url.as_str(), format!("http://127.0.0.1:{port}/"));
    }
}
