//! What a program used, measured from outside by the same means for every side.
//!
//! A program that ends is waited for with `wait4`, whose `rusage` counts every thread it had and every child it waited
//! for, to the nanosecond. A server is sampled before and after: CPU clocks of it and of its descendants.
//!
//! **Peak memory is the hard one.** Linux carries the resident set that a process had *before* `execve` into
//! `ru_maxrss`, and between `fork` and `execve` that is a copy of ours: a small program started by us would seem as
//! large as we are. So the kernel's high-water mark of the program itself (`VmHWM`) is read while it runs, and `rusage`
//! counts only where it is larger than our own size, which it then cannot have been inherited from.
//!
//! Owns the programs it starts: each has its own process group, dies with us even if we are killed, and is ended and
//! reaped when its `Running` is dropped.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::{machine, stop};
use crate::limits;

/// What a program used over a round.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    pub cpu_seconds: f64,
    /// Voluntary and not.
    pub context_switches: u64,
    pub peak_rss_bytes: u64,
}

/// A program that ran to its end.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    /// From just before it was started to its end.
    pub seconds: f64,
    pub stdout: Vec<u8>,
    /// The last [`limits::STDERR_TAIL`] bytes.
    pub stderr: String,
    pub usage: Usage,
}

/// Runs a program to its end and measures it. Ctrl-C ends it. The error of one that fails, by its exit status, names
/// the command line and the last lines it wrote to stderr.
pub fn run(command: &mut Command) -> anyhow::Result<Ended> {
    let ended = run_any(command)?;
    if !ended.status.success() {
        bail!("`{}` ended with {}{}", words(command), ended.status, quoted(&ended.stderr));
    }
    Ok(ended)
}

/// The same, whatever its exit status says.
pub fn run_any(command: &mut Command) -> anyhow::Result<Ended> {
    let line = words(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ours = peak_of(std::process::id()).unwrap_or(u64::MAX);
    let start = Instant::now();
    let mut running = Running::start(command)?;
    let stdout = running.child.stdout.take().map(|pipe| collect(pipe, limits::STDOUT, Keep::Head));
    let stderr = running.child.stderr.take().map(|pipe| collect(pipe, limits::STDERR_TAIL, Keep::Tail));
    let peak = running.watch()?;
    let seconds = start.elapsed().as_secs_f64();
    let (status, mut usage) = running.reap().with_context(|| format!("waiting for `{line}`"))?;
    if peak > 0 && usage.peak_rss_bytes <= ours {
        usage.peak_rss_bytes = 0;
    }
    usage.peak_rss_bytes = usage.peak_rss_bytes.max(peak);
    let (stdout, cut) = joined(stdout)?;
    let (stderr, _) = joined(stderr)?;
    if cut {
        bail!("`{line}` wrote more than {} bytes to its standard output", limits::STDOUT);
    }
    Ok(Ended { status, seconds, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned(), usage })
}

/// The command line, for errors and reports.
pub fn words(command: &Command) -> String {
    let quote = |word: &std::ffi::OsStr| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+%@".contains(c);
        if !word.is_empty() && word.chars().all(plain) { word.into_owned() } else { format!("'{word}'") }
    };
    let words: Vec<String> = std::iter::once(command.get_program()).chain(command.get_args()).map(quote).collect();
    words.join(" ")
}

/// The last lines of what a program wrote, for an error.
pub fn quoted(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(limits::STDERR_LINES)..];
    if last.is_empty() {
        ", and wrote nothing to stderr".to_owned()
    } else {
        format!("; it wrote:\n  {}", last.join("\n  "))
    }
}

/// A started program. Dropped while it runs, its process group is ended: asked first, killed after a grace.
#[derive(Debug)]
pub struct Running {
    child: Child,
    reaped: bool,
}

