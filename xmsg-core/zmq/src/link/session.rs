//! One connection, from its first byte to its last: the engine driven by a stream.

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

use crate::link::admission::Activity;
use crate::link::buffer::{ReceiveBuffer, Slab};
use crate::link::memory::{HandshakeClaim, MemoryBudget, PeerClaim};
use crate::link::opening::Opening;
use crate::link::outbox::{Outbox, URGENT_MAX, Writer};
use crate::link::pause::{self, Departure, DepartureWatch};
use crate::link::transport::{ReadHalf, Stream};
use crate::link::vanished::{Route, vanished};
use crate::security::{Authenticator, Verdict};
use crate::{Error, ErrorKind};
use xmsg_zmtp::curve::Cipher;
use xmsg_zmtp::{Command, DroppedCounts, Engine, Event, Peer, Span, Violation};

/// After so many bytes without a pause a reader lets others have the processor.
const FAIR_SHARE: usize = 256 << 10;
/// What a message counts for in it beside its bytes.
const MESSAGE: usize = 64;
/// What a PING counts for in it: its answer takes longer than its bytes.
const QUESTION: usize = 1 << 10;
/// How long a peer gets to read why it is sent away, or to close its end when we have closed ours.
pub(crate) const FAREWELL: Duration = Duration::from_secs(1);

/// How long a peer that has asked us to finish may take to read what we had sent.
const DRAIN_PATIENCE: Duration = Duration::from_secs(60);

/// The present time as tokio has it: the same clock as its timers, which a test may stop and set. What is compared with a
/// timer has to come from here.
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
    /// The peer closed it, and has said that it read everything that was written to it.
    Drained,
    /// We closed it, and the peer has said that it read everything that was written to it.
    Finished,
    /// The transport failed.
    Io(io::Error),
    /// The peer broke the protocol, did not fit, or fell silent.
    Violation(Violation),
    /// The peer makes us answer and does not read the answers.
    Unread,
    /// The host of the peer acknowledged nothing for the time limit of heartbeats.
    Vanished,
    /// No memory was left, and it held, or wanted, most of it.
    OutOfMemory,
    /// We closed it, for this reason.
    ByUs(&'static str),
}

impl Ended {
    /// Whether it was the peer that ended the connection: not the network, and not we.
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
        }
    }
}

/// The texts say all that there is below.
impl std::error::Error for Ended {}

impl Ended {
    /// That no connection came about for this reason.
    pub(crate) fn while_connecting(self, to: &impl fmt::Display) -> Error {
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
            // A program without ZeroMQ closes, too; so does a ZeroMQ socket that has no room, or is about to end.
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

    /// That the handshake of a peer which has connected to us failed for this reason.
    pub(crate) fn while_accepting(self, from: &impl fmt::Display) -> Error {
        let kind = match &self {
            Self::Violation(Violation::NotAdmitted(_)) => ErrorKind::NotAllowed,
            _ => self.kind(),
        };
        self.into_error(kind, format!("no handshake with {from}"))
    }

    /// That a connection which was there ended for this reason.
    pub(crate) fn while_connected(self, to: &impl fmt::Display) -> Error {
        let kind = self.kind();
        self.into_error(kind, format!("the connection to {to} has ended"))
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::ByPeer | Self::Drained | Self::Finished | Self::ByUs(_) => ErrorKind::Closed,
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
        // That is how the writer says that its message may not have the memory for a box.
        if error.kind() == io::ErrorKind::OutOfMemory { Self::OutOfMemory } else { Self::Io(error) }
    }
}

impl From<Violation> for Ended {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

/// Whole messages that one read brought.
#[derive(Debug)]
pub struct Batch<'a> {
    /// The messages, one after another, as they came.
    pub wire: Bytes,
    /// Where each of them lies in `wire`.
    pub spans: &'a [Span],
    /// The memory that slices of `wire` keep alive.
    pub slab: Slab,
}

/// What is done with what a peer sends. While a method waits, nothing more is read from that peer.
pub trait Handler: Send {
    /// Messages came.
    fn messages(&mut self, batch: Batch<'_>) -> impl Future<Output = Result<(), Ended>> + Send;

    /// The peer of a PUB or XPUB socket subscribed to a prefix, or (`subscribe` false) took that back.
    fn subscription(
        &mut self,
        subscribe: bool,
        prefix: Bytes,
    ) -> impl Future<Output = Result<(), Ended>> + Send;

    /// The peer of an XPUB socket has sent a message, which is here as it was on the wire.
    fn subscriber_message(&mut self, wire: Bytes) -> impl Future<Output = Result<(), Ended>> + Send {
        let _ = wire;
        std::future::ready(Ok(()))
    }

    /// The peer of a SUB socket has dropped messages for us: so many in all since the connection began.
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
    /// How soon it is to be noticed that the peer's host is gone: the interval and the time limit of heartbeats.
    watched: Option<(Duration, Duration)>,
    /// Whether the peer understands that we ask it to finish.
    peer_drains: bool,
    memory: Option<PeerClaim>,
    boxes: Option<PeerClaim>,
    /// Until the handshake is over.
    unknown: Option<Box<HandshakeClaim>>,
    departure: DepartureWatch,
    activity: Option<Arc<Activity>>,
}

impl Session {
    /// A session on this stream.
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
            boxes: None,
            unknown: None,
            departure: DepartureWatch::default(),
            activity: None,
        }
    }

