//! From a queue of a broker to the target: consuming with acknowledgements, a bound for what is tried again,
//! and what a broker refuses.

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
use super::target::{Targets, Way, may_be_tried_again};
use crate::amqp::{Link, headers, refused, short};
use crate::definition::{AckMode, AmqpChannel, OnError, QueueDeclare};
use crate::error::{Error, ErrorKind, Result};
use crate::federation::{Id, Verdict};
use crate::outbound::Outbound;
use crate::room::{Held, Room};
use crate::status::{LinkState, Status, add};
use crate::supervise::Failure;

/// Messages that are given to the target at a time.
const AT_A_TIME: usize = 256;
/// Bytes of messages that are given to the target at a time; a longer one goes alone.
const BYTES: usize = 1 << 20;
/// How long the target may take before nothing more is read from the broker.
const GRACE: Duration = Duration::from_millis(20);

/// Consumes until something breaks, or `stop`.
pub(super) async fn session(
    status: &Arc<Status>,
    targets: &Targets,
    plan: &ChannelPlan,
    way: &AmqpChannel,
    room: &Room,
    attempt: usize,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let Some(broker) = &plan.broker else { return Ok(()) };
    status.set(LinkState::Connecting);
    let open = async {
        let target = targets.open(&plan.definition.target)?;
        let opened = Link::open(broker, &plan.definition.name, attempt, room).await?;
        let limit = broker.connect_timeout.get();
        if let Some(federation) = &plan.federation {
            // First the queue, which is to get what is published from now on; what is in it may have to wait.
            opened.within(limit, federation.prepare(&opened.channel)).await?;
            federation.hold().await;
        }
        let held = room.consumer(&status.label(), usize::MAX);
        opened.keep_to(&held);
        let consumer = opened.within(limit, consume(&opened.channel, way)).await?;
        Ok::<_, Error>((target, opened, consumer, held))
    };
    let (target, opened, consumer, held) = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        opened = open => opened?,
    };
    status.set_peer(Some(opened.uri.clone()));
    status.set(LinkState::Connected);
    add(&status.counters.connections, 1);
    tracing::info!("{}: consumes {:?} at {}", status.label(), way.queue, opened.uri);
    let mut session =
        Session { status, plan, way, target, channel: opened.channel.clone(), has_worked: false };
    let ended = session.run(consumer, &opened, &held, &stop).await;
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

/// A message on its way to the target.
struct Taken {
    acker: Acker,
    tag: u64,
    /// In a federation: where it comes from, and its identifier.
    source: Option<(Arc<str>, Id)>,
}

struct Session<'a> {
    status: &'a Arc<Status>,
    plan: &'a ChannelPlan,
    way: &'a AmqpChannel,
    target: Way,
    channel: Channel,
    has_worked: bool,
}

