//! What may be declared: connections to brokers, outgoing connections, channels, and the spool, as they stand
//! in TOML. Reading is pure: text in, checked values or an error out that names the entry and the field.
//! Writing gives the same text back, whatever was in it.
//!
//! ```
//! use xmsg_connect::definition::Definitions;
//!
//! let text = r#"
//!     [[connection]]
//!     name = "crm"
//!     uris = ["amqp://127.0.0.1:5672"]
//!
//!     [[outgoing]]
//!     name = "orders"
//!     connection = "crm"
//!     exchange = "orders"
//!     subscribe = ["orders"]
//! "#;
//! let definitions = Definitions::parse(text)?;
//! assert_eq!(definitions.outgoing[0].name, "orders");
//!
//! let error = Definitions::parse(&text.replace("\"crm\"\n\n", "\"crn\"\n\n").replacen("crm", "crn", 1)).unwrap_err();
//! assert!(error.to_string().contains("outgoing \"orders\": connection names \"crm\""), "{error}");
//! # Ok::<(), xmsg_connect::definition::DefinitionError>(())
//! ```

// | file | answers |
// |---|---|
// | `connection.rs` | What may stand in `[[connection]]`? |
// | `outgoing.rs` | What may stand in `[[outgoing]]`? |
// | `channel.rs` | What may stand in `[[channel]]`? |
// | `durable.rs` | What may stand in `[[durable]]`? |
// | `federation.rs` | What may stand in `[federation]`? |
// | `zmq.rs` | Which fields do outgoing connections and channels share that are ZeroMQ sockets? |
// | `properties.rs` | Which AMQP properties does a message get? |
// | `values.rs` | How are times, amounts of memory and header values written? |

mod channel;
mod connection;
mod durable;
mod federation;
mod outgoing;
mod properties;
mod values;
mod zmq;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use xmsg_core::Topic;

pub use channel::{
    AckMode, ChannelDefinition, DeadLetterExchange, OnError, QueueDeclare, ReceivingSocket, Target,
};
pub use connection::{ConnectionDefinition, Kind, Reconnect};
pub use durable::DurableDefinition;
pub use federation::FederationDefinition;
pub use outgoing::{Body, Frames, HeaderCompat, OnReturn, OutgoingDefinition, SendingSocket, WhenInactive};
pub use properties::{DeliveryMode, Properties};
pub use values::{ByteSize, HeaderValue, Span};
pub use zmq::{Curve, SocketMethod};

pub(crate) use channel::{AmqpChannel, Source, ZmqChannel};
pub(crate) use outgoing::{AmqpOutgoing, Destination, ZmqOutgoing};
pub(crate) use properties::not_short;
pub(crate) use zmq::ZmqFields;

/// How often the spool is written to the disk. Either way a send is acknowledged only after that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fsync {
    /// Once for all sends that wait at the same time: many times faster when there are many.
    #[default]
    Batch,
    /// Once for each send.
    Always,
}

/// What happens when a spool is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFull {
    /// Sends wait for room, and the subscription at the proxy is not read meanwhile.
    #[default]
    Block,
    /// Sends are refused with an error.
    Reject,
}

/// `[spool]`: where messages wait on disk until they are delivered. Each outgoing connection has a spool of
/// its own, with these limits unless it has others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpoolDefinition {
    /// The folder of all spools; relative to the state directory. Default: `spool`.
    pub dir: PathBuf,
    /// How often it is written to the disk. Default: once for all sends that wait.
    pub fsync: Fsync,
    /// The most that one spool holds. Default: `"1GiB"`.
    pub max_bytes: ByteSize,
    /// Messages older than this go to the dead letters. Default: none are too old.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Span>,
    /// What happens when it is full. Default: sends wait.
    pub on_full: OnFull,
    /// The most that the dead letters of one outgoing connection hold. Beyond that the oldest are dropped,
    /// which is logged and counted. Default: `"256MiB"`.
    pub max_dead_bytes: ByteSize,
}

impl Default for SpoolDefinition {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("spool"),
            fsync: Fsync::default(),
            max_bytes: ByteSize::of(1 << 30),
            max_age: None,
            on_full: OnFull::default(),
            max_dead_bytes: ByteSize::of(256 << 20),
        }
    }
}

