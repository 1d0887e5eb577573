//! An outgoing connection from the spool to an exchange. It publishes with confirmations, and handles returns
//! and what a broker refuses.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Confirmation, Event, ExchangeKind};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use xmsg_zmq::deadline::Deadline;

use super::in_flight::{InFlight, Outcome, PublishResult, Returned, Sent};
use super::{OutgoingPlan, Shared};
use crate::amqp::{BrokerConnection, broker_error, headers, protocol_error, reply_code, short};
use crate::definition::{AmqpOutgoing, ConnectionDefinition, Destination, OnReturn};
use crate::error::{Error, ErrorKind, Result};
use crate::federation::{Unconfirmed, declare_exchange};
use crate::outbound::Stored;
use crate::sleeping::sleep_until;
use crate::spool::Entry;
use crate::status::{LinkState, add};
use crate::supervise::Failure;

/// How many entries are read from the spool at a time. A few large reads cost the spool less than many small
/// ones.
const PAGE_MAX: usize = 1000;
const PAGE_BYTES: usize = 4 << 20;
/// The bytes that a frame has besides the properties, with room to spare.
const FRAME_OVERHEAD: usize = 512;
/// The first pause before a message that came back is sent again; it doubles up to the last.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Publishes until something breaks, or `stop`.
pub(super) async fn session(
    link: &Arc<Shared>,
    plan: &OutgoingPlan,
    attempt: usize,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let (Destination::Amqp(settings), Some(broker)) = (&plan.destination, &plan.broker) else {
        return Ok(());
    };
    let open = async {
        link.wait_for_work().await?;
        let connection =
            BrokerConnection::open(broker, &plan.definition.name, attempt, &link.receive_memory).await?;
        connection.with_timeout(broker.connect_timeout.get(), prepare(&connection.channel, settings)).await?;
        Ok::<_, Error>(connection)
    };
    let connection = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        connection = open => connection?,
    };
    link.status.set_peer(Some(connection.uri.clone()));
    link.status.set(LinkState::Connected);
    add(&link.status.counters.connections, 1);
    tracing::info!("{}: connected to {}", link.status.label(), connection.uri);
    let mut session = Session {
        link,
        plan,
        settings,
        broker,
        frame_max: connection.frame_max,
        channel: connection.channel.clone(),
        in_flight: InFlight::default(),
        retries: VecDeque::new(),
        unconfirmed: Unconfirmed::default(),
        ready: VecDeque::new(),
        read_until: 0,
        sent_until: 0,
        refused_since: None,
        has_worked: false,
    };
    let ended = session.run(&connection, &stop).await;
    let had_worked = session.has_worked;
    link.status.in_flight.store(0, Ordering::Relaxed);
    drop(session);
    connection.close().await;
    ended.map_err(|error| Failure { error, had_worked })
}

/// Switches confirmations on, and checks that the exchange is there. What a federation or a durable
/// subscription needs is declared.
async fn prepare(channel: &Channel, settings: &AmqpOutgoing) -> Result<()> {
    let select = channel.confirm_select(ConfirmSelectOptions::default()).await;
    select.map_err(|error| broker_error(error, "the broker offers no confirmations"))?;
    match (&settings.origin, &settings.durable) {
        (Some(_), _) => declare_exchange(channel, &settings.exchange).await,
        (None, Some(durable)) => crate::durable::declare(channel, durable).await,
        (None, None) => check_exchange(channel, &settings.exchange).await,
    }
}

/// Checks that this exchange is there. The default exchange always is.
pub(crate) async fn check_exchange(channel: &Channel, exchange: &str) -> Result<()> {
    if exchange.is_empty() {
        return Ok(());
    }
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    // The broker ignores the kind in a passive declaration.
    let kind = ExchangeKind::Direct;
    let declared = channel.exchange_declare(short(exchange), kind, passive, FieldTable::default()).await;
    declared
        .map_err(|error| broker_error(error, &format!("the exchange {exchange:?} can't be used (exchange)")))
}

/// A message that came back, by its place in the spool, and when it is sent again.
struct Retry {
    sequence: u64,
    at: Instant,
}

/// How many messages that came back may wait to be sent again. With more of them, nothing new is sent.
const RETRIES_MAX: usize = 100_000;
/// The bytes of messages that may be without a confirmation. A message that is longer goes alone.
const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;
/// How often the broker may end a channel while a certain message alone is in flight, until that message is
/// given up.
const CHANNEL_ERRORS_MAX: u32 = 3;
/// How long the broker may refuse one message after the other, and take none, until another connection is
/// tried: a channel that was open while the leader of a replicated queue died refuses whatever it is given
/// from then on, although the queue has a new leader.
const REFUSED_MAX: Duration = Duration::from_secs(5);

