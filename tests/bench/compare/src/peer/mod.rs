//! The processes of one stack: publishers, subscribers, and the proxy between them.
//!
//! A stack defines how its clients connect, send and receive ([`Stack`]). Everything else is here, and the
//! same for all stacks. All publishers of a case are in one process, and all subscribers in another. Each
//! client has its own connection.
//!
//! The process gets commands as lines on stdin, and answers with lines on stdout:
//!
//! | line | to | answer |
//! |---|---|---|
//! | | all | `ready`: connected, or listening |
//! | `probe` | publishers | none: they send a probe every 10 ms |
//! | `go` | publishers | `published N T`, at the end: measured messages, and when the first was sent |
//! | `status` | subscribers | `status P N`: pairs of clients with a received probe, and measured messages |
//! | `stop`, or the end of input | all | `result {…}` from subscribers, and the process ends |

mod nats;
mod omq;
pub mod patterns;
mod publish;
mod raw;
mod subscribe;
mod xmsg;
mod zenoh;
mod zeromq;

use std::future::Future;
use std::io::BufRead;
use std::sync::Arc;
use std::thread;

use anyhow::{Result, bail};
use bytes::Bytes;
use clap::{Subcommand, ValueEnum};
use nix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::plan::{Header, Plan};

/// A way to publish and subscribe: what differs between stacks.
trait Stack: 'static {
    type Publisher: Publisher;
    type Subscriber: Subscriber;
    /// The runtime on which the clients deliver most. It was measured: see the README.
    const THREADS: Threads;
    /// The runtime on which the proxy delivers most.
    const PROXY_THREADS: Threads = Threads::One;

    /// Connects a publisher.
    fn publisher(plan: &Plan) -> impl Future<Output = Result<Self::Publisher>> + Send;
    /// Connects subscriber number `index`, and subscribes.
    fn subscriber(plan: &Plan, index: usize) -> impl Future<Output = Result<Self::Subscriber>> + Send;
    /// Runs a proxy, and calls `listening` when it accepts connections. Stacks with their own server have no
    /// proxy here.
    fn proxy(port: u16, listening: impl FnOnce()) -> impl Future<Output = Result<()>> {
        let _ = (port, listening);
        async { bail!("this stack has a server of its own") }
    }
}

trait Publisher: Send + 'static {
    /// Sends one message. Returns when the client has accepted it.
    fn send(&mut self, topic: usize, draft: &Draft<'_>) -> impl Future<Output = Result<()>> + Send;
}

trait Subscriber: Send + 'static {
    /// Receives the next message, and returns the length and the header of its payload.
    fn receive(&mut self) -> impl Future<Output = Result<(usize, Header)>> + Send;
}

/// A payload that is not yet in memory that the stack can own.
struct Draft<'a> {
    header: Header,
    template: &'a [u8],
}

impl Draft<'_> {
    fn payload(&self) -> Bytes {
        self.payload_after(&[])
    }

    /// Returns the payload behind `front`, in one buffer.
    fn payload_after(&self, front: &[u8]) -> Bytes {
        let mut bytes = Vec::with_capacity(front.len() + self.template.len());
        bytes.extend_from_slice(front);
        bytes.extend_from_slice(&self.header.to_bytes());
        bytes.extend_from_slice(&self.template[Header::LEN..]);
        bytes.into()
    }
}

/// Returns the length and the header of a received payload.
fn read_payload(payload: &[u8]) -> Result<(usize, Header)> {
    match Header::of(payload) {
        Some(header) => Ok((payload.len(), header)),
        None => bail!("a message came that none of our publishers has sent"),
    }
}

/// The runtime of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Threads {
    /// The `current_thread` runtime of tokio.
    One,
    /// The multi-threaded runtime of tokio: a single client runs on the main thread, and several clients run
    /// as tasks.
    Many,
    /// The multi-threaded runtime of tokio. Every client runs as a task.
    Tasks,
}

/// The stack, among those whose clients are in this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PeerKind {
    Zeromq,
    Omq,
    Nats,
    Zenoh,
    Xmsg,
    Raw,
}

/// The role of the process.
#[derive(Clone, Debug, Subcommand)]
pub enum Role {
    Pub(Plan),
    Sub(Plan),
    Proxy(Plan),
}

/// Runs a process of a stack until it gets the command to stop. Does not return.
pub fn run(kind: PeerKind, role: Role, threads: Option<Threads>) -> ! {
    match kind {
        PeerKind::Zeromq => run_stack::<zeromq::Zeromq>(role, threads),
        PeerKind::Omq => run_stack::<omq::Omq>(role, threads),
        PeerKind::Nats => run_stack::<nats::Nats>(role, threads),
        PeerKind::Zenoh => run_stack::<zenoh::Zenoh>(role, threads),
        PeerKind::Xmsg => run_stack::<xmsg::Xmsg>(role, threads),
        PeerKind::Raw => run_stack::<raw::Raw>(role, threads),
    }
}

fn run_stack<S: Stack>(role: Role, threads: Option<Threads>) -> ! {
    let best = if matches!(role, Role::Proxy(_)) { S::PROXY_THREADS } else { S::THREADS };
    let threads = threads.unwrap_or(best);
    match role {
        Role::Pub(plan) => attend(None, move |phases| publish::run::<S>(plan, phases, threads)),
        Role::Sub(plan) => {
            let tally = Arc::new(subscribe::Tally::new(&plan));
            let counted = tally.clone();
            attend(Some(&tally), move |_| subscribe::run::<S>(&plan, &counted, threads))
        }
        Role::Proxy(plan) => {
            attend(None, move |_| runtime(threads)?.block_on(S::proxy(plan.port, || println!("ready"))))
        }
    }
}

/// Does the work on another thread, while this one reads commands. Does not return.
fn attend(
    tally: Option<&subscribe::Tally>,
    work: impl FnOnce(&watch::Receiver<Phase>) -> Result<()> + Send + 'static,
) -> ! {
    let (phase, phases) = watch::channel(Phase::Connected);
    thread::spawn(move || {
        if let Err(error) = work(&phases) {
            eprintln!("{error:#}");
            std::process::exit(1);
        }
    });
    for line in std::io::stdin().lock().lines() {
        match (line.as_deref(), tally) {
            (Ok("probe"), _) => _ = phase.send(Phase::Probing),
            (Ok("go"), _) => _ = phase.send(Phase::Go),
            (Ok("status"), Some(tally)) => println!("{}", tally.status()),
            (Ok("stop"), Some(tally)) => match tally.finish() {
                Ok(result) => {
                    println!("result {result}");
                    break;
                }
                Err(error) => {
                    eprintln!("{error:#}");
                    std::process::exit(1);
                }
            },
            _ => break,
        }
    }
    std::process::exit(0);
}

/// How far publishers may proceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Connected,
    Probing,
    Go,
}

fn runtime(threads: Threads) -> Result<Runtime> {
    let mut builder = match threads {
        Threads::One => tokio::runtime::Builder::new_current_thread(),
        Threads::Many | Threads::Tasks => tokio::runtime::Builder::new_multi_thread(),
    };
    Ok(builder.enable_all().build()?)
}

/// Returns the time of the clock that all processes of the machine share, in nanoseconds.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the monotonic clock is always there");
    now.tv_sec().cast_unsigned() * 1_000_000_000 + now.tv_nsec().cast_unsigned()
}