/// Everything that is declared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Definitions {
    /// Where messages wait on disk.
    pub spool: SpoolDefinition,
    /// Connections to brokers.
    #[serde(rename = "connection", skip_serializing_if = "Vec::is_empty")]
    pub connections: Vec<ConnectionDefinition>,
    /// Ways out of xMsg.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outgoing: Vec<OutgoingDefinition>,
    /// Ways into xMsg.
    #[serde(rename = "channel", skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<ChannelDefinition>,
    /// Durable subscriptions.
    #[serde(rename = "durable", skip_serializing_if = "Vec::is_empty")]
    pub durables: Vec<DurableDefinition>,
    /// The federation that the proxy takes part in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub federation: Option<FederationDefinition>,
}

/// How many entries of one sort there may be.
const ENTRIES_MAX: usize = 1000;

impl Definitions {
    /// Reads and checks the text of a file.
    pub fn parse(text: &str) -> Result<Self, DefinitionError> {
        let definitions: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| 1 + text[..span.start].matches('\n').count());
            DefinitionError { line, ..DefinitionError::file(error.message().trim_end().replace('\n', ", ")) }
        })?;
        definitions.check()?;
        Ok(definitions)
    }

    /// Returns the definitions as the text of a file. Reading it gives the same definitions.
    pub fn to_toml(&self) -> Result<String, DefinitionError> {
        toml::to_string(self)
            .map_err(|error| DefinitionError::file(format!("can't be written as TOML: {error}")))
    }

    /// Returns the broker that an entry with this `connection` leads to.
    pub(crate) fn broker(&self, connection: Option<&String>) -> Option<&ConnectionDefinition> {
        self.connections.iter().find(|broker| Some(&broker.name) == connection)
    }

    /// Returns the connection of this name, or what is wrong with the field `connection`.
    fn named_broker(&self, connection: Option<&String>) -> Result<&ConnectionDefinition, String> {
        let Some(name) = connection else {
            return Err("is missing: name the [[connection]] to the broker".to_owned());
        };
        self.broker(connection).ok_or_else(|| format!("names {name:?}, which is not defined"))
    }

    /// Checks that all values make sense, each entry alone and beside the others.
    pub fn check(&self) -> Result<(), DefinitionError> {
        let spool = |field: &str, what: &str| Err(DefinitionError::new("spool", "", field, what.to_owned()));
        if self.spool.max_bytes.get() == 0 {
            return spool("max_bytes", "is 0: nothing could be sent");
        }
        if self.spool.max_age.is_some_and(|age| age.get().is_zero()) {
            return spool("max_age", "is 0: everything would be too old");
        }
        if self.spool.dir.as_os_str().is_empty() {
            return spool("dir", "is empty: name a folder");
        }
        unique("connection", self.connections.iter().map(|entry| &entry.name))?;
        unique("outgoing", self.outgoing.iter().map(|entry| &entry.name))?;
        unique("channel", self.channels.iter().map(|entry| &entry.name))?;
        unique("durable", self.durables.iter().map(|entry| &entry.name))?;
        let mut folders = BTreeSet::new();
        for outgoing in &self.outgoing {
            if !folders.insert(outgoing.spool_folder()) {
                return Err(
                    outgoing.field_error("spool_dir", "is the folder of another outgoing connection, too")
                );
            }
        }
        self.connections.iter().try_for_each(ConnectionDefinition::check)?;
        self.outgoing.iter().try_for_each(|outgoing| outgoing.check(self).map(drop))?;
        self.channels.iter().try_for_each(|channel| channel.check(self).map(drop))?;
        self.durables.iter().try_for_each(|durable| durable.check(self))?;
        self.federation.iter().try_for_each(|federation| federation.check(self))
    }
}

impl Definitions {
    /// Checks that names that are not among the `former` ones are free of endings that belong to queues
    /// beside theirs: `NAME.dead` has the dead letters of a durable subscription, and `NAME.lock` says that a
    /// federation has the name. Those that are there stay usable.
    pub(crate) fn check_new_names(&self, former: &Self) -> Result<(), DefinitionError> {
        let refused = |sort, name: &str, ending: &str, purpose: &str| {
            let what =
                format!("ends with {ending:?}, which stands for {purpose} of another one: choose another");
            DefinitionError::new(sort, name, "name", what)
        };
        let is_new = |name: &str| !former.durables.iter().any(|other| other.name == name);
        let dead = |name: &&str| name.strip_suffix(".dead").is_some() && is_new(name);
        if let Some(name) = self.durables.iter().map(|durable| durable.name.as_str()).find(dead) {
            return Err(refused("durable", name, ".dead", "the dead letters"));
        }
        let is_new = |name: &str| former.federation.as_ref().is_none_or(|other| other.name != name);
        let lock = |name: &&str| name.strip_suffix(".lock").is_some() && is_new(name);
        if let Some(name) = self.federation.as_ref().map(|federation| federation.name.as_str()).filter(lock) {
            return Err(refused("federation", name, ".lock", "the lock"));
        }
        Ok(())
    }
}

