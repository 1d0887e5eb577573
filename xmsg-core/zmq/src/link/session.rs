//! One connection from its first byte to its last: the protocol engine, driven by a stream.

// Longer than 500 lines: one loop. The engine, the timers, the buffers and the queues of a connection meet
// here.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::OptionFuture;
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::fault::{Fault, catch_in};
use crate::link::admission::Activity;
use crate::link::buffer::{ReceiveBuffer, Slab};
use crate::link::dead_peer::{Route, vanished};
use crate::link::decryption::Decryption;
use crate::link::pause::{self, DepartureWatch, PeerLeft};
use crate::link::send_queue::{SendQueue, URGENT_MAX, Writer};
use crate::link::transport::{ReadHalf, Stream};
use crate::memory_budget::{HandshakeClaim, MemoryBudget, PeerClaim};
use crate::security::{Authenticator, Verdict};
use crate::{Error, ErrorKind};
use xmsg_zmtp::curve::Cipher;
use xmsg_zmtp::{Command, DroppedCounts, Engine, Event, HANDLED_MAX, Peer, Span, Violation};

/// After this many bytes without a pause, a reader yields to other tasks.
const FAIR_SHARE_BYTES: usize = 256 << 10;
/// What each message counts against [`FAIR_SHARE_BYTES`] beside its bytes.
const MESSAGE: usize = 64;
/// What each command counts against [`FAIR_SHARE_BYTES`]: answering a PING, changing a subscription, and even
/// reading a command that means nothing take more time than the few bytes suggest.
const COMMAND: usize = 1 << 10;
/// How long a peer gets to read why its connection is ended, or to close its side after we have closed ours.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a peer that has asked us to drain may take to read what we have sent.
const DRAIN_PATIENCE: Duration = Duration::from_secs(60);

/// The present time of tokio's clock. Its timers use the same clock, and a test may pause and advance it. A
/// time that is compared with a timer has to come from here.
#[must_use]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Why a connection ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum Ended {
    /// The peer closed it.
    ByPeer,
    /// The peer closed it, and has confirmed that it read everything that was written to it.
    Drained,
    /// We closed it, and the peer has confirmed that it read everything that was written to it.
    Finished,
    /// The transport failed.
    Io(io::Error),
    /// The peer broke the protocol, did not fit our socket, or was silent for too long.
    Violation(Violation),
    /// The peer makes us send answers and does not read them.
    Unread,
    /// The host of the peer acknowledged nothing for the time limit of heartbeats.
    Vanished,
    /// No memory was left, and this connection held or needed most of it.
    OutOfMemory,
    /// We closed it, for this reason.
    ByUs(&'static str),
    /// A fault of this program: what the peer sent, or what was done for it, made a task panic.
    Fault(Fault),
}

impl Ended {
    /// Whether the peer ended the connection, and not the network or this side.
    #[must_use]
    pub fn is_by_peer(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        match self {
            Self::ByPeer | Self::Violation(Violation::RefusedByPeer(_)) => true,
            Self::Io(error) => matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset),
            _ => false,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByPeer => f.write_str("closed by the peer"),
            Self::Drained => f.write_str("closed by the peer, which has read everything"),
            Self::Finished => f.write_str("closed here, and the other side has read everything"),
            Self::Io(error) => write!(f, "{error}"),
            Self::Violation(violation) => write!(f, "{violation}"),
            Self::Unread => f.write_str("the peer does not read the answers that it asks for"),
            Self::Vanished => f.write_str("the peer's host does not answer any more"),
            Self::OutOfMemory => f.write_str("no memory is left for what it sends"),
            Self::ByUs(why) => f.write_str(why),
            Self::Fault(fault) => write!(f, "a fault of this program: {fault}"),
        }
    }
}

/// There is no `source`: the texts include all that the inner errors say.
impl std::error::Error for Ended {}

