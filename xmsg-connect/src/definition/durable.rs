//! `[[durable]]`: a durable subscription, whose messages wait in a queue of a broker for the subscriber.

use serde::{Deserialize, Serialize};

use super::{
    ByteSize, DeadLetterExchange, DefinitionError, Definitions, Span, check_name, check_topics, not_short,
};

/// A durable subscription: what is published under its topics waits in a queue until a subscriber has
/// acknowledged it.
///
/// It works by an internal outgoing connection, [`outgoing_name`](Self::outgoing_name), and answers requests
/// under the topic `xmsg-durable:NAME`, through the proxy: whoever may publish there may receive the
/// messages.
///
/// ```
/// use xmsg_connect::definition::DurableDefinition;
///
/// let billing = DurableDefinition::new("billing", "rabbit", ["orders"]);
/// assert_eq!(billing.queue(), "xmsg.durable.billing");
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DurableDefinition {
    /// Its name, which no other durable subscription over this broker has.
    pub name: String,
    /// The name of the `[[connection]]` to the broker.
    pub connection: String,
    /// What it subscribes to, as prefixes of topics.
    pub topics: Vec<String>,
    /// Whether it is at work. While it is not, what is published waits in the spool, and nobody gets
    /// messages. Default: true.
    #[serde(default = "yes")]
    pub is_active: bool,
    /// How often a message is tried, until it is given up: once, and then again each time that it was not
    /// acknowledged. Default: 10.
    #[serde(default = "ten")]
    pub delivery_limit: u32,
    /// Where the broker puts what is given up. Default: the queue `xmsg.durable.NAME.dead`, which is
    /// declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<DeadLetterExchange>,
    /// How long a subscriber may be silent before its messages go to others: from one second to an hour.
    /// Default: `"1m"`.
    #[serde(default = "a_minute")]
    pub lease: Span,
    /// The most that the queue holds at the broker. Beyond that, messages wait in the spool. Default:
    /// `"1GiB"`.
    #[serde(default = "a_gibibyte")]
    pub max_queue_bytes: ByteSize,
    /// The most that a session of a subscriber holds without an acknowledgement; one message that is longer
    /// goes alone. Default: `"64MiB"`.
    #[serde(default = "session_bytes")]
    pub max_session_bytes: ByteSize,
    /// The most that the spool on the way to the queue holds. Default: that of `[spool]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<ByteSize>,
}

fn yes() -> bool {
    true
}

fn ten() -> u32 {
    10
}

fn a_minute() -> Span {
    Span::seconds(60)
}

fn a_gibibyte() -> ByteSize {
    ByteSize::of(1 << 30)
}

fn session_bytes() -> ByteSize {
    ByteSize::of(64 << 20)
}

impl DurableDefinition {
    /// A durable subscription to these topics over this broker, with the defaults.
    #[must_use]
    pub fn new<T: Into<String>>(
        name: impl Into<String>,
        connection: impl Into<String>,
        topics: impl IntoIterator<Item = T>,
    ) -> Self {
        Self {
            name: name.into(),
            connection: connection.into(),
            topics: topics.into_iter().map(Into::into).collect(),
            is_active: true,
            delivery_limit: ten(),
            dead_letter: None,
            lease: a_minute(),
            max_queue_bytes: a_gibibyte(),
            max_session_bytes: session_bytes(),
            max_bytes: None,
        }
    }

    /// Its queue at the broker.
    #[must_use]
    pub fn queue(&self) -> String {
        format!("xmsg.durable.{}", self.name)
    }

    /// What its outgoing connection is called in reports and metrics.
    #[must_use]
    pub fn outgoing_name(&self) -> String {
        format!("durable:{}", self.name)
    }

    /// The folder of its spool, in that of all spools: no outgoing connection of a definition can have it.
    pub(crate) fn spool_folder(&self) -> String {
        format!(".durable.{}", self.name)
    }

    fn wrong(&self, field: &str, what: impl Into<String>) -> DefinitionError {
        DefinitionError::new("durable", &self.name, field, what.into())
    }

    /// Whether the values make sense, also beside the other definitions.
    pub(crate) fn check(&self, all: &Definitions) -> Result<(), DefinitionError> {
        check_name("durable", &self.name)?;
        all.named_broker(Some(&self.connection)).map_err(|what| self.wrong("connection", what))?;
        if self.topics.is_empty() {
            return Err(self.wrong("topics", "is empty: [\"\"] subscribes to everything"));
        }
        check_topics(&self.topics).map_err(|what| self.wrong("topics", what))?;
        if self.delivery_limit == 0 {
            return Err(self.wrong("delivery_limit", "is 0: nothing would be tried"));
        }
        if !(1..=3600).contains(&self.lease.get().as_secs()) {
            return Err(self.wrong("lease", format!("is {}, and not from 1s to 1h", self.lease)));
        }
        if self.max_queue_bytes.get() == 0 {
            return Err(self.wrong("max_queue_bytes", "is 0: nothing could be kept"));
        }
        if self.max_session_bytes.get() == 0 {
            return Err(self.wrong("max_session_bytes", "is 0: nothing could be given out"));
        }
        if self.max_bytes.is_some_and(|bytes| bytes.get() == 0) {
            return Err(self.wrong("max_bytes", "is 0: nothing could be sent"));
        }
        if let Some(dead) = &self.dead_letter {
            let texts = [Some(&dead.exchange), dead.routing_key.as_ref()];
            if let Some(what) = texts.into_iter().flatten().find_map(|text| not_short(text)) {
                return Err(self.wrong("dead_letter", what));
            }
        }
        Ok(())
    }
}
