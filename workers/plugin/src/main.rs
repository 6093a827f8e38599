//! The plugin worker: one plugin's JavaScript, in a process that can be killed.
//!
//! Its standard input is the control socket, its only way in and out; it ends when the node closes the other end. It has
//! no network, no files, bounded memory and a processor time that each call renews. The node decides when a call has
//! taken too long and kills the process; nothing here needs to be polite about that, since it owns nothing that outlives
//! it. Calls run side by side on one engine, so whatever ends the process ends all of them.

mod confine;
mod link;
mod ops;
mod script;

use std::future::poll_fn;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::rc::Rc;
use std::task::{Context, Poll};

use anyhow::Context as _;
use deno_core::futures::StreamExt;
use deno_core::futures::stream::FuturesUnordered;
use deno_core::v8;
use link::{Link, Page};
use reelring_protocol::plugin::{self, Dying, LogLevel, ScriptError, ToNode, ToWorker, limits};
use reelring_protocol::{Frame, Hello};
use script::Script;
use tokio::sync::mpsc::UnboundedReceiver;

fn main() -> ExitCode {
    // SAFETY: the process has one thread so far. The first keeps the engine from caching bytecode in the user's home, the
    // second from setting up WebAssembly.
    unsafe {
        std::env::set_var("V82JSC_NO_BC_CACHE", "1");
        std::env::set_var("QJS_NO_WASM", "1");
    }
    // One line for the node to show, and the end: nothing here outlives a panic, most of which come through C frames.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{}", panic.to_string().replace('\n', " "));
        std::process::abort();
    }));
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    confine::limits().context("cannot limit this process")?;
    let socket = std::io::stdin().as_fd().try_clone_to_owned().context("cannot open the control socket")?;
    let socket = UnixStream::from(socket);
    socket.peer_addr().context("standard input is not a socket: this program is started by reelring, not by hand")?;
    let inbox = link::listen(socket.try_clone()?)?;
    let link = Rc::new(Link::new(socket));

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let script = Script::new(link.clone()).context("cannot start the JavaScript engine")?;
        let about = format!("QuickJS by deno_core; confined by {}", confine::system_calls());
        link.send(&Hello::new(plugin::WORKER, env!("CARGO_PKG_VERSION"), about), b"");
        let mut worker = Worker { script, link, inbox, calls: FuturesUnordered::new() };
        worker.load().await?;
        poll_fn(|context| worker.turn(context)).await
    })
}

type Ended = (u64, Result<v8::Global<v8::Value>, ScriptError>);

struct Worker {
    script: Script,
    link: Rc<Link>,
    inbox: UnboundedReceiver<Frame<ToWorker>>,
    calls: FuturesUnordered<std::pin::Pin<Box<dyn Future<Output = Ended>>>>,
}

impl Worker {
    /// Waits for the plugin and loads it; a plugin that cannot be loaded leaves the worker without a purpose.
    async fn load(&mut self) -> anyhow::Result<()> {
        let frame = self.inbox.recv().await.context("the node closed the socket before it sent a plugin")?;
        let ToWorker::Load { file, cpu_s } = frame.message else {
            anyhow::bail!("the node sent {:?} where a plugin was expected", frame.message);
        };
        let source = String::from_utf8(frame.payload.to_vec()).context("the plugin's text is not UTF-8")?;
        confine::grant_cpu(cpu_s)?;
        let loaded = self.script.load(&file, source).await;
        self.check_memory();
        match loaded {
            Ok(manifest) => {
                self.link.send(&ToNode::Loaded, manifest.as_bytes());
                Ok(())
            }
            Err(error) => {
                self.link.send(&ToNode::LoadFailed { error }, b"");
                std::process::exit(0);
            }
        }
    }

    /// Takes what the node sent, lets JavaScript run, sends what came of it. Pending until there is more of any.
    fn turn(&mut self, context: &mut Context<'_>) -> Poll<anyhow::Result<()>> {
        loop {
            while let Poll::Ready(frame) = self.inbox.poll_recv(context) {
                let Some(frame) = frame else { return Poll::Ready(Ok(())) };
                self.take(frame)?;
            }
            let ran = self.script.poll(context);
            self.check_memory();
            let mut settled = false;
            while let Poll::Ready(Some((call, result))) = self.calls.poll_next_unpin(context) {
                settled = true;
                self.finish(call, result);
            }
            match ran {
                // An exception outside of any call: in a timer, or a rejection that nobody awaits.
                Poll::Ready(Err(error)) => self.link.log(LogLevel::Error, &format!("uncaught {}", error.message)),
                Poll::Ready(Ok(())) if !settled => {
                    self.end_stuck_calls();
                    return Poll::Pending;
                }
                Poll::Ready(Ok(())) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn take(&mut self, Frame { message, payload }: Frame<ToWorker>) -> anyhow::Result<()> {
        match message {
            ToWorker::Load { .. } => anyhow::bail!("the node sent a second plugin"),
            ToWorker::Extract { call, url, cpu_s } => {
                confine::grant_cpu(cpu_s)?;
                self.link.begin_call(call);
                self.link.send(&ToNode::Begun { call }, b"");
                let running = self.script.call(call, &url);
                self.check_memory();
                match running {
                    Ok(running) => self
                        .calls
                        .push(Box::pin(async move { (call, running.await.map_err(|error| script::from_js(&error))) })),
                    Err(error) => self.finish(call, Err(error)),
                }
            }
            ToWorker::Fetched { fetch, status, url, headers } => {
                self.link.answer(fetch, Ok(Page { status, url, headers, body: payload.to_vec() }));
            }
            ToWorker::FetchFailed { fetch, message } => self.link.answer(fetch, Err(message)),
        }
        Ok(())
    }

    fn finish(&mut self, call: u64, result: Result<v8::Global<v8::Value>, ScriptError>) {
        self.link.end_call(call);
        match result.and_then(|value| self.script.json(&value)) {
            Ok(json) => self.link.send(&ToNode::Extracted { call }, json.as_bytes()),
            Err(error) => self.link.send(&ToNode::ExtractFailed { call, error }, b""),
        }
    }

    /// No timer, no fetch, nothing to run: a call still open can never end.
    fn end_stuck_calls(&mut self) {
        self.calls.clear();
        for call in self.link.open_calls() {
            let error = ScriptError { message: script::NEVER_SETTLES.into(), at: None };
            self.finish(call, Err(error));
        }
    }

    fn check_memory(&mut self) {
        if self.script.out_of_memory() {
            let reason = Dying::OutOfMemory { limit_bytes: limits::HEAP_BYTES as u64 };
            self.link.send(&ToNode::Dying { reason }, b"");
            std::process::exit(1);
        }
    }
}
