//! Templates in data: `{{Count}}`, `{{Time}}`, `{{Unix}}`, `{{ID}}`, `{{Random N}}`, and numbers:
//! `{{Int MIN MAX}}`, `{{Float MIN MAX}}`, `{{Sine PERIOD}}`.

use anyhow::{Context, bail};
use bytes::Bytes;
use jiff::Timestamp;

use crate::args::parse_duration;

/// The largest length of a random text, so that a mistyped number does not exhaust the memory.
const RANDOM_MAX: usize = 1 << 20;

/// Data with placeholders, which are filled in again for each message.
#[derive(Debug, PartialEq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug, PartialEq)]
enum Part {
    Data(Bytes),
    Count,
    Time,
    Unix,
    Id,
    Random {
        min: usize,
        max: usize,
    },
    Int {
        min: i64,
        max: i64,
    },
    Float {
        min: f64,
        max: f64,
    },
    /// A sine wave with this period in seconds, between these values.
    Sine {
        period: f64,
        min: f64,
        max: f64,
    },
}

impl Template {
    /// Parses the placeholders. The text between `{{` and `}}` must be a known name with its arguments.
    pub(crate) fn parse(data: &Bytes) -> anyhow::Result<Self> {
        let mut parts = Vec::new();
        let mut rest = data.clone();
        while let Some(start) = find(&rest, b"{{") {
            let Some(len) = find(&rest[start + 2..], b"}}") else {
                bail!("the template has `{{{{` without `}}}}`: leave --template out to send data as it is");
            };
            if start > 0 {
                parts.push(Part::Data(rest.slice(..start)));
            }
            parts.push(Part::parse(&String::from_utf8_lossy(&rest[start + 2..start + 2 + len]))?);
            rest = rest.slice(start + len + 4..);
        }
        if !rest.is_empty() {
            parts.push(Part::Data(rest));
        }
        Ok(Self(parts))
    }

    /// Returns the data of message number `count`.
    pub(crate) fn fill(&self, count: u64) -> Bytes {
        let mut data = Vec::new();
        for part in &self.0 {
            match part {
                Part::Data(bytes) => data.extend_from_slice(bytes),
                Part::Count => data.extend_from_slice(count.to_string().as_bytes()),
                Part::Time => data.extend_from_slice(format!("{:.6}", Timestamp::now()).as_bytes()),
                Part::Unix => data.extend_from_slice(Timestamp::now().as_nanosecond().to_string().as_bytes()),
                Part::Id => data.extend_from_slice(uuid::Uuid::new_v4().to_string().as_bytes()),
                Part::Random { min, max } => {
                    let len = fastrand::usize(*min..=*max);
                    data.extend((0..len).map(|_| fastrand::alphanumeric() as u8));
                }
                Part::Int { min, max } => {
                    data.extend_from_slice(fastrand::i64(*min..=*max).to_string().as_bytes());
                }
                Part::Float { min, max } => {
                    let value = min + (max - min) * fastrand::f64();
                    data.extend_from_slice(format!("{value:.3}").as_bytes());
                }
                Part::Sine { period, min, max } => {
                    let value = wave(Timestamp::now().as_nanosecond() as f64 / 1e9, *period, *min, *max);
                    data.extend_from_slice(format!("{value:.3}").as_bytes());
                }
            }
        }
        data.into()
    }
}

