//! The engine: one end of a connection as a state machine for greeting, handshake and traffic.

// Longer than 500 lines: one state machine, whose phases share its fields.

use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};

use super::curve::Cipher;
use super::frame::{Header, encode_command};
use super::greeting::{self, GREETING_LEN, Greeting, REVISION_2_0, SIGNATURE_LEN};
use super::peer_limits::{DRAIN_PROPERTY, DROPPED_PROPERTY};
use super::{
    Command, Credentials, DroppedCounts, Limited, Mechanism, Options, PeerLimits, Principal, Properties,
    Scanner, SocketType, Span, Stop, Violation, encode_message, later,
};

/// Commands may stand between the frames of a message, as heartbeats of libzmq do. Removing a command moves
/// the frames before it. A peer may cause this many bytes of moving for every byte that it has sent, and no
/// more.
const MOVES_PER_BYTE: u64 = 4;
/// This many bytes of moving are allowed in addition.
const MOVES_FREE: u64 = 1 << 20;
/// The maximum number of messages that are returned at once. Their spans are kept, and each takes more memory
/// than a short message.
const MESSAGES_MAX: usize = 2 << 10;
/// The reason in the ERROR command for a peer whose credentials were rejected. It is a status code of ZAP
/// (RFC 27).
const NOT_ADMITTED: &str = "400";
/// The maximum length of an identity in bytes (RFC 28).
pub const IDENTITY_MAX: usize = 255;

/// The protocol version that both sides speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// ZMTP 2.0: libzmq 3.2, JeroMQ 0.3. It has no commands.
    V2_0,
    /// ZMTP 3.0: libzmq 4.0 to 4.2, JeroMQ. Subscriptions are messages.
    V3_0,
    /// ZMTP 3.1: libzmq 4.3. Subscriptions are commands, and there are heartbeats.
    V3_1,
}

impl Version {
    /// Encodes a subscription or, with `subscribe` `false`, its cancellation, in the form of this version.
    pub fn write_subscription(self, out: &mut BytesMut, subscribe: bool, prefix: &Bytes) {
        match (self, subscribe) {
            (Self::V3_1, true) => Command::Subscribe(prefix.clone()).write(out),
            (Self::V3_1, false) => Command::Cancel(prefix.clone()).write(out),
            _ => {
                let mut body = BytesMut::with_capacity(1 + prefix.len());
                body.extend_from_slice(&[u8::from(subscribe)]);
                body.extend_from_slice(prefix);
                encode_message(out, &[body]);
            }
        }
    }
}

/// The peer at the other end, as known after the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The protocol version that both sides speak.
    pub version: Version,
    /// The type of the peer's socket. It is compatible with ours.
    pub socket_type: SocketType,
    /// The identity that the peer announced, which is often empty. It matters to ROUTER and REP sockets only.
    pub identity: Bytes,
    /// All properties that a ZMTP 3 peer announced.
    pub properties: Properties,
    /// The limits among these properties, on what we may send.
    pub limits: PeerLimits,
    /// Whether the peer understands [`Command::Drain`].
    pub drains: bool,
    /// Whether the peer understands [`Command::Dropped`].
    pub accepts_drop_reports: bool,
    /// The authenticated identity of the peer, if we are a server of PLAIN or CURVE.
    pub principal: Option<Principal>,
}

/// What the peer did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer presents its credentials. The handshake does not continue before [`Engine::set_verdict`].
    Credentials(Credentials),
    /// The handshake is complete: traffic may flow in both directions.
    Ready(Peer),
    /// Whole messages, as they arrived. [`Engine::spans`] returns the position of each one.
    Messages(Bytes),
    /// The peer of a PUB or XPUB socket subscribes to messages whose first frame starts with this prefix.
    Subscribe(Bytes),
    /// The peer of a PUB or XPUB socket cancels its subscription to this prefix.
    Cancel(Bytes),
    /// A message from a subscriber to a publisher, as it arrived. It is returned only if
    /// [`Options::messages_from_subscribers`] is set.
    FromSubscriber(Bytes),
    /// The peer is about to stop. It asks us to send nothing more and to close our direction.
    Drain,
    /// The peer has read everything that we sent before we closed our direction.
    Drained,
    /// The peer of a SUB socket has dropped messages for us. The counts are totals since the connection
    /// began.
    Dropped(DroppedCounts),
    /// The peer has sent [`HANDLED_MAX`] commands or messages that the engine handled by itself, or that mean
    /// nothing to a socket of this type. There may be more: a caller that serves others, too, can do so
    /// before it polls again.
    Handled,
}

