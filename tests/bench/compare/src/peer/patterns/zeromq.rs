//! The sockets of the `zeromq` crate, which has no PAIR. Its queues hold 100,000 messages, and no option
//! changes that.

use std::time::Duration;

use anyhow::{Result, ensure};
use zeromq::{
    DealerSocket, PullSocket, PushSocket, RepSocket, ReqSocket, RouterSocket, Socket, SocketRecv, SocketSend,
    ZmqError, ZmqMessage,
};

use super::super::{Draft, Publisher, Stack, Subscriber, Threads, read_payload};
use super::exchange::{Answering, Exchange};
use super::{Missing, Patterns, endpoint};
use crate::plan::{Header, Plan, Side};

/// The pause before a message is sent again because no peer was connected.
const PAUSE: Duration = Duration::from_millis(1);

pub(super) struct Zeromq;

impl Patterns for Zeromq {
    type PushPull = PushPull;
    type Pair = Missing;
    type ReqRep = ReqRep;
    type DealerRouter = DealerRouter;
}

/// Makes a socket that binds or connects, as the plan says.
async fn socket<S: Socket + Send>(plan: &Plan) -> Result<S> {
    let mut socket = S::new();
    match plan.side {
        Side::Bind => _ = socket.bind(&endpoint(plan)).await?,
        Side::Connect => socket.connect(&endpoint(plan)).await?,
    }
    Ok(socket)
}

fn read(message: &ZmqMessage) -> Result<(usize, Header)> {
    ensure!(message.len() == 1, "a message of {} frames came", message.len());
    read_payload(message.get(0).map_or(&[][..], |frame| frame))
}

pub(super) struct PushPull;

impl Stack for PushPull {
    type Publisher = PushSocket;
    type Subscriber = PullSocket;
    const THREADS: Threads = Threads::Many;

    async fn publisher(plan: &Plan) -> Result<PushSocket> {
        socket(plan).await
    }

    async fn subscriber(plan: &Plan, _index: usize) -> Result<PullSocket> {
        socket(plan).await
    }
}

impl Publisher for PushSocket {
    async fn send(&mut self, _topic: usize, draft: &Draft<'_>) -> Result<()> {
        let mut message = draft.payload().into();
        loop {
            match SocketSend::send(self, message).await {
                // The socket does not wait for its first peer.
                Err(ZmqError::ReturnToSender { message: returned, .. }) => message = returned,
                result => return Ok(result?),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Subscriber for PullSocket {
    async fn receive(&mut self) -> Result<(usize, Header)> {
        read(&self.recv().await?)
    }
}

pub(super) struct ReqRep;

impl Exchange for ReqRep {
    type Asking = ReqSocket;
    type Answering = RepSocket;

    async fn asking(plan: &Plan) -> Result<ReqSocket> {
        socket(plan).await
    }

    async fn answering(plan: &Plan) -> Result<RepSocket> {
        socket(plan).await
    }
}

impl Publisher for ReqSocket {
    async fn send(&mut self, _topic: usize, draft: &Draft<'_>) -> Result<()> {
        Ok(SocketSend::send(self, draft.payload().into()).await?)
    }
}

impl Subscriber for ReqSocket {
    async fn receive(&mut self) -> Result<(usize, Header)> {
        read(&self.recv().await?)
    }
}

impl Answering for RepSocket {
    async fn answer(&mut self) -> Result<()> {
        let request = self.recv().await?;
        Ok(self.send(request).await?)
    }
}

pub(super) struct DealerRouter;

impl Exchange for DealerRouter {
    type Asking = DealerSocket;
    type Answering = RouterSocket;

    async fn asking(plan: &Plan) -> Result<DealerSocket> {
        socket(plan).await
    }

    async fn answering(plan: &Plan) -> Result<RouterSocket> {
        socket(plan).await
    }
}

impl Publisher for DealerSocket {
    async fn send(&mut self, _topic: usize, draft: &Draft<'_>) -> Result<()> {
        Ok(SocketSend::send(self, draft.payload().into()).await?)
    }
}

impl Subscriber for DealerSocket {
    async fn receive(&mut self) -> Result<(usize, Header)> {
        read(&self.recv().await?)
    }
}

impl Answering for RouterSocket {
    async fn answer(&mut self) -> Result<()> {
        let request = self.recv().await?;
        Ok(self.send(request).await?)
    }
}
