//! From the spool to a ZeroMQ socket. ZeroMQ has no acknowledgements: a message leaves the spool once it has
//! been written to the peer.
//!
//! Whoever connects to a bound socket was not chosen by the operator, so one such peer keeps the others from
//! their messages for a bounded time only:
//!
//! - A PUB waits for a subscriber that lags behind others for as long as its [`Patience`] says, and then ends
//!   that connection. A message is sent again only if the connection that was to have it is gone; that is the
//!   oldest one of a subscriber, so that those who come and go do not matter.
//! - A message that is too large for the peers of a PUSH or DEALER waits for another one.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use xmsg_zmq::{Dealer, Multipart, Overflow, Publisher, Push, SocketEvent, SocketEvents};

use super::{OutgoingPlan, Shared, storage};
use crate::definition::{Frames, SendingSocket, SocketMethod, ZmqOutgoing};
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
/// How long a bound PUB waits for a subscriber that lags behind others. Each time that it ends such a
/// connection, it halves that time, since such a peer may come back; whenever it has ended none for as long
/// as [`PATIENCE_RECOVERY`], it doubles that time again.
const PATIENCE_MAX: Duration = Duration::from_secs(10);
const PATIENCE_MIN: Duration = Duration::from_millis(100);
const PATIENCE_RECOVERY: Duration = Duration::from_secs(60);
/// How many names a line about ended connections has.
const NAMES_MAX: usize = 3;
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
    let mut session = Session {
        link,
        settings,
        socket,
        sent: Vec::new(),
        peers: 0,
        events,
        recipient: None,
        patience: Patience::new(Instant::now()),
        dropped: 0,
    };
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

/// A message that the socket has accepted.
#[derive(Debug)]
struct Sent {
    sequence: u64,
    id: Uuid,
    /// Of a bound PUB: the number of the connection that is to have it. `None` if nobody wants it.
    recipient: Option<u64>,
}

/// How long others wait for a subscriber that lags behind.
#[derive(Debug)]
struct Patience {
    time: Duration,
    since: Instant,
}

impl Patience {
    fn new(now: Instant) -> Self {
        Self { time: PATIENCE_MAX, since: now }
    }

    fn get(&self, now: Instant) -> Duration {
        let doublings = now.duration_since(self.since).as_secs() / PATIENCE_RECOVERY.as_secs();
        let factor = 1_u32.checked_shl(u32::try_from(doublings).unwrap_or(u32::MAX)).unwrap_or(u32::MAX);
        self.time.saturating_mul(factor).min(PATIENCE_MAX)
    }

    fn shorten(&mut self, now: Instant) {
        *self = Self { time: (self.get(now) / 2).max(PATIENCE_MIN), since: now };
    }
}

struct Session<'a> {
    link: &'a Arc<Shared>,
    settings: &'a ZmqOutgoing,
    socket: Socket,
    /// Messages that the socket has accepted, and perhaps not written yet.
    sent: Vec<Sent>,
    peers: usize,
    events: SocketEvents,
    /// Of a bound PUB: the connection that was to have the last message.
    recipient: Option<u64>,
    patience: Patience,
    /// Messages that a PUB has not sent to a peer, as counted already.
    dropped: u64,
}

