//! fio's summary, line by line, so that who reads fio's reads this.

use std::fmt::Write;
use std::time::SystemTime;

use super::json::part_of_group;
use super::{PERCENTILES, VERSION, decimal, engine, kibi, parts, pattern, scaled};
use crate::job::BlockSizes;
use crate::run::stats::{Depths, LATENCY_BOUNDS, Latency, Moments, Side};
use crate::run::{JobReport, Report};

/// `Sun Nov 22 19:31:24 2026`, in this machine's time.
pub fn clock(time: SystemTime) -> String {
    let zoned = jiff::Timestamp::try_from(time).map(|time| time.to_zoned(jiff::tz::TimeZone::system()));
    zoned.map_or_else(|_| String::new(), |zoned| zoned.strftime("%a %b %e %H:%M:%S %Y").to_string())
}

pub fn human(report: &Report) -> String {
    let mut out = String::new();
    write(&mut out, report).expect("a String takes everything");
    out
}

fn write(out: &mut String, report: &Report) -> std::fmt::Result {
    for job in &report.jobs {
        let (jobs, blocks) = (&job.job, |blocks: &BlockSizes| format!("{}-{}", size(blocks.min), size(blocks.max)));
        writeln!(
            out,
            "{}: (g={}): rw={}, bs=(R) {}, (W) {}, ioengine={}, iodepth={}",
            jobs.name,
            job.group,
            pattern(jobs),
            blocks(&jobs.read_blocks),
            blocks(&jobs.write_blocks),
            engine(job.engine),
            job.depth
        )?;
    }
    writeln!(out, "{VERSION}\n")?;
    for job in &report.jobs {
        write_job(out, job, report)?;
    }
    let groups = report.jobs.last().map_or(0, |job| job.group + 1);
    for group in 0..groups {
        let members: Vec<_> = report.jobs.iter().filter(|job| job.group == group).collect();
        writeln!(out, "\nRun status group {group} (all jobs):")?;
        for (name, side) in
            [("   READ", (|job| &job.stats.read) as fn(&JobReport) -> &Side), ("  WRITE", |job| &job.stats.write)]
        {
            let sides: Vec<&Side> = members.iter().map(|job| side(job)).filter(|side| side.operations > 0).collect();
            write_group(out, name, &sides)?;
        }
    }
    Ok(())
}

fn write_group(out: &mut String, name: &str, sides: &[&Side]) -> std::fmt::Result {
    let of = |f: fn(&Side) -> u64| sides.iter().map(move |side| f(side));
    let (Some(min), Some(max)) = (of(Side::bytes_per_second).min(), of(Side::bytes_per_second).max()) else {
        return Ok(());
    };
    let bytes = of(|side| side.bytes).sum::<u64>();
    let (shortest, longest) = (of(Side::milliseconds).min().unwrap_or(0), of(Side::milliseconds).max().unwrap_or(0));
    let all = (u128::from(bytes) * 1000 / u128::from(longest.max(1))) as u64;
    writeln!(
        out,
        "{name}: bw={}B/s ({}B/s), {}B/s-{}B/s ({}B/s-{}B/s), io={}B ({}B), run={shortest}-{longest}msec",
        kibi(all),
        decimal(all),
        kibi(min),
        kibi(max),
        decimal(min),
        decimal(max),
        kibi(bytes),
        decimal(bytes)
    )
}

fn write_job(out: &mut String, job: &JobReport, report: &Report) -> std::fmt::Result {
    let stats = &job.stats;
    let error = job.failure.as_ref().map_or(" 0".to_owned(), |failure| {
        format!("{:2} ({})", failure.errno, std::io::Error::from_raw_os_error(failure.errno))
    });
    let (name, group, clones, pid) = (&job.job.name, job.group, job.clones, std::process::id());
    let now = clock(SystemTime::now());
    writeln!(out, "{name}: (groupid={group}, jobs={clones}): err={error}: pid={pid}: {now}")?;
    let group_speed = |side: fn(&JobReport) -> &Side| {
        report.jobs.iter().filter(|other| other.group == group).map(|job| side(job).bytes_per_second()).sum()
    };
    write_side(out, " read", &stats.read, group_speed(|job| &job.stats.read))?;
    write_side(out, "write", &stats.write, group_speed(|job| &job.stats.write))?;
    let operations = stats.read.operations + stats.write.operations;
    for (unit, counts) in
        [("nsec", &stats.spread_ns[..]), ("usec", &stats.spread_us[..]), ("msec", &stats.spread_ms[..])]
    {
        write_latencies(out, unit, counts, operations)?;
    }
    if stats.sync.moments.count > 0 {
        writeln!(out, "  fsync/fdatasync/sync_file_range:")?;
        write_moments(out, "sync", &stats.sync.moments)?;
        write_percentiles(out, "sync", &stats.sync)?;
    }
    let percent = |used: std::time::Duration| used.as_secs_f64() * 100.0 / job.runtime.as_secs_f64().max(1e-3);
    let usage = &job.usage;
    writeln!(
        out,
        "  cpu          : usr={:.2}%, sys={:.2}%, ctx={}, majf={}, minf={}",
        percent(usage.user),
        percent(usage.system),
        usage.switches,
        usage.major_faults,
        usage.minor_faults
    )?;
    write_depths(out, "IO depths    ", ["1", "2", "4", "8", "16", "32", ">=64"], &stats.level, operations)?;
    for (name, counts) in [("   submit    ", &stats.submitted), ("   complete  ", &stats.completed)] {
        write_depths(out, name, ["0", "4", "8", "16", "32", "64", ">=64"], counts, counts.iter().sum())?;
    }
    writeln!(
        out,
        "     issued rwts: total={},{},0,{} short={},{},0,0 dropped=0,0,0,0",
        stats.read.operations, stats.write.operations, stats.sync.moments.count, stats.read.short, stats.write.short
    )
}

