//! Durations in the syntax of settings, options and policies.

use std::time::Duration;

/// Parses a duration such as `500ms`, `10s`, `1.5m`, `2 h` or `1d`, as the command line does. A number
/// without a unit is in seconds.
///
/// Returns `None` if `text` is anything else, or for a number that [`of_seconds`] refuses.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    let time = xmsg_core::duration::parse(text).ok()?;
    of_seconds(time.as_secs_f64()).and(Some(time))
}

/// Returns `None` below 0 and from 1,000,000 seconds (11 days) on: adding such a time to a clock could
/// overflow.
pub(crate) fn of_seconds(seconds: f64) -> Option<Duration> {
    (0.0..1e6).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_fractions_are_read() {
        for (text, millis) in [
            ("0", 0),
            ("0.25", 250),
            ("250ms", 250),
            ("10s", 10_000),
            ("1.5m", 90_000),
            ("2 h", 7_200_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["-1", "x", "", "NaN", "inf", "1e9", "s", "5 parsecs", "-1s", "12d1", "1000000", "12d"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
