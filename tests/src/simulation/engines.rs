//! A simulation of two engines with a wire between them and a simulated clock, without a runtime. The wire
//! delivers bytes in pieces and late, stops for a while, or fails. On the way, a greeting may be changed to
//! look like that of an older peer.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use xmsg_zmtp::SocketType::{self, Dealer, Pair, Pub, Pull, Push, Rep, Req, Router, Sub, Xpub, Xsub};
use xmsg_zmtp::{Command, Engine, Event, Frames, Options, Version, Violation, encode_frame, encode_message};

use super::net::TraceEntry;

const PAIRS: [(SocketType, SocketType); 12] = [
    (Pub, Sub),
    (Xpub, Sub),
    (Pub, Xsub),
    (Xpub, Xsub),
    (Dealer, Router),
    (Dealer, Dealer),
    (Req, Rep),
    (Req, Router),
    (Dealer, Rep),
    (Push, Pull),
    (Pair, Pair),
    (Router, Router),
];
/// Timer calls at the same time up to which an engine does not count as spinning.
const SPINNING: u32 = 4;

macro_rules! ensure {
    ($condition:expr, $($what:tt)*) => {
        if !$condition {
            return Err(format!($($what)*));
        }
    };
}

/// Something that an application sent or received.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    Message(Vec<Bytes>),
    Subscription(bool, Bytes),
}

struct End {
    engine: Engine,
    options: Options,
    input: BytesMut,
    said: Vec<Word>,
    heard: Vec<Word>,
    version: Option<Version>,
    peer_identity: Bytes,
    born: Instant,
    last_heard: Instant,
    /// The shortest TTL that the peer has ever announced: the time without data after which this end may end
    /// the connection.
    ttl: Option<Duration>,
    ended: Option<(Instant, Violation)>,
    /// The time of the last timer call, and how often there was one at that time.
    alarm: (Option<Instant>, u32),
}

/// One direction of the connection.
#[derive(Default)]
struct Wire {
    pieces: VecDeque<(Instant, Bytes)>,
    /// Bytes that were put in so far.
    len: usize,
    /// The period in which nothing comes out.
    stall: Option<(Instant, Instant)>,
    /// The time from which on nothing comes out.
    dead: Option<Instant>,
    latency_ms: u64,
    grain: usize,
    last: Option<Instant>,
}

impl Wire {
    fn put(&mut self, mut bytes: Vec<u8>, now: Instant, lowered: Option<Version>, rng: &mut Rng) {
        // The version of a greeting is in its bytes 10 and 11.
        for (place, version, byte) in [(10_usize, Version::V2_0, 1), (11, Version::V3_0, 0)] {
            if let Some(at) = place.checked_sub(self.len)
                && lowered == Some(version)
                && let Some(found) = bytes.get_mut(at)
            {
                *found = byte;
            }
        }
        self.len += bytes.len();
        let mut rest = Bytes::from(bytes);
        while !rest.is_empty() {
            let piece = rest.split_to(rng.usize(1..=self.grain.min(rest.len())));
            let late = Duration::from_millis(rng.u64(0..=self.latency_ms));
            let mut due = (now + late).max(self.last.unwrap_or(now));
            if let Some((_, end)) = self.stall.filter(|(start, end)| *start <= due && due < *end) {
                due = end;
            }
            self.last = Some(due);
            if self.dead.is_none_or(|dead| due < dead) {
                self.pieces.push_back((due, piece));
            }
        }
    }
}

impl End {
    fn new(options: Options, now: Instant) -> Self {
        Self {
            engine: Engine::new(options.clone(), now),
            options,
            input: BytesMut::new(),
            said: Vec::new(),
            heard: Vec::new(),
            version: None,
            peer_identity: Bytes::new(),
            born: now,
            last_heard: now,
            ttl: None,
            ended: None,
            alarm: (None, 0),
        }
    }

    /// Receives bytes as a session does.
    fn receive(&mut self, bytes: &[u8], now: Instant) {
        self.input.extend_from_slice(bytes);
        self.last_heard = now;
        self.engine.handle_received(now);
        loop {
            match self.engine.poll_event(&mut self.input) {
                Ok(None) => return,
                Ok(Some(Event::Ready(peer))) => {
                    (self.version, self.peer_identity) = (Some(peer.version), peer.identity);
                }
                Ok(Some(Event::Messages(wire))) => {
                    for span in self.engine.spans() {
                        let frames = Frames::of(wire.slice(span.start..span.end)).collect();
                        self.heard.push(Word::Message(frames));
                    }
                }
                Ok(Some(Event::Subscribe(prefix))) => self.heard.push(Word::Subscription(true, prefix)),
                Ok(Some(Event::Drain | Event::Drained | Event::Dropped(_) | Event::FromSubscriber(_))) => {
                    unreachable!("nobody says so")
                }
                Ok(Some(Event::Handled)) => {}
                // The NULL mechanism has no credentials.
                Ok(Some(Event::Credentials(credentials))) => unreachable!("{credentials:?}"),
                Ok(Some(Event::Cancel(prefix))) => self.heard.push(Word::Subscription(false, prefix)),
                Err(violation) => {
                    self.ended = Some((now, violation));
                    return;
                }
            }
        }
    }