impl Ended {
    /// The error for an attempt to connect that failed for this reason.
    #[must_use]
    pub fn while_connecting(self, to: &impl fmt::Display) -> Error {
        let (kind, hint) = match &self {
            Self::Violation(Violation::SocketTypeMismatch { theirs, .. }) => match theirs.as_str() {
                "XSUB" | "SUB" => (ErrorKind::WrongPort, ": that is a port for publishers; check the port"),
                "XPUB" | "PUB" => (ErrorKind::WrongPort, ": that is a port for subscribers; check the port"),
                "ROUTER" | "REP" => (ErrorKind::WrongPort, ": that is a port for requests; check the port"),
                _ => (ErrorKind::WrongPort, ": something else listens there; check host and port"),
            },
            Self::Violation(violation) if violation.is_wrong_socket() => {
                (ErrorKind::WrongPort, ": something else listens there; check host and port")
            }
            Self::Violation(violation) if violation.is_refusal() => (
                ErrorKind::NotAllowed,
                ": check the security mechanism, the keys, or name and password, on both sides",
            ),
            // A program that does not speak ZeroMQ closes the connection, too. So does a ZeroMQ socket that
            // accepts no more connections or is shutting down.
            Self::ByPeer => (ErrorKind::Refused, ": is it a ZeroMQ socket, and does it let in one more?"),
            Self::Io(error)
                if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) =>
            {
                (ErrorKind::Refused, ": is it a ZeroMQ socket, and does it let in one more?")
            }
            _ => (self.kind(), ""),
        };
        self.into_error(kind, format!("no handshake with {to}{hint}"))
    }

    /// The error for a handshake with a peer that has connected to us and that failed for this reason.
    pub(crate) fn while_accepting(self, from: &impl fmt::Display) -> Error {
        let kind = match &self {
            Self::Violation(Violation::NotAdmitted(_)) => ErrorKind::NotAllowed,
            _ => self.kind(),
        };
        self.into_error(kind, format!("no handshake with {from}"))
    }

    /// The error for an established connection that ended for this reason.
    pub(crate) fn while_connected(self, to: &impl fmt::Display) -> Error {
        let kind = self.kind();
        self.into_error(kind, format!("the connection to {to} has ended"))
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::ByPeer | Self::Drained | Self::Finished | Self::ByUs(_) | Self::Fault(_) => {
                ErrorKind::Closed
            }
            Self::Io(error) => Error::kind_of(error),
            Self::Violation(Violation::HandshakeTimeout | Violation::HeartbeatTimeout) | Self::Vanished => {
                ErrorKind::Timeout
            }
            Self::Violation(violation) if violation.is_refusal() => ErrorKind::NotAllowed,
            Self::OutOfMemory => ErrorKind::NoResources,
            Self::Violation(_) | Self::Unread => ErrorKind::Protocol,
        }
    }

    fn into_error(self, kind: ErrorKind, what: String) -> Error {
        let error = Error::new(kind, what);
        match self {
            Self::Io(cause) => error.with_source(cause),
            Self::Violation(cause) => error.with_source(cause),
            other => error.with_source(other),
        }
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        // The writer returns this error when the memory budget has no room for the encrypted copy of a
        // message.
        if error.kind() == io::ErrorKind::OutOfMemory { Self::OutOfMemory } else { Self::Io(error) }
    }
}

impl From<Violation> for Ended {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

/// The whole messages that one read returned.
#[derive(Debug)]
pub struct Batch<'a> {
    /// The encoded messages, one after another, as they arrived.
    pub wire: Bytes,
    /// The position of each message in `wire`.
    pub spans: &'a [Span],
    /// The memory that slices of `wire` keep alive.
    pub slab: Slab,
}

