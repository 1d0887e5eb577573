//! Parsing of the values of options.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use xmsg_core::{Error, ErrorKind, Topic};

use crate::exit::Usage;

/// Parses a topic to subscribe to. An empty text means everything. A `:` at the end is kept, so that `a:b:`
/// means what is below `a:b`.
fn parse_subscription(text: &str) -> xmsg_core::Result<Topic> {
    if text.is_empty() {
        return Ok(Topic::everything());
    }
    if text == "*" || text.starts_with("*:") {
        let what = "the domain of a topic can't be `*`: name one, or subscribe to '' for everything";
        return Err(Error::new(ErrorKind::InvalidTopic, what));
    }
    text.parse()
}

/// The format of topics on the command line. Commands with this option take topics as words and parse them
/// with these methods.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct TopicOptions {
    /// Topics are hexadecimal digits, two for each byte: for topics that are not text
    #[arg(long)]
    topic_hex: bool,
}

impl TopicOptions {
    /// Parses a topic to publish to.
    pub(crate) fn to_publish(self, word: &str) -> Result<Topic, Usage> {
        if !self.topic_hex {
            return word.parse().map_err(|error| invalid_topic(word, &error));
        }
        match bytes_of_topic(word)? {
            topic if topic.as_bytes().is_empty() => {
                Err(invalid_topic(word, &"it has no bytes: give at least one"))
            }
            topic => Ok(topic),
        }
    }

    /// Parses topics to subscribe to. An empty text means everything.
    pub(crate) fn to_subscribe(self, words: &[impl AsRef<str>]) -> Result<Vec<Topic>, Usage> {
        let read = |word: &str| {
            if self.topic_hex {
                return bytes_of_topic(word);
            }
            parse_subscription(word).map_err(|error| invalid_topic(word, &error))
        };
        words.iter().map(|word| read(word.as_ref())).collect()
    }

    /// Parses the beginning of a topic, byte by byte; it need not be a complete topic.
    pub(crate) fn beginning(self, word: &str) -> Result<Bytes, Usage> {
        if self.topic_hex {
            return bytes_of_topic(word).map(Topic::into_bytes);
        }
        Ok(Bytes::copy_from_slice(word.as_bytes()))
    }

    /// Returns whether topics are given as text.
    pub(crate) fn is_text(self) -> bool {
        !self.topic_hex
    }
}

fn bytes_of_topic(word: &str) -> Result<Topic, Usage> {
    let digits: Vec<u8> = word.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let what = "it is not hexadecimal, as --topic-hex says: give two digits for each byte, such as 00ff";
    hex::decode(digits).map(Topic::wrap).map_err(|_| invalid_topic(word, &what))
}

/// Makes an error in the form of those about other arguments.
fn invalid_topic(word: &str, why: &dyn fmt::Display) -> Usage {
    Usage(format!("invalid value '{word}' for '<TOPIC>': {why}"))
}

/// Parses a duration, as [`xmsg_core::duration::parse`] does. The error is a text for people.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    xmsg_core::duration::parse(text).map_err(|error| error.to_string())
}

/// Parses a number of bytes, such as `100`, `64k`, `1KiB`, `100MB` or `2GiB`. `K`, `M`, `G` and `T` without
/// `B` stand for powers of 1024.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return Err(format!("the unit `{unit}` is not one of B, kB, KiB, MB, MiB, GB, GiB, TB, TiB")),
    };
    let size = number.trim_end().parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    size.filter(|size| *size > 0).ok_or_else(|| "not a size: expected bytes, such as 100 or 64KiB".to_owned())
}

/// The longest data of a generated message. With its other frames, such a message stays below the limit of a
/// proxy.
const SIZE_MAX: u64 = 32 << 20;

/// Parses the size of a generated message in bytes. Its first `least` bytes identify the message.
pub(crate) fn parse_size(text: &str, least: u64) -> Result<u64, String> {
    match parse_bytes(text)? {
        size if size < least => Err(format!(
            "each message begins with {least} bytes that tell it from the others: give {least} or more"
        )),
        size if size > SIZE_MAX => Err(format!("a message can have {} MiB at most", SIZE_MAX >> 20)),
        size => Ok(size),
    }
}

