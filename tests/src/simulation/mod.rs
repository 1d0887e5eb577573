//! Deterministic simulation: publishers, a switch and subscribers run on one thread, in virtual time, over a
//! network that treats their connections as a seed says. The same seed always gives the same run.
//!
//! Only these things may be lost:
//!
//! 1. Bytes that a client or the switch has written into a connection that is cut before they come out,
//!    because ZeroMQ has no acknowledgements. A message that was written in part counts as not written.
//! 2. What was in a switch that was killed, or in its connections.
//! 3. For a subscriber: what is published while it has no connection, and what waits for it in the switch
//!    when its connection ends.
//! 4. A message that is too large for the switch or for the subscriber. A publisher that knows the limit
//!    refuses the message, even while it waits for room. If the publisher learns the limit after it has
//!    accepted the message, it drops the message, counts it and reports it. From a switch that does not
//!    announce its limits, it learns this when a second connection ends in the middle of the same message.
//!    What it had sent behind that message is lost with the connection.
//!
//! A cancelled call has sent its message completely or not at all. The message may also have been accepted
//! and dropped because of its size, which is reported as for any other message. All other messages keep the
//! order of their calls. A refused message is never sent.
//!
//! The invariants are in `check.rs`.
//!
//! | file | answers |
//! |---|---|
//! | `net.rs` | What does the network do to each connection, and what was lost in it? |
//! | `check.rs` | What must hold after a run? |
//! | `clients.rs` | What holds when connections and actors are closed or drained? |
//! | `engines.rs` | What holds between two engines alone? |
//! | `patterns.rs` | What holds for the other ZeroMQ patterns? |
//! | `seeds.rs` | Which seeds are run, and how is one run again? |

// Longer than 500 lines: one simulation. A run is to be read from its seed to its checks.

mod check;
pub mod clients;
pub mod engines;
pub mod net;
pub mod patterns;
pub mod seeds;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xmsg_core::{ConnectionSocket, ErrorKind};
use xmsg_proxy::switch::{Side, Switch};
use xmsg_proxy::{Config, Policy, PublishersSend};
use xmsg_zmq::link::transport::Listener;
use xmsg_zmq::{
    Endpoint, HighWaterMark, Multipart, Publisher, Reason, SocketEvent, SocketEvents, SocketOptions,
    Subscriber, TcpOptions,
};
use xmsg_zmtp::{Limits, encoded_len};

use net::{Id, Line, Quality, SharedRecords, TraceEntry, some_time};

/// The limit of the virtual time of a simulation.
const BOUND: Duration = Duration::from_secs(3600);
/// The limit of the time for the last messages, once the network is good.
const LINGER: Duration = Duration::from_secs(600);
/// How many checks in a row, every 50 ms, must find the expected state before it counts as stable.
const CALM: u32 = 20;
/// The time that a switch gets to stop gracefully.
const STOP: Duration = Duration::from_secs(20);
/// The topics of messages. A subscriber keeps one of the `PREFIXES`, and subscribes to others for some time.
const TOPICS: [&str; 5] = ["a", "a:b", "a:b:c", "b", "c:d"];
const PREFIXES: [&str; 7] = ["", "a", "a:b", "a:b:c", "b", "c", "c:"];
/// The topic of the last message of every publisher.
const END: &str = "end";
/// The smallest limit of the message size, in bytes. The last message of a publisher is smaller.
const LIMIT_MIN: usize = 64;

/// Returns a message of this publisher.
fn message((publisher, number): Id, topic: &str, len: usize) -> Multipart {
    let id = [&publisher.to_be_bytes()[..], &number.to_be_bytes()].concat();
    Multipart::from([Bytes::copy_from_slice(topic.as_bytes()), id.into(), body((publisher, number), len)])
}

/// Returns data in which no other message has the same bytes at the same place.
fn body((publisher, number): Id, len: usize) -> Bytes {
    let mut rng = Rng::with_seed(u64::from(publisher) << 32 | u64::from(number));
    let mut bytes = vec![0; len];
    rng.fill(&mut bytes);
    bytes.into()
}

/// A message that was to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sent {
    topic: &'static str,
    len: usize,
    /// The size on the wire, in bytes.
    size: usize,
    call_result: CallResult,
}

/// What the socket has reported about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CallResult {
    /// The message was accepted.
    Accepted,
    /// The message was refused because there was no room. It must not be written.
    Refused,
    /// The message was refused because it is too large. It must not be written.
    TooLarge,
    /// Nothing, because the call was cancelled. The message was accepted completely, or not at all.
    Open,
}

