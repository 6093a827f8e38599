//! One worker process: its start, its calls, and its end, which is always a kill.
//!
//! A task of its own (the driver) owns the child, the socket and every call in flight. It never waits for the worker: what
//! it sends goes through a writing task, what the worker fetches is a task per page, and a call that outlives its deadline
//! ends the process, since nothing less stops a loop. Which of several calls was to blame cannot be known; they are told
//! that they shared a fate ([`NoAnswer::Shared`]). Dropping every [`Process`] handle ends the worker too. A caller that
//! goes away leaves its call behind, so that the deadline still finds a loop.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reelring_protocol::plugin::{Dying, LogLevel, Position, ScriptError, ToNode, ToWorker, WORKER, limits as bounds};
use reelring_protocol::{Frame, FrameError, Hello, decode, encode};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use url::Url;

use super::Home;
use super::pages::PageRequest;
use crate::error::{Failure, FailureKind};
use crate::limits;

/// Frames on their way to a worker: its calls and the answers to its fetches.
const OUTBOX: usize = bounds::CALLS_IN_FLIGHT + 4 * bounds::FETCHES_IN_FLIGHT;
/// How much of the socket is read at once.
const READ_BYTES: usize = 64 << 10;

/// A handle of a running worker. The last one dropped ends it.
#[derive(Debug)]
pub struct Process {
    calls: mpsc::Sender<Call>,
}

struct Call {
    url: Url,
    cancel: CancellationToken,
    reply: Reply,
}

/// Where the JSON of a result goes, or why there is none.
type Reply = oneshot::Sender<Result<String, NoAnswer>>;

/// Why a call has no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// The call's own failure.
    Failed(Failure),
    /// The worker ended with several calls in flight. This is how it ended; whose doing it was is not known.
    Shared(Failure),
    /// The engine is busy with another call and has not come to this one.
    Busy,
    /// The worker had ended before it took the call.
    Gone,
}

impl Process {
    /// Starts a worker and loads the plugin. The result is the handle and the JSON of the plugin's manifest.
    pub async fn start(home: &Home, worker: &Path, file: &str, source: &str) -> Result<(Process, String), Failure> {
        let started = async {
            let mut starting = Starting::spawn(worker).map_err(|error| {
                Failure::transient(format!("cannot start the worker {}: {error}", worker.display()))
            })?;
            match starting.load(home, file, source).await {
                Ok(manifest) => Ok((starting, manifest)),
                Err(LoadError::Script(error)) => Err(Failure::permanent(located(&error, file))),
                Err(LoadError::Lost(error)) => Err(starting.death(error, home.options.load).await),
            }
        };
        let limit = home.options.load;
        let (starting, manifest) = timeout(limit, started).await.unwrap_or_else(|_| {
            Err(Failure::permanent(format!("loading took longer than {} and was stopped", seconds(limit))))
        })?;
        let (calls, inbox) = mpsc::channel(1);
        home.tracker.spawn(Driver::new(home.clone(), starting, file.to_owned()).run(inbox));
        Ok((Process { calls }, manifest))
    }

    /// Calls `extract`. The JSON of its result, or why there is none.
    pub async fn extract(&self, url: &Url, cancel: &CancellationToken) -> Result<String, NoAnswer> {
        let cancel = cancel.child_token();
        let _ended: DropGuard = cancel.clone().drop_guard();
        let (reply, answer) = oneshot::channel();
        let call = Call { url: url.clone(), cancel: cancel.clone(), reply };
        let asked = async {
            self.calls.send(call).await.map_err(|_| NoAnswer::Gone)?;
            answer.await.unwrap_or(Err(NoAnswer::Gone))
        };
        tokio::select! {
            answer = asked => answer,
            () = cancel.cancelled() => Err(NoAnswer::Failed(Failure::cancelled())),
        }
    }
}

enum LoadError {
    /// The plugin's own fault.
    Script(ScriptError),
    /// The worker's.
    Lost(FrameError),
}

impl From<FrameError> for LoadError {
    fn from(error: FrameError) -> LoadError {
        LoadError::Lost(error)
    }
}

/// A child whose plugin is not loaded yet. Dropping it kills the child.
struct Starting {
    child: Child,
    reader: FrameStream,
    writer: OwnedWriteHalf,
    last_words: JoinHandle<String>,
}

