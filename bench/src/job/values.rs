//! Values as fio reads them: sizes, counts, times, lists by direction. What fio would half understand (`4096junk`,
//! `5min`) is an error here.

use std::ops::RangeInclusive;
use std::time::Duration;

/// The value of one option.
#[derive(Clone, Copy)]
pub struct Value<'a> {
    pub text: &'a str,
}

/// What was read, or what is wrong with it and what to write.
pub type Read<T> = Result<T, String>;

/// For reads and for writes; `None` where the user left it out (`bs=,8k`).
pub type ByDirection<T> = (Option<T>, Option<T>);

impl<'a> Value<'a> {
    /// A whole number with fio's suffixes, inside `range`. fio reads counts as it reads sizes: `iodepth=1k` is 1024.
    pub fn number(self, range: RangeInclusive<u64>) -> Read<u64> {
        let (digits, unit) = split(self.text)?;
        let factor = factor(unit)?;
        let number = digits.checked_mul(factor).filter(|number| range.contains(number));
        number.ok_or_else(|| format!("not between {} and {}", range.start(), range.end()))
    }

    pub fn count(self, range: RangeInclusive<u32>) -> Read<u32> {
        let number = self.number((*range.start()).into()..=(*range.end()).into())?;
        Ok(u32::try_from(number).expect("inside a range of u32"))
    }

    /// A time; a plain number counts `plain` units.
    pub fn duration(self, plain: Duration, most: Duration) -> Read<Duration> {
        let (number, unit) = split(self.text)?;
        let unit = match unit.to_ascii_lowercase().as_str() {
            "" => plain,
            "us" | "usec" => Duration::from_micros(1),
            "ms" | "msec" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(60 * 60),
            "d" => Duration::from_secs(24 * 60 * 60),
            unit => return Err(format!("{unit:?} is no unit of time: write us, ms, s, m, h or d")),
        };
        let nanos = u128::from(number) * unit.as_nanos();
        match u64::try_from(nanos).map(Duration::from_nanos) {
            Ok(time) if time <= most => Ok(time),
            _ => Err(format!("over {} s", most.as_secs())),
        }
    }

    /// An option that may stand alone, which switches it on.
    pub fn flag(self) -> Read<bool> {
        if self.text.is_empty() { Ok(true) } else { self.boolean() }
    }

    pub fn boolean(self) -> Read<bool> {
        match self.text {
            "0" => Ok(false),
            "1" => Ok(true),
            _ => Err("write 0 or 1".into()),
        }
    }

    pub fn word(self) -> Read<&'a str> {
        if self.text.is_empty() { Err("needs a value".into()) } else { Ok(self.text) }
    }

    /// `both`, `read,write` or `read,write,trim`; an empty place leaves that direction as it is.
    pub fn by_direction<T: Copy>(self, read: impl Fn(Value<'a>) -> Read<T>) -> Read<ByDirection<T>> {
        let mut parts = self.text.split(',').map(|text| match text {
            "" => Ok(None),
            text => read(Value { text }).map(Some),
        });
        let reads = parts.next().transpose()?.flatten();
        let Some(writes) = parts.next().transpose()? else {
            return if reads.is_some() { Ok((reads, reads)) } else { Err("needs a value".into()) };
        };
        let trims = parts.next().transpose()?.flatten();
        if parts.next().is_some() {
            return Err("more than three values: write READ,WRITE".into());
        }
        if reads.is_none() && writes.is_none() && trims.is_none() {
            return Err("needs a value".into());
        }
        Ok((reads, writes))
    }

    /// `4k-64k`, also with `:`.
    pub fn range(self, range: RangeInclusive<u64>) -> Read<(u64, u64)> {
        let Some((low, high)) = self.text.split_once(['-', ':']) else {
            return Err("is no range: write 4k-64k, or use bs= for one size".into());
        };
        let number = |text: &'a str| Value { text }.number(range.clone());
        let (low_bytes, high_bytes) = (number(low)?, number(high)?);
        if low_bytes > high_bytes {
            return Err(format!("runs backwards: write {high}-{low}"));
        }
        Ok((low_bytes, high_bytes))
    }

    /// Names with `:` between them; `\:` is a colon in a name.
    pub fn names(self, most: usize) -> Read<Vec<String>> {
        let mut names = vec![String::new()];
        let mut letters = self.text.chars().peekable();
        while let Some(letter) = letters.next() {
            match letter {
                '\\' if letters.peek() == Some(&':') => {
                    names.last_mut().expect("never empty").push(letters.next().expect("peeked"))
                }
                ':' => names.push(String::new()),
                _ => names.last_mut().expect("never empty").push(letter),
            }
            if names.len() > most {
                return Err(format!("over {most} names"));
            }
        }
        if names.iter().any(String::is_empty) {
            return Err("has an empty name".into());
        }
        for variable in ["${", "$ncpus", "$pagesize", "$mb_memory"] {
            if self.text.contains(variable) {
                return Err(format!("{variable} is not replaced: write the value itself"));
            }
        }
        Ok(names)
    }
}