struct Session<'a> {
    link: &'a Arc<Shared>,
    plan: &'a OutgoingPlan,
    settings: &'a AmqpOutgoing,
    broker: &'a ConnectionDefinition,
    frame_max: usize,
    channel: Channel,
    in_flight: InFlight,
    /// Messages that came back, in the order of the times at which they are sent again.
    retries: VecDeque<Retry>,
    /// In a federation, the messages that were sent and are not confirmed.
    unconfirmed: Unconfirmed,
    /// Entries that were read from the spool and not sent yet.
    ready: VecDeque<Entry>,
    /// The last entry that was read.
    read_until: u64,
    /// The last entry that was sent over this connection.
    sent_until: u64,
    /// When the broker refused a message, after the last one that it took.
    refused_since: Option<Instant>,
    has_worked: bool,
}

impl Session<'_> {
    async fn run(&mut self, connection: &BrokerConnection, stop: &CancellationToken) -> Result<()> {
        let spool = self.link.spool.get()?;
        let mut events = Box::pin(connection.client.events_listener());
        let mut is_blocked = false;
        let mut is_stopping = false;
        loop {
            self.link.status.in_flight.store(self.in_flight.len() as u64, Ordering::Relaxed);
            if is_stopping && self.in_flight.len() == 0 {
                return Ok(());
            }
            let may_send = !is_blocked && !is_stopping;
            while may_send
                && !self.in_flight.has_undecided()
                && self.capacity() > 0
                && self.ready.front().is_some_and(|next| self.unconfirmed.may_send(next.sequence))
                && let Some(entry) = self.ready.pop_front()
            {
                let sequence = entry.sequence;
                if let Some(delayed) = self.send(entry).await? {
                    // The entry waits for the other one of its identifier, and so do those behind it.
                    self.ready.push_front(delayed);
                    break;
                }
                self.sent_until = self.sent_until.max(sequence);
            }
            let retry_at = self.retries.front().map(|retry| retry.at).filter(|_| may_send);
            let overdue_at = self
                .in_flight
                .oldest()
                .filter(|_| !is_blocked)
                .map(|since| Deadline::since(since, self.settings.confirm_timeout).instant());
            tokio::select! {
                biased;
                () = stop.cancelled(), if !is_stopping => is_stopping = true,
                decided = self.in_flight.next_decided() => match decided {
                    Ok(decided) => self.apply_outcomes(decided).await?,
                    Err(error) => return Err(self.ended(&error, &connection.uri).await),
                },
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => {
                        is_blocked = true;
                        self.link.status.fail(LinkState::Blocked, format!("the broker takes nothing for now: {reason}"));
                    }
                    Some(Event::ConnectionUnblocked) => {
                        is_blocked = false;
                        self.in_flight.restart_clocks();
                        self.link.status.set(LinkState::Connected);
                    }
                    Some(Event::Error(error)) => return Err(self.ended(&error, &connection.uri).await),
                    Some(_) => {}
                    None => {
                        let what = format!("the connection to the broker {} has ended", connection.uri);
                        return Err(Error::new(ErrorKind::Unreachable, what));
                    }
                },
                () = sleep_until(overdue_at) => {
                    let count = self.in_flight.overdue(self.settings.confirm_timeout);
                    if count > 0 {
                        let what = format!(
                            "the broker {} has not confirmed {count} messages within {:?} (confirm_timeout)",
                            connection.uri, self.settings.confirm_timeout
                        );
                        return Err(Error::new(ErrorKind::Timeout, what));
                    }
                }
                () = sleep_until(retry_at), if !self.in_flight.has_undecided() => {
                    if let Some(retry) = self.retries.pop_front() {
                        self.send_again(retry.sequence).await?;
                    }
                }
                page = spool.next_after(self.read_until, PAGE_MAX, PAGE_BYTES), if may_send && self.ready.is_empty() => {
                    self.ready.extend(page.map_err(super::storage)?);
                    self.read_until = self.ready.back().map_or(self.read_until, |last| last.sequence);
                }
            }
        }
    }

    /// Returns how many messages may be sent now. After the broker has ended a channel because of a message,
    /// those that were in flight go out one by one, so that the next time it is known which one it was.
    fn capacity(&self) -> usize {
        let is_probing = self.sent_until < self.link.suspects_until.load(Ordering::Relaxed);
        let window = if is_probing { 1 } else { self.settings.max_in_flight };
        if self.in_flight.bytes() >= IN_FLIGHT_BYTES_MAX || self.retries.len() >= RETRIES_MAX {
            return 0;
        }
        window.saturating_sub(self.in_flight.len())
    }

    /// Sends an entry again, if it is still there: it may have become too old.
    async fn send_again(&mut self, sequence: u64) -> Result<()> {
        let next = self.link.spool.get()?.next_after(sequence.saturating_sub(1), 1, 1);
        // The spool waits for a later entry if this one is gone.
        let Ok(found) = Deadline::after(RETRY_MIN).limit(next).await else {
            self.unconfirmed.remove(sequence);
            return Ok(());
        };
        let found = found.map_err(super::storage)?;
        if found.first().is_none_or(|entry| entry.sequence != sequence) {
            self.unconfirmed.remove(sequence);
        }
        if let Some(entry) = found.into_iter().find(|entry| entry.sequence == sequence) {
            match self.send(entry).await? {
                None => add(&self.link.status.counters.repeated, 1),
                Some(_) => self.retry_after(sequence, RETRY_MIN),
            }
        }
        Ok(())
    }

    /// Sends an entry. Returns it if another one of the same identifier is on its way.
    async fn send(&mut self, entry: Entry) -> Result<Option<Entry>> {
        let stored = match Stored::decode(entry.body.clone()) {
            Ok(stored) => stored,
            Err(error) => {
                self.unconfirmed.remove(entry.sequence);
                self.link.dead_letter(&entry, None, &error.with_causes()).await?;
                return Ok(None);
            }
        };
        if self.in_flight.contains(stored.id) {
            return Ok(Some(entry));
        }
        let name = &self.plan.definition.name;
        let publish =
            headers::outbound(name, &stored, entry.accepted_at, self.settings, &self.broker.username);
        let fits = publish.and_then(|publish| {
            let room = self.frame_max.saturating_sub(FRAME_OVERHEAD);
            if publish.properties_len > room {
                return Err(format!(
                    "its topic, metadata and headers have {} bytes, and AMQP allows {room} (frame_max)",
                    publish.properties_len
                ));
            }
            Ok(publish)
        });
        let publish = match fits {
            Ok(publish) => publish,
            Err(reason) => {
                self.unconfirmed.remove(entry.sequence);
                self.link.dead_letter(&entry, Some(stored.id), &reason).await?;
                return Ok(None);
            }
        };
        let channel = self.channel.clone();
        let options = BasicPublishOptions { mandatory: self.settings.is_mandatory, immediate: false };
        let answer = async move {
            let exchange = short(&publish.exchange);
            let routing_key = short(&publish.routing_key);
            let sent = channel
                .basic_publish(exchange, routing_key, options, &publish.body, publish.properties)
                .await;
            match sent {
                Ok(confirmation) => publish_result(confirmation.await),
                Err(error) => PublishResult::Lost(error),
            }
        };
        if self.plan.federation.is_some() {
            self.unconfirmed.insert(entry.sequence);
        }
        self.in_flight.push(Sent { entry, id: stored.id, since: Instant::now() }, answer.boxed());
        Ok(None)
    }

    /// Handles what has become of these messages.
    async fn apply_outcomes(&mut self, decided: Vec<(Sent, Outcome)>) -> Result<()> {
        let counters = &self.link.status.counters;
        // What has arrived is handled first, so that nothing else keeps it from being known.
        let arrived = decided.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Arrived));
        let arrived: Vec<_> = arrived.map(|(sent, _)| (sent.entry.sequence, sent.id)).collect();
        for (sequence, _) in &arrived {
            self.unconfirmed.remove(*sequence);
        }
        if !arrived.is_empty() {
            (self.has_worked, self.refused_since) = (true, None);
        }
        self.link.delivered(arrived).await?;
        let mut is_refusing = false;
        for (sent, outcome) in decided {
            match outcome {
                Outcome::Arrived => {}
                Outcome::Refused => {
                    add(&counters.refused_by_peer, 1);
                    self.link
                        .status
                        .note(format!("the broker could not take the message {}; it is sent again", sent.id));
                    self.retry(&sent);
                    let since = *self.refused_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= REFUSED_MAX {
                        is_refusing = true;
                    }
                }
                Outcome::Returned(reason) => {
                    (self.has_worked, self.refused_since) = (true, None);
                    add(&counters.returned, 1);
                    let what = format!("the broker returned it: {reason}; no queue is bound for it");
                    match self.settings.on_return {
                        OnReturn::DeadLetter => {
                            self.unconfirmed.remove(sent.entry.sequence);
                            self.link.dead_letter(&sent.entry, Some(sent.id), &what).await?;
                        }
                        OnReturn::Retry => {
                            self.link.status.note(format!("message {} is sent again later: {what}", sent.id));
                            self.retry(&sent);
                        }
                    }
                }
            }
        }
        if is_refusing {
            let what = format!(
                "the broker has refused all messages for {} s; they are sent again over another connection",
                REFUSED_MAX.as_secs()
            );
            return Err(Error::new(ErrorKind::Unreachable, what));
        }
        Ok(())
    }

    fn retry(&mut self, sent: &Sent) {
        let age = sent.entry.accepted_at.elapsed().unwrap_or_default();
        // A message is sent again after about as long as it has waited already: soon at first, and then ever
        // less often.
        self.retry_after(sent.entry.sequence, age.clamp(RETRY_MIN, RETRY_MAX));
    }

    fn retry_after(&mut self, sequence: u64, pause: Duration) {
        let at = Deadline::after(pause).instant();
        let place = self.retries.partition_point(|other| other.at <= at);
        self.retries.insert(place, Retry { sequence, at });
    }

    /// Makes the error for a channel or connection that has ended. If the broker ended it because of a
    /// message, and only one can be meant, that message goes to the dead letters.
    async fn ended(&mut self, error: &lapin::Error, uri: &str) -> Error {
        let Some((code, text)) = protocol_error(error) else {
            let what = format!("the connection to the broker {uri} has ended");
            return Error::new(ErrorKind::Unreachable, what).with_source(error.clone());
        };
        let said = format!("the broker {uri} has ended it with {code}: {text}");
        let kind = match code {
            reply_code::ACCESS_REFUSED => ErrorKind::NotAllowed,
            // The broker is going down, or somebody told it to end this connection.
            reply_code::CONNECTION_FORCED => ErrorKind::Unreachable,
            _ => ErrorKind::Refused,
        };
        if let Some(sent) = self.in_flight.only_one() {
            if is_caused_by(&sent.entry, code, &text)
                || may_be_caused_by(code)
                    && self.link.count_channel_error(sent.entry.sequence) >= CHANNEL_ERRORS_MAX
            {
                if let Err(error) = self.link.dead_letter(&sent.entry, Some(sent.id), &said).await {
                    return error;
                }
                // Nothing is wrong with the connection: what comes next goes out at once.
                self.has_worked = true;
                return Error::new(
                    ErrorKind::Closed,
                    format!("{said}; its message is among the dead letters"),
                );
            }
        } else if let Some(last) = self.in_flight.last_sequence() {
            self.link.suspects_until.fetch_max(last, Ordering::Relaxed);
        }
        Error::new(kind, said).with_source(error.clone())
    }
}