/// After this many commands and messages without an event of their own, [`Engine::poll_event`] returns
/// [`Event::Handled`], so that a flood of them does not keep it busy for long.
pub const HANDLED_MAX: usize = 64;

#[derive(Debug)]
enum Phase {
    /// Waits for the first eleven bytes, which contain the version of the peer.
    Signature,
    /// Waits for the rest of a ZMTP 3 greeting.
    Greeting,
    /// Exchanges commands of the security mechanism of ZMTP 3.
    Handshake {
        version: Version,
    },
    /// Waits for the socket type and the identity of a ZMTP 2.0 peer.
    HandshakeV2,
    Traffic {
        version: Version,
    },
}

/// One end of a ZMTP connection. The [module documentation](super) describes how to drive it.
///
/// ```
/// use std::time::Instant;
/// use bytes::BytesMut;
/// use xmsg_zmtp::{Engine, Event, Options, SocketType};
///
/// let now = Instant::now();
/// let mut publisher = Engine::new(Options::new(SocketType::Pub), now);
/// let mut subscriber = Engine::new(Options::new(SocketType::Sub), now);
/// let (mut to_sub, mut to_pub) = (BytesMut::new(), BytesMut::new());
/// let mut ready = 0;
/// while ready < 2 {
///     while let Some(bytes) = publisher.poll_transmit() { to_sub.extend_from_slice(&bytes) }
///     while let Some(bytes) = subscriber.poll_transmit() { to_pub.extend_from_slice(&bytes) }
///     ready += usize::from(matches!(publisher.poll_event(&mut to_pub)?, Some(Event::Ready(_))));
///     ready += usize::from(matches!(subscriber.poll_event(&mut to_sub)?, Some(Event::Ready(_))));
/// }
/// # Ok::<(), xmsg_zmtp::Violation>(())
/// ```
#[derive(Debug)]
pub struct Engine {
    options: Options,
    mechanism: Box<dyn Mechanism>,
    /// The identity that the peer claims in its credentials, authenticated once it is admitted.
    principal: Option<Principal>,
    awaits_verdict: bool,
    phase: Phase,
    outgoing: BytesMut,
    scanner: Scanner,
    spans: Vec<Span>,
    /// Messages to a PUB or XPUB socket that are still to be decoded as subscriptions, and the index of the
    /// next one.
    subscriptions: (Bytes, usize),
    bytes_in: u64,
    bytes_moved: u64,
    handshake_deadline: Instant,
    last_heard: Instant,
    ping_sent: Option<Instant>,
    /// The maximum time of silence that the peer announced in its last PING.
    peer_ttl: Option<Duration>,
}

impl Engine {
    /// Creates an engine with the NULL mechanism, for a connection that was made at `now`.
    #[must_use]
    pub fn new(options: Options, now: Instant) -> Self {
        Self::with_mechanism(options, Box::new(super::Null::default()), now)
    }

    /// Creates an engine with another security mechanism.
    #[must_use]
    pub fn with_mechanism(mut options: Options, mechanism: Box<dyn Mechanism>, now: Instant) -> Self {
        // With a pause of zero, nothing but heartbeats would be sent.
        options.heartbeat_interval = options.heartbeat_interval.filter(|interval| !interval.is_zero());
        Self {
            mechanism,
            principal: None,
            awaits_verdict: false,
            phase: Phase::Signature,
            outgoing: BytesMut::from(&greeting::signature()[..]),
            scanner: Scanner::new(&options.limits).at_most(MESSAGES_MAX),
            spans: Vec::new(),
            subscriptions: (Bytes::new(), 0),
            bytes_in: 0,
            bytes_moved: 0,
            handshake_deadline: later(now, options.limits.handshake_timeout),
            last_heard: now,
            ping_sent: None,
            peer_ttl: None,
            options,
        }
    }

