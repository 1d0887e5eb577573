//! AMQP 0-9-1: connections to a broker, and messages as it has them.

pub(crate) mod headers;
mod nesting;
mod plain;
mod socket;

use std::sync::Arc;
use std::time::Duration;

use lapin::types::ShortString;
use lapin::uri::{AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Channel, Connection, ConnectionProperties};
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::memory_budget::Claim;
use xmsg_zmq::security::read_secret;

use self::socket::{End, TRICKLE, UNLIMITED};
use crate::definition::ConnectionDefinition;
use crate::error::{Error, ErrorKind, Result};
use crate::room::{Held, Room};

/// How long a broker may take to say goodbye.
const GOODBYE: Duration = Duration::from_millis(200);
/// The frames that fit into each of the two buffers of the client.
const BUFFERED: usize = 32;

/// A connection to a broker with one channel. Dropping it ends both.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) connection: Connection,
    pub(crate) channel: Channel,
    /// The node that it leads to.
    pub(crate) uri: String,
    /// The longest frame that both sides take, in bytes.
    pub(crate) frame_max: usize,
    /// How often something is read while messages have to wait: often enough for the client to know that the
    /// broker is there.
    trickle: Duration,
    /// What the client holds ends with this, whatever the broker does.
    end: End,
    /// The buffers of the client.
    _buffers: Claim,
}

/// The memory in bytes for the buffers of a link to this broker.
pub(crate) fn buffers(broker: &ConnectionDefinition) -> usize {
    2 * BUFFERED * broker.frame_max as usize
}

