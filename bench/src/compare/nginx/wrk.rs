//! The load: wrk with a generated script, and what it reports.
//!
//! The script draws ranges from a seed, so that both servers are asked for the same ones in the same order, and prints one
//! line of JSON at the end. It has no `response` function on purpose: that would make wrk copy every body into Lua, and
//! measure Lua. Whether the answers were right shows in the number of bytes ([`Outcome::check`]).

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use serde::Deserialize;

use crate::limits;

/// What one connection asks for, again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    pub connections: u32,
    /// Size of the object.
    pub size: u64,
    /// Length of the ranges, or the whole object.
    pub range: Option<u64>,
    /// No range twice until all have been asked for: what was cold stays cold.
    pub distinct: bool,
}

/// What wrk counted in one round.
#[derive(Debug, Clone, Deserialize)]
pub struct Outcome {
    pub duration_us: f64,
    /// Whole answers.
    pub requests: u64,
    /// Of whole and broken-off answers, heads included.
    pub bytes: u64,
    connect_errors: u64,
    read_errors: u64,
    write_errors: u64,
    status_errors: u64,
    timeouts: u64,
    /// In microseconds, for [`QUANTILES`].
    latency_us: Vec<f64>,
}

/// Shares of the requests.
pub const QUANTILES: [f64; 14] = [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999];

/// What precedes the script's result among wrk's own lines.
const MARK: &str = "@result ";

impl Load {
    /// Bytes of one answer's body.
    pub fn answer(&self) -> u64 {
        self.range.unwrap_or(self.size)
    }

    /// How many different answers there are.
    fn blocks(&self) -> u64 {
        (self.size / self.answer()).max(1)
    }

    /// The ranges' numbers as the script draws them, for the check that both servers send the same.
    pub fn sample(&self, seed: u32, count: usize) -> Vec<(u64, u64)> {
        let mut draw = Draw(seed.clamp(1, Draw::MODULUS as u32 - 1).into());
        let length = self.answer();
        (0..count).map(|_| draw.next(self.blocks()) * length).map(|first| (first, first + length - 1)).collect()
    }

    /// The ranges' numbers as the script draws them, one after the other.
    pub fn blocks_from(&self, seed: u32) -> Blocks {
        let mut draw = Draw(seed.clamp(1, Draw::MODULUS as u32 - 1).into());
        let mut deck: Vec<u64> = Vec::new();
        for number in 0..if self.distinct { self.blocks() } else { 0 } {
            let other = draw.next(number + 1) as usize;
            deck.push(number);
            deck[number as usize] = deck[other];
            deck[other] = number;
        }
        Blocks { draw, deck, at: 0 }
    }

    /// The script for wrk. All numbers stay below 2^53, where Lua's are exact.
    pub fn script(&self, seed: u32) -> String {
        let mut script = format!(
            "local state, blocks, length = {}, {}, {}\n\
             local function draw(n)\n  \
               state = state * {} % {}\n  \
               return state % n\n\
             end\n",
            seed.clamp(1, Draw::MODULUS as u32 - 1),
            self.blocks(),
            self.answer(),
            Draw::FACTOR,
            Draw::MODULUS,
        );
        if self.distinct {
            // A shuffled deck, walked again when it is used up.
            script.push_str(
                "local deck, at = {}, 0\n\
                 for i = 1, blocks do\n  \
                   local j = draw(i) + 1\n  \
                   deck[i] = deck[j]\n  \
                   deck[j] = i - 1\n\
                 end\n\
                 local function block()\n  \
                   at = at % blocks + 1\n  \
                   return deck[at]\n\
                 end\n",
            );
        } else {
            script.push_str("local function block() return draw(blocks) end\n");
        }
        if self.range.is_some() {
            script.push_str(
                "request = function()\n  \
                   local first = block() * length\n  \
                   return wrk.format('GET', nil, { Range = string.format('bytes=%.0f-%.0f', first, first + length - 1) })\n\
                 end\n",
            );
        }
        let percents = QUANTILES.map(|share| format!("{:.1}", share * 100.0)).join(", ");
        let _ = write!(
            script,
            "done = function(summary, latency, requests)\n  \
               local errors, slow = summary.errors, {{}}\n  \
               for i, percent in ipairs({{ {percents} }}) do slow[i] = string.format('%.0f', latency:percentile(percent)) end\n  \
               io.write(string.format('{MARK}{{\"duration_us\":%.0f,\"requests\":%.0f,\"bytes\":%.0f,\"connect_errors\":%.0f,'\n    \
                 .. '\"read_errors\":%.0f,\"write_errors\":%.0f,\"status_errors\":%.0f,\"timeouts\":%.0f,\"latency_us\":[%s]}}\\n',\n    \
                 summary.duration, summary.requests, summary.bytes, errors.connect, errors.read, errors.write,\n    \
                 errors.status, errors.timeout, table.concat(slow, ',')))\n\
             end\n"
        );
        script
    }