    /// Has it told when the peer leaves while nothing is read from it.
    #[must_use]
    pub fn with_departure(mut self, departure: Arc<dyn Departure>) -> Self {
        self.departure = DepartureWatch(Some(departure));
        self
    }

    /// Has it noted when something went over the connection last.
    #[must_use]
    pub fn with_activity(mut self, activity: &Arc<Activity>) -> Self {
        self.activity = Some(activity.clone());
        self
    }

    /// Both ends of a TCP connection.
    #[must_use]
    pub fn route(&self) -> Option<Route> {
        self.stream.route()
    }

    /// Has the memory of what comes in count in this budget. `name` is the peer's in the log.
    #[must_use]
    pub fn with_memory(mut self, budget: &MemoryBudget, name: &str) -> Self {
        let memory = PeerClaim::new(budget, name, "messages that have come in part");
        self.memory = Some(memory.with_answers(name));
        self.boxes = Some(PeerClaim::new(budget, name, "messages in boxes on their way to it"));
        self.unknown = Some(Box::new(HandshakeClaim::new(budget)));
        self
    }

    /// Has a host that vanishes with data on its way to it noticed within `interval` and `timeout`, even if its peer need not
    /// answer heartbeats. Without an interval nothing is watched.
    #[must_use]
    pub fn watched(mut self, interval: Option<Duration>, timeout: Duration) -> Self {
        self.watched = interval.filter(|interval| !interval.is_zero()).map(|interval| (interval, timeout));
        self
    }

    /// Who judges the credentials of the peer. Without one, none are good.
    #[must_use]
    pub fn with_authenticator(mut self, authenticator: Option<Arc<dyn Authenticator>>) -> Self {
        self.authenticator = authenticator;
        self
    }

    /// Goes through greeting and handshake, within the time limit of the engine. A peer whose credentials are not good is told so.
    pub async fn handshake(&mut self) -> Result<Peer, Ended> {
        let mut result = self.try_handshake().await;
        if let Err(ended) = &result
            && ended.is_by_peer()
            && !matches!(ended, Ended::Violation(_))
            && let Some(violation) = self.engine.closed_by_peer()
        {
            result = Err(violation.into());
        }
        if matches!(result, Err(Ended::Violation(_))) {
            let (_, mut write) = self.stream.split();
            let farewell = async {
                while let Some(bytes) = self.engine.poll_transmit() {
                    write.write_all(&bytes).await?;
                }
                write.shutdown().await
            };
            // The peer may be gone or deaf already: its loss.
            let _ = tokio::time::timeout(FAREWELL, farewell).await;
        }
        result
    }