impl Link {
    /// Connects to one node of the broker, logs in, and opens a channel; all within the time that the
    /// definition allows. `turn` says which node: they are tried one after another.
    pub(crate) async fn open(
        broker: &ConnectionDefinition,
        name: &str,
        turn: usize,
        room: &Room,
    ) -> Result<Self> {
        let uri = &broker.uris[turn % broker.uris.len()];
        let parsed = full_uri(broker, uri)?;
        let properties = ConnectionProperties::default()
            .with_connection_name(name.into())
            .with_client_property("product".into(), "xmsg-connect".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        let failed = format!("the broker {uri} can't be reached");
        let open = async {
            let (socket, end) = socket::connect(&parsed, broker.ca_file.as_deref(), broker.frame_max).await?;
            let logged_in = async {
                let connection = socket::begin(parsed, socket, properties).await?;
                let channel = connection.create_channel().await?;
                Ok::<_, lapin::Error>((connection, channel))
            };
            let (connection, channel) = logged_in.await.map_err(|error| explain(error, broker, &failed))?;
            Ok::<_, Error>((connection, channel, end))
        };
        let late = |_| {
            let what = format!("{failed}: no answer within {}", broker.connect_timeout);
            Error::new(ErrorKind::Unreachable, what)
        };
        let opened = Deadline::after(broker.connect_timeout.get()).limit(Box::pin(open)).await;
        let (connection, channel, end) = opened.map_err(late)??;
        let frame_max = match connection.configuration().frame_max() {
            0 => broker.frame_max as usize,
            frame_max => frame_max as usize,
        };
        let trickle = broker.heartbeat.get() / 2;
        let claim = room.claim(buffers(broker));
        Ok(Self { connection, channel, uri: uri.clone(), frame_max, trickle, end, _buffers: claim })
    }

    /// What is asked of the broker, for at most so long: it may answer heartbeats and nothing else.
    pub(crate) async fn within<T>(
        &self,
        limit: Duration,
        asked: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let late = |_| Error::new(ErrorKind::Unreachable, format!("the broker {} does not answer", self.uri));
        Deadline::after(limit).limit(asked).await.map_err(late)?
    }

    /// From now on, only messages are read for which `held` has room; others stay with the broker. Nothing
    /// can be asked of it while they wait; what it is told still goes out.
    pub(crate) fn keep_to(&self, held: &Arc<Held>) {
        self.end.keep_to(held.clone(), self.trickle);
    }

    /// Waits for `work`. Once that has taken longer than `grace`, nothing more is read from the broker
    /// meanwhile but a few bytes, so that what it sends stays with it.
    pub(crate) async fn reading_little<T>(&self, grace: Duration, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        let mut pause = grace;
        let mut is_held_back = false;
        loop {
            tokio::select! {
                biased;
                done = &mut work => {
                    if is_held_back {
                        self.end.allow(UNLIMITED);
                    }
                    return done;
                }
                () = tokio::time::sleep(pause) => {
                    self.end.allow(TRICKLE);
                    (is_held_back, pause) = (true, self.trickle);
                }
            }
        }
    }

    /// Says goodbye, for a moment at most.
    pub(crate) async fn close(self) {
        let _ = Deadline::after(GOODBYE).limit(self.connection.close(200, "OK".into())).await;
    }
}

fn full_uri(broker: &ConnectionDefinition, uri: &str) -> Result<AMQPUri> {
    let invalid = |what: String| Error::new(ErrorKind::InvalidDefinition, what);
    let mut parsed: AMQPUri =
        uri.parse().map_err(|error| invalid(format!("{uri:?} can't be read: {error}")))?;
    let password = match &broker.password_file {
        None => "guest".to_owned(),
        Some(file) => {
            let secret = read_secret(file);
            let secret = secret.map_err(|error| {
                Error::new(ErrorKind::NotAllowed, format!("connection {:?}: no password", broker.name))
                    .with_source(error)
            })?;
            // Editors end a file with a new line.
            secret.trim_end_matches(['\r', '\n']).to_owned()
        }
    };
    if !uri.trim_end_matches('/').rsplit(['/', ']']).next().unwrap_or_default().contains(':') {
        parsed.authority.port = match parsed.scheme {
            AMQPScheme::AMQP => 5672,
            AMQPScheme::AMQPS => 5671,
        };
    }
    parsed.authority.userinfo = AMQPUserInfo { username: broker.username.clone(), password };
    parsed.vhost.clone_from(&broker.vhost);
    parsed.query.heartbeat = Some(broker.heartbeat.get().as_secs() as u16);
    parsed.query.frame_max = Some(broker.frame_max);
    parsed.query.connection_timeout = Some(broker.connect_timeout.get().as_millis() as u64);
    Ok(parsed)
}

/// What a broker said when it ended a channel or a connection: the code, its text, and whether only the
/// channel is concerned.
pub(crate) fn verdict(error: &lapin::Error) -> Option<(u16, String)> {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(said) => Some((said.get_id(), said.get_message().to_string())),
        _ => None,
    }
}

/// An error of the client, with its kind, in our words.
fn explain(error: lapin::Error, broker: &ConnectionDefinition, failed: &str) -> Error {
    let (kind, what) = match verdict(&error) {
        Some((403, text)) => {
            let what = format!(
                "the broker does not accept the login {:?} (username, password_file): {text}",
                broker.username
            );
            (ErrorKind::NotAllowed, what)
        }
        Some((530, text)) => {
            let what = format!(
                "the broker does not let {:?} into {:?} (vhost): {text}",
                broker.username, broker.vhost
            );
            (ErrorKind::NotAllowed, what)
        }
        Some((code, text)) => (ErrorKind::Refused, format!("the broker has refused with {code}: {text}")),
        None => (ErrorKind::Unreachable, failed.to_owned()),
    };
    Error::new(kind, what).with_source(error)
}

/// An error of the client while something was asked for, with its kind.
pub(crate) fn refused(error: lapin::Error, what: &str) -> Error {
    let (kind, what) = match verdict(&error) {
        Some((403, text)) => (ErrorKind::NotAllowed, format!("{what}: the broker says 403: {text}")),
        Some((code, text)) => (ErrorKind::Refused, format!("{what}: the broker says {code}: {text}")),
        None => (ErrorKind::Unreachable, format!("{what}: the connection has ended")),
    };
    Error::new(kind, what).with_source(error)
}

/// A text that is known to be short enough for AMQP.
pub(crate) fn short(text: &str) -> ShortString {
    text.into()
}