/// Handles what a peer sends. While one of its futures is pending, nothing more is read from that peer.
pub trait Handler: Send {
    /// Handles messages that arrived.
    fn messages(&mut self, batch: Batch<'_>) -> impl Future<Output = Result<(), Ended>> + Send;

    /// Handles a change of the subscriptions of a peer of a PUB or XPUB socket. It has subscribed to a prefix
    /// or, if `subscribe` is `false`, cancelled that.
    fn subscription(
        &mut self,
        subscribe: bool,
        prefix: Bytes,
    ) -> impl Future<Output = Result<(), Ended>> + Send;

    /// Handles a message that the peer of an XPUB socket has sent. `wire` is the message as it was encoded on
    /// the wire.
    fn subscriber_message(&mut self, wire: Bytes) -> impl Future<Output = Result<(), Ended>> + Send {
        let _ = wire;
        std::future::ready(Ok(()))
    }

    /// Handles a report of the peer of a SUB socket that it has dropped messages for us. `counts` are totals
    /// since the connection began.
    fn dropped(&mut self, counts: DroppedCounts) {
        let _ = counts;
    }
}

/// An open connection, before or after its handshake.
#[derive(Debug)]
pub struct Session {
    stream: Stream,
    engine: Engine,
    buffer: ReceiveBuffer,
    authenticator: Option<Arc<dyn Authenticator>>,
    /// The interval and the time limit of heartbeats: how soon to notice that the peer's host is gone. `None`
    /// if that is not watched.
    watched: Option<(Duration, Duration)>,
    /// Whether the peer understands the DRAIN command.
    peer_drains: bool,
    /// The claim for what is received.
    memory: Option<PeerClaim>,
    /// The claim for encrypted messages on their way to the peer.
    boxes_memory: Option<PeerClaim>,
    /// The claim for the handshake. `None` once the handshake is over.
    handshake_memory: Option<Box<HandshakeClaim>>,
    departure: DepartureWatch,
    activity: Option<Arc<Activity>>,
}

impl Session {
    /// Creates a session on this stream.
    #[must_use]
    pub fn new(stream: Stream, engine: Engine) -> Self {
        Self {
            stream,
            engine,
            buffer: ReceiveBuffer::default(),
            authenticator: None,
            watched: None,
            peer_drains: false,
            memory: None,
            boxes_memory: None,
            handshake_memory: None,
            departure: DepartureWatch::default(),
            activity: None,
        }
    }

    /// Has `departure` notified when the peer leaves while nothing is read from it.
    #[must_use]
    pub fn with_departure(mut self, departure: Arc<dyn PeerLeft>) -> Self {
        self.departure = DepartureWatch(Some(departure));
        self
    }

    /// Has `activity` note when something was last received or sent over the connection.
    #[must_use]
    pub fn with_activity(mut self, activity: &Arc<Activity>) -> Self {
        self.activity = Some(activity.clone());
        self
    }

    /// Returns the addresses of both ends of a TCP connection.
    #[must_use]
    pub fn route(&self) -> Option<Route> {
        self.stream.route()
    }

    /// Counts the memory of what is received against this budget. `name` is the name of the peer in the log.
    #[must_use]
    pub fn with_memory(mut self, budget: &MemoryBudget, name: &str) -> Self {
        let memory = PeerClaim::new(budget, name, "messages that have come in part");
        self.memory = Some(memory.with_answers(name));
        self.boxes_memory = Some(PeerClaim::new(budget, name, "messages in boxes on their way to it"));
        self.handshake_memory = Some(Box::new(HandshakeClaim::new(budget)));
        self
    }

    /// Ends the connection within `interval` and `timeout` if the peer's host vanishes while data is on its
    /// way to it. This works even if the peer need not answer heartbeats. Without an interval nothing is
    /// watched.
    #[must_use]
    pub fn watched(mut self, interval: Option<Duration>, timeout: Duration) -> Self {
        self.watched = interval.filter(|interval| !interval.is_zero()).map(|interval| (interval, timeout));
        self
    }

