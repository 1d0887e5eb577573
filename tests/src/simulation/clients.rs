//! A simulation of connections and actors: a connection that publishes, an actor whose handler receives, and
//! a switch with a controller, as in a proxy. At a time that the seed chooses, the connection and the actor
//! are closed or drained. Sometimes this call is cancelled and made again.
//!
//! These invariants must hold, whatever the network does:
//!
//! 1. An accepted message was written to the network once, in order, or is counted as *unsent*.
//! 2. A written message that the network lost is counted as *unconfirmed*, or a flush has reported it. With
//!    delivery *at least once* it is written again, in order over each connection, and every flushed message
//!    has arrived.
//! 3. Every message that a handler was given or that is counted as *unhandled* has arrived from the network.
//!    No message was handled twice, unless it was written twice. A `drain` that had enough time leaves no
//!    other arrived message.
//! 4. Every call returns by its deadline, and returns the same result when it is made again.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xmsg_core::{Actor, ConnectOptions, Connection, Delivery, ErrorKind, Message, Unfinished};
use xmsg_proxy::Config;
use xmsg_proxy::control::Controller;
use xmsg_proxy::switch::{Side, Switch};
use xmsg_zmq::link::transport::Listener;
use xmsg_zmq::{Endpoint, Router, SocketOptions, TcpOptions};

use super::net::{self, Id, Line, Quality, SharedRecords, TraceEntry, some_time};
use super::{BOUND, PREFIXES, STOP, TOPICS, body, config, options};

/// The numbers of the lines: first those of the connection, then those of the actor.
const PUBLISH: usize = 0;
const CONTROL: usize = 1;
const ACTOR: usize = 2;
const RECEIVE: usize = 3;
const ACTOR_CONTROL: usize = 4;
const LINES: usize = 5;
/// How much later than its deadline a call may return, because it still closes the connection.
const LATE: Duration = Duration::from_secs(2);
/// A time that is longer than the network is bad.
const PATIENCE: Duration = Duration::from_secs(1800);

/// Runs one seed on the current runtime, whose clock must be paused. Returns the trace, and a description of
/// the error if there was one.
pub async fn run(seed: u64) -> (Vec<TraceEntry>, Result<(), String>) {
    fastrand::seed(seed);
    let shared_records = SharedRecords::new();
    let result = match tokio::time::timeout(BOUND, simulate(seed, shared_records.clone())).await {
        Ok(result) => result,
        Err(_) => Err(format!("it hangs: not at its end after {BOUND:?} of virtual time")),
    };
    let trace = std::mem::take(&mut shared_records.books().trace);
    (trace, result)
}

/// A switch, and a controller that answers control requests.
struct Proxy {
    switch: Switch,
    router: Router,
    _controller: JoinSet<()>,
}

impl Proxy {
    async fn start(name: &str, generation: usize, config: &Config, shared_records: &SharedRecords) -> Self {
        let endpoint = |what: &str| Endpoint::Inproc(format!("{name}-{what}-{generation}"));
        let listener = async |endpoint: &Endpoint| {
            Listener::bind(endpoint, TcpOptions::default()).await.expect("a new name")
        };
        let switch = Switch::start(config.clone());
        let router = Router::new(SocketOptions::default());
        let endpoints: Vec<_> = (0..LINES).map(|line| endpoint(&format!("line-{line}"))).collect();
        for (line, side) in
            [(PUBLISH, Side::Publishers), (ACTOR, Side::Publishers), (RECEIVE, Side::Subscribers)]
        {
            switch.listen(listener(&endpoints[line]).await, side);
        }
        for line in [CONTROL, ACTOR_CONTROL] {
            router.listen(listener(&endpoints[line]).await);
        }
        let mut controller = JoinSet::new();
        controller.spawn(Controller::new(switch.clone(), router.clone()).run());
        shared_records.books().switch = Some((generation, switch.clone(), endpoints));
        Self { switch, router, _controller: controller }
    }

    async fn end(self, kill: bool, shared_records: &SharedRecords) {
        if kill {
            self.switch.abort();
            shared_records.books().switch = None;
        } else {
            self.switch.stop(STOP).await;
            shared_records.books().switch = None;
        }
        self.router.close(Duration::ZERO).await;
    }
}

