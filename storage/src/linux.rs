//! Which Linux this is: some of what it promises came late.

use std::sync::LazyLock;

/// Whether the running kernel is that version, or a later one.
pub(crate) fn is_at_least(wanted: (u32, u32)) -> bool {
    static RUNNING: LazyLock<Option<(u32, u32)>> =
        LazyLock::new(|| version(&std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()));
    RUNNING.is_some_and(|running| running >= wanted)
}

/// `6.18.44-fc` is (6, 18).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_understood() {
        assert_eq!(version("6.18.44-fc-v669\n"), Some((6, 18)));
        assert_eq!(version("5.15-generic"), Some((5, 15)));
        assert_eq!(version(""), None);
        assert!(is_at_least((2, 6)) && !is_at_least((99, 0)));
    }
}