    /// Sets what authenticates the credentials of the peer. Without an authenticator, no credentials are
    /// accepted.
    #[must_use]
    pub fn with_authenticator(mut self, authenticator: Option<Arc<dyn Authenticator>>) -> Self {
        self.authenticator = authenticator;
        self
    }

    /// Exchanges greetings and performs the handshake, within the time limit of the engine. A peer whose
    /// credentials are refused is sent an ERROR command.
    ///
    /// # Errors
    ///
    /// Why the handshake failed. The session cannot be used any more.
    pub async fn handshake(&mut self) -> Result<Peer, Ended> {
        let mut result =
            catch_in(self.try_handshake()).await.unwrap_or_else(|fault| Err(Ended::Fault(fault)));
        if let Err(ended) = &result
            && ended.is_by_peer()
            && !matches!(ended, Ended::Violation(_))
            && let Some(violation) = self.engine.closed_by_peer()
        {
            result = Err(violation.into());
        }
        if matches!(result, Err(Ended::Violation(_))) {
            let (_, mut write) = self.stream.split();
            let explain = async {
                while let Some(bytes) = self.engine.poll_transmit() {
                    write.write_all(&bytes).await?;
                }
                write.shutdown().await
            };
            // If the peer is gone or does not read, nothing is lost but this explanation.
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, explain).await;
        }
        result
    }

    /// Whether we have sent the peer the type of our socket, and it has not sent its own yet.
    pub(crate) fn is_greeted(&self) -> bool {
        self.engine.is_greeted()
    }

    async fn try_handshake(&mut self) -> Result<Peer, Ended> {
        let (mut read, mut write) = self.stream.split();
        loop {
            let event = self.engine.poll_event(&mut self.buffer.input)?;
            let due = self.engine.poll_timeout();
            while let Some(bytes) = self.engine.poll_transmit() {
                before(due, write.write_all(&bytes)).await.ok_or(Violation::HandshakeTimeout)??;
            }
            match event {
                Some(Event::Ready(peer)) => {
                    self.peer_drains = peer.drains;
                    self.engine.handle_received(now());
                    // A handshake may be much longer than anything that follows.
                    self.buffer.release();
                    self.handshake_memory = None;
                    return Ok(peer);
                }
                Some(Event::Credentials(credentials)) => {
                    let verdict = match &self.authenticator {
                        None => Verdict::Refused,
                        Some(authenticator) => before(due, authenticator.authenticate(credentials, None))
                            .await
                            .ok_or(Violation::HandshakeTimeout)?,
                    };
                    if verdict == Verdict::Busy {
                        return Err(Ended::ByUs("its credentials can't be checked now"));
                    }
                    self.engine.set_verdict(verdict == Verdict::Admitted)?;
                }
                Some(_) => {}
                None if !self
                    .handshake_memory
                    .as_mut()
                    .is_none_or(|claim| claim.allow(self.buffer.needs_in_handshake())) =>
                {
                    return Err(Ended::OutOfMemory);
                }
                None => match before(due, self.buffer.read(&mut read, 0)).await {
                    Some(Ok(0)) => return Err(Ended::ByPeer),
                    Some(result) => {
                        result?;
                    }
                    None => return Err(Violation::HandshakeTimeout.into()),
                },
            }
        }
    }

    /// Reads for `handler` and writes from `send_queue` until either direction ends.
    ///
    /// If the send queue is closed and empty, the connection shuts down gracefully: our end of the stream is
    /// closed, and what the peer had already sent is still read, for at most `close_timeout`, so that the
    /// peer loses nothing.
    pub async fn run(
        self,
        send_queue: &SendQueue,
        handler: &mut impl Handler,
        close_timeout: Duration,
    ) -> Ended {
        let route = self.watched.and_then(|_| self.stream.route());
        let (interval, timeout) = self.watched.unwrap_or_default();
        let driven = async {
            // Otherwise a panic would end the task of this connection before the others are told that it has
            // gone: its place in queues and tables would stay taken.
            let ended = catch_in(self.drive(send_queue, handler, close_timeout)).await;
            ended.unwrap_or_else(Ended::Fault)
        };
        tokio::select! {
            biased;
            ended = driven => ended,
            () = vanished(route, interval, timeout) => Ended::Vanished,
        }
    }

