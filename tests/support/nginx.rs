//! A real nginx as origin: ranges, validators, a rate limit, and a log of every request that was answered.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::process::{Owned, find};

/// The server and its folder; files put under `root` are served at `/NAME`, and slowly at `/slow/NAME`.
pub struct Nginx {
    process: Owned,
    folder: tempfile::TempDir,
    port: u16,
}

/// One answered request.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub if_range: Option<String>,
    pub status: u16,
    /// Of the body; nginx counts what it handed to the socket.
    pub body_bytes: u64,
}

impl Hit {
    /// Where the request asked the body to start.
    pub fn start(&self) -> u64 {
        let Some(range) = self.range.as_deref() else { return 0 };
        let first = range.strip_prefix("bytes=").and_then(|rest| rest.split('-').next());
        first.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("a range with a start: {range}"))
    }
}

impl Nginx {
    /// `slow_bytes_per_s` bounds each connection under `/slow/`.
    pub fn start(slow_bytes_per_s: u64) -> Nginx {
        let folder = super::scratch("nginx");
        std::fs::create_dir(folder.path().join("root")).expect("the origin's folder");
        // nginx cannot pick a free port itself: another process may take this one in between, so try again.
        for _ in 0..5 {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).expect("a port").port();
            let configuration = configuration(folder.path(), port, slow_bytes_per_s);
            std::fs::write(folder.path().join("nginx.conf"), configuration).expect("nginx.conf");
            let mut process = Owned::spawn(
                Command::new(executable())
                    .arg("-p")
                    .arg(folder.path())
                    .args(["-e", "error.log", "-c", "nginx.conf"])
                    .stdin(Stdio::null()),
            );
            if answers(&mut process, port) {
                return Nginx { process, folder, port };
            }
        }
        let log = std::fs::read_to_string(folder.path().join("error.log")).unwrap_or_default();
        panic!("nginx did not start: {log}");
    }

    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What was answered so far; a request is logged when its response ends.
    pub fn hits(&self) -> Vec<Hit> {
        let log = std::fs::read_to_string(self.folder.path().join("access.log")).expect("the access log");
        log.lines().map(parse).collect()
    }
}

fn parse(line: &str) -> Hit {
    let fields: Vec<&str> = line.split('\t').collect();
    let [method, path, range, if_range, status, body_bytes] = fields[..] else { panic!("a log line: {line}") };
    let present = |field: &str| (field != "-").then(|| field.to_string());
    Hit {
        method: method.into(),
        path: path.into(),
        range: present(range),
        if_range: present(if_range),
        status: status.parse().expect("a status"),
        body_bytes: body_bytes.parse().expect("a count"),
    }
}

fn answers(process: &mut Owned, port: u16) -> bool {
    let start = Instant::now();
    while process.running() && start.elapsed() < Duration::from_secs(10) {
        if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

/// The installed one, or the one that `make setup` unpacked.
fn executable() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("cargo's target").to_path_buf();
    let unpacked = target.join("tools/nginx/usr/sbin/nginx");
    find("nginx").unwrap_or_else(|| {
        assert!(unpacked.is_file(), "nginx is neither installed nor at {}; run: make test", unpacked.display());
        unpacked
    })
}

fn configuration(folder: &Path, port: u16, slow_bytes_per_s: u64) -> String {
    let root = folder.join("root");
    let root = root.display();
    format!(
        "daemon off; master_process off; worker_processes 1; pid nginx.pid;
events {{ worker_connections 256; }}
http {{
  log_format hits '$request_method\\t$uri\\t$http_range\\t$http_if_range\\t$status\\t$body_bytes_sent';
  access_log access.log hits;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  types {{ video/mp4 mp4; text/html html; }}
  default_type application/octet-stream;
  sendfile on; sendfile_max_chunk 64k;
  server {{
    listen 127.0.0.1:{port};
    location / {{ root {root}; }}
    location /slow/ {{ alias {root}/; limit_rate {slow_bytes_per_s}; }}
  }}
}}
"
    )
}
