//! A check whether a peer can be reached, and is as it is declared.

use std::path::Path;
use std::time::{Duration, Instant};

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::memory_budget::MemoryBudget;
use xmsg_zmq::{Publisher, Push, Subscriber};

use crate::amqp::{BrokerConnection, broker_error, short};
use crate::definition::{
    ConnectionDefinition, Definitions, Destination, ReceivingSocket, SendingSocket, SocketMethod, Source,
    ZmqFields,
};
use crate::error::{Error, ErrorKind, Result};
use crate::outgoing::check_exchange;
use crate::receive_memory::ReceiveMemory;
use crate::registry::Definition;
use crate::status::{LinkReport, LinkState};
use crate::zmq::options;

/// The memory for what a peer may send while it is checked.
const PING_MEMORY: usize = 16 << 20;

/// Checks a peer, for at most so long. Returns how long it took.
pub(crate) async fn ping(
    definition: &Definition,
    all: &Definitions,
    base: &Path,
    link: Option<&LinkReport>,
    limit: Duration,
) -> Result<Duration> {
    let began = Instant::now();
    // A socket that only checks has a budget of its own.
    let memory = MemoryBudget::new(PING_MEMORY);
    let check = async {
        match definition {
            Definition::Connection(broker) => connect_broker(&broker.resolved(base)).await?.close().await,
            Definition::Outgoing(outgoing) => match outgoing.check(all)? {
                Destination::Amqp(settings) => {
                    let connection =
                        connect_broker(&connection_of(all, outgoing.connection.as_ref())?.resolved(base))
                            .await?;
                    check_exchange(&connection.channel, &settings.exchange).await?;
                    connection.close().await;
                }
                Destination::Zmq(settings) => match (settings.socket_type, settings.socket.method) {
                    (SendingSocket::Push, SocketMethod::Connect) => {
                        let socket = Push::new(options(&settings.socket.clone().resolved(base), &memory)?);
                        socket.connect(settings.socket.endpoint.clone());
                        handshake_result(&settings.socket, socket.connected().await)?;
                    }
                    (SendingSocket::Pub, SocketMethod::Connect) => {
                        let socket =
                            Publisher::new(options(&settings.socket.clone().resolved(base), &memory)?);
                        socket.connect(settings.socket.endpoint.clone());
                        handshake_result(&settings.socket, socket.connected().await)?;
                    }
                    _ => reported_result(link)?,
                },
            },
            Definition::Durable(durable) => {
                let connection = connect_broker(connection_of(all, Some(&durable.connection))?).await?;
                crate::durable::check(&connection.channel, durable).await?;
                connection.close().await;
            }
            Definition::Federation(federation) => {
                let connection = connect_broker(connection_of(all, Some(&federation.connection))?).await?;
                crate::federation::check(&connection.channel, &federation.exchange, &federation.queue())
                    .await?;
                connection.close().await;
            }
            Definition::Channel(channel) => match channel.check(all)? {
                Source::Amqp(settings) => {
                    let connection =
                        connect_broker(&connection_of(all, channel.connection.as_ref())?.resolved(base))
                            .await?;
                    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
                    let declared = connection
                        .channel
                        .queue_declare(short(&settings.queue), passive, FieldTable::default())
                        .await;
                    declared.map_err(|error| {
                        broker_error(error, &format!("the queue {:?} can't be used", settings.queue))
                    })?;
                    connection.close().await;
                }
                Source::Zmq(settings) => match (settings.socket_type, settings.socket.method) {
                    (ReceivingSocket::Sub, SocketMethod::Connect) => {
                        let socket =
                            Subscriber::new(options(&settings.socket.clone().resolved(base), &memory)?);
                        socket.connect(settings.socket.endpoint.clone());
                        let connected = async {
                            while !socket.is_connected() {
                                tokio::time::sleep(Duration::from_millis(5)).await;
                            }
                        };
                        connected.await;
                    }
                    // A second PULL would take a share of the messages.
                    _ => reported_result(link)?,
                },
            },
        }
        Ok::<_, Error>(())
    };
    let timed_out = |_| {
        Error::new(ErrorKind::Timeout, format!("{:?} has not answered within {limit:?}", definition.name()))
    };
    Deadline::after(limit).limit(check).await.map_err(timed_out)??;
    Ok(began.elapsed())
}

fn connection_of<'a>(all: &'a Definitions, connection: Option<&String>) -> Result<&'a ConnectionDefinition> {
    let broker = all.broker(connection);
    broker.ok_or_else(|| Error::new(ErrorKind::Unknown, "its connection is not defined"))
}

async fn connect_broker(broker: &ConnectionDefinition) -> Result<BrokerConnection> {
    let mut failure = None;
    let receive_memory = ReceiveMemory::new(MemoryBudget::default(), 0);
    for turn in 0..broker.uris.len() {
        match BrokerConnection::open(broker, "xmsg-connect ping", turn, &receive_memory).await {
            Ok(link) => return Ok(link),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| Error::new(ErrorKind::InvalidDefinition, "it has no address (uris)")))
}

fn handshake_result(fields: &ZmqFields, connected: xmsg_zmq::Result<()>) -> Result<()> {
    connected.map_err(|error| {
        Error::new(ErrorKind::Unreachable, format!("{} can't be reached", fields.endpoint)).with_source(error)
    })
}

/// Checks the state of the link at work, for sockets beside which another one would disturb.
fn reported_result(link: Option<&LinkReport>) -> Result<()> {
    match link {
        Some(link) if link.state == LinkState::Connected => Ok(()),
        Some(link) => {
            let why = link.reason.as_ref().map_or(String::new(), |reason| format!(": {}", reason.what));
            Err(Error::new(ErrorKind::Unreachable, format!("it is {}{why}", link.state)))
        }
        None => Err(Error::new(ErrorKind::Unknown, "it is not at work")),
    }
}