    /// The command that lays this load on `url` for a round.
    pub fn command(&self, wrk: &Path, script: &Path, url: &str, round: Duration) -> Command {
        let mut command = Command::new(wrk);
        command
            .args(["-t", "1", "-c", &self.connections.to_string()])
            // wrk counts whole seconds.
            .args(["-d", &format!("{}s", whole_seconds(round))])
            .args(["--timeout", &format!("{}s", limits::WRK_TIMEOUT.as_secs()), "--latency", "-s"])
            .arg(script)
            .arg(url);
        command
    }
}

/// Draws the numbers of ranges.
pub struct Blocks {
    draw: Draw,
    /// Of a load whose ranges are distinct.
    deck: Vec<u64>,
    at: usize,
}

impl Blocks {
    pub fn next(&mut self, load: &Load) -> u64 {
        if self.deck.is_empty() {
            return self.draw.next(load.blocks());
        }
        self.at = self.at % self.deck.len() + 1;
        self.deck[self.at - 1]
    }
}

/// What wrk makes of a round's length.
pub fn whole_seconds(round: Duration) -> u64 {
    round.as_secs_f64().ceil().max(1.0) as u64
}

/// Park and Miller's generator, the same here and in the script.
struct Draw(u64);

impl Draw {
    const FACTOR: u64 = 16807;
    const MODULUS: u64 = 2_147_483_647;

    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0 * Self::FACTOR % Self::MODULUS;
        self.0 % below
    }
}

impl Outcome {
    pub fn parse(output: &str) -> anyhow::Result<Outcome> {
        let line = output.lines().find_map(|line| line.trim().strip_prefix(MARK));
        let line = line.with_context(|| format!("wrk printed no result: {}", output.trim()))?;
        serde_json::from_str(line).with_context(|| format!("wrk's result {line:?}"))
    }

    /// What another client counted, in which every error ends the round.
    pub fn counted(elapsed: Duration, requests: u64, bytes: u64, latencies: &Histogram<u64>) -> Outcome {
        Outcome {
            duration_us: elapsed.as_secs_f64() * 1e6,
            requests,
            bytes,
            connect_errors: 0,
            read_errors: 0,
            write_errors: 0,
            status_errors: 0,
            timeouts: 0,
            latency_us: QUANTILES.map(|share| latencies.value_at_quantile(share) as f64 / 1000.0).to_vec(),
        }
    }

    /// Whether only whole, right answers were counted. A server that ignored ranges, or sent errors, shows in the bytes.
    pub fn check(&self, load: &Load, head_bytes: u64) -> anyhow::Result<()> {
        let errors = self.connect_errors + self.read_errors + self.write_errors + self.status_errors + self.timeouts;
        ensure!(
            errors == 0,
            "wrk met {} connect, {} read, {} write and {} status errors and {} time-outs in {} requests",
            self.connect_errors,
            self.read_errors,
            self.write_errors,
            self.status_errors,
            self.timeouts,
            self.requests
        );
        // Heads differ by a few digits; one answer a connection may be broken off by the end of the round.
        let slack = 128;
        let least = self.requests * (load.answer() + head_bytes.saturating_sub(slack));
        let most = (self.requests + u64::from(load.connections)) * (load.answer() + head_bytes + slack);
        ensure!(
            (least..=most).contains(&self.bytes),
            "{} requests of {} bytes with heads of {head_bytes} bytes came to {} bytes, {least} to {most} are right",
            self.requests,
            load.answer(),
            self.bytes
        );
        ensure!(self.bytes > 0 && self.duration_us > 0.0, "wrk received nothing in {} µs", self.duration_us);
        Ok(())
    }