impl Starting {
    fn spawn(worker: &Path) -> io::Result<Starting> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut child = Command::new(worker)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let last_words = tokio::spawn(tail(child.stderr.take()));
        let (reader, writer) = UnixStream::from_std(ours)?.into_split();
        Ok(Starting { child, reader: FrameStream::new(reader), writer, last_words })
    }

    async fn load(&mut self, home: &Home, file: &str, source: &str) -> Result<String, LoadError> {
        let hello: Frame<Hello> = self.reader.expect().await?;
        hello.message.check(WORKER).map_err(|error| io::Error::other(error.to_string())).map_err(FrameError::Io)?;
        let load = ToWorker::Load { file: file.into(), cpu_s: whole_seconds(home.options.load) };
        self.writer.write_all(&encode(&load, source.as_bytes())?).await.map_err(FrameError::Io)?;
        let mut log = Log::new(file);
        loop {
            let frame = self.reader.expect().await?;
            match frame.message {
                ToNode::Loaded => return Ok(String::from_utf8_lossy(&frame.payload).into_owned()),
                ToNode::LoadFailed { error } => return Err(LoadError::Script(error)),
                ToNode::Log { level, text } => log.line(level, &text),
                ToNode::Dying { reason } => {
                    let message = dying(&reason);
                    return Err(LoadError::Script(ScriptError { message, at: None }));
                }
                other => return Err(unexpected(&other).into()),
            }
        }
    }

    /// The failure to report for a worker that was lost while it loaded.
    async fn death(mut self, error: FrameError, cpu: Duration) -> Failure {
        let _ = self.child.start_kill();
        let status = self.child.wait().await;
        let words = self.last_words.await.unwrap_or_default();
        post_mortem(status, &words, &error, cpu)
    }
}

/// One call in flight.
struct Pending {
    reply: Reply,
    deadline: Instant,
    /// Until the worker says that it has begun: when to stop waiting for that.
    begin_by: Option<Instant>,
    fetches: u32,
    cancel: CancellationToken,
    /// Ends the call's fetches with the call.
    _ended: DropGuard,
}

struct Driver {
    home: Home,
    file: String,
    child: Child,
    reader: FrameStream,
    outbox: mpsc::Sender<BytesMut>,
    writer: JoinHandle<()>,
    last_words: JoinHandle<String>,
    pending: HashMap<u64, Pending>,
    next_call: u64,
    pages: JoinSet<()>,
    log: Log,
}

/// Why a worker ends.
enum End {
    /// Nobody needs it.
    Unneeded,
    ShuttingDown,
    /// A call ran past its deadline.
    Overrun,
    Dying(Dying),
    Lost(FrameError),
}

impl Driver {
    fn new(home: Home, starting: Starting, file: String) -> Driver {
        let Starting { child, reader, writer, last_words } = starting;
        let (outbox, frames) = mpsc::channel(OUTBOX);
        let writer = tokio::spawn(write_frames(writer, frames));
        let log = Log::new(&file);
        let (pending, pages) = (HashMap::new(), JoinSet::new());
        Driver { home, file, child, reader, outbox, writer, last_words, pending, next_call: 0, pages, log }
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<Call>) {
        let end = self.serve(&mut inbox).await;
        drop(inbox);
        self.finish(end).await;
    }

    async fn serve(&mut self, inbox: &mut mpsc::Receiver<Call>) -> End {
        let mut idle_since = Instant::now();
        loop {
            let due = self.pending.values().map(|call| call.begin_by.map_or(call.deadline, |by| by.min(call.deadline)));
            let wake = due.min().unwrap_or(idle_since + self.home.options.idle);
            tokio::select! {
                frame = self.reader.next() => match frame {
                    Ok(frame) => {
                        if let Err(end) = self.take(frame) {
                            return end;
                        }
                        if self.pending.is_empty() {
                            idle_since = Instant::now();
                        }
                    }
                    Err(error) => return End::Lost(error),
                },
                call = inbox.recv(), if self.pending.len() < bounds::CALLS_IN_FLIGHT => match call {
                    Some(call) => if let Err(end) = self.begin(call) {
                        return end;
                    },
                    None => return End::Unneeded,
                },
                Some(_) = self.pages.join_next(), if !self.pages.is_empty() => {}
                () = sleep_until(wake) => {
                    if self.pending.is_empty() {
                        return End::Unneeded;
                    }
                    let now = Instant::now();
                    if self.pending.values().any(|call| call.deadline <= now) {
                        return End::Overrun;
                    }
                    self.release_waiting(now);
                }
                () = self.home.shutdown.cancelled() => return End::ShuttingDown,
            }
        }
    }

    fn begin(&mut self, Call { url, cancel, reply }: Call) -> Result<(), End> {
        let call = self.next_call;
        self.next_call += 1;
        let limit = self.home.options.extract;
        let message = ToWorker::Extract { call, url: url.into(), cpu_s: whole_seconds(limit) };
        self.log.begin_call();
        let deadline = Instant::now() + limit;
        let cancel = cancel.child_token();
        let _ended = cancel.clone().drop_guard();
        let begin_by = Some(Instant::now() + limits::PLUGIN_BUSY);
        self.pending.insert(call, Pending { reply, deadline, begin_by, fetches: 0, cancel, _ended });
        let frame = encode(&message, b"").map_err(End::Lost)?;
        // The worker's reading thread never waits, so a full outbox means that it is gone.
        self.outbox.try_send(frame).map_err(|_| End::Lost(io::Error::from(io::ErrorKind::BrokenPipe).into()))
    }

