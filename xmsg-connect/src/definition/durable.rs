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
    #[serde(default = "default_is_active")]
    pub is_active: bool,
    /// How often a message is tried, until it is given up: once, and then again each time that it was not
    /// acknowledged. Default: 10.
    #[serde(default = "default_delivery_limit")]
    pub delivery_limit: u32,
    /// Where the broker puts what is given up. Default: the queue `xmsg.durable.NAME.dead`, which is
    /// declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<DeadLetterExchange>,
    /// How long a subscriber may be silent before its messages go to others: from one second to an hour.
    /// Default: `"1m"`.
    #[serde(default = "default_lease")]
    pub lease: Span,
    /// The most that the queue holds at the broker. Beyond that, messages wait in the spool. Default:
    /// `"1GiB"`.
    #[serde(default = "default_max_queue_bytes")]
    pub max_queue_bytes: ByteSize,
    /// The most that a session of a subscriber holds without an acknowledgement; one message that is longer
    /// goes alone. Default: `"64MiB"`.
    #[serde(default = "default_max_session_bytes")]
    pub max_session_bytes: ByteSize,
    /// The most that the spool on the way to the queue holds. Default: that of `[spool]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<ByteSize>,
}

fn default_is_active() -> bool {
    true
}

fn default_delivery_limit() -> u32 {
    10
}

fn default_lease() -> Span {
    Span::seconds(60)
}

fn default_max_queue_bytes() -> ByteSize {
    ByteSize::of(1 << 30)
}

fn default_max_session_bytes() -> ByteSize {
    ByteSize::of(64 << 20)
}

impl DurableDefinition {
    /// Defines a durable subscription to these topics over this broker, with the defaults.
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
            delivery_limit: default_delivery_limit(),
            dead_letter: None,
            lease: default_lease(),
            max_queue_bytes: default_max_queue_bytes(),
            max_session_bytes: default_max_session_bytes(),
            max_bytes: None,
        }
    }

    /// Returns the name of its queue at the broker.
    #[must_use]
    pub fn queue(&self) -> String {
        format!("xmsg.durable.{}", self.name)
    }

    /// Returns the name of its outgoing connection in reports and metrics.
    #[must_use]
    pub fn outgoing_name(&self) -> String {
        format!("durable:{}", self.name)
    }

    /// Returns the name of the folder of its spool, in the folder of all spools. No outgoing connection of a
    /// definition can have that name.
    pub(crate) fn spool_folder(&self) -> String {
        format!(".durable.{}", self.name)
    }

    fn field_error(&self, field: &str, what: impl Into<String>) -> DefinitionError {
        DefinitionError::new("durable", &self.name, field, what.into())
    }

    /// Checks that the values make sense, also beside the other definitions.
    pub(crate) fn check(&self, all: &Definitions) -> Result<(), DefinitionError> {
        check_name("durable", &self.name)?;
        all.named_broker(Some(&self.connection)).map_err(|what| self.field_error("connection", what))?;
        if self.topics.is_empty() {
            return Err(self.field_error("topics", "is empty: [\"\"] subscribes to everything"));
        }
        check_topics(&self.topics).map_err(|what| self.field_error("topics", what))?;
        if self.delivery_limit == 0 {
            return Err(self.field_error("delivery_limit", "is 0: nothing would be tried"));
        }
        if !(1..=3600).contains(&self.lease.get().as_secs()) {
            return Err(self.field_error("lease", format!("is {}, and not from 1s to 1h", self.lease)));
        }
        if self.max_queue_bytes.get() == 0 {
            return Err(self.field_error("max_queue_bytes", "is 0: nothing could be kept"));
        }
        if self.max_session_bytes.get() == 0 {
            return Err(self.field_error("max_session_bytes", "is 0: nothing could be given out"));
        }
        if self.max_bytes.is_some_and(|bytes| bytes.get() == 0) {
            return Err(self.field_error("max_bytes", "is 0: nothing could be sent"));
        }
        if let Some(dead) = &self.dead_letter {
            let texts = [Some(&dead.exchange), dead.routing_key.as_ref()];
            if let Some(what) = texts.into_iter().flatten().find_map(|text| not_short(text)) {
                return Err(self.field_error("dead_letter", what));
            }
        }
        Ok(())
    }
}
