//! The `reelring` program. Everything lives in the library; `cli` picks the subcommand.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    reelring::cli::run()
}
