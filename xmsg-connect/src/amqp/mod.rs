//! AMQP 0-9-1: connections to a broker, and messages as it has them.
//!
//! | file | answers |
//! |---|---|
//! | `socket.rs` | Over which socket does the AMQP client run, and how does it end? |
//! | `frame_inspector.rs` | How long is the message that comes, and which tables are nested too deeply? |
//! | `headers.rs` | How does a message of xMsg become one of AMQP, and the other way round? |
//! | `plain.rs` | What is in a body that everybody can read? |

mod frame_inspector;
pub(crate) mod headers;
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

use self::socket::{SocketGuard, TRICKLE_BYTES, UNLIMITED};
use crate::definition::ConnectionDefinition;
use crate::error::{Error, ErrorKind, Result};
use crate::receive_memory::{ConsumerMemory, ReceiveMemory};

/// How long a broker may take to answer that a connection is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(200);
/// The frames that fit into each of the two buffers of the client.
const BUFFERED_FRAMES: usize = 32;

/// Codes with which brokers end a channel or a connection: AMQP 0-9-1, section 1.2.
pub(crate) mod reply_code {
    pub(crate) const CONTENT_TOO_LARGE: u16 = 311;
    pub(crate) const CONNECTION_FORCED: u16 = 320;
    pub(crate) const ACCESS_REFUSED: u16 = 403;
    pub(crate) const NOT_FOUND: u16 = 404;
    pub(crate) const RESOURCE_LOCKED: u16 = 405;
    pub(crate) const PRECONDITION_FAILED: u16 = 406;
    pub(crate) const FRAME_ERROR: u16 = 501;
    pub(crate) const SYNTAX_ERROR: u16 = 502;
    pub(crate) const COMMAND_INVALID: u16 = 503;
    pub(crate) const UNEXPECTED_FRAME: u16 = 505;
    pub(crate) const NOT_ALLOWED: u16 = 530;
    pub(crate) const INTERNAL_ERROR: u16 = 541;
}

/// A connection to a broker with one channel. Dropping it ends both.
#[derive(Debug)]
pub(crate) struct BrokerConnection {
    pub(crate) client: Connection,
    pub(crate) channel: Channel,
    /// The node that it leads to.
    pub(crate) uri: String,
    /// The longest frame that both sides take, in bytes.
    pub(crate) frame_max: usize,
    /// How often something is read while messages have to wait: often enough for the client to know that the
    /// broker is there.
    trickle_interval: Duration,
    /// Breaks the socket when this is dropped, so that the thread of the client ends whatever the broker
    /// does.
    guard: SocketGuard,
    /// The buffers of the client.
    _buffers: Claim,
}

/// Returns the memory in bytes for the buffers of a connection to this broker.
pub(crate) fn buffer_bytes(broker: &ConnectionDefinition) -> usize {
    2 * BUFFERED_FRAMES * broker.frame_max as usize
}

