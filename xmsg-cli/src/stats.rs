//! Statistics of a proxy: its connections and traffic. The proxy itself returns them, to a control request or
//! over HTTP.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use hyper::{Method, StatusCode};
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use xmsg_core::{Error, ErrorKind, ProxyAddress};
use xmsg_zmq::Multipart;

use crate::admin::{Admin, AdminOptions};
use crate::args::ConnectOptions;
use crate::control::ControlSockets;
use crate::exit::AtAdmin;

/// The topic of the request. Proxies of other implementations ignore it.
const TOPIC: &[u8] = b"xmsg:control:stats";
/// The kind of the request, which is also the first frame of an answer.
const STATS: &[u8] = b"stats";
/// How long an answer may take before the request is repeated.
const ASK_INTERVAL: Duration = Duration::from_millis(200);

/// The statistics of a proxy. Fields may be missing in those of an older proxy.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Stats {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) uptime_s: f64,
    pub(crate) received: Sum,
    pub(crate) delivered: Sum,
    pub(crate) dropped: Sum,
    pub(crate) queued: Sum,
    pub(crate) denied: u64,
    pub(crate) unmatched_messages: u64,
    pub(crate) subscribers_disconnected: u64,
    pub(crate) publishers: u64,
    pub(crate) subscribers: u64,
    /// The number of proxies below that get each message twice.
    pub(crate) double_paths: u64,
    pub(crate) subscriptions: u64,
    pub(crate) memory: Memory,
    /// Publishers and subscribers. Those that lose messages or delay others come first, followed by those
    /// with the most traffic.
    #[serde(deserialize_with = "first_rows")]
    pub(crate) connections: Vec<Connection>,
    /// The number of connections for which the answer had no room.
    pub(crate) connections_left_out: u64,
    /// The topics with the most messages. The counts are estimated from samples, since somebody began to ask
    /// for them.
    #[serde(deserialize_with = "first_rows")]
    pub(crate) topics: Vec<Topic>,
    pub(crate) topics_left_out: u64,
    /// How long the topics have been sampled, in seconds.
    pub(crate) topics_watched_s: f64,
    pub(crate) other_topics: Sum,
    /// Why the proxy does not answer. Then there is nothing else.
    pub(crate) error: Option<String>,
}

/// The largest number of rows of a table that are read. `xmsg-proxy` sends far fewer.
pub(crate) const ROWS_MAX: usize = 10_000;

/// Reads the first rows of a table. A peer that claims to be a proxy may send any number of rows, and each
/// takes a hundred times the memory of its text.
pub(crate) fn first_rows<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Rows<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Rows<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of rows")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<Vec<T>, A::Error> {
            let mut kept = Vec::new();
            while kept.len() < ROWS_MAX {
                let Some(row) = rows.next_element()? else { return Ok(kept) };
                kept.push(row);
            }
            while rows.next_element::<IgnoredAny>()?.is_some() {}
            Ok(kept)
        }
    }

    deserializer.deserialize_seq(Rows(PhantomData))
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(crate) struct Sum {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Memory {
    pub(crate) used: u64,
    pub(crate) limit: u64,
}

/// One connection.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Connection {
    /// The kind: `publisher`, `subscriber` or `upstream`.
    pub(crate) kind: String,
    pub(crate) id: u64,
    pub(crate) peer: String,
    pub(crate) connected_s: f64,
    /// Messages that were received from a publisher, or written to a subscriber.
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) principal: Option<String>,
    /// How many seconds ago a publisher left. It is present while subscribers have not yet taken all of its
    /// messages.
    pub(crate) left_s: Option<f64>,
    /// The fields from here on are present for subscribers only.
    pub(crate) subscriptions: Option<u64>,
    pub(crate) queued: Option<Sum>,
    pub(crate) dropped: Option<Sum>,
    pub(crate) publisher_wait_s: Option<f64>,
    pub(crate) policy: Option<String>,
    /// How long the subscriber has been losing messages or delaying publishers, in seconds, without a break
    /// of ten seconds.
    pub(crate) slow_s: Option<f64>,
    /// These are there for an upstream only: how it stands, since when, and why there is no connection.
    pub(crate) state: Option<String>,
    pub(crate) state_s: Option<f64>,
    pub(crate) reconnections: Option<u64>,
    pub(crate) loops: Option<u64>,
    pub(crate) error: Option<String>,
}

impl Connection {
    /// Returns the number of messages that were dropped for this connection.
    pub(crate) fn dropped_messages(&self) -> u64 {
        self.dropped.map_or(0, |dropped| dropped.messages)
    }

    /// Returns a name of the peer: its address, with the authenticated principal if there is one.
    pub(crate) fn who(&self) -> String {
        match &self.principal {
            Some(principal) => format!("{} ({principal})", self.peer),
            None => self.peer.clone(),
        }
    }
}

/// One topic.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(crate) struct Topic {
    #[serde(rename = "topic")]
    pub(crate) name: String,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

/// A source of statistics, which can be asked repeatedly.
#[derive(Debug)]
pub(crate) enum Source {
    Control(Box<Control>),
    Admin(Admin),
}

