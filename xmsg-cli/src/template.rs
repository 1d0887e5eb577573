//! Templates in data: `{{Count}}`, `{{Time}}`, `{{Unix}}`, `{{ID}}`, `{{Random N}}`.

use anyhow::{Context, bail};
use bytes::Bytes;
use jiff::Timestamp;

/// The longest random text, so that a slip of the finger does not fill the memory.
const RANDOM_MAX: usize = 1 << 20;

/// Data with places to fill in, one time for each message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Data(Bytes),
    Count,
    Time,
    Unix,
    Id,
    Random { min: usize, max: usize },
}

impl Template {
    /// Finds the places. What is between `{{` and `}}` has to be one of the names.
    pub(crate) fn parse(data: &Bytes) -> anyhow::Result<Self> {
        let mut parts = Vec::new();
        let mut rest = data.clone();
        while let Some(start) = find(&rest, b"{{") {
            let Some(len) = find(&rest[start + 2..], b"}}") else {
                bail!(
                    "the template has `{{{{` without `}}}}`: leave --template out to publish data as it is"
                );
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

    /// The data of message number `count`.
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
            _ => bail!(
                "the template `{{{{{text}}}}}` is not known: there are {{{{Count}}}}, {{{{Time}}}}, {{{{Unix}}}}, \
                 {{{{ID}}}}, {{{{Random N}}}} and {{{{Random MIN MAX}}}}"
            ),
        })
    }
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
    fn what_is_not_known_is_told() {
        for template in
            ["{{count}}", "{{}}", "{{Count", "{{Random x}}", "{{Random 5 3}}", "{{Random 99999999}}"]
        {
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
