//! The session of one subscriber: what the broker has given it, and what it has acknowledged of that.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use xmsg_core::Message;
use xmsg_core::durable::protocol::{Item, Reply, Request};
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::link::throttle::Throttle;

use super::server::Counters;
use super::{DurablePlan, declare};
use crate::amqp::{Link, headers, refused, short};
use crate::definition::{ConnectionDefinition, Target};
use crate::error::{Error, ErrorKind, Result};
use crate::room::{Held, Room};

/// Messages in one answer.
const ANSWER: usize = 100;
/// Answers whose messages a subscriber may hold without an acknowledgement: one that is worked on, and one
/// that waits. The broker is asked for no more messages, since it counts each of them as tried when the
/// session ends.
const ANSWERS: usize = 2;
/// Bytes of messages in one answer; one that is longer goes alone.
const ANSWER_BYTES: usize = 4 << 20;
/// What a message is charged beside its frames.
const OVERHEAD: usize = 64;
/// How long all nodes of the broker together may take to open a session: the subscriber waits a little longer
/// for the answer.
const OPENED_WITHIN: Duration = Duration::from_secs(8);
/// How long the broker may take for what a request needs of it, unless `connect_timeout` is shorter. The
/// subscriber waits a little longer for the answer.
pub(super) const ASKED: Duration = Duration::from_secs(8);
/// How often a session looks whether it is in the way of others.
const LOOK: Duration = Duration::from_secs(1);
/// How long the end of a session waits for the answer of the broker.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(1);
/// How long a request may wait for messages.
const WAIT: Duration = Duration::from_secs(30);

/// What a session is asked or told.
#[derive(Debug)]
pub(super) enum Ask {
    /// A request, and where its answer goes.
    Request { request: Request, answer: oneshot::Sender<Reply> },
    /// An answer with so many messages from this number on, of so many bytes, was too large to be sent.
    TooLarge { number: u64, messages: usize, bytes: usize },
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
    link: &'a Link,
    /// Not acknowledged, in the order of their numbers, which are the tags of the broker.
    held: VecDeque<Item>,
    /// What is held, and what is received, in the budget of the process.
    memory: Arc<Held>,
    /// When something was acknowledged last, or the first of what is held has come.
    progressed: Instant,
    /// Bytes of messages in one answer; one that is longer goes alone. Less if the proxy takes less.
    answer_bytes: usize,
    waiting: Option<Waiting>,
}