impl Session<'_> {
    async fn run(&mut self) -> Result<()> {
        let spool = self.link.spool.get()?;
        let mut cursor = 0;
        loop {
            // One read goes on until it is done, however long the disk takes.
            let mut page = pin!(spool.next_after(cursor, PAGE_MAX, PAGE_BYTES_MAX));
            let entries = loop {
                tokio::select! {
                    entries = &mut page => break entries.map_err(storage)?,
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
                match self.send_to_fitting(message, &topic).await? {
                    Ok(recipient) => self.sent.push(Sent { sequence: entry.sequence, id, recipient }),
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
            let since = Instant::now();
            while with_socket!(&self.socket, socket => socket.flush(POLL_INTERVAL).await).is_err() {
                self.update_state();
                self.end_laggards(since);
            }
            if let Some(first) = self.confirm_written().await? {
                cursor = first - 1;
            }
        }
    }

    /// Ends the connections of subscribers for which others have waited since then for too long.
    fn end_laggards(&mut self, since: Instant) {
        let now = Instant::now();
        let (waited, most) = (now.duration_since(since), self.patience.get(now));
        let Socket::Publisher(socket) = &self.socket else { return };
        if waited < most {
            return;
        }
        let ended = socket.end_laggards();
        if ended.is_empty() {
            return;
        }
        self.patience.shorten(now);
        let status = &self.link.status;
        add(&status.counters.peers_ended, ended.len() as u64);
        let mut names = ended[..ended.len().min(NAMES_MAX)].join(", ");
        if ended.len() > NAMES_MAX {
            names = format!("{names} and {} others", ended.len() - NAMES_MAX);
        }
        status.note(format!(
            "ended the connection of {names}: other subscribers have waited for {waited:.1?} until it takes its messages"
        ));
    }

    /// Takes out the messages that the peer that was to have them has not got. What was queued for it is gone
    /// with its connection. What a PUSH or a DEALER has not written goes to others, or waits.
    fn take_lost(&mut self) -> Vec<Sent> {
        let mut is_broken = false;
        while let Some(Some(event)) = self.events.next().now_or_never() {
            is_broken |= matches!(event, SocketEvent::Disconnected { .. });
        }
        let Socket::Publisher(socket) = &self.socket else { return Vec::new() };
        let is_bound = self.settings.socket.method == SocketMethod::Bind;
        let is_lost = |sent: &mut Sent| match sent.recipient {
            Some(number) if is_bound => !socket.has_connection(number),
            None if is_bound => false,
            // Nothing says which messages of its only peer are gone.
            _ => is_broken,
        };
        self.sent.extract_if(.., is_lost).collect()
    }

    /// Sends a message. If it is too large for all who have connected to us, it waits for another peer.
    /// Returns the connection that is to have it, for a bound PUB.
    async fn send_to_fitting(
        &mut self,
        message: Multipart,
        topic: &[u8],
    ) -> Result<xmsg_zmq::Result<Option<u64>>> {
        let mut is_counted = false;
        loop {
            let error = match self.send(message.clone(), topic).await {
                Err(error) if self.is_for_another_peer(&error, &message) => error,
                sent => return Ok(sent.map(|()| self.recipient)),
            };
            if !is_counted {
                add(&self.link.status.counters.too_large_for_peer, 1);
                is_counted = true;
            }
            // What was sent before has not to wait for it.
            if !self.sent.is_empty()
                && with_socket!(&self.socket, socket => socket.flush(POLL_INTERVAL).await).is_ok()
            {
                self.confirm_written().await?;
            }
            let what = format!("a message waits for another peer: {}", error.with_causes());
            self.link.status.fail(LinkState::Faulted, what);
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Returns whether this error is about the limits of those who have connected to us. The operator has not
    /// chosen them, and a message is not undeliverable because of what they say.
    fn is_for_another_peer(&self, error: &xmsg_zmq::Error, message: &Multipart) -> bool {
        let allows = match &self.socket {
            Socket::Push(socket) => socket.allows(message),
            Socket::Dealer(socket) => socket.allows(message),
            // It sends nothing to such a peer, and goes on.
            Socket::Publisher(_) => false,
        };
        let is_bound = self.settings.socket.method == SocketMethod::Bind;
        allows && is_bound && error.kind() == xmsg_zmq::ErrorKind::TooLarge
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
        if let Socket::Publisher(socket) = &self.socket {
            let frames = message.frames();
            let is_same = self.recipient.is_some_and(|number| socket.is_recipient(number, frames));
            if !is_same {
                self.recipient = socket.oldest_recipient(frames);
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

    /// Removes messages from the spool because everything that the socket had accepted is written. Returns
    /// the first one that has to be sent again, if there are any.
    async fn confirm_written(&mut self) -> Result<Option<u64>> {
        let lost = self.take_lost();
        add(&self.link.status.counters.repeated, lost.len() as u64);
        self.link.delivered(self.sent.drain(..).map(|sent| (sent.sequence, sent.id))).await?;
        self.link.status.in_flight.store(0, Ordering::Relaxed);
        self.update_state();
        Ok(lost.first().map(|sent| sent.sequence))
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
        if let Socket::Publisher(socket) = &self.socket {
            let dropped = socket.dropped();
            add(&status.counters.too_large_for_peer, dropped - self.dropped);
            self.dropped = dropped;
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
        drop(self.take_lost());
        let unsent = with_socket!(&self.socket, socket => socket.close(LINGER).await);
        self.link.status.in_flight.store(0, Ordering::Relaxed);
        if unsent == 0 {
            self.link.delivered(self.sent.drain(..).map(|sent| (sent.sequence, sent.id))).await
        } else {
            Ok(())
        }
    }
}

/// Returns whether a socket that refuses a message means this one.
fn is_caused_by_message(error: &xmsg_zmq::Error) -> bool {
    matches!(error.kind(), xmsg_zmq::ErrorKind::TooLarge | xmsg_zmq::ErrorKind::InvalidMessage)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever connects again after each end has the others wait for 20 s in all, and then for a tenth of a
    /// second each time.
    #[test]
    fn patience_goes_down_with_each_end_and_comes_back_slowly() {
        let mut now = Instant::now();
        let mut patience = Patience::new(now);
        let mut waited = Duration::ZERO;
        for _ in 0..8 {
            waited += patience.get(now);
            now += patience.get(now);
            patience.shorten(now);
        }
        assert!(waited <= 2 * PATIENCE_MAX, "{waited:?}");
        assert_eq!(patience.get(now), PATIENCE_MIN);
        now += PATIENCE_RECOVERY;
        assert_eq!(patience.get(now), 2 * PATIENCE_MIN);
        assert_eq!(patience.get(now + 10 * PATIENCE_RECOVERY), PATIENCE_MAX);
        assert_eq!(patience.get(now + 100_000 * PATIENCE_RECOVERY), PATIENCE_MAX);
    }
}
