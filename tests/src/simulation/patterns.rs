//! A simulation of the ZeroMQ patterns within one process: pipeline, queue, pair, fan-out and routing. Queues
//! and pipes hold only a few messages, messages have one to four frames, some peers are slow, and where the
//! pattern allows it, peers leave and others come.
//!
//! These invariants must hold:
//!
//! 1. A message arrives completely, unchanged, and once.
//! 2. Messages from one peer to another arrive in their order.
//! 3. Nothing is lost, except what a leaving peer had been given, and what a counter reports.
//! 4. No call waits for ever, whatever is full.
//! 5. Every connected peer gets a share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use tokio::task::JoinSet;
use tokio::time::Instant;
use xmsg_core::ConnectionSocket;
use xmsg_zmq::{
    Dealer, Device, Endpoint, ErrorKind, HighWaterMark, Multipart, Overflow, Pair, Publisher, Pull, Push,
    Replier, Requester, Router, SocketOptions, Subscriber, TcpOptions,
};

use super::net::TraceEntry;

/// The limit of the virtual time. Every seed needs far less.
const BOUND: Duration = Duration::from_secs(3600);
/// A time that is longer than any step takes.
const PATIENCE: Duration = Duration::from_secs(600);

type Outcome = Result<(), String>;

/// Runs one seed on the current runtime, whose clock must be paused. Returns the trace, and a description of
/// the error if there was one.
pub async fn run(seed: u64) -> (Vec<TraceEntry>, Outcome) {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    fastrand::seed(seed);
    let name = format!("patterns-{}-{seed}", RUNS.fetch_add(1, Ordering::Relaxed));
    let world = Arc::new(World { name, start: Instant::now(), trace: Mutex::default() });
    let mut rng = Rng::with_seed(seed);
    let pattern = rng.u8(..5);
    let simulation = async {
        match pattern {
            0 => pipeline(rng, &world).await,
            1 => queue(rng, &world).await,
            2 => pair(rng, &world).await,
            3 => fan_out(rng, &world).await,
            _ => routing(rng, &world).await,
        }
    };
    let result = match tokio::time::timeout(BOUND, simulation).await {
        Ok(result) => result,
        Err(_) => Err(format!("pattern {pattern} hangs: not at its end after {BOUND:?} of virtual time")),
    };
    let trace = std::mem::take(&mut *world.trace.lock().unwrap_or_else(PoisonError::into_inner));
    (trace, result)
}

struct World {
    name: String,
    start: Instant,
    trace: Mutex<Vec<TraceEntry>>,
}

impl World {
    fn endpoint(&self, what: &str) -> Endpoint {
        Endpoint::Inproc(format!("{}-{what}", self.name))
    }

    fn note(&self, what: &'static str, a: u64, b: u64) {
        let now = self.start.elapsed();
        self.trace.lock().unwrap_or_else(PoisonError::into_inner).push((now, what, a, b));
    }
}

/// Returns options for sockets that hold a few messages, with pipes that hold less than one message or many.
fn options<S>(rng: &mut Rng) -> SocketOptions<S> {
    let messages = rng.usize(1..8);
    SocketOptions::<ConnectionSocket>::default()
        .send_high_water_mark(HighWaterMark { messages, bytes: usize::MAX })
        .receive_high_water_mark(rng.usize(1..4_000))
        .reconnect_min(Duration::from_millis(rng.u64(1..50)))
        .tcp(TcpOptions { send_buffer: Some(rng.usize(16..8_000)), ..TcpOptions::default() })
        .for_socket()
}

/// Returns a message that contains its sender and its number. Both determine the rest of its content.
fn message(sender: u64, number: u64) -> Multipart {
    let mut rng = Rng::with_seed(sender << 32 | number);
    let head = [sender.to_be_bytes(), number.to_be_bytes()].concat();
    let rest = (0..rng.usize(..4)).map(|_| Bytes::from(vec![number as u8; rng.usize(..600)]));
    std::iter::once(Bytes::from(head)).chain(rest).collect()
}

