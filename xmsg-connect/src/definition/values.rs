//! The values of definitions as they stand in TOML: lengths of time such as `"30s"`, amounts of memory such
//! as `"1GiB"`, values of headers.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time, written with a unit: `"250ms"`, `"30s"`, `"5m"`, `"2h"`, `"7d"`.
///
/// ```
/// use std::time::Duration;
/// use xmsg_connect::definition::Span;
///
/// assert_eq!("1.5m".parse::<Span>()?.get(), Duration::from_secs(90));
/// assert_eq!(Span::of(Duration::from_millis(250)).to_string(), "250ms");
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(Duration);

/// The longest time that a definition may name: ten years. Clocks that are set further ahead can overflow.
const SPAN_MAX_S: f64 = 10.0 * 366.0 * 86_400.0;
const SPAN_UNITS: [(&str, u128); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl Span {
    /// Makes a span of this length of time, which counts in whole milliseconds.
    #[must_use]
    pub const fn of(time: Duration) -> Self {
        Self(time)
    }

    /// Makes a span of so many seconds.
    #[must_use]
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Returns the length of time.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
        let (number, unit) = text.split_at(unit_at);
        let unit = SPAN_UNITS.iter().find(|(name, _)| *name == unit);
        let number = number.trim().parse::<f64>().ok();
        let seconds = unit.zip(number).map(|((_, millis), number)| number * *millis as f64 / 1000.0);
        match seconds {
            Some(seconds) if (0.0..=SPAN_MAX_S).contains(&seconds) => {
                // In the unit that it is written with again.
                let rounded = Duration::from_secs_f64(seconds + 0.0005);
                Ok(Self(Duration::from_millis(rounded.as_millis() as u64)))
            }
            Some(_) => Err(format!("{text:?} is not from 0 to ten years")),
            None => Err(format!("{text:?} is not a time with a unit, such as 250ms, 30s, 5m, 2h or 7d")),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let fits = |(_, unit): &&(&str, u128)| millis > 0 && millis.is_multiple_of(*unit);
        let (name, unit) = SPAN_UNITS.iter().find(fits).unwrap_or(&("ms", 1));
        write!(f, "{}{name}", millis / unit)
    }
}

/// A number of bytes, written with a unit: `"64KiB"`, `"1GiB"`, `"500MB"`, `"20B"`.
///
/// ```
/// use xmsg_connect::definition::ByteSize;
///
/// assert_eq!("64KiB".parse::<ByteSize>()?.get(), 65_536);
/// assert_eq!("2MB".parse::<ByteSize>()?.get(), 2_000_000);
/// assert_eq!(ByteSize::of(1 << 30).to_string(), "1GiB");
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

const BYTE_UNITS: [(&str, u64); 8] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1000),
    ("B", 1),
];

impl ByteSize {
    /// Makes a size of so many bytes.
    #[must_use]
    pub const fn of(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Returns the number of bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
        let (number, unit) = text.split_at(unit_at);
        let unit = BYTE_UNITS.iter().find(|(name, _)| *name == unit);
        let bytes =
            unit.zip(number.trim().parse::<u64>().ok()).and_then(|((_, unit), n)| n.checked_mul(*unit));
        match bytes {
            // TOML has no larger integers, and no disk is larger.
            Some(bytes) if i64::try_from(bytes).is_ok() => Ok(Self(bytes)),
            _ => Err(format!(
                "{text:?} is not a whole number of bytes with a unit, such as 512B, 64KiB, 100MB or 1GiB"
            )),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, unit): &&(&str, u64)| self.0 > 0 && self.0.is_multiple_of(*unit);
        let (name, unit) = BYTE_UNITS.iter().find(fits).unwrap_or(&("B", 1));
        write!(f, "{}{name}", self.0 / unit)
    }
}

/// Reads and writes a value as its text.
macro_rules! as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

as_text!(Span);
as_text!(ByteSize);

/// The value of a header of an AMQP message: one of the types that TOML and JSON have, too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum HeaderValue {
    /// True or false.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number with a fraction.
    Float(f64),
    /// A text.
    Text(String),
}

impl From<&str> for HeaderValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for HeaderValue {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for HeaderValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for HeaderValue {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<f64> for HeaderValue {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl fmt::Display for HeaderValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Integer(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
            Self::Text(value) => value.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written_with_their_units() {
        for (text, millis, back) in [
            ("0s", 0, "0ms"),
            ("250ms", 250, "250ms"),
            ("0.4ms", 0, "0ms"),
            ("1.0006s", 1001, "1001ms"),
            ("30s", 30_000, "30s"),
            ("90s", 90_000, "90s"),
            ("120s", 120_000, "2m"),
            ("1.5h", 5_400_000, "90m"),
            ("7 d", 604_800_000, "7d"),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!((span.get().as_millis(), span.to_string().as_str()), (millis, back), "{text}");
            assert_eq!(back.parse::<Span>().unwrap(), span);
        }
        for bad in ["", "5", "-1s", "s", "x", "5 parsecs", "NaNs", "infs", "1e99s", "11000d"] {
            bad.parse::<Span>().unwrap_err();
        }
    }

    #[test]
    fn amounts_of_memory_are_read_and_written_with_their_units() {
        for (text, bytes, back) in [
            ("0B", 0, "0B"),
            ("20B", 20, "20B"),
            ("64KiB", 65_536, "64KiB"),
            ("1024MiB", 1 << 30, "1GiB"),
            ("500MB", 500_000_000, "500MB"),
            ("3 kB", 3000, "3kB"),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!((size.get(), size.to_string().as_str()), (bytes, back), "{text}");
        }
        for bad in ["", "5", "-1B", "B", "1.5GiB", "1mb", "99999999TiB", "18446744073709551615B"] {
            bad.parse::<ByteSize>().unwrap_err();
        }
    }
}