    /// Whether the peer was told the type of our socket, and has not told its own yet.
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
                    self.unknown = None;
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
                        return Err(Ended::ByUs("its credentials can't be judged now"));
                    }
                    self.engine.judge(verdict == Verdict::Admitted)?;
                }
                Some(_) => {}
                None if !self
                    .unknown
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

    /// Reads for `handler` and writes from `outbox` until either direction ends. An outbox that is closed and
    /// empty ends it well: the peer is told by the end of our stream, and what it had already sent is still
    /// read, for at most `farewell`, so that it loses nothing.
    pub async fn run(self, outbox: &Outbox, handler: &mut impl Handler, farewell: Duration) -> Ended {
        let route = self.watched.and_then(|_| self.stream.route());
        let (interval, timeout) = self.watched.unwrap_or_default();
        tokio::select! {
            biased;
            ended = self.drive(outbox, handler, farewell) => ended,
            () = vanished(route, interval, timeout) => Ended::Vanished,
        }
    }

    async fn drive(mut self, outbox: &Outbox, handler: &mut impl Handler, farewell: Duration) -> Ended {
        let (mut read, mut write) = self.stream.split();
        let (sealer, opening) = match self.engine.take_cipher() {
            None => (None, None),
            Some(Cipher { sealer, opener }) => {
                // What came after the handshake is in boxes already.
                let boxed = std::mem::take(&mut self.buffer);
                (Some(sealer), Some(Opening { opener: Some(opener), boxed }))
            }
        };
        let drain = Notify::new();
        let mut reader = Reader {
            engine: self.engine,
            buffer: self.buffer,
            opening,
            drain: &drain,
            is_drained: false,
            memory: self.memory,
            departure: self.departure,
            activity: self.activity.clone(),
        };
        let mut writer = Writer::new(outbox).sealed(sealer).claiming(self.boxes).noting(self.activity);
        let leaving = AtomicBool::new(false);
        let (ended, is_whole) = {
            let mut reading = std::pin::pin!(reader.run(&mut read, outbox, handler, &leaving));
            let writing = async {
                // A message that is written in part is put back: the next connection sends it whole.
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
                    // Reading on until the peer closes, too, lets everything that is under way arrive.
                    let farewell = if asked_to_finish { farewell.min(DRAIN_PATIENCE) } else { farewell };
                    match tokio::time::timeout(farewell, reading).await {
                        Ok(Ended::ByPeer) => (Ended::ByUs("closed here"), true),
                        Ok(Ended::Drained) if !asked_to_finish => (Ended::Finished, false),
                        Ok(ended) => (ended, false),
                        Err(_) => (Ended::ByUs("closed here"), false),
                    }
                }
                // Others need the memory now.
                futures::future::Either::Left((Err(error), _))
                    if error.kind() == io::ErrorKind::OutOfMemory =>
                {
                    (Ended::from(error), false)
                }
                futures::future::Either::Left((Err(error), reading)) => {
                    // What the peer sent before it closed counts, even if it no longer reads.
                    match tokio::time::timeout(farewell, reading).await {
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
            // A peer that does not wait for it gets none.
            let _ = tokio::time::timeout(FAREWELL, answer).await;
        }
        ended
    }
}

#[derive(Debug)]
struct Reader<'a> {
    engine: Engine,
    /// Frames in clear text.
    buffer: ReceiveBuffer,
    opening: Option<Opening>,
    /// Told when the peer asks us to finish.
    drain: &'a Notify,
    /// The peer has read everything.
    is_drained: bool,
    memory: Option<PeerClaim>,
    departure: DepartureWatch,
    activity: Option<Arc<Activity>>,
}