/// The record of what the connection did.
#[derive(Default)]
struct Published {
    accepted: Vec<Id>,
    /// Messages whose calls were cancelled. Each was accepted completely, or not at all.
    open: Vec<Id>,
    /// What the last successful flush proved: how many accepted messages, counted from the first, have
    /// arrived, and how many of these may be missing.
    flushed: (usize, u64),
    /// The number of messages that flushes have reported as possibly lost.
    doubtful: u64,
    /// Whether unconfirmed messages are sent again.
    repeats: bool,
    failed: Option<String>,
}

async fn simulate(seed: u64, shared_records: SharedRecords) -> Result<(), String> {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let mut rng = Rng::with_seed(seed);
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let name = format!("clients-{}-{seed}", RUNS.fetch_add(1, Ordering::Relaxed));
    let config = config(&mut rng);
    let mut proxy = Proxy::start(&name, 0, &config, &shared_records).await;
    let lines: Vec<_> = (0..LINES).map(|line| Endpoint::Inproc(format!("{name}-line-{line}"))).collect();
    let good = rng.u8(..3) == 0;
    for (client, endpoint) in lines.iter().enumerate() {
        let quality = Quality {
            refusals: if good { 0 } else { rng.u8(..40) },
            cuts: if good { 0 } else { rng.u8(..100) },
            stalls: if good { 0 } else { rng.u8(..60) },
            grain: 1 << rng.u32(9..17),
            delays: if rng.bool() { 0 } else { rng.u8(..30) },
        };
        let line =
            Line { client, quality, foreign: false, rng: rng.fork(), shared_records: shared_records.clone() };
        line.open(endpoint, &tasks, &stop).await;
    }
    let made = |rng: &mut Rng, lines: [usize; 3]| {
        let socket = options(rng);
        ConnectOptions::without_environment()
            .connection_timeout(PATIENCE)
            .subscription_timeout(PATIENCE)
            .before_connect(move |_, _| socket.clone())
            .endpoints(lines.map(|line| Endpoint::Inproc(format!("{name}-line-{line}"))))
    };
    let repeats = rng.u8(..3) == 0;
    let delivery = if repeats { Delivery::AtLeastOnce } else { Delivery::AtMostOnce };
    let options = made(&mut rng, [PUBLISH, RECEIVE, CONTROL]).delivery(delivery);
    let connection = Connection::with_options("127.0.0.1", options).map_err(|error| error.to_string())?;
    let options = made(&mut rng, [ACTOR, RECEIVE, ACTOR_CONTROL]);
    let actor = Actor::builder("actor").proxy("127.0.0.1").options(options).build();
    let actor = actor.map_err(|error| error.to_string())?;

    let published = Mutex::new(Published { repeats, ..Published::default() });
    let (mut of_publisher, mut of_service, mut of_world) = (rng.fork(), rng.fork(), rng.fork());
    let publishing = async {
        let (mut when, mut what) = (of_publisher.fork(), of_publisher.fork());
        let closing = async {
            tokio::time::sleep(some_time(&mut when, 2..14)).await;
            let ending = async |limit| connection.close(limit).await;
            end("the connection", &mut when, ending, &shared_records).await
        };
        tokio::join!(closing, publish(&connection, &mut what, &published, &shared_records)).0
    };
    let serving = serve(&actor, &mut of_service, &shared_records);
    let misfortunes = async {
        let mut generation = 0;
        for _ in 0..[0, 0, 0, 1, 1, 2][of_world.usize(..6)] {
            tokio::time::sleep(some_time(&mut of_world, 2..14)).await;
            let kill = of_world.u8(..3) == 0;
            shared_records.note(if kill { "kill" } else { "stop" }, generation, 0);
            proxy.end(kill, &shared_records).await;
            tokio::time::sleep(some_time(&mut of_world, 1..14)).await;
            generation += 1;
            proxy = Proxy::start(&name, generation as usize, &config, &shared_records).await;
        }
        tokio::time::sleep(some_time(&mut of_world, 2..14)).await;
        shared_records.note("healed", 0, 0);
        shared_records.healed.cancel();
        proxy
    };
    let (closed, served, proxy) = tokio::join!(publishing, serving, misfortunes);
    let (closed, served) = (closed?, served?);
    let dropped = connection.dropped();
    drop((connection, actor));
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    proxy.end(true, &shared_records).await;

    let published = published.into_inner().unwrap_or_else(PoisonError::into_inner);
    check_published(&published, closed, dropped, &shared_records)?;
    check_served(&served, repeats, &shared_records)
}

