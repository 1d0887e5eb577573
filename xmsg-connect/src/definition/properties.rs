//! Properties of AMQP messages: a template in the definition of an outgoing connection, and what one send
//! sets instead.

use serde::{Deserialize, Serialize};

/// Whether the broker keeps a message on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeliveryMode {
    /// A durable queue keeps it over a restart of the broker.
    Persistent,
    /// A restart of the broker may lose it.
    Transient,
}

/// The properties of an AMQP message. Those that are not set come from the template of the outgoing
/// connection, or from its defaults; whatever is set counts, also `0` and an empty text.
///
/// ```
/// use xmsg_connect::definition::{DeliveryMode, Properties};
///
/// let template = Properties { priority: Some(5), app_id: Some("daq".into()), ..Properties::default() };
/// let send = Properties { priority: Some(0), delivery_mode: Some(DeliveryMode::Transient), ..Properties::default() };
/// let merged = send.over(&template);
/// assert_eq!((merged.priority, merged.app_id.as_deref()), (Some(0), Some("daq")));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Properties {
    /// The mime type of the body. Default: that of the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// The encoding of the body, such as `gzip`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_encoding: Option<String>,
    /// Default: persistent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivery_mode: Option<DeliveryMode>,
    /// From 0 to 255; queues with priorities have at most 10 as a rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// Relates an answer to its request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// The queue that an answer is awaited in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// How long the message may stay in a queue, in milliseconds, as a text of digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration: Option<String>,
    /// Default: an identifier of its own for each message, which stays the same when the message is sent
    /// again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// Seconds since 1970. Default: when the message was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<u64>,
    /// The kind of the message, in the words of the application.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The name of the user who sends: the broker refuses any other than that of the login.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// The name of the application that sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_id: Option<String>,
    /// Deprecated by AMQP, and still there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
}

/// The longest short string in bytes. AMQP writes its length into one byte.
pub(crate) const SHORT_STRING: usize = 255;

/// Says in words why a text is not a short string of AMQP. Returns `None` if it is one.
pub(crate) fn not_short(text: &str) -> Option<String> {
    if text.len() > SHORT_STRING {
        return Some(format!("has {} bytes; AMQP allows {SHORT_STRING}", text.len()));
    }
    text.contains('\0').then(|| "has a zero byte, which brokers refuse".to_owned())
}

impl Properties {
    /// Returns these properties. Those that are not set come from `template`.
    #[must_use]
    pub fn over(&self, template: &Self) -> Self {
        let text =
            |ours: &Option<String>, theirs: &Option<String>| ours.as_ref().or(theirs.as_ref()).cloned();
        Self {
            content_type: text(&self.content_type, &template.content_type),
            content_encoding: text(&self.content_encoding, &template.content_encoding),
            delivery_mode: self.delivery_mode.or(template.delivery_mode),
            priority: self.priority.or(template.priority),
            correlation_id: text(&self.correlation_id, &template.correlation_id),
            reply_to: text(&self.reply_to, &template.reply_to),
            expiration: text(&self.expiration, &template.expiration),
            message_id: text(&self.message_id, &template.message_id),
            timestamp: self.timestamp.or(template.timestamp),
            kind: text(&self.kind, &template.kind),
            user_id: text(&self.user_id, &template.user_id),
            app_id: text(&self.app_id, &template.app_id),
            cluster_id: text(&self.cluster_id, &template.cluster_id),
        }
    }

    /// Returns the name of the first property that AMQP, or a broker that knows us as `login`, does not take,
    /// and why.
    pub(crate) fn invalid(&self, login: &str) -> Option<(&'static str, String)> {
        let texts = [
            ("content_type", &self.content_type),
            ("content_encoding", &self.content_encoding),
            ("correlation_id", &self.correlation_id),
            ("reply_to", &self.reply_to),
            ("expiration", &self.expiration),
            ("message_id", &self.message_id),
            ("type", &self.kind),
            ("user_id", &self.user_id),
            ("app_id", &self.app_id),
            ("cluster_id", &self.cluster_id),
        ];
        let too_long =
            |(name, text): (&'static str, &Option<String>)| Some((name, not_short(text.as_deref()?)?));
        if let Some(invalid) = texts.into_iter().find_map(too_long) {
            return Some(invalid);
        }
        if let Some(expiration) = &self.expiration
            && expiration.parse::<u32>().is_err()
        {
            return Some(("expiration", format!("{expiration:?} is not a whole number of milliseconds")));
        }
        let user = self.user_id.as_deref().filter(|user| *user != login)?;
        Some(("user_id", format!("{user:?} is not {login:?}, who the broker knows this connection as")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_amqp_does_not_take_is_named() {
        let fine = Properties {
            user_id: Some("xmsg".into()),
            expiration: Some("60000".into()),
            ..Properties::default()
        };
        assert_eq!(fine.invalid("xmsg"), None);
        let long = Some("x".repeat(256));
        for (name, properties) in [
            ("correlation_id", Properties { correlation_id: long.clone(), ..Properties::default() }),
            ("type", Properties { kind: long, ..Properties::default() }),
            ("app_id", Properties { app_id: Some("a\0b".into()), ..Properties::default() }),
            ("expiration", Properties { expiration: Some("soon".into()), ..Properties::default() }),
            ("expiration", Properties { expiration: Some("-1".into()), ..Properties::default() }),
            ("user_id", Properties { user_id: Some("somebody".into()), ..Properties::default() }),
        ] {
            assert_eq!(properties.invalid("xmsg").unwrap().0, name);
        }
    }

    #[test]
    fn an_empty_text_is_an_override() {
        let template = Properties { app_id: Some("daq".into()), ..Properties::default() };
        let send = Properties { app_id: Some(String::new()), ..Properties::default() };
        assert_eq!(send.over(&template).app_id.as_deref(), Some(""));
    }
}