/// How a switch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SwitchEnd {
    /// It is stopped gracefully.
    Stop,
    /// It is killed.
    Kill,
}

/// A switch that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ended {
    /// Whether it had enough time to stop gracefully.
    orderly: bool,
}

/// A message that a subscriber has received.
#[derive(Debug)]
struct Received {
    id: Id,
    topic: &'static str,
    len: usize,
}

/// The results of a simulation, which are to be checked.
#[derive(Debug)]
struct Outcome {
    /// The messages of each publisher, in the order of the calls.
    sent: Vec<Vec<Sent>>,
    received: Vec<Vec<Received>>,
    /// The prefix that each subscriber kept.
    wanted: Vec<&'static str>,
    /// The number of publishers. The clients of publishers have lower numbers than those of subscribers.
    publishers: usize,
    /// The ends of the switches, by their numbers. The last switch was stopped after everything had arrived.
    ended: Vec<Ended>,
    /// The largest message that each switch accepts, in bytes. The switch announces this limit, unless
    /// `foreign` is true.
    limits: Vec<usize>,
    foreign: bool,
    /// The largest message that each subscriber accepts, in bytes.
    takes: Vec<usize>,
    /// The topics and sizes of the messages that each publisher reported as dropped.
    dropped: Vec<Vec<(Bytes, usize)>>,
}

struct World {
    rng: Rng,
    shared_records: SharedRecords,
    name: String,
    config: Config,
    switch: Switch,
    /// The side of each client.
    sides: Vec<Side>,
    generation: usize,
    ended: Vec<Ended>,
    limits: Vec<usize>,
    foreign: bool,
}

/// Runs one seed on the current runtime, whose clock must be paused. Returns the trace, and a description of
/// the error if there was one.
pub async fn run(seed: u64) -> (Vec<TraceEntry>, Result<(), String>) {
    // The pauses between attempts to connect come from this random generator.
    fastrand::seed(seed);
    let shared_records = SharedRecords::new();
    let result = match tokio::time::timeout(BOUND, simulate(seed, shared_records.clone())).await {
        Ok(result) => result,
        Err(_) => Err(format!("it hangs: not at its end after {BOUND:?} of virtual time")),
    };
    let trace = std::mem::take(&mut shared_records.books().trace);
    (trace, result)
}

