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
use crate::amqp::{BrokerConnection, broker_error, headers, short};
use crate::definition::{ConnectionDefinition, Target};
use crate::error::{Error, ErrorKind, Result};
use crate::receive_memory::{ConsumerMemory, ReceiveMemory};
use crate::sleeping::sleep_until;

/// How many messages one answer may have.
const ANSWER_MESSAGES_MAX: usize = 100;
/// How many answers a subscriber may hold without an acknowledgement: one that is worked on, and one that
/// waits. The broker is asked for no more messages, since it counts each of them as tried when the session
/// ends.
const ANSWERS_MAX: usize = 2;
/// The bytes of messages that one answer may have. A message that is longer goes alone.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// The bytes that a message is charged beside its frames.
const MESSAGE_OVERHEAD: usize = 64;
/// How long all nodes of the broker together may take to open a session: the subscriber waits a little longer
/// for the answer.
const OPENED_WITHIN: Duration = Duration::from_secs(8);
/// How long the broker may take for what a request needs of it, unless `connect_timeout` is shorter. The
/// subscriber waits a little longer for the answer.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(8);
/// How often a session checks whether it keeps memory from others.
const FAIRNESS_INTERVAL: Duration = Duration::from_secs(1);
/// How long the end of a session waits for the answer of the broker.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(1);
/// How long a request may wait for messages.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// A command for a session.
#[derive(Debug)]
pub(super) enum Command {
    /// A request, and where its answer goes.
    Request { request: Request, answer: oneshot::Sender<Reply> },
    /// An answer with so many messages from this number on, of so many bytes, was too large to be sent.
    TooLarge { number: u64, messages: usize, bytes: usize },
}

/// A request that waits for messages.
struct PendingRequest {
    after: u64,
    max: usize,
    until: Instant,
    answer: oneshot::Sender<Reply>,
}

pub(super) struct Session<'a> {
    plan: &'a DurablePlan,
    counters: &'a Counters,
    connection: &'a BrokerConnection,
    /// Messages that are not acknowledged, in the order of their numbers, which are the delivery tags of the
    /// broker.
    unacknowledged: VecDeque<Item>,
    /// The memory of what is held and received, in the budget of the process.
    memory: Arc<ConsumerMemory>,
    /// When something was acknowledged last, or the first message that is held has come.
    last_progress: Instant,
    /// The bytes of messages that one answer may have. They are fewer than [`ANSWER_BYTES_MAX`] if the proxy
    /// takes less.
    answer_bytes: usize,
    pending: Option<PendingRequest>,
    /// The largest number of a message that was given out.
    given_out: u64,
}