    /// Bytes of bodies alone: a server with longer heads moves no more data.
    pub fn body_bytes(&self, head_bytes: u64) -> u64 {
        self.bytes.saturating_sub(self.requests * head_bytes)
    }

    pub fn seconds(&self) -> f64 {
        self.duration_us / 1e6
    }

    /// Quantile and nanoseconds.
    pub fn latency_ns(&self) -> Vec<(f64, u64)> {
        QUANTILES.iter().zip(&self.latency_us).map(|(share, us)| (*share, (us * 1000.0) as u64)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Load = Load { connections: 4, size: 1 << 20, range: Some(1 << 16), distinct: false };

    fn outcome(requests: u64, bytes: u64, timeouts: u64) -> Outcome {
        let line = format!(
            "Running 1s test\n{MARK}{{\"duration_us\":1000000,\"requests\":{requests},\"bytes\":{bytes},\"connect_errors\":0,\
             \"read_errors\":0,\"write_errors\":0,\"status_errors\":0,\"timeouts\":{timeouts},\"latency_us\":[1,2]}}\n"
        );
        Outcome::parse(&line).unwrap()
    }

    #[test]
    fn right_answers_pass_and_wrong_ones_do_not() {
        let one = (1 << 16) + 300;
        outcome(10, 10 * one + 5000, 0).check(&LOAD, 300).unwrap();
        // As many answers, but short ones; whole objects instead of ranges; a time-out.
        for (bytes, timeouts) in [(10 * 400, 0), (10 * ((1 << 20) + 300), 0), (10 * one, 1)] {
            assert!(outcome(10, bytes, timeouts).check(&LOAD, 300).is_err(), "{bytes}");
        }
        assert_eq!(outcome(10, 10 * one, 0).body_bytes(300), 10 << 16);
    }

    #[test]
    fn a_result_is_found_among_wrks_lines() {
        assert_eq!(outcome(1, 2, 3).latency_ns(), [(0.01, 1000), (0.05, 2000)]);
        assert!(Outcome::parse("Running 1s test").unwrap_err().to_string().contains("no result"));
    }

    #[test]
    fn samples_lie_inside_and_depend_on_the_seed_alone() {
        let sample = LOAD.sample(7, 100);
        assert!(sample.iter().all(|(first, last)| first % (1 << 16) == 0 && last - first == 0xffff && *last < 1 << 20));
        assert_eq!(sample, LOAD.sample(7, 100));
        assert_ne!(sample, LOAD.sample(8, 100));
        let whole = Load { range: None, ..LOAD };
        assert_eq!(whole.sample(7, 1), [(0, (1 << 20) - 1)]);
    }

    #[test]
    fn blocks_are_drawn_as_the_sample_is_and_distinct_ones_each_once() {
        let distinct = Load { distinct: true, ..LOAD };
        let mut blocks = distinct.blocks_from(7);
        let mut drawn: Vec<u64> = (0..32).map(|_| blocks.next(&distinct)).collect();
        assert_eq!(drawn[..16], drawn[16..]);
        drawn.truncate(16);
        drawn.sort_unstable();
        assert!(drawn.into_iter().eq(0..16));
        let mut blocks = LOAD.blocks_from(7);
        let firsts: Vec<u64> = LOAD.sample(7, 9).iter().map(|(first, _)| first >> 16).collect();
        assert!(firsts.into_iter().all(|first| first == blocks.next(&LOAD)));
    }

    #[test]
    fn seconds_are_whole_and_at_least_one() {
        assert_eq!([0.0, 0.3, 1.0, 1.2].map(|s| whole_seconds(Duration::from_secs_f64(s))), [1, 1, 1, 2]);
    }
}