async fn simulate(seed: u64, shared_records: SharedRecords) -> Result<(), String> {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let mut rng = Rng::with_seed(seed);
    let tasks = TaskTracker::new();
    let stop = CancellationToken::new();
    // Two threads may run one seed at the same time, so the name has a number, too.
    let name = format!("simulation-{}-{seed}", RUNS.fetch_add(1, Ordering::Relaxed));
    let mut config = config(&mut rng);
    config.limits.message_size = message_limit(&mut rng);
    let (publishers, subscribers) = (rng.usize(1..4), rng.usize(1..4));
    let sides = [vec![Side::Publishers; publishers], vec![Side::Subscribers; subscribers]].concat();
    let switch = Switch::start(config.clone());
    let foreign = rng.u8(..4) == 0;
    let mut world = World {
        rng: rng.fork(),
        shared_records: shared_records.clone(),
        name,
        config,
        switch,
        sides,
        generation: 0,
        ended: Vec::new(),
        limits: Vec::new(),
        foreign,
    };
    world.listen().await;

    // One line in three is good. What happens to other clients must not harm the client of a good line.
    let tiny = rng.u8(..5) == 0;
    let line = |rng: &mut Rng, client: usize, foreign: bool| {
        let good = rng.u8(..3) == 0;
        let quality = Quality {
            refusals: if good { 0 } else { rng.u8(..40) },
            cuts: if good { 0 } else { rng.u8(..100) },
            stalls: if good { 0 } else { rng.u8(..60) },
            grain: if tiny { rng.usize(1..64) } else { 1 << rng.u32(9..17) },
            delays: if rng.bool() { 0 } else { rng.u8(..30) },
        };
        Line { client, quality, foreign, rng: rng.fork(), shared_records: shared_records.clone() }
    };
    let mut sockets = Vec::new();
    let mut dropping = Vec::new();
    for client in 0..publishers {
        let endpoint = Endpoint::Inproc(format!("{}-line-{client}", world.name));
        line(&mut rng, client, foreign).open(&endpoint, &tasks, &stop).await;
        let socket = Publisher::new(options(&mut rng));
        dropping.push(tokio::spawn(note_dropped(socket.events(), client as u64, shared_records.clone())));
        socket.connect(endpoint);
        sockets.push(socket);
    }
    let mut receiving = Vec::new();
    let (mut wanted, mut takes) = (Vec::new(), Vec::new());
    for client in publishers..publishers + subscribers {
        let endpoint = Endpoint::Inproc(format!("{}-line-{client}", world.name));
        line(&mut rng, client, false).open(&endpoint, &tasks, &stop).await;
        let prefix = *rng.choice(&PREFIXES).expect("there are some");
        wanted.push(prefix);
        let options = options(&mut rng);
        let message_size = message_limit(&mut rng);
        takes.push(message_size);
        let limits = Limits { message_size, ..Limits::default() };
        let socket = Subscriber::new(options.limits(limits));
        socket.subscribe(prefix).expect("a few short prefixes");
        socket.subscribe(END).expect("a few short prefixes");
        socket.connect(endpoint);
        receiving.push(Receiving::start(
            socket,
            prefix,
            publishers,
            client as u64,
            rng.fork(),
            shared_records.clone(),
        ));
    }
    let mut sending = Vec::new();
    for (number, socket) in sockets.iter().enumerate() {
        sending.push(tokio::spawn(send(
            number as u16,
            socket.clone(),
            rng.fork(),
            tiny,
            shared_records.clone(),
        )));
    }

    world.misfortunes().await?;
    let mut sent = Vec::new();
    for task in sending {
        sent.push(task.await.map_err(|error| format!("a publisher failed: {error}"))??);
    }
    shared_records.note("healed", 0, 0);
    shared_records.healed.cancel();
    let mut expected = 0;
    for receiving in &mut receiving {
        expected += receiving.finish().await;
    }
    world.all_connected(&sockets, subscribers, expected).await?;

    // Nothing is in the way any more. If these messages don't arrive, a subscription was lost.
    for (number, socket) in sockets.iter().enumerate() {
        let id = (number as u16, sent[number].len() as u32);
        let message = message(id, END, 8);
        let size = encoded_len(message.frames());
        socket.publish(message).await.map_err(|error| format!("the last message: {error}"))?;
        sent[number].push(Sent { topic: END, len: 8, size, call_result: CallResult::Accepted });
    }
    let mut dropped = Vec::new();
    for (socket, reporting) in sockets.into_iter().zip(dropping) {
        let unsent = socket.close(LINGER).await;
        if unsent > 0 {
            return Err(format!("a publisher could not send {unsent} messages over a good network"));
        }
        let counted = socket.dropped();
        drop(socket);
        let reported = reporting.await.map_err(|error| format!("nobody noted what was dropped: {error}"))?;
        if reported.len() as u64 != counted {
            return Err(format!("a publisher has told that it dropped {reported:?}, and counted {counted}"));
        }
        dropped.push(reported);
    }
    let mut received = Vec::new();
    for (number, receiving) in receiving.into_iter().enumerate() {
        received.push(receiving.end(number).await?);
    }
    world.all_gone().await?;
    world.stop(SwitchEnd::Stop).await?;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    let World { ended, limits, .. } = world;
    let outcome = Outcome { sent, received, wanted, publishers, ended, limits, foreign, takes, dropped };
    check::check(&outcome, &shared_records.books())
}

/// Returns a random limit of the message size, in bytes.
fn message_limit(rng: &mut Rng) -> usize {
    match rng.u8(..8) {
        0 => rng.usize(LIMIT_MIN..1000),
        1 => rng.usize(1000..9000),
        2 => rng.usize(9000..100_000),
        _ => 64 << 20,
    }
}

fn config(rng: &mut Rng) -> Config {
    let heartbeat = rng.bool().then(|| Duration::from_millis(rng.u64(200..5000)));
    Config {
        policy: Policy::BLOCK,
        high_water_mark: HighWaterMark {
            bytes: 1 << rng.u32(9..20),
            messages: if rng.bool() { usize::MAX } else { rng.usize(1..50) },
        },
        queue_ceiling: 1 << rng.u32(12..24),
        publishers_send: if rng.u8(..4) == 0 { PublishersSend::All } else { PublishersSend::Subscribed },
        handshakes: rng.usize(3..20),
        heartbeat_interval: heartbeat,
        heartbeat_timeout: Duration::from_millis(rng.u64(200..5000)),
        ..Config::default()
    }
}

