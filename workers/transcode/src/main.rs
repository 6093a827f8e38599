//! Reelring's transcode worker: FFmpeg's libraries in a process of their own, because they and GPU drivers crash and hang.
//!
//! Only the node starts it. Descriptor 0 is the socket to the node, 1 the source (read by offset, never written), 2 the log.
//! It takes one job, answers on the socket, and exits. See docs/design/transcode.md.

mod audio;
mod av;
mod decoder;
mod encoder;
mod error;
mod filters;
mod hardware;
mod io;
mod limits;
mod link;
mod log;
mod muxer;
mod orientation;
mod pipeline;
mod resampler;
mod samples;
mod sandbox;
mod source;
mod survey;
mod timeline;
mod video;

use std::fs::File;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;

use reelring_protocol::Hello;
use reelring_protocol::transcode::{EncoderChoice, Failed, FromWorker, ToWorker, WORKER};

use crate::error::Failure;
use crate::hardware::Device;
use crate::link::{Commands, Link};
use crate::source::Source;

/// The node closed the socket before the job was done.
pub const EXIT_ABANDONED: i32 = 3;
/// A `Failed` message says why.
const EXIT_FAILED: u8 = 1;
/// Not started by a node.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("--version") {
        println!("{WORKER} {} ({})", env!("CARGO_PKG_VERSION"), source::ffmpeg_version());
        return ExitCode::SUCCESS;
    }
    log::install();
    if std::env::args().nth(1).as_deref() == Some("--encoders") {
        survey::lines().iter().for_each(|line| println!("{line}"));
        return ExitCode::SUCCESS;
    }
    let (link, commands) = match sandbox::limit_first().and_then(|()| link::connect()) {
        Ok(connected) => connected,
        Err(failure) => {
            log::say(&format!("{WORKER}: {failure}"));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match job(&link, commands) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            log::say(&format!("{WORKER}: {failure}"));
            let failed = Failed { class: failure.class, message: failure.message, log: log::tail() };
            // The node may be gone; then nobody needs to know.
            let _ = link.send(&FromWorker::Failed(failed));
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn job(link: &Arc<Link>, mut commands: Commands) -> Result<(), Failure> {
    let hello = Hello::new(WORKER, env!("CARGO_PKG_VERSION"), source::ffmpeg_version());
    link.send(&FromWorker::Hello(hello))?;
    let ToWorker::Open(open) = commands.next()? else {
        return Err(Failure::internal("the node's first message was not a source to open"));
    };
    let device = match open.encoder {
        EncoderChoice::Auto => Device::open(),
        EncoderChoice::Software => Err("the hardware failed on this source before".to_owned()),
    };
    sandbox::seal(device.is_ok())?;

    let file = std::io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| Failure::internal(format!("the source's descriptor: {error}")))?;
    let mut source = Source::open(File::from(file), &open, link.cancel_flag())?;
    source.drop_undecodable_audio();
    let probed = source.probed();
    link.send(&FromWorker::Probed(probed.clone()))?;
    let plan = match commands.next()? {
        ToWorker::Encode(plan) => plan,
        ToWorker::Cancel => return Err(Failure::cancelled()),
        ToWorker::Open(_) => return Err(Failure::internal("the node sent a second source")),
    };
    commands.watch(link)?;
    pipeline::run(&mut source, &probed, &plan, device.as_ref().map_err(String::as_str), link)
        .map_err(|failure| failure.about(source.name()))
}
