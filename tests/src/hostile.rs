//! A scene for attack tests: a proxy in its own process, normal traffic through it, and an attacker.
//!
//! Whatever the attacker does, the traffic loses nothing, stays in order and continues. Afterwards the proxy
//! has closed every connection of the attacker, has never used more memory than a stated bound, and has not
//! filled the disk with its log.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use xmsg_core::security::Security;
use xmsg_core::{ConnectOptions, Connection, Message, ProxyAddress};

use crate::process::{Daemon, built};
use crate::{PATIENCE, next, topic, within};

/// The factor by which an attack may slow the traffic down. It must be enough for any machine, such as one
/// with two cores that runs other tests at the same time.
const SLOWER: f64 = 30.0;
/// Messages that have to arrive during an attack.
const PROOF: u64 = 500;
/// The largest number of messages on their way. It is less than what any queue drops.
const WINDOW: u64 = 5_000;
/// The most bytes that an attacker may cause in the log.
const LOG_MAX: u64 = 64 << 10;

/// A publisher and a subscriber that exchange numbered messages until they are stopped.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    received: watch::Receiver<u64>,
    /// The longest time between two messages since it was last reset, in microseconds.
    gap: Arc<AtomicU64>,
    sending: JoinHandle<u64>,
    receiving: JoinHandle<()>,
}

impl Traffic {
    async fn start(address: &ProxyAddress, security: &Security, window: u64) -> Self {
        let connection = || Connection::with_options(address.clone(), setup(security)).unwrap();
        let (publisher, subscriber) = (connection(), connection());
        let mut messages = within("the innocents", subscriber.subscribe([topic("innocent")])).await.unwrap();
        within("the innocents", publisher.connect()).await.unwrap();
        let (stop, gap) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (count, received) = watch::channel(0);
        let sending = {
            let (stop, mut received) = (stop.clone(), received.clone());
            tokio::spawn(async move {
                let mut sent = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..20 {
                        publisher
                            .publish(&Message::of(topic("innocent"), sent.cast_signed()).unwrap())
                            .await
                            .unwrap();
                        sent += 1;
                    }
                    let seen = received.wait_for(|received| received + window > sent);
                    drop(seen.await.expect("somebody receives"));
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let left = publisher.close(PATIENCE).await;
                assert!(left.is_nothing(), "{left}");
                sent
            })
        };
        let gaps = gap.clone();
        let receiving = tokio::spawn(async move {
            let mut last = Instant::now();
            for expected in 0_i64.. {
                let number: i64 = next(&mut messages).await.value().expect("a number");
                assert_eq!(number, expected, "nothing is lost, and everything in order");
                gaps.fetch_max(last.elapsed().as_micros() as u64, Ordering::Relaxed);
                last = Instant::now();
                count.send_replace(expected.cast_unsigned() + 1);
            }
        });
        Self { stop, received, gap, sending, receiving }
    }

    /// Returns how many messages have arrived.
    #[must_use]
    pub fn received(&self) -> u64 {
        *self.received.borrow()
    }

    /// Waits until `count` messages have arrived.
    pub async fn reaches(&self, count: u64) {
        let mut received = self.received.clone();
        let reached = received.wait_for(|received| *received >= count);
        drop(within("the innocents' messages", reached).await.expect("nothing is lost"));
    }

    async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let mut received = self.received.clone();
        let sent = within("the innocent publisher", self.sending).await.expect("it was not disturbed");
        let all = received.wait_for(|received| *received == sent);
        drop(within("the last message", all).await.expect("nothing is lost"));
        self.receiving.abort();
    }
}

fn setup(security: &Security) -> ConnectOptions {
    let setup = ConnectOptions::new().connection_timeout(PATIENCE).subscription_timeout(PATIENCE);
    setup.security(security.clone())
}

/// The resources that a process uses.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// The resident memory now, in MiB.
    pub resident: u64,
    /// The largest resident memory so far, in MiB.
    pub peak: u64,
    /// The number of open file descriptors.
    pub descriptors: usize,
    /// The processor time since the start of the process.
    pub processor: Duration,
}

impl Usage {
    /// Reads the usage of a process from `/proc`.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).expect("it runs");
        let status = read("status");
        let mib = |name: &str| {
            let line =
                status.lines().find(|line| line.starts_with(name)).expect("a line of /proc/PID/status");
            let kib = line.split_whitespace().nth(1).expect("a value").parse::<u64>().expect("a number");
            kib >> 10
        };
        let stat = read("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
        // Fields 14 and 15 of proc(5): ticks of 10 ms, in user mode and in kernel mode.
        let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("ticks")).sum();
        Self {
            resident: mib("VmRSS:"),
            peak: mib("VmHWM:"),
            descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count(),
            processor: Duration::from_millis(ticks * 10),
        }
    }
}

/// The log of a proxy. It is printed if the test fails.
#[derive(Debug)]
struct Log(tempfile::NamedTempFile);

impl Log {
    fn text(&self) -> String {
        std::fs::read_to_string(self.0.path()).expect("a log")
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the log of the proxy:\n{}", self.text());
        }
    }
}

/// A proxy with its registrar, and the normal traffic.
#[derive(Debug)]
pub struct Scene {
    /// The process of the proxy.
    pub daemon: Daemon,
    /// The address of the proxy.
    pub address: ProxyAddress,
    /// The port of the registrar.
    pub registrar: u16,
    /// The normal traffic.
    pub traffic: Traffic,
    log: Log,
    security: Security,
    /// The rate in messages per second without an attack. `attacked` is the lowest rate during an attack.
    calm: f64,
    attacked: Mutex<Option<f64>>,
    before: Usage,
}

