//! Looks whether a peer can be reached, and is as it is declared.

use std::path::Path;
use std::time::{Duration, Instant};

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::memory_budget::MemoryBudget;
use xmsg_zmq::{Publisher, Push, Subscriber};

use crate::amqp::{Link, refused, short};
use crate::definition::{
    ConnectionDefinition, Definitions, Origin, ReceivingSocket, SendingSocket, SocketMethod, Way, ZmqFields,
};
use crate::error::{Error, ErrorKind, Result};
use crate::outgoing::check_exchange;
use crate::registry::Definition;
use crate::room::Room;
use crate::status::{LinkReport, LinkState};
use crate::zmq::options;

/// The memory for what a peer may send while it is looked at.
const PING_MEMORY: usize = 16 << 20;

/// Looks, for at most so long. Returns how long it took.
pub(crate) async fn ping(
    definition: &Definition,
    all: &Definitions,
    base: &Path,
    link: Option<&LinkReport>,
    limit: Duration,
) -> Result<Duration> {
    let began = Instant::now();
    // A socket that only looks has a budget of its own.
    let memory = MemoryBudget::new(PING_MEMORY);
    let look = async {
        match definition {
            Definition::Connection(broker) => broker_of(&broker.resolved(base)).await?.close().await,
            Definition::Outgoing(outgoing) => match outgoing.check(all)? {
                Way::Amqp(way) => {
                    let opened = broker_of(&named(all, outgoing.connection.as_ref())?.resolved(base)).await?;
                    check_exchange(&opened.channel, &way.exchange).await?;
                    opened.close().await;
                }
                Way::Zmq(way) => match (way.socket_type, way.socket.method) {
                    (SendingSocket::Push, SocketMethod::Connect) => {
                        let socket = Push::new(options(&way.socket.clone().resolved(base), &memory)?);
                        socket.connect(way.socket.endpoint.clone());
                        shake_hands(&way.socket, socket.connected().await)?;
                    }
                    (SendingSocket::Pub, SocketMethod::Connect) => {
                        let socket = Publisher::new(options(&way.socket.clone().resolved(base), &memory)?);
                        socket.connect(way.socket.endpoint.clone());
                        shake_hands(&way.socket, socket.connected().await)?;
                    }
                    _ => as_reported(link)?,
                },
            },
            Definition::Durable(durable) => {
                let opened = broker_of(named(all, Some(&durable.connection))?).await?;
                crate::durable::check(&opened.channel, durable).await?;
                opened.close().await;
            }
            Definition::Federation(federation) => {
                let opened = broker_of(named(all, Some(&federation.connection))?).await?;
                crate::federation::check(&opened.channel, &federation.exchange, &federation.queue()).await?;
                opened.close().await;
            }
            Definition::Channel(channel) => match channel.check(all)? {
                Origin::Amqp(way) => {
                    let opened = broker_of(&named(all, channel.connection.as_ref())?.resolved(base)).await?;
                    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
                    let declared =
                        opened.channel.queue_declare(short(&way.queue), passive, FieldTable::default()).await;
                    declared.map_err(|error| {
                        refused(error, &format!("the queue {:?} can't be used", way.queue))
                    })?;
                    opened.close().await;
                }
                Origin::Zmq(way) => match (way.socket_type, way.socket.method) {
                    (ReceivingSocket::Sub, SocketMethod::Connect) => {
                        let socket = Subscriber::new(options(&way.socket.clone().resolved(base), &memory)?);
                        socket.connect(way.socket.endpoint.clone());
                        let connected = async {
                            while !socket.is_connected() {
                                tokio::time::sleep(Duration::from_millis(5)).await;
                            }
                        };
                        connected.await;
                    }
                    // A second PULL would take a share of the messages.
                    _ => as_reported(link)?,
                },
            },
        }
        Ok::<_, Error>(())
    };
    let late = |_| {
        Error::new(ErrorKind::Timeout, format!("{:?} has not answered within {limit:?}", definition.name()))
    };
    Deadline::after(limit).limit(look).await.map_err(late)??;
    Ok(began.elapsed())
}

fn named<'a>(all: &'a Definitions, connection: Option<&String>) -> Result<&'a ConnectionDefinition> {
    let broker = all.broker(connection);
    broker.ok_or_else(|| Error::new(ErrorKind::Unknown, "its connection is not defined"))
}

async fn broker_of(broker: &ConnectionDefinition) -> Result<Link> {
    let mut failure = None;
    let room = Room::new(MemoryBudget::default(), 0);
    for turn in 0..broker.uris.len() {
        match Link::open(broker, "xmsg-connect ping", turn, &room).await {
            Ok(link) => return Ok(link),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| Error::new(ErrorKind::InvalidDefinition, "it has no address (uris)")))
}

fn shake_hands(fields: &ZmqFields, connected: xmsg_zmq::Result<()>) -> Result<()> {
    connected.map_err(|error| {
        Error::new(ErrorKind::Unreachable, format!("{} can't be reached", fields.endpoint)).with_source(error)
    })
}

/// Where another socket would disturb, what is known of the one at work counts.
fn as_reported(link: Option<&LinkReport>) -> Result<()> {
    match link {
        Some(link) if link.state == LinkState::Connected => Ok(()),
        Some(link) => {
            let why = link.reason.as_ref().map_or(String::new(), |reason| format!(": {}", reason.what));
            Err(Error::new(ErrorKind::Unreachable, format!("it is {}{why}", link.state)))
        }
        None => Err(Error::new(ErrorKind::Unknown, "it is not at work")),
    }
}
