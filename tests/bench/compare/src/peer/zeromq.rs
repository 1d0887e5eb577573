//! The stack `zeromq`: PUB and SUB sockets of the crate and its `proxy`.
//!
//! Its PUB socket queues 100,000 messages and drops those beyond, and no option changes that. So it loses
//! messages whenever the publisher is faster than the proxy. What it delivers is measured, and what it loses
//! is counted.

use anyhow::{Result, ensure};
use bytes::Bytes;
use zeromq::{PubSocket, Socket, SocketRecv, SocketSend, SubSocket, XPubSocket, XSubSocket, ZmqMessage};

use super::{Draft, Stack, Threads, read_payload};
use crate::plan::{Header, Interest, METADATA, Plan};

pub(super) struct Zeromq;

pub(super) struct Publisher {
    socket: PubSocket,
    topics: Vec<Bytes>,
}

impl Stack for Zeromq {
    type Publisher = Publisher;
    type Subscriber = SubSocket;
    /// On one thread, a publisher that does not pause keeps the sending task from running, and nearly
    /// everything is lost.
    const THREADS: Threads = Threads::Many;

    async fn publisher(plan: &Plan) -> Result<Publisher> {
        let mut socket = PubSocket::new();
        socket.connect(&format!("tcp://127.0.0.1:{}", plan.port)).await?;
        Ok(Publisher { socket, topics: plan.topics(':').into_iter().map(Bytes::from).collect() })
    }

    async fn subscriber(plan: &Plan, index: usize) -> Result<SubSocket> {
        let mut socket = SubSocket::new();
        socket.connect(&format!("tcp://127.0.0.1:{}", plan.port + 1)).await?;
        match plan.interest {
            Interest::All => socket.subscribe("bench:").await?,
            Interest::Own => socket.subscribe(&plan.topics(':')[index]).await?,
            Interest::Every => {
                for topic in plan.topics(':') {
                    socket.subscribe(&topic).await?;
                }
            }
        }
        Ok(socket)
    }

    async fn proxy(port: u16, listening: impl FnOnce()) -> Result<()> {
        let (mut frontend, mut backend) = (XSubSocket::new(), XPubSocket::new());
        frontend.bind(&format!("tcp://127.0.0.1:{port}")).await?;
        backend.bind(&format!("tcp://127.0.0.1:{}", port + 1)).await?;
        listening();
        Ok(zeromq::proxy(frontend, backend, None).await?)
    }
}

impl super::Publisher for Publisher {
    async fn send(&mut self, topic: usize, draft: &Draft<'_>) -> Result<()> {
        let mut message = ZmqMessage::from(draft.payload());
        message.push_front(Bytes::from_static(METADATA));
        message.push_front(self.topics[topic].clone());
        Ok(self.socket.send(message).await?)
    }
}

impl super::Subscriber for SubSocket {
    async fn receive(&mut self) -> Result<(usize, Header)> {
        let message = self.recv().await?;
        ensure!(message.len() == 3, "a message of {} frames came", message.len());
        read_payload(message.get(2).map_or(&[][..], |frame| frame))
    }
}
