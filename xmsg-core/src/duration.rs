//! Durations as people write them on command lines and in settings. The other packages of this project share
//! this parser.

use std::fmt;
use std::time::Duration;

/// The longest duration: a hundred years. Adding a longer one to a clock could overflow.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// The reason why a text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidDuration {
    /// The unit is not known.
    Unit(String),
    /// There is no number before the unit, or the duration is longer than a hundred years.
    Number,
}

impl fmt::Display for InvalidDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unit(unit) => write!(f, "the unit `{unit}` is not one of us, ms, s, m, h, d"),
            Self::Number => f.write_str("not a time: expected a number and a unit, such as 500ms, 10s or 2m"),
        }
    }
}

impl std::error::Error for InvalidDuration {}

/// Parses a duration such as `250us`, `500ms`, `10s`, `1.5m`, `2 h` or `1d`. A number without a unit is in
/// seconds.
///
/// ```
/// use std::time::Duration;
/// assert_eq!(xmsg_core::duration::parse("1.5m"), Ok(Duration::from_secs(90)));
/// assert!(xmsg_core::duration::parse("5 parsecs").is_err());
/// ```
///
/// # Errors
/// [`InvalidDuration`] for any other text, and for more than a hundred years.
pub fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit_seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(InvalidDuration::Unit(unit.to_owned())),
    };
    let number = number.trim_end();
    let digits = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let value: Option<f64> = if digits { number.parse().ok() } else { None };
    value
        .and_then(|value| Duration::try_from_secs_f64(value * unit_seconds).ok())
        .filter(|time| *time <= LONGEST)
        .ok_or(InvalidDuration::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        let cases = [
            ("500ms", 500_000),
            ("10s", 10_000_000),
            ("2m", 120_000_000),
            ("1.5s", 1_500_000),
            ("1.5m", 90_000_000),
            ("1h", 3_600_000_000),
            ("2 h", 7_200_000_000),
            ("1d", 86_400_000_000),
            ("3", 3_000_000),
            ("0", 0),
            (".5", 500_000),
            ("250us", 250),
            ("1 s", 1_000_000),
        ];
        for (text, micros) in cases {
            assert_eq!(parse(text), Ok(Duration::from_micros(micros)), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["s", "-1s", "+1", "inf", "nan", "99999999999h", "1s2", "1e3s", "1sec", ". s", "", "-1"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse("5 parsecs"), Err(InvalidDuration::Unit("parsecs".to_owned())));
        assert_eq!(parse("36501d"), Err(InvalidDuration::Number));
    }
}