fn options<S>(rng: &mut Rng) -> SocketOptions<S> {
    let heartbeat = (rng.u8(..3) == 0).then(|| Duration::from_millis(rng.u64(200..5000)));
    // With a short pipe, a connection ends in the middle of a message. With a long one, it ends behind many
    // messages.
    let send_buffer = (rng.u8(..4) == 0).then(|| 1 << rng.u32(9..16));
    SocketOptions::<ConnectionSocket>::default()
        .send_high_water_mark(HighWaterMark {
            bytes: 1 << rng.u32(8..20),
            messages: if rng.bool() { usize::MAX } else { rng.usize(1..50) },
        })
        .receive_high_water_mark(1 << rng.u32(6..20))
        .connect_timeout(Duration::from_millis(rng.u64(1000..10_000)))
        .reconnect_max(Duration::from_millis(rng.u64(100..5000)))
        .heartbeat_interval(heartbeat)
        .heartbeat_timeout(Duration::from_millis(rng.u64(200..5000)))
        .tcp(TcpOptions { send_buffer, ..TcpOptions::default() })
        .for_socket()
}

/// Returns the topics and sizes of the messages that a socket drops, until the socket is gone.
async fn note_dropped(
    mut events: SocketEvents,
    client: u64,
    shared_records: SharedRecords,
) -> Vec<(Bytes, usize)> {
    let mut dropped = Vec::new();
    while let Some(event) = events.next().await {
        if let SocketEvent::MessageDropped { topic, size, .. } = event {
            shared_records.note("dropped", client, size as u64);
            dropped.push((topic, size));
        }
    }
    dropped
}

impl World {
    async fn listen(&mut self) {
        let mut endpoints = Vec::new();
        for (client, side) in self.sides.iter().enumerate() {
            let endpoint = Endpoint::Inproc(format!("{}-switch-{}-{client}", self.name, self.generation));
            let listener = Listener::bind(&endpoint, TcpOptions::default()).await.expect("a new name");
            self.switch.listen(listener, *side);
            endpoints.push(endpoint);
        }
        self.limits.push(self.config.limits.message_size);
        self.shared_records.books().switch = Some((self.generation, self.switch.clone(), endpoints));
        self.shared_records.note("switch", self.generation as u64, 0);
    }

    /// Ends and restarts the switch several times or never.
    async fn misfortunes(&mut self) -> Result<(), String> {
        for _ in 0..[0, 0, 0, 1, 1, 2][self.rng.usize(..6)] {
            tokio::time::sleep(some_time(&mut self.rng, 2..14)).await;
            let fate = if self.rng.u8(..3) == 0 { SwitchEnd::Kill } else { SwitchEnd::Stop };
            self.stop(fate).await?;
            tokio::time::sleep(some_time(&mut self.rng, 1..14)).await;
            self.generation += 1;
            self.config.limits.message_size = message_limit(&mut self.rng);
            self.switch = Switch::start(self.config.clone());
            self.listen().await;
        }
        Ok(())
    }

    async fn stop(&mut self, fate: SwitchEnd) -> Result<(), String> {
        self.shared_records.note(
            if fate == SwitchEnd::Kill { "kill" } else { "stop" },
            self.generation as u64,
            0,
        );
        if fate == SwitchEnd::Kill {
            self.switch.abort();
            // This happens before any other task runs, so that nothing that arrives now counts as having
            // arrived in time.
            self.shared_records.books().switch = None;
            self.ended.push(Ended { orderly: false });
            return Ok(());
        }
        let since = tokio::time::Instant::now();
        let totals = self.switch.stop(STOP).await;
        let took = since.elapsed();
        self.shared_records.books().switch = None;
        self.shared_records.note("stopped", self.generation as u64, took.as_millis() as u64);
        if took > STOP + Duration::from_secs(1) {
            return Err(format!("the switch took {took:?} to stop; it had {STOP:?}"));
        }
        if totals.drops.slow().messages > 0 {
            return Err(format!("under `block`, {} messages were dropped", totals.drops.slow().messages));
        }
        let too_large = totals.violations.of(Reason::MessageTooLarge);
        if !self.foreign && too_large > 0 {
            return Err(format!(
                "{too_large} connections ended for a message that publishers know is too large"
            ));
        }
        // Publishers get 70 % of the time to disconnect gracefully.
        self.ended.push(Ended { orderly: took < STOP.mul_f64(0.7) });
        Ok(())
    }

