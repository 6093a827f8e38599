//! The node's settings: one plain struct of resolved values, and for each where it came from.
//!
//! Flags win over `REELRING_*` variables, those over `reelring.toml`, that over the defaults.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reelring_storage::EngineChoice;
use serde::{Deserialize, Serialize};

use crate::limits;
use crate::size::Size;
use crate::web_origin::{WebOrigin, WebOriginError};

/// Resolved settings.
#[derive(Debug, Clone, Serialize)]
pub struct Config {
    pub listen: SocketAddr,
    pub data: PathBuf,
    /// Directories on other disks that hold objects too.
    pub volumes: Vec<PathBuf>,
    /// Bytes of each volume that stay free; the store has a default.
    pub min_free: Option<u64>,
    /// Bytes that the objects on each volume may have.
    pub quota: Option<u64>,
    pub engine: EngineChoice,
    /// Fetch from loopback and private networks too.
    pub allow_private_origins: bool,
    /// Listen beyond loopback although there are no access tokens yet.
    pub insecure_no_auth: bool,
    /// A folder searched first for `reelring-transcode` and `reelring-plugin`.
    pub workers: Option<PathBuf>,
    /// A copy of hls.js offered to the player page, for browsers without HLS of their own.
    pub player_js: Option<PathBuf>,
    /// Seconds a plugin may take for one `extract`.
    pub plugin_timeout_s: u64,
    /// Days between two scrubs; 0 for none that nobody asked for.
    pub scrub_interval_days: u64,
    /// Bytes that a scrub reads in a second at most; 0 for no limit.
    pub scrub_rate: u64,
    /// Seconds after which an unfinished upload that nobody touches is removed.
    pub upload_expiry_s: u64,
    /// Sites whose pages may use the node.
    pub cors_origins: Vec<WebOrigin>,
    /// What a client without a token may do on a node that has tokens.
    pub anonymous: Anonymous,
    /// Names, besides those of this machine, that a node on loopback without tokens may be called by.
    pub hosts: Vec<String>,
    /// Client connections that may be open at the same time, altogether and of one address.
    pub max_connections: usize,
    pub max_connections_per_client: usize,
    /// PEM files of the certificate chain and its key: the node speaks https.
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Anonymous {
    #[default]
    None,
    /// Read an object or asset of which it knows the name.
    Read,
}

impl std::str::FromStr for Anonymous {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Anonymous::None),
            "read" => Ok(Anonymous::Read),
            _ => Err("it is none or read".into()),
        }
    }
}

/// Where to listen. Numbers only: a name may stand for several addresses, and for others tomorrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Listen(pub SocketAddr);

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Listen).map_err(|_| {
            "it is no address with a port, in numbers: write 127.0.0.1:8080 or [::1]:8080, or 0.0.0.0:8080 for all of this \
             machine's addresses"
                .into()
        })
    }
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// What a layer (file, environment, flags) sets; unset means "ask the next layer".
#[derive(Debug, Clone, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub listen: Option<Listen>,
    pub data: Option<PathBuf>,
    pub volumes: Option<Vec<PathBuf>>,
    pub min_free: Option<Size>,
    pub quota: Option<Size>,
    pub engine: Option<String>,
    pub allow_private_origins: Option<bool>,
    pub insecure_no_auth: Option<bool>,
    pub workers: Option<PathBuf>,
    pub player_js: Option<PathBuf>,
    pub plugin_timeout_s: Option<u64>,
    pub scrub_interval_days: Option<u64>,
    pub scrub_rate: Option<Size>,
    pub upload_expiry_s: Option<u64>,
    pub cors_origins: Option<Vec<WebOrigin>>,
    pub anonymous: Option<Anonymous>,
    pub hosts: Option<Vec<String>>,
    pub max_connections: Option<u64>,
    pub max_connections_per_client: Option<u64>,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
}

/// Where each value came from: `default`, `file PATH`, `environment NAME`, `flag --NAME`.
pub type Origins = BTreeMap<&'static str, String>;

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}: {source}; give an existing file with --config, or leave it out")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a valid configuration: {message}")]
    Parse { path: PathBuf, message: String },
    #[error("{name}={value:?} is not valid: {message}")]
    Value { name: String, value: String, message: String },
}

/// The file read when none is named and it exists.
const DEFAULT_FILE: &str = "reelring.toml";
const CONFIG_FILE_BYTES: u64 = 1 << 20;

impl Config {
    /// Resolves all layers. `file` is the one named by the user, `flags` what the command line set.
    pub fn resolve(file: Option<&Path>, flags: Settings) -> Result<(Config, Origins), ConfigError> {
        let (path, from_file) = match file {
            Some(path) => (path.to_path_buf(), read_file(path)?),
            None if Path::new(DEFAULT_FILE).is_file() => (DEFAULT_FILE.into(), read_file(Path::new(DEFAULT_FILE))?),
            None => (PathBuf::new(), Settings::default()),
        };
        let environment = from_environment(|name| std::env::var(name).ok())?;
        merge(&path, from_file, environment, flags)
    }