impl BrokerConnection {
    /// Connects to one node of the broker, logs in, and opens a channel; all within the time that the
    /// definition allows. `node_index` says which node: they are tried one after another.
    pub(crate) async fn open(
        broker: &ConnectionDefinition,
        name: &str,
        node_index: usize,
        receive_memory: &ReceiveMemory,
    ) -> Result<Self> {
        let uri = &broker.uris[node_index % broker.uris.len()];
        let parsed = full_uri(broker, uri)?;
        let properties = ConnectionProperties::default()
            .with_connection_name(name.into())
            .with_client_property("product".into(), "xmsg-connect".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        let failed = format!("the broker {uri} can't be reached");
        let open = async {
            let (socket, guard) =
                socket::connect(&parsed, broker.ca_file.as_deref(), broker.frame_max).await?;
            let logged_in = async {
                let connection = socket::handshake(parsed, socket, properties).await?;
                let channel = connection.create_channel().await?;
                Ok::<_, lapin::Error>((connection, channel))
            };
            let (connection, channel) =
                logged_in.await.map_err(|error| connect_error(error, broker, &failed))?;
            Ok::<_, Error>((connection, channel, guard))
        };
        let timed_out = |_| {
            let what = format!("{failed}: no answer within {}", broker.connect_timeout);
            Error::new(ErrorKind::Unreachable, what)
        };
        let opened = Deadline::after(broker.connect_timeout.get()).limit(Box::pin(open)).await;
        let (connection, channel, guard) = opened.map_err(timed_out)??;
        let frame_max = match connection.configuration().frame_max() {
            0 => broker.frame_max as usize,
            frame_max => frame_max as usize,
        };
        let trickle_interval = broker.heartbeat.get() / 2;
        let claim = receive_memory.claim(buffer_bytes(broker));
        Ok(Self {
            client: connection,
            channel,
            uri: uri.clone(),
            frame_max,
            trickle_interval,
            guard,
            _buffers: claim,
        })
    }

    /// Waits for a request to the broker, for at most so long. The time is limited, since a broker may answer
    /// heartbeats and nothing else.
    pub(crate) async fn with_timeout<T>(
        &self,
        limit: Duration,
        request: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let timed_out =
            |_| Error::new(ErrorKind::Unreachable, format!("the broker {} does not answer", self.uri));
        Deadline::after(limit).limit(request).await.map_err(timed_out)?
    }

    /// Reads, from now on, only messages for which `consumer_memory` has room; others stay with the broker.
    /// While they wait, no request to the broker is answered, but what goes to the broker is still sent.
    pub(crate) fn limit_reads_to(&self, consumer_memory: &Arc<ConsumerMemory>) {
        self.guard.limit_reads_to(consumer_memory.clone(), self.trickle_interval);
    }

    /// Waits for `work`. Once that has taken longer than `grace`, nothing more is read from the broker
    /// meanwhile but a few bytes, so that what it sends stays with it.
    pub(crate) async fn throttled_after<T>(&self, grace: Duration, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        let mut pause = grace;
        let mut is_throttled = false;
        loop {
            tokio::select! {
                biased;
                done = &mut work => {
                    if is_throttled {
                        self.guard.allow(UNLIMITED);
                    }
                    return done;
                }
                () = tokio::time::sleep(pause) => {
                    self.guard.allow(TRICKLE_BYTES);
                    (is_throttled, pause) = (true, self.trickle_interval);
                }
            }
        }
    }

    /// Closes the connection, and waits a moment at most for the answer of the broker.
    pub(crate) async fn close(self) {
        let _ = Deadline::after(CLOSE_TIMEOUT).limit(self.client.close(200, "OK".into())).await;
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

/// Returns the reply code and the text with which a broker has ended a channel or a connection.
pub(crate) fn protocol_error(error: &lapin::Error) -> Option<(u16, String)> {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(said) => Some((said.get_id(), said.get_message().to_string())),
        _ => None,
    }
}

/// Makes an error of this library from one that the client had while it connected.
fn connect_error(error: lapin::Error, broker: &ConnectionDefinition, failed: &str) -> Error {
    let (kind, what) = match protocol_error(&error) {
        Some((reply_code::ACCESS_REFUSED, text)) => {
            let what = format!(
                "the broker does not accept the login {:?} (username, password_file): {text}",
                broker.username
            );
            (ErrorKind::NotAllowed, what)
        }
        Some((reply_code::NOT_ALLOWED, text)) => {
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

/// Makes an error of this library from one that the client had while something was asked of the broker.
pub(crate) fn broker_error(error: lapin::Error, what: &str) -> Error {
    let (kind, what) = match protocol_error(&error) {
        Some((reply_code::ACCESS_REFUSED, text)) => {
            (ErrorKind::NotAllowed, format!("{what}: the broker says 403: {text}"))
        }
        Some((code, text)) => (ErrorKind::Refused, format!("{what}: the broker says {code}: {text}")),
        None => (ErrorKind::Unreachable, format!("{what}: the connection has ended")),
    };
    Error::new(kind, what).with_source(error)
}

/// Returns a text, which is known to be short enough, as a short string of AMQP.
pub(crate) fn short(text: &str) -> ShortString {
    text.into()
}