fn unique<'a>(sort: &'static str, names: impl Iterator<Item = &'a String>) -> Result<(), DefinitionError> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(DefinitionError::new(
                sort,
                name,
                "name",
                "is taken by another entry of this sort".to_owned(),
            ));
        }
        if seen.len() > ENTRIES_MAX {
            return Err(DefinitionError::new(
                sort,
                name,
                "name",
                format!("is one too many: {ENTRIES_MAX} are allowed"),
            ));
        }
    }
    Ok(())
}

/// The longest name of an entry, in bytes.
const NAME_MAX: usize = 64;

/// Checks a name. It is a folder and the label of a metric, too, and so has letters, digits, `-`, `_` and `.`
/// only, with no `.` at the beginning.
fn check_name(sort: &'static str, name: &str) -> Result<(), DefinitionError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > NAME_MAX || name.starts_with('.') || !name.chars().all(is_plain) {
        let what = format!(
            "can't be used: 1 to {NAME_MAX} letters, digits, `-`, `_` or `.`, not beginning with `.`"
        );
        return Err(DefinitionError::new(sort, name, "name", what));
    }
    Ok(())
}

fn check_topics(topics: &[String]) -> Result<(), String> {
    for topic in topics {
        if !topic.is_empty() {
            topic.parse::<Topic>().map_err(|error| format!("names a topic that can't be used: {error}"))?;
        }
    }
    Ok(())
}

/// The error of definitions that can't be used. It says which entry and which field is wrong, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DefinitionError {
    /// `connection`, `outgoing`, `channel`, `durable`, `federation` or `spool`; empty for what concerns the
    /// whole file.
    pub sort: &'static str,
    /// The name of the entry.
    pub name: String,
    /// The name of the field, such as `properties.priority`.
    pub field: String,
    /// What is wrong, following the name of the field.
    pub what: String,
    /// The line of the file, counted from 1, where it is known.
    pub line: Option<usize>,
}

impl DefinitionError {
    fn new(sort: &'static str, name: &str, field: &str, what: String) -> Self {
        Self { sort, name: name.to_owned(), field: field.to_owned(), what, line: None }
    }

    fn file(what: String) -> Self {
        Self::new("", "", "", what)
    }
}

impl fmt::Display for DefinitionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.sort.is_empty() {
            write!(f, "{}", self.sort)?;
            if !self.name.is_empty() {
                write!(f, " {:?}", self.name)?;
            }
            f.write_str(": ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{} ", self.field)?;
        }
        f.write_str(&self.what)
    }
}

