//! The session of one subscriber: what the broker has given it, and what it has acknowledged of that.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use futures::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use xmsg_core::durable::protocol::{Item, Reply, Request};
use xmsg_zmq::deadline::Deadline;

use super::server::Counters;
use super::{DurablePlan, declare};
use crate::amqp::{Link, headers, short};
use crate::definition::{ConnectionDefinition, Target};
use crate::error::{Error, ErrorKind, Result};

/// Messages in one answer.
const ANSWER: usize = 100;
/// Answers whose messages a subscriber may hold without an acknowledgement: one that is worked on, and one
/// that waits. The broker is asked for no more messages, since it counts each of them as tried when the
/// session ends.
const ANSWERS: usize = 2;
/// Bytes of messages in one answer; one that is longer goes alone.
const ANSWER_BYTES: usize = 4 << 20;
/// How long a request may wait for messages.
const WAIT: std::time::Duration = std::time::Duration::from_secs(30);

/// A request, and where its answer goes.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) request: Request,
    pub(super) answer: oneshot::Sender<Reply>,
}

/// A request that waits for messages.
struct Waiting {
    after: u64,
    max: usize,
    until: Instant,
    answer: oneshot::Sender<Reply>,
}

pub(super) struct Session<'a> {
    plan: &'a DurablePlan,
    counters: &'a Counters,
    channel: Channel,
    /// Not acknowledged, in the order of their numbers, which are the tags of the broker.
    held: VecDeque<Item>,
    waiting: Option<Waiting>,
}