    pub fn upload_expiry(&self) -> Duration {
        Duration::from_secs(self.upload_expiry_s)
    }

    /// Whether only this machine reaches the node.
    pub fn listens_on_loopback(&self) -> bool {
        self.listen.ip().to_canonical().is_loopback()
    }

    pub fn plugin_timeout(&self) -> Duration {
        Duration::from_secs(self.plugin_timeout_s)
    }
}

fn read_file(path: &Path) -> Result<Settings, ConfigError> {
    let error = |source| ConfigError::Read { path: path.into(), source };
    let length = std::fs::metadata(path).map_err(error)?.len();
    if length > CONFIG_FILE_BYTES {
        let message = format!("it has {length} bytes, the limit is {CONFIG_FILE_BYTES}");
        return Err(ConfigError::Parse { path: path.into(), message });
    }
    let text = std::fs::read_to_string(path).map_err(error)?;
    toml::from_str(&text)
        .map_err(|error| ConfigError::Parse { path: path.into(), message: error.to_string().trim_end().into() })
}

fn from_environment(get: impl Fn(&str) -> Option<String>) -> Result<Settings, ConfigError> {
    fn parsed<T: std::str::FromStr>(name: &str, value: Option<String>) -> Result<Option<T>, ConfigError>
    where
        T::Err: std::fmt::Display,
    {
        let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(None) };
        match value.parse() {
            Ok(parsed) => Ok(Some(parsed)),
            Err(error) => {
                let message = T::Err::to_string(&error);
                Err(ConfigError::Value { name: name.into(), value, message })
            }
        }
    }
    macro_rules! var {
        ($name:literal) => {
            parsed($name, get($name))?
        };
    }
    Ok(Settings {
        listen: var!("REELRING_LISTEN"),
        data: var!("REELRING_DATA"),
        volumes: get("REELRING_VOLUMES").filter(|list| !list.is_empty()).map(|list| paths(&list)),
        min_free: var!("REELRING_MIN_FREE"),
        quota: var!("REELRING_QUOTA"),
        engine: var!("REELRING_ENGINE"),
        allow_private_origins: var!("REELRING_ALLOW_PRIVATE_ORIGINS"),
        insecure_no_auth: var!("REELRING_INSECURE_NO_AUTH"),
        workers: var!("REELRING_WORKERS"),
        player_js: var!("REELRING_PLAYER_JS"),
        plugin_timeout_s: var!("REELRING_PLUGIN_TIMEOUT_S"),
        scrub_interval_days: var!("REELRING_SCRUB_INTERVAL_DAYS"),
        scrub_rate: var!("REELRING_SCRUB_RATE"),
        upload_expiry_s: var!("REELRING_UPLOAD_EXPIRY_S"),
        cors_origins: get("REELRING_CORS_ORIGINS")
            .filter(|list| !list.is_empty())
            .map(|list| origins(&list))
            .transpose()?,
        anonymous: var!("REELRING_ANONYMOUS"),
        hosts: get("REELRING_HOSTS").filter(|list| !list.is_empty()).map(|list| names(&list)),
        max_connections: var!("REELRING_MAX_CONNECTIONS"),
        max_connections_per_client: var!("REELRING_MAX_CONNECTIONS_PER_CLIENT"),
        tls_cert: var!("REELRING_TLS_CERT"),
        tls_key: var!("REELRING_TLS_KEY"),
    })
}

/// Origins separated by commas.
fn origins(list: &str) -> Result<Vec<WebOrigin>, ConfigError> {
    let parsed = list.split(',').map(str::trim).filter(|one| !one.is_empty()).map(str::parse);
    parsed.collect::<Result<_, _>>().map_err(|error: WebOriginError| ConfigError::Value {
        name: "REELRING_CORS_ORIGINS".into(),
        value: list.into(),
        message: error.to_string(),
    })
}

/// Directories separated by colons, as in PATH.
fn paths(list: &str) -> Vec<PathBuf> {
    list.split(':').filter(|path| !path.is_empty()).map(PathBuf::from).collect()
}

/// Names separated by commas.
fn names(list: &str) -> Vec<String> {
    list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(String::from).collect()
}

