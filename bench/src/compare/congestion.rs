//! One congestion control for everybody in a comparison of servers.
//!
//! The node's listener on loopback asks for Reno, nginx takes what the system has. Where that paces (BBR), the kernel sets a
//! timer for each piece of 64 KiB that nginx sends, and a comparison says more about timers than about servers. So such a
//! comparison moves this process, and with it all that it starts, into a network namespace of its own, whose congestion
//! control is Reno: it goes with the process, and nothing of the machine is changed.
//!
//! Call [`settle`] while the process has one thread: a namespace belongs to a thread.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use clap::ValueEnum;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::{getegid, geteuid};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Built into every kernel, and paces nothing. Clients ask for it too.
pub const UNPACED: &str = "reno";
const SETTING: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Congestion {
    /// Where the machine's paces, all sides run unpaced in a network namespace of their own
    Equal,
    /// As the machine has it: the node's listener on loopback then runs unpaced, nginx may not
    Keep,
}

/// What new sockets of this process use.
pub fn current() -> Option<String> {
    Some(fs::read_to_string(SETTING).ok()?.trim().to_owned())
}

/// Puts all sides on the same footing where that was asked for, and gives what the report must say about it.
pub fn settle(wanted: Congestion) -> Option<String> {
    let machine = current().filter(|name| paces(name))?;
    let refused = match wanted {
        Congestion::Keep => "--congestion keep".to_owned(),
        // In a child first: who fails half way would be left without a network.
        Congestion::Equal => match rehearse().and_then(|()| enter()) {
            Ok(()) => {
                return Some(format!(
                    "This machine's TCP congestion control, {machine}, paces on loopback too, by a timer for each 64 KiB. Both \
                     servers and their clients ran under {UNPACED}, in a network namespace of their own; --congestion keep \
                     leaves it at {machine}, from which the node spares itself and nginx cannot."
                ));
            }
            Err(error) => format!("a network namespace of their own was refused: {error}"),
        },
    };
    Some(format!(
        "UNEQUAL: NGINX RAN UNDER {machine}, WHICH PACES, THE NODE UNDER {UNPACED}, for which its listener on loopback asks \
         ({refused}). From 1 MiB on this flatters the node."
    ))
}

/// BBR in all its versions. Others pace only where somebody asked for it.
fn paces(name: &str) -> bool {
    name.starts_with("bbr")
}

/// Whether [`enter`] works, found out by a process that ends at once.
fn rehearse() -> io::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: the caller has one thread, so nobody held a lock when the child was forked.
    unsafe { command.pre_exec(enter) };
    command.status().map(drop)
}

/// Moves the calling thread into a new network namespace whose loopback is up and whose sockets are not paced.
fn enter() -> io::Result<()> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    // SAFETY: neither flag concerns file descriptors.
    let alone = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
    if alone.is_err() {
        // In a user namespace of its own an ordinary user may do the same, and stays who it is.
        // SAFETY: as above.
        unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNET)? };
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
        fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
    }
    raise_loopback()?;
    fs::write(SETTING, UNPACED)
}

fn raise_loopback() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: plain data, for which all zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the kernel reads an ifreq, which lives across the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use super::*;

    #[test]
    fn only_bbr_paces() {
        assert!(["bbr", "bbr3"].into_iter().all(paces) && !["reno", "cubic", "dctcp"].into_iter().any(paces));
    }

    #[test]
    fn in_the_namespace_loopback_works_unpaced_and_outside_nothing_changed() {
        let outside = current();
        // On a thread of its own, which alone moves; without privileges it would need the whole process.
        let inside = thread::spawn(|| {
            if let Err(error) = enter() {
                eprintln!("SKIPPED in_the_namespace: {error}");
                return;
            }
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            assert_eq!(rustix::net::sockopt::tcp_congestion(client).unwrap(), UNPACED);
            assert_eq!(fs::read_to_string("/proc/thread-self/net/dev").unwrap().lines().count(), 3, "only lo");
        });
        inside.join().unwrap();
        assert_eq!(current(), outside);
    }
}