    async fn drive(
        mut self,
        send_queue: &SendQueue,
        handler: &mut impl Handler,
        close_timeout: Duration,
    ) -> Ended {
        let (mut read, mut write) = self.stream.split();
        let (sealer, decryption) = match self.engine.take_cipher() {
            None => (None, None),
            Some(Cipher { sealer, opener }) => {
                // What arrived right after the handshake is encrypted already.
                let boxed = std::mem::take(&mut self.buffer);
                (Some(sealer), Some(Decryption { opener: Some(opener), boxed }))
            }
        };
        let drain = Notify::new();
        let mut reader = Reader {
            engine: self.engine,
            buffer: self.buffer,
            decryption,
            drain: &drain,
            is_drained: false,
            memory: self.memory,
            departure: self.departure,
            activity: self.activity.clone(),
        };
        let mut writer =
            Writer::new(send_queue).sealed(sealer).claiming(self.boxes_memory).noting(self.activity);
        let leaving = AtomicBool::new(false);
        let (ended, is_whole) = {
            let mut reading = std::pin::pin!(reader.run(&mut read, send_queue, handler, &leaving));
            let writing = async {
                // A message that was written only in part is put back: the next connection sends it whole.
                let asked_to_finish = tokio::select! {
                    biased;
                    () = drain.notified() => true,
                    written = writer.run(&mut write) => {
                        written?;
                        false
                    }
                };
                leaving.store(true, Ordering::Relaxed);
                if self.peer_drains {
                    writer.write_command(&mut write, &Command::Drain).await?;
                } else {
                    write.shutdown().await?;
                }
                Ok::<_, io::Error>(asked_to_finish)
            };
            let writing = std::pin::pin!(writing);
            match futures::future::select(writing, &mut reading).await {
                futures::future::Either::Left((Ok(asked_to_finish), _)) => {
                    // Reading on until the peer closes its end, too, lets everything arrive that is on its
                    // way.
                    let close_timeout =
                        if asked_to_finish { close_timeout.min(DRAIN_PATIENCE) } else { close_timeout };
                    match tokio::time::timeout(close_timeout, reading).await {
                        Ok(Ended::ByPeer) => (Ended::ByUs("closed here"), true),
                        Ok(Ended::Drained) if !asked_to_finish => (Ended::Finished, false),
                        Ok(ended) => (ended, false),
                        Err(_) => (Ended::ByUs("closed here"), false),
                    }
                }
                // Other connections need the memory now, so this one does not read on.
                futures::future::Either::Left((Err(error), _))
                    if error.kind() == io::ErrorKind::OutOfMemory =>
                {
                    (Ended::from(error), false)
                }
                futures::future::Either::Left((Err(error), reading)) => {
                    // What the peer sent before it closed still counts, even if the peer no longer reads.
                    match tokio::time::timeout(close_timeout, reading).await {
                        Ok(Ended::ByPeer) | Err(_) => (Ended::from(error), false),
                        Ok(ended) => (ended, false),
                    }
                }
                futures::future::Either::Right((ended, _)) => {
                    let is_whole = matches!(ended, Ended::ByPeer);
                    (ended, is_whole)
                }
            }
        };
        if self.peer_drains && is_whole {
            // The peer has closed its direction, and all that it sent has been read.
            let answer = async {
                writer.write_command(&mut write, &Command::Drained).await?;
                write.shutdown().await
            };
            // If the peer has closed the connection already, this fails, which does no harm.
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, answer).await;
        }
        ended
    }
}

