//! The processes that take part in a pattern: each is one side of it, and connects to the other side.
//!
//! Each stack has a module that defines how its sockets connect, send and receive ([`Patterns`]). Messages in
//! one direction are sent and counted like those of publishers and subscribers (`publish.rs`,
//! `subscribe.rs`), and the process understands the same lines on stdin. A process that sends requests
//! (`exchange.rs`) has two lines of its own. A process that answers prints `ready` once it is bound:
//!
//! | line | to | answer |
//! |---|---|---|
//! | | the process that sends requests | `ready`, after a first round trip |
//! | `go` | the process that sends requests | `done {…}` with an [`Outcome`], once every reply has arrived |
//!
//! A process with both ends of an `inproc://` connection (`inproc.rs`) understands the lines for publishers
//! and for subscribers.

mod channel;
mod exchange;
mod inproc;
mod omq;
mod rzmq;
mod xmsg;
mod zeromq;

use std::future::Future;

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use self::exchange::Exchange;
pub use self::exchange::Outcome;
use super::{Draft, Publisher, Role, Subscriber, Threads, run_stack, runtime};
use crate::patterns::stacks::Stack;
use crate::plan::{Header, Plan};

/// The patterns of a stack. A pattern that it does not have is [`Missing`].
trait Patterns: 'static {
    type PushPull: super::Stack;
    type Pair: super::Stack;
    type ReqRep: Exchange;
    type DealerRouter: Exchange;
}

/// The side of a pattern that a process is.
#[derive(Clone, Debug, Subcommand)]
pub enum Part {
    Push(Plan),
    Pull(Plan),
    PairSend(Plan),
    PairReceive(Plan),
    Req(Plan),
    Rep(Plan),
    Dealer(Plan),
    Router(Plan),
    /// Both sides of a PAIR are in one process.
    Inproc(Plan),
}

/// Runs the process until it gets the command to stop. Does not return.
pub fn run(stack: Stack, part: Part, threads: Threads) -> ! {
    match (stack, part) {
        (Stack::Omq, Part::Inproc(plan)) => inproc::run::<omq::Omq>(plan, threads),
        (Stack::Xmsg, Part::Inproc(plan)) => inproc::run::<xmsg::Xmsg>(plan, threads),
        (Stack::Channel, Part::Inproc(plan)) => inproc::run::<channel::Channel>(plan, threads),
        (Stack::Zeromq, part) => run_part::<zeromq::Zeromq>(part, threads),
        (Stack::Omq, part) => run_part::<omq::Omq>(part, threads),
        (Stack::Rzmq, part) => run_part::<rzmq::Rzmq<false>>(part, threads),
        (Stack::RzmqUring, part) => run_part::<rzmq::Rzmq<true>>(part, threads),
        (Stack::Xmsg, part) => run_part::<xmsg::Xmsg>(part, threads),
        (Stack::Libzmq | Stack::Channel, _) => refuse(),
    }
}

fn run_part<P: Patterns>(part: Part, threads: Threads) -> ! {
    match part {
        Part::Push(plan) => run_stack::<P::PushPull>(Role::Pub(plan), Some(threads)),
        Part::Pull(plan) => run_stack::<P::PushPull>(Role::Sub(plan), Some(threads)),
        Part::PairSend(plan) => run_stack::<P::Pair>(Role::Pub(plan), Some(threads)),
        Part::PairReceive(plan) => run_stack::<P::Pair>(Role::Sub(plan), Some(threads)),
        Part::Req(plan) => exchange::ask::<P::ReqRep>(plan, threads),
        Part::Rep(plan) => exchange::answer::<P::ReqRep>(plan, threads),
        Part::Dealer(plan) => exchange::ask::<P::DealerRouter>(plan, threads),
        Part::Router(plan) => exchange::answer::<P::DealerRouter>(plan, threads),
        Part::Inproc(_) => refuse(),
    }
}

fn refuse() -> ! {
    eprintln!("{MISSING}");
    std::process::exit(2);
}

const MISSING: &str = "this program has no such part of that stack";

/// A pattern that a stack does not have.
struct Missing;

impl super::Stack for Missing {
    type Publisher = Self;
    type Subscriber = Self;
    const THREADS: Threads = Threads::Many;

    async fn publisher(_plan: &Plan) -> Result<Self> {
        bail!(MISSING)
    }

    async fn subscriber(_plan: &Plan, _index: usize) -> Result<Self> {
        bail!(MISSING)
    }
}

impl Publisher for Missing {
    async fn send(&mut self, _topic: usize, _draft: &Draft<'_>) -> Result<()> {
        bail!(MISSING)
    }
}

impl Subscriber for Missing {
    async fn receive(&mut self) -> Result<(usize, Header)> {
        bail!(MISSING)
    }
}

/// Returns the endpoint at which the sockets of both processes meet.
fn endpoint(plan: &Plan) -> String {
    format!("tcp://127.0.0.1:{}", plan.port)
}

/// Runs a future to its end, on this thread or as a task of its own.
fn block_on<F>(threads: Threads, future: F) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    runtime(threads)?.block_on(async {
        match threads {
            Threads::One | Threads::Many => future.await,
            Threads::Tasks => tokio::spawn(future).await.context("the task panicked")?,
        }
    })
}
