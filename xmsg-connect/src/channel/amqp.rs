//! A channel from a queue of a broker to the target. It consumes with acknowledgements, and bounds what is
//! tried again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Acker, Channel, Consumer, Event};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::ChannelPlan;
use super::target::{OpenTarget, Targets, is_retryable};
use crate::amqp::{BrokerConnection, broker_error, headers, reply_code, short};
use crate::definition::{AckMode, AmqpChannel, OnError, QueueDeclare};
use crate::error::{Error, ErrorKind, Result};
use crate::federation::{Decision, Id};
use crate::outbound::Outbound;
use crate::receive_memory::{ConsumerMemory, ReceiveMemory};
use crate::status::{LinkState, Status, add};
use crate::supervise::Failure;

/// The number of messages that are given to the target at a time.
const BATCH_MAX: usize = 256;
/// The bytes of messages that are given to the target at a time. A longer message goes alone.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// How long the target may take before nothing more is read from the broker.
const GRACE: Duration = Duration::from_millis(20);

/// Consumes until something breaks, or `stop`.
pub(super) async fn session(
    status: &Arc<Status>,
    targets: &Targets,
    plan: &ChannelPlan,
    settings: &AmqpChannel,
    receive_memory: &ReceiveMemory,
    attempt: usize,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let Some(broker) = &plan.broker else { return Ok(()) };
    status.set(LinkState::Connecting);
    let open = async {
        let target = targets.open(&plan.definition.target)?;
        let connection =
            BrokerConnection::open(broker, &plan.definition.name, attempt, receive_memory).await?;
        let limit = broker.connect_timeout.get();
        if let Some(federation) = &plan.federation {
            // First the queue, which is to get what is published from now on; what is in it may have to wait.
            connection.with_timeout(limit, federation.declare_queue(&connection.channel)).await?;
            federation.wait_for_subscribers().await;
        }
        let consumer_memory = receive_memory.consumer(&status.label(), usize::MAX);
        connection.limit_reads_to(&consumer_memory);
        let consumer = connection.with_timeout(limit, consume(&connection.channel, settings)).await?;
        Ok::<_, Error>((target, connection, consumer, consumer_memory))
    };
    let (target, connection, consumer, consumer_memory) = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        connection = open => connection?,
    };
    status.set_peer(Some(connection.uri.clone()));
    status.set(LinkState::Connected);
    add(&status.counters.connections, 1);
    tracing::info!("{}: consumes {:?} at {}", status.label(), settings.queue, connection.uri);
    let mut session =
        Session { status, plan, settings, target, channel: connection.channel.clone(), has_worked: false };
    let ended = session.run(consumer, &connection, &consumer_memory, &stop).await;
    let had_worked = session.has_worked;
    drop(session);
    connection.close().await;
    ended.map_err(|error| Failure { error, had_worked })
}

/// Looks for the queue or makes it, and begins to consume.
async fn consume(channel: &Channel, settings: &AmqpChannel) -> Result<Consumer> {
    let queue = &settings.queue;
    if let Some((options, arguments)) = declaration(settings) {
        let declared = channel.queue_declare(short(queue), options, arguments).await;
        declared.map_err(|error| {
            broker_error(
                error,
                &format!(
                    "the queue {queue:?} can't be used (queue, queue_declare = {:?})",
                    settings.queue_declare
                ),
            )
        })?;
    }
    if settings.ack_mode != AckMode::NoAck {
        let qos = channel.basic_qos(settings.prefetch, BasicQosOptions::default()).await;
        qos.map_err(|error| broker_error(error, "the prefetch can't be set (prefetch_count)"))?;
    }
    let tag = format!("{}-{}", settings.consumer_tag_prefix, Uuid::new_v4());
    let options =
        BasicConsumeOptions { no_ack: settings.ack_mode == AckMode::NoAck, ..BasicConsumeOptions::default() };
    let consumer = channel.basic_consume(short(queue), short(&tag), options, FieldTable::default()).await;
    consumer.map_err(|error| broker_error(error, &format!("the queue {queue:?} can't be consumed")))
}

