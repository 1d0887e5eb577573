//! The sockets of `omq-tokio`. As in its authors' own benchmarks, a call that does not wait is tried first.

use std::sync::LazyLock;

use anyhow::{Context as _, Result, bail, ensure};
use omq_tokio::message::MAX_INLINE_MESSAGE;
use omq_tokio::{Context, Error, Message, Options, Socket, SocketType, TrySendError};
use tokio::runtime::{Handle, RuntimeFlavor};

use super::super::{Draft, Publisher, Stack, Subscriber, Threads, read_payload};
use super::exchange::{Answering, Exchange};
use super::inproc::Inproc;
use super::{Patterns, endpoint};
use crate::plan::{Header, Plan, Side};

pub(super) struct Omq;

impl Patterns for Omq {
    type PushPull = PushPull;
    type Pair = Pairs;
    type ReqRep = ReqRep;
    type DealerRouter = DealerRouter;
}

fn options(plan: &Plan) -> Options {
    match plan.hwm {
        Some(messages) => Options::default().send_hwm(messages).recv_hwm(messages),
        None => Options::default(),
    }
}

/// Makes a socket that binds or connects, as the plan says. On a runtime with one thread, the tasks of the
/// socket share that thread. On others they have a thread of their own, as in the examples of the crate.
async fn socket(kind: SocketType, plan: &Plan) -> Result<Peer> {
    static OWN: LazyLock<Context> = LazyLock::new(Context::new);
    let socket = match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => Context::current().socket(kind, options(plan)),
        _ => OWN.socket(kind, options(plan)),
    };
    match plan.side {
        Side::Bind => _ = socket.bind(endpoint(plan)).await?,
        Side::Connect => socket.connect(endpoint(plan)).await?,
    }
    Ok(Peer(socket))
}

/// A socket of any type. All types have the same methods.
pub(super) struct Peer(Socket);

impl Peer {
    async fn next(&self) -> Result<Message> {
        match self.0.try_recv() {
            Err(Error::WouldBlock) => Ok(self.0.recv().await?),
            result => Ok(result?),
        }
    }
}

impl Publisher for Peer {
    async fn send(&mut self, _topic: usize, draft: &Draft<'_>) -> Result<()> {
        let length = draft.template.len();
        let message = if length <= MAX_INLINE_MESSAGE {
            // A short payload is stored in the message itself, and needs no other memory.
            let mut payload = [0; MAX_INLINE_MESSAGE];
            payload[..length].copy_from_slice(draft.template);
            payload[..Header::LEN].copy_from_slice(&draft.header.to_bytes());
            Message::from_slice(&payload[..length])
        } else {
            Message::single(draft.payload())
        };
        match self.0.try_send(message) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(message)) => Ok(self.0.send(message).await?),
            Err(error) => bail!("a message was refused: {error}"),
        }
    }
}

impl Subscriber for Peer {
    async fn receive(&mut self) -> Result<(usize, Header)> {
        let message = self.next().await?;
        ensure!(message.len() == 1, "a message of {} frames came", message.len());
        read_payload(message.part_slice(0).context("a message without payload came")?)
    }
}

impl Answering for Peer {
    async fn answer(&mut self) -> Result<()> {
        let request = self.next().await?;
        Ok(self.0.send(request).await?)
    }
}

pub(super) struct PushPull;

impl Stack for PushPull {
    type Publisher = Peer;
    type Subscriber = Peer;
    const THREADS: Threads = Threads::One;

    async fn publisher(plan: &Plan) -> Result<Peer> {
        socket(SocketType::Push, plan).await
    }

    async fn subscriber(plan: &Plan, _index: usize) -> Result<Peer> {
        socket(SocketType::Pull, plan).await
    }
}

pub(super) struct Pairs;

impl Stack for Pairs {
    type Publisher = Peer;
    type Subscriber = Peer;
    const THREADS: Threads = Threads::One;

    async fn publisher(plan: &Plan) -> Result<Peer> {
        socket(SocketType::Pair, plan).await
    }

    async fn subscriber(plan: &Plan, _index: usize) -> Result<Peer> {
        socket(SocketType::Pair, plan).await
    }
}

impl Inproc for Omq {
    type Sender = Peer;
    type Receiver = Peer;

    async fn connect(plan: &Plan) -> Result<(Peer, Peer)> {
        // Both sockets need the same context to find each other.
        let context = Context::current();
        let [sender, receiver] = [(); 2].map(|()| context.socket(SocketType::Pair, options(plan)));
        receiver.bind("inproc://pair").await?;
        sender.connect("inproc://pair").await?;
        Ok((Peer(sender), Peer(receiver)))
    }
}

pub(super) struct ReqRep;

impl Exchange for ReqRep {
    type Asking = Peer;
    type Answering = Peer;

    async fn asking(plan: &Plan) -> Result<Peer> {
        socket(SocketType::Req, plan).await
    }

    async fn answering(plan: &Plan) -> Result<Peer> {
        socket(SocketType::Rep, plan).await
    }
}

pub(super) struct DealerRouter;

impl Exchange for DealerRouter {
    type Asking = Peer;
    type Answering = Peer;

    async fn asking(plan: &Plan) -> Result<Peer> {
        socket(SocketType::Dealer, plan).await
    }

    async fn answering(plan: &Plan) -> Result<Peer> {
        socket(SocketType::Router, plan).await
    }
}