fn write_side(out: &mut String, name: &str, side: &Side, group_bytes_per_second: u64) -> std::fmt::Result {
    if side.operations == 0 {
        return Ok(());
    }
    let speed = side.bytes_per_second();
    writeln!(
        out,
        "  {}: IOPS={}, BW={}B/s ({}B/s)({}B/{}msec)",
        name.trim(),
        decimal(side.iops() as u64),
        kibi(speed),
        decimal(speed),
        kibi(side.bytes),
        side.milliseconds()
    )?;
    for (name, moments) in
        [("slat", &side.submission), ("clat", &side.completion.moments), (" lat", &side.total.moments)]
    {
        write_moments(out, name, moments)?;
    }
    write_percentiles(out, "clat", &side.completion)?;
    let (bw, iops) = (&side.bandwidth, &side.iops);
    if bw.count > 0 {
        let (unit, by) = if bw.mean() > 1024.0 * 1024.0 { ("MiB", 1024) } else { ("KiB", 1) };
        writeln!(
            out,
            "   bw ({unit:>5}/s): min={:>5}, max={:>5}, per={:.2}%, avg={:>5.2}, stdev={:>5.2}, samples={}",
            bw.min() / by,
            bw.max / by,
            part_of_group(bw, group_bytes_per_second),
            bw.mean() / by as f64,
            bw.deviation() / by as f64,
            bw.count
        )?;
        writeln!(
            out,
            "   iops        : min={:>5}, max={:>5}, avg={:>5.2}, stdev={:>5.2}, samples={}",
            iops.min(),
            iops.max,
            iops.mean(),
            iops.deviation(),
            iops.count
        )?;
    }
    Ok(())
}

fn write_moments(out: &mut String, name: &str, moments: &Moments) -> std::fmt::Result {
    if moments.count == 0 {
        return Ok(());
    }
    // Whole steps of a thousand while even the least value and the scatter stay readable.
    let (min, dev) = (moments.min(), moments.deviation());
    let (unit, by) = match () {
        () if min > 2_000_000 && moments.max > 99_999_999 && dev > 1_000_000.0 => ("msec", 1_000_000),
        () if min > 2000 && moments.max > 99_999 && dev > 1000.0 => ("usec", 1000),
        () => ("nsec", 1),
    };
    writeln!(
        out,
        "    {name} ({unit}): min={}, max={}, avg={:>5.2}, stdev={:>5.2}",
        scaled(min / by, 1000, 6),
        scaled(moments.max / by, 1000, 6),
        moments.mean() / by as f64,
        dev / by as f64
    )
}

fn write_percentiles(out: &mut String, name: &str, latency: &Latency) -> std::fmt::Result {
    let values = PERCENTILES.map(|percent| latency.percentile(percent));
    let (least, most) = (values[0], values[values.len() - 1]);
    let (unit, by) = match () {
        () if least > 2_000_000 && most > 99_999_999 => ("msec", 1_000_000),
        () if least > 2000 && most > 99_999 => ("usec", 1000),
        () => ("nsec", 1),
    };
    let width = (most / by).max(1).to_string().len().max(5);
    let in_line = (80 - 7) / (2 + 10 + width);
    write!(out, "    {name} percentiles ({unit}):")?;
    for (at, (percent, value)) in PERCENTILES.iter().zip(values).enumerate() {
        let begin = if at % in_line == 0 { "\n     |" } else { "" };
        let end = if at + 1 == PERCENTILES.len() { "\n" } else { "," };
        write!(out, "{begin} {percent:>5.2}th=[{:>width$}]{end}", value.div_ceil(by))?;
    }
    Ok(())
}

fn write_latencies(out: &mut String, unit: &str, counts: &[u64], total: u64) -> std::fmt::Result {
    let part = |count: &u64| *count as f64 * 100.0 / total.max(1) as f64;
    let shown = counts.iter().map(part).enumerate().filter(|(_, part)| *part > 0.0);
    for (at, (slot, part)) in shown.enumerate() {
        let bound = LATENCY_BOUNDS.get(slot).map_or(">=2000".to_owned(), u64::to_string);
        match at % 5 {
            0 if at > 0 => write!(out, "\n  lat ({unit})   : {bound}={part:.2}%")?,
            0 => write!(out, "  lat ({unit})   : {bound}={part:.2}%")?,
            _ => write!(out, ", {bound}={part:.2}%")?,
        }
    }
    if counts.iter().any(|count| *count > 0) { writeln!(out) } else { Ok(()) }
}

fn write_depths(out: &mut String, title: &str, names: [&str; 7], depths: &Depths, total: u64) -> std::fmt::Result {
    let shown: Vec<String> =
        names.iter().zip(parts(depths, total)).map(|(name, part)| format!("{name}={part:.1}%")).collect();
    writeln!(out, "  {title}: {}", shown.join(", "))
}

fn size(bytes: u64) -> String {
    format!("{}B", kibi(bytes))
}