fn merge(path: &Path, file: Settings, env: Settings, flags: Settings) -> Result<(Config, Origins), ConfigError> {
    let mut origins = Origins::new();
    let in_file = format!("file {}", path.display());
    macro_rules! pick {
        ($field:ident, $default:expr) => {{
            let name = stringify!($field);
            let (value, origin) = if let Some(value) = flags.$field {
                (Some(value), format!("flag --{}", name.replace('_', "-")))
            } else if let Some(value) = env.$field {
                (Some(value), format!("environment REELRING_{}", name.to_uppercase()))
            } else if let Some(value) = file.$field {
                (Some(value), in_file.clone())
            } else {
                ($default, "default".to_string())
            };
            origins.insert(name, origin);
            value
        }};
    }
    let listen = pick!(listen, Some(Listen(SocketAddr::from(([127, 0, 0, 1], 8080)))));
    let data = pick!(data, Some(PathBuf::from("./reelring-data")));
    let volumes = pick!(volumes, Some(Vec::new())).unwrap_or_default();
    // The flag names one at a time.
    if origins["volumes"] == "flag --volumes" {
        origins.insert("volumes", "flag --volume".into());
    }
    let min_free = pick!(min_free, None);
    let quota = pick!(quota, None);
    let engine = pick!(engine, Some("auto".to_string())).unwrap_or_default();
    let allow_private_origins = pick!(allow_private_origins, Some(false));
    let insecure_no_auth = pick!(insecure_no_auth, Some(false));
    let workers = pick!(workers, None);
    let player_js = pick!(player_js, None);
    let plugin_timeout_s = pick!(plugin_timeout_s, Some(30)).unwrap_or(30);
    if !(1..=600).contains(&plugin_timeout_s) {
        return Err(ConfigError::Value {
            name: "plugin_timeout_s".into(),
            value: plugin_timeout_s.to_string(),
            message: "it must lie between 1 and 600 seconds".into(),
        });
    }
    let scrub_interval_days = pick!(scrub_interval_days, Some(30)).unwrap_or(30);
    if scrub_interval_days > 3650 {
        return Err(ConfigError::Value {
            name: "scrub_interval_days".into(),
            value: scrub_interval_days.to_string(),
            message: "it must be at most 3650 days; 0 means no scrub".into(),
        });
    }
    let scrub_rate = pick!(scrub_rate, Some(Size(32 << 20))).map_or(32 << 20, |size| size.0);
    let upload_expiry_s = pick!(upload_expiry_s, Some(86_400)).unwrap_or(86_400);
    if !(1..=31_536_000).contains(&upload_expiry_s) {
        return Err(ConfigError::Value {
            name: "upload_expiry_s".into(),
            value: upload_expiry_s.to_string(),
            message: "it must lie between 1 and 31536000 seconds (a year)".into(),
        });
    }
    let cors_origins = pick!(cors_origins, Some(Vec::new())).unwrap_or_default();
    let anonymous = pick!(anonymous, Some(Anonymous::None)).unwrap_or_default();
    let hosts = pick!(hosts, Some(Vec::new())).unwrap_or_default();
    let max_connections = pick!(max_connections, Some(limits::HTTP_CONNECTIONS as u64));
    let max_connections = connections("max_connections", max_connections)?;
    let max_connections_per_client =
        pick!(max_connections_per_client, Some(limits::HTTP_CONNECTIONS_PER_CLIENT as u64));
    let max_connections_per_client = connections("max_connections_per_client", max_connections_per_client)?;
    let tls_cert = pick!(tls_cert, None);
    let tls_key = pick!(tls_key, None);
    let choice = engine.parse::<EngineChoice>().map_err(|error| ConfigError::Value {
        name: "engine".into(),
        value: engine.clone(),
        message: error.to_string(),
    })?;
    let config = Config {
        listen: listen.map_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080)), |listen| listen.0),
        data: data.unwrap_or_else(|| "./reelring-data".into()),
        volumes,
        min_free: min_free.map(|size| size.0),
        quota: quota.map(|size| size.0),
        engine: choice,
        allow_private_origins: allow_private_origins.unwrap_or(false),
        insecure_no_auth: insecure_no_auth.unwrap_or(false),
        workers,
        player_js,
        plugin_timeout_s,
        scrub_interval_days,
        scrub_rate,
        upload_expiry_s,
        cors_origins,
        anonymous,
        hosts,
        max_connections,
        max_connections_per_client,
        tls_cert,
        tls_key,
    };
    Ok((config, origins))
}

fn connections(name: &str, value: Option<u64>) -> Result<usize, ConfigError> {
    let value = value.unwrap_or_default();
    if !(1..=limits::HTTP_CONNECTIONS_MAX).contains(&value) {
        let message = format!("it must lie between 1 and {}", limits::HTTP_CONNECTIONS_MAX);
        return Err(ConfigError::Value { name: name.into(), value: value.to_string(), message });
    }
    Ok(value as usize)
}

