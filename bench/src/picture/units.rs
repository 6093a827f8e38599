//! Numbers as people read them: three significant digits, a unit that fits, thousands separated.

/// Three significant digits, thousands separated: `0.123`, `4.56`, `78.9`, `1,234`.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    let size = value.abs();
    // The thresholds are where rounding carries into the next digit: 9.996 is 10.0, not 10.00.
    let decimals = match size {
        _ if size == 0.0 || size >= 99.95 => 0,
        _ if size >= 9.995 => 1,
        _ if size >= 0.9995 => 2,
        _ => 3,
    };
    let text = format!("{size:.decimals$}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let mut out = String::from(if value < 0.0 { "−" } else { "" });
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if !fraction.is_empty() {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

/// A span of time given in nanoseconds: `950 ns`, `14.5 µs`, `1.20 ms`, `3.10 s`.
pub fn latency(ns: f64) -> String {
    let (unit, divisor) = latency_unit(ns);
    format!("{} {unit}", number(ns / divisor))
}

fn latency_unit(ns: f64) -> (&'static str, f64) {
    match ns {
        _ if ns < 999.5 => ("ns", 1.0),
        _ if ns < 999.5e3 => ("µs", 1e3),
        _ if ns < 999.5e6 => ("ms", 1e6),
        _ => ("s", 1e9),
    }
}

pub const MIB: f64 = (1u64 << 20) as f64;

/// A count with a unit of thousands: `412`, `99.2 k`, `1.24 M`.
pub fn count(value: f64) -> String {
    match value.abs() {
        size if size < 9_999.5 => number(value),
        size if size < 999.5e3 => format!("{} k", number(value / 1e3)),
        _ => format!("{} M", number(value / 1e6)),
    }
}

/// A size in powers of 1024: `512 B`, `4 KiB`, `1.50 GiB`. Whole numbers stay whole.
pub fn bytes(value: f64) -> String {
    let (unit, divisor) = match value {
        _ if value < 1024.0 => ("B", 1.0),
        _ if value < MIB => ("KiB", 1024.0),
        _ if value < 1024.0 * MIB => ("MiB", MIB),
        _ => ("GiB", 1024.0 * MIB),
    };
    format!("{} {unit}", plain(value / divisor))
}

/// [`number`] without zeros that say nothing: the label of a tick.
pub fn plain(value: f64) -> String {
    let text = number(value);
    if !text.contains('.') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The label of a tick at a span of nanoseconds: `2 µs`.
pub fn latency_tick(ns: f64) -> String {
    let (unit, divisor) = latency_unit(ns);
    format!("{} {unit}", plain(ns / divisor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_fitting_unit() {
        let cases =
            [(0.0, "0"), (0.1234, "0.123"), (0.9996, "1.00"), (9.996, "10.0"), (99.96, "100"), (-1234.0, "−1,234")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
        assert_eq!(number(1_234_567.0), "1,234,567");
        assert_eq!(number(f64::NAN), "–");
        assert_eq!(latency(950.0), "950 ns");
        assert_eq!(latency(999_700.0), "1.00 ms");
        assert_eq!(latency(14_520.0), "14.5 µs");
        assert_eq!(latency_tick(2e3), "2 µs");
        assert_eq!(count(9_999.0), "9,999");
        assert_eq!(count(99_215.0), "99.2 k");
        assert_eq!(count(1_240_000.0), "1.24 M");
        assert_eq!(bytes(4096.0), "4 KiB");
        assert_eq!(bytes(1.5 * 1024.0 * MIB), "1.5 GiB");
    }
}