impl Running {
    /// In its own process group, so that the terminal's Ctrl-C reaches only us, and bound to our life.
    ///
    /// The death signal comes when the *thread* that started it ends: start programs from one that outlives them.
    pub fn start(command: &mut Command) -> anyhow::Result<Running> {
        let us = rustix::process::getpid();
        command.process_group(0);
        let bind = move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // We may have died before that took effect.
            if rustix::process::getppid() == Some(us) { Ok(()) } else { Err(io::Error::other("the parent is gone")) }
        };
        // SAFETY: between fork and exec only async-signal-safe calls are allowed: these are two bare system calls, and
        // the error is reported without allocating on the path that succeeds.
        unsafe { command.pre_exec(bind) };
        let child = command.spawn().with_context(|| format!("could not start `{}`", words(command)))?;
        Ok(Running { child, reaped: false })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.reaped {
            return Ok(None);
        }
        let status = self.child.try_wait()?;
        self.reaped |= status.is_some();
        Ok(status)
    }

    /// Waits for the end without reaping; gives the highest resident set seen, of it and its descendants together.
    fn watch(&self) -> anyhow::Result<u64> {
        let pidfd = rustix::process::pidfd_open(self.pid(), PidfdFlags::empty()).context("pidfd_open")?;
        let mut peak = 0;
        // Often at first, for programs that end soon; then seldom enough to disturb nothing.
        let mut pause = Duration::from_millis(1);
        loop {
            peak = peak.max(family(self.id()).into_iter().filter_map(peak_of).sum());
            stop::check()?;
            let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
            let limit = rustix::time::Timespec { tv_sec: 0, tv_nsec: pause.as_nanos() as i64 };
            match rustix::event::poll(&mut fds, Some(&limit)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => pause = (pause * 2).min(Duration::from_millis(50)),
                Ok(_) => return Ok(peak),
                Err(error) => return Err(error).context("poll on a pidfd"),
            }
        }
    }

    fn reap(&mut self) -> io::Result<(ExitStatus, Usage)> {
        let (mut status, mut used) = (0, MaybeUninit::<libc::rusage>::zeroed());
        loop {
            // SAFETY: both pointers are to live locals of the right type; the pid is a child that was not yet reaped.
            let pid = unsafe { libc::wait4(self.child.id() as libc::pid_t, &mut status, 0, used.as_mut_ptr()) };
            if pid >= 0 {
                break;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        self.reaped = true;
        // SAFETY: it was zeroed, which is a valid value of this plain struct, and wait4 then filled it.
        let used = unsafe { used.assume_init() };
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
        let usage = Usage {
            cpu_seconds: seconds(used.ru_utime) + seconds(used.ru_stime),
            context_switches: (used.ru_nvcsw + used.ru_nivcsw) as u64,
            peak_rss_bytes: used.ru_maxrss as u64 * 1024,
        };
        Ok((ExitStatus::from_raw(status), usage))
    }

    /// Ends it: SIGTERM to the group, and SIGKILL if it is still there after the grace.
    pub fn end(&mut self, grace: Duration) {
        if self.reaped {
            return;
        }
        // An error says that it is gone already, which is what is wanted.
        let _ = rustix::process::kill_process_group(self.pid(), Signal::TERM);
        let deadline = Instant::now() + grace;
        while Instant::now() < deadline && !matches!(self.ended(), Ok(Some(_)) | Err(_)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = rustix::process::kill_process_group(self.pid(), Signal::KILL);
        if !self.reaped {
            let _ = self.child.wait();
            self.reaped = true;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(limits::PEER_GRACE);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Keep {
    Head,
    Tail,
}

/// Gives what was kept, and whether anything was not.
type Reader = JoinHandle<io::Result<(Vec<u8>, bool)>>;

/// Reads a pipe to its end on a thread, so that the program never waits for us.
fn collect(mut pipe: impl Read + Send + 'static, limit: usize, keep: Keep) -> Reader {
    std::thread::spawn(move || {
        let (mut kept, mut cut, mut piece) = (Vec::new(), false, vec![0; 64 << 10]);
        loop {
            let n = match pipe.read(&mut piece) {
                Ok(0) => return Ok((kept, cut)),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let room = if keep == Keep::Tail { n } else { n.min(limit - kept.len()) };
            kept.extend_from_slice(&piece[..room]);
            cut |= room < n || kept.len() > limit;
            if kept.len() > limit {
                kept.drain(..kept.len() - limit);
            }
        }
    })
}

fn joined(reader: Option<Reader>) -> anyhow::Result<(Vec<u8>, bool)> {
    let Some(reader) = reader else { return Ok((Vec::new(), false)) };
    let read = reader.join().map_err(|_| anyhow::anyhow!("the thread that reads a program's output panicked"))?;
    read.context("reading a program's output")
}

/// A server's use so far; two of these make a [`Usage`].
///
/// What it cannot see: the context switches of threads that ended between two samples.
#[derive(Debug, Clone)]
pub struct Sample {
    cpu: Duration,
    /// By thread.
    switches: HashMap<u32, u64>,
    peak_rss_bytes: u64,
}

/// Samples a server and its descendants.
pub fn sample(pid: u32) -> anyhow::Result<Sample> {
    let mut sample = Sample { cpu: cpu_clock(pid)? + reaped_cpu(pid), switches: HashMap::new(), peak_rss_bytes: 0 };
    for member in family(pid) {
        if member != pid {
            // A descendant may end meanwhile; its parent's count of reaped children then has it.
            sample.cpu += cpu_clock(member).map_or(Duration::ZERO, |cpu| cpu + reaped_cpu(member));
        }
        for thread in numbers_in(&format!("/proc/{member}/task")) {
            let switches: Option<u64> = ["voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"]
                .into_iter()
                .map(|key| status_of(&format!("/proc/{member}/task/{thread}/status"), key)?.parse::<u64>().ok())
                .sum();
            sample.switches.extend(switches.map(|count| (thread, count)));
        }
        sample.peak_rss_bytes += peak_of(member).unwrap_or(0);
    }
    Ok(sample)
}

impl Sample {
    /// Goes on to a later sample. What has ended in between keeps its last known switches and its part of the peak, for
    /// servers that start short-lived programs.
    pub fn advance(&mut self, later: Sample) {
        self.cpu = later.cpu;
        self.switches.extend(later.switches);
        self.peak_rss_bytes = self.peak_rss_bytes.max(later.peak_rss_bytes);
    }

    /// What was used from `self` to `after`. The peak is the sum of the processes' own peaks, since the start or the
    /// last [`forget_peak`].
    pub fn until(&self, after: &Sample) -> Usage {
        let since =
            |(thread, count): (&u32, &u64)| count.saturating_sub(self.switches.get(thread).copied().unwrap_or(0));
        Usage {
            cpu_seconds: after.cpu.saturating_sub(self.cpu).as_secs_f64(),
            context_switches: after.switches.iter().map(since).sum(),
            peak_rss_bytes: after.peak_rss_bytes,
        }
    }
}

/// Starts the high-water mark of the resident set anew, where the kernel lets us: our own user's processes.
pub fn forget_peak(pid: u32) {
    for member in family(pid) {
        let _ = fs::write(format!("/proc/{member}/clear_refs"), "5");
    }
}

/// CPU time of a process, of all its threads, ended ones too.
fn cpu_clock(pid: u32) -> anyhow::Result<Duration> {
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: the pointer is to a live local.
    let error = unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &mut clock) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error)).with_context(|| format!("the CPU clock of process {pid}"));
    }
    // SAFETY: the pointer is to a live local; a clock of a process that has ended is an error, not undefined.
    if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("the CPU time of process {pid}"));
    }
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// CPU time of the children that a process has waited for, in clock ticks of 10 ms.
fn reaped_cpu(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold blanks; cutime and cstime are the 14th and 15th field after it.
    let after = text.rsplit_once(')').map_or("", |(_, after)| after);
    let ticks: u64 = after.split_ascii_whitespace().skip(13).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// A process and its descendants.
fn family(pid: u32) -> Vec<u32> {
    let mut members = vec![pid];
    let mut next = 0;
    while next < members.len() && members.len() < limits::FAMILY {
        let parent = members[next];
        for thread in numbers_in(&format!("/proc/{parent}/task")) {
            let text = fs::read_to_string(format!("/proc/{parent}/task/{thread}/children")).unwrap_or_default();
            members.extend(text.split_ascii_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
        next += 1;
    }
    members
}

/// Sockets that a process and its descendants have open, each counted once for every process that has it.
pub fn sockets(pid: u32) -> usize {
    let open = |member: &u32| {
        let entries = fs::read_dir(format!("/proc/{member}/fd")).into_iter().flatten().flatten();
        let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
        links.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
    };
    family(pid).iter().map(open).sum()
}

fn numbers_in(dir: &str) -> Vec<u32> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

fn status_of(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().filter_map(|line| line.split_once(':')).find(|(name, _)| *name == key)?.1;
    Some(value.trim().to_owned())
}

/// The high-water mark of a process's resident set; none of one that has ended.
fn peak_of(pid: u32) -> Option<u64> {
    machine::kib(&status_of(&format!("/proc/{pid}/status"), "VmHWM")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_is_measured_with_the_children_it_waited_for() {
        let ended = run(&mut shell("sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done'; sleep 0.05; echo done"))
            .unwrap();
        assert_eq!(ended.stdout, b"done\n");
        assert!(ended.usage.cpu_seconds > 0.01, "{ended:?}");
        assert!(ended.usage.context_switches >= 1, "{ended:?}");
        assert!(ended.seconds >= 0.05 && ended.seconds >= ended.usage.cpu_seconds * 0.5, "{ended:?}");
    }

    #[test]
    fn the_peak_is_the_programs_own_and_not_ours() {
        // The kernel hands the size before execve on: a small program must not seem as large as this one.
        let ballast = vec![1_u8; 96 << 20];
        let ended = run(Command::new("sleep").arg("0.2")).unwrap();
        assert!(std::hint::black_box(ballast).len() > 1);
        let peak = ended.usage.peak_rss_bytes;
        assert!(peak > 100 << 10 && peak < 32 << 20, "sleep used {peak} bytes");
    }

    #[test]
    fn a_failure_shows_the_command_line_and_what_it_wrote() {
        let error = run(&mut shell("echo first >&2; echo 'no such disk' >&2; exit 3")).unwrap_err().to_string();
        assert!(error.contains("`sh -c 'echo first"), "{error}");
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(error.ends_with("  first\n  no such disk"), "{error}");
    }

    #[test]
    fn much_output_is_read_while_it_runs_and_the_tail_of_errors_kept() {
        let ended =
            run(&mut shell("head -c 1000000 /dev/zero; head -c 100000 /dev/zero | tr '\\0' x >&2; echo end >&2"))
                .unwrap();
        assert_eq!(ended.stdout.len(), 1_000_000);
        assert_eq!(ended.stderr.len(), limits::STDERR_TAIL);
        assert!(ended.stderr.ends_with("xend\n"));
    }

    #[test]
    fn a_server_is_sampled_with_its_descendants_dead_or_alive() {
        let spin = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
        let mut server = Running::start(
            shell(&format!("read go; sh -c '{spin}'; sh -c '{spin}; sleep 60' & wait")).stdin(Stdio::piped()),
        )
        .unwrap();
        let before = sample(server.id()).unwrap();
        drop(server.child.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(20);
        // Until the second child sleeps: the first was reaped by then.
        let asleep = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n");
        while !family(server.id()).iter().any(asleep) {
            assert!(Instant::now() < deadline, "{:?}", family(server.id()));
            std::thread::sleep(Duration::from_millis(10));
        }
        let used = before.until(&sample(server.id()).unwrap());
        let alone = cpu_clock(server.id()).unwrap().as_secs_f64();
        assert!(used.cpu_seconds > alone + 0.03, "{used:?}, the shell alone {alone}");
        assert!(used.context_switches > 0 && used.peak_rss_bytes > 100 << 10, "{used:?}");
        let members = family(server.id());
        assert!(members.len() >= 3, "{members:?}");
        server.end(Duration::from_secs(2));
        assert!(sample(server.id()).is_err());
    }
}
