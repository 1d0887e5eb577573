//! The sockets of `xmsg-zmq`.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use std::time::Duration;
use xmsg_zmq::{
    Dealer, Endpoint, HighWaterMark, Multipart, Pair, Pull, Push, Replier, Requester, Router, Sends,
    SocketOptions,
};

use super::super::{Draft, Publisher, Stack, Subscriber, Threads, read_payload};
use super::exchange::{Answering, Exchange};
use super::inproc::Inproc;
use super::{Patterns, endpoint};
use crate::plan::{Header, Plan, Side};

pub(super) struct Xmsg;

impl Patterns for Xmsg {
    type PushPull = PushPull;
    type Pair = Pairs;
    type ReqRep = ReqRep;
    type DealerRouter = DealerRouter;
}

/// Binds or connects a socket, as the plan says. All sockets have these methods, but there is no common
/// trait.
macro_rules! meet {
    ($socket:expr, $plan:expr) => {{
        let (socket, endpoint): (_, Endpoint) = ($socket, endpoint($plan).parse()?);
        match $plan.side {
            Side::Bind => _ = socket.bind(&endpoint).await?,
            Side::Connect => socket.connect(endpoint),
        }
        socket
    }};
}

fn options<S: Sends>(plan: &Plan) -> SocketOptions<S> {
    let options = SocketOptions::default();
    match plan.hwm {
        Some(messages) => {
            let mark = HighWaterMark { messages: messages as usize, bytes: usize::MAX };
            options.send_high_water_mark(mark)
        }
        None => options,
    }
}

/// Returns the length and the header of a message of one frame.
pub(super) fn read(message: Option<Multipart>) -> Result<(usize, Header)> {
    let message = message.context("the socket is closed")?;
    let frames = message.frames();
    ensure!(frames.len() == 1, "a message of {} frames came", frames.len());
    read_payload(&frames[0])
}

pub(super) struct PushPull;

impl Stack for PushPull {
    type Publisher = Push;
    type Subscriber = Pull;
    const THREADS: Threads = Threads::Many;

    async fn publisher(plan: &Plan) -> Result<Push> {
        Ok(meet!(Push::new(options(plan)), plan))
    }

    async fn subscriber(plan: &Plan, _index: usize) -> Result<Pull> {
        Ok(meet!(Pull::new(SocketOptions::default()), plan))
    }
}

impl Publisher for Push {
    async fn send(&mut self, _topic: usize, draft: &Draft<'_>) -> Result<()> {
        Ok(Push::send(self, [draft.payload()]).await?)
    }
}

impl Subscriber for Pull {
    async fn receive(&mut self) -> Result<(usize, Header)> {
        read(self.recv().await)
    }
}

pub(super) struct Pairs;

impl Stack for Pairs {
    type Publisher = Pair;
    type Subscriber = Pair;
    const THREADS: Threads = Threads::Many;

    async fn publisher(plan: &Plan) -> Result<Pair> {
        Ok(meet!(Pair::new(options(plan)), plan))
    }

    async fn subscriber(plan: &Plan, _index: usize) -> Result<Pair> {
        Self::publisher(plan).await
    }
}

impl Inproc for Xmsg {
    type Sender = Pair;
    type Receiver = Pair;

    async fn connect(plan: &Plan) -> Result<(Pair, Pair)> {
        let (sender, receiver) = (Pair::new(options(plan)), Pair::new(options(plan)));
        sender.connect(receiver.bind(&"inproc://pair".parse()?).await?);
        Ok((sender, receiver))
    }
}

impl Publisher for Pair {
    async fn send(&mut self, _topic: usize, draft: &Draft<'_>) -> Result<()> {
        Ok(Pair::send(self, [draft.payload()]).await?)
    }
}

impl Subscriber for Pair {
    async fn receive(&mut self) -> Result<(usize, Header)> {
        read(self.recv().await)
    }
}

pub(super) struct ReqRep;

/// A REQ socket. It sends a request and waits for the reply in one call, which is made here when the reply is
/// asked for.
pub(super) struct Asking {
    requester: Requester,
    request: Bytes,
}

impl Exchange for ReqRep {
    type Asking = Asking;
    type Answering = Replier;

    async fn asking(plan: &Plan) -> Result<Asking> {
        let requester = Requester::connecting_to(endpoint(plan).parse()?, SocketOptions::default());
        Ok(Asking { requester, request: Bytes::new() })
    }

    async fn answering(plan: &Plan) -> Result<Replier> {
        Ok(meet!(Replier::new(options(plan)), plan))
    }
}

impl Publisher for Asking {
    async fn send(&mut self, _topic: usize, draft: &Draft<'_>) -> Result<()> {
        self.request = draft.payload();
        Ok(())
    }
}

impl Subscriber for Asking {
    async fn receive(&mut self) -> Result<(usize, Header)> {
        let request = [std::mem::take(&mut self.request)];
        // The other stacks set no time limit.
        read(Some(self.requester.request(request, Duration::MAX).await?))
    }
}

impl Answering for Replier {
    async fn answer(&mut self) -> Result<()> {
        let (path, request) = self.recv().await.context("the socket is closed")?;
        Ok(self.try_reply(&path, request)?)
    }
}

pub(super) struct DealerRouter;

impl Exchange for DealerRouter {
    type Asking = Dealer;
    type Answering = Router;

    async fn asking(plan: &Plan) -> Result<Dealer> {
        Ok(meet!(Dealer::new(options(plan)), plan))
    }

    async fn answering(plan: &Plan) -> Result<Router> {
        Ok(meet!(Router::new(options(plan)), plan))
    }
}

impl Publisher for Dealer {
    async fn send(&mut self, _topic: usize, draft: &Draft<'_>) -> Result<()> {
        Ok(Dealer::send(self, [draft.payload()]).await?)
    }
}

impl Subscriber for Dealer {
    async fn receive(&mut self) -> Result<(usize, Header)> {
        read(self.recv().await)
    }
}

impl Answering for Router {
    async fn answer(&mut self) -> Result<()> {
        let (identity, request) = self.recv().await.context("the socket is closed")?;
        Ok(self.send(&identity, request).await?)
    }
}
