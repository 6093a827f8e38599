//! What ended a clone: the error number for the JSON, and the words for people.

use std::io;
use std::path::Path;

#[derive(Debug, Clone)]
pub struct Failure {
    pub errno: i32,
    pub message: String,
}

impl Failure {
    /// `what` went wrong, why, and what to do about it.
    pub fn from_io(what: &str, error: &io::Error) -> Failure {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let next = match errno {
            libc::ENOSPC | libc::EDQUOT => "; free some space, give a smaller size=, or choose another directory=",
            libc::ENOENT => "; make the folder, or correct directory= or filename=",
            libc::EACCES | libc::EPERM | libc::EROFS => "; choose a file that this user may open so",
            libc::EISDIR => "; name a file, not a folder",
            libc::EINVAL => {
                "; with direct=1, block sizes and offsets must fit the device, and the file system must take direct I/O"
            }
            _ => "",
        };
        Failure { errno, message: format!("{what}: {error}{next}") }
    }

    /// For a full disk: how much is left.
    pub fn with_room(mut self, path: &Path) -> Failure {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if matches!(self.errno, libc::ENOSPC | libc::EDQUOT)
            && let Ok(room) = rustix::fs::statvfs(folder)
        {
            let bytes = room.f_bavail * room.f_frsize;
            self.message = format!("{} ({bytes} bytes are free in {})", self.message, folder.display());
        }
        self
    }
}