impl<'a> Session<'a> {
    /// Opens the session, says whether that went well, and answers until the subscriber ends it or is silent
    /// for too long, or the broker is lost.
    pub(super) async fn run(
        plan: &'a DurablePlan,
        counters: &'a Counters,
        mut asked: mpsc::Receiver<Ask>,
        ready: oneshot::Sender<Result<()>>,
    ) {
        let link = match open(plan).await {
            Ok(link) => link,
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        if ready.send(Ok(())).is_ok() {
            let channel = link.channel.clone();
            let mut session = Self { plan, counters, channel, held: VecDeque::new(), waiting: None };
            if let Err(error) = session.serve(&mut asked).await {
                tracing::warn!(
                    "durable {:?}: a subscriber has lost its session with the broker, and gets another one: {}",
                    plan.definition.name,
                    error
                );
            }
        }
        // What is asked from now on is answered as unknown.
        asked.close();
        link.close().await;
    }

    async fn serve(&mut self, asked: &mut mpsc::Receiver<Ask>) -> lapin::Result<()> {
        // None until messages are asked for: a subscriber that only looks keeps none from others.
        let mut consumer = None;
        let lease = self.plan.definition.lease.get();
        let mut heard = Instant::now();
        loop {
            if self.answer_if_due() {
                // From now on the subscriber has the time of its lease to come back.
                heard = Instant::now();
            }
            let silent_at = self.waiting.as_ref().map_or(heard, |waiting| waiting.until);
            let ends_at = Deadline::since(silent_at, lease).instant();
            let until = self.waiting.as_ref().map(|waiting| waiting.until);
            tokio::select! {
                biased;
                ask = asked.recv() => {
                    let Some(Ask { request, answer }) = ask else { return Ok(()) };
                    heard = Instant::now();
                    if let (None, Request::Next { max, .. }) = (&consumer, &request) {
                        match consume(&self.channel, self.plan, *max).await {
                            Ok(begun) => consumer = Some(begun),
                            Err(error) => {
                                let text = format!("the queue {} can't be read: {error}", self.plan.definition.queue());
                                let _ = answer.send(Reply::Unavailable(text));
                                return Err(error);
                            }
                        }
                    }
                    if self.handle(request, answer).await? {
                        return Ok(());
                    }
                }
                delivery = next_of(&mut consumer) => {
                    let Some(first) = delivery else { return Ok(()) };
                    self.hold(first?).await?;
                    while let Some(Some(next)) = next_of(&mut consumer).now_or_never() {
                        self.hold(next?).await?;
                    }
                }
                () = at(until) => {
                    if let Some(waiting) = self.waiting.take() {
                        heard = Instant::now();
                        let _ = waiting.answer.send(Reply::Messages(Vec::new()));
                    }
                }
                () = tokio::time::sleep_until(ends_at) => return Ok(()),
            }
        }
    }

    /// Acts on a request. Whether it ends the session.
    async fn handle(&mut self, request: Request, answer: oneshot::Sender<Reply>) -> lapin::Result<bool> {
        match request {
            Request::Next { after, ack, max, wait_ms, .. } => {
                self.acknowledge(ack).await?;
                let wait = std::time::Duration::from_millis(wait_ms.into()).min(WAIT);
                let max = (max as usize).clamp(1, ANSWER);
                let until = Deadline::after(wait).instant();
                let former = self.waiting.replace(Waiting { after, max, until, answer });
                // Nobody waits for it any more, since there is another one.
                if let Some(former) = former {
                    let _ = former.answer.send(Reply::Messages(Vec::new()));
                }
                Ok(false)
            }
            Request::Ack { ack, .. } => {
                self.acknowledge(ack).await?;
                let _ = answer.send(Reply::Messages(Vec::new()));
                Ok(false)
            }
            Request::End { ack, .. } => {
                self.acknowledge(ack).await?;
                let _ = answer.send(Reply::Messages(Vec::new()));
                Ok(true)
            }
            _ => {
                let _ = answer.send(Reply::UnknownSession);
                Ok(false)
            }
        }
    }

    /// Messages up to this number are done with.
    async fn acknowledge(&mut self, number: u64) -> lapin::Result<()> {
        let count = self.held.partition_point(|item| item.number <= number);
        let Some(last) = count.checked_sub(1).and_then(|last| self.held.get(last)) else { return Ok(()) };
        self.channel.basic_ack(last.number, BasicAckOptions { multiple: true }).await?;
        self.held.drain(..count);
        self.counters.acknowledged.fetch_add(count as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Keeps a message until it is acknowledged.
    async fn hold(&mut self, delivery: Delivery) -> lapin::Result<()> {
        let (number, acker) = (delivery.delivery_tag, delivery.acker.clone());
        let returned = headers::returned(&delivery).unwrap_or(0);
        match headers::inbound(&self.plan.definition.name, delivery, &Target::Original) {
            Ok(message) => self.held.push_back(Item { number, returned, message }),
            Err(what) => {
                let name = &self.plan.definition.name;
                tracing::warn!(
                    "durable {name:?}: a message goes to the dead letters: it can't be one of xMsg: {what}"
                );
                acker.reject(BasicRejectOptions { requeue: false }).await?;
            }
        }
        Ok(())
    }

    /// Answers the request that waits, if there is something for it. Whether it did.
    fn answer_if_due(&mut self) -> bool {
        let Some(waiting) = self.waiting.take() else { return false };
        let first = self.held.partition_point(|item| item.number <= waiting.after);
        let mut bytes = 0;
        let items: Vec<_> = self
            .held
            .iter()
            .skip(first)
            .take(waiting.max)
            .take_while(|item| {
                let is_first = bytes == 0;
                bytes += item.message.size() + 64;
                is_first || bytes <= ANSWER_BYTES
            })
            .cloned()
            .collect();
        if items.is_empty() {
            self.waiting = Some(waiting);
            return false;
        }
        self.counters.given_out.fetch_add(items.len() as u64, Ordering::Relaxed);
        let _ = waiting.answer.send(Reply::Messages(items));
        true
    }
}

/// Connects to one of the nodes, and makes the queue if it is not there.
async fn open(plan: &DurablePlan) -> Result<Link> {
    let Some(broker) = &plan.broker else {
        return Err(Error::new(ErrorKind::InvalidDefinition, "its connection is not defined"));
    };
    let mut failure = None;
    for turn in 0..broker.uris.len() {
        match open_at(plan, broker, turn).await {
            Ok(opened) => return Ok(opened),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| Error::new(ErrorKind::InvalidDefinition, "it has no address (uris)")))
}

async fn open_at(plan: &DurablePlan, broker: &ConnectionDefinition, turn: usize) -> Result<Link> {
    let link = Link::open(broker, &plan.definition.outgoing_name(), turn).await?;
    link.within(broker.connect_timeout.get(), declare(&link.channel, &plan.definition)).await?;
    Ok(link)
}

/// Begins to consume for a subscriber that wants at most so many messages in an answer.
async fn consume(channel: &Channel, plan: &DurablePlan, max: u32) -> lapin::Result<Consumer> {
    let prefetch = (max as usize).clamp(1, ANSWER) * ANSWERS;
    channel.basic_qos(u16::try_from(prefetch).unwrap_or(u16::MAX), BasicQosOptions::default()).await?;
    let (queue, options) = (plan.definition.queue(), BasicConsumeOptions::default());
    channel.basic_consume(short(&queue), short(""), options, FieldTable::default()).await
}

/// What comes next from the broker; for ever nothing while nothing is consumed.
async fn next_of(consumer: &mut Option<Consumer>) -> Option<lapin::Result<Delivery>> {
    match consumer {
        Some(consumer) => consumer.next().await,
        None => std::future::pending().await,
    }
}

/// Waits until then; for ever without a time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
