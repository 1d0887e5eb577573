//! From the spool to a ZeroMQ socket. ZeroMQ has no acknowledgements: a message leaves the spool once it has
//! been written to the peer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use xmsg_zmq::{Dealer, Multipart, Overflow, Publisher, Push, SocketEvent, SocketEvents};

use super::{OutgoingPlan, Shared, storage};
use crate::definition::{Frames, SendingSocket, ZmqOutgoing};
use crate::error::{Error, ErrorKind, Result};
use crate::outbound::Stored;
use crate::receive_memory::ReceiveMemory;
use crate::status::{LinkState, add};
use crate::supervise::Failure;
use crate::zmq::{connect_or_bind, no_peer_reason, options};

/// How many entries are read from the spool, sent, and awaited to be written at a time.
const PAGE_MAX: usize = 1000;
const PAGE_BYTES_MAX: usize = 1 << 20;
/// How often the state is updated while something is waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long a PUB waits for subscriptions of somebody who has just connected.
const SUBSCRIPTION_WAIT: Duration = Duration::from_secs(1);
/// How long the socket may still write when the session is told to end.
const LINGER: Duration = Duration::from_millis(200);

/// A socket that sends, of one of the types.
#[derive(Debug)]
enum Socket {
    Push(Push),
    Publisher(Publisher),
    Dealer(Dealer),
}

/// Evaluates an expression with the socket, whichever type it has.
macro_rules! with_socket {
    ($self:expr, $socket:ident => $call:expr) => {
        match $self {
            Socket::Push($socket) => $call,
            Socket::Publisher($socket) => $call,
            Socket::Dealer($socket) => $call,
        }
    };
}

impl Socket {
    async fn open(settings: &ZmqOutgoing, receive_memory: &ReceiveMemory) -> Result<Self> {
        let fields = &settings.socket;
        let socket = match settings.socket_type {
            SendingSocket::Push => Self::Push(Push::new(options(fields, receive_memory.budget())?)),
            SendingSocket::Pub => {
                // The spool is where messages wait: nothing is dropped for a slow subscriber.
                Self::Publisher(Publisher::new(
                    options(fields, receive_memory.budget())?.overflow(Overflow::Wait),
                ))
            }
            SendingSocket::Dealer => Self::Dealer(Dealer::new(options(fields, receive_memory.budget())?)),
        };
        with_socket!(&socket, socket => connect_or_bind!(socket, fields))?;
        Ok(socket)
    }

    async fn send(&self, message: Multipart) -> xmsg_zmq::Result<()> {
        match self {
            Self::Push(socket) => socket.send(message).await,
            Self::Dealer(socket) => socket.send(message).await,
            Self::Publisher(socket) => socket.publish(message).await,
        }
    }

    /// Waits until somebody is there who may take messages.
    async fn wait_for_peer(&self, topic: &[u8]) -> xmsg_zmq::Result<()> {
        with_socket!(self, socket => socket.connected().await)?;
        if let Self::Publisher(socket) = self {
            // Their subscriptions follow the handshake. Somebody who does not want this topic holds up
            // nobody.
            let wanted = socket.wait_for_subscriber(topic);
            let _ = xmsg_zmq::deadline::Deadline::after(SUBSCRIPTION_WAIT).limit(wanted).await;
        }
        Ok(())
    }
}

/// Sends until something breaks, or `stop`.
pub(super) async fn session(
    link: &Arc<Shared>,
    plan: &OutgoingPlan,
    settings: &ZmqOutgoing,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let open = async {
        link.wait_for_work().await?;
        Socket::open(settings, &link.receive_memory).await
    };
    let socket = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        socket = open => socket?,
    };
    add(&link.status.counters.connections, 1);
    tracing::info!("{}: at {}", plan.definition.name, settings.socket.endpoint);
    let events = with_socket!(&socket, socket => socket.events());
    let mut session = Session { link, settings, socket, sent: Vec::new(), peers: 0, events };
    let worked = async {
        tokio::select! {
            ended = session.run() => ended,
            () = stop.cancelled() => Ok(()),
        }
    };
    let ended = worked.await;
    let ended = ended.and(session.end().await);
    ended.map_err(|error| Failure { error, had_worked: true })
}

struct Session<'a> {
    link: &'a Arc<Shared>,
    settings: &'a ZmqOutgoing,
    socket: Socket,
    /// Messages that the socket has accepted, and perhaps not written yet.
    sent: Vec<(u64, Uuid)>,
    peers: usize,
    events: SocketEvents,
}