    /// Waits until all clients are connected and have made all their subscriptions.
    async fn all_connected(
        &self,
        sockets: &[Publisher],
        subscribers: usize,
        expected: usize,
    ) -> Result<(), String> {
        let publishers = sockets.len();
        // A client that has lost a connection makes a new one within this time. Until then, the old
        // connection would be counted.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let since = tokio::time::Instant::now();
        let mut calm = 0;
        loop {
            let there = (
                self.switch.publishers().len(),
                self.switch.subscribers().len(),
                self.switch.subscriptions(),
            );
            // An old connection with bytes in it would deliver them after later messages.
            let open = self.shared_records.books().records.iter().filter(|record| record.open).count();
            // A waiting message may be one for which a switch that does not announce its limits ends the
            // connection, with everything behind the message.
            let waits = sockets.iter().any(|socket| socket.queued().messages > 0);
            let is_calm =
                there == (publishers, subscribers, expected) && open == publishers + subscribers && !waits;
            calm = if is_calm { calm + 1 } else { 0 };
            if calm == CALM {
                break;
            }
            if since.elapsed() > LINGER {
                return Err(format!(
                    "over a good network, publishers, subscribers and subscriptions are {there:?} after {LINGER:?}; expected: {:?}",
                    (publishers, subscribers, expected)
                ));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.switch.synchronize().await;
        Ok(())
    }

    /// Waits until the switch has removed all clients.
    async fn all_gone(&self) -> Result<(), String> {
        let since = tokio::time::Instant::now();
        loop {
            let switch = &self.switch;
            let left = (switch.publishers().len(), switch.subscribers().len(), switch.subscriptions());
            if left == (0, 0, 0) {
                return Ok(());
            }
            if since.elapsed() > LINGER {
                return Err(format!(
                    "publishers, subscribers, subscriptions that nobody has any more: {left:?}"
                ));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Publishes as the seed says. Returns the messages and what became of them, in the order of the calls.
async fn send(
    publisher: u16,
    socket: Publisher,
    mut rng: Rng,
    tiny: bool,
    shared_records: SharedRecords,
) -> Result<Vec<Sent>, String> {
    let mut sent = Vec::new();
    let haste = rng.u32(0..9);
    let together = rng.u8(0..4);
    let count = rng.usize(1..if tiny { 30 } else { 60 });
    while sent.len() < count {
        // The number of calls that are made before any of them is awaited. Most of the time it is one.
        let calls = if rng.u8(..8) < together { rng.usize(2..12) } else { 1 };
        let mut waiting = Vec::new();
        for _ in 0..calls {
            let topic = *rng.choice(&TOPICS).expect("there are some");
            let len = match rng.u8(..100) {
                _ if tiny => rng.usize(..40),
                ..70 => rng.usize(..100),
                70..92 => rng.usize(..3000),
                92..99 => rng.usize(8000..9000),
                _ => rng.usize(60_000..100_000),
            };
            let number = sent.len();
            let message = message((publisher, number as u32), topic, len);
            let size = encoded_len(message.frames());
            let call_result = if calls > 1 && rng.u8(..4) == 0 {
                match socket.try_publish(message) {
                    Err(error) if error.kind() == ErrorKind::Full => CallResult::Refused,
                    done => call_result(publisher, done)?,
                }
            } else {
                let mut call = Box::pin(socket.publish(message));
                match futures::poll!(&mut call) {
                    Poll::Ready(done) => call_result(publisher, done)?,
                    Poll::Pending => {
                        waiting.push((number, call));
                        CallResult::Open
                    }
                }
            };
            let what = if call_result == CallResult::TooLarge { "refused" } else { "publish" };
            shared_records.note(what, publisher.into(), number as u64);
            sent.push(Sent { topic, len, size, call_result });
        }
        if calls > 1 {
            rng.shuffle(&mut waiting);
        }
        for (number, call) in waiting {
            let patience = match rng.u8(..6) {
                0 if calls > 1 => Duration::ZERO,
                1 if calls > 1 => Duration::from_millis(rng.u64(0..200)),
                _ => BOUND,
            };
            if patience.is_zero() {
                drop(call);
            } else if let Ok(done) = tokio::time::timeout(patience, call).await {
                sent[number].call_result = call_result(publisher, done)?;
            }
            let what =
                if sent[number].call_result == CallResult::TooLarge { "refused in line" } else { "waited" };
            shared_records.note(what, publisher.into(), number as u64);
        }
        if rng.u32(..8) < haste {
            tokio::time::sleep(Duration::from_millis(rng.u64(0..1 << haste))).await;
        }
    }
    Ok(sent)
}

fn call_result(publisher: u16, done: xmsg_core::Result<()>) -> Result<CallResult, String> {
    match done {
        Ok(()) => Ok(CallResult::Accepted),
        Err(error) if error.kind() == ErrorKind::TooLarge => Ok(CallResult::TooLarge),
        Err(error) => Err(format!("publisher {publisher}: {error}")),
    }
}

/// The tasks of a running subscriber.
struct Receiving {
    task: JoinHandle<Result<Vec<Received>, String>>,
    churn: JoinHandle<usize>,
    calm: Arc<tokio::sync::Notify>,
    close: CancellationToken,
}

impl Receiving {
    fn start(
        mut socket: Subscriber,
        prefix: &'static str,
        publishers: usize,
        number: u64,
        mut rng: Rng,
        shared_records: SharedRecords,
    ) -> Self {
        let (calm, close) = (Arc::new(tokio::sync::Notify::new()), CancellationToken::new());
        let (orders, mut asked) = tokio::sync::mpsc::channel::<(bool, &'static str)>(1);
        let churn = tokio::spawn({
            let (mut rng, calm) = (rng.fork(), calm.clone());
            async move {
                let mut more = BTreeSet::new();
                let times = rng.u32(..6);
                let work = async {
                    for _ in 0..times {
                        tokio::time::sleep(some_time(&mut rng, 2..13)).await;
                        let other = *rng.choice(&PREFIXES).expect("there are some");
                        if other == prefix {
                            continue;
                        }
                        let subscribe = more.insert(other);
                        if !subscribe {
                            more.remove(other);
                        }
                        let _ = orders.send((subscribe, other)).await;
                    }
                };
                work.await;
                calm.notified().await;
                // The kept prefix, `END`, and these additional ones.
                2 + more.len()
            }
        });
        let closing = close.clone();
        let task = tokio::spawn(async move {
            let slowness = rng.u32(..8);
            let mut received = Vec::new();
            let mut ends = 0;
            let mut open = true;
            loop {
                let next = tokio::select! {
                    biased;
                    () = closing.cancelled(), if ends == publishers => break,
                    order = asked.recv(), if open => {
                        match order {
                            Some((true, prefix)) => socket.subscribe(prefix).expect("a few short prefixes"),
                            Some((false, prefix)) => socket.unsubscribe(prefix),
                            None => open = false,
                        }
                        continue;
                    }
                    next = socket.recv() => next,
                };
                let Some(message) = next else { return Err("the subscriber is closed".to_owned()) };
                let id = net::id(message.frames());
                let id = id.ok_or_else(|| format!("a message that nobody sent: {message:?}"))?;
                let (topic, data) = (&message.frames()[0], &message.frames()[2]);
                if *data != body(id, data.len()) {
                    return Err(format!("message {id:?} was altered on its way"));
                }
                let known = TOPICS.into_iter().chain([END]).find(|known| known.as_bytes() == topic);
                let topic = known.ok_or_else(|| format!("message {id:?} came with topic {topic:?}"))?;
                ends += usize::from(topic == END);
                shared_records.note("received", number << 16 | u64::from(id.0), id.1.into());
                received.push(Received { id, topic, len: data.len() });
                if rng.u32(..10) < slowness {
                    tokio::time::sleep(Duration::from_millis(rng.u64(0..1 << slowness))).await;
                }
            }
            socket.close().await;
            Ok(received)
        });
        Self { task, churn, calm, close }
    }

    /// Waits until the subscriber does not change its subscriptions any more. Returns how many it has.
    async fn finish(&mut self) -> usize {
        self.calm.notify_one();
        (&mut self.churn).await.expect("it only subscribes")
    }

    /// Waits for the last message of every publisher, and closes the subscriber.
    async fn end(mut self, number: usize) -> Result<Vec<Received>, String> {
        self.close.cancel();
        match tokio::time::timeout(LINGER, &mut self.task).await {
            Ok(result) => result.map_err(|error| format!("subscriber {number} failed: {error}"))?,
            Err(_) => Err(format!("subscriber {number} never got the last message of every publisher")),
        }
    }
}