/// Returns the sender and the number of a message, or an error if it was altered.
fn read(found: &Multipart) -> Result<(u64, u64), String> {
    let head = found.frames().first().filter(|head| head.len() == 16).ok_or("a message without its head")?;
    let word = |at: usize| u64::from_be_bytes(std::array::from_fn(|index| head[at + index]));
    let (sender, number) = (word(0), word(8));
    if *found == message(sender, number) {
        Ok((sender, number))
    } else {
        Err(format!("message {number} of {sender} is not as it was sent"))
    }
}

async fn some_time(rng: &mut Rng, most: u64) {
    // Most steps take no time.
    if rng.u8(..4) == 0 {
        tokio::time::sleep(Duration::from_micros(rng.u64(..=most))).await;
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Returns the results of all tasks, or the first error.
async fn all<T: 'static>(mut tasks: JoinSet<Result<T, String>>) -> Result<Vec<T>, String> {
    let mut results = Vec::new();
    while let Some(result) = tasks.join_next().await {
        results.push(result.map_err(text)??);
    }
    Ok(results)
}

/// Ventilators and workers. Some workers leave in the middle of their work.
async fn pipeline(mut rng: Rng, world: &Arc<World>) -> Outcome {
    let (ventilators, count) = (rng.u64(1..3), rng.u64(20..150));
    let pushes: Vec<_> = (0..ventilators).map(|_| Push::new(options(&mut rng))).collect();
    let endpoints: Vec<_> =
        (0..ventilators).map(|number| world.endpoint(&format!("push-{number}"))).collect();
    for (push, endpoint) in pushes.iter().zip(&endpoints) {
        push.bind(endpoint).await.map_err(text)?;
    }
    let mut workers: JoinSet<Result<Vec<(u64, u64)>, String>> = JoinSet::new();
    let (stayers, leavers) = (rng.usize(1..4), rng.usize(..3));
    let done = tokio_util::sync::CancellationToken::new();
    for worker in 0..stayers + leavers {
        let pull = Pull::new(options(&mut rng));
        for endpoint in &endpoints {
            pull.connect(endpoint.clone());
        }
        let most = (worker >= stayers).then(|| rng.usize(..60));
        let (mut rng, done, world) = (Rng::with_seed(rng.u64(..)), done.clone(), world.clone());
        workers.spawn(async move {
            let mut got = Vec::new();
            while most.is_none_or(|most| got.len() < most) {
                let next = tokio::select! {
                    biased;
                    next = pull.recv() => next,
                    () = done.cancelled() => None,
                };
                let Some(found) = next else { break };
                let found = read(&found)?;
                world.note("work", worker as u64, found.1);
                got.push(found);
                some_time(&mut rng, 5_000).await;
            }
            Ok(got)
        });
    }
    let mut senders = JoinSet::new();
    for (sender, push) in pushes.iter().cloned().enumerate() {
        let mut rng = Rng::with_seed(rng.u64(..));
        senders.spawn(async move {
            for number in 0..count {
                push.send(message(sender as u64, number)).await.map_err(text)?;
                some_time(&mut rng, 3_000).await;
            }
            match push.close(PATIENCE).await {
                0 => Ok(()),
                left => Err(format!("{left} messages were not sent, although somebody was there")),
            }
        });
    }
    all(senders).await?;
    // This is enough time for all messages on their way to arrive.
    tokio::time::sleep(Duration::from_secs(60)).await;
    done.cancel();
    let got = all(workers).await?;
    let mut seen = BTreeSet::new();
    for found in got.iter().flatten() {
        if !seen.insert(*found) {
            return Err(format!("message {} of {} came twice", found.1, found.0));
        }
    }
    if leavers > 0 {
        return Ok(());
    }
    if seen.len() as u64 != ventilators * count {
        return Err(format!("{} of {} messages arrived", seen.len(), ventilators * count));
    }
    for work in got {
        for ventilator in 0..ventilators {
            let numbers: Vec<_> =
                work.iter().filter(|found| found.0 == ventilator).map(|found| found.1).collect();
            if !numbers.is_sorted() {
                return Err(format!("a worker got messages of {ventilator} in another order: {numbers:?}"));
            }
        }
    }
    Ok(())
}

/// Clients, a device between ROUTER and DEALER, and workers. Some workers may leave, and take requests with
/// them.
async fn queue(mut rng: Rng, world: &Arc<World>) -> Outcome {
    let (frontend, backend) = (Router::new(options(&mut rng)), Dealer::new(options(&mut rng)));
    let (front, back) = (world.endpoint("front"), world.endpoint("back"));
    frontend.bind(&front).await.map_err(text)?;
    backend.bind(&back).await.map_err(text)?;
    let device = Device::start(&frontend, &backend);
    let leaves = rng.bool();
    let mut workers = JoinSet::new();
    for worker in 0..rng.usize(1..4) {
        let replier = Replier::new(options(&mut rng));
        replier.connect(back.clone());
        let mut left = (worker > 0 && leaves).then(|| rng.usize(..10));
        let mut rng = Rng::with_seed(rng.u64(..));
        workers.spawn(async move {
            while let Some((path, request)) = replier.recv().await {
                if let Some(left) = &mut left {
                    if *left == 0 {
                        return;
                    }
                    *left -= 1;
                }
                some_time(&mut rng, 20_000).await;
                // The device reads again soon. A device that is gone is no error.
                while replier
                    .try_reply(&path, request.clone())
                    .is_err_and(|error| error.kind() == ErrorKind::Full)
                {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
    }
    let mut clients = JoinSet::new();
    for client in 0..rng.u64(1..5) {
        let requester = Requester::connecting_to(front.clone(), options(&mut rng));
        let (mut rng, world) = (Rng::with_seed(rng.u64(..)), world.clone());
        let count = rng.u64(5..30);
        clients.spawn(async move {
            let mut lost = 0;
            for number in 0..count {
                match requester.request(message(client, number), Duration::from_secs(20)).await {
                    Ok(reply) => {
                        let found = read(&reply)?;
                        if found != (client, number) {
                            return Err(format!("{client} asked {number} and got the reply to {found:?}"));
                        }
                        world.note("reply", client, number);
                    }
                    Err(error) if error.kind() == ErrorKind::Timeout => lost += 1,
                    Err(error) => return Err(text(error)),
                }
                some_time(&mut rng, 10_000).await;
            }
            Ok(lost)
        });
    }
    let lost: u64 = all(clients).await?.into_iter().sum();
    drop(device);
    // A worker that leaves loses the request that it was handling, and those that were on their way to it.
    match lost {
        1.. if !leaves => Err(format!("{lost} requests had no reply")),
        _ => Ok(()),
    }
}

/// Two peers that send to each other at the same time.
async fn pair(mut rng: Rng, world: &Arc<World>) -> Outcome {
    let (one, other) = (Pair::new(options(&mut rng)), Pair::new(options(&mut rng)));
    let endpoint = world.endpoint("pair");
    one.bind(&endpoint).await.map_err(text)?;
    other.connect(endpoint);
    let mut tasks = JoinSet::new();
    let counts = [rng.u64(..200), rng.u64(..200)];
    for (side, (mine, theirs)) in [(one.clone(), other.clone()), (other, one)].into_iter().enumerate() {
        let (mut to_send, mut to_receive) = (Rng::with_seed(rng.u64(..)), Rng::with_seed(rng.u64(..)));
        let (count, world) = (counts[side], world.clone());
        tasks.spawn(async move {
            for number in 0..count {
                mine.send(message(side as u64, number)).await.map_err(text)?;
                some_time(&mut to_send, 3_000).await;
            }
            Ok(())
        });
        tasks.spawn(async move {
            for number in 0..count {
                let found = read(&theirs.recv().await.ok_or("the socket is closed")?)?;
                if found != (side as u64, number) {
                    return Err(format!("{found:?} came instead of {number} of {side}"));
                }
                world.note("pair", side as u64, number);
                some_time(&mut to_receive, 3_000).await;
            }
            Ok(())
        });
    }
    all(tasks).await.map(drop)
}

/// A bound publisher and its subscribers. The publisher waits for slow subscribers, or drops messages for
/// them and counts these.
async fn fan_out(mut rng: Rng, world: &Arc<World>) -> Outcome {
    let overflow = [Overflow::Wait, Overflow::DropNewest, Overflow::DropOldest][rng.usize(..3)];
    let publisher = Publisher::new(options(&mut rng).overflow(overflow));
    let endpoint = world.endpoint("pub");
    publisher.bind(&endpoint).await.map_err(text)?;
    let (count, subscribers) = (rng.u64(10..150), rng.usize(1..5));
    let mut tasks = JoinSet::new();
    for subscriber in 0..subscribers {
        let mut socket = Subscriber::new(options(&mut rng));
        socket.subscribe("").map_err(text)?;
        socket.connect(endpoint.clone());
        let (mut rng, world) = (Rng::with_seed(rng.u64(..)), world.clone());
        let slow = rng.u64(1..20_000);
        tasks.spawn(async move {
            let mut got = Vec::new();
            loop {
                let next = tokio::time::timeout(Duration::from_secs(120), socket.recv()).await;
                let Ok(Some(found)) = next else { return Ok(got) };
                let (_, number) = read(&found)?;
                world.note("seen", subscriber as u64, number);
                got.push(number);
                some_time(&mut rng, slow).await;
            }
        });
    }
    while publisher.peers() < subscribers {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The subscriptions arrive shortly after the connections.
    tokio::time::sleep(Duration::from_millis(10)).await;
    for number in 0..count {
        publisher.publish(message(0, number)).await.map_err(text)?;
        some_time(&mut rng, 2_000).await;
    }
    match publisher.close(PATIENCE).await {
        0 => {}
        left => return Err(format!("{left} messages were not sent")),
    }
    let dropped = publisher.dropped();
    let got = all(tasks).await?;
    let arrived = got.iter().map(|got| got.len() as u64).sum::<u64>();
    if let Some(got) = got.iter().find(|got| !got.is_sorted_by(|a, b| a < b)) {
        return Err(format!("out of order, or twice: {got:?}"));
    }
    if arrived + dropped != count * subscribers as u64 {
        return Err(format!("{arrived} arrived, {dropped} dropped, of {count} to {subscribers} subscribers"));
    }
    if overflow == Overflow::Wait && dropped > 0 {
        return Err(format!("{dropped} were dropped although it waits"));
    }
    Ok(())
}

/// A ROUTER that answers DEALERs by their identities.
async fn routing(mut rng: Rng, world: &Arc<World>) -> Outcome {
    let router = Router::new(options(&mut rng));
    let endpoint = world.endpoint("router");
    router.bind(&endpoint).await.map_err(text)?;
    let mut tasks: JoinSet<Outcome> = JoinSet::new();
    let (count, peers) = (rng.u64(5..60), rng.u64(1..5));
    for peer in 0..peers {
        let identity = if rng.bool() { Bytes::from(format!("peer-{peer}")) } else { Bytes::new() };
        let dealer = Dealer::new(options(&mut rng).identity(identity));
        dealer.connect(endpoint.clone());
        let sender = dealer.clone();
        let (mut to_send, mut to_receive) = (Rng::with_seed(rng.u64(..)), Rng::with_seed(rng.u64(..)));
        tasks.spawn(async move {
            for number in 0..count {
                sender.send(message(peer, number)).await.map_err(text)?;
                some_time(&mut to_send, 3_000).await;
            }
            Ok(())
        });
        tasks.spawn(async move {
            for number in 0..count {
                let found = read(&dealer.recv().await.ok_or("the socket is closed")?)?;
                if found != (peer, number) {
                    return Err(format!("peer {peer} got {found:?} instead of its message {number}"));
                }
                some_time(&mut to_receive, 3_000).await;
            }
            Ok(())
        });
    }
    let mut seen: BTreeMap<Bytes, u64> = BTreeMap::new();
    for turn in 0..peers * count {
        let (identity, found) = router.recv().await.ok_or("the socket is closed")?;
        let (peer, number) = read(&found)?;
        world.note("routed", peer, number);
        let expected = seen.entry(identity.clone()).or_default();
        if number != *expected {
            return Err(format!("peer {peer}: {number} came instead of {expected}"));
        }
        *expected += 1;
        router.send(&identity, found).await.map_err(text)?;
        // Every peer gets a share: near the end, all peers must have been heard.
        if turn > peers * count * 9 / 10 && (seen.len() as u64) < peers {
            return Err(format!("only {} of {peers} peers were heard", seen.len()));
        }
        some_time(&mut rng, 1_000).await;
    }
    all(tasks).await.map(drop)
}
