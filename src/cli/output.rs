//! What goes to standard output and how numbers, times and foreign text look on it.
//!
//! Standard output is written through a buffer that reports its errors, unlike `println!`, which panics when the
//! reader is gone. Colours are used on a terminal only, and never when `NO_COLOR` is set.

use std::borrow::Cow;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::time::Duration;

use serde::Serialize;

use super::exit::{CliError, Result};

pub const RED: &str = "1;31";
pub const GREEN: &str = "32";
pub const YELLOW: &str = "33";
pub const DIM: &str = "2";

/// Buffered standard output. Dropping it flushes without telling errors: end with [`Output::finish`].
pub struct Output {
    writer: BufWriter<StdoutLock<'static>>,
    color: bool,
}

impl Output {
    pub fn new() -> Self {
        let stdout = io::stdout().lock();
        let color = stdout.is_terminal() && color_allowed();
        Self { writer: BufWriter::new(stdout), color }
    }

    pub fn line(&mut self, text: &str) -> Result<()> {
        writeln!(self.writer, "{text}").map_err(CliError::Output)
    }

    /// One JSON document on one line.
    pub fn json(&mut self, value: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.writer, value).map_err(|error| CliError::Output(error.into()))?;
        self.line("")
    }

    pub fn paint(&self, text: &str, code: &str) -> String {
        paint(text, code, self.color)
    }

    pub fn flush(&mut self) -> Result<()> {
        self.writer.flush().map_err(CliError::Output)
    }

    pub fn finish(mut self) -> Result<()> {
        self.flush()
    }
}

/// <https://no-color.org>: any non-empty value switches colours off. A dumb terminal has none.
pub fn color_allowed() -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !no_color && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

pub fn paint(text: &str, code: &str, color: bool) -> String {
    if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
}

/// Foreign text without characters that could steer the terminal.
pub fn clean(text: &str) -> Cow<'_, str> {
    let steers =
        |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|c| if steers(c) { '\u{fffd}' } else { c }).collect())
}

/// `1.50 GiB`.
pub fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

pub fn rate(bytes_per_s: u64) -> String {
    format!("{}/s", indicatif::BinaryBytes(bytes_per_s))
}

/// `47 s`, `3 min 05 s`, `2 h 10 min`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Rows with columns padded to the widest cell; the last column is left as it is.
pub fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widest = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| width(cell)).max();
    let widths: Vec<usize> = (0..columns).map(|column| widest(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let last = row.len().saturating_sub(1);
        let cells = row.iter().enumerate().map(|(column, cell)| match column {
            _ if column == last => cell.clone(),
            _ => format!("{cell}{}", " ".repeat(widths[column] - width(cell))),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    rows.iter().map(line).collect()
}

/// Characters that take a column: paint does not.
fn width(cell: &str) -> usize {
    let mut painted = cell.split("\x1b[");
    let plain = painted.next().map_or(0, |text| text.chars().count());
    painted.fold(plain, |sum, text| sum + text.split_once('m').map_or(0, |(_, shown)| shown.chars().count()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_steer_the_terminal() {
        assert_eq!(clean("plain ünïcode"), "plain ünïcode");
        assert_eq!(clean("a\x1b[31mb\r\u{9b}c\u{202e}d\ne"), "a\u{fffd}[31mb\u{fffd}\u{fffd}c\u{fffd}d\ne");
    }

    #[test]
    fn durations_and_sizes_read_well() {
        let of = |s| duration(Duration::from_secs(s));
        assert_eq!([of(0), of(59), of(185), of(7805)], ["0 s", "59 s", "3 min 05 s", "2 h 10 min"]);
        assert_eq!([bytes(0), bytes(1536), rate(3 << 30)], ["0 B", "1.50 KiB", "3.00 GiB/s"]);
    }

    #[test]
    fn columns_line_up() {
        let row = |cells: [&str; 3]| cells.map(String::from).to_vec();
        let lines = table(&[row(["a", "bbb", "c"]), row(["aéa", "b", ""])]);
        assert_eq!(lines, ["a    bbb  c", "aéa  b"]);
        let painted = table(&[vec![paint("ab", RED, true), "x".into()], row(["abcd", "y", ""])]);
        assert_eq!(painted, ["\x1b[1;31mab\x1b[0m    x", "abcd  y"]);
    }

    #[test]
    fn paint_is_plain_without_colour() {
        assert_eq!(paint("x", RED, false), "x");
        assert_eq!(paint("x", RED, true), "\x1b[1;31mx\x1b[0m");
    }
}
