//! Notes about wildcards of other systems, which are not wildcards in xMsg.

use std::borrow::Cow;

use bytes::Bytes;
use xmsg_core::Topic;
use xmsg_core::text::escaped;

use crate::output::note;
use crate::render::topic_text;

/// Writes a note for each topic with a wildcard of another system, which says what to subscribe to instead.
pub(crate) fn note_patterns(topics: &[Topic]) {
    topics.iter().filter_map(hint).for_each(note);
}

/// Writes such notes for the prefixes that plain ZeroMQ sockets subscribe to. Their topics have no separator
/// of their own.
pub(crate) fn note_prefix_patterns(prefixes: &[Bytes]) {
    prefixes.iter().filter_map(|prefix| prefix_hint(&Topic::wrap(prefix.clone()))).for_each(note);
}

fn prefix_hint(topic: &Topic) -> Option<String> {
    let before = String::from_utf8_lossy(topic.before_wildcard()?);
    let instead = match escaped(&before) {
        before if before.is_empty() => "leave out --topic for everything".to_owned(),
        before => format!("--topic '{before}' is all that is below it"),
    };
    let topic = topic_text(topic);
    Some(format!(
        "`{topic}` is no pattern: ZeroMQ has no wildcards, and --topic is what the first frame starts with, byte by byte; \
         {instead}"
    ))
}

fn hint(topic: &Topic) -> Option<String> {
    let before = String::from_utf8_lossy(topic.before_wildcard()?);
    let before = escaped(&before);
    let instead = if before.is_empty() {
        "subscribe to '' for everything".to_owned()
    } else {
        // A `:` separates the parts of a topic in xMsg, but topics may contain anything.
        let usual = before.replace(['/', '.'], ":");
        let as_given = if usual == before {
            Cow::Borrowed("")
        } else {
            format!(" (`{before}`, if topics are written so)").into()
        };
        format!("subscribe to `{usual}`{as_given} for all that is below it")
    };
    let topic = topic_text(topic);
    Some(format!(
        "`{topic}` is no pattern: wildcards as MQTT and NATS have them mean nothing here, and a subscription receives the \
         topics that start with it, byte by byte; {instead}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that the hint names the pattern, and says what to do instead.
    fn says(hint: Option<String>, pattern: &str, instead: &str) {
        let hint = hint.unwrap_or_default();
        assert!(hint.starts_with(&format!("`{pattern}` is no pattern")) && hint.contains(instead), "{hint}");
    }

    #[test]
    fn what_to_subscribe_to_instead_is_told() {
        for (pattern, instead) in [
            ("weather/#", "; subscribe to `weather:` (`weather/`, if topics are written so) for all"),
            ("a.>", "; subscribe to `a:` (`a.`, if topics are written so) for all"),
            ("a/b/+", "; subscribe to `a:b:` (`a/b/`, if topics are written so) for all"),
            ("a:>", "; subscribe to `a:` for all"),
            ("#", "; subscribe to '' for everything"),
        ] {
            says(hint(&Topic::wrap(pattern)), pattern, instead);
        }
        assert_eq!(hint(&Topic::wrap("weather/oslo")), None);
        for (pattern, instead) in [
            ("weather/#", "; --topic 'weather/' is all that is below it"),
            ("a.>", "; --topic 'a.' is all"),
            ("*", "; leave out --topic for everything"),
        ] {
            says(prefix_hint(&Topic::wrap(pattern)), pattern, instead);
        }
        assert_eq!(prefix_hint(&Topic::wrap("weather/oslo")), None);
    }
}