/// Ends a connection, a subscription or an actor, by one call or by several of which some are cancelled.
/// Checks that each call returns in time, and that all calls return the same result.
async fn end(
    what: &str,
    rng: &mut Rng,
    ending: impl AsyncFn(Duration) -> Unfinished,
    shared_records: &SharedRecords,
) -> Result<(Unfinished, bool), String> {
    for _ in 0..[0, 0, 1, 3][rng.usize(..4)] {
        let (limit, patience) = (some_time(rng, 1..15), some_time(rng, 0..13));
        shared_records.note("a call that is given up", limit.as_millis() as u64, patience.as_millis() as u64);
        if let Ok(left) = tokio::time::timeout(patience, ending(limit)).await {
            return again(what, rng, ending, left, false, shared_records).await;
        }
    }
    let limit = if rng.u8(..4) == 0 { PATIENCE } else { some_time(rng, 1..15) };
    shared_records.note("ending", limit.as_millis() as u64, 0);
    let since = Instant::now();
    let left = ending(limit).await;
    let took = since.elapsed();
    shared_records.note("ended", took.as_millis() as u64, 0);
    if took > limit + LATE {
        return Err(format!("{what} took {took:?} to end; it had {limit:?}"));
    }
    again(what, rng, ending, left, took < limit, shared_records).await
}

async fn again(
    what: &str,
    rng: &mut Rng,
    ending: impl AsyncFn(Duration) -> Unfinished,
    left: Unfinished,
    in_time: bool,
    shared_records: &SharedRecords,
) -> Result<(Unfinished, bool), String> {
    tokio::time::sleep(some_time(rng, 0..12)).await;
    let repeated = ending(some_time(rng, 0..12)).await;
    shared_records.note("told again", repeated.unsent, repeated.unconfirmed);
    if repeated != left {
        return Err(format!("{what} left {left:?}, and the next call told {repeated:?}"));
    }
    Ok((left, in_time))
}

fn message(number: u32, rng: &mut Rng) -> (Id, Message) {
    let id = (0_u16, number);
    let topic = *rng.choice(&TOPICS).expect("there are some");
    let meta = [&id.0.to_be_bytes()[..], &id.1.to_be_bytes()].concat();
    let len = if rng.u8(..10) == 0 { rng.usize(..9000) } else { rng.usize(..200) };
    (id, Message::from_frames(Bytes::from_static(topic.as_bytes()), meta.into(), body(id, len)))
}

