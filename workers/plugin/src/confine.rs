//! Takes from this process what a plugin has no use for, before any of the plugin's text is read.
//!
//! [`limits()`] comes first of all; [`system_calls`] once the engine stands and needs no more threads or files. After both
//! the process can compute, allocate a bounded amount, and talk over the one socket it was born with.

use std::collections::BTreeMap;

use reelring_protocol::plugin::limits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Descriptors: the control socket, two standard streams, and the few of the asynchronous runtime.
const DESCRIPTORS: u64 = 32;

/// Sets the resource limits and gives up the ways to regain privileges.
pub fn limits() -> anyhow::Result<()> {
    let fixed = |value| Rlimit { current: Some(value), maximum: Some(value) };
    setrlimit(Resource::Core, fixed(0))?;
    setrlimit(Resource::Fsize, fixed(0))?;
    setrlimit(Resource::Nofile, fixed(DESCRIPTORS))?;
    setrlimit(Resource::As, fixed(limits::ADDRESS_SPACE_BYTES))?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// Grants `seconds` of processor time from now on; the kernel ends the process when they are used up. The limit is on
/// the process's whole life, so each call moves it: a warm worker is not punished for its age.
pub fn grant_cpu(seconds: u64) -> anyhow::Result<()> {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let until = u64::try_from(used.tv_sec)?.saturating_add(seconds).saturating_add(1);
    let maximum = getrlimit(Resource::Cpu).maximum;
    setrlimit(Resource::Cpu, Rlimit { current: Some(maximum.map_or(until, |max| until.min(max))), maximum })?;
    Ok(())
}

/// Refuses, in every thread, the system calls that reach out of the process, and says what confines it now: a kernel
/// without seccomp leaves the resource limits alone in force.
pub fn system_calls() -> String {
    match filter().and_then(|program| Ok(seccompiler::apply_filter_all_threads(&program)?)) {
        Ok(()) => "resource limits and a system call filter".into(),
        Err(error) => format!("resource limits alone ({error})"),
    }
}

fn filter() -> anyhow::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().map(|&call| (call, Vec::new())).collect();
    // A process may signal itself (that is how `abort` works) and read its own limits, nobody else's.
    let pid = u64::from(std::process::id());
    let unless = |argument, value| -> anyhow::Result<Vec<SeccompRule>> {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, value)?;
        Ok(vec![SeccompRule::new(vec![condition])?])
    };
    rules.insert(libc::SYS_tgkill, unless(0, pid)?);
    rules.insert(libc::SYS_prlimit64, unless(0, 0)?);
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, std::env::consts::ARCH.try_into()?)?;
    Ok(filter.try_into()?)
}

/// Network, files, other processes, and the doors to the kernel that need none of these.
const REFUSED: &[i64] = &[
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_open_by_handle_at,
    libc::SYS_memfd_create,
    libc::SYS_truncate,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_io_uring_setup,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_unshare,
    libc::SYS_setns,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_creat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_renameat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_symlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
];

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::UdpSocket;
    use std::process::Command;

    use super::*;

    /// On a thread of its own, so that the other tests keep their rights.
    #[test]
    fn the_filter_refuses_network_files_and_processes() {
        let refused = std::thread::spawn(|| {
            seccompiler::apply_filter(&filter().unwrap()).unwrap();
            let refused =
                |result: std::io::Result<()>| result.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM));
            [
                refused(UdpSocket::bind("127.0.0.1:0").map(drop)),
                refused(File::open("/etc/hostname").map(drop)),
                refused(File::create("/tmp/reelring-plugin-must-not-write").map(drop)),
                refused(Command::new("/bin/true").status().map(drop)),
                refused(rustix::process::test_kill_process(rustix::process::getppid().unwrap()).map_err(Into::into)),
            ]
        });
        assert_eq!(refused.join().unwrap(), [true; 5]);
    }
}
