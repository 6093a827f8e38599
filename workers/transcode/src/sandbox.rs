//! What the worker takes from itself before it looks at the source.
//!
//! It starts with three descriptors (the socket to the node, the source, the log) and needs nothing else: no network, no
//! paths, no other program. Resource limits come first; the system-call filter comes once FFmpeg's and CUDA's libraries are
//! loaded, and before a byte of the source is read. A denied call fails with an error instead of killing the worker, so that
//! a library's optional probing of the machine stays harmless.

use std::collections::BTreeMap;

use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::error::Failure;
use crate::limits;

/// No core dumps (they would hold a user's video), no files, an end to processor time.
pub fn limit_first() -> Result<(), Failure> {
    limit(Resource::Core, 0)?;
    limit(Resource::Fsize, 0)?;
    // A log that is a file is then refused with an error, which is ignored, and not with this signal, which kills.
    // Rust's handlers for these two only explain stack overflows, and swallow a signal that was sent: a fault ends the worker.
    // SAFETY: no handler of ours is installed.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        libc::signal(libc::SIGSEGV, libc::SIG_DFL);
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
    }
    limit(Resource::Cpu, limits::CPU_SECONDS)?;
    limit(Resource::Nofile, limits::DESCRIPTORS_GPU)
}

/// The rest, when it is known whether a GPU is in use: its driver needs address space, descriptors and device files.
pub fn seal(gpu: bool) -> Result<(), Failure> {
    if !gpu {
        limit(Resource::As, limits::ADDRESS_SPACE_BYTES)?;
        limit(Resource::Nofile, limits::DESCRIPTORS)?;
    }
    let program = filter(gpu).map_err(|error| Failure::internal(format!("the system-call filter: {error}")))?;
    // Sets no_new_privs too. Threads started later inherit it; on a kernel without seccomp the limits remain.
    if let Err(error) = seccompiler::apply_filter_all_threads(&program) {
        crate::log::say(&format!("no system-call filter ({error}): only resource limits hold the worker"));
    }
    Ok(())
}

fn limit(resource: Resource, value: u64) -> Result<(), Failure> {
    let current = rustix::process::getrlimit(resource);
    // A lower limit set from outside is kept.
    let value = current.maximum.map_or(value, |maximum| maximum.min(value));
    setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
        .map_err(|error| Failure::internal(format!("setting the limit {resource:?} to {value} failed: {error}")))
}

fn filter(gpu: bool) -> Result<BpfProgram, seccompiler::Error> {
    let network = [
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_accept,
        libc::SYS_accept4,
    ];
    let processes = [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_getfd,
        libc::SYS_setsid,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
    ];
    let paths = [
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_unlinkat,
        libc::SYS_renameat2,
        libc::SYS_linkat,
        libc::SYS_symlinkat,
        libc::SYS_mkdirat,
        libc::SYS_mknodat,
        libc::SYS_fchmodat,
        libc::SYS_fchownat,
        libc::SYS_truncate,
    ];
    #[cfg(target_arch = "x86_64")]
    let old_paths = [
        libc::SYS_open,
        libc::SYS_creat,
        libc::SYS_unlink,
        libc::SYS_rename,
        libc::SYS_renameat,
        libc::SYS_link,
        libc::SYS_symlink,
        libc::SYS_mkdir,
        libc::SYS_rmdir,
        libc::SYS_chmod,
        libc::SYS_chown,
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let old_paths = [libc::SYS_renameat];

    let mut denied: Vec<i64> = network.into_iter().chain(processes).collect();
    // The CUDA driver opens device files and its own libraries as it goes.
    if !gpu {
        denied.extend(paths);
        denied.extend(old_paths);
    }
    let rules: BTreeMap<i64, Vec<seccompiler::SeccompRule>> =
        denied.into_iter().map(|call| (call, Vec::new())).collect();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EACCES as u32),
        std::env::consts::ARCH.try_into()?,
    )?;
    Ok(BpfProgram::try_from(filter)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a thread of its own: the filter stays for good.
    #[test]
    fn a_sealed_thread_can_open_neither_sockets_nor_files() {
        let (socket, file, threads) = std::thread::spawn(|| {
            let program = filter(false).unwrap();
            seccompiler::apply_filter(&program).unwrap();
            (
                std::net::TcpStream::connect("127.0.0.1:9").unwrap_err().kind(),
                std::fs::File::open("/etc/hostname").unwrap_err().kind(),
                std::thread::spawn(|| 7).join().unwrap(),
            )
        })
        .join()
        .unwrap();
        assert_eq!(socket, std::io::ErrorKind::PermissionDenied);
        assert_eq!(file, std::io::ErrorKind::PermissionDenied);
        assert_eq!(threads, 7);
    }
}
