//! `reelring completions SHELL`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::exit::Result;
use super::output::Output;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  reelring completions bash > ~/.local/share/bash-completion/completions/reelring
  reelring completions zsh > ~/.zfunc/_reelring
  reelring completions fish > ~/.config/fish/completions/reelring.fish")]
pub struct Completions {
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::Cli::command(), "reelring", &mut script);
        let mut output = Output::new();
        output.line(String::from_utf8_lossy(&script).trim_end())?;
        output.finish()
    }
}