    /// Notes that bytes were received at `now`, so the peer is alive.
    pub fn handle_received(&mut self, now: Instant) {
        self.last_heard = now;
        self.ping_sent = None;
    }

    /// Processes `input`, the bytes that were received and not yet consumed, and returns what the peer did,
    /// or `None` when more bytes are needed. Call it until it returns `None`, then write what
    /// [`poll_transmit`](Self::poll_transmit) returns, then read again.
    ///
    /// # Errors
    ///
    /// After a violation, write what `poll_transmit` returns and close the connection. The peer is sent no
    /// ERROR command, unless its [credentials](Self::set_verdict) were rejected: a client of libzmq that gets
    /// an ERROR command never tries again, and one whose connection is closed does. By then, the peer has
    /// what it needs to find the fault, namely our greeting and properties.
    pub fn poll_event(&mut self, input: &mut BytesMut) -> Result<Option<Event>, Violation> {
        loop {
            let progress = match self.phase {
                Phase::Signature => self.read_signature(input),
                Phase::Greeting => self.read_greeting(input),
                Phase::Handshake { version } => return self.read_handshake(input, version),
                Phase::HandshakeV2 => return self.read_handshake_v2(input),
                Phase::Traffic { .. } => return self.read_traffic(input),
            };
            match progress {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(violation) => return Err(violation),
            }
        }
    }

    /// Admits or rejects the peer whose credentials [`poll_event`](Self::poll_event) returned. A rejected
    /// peer is sent the status code of ZAP (RFC 27) that libzmq reports to its user.
    ///
    /// # Errors
    ///
    /// [`Violation::NotAdmitted`] if the peer was rejected.
    pub fn set_verdict(&mut self, admitted: bool) -> Result<(), Violation> {
        if !std::mem::take(&mut self.awaits_verdict) {
            return Ok(());
        }
        if !admitted {
            if let Phase::Handshake { version } = self.phase {
                encode_command(&mut self.outgoing, &self.mechanism.error(version, NOT_ADMITTED));
            }
            return Err(Violation::NotAdmitted(self.principal.take()));
        }
        self.mechanism.admit();
        self.advance_mechanism();
        Ok(())
    }

    /// Returns whether the security handshake is in progress. The peer then speaks ZMTP and has been sent the
    /// type of our socket.
    #[must_use]
    pub fn is_greeted(&self) -> bool {
        matches!(self.phase, Phase::Handshake { .. } | Phase::HandshakeV2)
    }

    /// Returns what it means if the peer closes the connection now, if it means more than that.
    #[must_use]
    pub fn closed_by_peer(&self) -> Option<Violation> {
        match self.phase {
            Phase::Handshake { .. } => self.mechanism.closed_by_peer(),
            _ => None,
        }
    }

    /// Returns the cipher of the traffic, if the mechanism has one. Call it once, after [`Event::Ready`].
    /// From then on, `poll_event` reads frames that were decrypted, and what `poll_transmit` returns has to
    /// be encrypted.
    pub fn take_cipher(&mut self) -> Option<Cipher> {
        let mut cipher = self.mechanism.take_cipher()?;
        cipher.opener.limit(self.options.limits.message_size.max(self.options.limits.command_size));
        Some(cipher)
    }

    /// Returns the positions of the messages of the last [`Event::Messages`] in its bytes.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Returns the memory in bytes that is kept for [`spans`](Self::spans).
    #[must_use]
    pub fn memory(&self) -> usize {
        self.spans.capacity() * size_of::<Span>()
    }

    /// Releases the memory of [`spans`](Self::spans). The peer may now be silent for long.
    pub fn release(&mut self) {
        if self.subscriptions.0.is_empty() {
            self.spans = Vec::new();
        }
    }

