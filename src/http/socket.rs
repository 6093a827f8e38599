//! `http.sock` in the data directory: how the command line beside a running node talks to it without a token.
//!
//! The file's rights are the password: only the node's own user and root can open it, and the kernel is asked who did.
//! The listener owns the file and removes it; one that a crash left is replaced.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::connection::Connections;
use crate::limits;

const NAME: &str = "http.sock";
/// What an address of a socket can hold, less its end.
const PATH_BYTES: usize = 107;

/// A path that leads to the socket of a data directory.
pub struct Address {
    path: PathBuf,
    /// A long path is reached through its open directory.
    _directory: Option<OwnedFd>,
}

impl Address {
    pub fn of(data: &Path) -> io::Result<Address> {
        let path = data.join(NAME);
        if path.as_os_str().len() <= PATH_BYTES {
            return Ok(Address { path, _directory: None });
        }
        let directory: OwnedFd = File::open(data)?.into();
        let path = format!("/proc/self/fd/{}/{NAME}", directory.as_raw_fd()).into();
        Ok(Address { path, _directory: Some(directory) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

pub(super) struct LocalSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl LocalSocket {
    /// The caller holds the data directory's lock, so what is there is nobody's.
    pub fn bind(data: &Path) -> io::Result<LocalSocket> {
        let path = data.join(NAME);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let address = Address::of(data)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Before it has a name: there is no moment in which others could open it.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        bind(&socket, &SocketAddrUnix::new(address.path())?)?;
        listen(&socket, limits::LOCAL_CONNECTIONS as i32)?;
        let listener = UnixListener::from_std(socket.into())?;
        Ok(LocalSocket { listener, path })
    }

    /// Serves commands until `shutdown`. Far more of them than there are wait in the kernel.
    pub async fn serve(self, connections: Arc<Connections>, shutdown: CancellationToken) {
        let permits = Arc::new(Semaphore::new(limits::LOCAL_CONNECTIONS));
        loop {
            let accepted = async {
                let permit = permits.clone().acquire_owned().await;
                (self.listener.accept().await, permit)
            };
            match tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = accepted => accepted,
            } {
                (Ok((stream, _)), Ok(permit)) if is_owner(&stream) => connections.serve_owner(stream, permit),
                (Ok(_), _) => tracing::warn!("somebody else's program opened http.sock; it was sent away"),
                (Err(error), _) => {
                    tracing::warn!(%error, "a connection to http.sock could not be accepted; trying again in 100 ms");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn is_owner(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}