impl Session<'_> {
    /// Opens the session, says whether that went well, and answers until the subscriber ends it or is silent
    /// for too long, or the broker is lost.
    pub(super) async fn run(
        plan: &DurablePlan,
        counters: &Counters,
        room: &Room,
        log: &Throttle,
        mut asked: mpsc::Receiver<Ask>,
        ready: oneshot::Sender<Result<()>>,
    ) {
        let link = match open(plan, &counters.node, room).await {
            Ok(link) => link,
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        let most = usize::try_from(plan.definition.max_session_bytes.get()).unwrap_or(usize::MAX);
        let memory = room.consumer(&plan.definition.outgoing_name(), most);
        link.keep_to(&memory);
        if ready.send(Ok(())).is_ok() {
            let mut session = Session {
                plan,
                counters,
                link: &link,
                held: VecDeque::new(),
                memory,
                progressed: Instant::now(),
                answer_bytes: ANSWER_BYTES,
                waiting: None,
            };
            if let Err(error) = session.serve(&mut asked).await {
                counters.sessions_lost.fetch_add(1, Ordering::Relaxed);
                if let Some(unlogged) = log.pass("sessions of subscribers that were lost") {
                    tracing::warn!(
                        unlogged,
                        "durable {:?}: a subscriber has lost its session with the broker, and gets another one: {}",
                        plan.definition.name,
                        error.with_causes()
                    );
                }
            }
        }
        // What is asked from now on is answered as unknown.
        asked.close();
        link.close().await;
    }

    async fn serve(&mut self, asked: &mut mpsc::Receiver<Ask>) -> Result<()> {
        // None until messages are asked for: a subscriber that only looks keeps none from others.
        let mut consumer = None;
        let lease = self.plan.definition.lease.get();
        let mut heard = Instant::now();
        let mut look = tokio::time::interval(LOOK);
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
                    let Some(ask) = ask else { return Ok(()) };
                    heard = Instant::now();
                    // However long the broker is silent: the session ends, and its messages go back.
                    let (link, limit) = (self.link, self.limit());
                    if link.within(limit, self.act(ask, &mut consumer)).await? {
                        return Ok(());
                    }
                }
                delivery = next_of(&mut consumer) => {
                    let Some(first) = delivery else { return Ok(()) };
                    self.hold(first).await?;
                    while let Some(Some(next)) = next_of(&mut consumer).now_or_never() {
                        self.hold(next).await?;
                    }
                }
                _ = look.tick() => {
                    if self.progressed.elapsed() >= lease && self.memory.is_in_the_way() {
                        let what = "others wait for memory (--memory-limit), and this subscriber holds much and has acknowledged nothing for the time of its lease: its messages go back to the queue";
                        return Err(Error::new(ErrorKind::Full, what));
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

    /// Acts on a request, and consumes from the first on that wants messages. Whether it ends the session.
    async fn act(&mut self, ask: Ask, consumer: &mut Option<Consumer>) -> Result<bool> {
        let (request, answer) = match ask {
            Ask::Request { request, answer } => (request, answer),
            Ask::TooLarge { number, messages, bytes } => {
                self.too_large(number, messages, bytes).await?;
                return Ok(false);
            }
        };
        if let (None, Request::Next { max, .. }) = (&consumer, &request) {
            match consume(&self.link.channel, self.plan, self.prefetch(*max)).await {
                Ok(begun) => *consumer = Some(begun),
                Err(error) => {
                    let what = format!("the queue {} can't be read", self.plan.definition.queue());
                    let error = refused(error, &what);
                    let _ = answer.send(Reply::Unavailable(error.with_causes()));
                    return Err(error);
                }
            }
        }
        self.handle(request, answer).await
    }

    async fn handle(&mut self, request: Request, answer: oneshot::Sender<Reply>) -> Result<bool> {
        match request {
            Request::Next { after, ack, max, wait_ms, .. } => {
                self.acknowledge(ack).await?;
                let wait = Duration::from_millis(wait_ms.into()).min(WAIT);
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
                self.confirm_acknowledgements().await?;
                let _ = answer.send(Reply::Messages(Vec::new()));
                Ok(true)
            }
            _ => {
                let _ = answer.send(Reply::UnknownSession);
                Ok(false)
            }
        }
    }

    /// Gives out less at a time from now on. A message that does not fit alone goes to the dead letters:
    /// nobody could ever get it, nor what is behind it.
    async fn too_large(&mut self, number: u64, messages: usize, bytes: usize) -> Result<()> {
        if messages > 1 {
            self.answer_bytes = (bytes / 2).max(1);
            return Ok(());
        }
        let Ok(at) = self.held.binary_search_by_key(&number, |item| item.number) else { return Ok(()) };
        self.reject(number).await?;
        if let Some(item) = self.held.remove(at) {
            self.memory.let_go(charge(&item));
        }
        tracing::warn!(
            "durable {:?}: a message of {bytes} bytes goes to the dead letters: with it, an answer is longer than the proxy takes",
            self.plan.definition.name
        );
        Ok(())
    }

    /// Has the broker put a message among the dead letters, and counts it.
    async fn reject(&self, number: u64) -> Result<()> {
        let rejected = self.link.channel.basic_reject(number, BasicRejectOptions { requeue: false }).await;
        rejected.map_err(|error| refused(error, "nothing can be rejected"))?;
        self.counters.rejected.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Waits until the broker has the acknowledgements. It confirms none, but its answer to what follows them
    /// on the same channel proves that they have arrived. If there is no room to read what comes before this
    /// answer, they have at least been written for some time.
    async fn confirm_acknowledgements(&self) -> Result<()> {
        let closing = Deadline::after(CONFIRMED_WITHIN).limit(self.link.channel.close(200, short("OK")));
        match closing.await {
            Ok(closed) => {
                closed.map_err(|error| refused(error, "the broker has not confirmed the end of the session"))
            }
            Err(_) => Ok(()),
        }
    }

    /// Messages up to this number are done with.
    async fn acknowledge(&mut self, number: u64) -> Result<()> {
        let count = self.held.partition_point(|item| item.number <= number);
        let Some(last) = count.checked_sub(1).and_then(|last| self.held.get(last)) else { return Ok(()) };
        let acked = self.link.channel.basic_ack(last.number, BasicAckOptions { multiple: true }).await;
        acked.map_err(|error| refused(error, "nothing can be acknowledged"))?;
        self.memory.let_go(self.held.drain(..count).map(|item| charge(&item)).sum());
        self.progressed = Instant::now();
        self.counters.acknowledged.fetch_add(count as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Keeps a message until it is acknowledged.
    async fn hold(&mut self, delivery: lapin::Result<Delivery>) -> Result<()> {
        let delivery = delivery.map_err(|error| refused(error, "no more messages come"))?;
        let number = delivery.delivery_tag;
        let returned = headers::returned(&delivery).unwrap_or(0);
        let bytes = delivery.data.len();
        let read = headers::inbound(&self.plan.definition.name, delivery, &Target::Original);
        self.memory.received(bytes, read.as_ref().map_or(0, charge_of_message));
        match read {
            Ok(message) => {
                let item = Item { number, returned, message };
                self.counters.longest.fetch_max(charge(&item), Ordering::Relaxed);
                if self.held.is_empty() {
                    self.progressed = Instant::now();
                }
                self.held.push_back(item);
            }
            Err(what) => {
                let name = &self.plan.definition.name;
                tracing::warn!(
                    "durable {name:?}: a message goes to the dead letters: it can't be one of xMsg: {what}"
                );
                self.link.within(self.limit(), self.reject(number)).await?;
            }
        }
        Ok(())
    }

    /// How long the broker may take for something that is asked of it.
    fn limit(&self) -> Duration {
        let definition = self.plan.broker.as_ref();
        definition.map_or(ASKED, |broker| broker.connect_timeout.get().min(ASKED))
    }

    /// How many messages the broker may send without an acknowledgement, for a subscriber that wants at most
    /// so many in an answer. The broker does not know how long they may be; the longest so far tells how many
    /// there is room for, so that others get those that there is none for.
    fn prefetch(&self, max: u32) -> u16 {
        let wanted = (max as usize).clamp(1, ANSWER) * ANSWERS;
        let longest = self.counters.longest.load(Ordering::Relaxed).max(1) as u64;
        let room = self.plan.definition.max_session_bytes.get() / longest;
        u16::try_from((wanted as u64).min(room).max(1)).unwrap_or(u16::MAX)
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
                bytes += charge(item);
                is_first || bytes <= self.answer_bytes
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

/// Connects to one of the nodes, and makes the queue if it is not there. The one that worked `last` is tried
/// first. Each has an equal share of the time that is left, so that one that says nothing keeps none of the
/// others from being tried.
async fn open(plan: &DurablePlan, last: &AtomicUsize, room: &Room) -> Result<Link> {
    let Some(broker) = &plan.broker else {
        return Err(Error::new(ErrorKind::InvalidDefinition, "its connection is not defined"));
    };
    let mut failure = None;
    let deadline = Deadline::after(OPENED_WITHIN);
    let (nodes, first) = (broker.uris.len(), last.load(Ordering::Relaxed));
    for tried in 0..nodes {
        let turn = (first + tried) % nodes;
        let share = deadline.left() / u32::try_from(nodes - tried).unwrap_or(u32::MAX);
        match Deadline::after(share).limit(open_at(plan, broker, turn, room)).await {
            Ok(Ok(opened)) => {
                last.store(turn, Ordering::Relaxed);
                return Ok(opened);
            }
            Ok(Err(error)) => failure = Some(error),
            Err(_) => {
                let what = format!("the broker {} does not answer", broker.uris[turn]);
                failure = Some(Error::new(ErrorKind::Unreachable, what));
            }
        }
    }
    Err(failure.unwrap_or_else(|| Error::new(ErrorKind::InvalidDefinition, "it has no address (uris)")))
}

async fn open_at(
    plan: &DurablePlan,
    broker: &ConnectionDefinition,
    turn: usize,
    room: &Room,
) -> Result<Link> {
    let link = Link::open(broker, &plan.definition.outgoing_name(), turn, room).await?;
    link.within(broker.connect_timeout.get(), declare(&link.channel, &plan.definition)).await?;
    Ok(link)
}

/// Bytes that an answer takes while it is made and sent.
pub(super) fn charge_of(reply: &Reply) -> usize {
    match reply {
        Reply::Messages(items) => items.iter().map(charge).sum(),
        _ => OVERHEAD,
    }
}

/// What a message counts for in the bounds.
fn charge(item: &Item) -> usize {
    charge_of_message(&item.message)
}

fn charge_of_message(message: &Message) -> usize {
    message.size() + OVERHEAD
}

/// Begins to consume; so many messages may be without an acknowledgement.
async fn consume(channel: &Channel, plan: &DurablePlan, prefetch: u16) -> lapin::Result<Consumer> {
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
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