impl Part {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let len = |word: &str| {
            let len = word.parse().ok().filter(|len| *len <= RANDOM_MAX);
            len.with_context(|| format!("`{{{{{text}}}}}`: expected a length from 0 to {RANDOM_MAX}"))
        };
        let number = |word: &str| {
            let number = word.parse::<i64>();
            number.with_context(|| format!("`{{{{{text}}}}}`: `{word}` is not a whole number of 64 bits"))
        };
        let range = |min: &str, max: &str| {
            let values = [min, max].map(|word| word.parse::<f64>().ok().filter(|value| value.is_finite()));
            match values {
                [Some(min), Some(max)] if min <= max => Ok((min, max)),
                [Some(_), Some(_)] => bail!("`{{{{{text}}}}}`: the first number is the greater one"),
                _ => bail!("`{{{{{text}}}}}`: expected two numbers, such as 18 22.5"),
            }
        };
        let seconds = |word: &str| {
            let period = parse_duration(word).ok().filter(|period| !period.is_zero());
            let period = period.with_context(|| {
                format!("`{{{{{text}}}}}`: `{word}` is not a time above 0, such as 500ms, 10s or 2m")
            })?;
            anyhow::Ok(period.as_secs_f64())
        };
        Ok(match words[..] {
            ["Count"] => Self::Count,
            ["Time"] => Self::Time,
            ["Unix"] => Self::Unix,
            ["ID"] => Self::Id,
            ["Random"] => Self::Random { min: 16, max: 16 },
            ["Random", exact] => Self::Random { min: len(exact)?, max: len(exact)? },
            ["Random", min, max] => match (len(min)?, len(max)?) {
                (min, max) if min <= max => Self::Random { min, max },
                _ => bail!("`{{{{{text}}}}}`: the first length is the greater one"),
            },
            ["Int", min, max] => match (number(min)?, number(max)?) {
                (min, max) if min <= max => Self::Int { min, max },
                _ => bail!("`{{{{{text}}}}}`: the first number is the greater one"),
            },
            ["Float", min, max] => {
                let (min, max) = range(min, max)?;
                Self::Float { min, max }
            }
            ["Sine", period] => Self::Sine { period: seconds(period)?, min: -1.0, max: 1.0 },
            ["Sine", period, min, max] => {
                let (min, max) = range(min, max)?;
                Self::Sine { period: seconds(period)?, min, max }
            }
            _ => bail!(
                "the template `{{{{{text}}}}}` is not known: there are {{{{Count}}}}, {{{{Time}}}}, {{{{Unix}}}}, \
                 {{{{ID}}}}, {{{{Random N}}}}, {{{{Random MIN MAX}}}}, {{{{Int MIN MAX}}}}, {{{{Float MIN MAX}}}}, \
                 {{{{Sine PERIOD}}}} and {{{{Sine PERIOD MIN MAX}}}}, such as {{{{Sine 10s 18 22}}}}"
            ),
        })
    }
}

/// Returns the value of a sine wave at this time, in seconds.
fn wave(time: f64, period: f64, min: f64, max: f64) -> f64 {
    let phase = (time % period) / period;
    min + (max - min) * (0.5 + 0.5 * (phase * std::f64::consts::TAU).sin())
}

fn find(data: &[u8], pattern: &[u8]) -> Option<usize> {
    data.windows(2).position(|window| window == pattern)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fill(template: &'static str) -> String {
        let data = Template::parse(&Bytes::from_static(template.as_bytes())).unwrap().fill(7);
        String::from_utf8(data.into()).unwrap()
    }

    #[test]
    fn places_are_filled_in() {
        assert_eq!(fill("n={{Count}};{{ Count }}"), "n=7;7");
        assert_eq!(fill("{Count} }} { {"), "{Count} }} { {");
        assert_eq!(fill("{{Random 12}}").len(), 12);
        assert_eq!(fill("{{Random}}").len(), 16);
        assert!((3..=5).contains(&fill("{{Random 3 5}}").len()));
        assert_ne!(fill("{{ID}}"), fill("{{ID}}"));
        assert!(fill("{{Time}}").parse::<Timestamp>().is_ok());
        assert!(fill("{{Unix}}").parse::<u64>().is_ok());
    }

    #[test]
    fn numbers_keep_to_their_range() {
        for _ in 0..100 {
            assert!((-3..=30).contains(&fill("{{Int -3 30}}").parse::<i64>().unwrap()));
            assert!((18.0..=22.5).contains(&fill("{{Float 18 22.5}}").parse::<f64>().unwrap()));
            assert!((-1.0..=1.0).contains(&fill("{{Sine 10s}}").parse::<f64>().unwrap()));
            assert!((18.0..=22.0).contains(&fill("{{Sine 500ms 18 22}}").parse::<f64>().unwrap()));
        }
        assert_eq!(fill("{{Int 7 7}}"), "7");
        let near = |time: f64, value: f64| (wave(time, 10.0, 18.0, 22.0) - value).abs() < 1e-6;
        assert!(near(0.0, 20.0) && near(2.5, 22.0) && near(7.5, 18.0) && near(1e9, 20.0));
    }

    #[test]
    fn what_is_not_known_is_told() {
        for template in [
            "{{count}}",
            "{{}}",
            "{{Count",
            "{{Random x}}",
            "{{Random 5 3}}",
            "{{Random 99999999}}",
            "{{Int 1}}",
            "{{Int 3 1}}",
            "{{Int 1 1e30}}",
            "{{Float 1 nan}}",
            "{{Float 2 1}}",
            "{{Sine}}",
            "{{Sine 0s}}",
            "{{Sine x}}",
            "{{Sine 1s 2}}",
        ] {
            assert!(Template::parse(&template.into()).is_err(), "{template}");
        }
        let error = Template::parse(&"{{Now}}".into()).unwrap_err().to_string();
        assert!(error.contains("`{{Now}}`") && error.contains("{{Time}}"), "{error}");
    }

    proptest! {
        #[test]
        fn data_without_places_stays(data: Vec<u8>) {
            prop_assume!(find(&data, b"{{").is_none());
            prop_assert_eq!(Template::parse(&data.clone().into()).unwrap().fill(1), data);
        }
    }
}
