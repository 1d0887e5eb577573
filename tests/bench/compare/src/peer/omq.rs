//! The stack `omq-tokio`: PUB and SUB sockets and its `proxy`.
//!
//! `xpub_nodrop` makes a publisher wait at the high-water mark, as in the authors' own benchmark. Without it,
//! messages are dropped.

use std::sync::LazyLock;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use omq_tokio::{Context, Error, Message, Options, Socket, SocketType};
use tokio::runtime::{Handle, RuntimeFlavor};

use super::{Draft, Stack, Threads, read_payload};
use crate::plan::{Header, Interest, METADATA, Plan};

pub(super) struct Omq;

pub(super) struct Publisher {
    socket: Socket,
    topics: Vec<Bytes>,
}

pub(super) struct Subscriber(Socket);

impl Stack for Omq {
    type Publisher = Publisher;
    type Subscriber = Subscriber;
    const THREADS: Threads = Threads::One;

    async fn publisher(plan: &Plan) -> Result<Publisher> {
        let socket = socket(SocketType::Pub);
        socket.connect(format!("tcp://127.0.0.1:{}", plan.port)).await?;
        Ok(Publisher { socket, topics: plan.topics(':').into_iter().map(Bytes::from).collect() })
    }

    async fn subscriber(plan: &Plan, index: usize) -> Result<Subscriber> {
        let socket = socket(SocketType::Sub);
        socket.connect(format!("tcp://127.0.0.1:{}", plan.port + 1)).await?;
        match plan.interest {
            Interest::All => socket.subscribe("bench:").await?,
            Interest::Own => socket.subscribe(plan.topics(':').swap_remove(index)).await?,
            Interest::Every => {
                for topic in plan.topics(':') {
                    socket.subscribe(topic).await?;
                }
            }
        }
        Ok(Subscriber(socket))
    }

    async fn proxy(port: u16, listening: impl FnOnce()) -> Result<()> {
        let (frontend, backend) = (socket(SocketType::XSub), socket(SocketType::XPub));
        frontend.bind(format!("tcp://127.0.0.1:{port}")).await?;
        backend.bind(format!("tcp://127.0.0.1:{}", port + 1)).await?;
        listening();
        omq_tokio::proxy::proxy(frontend, backend, None).await?;
        Ok(())
    }
}

/// Makes a socket. On a runtime with one thread, its tasks share that thread. On others they have a thread of
/// their own, as in the examples of the crate.
fn socket(kind: SocketType) -> Socket {
    static OWN: LazyLock<Context> = LazyLock::new(Context::new);
    let options = Options { xpub_nodrop: true, ..Options::default() };
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => Context::current().socket(kind, options),
        _ => OWN.socket(kind, options),
    }
}

impl super::Publisher for Publisher {
    async fn send(&mut self, topic: usize, draft: &Draft<'_>) -> Result<()> {
        let frames = [self.topics[topic].clone(), Bytes::from_static(METADATA), draft.payload()];
        Ok(self.socket.send(Message::multipart(frames)).await?)
    }
}

impl super::Subscriber for Subscriber {
    async fn receive(&mut self) -> Result<(usize, Header)> {
        let message = match self.0.try_recv() {
            Err(Error::WouldBlock) => self.0.recv().await?,
            result => result?,
        };
        ensure!(message.len() == 3, "a message of {} frames came", message.len());
        read_payload(message.part_slice(2).context("a message without payload came")?)
    }
}