    /// Sends the calls that the engine has not come to elsewhere. Should it come to one after all, nobody listens, its
    /// fetches are refused, and the kernel's limit on processor time is what ends it.
    fn release_waiting(&mut self, now: Instant) {
        for (_, call) in self.pending.extract_if(|_, call| call.begin_by.is_some_and(|by| by <= now)) {
            let _ = call.reply.send(Err(NoAnswer::Busy));
        }
    }

    fn take(&mut self, Frame { message, payload }: Frame<ToNode>) -> Result<(), End> {
        match message {
            ToNode::Begun { call } => {
                if let Some(pending) = self.pending.get_mut(&call) {
                    pending.begin_by = None;
                }
            }
            ToNode::Extracted { call } => self.answer(call, Ok(String::from_utf8_lossy(&payload).into_owned())),
            ToNode::ExtractFailed { call, error } => {
                let failure = Failure::permanent(located(&error, &self.file));
                self.answer(call, Err(NoAnswer::Failed(failure)));
            }
            ToNode::Fetch { call, fetch, method, url, headers, has_body } => {
                self.fetch(call, PageRequest { fetch, method, url, headers, body: has_body.then_some(payload) });
            }
            ToNode::Log { level, text } => self.log.line(level, &text),
            ToNode::Dying { reason } => return Err(End::Dying(reason)),
            other => return Err(End::Lost(unexpected(&other))),
        }
        Ok(())
    }

    fn answer(&mut self, call: u64, answer: Result<String, NoAnswer>) {
        if let Some(pending) = self.pending.remove(&call) {
            let _ = pending.reply.send(answer);
        }
    }

    /// Starts a fetch, within the budgets that the worker should have kept itself.
    fn fetch(&mut self, call: u64, request: PageRequest) {
        let outbox = self.outbox.clone();
        let fetch = request.fetch;
        let refuse = |message: &str| {
            let refusal = ToWorker::FetchFailed { fetch, message: message.into() };
            if let Ok(frame) = encode(&refusal, b"") {
                let _ = outbox.try_send(frame);
            }
        };
        let Some(pending) = self.pending.get_mut(&call) else { return refuse("the call has ended") };
        pending.fetches += 1;
        // Twice what the worker may have open: a page counts until its task is collected, a little after its answer.
        if pending.fetches > bounds::FETCHES_PER_CALL || self.pages.len() >= 2 * bounds::FETCHES_IN_FLIGHT {
            return refuse("too many fetches");
        }
        let (pages, cancel) = (self.home.pages.clone(), pending.cancel.clone());
        self.pages.spawn(async move {
            let (answer, page): (ToWorker, Bytes) = pages.fetch(request, &cancel).await;
            let frame = encode(&answer, &page)
                .or_else(|error| encode(&ToWorker::FetchFailed { fetch, message: error.to_string() }, b""));
            if let Ok(frame) = frame {
                let _ = outbox.send(frame).await;
            }
        });
    }

    /// Kills the process, waits until it is gone, and tells every open call why it has no answer.
    async fn finish(mut self, end: End) {
        self.pages.abort_all();
        // A worker that said it is dying, or hung up, has an exit status of its own to tell.
        if matches!(end, End::Lost(_) | End::Dying(_)) {
            let _ = timeout(Duration::from_millis(200), self.child.wait()).await;
        }
        let _ = self.child.start_kill();
        let status = self.child.wait().await;
        self.writer.abort();
        let words = self.last_words.await.unwrap_or_default();
        let limit = self.home.options.extract;
        let failure = match &end {
            End::Unneeded | End::ShuttingDown => Failure::cancelled(),
            End::Overrun => Failure::permanent(format!("extract ran longer than {} and was stopped", seconds(limit))),
            End::Dying(reason) => Failure::permanent(dying(reason)),
            End::Lost(error) => post_mortem(status, &words, error, limit),
        };
        let calls = self.pending.len();
        if calls > 0 && failure.kind != FailureKind::Cancelled {
            tracing::warn!(plugin = %self.file, calls, "the plugin's worker has ended: {failure}");
        }
        let shared = calls > 1 && failure.kind != FailureKind::Cancelled;
        for (_, call) in self.pending.drain() {
            let failure = failure.clone();
            let _ = call.reply.send(Err(if shared { NoAnswer::Shared(failure) } else { NoAnswer::Failed(failure) }));
        }
    }
}