impl Session<'_> {
    async fn run(&mut self) -> Result<()> {
        let spool = self.link.spool.get()?;
        let mut cursor = 0;
        loop {
            let entries = loop {
                tokio::select! {
                    entries = spool.next_after(cursor, PAGE_MAX, PAGE_BYTES_MAX) => break entries.map_err(storage)?,
                    () = tokio::time::sleep(POLL_INTERVAL) => self.update_state(),
                }
            };
            for entry in entries {
                cursor = cursor.max(entry.sequence);
                let stored = match Stored::decode(entry.body.clone()) {
                    Ok(stored) => stored,
                    Err(error) => {
                        self.link.dead_letter(&entry, None, &error.with_causes()).await?;
                        continue;
                    }
                };
                let id = stored.id;
                let frames = stored.outbound.message.into_frames();
                let topic = frames[0].clone();
                let message = match self.settings.frames {
                    Frames::All => Multipart::from(frames),
                    Frames::Data => {
                        let [_, _, data] = frames;
                        Multipart::from([data])
                    }
                };
                match self.send(message, &topic).await {
                    Ok(()) => self.sent.push((entry.sequence, id)),
                    Err(error) if is_caused_by_message(&error) => {
                        self.link.dead_letter(&entry, Some(id), &error.with_causes().to_string()).await?;
                    }
                    Err(error) => {
                        return Err(
                            Error::new(ErrorKind::Unreachable, "the socket has ended").with_source(error)
                        );
                    }
                }
            }
            self.link.status.in_flight.store(self.sent.len() as u64, Ordering::Relaxed);
            while with_socket!(&self.socket, socket => socket.flush(POLL_INTERVAL).await).is_err() {
                self.update_state();
            }
            if self.has_lost_subscriber() {
                // What was queued for it is gone, and nothing says which messages that were: all of the page
                // are sent again.
                add(&self.link.status.counters.repeated, self.sent.len() as u64);
                cursor = self.sent.first().map_or(cursor, |(sequence, _)| sequence - 1);
                self.sent.clear();
                continue;
            }
            self.confirm_written().await?;
        }
    }

    /// Returns whether the connection of a subscriber has ended since this was asked last. What a PUSH or a
    /// DEALER has not written goes to others, or waits.
    fn has_lost_subscriber(&mut self) -> bool {
        let mut is_lost = false;
        while let Some(Some(event)) = self.events.next().now_or_never() {
            is_lost |= matches!(event, SocketEvent::Disconnected { .. });
        }
        is_lost && matches!(self.socket, Socket::Publisher(_))
    }

    async fn send(&mut self, message: Multipart, topic: &[u8]) -> xmsg_zmq::Result<()> {
        // The number of peers is taken at this moment, since a PUB sends to nobody as if it were to somebody.
        self.peers = with_socket!(&self.socket, socket => socket.peers());
        if self.peers == 0 {
            loop {
                let connected = xmsg_zmq::deadline::Deadline::after(POLL_INTERVAL)
                    .limit(self.socket.wait_for_peer(topic))
                    .await;
                self.update_state();
                match connected {
                    Ok(connected) => break connected?,
                    // A PUB may have a peer that does not want this topic.
                    Err(_) if self.peers > 0 => break,
                    Err(_) => {}
                }
            }
        }
        let sending = self.socket.send(message);
        tokio::pin!(sending);
        loop {
            tokio::select! {
                sent = &mut sending => return sent,
                () = tokio::time::sleep(POLL_INTERVAL) => {
                    let peers = with_socket!(&self.socket, socket => socket.peers());
                    if peers == 0 {
                        self.link.status.fail(LinkState::Disconnected, "the peer has gone".to_owned());
                    }
                }
            }
        }
    }

    /// Removes messages from the spool because everything that the socket had accepted is written.
    async fn confirm_written(&mut self) -> Result<()> {
        self.link.delivered(self.sent.drain(..)).await?;
        self.link.status.in_flight.store(0, Ordering::Relaxed);
        self.update_state();
        Ok(())
    }

    /// Updates the state by the peers that are connected.
    fn update_state(&mut self) {
        let status = &self.link.status;
        self.peers = with_socket!(&self.socket, socket => socket.peers());
        if let Socket::Dealer(socket) = &self.socket {
            while let Ok(Some(_)) = socket.try_recv() {
                add(&status.counters.ignored, 1);
            }
        }
        if self.peers == 0 {
            let failure = with_socket!(&self.socket, socket => socket.failure());
            status.set_peer(None);
            status.fail(LinkState::Disconnected, no_peer_reason(&self.settings.socket, failure.as_ref()));
        } else {
            status.set_peer(Some(self.settings.socket.endpoint.to_string()));
            status.set(LinkState::Connected);
        }
    }

    /// Closes the socket. If it could write all that it had accepted, those messages leave the spool.
    /// Otherwise all of them stay.
    async fn end(mut self) -> Result<()> {
        let unsent = with_socket!(&self.socket, socket => socket.close(LINGER).await);
        self.link.status.in_flight.store(0, Ordering::Relaxed);
        if unsent == 0 { self.link.delivered(self.sent.drain(..)).await } else { Ok(()) }
    }
}

/// Returns whether a socket that refuses a message means this one.
fn is_caused_by_message(error: &xmsg_zmq::Error) -> bool {
    matches!(error.kind(), xmsg_zmq::ErrorKind::TooLarge | xmsg_zmq::ErrorKind::InvalidMessage)
}
