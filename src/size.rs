//! Sizes as people write them: `500GiB`, `2T`, `1048576`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

/// The text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a size: give bytes, or a number with KiB, MiB, GiB, TiB (or K, M, G, T for the same), KB, MB, GB, TB"
)]
pub struct SizeError {
    text: String,
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Size, SizeError> {
        let error = || SizeError { text: text.chars().take(64).collect() };
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let number: u64 = number.parse().map_err(|_| error())?;
        let unit = unit.trim().to_ascii_uppercase();
        let factor: u64 = match unit.as_str() {
            "" | "B" => 1,
            "K" | "KIB" => 1 << 10,
            "M" | "MIB" => 1 << 20,
            "G" | "GIB" => 1 << 30,
            "T" | "TIB" => 1 << 40,
            "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            _ => return Err(error()),
        };
        number.checked_mul(factor).map(Size).ok_or_else(error)
    }
}

/// A whole number of bytes, or a text with a unit.
impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Size, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size: bytes, or a text such as \"500GiB\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes).map(Size).map_err(|_| E::custom("a size cannot be negative"))
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }
        }
        from.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_nonsense_is_named() {
        for (text, bytes) in
            [("0", 0), ("1048576", 1 << 20), ("500GiB", 500 << 30), ("10G", 10 << 30), ("2 tb", 2_000_000_000_000)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "G", "1.5G", "-1", "10 parsecs", "99999999T"] {
            let message = text.parse::<Size>().unwrap_err().to_string();
            assert!(message.contains(&format!("{text:?}")), "{message}");
        }
    }

    #[test]
    fn a_file_may_have_bytes_or_a_text() {
        #[derive(Deserialize)]
        struct File {
            size: Size,
        }
        let size = |text: &str| toml::from_str::<File>(text).map(|file| file.size.0);
        assert_eq!(size("size = 4096"), Ok(4096));
        assert_eq!(size("size = '4KiB'"), Ok(4096));
        assert!(size("size = -1").is_err() && size("size = true").is_err());
    }
}