/// Publishes until the connection is closed or enough messages are published. Some calls are cancelled, and
/// sometimes there is a flush.
async fn publish(
    connection: &Connection,
    rng: &mut Rng,
    published: &Mutex<Published>,
    shared_records: &SharedRecords,
) {
    let books = || published.lock().unwrap_or_else(PoisonError::into_inner);
    let haste = rng.u32(0..9);
    for number in 0..rng.u32(1..60) {
        let (id, message) = message(number, rng);
        let patience = if rng.u8(..4) == 0 { some_time(rng, 0..8) } else { PATIENCE };
        match tokio::time::timeout(patience, connection.publish(&message)).await {
            Err(_) => books().open.push(id),
            Ok(Ok(())) => {
                books().accepted.push(id);
                shared_records.note("accepted message", 0, number.into());
            }
            Ok(Err(error)) if error.kind() == ErrorKind::Closed => return,
            Ok(Err(error)) => return books().failed = Some(format!("publish: {error}")),
        }
        if rng.u8(..12) == 0 {
            let count = books().accepted.len();
            let flushed = connection.flush(some_time(rng, 1..13)).await;
            let mut books = books();
            match flushed {
                Ok(()) => books.flushed = (count, books.doubtful),
                Err(error) if error.kind() == ErrorKind::Unconfirmed && !books.repeats => {
                    let text = error.to_string();
                    let number = text.split_whitespace().find_map(|word| word.parse::<u64>().ok());
                    let Some(number) = number else { return books.failed = Some(text) };
                    books.doubtful += number;
                    books.flushed = (count, books.doubtful);
                }
                // The proxy is slow or not running.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::Timeout | ErrorKind::Refused | ErrorKind::NotConnected
                    ) => {}
                Err(error) if error.kind() == ErrorKind::Closed => return,
                Err(error) => return books.failed = Some(format!("flush: {error}")),
            }
            let (flushed, doubtful) = books.flushed;
            let came = out(shared_records, PUBLISH);
            if books.repeats
                && connection.dropped() == 0
                && let Some(lost) = books.accepted[..flushed].iter().find(|id| !came.contains(id))
            {
                return books.failed = Some(format!("{lost:?} was flushed and has not come out"));
            }
            let out = came.len() as u64;
            if out + doubtful < flushed as u64 {
                return books.failed = Some(format!(
                    "of {flushed} messages that were flushed, {out} came out, and {doubtful} were reported"
                ));
            }
        }
        if rng.u32(..8) < haste {
            tokio::time::sleep(Duration::from_millis(rng.u64(0..1 << haste))).await;
        }
    }
}

/// Returns the messages that came out of this line, in order.
fn out(shared_records: &SharedRecords, line: usize) -> Vec<Id> {
    let books = shared_records.books();
    let records = books.records.iter().filter(|record| record.client == line);
    let seen = records.flat_map(|record| if line == RECEIVE { record.down.out() } else { record.up.out() });
    seen.filter_map(|seen| seen.id).collect()
}

/// Returns the messages that were written into the connection's line, in order.
fn written(shared_records: &SharedRecords) -> Vec<Id> {
    let books = shared_records.books();
    let records = books.records.iter().filter(|record| record.client == PUBLISH);
    records.flat_map(|record| &record.up.taken).filter_map(|seen| seen.id).collect()
}

/// Returns the written messages without repetitions. Checks that the messages of each connection are in
/// order.
fn once(shared_records: &SharedRecords, written: Vec<Id>) -> Result<Vec<Id>, String> {
    for record in shared_records.books().records.iter().filter(|record| record.client == PUBLISH) {
        let ids: Vec<_> = record.up.taken.iter().filter_map(|seen| seen.id).collect();
        if !ids.is_sorted_by(|a, b| a < b) {
            return Err(format!("not in order over one connection: {ids:?}"));
        }
    }
    let mut seen = BTreeSet::new();
    Ok(written.into_iter().filter(|id| seen.insert(*id)).collect())
}

fn check_published(
    published: &Published,
    (left, _): (Unfinished, bool),
    dropped: u64,
    shared_records: &SharedRecords,
) -> Result<(), String> {
    if let Some(failed) = &published.failed {
        return Err(failed.clone());
    }
    let (Published { accepted, open, repeats, .. }, mut written) = (published, written(shared_records));
    if *repeats {
        written = once(shared_records, written)?;
    }
    let what = || {
        format!("accepted: {accepted:?}, perhaps {open:?}; {left:?}, {dropped} dropped; written: {written:?}")
    };
    let is_known = |id: &Id| accepted.contains(id) || open.contains(id);
    if !written.is_sorted_by(|a, b| a < b) || !written.iter().all(is_known) {
        return Err(format!("not what was accepted, or not in order: {}", what()));
    }
    let lost: Vec<_> = accepted.iter().filter(|id| !written.contains(id)).collect();
    if dropped == 0 && lost.first().is_some_and(|first| written.last().is_some_and(|last| *first < last)) {
        return Err(format!("left out: {}", what()));
    }
    if lost.len() as u64 > left.unsent + dropped {
        return Err(format!("{} lost in silence: {}", lost.len(), what()));
    }
    let again = if *repeats { written.len() } else { 0 };
    let possible = again + lost.len() + open.iter().filter(|id| !written.contains(id)).count();
    if left.unsent > possible as u64 {
        return Err(format!("more unsent than there can be: {}", what()));
    }
    let out = if *repeats {
        // A message that is to be sent again is counted as unsent.
        out(shared_records, PUBLISH).into_iter().collect::<BTreeSet<_>>().len() as u64 + left.unsent
    } else {
        out(shared_records, PUBLISH).len() as u64
    };
    if out + left.unconfirmed < written.len() as u64 {
        return Err(format!("{out} came out: {}", what()));
    }
    Ok(())
}