/// Returns whether a broker that ends a channel with this code means this message, and not the exchange that
/// all go to. For a routing key that we may not use, the broker says that we have no access to a topic *in*
/// the exchange: the exchange itself is allowed then.
fn is_caused_by(entry: &Entry, code: u16, text: &str) -> bool {
    match code {
        reply_code::CONTENT_TOO_LARGE
        | reply_code::PRECONDITION_FAILED
        | reply_code::FRAME_ERROR
        | reply_code::SYNTAX_ERROR
        | reply_code::COMMAND_INVALID
        | reply_code::UNEXPECTED_FRAME => true,
        reply_code::ACCESS_REFUSED if text.contains("access to topic") => true,
        reply_code::ACCESS_REFUSED | reply_code::NOT_FOUND => {
            Stored::decode(entry.body.clone()).is_ok_and(|stored| stored.outbound.exchange.is_some())
        }
        _ => false,
    }
}

/// Returns whether a broker that ends a channel with this code again and again, while the same message is in
/// flight, may mean that message. It does not when it goes down, has a fault of its own, or refuses whatever
/// goes to the exchange. Then all messages are kept.
fn may_be_caused_by(code: u16) -> bool {
    !matches!(
        code,
        reply_code::CONNECTION_FORCED
            | reply_code::ACCESS_REFUSED
            | reply_code::NOT_FOUND
            | reply_code::INTERNAL_ERROR
    )
}

fn publish_result(confirmation: lapin::Result<Confirmation>) -> PublishResult {
    let returned = |message: lapin::message::BasicReturnMessage| Returned {
        id: headers::id_of(&message.delivery.properties),
        reason: format!("{} {}", message.reply_code, message.reply_text),
    };
    match confirmation {
        Ok(Confirmation::Ack(came_along)) => PublishResult::Confirmed(came_along.map(returned)),
        Ok(Confirmation::Nack(came_along)) => PublishResult::Refused(came_along.map(returned)),
        Ok(Confirmation::NotRequested) => PublishResult::Confirmed(None),
        Err(error) => PublishResult::Lost(error),
    }
}
