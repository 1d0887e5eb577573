//! The stack xmsg: `Connection::publish` and `Subscription::next`, through `xmsg-proxy`.

use anyhow::{Context, Result};
use bytes::Bytes;
use xmsg_core::{Connection, Message, ProxyAddress, Subscription, Topic};

use super::{Draft, Stack, Threads, read_payload};
use crate::plan::{Header, Interest, METADATA, Plan};

pub(super) struct Xmsg;

pub(super) struct Publisher {
    connection: Connection,
    topics: Vec<Topic>,
}

impl Stack for Xmsg {
    type Publisher = Publisher;
    type Subscriber = Subscription;
    const THREADS: Threads = Threads::Many;

    async fn publisher(plan: &Plan) -> Result<Publisher> {
        let connection = Connection::new(address(plan)?)?;
        connection.connect().await?;
        Ok(Publisher { connection, topics: topics(plan) })
    }

    async fn subscriber(plan: &Plan, index: usize) -> Result<Subscription> {
        let topics = match plan.interest {
            Interest::All => vec![Topic::of_domain("bench")?],
            Interest::Own => vec![topics(plan).swap_remove(index)],
            Interest::Every => topics(plan),
        };
        Ok(Connection::new(address(plan)?)?.subscribe(topics).await?)
    }
}

fn address(plan: &Plan) -> Result<ProxyAddress> {
    Ok(format!("127.0.0.1:{}", plan.port).parse()?)
}

fn topics(plan: &Plan) -> Vec<Topic> {
    plan.topics(':').into_iter().map(Topic::wrap).collect()
}

impl super::Publisher for Publisher {
    async fn send(&mut self, topic: usize, draft: &Draft<'_>) -> Result<()> {
        let topic = self.topics[topic].clone().into_bytes();
        let message = Message::from_frames(topic, Bytes::from_static(METADATA), draft.payload());
        Ok(self.connection.publish(&message).await?)
    }
}

impl super::Subscriber for Subscription {
    async fn receive(&mut self) -> Result<(usize, Header)> {
        let message = self.next().await.context("the subscription ended")??;
        read_payload(message.data())
    }
}