/// The number at the start, decimal or 0x…, and what follows it.
fn split(text: &str) -> Read<(u64, &str)> {
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    if unsigned.starts_with('-') {
        return Err("is negative".into());
    }
    let (digits, radix) = match unsigned.strip_prefix("0x").or_else(|| unsigned.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None => (unsigned, 10),
    };
    let end = digits.find(|letter: char| !letter.is_digit(radix)).unwrap_or(digits.len());
    let (digits, unit) = digits.split_at(end);
    if text.is_empty() {
        return Err("needs a value".into());
    }
    if digits.is_empty() {
        return Err("is no number".into());
    }
    if radix == 16 && !unit.is_empty() {
        return Err("has a unit after a hexadecimal number: write it in full".into());
    }
    let number = u64::from_str_radix(digits, radix).map_err(|_| "does not fit 64 bits".to_owned())?;
    Ok((number, unit))
}

/// The bytes of a unit. fio's default turns them round for compatibility: `kb` is 1024 bytes and `kib` is 1000.
fn factor(unit: &str) -> Read<u64> {
    let unit = unit.to_ascii_lowercase();
    let (base, prefix) = match unit.strip_suffix("ib") {
        Some(prefix) if !prefix.is_empty() => (1000_u64, prefix),
        _ => (1024, unit.strip_suffix(['b', 'i']).unwrap_or(&unit)),
    };
    match prefix {
        "" if !unit.contains('i') => Ok(1),
        "k" => Ok(base),
        "m" => Ok(base.pow(2)),
        "g" => Ok(base.pow(3)),
        "t" => Ok(base.pow(4)),
        "p" => Ok(base.pow(5)),
        "%" => Err("a share of the file is not supported: write bytes, as in 512m".into()),
        "z" => Err("zones are not supported: write bytes, as in 512m".into()),
        _ => Err(format!("{unit:?} is no unit: write 4096, 4k, 512m, 2g or 1t")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value<'_> {
        Value { text }
    }

    #[test]
    fn sizes_are_fios() {
        for (text, bytes) in [
            ("4096", 4096),
            ("4k", 4096),
            ("4K", 4096),
            ("4kb", 4096),
            ("4ki", 4096),
            ("4kib", 4000),
            ("512M", 512 << 20),
            ("2g", 2 << 30),
            ("1t", 1 << 40),
            ("1TiB", 1_000_000_000_000),
            ("1p", 1 << 50),
            ("0x1000", 4096),
            ("100b", 100),
        ] {
            assert_eq!(value(text).number(0..=u64::MAX), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "k",
            "-1",
            "4q",
            "4kbb",
            "0x",
            "0x10k",
            "50%",
            "3z",
            "18446744073709551615t",
            "99999999999999999999",
            "i",
            "4i",
            "1ib",
            "4 096",
        ] {
            assert!(value(text).number(0..=u64::MAX).is_err(), "{text}");
        }
        assert_eq!(value("0").number(1..=9), Err("not between 1 and 9".into()));
    }

    #[test]
    fn times_have_units() {
        let time = |text| value(text).duration(Duration::from_secs(1), Duration::from_secs(1 << 20));
        assert_eq!(time("5"), Ok(Duration::from_secs(5)));
        assert_eq!(time("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(time("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(time("7us"), Ok(Duration::from_micros(7)));
        assert_eq!(time("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(time("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(time("1d"), Ok(Duration::from_secs(86400)));
        for text in ["", "s", "5min", "-5", "18446744073709551615d", "9999999d"] {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn directions_may_differ() {
        let sizes = |text| value(text).by_direction(|value| value.number(1..=u64::MAX));
        assert_eq!(sizes("4k"), Ok((Some(4096), Some(4096))));
        assert_eq!(sizes("4k,8k"), Ok((Some(4096), Some(8192))));
        assert_eq!(sizes(",8k"), Ok((None, Some(8192))));
        assert_eq!(sizes("4k,"), Ok((Some(4096), None)));
        assert_eq!(sizes("4k,8k,1m"), Ok((Some(4096), Some(8192))));
        for text in ["", ",", "1,2,3,4", "4k-8k", "4k,q"] {
            assert!(sizes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_split_at_colons() {
        assert_eq!(value("a:b").names(9), Ok(vec!["a".into(), "b".into()]));
        assert_eq!(value(r"a\:b:c").names(9), Ok(vec!["a:b".into(), "c".into()]));
        for text in ["", "a::b", ":", "a:", "${HOME}/a", "a:b:c:d"] {
            assert!(value(text).names(3).is_err(), "{text}");
        }
    }
}