    /// Returns the next bytes to write to the peer.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        (!self.outgoing.is_empty()).then(|| self.outgoing.split().freeze())
    }

    /// Returns the latest time for the next call of [`handle_timeout`](Self::handle_timeout). It may move
    /// later.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let Phase::Traffic { version } = self.phase else { return Some(self.handshake_deadline) };
        let silence = self.peer_ttl.map(|ttl| later(self.last_heard, ttl));
        let heartbeat = match (self.options.heartbeat_interval, self.ping_sent) {
            (Some(_), Some(sent)) => Some(later(sent, self.options.heartbeat_timeout)),
            (Some(interval), None) if version >= Version::V3_1 => Some(later(self.last_heard, interval)),
            _ => None,
        };
        match (silence, heartbeat) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Does what is due at `now`: it sends a heartbeat, or ends the connection.
    ///
    /// # Errors
    ///
    /// The peer did not finish the handshake, answer a heartbeat, or send anything within its own time to
    /// live.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Violation> {
        if self.poll_timeout().is_none_or(|due| now < due) {
            return Ok(());
        }
        if !matches!(self.phase, Phase::Traffic { .. }) {
            return Err(Violation::HandshakeTimeout);
        }
        if self.peer_ttl.is_some_and(|ttl| now >= later(self.last_heard, ttl)) || self.ping_sent.is_some() {
            return Err(Violation::HeartbeatTimeout);
        }
        // We announce no time to live, because it would oblige us to go on sending PINGs: libzmq ends the
        // connection when nothing follows in time, and we send a PING only after silence.
        Command::Ping { ttl: Duration::ZERO, context: Bytes::new() }.write(&mut self.outgoing);
        self.ping_sent = Some(now);
        Ok(())
    }

    /// Returns how many bytes are known to be missing from the message at the front of `input`. It is a hint
    /// for how much to read at once.
    #[must_use]
    pub fn missing(&self, input: &[u8]) -> usize {
        match self.phase {
            Phase::Traffic { .. } => self.scanner.missing(input),
            _ => 0,
        }
    }

    fn read_signature(&mut self, input: &mut BytesMut) -> Result<bool, Violation> {
        greeting::check_signature(input)?;
        let Some(&major) = input.get(SIGNATURE_LEN - 1) else { return Ok(false) };
        if major >= 3 {
            let rest = greeting::remainder(self.mechanism.name(), self.mechanism.as_server());
            self.outgoing.extend_from_slice(&rest);
            self.phase = Phase::Greeting;
        } else if major >= REVISION_2_0 {
            if self.mechanism.name() != "NULL" {
                // ZMTP 2.0 has no security, so such a peer must not bypass a mechanism.
                return Err(Violation::MechanismMismatch {
                    theirs: "none (ZMTP 2.0)".into(),
                    ours: self.mechanism.name(),
                });
            }
            self.outgoing.extend_from_slice(&[self.options.socket_type.code()]);
            encode_message(&mut self.outgoing, &[&self.options.identity]);
            input.advance(SIGNATURE_LEN);
            self.phase = Phase::HandshakeV2;
        } else {
            return Err(Violation::VersionTooOld);
        }
        Ok(true)
    }

    fn read_greeting(&mut self, input: &mut BytesMut) -> Result<bool, Violation> {
        let Some(bytes) = input.first_chunk::<GREETING_LEN>() else { return Ok(false) };
        let greeting = Greeting::read(bytes)?;
        let ours = self.mechanism.name();
        if greeting.mechanism != ours.as_bytes() {
            let theirs = String::from_utf8_lossy(&greeting.mechanism).into_owned();
            return Err(Violation::MechanismMismatch { theirs, ours });
        }
        input.advance(GREETING_LEN);
        // A peer with a higher version must use ours.
        let version = if greeting.major == 3 && greeting.minor == 0 { Version::V3_0 } else { Version::V3_1 };
        self.phase = Phase::Handshake { version };
        self.advance_mechanism();
        Ok(true)
    }

    fn read_handshake(&mut self, input: &mut BytesMut, version: Version) -> Result<Option<Event>, Violation> {
        loop {
            if self.awaits_verdict {
                return Ok(None);
            }
            if let Some(properties) = self.mechanism.take_properties() {
                let peer = self.check_peer(version, properties)?;
                return Ok(Some(self.ready(peer)));
            }
            let Some(header) = Header::read(input)? else { return Ok(None) };
            if !header.is_command() {
                return Err(Violation::Malformed("handshake: a command was expected"));
            }
            let limit = self.options.limits.command_size;
            if header.body_len > limit as u64 {
                let (size, limit) = (header.body_len, limit as u64);
                return Err(Violation::TooLarge { what: Limited::Handshake, size, limit });
            }
            let len = header.len + header.body_len as usize;
            if input.len() < len {
                return Ok(None);
            }
            let body = Bytes::copy_from_slice(&input[header.len..len]);
            input.advance(len);
            self.mechanism.handle_command(body)?;
            if let Some(credentials) = self.mechanism.credentials() {
                self.principal = Some(credentials.principal());
                self.awaits_verdict = true;
                return Ok(Some(Event::Credentials(credentials)));
            }
            self.advance_mechanism();
        }
    }

    fn read_handshake_v2(&mut self, input: &mut BytesMut) -> Result<Option<Event>, Violation> {
        let Some(&code) = input.first() else { return Ok(None) };
        let Some(header) = Header::read(&input[1..])? else { return Ok(None) };
        if header.flags != 0 || header.body_len > IDENTITY_MAX as u64 {
            return Err(Violation::Malformed("identity of a ZMTP 2.0 peer"));
        }
        let len = 1 + header.len + header.body_len as usize;
        if input.len() < len {
            return Ok(None);
        }
        let identity = Bytes::copy_from_slice(&input[1 + header.len..len]);
        input.advance(len);
        let ours = self.options.socket_type;
        let Some(socket_type) = SocketType::from_code(code).filter(|theirs| ours.fits(*theirs)) else {
            let theirs =
                SocketType::from_code(code).map_or_else(|| format!("type {code}"), |t| t.to_string());
            return Err(Violation::SocketTypeMismatch { theirs, ours: ours.name() });
        };
        let peer = Peer {
            version: Version::V2_0,
            socket_type,
            identity,
            properties: Properties::default(),
            limits: PeerLimits::default(),
            drains: false,
            accepts_drop_reports: false,
            principal: None,
        };
        Ok(Some(self.ready(peer)))
    }

    fn read_traffic(&mut self, input: &mut BytesMut) -> Result<Option<Event>, Violation> {
        let mut handled = 0;
        loop {
            if let Some(event) = self.next_subscription(&mut handled)? {
                return Ok(Some(event));
            }
            if handled >= HANDLED_MAX {
                return Ok(Some(Event::Handled));
            }
            self.spans.clear();
            match (self.scanner.scan(input, &mut self.spans)?, self.spans.last()) {
                (_, Some(last)) => {
                    let messages = input.split_to(last.end).freeze();
                    self.bytes_in += messages.len() as u64;
                    if !self.options.socket_type.takes_subscriptions() {
                        return Ok(Some(Event::Messages(messages)));
                    }
                    self.subscriptions = (messages, 0);
                }
                (Stop::Incomplete, None) => return Ok(None),
                (Stop::Command { frame, body }, None) => {
                    let body = Bytes::copy_from_slice(&input[body]);
                    self.bytes_in += frame.len() as u64;
                    self.bytes_moved += frame.start as u64;
                    if self.bytes_moved > MOVES_FREE + MOVES_PER_BYTE * self.bytes_in {
                        return Err(Violation::Malformed("message: too many commands between its frames"));
                    }
                    input.copy_within(0..frame.start, frame.len());
                    input.advance(frame.len());
                    if let Some(event) = self.handle_command(Command::read(body)?)? {
                        return Ok(Some(event));
                    }
                    handled += 1;
                }
            }
        }
    }

    /// Decodes the next subscription in the messages that a PUB or XPUB socket received: a byte 0x01 or 0x00,
    /// then the prefix. It counts the messages that mean nothing, and returns `None` when these are
    /// [`HANDLED_MAX`], too.
    fn next_subscription(&mut self, handled: &mut usize) -> Result<Option<Event>, Violation> {
        let (messages, next) = &mut self.subscriptions;
        while let Some(span) = self.spans.get(*next).filter(|_| !messages.is_empty()) {
            *next += 1;
            // The prefix is copied: subscriptions are kept for long, and must not keep their whole message in
            // memory.
            let body = Bytes::copy_from_slice(span.first(messages));
            let event = match body.first() {
                Some(1) if span.frames == 1 => Event::Subscribe(body.slice(1..)),
                Some(0) if span.frames == 1 => Event::Cancel(body.slice(1..)),
                // Anything else is a message from subscriber to publisher, which xMsg does not have.
                _ if !self.options.messages_from_subscribers => {
                    *handled += 1;
                    if *handled >= HANDLED_MAX {
                        return Ok(None);
                    }
                    continue;
                }
                _ => Event::FromSubscriber(Bytes::copy_from_slice(&messages[span.start..span.end])),
            };
            return check_subscription(event, self.options.limits.subscription_len).map(Some);
        }
        self.subscriptions = (Bytes::new(), 0);
        Ok(None)
    }

    fn handle_command(&mut self, command: Command) -> Result<Option<Event>, Violation> {
        let event = match command {
            Command::Subscribe(prefix) => Event::Subscribe(prefix),
            Command::Cancel(prefix) => Event::Cancel(prefix),
            Command::Ping { ttl, context } => {
                self.peer_ttl = (!ttl.is_zero()).then_some(ttl);
                Command::Pong { context }.write(&mut self.outgoing);
                return Ok(None);
            }
            Command::Error(reason) => return Err(Violation::RefusedByPeer(reason)),
            Command::Drain if self.options.socket_type.drains() => return Ok(Some(Event::Drain)),
            Command::Drained if self.options.socket_type.drains() => return Ok(Some(Event::Drained)),
            Command::Dropped(counts) if self.options.socket_type.accepts_drop_reports() => {
                return Ok(Some(Event::Dropped(counts)));
            }
            Command::Drain
            | Command::Drained
            | Command::Dropped(_)
            | Command::Pong { .. }
            | Command::Ready(_)
            | Command::Unknown(_) => return Ok(None),
        };
        if !self.options.socket_type.takes_subscriptions() {
            return Ok(None);
        }
        check_subscription(event, self.options.limits.subscription_len).map(Some)
    }

    fn advance_mechanism(&mut self) {
        let mut ours = Properties::default();
        ours.push("Socket-Type", self.options.socket_type.name());
        if self.options.socket_type.announces_identity() {
            ours.push("Identity", self.options.identity.clone());
        }
        self.options.limits.tell(self.options.socket_type, &mut ours);
        if self.options.socket_type.drains() {
            ours.push(DRAIN_PROPERTY, "1");
        }
        if self.options.socket_type.accepts_drop_reports() {
            ours.push(DROPPED_PROPERTY, "1");
        }
        while let Some(body) = self.mechanism.poll_command(&ours) {
            encode_command(&mut self.outgoing, &body);
        }
    }

    fn check_peer(&self, version: Version, properties: Properties) -> Result<Peer, Violation> {
        let ours = self.options.socket_type;
        let name = properties.find("Socket-Type").map_or(&b""[..], |name| name);
        let Some(socket_type) = SocketType::from_name(name).filter(|theirs| ours.fits(*theirs)) else {
            let theirs = String::from_utf8_lossy(name).into_owned();
            return Err(Violation::SocketTypeMismatch { theirs, ours: ours.name() });
        };
        let identity = properties.find("Identity").cloned().unwrap_or_default();
        if identity.len() > IDENTITY_MAX {
            let (size, limit) = (identity.len() as u64, IDENTITY_MAX as u64);
            return Err(Violation::TooLarge { what: Limited::Identity, size, limit });
        }
        let limits = PeerLimits::read(&properties);
        let understands = |name| properties.find(name).is_some_and(|value| value == "1");
        let (drains, accepts_drop_reports) = (understands(DRAIN_PROPERTY), understands(DROPPED_PROPERTY));
        Ok(Peer {
            version,
            socket_type,
            identity,
            properties,
            limits,
            drains,
            accepts_drop_reports,
            principal: self.principal.clone(),
        })
    }

    fn ready(&mut self, peer: Peer) -> Event {
        self.phase = Phase::Traffic { version: peer.version };
        Event::Ready(peer)
    }
}

fn check_subscription(event: Event, limit: usize) -> Result<Event, Violation> {
    match &event {
        Event::Subscribe(prefix) | Event::Cancel(prefix) if prefix.len() > limit => {
            let (size, limit) = (prefix.len() as u64, limit as u64);
            Err(Violation::TooLarge { what: Limited::Subscription, size, limit })
        }
        _ => Ok(event),
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
