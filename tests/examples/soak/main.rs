//! Load on a real proxy with everything on, and with clients that come and go. See `tests/soak`, which starts
//! it.
//!
//! One well-behaved pair of clients publishes and receives all the time, and must lose nothing. What another
//! one publishes comes back through a real RabbitMQ, and arrives at a ZeroMQ socket, without a loss. Pages
//! are open, and recordings are made. All other clients misbehave: they come and go, are killed, do not
//! read, or subscribe and unsubscribe in large numbers. Meanwhile the memory, descriptors and threads of the
//! proxy are sampled. Growth in the second half of the run is a failure. So is anything that remains when
//! all other clients have gone.
//!
//! | file | answers |
//! |---|---|
//! | `clients.rs` | What do the clients of the proxy do? |
//! | `services.rs` | How are outgoing connections, the web page and recordings used? |

mod clients;
mod services;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xmsg_core::{Actor, Connection, ProxyAddress, RegistrarAddress};
use xmsg_tests::process::Daemon;
use xmsg_tests::rabbitmq::Broker;
use xmsg_tests::{PATIENCE, patient, within};

use clients::{innocent, killed, load, publishers, registrations, requests, slow, storms, subscribers};
use services::{Relay, pages, recordings};

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
    /// Messages that came back through RabbitMQ and arrived at a ZeroMQ socket.
    relayed: AtomicU64,
    pages: AtomicU64,
    recordings: AtomicU64,
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
    /// The address of the HTTP server.
    admin: String,
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
    let broker = Broker::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let settings = services::write_settings(folder.path());
    let mut daemon = Daemon::start(
        bin.join("xmsg-proxy"),
        &[
            "--config",
            &settings,
            "--port",
            "0",
            "--admin",
            "127.0.0.1:0",
            "--registrar",
            "0",
            "--high-water-mark",
            "16",
        ],
    );
    let proxy =
        daemon.line().await.split_whitespace().nth(3).map(|word| word.trim_end_matches(':').to_owned());
    let proxy: ProxyAddress = proxy.expect("an address").parse().expect("an address");
    let mut registrar = None;
    let admin = loop {
        let line = daemon.line().await;
        if let Some(address) = line.strip_prefix("xmsg-registrar at ") {
            registrar = Some(address.parse().expect("an address"));
        } else if let Some(address) = line.strip_prefix("HTTP at http://") {
            break address.to_owned();
        }
    };
    let registrar = registrar.expect("it has a registrar");
    let world = World { proxy, registrar, admin, counts: Arc::default(), stop: CancellationToken::new() };
    let innocent_stop = CancellationToken::new();
    let relay = Relay::new(&world, &broker, folder.path(), &bin.join("xmsg")).await;
    let relay = tokio::spawn(relay.run(world.clone(), innocent_stop.clone()));
    let innocent = tokio::spawn(innocent(world.clone(), innocent_stop.clone()));
    let has_begun = |counter: &AtomicU64| counter.load(Ordering::Relaxed) >= 1000;
    let is_over = || innocent.is_finished() || relay.is_finished();
    let (at_innocent, at_relayed) = (&world.counts.innocent, &world.counts.relayed);
    while !(is_over() || has_begun(at_innocent) && has_begun(at_relayed)) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let alone = Sample::of(daemon.pid());
    println!("alone with the innocent ones: {alone:?}");

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
    for _ in 0..3 {
        tasks.spawn(pages(world.clone()));
    }
    tasks.spawn(recordings(world.clone(), bin.join("xmsg"), folder.path().join("soak.xmr")));
    tasks.close();

    println!(
        "   time  RSS MiB    fds threads  cpu s | innocent  relayed       load pages record. publ. subs. storms slow killed registr. requests failed"
    );
    let started = Instant::now();
    let mut samples = Vec::new();
    while started.elapsed().as_secs_f64() < minutes * 60.0 && !is_over() {
        tokio::time::sleep(SAMPLING).await;
        let sample = Sample::of(daemon.pid());
        let counts = &world.counts;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        println!(
            "{:5.0} s  {:7.1} {:6} {:7} {:6.1} | {:8} {:8} {:10} {:5} {:7} {:5} {:5} {:6} {:4} {:6} {:8} {:8} {:6}",
            started.elapsed().as_secs_f64(),
            sample.rss_kib / 1024.0,
            sample.descriptors,
            sample.threads,
            sample.cpu_seconds,
            count(&counts.innocent),
            count(&counts.relayed),
            count(&counts.load),
            count(&counts.pages),
            count(&counts.recordings),
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
    match relay.await.expect("the relay does not panic") {
        Ok(count) => println!("through RabbitMQ and to ZeroMQ: {count} messages, none lost"),
        Err(what) => faults.push(format!("through RabbitMQ and to ZeroMQ: {what}")),
    }
    let counts = &world.counts;
    for (name, counter) in [
        ("load", &counts.load),
        ("pages", &counts.pages),
        ("recordings", &counts.recordings),
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