fn declaration(settings: &AmqpChannel) -> Option<(QueueDeclareOptions, FieldTable)> {
    let mut arguments = FieldTable::default();
    match settings.queue_declare {
        QueueDeclare::None => None,
        QueueDeclare::Passive => {
            Some((QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() }, arguments))
        }
        QueueDeclare::Active => {
            arguments.insert(short("x-queue-type"), AMQPValue::LongString("quorum".into()));
            // The broker counts how often a message came back. Ours is the number of times that it is tried.
            let limit = i64::from(settings.delivery_limit.saturating_sub(1));
            arguments.insert(short("x-delivery-limit"), AMQPValue::LongLongInt(limit));
            if let Some(dead) = &settings.dead_letter {
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

/// A message on its way to the target, which is acknowledged once the target has it.
struct PendingAck {
    acker: Acker,
    tag: u64,
    /// In a federation, the proxy that the message comes from, and its identifier.
    federated_id: Option<(Arc<str>, Id)>,
}

struct Session<'a> {
    status: &'a Arc<Status>,
    plan: &'a ChannelPlan,
    settings: &'a AmqpChannel,
    target: OpenTarget,
    channel: Channel,
    has_worked: bool,
}

impl Session<'_> {
    async fn run(
        &mut self,
        mut consumer: Consumer,
        connection: &BrokerConnection,
        consumer_memory: &ConsumerMemory,
        stop: &CancellationToken,
    ) -> Result<()> {
        let mut events = Box::pin(connection.client.events_listener());
        let connection_error = |error: lapin::Error| {
            let what = format!("the connection to the broker {} has ended", connection.uri);
            match crate::amqp::protocol_error(&error) {
                Some((reply_code::CONNECTION_FORCED, text)) => {
                    Error::new(ErrorKind::Unreachable, format!("{what}: {text}")).with_source(error)
                }
                Some(_) => broker_error(error, "the broker has ended the channel"),
                None => Error::new(ErrorKind::Unreachable, what).with_source(error),
            }
        };
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                event = events.next() => match event {
                    Some(Event::Error(error)) => return Err(connection_error(error)),
                    Some(_) => {}
                    None => return Err(Error::new(ErrorKind::Unreachable, "the connection to the broker has ended")),
                },
                delivery = consumer.next() => {
                    let Some(first) = delivery else {
                        let what = format!("the broker has ended the consumer: is the queue {:?} gone?", self.settings.queue);
                        return Err(Error::new(ErrorKind::Refused, what));
                    };
                    let first = first.map_err(connection_error)?;
                    let mut bytes = first.data.len();
                    let mut deliveries = vec![first];
                    while deliveries.len() < BATCH_MAX
                        && bytes < BATCH_BYTES_MAX
                        && let Some(Some(next)) = consumer.next().now_or_never()
                    {
                        let next = next.map_err(connection_error)?;
                        bytes += next.data.len();
                        deliveries.push(next);
                    }
                    for delivery in &deliveries {
                        consumer_memory.received(delivery.data.len(), delivery.data.len());
                    }
                    // The client reads whatever the broker sends, although nobody takes it: what the prefetch
                    // allows may be many messages.
                    let grace = if bytes < BATCH_BYTES_MAX { GRACE } else { Duration::ZERO };
                    connection.throttled_after(grace, self.process(deliveries, stop)).await.map_err(connection_error)?;
                    consumer_memory.release(bytes);
                }
            }
        }
    }

    /// Gives messages to the target, and tells the broker what has become of them.
    async fn process(&mut self, deliveries: Vec<Delivery>, stop: &CancellationToken) -> lapin::Result<()> {
        add(&self.status.counters.accepted, deliveries.len() as u64);
        let name = &self.plan.definition.name;
        let target = &self.plan.definition.target;
        let mut pending_acks = Vec::with_capacity(deliveries.len());
        let mut messages: Vec<Outbound> = Vec::with_capacity(deliveries.len());
        let mut skipped = Vec::new();
        let mut federated_ids = HashSet::new();
        for delivery in deliveries {
            let redeliveries = headers::redelivery_count(&delivery);
            let mut pending =
                PendingAck { tag: delivery.delivery_tag, acker: delivery.acker.clone(), federated_id: None };
            if self.settings.ack_mode == AckMode::Ack {
                pending.acker.ack(BasicAckOptions::default()).await?;
            }
            if let Some(redeliveries) =
                redeliveries.filter(|redeliveries| *redeliveries >= self.settings.delivery_limit)
            {
                self.reject(pending, &format!("it came back {redeliveries} times (delivery_limit)")).await?;
                continue;
            }
            let identity = headers::identity(name, &delivery.properties);
            let mut origin = None;
            if let Some(federation) = &self.plan.federation {
                let decision = match federation.decide(&delivery) {
                    // This batch has the message already.
                    Decision::Import(from, Some(id)) if !federated_ids.insert((from.clone(), id)) => {
                        Decision::Duplicate
                    }
                    decision => decision,
                };
                let counters = &self.status.counters;
                match decision {
                    Decision::Import(from, id) => {
                        pending.federated_id = id.map(|id| (from.clone(), id));
                        origin = Some(from);
                    }
                    Decision::PassOver => add(&counters.passed_over, 1),
                    Decision::Duplicate => add(&counters.duplicates, 1),
                }
                if origin.is_none() {
                    skipped.push(pending);
                    continue;
                }
            }
            match headers::inbound(name, delivery, target) {
                Ok(mut message) => {
                    if let (Some(federation), Some(origin)) = (&self.plan.federation, &origin) {
                        message = federation.with_origin(message, origin);
                    }
                    messages.push(identity.apply_to(Outbound::new(message)));
                    pending_acks.push(pending);
                }
                Err(what) => self.reject(pending, &format!("it can't be a message of xMsg: {what}")).await?,
            }
        }
        self.deliver(pending_acks, messages, skipped, stop).await
    }

    /// Tries until the target has all of them. What it does not take for a fault of its own stays here,
    /// without an acknowledgement, so that the broker keeps it and sends no more than the prefetch; the fault
    /// is no reason to give a message up.
    async fn deliver(
        &mut self,
        mut pending_acks: Vec<PendingAck>,
        mut messages: Vec<Outbound>,
        skipped: Vec<PendingAck>,
        stop: &CancellationToken,
    ) -> lapin::Result<()> {
        let mut delivered = Vec::with_capacity(pending_acks.len());
        let mut is_contiguous = true;
        while !messages.is_empty() {
            let outcomes = self.target.send(&messages).await;
            let (mut acks_to_retry, mut messages_to_retry) = (Vec::new(), Vec::new());
            let mut fault = None;
            for ((pending, message), outcome) in pending_acks.into_iter().zip(messages).zip(outcomes) {
                match outcome {
                    Ok(()) => delivered.push(pending),
                    Err(error) if is_retryable(&error) && self.settings.on_error == OnError::Requeue => {
                        fault = Some(error);
                        acks_to_retry.push(pending);
                        messages_to_retry.push(message);
                    }
                    Err(error) => {
                        is_contiguous = false;
                        self.reject(pending, &error.with_causes()).await?;
                    }
                }
            }
            (pending_acks, messages) = (acks_to_retry, messages_to_retry);
            if let Some(fault) = fault
                && !self.pause(&fault, messages.len(), stop).await
            {
                // What the target has got so far is safe only once that is confirmed.
                is_contiguous = false;
                break;
            }
        }
        while !delivered.is_empty()
            && let Err(fault) = self.target.confirm().await
        {
            // Without the broker these come again. A federation waits for the proxy all the same: only then
            // is it known that it has them, and they are recognized.
            let goes_on = self.pause(&fault, delivered.len(), stop).await;
            if !goes_on && (stop.is_cancelled() || self.plan.federation.is_none()) {
                return Ok(());
            }
        }
        if let Some(federation) = &self.plan.federation {
            // Before the broker is told: what it has not heard of by the end of the connection comes again.
            federation.remember(delivered.iter().filter_map(|pending| pending.federated_id.as_ref()));
        }
        add(&self.status.counters.delivered, delivered.len() as u64);
        delivered.extend(skipped);
        delivered.sort_unstable_by_key(|pending| pending.tag);
        self.acknowledge(delivered, is_contiguous).await
    }

    /// Waits before the target is tried again. Returns whether that makes sense: nobody has told the session
    /// to end, and the broker still waits for us.
    async fn pause(&self, fault: &Error, messages: usize, stop: &CancellationToken) -> bool {
        add(&self.status.counters.repeated, messages as u64);
        self.status.note(format!("{messages} messages are held, and tried again: {}", fault.with_causes()));
        tokio::select! {
            () = stop.cancelled() => false,
            () = tokio::time::sleep(self.settings.requeue_delay) => self.channel.status().connected(),
        }
    }

    /// Acknowledges messages that the target has, or does not get for good reasons. `is_contiguous` says that
    /// no message between them was rejected or kept.
    async fn acknowledge(&mut self, delivered: Vec<PendingAck>, is_contiguous: bool) -> lapin::Result<()> {
        let Some(last) = delivered.last().map(|pending| pending.tag) else { return Ok(()) };
        self.has_worked = true;
        match self.settings.ack_mode {
            AckMode::OnConfirm if is_contiguous => {
                self.channel.basic_ack(last, BasicAckOptions { multiple: true }).await?;
            }
            AckMode::OnConfirm => {
                for pending in delivered {
                    pending.acker.ack(BasicAckOptions::default()).await?;
                }
            }
            AckMode::Reject => {
                for pending in delivered {
                    pending.acker.reject(BasicRejectOptions { requeue: false }).await?;
                }
            }
            AckMode::Ack | AckMode::NoAck => {}
        }
        Ok(())
    }

    async fn reject(&mut self, pending: PendingAck, what: &str) -> lapin::Result<()> {
        add(&self.status.counters.dead, 1);
        self.status.note(format!(
            "a message is rejected; it goes to the dead-letter exchange, if its queue has one: {what}"
        ));
        if self.settings.ack_mode != AckMode::NoAck {
            pending.acker.reject(BasicRejectOptions { requeue: false }).await?;
        }
        Ok(())
    }
}
