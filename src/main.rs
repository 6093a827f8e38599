//! The `reelring` program. Everything lives in the library; `cli` picks the subcommand.

fn main() -> std::process::ExitCode {
    reelring::cli::run()
}
