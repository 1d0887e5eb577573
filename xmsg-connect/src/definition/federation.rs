//! `[federation]`: joins this proxy with others over a topic exchange of a broker.

use serde::{Deserialize, Serialize};

use super::{ByteSize, DefinitionError, Definitions, Span, check_name, check_topics, not_short};

/// How this proxy takes part in a federation: any number of proxies that share messages over one topic
/// exchange.
///
/// It works as an internal outgoing connection, [`outgoing_name`](Self::outgoing_name), and an internal
/// channel,
/// [`channel_name`](Self::channel_name). A proxy takes part in one federation at most.
///
/// ```
/// use xmsg_connect::definition::FederationDefinition;
///
/// let mut federation = FederationDefinition::new("hall-b", "rabbit");
/// federation.topics = vec!["orders".into()]; // shared in both directions
/// federation.export = vec!["sensors:hall-b".into()]; // leaves here, and is not taken in
/// assert_eq!(federation.queue(), "xmsg.federation.hall-b");
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FederationDefinition {
    /// The name of this proxy, which no other proxy of the federation has.
    pub name: String,
    /// The name of the `[[connection]]` to the broker.
    pub connection: String,
    /// The topic exchange that all proxies of the federation have in common. It is declared as durable.
    /// Default: `xmsg.federation`.
    #[serde(default = "default_exchange")]
    pub exchange: String,
    /// Topics, each a prefix, that leave here and are taken in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<String>,
    /// Topics, each a prefix, that leave here beside `topics`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub export: Vec<String>,
    /// Topics, each a prefix, that are taken in beside `topics`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub import: Vec<String>,
    /// Whether it is at work. While it is not, what leaves here waits in the spool, and what comes waits in
    /// the queue. Default: true.
    #[serde(default = "default_is_active")]
    pub is_active: bool,
    /// How long the queue of this proxy exists at the broker while the proxy is away: from one minute to 45
    /// days. Default: `"7d"`.
    #[serde(default = "default_keep")]
    pub keep: Span,
    /// How long nothing is taken in after this program has started, so that subscribers that were there
    /// before can come back: at most an hour. Default: `"2s"`.
    #[serde(default = "default_hold")]
    pub hold: Span,
    /// The most that the queue of this proxy holds at the broker. Beyond that the broker drops the oldest
    /// messages. Default: `"1GiB"`.
    #[serde(default = "default_max_queue_bytes")]
    pub max_queue_bytes: ByteSize,
    /// The most that the spool of what leaves here holds. Default: that of `[spool]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<ByteSize>,
}

fn default_exchange() -> String {
    "xmsg.federation".to_owned()
}

fn default_is_active() -> bool {
    true
}

fn default_keep() -> Span {
    Span::seconds(7 * 86_400)
}

fn default_hold() -> Span {
    Span::seconds(2)
}

fn default_max_queue_bytes() -> ByteSize {
    ByteSize::of(1 << 30)
}

/// The bounds of `keep`, in seconds: RabbitMQ counts milliseconds in 32 bits.
const KEEP_MIN_S: u64 = 60;
const KEEP_MAX_S: u64 = 45 * 86_400;
/// The longest `hold`, in seconds.
const HOLD_MAX_S: u64 = 3600;

impl FederationDefinition {
    /// Defines that this proxy takes part under this name, over the broker that the connection leads to, with
    /// the defaults and without topics.
    #[must_use]
    pub fn new(name: impl Into<String>, connection: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            connection: connection.into(),
            exchange: default_exchange(),
            topics: Vec::new(),
            export: Vec::new(),
            import: Vec::new(),
            is_active: true,
            keep: default_keep(),
            hold: default_hold(),
            max_queue_bytes: default_max_queue_bytes(),
            max_bytes: None,
        }
    }

    /// Returns the name of the queue of this proxy at the broker.
    #[must_use]
    pub fn queue(&self) -> String {
        format!("xmsg.federation.{}", self.name)
    }

    /// Returns the name of the outgoing connection of the federation in reports and metrics.
    #[must_use]
    pub fn outgoing_name(&self) -> String {
        format!("federation-out:{}", self.name)
    }

    /// Returns the name of the channel of the federation in reports and metrics.
    #[must_use]
    pub fn channel_name(&self) -> String {
        format!("federation-in:{}", self.name)
    }

    /// Returns the topics that leave here.
    pub(crate) fn exported(&self) -> Vec<String> {
        self.topics.iter().chain(&self.export).cloned().collect()
    }

    /// Returns the topics that are taken in.
    pub(crate) fn imported(&self) -> Vec<String> {
        self.topics.iter().chain(&self.import).cloned().collect()
    }

    fn field_error(&self, field: &str, what: impl Into<String>) -> DefinitionError {
        DefinitionError::new("federation", &self.name, field, what.into())
    }

    /// Checks that the values make sense, also beside the other definitions.
    pub(crate) fn check(&self, all: &Definitions) -> Result<(), DefinitionError> {
        check_name("federation", &self.name)?;
        all.named_broker(Some(&self.connection)).map_err(|what| self.field_error("connection", what))?;
        if self.exchange.is_empty() {
            let what = "is empty: the default exchange is no topic exchange; leave the line out for \"xmsg.federation\"";
            return Err(self.field_error("exchange", what));
        }
        if self.exchange.starts_with("amq.") {
            return Err(
                self.field_error("exchange", "begins with \"amq.\", which brokers keep for themselves")
            );
        }
        if let Some(what) = not_short(&self.exchange) {
            return Err(self.field_error("exchange", what));
        }
        for (field, topics) in [("topics", &self.topics), ("export", &self.export), ("import", &self.import)]
        {
            check_topics(topics).map_err(|what| self.field_error(field, what))?;
        }
        if self.topics.is_empty() && self.export.is_empty() && self.import.is_empty() {
            return Err(
                self.field_error("topics", "is empty, and so are export and import: nothing would be shared")
            );
        }
        if !(KEEP_MIN_S..=KEEP_MAX_S).contains(&self.keep.get().as_secs()) {
            return Err(self.field_error("keep", format!("is {}, and not from 1m to 45d", self.keep)));
        }
        if self.hold.get().as_secs() > HOLD_MAX_S {
            return Err(self.field_error("hold", format!("is {}, and at most 1h is possible", self.hold)));
        }
        if self.max_queue_bytes.get() == 0 {
            return Err(self.field_error("max_queue_bytes", "is 0: nothing could be kept"));
        }
        if self.max_bytes.is_some_and(|bytes| bytes.get() == 0) {
            return Err(self.field_error("max_bytes", "is 0: nothing could be sent"));
        }
        Ok(())
    }
}
