//! The stack zenoh: clients and a router of the crate `zenoh`, over TCP.
//!
//! A sample of zenoh has a key and a payload, and the metadata is in front of the payload, as for NATS. The
//! key has a slash where others have a colon. Publishers wait when there is congestion, so that nothing is
//! dropped.

use anyhow::{Result, anyhow, ensure};
use zenoh::handlers::{FifoChannel, FifoChannelHandler, IntoHandler};
use zenoh::pubsub;
use zenoh::qos::CongestionControl;
use zenoh::sample::Sample;
use zenoh::{Config, Session};

use super::{Draft, Stack, Threads, read_payload};
use crate::plan::{Header, Interest, METADATA, Plan};

/// Samples that wait in a subscriber. Then its connection is read no further.
const CAPACITY: usize = 1 << 12;

pub(super) struct Zenoh;

pub(super) struct Publisher {
    /// The session is kept because the publishers end with it.
    _session: Session,
    publishers: Vec<pubsub::Publisher<'static>>,
}

pub(super) struct Subscriber {
    _session: Session,
    _subscribers: Vec<pubsub::Subscriber<()>>,
    samples: FifoChannelHandler<Sample>,
}

impl Stack for Zenoh {
    type Publisher = Publisher;
    type Subscriber = Subscriber;
    const THREADS: Threads = Threads::Many;
    /// A session can't be opened on a runtime with one thread.
    const PROXY_THREADS: Threads = Threads::Many;

    async fn publisher(plan: &Plan) -> Result<Publisher> {
        let session = open("client", "connect", plan.port).await?;
        let mut publishers = Vec::with_capacity(plan.topics);
        for topic in plan.topics('/') {
            let publisher = session.declare_publisher(topic).congestion_control(CongestionControl::Block);
            publishers.push(publisher.await.map_err(anyhow_of)?);
        }
        Ok(Publisher { _session: session, publishers })
    }

    async fn subscriber(plan: &Plan, index: usize) -> Result<Subscriber> {
        let session = open("client", "connect", plan.port).await?;
        let keys = match plan.interest {
            Interest::All => vec!["bench/*".to_owned()],
            Interest::Own => vec![plan.topics('/').swap_remove(index)],
            Interest::Every => plan.topics('/'),
        };
        let (callback, samples) = FifoChannel::new(CAPACITY).into_handler();
        let mut subscribers = Vec::with_capacity(keys.len());
        for key in keys {
            let subscriber = session.declare_subscriber(key).with((callback.clone(), ()));
            subscribers.push(subscriber.await.map_err(anyhow_of)?);
        }
        Ok(Subscriber { _session: session, _subscribers: subscribers, samples })
    }

    async fn proxy(port: u16, listening: impl FnOnce()) -> Result<()> {
        let _router = open("router", "listen", port).await?;
        listening();
        std::future::pending().await
    }
}

/// Opens a session in this mode, which connects to the port or listens at it, and looks for nobody else.
async fn open(mode: &str, way: &str, port: u16) -> Result<Session> {
    let mut config = Config::default();
    let endpoints = format!("{way}/endpoints");
    let settings = [
        ("mode", format!("{mode:?}")),
        (&endpoints, format!(r#"["tcp/127.0.0.1:{port}"]"#)),
        ("scouting/multicast/enabled", "false".to_owned()),
    ];
    for (key, value) in settings {
        config.insert_json5(key, &value).map_err(|error| anyhow!("{key}: {error}"))?;
    }
    zenoh::open(config).await.map_err(anyhow_of)
}

fn anyhow_of(error: zenoh::Error) -> anyhow::Error {
    anyhow!(error)
}

impl super::Publisher for Publisher {
    async fn send(&mut self, topic: usize, draft: &Draft<'_>) -> Result<()> {
        self.publishers[topic].put(draft.payload_after(METADATA)).await.map_err(anyhow_of)
    }
}

impl super::Subscriber for Subscriber {
    async fn receive(&mut self) -> Result<(usize, Header)> {
        let sample = self.samples.recv_async().await.map_err(anyhow_of)?;
        let bytes = sample.payload().to_bytes();
        let payload = bytes.strip_prefix(METADATA);
        ensure!(payload.is_some(), "a message without our metadata came");
        read_payload(payload.unwrap_or_default())
    }
}