impl Session<'_> {
    async fn run(
        &mut self,
        mut consumer: Consumer,
        opened: &Link,
        held: &Held,
        stop: &CancellationToken,
    ) -> Result<()> {
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
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                event = events.next() => match event {
                    Some(Event::Error(error)) => return Err(broken(error)),
                    Some(_) => {}
                    None => return Err(Error::new(ErrorKind::Unreachable, "the connection to the broker has ended")),
                },
                delivery = consumer.next() => {
                    let Some(first) = delivery else {
                        let what = format!("the broker has ended the consumer: is the queue {:?} gone?", self.way.queue);
                        return Err(Error::new(ErrorKind::Refused, what));
                    };
                    let first = first.map_err(broken)?;
                    let mut bytes = first.data.len();
                    let mut deliveries = vec![first];
                    while deliveries.len() < AT_A_TIME
                        && bytes < BYTES
                        && let Some(Some(next)) = consumer.next().now_or_never()
                    {
                        let next = next.map_err(broken)?;
                        bytes += next.data.len();
                        deliveries.push(next);
                    }
                    for delivery in &deliveries {
                        held.received(delivery.data.len(), delivery.data.len());
                    }
                    // The client reads whatever the broker sends, although nobody takes it: what the prefetch
                    // allows may be many messages.
                    let grace = if bytes < BYTES { GRACE } else { Duration::ZERO };
                    opened.reading_little(grace, self.take(deliveries, stop)).await.map_err(broken)?;
                    held.let_go(bytes);
                }
            }
        }
    }

    /// Gives messages to the target, and tells the broker what has become of them.
    async fn take(&mut self, deliveries: Vec<Delivery>, stop: &CancellationToken) -> lapin::Result<()> {
        add(&self.status.counters.accepted, deliveries.len() as u64);
        let name = &self.plan.definition.name;
        let target = &self.plan.definition.target;
        let mut taken = Vec::with_capacity(deliveries.len());
        let mut messages: Vec<Outbound> = Vec::with_capacity(deliveries.len());
        let mut passed = Vec::new();
        let mut sources = HashSet::new();
        for delivery in deliveries {
            let tried = headers::returned(&delivery);
            let mut one = Taken { tag: delivery.delivery_tag, acker: delivery.acker.clone(), source: None };
            if self.way.ack_mode == AckMode::Ack {
                one.acker.ack(BasicAckOptions::default()).await?;
            }
            if let Some(tried) = tried.filter(|tried| *tried >= self.way.delivery_limit) {
                self.reject(one, &format!("it came back {tried} times (delivery_limit)")).await?;
                continue;
            }
            let identity = headers::identity(name, &delivery.properties);
            let mut origin = None;
            if let Some(federation) = &self.plan.federation {
                let verdict = match federation.judge(&delivery) {
                    // It came twice at once.
                    Verdict::Take(from, Some(id)) if !sources.insert((from.clone(), id)) => Verdict::Repeated,
                    verdict => verdict,
                };
                let counters = &self.status.counters;
                match verdict {
                    Verdict::Take(from, id) => {
                        one.source = id.map(|id| (from.clone(), id));
                        origin = Some(from);
                    }
                    Verdict::PassOver => add(&counters.passed_over, 1),
                    Verdict::Repeated => add(&counters.duplicates, 1),
                }
                if origin.is_none() {
                    passed.push(one);
                    continue;
                }
            }
            match headers::inbound(name, delivery, target) {
                Ok(mut message) => {
                    if let (Some(federation), Some(origin)) = (&self.plan.federation, &origin) {
                        message = federation.taken_in(message, origin);
                    }
                    messages.push(identity.put_on(Outbound::new(message)));
                    taken.push(one);
                }
                Err(what) => self.reject(one, &format!("it can't be a message of xMsg: {what}")).await?,
            }
        }
        self.hand_over(taken, messages, passed, stop).await
    }

    /// Tries until the target has all of them. What it does not take for a fault of its own stays here,
    /// without an acknowledgement, so that the broker keeps it and sends no more than the prefetch; the fault
    /// is no reason to give a message up.
    async fn hand_over(
        &mut self,
        mut taken: Vec<Taken>,
        mut messages: Vec<Outbound>,
        passed: Vec<Taken>,
        stop: &CancellationToken,
    ) -> lapin::Result<()> {
        let mut handed = Vec::with_capacity(taken.len());
        let mut is_plain = true;
        while !messages.is_empty() {
            let outcomes = self.target.hand_over(&messages).await;
            let mut again = (Vec::new(), Vec::new());
            let mut fault = None;
            for ((one, message), outcome) in taken.into_iter().zip(messages).zip(outcomes) {
                match outcome {
                    Ok(()) => handed.push(one),
                    Err(error) if may_be_tried_again(&error) && self.way.on_error == OnError::Requeue => {
                        fault = Some(error);
                        again.0.push(one);
                        again.1.push(message);
                    }
                    Err(error) => {
                        is_plain = false;
                        self.reject(one, &error.with_causes()).await?;
                    }
                }
            }
            (taken, messages) = again;
            if let Some(fault) = fault
                && !self.pause(&fault, messages.len(), stop).await
            {
                // What the target has got so far is safe only once that is confirmed.
                is_plain = false;
                break;
            }
        }
        while !handed.is_empty()
            && let Err(fault) = self.target.confirm().await
        {
            // Without the broker these come again. A federation waits for the proxy all the same: only then
            // is it known that it has them, and they are recognized.
            let goes_on = self.pause(&fault, handed.len(), stop).await;
            if !goes_on && (stop.is_cancelled() || self.plan.federation.is_none()) {
                return Ok(());
            }
        }
        if let Some(federation) = &self.plan.federation {
            // Before the broker is told: what it has not heard of by the end of the connection comes again.
            federation.remember(handed.iter().filter_map(|one| one.source.as_ref()));
        }
        add(&self.status.counters.delivered, handed.len() as u64);
        handed.extend(passed);
        handed.sort_unstable_by_key(|one| one.tag);
        self.settle(handed, is_plain).await
    }

    /// Waits before the target is tried again. Whether that makes sense: nobody has told the session to end,
    /// and the broker still waits for us.
    async fn pause(&self, fault: &Error, messages: usize, stop: &CancellationToken) -> bool {
        add(&self.status.counters.repeated, messages as u64);
        self.status.note(format!("{messages} messages are held, and tried again: {}", fault.with_causes()));
        tokio::select! {
            () = stop.cancelled() => false,
            () = tokio::time::sleep(self.way.requeue_delay) => self.channel.status().connected(),
        }
    }

    /// The target has these, or does not get them for good reasons. `are_all`: no other message came between
    /// them that was settled otherwise.
    async fn settle(&mut self, handed: Vec<Taken>, are_all: bool) -> lapin::Result<()> {
        let Some(last) = handed.last().map(|one| one.tag) else { return Ok(()) };
        self.has_worked = true;
        match self.way.ack_mode {
            AckMode::OnConfirm if are_all => {
                self.channel.basic_ack(last, BasicAckOptions { multiple: true }).await?;
            }
            AckMode::OnConfirm => {
                for one in handed {
                    one.acker.ack(BasicAckOptions::default()).await?;
                }
            }
            AckMode::Reject => {
                for one in handed {
                    one.acker.reject(BasicRejectOptions { requeue: false }).await?;
                }
            }
            AckMode::Ack | AckMode::NoAck => {}
        }
        Ok(())
    }

    async fn reject(&mut self, one: Taken, what: &str) -> lapin::Result<()> {
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
