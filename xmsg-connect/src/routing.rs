//! Routing keys made from the topic of each message: `orders.{subject}`.

use std::fmt;
use std::str::FromStr;

use xmsg_core::Topic;

use crate::definition::not_short;

/// A routing key with placeholders that are filled in from the topic of a message.
///
/// ```
/// use xmsg_connect::routing::Template;
/// use xmsg_core::Topic;
///
/// let template: Template = "plant.{domain}.{subject}".parse()?;
/// let topic: Topic = "weather:oslo:temperature".parse().unwrap();
/// assert_eq!(template.fill(&topic)?, "plant.weather.oslo");
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Topic,
    Domain,
    Subject,
    Types,
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('{') {
            let Some((name, after)) = behind.split_once('}') else {
                return Err(format!("{text:?} has a {{ that nothing closes"));
            };
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(match name {
                "topic" => Part::Topic,
                "domain" => Part::Domain,
                "subject" => Part::Subject,
                "type" => Part::Types,
                _ => {
                    return Err(format!(
                        "has the placeholder {{{name}}}; there are {{topic}}, {{domain}}, {{subject}} and {{type}}"
                    ));
                }
            });
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        match not_short(text) {
            Some(what) => Err(what),
            None => Ok(Self(parts)),
        }
    }
}

impl Template {
    /// Makes a template of this text, as it stands.
    pub(crate) fn text(text: String) -> Self {
        Self(vec![Part::Text(text)])
    }

    /// Makes the template `{topic}`.
    pub(crate) fn topic() -> Self {
        Self(vec![Part::Topic])
    }

    /// Returns the routing key for a message with this topic. Parts that the topic does not have are empty.
    /// The error says in words why there is no key: it would be longer than AMQP allows, or has a zero byte.
    pub fn fill(&self, topic: &Topic) -> Result<String, String> {
        let mut key = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => key.push_str(text),
                Part::Topic => key.push_str(&String::from_utf8_lossy(topic.as_bytes())),
                Part::Domain => key.push_str(&topic.domain()),
                Part::Subject => key.push_str(present(&topic.subject())),
                Part::Types => key.push_str(present(&topic.types())),
            }
        }
        match not_short(&key) {
            Some(what) => Err(format!("the routing key {what}")),
            None => Ok(key),
        }
    }
}

/// Returns a part of a topic. It is empty when there is none, which topics show as `*`.
fn present(part: &str) -> &str {
    if part == "*" { "" } else { part }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Part::Text(text) => f.write_str(text),
            Part::Topic => f.write_str("{topic}"),
            Part::Domain => f.write_str("{domain}"),
            Part::Subject => f.write_str("{subject}"),
            Part::Types => f.write_str("{type}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_filled_in_from_the_topic() {
        let topic: Topic = "orders:eu:new:paid".parse().unwrap();
        for (template, key) in [
            ("", ""),
            ("fixed", "fixed"),
            ("{topic}", "orders:eu:new:paid"),
            ("a.{domain}-{subject}.{type}!", "a.orders-eu.new:paid!"),
            ("{domain}{domain}", "ordersorders"),
        ] {
            let parsed: Template = template.parse().unwrap();
            assert_eq!(parsed.fill(&topic).unwrap(), key);
            assert_eq!(parsed.to_string(), template);
        }
        let short: Topic = "orders".parse().unwrap();
        assert_eq!("{subject}.{type}".parse::<Template>().unwrap().fill(&short).unwrap(), ".");
    }

    #[test]
    fn what_can_not_be_a_routing_key_is_refused() {
        for bad in ["{", "{topic", "{tpic}", "{}", &"x".repeat(256)] {
            bad.parse::<Template>().unwrap_err();
        }
        let topic: Topic = format!("orders:{}", "x".repeat(250)).parse().unwrap();
        let error = "{topic}".parse::<Template>().unwrap().fill(&topic).unwrap_err();
        assert!(error.contains("257 bytes"), "{error}");
    }
}
