//! The stack NATS: `async-nats` and Debian's `nats-server`.
//!
//! A message of NATS has a subject and a payload, and the metadata is in front of the payload. As a header it
//! would cost more on both sides, with a map to build, and text to write and parse. The subject has a dot
//! where others have a colon, so that a token corresponds to a prefix.

use anyhow::{Context, Result, ensure};
use async_nats::{Client, ConnectOptions, Subject, Subscriber};
use futures::StreamExt;
use futures::stream::{SelectAll, select_all};

use super::{Draft, Stack, Threads, read_payload};
use crate::plan::{Header, Interest, METADATA, Plan};

/// Messages that a subscription holds before the client drops messages. As with libzmq, it is practically
/// unlimited.
const CAPACITY: usize = 1 << 24;

pub(super) struct Nats;

pub(super) struct Publisher {
    client: Client,
    subjects: Vec<Subject>,
}

pub(super) struct Subscriptions {
    /// The client is kept because the subscriptions end with it.
    _client: Client,
    streams: Streams,
}

enum Streams {
    One(Subscriber),
    Many(SelectAll<Subscriber>),
}

impl Stack for Nats {
    type Publisher = Publisher;
    type Subscriber = Subscriptions;
    const THREADS: Threads = Threads::Many;

    async fn publisher(plan: &Plan) -> Result<Publisher> {
        let client = connect(plan).await?;
        Ok(Publisher { client, subjects: plan.topics('.').into_iter().map(Subject::from).collect() })
    }

    async fn subscriber(plan: &Plan, index: usize) -> Result<Subscriptions> {
        let client = connect(plan).await?;
        let streams = match plan.interest {
            Interest::All => Streams::One(client.subscribe("bench.*").await?),
            Interest::Own => Streams::One(client.subscribe(plan.topics('.').swap_remove(index)).await?),
            Interest::Every => {
                let mut streams = Vec::with_capacity(plan.topics);
                for topic in plan.topics('.') {
                    streams.push(client.subscribe(topic).await?);
                }
                Streams::Many(select_all(streams))
            }
        };
        client.flush().await?;
        Ok(Subscriptions { _client: client, streams })
    }
}

async fn connect(plan: &Plan) -> Result<Client> {
    let options = ConnectOptions::new().subscription_capacity(CAPACITY);
    Ok(options.connect(format!("nats://127.0.0.1:{}", plan.port)).await?)
}

impl super::Publisher for Publisher {
    async fn send(&mut self, topic: usize, draft: &Draft<'_>) -> Result<()> {
        Ok(self.client.publish(self.subjects[topic].clone(), draft.payload_after(METADATA)).await?)
    }
}

impl super::Subscriber for Subscriptions {
    async fn receive(&mut self) -> Result<(usize, Header)> {
        let message = match &mut self.streams {
            Streams::One(stream) => stream.next().await,
            Streams::Many(streams) => streams.next().await,
        };
        let message = message.context("the subscription ended")?;
        let payload = message.payload.strip_prefix(METADATA);
        ensure!(payload.is_some(), "a message without our metadata came");
        read_payload(payload.unwrap_or_default())
    }
}