/// The proxy does not know the control request: it is of another implementation, or older.
#[derive(Debug)]
pub(crate) struct Unknown {
    pub(crate) proxy: ProxyAddress,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the proxy at {} does not say who is connected and what flows: it is no xmsg-proxy, or an older one",
            self.proxy
        )
    }
}

impl std::error::Error for Unknown {}

/// The options that select the proxy, and whether it is asked over HTTP.
#[derive(Debug, clap::Args)]
pub(crate) struct SourceOptions {
    #[command(flatten)]
    pub(crate) connect: ConnectOptions,

    #[command(flatten)]
    pub(crate) admin: AdminOptions,
}

impl SourceOptions {
    /// Opens the source: HTTP if its address was given, and otherwise control requests.
    ///
    /// # Errors
    /// There is no proxy, or it does not know the control request ([`Unknown`]).
    pub(crate) async fn open(&self) -> anyhow::Result<Source> {
        if self.admin.is_given()? {
            return Ok(Source::Admin(self.admin.clone().admin()?));
        }
        Ok(Source::Control(Box::new(Control::open(&self.connect).await?)))
    }
}

impl Source {
    /// Returns the address of the source.
    pub(crate) fn address(&self) -> String {
        match self {
            Self::Control(control) => control.proxy.to_string(),
            Self::Admin(admin) => admin.address().to_string(),
        }
    }

    /// Asks once. Returns the statistics, and the document that was received, which is valid JSON.
    pub(crate) async fn ask(&mut self) -> anyhow::Result<(Stats, String)> {
        let document: Vec<u8> = match self {
            Self::Control(control) => control.ask().await?.into(),
            Self::Admin(admin) => {
                let answer = admin.ask(Method::GET, "/api/v1/stats").await?;
                if answer.status != StatusCode::OK {
                    let text = format!(
                        "{} does not say who is connected: is it a registrar, or an older proxy?",
                        admin.address()
                    );
                    return Err(AtAdmin(Error::new(ErrorKind::Remote, text)).into());
                }
                answer.body
            }
        };
        let read = || {
            // The text takes no more memory than was received, and the statistics have a limited number of
            // rows. All of it as values would take a hundred times as much.
            let document = String::from_utf8(document)?;
            let stats: Stats = serde_json::from_str(&document)?;
            if let Some(error) = &stats.error {
                let text = format!("the proxy at {}: {error}", self.address());
                return Err(anyhow::Error::from(Error::new(ErrorKind::NotAllowed, text)));
            }
            Ok((stats, document))
        };
        read().with_context(|| format!("the answer of {} can't be read", self.address())).map_err(|error| {
            // The kind of the error determines the exit code.
            match error.downcast_ref::<Error>() {
                Some(refused) => Error::new(refused.kind(), refused.to_string()).into(),
                None => error,
            }
        })
    }
}

/// A proxy that is asked with control requests.
#[derive(Debug)]
pub(crate) struct Control {
    proxy: ProxyAddress,
    sockets: ControlSockets,
    patience: Duration,
}

impl Control {
    pub(crate) async fn open(connect: &ConnectOptions) -> anyhow::Result<Self> {
        let proxy = connect.proxy()?;
        // This checks whether there is a proxy that accepts us, so that the errors are the same as those of
        // other commands.
        let tried = connect.connection()?;
        tried.connect().await?;
        tried.close(Duration::ZERO).await;
        let sockets = ControlSockets::connect(connect)?;
        let mut control = Self { proxy, sockets, patience: connect.timeout() };
        control.ask().await?;
        Ok(control)
    }

    async fn ask(&mut self) -> anyhow::Result<Bytes> {
        let sockets = &mut self.sockets;
        let asking = async {
            sockets.connected().await?;
            sockets.publisher.wait_for_subscriber(TOPIC).await?;
            let question = [TOPIC, STATS, sockets.id.as_bytes()].map(Bytes::copy_from_slice).into();
            let document = |answer: Multipart| match answer.into_array() {
                Some([kind, document]) if kind == STATS => Some(document),
                _ => None,
            };
            sockets.ask(&question, ASK_INTERVAL, document).await
        };
        match tokio::time::timeout(self.patience, asking).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Unknown { proxy: self.proxy.clone() }.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer may have 64 MiB, and a row of three bytes takes 300 bytes of memory.
    #[test]
    fn of_a_table_without_end_the_first_rows_are_read() {
        let rows = |count: usize| vec!["{}"; count].join(",");
        let text = |count: usize| {
            format!(r#"{{"connections":[{}],"topics":[{}],"version":"1"}}"#, rows(count), rows(count))
        };
        let few: Stats = serde_json::from_str(&text(3)).unwrap();
        assert_eq!((few.connections.len(), few.topics.len(), &*few.version), (3, 3, "1"));
        let many: Stats = serde_json::from_str(&text(ROWS_MAX + 7)).unwrap();
        assert_eq!((many.connections.len(), many.topics.len(), &*many.version), (ROWS_MAX, ROWS_MAX, "1"));
        serde_json::from_str::<Stats>(r#"{"connections":{}}"#).unwrap_err();
    }
}