    fn ring(&mut self, now: Instant) -> Result<(), String> {
        let times = if self.alarm.0 == Some(now) { self.alarm.1 + 1 } else { 1 };
        self.alarm = (Some(now), times);
        ensure!(times <= SPINNING, "the engine wants to be called again and again");
        if let Err(violation) = self.engine.handle_timeout(now) {
            self.ended = Some((now, violation));
        }
        Ok(())
    }

    /// Sends something random. Returns its bytes, and the TTL that it announced.
    fn speak(&mut self, rng: &mut Rng) -> Option<(Vec<u8>, Option<Duration>)> {
        let version = self.version?;
        let mut out = BytesMut::new();
        let mut ttl = None;
        let commands = version > Version::V2_0;
        let some = |rng: &mut Rng, most: usize| {
            let mut bytes = vec![0; rng.usize(0..most)];
            rng.fill(&mut bytes);
            Bytes::from(bytes)
        };
        let ping = |rng: &mut Rng, ttl: &mut Option<Duration>| {
            let deciseconds = if rng.u8(..4) == 0 { rng.u64(1..300) } else { 0 };
            let time = Duration::from_millis(deciseconds * 100);
            *ttl = [*ttl, (deciseconds > 0).then_some(time)].into_iter().flatten().min();
            Command::Ping { ttl: time, context: some(rng, 17) }
        };
        match rng.u8(..10) {
            0 if commands => ping(rng, &mut ttl).write(&mut out),
            1 if commands => Command::Unknown(some(rng, 20)).write(&mut out),
            2 if commands => Command::Pong { context: some(rng, 17) }.write(&mut out),
            _ if matches!(self.options.socket_type, Sub | Xsub) => {
                let (subscribe, prefix) = (rng.bool(), some(rng, 300));
                version.write_subscription(&mut out, subscribe, &prefix);
                self.said.push(Word::Subscription(subscribe, prefix));
            }
            _ => {
                let most = if rng.u8(..40) == 0 { 20_000 } else { 300 };
                let frames: Vec<Bytes> = (0..rng.usize(1..5)).map(|_| some(rng, most)).collect();
                if commands && rng.u8(..4) == 0 {
                    // A heartbeat between the frames of a message, as libzmq sends it.
                    for (number, frame) in frames.iter().enumerate() {
                        if rng.bool() {
                            ping(rng, &mut ttl).write(&mut out);
                        }
                        encode_frame(&mut out, frame, number + 1 < frames.len());
                    }
                } else {
                    encode_message(&mut out, &frames);
                }
                self.said.push(Word::Message(frames));
            }
        }
        Some((out.to_vec(), ttl))
    }

    /// Returns the time without data after which this end must have given up, because of its own heartbeats.
    fn patience(&self) -> Option<Duration> {
        let heartbeat = self.options.heartbeat_interval.filter(|_| self.version == Some(Version::V3_1));
        heartbeat.map(|interval| interval + self.options.heartbeat_timeout)
    }
}

fn options(socket_type: SocketType, rng: &mut Rng) -> Options {
    let mut options = Options::new(socket_type);
    options.identity = Bytes::from(vec![b'i'; [0, 1, 40, 255][rng.usize(..4)]]);
    options.heartbeat_interval = rng.bool().then(|| Duration::from_millis(rng.u64(1..20_000)));
    options.heartbeat_timeout = Duration::from_millis(rng.u64(1..20_000));
    options.limits.handshake_timeout = Duration::from_millis(rng.u64(100..20_000));
    options
}

/// Runs one seed. Returns the trace, and a description of the error if there was one.
pub fn run(seed: u64) -> (Vec<TraceEntry>, Result<(), String>) {
    let mut trace = Vec::new();
    let result = simulate(seed, &mut trace);
    (trace, result)
}

