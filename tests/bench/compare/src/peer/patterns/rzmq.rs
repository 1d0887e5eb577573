//! The sockets of `rzmq`, on tokio or on its engine for `io_uring`. The crate has no PAIR.
//!
//! By default, DEALER and ROUTER of the crate put an empty frame in front of each message. This is switched
//! off here, because no other stack sends such a frame.

use std::sync::OnceLock;

use anyhow::{Result, ensure};
use rzmq::socket::{AUTO_DELIMITER, RCVHWM, SNDHWM};
use rzmq::{Context, Msg, Socket, SocketType};

use super::super::{Draft, Publisher, Stack, Subscriber, Threads, read_payload};
use super::exchange::{Answering, Exchange};
use super::{Missing, Patterns, endpoint};
use crate::plan::{Header, Plan, Side};

/// The stack `rzmq`. `URING` says whether connections use `io_uring`, with its default settings.
pub(super) struct Rzmq<const URING: bool>;

impl<const URING: bool> Patterns for Rzmq<URING> {
    type PushPull = PushPull<URING>;
    type Pair = Missing;
    type ReqRep = ReqRep<URING>;
    type DealerRouter = DealerRouter<URING>;
}

/// Makes a socket that binds or connects, as the plan says.
async fn socket<const URING: bool>(kind: SocketType, plan: &Plan) -> Result<Peer> {
    static CONTEXT: OnceLock<Context> = OnceLock::new();
    let context = if let Some(context) = CONTEXT.get() {
        context
    } else {
        let context = Context::new()?.with_io_uring_sessions(URING);
        CONTEXT.get_or_init(|| context)
    };
    let routes = matches!(kind, SocketType::Dealer | SocketType::Router);
    let socket = context.socket(kind)?;
    if routes {
        socket.set_option(AUTO_DELIMITER, false).await?;
    }
    if let Some(messages) = plan.hwm {
        socket.set_option(SNDHWM, messages).await?;
        socket.set_option(RCVHWM, messages).await?;
    }
    match plan.side {
        Side::Bind => socket.bind(&endpoint(plan)).await?,
        Side::Connect => socket.connect(&endpoint(plan)).await?,
    }
    Ok(Peer(socket))
}

/// A socket of any type. All types have the same methods.
pub(super) struct Peer(Socket);

impl Publisher for Peer {
    async fn send(&mut self, _topic: usize, draft: &Draft<'_>) -> Result<()> {
        Ok(self.0.send(Msg::from_bytes(draft.payload())).await?)
    }
}

impl Subscriber for Peer {
    async fn receive(&mut self) -> Result<(usize, Header)> {
        let message = self.0.recv().await?;
        ensure!(!message.is_more(), "a message of several frames came");
        read_payload(message.data().unwrap_or_default())
    }
}

/// A REP socket, which returns requests without the addresses for their replies.
pub(super) struct Rep(Peer);

impl Answering for Rep {
    async fn answer(&mut self) -> Result<()> {
        let request = self.0.0.recv().await?;
        Ok(self.0.0.send(request).await?)
    }
}

/// A ROUTER socket, which returns each request behind the identity of its sender.
pub(super) struct Router(Peer);

impl Answering for Router {
    async fn answer(&mut self) -> Result<()> {
        let request = self.0.0.recv_multipart().await?;
        Ok(self.0.0.send_multipart(request).await?)
    }
}

pub(super) struct PushPull<const URING: bool>;

impl<const URING: bool> Stack for PushPull<URING> {
    type Publisher = Peer;
    type Subscriber = Peer;
    const THREADS: Threads = Threads::Many;

    async fn publisher(plan: &Plan) -> Result<Peer> {
        socket::<URING>(SocketType::Push, plan).await
    }

    async fn subscriber(plan: &Plan, _index: usize) -> Result<Peer> {
        socket::<URING>(SocketType::Pull, plan).await
    }
}

pub(super) struct ReqRep<const URING: bool>;

impl<const URING: bool> Exchange for ReqRep<URING> {
    type Asking = Peer;
    type Answering = Rep;

    async fn asking(plan: &Plan) -> Result<Peer> {
        socket::<URING>(SocketType::Req, plan).await
    }

    async fn answering(plan: &Plan) -> Result<Rep> {
        Ok(Rep(socket::<URING>(SocketType::Rep, plan).await?))
    }
}

pub(super) struct DealerRouter<const URING: bool>;

impl<const URING: bool> Exchange for DealerRouter<URING> {
    type Asking = Peer;
    type Answering = Router;

    async fn asking(plan: &Plan) -> Result<Peer> {
        socket::<URING>(SocketType::Dealer, plan).await
    }

    async fn answering(plan: &Plan) -> Result<Router> {
        Ok(Router(socket::<URING>(SocketType::Router, plan).await?))
    }
}
