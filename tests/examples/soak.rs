//! Load on a real proxy, with clients that come and go. See `tests/soak`, which starts it.
//!
//! One well-behaved pair of clients publishes and receives all the time, and must lose nothing. All other
//! clients misbehave: they come and go, are killed, do not read, or subscribe and unsubscribe in large
//! numbers. Meanwhile the memory, descriptors and threads of the proxy are sampled. Growth in the second half
//! of the run is a failure. So is anything that remains when all other clients have gone.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xmsg_core::{
    Actor, Connection, Message, OwnerType, ProxyAddress, Query, Registrar, RegistrarAddress, Registration,
};
use xmsg_tests::process::Daemon;
use xmsg_tests::raw::Raw;
use xmsg_tests::{PATIENCE, patient, topic, within};
use xmsg_zmq::{Endpoint, SocketOptions, Subscriber};

/// The time between two samples of the proxy.
const SAMPLING: Duration = Duration::from_secs(2);
/// How much higher the median of the last quarter of the run may be than the median of the second quarter.
/// This is the noise of the allocator and the load.
const RSS_GROWTH: f64 = 1.10;
const RSS_SLACK_KIB: f64 = 8192.0;
const DESCRIPTORS_GROWTH: f64 = 1.25;
const DESCRIPTORS_SLACK: f64 = 16.0;
/// How long the proxy may take to release the resources of clients that have gone.
const FORGETTING: Duration = Duration::from_secs(60);

/// What was done so far, by kind.
#[derive(Debug, Default)]
struct Counts {
    innocent: AtomicU64,
    load: AtomicU64,
    publishers: AtomicU64,
    subscribers: AtomicU64,
    storms: AtomicU64,
    slow: AtomicU64,
    killed: AtomicU64,
    registrations: AtomicU64,
    requests: AtomicU64,
    failures: AtomicU64,
}

impl Counts {
    fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

#[derive(Clone)]
struct World {
    proxy: ProxyAddress,
    registrar: RegistrarAddress,
    counts: Arc<Counts>,
    stop: CancellationToken,
}

/// The resources of the proxy at one moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    rss_kib: f64,
    descriptors: f64,
    threads: f64,
    cpu_seconds: f64,
}