fn simulate(seed: u64, trace: &mut Vec<TraceEntry>) -> Result<(), String> {
    let mut rng = Rng::with_seed(seed);
    // The start of the clock does not matter, because only differences are used.
    let start = Instant::now();
    let after = |ms: u64| start + Duration::from_millis(ms);
    let (a, b) = *rng.choice(&PAIRS).expect("there are some");
    let types = if rng.bool() { [a, b] } else { [b, a] };
    let lowered =
        *rng.choice(&[None, None, Some(Version::V3_0), Some(Version::V2_0)]).expect("there are some");
    let mut ends = types.map(|socket_type| End::new(options(socket_type, &mut rng), start));
    let horizon = rng.u64(1000..60_000);
    let mut wires = [Wire::default(), Wire::default()];
    for wire in &mut wires {
        wire.latency_ms = if rng.bool() { 0 } else { rng.u64(0..500) };
        wire.grain = 1 << rng.u32(0..16);
        if rng.u8(..4) == 0 {
            let from = rng.u64(0..horizon);
            wire.stall = Some((after(from), after(from + rng.u64(1..60_000))));
        }
        wire.dead = (rng.u8(..6) == 0).then(|| after(rng.u64(0..horizon)));
    }
    let mut words: Vec<(Instant, usize)> =
        (0..rng.usize(0..40)).map(|_| (after(rng.u64(0..horizon)), rng.usize(..2))).collect();
    words.sort_unstable();
    let mut words = VecDeque::from(words);
    // At this time, everything that was put in has come out, and every silence has been noticed.
    let end = after(horizon + 200_000);

    let mut now = start;
    while now < end {
        for (from, wire) in ends.iter_mut().zip(&mut wires) {
            while let Some(bytes) = from.engine.poll_transmit() {
                wire.put(bytes.to_vec(), now, lowered, &mut rng);
            }
        }
        let alarm = |end: &End| end.engine.poll_timeout().filter(|_| end.ended.is_none());
        let next = [
            wires[0].pieces.front().map(|(due, _)| *due),
            wires[1].pieces.front().map(|(due, _)| *due),
            words.front().map(|(due, _)| *due),
            alarm(&ends[0]),
            alarm(&ends[1]),
        ];
        let Some((what, due)) =
            next.into_iter().enumerate().filter_map(|(n, due)| Some((n, due?))).min_by_key(|(_, due)| *due)
        else {
            break;
        };
        now = now.max(due);
        let when = now - start;
        match what {
            0 | 1 => {
                let Some((_, piece)) = wires[what].pieces.pop_front() else { break };
                trace.push((when, "piece", what as u64, piece.len() as u64));
                let to = &mut ends[1 - what];
                if to.ended.is_none() {
                    to.receive(&piece, now);
                }
            }
            2 => {
                let Some((_, who)) = words.pop_front() else { break };
                if ends[who].ended.is_none()
                    && let Some((bytes, ttl)) = ends[who].speak(&mut rng)
                {
                    trace.push((when, "word", who as u64, bytes.len() as u64));
                    // The engine's own bytes go first, so that they do not come between the bytes of a word.
                    while let Some(bytes) = ends[who].engine.poll_transmit() {
                        wires[who].put(bytes.to_vec(), now, lowered, &mut rng);
                    }
                    wires[who].put(bytes, now, lowered, &mut rng);
                    let known = &mut ends[1 - who].ttl;
                    *known = [*known, ttl].into_iter().flatten().min();
                }
            }
            _ => {
                trace.push((when, "alarm", what as u64 - 3, 0));
                ends[what - 3].ring(now)?;
            }
        }
    }
    check(&ends, &wires, lowered, end)
}

fn check(ends: &[End; 2], wires: &[Wire; 2], lowered: Option<Version>, end: Instant) -> Result<(), String> {
    for (number, here) in ends.iter().enumerate() {
        let there = &ends[1 - number];
        let name = format!("end {number} ({})", here.options.socket_type);
        let expected = lowered.unwrap_or(Version::V3_1);
        if let Some(version) = here.version {
            ensure!(version == expected, "{name} found version {version:?} instead of {expected:?}");
            let announced = there.options.socket_type.announces_identity() || expected == Version::V2_0;
            let identity = if announced { &there.options.identity[..] } else { b"" };
            ensure!(here.peer_identity == identity, "{name} found the identity {:?}", here.peer_identity);
        }
        // A message to a socket that takes subscriptions is not for its application, and neither is a
        // subscription to another socket.
        let takes_subscriptions = here.options.socket_type.takes_subscriptions();
        let meant: Vec<&Word> = there
            .said
            .iter()
            .filter(|word| matches!(word, Word::Subscription(..)) == takes_subscriptions)
            .collect();
        let heard: Vec<&Word> = here.heard.iter().collect();
        ensure!(
            meant.starts_with(&heard),
            "{name} heard something else than was said, at word {}",
            heard.len()
        );
        match &here.ended {
            None => {
                ensure!(here.version.is_some(), "{name} waits for the handshake for ever");
                let silence = end - here.last_heard;
                ensure!(
                    here.patience().is_none_or(|most| silence <= most),
                    "{name} has not noticed {silence:?} of silence"
                );
                let broken = wires[1 - number].dead.is_some() || there.ended.is_some();
                ensure!(broken || heard == meant, "{name} heard {} of {} words", heard.len(), meant.len());
            }
            Some((at, Violation::HandshakeTimeout)) => {
                ensure!(here.version.is_none(), "{name} timed out in the handshake after its end");
                let took = *at - here.born;
                ensure!(
                    took == here.options.limits.handshake_timeout,
                    "{name} gave up the handshake after {took:?}"
                );
            }
            Some((at, Violation::HeartbeatTimeout)) => {
                let silence = *at - here.last_heard;
                // A later PING may have changed the TTL of an earlier one, so this is the shortest time that
                // is allowed.
                let most = [here.patience(), here.ttl].into_iter().flatten().min();
                ensure!(
                    most.is_some_and(|most| silence >= most),
                    "{name} gave up after {silence:?} of silence, {most:?} allowed"
                );
            }
            Some((_, violation)) => return Err(format!("{name}: {violation}")),
        }
    }
    Ok(())
}