/// What the exit status of a worker that was not stopped by the node says.
fn post_mortem(status: io::Result<ExitStatus>, words: &str, error: &FrameError, cpu: Duration) -> Failure {
    let memory = bounds::ADDRESS_SPACE_BYTES >> 20;
    let signal = status.as_ref().ok().and_then(ExitStatus::signal);
    match signal {
        Some(libc::SIGXCPU) => {
            Failure::permanent(format!("it used more than {} of processor time and was stopped", seconds(cpu)))
        }
        Some(libc::SIGABRT | libc::SIGSEGV | libc::SIGBUS) if words.contains("memory allocation of") => {
            Failure::permanent(format!("it used more than {memory} MiB of memory and was stopped"))
        }
        Some(libc::SIGABRT | libc::SIGSEGV | libc::SIGBUS) => {
            let status = status.map(|status| status.to_string()).unwrap_or_default();
            Failure::permanent(format!("it crashed its worker ({status}){}", said(words)))
        }
        Some(_) => {
            let status = status.map(|status| status.to_string()).unwrap_or_default();
            Failure::transient(format!("its worker was ended from outside ({status}); try again"))
        }
        None if !words.is_empty() => Failure::transient(format!("its worker ended{}", said(words))),
        None => Failure::transient(format!("its worker was lost: {error}")),
    }
}

fn said(words: &str) -> String {
    match words.lines().rev().find(|line| !line.trim().is_empty()) {
        Some(line) => format!("; its last words: {}", line.trim()),
        None => String::new(),
    }
}

fn dying(reason: &Dying) -> String {
    match reason {
        Dying::OutOfMemory { limit_bytes } => {
            format!("it used more than {} MiB of memory and was stopped", limit_bytes >> 20)
        }
    }
}

/// `TypeError: x is not a function (example.js:3:14)`
fn located(error: &ScriptError, file: &str) -> String {
    match error.at {
        Some(Position { line, column }) => format!("{} ({file}:{line}:{column})", error.message),
        None => error.message.clone(),
    }
}

fn unexpected(message: &ToNode) -> FrameError {
    let name = format!("{message:?}").chars().take(60).collect::<String>();
    FrameError::Io(io::Error::other(format!("it sent {name} out of turn")))
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}

fn whole_seconds(duration: Duration) -> u64 {
    duration.as_millis().div_ceil(1000) as u64
}

/// Frames as they arrive. Dropping [`FrameStream::next`] in mid-frame loses nothing.
struct FrameStream {
    socket: OwnedReadHalf,
    buffer: BytesMut,
}

impl FrameStream {
    fn new(socket: OwnedReadHalf) -> FrameStream {
        FrameStream { socket, buffer: BytesMut::new() }
    }

    async fn expect<M: DeserializeOwned>(&mut self) -> Result<Frame<M>, FrameError> {
        loop {
            if let Some(frame) = decode(&mut self.buffer)? {
                return Ok(frame);
            }
            self.buffer.reserve(READ_BYTES);
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    async fn next(&mut self) -> Result<Frame<ToNode>, FrameError> {
        self.expect().await
    }
}

async fn write_frames(mut socket: OwnedWriteHalf, mut frames: mpsc::Receiver<BytesMut>) {
    while let Some(frame) = frames.recv().await {
        // The reading side hears of a broken socket as well and says why.
        if socket.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// The end of what a worker wrote to its standard error.
async fn tail(stderr: Option<ChildStderr>) -> String {
    let Some(mut stderr) = stderr else { return String::new() };
    let mut kept = Vec::new();
    let mut piece = [0; 1024];
    while let Ok(read @ 1..) = stderr.read(&mut piece).await {
        kept.extend_from_slice(&piece[..read]);
        let surplus = kept.len().saturating_sub(limits::PLUGIN_STDERR_BYTES);
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// The plugin's console, into the node's log.
struct Log {
    file: String,
    lines_left: u32,
}

impl Log {
    fn new(file: &str) -> Log {
        Log { file: file.into(), lines_left: bounds::LOG_LINES + 1 }
    }

    fn begin_call(&mut self) {
        self.lines_left = bounds::LOG_LINES + 1;
    }

    fn line(&mut self, level: LogLevel, text: &str) {
        let Some(left) = self.lines_left.checked_sub(1) else { return };
        self.lines_left = left;
        let plugin = &self.file;
        let text: String =
            text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect();
        match level {
            LogLevel::Debug => tracing::debug!(%plugin, "{text}"),
            LogLevel::Info => tracing::info!(%plugin, "{text}"),
            LogLevel::Warn => tracing::warn!(%plugin, "{text}"),
            LogLevel::Error => tracing::error!(%plugin, "{text}"),
        }
    }
}
