//! nginx as its own manual would set it up for large files, in a folder of its own.
//!
//! The [`Peer`] owns the master process and the folder; the workers end with the master.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::super::peer::Peer;
use crate::limits;

/// How it reads files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// sendfile from the page cache, the usual way.
    Sendfile,
    /// The same, by a pool of threads: a cold page stops no other client.
    Threads,
    /// Past the page cache with a pool of threads: what is recommended for sets larger than memory.
    Direct,
}

impl Reading {
    pub fn name(self) -> &'static str {
        match self {
            Reading::Sendfile => "nginx sendfile",
            Reading::Threads => "nginx sendfile, aio threads",
            Reading::Direct => "nginx aio threads, directio",
        }
    }
}

/// Smaller answers are sent without `tcp_nopush`. With it nginx never sets TCP_NODELAY, so that the last piece of an answer
/// waits, now and then, for an acknowledgement that the client's kernel delays by 40 ms; for large answers it pays.
const PUSHED_BELOW: u64 = 1 << 20;

/// Starts a server of the files under `root`, of which it will send `answer` bytes at a time; its own files lie in the peer's folder under `parent`.
pub fn start(program: &Path, parent: &Path, root: &Path, reading: Reading, answer: u64) -> anyhow::Result<Peer> {
    with(program, parent, |port| configuration(root, port, reading, answer, ""))
}

/// Starts a server that takes files by PUT into `root`. What arrives is written to a temporary file on the same volume,
/// through the page cache, and renamed; nothing is synced, and nginx has no setting that would.
pub fn start_receiving(program: &Path, parent: &Path, root: &Path) -> anyhow::Result<Peer> {
    let receive = "dav_methods PUT; client_max_body_size 0; client_body_buffer_size 128k; ";
    with(program, parent, |port| configuration(root, port, Reading::Sendfile, PUSHED_BELOW, receive))
}

fn with(program: &Path, parent: &Path, configuration: impl Fn(u16) -> String) -> anyhow::Result<Peer> {
    Peer::start("nginx", parent, |folder, port| {
        let file = folder.join("nginx.conf");
        fs::write(&file, configuration(port)).with_context(|| file.display().to_string())?;
        let mut command = Command::new(program);
        command.arg("-p").arg(folder).args(["-e", "error.log", "-c"]).arg(&file);
        Ok(command)
    })
}

/// What the program says of itself: "nginx/1.22.1".
pub fn version(program: &Path) -> anyhow::Result<String> {
    let output = Command::new(program).arg("-v").output().with_context(|| program.display().to_string())?;
    let text = String::from_utf8_lossy(&output.stderr);
    Ok(text.trim().trim_start_matches("nginx version: ").chars().take(limits::VERSION_CHARS).collect())
}

/// The installed one, or the one that set-up unpacked under cargo's target so that no service starts with it.
pub fn executable() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let unpacked =
        std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.join("tools/nginx/usr/sbin")));
    let folders =
        std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from)).chain(unpacked);
    let found = folders.map(|folder| folder.join("nginx")).find(|path| path.is_file());
    found.context("nginx is not installed: apt install nginx-light")
}

/// `more` is what its one server has besides.
fn configuration(root: &Path, port: u16, reading: Reading, answer: u64, more: &str) -> String {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let nopush = if answer < PUSHED_BELOW { "off" } else { "on" };
    let mut text = String::new();
    if rustix::process::geteuid().is_root() {
        // Its workers would change to a user that cannot read the scratch folder.
        text.push_str("user root;\n");
    }
    let _ = write!(
        text,
        "daemon off; worker_processes {workers}; worker_rlimit_nofile 8192; pid nginx.pid;
events {{ worker_connections 4096; }}
http {{
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  access_log off;
  default_type application/octet-stream;
  sendfile on; tcp_nopush {nopush};
  keepalive_timeout 300s; keepalive_requests 1000000000;
  open_file_cache max=1000 inactive=300s; open_file_cache_valid 300s;
"
    );
    text.push_str(match reading {
        Reading::Sendfile => "",
        Reading::Threads => "  aio threads;\n",
        // Smaller files are served from the page cache, by a thread: what is hot should be.
        Reading::Direct => "  aio threads; directio 2m; output_buffers 2 512k;\n",
    });
    let root = root.display();
    let _ = write!(text, "  server {{ listen 127.0.0.1:{port} backlog=4096; {more}root \"{root}\"; }}\n}}\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_direct_variant_differs_in_how_it_reads_only() {
        let of = |reading| configuration(Path::new("/srv/x"), 80, reading, 1 << 20, "");
        let added: Vec<String> = of(Reading::Direct)
            .lines()
            .filter(|line| !of(Reading::Sendfile).lines().any(|other| other == *line))
            .map(str::to_owned)
            .collect();
        assert_eq!(added, ["  aio threads; directio 2m; output_buffers 2 512k;"]);
        assert!(of(Reading::Sendfile).contains("root \"/srv/x\";"));
        assert!(of(Reading::Sendfile).contains("tcp_nopush on;"));
        let small = configuration(Path::new("/srv/x"), 80, Reading::Sendfile, 64 << 10, "");
        assert!(small.contains("tcp_nopush off;"), "{small}");
    }
}
