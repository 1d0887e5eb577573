//! From a queue of a broker to the target: consuming with acknowledgements, a bound for what is tried again, and what a broker refuses.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use futures::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, BasicRejectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Acker, Channel, Consumer, Event};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use xmsg_core::Message;

use super::ChannelPlan;
use super::target::{Targets, Way, may_be_tried_again};
use crate::amqp::{Link, headers, refused, short};
use crate::definition::{AckMode, AmqpChannel, OnError, QueueDeclare};
use crate::error::{Error, ErrorKind, Result};
use crate::status::{LinkState, Status, add};
use crate::supervise::Failure;

/// Messages that are given to the target at a time.
const AT_A_TIME: usize = 256;
/// Messages whose attempts are counted, for queues that do not count them; beyond that, all are forgotten.
const COUNTED: usize = 10_000;
/// The header in which queues of the type `quorum` count how often a message came back.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// Consumes until something breaks, or `stop`.
pub(super) async fn session(
    status: &Arc<Status>,
    targets: &Targets,
    plan: &ChannelPlan,
    way: &AmqpChannel,
    attempt: usize,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let Some(broker) = &plan.broker else { return Ok(()) };
    status.set(LinkState::Connecting);
    let open = async {
        let target = targets.open(&plan.definition.target)?;
        let opened = Link::open(broker, &plan.definition.name, attempt).await?;
        let consumer = consume(&opened.channel, way).await?;
        Ok::<_, Error>((target, opened, consumer))
    };
    let (target, opened, consumer) = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        opened = open => opened?,
    };
    status.set_peer(Some(opened.uri.clone()));
    status.set(LinkState::Connected);
    add(&status.counters.connections, 1);
    tracing::info!("{}: consumes {:?} at {}", status.label(), way.queue, opened.uri);
    let mut session = Session {
        status,
        plan,
        way,
        target,
        channel: opened.channel.clone(),
        attempts: HashMap::new(),
        delayed: Vec::new(),
        has_worked: false,
    };
    let ended = session.run(consumer, &opened, &stop).await;
    let had_worked = session.has_worked;
    drop(session);
    opened.close().await;
    ended.map_err(|error| Failure { error, had_worked })
}

/// Looks for the queue or makes it, and begins to consume.
async fn consume(channel: &Channel, way: &AmqpChannel) -> Result<Consumer> {
    let queue = &way.queue;
    if let Some((options, arguments)) = declaration(way) {
        let declared = channel.queue_declare(short(queue), options, arguments).await;
        declared.map_err(|error| {
            refused(
                error,
                &format!(
                    "the queue {queue:?} can't be used (queue, queue_declare = {:?})",
                    way.queue_declare
                ),
            )
        })?;
    }
    if way.ack_mode != AckMode::NoAck {
        let qos = channel.basic_qos(way.prefetch, BasicQosOptions::default()).await;
        qos.map_err(|error| refused(error, "the prefetch can't be set (prefetch_count)"))?;
    }
    let tag = format!("{}-{}", way.consumer_tag_prefix, Uuid::new_v4());
    let options =
        BasicConsumeOptions { no_ack: way.ack_mode == AckMode::NoAck, ..BasicConsumeOptions::default() };
    let consumer = channel.basic_consume(short(queue), short(&tag), options, FieldTable::default()).await;
    consumer.map_err(|error| refused(error, &format!("the queue {queue:?} can't be consumed")))
}

fn declaration(way: &AmqpChannel) -> Option<(QueueDeclareOptions, FieldTable)> {
    let mut arguments = FieldTable::default();
    match way.queue_declare {
        QueueDeclare::None => None,
        QueueDeclare::Passive => {
            Some((QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() }, arguments))
        }
        QueueDeclare::Active => {
            arguments.insert(short("x-queue-type"), AMQPValue::LongString("quorum".into()));
            // The broker counts how often a message came back. Ours is the number of times that it is tried.
            let limit = i64::from(way.delivery_limit.saturating_sub(1));
            arguments.insert(short("x-delivery-limit"), AMQPValue::LongLongInt(limit));
            if let Some(dead) = &way.dead_letter {
                let exchange = AMQPValue::LongString(dead.exchange.as_bytes().into());
                arguments.insert(short("x-dead-letter-exchange"), exchange);
                if let Some(key) = &dead.routing_key {
                    let key = AMQPValue::LongString(key.as_bytes().into());
                    arguments.insert(short("x-dead-letter-routing-key"), key);
                }
            }
            Some((QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() }, arguments))
        }
    }
}

