//! The command line: one file per subcommand, and what they share.
//!
//! Every command that works on objects or jobs speaks the HTTP contract through `client`, over the network to a
//! running node, or without a socket to a node that this process opens itself (`session`); so there is one
//! implementation of each command and it cannot differ between the two.
//!
//! Results go to standard output, everything else to standard error. A reader that goes away (`reelring ls | head`)
//! ends the command quietly. Exit status: 0 done, 1 failed, 2 usage, 130 interrupted.

mod client;
mod completions;
mod config;
mod display;
mod doctor;
mod events;
mod exit;
mod fetch;
mod follow;
mod get;
mod interrupt;
mod jobs;
mod ls;
mod output;
mod plugins;
mod put;
mod remote;
mod resumable;
mod rm;
mod scrub;
mod serve;
mod session;
mod sign;
mod source;
mod target;
mod token;
mod transcode;
mod transport;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// A media storage node: fetch, store, transcode and serve video.
#[derive(Debug, Parser)]
#[command(
    name = "reelring",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "\
Examples:
  reelring serve                                start a node on 127.0.0.1:8080
  reelring fetch https://example.org/film.mp4   download into the store
  reelring transcode film.mp4 --ladder 360p,720p --wait
  reelring ls                                   what is stored
  reelring doctor                               what works here, what to do about the rest

Commands use the node at --node or REELRING_NODE. Without one they use the node that runs
on --data, or open --data themselves.
Exit status: 0 done, 1 failed, 2 usage, 130 interrupted."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the node
    Serve(serve::Serve),
    /// Download a URL into the store
    Fetch(fetch::Fetch),
    /// Store a file
    Put(put::Put),
    /// Copy an object to a file
    Get(get::Get),
    /// List objects
    Ls(ls::Ls),
    /// Delete objects
    Rm(rm::Rm),
    /// Make an object playable: a ladder of renditions as HLS
    Transcode(transcode::Transcode),
    /// Show jobs
    Jobs(jobs::Jobs),
    /// Stop a job for good
    Cancel(jobs::Cancel),
    /// Stop a job so that it can go on later
    Pause(jobs::Pause),
    /// Let a paused job go on
    Resume(jobs::Resume),
    /// Run a failed or cancelled job again
    Retry(jobs::Retry),
    /// Show extractor plugins
    Plugins(plugins::Plugins),
    /// Check what works on this machine
    Doctor(doctor::Doctor),
    /// Read everything that is stored and compare it with its checksums
    Scrub(scrub::Scrub),
    /// Say who may use the node: make, list and revoke tokens
    Token(token::Token),
    /// Make an address that works without a token, for a while
    Sign(sign::Sign),
    /// Show or check the configuration
    Config(config::Config),
    /// Print a completion script for a shell
    Completions(completions::Completions),
}

/// Where a command works: options that all of them share.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Where")]
struct Place {
    /// Address of a running node, for instance http://127.0.0.1:8080
    #[arg(long, value_name = "URL", env = "REELRING_NODE", hide_env_values = true)]
    node: Option<String>,
    /// Data directory; the node running on it is used, otherwise it is opened directly [default: ./reelring-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// File with the token for --node; REELRING_TOKEN may have the token itself
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM certificates to trust beside this machine's, for an https --node
    #[arg(long, value_name = "FILE", env = "REELRING_CA_FILE", hide_env = true)]
    ca_file: Option<PathBuf>,
    /// Configuration file [default: ./reelring.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Parses the command line and runs the subcommand.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too. A closed output is nobody's concern here.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(exit::USAGE));
        }
    };
    let outcome = match cli.command {
        Command::Serve(command) => command.run(),
        Command::Fetch(command) => command.run(),
        Command::Put(command) => command.run(),
        Command::Get(command) => command.run(),
        Command::Ls(command) => command.run(),
        Command::Rm(command) => command.run(),
        Command::Transcode(command) => command.run(),
        Command::Jobs(command) => command.run(),
        Command::Cancel(command) => command.run(),
        Command::Pause(command) => command.run(),
        Command::Resume(command) => command.run(),
        Command::Retry(command) => command.run(),
        Command::Plugins(command) => command.run(),
        Command::Doctor(command) => command.run(),
        Command::Scrub(command) => command.run(),
        Command::Token(command) => command.run(),
        Command::Sign(command) => command.run(),
        Command::Config(command) => command.run(),
        Command::Completions(command) => command.run(),
    };
    exit::status(outcome)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_argument_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_has_examples_that_fit_a_terminal() {
        for command in Cli::command().get_subcommands() {
            let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(examples.contains("reelring "), "{} has no examples", command.get_name());
            let longest = examples.lines().map(|line| line.chars().count()).max();
            assert!(longest < Some(96), "{}: {examples}", command.get_name());
        }
    }
}
