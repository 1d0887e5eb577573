//! How fast messages get to a durable queue of RabbitMQ: by a plain loop of the AMQP client with
//! confirmations, through the spool of an outgoing connection, from the first send to the last confirmation,
//! and by RabbitMQ's Shovel, from another queue of the same broker, acknowledged on confirmation. All in one
//! run, turn about; ratios are printed.
//!
//! ```text
//! cargo run --release -p xmsg-connect --example connect_rates -- [MESSAGES] [BYTES] [ROUNDS]
//! ```
//!
//! Needs Debian's `rabbitmq-server`; it starts a broker of its own.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueuePurgeOptions};
use xmsg_connect::definition::{ConnectionDefinition, OutgoingDefinition};
use xmsg_connect::{Registry, RegistryOptions};
use xmsg_core::{Message, ProxyAddress};
use xmsg_tests::rabbitmq::Broker;

type Failure = Box<dyn std::error::Error>;

/// Messages that are not confirmed yet, of either.
const WINDOW: usize = 256;
/// Sends that wait for the disk at the same time.
const SIDE_BY_SIDE: usize = 1000;
const QUEUE: &str = "rates";
/// Where the Shovel takes messages from.
const SOURCE: &str = "rates source";

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let numbers: Vec<usize> = std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let [messages, bytes, rounds] =
        [(0, 50_000), (1, 1024), (2, 3)].map(|(at, default)| *numbers.get(at).unwrap_or(&default));
    let broker = Broker::with_plugins(&["rabbitmq_shovel"]).await;
    broker.declare_queue(QUEUE).await;
    broker.declare_queue(SOURCE).await;
    let body = Bytes::from(vec![b'x'; bytes]);

    println!("{messages} messages of {bytes} bytes, {rounds} rounds, medians");
    let (mut plain, mut accepted, mut confirmed, mut shoveled) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        plain.push(plain_loop(&broker, QUEUE, &body, messages).await?);
        purge(&broker).await?;
        let (until_accepted, until_confirmed) = outgoing(&broker, &body, messages).await?;
        accepted.push(until_accepted);
        confirmed.push(until_confirmed);
        plain_loop(&broker, SOURCE, &body, messages).await?;
        shoveled.push(shovel(&broker, messages).await);
        purge(&broker).await?;
    }
    let rate = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        messages as f64 / times[times.len() / 2].as_secs_f64()
    };
    let (plain, accepted) = (rate(&mut plain), rate(&mut accepted));
    let (confirmed, shoveled) = (rate(&mut confirmed), rate(&mut shoveled));
    println!("plain loop, confirmed                {plain:>9.0} /s");
    println!("outgoing connection, on disk         {accepted:>9.0} /s");
    println!(
        "outgoing connection, confirmed       {confirmed:>9.0} /s   {:.2} x the plain loop",
        confirmed / plain
    );
    println!(
        "Shovel, from queue to queue          {shoveled:>9.0} /s   {:.2} x the plain loop",
        shoveled / plain
    );
    Ok(())
}

/// Publishes over one channel, with a window of messages that are not confirmed.
async fn plain_loop(
    broker: &Broker,
    queue: &str,
    body: &Bytes,
    messages: usize,
) -> Result<Duration, Failure> {
    let connection = broker.connect().await;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let properties = BasicProperties::default().with_delivery_mode(2).with_message_id("id".into());
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let began = Instant::now();
    let mut pending = VecDeque::new();
    for _ in 0..messages {
        let sent = channel.basic_publish("".into(), queue.into(), options, body, properties.clone()).await?;
        pending.push_back(sent);
        if pending.len() == WINDOW
            && let Some(oldest) = pending.pop_front()
        {
            oldest.await?;
        }
    }
    for confirmation in pending {
        confirmation.await?;
    }
    let took = began.elapsed();
    connection.close(200, "OK".into()).await?;
    Ok(took)
}

async fn purge(broker: &Broker) -> Result<(), Failure> {
    let connection = broker.connect().await;
    let channel = connection.create_channel().await?;
    channel.queue_purge(QUEUE.into(), QueuePurgeOptions::default()).await?;
    connection.close(200, "OK".into()).await?;
    Ok(())
}

/// Has the broker itself move all messages from one of its queues to the other, and waits for the last one.
async fn shovel(broker: &Broker, messages: usize) -> Duration {
    let uri = broker.uri();
    let definition = format!(
        "[{{<<\"src-protocol\">>, <<\"amqp091\">>}}, {{<<\"src-uri\">>, <<\"{uri}\">>}}, {{<<\"src-queue\">>, <<\"{SOURCE}\">>}},
          {{<<\"src-prefetch-count\">>, {WINDOW}}}, {{<<\"dest-protocol\">>, <<\"amqp091\">>}}, {{<<\"dest-uri\">>, <<\"{uri}\">>}},
          {{<<\"dest-queue\">>, <<\"{QUEUE}\">>}}, {{<<\"ack-mode\">>, <<\"on-confirm\">>}}]"
    );
    let began = Instant::now();
    let set = format!(
        "rabbit_runtime_parameters:set(<<\"/\">>, <<\"shovel\">>, <<\"rates\">>, {definition}, none)"
    );
    assert_eq!(broker.eval(&set).await, "ok");
    broker.queue_reaches(QUEUE, messages as u64).await;
    let took = began.elapsed();
    let clear = "rabbit_runtime_parameters:clear(<<\"/\">>, <<\"shovel\">>, <<\"rates\">>, <<\"rates\">>)";
    assert_eq!(broker.eval(clear).await, "ok");
    took
}

/// Returns when all were accepted, and when all were confirmed.
async fn outgoing(broker: &Broker, body: &Bytes, messages: usize) -> Result<(Duration, Duration), Failure> {
    let folder = tempfile::tempdir()?;
    let proxy = ProxyAddress::new("127.0.0.1", 7771)?;
    let registry = Registry::open(RegistryOptions::new(folder.path(), proxy)).await?;
    registry
        .create(ConnectionDefinition::amqp("broker", format!("amqp://127.0.0.1:{}", broker.port())))
        .await?;
    let mut out = OutgoingDefinition::amqp("out", "broker", "");
    out.routing_key = Some(QUEUE.to_owned());
    out.max_in_flight = Some(WINDOW as u32);
    registry.create(out).await?;
    let message = Message::with_mime("rates".parse()?, "application/octet-stream", body.clone());
    registry.send_confirmed("out", message.clone(), Duration::from_secs(60)).await?;

    let began = Instant::now();
    let mut left = messages;
    while left > 0 {
        let group = left.min(SIDE_BY_SIDE);
        for sent in join_all((0..group).map(|_| registry.send("out", message.clone()))).await {
            sent?;
        }
        left -= group;
    }
    let accepted = began.elapsed();
    while registry.outgoing("out")?.link.counts.delivered <= messages as u64 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let confirmed = began.elapsed();
    registry.close().await?;
    purge(broker).await?;
    Ok((accepted, confirmed))
}