impl Reader<'_> {
    /// Bytes that the buffers hold once the next read has been made.
    #[inline]
    fn needed(&self) -> usize {
        let plain = &self.buffer;
        let buffers = match &self.opening {
            None => plain.needs_in_all(self.engine.missing(&plain.input)),
            Some(opening) => opening.boxed.needs_in_all(opening.missing()) + plain.held(),
        };
        buffers + self.engine.memory()
    }

    fn owe(&self, outbox: &Outbox, bytes: &[u8]) -> Result<(), Ended> {
        if !outbox.push_urgent(bytes, URGENT_MAX) {
            return Err(Ended::Unread);
        }
        if let Some(memory) = &self.memory {
            memory.note_answer(outbox);
        }
        Ok(())
    }

    /// Gives up memory that only a busy connection needs.
    fn release(&mut self) {
        self.engine.release();
        let boxed = self.opening.as_mut().map(|opening| &mut opening.boxed);
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

    /// Once `leaving` is set we have said all that we will ever say, so the peer can't be asked whether it lives.
    async fn run(
        &mut self,
        stream: &mut ReadHalf<'_>,
        outbox: &Outbox,
        handler: &mut impl Handler,
        leaving: &AtomicBool,
    ) -> Ended {
        match self.try_run(stream, outbox, handler, leaving).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    async fn try_run(
        &mut self,
        stream: &mut ReadHalf<'_>,
        outbox: &Outbox,
        handler: &mut impl Handler,
        leaving: &AtomicBool,
    ) -> Result<std::convert::Infallible, Ended> {
        let mut alarm = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        let mut since_pause = 0;
        let mut taken = 0;
        loop {
            let more_boxes = match &mut self.opening {
                None => false,
                Some(opening) => opening.open(&mut self.buffer, &mut self.memory).await?,
            };
            let slab = self.buffer.slab();
            while let Some(event) = self.engine.poll_event(&mut self.buffer.input)? {
                match event {
                    Event::Messages(wire) => {
                        let end = self.memory.as_ref().and_then(PeerClaim::end);
                        let handling = handler.messages(Batch { wire, spans: self.engine.spans(), slab });
                        pause::taken(handling, stream, end, self.activity.as_deref(), &mut self.departure)
                            .await?;
                        // Many short ones are much work.
                        since_pause += self.engine.spans().len() * MESSAGE;
                        if since_pause >= FAIR_SHARE {
                            since_pause = 0;
                            tokio::task::yield_now().await;
                        }
                    }
                    Event::Subscribe(prefix) => handler.subscription(true, prefix).await?,
                    Event::Cancel(prefix) => handler.subscription(false, prefix).await?,
                    Event::FromSubscriber(wire) => {
                        let end = self.memory.as_ref().and_then(PeerClaim::end);
                        let handling = handler.subscriber_message(wire);
                        pause::taken(handling, stream, end, self.activity.as_deref(), &mut self.departure)
                            .await?;
                    }
                    Event::Drain => self.drain.notify_one(),
                    Event::Drained => self.is_drained = true,
                    Event::Dropped(counts) => handler.dropped(counts),
                    Event::Ready(_) | Event::Credentials(_) => {}
                }
                if let Some(bytes) = self.engine.poll_transmit() {
                    self.owe(outbox, &bytes)?;
                    since_pause += QUESTION;
                    if since_pause >= FAIR_SHARE {
                        since_pause = 0;
                        tokio::task::yield_now().await;
                    }
                }
            }
            if let Some(bytes) = self.engine.poll_transmit() {
                self.owe(outbox, &bytes)?;
            }
            if since_pause >= FAIR_SHARE {
                since_pause = 0;
                tokio::task::yield_now().await;
            }
            if more_boxes {
                since_pause += self.buffer.slab().size;
                continue;
            }
            if self.opening.is_some() && self.buffer.input.is_empty() {
                // Nothing is read into it that would have it replaced.
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
                let (buffer, missing) = match &mut self.opening {
                    None => {
                        let missing = self.engine.missing(&self.buffer.input);
                        (&mut self.buffer, missing)
                    }
                    Some(opening) => {
                        let missing = opening.missing();
                        (&mut opening.boxed, missing)
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
                // The alarm rings early rather than being set anew for every read.
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
                        // A question that waits behind a long message has not been asked yet. As long as the peer takes that, it lives.
                        let (waits, bytes) = outbox.urgent_waits_behind();
                        if std::mem::replace(&mut taken, bytes) != bytes && waits {
                            self.engine.handle_received(now());
                            continue;
                        }
                        self.engine.handle_timeout(now())?;
                        if let Some(bytes) = self.engine.poll_transmit() {
                            self.owe(outbox, &bytes)?;
                        }
                        // The peer was silent for a while: it need not keep what it had use for.
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

/// The output of `future`, or `None` when `due` passes first.
async fn before<T>(due: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match due {
        Some(due) => tokio::time::timeout_at(due.into(), future).await.ok(),
        None => Some(future.await),
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