impl Scene {
    /// Starts the daemon `xmsg-proxy` with a registrar.
    pub async fn daemon(arguments: &[&str]) -> Self {
        let arguments = [&["--port", "0", "--registrar", "0"], arguments].concat();
        Self::start(built("xmsg-proxy"), &arguments, Security::Null).await
    }

    /// Starts the same, with at most `window` messages of the normal traffic on their way: where so many
    /// share the memory that each has little, a subscriber may not be further behind.
    pub async fn daemon_with_window(arguments: &[&str], window: u64) -> Self {
        let arguments = [&["--port", "0", "--registrar", "0"], arguments].concat();
        Self::start_with_window(built("xmsg-proxy"), &arguments, Security::Null, window).await
    }

    /// Starts a program whose standard output starts like that of `xmsg-proxy`.
    pub async fn start(program: impl Into<PathBuf>, arguments: &[&str], security: Security) -> Self {
        Self::start_with_window(program, arguments, security, WINDOW).await
    }

    async fn start_with_window(
        program: impl Into<PathBuf>,
        arguments: &[&str],
        security: Security,
        window: u64,
    ) -> Self {
        let log = Log(tempfile::NamedTempFile::new().expect("a temporary file"));
        let stderr = Stdio::from(log.0.reopen().expect("the file is there"));
        let mut daemon = Daemon::start_logging(program.into(), arguments, stderr);
        let port = |line: String| {
            let address = line.split(" at 127.0.0.1:").nth(1).unwrap_or_else(|| panic!("{line}"));
            let digits: String = address.chars().take_while(char::is_ascii_digit).collect();
            digits.parse::<u16>().unwrap_or_else(|_| panic!("{line}"))
        };
        let address = ProxyAddress::new("127.0.0.1", port(daemon.line().await)).expect("an address");
        let registrar = port(daemon.line().await);
        let traffic = Traffic::start(&address, &security, window).await;
        traffic.reaches(200).await;
        let (from, began) = (traffic.received(), Instant::now());
        traffic.reaches(from + 4 * PROOF).await;
        let calm = (traffic.received() - from) as f64 / began.elapsed().as_secs_f64();
        let before = Usage::of(daemon.pid());
        Self { daemon, address, registrar, traffic, log, security, calm, attacked: Mutex::default(), before }
    }

    /// Returns every port with a socket type that may connect to it.
    #[must_use]
    pub fn doors(&self) -> [(u16, &'static str); 4] {
        let address = &self.address;
        [
            (address.publish_port(), "PUB"),
            (address.subscribe_port(), "SUB"),
            (address.control_port(), "DEALER"),
            (self.registrar, "REQ"),
        ]
    }

    /// Returns what the proxy uses now.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage::of(self.daemon.pid())
    }

    /// Returns another well-behaved connection.
    #[must_use]
    pub fn connection(&self) -> Connection {
        Connection::with_options(self.address.clone(), setup(&self.security)).unwrap()
    }

    /// Runs an attack to its end. Checks that the traffic continues meanwhile, at a rate that is not much
    /// lower than before.
    pub async fn under<T>(&self, attack: impl Future<Output = T>) -> T {
        self.traffic.gap.store(0, Ordering::Relaxed);
        let (from, began) = (self.traffic.received(), Instant::now());
        let result = within("the attack", attack).await;
        self.traffic.reaches(from + PROOF).await;
        let rate = (self.traffic.received() - from) as f64 / began.elapsed().as_secs_f64();
        assert!(rate * SLOWER > self.calm, "{rate:.0} messages a second, and {:.0} before", self.calm);
        let mut attacked = self.attacked.lock().expect("nobody has panicked");
        *attacked = Some(attacked.map_or(rate, |other| other.min(rate)));
        drop(attacked);
        result
    }

    /// Runs an attack again and again, with the number of the round, until this many messages have arrived.
    pub async fn under_rounds(&self, messages: u64, mut round: impl AsyncFnMut(u64)) {
        let received = self.traffic.received.clone();
        let enough = self.traffic.received() + messages;
        self.under(async {
            for number in 0.. {
                round(number).await;
                if *received.borrow() >= enough {
                    return;
                }
            }
        })
        .await;
    }

    /// Waits until the proxy has no more open descriptors than before. The attackers' connections must be
    /// closed or dropped before.
    pub async fn attackers_are_gone(&self) {
        within("the end of the attackers", async {
            while self.usage().descriptors > self.before.descriptors {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// Stops the traffic and checks memory, log and open connections. `bound` is the memory in MiB that the
    /// proxy may use in addition to what it used before, which depends on how it was built.
    pub async fn finish(self, name: &str, bound: u64) {
        self.attackers_are_gone().await;
        let gap = self.traffic.gap.load(Ordering::Relaxed) / 1000;
        self.traffic.finish().await;
        let usage = Usage::of(self.daemon.pid());
        let log = self.log.text();
        println!(
            "| {name} | {} MiB before, {} at most, {} after (bound {bound} more) | {:.0}/s, then {:.0}/s; longest pause {gap} ms | log {} bytes",
            self.before.resident,
            usage.peak,
            usage.resident,
            self.calm,
            self.attacked.lock().expect("nobody has panicked").unwrap_or_default(),
            log.len(),
        );
        let grown = usage.peak.saturating_sub(self.before.resident);
        assert!(grown <= bound, "{grown} MiB more, and the bound is {bound}");
        assert!(!log.contains("panicked"), "{log}");
        assert!(log.len() as u64 <= LOG_MAX, "{} bytes of log: {}", log.len(), &log[..2000]);
    }
}