#[derive(Debug)]
struct Reader<'a> {
    engine: Engine,
    /// Frames in clear text.
    buffer: ReceiveBuffer,
    /// The boxes of a connection with CURVE. Their content goes into `buffer`.
    decryption: Option<Decryption>,
    /// Notified when the peer asks us to drain.
    drain: &'a Notify,
    /// Whether the peer has confirmed that it read everything.
    is_drained: bool,
    memory: Option<PeerClaim>,
    departure: DepartureWatch,
    activity: Option<Arc<Activity>>,
}

impl Reader<'_> {
    /// The number of bytes that the buffers will hold once the next read has been made.
    #[inline]
    fn needed(&self) -> usize {
        let plain = &self.buffer;
        let buffers = match &self.decryption {
            None => plain.needs_in_all(self.engine.missing(&plain.input)),
            Some(decryption) => decryption.boxed.needs_in_all(decryption.missing()) + plain.held(),
        };
        buffers + self.engine.memory()
    }

    fn queue_answer(&self, send_queue: &SendQueue, bytes: &[u8]) -> Result<(), Ended> {
        if !send_queue.push_urgent(bytes, URGENT_MAX) {
            return Err(Ended::Unread);
        }
        if let Some(memory) = &self.memory {
            memory.note_answer(send_queue);
        }
        Ok(())
    }

    /// Gives up memory that only a busy connection needs.
    fn release(&mut self) {
        self.engine.release();
        let boxed = self.decryption.as_mut().map(|decryption| &mut decryption.boxed);
        for buffer in [Some(&mut self.buffer), boxed].into_iter().flatten() {
            if buffer.input.is_empty() {
                buffer.release();
            }
        }
        let needed = self.needed();
        if let Some(memory) = &mut self.memory {
            memory.give_back(needed);
        }
    }

    /// Once `leaving` is set, we send nothing more, so no PING can ask the peer whether it is alive.
    async fn run(
        &mut self,
        stream: &mut ReadHalf<'_>,
        send_queue: &SendQueue,
        handler: &mut impl Handler,
        leaving: &AtomicBool,
    ) -> Ended {
        match self.read_loop(stream, send_queue, handler, leaving).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    async fn read_loop(
        &mut self,
        stream: &mut ReadHalf<'_>,
        send_queue: &SendQueue,
        handler: &mut impl Handler,
        leaving: &AtomicBool,
    ) -> Result<std::convert::Infallible, Ended> {
        let mut alarm = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        let mut since_pause = 0;
        let mut taken = 0;
        loop {
            let more_boxes = match &mut self.decryption {
                None => false,
                Some(decryption) => decryption.open(&mut self.buffer, &mut self.memory).await?,
            };
            let slab = self.buffer.slab();
            while let Some(event) = self.engine.poll_event(&mut self.buffer.input)? {
                match event {
                    Event::Messages(wire) => {
                        let end = self.memory.as_ref().and_then(PeerClaim::end);
                        let handling = handler.messages(Batch { wire, spans: self.engine.spans(), slab });
                        let (activity, departure) = (self.activity.as_deref(), &mut self.departure);
                        pause::until_handled(handling, stream, end, activity, departure).await?;
                        // Many short messages take more time than their bytes suggest.
                        since_pause += self.engine.spans().len() * MESSAGE;
                    }
                    Event::Subscribe(prefix) => {
                        handler.subscription(true, prefix).await?;
                        since_pause += COMMAND;
                    }
                    Event::Cancel(prefix) => {
                        handler.subscription(false, prefix).await?;
                        since_pause += COMMAND;
                    }
                    Event::FromSubscriber(wire) => {
                        let end = self.memory.as_ref().and_then(PeerClaim::end);
                        let handling = handler.subscriber_message(wire);
                        let (activity, departure) = (self.activity.as_deref(), &mut self.departure);
                        pause::until_handled(handling, stream, end, activity, departure).await?;
                    }
                    Event::Drain => self.drain.notify_one(),
                    Event::Drained => self.is_drained = true,
                    Event::Dropped(counts) => handler.dropped(counts),
                    Event::Handled => since_pause += HANDLED_MAX * COMMAND,
                    Event::Ready(_) | Event::Credentials(_) => {}
                }
                if let Some(bytes) = self.engine.poll_transmit() {
                    self.queue_answer(send_queue, &bytes)?;
                    since_pause += COMMAND;
                }
                if since_pause >= FAIR_SHARE_BYTES {
                    since_pause = 0;
                    tokio::task::yield_now().await;
                }
            }
            if let Some(bytes) = self.engine.poll_transmit() {
                self.queue_answer(send_queue, &bytes)?;
            }
            if since_pause >= FAIR_SHARE_BYTES {
                since_pause = 0;
                tokio::task::yield_now().await;
            }
            if more_boxes {
                since_pause += self.buffer.slab().size;
                continue;
            }
            if self.decryption.is_some() && self.buffer.input.is_empty() {
                // Nothing is read directly into this buffer, so no read would replace its slab.
                self.buffer.give_up_large();
            }
            if self.memory.is_some() {
                let needed = self.needed();
                if let Some(memory) = &mut self.memory
                    && (memory.end.is_cancelled() || !memory.allow(needed).await)
                {
                    return Err(Ended::OutOfMemory);
                }
            }
            let len = loop {
                let (buffer, missing) = match &mut self.decryption {
                    None => {
                        let missing = self.engine.missing(&self.buffer.input);
                        (&mut self.buffer, missing)
                    }
                    Some(decryption) => {
                        let missing = decryption.missing();
                        (&mut decryption.boxed, missing)
                    }
                };
                let due = self.engine.poll_timeout().filter(|_| !leaving.load(Ordering::Relaxed));
                let end = self.memory.as_ref().and_then(PeerClaim::end);
                let ended = OptionFuture::from(end.map(CancellationToken::cancelled));
                let Some(due) = due else {
                    tokio::select! {
                        biased;
                        len = buffer.read(stream, missing) => break len?,
                        Some(()) = ended => return Err(Ended::OutOfMemory),
                    }
                };
                // If the timer is set to an earlier time, it stays. Setting it anew for every read would cost
                // more than a wake-up too early.
                if alarm.is_elapsed() || alarm.deadline() > due.into() {
                    alarm.as_mut().reset(due.into());
                }
                tokio::select! {
                    biased;
                    len = buffer.read(stream, missing) => break len?,
                    Some(()) = ended => return Err(Ended::OutOfMemory),
                    () = &mut alarm => {
                        if leaving.load(Ordering::Relaxed) {
                            continue;
                        }
                        // A PING that waits behind a long message has not been sent yet. As long as the peer
                        // reads that message, it is alive.
                        let (waits, bytes) = send_queue.urgent_waits_behind();
                        if std::mem::replace(&mut taken, bytes) != bytes && waits {
                            self.engine.handle_received(now());
                            continue;
                        }
                        self.engine.handle_timeout(now())?;
                        if let Some(bytes) = self.engine.poll_transmit() {
                            self.queue_answer(send_queue, &bytes)?;
                        }
                        // The peer was silent for a while, so the connection gives up memory that only a busy
                        // one needs.
                        self.release();
                    }
                }
            };
            if len == 0 {
                return Err(if self.is_drained { Ended::Drained } else { Ended::ByPeer });
            }
            since_pause += len;
            let now = now();
            self.engine.handle_received(now);
            if let Some(activity) = &self.activity {
                activity.note(now);
            }
        }
    }
}

/// Returns the output of `future`, or `None` when `due` passes first.
async fn before<T>(due: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match due {
        Some(due) => tokio::time::timeout_at(due.into(), future).await.ok(),
        None => Some(future.await),
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