impl Session<'_> {
    /// Opens the session, says whether that went well, and answers until the subscriber ends it or is silent
    /// for too long, or the broker is lost.
    pub(super) async fn run(
        plan: &DurablePlan,
        counters: &Counters,
        receive_memory: &ReceiveMemory,
        log: &Throttle,
        mut commands: mpsc::Receiver<Command>,
        ready: oneshot::Sender<Result<()>>,
    ) {
        let connection = match open(plan, &counters.node, receive_memory).await {
            Ok(connection) => connection,
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        let most = usize::try_from(plan.definition.max_session_bytes.get()).unwrap_or(usize::MAX);
        let memory = receive_memory.consumer(&plan.definition.outgoing_name(), most);
        connection.limit_reads_to(&memory);
        if ready.send(Ok(())).is_ok() {
            let mut session = Session {
                plan,
                counters,
                connection: &connection,
                unacknowledged: VecDeque::new(),
                memory,
                last_progress: Instant::now(),
                answer_bytes: ANSWER_BYTES_MAX,
                pending: None,
                given_out: 0,
            };
            if let Err(error) = session.serve(&mut commands).await {
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
        commands.close();
        connection.close().await;
    }

    async fn serve(&mut self, commands: &mut mpsc::Receiver<Command>) -> Result<()> {
        // None until messages are asked for: a subscriber that only looks keeps none from others.
        let mut consumer = None;
        let lease = self.plan.definition.lease.get();
        let mut last_request = Instant::now();
        let mut fairness_check = tokio::time::interval(FAIRNESS_INTERVAL);
        loop {
            if self.try_answer() {
                // From now on the subscriber has the time of its lease to come back.
                last_request = Instant::now();
            }
            let silent_at = self.pending.as_ref().map_or(last_request, |pending| pending.until);
            let ends_at = Deadline::since(silent_at, lease).instant();
            let until = self.pending.as_ref().map(|pending| pending.until);
            tokio::select! {
                biased;
                command = commands.recv() => {
                    let Some(command) = command else { return Ok(()) };
                    last_request = Instant::now();
                    // However long the broker is silent: the session ends, and its messages go back.
                    let (connection, limit) = (self.connection, self.limit());
                    if connection.with_timeout(limit, self.handle_command(command, &mut consumer)).await? {
                        return Ok(());
                    }
                }
                delivery = next_delivery(&mut consumer) => {
                    let Some(first) = delivery else { return Ok(()) };
                    self.receive(first).await?;
                    while let Some(Some(next)) = next_delivery(&mut consumer).now_or_never() {
                        self.receive(next).await?;
                    }
                }
                _ = fairness_check.tick() => {
                    if self.last_progress.elapsed() >= lease && self.memory.starves_others() {
                        let what = "others wait for memory (--memory-limit), and this subscriber holds much and has acknowledged nothing for the time of its lease: its messages go back to the queue";
                        return Err(Error::new(ErrorKind::Full, what));
                    }
                }
                () = sleep_until(until) => {
                    if let Some(pending) = self.pending.take() {
                        last_request = Instant::now();
                        let _ = pending.answer.send(Reply::Messages(Vec::new()));
                    }
                }
                () = tokio::time::sleep_until(ends_at) => return Ok(()),
            }
        }
    }

    /// Handles a command, and begins to consume with the first request for messages. Returns whether the
    /// session ends.
    async fn handle_command(&mut self, command: Command, consumer: &mut Option<Consumer>) -> Result<bool> {
        let (request, answer) = match command {
            Command::Request { request, answer } => (request, answer),
            Command::TooLarge { number, messages, bytes } => {
                self.too_large(number, messages, bytes).await?;
                return Ok(false);
            }
        };
        if let (None, Request::Next { max, .. }) = (&consumer, &request) {
            match consume(&self.connection.channel, self.plan, self.prefetch(*max)).await {
                Ok(begun) => *consumer = Some(begun),
                Err(error) => {
                    let what = format!("the queue {} can't be read", self.plan.definition.queue());
                    let error = broker_error(error, &what);
                    let _ = answer.send(Reply::Unavailable(error.with_causes()));
                    return Err(error);
                }
            }
        }
        self.handle_request(request, answer).await
    }

    async fn handle_request(&mut self, request: Request, answer: oneshot::Sender<Reply>) -> Result<bool> {
        let claimed = match &request {
            Request::Next { after, ack, .. } => *after.max(ack),
            Request::Ack { ack, .. } | Request::End { ack, .. } => *ack,
            _ => 0,
        };
        // Somebody else may have answered the subscriber. Its acknowledgement would lose what it never got.
        if claimed > self.given_out {
            let _ = answer.send(Reply::UnknownSession);
            let what = format!(
                "it has received the number {claimed}, and {} is the largest that was given out: somebody else answers it",
                self.given_out
            );
            return Err(Error::new(ErrorKind::Refused, what));
        }
        match request {
            Request::Next { after, ack, max, wait_ms, .. } => {
                self.acknowledge(ack).await?;
                let wait = Duration::from_millis(wait_ms.into()).min(WAIT_MAX);
                let max = (max as usize).clamp(1, ANSWER_MESSAGES_MAX);
                let until = Deadline::after(wait).instant();
                let former = self.pending.replace(PendingRequest { after, max, until, answer });
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
        let Ok(at) = self.unacknowledged.binary_search_by_key(&number, |item| item.number) else {
            return Ok(());
        };
        self.reject(number).await?;
        if let Some(item) = self.unacknowledged.remove(at) {
            self.memory.release(charge(&item));
        }
        tracing::warn!(
            "durable {:?}: a message of {bytes} bytes goes to the dead letters: with it, an answer is longer than the proxy takes",
            self.plan.definition.name
        );
        Ok(())
    }

    /// Has the broker put a message among the dead letters, and counts it.
    async fn reject(&self, number: u64) -> Result<()> {
        let rejected =
            self.connection.channel.basic_reject(number, BasicRejectOptions { requeue: false }).await;
        rejected.map_err(|error| broker_error(error, "nothing can be rejected"))?;
        self.counters.rejected.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Waits until the broker has the acknowledgements. It confirms none, but its answer to what follows them
    /// on the same channel proves that they have arrived. If there is no room to read what comes before this
    /// answer, they have at least been written for some time.
    async fn confirm_acknowledgements(&self) -> Result<()> {
        let closing =
            Deadline::after(CONFIRMED_WITHIN).limit(self.connection.channel.close(200, short("OK")));
        match closing.await {
            Ok(closed) => closed
                .map_err(|error| broker_error(error, "the broker has not confirmed the end of the session")),
            Err(_) => Ok(()),
        }
    }

    /// Acknowledges the messages up to this number.
    async fn acknowledge(&mut self, number: u64) -> Result<()> {
        let count = self.unacknowledged.partition_point(|item| item.number <= number);
        let Some(last) = count.checked_sub(1).and_then(|last| self.unacknowledged.get(last)) else {
            return Ok(());
        };
        let acked = self.connection.channel.basic_ack(last.number, BasicAckOptions { multiple: true }).await;
        acked.map_err(|error| broker_error(error, "nothing can be acknowledged"))?;
        self.memory.release(self.unacknowledged.drain(..count).map(|item| charge(&item)).sum());
        self.last_progress = Instant::now();
        self.counters.acknowledged.fetch_add(count as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Keeps a message until it is acknowledged.
    async fn receive(&mut self, delivery: lapin::Result<Delivery>) -> Result<()> {
        let delivery = delivery.map_err(|error| broker_error(error, "no more messages come"))?;
        let number = delivery.delivery_tag;
        let returned = headers::redelivery_count(&delivery).unwrap_or(0);
        let bytes = delivery.data.len();
        let read = headers::inbound(&self.plan.definition.name, delivery, &Target::Original);
        self.memory.received(bytes, read.as_ref().map_or(0, charge_of_message));
        match read {
            Ok(message) => {
                let item = Item { number, returned, message };
                self.counters.longest.fetch_max(charge(&item), Ordering::Relaxed);
                if self.unacknowledged.is_empty() {
                    self.last_progress = Instant::now();
                }
                self.unacknowledged.push_back(item);
            }
            Err(what) => {
                let name = &self.plan.definition.name;
                tracing::warn!(
                    "durable {name:?}: a message goes to the dead letters: it can't be one of xMsg: {what}"
                );
                self.connection.with_timeout(self.limit(), self.reject(number)).await?;
            }
        }
        Ok(())
    }

    /// Returns how long the broker may take for a request.
    fn limit(&self) -> Duration {
        let definition = self.plan.broker.as_ref();
        definition.map_or(REQUEST_TIMEOUT, |broker| broker.connect_timeout.get().min(REQUEST_TIMEOUT))
    }

    /// Returns how many messages the broker may send without an acknowledgement, for a subscriber that wants
    /// at most so many in an answer. The broker does not know how long they may be. The longest so far tells
    /// how many there is room for, so that others get those that there is none for.
    fn prefetch(&self, max: u32) -> u16 {
        let wanted = (max as usize).clamp(1, ANSWER_MESSAGES_MAX) * ANSWERS_MAX;
        let longest = self.counters.longest.load(Ordering::Relaxed).max(1) as u64;
        let fitting = self.plan.definition.max_session_bytes.get() / longest;
        u16::try_from((wanted as u64).min(fitting).max(1)).unwrap_or(u16::MAX)
    }

    /// Answers the request that waits, if there is something for it. Returns whether it did.
    fn try_answer(&mut self) -> bool {
        let Some(pending) = self.pending.take() else { return false };
        let first = self.unacknowledged.partition_point(|item| item.number <= pending.after);
        let mut bytes = 0;
        let items: Vec<_> = self
            .unacknowledged
            .iter()
            .skip(first)
            .take(pending.max)
            .take_while(|item| {
                let is_first = bytes == 0;
                bytes += charge(item);
                is_first || bytes <= self.answer_bytes
            })
            .cloned()
            .collect();
        if items.is_empty() {
            self.pending = Some(pending);
            return false;
        }
        self.counters.given_out.fetch_add(items.len() as u64, Ordering::Relaxed);
        self.given_out = self.given_out.max(items.last().map_or(0, |item| item.number));
        let _ = pending.answer.send(Reply::Messages(items));
        true
    }
}

/// Connects to one of the nodes, and makes the queue if it is not there. The one that worked `last` is tried
/// first. Each has an equal share of the time that is left, so that one that says nothing keeps none of the
/// others from being tried.
async fn open(
    plan: &DurablePlan,
    last: &AtomicUsize,
    receive_memory: &ReceiveMemory,
) -> Result<BrokerConnection> {
    let Some(broker) = &plan.broker else {
        return Err(Error::new(ErrorKind::InvalidDefinition, "its connection is not defined"));
    };
    let mut failure = None;
    let deadline = Deadline::after(OPENED_WITHIN);
    let (nodes, first) = (broker.uris.len(), last.load(Ordering::Relaxed));
    for tried in 0..nodes {
        let node_index = (first + tried) % nodes;
        let share = deadline.left() / u32::try_from(nodes - tried).unwrap_or(u32::MAX);
        match Deadline::after(share).limit(open_at(plan, broker, node_index, receive_memory)).await {
            Ok(Ok(opened)) => {
                last.store(node_index, Ordering::Relaxed);
                return Ok(opened);
            }
            Ok(Err(error)) => failure = Some(error),
            Err(_) => {
                let what = format!("the broker {} does not answer", broker.uris[node_index]);
                failure = Some(Error::new(ErrorKind::Unreachable, what));
            }
        }
    }
    Err(failure.unwrap_or_else(|| Error::new(ErrorKind::InvalidDefinition, "it has no address (uris)")))
}

async fn open_at(
    plan: &DurablePlan,
    broker: &ConnectionDefinition,
    node_index: usize,
    receive_memory: &ReceiveMemory,
) -> Result<BrokerConnection> {
    let connection =
        BrokerConnection::open(broker, &plan.definition.outgoing_name(), node_index, receive_memory).await?;
    connection
        .with_timeout(broker.connect_timeout.get(), declare(&connection.channel, &plan.definition))
        .await?;
    Ok(connection)
}

/// Returns how many bytes an answer takes while it is made and sent.
pub(super) fn charge_of_reply(reply: &Reply) -> usize {
    match reply {
        Reply::Messages(items) => items.iter().map(charge).sum(),
        _ => MESSAGE_OVERHEAD,
    }
}

/// Returns how many bytes a message counts for in the bounds.
fn charge(item: &Item) -> usize {
    charge_of_message(&item.message)
}

fn charge_of_message(message: &Message) -> usize {
    message.size() + MESSAGE_OVERHEAD
}

/// Begins to consume. So many messages may be without an acknowledgement.
async fn consume(channel: &Channel, plan: &DurablePlan, prefetch: u16) -> lapin::Result<Consumer> {
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let (queue, options) = (plan.definition.queue(), BasicConsumeOptions::default());
    channel.basic_consume(short(&queue), short(""), options, FieldTable::default()).await
}

/// Waits for the next delivery of the broker, and for ever while nothing is consumed.
async fn next_delivery(consumer: &mut Option<Consumer>) -> Option<lapin::Result<Delivery>> {
    match consumer {
        Some(consumer) => consumer.next().await,
        None => std::future::pending().await,
    }
}