/// A message that goes back to its queue, and when.
struct Delayed {
    acker: Acker,
    at: Instant,
}

/// A message on its way to the target.
struct Taken {
    acker: Acker,
    tag: u64,
    /// By which its attempts are counted.
    key: u64,
    /// How often it was tried before, as the queue says.
    tried: Option<u32>,
}

struct Session<'a> {
    status: &'a Arc<Status>,
    plan: &'a ChannelPlan,
    way: &'a AmqpChannel,
    target: Way,
    channel: Channel,
    /// How often a message was tried, by its key.
    attempts: HashMap<u64, u32>,
    /// In the order of their times.
    delayed: Vec<Delayed>,
    has_worked: bool,
}

impl Session<'_> {
    async fn run(&mut self, mut consumer: Consumer, opened: &Link, stop: &CancellationToken) -> Result<()> {
        let mut events = Box::pin(opened.connection.events_listener());
        let broken = |error: lapin::Error| {
            let what = format!("the connection to the broker {} has ended", opened.uri);
            match crate::amqp::verdict(&error) {
                Some((320, text)) => {
                    Error::new(ErrorKind::Unreachable, format!("{what}: {text}")).with_source(error)
                }
                Some(_) => refused(error, "the broker has ended the channel"),
                None => Error::new(ErrorKind::Unreachable, what).with_source(error),
            }
        };
        loop {
            let due = self.delayed.first().map(|delayed| delayed.at);
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                event = events.next() => match event {
                    Some(Event::Error(error)) => return Err(broken(error)),
                    Some(_) => {}
                    None => return Err(Error::new(ErrorKind::Unreachable, "the connection to the broker has ended")),
                },
                () = at(due) => {
                    let delayed = self.delayed.remove(0);
                    let options = BasicNackOptions { requeue: true, multiple: false };
                    delayed.acker.nack(options).await.map_err(broken)?;
                    add(&self.status.counters.requeued, 1);
                }
                delivery = consumer.next() => {
                    let Some(first) = delivery else {
                        let what = format!("the broker has ended the consumer: is the queue {:?} gone?", self.way.queue);
                        return Err(Error::new(ErrorKind::Refused, what));
                    };
                    let first = first.map_err(broken)?;
                    let mut deliveries = vec![first];
                    while deliveries.len() < AT_A_TIME
                        && let Some(Some(next)) = consumer.next().now_or_never()
                    {
                        deliveries.push(next.map_err(broken)?);
                    }
                    self.take(deliveries).await.map_err(broken)?;
                }
            }
        }
    }

    /// Gives messages to the target, and tells the broker what has become of them.
    async fn take(&mut self, deliveries: Vec<Delivery>) -> lapin::Result<()> {
        add(&self.status.counters.accepted, deliveries.len() as u64);
        let name = &self.plan.definition.name;
        let target = &self.plan.definition.target;
        let mut taken = Vec::with_capacity(deliveries.len());
        let mut messages: Vec<Message> = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            let one = Taken {
                tag: delivery.delivery_tag,
                key: key_of(&delivery),
                tried: tried(&delivery),
                acker: delivery.acker.clone(),
            };
            if self.way.ack_mode == AckMode::Ack {
                one.acker.ack(BasicAckOptions::default()).await?;
            }
            match headers::inbound(name, delivery, target) {
                Ok(message) => {
                    messages.push(message);
                    taken.push(one);
                }
                Err(what) => self.reject(one, &format!("it can't be a message of xMsg: {what}")).await?,
            }
        }
        let outcomes = self.target.deliver(messages).await;
        let are_all_good = outcomes.iter().all(Result::is_ok);
        let last = taken.last().map(|one| one.tag);
        for (one, outcome) in taken.into_iter().zip(outcomes) {
            match outcome {
                Ok(()) => {
                    self.has_worked = true;
                    self.attempts.remove(&one.key);
                    add(&self.status.counters.delivered, 1);
                    match self.way.ack_mode {
                        // One acknowledgement for all of them follows, unless some others come before them that have none yet.
                        AckMode::OnConfirm if are_all_good && self.delayed.is_empty() => {}
                        AckMode::OnConfirm => {
                            one.acker.ack(BasicAckOptions::default()).await?;
                        }
                        AckMode::Reject => {
                            one.acker.reject(BasicRejectOptions { requeue: false }).await?;
                        }
                        AckMode::Ack | AckMode::NoAck => {}
                    }
                }
                Err(error) => self.failed(one, &error).await?,
            }
        }
        if self.way.ack_mode == AckMode::OnConfirm
            && are_all_good
            && self.delayed.is_empty()
            && let Some(last) = last
        {
            self.channel.basic_ack(last, BasicAckOptions { multiple: true }).await?;
        }
        Ok(())
    }

    /// The target has not taken it.
    async fn failed(&mut self, one: Taken, error: &Error) -> lapin::Result<()> {
        let what = error.with_causes();
        if matches!(self.way.ack_mode, AckMode::Ack | AckMode::NoAck) {
            add(&self.status.counters.dead, 1);
            self.status.note(format!(
                "a message was dropped, since ack_mode leaves nobody to give it back to: {what}"
            ));
            return Ok(());
        }
        let tried = self.count(&one);
        let is_last = tried >= self.way.delivery_limit;
        if self.way.on_error == OnError::Reject || !may_be_tried_again(error) || is_last {
            let often =
                if is_last { format!(" (tried {tried} times, delivery_limit)") } else { String::new() };
            return self.reject(one, &format!("{what}{often}")).await;
        }
        self.status.note(format!("a message goes back to its queue (tried {tried} times): {what}"));
        let at = xmsg_zmq::deadline::Deadline::after(self.way.requeue_delay).instant();
        self.delayed.push(Delayed { acker: one.acker, at });
        Ok(())
    }

    /// How often it has been tried, this time included.
    fn count(&mut self, one: &Taken) -> u32 {
        if let Some(tried) = one.tried {
            return tried.saturating_add(1);
        }
        if self.attempts.len() >= COUNTED {
            self.attempts.clear();
        }
        let count = self.attempts.entry(one.key).or_default();
        *count += 1;
        *count
    }

    async fn reject(&mut self, one: Taken, what: &str) -> lapin::Result<()> {
        self.attempts.remove(&one.key);
        add(&self.status.counters.dead, 1);
        self.status.note(format!(
            "a message is rejected; it goes to the dead-letter exchange, if its queue has one: {what}"
        ));
        if self.way.ack_mode != AckMode::NoAck {
            one.acker.reject(BasicRejectOptions { requeue: false }).await?;
        }
        Ok(())
    }
}

/// How often it was tried before, where the queue counts that.
fn tried(delivery: &Delivery) -> Option<u32> {
    let headers = delivery.properties.headers().as_ref()?;
    headers::text_of(headers.inner().get(DELIVERY_COUNT)?)?.parse().ok()
}

/// What tells messages apart, also when they come again.
fn key_of(delivery: &Delivery) -> u64 {
    let mut hasher = DefaultHasher::new();
    headers::id_of(&delivery.properties).hash(&mut hasher);
    delivery.properties.message_id().as_ref().map(lapin::types::ShortString::as_str).hash(&mut hasher);
    delivery.routing_key.as_str().hash(&mut hasher);
    delivery.data.hash(&mut hasher);
    hasher.finish()
}

/// Waits until then; for ever without a time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