/// The record of what the actor did.
struct Served {
    /// What was left, or `None` if the actor ended before it had subscribed.
    left: Option<Unfinished>,
    handled: Vec<Id>,
    /// Whether all arrived messages should have been handled, because there was enough time for it.
    all: bool,
}

/// Subscribes with a handler, and ends the subscription.
async fn serve(actor: &Actor, rng: &mut Rng, shared_records: &SharedRecords) -> Result<Served, String> {
    let ids = Arc::new(Mutex::new(Vec::new()));
    let concurrency = if rng.bool() { 1 } else { rng.usize(2..6) };
    let slowness = rng.u32(..8);
    let turns = Arc::new(AtomicU64::new(rng.u64(..)));
    let handler = {
        let ids = ids.clone();
        move |message: Message| {
            let (ids, turn) = (ids.clone(), turns.fetch_add(1, Ordering::Relaxed));
            async move {
                let mut rng = Rng::with_seed(turn);
                if rng.u32(..10) < slowness {
                    tokio::time::sleep(Duration::from_millis(rng.u64(0..1 << slowness))).await;
                }
                let id = net::id(&message.into_frames());
                ids.lock().unwrap_or_else(PoisonError::into_inner).push(id);
            }
        }
    };
    let prefix = *rng.choice(&PREFIXES[1..]).expect("there are some");
    let mut when = rng.fork();
    let whole = when.bool();
    let drains = when.bool();
    let ending = async {
        tokio::time::sleep(some_time(&mut when, 2..14)).await;
    };
    let subscribing = actor.subscribe_with(prefix, concurrency, handler);
    let handle = tokio::select! {
        biased;
        handle = async {
            let handle = subscribing.await;
            ending.await;
            handle
        } => Some(handle.map_err(|error| format!("the subscription: {error}"))?),
        () = tokio::time::sleep(PATIENCE) => None,
    };
    let (left, in_time) = match &handle {
        Some(handle) if !whole => {
            let ended = end(
                "the subscription",
                &mut when,
                async |limit| if drains { handle.drain(limit).await } else { handle.close(limit).await },
                shared_records,
            );
            let ended = ended.await?;
            actor.close(LATE).await;
            ended
        }
        _ => {
            let ending =
                async |limit| if drains { actor.drain(limit).await } else { actor.close(limit).await };
            end("the actor", &mut when, ending, shared_records).await?
        }
    };
    let ids = ids.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let ids: Option<Vec<Id>> = ids.into_iter().collect();
    let ids = ids.ok_or("a handler was given a message that nobody sent")?;
    Ok(Served { left: handle.is_some().then_some(left), handled: ids, all: drains && in_time })
}

fn check_served(served: &Served, repeats: bool, shared_records: &SharedRecords) -> Result<(), String> {
    let Some(left) = served.left else { return Ok(()) };
    let (came, handled) = (out(shared_records, RECEIVE), &served.handled);
    let mut ids: Vec<_> = handled.clone();
    ids.sort_unstable();
    ids.dedup();
    if ids.len() != handled.len() && !repeats {
        return Err(format!("a message was handled twice: {handled:?}"));
    }
    if let Some(foreign) = handled.iter().find(|id| !came.contains(id)) {
        return Err(format!("{foreign:?} was handled, and never came"));
    }
    let known = handled.len() as u64 + left.unhandled;
    if known > came.len() as u64 {
        return Err(format!("{} messages came; {} were handled, and {left:?}", came.len(), handled.len()));
    }
    if served.all && known < came.len() as u64 {
        return Err(format!(
            "it was drained: {} messages came, {} were handled, and {left:?}",
            came.len(),
            handled.len()
        ));
    }
    Ok(())
}