/// A worker executable, or where it was looked for.
#[derive(Debug, Clone)]
pub enum WorkerPath {
    Found(PathBuf),
    Missing { name: &'static str, searched: Vec<PathBuf> },
}

impl WorkerPath {
    /// Looks in the configured folder, beside the node's own executable, and in `../libexec/reelring` from there.
    pub fn find(name: &'static str, configured: Option<&Path>) -> WorkerPath {
        let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
        let mut searched = Vec::new();
        searched.extend(configured.map(|folder| folder.join(name)));
        if let Some(folder) = beside {
            searched.push(folder.join(name));
            // `cargo test` puts test binaries one level below the executables.
            if folder.ends_with("deps") {
                searched.extend(folder.parent().map(|parent| parent.join(name)));
            }
            searched.extend(folder.parent().map(|parent| parent.join("libexec/reelring").join(name)));
        }
        match searched.iter().find(|path| path.is_file()) {
            Some(path) => WorkerPath::Found(path.clone()),
            None => WorkerPath::Missing { name, searched },
        }
    }

    /// The path, or the sentence that tells what is missing and what to do.
    pub fn require(&self) -> Result<&Path, String> {
        match self {
            WorkerPath::Found(path) => Ok(path),
            WorkerPath::Missing { name, searched } => {
                let searched: Vec<_> = searched.iter().map(|path| path.display().to_string()).collect();
                Err(format!(
                    "the worker {name} is not installed (looked for {}); build it with `cargo build -p {name}`, put it \
                     beside the reelring executable, or set `workers` in the configuration",
                    searched.join(", ")
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_environment_over_file_over_default() {
        let at = |port: u16| Some(Listen(SocketAddr::from(([127, 0, 0, 1], port))));
        let layer = |port| Settings { listen: at(port), ..Settings::default() };
        let path = Path::new("r.toml");
        let none = Settings::default;
        for (file, env, flags, port, origin) in [
            (layer(1), layer(2), layer(3), 3, "flag --listen"),
            (layer(1), layer(2), none(), 2, "environment REELRING_LISTEN"),
            (layer(1), none(), none(), 1, "file r.toml"),
            (none(), none(), none(), 8080, "default"),
        ] {
            let (config, origins) = merge(path, file, env, flags).unwrap();
            assert_eq!((config.listen.port(), origins["listen"].as_str()), (port, origin));
        }
    }

    #[test]
    fn a_bad_variable_is_named() {
        let get = |name: &str| (name == "REELRING_LISTEN").then(|| "nowhere".to_string());
        let message = from_environment(get).unwrap_err().to_string();
        assert!(message.contains("REELRING_LISTEN") && message.contains("nowhere"), "{message}");
    }

    #[test]
    fn volumes_are_listed_in_every_layer() {
        let of_file: Settings = toml::from_str("volumes = ['/a', '/b']\nmin_free = '2GiB'\nquota = 4096").unwrap();
        let get = |name: &str| (name == "REELRING_VOLUMES").then(|| "/c::/d".to_string());
        let (config, origins) =
            merge(Path::new("r"), of_file.clone(), Settings::default(), Settings::default()).unwrap();
        assert_eq!(config.volumes, [Path::new("/a"), Path::new("/b")]);
        assert_eq!((config.min_free, config.quota), (Some(2 << 30), Some(4096)));
        assert_eq!(origins["volumes"], "file r");
        let (config, _) = merge(Path::new("r"), of_file, from_environment(get).unwrap(), Settings::default()).unwrap();
        assert_eq!(config.volumes, [Path::new("/c"), Path::new("/d")]);
        let flags = Settings { volumes: Some(vec!["/e".into()]), ..Settings::default() };
        let (_, origins) = merge(Path::new("r"), Settings::default(), Settings::default(), flags).unwrap();
        assert_eq!(origins["volumes"], "flag --volume");
    }

    #[test]
    fn origins_are_checked_in_every_layer() {
        let of_file: Settings = toml::from_str("cors_origins = ['https://A.example:443']").unwrap();
        assert_eq!(of_file.cors_origins.unwrap()[0].as_str(), "https://a.example");
        assert!(toml::from_str::<Settings>("cors_origins = ['a.example']").is_err());
        let get = |name: &str| (name == "REELRING_CORS_ORIGINS").then(|| "http://localhost:3000, *".to_string());
        assert_eq!(from_environment(get).unwrap().cors_origins.unwrap().len(), 2);
        let get = |name: &str| (name == "REELRING_CORS_ORIGINS").then(|| "https://a.example/x".to_string());
        let message = from_environment(get).unwrap_err().to_string();
        assert!(message.contains("REELRING_CORS_ORIGINS") && message.contains("https://a.example/x"), "{message}");
    }

    #[test]
    fn an_unknown_setting_in_the_file_is_an_error() {
        assert!(toml::from_str::<Settings>("lisen = '127.0.0.1:1'").is_err());
    }
}