impl std::error::Error for DefinitionError {}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that a file may say.
    const EVERYTHING: &str = include_str!("everything.toml");

    #[test]
    fn what_is_written_reads_back_to_the_same() {
        for text in ["", EVERYTHING] {
            let read = Definitions::parse(text).unwrap();
            let written = read.to_toml().unwrap();
            assert_eq!(Definitions::parse(&written).unwrap(), read, "{written}");
        }
        let everything = Definitions::parse(EVERYTHING).unwrap();
        let table: toml::Table = toml::from_str(EVERYTHING).unwrap();
        let written: toml::Table = toml::from_str(&everything.to_toml().unwrap()).unwrap();
        assert_eq!(written, table, "every value that was in the file is in what is written");
    }

    /// Replaces one line of the file and says what is wrong with it then.
    fn error(line: &str, instead: &str) -> String {
        let field_error = EVERYTHING.replacen(line, instead, 1);
        assert_ne!(field_error, EVERYTHING, "{line}");
        Definitions::parse(&field_error).unwrap_err().to_string()
    }

    #[test]
    fn what_is_wrong_is_said_with_the_entry_and_the_field() {
        for (line, instead, says) in [
            ("max_bytes = \"1GiB\"", "max_bytes = \"1 gig\"", "not a whole number of bytes"),
            ("max_bytes = \"1GiB\"", "max_bytes = \"0B\"", "spool: max_bytes is 0"),
            ("name = \"crm\"", "name = \"../crm\"", "connection \"../crm\": name can't be used"),
            ("name = \"crm\"", "name = \"crm\"\nprot = 1", "unknown field `prot`"),
            ("\"amqp://a:5672\"", "\"amqp://u:p@a\"", "connection \"crm\": uris for \"a\" has a login"),
            ("\"amqp://a:5672\"", "\"http://a\"", "does not begin with amqp://"),
            ("\"amqp://a:5672\"", "\"amqp://a/x\"", "belongs into `vhost`"),
            ("heartbeat = \"30s\"", "heartbeat = \"0s\"", "connection \"crm\": heartbeat is 0ms"),
            ("frame_max = 131072", "frame_max = 10", "frame_max is 10"),
            ("min = \"500ms\"", "min = \"50m\"", "reconnect needs a `min`"),
            (
                "connection = \"crm\"",
                "connection = \"other\"",
                "outgoing \"CRM1\": connection names \"other\"",
            ),
            ("name = \"feed\"", "name = \"CRM1\"", "outgoing \"CRM1\": name is taken"),
            (
                "name = \"feed\"",
                "name = \"feed\"\nexchange = \"x\"",
                "outgoing \"feed\": exchange is for AMQP only",
            ),
            ("priority = 5", "priority = 500", "line"),
            ("priority = 5", "user_id = \"root\"", "outgoing \"CRM1\": properties.user_id"),
            (
                "routing_key = \"{subject}\"",
                "routing_key = \"{sub}\"",
                "routing_key has the placeholder {sub}",
            ),
            ("max_in_flight = 256", "max_in_flight = 0", "max_in_flight is 0"),
            ("socket_type = \"PUSH\"", "socket_type = \"PULL\"", "line"),
            (
                "address = \"tcp://127.0.0.1:5557\"",
                "address = \"udp://x\"",
                "address \"udp://x\" begins neither",
            ),
            ("sub_keys = [\"\"]", "sub_keys = []", "channel \"zin\": sub_keys is missing or empty"),
            ("target = \"topic:orders\"", "target = \"orders\"", "is neither \"topic:NAME\""),
            ("target = \"topic:orders\"", "target = \"outgoing:x\"", "names the outgoing connection \"x\""),
            ("delivery_limit = 5", "delivery_limit = 0", "delivery_limit is 0"),
            ("queue_declare = \"active\"", "queue_declare = \"none\"", "dead_letter is for a queue that"),
            ("X-Env = \"prod\"", "X-Env = nan", "outgoing \"CRM1\": headers.X-Env is NaN"),
            ("X-Env = \"prod\"", "X-Env = -inf", "outgoing \"CRM1\": headers.X-Env is -inf"),
            ("queue = \"orders.q\"", "queue = \"\"", "channel \"in1\": queue is missing"),
            ("exchange = \"halls\"", "exchange = \"\"", "federation \"hall-b\": exchange is empty"),
            ("exchange = \"halls\"", "exchange = \"amq.topic\"", "begins with \"amq.\""),
            ("keep = \"1d\"", "keep = \"59s\"", "keep is 59s, and not from 1m to 45d"),
            ("hold = \"5s\"", "hold = \"2h\"", "hold is 2h, and at most 1h"),
            (
                "max_queue_bytes = \"512MiB\"",
                "max_queue_bytes = \"0B\"",
                "federation \"hall-b\": max_queue_bytes is 0",
            ),
            (
                "import = [\"sensors:hall-a\"]",
                "import = [\":\"]",
                "federation \"hall-b\": import names a topic",
            ),
            ("name = \"hall-b\"", "name = \"hall b\"", "federation \"hall b\": name can't be used"),
            (
                "topics = [\"orders\"]\nis_active",
                "topics = []\nis_active",
                "durable \"billing\": topics is empty",
            ),
            ("delivery_limit = 3", "delivery_limit = 0", "durable \"billing\": delivery_limit is 0"),
            ("lease = \"30s\"", "lease = \"2h\"", "durable \"billing\": lease is 2h"),
        ] {
            let error = error(line, instead);
            assert!(error.contains(says), "{instead}: {error}");
        }
    }
}