impl Sample {
    fn of(pid: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the proxy runs");
        let number = |name: &str| -> f64 {
            let line = status.lines().find(|line| line.starts_with(name)).expect("the kernel says so");
            line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
        };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the proxy runs");
        // Fields 14 and 15 of proc(5), in hundredths of a second. They follow the name, which may contain
        // spaces.
        let fields: Vec<&str> =
            stat.rsplit(')').next().map(|rest| rest.split_whitespace().collect()).unwrap_or_default();
        let ticks = |field: usize| fields[field - 3].parse::<f64>().expect("a number");
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the proxy runs").count();
        Self {
            rss_kib: number("VmRSS:"),
            descriptors: descriptors as f64,
            threads: number("Threads:"),
            cpu_seconds: (ticks(14) + ticks(15)) / 100.0,
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let minutes = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(5.0_f64).max(0.5);
    let bin =
        PathBuf::from(std::env::var_os("XMSG_BIN_DIR").expect("XMSG_BIN_DIR: start it with tests/soak"));
    let mut daemon = Daemon::start(
        bin.join("xmsg-proxy"),
        &["--port", "0", "--registrar", "0", "--high-water-mark", "16"],
    );
    let proxy =
        daemon.line().await.split_whitespace().nth(3).map(|word| word.trim_end_matches(':').to_owned());
    let proxy: ProxyAddress = proxy.expect("an address").parse().expect("an address");
    let registrar = loop {
        if let Some(address) = daemon.line().await.strip_prefix("xmsg-registrar at ") {
            break address.parse().expect("an address");
        }
    };
    let world = World { proxy, registrar, counts: Arc::default(), stop: CancellationToken::new() };
    let innocent_stop = CancellationToken::new();
    let innocent = tokio::spawn(innocent(world.clone(), innocent_stop.clone()));
    while world.counts.innocent.load(Ordering::Relaxed) < 1000 && !innocent.is_finished() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let alone = Sample::of(daemon.pid());
    println!("alone with the innocent pair: {alone:?}");

    let tasks = TaskTracker::new();
    tasks.spawn(load(world.clone()));
    for number in 0..4 {
        tasks.spawn(publishers(world.clone(), number));
        tasks.spawn(subscribers(world.clone(), number));
    }
    tasks.spawn(storms(world.clone()));
    tasks.spawn(slow(world.clone()));
    tasks.spawn(killed(world.clone(), bin.join("xmsg")));
    tasks.spawn(registrations(world.clone()));
    tasks.spawn(requests(world.clone()));
    tasks.close();

    println!(
        "   time  RSS MiB    fds threads  cpu s | innocent       load publ. subs. storms slow killed registr. requests failed"
    );
    let started = Instant::now();
    let mut samples = Vec::new();
    while started.elapsed().as_secs_f64() < minutes * 60.0 && !innocent.is_finished() {
        tokio::time::sleep(SAMPLING).await;
        let sample = Sample::of(daemon.pid());
        let counts = &world.counts;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        println!(
            "{:5.0} s  {:7.1} {:6} {:7} {:6.1} | {:8} {:10} {:5} {:5} {:6} {:4} {:6} {:8} {:8} {:6}",
            started.elapsed().as_secs_f64(),
            sample.rss_kib / 1024.0,
            sample.descriptors,
            sample.threads,
            sample.cpu_seconds,
            count(&counts.innocent),
            count(&counts.load),
            count(&counts.publishers),
            count(&counts.subscribers),
            count(&counts.storms),
            count(&counts.slow),
            count(&counts.killed),
            count(&counts.registrations),
            count(&counts.requests),
            count(&counts.failures),
        );
        samples.push(sample);
    }

    let mut faults = Vec::new();
    world.stop.cancel();
    if tokio::time::timeout(PATIENCE, tasks.wait()).await.is_err() {
        faults.push("some clients do not come to their end".to_owned());
    }
    faults.extend(grown(&samples));
    faults.extend(left_behind(daemon.pid(), alone).await);
    innocent_stop.cancel();
    match innocent.await.expect("the innocent pair does not panic") {
        Ok(count) => println!("the innocent pair: {count} messages, all received in order"),
        Err(what) => faults.push(format!("the innocent pair: {what}")),
    }
    let counts = &world.counts;
    for (name, counter) in [
        ("load", &counts.load),
        ("publishers", &counts.publishers),
        ("subscribers", &counts.subscribers),
        ("storms", &counts.storms),
        ("slow subscribers", &counts.slow),
        ("killed clients", &counts.killed),
        ("registrations", &counts.registrations),
        ("requests", &counts.requests),
    ] {
        if counter.load(Ordering::Relaxed) == 0 {
            faults.push(format!("nothing was done: {name}"));
        }
    }
    let failures = counts.failures.load(Ordering::Relaxed);
    if failures > 0 {
        faults.push(format!("{failures} steps of well-behaved clients failed"));
    }
    daemon.signal("TERM").await;
    println!("{}", daemon.line().await);
    if !daemon.end().await.success() {
        faults.push("the proxy did not end well".to_owned());
    }
    if faults.is_empty() {
        println!("soak: passed");
        return ExitCode::SUCCESS;
    }
    for fault in faults {
        println!("soak: FAILED: {fault}");
    }
    ExitCode::FAILURE
}

fn median(samples: &[Sample], of: fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(of).collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Returns what has grown from the second quarter to the last. The first quarter is for warming up.
fn grown(samples: &[Sample]) -> Vec<String> {
    type Line = (&'static str, fn(&Sample) -> f64, f64, f64);
    let lines: [Line; 3] = [
        ("RSS in KiB", |sample| sample.rss_kib, RSS_GROWTH, RSS_SLACK_KIB),
        ("descriptors", |sample| sample.descriptors, DESCRIPTORS_GROWTH, DESCRIPTORS_SLACK),
        ("threads", |sample| sample.threads, 1.0, 0.0),
    ];
    let quarter = samples.len() / 4;
    let (second, last) = (&samples[quarter..2 * quarter], &samples[samples.len() - quarter..]);
    let mut faults = Vec::new();
    for (name, of, factor, slack) in lines {
        let (before, after) = (median(second, of), median(last, of));
        println!("{name}: {before} in the second quarter, {after} in the last (medians)");
        if after > before * factor + slack {
            faults.push(format!("{name} grew from {before} to {after}"));
        }
    }
    faults
}

/// Checks that the proxy has no more descriptors than before, when all other clients have gone.
async fn left_behind(pid: u32, alone: Sample) -> Option<String> {
    let since = Instant::now();
    loop {
        let sample = Sample::of(pid);
        if sample.descriptors <= alone.descriptors {
            println!("alone again after {:?}: {sample:?}", since.elapsed());
            return None;
        }
        if since.elapsed() > FORGETTING {
            return Some(format!("alone again, the proxy still has {sample:?}; at first it was {alone:?}"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

impl World {
    fn connection(&self) -> Connection {
        Connection::with_options(self.proxy.clone(), patient()).unwrap()
    }

    fn actor(&self) -> Actor {
        let builder = Actor::builder("soak").proxy(self.proxy.clone()).options(patient());
        builder.build().expect("an actor")
    }

    /// Repeats a step until the test stops. Counts what was done, and errors.
    async fn again<F: Future<Output = xmsg_core::Result<u64>>>(
        &self,
        counter: fn(&Counts) -> &AtomicU64,
        mut step: impl FnMut() -> F,
    ) {
        while !self.stop.is_cancelled() {
            match within("a step", step()).await {
                Ok(count) => Counts::add(counter(&self.counts), count),
                Err(error) => {
                    println!("{error:?}");
                    Counts::add(&self.counts.failures, 1);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Publishes about a thousand messages per second to one subscriber. Checks that all of them are received, in
/// order.
async fn innocent(world: World, stop: CancellationToken) -> Result<u64, String> {
    let text = |error: xmsg_core::Error| error.to_string();
    let mut messages = world.connection().subscribe([topic("innocent")]).await.map_err(text)?;
    let publisher = world.connection();
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let mut number = 0_i64;
    while !stop.is_cancelled() {
        ticks.tick().await;
        for _ in 0..10 {
            let message = Message::of("innocent", number).map_err(text)?;
            publisher.publish(&message).await.map_err(text)?;
            number += 1;
        }
        for expected in number - 10..number {
            let next = tokio::time::timeout(PATIENCE, messages.next()).await;
            let message = next.map_err(|_| format!("message {expected} did not come"))?;
            let message = message.ok_or("the subscription ended")?.map_err(text)?;
            let found = message.value::<i64>().map_err(text)?;
            if found != expected {
                return Err(format!("message {found} came instead of {expected}"));
            }
        }
        Counts::add(&world.counts.innocent, 10);
    }
    Ok(number.cast_unsigned())
}

/// Publishes a steady stream. Subscribers to it come and go.
async fn load(world: World) {
    let publisher = world.connection();
    let data = vec![7; 256];
    world
        .again(
            |counts| &counts.load,
            || async {
                for number in 0..100 {
                    let message = Message::of(topic(&format!("load:{}", number % 10)), data.clone())?;
                    publisher.publish(&message).await?;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(100)
            },
        )
        .await;
    publisher.close(PATIENCE).await;
}

/// Runs publishers that connect, publish something, and leave. Every second one leaves without closing its
/// connection gracefully.
async fn publishers(world: World, number: usize) {
    let mut turn = 0;
    world
        .again(
            |counts| &counts.publishers,
            || {
                turn += 1;
                let (publisher, polite) = (world.connection(), turn % 2 == 0);
                async move {
                    publisher.connect().await?;
                    for _ in 0..100 {
                        let message = Message::of(topic(&format!("load:{number}")), vec![7_i32; 300])?;
                        publisher.publish(&message).await?;
                    }
                    if polite {
                        publisher.close(PATIENCE).await;
                    }
                    Ok(1)
                }
            },
        )
        .await;
}

/// Runs subscribers that connect, receive something, and leave.
async fn subscribers(world: World, number: usize) {
    world
        .again(
            |counts| &counts.subscribers,
            || {
                let connection = world.connection();
                async move {
                    let mut messages =
                        connection.subscribe([topic(&format!("load:{number}")), topic("load:9")]).await?;
                    for _ in 0..50 {
                        let Some(message) = messages.next().await else { break };
                        message?;
                    }
                    Ok(1)
                }
            },
        )
        .await;
}

/// Makes thousands of subscriptions at once, and removes them again.
async fn storms(world: World) {
    let endpoint = Endpoint::tcp(world.proxy.host(), world.proxy.subscribe_port());
    let mut turn = 0;
    world
        .again(
            |counts| &counts.storms,
            || {
                turn += 1;
                let socket = Subscriber::new(SocketOptions::default());
                socket.connect(endpoint.clone());
                async move {
                    socket.connected().await.unwrap();
                    for number in 0..5000 {
                        socket.subscribe(format!("storm:{turn}:{number}")).unwrap();
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    // Half of the subscriptions are removed. The others end with the connection.
                    for number in 0..2500 {
                        socket.unsubscribe(format!("storm:{turn}:{number}"));
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    socket.close().await;
                    Ok(1)
                }
            },
        )
        .await;
}

/// Runs subscribers that subscribe to the whole load and read nothing, until they are reset.
async fn slow(world: World) {
    let port = world.proxy.subscribe_port();
    world
        .again(
            |counts| &counts.slow,
            || async {
                let mut raw = Raw::handshake(port, "SUB").await;
                raw.send_message(&[b"\x01load"]).await;
                tokio::time::sleep(Duration::from_secs(3)).await;
                raw.reset();
                Ok(1)
            },
        )
        .await;
}

/// Runs clients that are killed.
async fn killed(world: World, xmsg: PathBuf) {
    let proxy = world.proxy.to_string();
    world
        .again(
            |counts| &counts.killed,
            || async {
                let daemon = Daemon::start(&xmsg, &["sub", "--proxy", &proxy, "load"]);
                let mut daemon = daemon;
                daemon.line().await;
                daemon.signal("KILL").await;
                daemon.end().await;
                Ok(1)
            },
        )
        .await;
}

/// Makes and removes registrations.
async fn registrations(world: World) {
    let mut turn = 0;
    world
        .again(
            |counts| &counts.registrations,
            || {
                turn += 1;
                let world = &world;
                async move {
                    let builder = Registrar::builder(world.registrar.clone()).registration_timeout(PATIENCE);
                    let client = builder.discovery_timeout(PATIENCE).renewal_interval(None).build()?;
                    let topic = topic(&format!("soak:{}", turn % 100));
                    for number in 0..20 {
                        let name = format!("actor{number}");
                        let registration =
                            Registration::new(OwnerType::Publisher, name, &topic, &world.proxy)
                                .with_description("soak");
                        client.register(&registration).await?;
                    }
                    let query = Query::topic(OwnerType::Publisher, &topic);
                    for registration in client.find(&query).await? {
                        client.deregister(&registration).await?;
                    }
                    client.close().await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    Ok(20)
                }
            },
        )
        .await;
}

/// Runs a service that answers requests, and clients that come and go.
async fn requests(world: World) {
    let service = world.actor();
    let handle = service
        .subscribe_with([topic("square")], 8, |request: Message| async move {
            let value: f64 = request.value()?;
            request.reply_with(value * value)
        })
        .await
        .expect("a subscription");
    world
        .again(
            |counts| &counts.requests,
            || async {
                let client = world.actor();
                for _ in 0..20 {
                    client.request(&Message::of(topic("square"), 3.0)?, PATIENCE).await?;
                }
                client.close(PATIENCE).await;
                Ok(20)
            },
        )
        .await;
    handle.close(PATIENCE).await;
    service.close(PATIENCE).await;
}