/// Parses a whole number within these bounds, such as `1000`, `1_000` or `1e6`.
pub(crate) fn parse_count(text: &str, bounds: RangeInclusive<u64>) -> Result<u64, String> {
    let digits = text.replace('_', "");
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = match digits.split_once(['e', 'E']) {
        Some((number, exponent)) if is_digits(number) && is_digits(exponent) => exponent
            .parse()
            .ok()
            .and_then(|exponent| 10_u128.checked_pow(exponent))
            .zip(number.parse::<u128>().ok())
            .map_or(Some(u128::MAX), |(power, number)| Some(number.saturating_mul(power))),
        None if is_digits(&digits) => Some(digits.parse().unwrap_or(u128::MAX)),
        _ => None,
    };
    let (least, most) = (bounds.start(), bounds.end());
    let what = if *most == u64::MAX { format!("{least} or more") } else { format!("{least} to {most}") };
    let number = number.ok_or_else(|| format!("not a whole number, such as 1000 or 1e6: give {what}"))?;
    match u64::try_from(number) {
        Ok(number) if bounds.contains(&number) => Ok(number),
        Err(_) if *most == u64::MAX => Err(format!("too large: give {most} at most")),
        _ => Err(format!("out of range: give {what}")),
    }
}

/// Parses a count of at least 1.
pub(crate) fn parse_count_from_1(text: &str) -> Result<u64, String> {
    parse_count(text, 1..=u64::MAX)
}

/// Parses a whole number within these bounds as a smaller type.
pub(crate) fn parse_number<T: TryFrom<u64>>(
    bounds: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = parse_count(text, bounds.clone())?;
        number.try_into().map_err(|_| format!("out of range: give {} at most", bounds.end()))
    }
}

/// Parses a rate in messages per second, which is a number above 0.
pub(crate) fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (1e-6..=1e9).contains(&rate) => Ok(rate),
        _ => Err("not a rate: expected messages per second, a number above 0".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, size) in
            [("100", 100), ("64k", 65536), ("2 kB", 2000), ("1GiB", 1 << 30), ("5GB", 5_000_000_000)]
        {
            assert_eq!(parse_bytes(text), Ok(size), "{text}");
        }
        for text in ["", "0", "-1", "k", "1.5k", "1x", "99999999999999999999", "99999999999999999M"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn counts_are_whole_numbers_within_bounds() {
        for (text, count) in
            [("1", 1), ("1000", 1000), ("1_000", 1000), ("1e6", 1_000_000), ("25E1", 250), ("007", 7)]
        {
            assert_eq!(parse_count(text, 1..=u64::MAX), Ok(count), "{text}");
        }
        for text in ["", "-1", "1.5", "1,000", "x", "e6", "1e", "1e-3", "0x10", "+1", " 1"] {
            assert!(parse_count(text, 1..=9).unwrap_err().contains("1000 or 1e6: give 1 to 9"), "{text}");
        }
        for text in ["0", "10", "1e1", "1e99", "99999999999999999999999999999999999999999999"] {
            assert!(parse_count(text, 1..=9).unwrap_err().contains("give 1 to 9"), "{text}");
        }
        assert!(parse_count("0", 1..=u64::MAX).unwrap_err().contains("give 1 or more"));
        assert!(parse_count("1e20", 1..=u64::MAX).unwrap_err().contains("too large"));
        assert_eq!(parse_number::<u16>(1..=10)("3"), Ok(3));
    }

    #[test]
    fn rates_are_above_zero() {
        assert_eq!(parse_rate("0.5"), Ok(0.5));
        for text in ["0", "-1", "nan", "inf", "x", ""] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn subscriptions_keep_the_colon_at_their_end() {
        for (text, topic) in
            [("", ""), ("a", "a"), ("a:", "a:"), ("a:b:", "a:b:"), ("a:b:c:", "a:b:c:"), ("a:*", "a")]
        {
            assert_eq!(parse_subscription(text).unwrap(), topic, "{text}");
        }
        for text in ["*", "*:x", ":", ":x"] {
            assert!(parse_subscription(text).is_err(), "{text}");
        }
    }
}
