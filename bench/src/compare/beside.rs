//! What the comparisons of the node with another program share: their options, which cases were asked for, the walk
//! through them, which Ctrl-C cuts short, and the sync of what a rival leaves in the page cache.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;

use super::node::Program;
use super::result::{Case, Section};
use super::{Common, stop};

#[derive(Debug, Args)]
pub struct Beside {
    #[command(flatten)]
    pub common: Common,
    /// The node to measure [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    reelring: Option<PathBuf>,
    /// Only cases whose name begins so; may be given several times
    #[arg(long = "case", value_name = "PREFIX")]
    cases: Vec<String>,
}

impl Beside {
    pub fn program(&self) -> anyhow::Result<Program> {
        Program::find(self.reelring.as_deref())
    }

    /// The cases that were asked for; all of them where none was.
    pub fn chosen<P>(&self, mut cases: Vec<P>, name: impl Fn(&P) -> &str) -> anyhow::Result<Vec<P>> {
        let names: Vec<String> = cases.iter().map(|case| name(case).to_owned()).collect();
        let begins = |case: &P| self.cases.iter().any(|prefix| name(case).starts_with(prefix.as_str()));
        cases.retain(|case| self.cases.is_empty() || begins(case));
        let (asked, there) = (self.cases.join(" or "), names.join(", "));
        ensure!(!cases.is_empty(), "no case begins with {asked}; there are: {there}");
        Ok(cases)
    }
}

/// Measures one case after the other into `section`. After Ctrl-C, which a case without a result means too, what came
/// before stays.
pub fn each<P>(
    section: &mut Section,
    cases: &[P],
    mut measure: impl FnMut(&P, &mut Vec<String>) -> anyhow::Result<Option<Case>>,
) -> anyhow::Result<()> {
    for case in cases {
        match measure(case, &mut section.notes) {
            Ok(Some(case)) => section.cases.push(case),
            Ok(None) => break,
            Err(_) if stop::asked() => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Seconds, and CPU seconds of this thread, that it takes to bring a file to the disk.
pub fn sync(path: &Path) -> anyhow::Result<(f64, f64)> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let (start, before) = (Instant::now(), thread_cpu_seconds());
    file.sync_data().with_context(|| format!("syncing {}", path.display()))?;
    Ok((start.elapsed().as_secs_f64(), thread_cpu_seconds() - before))
}

/// CPU seconds of the calling thread so far.
pub fn thread_cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
